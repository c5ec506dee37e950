//! What both engines have to do, run on both.

use std::fs;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::sled::MAX_VALUE_BYTES;
use super::*;

fn on_both(test: impl Fn(&dyn Engine)) {
    test(&MemoryEngine::default());
    let dir = tempfile::tempdir().unwrap();
    test(&SledEngine::open(dir.path()).unwrap());
}

fn collect(engine: &dyn Engine, range: Range<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    engine
        .scan(range, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            if pairs.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    pairs
}

fn pairs(range: Range<u8>) -> Vec<(Vec<u8>, Vec<u8>)> {
    range.map(|n| (vec![n], vec![n, n])).collect()
}

#[test]
fn scans_are_ordered_half_open_and_stop_when_told() {
    on_both(|engine| {
        let mut batch = WriteBatch::default();
        for n in (0..10).rev() {
            batch.put(vec![n], vec![n, n]);
        }
        engine.write(batch).unwrap();
        assert_eq!(collect(engine, &[2]..&[7], 100), pairs(2..7));
        assert_eq!(collect(engine, &[2]..&[7], 2), pairs(2..4));
        assert_eq!(collect(engine, &[7]..&[2], 2), []);
        assert_eq!(collect(engine, &[7]..&[7], 2), []);
        assert_eq!(engine.get(&[3]).unwrap().unwrap(), &[3, 3][..]);
        assert_eq!(engine.get(&[33]).unwrap(), None);
        engine.flush().unwrap();
        assert!(engine.size_bytes().unwrap() > 0);
    });
}

#[test]
fn the_later_operation_of_a_batch_wins() {
    on_both(|engine| {
        let mut batch = WriteBatch::default();
        batch.put(vec![1], vec![1]);
        batch.delete(vec![1]);
        batch.put(vec![2], vec![1]);
        batch.put(vec![2], vec![2]);
        batch.delete(vec![3]);
        batch.put(vec![3], vec![3]);
        assert_eq!((batch.is_empty(), batch.bytes()), (false, 10));
        engine.write(batch).unwrap();
        assert_eq!(collect(engine, &[0]..&[9], 9), [(vec![2], vec![2]), (vec![3], vec![3])]);
    });
}

/// Keys of which some stand in blocks, so few that they meet.
fn changes() -> impl Strategy<Value = Vec<(Vec<u8>, Option<usize>)>> {
    let key = (prop_oneof![Just(0x0f_u8), Just(0x10), Just(0x11)], 0..40_u8);
    let change = (key, prop_oneof![1 => Just(None), 2 => (0..3000_usize).prop_map(Some)]);
    prop::collection::vec(change.prop_map(|((kind, n), value)| (vec![kind, n], value)), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn sled_holds_what_memory_holds(
        batches in prop::collection::vec(changes(), 1..12),
        start in 0..40_u8,
        end in 0..40_u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let memory = MemoryEngine::default();
        let mut sled = SledEngine::open(dir.path()).unwrap();
        for (n, batch) in batches.iter().enumerate() {
            for engine in [&memory as &dyn Engine, &sled] {
                let mut written = WriteBatch::default();
                for (key, value) in batch {
                    match value {
                        Some(len) => written.put(key.clone(), vec![n as u8; *len]),
                        None => written.delete(key.clone()),
                    }
                }
                engine.write(written).unwrap();
            }
            if n == batches.len() / 2 {
                drop(sled);
                sled = testing::once_unlocked(|| SledEngine::open(dir.path())).unwrap();
            }
        }
        let whole = collect(&memory, &[0]..&[0xff], usize::MAX);
        prop_assert_eq!(&collect(&sled, &[0]..&[0xff], usize::MAX), &whole);
        let part = |engine| collect(engine, &[0x0f, start]..&[0x10, end], usize::MAX);
        prop_assert_eq!(part(&sled), part(&memory));
        let part = |engine| collect(engine, &[0x10, start]..&[0x11, end], 7);
        prop_assert_eq!(part(&sled), part(&memory));
        for kind in [0x0f, 0x10, 0x11] {
            for n in 0..40 {
                let key = [kind, n];
                prop_assert_eq!(sled.get(&key).unwrap(), memory.get(&key).unwrap());
            }
        }
    }
}

#[test]
fn blocks_that_lose_pairs_become_one_and_scans_miss_nothing_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(dir.path()).unwrap();
    let key = |n: u16| [&[0x10][..], &n.to_be_bytes()].concat();
    let mut batch = WriteBatch::default();
    for n in 0..400 {
        batch.put(key(n), vec![7; 600]);
    }
    engine.write(batch).unwrap();
    let blocks = engine.blocks();
    assert!((40..60).contains(&blocks), "{blocks} blocks");
    // While the first, the third, … is shown, most of what is around it goes.
    let (mut shown, mut gone) = (Vec::new(), 0);
    engine
        .scan(&[0x10]..&[0x11], &mut |found, _| {
            let n = u16::from_be_bytes([found[1], found[2]]);
            shown.push(n);
            if n % 10 == 0 && n >= gone {
                gone = (n + 100).min(400);
                let mut batch = WriteBatch::default();
                let around = n.saturating_sub(50)..gone;
                around.filter(|n| n % 10 != 0).for_each(|n| batch.delete(key(n)));
                engine.write(batch).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(shown.is_sorted_by(|before, after| before < after), "{shown:?}");
    let kept: Vec<u16> = shown.into_iter().filter(|n| n % 10 == 0).collect();
    assert_eq!(kept, (0..400).step_by(10).collect::<Vec<_>>());
    let blocks = engine.blocks();
    assert!(blocks < 12, "40 pairs of 600 bytes are in {blocks} blocks");
}

#[test]
fn sled_finds_its_data_again_and_removes_what_an_interrupted_snapshot_left() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(dir.path()).unwrap();
    let mut batch = WriteBatch::default();
    batch.put(vec![1], vec![1]);
    engine.write(batch).unwrap();
    engine.flush().unwrap();
    drop(engine);
    let leftover = dir.path().join("snap.00000000000000FF.generating");
    fs::write(&leftover, b"half").unwrap();
    let engine = testing::once_unlocked(|| SledEngine::open(dir.path())).unwrap();
    assert_eq!(collect(&engine, &[0]..&[9], 9), [(vec![1], vec![1])]);
    assert!(!leftover.exists());
}

#[test]
fn values_of_the_longest_kind_never_become_unsynced_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(dir.path()).unwrap();
    for round in 0..4 {
        let mut batch = WriteBatch::default();
        for n in 0..400_u32 {
            batch.put(n.to_be_bytes().to_vec(), vec![round; MAX_VALUE_BYTES]);
        }
        engine.write(batch).unwrap();
        let mut batch = WriteBatch::default();
        for n in (0..400_u32).filter(|n| n % 7 != 0) {
            batch.delete(n.to_be_bytes().to_vec());
        }
        engine.write(batch).unwrap();
    }
    engine.flush().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
}
