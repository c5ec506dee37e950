//! How one write stands in the engine.
//!
//! A record is an encoded [`Event`], cut into parts so that no value gets too long for the engine.
//! Part 0 begins with the number of parts (u16 BE); the others are bytes alone:
//!
//! ```text
//! 10 (7, 0) 0 -> 00 02 | first  6142 bytes of the event
//! 10 (7, 0) 1 ->         the rest
//! ```

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use store_proto::mvccpb::Event;

use super::keys::{self, Key};
use super::revision::{Revision, is_delete};
use crate::engine::{Engine, EngineError, MAX_VALUE_BYTES, WriteBatch};

const COUNT_BYTES: usize = 2;

/// How much room a record takes in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// How many parts it has.
    pub(crate) parts: u16,
    /// The length of the last one; the others are as long as they may be.
    pub(crate) last_part_bytes: u16,
}

impl Extent {
    /// Its keys and values.
    pub(crate) fn bytes(self) -> u64 {
        let full_parts = u64::from(self.parts.saturating_sub(1));
        let keys = u64::from(self.parts) * keys::RECORD_KEY_BYTES as u64;
        keys + full_parts * MAX_VALUE_BYTES as u64 + u64::from(self.last_part_bytes)
    }
}

/// How much room the record of `event` takes.
pub(crate) fn extent_of(event: &Event) -> Extent {
    let bytes = COUNT_BYTES + event.encoded_len();
    let parts = bytes.div_ceil(MAX_VALUE_BYTES);
    let in_bounds = "a request is limited to far less than 65535 parts of 6 KiB";
    Extent {
        parts: u16::try_from(parts).expect(in_bounds),
        last_part_bytes: u16::try_from(bytes - (parts - 1) * MAX_VALUE_BYTES).expect(in_bounds),
    }
}

/// Adds the record of `event` to `batch`.
pub(crate) fn put(batch: &mut WriteBatch, revision: Revision, event: &Event) {
    let mut record = Vec::with_capacity(COUNT_BYTES + event.encoded_len());
    record.extend_from_slice(&extent_of(event).parts.to_be_bytes());
    event.encode(&mut record).expect("a Vec grows as needed");
    if record.len() <= MAX_VALUE_BYTES {
        batch.put(Key::record(revision).encode(), record);
        return;
    }
    for (part, chunk) in (0..).zip(record.chunks(MAX_VALUE_BYTES)) {
        batch.put(Key::Record { revision, part }.encode(), chunk.to_vec());
    }
}

/// Adds the removal of a record of `parts` parts to `batch`.
pub(crate) fn delete(batch: &mut WriteBatch, revision: Revision, parts: u16) {
    for part in 0..parts {
        batch.delete(Key::Record { revision, part }.encode());
    }
}

/// Reads one record; `None` when it is not there.
pub(crate) fn get(engine: &dyn Engine, revision: Revision) -> Result<Option<Event>, EngineError> {
    let Some(first) = engine.get(&Key::record(revision).encode())? else {
        return Ok(None);
    };
    let mut assembly = Assembly::start(revision, &first)?;
    while !assembly.is_complete() {
        let key = Key::Record { revision, part: assembly.next_part };
        // A compaction may have removed the record since its first part was read.
        let Some(part) = engine.get(&key.encode())? else {
            return Ok(None);
        };
        assembly.push(&part);
    }
    assembly.finish().map(Some)
}

