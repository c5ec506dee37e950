//! Reads, puts and deletes.

use bytes::Bytes;
use rand::Rng as _;
use store_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
};

use super::Random;
use crate::call::Call;

/// More than gRPC takes, and more than etcd takes; well away from the limits themselves, near which
/// it depends on the length of an id that etcd makes up.
const OVER_GRPC_LIMIT_BYTES: usize = 2 << 20;
const OVER_REQUEST_LIMIT_BYTES: usize = 1_600_000;

impl Random<'_> {
    pub(super) fn range(&mut self) -> RangeRequest {
        let key = self.key_or_empty();
        let range_end = self.range_end(&key);
        let mut range = RangeRequest {
            range_end,
            key,
            limit: self.rarely(3, |random| random.rng.random_range(-1..5)),
            revision: self.rarely(2, Self::read_revision),
            serializable: self.one_in(4),
            keys_only: self.one_in(6),
            count_only: self.one_in(10),
            ..RangeRequest::default()
        };
        if self.one_in(2) {
            range.sort_order = self.rng.random_range(0..3);
            // How more than 12 keys with the same revision or value are ordered is etcd's own business.
            range.sort_target = if self.has_many_keys { 0 } else { self.rng.random_range(0..5) };
        }
        if self.one_in(3) {
            range.min_mod_revision = self.rarely(3, Self::bound);
            range.max_mod_revision = self.rarely(3, Self::bound);
            range.min_create_revision = self.rarely(3, Self::bound);
            range.max_create_revision = self.rarely(3, Self::bound);
        }
        if self.one_in(100) {
            range.sort_order = self.pick(&[-1, 3, 99]);
        }
        range
    }

    fn bound(&mut self) -> i64 {
        match self.rng.random_range(0..8) {
            0 => -1,
            1 => self.rng.random_range(0..self.bearings.revision + 3),
            _ => self.bearings.revision - self.rng.random_range(0..20),
        }
    }

    pub(super) fn put(&mut self) -> PutRequest {
        let mut put = PutRequest {
            key: self.key_or_empty(),
            value: self.value(),
            lease: self.rarely(3, Self::lease_or_unknown),
            prev_kv: self.one_in(3),
            ..PutRequest::default()
        };
        if self.one_in(10) {
            put.ignore_value = true;
            // With a value it is refused.
            if !self.one_in(5) {
                put.value = Bytes::new();
            }
        }
        if self.one_in(10) {
            put.ignore_lease = true;
            if !self.one_in(5) {
                put.lease = 0;
            }
        }
        put
    }

    pub(super) fn delete_range(&mut self) -> DeleteRangeRequest {
        let key = self.key_or_empty();
        let range_end = if self.one_in(2) { Bytes::new() } else { self.range_end(&key) };
        DeleteRangeRequest { range_end, key, prev_kv: self.one_in(2) }
    }

    pub(super) fn oversized(&mut self) -> Call {
        let bytes = self.pick(&[OVER_GRPC_LIMIT_BYTES, OVER_REQUEST_LIMIT_BYTES]);
        let long = Bytes::from(vec![b'x'; bytes]);
        let key = Bytes::from_static(b"a");
        let put = PutRequest { key, value: long.clone(), ..PutRequest::default() };
        match self.rng.random_range(0..4) {
            0 => {
                let put = RequestOp { request: Some(Request::RequestPut(put)) };
                Call::Txn(TxnRequest { success: vec![put], ..TxnRequest::default() })
            }
            1 => Call::Range(RangeRequest { key: long, ..RangeRequest::default() }),
            2 => Call::DeleteRange(DeleteRangeRequest { key: long, ..Default::default() }),
            _ => Call::Put(put),
        }
    }
}
