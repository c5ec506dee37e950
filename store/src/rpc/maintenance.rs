//! The Maintenance service: status, alarms, hashes, backups, and leadership on request.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use openraft::async_runtime::watch::WatchReceiver as _;
use store_proto::etcdserverpb::maintenance_server::Maintenance;
use store_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    alarm_request::AlarmAction,
};
use store_proto::peer::alarm::Cause;
use store_proto::peer::command::Op;
use store_proto::peer::{Alarm, AlarmChange};
use tonic::{Request, Response, Status};

use super::ETCD_VERSION;
use crate::backup;
use crate::member::Member;
use crate::mvcc::Outcome;

/// Answers the Maintenance service on behalf of a member.
#[derive(Clone)]
pub(crate) struct MaintenanceServer(pub(crate) Arc<Member>);

fn member_of(alarm: &Alarm) -> AlarmMember {
    AlarmMember { member_id: alarm.member_id, alarm: alarm.alarm }
}

/// As etcd prints one, the space at the end included; a number that is 0 is left out.
fn text_of(alarm: &Alarm) -> String {
    let name = alarm.alarm().as_str_name();
    match alarm.member_id {
        0 => format!("alarm:{name} "),
        id => format!("memberID:{id} alarm:{name} "),
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceServer {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        let unknown =
            |field, value| Err(Status::invalid_argument(format!("{field}: there is no {value}")));
        let Ok(action) = AlarmAction::try_from(request.action) else {
            return unknown("action", request.action);
        };
        let Ok(kind) = AlarmType::try_from(request.alarm) else {
            return unknown("alarm", request.alarm);
        };
        let alarms = if action == AlarmAction::Get {
            self.0.linearize().await?;
            self.0.mvcc.alarms(kind)
        } else {
            let alarm = Alarm {
                member_id: request.member_id,
                alarm: kind.into(),
                cause: Cause::Client.into(),
            };
            let raised = action == AlarmAction::Activate;
            let change = AlarmChange { alarm: Some(alarm), raised };
            match self.0.propose(Op::Alarm(change)).await? {
                Outcome::Alarm(alarm) => alarm.into_iter().collect(),
                other => unreachable!("a change of alarms is answered as such, not {other:?}"),
            }
        };
        let alarms = alarms.iter().map(member_of).collect();
        Ok(Response::new(AlarmResponse { header: Some(self.0.header()), alarms }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let term = self.0.leadership.borrow().term;
        let leader = self.0.leader_in_contact();
        let (last_log_index, applied_index) = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_log_index, metrics.last_applied.as_ref().map(|log_id| log_id.index()))
        };
        let mut errors = Vec::new();
        if leader.is_none() {
            errors.push(crate::RequestError::NoLeader.to_string());
        }
        errors.extend(self.0.mvcc.alarms(AlarmType::None).iter().map(text_of));
        let on_disk =
            self.0.mvcc.size_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let in_use = self.0.mvcc.in_use_bytes();
        // What was not written to the disk yet takes room as well.
        let db_size = i64::try_from(on_disk.max(in_use)).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            header: Some(self.0.header()),
            version: ETCD_VERSION.to_owned(),
            db_size,
            leader: leader.unwrap_or(0),
            raft_index: last_log_index.unwrap_or(0),
            raft_term: term,
            raft_applied_index: applied_index.unwrap_or(0),
            errors,
            db_size_in_use: i64::try_from(in_use).unwrap_or(i64::MAX),
            is_learner: self.0.is_learner(),
        }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let _seconds = self.0.metrics.hash_seconds.start_timer();
        let hashed = self.0.state.hash(0).await?;
        Ok(Response::new(HashResponse { header: Some(self.0.header()), hash: hashed.hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let _seconds = self.0.metrics.hash_revision_seconds.start_timer();
        let hashed = self.0.state.hash(request.into_inner().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.0.header_at(hashed.current)),
            hash: hashed.hash,
            compact_revision: hashed.compacted,
        }))
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.0.defragment().await?;
        // etcd's answer has no header.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Ok(Response::new(Box::pin(backup::send(&self.0)?)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.0.move_leader(request.into_inner().target_id).await?;
        // As etcd answers it.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }
}
