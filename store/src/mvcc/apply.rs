//! Entries of the log become state, here and nowhere else.
//!
//! The texts and the order of the checks are etcd's: what a client is told is part of the result,
//! and every member comes to the same.

use std::sync::Arc;

use openraft::{EntryPayload, Membership};
use store_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, PutRequest,
    PutResponse, ResponseHeader, TxnResponse, compare::CompareTarget, request_op::Request,
};
use store_proto::peer::{self, Alarm, AlarmChange, MemberAttributes, alarm::Cause, command::Op};

use super::lease::NO_LEASE;
use super::pending::PendingEntry;
use super::revision::RevisionEvents;
use super::write::WriteTxn;
use super::{Failure, Mvcc, Shared};
use crate::engine::EngineError;
use crate::error::RequestError;
use crate::raft::types::{Batch, LogId, MemberNode, StoredMembership};

/// etcd's maximum, in seconds.
const MAX_LEASE_TTL_SECONDS: i64 = 9_000_000_000;

/// What one request came to. The headers carry the revision; the caller adds cluster, member, term.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    /// A member's attributes are noted.
    Publish,
    /// The alarm that was raised or taken back, if one was.
    Alarm(Option<Alarm>),
}

/// What one entry came to.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// One for each command, in their order.
    pub(crate) results: Vec<Result<Outcome, RequestError>>,
    /// The revisions that it made, in order.
    pub(crate) revisions: Vec<Arc<RevisionEvents>>,
}

/// Whether applying this takes little time and never the disk, whatever the state is: puts,
/// deletes of one key, and transactions of these, that need no earlier value.
pub(crate) fn is_quick(op: &Op) -> bool {
    match op {
        Op::Put(put) => is_quick_put(put),
        Op::DeleteRange(delete) => is_quick_delete(delete),
        Op::Txn(txn) => {
            let compares = txn.compare.iter().all(|compare| {
                compare.range_end.is_empty() && compare.target() != CompareTarget::Value
            });
            compares
                && txn.success.iter().chain(&txn.failure).all(|operation| {
                    match &operation.request {
                        Some(Request::RequestPut(put)) => is_quick_put(put),
                        Some(Request::RequestDeleteRange(delete)) => is_quick_delete(delete),
                        _ => false,
                    }
                })
        }
        Op::Compaction(_) | Op::LeaseGrant(_) | Op::Publish(_) => true,
        Op::LeaseRevoke(_) | Op::Alarm(_) => false,
    }
}

fn is_quick_put(put: &PutRequest) -> bool {
    !(put.prev_kv || put.ignore_value || put.ignore_lease)
}

fn is_quick_delete(delete: &DeleteRangeRequest) -> bool {
    delete.range_end.is_empty() && !delete.prev_kv
}

impl Mvcc {
    /// Applies the next entry of the log.
    ///
    /// It works in memory, but a comparison of values or a `prev_kv` may have to be read from the
    /// disk, so it may block.
    ///
    /// # Errors
    ///
    /// The state is unusable afterwards and the process has to end; requests that are merely refused
    /// are among the results.
    pub(crate) fn apply(
        &self,
        log_id: LogId,
        payload: &EntryPayload<Batch, u64, MemberNode>,
    ) -> Result<Applied, EngineError> {
        let mut writer = self.shared.writer.lock();
        if writer.is_broken {
            return Err(EngineError::Failed);
        }
        self.shared.check_order(&log_id)?;
        writer.is_broken = true;
        let applied = self.shared.apply_entry(log_id, payload)?;
        writer.is_broken = false;
        Ok(applied)
    }
}

