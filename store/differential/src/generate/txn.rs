//! Transactions.

use std::collections::BTreeSet;

use bytes::Bytes;
use rand::Rng as _;
use store_proto::etcdserverpb::{
    Compare, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use super::Random;
use crate::leases;

const MAX_DEPTH: u32 = 3;
/// etcd's limit.
const MAX_TXN_OPS: usize = 128;

impl Random<'_> {
    pub(super) fn txn(&mut self) -> TxnRequest {
        if self.one_in(50) {
            return self.long_txn();
        }
        // Most transactions put no key twice, so that they are carried out.
        let mut put_keys = BTreeSet::new();
        let avoids_duplicates = !self.one_in(8);
        self.txn_at(0, &mut put_keys, avoids_duplicates)
    }

    fn txn_at(
        &mut self,
        depth: u32,
        put_keys: &mut BTreeSet<Bytes>,
        avoids_duplicates: bool,
    ) -> TxnRequest {
        let compares = self.pick(&[0, 0, 1, 1, 2, 3]);
        let compare = (0..compares).map(|_| self.compare()).collect();
        let mut branch = |random: &mut Self| -> Vec<RequestOp> {
            let operations = random.pick(&[0, 1, 1, 2, 2, 3, 4]);
            (0..operations).map(|_| random.operation(depth, put_keys, avoids_duplicates)).collect()
        };
        let success = branch(self);
        let failure = branch(self);
        TxnRequest { compare, success, failure }
    }

    fn operation(
        &mut self,
        depth: u32,
        put_keys: &mut BTreeSet<Bytes>,
        avoids_duplicates: bool,
    ) -> RequestOp {
        let request = match self.rng.random_range(0..40) {
            0..14 => {
                let mut put = self.put();
                for _ in 0..4 {
                    if !put_keys.contains(&put.key) {
                        break;
                    }
                    put.key = self.key();
                }
                if put_keys.insert(put.key.clone()) || !avoids_duplicates {
                    Some(Request::RequestPut(put))
                } else {
                    Some(Request::RequestRange(self.range_in_txn()))
                }
            }
            14..20 => Some(Request::RequestDeleteRange(self.delete_range())),
            20..34 => Some(Request::RequestRange(self.range_in_txn())),
            34..39 if depth < MAX_DEPTH => {
                Some(Request::RequestTxn(self.txn_at(depth + 1, put_keys, avoids_duplicates)))
            }
            39 if self.one_in(4) => None,
            _ => Some(Request::RequestRange(self.range_in_txn())),
        };
        RequestOp { request }
    }

    /// Most of them at the present, as a bad revision fails the whole transaction.
    fn range_in_txn(&mut self) -> RangeRequest {
        let mut range = self.range();
        if !self.one_in(4) {
            range.revision = 0;
        }
        range
    }

    /// About as many operations as there may be.
    fn long_txn(&mut self) -> TxnRequest {
        let count = MAX_TXN_OPS + 2 - self.rng.random_range(0..4_usize);
        let mut txn = TxnRequest::default();
        match self.rng.random_range(0..4) {
            0 => txn.compare = (0..count).map(|_| self.compare()).collect(),
            1 => txn.failure = self.gets(count),
            2 => {
                let nested = TxnRequest { success: self.gets(count - 1), ..Default::default() };
                txn.success = vec![RequestOp { request: Some(Request::RequestTxn(nested)) }];
            }
            _ => txn.success = self.gets(count),
        }
        txn
    }

    fn gets(&mut self, count: usize) -> Vec<RequestOp> {
        let get = RangeRequest { key: self.key(), ..RangeRequest::default() };
        vec![RequestOp { request: Some(Request::RequestRange(get)) }; count]
    }

    fn compare(&mut self) -> Compare {
        let key = self.key_or_empty();
        let range_end = if self.one_in(4) { self.range_end(&key) } else { Bytes::new() };
        let mut result = self.rng.random_range(0..4);
        let mut target = self.rng.random_range(0..5);
        let revision = match self.rng.random_range(0..4) {
            0 => 0,
            _ => self.bearings.revision - self.rng.random_range(0..15),
        };
        let version = self.rng.random_range(0..4);
        let mut union = match CompareTarget::try_from(target) {
            Ok(CompareTarget::Version) => TargetUnion::Version(version),
            Ok(CompareTarget::Create) => TargetUnion::CreateRevision(revision),
            Ok(CompareTarget::Mod) => TargetUnion::ModRevision(revision),
            Ok(CompareTarget::Value) => TargetUnion::Value(self.value()),
            Ok(CompareTarget::Lease) | Err(_) => {
                let id = self.rarely(2, Self::lease_or_unknown);
                TargetUnion::Lease(id)
            }
        };
        if matches!(union, TargetUnion::Lease(id) if leases::is_name(id)) && result != 0 {
            // Which of two ids is the larger one is the servers' own business.
            result = CompareResult::NotEqual.into();
        }
        if self.one_in(60) {
            // Another kind of operand than the target's, and targets and results that are none.
            match self.rng.random_range(0..4) {
                0 => target = self.pick(&[5, -1, 77]),
                1 => result = self.pick(&[4, -1, 77]),
                _ => target = self.rng.random_range(0..5),
            }
            if matches!(union, TargetUnion::Lease(_)) {
                union = TargetUnion::Version(version);
            }
        }
        let target_union = if self.one_in(100) { None } else { Some(union) };
        Compare { result, target, key, range_end, target_union }
    }
}
