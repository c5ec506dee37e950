//! Lease ids that the servers choose. Each side chooses its own, so between the two such a lease
//! goes by a name: a number that stands for it in requests and in compared answers.

use std::collections::BTreeMap;

use store_proto::etcdserverpb::{
    RequestOp, ResponseOp, TxnRequest, TxnResponse, compare::TargetUnion, request_op::Request,
    response_op::Response,
};
use store_proto::mvccpb::{Event, KeyValue};

use crate::call::{Call, Reply};

/// Names begin here; what servers choose is larger, what the sequences choose is smaller.
pub(crate) const FIRST_NAME: i64 = 1 << 30;
/// And end here.
const LAST_NAME: i64 = FIRST_NAME + (1 << 30);

/// The name of the lease that call `number` was granted.
pub(crate) fn name(number: usize) -> i64 {
    FIRST_NAME + i64::try_from(number).unwrap_or(0)
}

/// Whether an id stands for one that a server chose.
pub(crate) fn is_name(id: i64) -> bool {
    (FIRST_NAME..LAST_NAME).contains(&id)
}

/// One side's ids of the named leases.
#[derive(Default)]
pub(crate) struct LeaseIds {
    by_name: BTreeMap<i64, i64>,
    by_id: BTreeMap<i64, i64>,
}

impl LeaseIds {
    /// The server chose `id` for the lease with that name.
    pub(crate) fn learn(&mut self, name: i64, id: i64) {
        self.by_name.insert(name, id);
        self.by_id.insert(id, name);
    }

    fn to_id(&self, lease: &mut i64) {
        if let Some(id) = self.by_name.get(lease) {
            *lease = *id;
        }
    }

    fn to_name(&self, lease: &mut i64) {
        if let Some(name) = self.by_id.get(lease) {
            *lease = *name;
        }
    }

    /// Puts this side's ids into a request.
    pub(crate) fn fill(&self, call: &mut Call) {
        match call {
            Call::Put(put) => self.to_id(&mut put.lease),
            Call::Txn(txn) => self.fill_txn(txn),
            Call::LeaseGrant(request) => self.to_id(&mut request.id),
            Call::LeaseRevoke(request) => self.to_id(&mut request.id),
            Call::LeaseTimeToLive(request) => self.to_id(&mut request.id),
            Call::LeaseKeepAlive(request) => self.to_id(&mut request.id),
            _ => {}
        }
    }

    fn fill_txn(&self, txn: &mut TxnRequest) {
        for compare in &mut txn.compare {
            if let Some(TargetUnion::Lease(id)) = &mut compare.target_union {
                self.to_id(id);
            }
        }
        for RequestOp { request } in txn.success.iter_mut().chain(&mut txn.failure) {
            match request {
                Some(Request::RequestPut(put)) => self.to_id(&mut put.lease),
                Some(Request::RequestTxn(nested)) => self.fill_txn(nested),
                _ => {}
            }
        }
    }

    /// Puts names into an answer.
    pub(crate) fn rename(&self, reply: &mut Reply) {
        match reply {
            Reply::Range(range) => self.rename_kvs(&mut range.kvs),
            Reply::Put(put) => self.rename_kvs(put.prev_kv.as_mut_slice()),
            Reply::DeleteRange(delete) => self.rename_kvs(&mut delete.prev_kvs),
            Reply::Txn(txn) => self.rename_txn(txn),
            Reply::LeaseGrant(grant) => self.to_name(&mut grant.id),
            Reply::LeaseTimeToLive(lease) => self.to_name(&mut lease.id),
            Reply::LeaseLeases(leases) => {
                leases.leases.iter_mut().for_each(|lease| self.to_name(&mut lease.id));
            }
            Reply::LeaseKeepAlive(kept) => {
                kept.iter_mut().for_each(|response| self.to_name(&mut response.id));
            }
            Reply::Leader(leader) => self.rename_kvs(leader.kv.as_mut_slice()),
            _ => {}
        }
    }

    fn rename_txn(&self, txn: &mut TxnResponse) {
        for ResponseOp { response } in &mut txn.responses {
            match response {
                Some(Response::ResponseRange(range)) => self.rename_kvs(&mut range.kvs),
                Some(Response::ResponsePut(put)) => self.rename_kvs(put.prev_kv.as_mut_slice()),
                Some(Response::ResponseDeleteRange(delete)) => {
                    self.rename_kvs(&mut delete.prev_kvs);
                }
                Some(Response::ResponseTxn(nested)) => self.rename_txn(nested),
                None => {}
            }
        }
    }

    fn rename_kvs(&self, kvs: &mut [KeyValue]) {
        kvs.iter_mut().for_each(|kv| self.to_name(&mut kv.lease));
    }

    /// Puts names into an event.
    pub(crate) fn rename_event(&self, event: &mut Event) {
        self.rename_kvs(event.kv.as_mut_slice());
        self.rename_kvs(event.prev_kv.as_mut_slice());
    }
}
