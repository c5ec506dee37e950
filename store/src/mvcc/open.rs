//! Finding the state again in an engine.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use store_proto::mvccpb::Event;
use store_proto::peer;
use store_proto::peer::{Alarm, MemberAttributes};

use super::alarm::AlarmTable;
use super::index::{Index, Version};
use super::keys::{self, FORMAT_VERSION, Key};
use super::lease::{LeaseTable, NO_LEASE};
use super::pending::{Pending, Persisted};
use super::revision::{
    EMPTY_REVISION, NEVER_COMPACTED, Revision, RevisionEvents, is_delete, kv_of, push_event,
};
use super::window::Window;
use super::{Limits, Mvcc, State, records};
use crate::engine::{Engine, EngineError, WriteBatch};
use crate::raft::codec;
use crate::raft::types::{LogId, StoredMembership};

impl Mvcc {
    /// Builds the state from what the engine has. An empty engine is an empty store.
    ///
    /// # Errors
    ///
    /// Records are missing that nothing can have removed, or something stands there that was never
    /// written: the engine has lost data and has to be rebuilt.
    pub(crate) fn open(engine: Arc<dyn Engine>, limits: Limits) -> Result<Self, EngineError> {
        check_format(&*engine)?;
        Ok(Self::new(load(engine, limits)?, limits))
    }
}

/// Marks an empty engine as ours, and refuses one that another version wrote.
pub(super) fn check_format(engine: &dyn Engine) -> Result<(), EngineError> {
    if let Some(version) = engine.get(&Key::Format.encode())? {
        if version == FORMAT_VERSION.to_be_bytes()[..] {
            return Ok(());
        }
        let text = format!("its format is {version:?}, this version knows {FORMAT_VERSION} only");
        return Err(EngineError::Damaged(text));
    }
    let mut is_empty = true;
    engine.scan(&[0]..&[u8::MAX], &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    })?;
    if !is_empty {
        return Err(EngineError::Damaged("it holds data but not their format".to_owned()));
    }
    let mut batch = WriteBatch::default();
    batch.put(Key::Format.encode(), FORMAT_VERSION.to_be_bytes().to_vec());
    engine.write(batch)
}

/// Reads everything once, in revision order.
pub(super) fn load(engine: Arc<dyn Engine>, limits: Limits) -> Result<State, EngineError> {
    let applied = load_applied(&*engine)?;
    let membership = load_membership(&*engine)?;
    let revision = load_number(&*engine, Key::Revision)?.unwrap_or(EMPTY_REVISION);
    let compacted = load_number(&*engine, Key::Compacted)?.unwrap_or(NEVER_COMPACTED);
    let mut leases = load_leases(&*engine)?;
    let members = load_members(&*engine)?;
    let alarms = load_alarms(&*engine)?;

    let mut loading = Loading::new(compacted, limits);
    let mut failure = None;
    records::scan(&*engine, Revision::first_of(0), i64::MAX, &mut |at, event| match loading
        .add(at, event)
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    loading.finish(revision)?;
    let records = load_number(&*engine, Key::Records)?.unwrap_or(0);
    if i64::try_from(loading.index.len()) != Ok(records) {
        let text = format!("it has {} records instead of {records}", loading.index.len());
        return Err(EngineError::Damaged(text));
    }
    for (key, id) in loading.bound {
        if !leases.contains(id) {
            let text = format!("a key is bound to lease {id}, which does not exist");
            return Err(EngineError::Damaged(text));
        }
        leases.bind(&key, id);
    }
    Ok(State {
        engine,
        epoch: 0,
        index: loading.index,
        garbage: 0,
        window: loading.window,
        leases,
        revision,
        compacted,
        applied,
        membership,
        members,
        alarms,
        pending: Pending::default(),
        persisted: Persisted { applied, revision, compacted },
    })
}

/// What comes together while the records are read.
struct Loading {
    /// Every write from here on must be there. Of the compacted revision itself some may be missing:
    /// etcd removes the deletions in it, and a state may come from a backup of an etcd.
    complete_from: i64,
    index: Index,
    window: Window,
    /// The events of the revision that is being read.
    open: Option<RevisionEvents>,
    /// Which live key is bound to which lease.
    bound: HashMap<Bytes, i64>,
}

impl Loading {
    fn new(compacted: i64, limits: Limits) -> Self {
        let complete_from = compacted.max(EMPTY_REVISION) + 1;
        Self {
            complete_from,
            index: Index::default(),
            window: Window::new(complete_from - 1, limits.window_bytes),
            open: None,
            bound: HashMap::new(),
        }
    }

    fn add(&mut self, at: Revision, event: Event) -> Result<(), EngineError> {
        let kv = kv_of(&event);
        let version = Version {
            main: at.main,
            sub: at.sub,
            value_bytes: records::value_bytes(&event),
            created: kv.create_revision,
            version: kv.version,
        };
        self.index.insert(&kv.key, version);
        if !is_delete(&event) && kv.lease != NO_LEASE {
            self.bound.insert(Bytes::copy_from_slice(&kv.key), kv.lease);
        } else {
            self.bound.remove(&kv.key);
        }
        if at.main < self.complete_from {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| open.revision != at.main) {
            self.close();
        }
        let open = self
            .open
            .get_or_insert_with(|| RevisionEvents { revision: at.main, events: Vec::new() });
        let expected = Revision {
            main: self.complete_from,
            sub: u32::try_from(open.events.len()).unwrap_or(u32::MAX),
        };
        if at != expected {
            return Err(missing(expected));
        }
        push_event(&mut open.events, event);
        Ok(())
    }

    /// The revision that was being read is whole.
    fn close(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.events.shrink_to_fit();
            self.complete_from = open.revision + 1;
            self.window.push(Arc::new(open));
            self.window.evict(i64::MAX);
        }
    }

    fn finish(&mut self, revision: i64) -> Result<(), EngineError> {
        self.close();
        if self.complete_from != (revision + 1).max(EMPTY_REVISION + 1) {
            return Err(missing(Revision::first_of(self.complete_from.min(revision + 1))));
        }
        Ok(())
    }
}