/// Shows the records from `from` on, below the revision `to_main`, in order.
///
/// A record that a compaction removes while it is read is left out.
pub(crate) fn scan(
    engine: &dyn Engine,
    from: Revision,
    to_main: i64,
    visit: &mut dyn FnMut(Revision, Event) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let (start, end) = keys::record_bounds(from, to_main);
    let mut assembly: Option<Assembly> = None;
    let mut failure = None;
    let mut step = |key: &[u8], value: &[u8]| -> Result<ControlFlow<()>, EngineError> {
        let Some(Key::Record { revision, part }) = Key::decode(key) else {
            return Err(EngineError::Damaged(format!("a record has the key {key:02x?}")));
        };
        match assembly.as_mut() {
            Some(open) if open.revision == revision && open.next_part == part => open.push(value),
            _ if part == 0 => assembly = Some(Assembly::start(revision, value)?),
            _ => assembly = None,
        }
        match assembly.take_if(|assembly| assembly.is_complete()) {
            Some(complete) => Ok(visit(revision, complete.finish()?)),
            None => Ok(ControlFlow::Continue(())),
        }
    };
    engine.scan(&start..&end, &mut |key, value| {
        step(key, value).unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failure.map_or(Ok(()), Err)
}

/// A record that is being put together from its parts.
struct Assembly {
    revision: Revision,
    parts: u16,
    next_part: u16,
    bytes: BytesMut,
}

impl Assembly {
    fn start(revision: Revision, first: &[u8]) -> Result<Self, EngineError> {
        let (parts, bytes) = first
            .split_first_chunk::<COUNT_BYTES>()
            .map(|(parts, bytes)| (u16::from_be_bytes(*parts), bytes))
            .filter(|(parts, _)| *parts > 0)
            .ok_or_else(|| EngineError::Damaged(format!("record {revision} has no parts")))?;
        Ok(Self { revision, parts, next_part: 1, bytes: BytesMut::from(bytes) })
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        self.next_part += 1;
    }

    fn is_complete(&self) -> bool {
        self.next_part == self.parts
    }

    fn finish(self) -> Result<Event, EngineError> {
        decode(self.revision, self.bytes.freeze())
    }
}

fn decode(revision: Revision, bytes: Bytes) -> Result<Event, EngineError> {
    let event = Event::decode(bytes).map_err(|error| {
        EngineError::Damaged(format!("record {revision} cannot be decoded: {error}"))
    })?;
    check(revision, &event)?;
    Ok(event)
}

/// Whether `event` can be what was written at `revision`.
pub(crate) fn check(revision: Revision, event: &Event) -> Result<(), EngineError> {
    let is_whole = event.kv.as_ref().is_some_and(|kv| {
        let is_versioned = if is_delete(event) {
            (kv.version, kv.create_revision) == (0, 0)
        } else {
            kv.version > 0 && kv.create_revision > 0
        };
        kv.mod_revision == revision.main && !kv.key.is_empty() && is_versioned
    });
    if is_whole {
        Ok(())
    } else {
        Err(EngineError::Damaged(format!("record {revision} holds something else")))
    }
}

#[cfg(test)]
mod tests {
    use store_proto::mvccpb::KeyValue;

    use super::*;
    use crate::engine::MemoryEngine;
    use crate::mvcc::revision::{delete_event, put_event};

    fn put_of(main: i64, value_bytes: usize) -> Event {
        put_event(KeyValue {
            key: Bytes::from_static(b"key"),
            create_revision: 1,
            mod_revision: main,
            version: 1,
            value: vec![7; value_bytes].into(),
            lease: 0,
        })
    }

    fn scan_all(engine: &dyn Engine) -> Vec<Revision> {
        let mut seen = Vec::new();
        scan(engine, Revision::first_of(0), i64::MAX, &mut |revision, _| {
            seen.push(revision);
            ControlFlow::Continue(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn records_of_every_length_come_back_and_no_value_is_too_long() {
        let engine = MemoryEngine::default();
        let mut events = vec![delete_event(Bytes::from_static(b"gone"), 2)];
        let lengths = (0..20).chain(MAX_VALUE_BYTES - 40..MAX_VALUE_BYTES + 40).chain([1 << 20]);
        events.extend((3..).zip(lengths).map(|(main, length)| put_of(main, length)));
        let mut batch = WriteBatch::default();
        for (main, event) in (2..).zip(&events) {
            put(&mut batch, Revision::first_of(main), event);
        }
        engine.write(batch).unwrap();
        let extents: u64 = events.iter().map(|event| extent_of(event).bytes()).sum();
        assert_eq!(engine.size_bytes().unwrap(), extents);
        engine
            .scan(&[0]..&[255], &mut |_, value| {
                assert!(value.len() <= MAX_VALUE_BYTES);
                ControlFlow::Continue(())
            })
            .unwrap();

        for (main, event) in (2..).zip(&events) {
            assert_eq!(get(&engine, Revision::first_of(main)).unwrap().as_ref(), Some(event));
        }
        let mut scanned = Vec::new();
        scan(&engine, Revision::first_of(0), i64::MAX, &mut |_, event| {
            scanned.push(event);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(scanned, events);

        let mut batch = WriteBatch::default();
        for (main, event) in (2..).zip(&events) {
            delete(&mut batch, Revision::first_of(main), extent_of(event).parts);
        }
        engine.write(batch).unwrap();
        assert_eq!(engine.size_bytes().unwrap(), 0);
    }

    #[test]
    fn a_record_without_all_its_parts_is_left_out() {
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::default();
        for main in 2..5 {
            put(&mut batch, Revision::first_of(main), &put_of(main, 3 * MAX_VALUE_BYTES));
        }
        let part = |main, part| Key::Record { revision: Revision::first_of(main), part }.encode();
        batch.delete(part(2, 3));
        batch.delete(part(3, 0));
        engine.write(batch).unwrap();
        assert_eq!(scan_all(&engine), [Revision::first_of(4)]);
        assert_eq!(get(&engine, Revision::first_of(2)).unwrap(), None);
        assert_eq!(get(&engine, Revision::first_of(3)).unwrap(), None);
    }

    #[test]
    fn a_record_that_belongs_elsewhere_is_damage() {
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::default();
        put(&mut batch, Revision::first_of(2), &put_of(3, 1));
        engine.write(batch).unwrap();
        assert!(get(&engine, Revision::first_of(2)).is_err());
    }
}
