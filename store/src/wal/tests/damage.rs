//! Every byte of a log is flipped: what a sync had covered is refused, what none had is cut.

use crate::raft::types::Vote;
use crate::wal::memory::MemoryDir;
use crate::wal::record::{Damage, FRAME_BYTES, MARK_BYTES, Record};
use crate::wal::segment;
use crate::wal::{TornTail, WalError};

use super::{Log, entry, log_id};

/// A log of one segment with four syncs, that was not closed; and where the last synced batch
/// begins and ends.
fn killed(dir: &MemoryDir) -> (usize, usize) {
    let mut log = Log::open(dir, 4096).unwrap();
    log.write(vec![Record::Vote(Vote::new(1, 1))]).unwrap();
    log.write(vec![Record::Entry(entry(1, 0, 10)), Record::Entry(entry(1, 1, 200))]).unwrap();
    log.write(vec![Record::Committed(Some(log_id(1, 1)))]).unwrap();
    log.write(vec![Record::Entry(entry(1, 2, 0))]).unwrap();
    let last = log.end();
    log.write(vec![Record::Entry(entry(1, 3, 20)), Record::Entry(entry(1, 4, 20))]).unwrap();
    (last, log.end())
}

fn damaged_at(result: Result<Log, WalError>) -> Option<(String, u64)> {
    match result {
        Err(WalError::Damaged { path, offset, .. }) => {
            Some((path.file_name().unwrap().to_str().unwrap().to_owned(), offset))
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => None,
    }
}

fn copy(dir: &MemoryDir) -> MemoryDir {
    dir.power_cut(|| true)
}

#[test]
fn a_flipped_byte_before_the_last_batch_is_refused_by_file_and_offset() {
    let dir = MemoryDir::default();
    let (last, _) = killed(&dir);
    let name = segment::name(1);
    for at in 0..last {
        for mask in [1, 0x80, 0xff] {
            let dir = copy(&dir);
            dir.damage(&name, |data| data[at] ^= mask);
            let (file, offset) = damaged_at(Log::open(&dir, 4096))
                .unwrap_or_else(|| panic!("byte {at} was flipped by {mask}, and nobody minds"));
            assert_eq!(file, name);
            assert!(offset as usize <= at, "the record with byte {at} begins before {offset}");
        }
    }
}

#[test]
fn a_flipped_byte_in_the_last_batch_passes_for_a_torn_tail() {
    let dir = MemoryDir::default();
    let (last, end) = killed(&dir);
    for at in last..end {
        let dir = copy(&dir);
        dir.damage(&segment::name(1), |data| data[at] ^= 0xff);
        let log = Log::open(&dir, 4096).unwrap();
        let torn = log.recovered.torn.clone().unwrap();
        assert!((last..=at).contains(&(torn.offset as usize)), "{torn:?} for byte {at}");
        assert!((3..5).contains(&log.entries().unwrap().len()));
        // It is cut for good.
        assert_eq!(Log::open(&dir, 4096).unwrap().recovered.torn, None);
    }
}

#[test]
fn nothing_in_a_log_that_was_closed_passes_for_a_torn_tail() {
    let dir = MemoryDir::default();
    let (_, last) = killed(&dir);
    let mut log = Log::open(&dir, 4096).unwrap();
    log.writer.finish().unwrap();
    assert_eq!(log.end(), last + MARK_BYTES);
    for at in 0..last {
        let dir = copy(&dir);
        dir.damage(&segment::name(1), |data| data[at] ^= 0xff);
        assert!(damaged_at(Log::open(&dir, 4096)).is_some(), "byte {at}");
    }
}

#[test]
fn zeros_in_place_of_records_are_refused() {
    let dir = MemoryDir::default();
    let (last, _) = killed(&dir);
    // From the first record on to the end of the last but one batch.
    let first = {
        let fresh = MemoryDir::default();
        Log::open(&fresh, 4096).unwrap().end()
    };
    dir.damage(&segment::name(1), |data| data[first..last].fill(0));
    assert_eq!(damaged_at(Log::open(&dir, 4096)), Some((segment::name(1), first as u64)));
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let dir = MemoryDir::default();
    let (_, end) = killed(&dir);
    dir.damage(&segment::name(1), |data| data[end..end + 700].fill(0xaa));
    let log = Log::open(&dir, 4096).unwrap();
    assert_eq!(
        log.recovered.torn,
        Some(TornTail {
            path: std::path::Path::new("memory").join(segment::name(1)),
            offset: end as u64,
            bytes: 700
        })
    );
    assert_eq!(log.entries().unwrap().len(), 5);
    assert!(dir.contents(&segment::name(1))[end..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_record_behind_a_torn_one_does_not_come_alive_again() {
    let dir = MemoryDir::default();
    let (_, end) = killed(&dir);
    // A batch of two that are as long as what is written in their place later, the first torn.
    let mut log = Log::open(&dir, 4096).unwrap();
    log.write(vec![Record::Entry(entry(1, 5, 20)), Record::Entry(entry(1, 6, 20))]).unwrap();
    drop(log);
    dir.damage(&segment::name(1), |data| data[end + MARK_BYTES + FRAME_BYTES] ^= 1);

    let mut log = Log::open(&dir, 4096).unwrap();
    assert_eq!(log.recovered.last, Some(log_id(1, 4)));
    log.write(vec![Record::Entry(entry(2, 5, 20))]).unwrap();
    drop(log);
    let log = Log::open(&dir, 4096).unwrap();
    assert_eq!(log.recovered.last, Some(log_id(2, 5)));
    assert_eq!(log.recovered.torn, None);
}

/// A log of three segments that was killed, and where the records of the first two end.
fn three_segments(dir: &MemoryDir) -> [usize; 2] {
    let mut log = Log::open(dir, 400).unwrap();
    let mut ends = [0; 3];
    for index in 0..6 {
        log.write(vec![Record::Entry(entry(1, index, 80))]).unwrap();
        ends[dir.segments().len() - 1] = log.end();
    }
    assert_eq!(dir.segments().len(), 3);
    [ends[0], ends[1]]
}

#[test]
fn no_byte_of_an_older_segment_passes_for_torn() {
    let dir = MemoryDir::default();
    for (sequence, end) in (1..).zip(three_segments(&dir)) {
        let name = segment::name(sequence);
        for at in 0..end {
            let dir = copy(&dir);
            dir.damage(&name, |data| data[at] ^= 0xff);
            let (file, offset) = damaged_at(Log::open(&dir, 400)).unwrap();
            assert_eq!(file, name);
            assert!(offset as usize <= at);
        }
    }
}

#[test]
fn an_older_segment_that_was_cut_short_is_refused() {
    let dir = MemoryDir::default();
    let [end, _] = three_segments(&dir);
    let name = segment::name(1);
    for len in 0..end {
        let dir = copy(&dir);
        dir.damage(&name, |data| data.truncate(len));
        assert_eq!(damaged_at(Log::open(&dir, 400)).unwrap().0, name, "cut to {len} bytes");
    }
}

#[test]
fn a_missing_segment_is_named() {
    for missing in [1, 2] {
        let dir = MemoryDir::default();
        three_segments(&dir);
        crate::wal::files::LogDir::remove(&dir, &segment::name(missing)).unwrap();
        match Log::open(&dir, 400).map(|_| ()) {
            Err(WalError::Missing(path)) => assert!(path.ends_with(segment::name(missing))),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_segment_under_another_name_is_refused() {
    let dir = MemoryDir::default();
    killed(&dir);
    crate::wal::files::LogDir::rename(&dir, &segment::name(1), &segment::name(2)).unwrap();
    match Log::open(&dir, 400).map(|_| ()) {
        Err(WalError::Damaged { damage: Damage::Sequence(1), offset: 0, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_no_segments_are_left_alone_and_unfinished_ones_removed() {
    let dir = MemoryDir::default();
    killed(&dir);
    for name in ["lock", "1.wal", "notes.txt", "00000000000000000002.wal.new"] {
        crate::wal::files::LogDir::create(&dir, name).unwrap();
    }
    Log::open(&dir, 4096).unwrap();
    let names = crate::wal::files::LogDir::list(&dir).unwrap();
    assert_eq!(names, [&segment::name(1), "1.wal", "lock", "notes.txt"]);
}
