//! Transactions: compares, then one of two branches, which may hold transactions again.
//!
//! As in etcd it goes in three steps: all compares, nested ones included, choose the branches from
//! the state before the transaction; then everything that the chosen branches could be refused for
//! is checked; only then is anything written.
//!
//! A transaction that could write nothing is a read: it is in no log, and whoever is asked answers it.

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
use super::range::{ReadFailure, ReadTxn};
use super::write::WriteTxn;
use super::{Failure, Mvcc, Shared};
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
        Ok(check_revision(*revision, state.revision, state.compacted)?)
    }

    fn read_txn(&self, request: &TxnRequest, is_guarded: bool) -> Result<TxnResponse, ReadFailure> {
        let txn = ReadTxn::begin(self, is_guarded);
        let chosen = choose(&txn, request)?;
        let ranges: Vec<&RangeRequest> =
            chosen.operations.iter().filter_map(Operation::as_range).collect();
        for range in &ranges {
            check_revision(range.revision, txn.revision(), txn.compacted())?;
        }
        let responses = ranges.into_iter().map(|range| {
            Ok(ResponseOp { response: Some(Response::ResponseRange(txn.range(range)?)) })
        });
        let responses = responses.collect::<Result<_, ReadFailure>>()?;
        let header = header(txn.revision());
        Ok(TxnResponse { header, succeeded: chosen.succeeded, responses })
    }
}

impl Mvcc {
    /// A transaction that [`is_read_only`]. Blocks when values have to come from the disk, and for as
    /// long as it takes to walk its ranges.
    ///
    /// # Errors
    ///
    /// The revision of a range is compacted or in the future.
    pub(crate) fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Failure> {
        self.until_not_overtaken(|is_guarded| self.shared.read_txn(request, is_guarded))
    }
}

/// Whether a transaction holds nothing but ranges; etcd counts a nested one, whatever is in it, as a
/// write.
pub(crate) fn is_read_only(request: &TxnRequest) -> bool {
    operations_of(request).all(|operation| matches!(operation, Some(Request::RequestRange(_))))
}

/// Whether a transaction holds nothing but ranges that may be answered from what one member has.
pub(crate) fn is_serializable(request: &TxnRequest) -> bool {
    operations_of(request).all(
        |operation| matches!(operation, Some(Request::RequestRange(range)) if range.serializable),
    )
}

fn operations_of(request: &TxnRequest) -> impl Iterator<Item = Option<&Request>> {
    request.success.iter().chain(&request.failure).map(|operation| operation.request.as_ref())
}

/// Whether a range in a transaction finds anything at `revision`. Outside of one etcd takes a negative
/// revision as the current one.
fn check_revision(revision: i64, current: i64, compacted: i64) -> Result<(), RequestError> {
    match revision {
        0 => Ok(()),
        _ if revision > current => Err(RequestError::FutureRevision),
        _ if revision < compacted => Err(RequestError::Compacted),
        _ => Ok(()),
    }
}

/// What compares look at.
trait Compared {
    type Error;

    /// What the keys of `range` hold.
    fn get_all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, Self::Error>;

    /// The same, but the values may be left out.
    fn get_all_without_values(&self, range: &KeyRange) -> Result<Vec<KeyValue>, Self::Error>;
}

impl Compared for WriteTxn<'_> {
    type Error = EngineError;

    fn get_all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, EngineError> {
        self.get_all(range)
    }

    fn get_all_without_values(&self, range: &KeyRange) -> Result<Vec<KeyValue>, EngineError> {
        Ok(self.get_all_without_values(range))
    }
}

impl Compared for ReadTxn<'_> {
    type Error = ReadFailure;

    fn get_all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, ReadFailure> {
        self.get_all(range)
    }

    fn get_all_without_values(&self, range: &KeyRange) -> Result<Vec<KeyValue>, ReadFailure> {
        // The present leases may be newer than what is read; those in the records are not.
        self.get_all(range)
    }
}

fn choose<'a, T: Compared>(txn: &T, request: &'a TxnRequest) -> Result<Chosen<'a>, T::Error> {
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

impl<'a> Operation<'a> {
    fn as_range(&self) -> Option<&'a RangeRequest> {
        match self {
            Self::Plain(Request::RequestRange(range)) => Some(range),
            _ => None,
        }
    }
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
fn holds<T: Compared>(txn: &T, compare: &Compare) -> Result<bool, T::Error> {
    let range = KeyRange::new(&compare.key, &compare.range_end);
    let is_value = compare.target == i32::from(CompareTarget::Value);
    let kvs = if is_value { txn.get_all(&range)? } else { txn.get_all_without_values(&range)? };
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

#[cfg(test)]
mod tests {
    use store_proto::etcdserverpb::DeleteRangeRequest;

    use super::*;

    fn ops(requests: &[Request]) -> Vec<RequestOp> {
        requests.iter().map(|request| RequestOp { request: Some(request.clone()) }).collect()
    }

    #[test]
    fn only_ranges_on_both_branches_make_a_read() {
        let range = |serializable| {
            Request::RequestRange(RangeRequest { serializable, ..RangeRequest::default() })
        };
        let put = Request::RequestPut(PutRequest::default());
        let delete = Request::RequestDeleteRange(DeleteRangeRequest::default());
        let nested = Request::RequestTxn(TxnRequest::default());
        let cases: [(&[Request], &[Request], bool, bool); 7] = [
            (&[], &[], true, true),
            (&[range(true)], &[range(true), range(true)], true, true),
            (&[range(true)], &[range(false)], true, false),
            (&[range(true)], &[put], false, false),
            (&[delete], &[], false, false),
            (std::slice::from_ref(&nested), &[], false, false),
            (&[range(true), nested.clone()], &[range(true)], false, false),
        ];
        for (success, failure, reads_only, serializable) in cases {
            let txn = TxnRequest {
                success: ops(success),
                failure: ops(failure),
                ..TxnRequest::default()
            };
            let found = (is_read_only(&txn), is_serializable(&txn));
            assert_eq!(found, (reads_only, serializable), "{txn:?}");
        }
    }
}
