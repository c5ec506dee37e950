//! The Maintenance service: status and hashes. The rest is not there yet.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use openraft::async_runtime::watch::WatchReceiver as _;
use store_proto::etcdserverpb::maintenance_server::Maintenance;
use store_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest,
    HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
};
use tonic::{Request, Response, Status};

use super::ETCD_VERSION;
use crate::member::Member;

/// Answers the Maintenance service on behalf of a member.
#[derive(Clone)]
pub(crate) struct MaintenanceServer(pub(crate) Arc<Member>);

fn not_yet(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not there yet"))
}

#[tonic::async_trait]
impl Maintenance for MaintenanceServer {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        match request.into_inner().action() {
            AlarmAction::Get => {
                let header = Some(self.0.header());
                Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
            }
            AlarmAction::Activate | AlarmAction::Deactivate => Err(not_yet("changing alarms")),
        }
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let leadership = *self.0.leadership.borrow();
        let (last_log_index, applied_index) = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_log_index, metrics.last_applied.as_ref().map(|log_id| log_id.index()))
        };
        let membership = self.0.membership();
        let is_learner = membership.voter_ids().all(|id| id != self.0.id);
        let errors = if leadership.leader.is_none() {
            vec![crate::RequestError::NoLeader.to_string()]
        } else {
            Vec::new()
        };
        let db_size =
            self.0.mvcc.size_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let db_size = i64::try_from(db_size).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            header: Some(self.0.header()),
            version: ETCD_VERSION.to_owned(),
            db_size,
            leader: leadership.leader.unwrap_or(0),
            raft_index: last_log_index.unwrap_or(0),
            raft_term: leadership.term,
            raft_applied_index: applied_index.unwrap_or(0),
            errors,
            db_size_in_use: db_size,
            is_learner,
        }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let hashed = self.0.state.hash(0).await?;
        Ok(Response::new(HashResponse { header: Some(self.0.header()), hash: hashed.hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let hashed = self.0.state.hash(request.into_inner().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.0.header_at(hashed.revision)),
            hash: hashed.hash,
            compact_revision: hashed.compacted,
        }))
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(not_yet("Defragment"))
    }

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_yet("Snapshot"))
    }

    async fn move_leader(
        &self,
        _: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(not_yet("MoveLeader"))
    }
}
