//! What a member answers to the others: the serving side of the peer protocol.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::SnapshotMeta;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
};
use openraft::storage::Snapshot;
use store_proto::peer;
use store_proto::peer::append_entries_response::{Matching, Result as AppendResult};
use store_proto::peer::peer_server::Peer as PeerService;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::codec;
use super::network::{CALLER_ID_HEADER, CLUSTER_ID_HEADER, MEMBER_ID_HEADER};
use super::snapshot_transfer::IncomingSnapshot;
use super::types::{Batch, TypeConfig};
use crate::member::Member;
use crate::members::removal;
use crate::proposer::{self, Submitted};

/// What a caller is told that means another cluster.
pub(crate) const ANOTHER_CLUSTER: &str = "this is a member of another cluster";

/// Answers other members on behalf of this one.
#[derive(Clone)]
pub(crate) struct PeerServer {
    member: Arc<Member>,
}

impl PeerServer {
    pub(crate) fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// Refuses callers that mean another cluster or another member, and those that have been removed.
    fn check_meant<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_cluster(request)?;
        if named(request, MEMBER_ID_HEADER) != Some(self.member.id) {
            return Err(Status::failed_precondition("this is another member"));
        }
        Ok(())
    }

    fn check_cluster<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_caller(request)?;
        if named(request, CLUSTER_ID_HEADER) != Some(self.member.cluster_id) {
            return Err(Status::failed_precondition(ANOTHER_CLUSTER));
        }
        Ok(())
    }

    fn check_caller<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let is_removed = |id| self.member.mvcc.is_removed(id);
        if named(request, CLUSTER_ID_HEADER) == Some(self.member.cluster_id)
            && named(request, CALLER_ID_HEADER).is_some_and(is_removed)
        {
            return Err(removal::refusal());
        }
        Ok(())
    }
}

fn named<T>(request: &Request<T>, header: &'static str) -> Option<u64> {
    request.metadata().get(header)?.to_str().ok()?.parse().ok()
}

