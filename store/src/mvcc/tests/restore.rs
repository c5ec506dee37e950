//! Snapshots of a state, and states from snapshots.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;

use store_proto::peer::AlarmChange;
use store_proto::peer::alarm::Cause;

use super::*;
use crate::raft::types::MemberNode;
use crate::snapshot::{SnapshotDir, verify};

/// A state with everything in it: several versions, deletes, long values, leases, a compaction, a
/// membership.
fn furnish(mvcc: &Mvcc) {
    let node = MemberNode { name: "n1".into(), ..MemberNode::default() };
    let membership =
        openraft::Membership::new(vec![[7].into()], BTreeMap::from([(7, node)])).unwrap();
    mvcc.apply(log_id(0), &EntryPayload::Membership(membership)).unwrap();
    let n1 = MemberAttributes {
        member_id: 7,
        name: "n1".into(),
        client_urls: vec!["c".into()],
        removed: false,
    };
    apply(mvcc, [Op::Publish(n1), alarm(8, true), alarm(9, true), alarm(8, false)]);
    apply(mvcc, [grant(1, 60), grant(-2, 90), put_with_lease("leased", 1)]);
    for round in 0..20 {
        apply(mvcc, (0..10).map(|n| put(&format!("key-{n}"), &format!("{round}"))));
        apply(mvcc, [put("long", &"x".repeat(20_000 + round)), delete("key-3", "key-5")]);
    }
    apply(mvcc, [compact_at(100), delete("key-7", "")]);
    mvcc.apply(log_id(44), &EntryPayload::Blank).unwrap();
}

/// An alarm that refuses nothing here: another member's disk is full.
fn alarm(member_id: u64, raised: bool) -> Op {
    let (alarm, cause) = (AlarmType::Nospace.into(), Cause::Disk.into());
    Op::Alarm(AlarmChange { alarm: Some(Alarm { member_id, alarm, cause }), raised })
}

/// Everything that a snapshot has to carry.
fn describe(mvcc: &Mvcc) -> impl PartialEq + fmt::Debug + use<> {
    (
        (mvcc.applied(), mvcc.members(), mvcc.current_revision(), mvcc.compacted_revision()),
        (mvcc.hash(0).unwrap(), mvcc.leases(), mvcc.lease_keys(1), mvcc.alarms(AlarmType::None)),
        mvcc.range(&range("\0", "\0", 150)).unwrap(),
    )
}

#[test]
fn a_state_comes_back_from_its_snapshot_on_either_engine() {
    for use_sled in [[false, false], [false, true], [true, false], [true, true]] {
        let [source, target] =
            use_sled.map(|sled| if sled { TestEngine::sled() } else { TestEngine::memory() });
        let temp = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(temp.path()).unwrap();
        let mvcc = source.open(10_000);
        assert!(mvcc.write_snapshot(&snapshots).unwrap().is_none());
        furnish(&mvcc);
        let (meta, path) = mvcc.write_snapshot(&snapshots).unwrap().unwrap();
        assert_eq!(verify(&path).unwrap(), meta);
        assert_eq!((Some(meta.last_log_id), meta.membership.clone()), mvcc.applied());

        let other = TestEngine::memory().open(1 << 20);
        apply(&other, [put("another", "store"), grant(9, 9)]);
        let mut is_committed = false;
        other
            .restore_from(&path, target.get(), || {
                is_committed = true;
                Ok(())
            })
            .unwrap();
        assert!(is_committed);
        assert_eq!(describe(&other), describe(&mvcc));

        // Both go on alike.
        for mvcc in [&mvcc, &other] {
            apply(mvcc, [put("after", "1"), revoke(1), compact_at(120)]);
            mvcc.flush().unwrap();
            compact_all(mvcc);
        }
        assert_eq!(describe(&other), describe(&mvcc));
        let meta = other.write_snapshot(&snapshots).unwrap().unwrap().0;
        assert_eq!(meta.revision, mvcc.current_revision());
    }
}

#[test]
fn a_snapshot_is_of_one_moment_whatever_is_applied_meanwhile() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(temp.path()).unwrap();
    let engine = TestEngine::sled();
    let mvcc = engine.open(10_000);
    furnish(&mvcc);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..300_i64 {
                apply(&mvcc, [put("busy", "x"), put("busy", "y"), compact_at(100 + round)]);
                mvcc.write_behind().unwrap();
                mvcc.compact_step().unwrap();
            }
        });
        let mut taken = 0;
        while !writer.is_finished() || taken == 0 {
            let (meta, path) = mvcc.write_snapshot(&snapshots).unwrap().unwrap();
            let copy = TestEngine::memory().open(0);
            copy.restore_from(&path, TestEngine::memory().get(), || Ok(())).unwrap();
            assert_eq!(copy.current_revision(), meta.revision);
            taken += 1;
        }
    });
}

