//! The writes of one request, which share one revision.

use std::sync::Arc;

use bytes::Bytes;
use store_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
};
use store_proto::mvccpb::{Event, KeyValue};

use super::apply::header;
use super::index::Version;
use super::key_range::KeyRange;
use super::pending::PendingEntry;
use super::range::Unpublished;
use super::revision::{RevisionEvents, delete_event, push_event, put_event};
use super::{Shared, records};
use crate::engine::EngineError;

/// A write in the making. There is one at a time.
///
/// Its versions go into the index at once, under a revision above the current one, where other
/// readers do not look; [`WriteTxn::finish`] makes that the current revision. Nothing can be taken
/// back, so nothing here refuses: what a client may be refused for is checked before.
pub(super) struct WriteTxn<'a> {
    shared: &'a Shared,
    /// The current revision when it began.
    begin: i64,
    events: Vec<Event>,
}

impl<'a> WriteTxn<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Self {
        Self { shared, begin: shared.state.read().revision, events: Vec::new() }
    }

    /// The revision that its own reads see, and its answers carry: the next one once it has written.
    fn revision(&self) -> i64 {
        self.begin + i64::from(!self.events.is_empty())
    }

    fn unpublished(&self) -> Unpublished<'_> {
        Unpublished { revision: self.revision(), events: &self.events }
    }

    /// etcd's Put. The lease is expected to exist, and so is the key if its value or lease is to
    /// stay.
    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EngineError> {
        let needs_previous = request.prev_kv || request.ignore_value || request.ignore_lease;
        let previous = if needs_previous { self.get(&request.key)? } else { None };
        let (mut value, mut lease) = (&request.value, request.lease);
        if let Some(previous) = &previous {
            if request.ignore_value {
                value = &previous.value;
            }
            if request.ignore_lease {
                lease = previous.lease;
            }
        }
        self.write(&request.key, value.clone(), lease);
        Ok(PutResponse {
            header: header(self.revision()),
            prev_kv: previous.filter(|_| request.prev_kv),
        })
    }

    /// etcd's DeleteRange.
    pub(super) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EngineError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let prev_kvs = if request.prev_kv { self.get_all(&range)? } else { Vec::new() };
        let keys: Vec<Bytes> = {
            let state = self.shared.state.read();
            state.index.range(&range, self.revision()).map(|(key, _)| key.clone()).collect()
        };
        for key in &keys {
            self.delete(key);
        }
        Ok(DeleteRangeResponse {
            header: header(self.revision()),
            deleted: i64::try_from(keys.len()).expect("memory holds fewer keys"),
            prev_kvs,
        })
    }

    /// etcd's Range. It sees what was written before it.
    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EngineError> {
        self.shared.range_for_writer(request, self.unpublished())
    }

    /// What `key` holds, the writes of this transaction included.
    fn get(&self, key: &Bytes) -> Result<Option<KeyValue>, EngineError> {
        Ok(self.get_all(&KeyRange::One(key.clone()))?.pop())
    }

    /// What the keys of `range` hold, the writes of this transaction included.
    pub(super) fn get_all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, EngineError> {
        self.shared.get_all_for_writer(range, self.unpublished())
    }

    /// The same with empty values, which never needs the engine.
    pub(super) fn get_all_without_values(&self, range: &KeyRange) -> Vec<KeyValue> {
        let state = self.shared.state.read();
        let versions = state.index.range(range, self.revision());
        let kv = |(key, version): (&Bytes, &Version)| KeyValue {
            key: key.clone(),
            create_revision: version.created,
            mod_revision: version.main,
            version: version.version,
            value: Bytes::new(),
            lease: state.leases.of_key(key),
        };
        versions.map(kv).collect()
    }

    fn write(&mut self, key: &Bytes, value: Bytes, lease: i64) {
        let (main, sub) = (self.begin + 1, self.next_sub());
        self.shared.state.write().index.insert_after(key, |previous| {
            let (created, version) = match previous {
                Some(previous) => (previous.created, previous.version + 1),
                None => (main, 1),
            };
            let event = put_event(KeyValue {
                key: key.clone(),
                create_revision: created,
                mod_revision: main,
                version,
                value,
                lease,
            });
            let value_bytes = records::value_bytes(&event);
            push_event(&mut self.events, event);
            Version { main, sub, value_bytes, created, version }
        });
    }

    /// Deletes a key that is there.
    pub(super) fn delete(&mut self, key: &Bytes) {
        let main = self.begin + 1;
        let event = delete_event(key.clone(), main);
        let value_bytes = records::value_bytes(&event);
        let tombstone = Version { main, sub: self.next_sub(), value_bytes, created: 0, version: 0 };
        self.shared.state.write().index.insert(key, tombstone);
        push_event(&mut self.events, event);
    }

    fn next_sub(&self) -> u32 {
        u32::try_from(self.events.len()).expect("memory holds fewer events")
    }

    /// Makes what was written the current revision, for all readers at once, and returns which that
    /// is. A transaction that wrote nothing makes no revision.
    pub(super) fn finish(mut self, entry: &mut PendingEntry) -> i64 {
        if self.events.is_empty() {
            return self.begin;
        }
        self.events.shrink_to_fit();
        let revision = self.begin + 1;
        let made = Arc::new(RevisionEvents { revision, events: self.events });
        let mut guard = self.shared.state.write();
        let state = &mut *guard;
        state.leases.follow(&made);
        state.revision = revision;
        state.window.push(Arc::clone(&made));
        state.window.evict(state.persisted.revision);
        entry.revisions.push(made);
        revision
    }
}