fn missing(field: &'static str) -> Status {
    Status::invalid_argument(codec::CodecError::Missing(field).to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn stopped(reason: impl ToString) -> Status {
    Status::unavailable(reason.to_string())
}

fn append_from_proto(
    request: peer::AppendEntriesRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let vote = request.vote.ok_or_else(|| missing("vote"))?;
    let entries = request
        .entries
        .into_iter()
        .map(codec::entry_from_proto)
        .collect::<Result<_, _>>()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(AppendEntriesRequest {
        vote: codec::vote_from_proto(&vote),
        prev_log_id: request.prev_log_id.as_ref().map(codec::log_id_from_proto),
        leader_commit: request.leader_commit.as_ref().map(codec::log_id_from_proto),
        entries,
    })
}

fn append_result(result: &StreamAppendResult<TypeConfig>) -> peer::AppendEntriesResponse {
    let result = match result {
        Ok(matching) => AppendResult::Matching(Matching {
            log_id: matching.as_ref().map(codec::log_id_to_proto),
        }),
        Err(StreamAppendError::Conflict(log_id)) => {
            AppendResult::Conflict(codec::log_id_to_proto(log_id))
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            AppendResult::HigherVote(codec::vote_to_proto(vote))
        }
    };
    peer::AppendEntriesResponse { result: Some(result) }
}

#[tonic::async_trait]
impl PeerService for PeerServer {
    type AppendEntriesStream =
        Pin<Box<dyn Stream<Item = Result<peer::AppendEntriesResponse, Status>> + Send>>;

    async fn append_entries(
        &self,
        request: Request<Streaming<peer::AppendEntriesRequest>>,
    ) -> Result<Response<Self::AppendEntriesStream>, Status> {
        self.check_meant(&request)?;
        // A message that cannot be read ends the stream; the leader starts another.
        let member = Arc::clone(&self.member);
        let requests = request.into_inner().scan((), move |(), message| {
            let request = message.and_then(append_from_proto);
            match &request {
                // A leader of an earlier term may not know yet that it is none any more.
                Ok(request) if request.vote.leader_id().term >= member.leadership.borrow().term => {
                    member.contact.heard(Instant::now());
                }
                Ok(_) => {}
                Err(status) => {
                    tracing::debug!(%status, "a stream of log entries from the leader ended");
                }
            }
            std::future::ready(request.ok())
        });
        let results = self.member.raft.stream_append(requests).map(|result| match result {
            Ok(result) => Ok(append_result(&result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        Ok(Response::new(results.boxed()))
    }

    async fn vote(
        &self,
        request: Request<peer::VoteRequest>,
    ) -> Result<Response<peer::VoteResponse>, Status> {
        self.check_meant(&request)?;
        let request = request.into_inner();
        let vote = request.vote.ok_or_else(|| missing("vote"))?;
        let rpc = VoteRequest {
            vote: codec::vote_from_proto(&vote),
            last_log_id: request.last_log_id.as_ref().map(codec::log_id_from_proto),
            leadership_transfer: request.leader_transfer,
        };
        let response = if request.pre_vote {
            self.member.raft.pre_vote(rpc).await
        } else {
            self.member.raft.vote(rpc).await
        };
        let response = response.map_err(stopped)?;
        Ok(Response::new(peer::VoteResponse {
            vote: Some(codec::vote_to_proto(&response.vote)),
            granted: response.vote_granted,
            last_log_id: response.last_log_id.as_ref().map(codec::log_id_to_proto),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotChunk>>,
    ) -> Result<Response<peer::SnapshotInstalled>, Status> {
        self.check_meant(&request)?;
        let mut chunks = request.into_inner();
        let head = chunks.message().await?.and_then(|chunk| chunk.head);
        let head = head.ok_or_else(|| missing("head"))?;
        let vote = codec::vote_from_proto(&head.vote.ok_or_else(|| missing("head.vote"))?);
        let last_membership =
            codec::stored_membership_from_proto(head.membership.unwrap_or_default())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let last_log_id = head.last_log_id.as_ref().map(codec::log_id_from_proto);

        let failed = |error: std::io::Error| Status::internal(error.to_string());
        let mut incoming = IncomingSnapshot::create(&self.member.snapshot_dir, rand::random())
            .await
            .map_err(failed)?;
        while let Some(chunk) = chunks.message().await? {
            incoming.write(chunk.data).await.map_err(failed)?;
        }
        let file = incoming.finish(&self.member.snapshots).await.map_err(|error| {
            Status::data_loss(format!("the snapshot did not arrive whole: {error}"))
        })?;
        let snapshot =
            Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: file };
        let response =
            self.member.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(peer::SnapshotInstalled {
            vote: Some(codec::vote_to_proto(&response.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferLeaderRequest>,
    ) -> Result<Response<peer::TransferLeaderResponse>, Status> {
        self.check_meant(&request)?;
        let request = request.into_inner();
        let from = request.from_leader.ok_or_else(|| missing("from_leader"))?;
        let rpc = TransferLeaderRequest::new(
            codec::vote_from_proto(&from),
            request.to_node,
            request.last_log_id.as_ref().map(codec::log_id_from_proto),
        );
        let accepted = self.member.raft.handle_transfer_leader(rpc).await.map_err(stopped)?.is_ok();
        Ok(Response::new(peer::TransferLeaderResponse { accepted }))
    }

    async fn propose(
        &self,
        request: Request<peer::ProposeRequest>,
    ) -> Result<Response<peer::ProposeResponse>, Status> {
        self.check_meant(&request)?;
        let request = request.into_inner();
        let batch = Batch::received(&request.batch)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let submitted = proposer::lead(&self.member, request.term, batch).await;
        Ok(Response::new(peer::ProposeResponse { accepted: submitted == Submitted::Taken }))
    }

    async fn read_index(
        &self,
        request: Request<peer::ReadIndexRequest>,
    ) -> Result<Response<peer::ReadIndexResponse>, Status> {
        self.check_meant(&request)?;
        let index = self.member.confirm_as_leader().await;
        let index = index.ok_or_else(|| Status::unavailable("leadership is not confirmed"))?;
        Ok(Response::new(peer::ReadIndexResponse { index }))
    }

    async fn is_known(
        &self,
        request: Request<peer::IsKnownRequest>,
    ) -> Result<Response<peer::IsKnownResponse>, Status> {
        // Who asks this knows the others by their addresses only: a member that was replaced has
        // another id than the flags of the first start give it.
        self.check_cluster(&request)?;
        let id = request.get_ref().member_id;
        let known = self.member.mvcc.members().contains_key(&id);
        let votes = self.member.membership().voter_ids().any(|voter| voter == id);
        Ok(Response::new(peer::IsKnownResponse { known, votes }))
    }

    async fn members(
        &self,
        request: Request<peer::MembersRequest>,
    ) -> Result<Response<peer::MembersResponse>, Status> {
        self.check_caller(&request)?;
        let members = self.member.listed_members();
        Ok(Response::new(peer::MembersResponse { cluster_id: self.member.cluster_id, members }))
    }

    async fn change_members(
        &self,
        request: Request<peer::MemberChange>,
    ) -> Result<Response<peer::MemberChanged>, Status> {
        self.check_meant(&request)?;
        Ok(Response::new(self.member.lead_change(request.get_ref()).await?))
    }

    async fn lease_remaining(
        &self,
        request: Request<peer::LeaseRemainingRequest>,
    ) -> Result<Response<peer::LeaseRemainingResponse>, Status> {
        self.check_meant(&request)?;
        let request = request.into_inner();
        let remaining = self.member.lease_remaining_as_leader(request.id, request.renew).await?;
        Ok(Response::new(remaining))
    }
}
