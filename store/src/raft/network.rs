//! How a member reaches the others: the calling side of the peer protocol.
//!
//! Every call has a deadline. Heartbeats, log entries and snapshots travel on connections of their
//! own, so that a bulk of data never holds up the sign of life. A peer that cannot be reached is an
//! error, also for a pre-vote: silence is not consent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use prometheus::Histogram;
use store_proto::peer;
use store_proto::peer::append_entries_response::Result as AppendResult;
use store_proto::peer::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::codec;
use super::snapshot_transfer::SnapshotFile;
use super::types::{MemberNode, TypeConfig, Vote};
use crate::member::Raft;
use crate::members::removal;
use crate::metrics::Metrics;

/// The largest message between members: a full replication message and a large request on top.
pub(crate) const PEER_MESSAGE_BYTES: usize = 64 << 20;
/// Says which cluster the caller belongs to.
pub(crate) const CLUSTER_ID_HEADER: &str = "miniku-cluster-id";
/// Says which member the caller believes to reach.
pub(crate) const MEMBER_ID_HEADER: &str = "miniku-member-id";
/// Says which member the caller is.
pub(crate) const CALLER_ID_HEADER: &str = "miniku-caller-id";

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that answers no ping for this long is given up, and the calls to it fail.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries to reach a peer that is down: short, because one that comes back should be
/// caught up with at once, and a refused connection costs nothing.
const UNREACHABLE_BACKOFF: Duration = Duration::from_millis(100);
const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
const SNAPSHOT_CHUNKS_AHEAD: usize = 4;
/// For a whole snapshot; its own chunks keep the connection visibly alive.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// A client of one peer.
pub(crate) type Peer = PeerClient<InterceptedService<Channel, Introduce>>;

/// Tells the other side who is meant, so that an address that changed hands is noticed.
#[derive(Clone)]
pub(crate) struct Introduce {
    cluster_id: MetadataValue<Ascii>,
    member_id: MetadataValue<Ascii>,
    caller_id: MetadataValue<Ascii>,
}

impl Interceptor for Introduce {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CLUSTER_ID_HEADER, self.cluster_id.clone());
        request.metadata_mut().insert(MEMBER_ID_HEADER, self.member_id.clone());
        request.metadata_mut().insert(CALLER_ID_HEADER, self.caller_id.clone());
        Ok(request)
    }
}

/// Makes connections to peers; they are opened at the first call and again after they broke.
#[derive(Clone)]
pub(crate) struct Network {
    cluster_id: u64,
    own_id: u64,
    shared: Arc<Shared>,
    /// Absent while it is not known who this member is.
    metrics: Option<Arc<Metrics>>,
}

/// What all connections know.
#[derive(Default)]
struct Shared {
    /// Whom the last call did not reach; so that it is said once, not with every heartbeat.
    silent: Mutex<BTreeSet<u64>>,
    /// The members of the newest membership. openraft keeps a connection when an address changes.
    nodes: Mutex<BTreeMap<u64, MemberNode>>,
    removed: CancellationToken,
}

impl Network {
    /// `removed` is cancelled when another member says that this one has been removed.
    pub(crate) fn new(
        cluster_id: u64,
        own_id: u64,
        removed: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        let shared = Shared { removed, ..Shared::default() };
        Self { cluster_id, own_id, shared: Arc::new(shared), metrics: Some(metrics) }
    }

    /// For one that does not know yet who it is.
    pub(crate) fn stranger() -> Self {
        Self { cluster_id: 0, own_id: 0, shared: Arc::default(), metrics: None }
    }

