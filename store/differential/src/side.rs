//! One of the two clusters, and how calls are made on it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use store_proto::etcdserverpb::cluster_client::ClusterClient;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::lease_client::LeaseClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseLeasesRequest, RangeRequest, ResponseHeader, StatusRequest,
    TxnRequest, request_op,
};
use store_proto::v3electionpb::LeaderKey;
use store_proto::v3electionpb::election_client::ElectionClient;
use store_proto::v3lockpb::lock_client::LockClient;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::call::{Answer, Call, Reply, Step};
use crate::cluster::{Cluster, Program, StartError};
use crate::leases::{LeaseIds, name};
use crate::normal;

/// Longer than either store takes to say that it cannot answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A large answer is as good as a small one.
const ANSWER_LIMIT_BYTES: usize = 512 << 20;

/// A cluster and what is known about it.
pub(crate) struct Side {
    pub(crate) cluster: Cluster,
    pub(crate) ids: LeaseIds,
}

impl Side {
    pub(crate) async fn start(
        program: &Program,
        members: usize,
        parent: &Path,
    ) -> Result<Self, StartError> {
        let cluster = Cluster::start(program, members, parent).await?;
        Ok(Self { cluster, ids: LeaseIds::default() })
    }

    /// Makes a call that is no watch's.
    pub(crate) async fn make(&mut self, step: &Step) -> (Answer, Facts) {
        let mut call = step.call.clone();
        self.ids.fill(&mut call);
        let result = self.reply(step.member, call).await;
        if let (Call::LeaseGrant(request), Ok(Reply::LeaseGrant(granted))) = (&step.call, &result)
            && request.id == 0
        {
            self.ids.learn(name(step.number), granted.id);
        }
        let facts = result.as_ref().map(|reply| Facts::of(reply, &self.ids)).unwrap_or_default();
        (normal::answer(result, &self.ids), facts)
    }

    async fn reply(&self, member: usize, call: Call) -> Result<Reply, Status> {
        let is_write = match &call {
            Call::Put(_) | Call::DeleteRange(_) | Call::Compact(_) => true,
            Call::Txn(txn) => is_write(txn),
            _ => false,
        };
        if !is_write {
            // What it answers from its own state, or from the leader's, is up to date then.
            self.settle_all().await?;
        }
        let channel = self.cluster.channels[member].clone();
        match tokio::time::timeout(CALL_TIMEOUT, reply(channel, call)).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded("the comparison waits no longer")),
        }
    }

    /// Waits until this member has applied all that was answered by any, and returns its revision;
    /// 0 for a member that is alone, which always has.
    pub(crate) async fn settle(&self, member: usize) -> Result<i64, Status> {
        if self.cluster.channels.len() == 1 {
            return Ok(0);
        }
        let any = RangeRequest { key: "any".into(), count_only: true, ..RangeRequest::default() };
        let mut kv = KvClient::new(self.cluster.channels[member].clone());
        match tokio::time::timeout(CALL_TIMEOUT, kv.range(any)).await {
            Ok(result) => Ok(result?.into_inner().header.map_or(0, |header| header.revision)),
            Err(_) => Err(Status::deadline_exceeded("a linearizable read is not answered")),
        }
    }

    /// Waits until all members have applied all that was answered, and checks that they are at the
    /// same revision.
    pub(crate) async fn agree(&self) -> Result<(), String> {
        let mut revisions = Vec::new();
        for member in 0..self.cluster.channels.len() {
            revisions.push(self.settle(member).await.map_err(|status| status.to_string())?);
        }
        if revisions.iter().any(|revision| *revision != revisions[0]) {
            return Err(format!("the members are at different revisions: {revisions:?}"));
        }
        Ok(())
    }

    async fn settle_all(&self) -> Result<(), Status> {
        for member in 0..self.cluster.channels.len() {
            self.settle(member).await?;
        }
        Ok(())
    }
}

/// What an answer tells about where the cluster stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) revision: i64,
    pub(crate) granted: Option<i64>,
    pub(crate) lock_key: Option<Bytes>,
    pub(crate) leader: Option<LeaderKey>,
}

