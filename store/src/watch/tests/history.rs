//! A history in memory, for the tests of hub and stream.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use store_proto::mvccpb::{Event, KeyValue, event::EventType};

use crate::engine::EngineError;
use crate::mvcc::{KeyRange, NextChanges, RevisionEvents};
use crate::watch::ranges::contains;
use crate::watch::{History, ReadError};

#[derive(Debug, Default)]
pub(super) struct FakeHistory(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Revision 2 comes first: an empty store is at 1.
    revisions: Vec<Arc<RevisionEvents>>,
    compacted: i64,
    failed: bool,
    /// No range is narrow enough to tell when it changed.
    is_wide: bool,
    reads: usize,
}

impl Default for State {
    fn default() -> Self {
        Self { revisions: Vec::new(), compacted: -1, failed: false, is_wide: false, reads: 0 }
    }
}

/// A write of one key; no value: a delete.
pub(super) type Write<'a> = (&'a [u8], Option<&'a [u8]>);

impl State {
    fn current(&self) -> i64 {
        1 + self.revisions.len() as i64
    }

    fn last_of(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let upto = usize::try_from(revision - 1).unwrap().min(self.revisions.len());
        let events = self.revisions[..upto].iter().rev().flat_map(|one| one.events.iter().rev());
        let last = events.into_iter().find(|event| event.kv.as_ref().unwrap().key == key)?;
        last.kv.as_ref().filter(|_| last.r#type() == EventType::Put)
    }
}

impl FakeHistory {
    /// Applies writes as the next revision, which is yet to be published.
    pub(super) fn apply(&self, writes: &[Write<'_>]) -> Arc<RevisionEvents> {
        let mut state = self.0.lock();
        let revision = state.current() + 1;
        let events = writes
            .iter()
            .map(|(key, value)| {
                let before = state.last_of(key, revision - 1);
                let mut kv = KeyValue {
                    key: Bytes::copy_from_slice(key),
                    mod_revision: revision,
                    ..KeyValue::default()
                };
                let mut r#type = EventType::Delete;
                if let Some(value) = value {
                    r#type = EventType::Put;
                    kv.value = Bytes::copy_from_slice(value);
                    kv.create_revision = before.map_or(revision, |before| before.create_revision);
                    kv.version = 1 + before.map_or(0, |before| before.version);
                }
                Event { r#type: r#type.into(), kv: Some(kv), prev_kv: None }
            })
            .collect();
        let revision = Arc::new(RevisionEvents { revision, events });
        state.revisions.push(Arc::clone(&revision));
        revision
    }

    pub(super) fn put(&self, key: &str, value: &str) -> Arc<RevisionEvents> {
        self.apply(&[(key.as_bytes(), Some(value.as_bytes()))])
    }

    /// As `put`, without a look at the key's past, which here costs a scan.
    pub(super) fn put_unversioned(&self, key: &str) -> Arc<RevisionEvents> {
        let mut state = self.0.lock();
        let mod_revision = state.current() + 1;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let kv = KeyValue { key, mod_revision, ..KeyValue::default() };
        let event = Event { kv: Some(kv), ..Event::default() };
        let revision = RevisionEvents { revision: mod_revision, events: vec![event] };
        let revision = Arc::new(revision);
        state.revisions.push(Arc::clone(&revision));
        revision
    }

    pub(super) fn delete(&self, key: &str) -> Arc<RevisionEvents> {
        self.apply(&[(key.as_bytes(), None)])
    }

    pub(super) fn compact(&self, revision: i64) {
        self.0.lock().compacted = revision;
    }

    /// From now on it cannot tell when a range changed.
    pub(super) fn widen(&self) {
        self.0.lock().is_wide = true;
    }

    /// How often it was read.
    pub(super) fn reads(&self) -> usize {
        self.0.lock().reads
    }

    /// From now on nothing can be read.
    pub(super) fn fail(&self) {
        self.0.lock().failed = true;
    }

    /// All events from `from` on, compacted or not.
    pub(super) fn all_events(&self, from: i64) -> Vec<Event> {
        let state = self.0.lock();
        let revisions = state.revisions.iter().filter(|one| one.revision >= from);
        revisions.flat_map(|one| one.events.clone()).collect()
    }
}

impl History for FakeHistory {
    fn current_revision(&self) -> i64 {
        self.0.lock().current()
    }

    fn compacted_revision(&self) -> i64 {
        self.0.lock().compacted
    }

    fn next_changes(&self, range: &KeyRange, from: i64) -> Option<NextChanges> {
        let state = self.0.lock();
        let wanted = |one: &&Arc<RevisionEvents>| {
            let mut keys = one.events.iter().filter_map(|event| event.kv.as_ref());
            keys.any(|kv| contains(range, &kv.key))
        };
        let earlier = usize::try_from(from - 2).unwrap_or(0).min(state.revisions.len());
        let mut revisions =
            state.revisions[earlier..].iter().filter(wanted).map(|one| one.revision);
        let changes = NextChanges { first: revisions.next(), second: revisions.next() };
        (from >= state.compacted && !state.is_wide).then_some(changes)
    }

    async fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> Result<Vec<Arc<RevisionEvents>>, ReadError> {
        let mut state = self.0.lock();
        state.reads += 1;
        if state.failed {
            return Err(ReadError::Failed(EngineError::Failed.into()));
        }
        if from < state.compacted {
            return Err(ReadError::Compacted);
        }
        let mut bytes = 0;
        let skipped = usize::try_from(from - 2).unwrap_or(0).min(state.revisions.len());
        let revisions = state.revisions[skipped..].iter();
        let fitting = revisions.take_while(|one| {
            let first = bytes == 0;
            bytes += one.size_bytes();
            first || bytes <= max_bytes
        });
        Ok(fitting.cloned().collect())
    }

    async fn value_at(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, ReadError> {
        let state = self.0.lock();
        if revision < state.compacted {
            return Err(ReadError::Compacted);
        }
        Ok(state.last_of(key, revision).cloned())
    }
}