    /// Follows the addresses of the members. Never ends.
    pub(crate) async fn follow_addresses(self, raft: Raft) {
        let mut metrics = raft.server_metrics();
        loop {
            let membership = Arc::clone(&metrics.borrow_watched().membership_config);
            *self.shared.nodes.lock() =
                membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// A client of `node`, or `None` when its address cannot be used.
    pub(crate) fn peer(&self, id: u64, node: &MemberNode) -> Option<Peer> {
        let endpoint = Endpoint::from_shared(node.peer_urls.first()?.clone()).ok()?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_lazy();
        let introduce = Introduce {
            cluster_id: self.cluster_id.into(),
            member_id: id.into(),
            caller_id: self.own_id.into(),
        };
        let client = PeerClient::with_interceptor(channel, introduce)
            .max_decoding_message_size(PEER_MESSAGE_BYTES)
            .max_encoding_message_size(PEER_MESSAGE_BYTES);
        Some(client)
    }

    fn failed(&self, status: &Status) -> RPCError<TypeConfig> {
        if removal::is_refusal(status) {
            self.shared.removed.cancel();
        }
        RPCError::Unreachable(Unreachable::new(status))
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> PeerNetwork {
        let peer = self.peer(target, node);
        let peer_urls = node.peer_urls.clone();
        PeerNetwork { network: self.clone(), target, peer_urls, peer, heartbeats: None }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &MemberNode) -> PeerNetwork {
        let heartbeats = self.metrics.as_ref().map(|metrics| Heartbeats {
            seconds: metrics.round_trip_seconds.with_label_values(&[format!("{target:x}")]),
            metrics: Arc::clone(metrics),
        });
        PeerNetwork { heartbeats, ..self.new_client(target, node).await }
    }
}

/// One connection to one peer, as openraft uses it.
pub(crate) struct PeerNetwork {
    network: Network,
    target: u64,
    /// Those that `peer` was made for.
    peer_urls: Vec<String>,
    peer: Option<Peer>,
    /// Present if this is the connection of the heartbeats.
    heartbeats: Option<Heartbeats>,
}

/// Counts heartbeats, which are streams of one message.
#[derive(Clone)]
struct Heartbeats {
    seconds: Histogram,
    metrics: Arc<Metrics>,
}

impl Heartbeats {
    fn note<T, E>(&self, begun: Instant, answer: &Result<T, E>) {
        match answer {
            Ok(_) => self.seconds.observe(begun.elapsed().as_secs_f64()),
            Err(_) => self.metrics.heartbeats_failed.inc(),
        }
    }
}

impl PeerNetwork {
    fn peer(&mut self) -> Result<Peer, Unreachable<TypeConfig>> {
        let moved = {
            let nodes = self.network.shared.nodes.lock();
            nodes.get(&self.target).filter(|node| node.peer_urls != self.peer_urls).cloned()
        };
        if let Some(node) = moved {
            self.peer = self.network.peer(self.target, &node);
            self.peer_urls = node.peer_urls;
        }
        let no_address = || format!("member {:x} has no usable peer URL", self.target);
        self.peer.clone().ok_or_else(|| Unreachable::from_string(no_address()))
    }

    /// One call with a deadline. Running over it makes the peer count as unreachable.
    async fn call<T>(
        &self,
        deadline: Duration,
        rpc: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = match tokio::time::timeout(deadline, rpc).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.network.failed(&status)),
            Err(_) => Err(RPCError::Unreachable(Unreachable::from_string("no answer in time"))),
        };
        self.notice(answer.as_ref().err());
        answer
    }

    /// Streams a snapshot, a few chunks ahead of the peer at the most. A chunk that cannot be read ends
    /// the stream early; the peer then finds the file incomplete and refuses it.
    async fn send_snapshot(
        &mut self,
        head: peer::SnapshotHead,
        mut chunks: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Vote, StreamingError<TypeConfig>> {
        let mut peer = self.peer()?;
        let (sender, messages) = mpsc::channel(SNAPSHOT_CHUNKS_AHEAD);
        let pump = async move {
            let mut message = peer::SnapshotChunk { head: Some(head), data: Bytes::new() };
            while sender.send(message).await.is_ok() {
                let Some(Ok(data)) = chunks.next().await else { return };
                message = peer::SnapshotChunk { head: None, data };
            }
        };
        let sending =
            self.call(SNAPSHOT_TIMEOUT, peer.install_snapshot(ReceiverStream::new(messages)));
        let ((), response) = tokio::join!(pump, sending);
        let vote =
            response?.vote.ok_or_else(|| broken("an answer to InstallSnapshot says nothing"))?;
        Ok(codec::vote_from_proto(&vote))
    }

    fn notice(&self, failure: Option<&RPCError<TypeConfig>>) {
        let member = format_args!("{:x}", self.target);
        let mut silent = self.network.shared.silent.lock();
        match failure {
            Some(error) if silent.insert(self.target) => {
                tracing::warn!(%member, %error, "a member cannot be reached");
            }
            None if silent.remove(&self.target) => tracing::info!(%member, "a member is back"),
            _ => {}
        }
    }
}

fn broken(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(reason))
}

impl NetBackoff<TypeConfig> for PeerNetwork {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(UNREACHABLE_BACKOFF)))
    }
}

