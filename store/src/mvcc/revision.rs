//! Where a write stands in the history, and what one revision did.

use std::fmt;

use store_proto::mvccpb::{Event, KeyValue, event::EventType};

/// The revision of an empty store; the first write makes the next one.
pub(crate) const EMPTY_REVISION: i64 = 1;

/// The compacted revision of a store that was never compacted: etcd's, so that compacting an empty
/// store at 0 is allowed, once.
pub(crate) const NEVER_COMPACTED: i64 = -1;

/// The place of one write: the revision that it belongs to, and its number within the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

impl Revision {
    /// The first write of `main`.
    pub(crate) fn first_of(main: i64) -> Self {
        Self { main, sub: 0 }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// Everything that one revision did, in the order in which it did it; an event's place in the list
/// is its sub-revision. `prev_kv` is never filled; a DELETE's `kv` has `key` and `mod_revision` only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RevisionEvents {
    /// The revision.
    pub(crate) revision: i64,
    /// Never empty: a revision comes from a write.
    pub(crate) events: Vec<Event>,
}

/// What an event of a revision with no other costs in memory beyond its key and value: itself, the
/// revision, and what the allocator and the counts of references take of both. All limits in bytes on
/// events in memory count with it.
const EVENT_OVERHEAD_BYTES: usize =
    size_of::<Event>() + size_of::<RevisionEvents>() + 6 * size_of::<usize>();

impl RevisionEvents {
    /// About how much memory this takes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.events.iter().map(event_size_bytes).sum()
    }
}

pub(crate) fn event_size_bytes(event: &Event) -> usize {
    let kv = event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    EVENT_OVERHEAD_BYTES + kv
}

/// Adds to the events of a revision that is being made. Most have but one, and stay in memory for long:
/// a list that grows by itself takes room for four at once.
pub(crate) fn push_event(events: &mut Vec<Event>, event: Event) {
    if events.is_empty() {
        events.reserve_exact(1);
    }
    events.push(event);
}

pub(crate) fn put_event(kv: KeyValue) -> Event {
    Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
}

pub(crate) fn delete_event(key: bytes::Bytes, mod_revision: i64) -> Event {
    let kv = KeyValue { key, mod_revision, ..KeyValue::default() };
    Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
}

/// The key-value of an event that this store made or checked: those always have one.
pub(crate) fn kv_of(event: &Event) -> &KeyValue {
    event.kv.as_ref().expect("events are made by put_event and delete_event, records are checked")
}

pub(crate) fn is_delete(event: &Event) -> bool {
    event.r#type == i32::from(EventType::Delete)
}
