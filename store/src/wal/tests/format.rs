//! The bytes on disk, which later versions must still read.

use openraft::{EntryPayload, Membership};
use store_proto::{etcdserverpb, peer};

use crate::raft::types::{Batch, Entry, MemberNode, Vote};
use crate::wal::files::LogDir as _;
use crate::wal::memory::MemoryDir;
use crate::wal::record::Record;
use crate::wal::{Recovered, WalError, segment};

use super::{Log, content, entry, log_id};

/// A log with a record of every kind, in hexadecimal: length, checksum, kind, payload.
const TINY: &[&str] = &[
    // header: magic, format 1, segment 1
    "0c000000 2813134a 01 6d696e696b77616c08011001",
    // mark for byte 21
    "10000000 f3574830 08 01000000000000001500000000000000",
    // vote: term 2, node 1, committed
    "06000000 0b4a800f 03 080210011801",
    // entry 2-0: a membership of n1
    "26000000 469c3d2e 02 0a02080222200a030a01011219080112150a026e31120d687474703a2f2f613a323338302001",
    // entry 2-1: blank
    "08000000 ecac5667 02 0a04080210011200",
    // entry 2-2: a batch that puts k
    "14000000 9ce18e7f 02 0a04080210021a0c0a0a080712060a016b120176",
    // committed up to 2-1
    "06000000 b9ea9431 04 0a0408021001",
    // checkpoint at 2-0
    "04000000 54d96797 07 0a020802",
    // purge up to 2-0
    "04000000 f8b676af 06 0a020802",
    // truncate after 2-1
    "06000000 71c69759 05 0a0408021001",
    // mark for byte 210
    "10000000 a10f10e4 08 0100000000000000d200000000000000",
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}

fn tiny_records() -> Vec<Record> {
    let put = etcdserverpb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let command = peer::Command { id: 7, op: Some(peer::command::Op::Put(put)) };
    let node = MemberNode {
        name: "n1".to_owned(),
        peer_urls: vec!["http://a:2380".to_owned()],
        learner: true,
    };
    let membership =
        Membership::new(vec![[1].into()], std::collections::BTreeMap::from([(1, node)]));
    let entries = [
        EntryPayload::Membership(membership.unwrap()),
        EntryPayload::Blank,
        EntryPayload::Normal(Batch::new(vec![command])),
    ];
    let mut records = vec![Record::Vote(Vote::new_committed(2, 1))];
    records.extend(
        (0..)
            .zip(entries)
            .map(|(index, payload)| Record::Entry(Entry { log_id: log_id(2, index), payload })),
    );
    records.extend([
        Record::Committed(Some(log_id(2, 1))),
        Record::Checkpoint(log_id(2, 0)),
        Record::PurgeUpTo(log_id(2, 0)),
        Record::TruncateAfter(Some(log_id(2, 1))),
    ]);
    records
}

#[test]
fn what_is_written_is_what_has_always_been_written() {
    let dir = MemoryDir::default();
    let mut log = Log::open(&dir, 512).unwrap();
    log.write(tiny_records()).unwrap();
    log.writer.finish().unwrap();
    let written = dir.contents(&segment::name(1));
    let golden = unhex(&TINY.concat());
    assert_eq!(hex(&written[..log.end()]), hex(&golden));
    assert_eq!(written.len(), 512);
    assert!(written[log.end()..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_has_always_been_written_can_be_read() {
    let dir = MemoryDir::default();
    dir.create(&segment::name(1)).unwrap().write_all_at(&unhex(&TINY.concat()), 0).unwrap();
    let log = Log::open(&dir, 512).unwrap();
    assert_eq!(
        log.recovered,
        Recovered {
            vote: Some(Vote::new_committed(2, 1)),
            committed: Some(log_id(2, 1)),
            purged: Some(log_id(2, 0)),
            last: Some(log_id(2, 1)),
            checkpoint: Some(log_id(2, 0)),
            first_index: Some(1),
            torn: None,
        }
    );
    assert_eq!(log.entries().unwrap().len(), 1);
}

#[test]
fn every_payload_is_read_as_it_was_written() {
    let dir = MemoryDir::default();
    let mut log = Log::open(&dir, 512).unwrap();
    let records = tiny_records();
    let entries: Vec<Entry> = records
        .iter()
        .filter_map(|record| match record {
            Record::Entry(entry) => Some(entry.clone()),
            _ => None,
        })
        .collect();
    log.write(entries.iter().cloned().map(Record::Entry).collect()).unwrap();
    let read = Log::open(&dir, 512).unwrap().entries().unwrap();
    assert_eq!(read.len(), 3);
    for (read, written) in read.iter().zip(&entries) {
        assert_eq!(content(read), content(written));
        assert_eq!(format!("{:?}", read.payload), format!("{:?}", written.payload));
    }
}

#[test]
fn a_segment_header_repeats_what_the_older_ones_said() {
    let dir = MemoryDir::default();
    let mut log = Log::open(&dir, 512).unwrap();
    log.write(tiny_records()).unwrap();
    log.write(vec![Record::Entry(entry(3, 2, 300))]).unwrap();
    log.write(vec![Record::PurgeUpTo(log_id(3, 2))]).unwrap();
    assert_eq!(dir.segments(), [segment::name(2)]);
    assert_eq!(
        Log::open(&dir, 512).unwrap().recovered,
        Recovered {
            vote: Some(Vote::new_committed(2, 1)),
            committed: Some(log_id(2, 1)),
            purged: Some(log_id(3, 2)),
            last: Some(log_id(3, 2)),
            checkpoint: Some(log_id(2, 0)),
            first_index: None,
            torn: None,
        }
    );
}

#[test]
fn a_log_of_a_later_format_is_refused() {
    let dir = MemoryDir::default();
    Log::open(&dir, 512).unwrap();
    dir.damage(&segment::name(1), |data| {
        // The header's payload: magic, then field 1, the format.
        assert_eq!(data[9..19], *b"minikwal\x08\x01");
        data[18] = 2;
        let len = u32::from_le_bytes(data[..4].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c(&data[8..9 + len]);
        data[4..8].copy_from_slice(&crc.to_le_bytes());
    });
    match Log::open(&dir, 512).map(|_| ()) {
        Err(error @ WalError::Format { .. }) => {
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("format 2"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}
