//! What both engines have to do, run on both.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;

use super::block_files::FileLimits;
use super::sled::StepLimits;
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

/// So small that a few kilobytes fill a file, and that it is soon worth giving one up.
const SMALL_FILES: FileLimits =
    FileLimits { file_bytes: 20_000, waste_min_bytes: 5_000, pass_bytes: 15_000 };

/// So small that no file is given up in one step.
const SMALL_STEPS: StepLimits = StepLimits { bytes: 8_000, blocks: 5 };

fn try_open_small(dir: &Path) -> Result<SledEngine, EngineError> {
    testing::once_unlocked(|| SledEngine::open_with(dir, SMALL_FILES, SMALL_STEPS))
}

fn open_small(dir: &Path) -> SledEngine {
    try_open_small(dir).unwrap()
}

/// Goes on until nothing more is worth it.
fn reclaim_all(engine: &SledEngine) {
    while engine.reclaim().unwrap() {
        while engine.reclaim().unwrap() {}
        engine.flush().unwrap();
    }
}

/// The numbers of the files with blocks.
fn block_files(dir: &Path) -> Vec<u64> {
    let names = fs::read_dir(dir.join("blocks")).unwrap().map(|file| file.unwrap().file_name());
    let mut numbers: Vec<u64> = names.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn blocks_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir.join("blocks")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
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
        let mut sled = open_small(dir.path());
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
            // A step or two, so that it is changed meanwhile.
            sled.reclaim().unwrap();
            sled.reclaim().unwrap();
            if n % 4 == 0 {
                sled.flush().unwrap();
            }
            if n == batches.len() / 2 {
                drop(sled);
                sled = open_small(dir.path());
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
    assert!((30..40).contains(&blocks), "{blocks} blocks");
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

fn key(n: u32) -> Vec<u8> {
    [&[0x10][..], &n.to_be_bytes()].concat()
}

fn put(engine: &SledEngine, numbers: Range<u32>, len: usize) {
    let mut batch = WriteBatch::default();
    numbers.for_each(|n| batch.put(key(n), vec![n as u8; len]));
    engine.write(batch).unwrap();
}

fn delete(engine: &SledEngine, numbers: impl Iterator<Item = u32>) {
    let mut batch = WriteBatch::default();
    numbers.for_each(|n| batch.delete(key(n)));
    engine.write(batch).unwrap();
}

fn numbers(engine: &SledEngine) -> Vec<u32> {
    let found = collect(engine, &[0x10]..&[0x11], usize::MAX);
    found.iter().map(|(key, _)| u32::from_be_bytes(key[1..].try_into().unwrap())).collect()
}

#[test]
fn long_values_stand_in_blocks_and_never_become_unsynced_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(dir.path()).unwrap();
    put(&engine, 0..20, 1 << 20);
    delete(&engine, (0..20).filter(|n| n % 7 != 0));
    engine.flush().unwrap();
    assert_eq!(engine.get(&key(7)).unwrap().unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    assert!(fs::metadata(dir.path().join("db")).unwrap().len() <= 1 << 20);
}

#[test]
fn room_comes_back_from_files_that_are_mostly_dead_and_from_those_that_all_are() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    // Four blocks of one pair each are a file.
    (0..10).for_each(|n| put(&engine, n * 4..(n + 1) * 4, 5000));
    let before = block_files(dir.path());
    assert_eq!(before.len(), 10);
    // What stays in the first half is scattered, the second half goes as a whole.
    delete(&engine, (0..20).filter(|n| n % 4 != 0).chain(20..40));
    let left: Vec<u32> = (0..20).step_by(4).collect();
    assert!(!engine.reclaim().unwrap(), "what is dead goes first");
    engine.flush().unwrap();
    assert!(engine.reclaim().unwrap(), "nothing is worth it");
    // While somebody reads, all is given back.
    let mut shown = 0;
    engine
        .scan(&[0x10]..&[0x11], &mut |found, value| {
            assert_eq!((found, value), (&*key(shown * 4), &[shown as u8 * 4; 5000][..]));
            shown += 1;
            reclaim_all(&engine);
            engine.flush().unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(shown, 5);
    let after = block_files(dir.path());
    assert!(after.iter().all(|file| !before.contains(file)), "{before:?} {after:?}");
    assert!(blocks_bytes(dir.path()) < 30_000, "{} bytes", blocks_bytes(dir.path()));
    assert!(engine.size_bytes().unwrap() < (1 << 20) + 30_000);
    assert_eq!(numbers(&engine), left);
    drop(engine);
    assert_eq!(numbers(&open_small(dir.path())), left);
}

#[test]
fn what_is_live_is_not_written_again_for_a_little_that_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    (0..10).for_each(|n| put(&engine, n * 4..(n + 1) * 4, 5000));
    delete(&engine, 0..12);
    engine.flush().unwrap();
    let files = block_files(dir.path());
    assert_eq!(files, (4..11).collect::<Vec<_>>());
    delete(&engine, (12..40).step_by(4));
    assert!(!engine.reclaim().unwrap());
    engine.flush().unwrap();
    assert_eq!(block_files(dir.path()), files);
}

/// What is in sled's files now, with the blocks as they will be.
fn copy_index(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn copy_blocks(from: &Path, to: &Path) {
    fs::create_dir(to.join("blocks")).unwrap();
    for number in block_files(from) {
        let name = format!("blocks/{number:016}");
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn an_index_that_a_crash_brings_back_still_leads_to_its_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    (0..10).for_each(|n| put(&engine, n * 10..(n + 1) * 10, 2000));
    delete(&engine, 0..20);
    engine.flush().unwrap();
    let flushed = tempfile::tempdir().unwrap();
    copy_index(dir.path(), flushed.path());
    // None of this reaches the disk but for the blocks.
    delete(&engine, 20..70);
    while engine.reclaim().unwrap() {}
    put(&engine, 100..150, 2000);
    copy_blocks(dir.path(), flushed.path());
    let back = open_small(flushed.path());
    assert_eq!(numbers(&back), (20..100).collect::<Vec<_>>());
    // What the crash has left over goes, and what comes now is not mixed with it.
    put(&back, 100..120, 1500);
    reclaim_all(&back);
    back.flush().unwrap();
    let expected: Vec<_> =
        (20..120).map(|n| (key(n), vec![n as u8; if n < 100 { 2000 } else { 1500 }])).collect();
    assert_eq!(collect(&back, &[0x10]..&[0x11], usize::MAX), expected);
    assert!(blocks_bytes(flushed.path()) < 250_000, "{}", blocks_bytes(flushed.path()));
}

#[test]
fn blocks_that_are_lost_or_changed_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    (0..10).for_each(|n| put(&engine, n * 10..(n + 1) * 10, 2000));
    drop(engine);
    drop(open_small(dir.path()));
    let open_damaged = |damage: &dyn Fn(&Path)| {
        let damaged = tempfile::tempdir().unwrap();
        copy_index(dir.path(), damaged.path());
        copy_blocks(dir.path(), damaged.path());
        damage(&damaged.path().join("blocks/0000000000000004"));
        let engine = try_open_small(damaged.path())?;
        assert_eq!(count(&engine)?, 100);
        Ok::<_, EngineError>(())
    };
    open_damaged(&|_| {}).unwrap();
    let change = |at: usize| {
        move |file: &Path| {
            let mut bytes = fs::read(file).unwrap();
            bytes[at] ^= 1;
            fs::write(file, bytes).unwrap();
        }
    };
    let cut = |len: u64| {
        move |file: &Path| fs::File::options().write(true).open(file).unwrap().set_len(len).unwrap()
    };
    let exchange = |file: &Path| {
        fs::copy(file.with_file_name("0000000000000005"), file).unwrap();
    };
    let gone = |file: &Path| fs::remove_file(file).unwrap();
    let damages: [&dyn Fn(&Path); 6] =
        [&change(0), &change(10_000), &cut(20_000), &cut(0), &exchange, &gone];
    for (n, damage) in damages.iter().enumerate() {
        let error = open_damaged(damage).unwrap_err();
        assert!(matches!(error, EngineError::Damaged(_)), "{n}: {error}");
    }
}

fn count(engine: &SledEngine) -> Result<usize, EngineError> {
    let mut count = 0;
    engine.scan(&[0x10]..&[0x11], &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

#[test]
fn a_block_that_is_cut_off_while_the_engine_is_open_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    put(&engine, 0..10, 2000);
    let file = fs::File::options().write(true).open(dir.path().join("blocks/0000000000000001"));
    file.unwrap().set_len(9000).unwrap();
    assert!(engine.get(&key(1)).unwrap().is_some());
    for result in [engine.get(&key(9)).map(drop), count(&engine).map(drop)] {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, EngineError::Damaged(text) if text.ends_with("is cut off")),
            "{error}"
        );
    }
}

#[test]
fn an_engine_that_is_opened_again_and_again_fills_its_files() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..12 {
        put(&open_small(dir.path()), n..n + 1, 5000);
    }
    assert_eq!(block_files(dir.path()), [1, 2, 3]);
    assert_eq!(numbers(&open_small(dir.path())), (0..12).collect::<Vec<_>>());
}

#[test]
fn who_reads_while_blocks_move_and_files_go_finds_what_stays() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let stays = |n: &u32| n.is_multiple_of(10);
    let rounds = 30;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..rounds {
                put(&engine, round * 100..(round + 1) * 100, 700);
                delete(&engine, (round * 100..(round + 1) * 100).filter(|n| !stays(n)));
                while engine.reclaim().unwrap() {}
            }
        });
        let flush = || {
            while !writer.is_finished() {
                engine.flush().unwrap();
            }
        };
        std::thread::scope(|scope| {
            let _flushers = [scope.spawn(flush), scope.spawn(flush)];
            while !writer.is_finished() {
                let found = numbers(&engine);
                assert!(found.is_sorted_by(|before, after| before < after), "{found:?}");
                let last = found.last().map_or(0, |last| last / 100 * 100);
                let kept: Vec<u32> = found.into_iter().filter(|n| stays(n) && *n < last).collect();
                assert_eq!(kept, (0..last).step_by(10).collect::<Vec<_>>());
                for n in kept {
                    assert_eq!(engine.get(&key(n)).unwrap().unwrap(), vec![n as u8; 700]);
                }
            }
        });
    });
    reclaim_all(&engine);
    engine.flush().unwrap();
    assert!(blocks_bytes(dir.path()) < 2 * 210_000 + 30_000, "{}", blocks_bytes(dir.path()));
    drop(engine);
    let expected: Vec<u32> = (0..rounds * 100).filter(stays).collect();
    assert_eq!(numbers(&open_small(dir.path())), expected);
}
