//! Removing compacted records in the background.

use super::*;

fn records(engine: &TestEngine) -> usize {
    engine.open(0).shared.state.read().index.len()
}

#[test]
fn records_go_only_once_the_engine_has_the_mark() {
    let engine = TestEngine::memory();
    // One entry at a time.
    let mvcc = Mvcc::open(engine.get(), Limits { window_bytes: 0, batch_bytes: 1 }).unwrap();
    apply(&mvcc, [put("a", "1")]);
    write_all(&mvcc);
    apply(&mvcc, [put("b", "1")]);
    apply(&mvcc, [delete("a", "")]);
    apply(&mvcc, [compact_at(4), put("b", "2")]);
    mvcc.write_behind().unwrap();
    assert_eq!(mvcc.compact_step().unwrap(), CompactStep::Idle);

    // The process dies here: the engine must still have what the deletion will find.
    let after_crash = engine.open(0);
    assert_eq!(after_crash.applied().0, Some(log_id(1)));
    let Ok(Outcome::DeleteRange(deleted)) = apply_one(&after_crash, delete("a", "")) else {
        panic!("a deletion was refused");
    };
    assert_eq!(deleted.deleted, 1);

    write_all(&mvcc);
    compact_all(&mvcc);
    // The deletion at the compacted revision can still be watched.
    assert_eq!(records(&engine), 3);
    apply(&mvcc, [compact_at(5)]);
    write_all(&mvcc);
    compact_all(&mvcc);
    assert_eq!(records(&engine), 1);
}

#[test]
fn nothing_goes_while_somebody_reads_all_of_it() {
    let engine = TestEngine::memory();
    let mvcc = engine.open(0);
    for round in 0..10 {
        apply(&mvcc, [put("a", &round.to_string())]);
    }
    apply(&mvcc, [compact_at(11)]);
    mvcc.flush().unwrap();
    let pause = mvcc.pause_compaction();
    let other_pause = mvcc.pause_compaction();
    assert_eq!(mvcc.compact_step().unwrap(), CompactStep::Paused);
    drop(pause);
    assert_eq!(mvcc.compact_step().unwrap(), CompactStep::Paused);
    assert_eq!(records(&engine), 10);
    drop(other_pause);
    compact_all(&mvcc);
    assert_eq!(records(&engine), 1);
}

#[test]
fn what_a_crash_left_behind_goes_after_the_start() {
    let engine = TestEngine::memory();
    let mvcc = engine.open(0);
    // More versions of one key than a step removes, and more keys than one looks at.
    for _ in 0..5 {
        apply(&mvcc, (0..500).map(|n| put("often", &n.to_string())));
        apply(&mvcc, (0..1000).map(|n| put(&format!("key-{n}"), "x")));
    }
    apply(&mvcc, [delete("key-", "key.")]);
    apply(&mvcc, [put("last", "1"), compact_at(mvcc.current_revision() + 1)]);
    mvcc.flush().unwrap();
    mvcc.want_removal(i64::MAX);
    for _ in 0..20 {
        assert_eq!(mvcc.compact_step().unwrap(), CompactStep::More);
    }
    let left = records(&engine);
    assert!((3..8000).contains(&left), "{left} records are left in the middle of it");
    drop(mvcc);

    let mvcc = engine.open(0);
    let hash = mvcc.hash(0).unwrap();
    assert_eq!(mvcc.range(&range("\0", "\0", 0)).unwrap().count, 2);
    compact_all(&mvcc);
    assert_eq!(records(&engine), 2);
    assert_eq!(mvcc.hash(0).unwrap(), hash);
    assert_eq!(mvcc.range(&range("often", "", 0)).unwrap().kvs[0].version, 2500);
}

/// A store with garbage that is not worth removing: 200 keys, written five times, then half of them
/// deleted.
fn with_garbage(engine: &TestEngine) -> Mvcc {
    let mvcc = engine.open(0);
    for _ in 0..5 {
        apply(&mvcc, (0..200).map(|n| put(&format!("key-{n:03}"), "x")));
    }
    apply(&mvcc, [delete("key-100", "key."), put("last", "1")]);
    apply(&mvcc, [compact_at(mvcc.current_revision())]);
    mvcc.flush().unwrap();
    while mvcc.compact_step().unwrap() == CompactStep::More {}
    assert_eq!(mvcc.compact_step().unwrap(), CompactStep::Idle);
    mvcc
}

#[test]
fn garbage_stays_in_the_engine_until_somebody_wants_it_gone() {
    for engine in [TestEngine::memory(), TestEngine::sled()] {
        let mvcc = with_garbage(&engine);
        let (hash, in_use) = (mvcc.hash(0).unwrap(), mvcc.in_use_bytes());
        assert_eq!(mvcc.shared.state.read().index.len(), 101);
        assert_eq!(records(&engine), 1000 + 100 + 1);
        let temp = tempfile::tempdir().unwrap();
        let snapshots = crate::snapshot::SnapshotDir::open(temp.path()).unwrap();
        assert!(mvcc.write_snapshot(&snapshots).unwrap().is_some());

        // A new process finds it, and it is not worth more to that one.
        let again = engine.open(0);
        while again.compact_step().unwrap() == CompactStep::More {}
        assert_eq!((again.hash(0).unwrap(), again.in_use_bytes()), (hash, in_use));
        assert_eq!(records(&engine), 1101);

        mvcc.want_removal(mvcc.compacted_revision());
        while mvcc.compact_step().unwrap() == CompactStep::More {}
        assert_eq!(records(&engine), 101);
        assert_eq!((mvcc.hash(0).unwrap(), mvcc.in_use_bytes()), (hash, in_use));
    }
}

#[test]
fn room_on_the_disk_comes_back() {
    let engine = TestEngine::sled();
    let mvcc = engine.open(0);
    let value = "x".repeat(100_000);
    for _ in 0..3 {
        apply(&mvcc, (0..60).map(|n| put(&format!("key-{n}"), &value)));
    }
    apply(&mvcc, [compact_at(mvcc.current_revision())]);
    mvcc.flush().unwrap();
    assert!(mvcc.size_bytes().unwrap() > 18_000_000);
    while mvcc.compact_step().unwrap() == CompactStep::More {}
    mvcc.flush().unwrap();
    let bytes = mvcc.size_bytes().unwrap();
    assert!((6_000_000..9_000_000).contains(&bytes), "{bytes} bytes for 6 MB");
    assert_eq!(mvcc.range(&range("\0", "\0", 0)).unwrap().count, 60);
}

#[test]
fn garbage_is_left_behind_when_the_state_moves() {
    let engine = TestEngine::memory();
    let mvcc = with_garbage(&engine);
    let hash = mvcc.hash(0).unwrap();
    let fresh = TestEngine::memory();
    assert_eq!(mvcc.move_to(fresh.get(), || false, || Ok(true)).unwrap(), Moved::Done);
    assert_eq!((records(&engine), records(&fresh)), (1101, 101));
    assert_eq!(mvcc.hash(0).unwrap(), hash);
    apply(&mvcc, [put("key-001", "y"), put("last", "2")]);
    apply(&mvcc, [compact_at(mvcc.current_revision())]);
    mvcc.flush().unwrap();
    compact_all(&mvcc);
    assert_eq!(records(&fresh), 101);
}
