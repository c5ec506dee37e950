//! What is applied but not yet in the engine, and how it gets there.

use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message as _;
use store_proto::peer::{Alarm, AlarmChange, MemberAttributes};

use super::keys::Key;
use super::revision::{Revision, RevisionEvents};
use super::{Mvcc, records};
use crate::engine::{EngineError, WriteBatch};
use crate::raft::codec;
use crate::raft::types::{LogId, StoredMembership};

/// About what an entry takes that wrote nothing.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// What one entry of the log did.
#[derive(Clone, Debug)]
pub(super) struct PendingEntry {
    pub(super) log_id: LogId,
    /// The current revision after it.
    pub(super) revision: i64,
    pub(super) revisions: Vec<Arc<RevisionEvents>>,
    /// Lease id and TTL in seconds; without TTL: revoked.
    pub(super) leases: Vec<(i64, Option<i64>)>,
    pub(super) compacted: Option<i64>,
    pub(super) membership: Option<StoredMembership>,
    /// What members told of themselves.
    pub(super) members: Vec<MemberAttributes>,
    /// Alarms that were raised, or taken back.
    pub(super) alarms: Vec<AlarmChange>,
}

impl PendingEntry {
    pub(super) fn new(log_id: LogId) -> Self {
        Self {
            log_id,
            revision: 0,
            revisions: Vec::new(),
            leases: Vec::new(),
            compacted: None,
            membership: None,
            members: Vec::new(),
            alarms: Vec::new(),
        }
    }

    fn size_bytes(&self) -> usize {
        let events: usize = self.revisions.iter().map(|revision| revision.size_bytes()).sum();
        ENTRY_OVERHEAD_BYTES + events + 16 * self.leases.len()
    }

    fn add_to(&self, batch: &mut WriteBatch) {
        for made in &self.revisions {
            for (sub, event) in (0..).zip(&made.events) {
                records::put(batch, Revision { main: made.revision, sub }, event);
            }
        }
        for (id, ttl_seconds) in &self.leases {
            match ttl_seconds {
                Some(ttl_seconds) => put_lease(batch, *id, *ttl_seconds),
                None => batch.delete(Key::Lease(*id).encode()),
            }
        }
        if let Some(compacted) = self.compacted {
            put_compacted(batch, compacted);
        }
        if let Some(membership) = &self.membership {
            put_membership(batch, membership);
        }
        for member in &self.members {
            put_member(batch, member);
        }
        for change in &self.alarms {
            let alarm = change.alarm.unwrap_or_default();
            if change.raised {
                put_alarm(batch, &alarm);
            } else {
                batch.delete(alarm_key(&alarm));
            }
        }
    }
}

pub(super) fn put_lease(batch: &mut WriteBatch, id: i64, ttl_seconds: i64) {
    batch.put(Key::Lease(id).encode(), ttl_seconds.to_be_bytes().to_vec());
}

pub(super) fn put_records(batch: &mut WriteBatch, count: usize) {
    let count = i64::try_from(count).expect("memory holds an index of fewer records");
    batch.put(Key::Records.encode(), count.to_be_bytes().to_vec());
}

pub(super) fn put_compacted(batch: &mut WriteBatch, compacted: i64) {
    batch.put(Key::Compacted.encode(), compacted.to_be_bytes().to_vec());
}

pub(super) fn put_membership(batch: &mut WriteBatch, membership: &StoredMembership) {
    let membership = codec::stored_membership_to_proto(membership);
    batch.put(Key::Membership.encode(), membership.encode_to_vec());
}

pub(super) fn put_member(batch: &mut WriteBatch, member: &MemberAttributes) {
    batch.put(Key::Member(member.member_id).encode(), member.encode_to_vec());
}

pub(super) fn put_alarm(batch: &mut WriteBatch, alarm: &Alarm) {
    batch.put(alarm_key(alarm), alarm.encode_to_vec());
}

fn alarm_key(alarm: &Alarm) -> Vec<u8> {
    Key::Alarm { alarm: alarm.alarm, member_id: alarm.member_id }.encode()
}

pub(super) fn put_applied(batch: &mut WriteBatch, log_id: &LogId, revision: i64) {
    batch.put(Key::Applied.encode(), codec::log_id_to_proto(log_id).encode_to_vec());
    batch.put(Key::Revision.encode(), revision.to_be_bytes().to_vec());
}

/// Entries in the order of the log.
#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: VecDeque<PendingEntry>,
    bytes: usize,
}

impl Pending {
    pub(super) fn push(&mut self, entry: PendingEntry) {
        self.bytes += entry.size_bytes();
        self.entries.push_back(entry);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest entries, as many as make a batch; at least one if there is one.
    fn next_batch(&self, batch_bytes: usize) -> Vec<PendingEntry> {
        let mut bytes = 0;
        let fits = |entry: &&PendingEntry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            is_first || bytes <= batch_bytes
        };
        self.entries.iter().take_while(fits).cloned().collect()
    }

    fn remove(&mut self, count: usize) {
        for entry in self.entries.drain(..count) {
            self.bytes -= entry.size_bytes();
        }
    }
}

/// What the engine has: the state after one entry.
#[derive(Clone, Debug)]
pub(super) struct Persisted {
    pub(super) applied: Option<LogId>,
    pub(super) revision: i64,
    pub(super) compacted: i64,
}

/// How far the engine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The last entry whose effects are in the engine.
    pub(crate) applied: Option<LogId>,
    /// Whether nothing was waiting any more.
    pub(crate) is_idle: bool,
}

impl Mvcc {
    /// Hands one batch of what is pending to the engine: whole entries, and with them how far the
    /// log is applied. Blocks on the disk. To be called again until it is idle, and then when
    /// something was applied.
    ///
    /// What is in the engine is not durable before [`Mvcc::flush`], and need not be: the log has it.
    pub(crate) fn write_behind(&self) -> Result<Written, EngineError> {
        let mut work = self.shared.engine_work.lock();
        let (engine, entries) = {
            let state = self.shared.state.read();
            (Arc::clone(&state.engine), state.pending.next_batch(self.shared.limits.batch_bytes))
        };
        let Some(last) = entries.last() else {
            return Ok(Written { applied: self.persisted(), is_idle: true });
        };
        let mut batch = WriteBatch::default();
        let mut records = work.records;
        for entry in &entries {
            entry.add_to(&mut batch);
            records += entry.revisions.iter().map(|made| made.events.len()).sum::<usize>();
        }
        put_records(&mut batch, records);
        put_applied(&mut batch, &last.log_id, last.revision);
        engine.write(batch)?;
        work.records = records;

        // Whoever replaces the state holds `engine_work`, so it is still the same one.
        let mut guard = self.shared.state.write();
        let state = &mut *guard;
        state.pending.remove(entries.len());
        state.persisted.applied = Some(last.log_id);
        state.persisted.revision = last.revision;
        if let Some(compacted) = entries.iter().rev().find_map(|entry| entry.compacted) {
            state.persisted.compacted = compacted;
        }
        state.window.evict(last.revision);
        Ok(Written { applied: Some(last.log_id), is_idle: state.pending.entries.is_empty() })
    }

    /// Hands over everything that was applied up to now and makes it durable. Returns the last entry
    /// that the engine then has.
    pub(crate) fn flush(&self) -> Result<Option<LogId>, EngineError> {
        let (target, _) = self.applied();
        loop {
            let written = self.write_behind()?;
            if written.is_idle || written.applied >= target {
                let engine = Arc::clone(&self.shared.state.read().engine);
                engine.flush()?;
                return Ok(written.applied);
            }
        }
    }
}
