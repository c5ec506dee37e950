//! What a request may add to the state, by etcd's estimate.

use store_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};
use store_proto::peer::command::Op;

/// What etcd reckons for a key beside its name and value.
const KEY_OVERHEAD_BYTES: u64 = 256;
/// What etcd reckons for a lease.
const LEASE_BYTES: u64 = 64;

/// How many bytes `op` adds at most; 0 for what needs no room.
pub(crate) fn cost_bytes(op: &Op) -> u64 {
    match op {
        Op::Put(put) => put_bytes(put),
        Op::Txn(txn) => txn_bytes(txn),
        Op::LeaseGrant(_) => LEASE_BYTES,
        _ => 0,
    }
}

fn put_bytes(put: &PutRequest) -> u64 {
    KEY_OVERHEAD_BYTES + (put.key.len() + put.value.len()) as u64
}

/// The costlier branch counts.
fn txn_bytes(txn: &TxnRequest) -> u64 {
    let branch = |operations: &[RequestOp]| -> u64 {
        let operation = |operation: &RequestOp| match &operation.request {
            Some(Request::RequestPut(put)) => put_bytes(put),
            Some(Request::RequestTxn(nested)) => txn_bytes(nested),
            _ => 0,
        };
        operations.iter().map(operation).sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

#[cfg(test)]
mod tests {
    use store_proto::etcdserverpb::{DeleteRangeRequest, LeaseGrantRequest};

    use super::*;

    #[test]
    fn the_costlier_branch_counts_and_deletes_are_free() {
        let put = PutRequest { key: "ab".into(), value: "cde".into(), ..PutRequest::default() };
        let operation = |request| RequestOp { request: Some(request) };
        let puts = |count| vec![operation(Request::RequestPut(put.clone())); count];
        let delete = || operation(Request::RequestDeleteRange(DeleteRangeRequest::default()));
        let txn = |success, failure| TxnRequest { compare: Vec::new(), success, failure };
        let nested = operation(Request::RequestTxn(txn(puts(1), puts(3))));
        let cases = [
            (Op::Put(put.clone()), 261),
            (Op::LeaseGrant(LeaseGrantRequest::default()), 64),
            (Op::DeleteRange(DeleteRangeRequest::default()), 0),
            (Op::Txn(txn(vec![delete()], vec![])), 0),
            (Op::Txn(txn(puts(2), puts(1))), 2 * 261),
            (Op::Txn(txn(puts(1), vec![nested, delete()])), 3 * 261),
        ];
        for (op, expected) in cases {
            assert_eq!(cost_bytes(&op), expected, "{op:?}");
        }
    }
}