#[test]
fn a_snapshot_of_an_engine_that_lost_a_record_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(temp.path()).unwrap();
    let engine = TestEngine::memory();
    let mvcc = engine.open(0);
    furnish(&mvcc);
    mvcc.flush().unwrap();
    let mut batch = crate::engine::WriteBatch::default();
    batch.delete(keys::Key::Record(Revision::first_of(130)).encode());
    engine.get().write(batch).unwrap();
    let error = mvcc.write_snapshot(&snapshots).unwrap_err();
    assert!(error.to_string().contains("records instead of"), "{error}");
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    assert!(Mvcc::open(engine.get(), Limits::default()).is_err());
}

#[test]
fn a_damaged_snapshot_leaves_the_state_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(&temp.path().join("snapshots")).unwrap();
    let state = StateDir::new(&temp.path().join("state"), Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    furnish(&mvcc);
    let (_, path) = mvcc.write_snapshot(&snapshots).unwrap().unwrap();
    apply(&mvcc, [put("later", "1")]);
    let before = describe(&mvcc);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = state.restore(&mvcc, &path).unwrap_err();
    assert!(error.to_string().contains("a checksum is wrong"), "{error}");
    assert_eq!(describe(&mvcc), before);
    mvcc.flush().unwrap();
    drop((mvcc, state));
    let state = StateDir::new(&temp.path().join("state"), Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    assert_eq!(describe(&mvcc), before);
    assert_eq!(engine_dirs(&temp.path().join("state")).len(), 1);
}

#[test]
fn a_state_moves_to_fresh_files_while_everything_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let snapshots = SnapshotDir::open(&temp.path().join("snapshots")).unwrap();
    let limits = Limits { window_bytes: 10_000, batch_bytes: 10_000 };
    let state = StateDir::new(&path, limits).unwrap();
    let mvcc = ready(open(&state, None));
    let twin = TestEngine::memory().open(0);
    furnish(&mvcc);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..400_i64 {
                apply(&mvcc, [put("busy", "x"), put(&format!("key-{round}"), &"y".repeat(500))]);
                apply(
                    &mvcc,
                    [delete("key-1", "key-3"), compact_at(101 + round / 10), grant(100 + round, 9)],
                );
                mvcc.write_behind().unwrap();
                mvcc.compact_step().unwrap();
            }
        });
        let (mvcc, snapshots) = (&mvcc, &snapshots);
        let reader = scope.spawn(move || {
            while !writer.is_finished() {
                mvcc.range(&range("", "\0", 0)).unwrap();
                mvcc.hash(0).unwrap();
                let history = mvcc.history(mvcc.compacted_revision() + 300, 5000);
                assert!(!matches!(history, Err(HistoryError::Engine(_))), "{history:?}");
                mvcc.write_snapshot(snapshots).unwrap();
            }
        });
        let mut moves = 0;
        while !reader.is_finished() || moves == 0 {
            assert_eq!(state.defragment(mvcc, || false).unwrap(), Moved::Done);
            moves += 1;
        }
    });
    furnish(&twin);
    for round in 0..400_i64 {
        apply(&twin, [put("busy", "x"), put(&format!("key-{round}"), &"y".repeat(500))]);
        apply(
            &twin,
            [delete("key-1", "key-3"), compact_at(101 + round / 10), grant(100 + round, 9)],
        );
    }
    assert_eq!(describe(&mvcc), describe(&twin));
    assert_eq!(engine_dirs(&path).len(), 1);

    mvcc.flush().unwrap();
    let (applied, _) = mvcc.applied();
    drop((mvcc, state));
    let state = StateDir::new(&path, limits).unwrap();
    let mvcc = ready(open(&state, applied.as_ref()));
    assert_eq!(describe(&mvcc), describe(&twin));
}