impl NetStreamAppend<TypeConfig> for PeerNetwork {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let begun = Instant::now();
            let mut peer = self.peer()?;
            let responses = self
                .call(
                    option.hard_ttl(),
                    peer.append_entries(input.map(|request| append_to_proto(&request))),
                )
                .await;
            if let (Some(heartbeats), Err(_)) = (&self.heartbeats, &responses) {
                heartbeats.note(begun, &responses);
            }
            let heartbeats = self.heartbeats.clone();
            let responses = responses?.inspect(move |response| {
                if let Some(heartbeats) = &heartbeats {
                    heartbeats.note(begun, response);
                }
            });
            let network = self.network.clone();
            let results = responses.map(move |response| match response {
                Ok(response) => append_result(&response),
                Err(status) => Err(network.failed(&status)),
            });
            Ok(results.boxed())
        })
    }
}

fn append_to_proto(request: &AppendEntriesRequest<TypeConfig>) -> peer::AppendEntriesRequest {
    peer::AppendEntriesRequest {
        vote: Some(codec::vote_to_proto(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(codec::log_id_to_proto),
        leader_commit: request.leader_commit.as_ref().map(codec::log_id_to_proto),
        entries: request.entries.iter().map(codec::entry_to_proto).collect(),
    }
}

fn append_result(
    response: &peer::AppendEntriesResponse,
) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    match &response.result {
        Some(AppendResult::Matching(matching)) => {
            Ok(Ok(matching.log_id.as_ref().map(codec::log_id_from_proto)))
        }
        Some(AppendResult::Conflict(id)) => {
            Ok(Err(StreamAppendError::Conflict(codec::log_id_from_proto(id))))
        }
        Some(AppendResult::HigherVote(vote)) => {
            Ok(Err(StreamAppendError::HigherVote(codec::vote_from_proto(vote))))
        }
        None => Err(broken("an answer to AppendEntries says nothing")),
    }
}

impl PeerNetwork {
    async fn ask_for_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = peer::VoteRequest {
            vote: Some(codec::vote_to_proto(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(codec::log_id_to_proto),
            pre_vote,
            leader_transfer: request.leadership_transfer,
        };
        let mut peer = self.peer()?;
        let response = self.call(option.hard_ttl(), peer.vote(message)).await?;
        let vote = response.vote.ok_or_else(|| broken("an answer to Vote says nothing"))?;
        Ok(VoteResponse {
            vote: codec::vote_from_proto(&vote),
            vote_granted: response.granted,
            last_log_id: response.last_log_id.as_ref().map(codec::log_id_from_proto),
        })
    }
}

impl NetVote<TypeConfig> for PeerNetwork {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(request, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(request, true, &option).await
    }
}

impl NetTransferLeader<TypeConfig> for PeerNetwork {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = peer::TransferLeaderRequest {
            from_leader: Some(codec::vote_to_proto(request.from_leader())),
            to_node: *request.to_node_id(),
            last_log_id: request.last_log_id().map(codec::log_id_to_proto),
        };
        let mut peer = self.peer()?;
        let response = self.call(option.hard_ttl(), peer.transfer_leader(message)).await?;
        if response.accepted { Ok(Ok(())) } else { Err(broken("the transfer was refused")) }
    }
}

impl NetSnapshot<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let head = peer::SnapshotHead {
            vote: Some(codec::vote_to_proto(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(codec::log_id_to_proto),
            membership: Some(codec::stored_membership_to_proto(&snapshot.meta.last_membership)),
        };
        let chunks = snapshot.snapshot.chunks(SNAPSHOT_CHUNK_BYTES).await.map_err(|error| {
            StreamingError::Unreachable(Unreachable::from_string(format!(
                "the snapshot to be sent cannot be read: {error}"
            )))
        })?;
        tokio::select! {
            vote = self.send_snapshot(head, chunks) => Ok(SnapshotResponse::new(vote?)),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// Whether a call certainly never reached the peer: no connection could be made.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
