//! What writes and transactions count as: each operation that was carried out, those of transactions
//! included, as etcd counts them.

use std::time::Duration;

use store_proto::etcdserverpb::request_op::Request as Op;
use store_proto::etcdserverpb::response_op::Response as OpResponse;
use store_proto::etcdserverpb::{PutRequest, TxnRequest, TxnResponse};
use store_proto::peer::{Command, command};

use super::Metrics;
use crate::error::RequestError;
use crate::mvcc::Outcome;

/// What takes longer to apply counts as slow; etcd's threshold.
const SLOW_APPLY: Duration = Duration::from_millis(100);

/// Operations that were carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Operations {
    ranges: u64,
    puts: u64,
    put_bytes: u64,
    deletes: u64,
}

impl Operations {
    fn put(&mut self, put: &PutRequest) {
        self.puts += 1;
        self.put_bytes += (put.key.len() + put.value.len()) as u64;
    }

    fn txn(&mut self, request: &TxnRequest, response: &TxnResponse) {
        let branch = if response.succeeded { &request.success } else { &request.failure };
        for (op, answer) in branch.iter().zip(&response.responses) {
            match (&op.request, &answer.response) {
                (Some(Op::RequestRange(_)), _) => self.ranges += 1,
                (Some(Op::RequestPut(put)), _) => self.put(put),
                (Some(Op::RequestDeleteRange(_)), _) => self.deletes += 1,
                (Some(Op::RequestTxn(request)), Some(OpResponse::ResponseTxn(response))) => {
                    self.txn(request, response);
                }
                _ => {}
            }
        }
    }
}

impl Metrics {
    /// Counts a command that was applied, with its answer.
    pub(crate) fn applied(&self, command: &Command, answer: &Result<Outcome, RequestError>) {
        let mut operations = Operations::default();
        match (&command.op, answer) {
            (Some(command::Op::Put(put)), Ok(_)) => operations.put(put),
            (Some(command::Op::DeleteRange(_)), Ok(_)) => operations.deletes += 1,
            (Some(command::Op::Txn(request)), Ok(Outcome::Txn(response))) => {
                operations.txn(request, response);
            }
            (_, Ok(Outcome::LeaseGrant(granted))) => {
                self.leases_granted.inc();
                self.granted_ttl_seconds.observe(granted.ttl as f64);
            }
            (_, Ok(Outcome::LeaseRevoke(_))) => self.leases_revoked.inc(),
            _ => {}
        }
        self.carried_out(operations);
    }

    /// Counts a transaction that was carried out.
    pub(crate) fn carried_out_txn(&self, request: &TxnRequest, response: &TxnResponse) {
        let mut operations = Operations::default();
        operations.txn(request, response);
        self.carried_out(operations);
    }

    fn carried_out(&self, operations: Operations) {
        let Operations { ranges, puts, put_bytes, deletes } = operations;
        if ranges + puts + deletes > 1 {
            self.transactions.inc();
        }
        for (count, by) in [
            (&self.ranges, ranges),
            (&self.puts, puts),
            (&self.put_bytes, put_bytes),
            (&self.deletes, deletes),
        ] {
            if by > 0 {
                count.add(by);
            }
        }
    }

    /// Counts the time that applying an entry took.
    pub(crate) fn applied_in(&self, duration: Duration) {
        if duration > SLOW_APPLY {
            self.slow_applies.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use store_proto::etcdserverpb::{
        DeleteRangeRequest, PutResponse, RangeRequest, RequestOp, ResponseOp,
    };

    use super::*;

    fn put() -> Op {
        Op::RequestPut(PutRequest { key: "ab".into(), value: "cde".into(), ..Default::default() })
    }

    fn of(requests: Vec<Op>) -> Vec<RequestOp> {
        requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
    }

    fn answers(count: usize) -> Vec<ResponseOp> {
        vec![ResponseOp::default(); count]
    }

    #[test]
    fn only_the_branch_that_was_taken_counts_down_to_the_innermost() {
        let inner = TxnRequest {
            success: of(vec![put(), put()]),
            failure: of(vec![Op::RequestDeleteRange(DeleteRangeRequest::default())]),
            ..Default::default()
        };
        let request = TxnRequest {
            success: of(vec![
                Op::RequestRange(RangeRequest::default()),
                put(),
                Op::RequestTxn(inner),
            ]),
            failure: of(vec![put(), put(), put(), put()]),
            ..Default::default()
        };
        let inner = TxnResponse { succeeded: false, responses: answers(1), ..Default::default() };
        let mut responses = answers(2);
        responses.push(ResponseOp { response: Some(OpResponse::ResponseTxn(inner)) });
        let response = TxnResponse { succeeded: true, responses, ..Default::default() };
        let mut operations = Operations::default();
        operations.txn(&request, &response);
        let expected = Operations { ranges: 1, puts: 1, put_bytes: 5, deletes: 1 };
        assert_eq!(operations, expected);

        let metrics = Metrics::new().unwrap();
        let command = Command { id: 1, op: Some(command::Op::Txn(request)) };
        metrics.applied(&command, &Ok(Outcome::Txn(response)));
        let Op::RequestPut(put) = put() else { unreachable!() };
        let command = Command { id: 2, op: Some(command::Op::Put(put)) };
        metrics.applied(&command, &Ok(Outcome::Put(PutResponse::default())));
        metrics.applied(&command, &Err(RequestError::LeaseNotFound));
        let counts = [&metrics.transactions, &metrics.puts, &metrics.put_bytes, &metrics.deletes];
        assert_eq!(
            counts.map(|count| count.0.load(std::sync::atomic::Ordering::Relaxed)),
            [1, 2, 10, 1]
        );
    }
}
