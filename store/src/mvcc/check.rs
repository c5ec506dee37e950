//! What is wrong with a request whatever the state: asked before it is proposed, with etcd's
//! answers.

use std::collections::BTreeSet;

use bytes::Bytes;
use store_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};

use super::key_range::KeyRange;
use super::lease::NO_LEASE;
use crate::error::RequestError;

/// How many operations a transaction may have: the largest of compares, success and failure, and
/// those of nested ones on top, unless the member is told otherwise. etcd's default.
pub(crate) const MAX_TXN_OPS: usize = 128;
/// How deep transactions may be nested. Decoding stops at a depth of 100 messages, three for each
/// level with the log's own around them: what is deeper could be written, but never read again.
const MAX_TXN_DEPTH: usize = 16;

/// Checks a Range.
pub(crate) fn check_range(request: &RangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    SortOrder::try_from(request.sort_order).map_err(|_| RequestError::InvalidSortOption)?;
    SortTarget::try_from(request.sort_target).map_err(|_| RequestError::InvalidSortOption)?;
    Ok(())
}

/// Checks a Put.
pub(crate) fn check_put(request: &PutRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if request.ignore_lease && request.lease != NO_LEASE {
        return Err(RequestError::LeaseProvided);
    }
    Ok(())
}

/// Checks a DeleteRange.
pub(crate) fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

/// Checks a Txn with everything in it.
pub(crate) fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), RequestError> {
    check_operations(request, max_ops, MAX_TXN_DEPTH)?;
    for branch in [&request.success, &request.failure] {
        Writes::of_branch(branch)?;
    }
    Ok(())
}

fn check_operations(
    request: &TxnRequest,
    max_ops: usize,
    max_depth: usize,
) -> Result<(), RequestError> {
    let depth_left = max_depth.checked_sub(1).ok_or(RequestError::TooManyOps)?;
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(ops).ok_or(RequestError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(RequestError::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(|operation| {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(range),
            Some(Request::RequestPut(put)) => check_put(put),
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete),
            Some(Request::RequestTxn(nested)) => check_operations(nested, left, depth_left),
            // etcd's answer to an operation that says nothing.
            None => Err(RequestError::KeyNotFound),
        }
    })
}

/// What a branch may write, with the branches of its nested transactions.
///
/// No key may be put twice, or put and deleted, by what can run together: all writes of a
/// transaction share one revision. Of a nested transaction's two branches only one runs.
/// etcd checks the same, but misses a delete "from key" (`range_end` = `\0`) and a delete in a
/// later sibling; here those are refused too.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn of_branch(branch: &[RequestOp]) -> Result<Self, RequestError> {
        let mut writes = Self::default();
        for operation in branch {
            match &operation.request {
                Some(Request::RequestPut(put)) => {
                    let own = Self { puts: BTreeSet::from([put.key.clone()]), deletes: Vec::new() };
                    writes.add(own)?;
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let range = KeyRange::new(&delete.key, &delete.range_end);
                    writes.add(Self { puts: BTreeSet::new(), deletes: vec![range] })?;
                }
                Some(Request::RequestTxn(nested)) => {
                    let mut either = Self::of_branch(&nested.success)?;
                    let or = Self::of_branch(&nested.failure)?;
                    either.puts.extend(or.puts);
                    either.deletes.extend(or.deletes);
                    writes.add(either)?;
                }
                Some(Request::RequestRange(_)) | None => {}
            }
        }
        Ok(writes)
    }

    /// Adds what runs in the same branch.
    fn add(&mut self, other: Self) -> Result<(), RequestError> {
        let is_conflict = !self.puts.is_disjoint(&other.puts)
            || deletes_any(&self.deletes, &other.puts)
            || deletes_any(&other.deletes, &self.puts);
        if is_conflict {
            return Err(RequestError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }
}

fn deletes_any(deletes: &[KeyRange], puts: &BTreeSet<Bytes>) -> bool {
    deletes
        .iter()
        .filter_map(KeyRange::bounds)
        .any(|bounds| puts.range::<[u8], _>(bounds).next().is_some())
}

#[cfg(test)]
mod tests {
    use store_proto::peer::Command;
    use store_proto::peer::command::Op;

    use super::*;
    use crate::raft::types::Batch;

    fn gets(count: usize) -> Vec<RequestOp> {
        let get = RangeRequest { key: Bytes::from_static(b"k"), ..RangeRequest::default() };
        vec![RequestOp { request: Some(Request::RequestRange(get)) }; count]
    }

    fn txn(success: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, ..TxnRequest::default() }
    }

    #[test]
    fn operations_are_counted_by_the_longer_branch_and_nested_ones_on_top() {
        let nested = |count| RequestOp { request: Some(Request::RequestTxn(txn(gets(count)))) };
        let cases = [
            (txn(gets(128)), Ok(())),
            (txn(gets(129)), Err(RequestError::TooManyOps)),
            (TxnRequest { failure: gets(128), ..txn(gets(128)) }, Ok(())),
            (TxnRequest { failure: gets(129), ..txn(gets(1)) }, Err(RequestError::TooManyOps)),
            (txn(vec![nested(127)]), Ok(())),
            (txn(vec![nested(128)]), Err(RequestError::TooManyOps)),
            // Siblings are not added up.
            (txn(vec![nested(126), nested(126)]), Ok(())),
        ];
        for (number, (request, expected)) in cases.into_iter().enumerate() {
            assert_eq!(check_txn(&request, MAX_TXN_OPS), expected, "case {number}");
        }
    }

    #[test]
    fn what_is_nested_as_deep_as_allowed_can_be_read_back_from_the_log() {
        let nest = |levels: usize| {
            (1..levels).fold(txn(gets(1)), |inner, _| {
                txn(vec![RequestOp { request: Some(Request::RequestTxn(inner)) }])
            })
        };
        assert_eq!(check_txn(&nest(MAX_TXN_DEPTH + 1), MAX_TXN_OPS), Err(RequestError::TooManyOps));
        let deepest = nest(MAX_TXN_DEPTH);
        assert_eq!(check_txn(&deepest, MAX_TXN_OPS), Ok(()));
        let command = Command { id: 1, op: Some(Op::Txn(deepest)) };
        let batch = Batch::new(vec![command]);
        assert!(Batch::decode(batch.encoded().clone()).is_ok());
    }
}