#[test]
fn moving_shrinks_the_files() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::new(temp.path(), Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    for round in 0..20 {
        apply(&mvcc, (0..50).map(|n| put(&format!("key-{n}"), &format!("{round}").repeat(5000))));
        mvcc.flush().unwrap();
    }
    apply(&mvcc, [compact_at(mvcc.current_revision()), delete("key-2", "key-9")]);
    mvcc.flush().unwrap();
    compact_all(&mvcc);
    mvcc.flush().unwrap();
    let before = (mvcc.size_bytes().unwrap(), mvcc.hash(0).unwrap());
    assert_eq!(state.defragment(&mvcc, || false).unwrap(), Moved::Done);
    assert!(mvcc.size_bytes().unwrap() < before.0 / 2, "{before:?} {:?}", mvcc.size_bytes());
    assert_eq!(mvcc.hash(0).unwrap(), before.1);
    assert!(mvcc.in_use_bytes() < before.0);
}

#[test]
fn a_move_that_is_cut_off_leaves_the_state_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let state = StateDir::new(&path, Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    furnish(&mvcc);
    mvcc.flush().unwrap();
    let before = describe(&mvcc);
    let fresh = || TestEngine::memory().get();
    let failure = || Err(EngineError::Damaged("the rename failed".to_owned()));
    assert!(mvcc.move_to(fresh(), || false, failure).is_err());
    assert_eq!(mvcc.move_to(fresh(), || false, || Ok(false)).unwrap(), Moved::Replaced);
    assert_eq!(state.defragment(&mvcc, || true).unwrap(), Moved::Stopped);
    assert_eq!(engine_dirs(&path), ["engine-0000000000000001"]);
    // A snapshot from the leader has the last word.
    let replacing = state.replacing.lock();
    assert_eq!(state.defragment(&mvcc, || false).unwrap(), Moved::Replaced);
    drop(replacing);
    assert_eq!(describe(&mvcc), before);

    // Cut off by a crash after the copy: what was not put behind CURRENT goes at the next start.
    let leftover = SledEngine::open(&path.join("engine-0000000000000008")).unwrap();
    mvcc.move_to(Arc::new(leftover), || false, || Ok(false)).unwrap();
    apply(&mvcc, [put("after", "1")]);
    let before = describe(&mvcc);
    mvcc.flush().unwrap();
    drop((mvcc, state));
    let state = StateDir::new(&path, Limits::default()).unwrap();
    assert_eq!(describe(&ready(open(&state, None))), before);
    assert_eq!(engine_dirs(&path), ["engine-0000000000000001"]);
}

#[test]
fn an_engine_that_lost_a_record_is_not_moved() {
    let engine = TestEngine::memory();
    let mvcc = engine.open(0);
    furnish(&mvcc);
    mvcc.flush().unwrap();
    let mut batch = crate::engine::WriteBatch::default();
    batch.delete(keys::Key::Record(Revision::first_of(130)).encode());
    engine.get().write(batch).unwrap();
    let error = mvcc.move_to(TestEngine::memory().get(), || false, || Ok(true)).unwrap_err();
    assert!(error.to_string().contains("records instead of"), "{error}");
}

fn open(state: &StateDir, checkpoint: Option<&LogId>) -> Opened {
    once_unlocked(|| state.open(checkpoint)).unwrap()
}

fn ready(opened: Opened) -> Mvcc {
    match opened {
        Opened::Ready(mvcc) => mvcc,
        Opened::NeedsRebuild { reason } => panic!("it needs a rebuild: {reason}"),
    }
}

fn reason(opened: Opened) -> String {
    match opened {
        Opened::Ready(mvcc) => panic!("nothing was noticed: {mvcc:?}"),
        Opened::NeedsRebuild { reason } => reason,
    }
}

fn engine_dirs(state: &Path) -> Vec<String> {
    let names = fs::read_dir(state).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("engine-"));
    names.sort();
    names
}

#[test]
fn a_restored_state_is_the_one_that_is_opened_next() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let snapshots = SnapshotDir::open(&temp.path().join("snapshots")).unwrap();
    let source = TestEngine::memory().open(0);
    furnish(&source);
    let (_, snapshot) = source.write_snapshot(&snapshots).unwrap().unwrap();

    let state = StateDir::new(&path, Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    apply(&mvcc, [put("old", "state")]);
    state.restore(&mvcc, &snapshot).unwrap();
    assert_eq!(describe(&mvcc), describe(&source));
    assert_eq!(engine_dirs(&path), ["engine-0000000000000002"]);

    // Somebody still reads the replaced engine: it stays until that has ended.
    let reader = Arc::clone(&mvcc.shared.state.read().engine);
    state.restore(&mvcc, &snapshot).unwrap();
    assert_eq!(engine_dirs(&path), ["engine-0000000000000002", "engine-0000000000000003"]);
    drop(reader);
    state.restore(&mvcc, &snapshot).unwrap();
    assert_eq!(engine_dirs(&path), ["engine-0000000000000004"]);

    apply(&mvcc, [put("after", "1")]);
    apply(&source, [put("after", "1")]);
    mvcc.flush().unwrap();
    drop((mvcc, state));
    fs::create_dir(path.join("engine-0000000000000009")).unwrap();
    let state = StateDir::new(&path, Limits::default()).unwrap();
    let mvcc = ready(open(&state, source.applied().0.as_ref()));
    assert_eq!(describe(&mvcc), describe(&source));
    assert_eq!(engine_dirs(&path), ["engine-0000000000000004"]);
}

