//! A store of very many keys, for what has to be seen at size.

use store_proto::etcdserverpb::request_op::Request;
use store_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use tokio::task::JoinSet;

use super::store::Member;

const LOADERS: usize = 16;
const KEYS_PER_TXN: usize = 100;

/// The key of a number below a hundred million.
pub(crate) fn key(number: usize) -> String {
    format!("/registry/pods/default/{number:08}")
}

pub(crate) fn put(number: usize, value: &str) -> PutRequest {
    PutRequest { key: key(number).into(), value: value.to_owned().into(), ..Default::default() }
}

/// Puts a value of 100 bytes under each of so many keys, as fast as one member takes it.
pub(crate) async fn load(member: &Member, keys: usize) {
    let mut loaders = JoinSet::new();
    for loader in 0..LOADERS {
        let mut kv = member.kv();
        loaders.spawn(async move {
            let value = "v".repeat(100);
            for first in (loader * KEYS_PER_TXN..keys).step_by(LOADERS * KEYS_PER_TXN) {
                let last = (first + KEYS_PER_TXN).min(keys);
                let put =
                    |number| RequestOp { request: Some(Request::RequestPut(put(number, &value))) };
                let success = (first..last).map(put).collect();
                kv.txn(TxnRequest { success, ..Default::default() }).await.expect("it loads");
            }
        });
    }
    loaders.join_all().await;
}
