//! Gets of one key, and ranges of many.

use store_proto::etcdserverpb::RangeRequest;
use store_proto::etcdserverpb::kv_client::KvClient;
use tonic::Status;

use super::{KEYS, key};
use crate::connections::Connections;
use crate::load::Work;

/// Keys in one range.
const RANGE_KEYS: u64 = 500;

/// Gets of any of the keys.
pub(super) struct Gets {
    serializable: bool,
}

impl Gets {
    pub(super) fn new(serializable: bool) -> Self {
        Self { serializable }
    }
}

impl Work for Gets {
    async fn step(&mut self, connections: &mut Connections) -> Result<bool, Status> {
        let get = RangeRequest {
            key: key("bench/", rand::random_range(0..KEYS)),
            serializable: self.serializable,
            ..RangeRequest::default()
        };
        found(connections, get, 1).await
    }
}

/// Linearizable ranges of 500 keys that follow each other.
pub(super) struct Ranges;

impl Ranges {
    pub(super) fn new() -> Self {
        Self
    }
}

impl Work for Ranges {
    async fn step(&mut self, connections: &mut Connections) -> Result<bool, Status> {
        let first = rand::random_range(0..KEYS - RANGE_KEYS);
        let range = RangeRequest {
            key: key("bench/", first),
            range_end: key("bench/", first + RANGE_KEYS),
            ..RangeRequest::default()
        };
        found(connections, range, RANGE_KEYS).await
    }
}

/// An answer with another number of keys is an error: it would be measured for work not done.
async fn found(
    connections: &mut Connections,
    range: RangeRequest,
    expected: u64,
) -> Result<bool, Status> {
    let answer = KvClient::new(connections.next()).range(range).await?.into_inner();
    if answer.kvs.len() as u64 == expected {
        Ok(true)
    } else {
        Err(Status::data_loss(format!("{} keys instead of {expected}", answer.kvs.len())))
    }
}
