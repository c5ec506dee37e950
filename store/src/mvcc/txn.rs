//! Transactions: compares, then one of two branches, which may hold transactions again.
//!
//! As in etcd it goes in three steps: all compares, nested ones included, choose the branches from
//! the state before the transaction; then everything that the chosen branches could be refused for
//! is checked; only then is anything written.

use std::cmp::Ordering;

use store_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use store_proto::mvccpb::KeyValue;

use super::apply::header;
use super::key_range::KeyRange;
use super::lease::NO_LEASE;
use super::pending::PendingEntry;
use super::write::WriteTxn;
use super::{Failure, Shared};
use crate::engine::EngineError;
use crate::error::RequestError;

/// The branches that the compares chose.
struct Chosen<'a> {
    succeeded: bool,
    operations: Vec<Operation<'a>>,
}

enum Operation<'a> {
    Plain(&'a Request),
    Nested(Chosen<'a>),
}

impl Shared {
    pub(super) fn apply_txn(
        &self,
        request: &TxnRequest,
        entry: &mut PendingEntry,
    ) -> Result<TxnResponse, Failure> {
        let mut txn = WriteTxn::begin(self);
        let chosen = choose(&txn, request)?;
        chosen.try_each(&mut |operation| self.check_put(operation))?;
        chosen.try_each(&mut |operation| self.check_range(operation))?;
        let mut response = run(&mut txn, &chosen)?;
        response.header = header(txn.finish(entry));
        Ok(response)
    }

    fn check_put(&self, operation: &Request) -> Result<(), Failure> {
        let Request::RequestPut(PutRequest { key, lease, ignore_value, ignore_lease, .. }) =
            operation
        else {
            return Ok(());
        };
        let state = self.state.read();
        if (*ignore_value || *ignore_lease) && state.index.get(key, state.revision).is_none() {
            return Err(RequestError::KeyNotFound.into());
        }
        if *lease != NO_LEASE && !state.leases.contains(*lease) {
            return Err(RequestError::LeaseNotFound.into());
        }
        Ok(())
    }

    fn check_range(&self, operation: &Request) -> Result<(), Failure> {
        let Request::RequestRange(RangeRequest { revision, .. }) = operation else {
            return Ok(());
        };
        let state = self.state.read();
        match *revision {
            0 => Ok(()),
            revision if revision > state.revision => Err(RequestError::FutureRevision.into()),
            revision if revision < state.compacted => Err(RequestError::Compacted.into()),
            _ => Ok(()),
        }
    }
}

fn choose<'a>(txn: &WriteTxn<'_>, request: &'a TxnRequest) -> Result<Chosen<'a>, EngineError> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(txn, compare)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded { &request.success } else { &request.failure };
    let operations = branch
        .iter()
        // One that says nothing is refused before it gets into the log.
        .filter_map(|operation: &RequestOp| operation.request.as_ref())
        .map(|operation| match operation {
            Request::RequestTxn(nested) => choose(txn, nested).map(Operation::Nested),
            plain => Ok(Operation::Plain(plain)),
        })
        .collect::<Result<_, _>>()?;
    Ok(Chosen { succeeded, operations })
}

impl Chosen<'_> {
    /// Calls `check` for every operation but the transactions themselves, depth first.
    fn try_each(
        &self,
        check: &mut dyn FnMut(&Request) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.operations.iter().try_for_each(|operation| match operation {
            Operation::Plain(plain) => check(plain),
            Operation::Nested(nested) => nested.try_each(check),
        })
    }
}

fn run(txn: &mut WriteTxn<'_>, chosen: &Chosen<'_>) -> Result<TxnResponse, EngineError> {
    let mut responses = Vec::with_capacity(chosen.operations.len());
    for operation in &chosen.operations {
        let response = match operation {
            Operation::Plain(Request::RequestRange(range)) => {
                Response::ResponseRange(txn.range(range)?)
            }
            Operation::Plain(Request::RequestPut(put)) => Response::ResponsePut(txn.put(put)?),
            Operation::Plain(Request::RequestDeleteRange(delete)) => {
                Response::ResponseDeleteRange(txn.delete_range(delete)?)
            }
            Operation::Nested(nested) => Response::ResponseTxn(run(txn, nested)?),
            Operation::Plain(Request::RequestTxn(_)) => continue,
        };
        responses.push(ResponseOp { response: Some(response) });
    }
    // Inside a transaction etcd sends the header of a nested one empty.
    let header = Some(ResponseHeader::default());
    Ok(TxnResponse { header, succeeded: chosen.succeeded, responses })
}

/// Whether a compare holds for every key of its range. A range without keys compares as one key with
/// nothing but zeros, except for values: there is no way to ask for a value that is not there.
fn holds(txn: &WriteTxn<'_>, compare: &Compare) -> Result<bool, EngineError> {
    let range = KeyRange::new(&compare.key, &compare.range_end);
    let is_value = compare.target == i32::from(CompareTarget::Value);
    let kvs = if is_value { txn.get_all(&range)? } else { txn.get_all_without_values(&range) };
    if kvs.is_empty() {
        return Ok(!is_value && holds_for(compare, &KeyValue::default()));
    }
    Ok(kvs.iter().all(|kv| holds_for(compare, kv)))
}

/// An operand of another kind than the target counts as zero, an unknown target as equal, and an
/// unknown relation always holds: etcd's answers to what no client should send.
fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match operand {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_ref().cmp(&[]),
        },
        Ok(CompareTarget::Version) => match operand {
            Some(TargetUnion::Version(version)) => kv.version.cmp(version),
            _ => kv.version.cmp(&0),
        },
        Ok(CompareTarget::Create) => match operand {
            Some(TargetUnion::CreateRevision(revision)) => kv.create_revision.cmp(revision),
            _ => kv.create_revision.cmp(&0),
        },
        Ok(CompareTarget::Mod) => match operand {
            Some(TargetUnion::ModRevision(revision)) => kv.mod_revision.cmp(revision),
            _ => kv.mod_revision.cmp(&0),
        },
        Ok(CompareTarget::Lease) => match operand {
            Some(TargetUnion::Lease(lease)) => kv.lease.cmp(lease),
            _ => kv.lease.cmp(&0),
        },
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