impl Facts {
    fn of(reply: &Reply, ids: &LeaseIds) -> Self {
        let mut renamed = reply.clone();
        ids.rename(&mut renamed);
        let revision =
            |header: &Option<ResponseHeader>| header.as_ref().map_or(0, |header| header.revision);
        let mut facts = Self::default();
        facts.revision = match renamed {
            Reply::Range(range) => revision(&range.header),
            Reply::Put(put) => revision(&put.header),
            Reply::DeleteRange(delete) => revision(&delete.header),
            Reply::Txn(txn) => revision(&txn.header),
            Reply::LeaseRevoke(revoke) => revision(&revoke.header),
            Reply::LeaseGrant(grant) => {
                facts.granted = Some(grant.id);
                revision(&grant.header)
            }
            Reply::Lock(lock) => {
                facts.lock_key = Some(lock.key);
                revision(&lock.header)
            }
            Reply::Unlock(unlock) => revision(&unlock.header),
            Reply::Campaign(campaign) => {
                facts.leader = campaign.leader;
                revision(&campaign.header)
            }
            Reply::Proclaim(proclaim) => revision(&proclaim.header),
            Reply::Resign(resign) => revision(&resign.header),
            _ => 0,
        };
        facts
    }
}

async fn reply(channel: Channel, call: Call) -> Result<Reply, Status> {
    let mut kv = KvClient::new(channel.clone())
        .max_decoding_message_size(ANSWER_LIMIT_BYTES)
        .max_encoding_message_size(ANSWER_LIMIT_BYTES);
    let mut lease = LeaseClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut cluster = ClusterClient::new(channel.clone());
    let mut lock = LockClient::new(channel.clone());
    let mut election = ElectionClient::new(channel);
    Ok(match call {
        Call::Range(request) => Reply::Range(body(kv.range(request).await?)),
        Call::Put(request) => Reply::Put(body(kv.put(request).await?)),
        Call::DeleteRange(request) => Reply::DeleteRange(body(kv.delete_range(request).await?)),
        Call::Txn(request) => Reply::Txn(body(kv.txn(request).await?)),
        Call::Compact(request) => Reply::Compact(body(kv.compact(request).await?)),
        Call::LeaseGrant(request) => Reply::LeaseGrant(body(lease.lease_grant(request).await?)),
        Call::LeaseRevoke(request) => Reply::LeaseRevoke(body(lease.lease_revoke(request).await?)),
        Call::LeaseTimeToLive(request) => {
            Reply::LeaseTimeToLive(body(lease.lease_time_to_live(request).await?))
        }
        Call::LeaseLeases => {
            Reply::LeaseLeases(body(lease.lease_leases(LeaseLeasesRequest {}).await?))
        }
        Call::LeaseKeepAlive(request) => keep_alive(lease, request).await?,
        Call::MemberList(request) => Reply::MemberList(body(cluster.member_list(request).await?)),
        Call::Alarm(request) => Reply::Alarm(body(maintenance.alarm(request).await?)),
        Call::Status => Reply::Status(body(maintenance.status(StatusRequest {}).await?)),
        Call::HashKv(request) => Reply::HashKv(body(maintenance.hash_kv(request).await?)),
        Call::Lock(request) => Reply::Lock(body(lock.lock(request).await?)),
        Call::Unlock(request) => Reply::Unlock(body(lock.unlock(request).await?)),
        Call::Campaign(request) => Reply::Campaign(body(election.campaign(request).await?)),
        Call::Proclaim(request) => Reply::Proclaim(body(election.proclaim(request).await?)),
        Call::Leader(request) => Reply::Leader(body(election.leader(request).await?)),
        Call::Resign(request) => Reply::Resign(body(election.resign(request).await?)),
        Call::WatchCreate(..)
        | Call::WatchCancel(..)
        | Call::WatchProgress(_)
        | Call::WatchNothing(_)
        | Call::WatchClose(_)
        | Call::CompareWatches => return Err(Status::new(Code::Internal, "no call of this kind")),
    })
}

/// Whether a transaction has anything in it but reads. One that has not may be a serializable read.
fn is_write(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|operation| match &operation.request {
        Some(request_op::Request::RequestRange(_)) | None => false,
        Some(request_op::Request::RequestTxn(nested)) => is_write(nested),
        Some(_) => true,
    })
}

fn body<T>(response: Response<T>) -> T {
    response.into_inner()
}

/// One renewal on a stream of its own, which the client ends after it.
async fn keep_alive(
    mut lease: LeaseClient<Channel>,
    request: LeaseKeepAliveRequest,
) -> Result<Reply, Status> {
    let mut responses = lease.lease_keep_alive(tokio_stream::once(request)).await?.into_inner();
    let mut kept = Vec::new();
    while let Some(response) = responses.message().await? {
        kept.push(response);
    }
    Ok(Reply::LeaseKeepAlive(kept))
}
