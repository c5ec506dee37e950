//! One member of the store, put together: what the faces in [`crate::rpc`] call.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::ReadPolicy;
use parking_lot::Mutex;
use store_proto::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use store_proto::peer;
use store_proto::peer::command::Op;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::RequestError;
use crate::leadership::{Contact, Leadership};
use crate::lease_clock::LeaseClock;
use crate::metrics::Metrics;
use crate::mvcc::{Mvcc, Outcome, StateDir, is_serializable};
use crate::proposals::Proposals;
use crate::raft::log_store::LogStore;
use crate::raft::network::{Network, Peer};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{MemberNode, StoredMembership, TypeConfig};
use crate::read_index::ReadIndex;
use crate::reads::Reads;
use crate::snapshot::SnapshotDir;
use crate::space::Space;
use crate::watch::WatchHub;

/// openraft with our state machine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// For one question to the leader about what is committed.
const READ_ROUND_TIMEOUT: Duration = Duration::from_secs(2);

/// One member. Its tasks are started and owned by [`crate::Running`].
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) cluster_id: u64,
    pub(crate) request_timeout: Duration,
    /// A leader that is silent for so long is given up.
    pub(crate) election_timeout: Duration,
    /// Cancelled when the member is asked to stop.
    pub(crate) stop: CancellationToken,
    /// What outlives the call that began it. It ends soon after `stop`.
    pub(crate) tasks: TaskTracker,
    pub(crate) max_request_bytes: usize,
    pub(crate) max_txn_ops: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: LogStore,
    pub(crate) raft: Raft,
    pub(crate) mvcc: Mvcc,
    pub(crate) state: Reads,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) proposals: Arc<Proposals>,
    pub(crate) reads: ReadIndex,
    pub(crate) leases: Arc<LeaseClock>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) contact: Contact,
    /// Whether this member has known no leader for so long that streams which need one end.
    pub(crate) cut_off: watch::Receiver<bool>,
    /// One change of the members at a time.
    pub(crate) member_changes: Semaphore,
    /// Cancelled once this member has been removed from the cluster.
    pub(crate) removed: CancellationToken,
    pub(crate) applied_index: watch::Receiver<u64>,
    pub(crate) snapshots: SnapshotDir,
    pub(crate) snapshot_dir: PathBuf,
    /// One for each backup that may be made at a time.
    pub(crate) backups: Arc<Semaphore>,
    pub(crate) network: Network,
    pub(crate) space: Arc<Space>,
    pub(crate) state_dir: Arc<StateDir>,
    /// Whoever has it moves the state into fresh files.
    pub(crate) defragmenting: Arc<tokio::sync::Mutex<()>>,
    pub(crate) peers: Mutex<HashMap<u64, (MemberNode, Peer)>>,
}

impl Member {
    /// The header of an answer: who gives it, and the revision that this member's state is at.
    pub(crate) fn header(&self) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.id,
            revision: self.mvcc.current_revision(),
            raft_term: self.leadership.borrow().term,
        }
    }

    /// The header of an answer that was given as of `revision`.
    pub(crate) fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { revision, ..self.header() }
    }

    /// Has `op` carried out by the cluster, unless there is no room for it.
    pub(crate) async fn propose(&self, op: Op) -> Result<Outcome, RequestError> {
        self.check_room(&op).await?;
        let answer = self.proposals.propose(op, self.request_timeout).await;
        if matches!(answer, Err(RequestError::Timeout | RequestError::NoLeader)) {
            self.metrics.proposals_failed.inc();
        }
        answer
    }

    /// Reads, with the guarantee that the request asks for.
    pub(crate) async fn range(
        &self,
        request: &RangeRequest,
    ) -> Result<RangeResponse, RequestError> {
        if !request.serializable {
            self.reads.wait(self.request_timeout).await?;
        }
        self.state.range(request).await
    }

    /// A transaction that only reads, with the guarantee that its ranges ask for.
    pub(crate) async fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, RequestError> {
        if !is_serializable(request) {
            self.reads.wait(self.request_timeout).await?;
        }
        self.state.txn(request).await
    }

    /// Returns once a quorum has confirmed that this member's state is current.
    pub(crate) async fn linearize(&self) -> Result<(), RequestError> {
        self.reads.wait(self.request_timeout).await
    }

    /// The term that has a leader, and the leader.
    pub(crate) async fn wait_for_leader(&self) -> (u64, u64) {
        let mut leadership = self.leadership.clone();
        loop {
            let now = *leadership.borrow_and_update();
            if let Some(leader) = now.leader {
                return (now.term, leader);
            }
            if leadership.changed().await.is_err() {
                // The member is ending; so will whoever waits here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether this member leads, as far as it knows.
    pub(crate) fn is_leader(&self) -> bool {
        self.leadership.borrow().leader == Some(self.id)
    }

    /// The members as of the newest membership in this member's log.
    pub(crate) fn membership(&self) -> Arc<StoredMembership> {
        Arc::clone(&self.raft.server_metrics().borrow_watched().membership_config)
    }

    /// Whether this member is a learner, as far as its log knows.
    pub(crate) fn is_learner(&self) -> bool {
        self.membership().get_node(&self.id).is_some_and(|node| node.learner)
    }

    /// A client of another member, or `None` when no such member is known.
    pub(crate) fn peer(&self, id: u64) -> Option<Peer> {
        let membership = self.membership();
        let node = membership.get_node(&id)?;
        let mut peers = self.peers.lock();
        match peers.get(&id) {
            Some((known, peer)) if known == node => Some(peer.clone()),
            _ => {
                let peer = self.network.peer(id, node)?;
                peers.insert(id, (node.clone(), peer.clone()));
                Some(peer)
            }
        }
    }

    /// A log index that a quorum has just confirmed to be no older than the newest acknowledged
    /// write; `None` when it could not be confirmed this time.
    pub(crate) async fn confirmed_index(&self) -> Option<u64> {
        let (_, leader) =
            tokio::time::timeout(READ_ROUND_TIMEOUT, self.wait_for_leader()).await.ok()?;
        let mut leadership = self.leadership.clone();
        let round = async {
            if leader == self.id {
                return self.confirm_as_leader().await;
            }
            let response = self.peer(leader)?.read_index(peer::ReadIndexRequest {}).await.ok()?;
            Some(response.get_ref().index)
        };
        tokio::select! {
            index = tokio::time::timeout(READ_ROUND_TIMEOUT, round) => index.ok().flatten(),
            // A leader that hangs is not waited for once there is another.
            _ = leadership.wait_for(|now| now.leader != Some(leader)) => None,
        }
    }

    /// As [`Self::confirmed_index`], if this member leads.
    pub(crate) async fn confirm_as_leader(&self) -> Option<u64> {
        let (read, _) = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await.ok()?;
        Some(read.log_id().index())
    }

    /// Waits until the entry at `index` is applied here; false when that takes too long. The index may
    /// be one that a leader gave that died, and whose entry no later leader has.
    pub(crate) async fn wait_for_applied(&self, index: u64) -> bool {
        let mut applied = self.applied_index.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        tokio::time::timeout(READ_ROUND_TIMEOUT, reached).await.is_ok_and(|reached| reached.is_ok())
    }
}