fn missing(revision: Revision) -> EngineError {
    EngineError::Damaged(format!("record {revision} is missing"))
}

fn load_applied(engine: &dyn Engine) -> Result<Option<LogId>, EngineError> {
    let Some(bytes) = engine.get(&Key::Applied.encode())? else { return Ok(None) };
    let log_id =
        peer::LogId::decode(bytes).map_err(|error| unreadable("applied log id", &error))?;
    Ok(Some(codec::log_id_from_proto(&log_id)))
}

fn load_membership(engine: &dyn Engine) -> Result<StoredMembership, EngineError> {
    let Some(bytes) = engine.get(&Key::Membership.encode())? else {
        return Ok(StoredMembership::default());
    };
    let stored =
        peer::StoredMembership::decode(bytes).map_err(|error| unreadable("membership", &error))?;
    codec::stored_membership_from_proto(stored).map_err(|error| unreadable("membership", &error))
}

fn load_number(engine: &dyn Engine, key: Key) -> Result<Option<i64>, EngineError> {
    let Some(bytes) = engine.get(&key.encode())? else { return Ok(None) };
    number(&bytes).map(Some)
}

fn load_leases(engine: &dyn Engine) -> Result<LeaseTable, EngineError> {
    let mut leases = LeaseTable::default();
    let mut result = Ok(());
    let (start, end) = keys::lease_bounds();
    engine.scan(&start..&end, &mut |key, value| match (Key::decode(key), number(value)) {
        (Some(Key::Lease(id)), Ok(ttl_seconds)) => {
            leases.grant(id, ttl_seconds);
            ControlFlow::Continue(())
        }
        _ => {
            result = Err(EngineError::Damaged(format!("the lease {key:02x?} is unreadable")));
            ControlFlow::Break(())
        }
    })?;
    result.map(|()| leases)
}

fn load_members(engine: &dyn Engine) -> Result<BTreeMap<u64, MemberAttributes>, EngineError> {
    let mut members = BTreeMap::new();
    let mut result = Ok(());
    let (start, end) = keys::member_bounds();
    engine.scan(&start..&end, &mut |_, value| match MemberAttributes::decode(value) {
        Ok(member) => {
            members.insert(member.member_id, member);
            ControlFlow::Continue(())
        }
        Err(error) => {
            result = Err(unreadable("member", &error));
            ControlFlow::Break(())
        }
    })?;
    result.map(|()| members)
}

fn load_alarms(engine: &dyn Engine) -> Result<AlarmTable, EngineError> {
    let mut alarms = AlarmTable::default();
    let mut result = Ok(());
    let (start, end) = keys::alarm_bounds();
    engine.scan(&start..&end, &mut |_, value| match Alarm::decode(value) {
        Ok(alarm) => {
            alarms.raise(alarm);
            ControlFlow::Continue(())
        }
        Err(error) => {
            result = Err(unreadable("alarm", &error));
            ControlFlow::Break(())
        }
    })?;
    result.map(|()| alarms)
}

fn number(bytes: &[u8]) -> Result<i64, EngineError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| EngineError::Damaged(format!("{bytes:02x?} is not a 64-bit number")))?;
    Ok(i64::from_be_bytes(bytes))
}

fn unreadable(what: &str, error: &dyn std::error::Error) -> EngineError {
    EngineError::Damaged(format!("the {what} is unreadable: {error}"))
}