impl Shared {
    fn apply_entry(
        &self,
        log_id: LogId,
        payload: &EntryPayload<Batch, u64, MemberNode>,
    ) -> Result<Applied, EngineError> {
        let mut entry = PendingEntry::new(log_id);
        let mut results = Vec::new();
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                entry.members = self.removed_by(membership);
                entry.membership = Some(StoredMembership::new(Some(log_id), membership.clone()));
            }
            EntryPayload::Normal(batch) => {
                results.reserve(batch.commands().len());
                for command in batch.commands() {
                    results.push(match self.apply_command(command, &mut entry) {
                        Ok(outcome) => Ok(outcome),
                        Err(Failure::Request(refused)) => Err(refused),
                        Err(Failure::Engine(error)) => return Err(error),
                    });
                }
            }
        }
        let revisions = entry.revisions.clone();
        let mut state = self.state.write();
        state.applied = Some(log_id);
        if let Some(membership) = &entry.membership {
            state.membership = membership.clone();
            let orphans = state.alarms.follow(membership);
            let taken_back = |alarm| AlarmChange { alarm: Some(alarm), raised: false };
            entry.alarms.extend(orphans.into_iter().map(taken_back));
        }
        for member in &entry.members {
            state.members.insert(member.member_id, member.clone());
        }
        self.note_size(&state);
        entry.revision = state.revision;
        state.pending.push(entry);
        Ok(Applied { results, revisions })
    }

    /// Marks for the members that there are, but no longer in `next`: their ids are never used
    /// again, and whoever still calls itself by one is told.
    fn removed_by(&self, next: &Membership<u64, MemberNode>) -> Vec<MemberAttributes> {
        let state = self.state.read();
        let gone = state.membership.nodes().filter(|(id, _)| next.get_node(id).is_none());
        let mark = |id: u64| MemberAttributes {
            member_id: id,
            removed: true,
            ..state.members.get(&id).cloned().unwrap_or_default()
        };
        gone.map(|(id, _)| mark(*id)).collect()
    }

    /// An entry applied twice or left out would make this member differ from the others for ever.
    fn check_order(&self, log_id: &LogId) -> Result<(), EngineError> {
        match self.state.read().applied {
            Some(applied) if log_id.index() != applied.index() + 1 => Err(EngineError::Entry {
                index: log_id.index(),
                reason: format!("the last applied one is {}", applied.index()),
            }),
            _ => Ok(()),
        }
    }

    fn apply_command(
        &self,
        command: &peer::Command,
        entry: &mut PendingEntry,
    ) -> Result<Outcome, Failure> {
        if let Some(op) = &command.op {
            let state = self.state.read();
            let restrictions = state.alarms.restrictions(&state.membership);
            if let Some(refusal) = restrictions.refusal(op) {
                return Err(refusal.into());
            }
        }
        match &command.op {
            Some(Op::Put(request)) => self.apply_put(request, entry).map(Outcome::Put),
            Some(Op::DeleteRange(request)) => {
                self.apply_delete_range(request, entry).map(Outcome::DeleteRange)
            }
            Some(Op::Txn(request)) => self.apply_txn(request, entry).map(Outcome::Txn),
            Some(Op::Compaction(request)) => {
                self.apply_compaction(request, entry).map(Outcome::Compaction)
            }
            Some(Op::LeaseGrant(request)) => {
                self.apply_lease_grant(request, entry).map(Outcome::LeaseGrant)
            }
            Some(Op::LeaseRevoke(request)) => {
                self.apply_lease_revoke(request, entry).map(Outcome::LeaseRevoke)
            }
            Some(Op::Publish(attributes)) => {
                // One that was removed meanwhile stays removed.
                if !self.state.read().is_removed(attributes.member_id) {
                    entry.members.push(attributes.clone());
                }
                Ok(Outcome::Publish)
            }
            Some(Op::Alarm(change)) => {
                let mut state = self.state.write();
                // Nobody would take back what a member finds that was removed meanwhile.
                let is_void = change.raised
                    && change.alarm.as_ref().is_some_and(|alarm| {
                        alarm.cause() != Cause::Client && state.is_removed(alarm.member_id)
                    });
                let alarm = if is_void { None } else { state.alarms.change(change) };
                drop(state);
                entry.alarms.extend(
                    alarm.map(|alarm| AlarmChange { alarm: Some(alarm), raised: change.raised }),
                );
                Ok(Outcome::Alarm(alarm))
            }
            // Skipping it would part this member from those that know it.
            None => Err(Failure::Engine(EngineError::Entry {
                index: entry.log_id.index(),
                reason: "it holds a request that this version does not know".to_owned(),
            })),
        }
    }

    fn apply_put(
        &self,
        request: &PutRequest,
        entry: &mut PendingEntry,
    ) -> Result<PutResponse, Failure> {
        {
            let state = self.state.read();
            if request.lease != NO_LEASE && !state.leases.contains(request.lease) {
                return Err(RequestError::LeaseNotFound.into());
            }
            let needs_key = request.ignore_value || request.ignore_lease;
            if needs_key && state.index.get(&request.key, state.revision).is_none() {
                return Err(RequestError::KeyNotFound.into());
            }
        }
        let mut txn = WriteTxn::begin(self);
        let response = txn.put(request)?;
        txn.finish(entry);
        Ok(response)
    }

    fn apply_delete_range(
        &self,
        request: &DeleteRangeRequest,
        entry: &mut PendingEntry,
    ) -> Result<DeleteRangeResponse, Failure> {
        let mut txn = WriteTxn::begin(self);
        let response = txn.delete_range(request)?;
        txn.finish(entry);
        Ok(response)
    }

    fn apply_compaction(
        &self,
        request: &CompactionRequest,
        entry: &mut PendingEntry,
    ) -> Result<CompactionResponse, Failure> {
        let mut state = self.state.write();
        if request.revision <= state.compacted {
            return Err(RequestError::Compacted.into());
        }
        if request.revision > state.revision {
            return Err(RequestError::FutureRevision.into());
        }
        state.compacted = request.revision;
        entry.compacted = Some(request.revision);
        Ok(CompactionResponse { header: header(state.revision) })
    }

    fn apply_lease_grant(
        &self,
        request: &LeaseGrantRequest,
        entry: &mut PendingEntry,
    ) -> Result<LeaseGrantResponse, Failure> {
        if request.id == NO_LEASE {
            return Err(RequestError::LeaseNotFound.into());
        }
        if request.ttl > MAX_LEASE_TTL_SECONDS {
            return Err(RequestError::LeaseTtlTooLarge.into());
        }
        let mut state = self.state.write();
        if state.leases.contains(request.id) {
            return Err(RequestError::LeaseExists.into());
        }
        state.leases.grant(request.id, request.ttl);
        entry.leases.push((request.id, Some(request.ttl)));
        Ok(LeaseGrantResponse {
            header: header(state.revision),
            id: request.id,
            ttl: request.ttl,
            error: String::new(),
        })
    }

    fn apply_lease_revoke(
        &self,
        request: &LeaseRevokeRequest,
        entry: &mut PendingEntry,
    ) -> Result<LeaseRevokeResponse, Failure> {
        let keys = {
            let state = self.state.read();
            if !state.leases.contains(request.id) {
                return Err(RequestError::LeaseNotFound.into());
            }
            state.leases.keys(request.id)
        };
        let mut txn = WriteTxn::begin(self);
        for key in keys {
            txn.delete(&key);
        }
        let revision = txn.finish(entry);
        self.state.write().leases.remove(request.id);
        entry.leases.push((request.id, None));
        Ok(LeaseRevokeResponse { header: header(revision) })
    }
}

/// A header that says the revision; the rest is filled in where the answer is sent.
pub(super) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}
