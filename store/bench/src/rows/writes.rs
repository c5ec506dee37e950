//! Puts and compare-and-swap.

use bytes::Bytes;
use store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op, response_op,
};
use tonic::Status;

use super::{KEYS, key};
use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::load::{self, Work};
use crate::options::Options;
use crate::report::{Better, Line};

const CLIENTS: usize = 64;

/// Puts to any of the keys.
pub(super) struct Puts {
    value: Bytes,
}

impl Puts {
    pub(super) fn new(value: &Bytes) -> Self {
        Self { value: value.clone() }
    }
}

impl Work for Puts {
    async fn step(&mut self, connections: &mut Connections) -> Result<bool, Status> {
        let put = PutRequest {
            key: key("bench/", rand::random_range(0..KEYS)),
            value: self.value.clone(),
            ..PutRequest::default()
        };
        KvClient::new(connections.next()).put(put).await?;
        Ok(true)
    }
}

/// Replaces a key's value if nobody did since it was last seen; who fails learns how it is now.
struct CompareAndSwap {
    key: Bytes,
    value: Bytes,
    /// 0: it is not there.
    mod_revision: i64,
}

impl Work for CompareAndSwap {
    async fn step(&mut self, connections: &mut Connections) -> Result<bool, Status> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.key.clone(),
            target_union: Some(TargetUnion::ModRevision(self.mod_revision)),
            ..Compare::default()
        };
        let put = PutRequest {
            key: self.key.clone(),
            value: self.value.clone(),
            ..PutRequest::default()
        };
        let get = RangeRequest { key: self.key.clone(), ..RangeRequest::default() };
        let op = |request| vec![RequestOp { request: Some(request) }];
        let txn = TxnRequest {
            compare: vec![compare],
            success: op(request_op::Request::RequestPut(put)),
            failure: op(request_op::Request::RequestRange(get)),
        };
        let answer = KvClient::new(connections.next()).txn(txn).await?.into_inner();
        if answer.succeeded {
            self.mod_revision = answer.header.map_or(0, |header| header.revision);
        } else if let Some(response_op::Response::ResponseRange(found)) =
            answer.responses.into_iter().next().and_then(|op| op.response)
        {
            self.mod_revision = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        }
        Ok(answer.succeeded)
    }
}

/// `contended`: all clients want the same key, so that most of them fail; what counts is successes.
#[allow(clippy::cast_precision_loss)]
pub(super) async fn compare_and_swap(
    cluster: &Cluster,
    options: &Options,
    value: &Bytes,
    contended: bool,
) -> anyhow::Result<Vec<Line>> {
    let work = |client: usize| CompareAndSwap {
        key: key("swap/", if contended { 0 } else { client as u64 }),
        value: value.clone(),
        mod_revision: 0,
    };
    let outcome = load::run(cluster, CLIENTS, options, work).await?;
    if !contended {
        return Ok(outcome.lines());
    }
    let all = outcome.latencies.count() as f64 + outcome.missed as f64;
    let rate = |count: f64| count / outcome.elapsed.as_secs_f64();
    Ok(vec![
        Line::new("attempts per second", Better::Higher, vec![rate(all)]),
        Line::new(
            "CPU s of the servers per 100,000 attempts",
            Better::Lower,
            vec![outcome.cpu.as_secs_f64() / all * 100_000.0],
        ),
    ])
}
