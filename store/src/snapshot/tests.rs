use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use bytes::Bytes;
use openraft::Membership;
use store_proto::mvccpb::{Event, KeyValue};

use super::*;
use crate::mvcc::{LeaseInfo, Revision};
use crate::raft::types::MemberNode;

fn meta(index: u64) -> SnapshotMeta {
    let node = MemberNode { name: "n1".into(), ..MemberNode::default() };
    let membership =
        Membership::new(vec![BTreeSet::from([7])], BTreeMap::from([(7, node)])).unwrap();
    SnapshotMeta {
        last_log_id: LogId::new_term_index(3, index),
        membership: StoredMembership::new(Some(LogId::new_term_index(1, 0)), membership),
        revision: 2000,
        compacted: 5,
        members: vec![MemberAttributes { member_id: 7, ..MemberAttributes::default() }],
        alarms: vec![Alarm { member_id: 7, alarm: 1, cause: 2 }],
    }
}

fn event(revision: i64, value_bytes: usize) -> Event {
    let kv = KeyValue {
        key: Bytes::from_static(b"key"),
        create_revision: 2,
        mod_revision: revision,
        version: revision - 1,
        value: vec![revision as u8; value_bytes].into(),
        lease: 0,
    };
    Event { r#type: 0, kv: Some(kv), prev_kv: None }
}

fn write(dir: &SnapshotDir, meta: &SnapshotMeta, records: i64) -> PathBuf {
    let mut writer = dir.create(meta).unwrap();
    for id in 0..records {
        writer.add_lease(&LeaseInfo { id: id - 5, ttl_seconds: 60 }).unwrap();
    }
    for revision in 2..2 + records {
        for sub in 0..2 {
            let value_bytes = if revision % 50 == 0 { 100_000 } else { 100 };
            writer.add_record(sub, event(revision, value_bytes)).unwrap();
        }
    }
    writer.finish().unwrap();
    dir.path_of(&meta.last_log_id)
}

type Content = (SnapshotMeta, Vec<LeaseInfo>, Vec<(Revision, Event)>);

fn read(path: &Path) -> Result<Content, SnapshotError> {
    let (mut leases, mut records) = (Vec::new(), Vec::new());
    let meta = SnapshotReader::open(path)?.read_all(|item| {
        match item {
            Item::Lease(lease) => leases.push(lease),
            Item::Record(revision, event) => records.push((revision, event)),
        }
        Ok::<_, SnapshotError>(())
    })?;
    Ok((meta, leases, records))
}

#[test]
fn what_was_written_is_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(temp.path()).unwrap();
    for records in [0, 1, 1500] {
        let path = write(&dir, &meta(0x12345), records);
        assert!(path.ends_with("0000000000000003-0000000000012345.snap"));
        let (read_meta, leases, read_records) = read(&path).unwrap();
        assert_eq!(read_meta, meta(0x12345));
        assert_eq!(verify(&path).unwrap(), meta(0x12345));
        assert_eq!(leases.len(), records as usize);
        assert_eq!(leases.first().map_or(-5, |lease| lease.id), -5);
        assert_eq!(read_records.len(), 2 * records as usize);
        for (at, (revision, read)) in read_records.iter().enumerate() {
            assert_eq!((revision.main, revision.sub), (2 + at as i64 / 2, at as u32 % 2));
            assert_eq!(read, &event(revision.main, read.kv.as_ref().unwrap().value.len()));
        }
    }
}

#[test]
fn no_flipped_byte_and_no_missing_end_goes_unnoticed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(temp.path()).unwrap();
    let path = write(&dir, &meta(9), 3);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        assert!(verify(&path).is_err(), "byte {at} of {} was flipped", whole.len());
        fs::write(&path, &whole[..at]).unwrap();
        assert!(verify(&path).is_err(), "cut to {at} of {} bytes", whole.len());
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert!(verify(&path).is_err());
    fs::write(&path, &whole).unwrap();
    verify(&path).unwrap();
}

/// Splits a file into its magic and its blocks.
fn blocks(file: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![file[..format::MAGIC.len()].to_vec()];
    let mut rest = &file[format::MAGIC.len()..];
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let (block, after) = rest.split_at(format::BLOCK_HEAD_BYTES + length);
        parts.push(block.to_vec());
        rest = after;
    }
    parts
}

#[test]
fn blocks_that_are_whole_but_missing_doubled_or_out_of_place_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(temp.path()).unwrap();
    let path = write(&dir, &meta(9), 1500);
    let blocks = blocks(&fs::read(&path).unwrap());
    assert!(blocks.len() > 6);
    for at in 1..blocks.len() {
        let mut missing = blocks.clone();
        missing.remove(at);
        let mut doubled = blocks.clone();
        doubled.insert(at, blocks[at].clone());
        let mut swapped = blocks.clone();
        swapped.swap(at, at - 1);
        for wrong in [missing, doubled, swapped] {
            fs::write(&path, wrong.concat()).unwrap();
            assert!(verify(&path).is_err(), "block {at}");
        }
    }
}

#[test]
fn the_newest_are_kept_and_what_was_never_finished_goes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(temp.path()).unwrap();
    assert_eq!(dir.newest().unwrap(), None);
    for index in [5, 0x100, 30] {
        write(&dir, &meta(index), 1);
    }
    fs::write(temp.path().join("notes.snap"), b"somebody's").unwrap();
    let indexes = || dir.list().unwrap().iter().map(|file| file.index).collect::<Vec<_>>();
    assert_eq!(indexes(), [0x100, 30, 5]);
    assert_eq!(dir.newest().unwrap().unwrap().path, dir.path_of(&meta(0x100).last_log_id));
    dir.keep_newest(2).unwrap();
    assert_eq!(indexes(), [0x100, 30]);

    let files = || fs::read_dir(temp.path()).unwrap().count();
    let before = files();
    drop(dir.create(&meta(77)).unwrap());
    assert_eq!(files(), before);
    std::mem::forget(dir.create(&meta(77)).unwrap());
    assert_eq!(files(), before + 1);
    SnapshotDir::open(temp.path()).unwrap();
    assert_eq!(files(), before);
}

#[test]
fn a_received_snapshot_gets_its_name_only_when_it_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let sender = SnapshotDir::open(&temp.path().join("sender")).unwrap();
    let receiver = SnapshotDir::open(&temp.path().join("receiver")).unwrap();
    let bytes = fs::read(write(&sender, &meta(9), 1500)).unwrap();
    let incoming = temp.path().join("receiver/incoming.tmp");

    fs::write(&incoming, &bytes[..bytes.len() - 1]).unwrap();
    assert!(receiver.adopt(&incoming).is_err());
    assert_eq!(receiver.newest().unwrap(), None);

    fs::write(&incoming, &bytes).unwrap();
    let (received, path) = receiver.adopt(&incoming).unwrap();
    assert_eq!(received, meta(9));
    assert_eq!(receiver.newest().unwrap().unwrap().path, path);
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(!incoming.exists());
}