/// What becomes of a state directory whose engine `harm` was done to.
fn after(harm: impl Fn(&Path)) -> Opened {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let snapshots = SnapshotDir::open(&temp.path().join("snapshots")).unwrap();
    let state = StateDir::new(&path, Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    furnish(&mvcc);
    let (meta, snapshot) = mvcc.write_snapshot(&snapshots).unwrap().unwrap();
    let before = describe(&mvcc);
    mvcc.flush().unwrap();
    drop((mvcc, state));
    harm(&path);

    let state = StateDir::new(&path, Limits::default()).unwrap();
    let opened = open(&state, Some(&meta.last_log_id));
    match &opened {
        Opened::Ready(mvcc) => assert_eq!(describe(mvcc), before),
        Opened::NeedsRebuild { .. } => {
            let mvcc = state.set_aside_and_rebuild(Some(&snapshot)).unwrap();
            assert_eq!(describe(&mvcc), before);
            drop(mvcc);
            let mvcc = ready(open(&state, Some(&meta.last_log_id)));
            assert_eq!(describe(&mvcc), before);
            assert_eq!(engine_dirs(&path).len(), 1);
        }
    }
    opened
}

fn engine_of(state: &Path) -> std::path::PathBuf {
    state.join(engine_dirs(state).pop().unwrap())
}

#[test]
fn a_lost_engine_is_noticed_and_rebuilt() {
    ready(after(|_| {}));
    let lost = reason(after(|state| fs::remove_dir_all(state).unwrap()));
    assert!(lost.contains("has come back at 0"), "{lost}");
    reason(after(|state| fs::remove_dir_all(engine_of(state)).unwrap()));
    reason(after(|state| fs::remove_file(engine_of(state).join("db")).unwrap()));
    let named = reason(after(|state| fs::write(state.join(CURRENT), "nonsense").unwrap()));
    assert!(named.contains("nonsense"), "{named}");
    // Without the pointer nothing says which engine it was.
    reason(after(|state| fs::remove_file(state.join(CURRENT)).unwrap()));
}

const CURRENT: &str = "CURRENT";

#[test]
fn an_engine_cut_short_is_noticed_or_whole() {
    for tenths in 0..10 {
        let _ = after(|state| {
            let db = OpenOptions::new().write(true).open(engine_of(state).join("db")).unwrap();
            let length = db.metadata().unwrap().len();
            db.set_len(length * tenths / 10 + tenths).unwrap();
        });
    }
}

#[test]
fn an_engine_with_a_flipped_byte_is_noticed_or_whole() {
    for at in [20_u64, 100, 1000, 5_000, 20_000, 50_000, 100_000, 200_000, 300_000] {
        let _ = after(|state| {
            let path = engine_of(state).join("db");
            let mut bytes = fs::read(&path).unwrap();
            let at = at as usize % bytes.len();
            bytes[at] ^= 0x40;
            fs::write(&path, bytes).unwrap();
        });
    }
}

#[test]
fn an_engine_that_another_process_uses_is_no_reason_to_rebuild_it() {
    let temp = tempfile::tempdir().unwrap();
    let first = StateDir::new(temp.path(), Limits::default()).unwrap();
    let mvcc = ready(open(&first, None));
    apply(&mvcc, [put("a", "1")]);
    let second = StateDir::new(temp.path(), Limits::default()).unwrap();
    assert!(second.open(None).is_err());
}

#[test]
fn without_a_snapshot_the_log_begins_anew() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::new(temp.path(), Limits::default()).unwrap();
    let mvcc = ready(open(&state, None));
    furnish(&mvcc);
    drop(mvcc);
    let mvcc = state.set_aside_and_rebuild(None).unwrap();
    assert_eq!((mvcc.applied().0, mvcc.current_revision()), (None, 1));
    furnish(&mvcc);
    let names = fs::read_dir(temp.path()).unwrap().map(|file| file.unwrap().file_name());
    assert!(names.into_iter().any(|name| name == "aside-0000000000000001"));
}
