//! How one write stands in the engine: as an encoded [`Event`] under its revision.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message as _;
use store_proto::mvccpb::Event;

use super::keys::{self, Key};
use super::revision::{Revision, is_delete};
use crate::engine::{Engine, EngineError, WriteBatch};

/// How much room the record of `event` takes in the engine, without its key.
pub(crate) fn value_bytes(event: &Event) -> u32 {
    u32::try_from(event.encoded_len()).expect("a request is limited to far less than 4 GiB")
}

/// Adds the record of `event` to `batch`.
pub(crate) fn put(batch: &mut WriteBatch, revision: Revision, event: &Event) {
    batch.put(Key::Record(revision).encode(), event.encode_to_vec());
}

/// Adds the removal of a record to `batch`.
pub(crate) fn delete(batch: &mut WriteBatch, revision: Revision) {
    batch.delete(Key::Record(revision).encode());
}

/// Reads one record; `None` when it is not there.
pub(crate) fn get(engine: &dyn Engine, revision: Revision) -> Result<Option<Event>, EngineError> {
    let record = engine.get(&Key::Record(revision).encode())?;
    record.map(|record| decode(revision, record)).transpose()
}

/// Shows the records from `from` on, below the revision `to_main`, in order.
pub(crate) fn scan(
    engine: &dyn Engine,
    from: Revision,
    to_main: i64,
    visit: &mut dyn FnMut(Revision, Event) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let (start, end) = keys::record_bounds(from, to_main);
    let mut failure = None;
    let mut step = |key: &[u8], value: &[u8]| -> Result<ControlFlow<()>, EngineError> {
        let Some(Key::Record(revision)) = Key::decode(key) else {
            return Err(EngineError::Damaged(format!("a record has the key {key:02x?}")));
        };
        Ok(visit(revision, decode(revision, Bytes::copy_from_slice(value))?))
    };
    engine.scan(&start..&end, &mut |key, value| {
        step(key, value).unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failure.map_or(Ok(()), Err)
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

    #[test]
    fn records_of_every_length_come_back_and_take_what_is_told() {
        let engine = MemoryEngine::default();
        let mut events = vec![delete_event(Bytes::from_static(b"gone"), 2)];
        events.extend((3..).zip((0..300).chain([1 << 20])).map(|(main, len)| put_of(main, len)));
        let mut batch = WriteBatch::default();
        for (main, event) in (2..).zip(&events) {
            put(&mut batch, Revision::first_of(main), event);
        }
        engine.write(batch).unwrap();
        let told: u64 = events.iter().map(|event| u64::from(value_bytes(event))).sum();
        let keys = (events.len() * keys::RECORD_KEY_BYTES) as u64;
        assert_eq!(engine.size_bytes().unwrap(), told + keys);

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
        (2..).take(events.len()).for_each(|main| delete(&mut batch, Revision::first_of(main)));
        engine.write(batch).unwrap();
        assert_eq!(engine.size_bytes().unwrap(), 0);
        assert_eq!(get(&engine, Revision::first_of(2)).unwrap(), None);
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
