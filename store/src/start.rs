//! Starts a member and owns its tasks.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use parking_lot::Mutex;
use store_proto::peer::command::Op;
use store_proto::peer::{IsKnownRequest, MemberAttributes};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backup::BACKUPS_AT_ONCE;
use crate::config::{Config, ConfigError, Settings};
use crate::identity::{Identity, IdentityError};
use crate::leadership::{self, Leadership};
use crate::member::{Member, Raft};
use crate::proposals::Proposals;
use crate::raft::log_store::LogStore;
use crate::raft::network::Network;
use crate::raft::state_machine::{Applier, StateMachine};
use crate::raft::types::{MemberNode, TypeConfig};
use crate::read_index::ReadIndex;
use crate::reads::Reads;
use crate::rpc;
use crate::space::{DiskFull, Space};
use crate::storage::{SNAPSHOT_DIR, Storage, StorageError};
use crate::watch::{WatchHub, WatchLimits};
use crate::{auto_compaction, housekeeping, leases, proposer, read_index, space};

/// Entries that stay in the log behind a snapshot, for followers that are a little behind.
const LOG_ENTRIES_KEPT: u64 = 256;
/// How many entries a follower may be behind before it is sent a snapshot although the log still
/// has them: never, as the log is the cheaper way.
const REPLICATION_LAG: u64 = u64::MAX / 2;
const ENTRIES_PER_MESSAGE: u64 = 1024;
/// For openraft to tell of the membership that it was started with.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(10);
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(1);
const LISTEN_PAUSE: Duration = Duration::from_millis(50);
const PUBLISH_PAUSE: Duration = Duration::from_millis(200);
/// For the question to a peer whether it knows this member.
const ASK_PEER: Duration = Duration::from_secs(1);

/// Why a member does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory is somebody else's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: choose another address with --{flag}")]
    Listen {
        /// The flag that names the address.
        flag: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error("the data directory {} cannot be used", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log or the state on disk cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The disk has too little room to start, or to go on.
    #[error(transparent)]
    DiskFull(#[from] DiskFull),
    /// What a member has to keep cannot be kept any more.
    #[error("{what} cannot be written{hint}")]
    Write {
        /// The log, or the state.
        what: &'static str,
        /// What to do, after a colon; empty when nobody knows.
        hint: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The log is gone, but the cluster remembers this member's votes.
    #[error(
        "member {member:x} has taken part in this cluster before, but {} holds no log: with an \
         empty log it would break promises that its old one kept; bring its data back",
        path.display()
    )]
    Forgotten {
        /// The member's id.
        member: u64,
        /// Its data directory.
        path: PathBuf,
    },
    /// Consensus could not start, or came to an end by itself.
    #[error("consensus failed: {0}")]
    Raft(String),
    /// A part of the member ended by itself, which none may.
    #[error("the member's {0} ended unexpectedly")]
    TaskEnded(&'static str),
}

/// A member that runs.
pub struct Running {
    /// Where it listens for clients.
    pub client_addr: SocketAddr,
    /// Where it listens for other members.
    pub peer_addr: SocketAddr,
    member: Arc<Member>,
    log: LogStore,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
    reason: Reason,
}

/// Why a task ended that may not, if it could tell.
type Reason = Arc<Mutex<Option<Error>>>;

impl Running {
    /// Waits until a part of the member ends by itself: then the process has to.
    pub async fn join(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(name)) => self.reason.lock().take().unwrap_or(Error::TaskEnded(name)),
            Some(Err(panic)) => Error::Raft(panic.to_string()),
            None => Error::TaskEnded("last task"),
        }
    }

    /// Lets requests finish within a deadline, stops taking part, and brings the state to disk.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let served = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::warn!(%error, "a task of the store ended badly");
                }
            }
            self.member.tasks.close();
            self.member.tasks.wait().await;
        };
        if tokio::time::timeout(Duration::from_secs(5), served).await.is_err() {
            tracing::warn!("some tasks of the store did not end in time");
        }
        if let Err(error) = self.member.raft.shutdown().await {
            tracing::warn!(%error, "consensus ended badly");
        }
        let checkpoint = housekeeping::checkpoint(&self.member.mvcc, &self.log);
        if tokio::time::timeout(Duration::from_secs(5), checkpoint).await.is_err() {
            tracing::warn!("the state could not be brought to disk in time; the log has it");
        }
        if let Err(error) = self.log.close().await {
            tracing::warn!(%error, "the log was not closed in order");
        }
    }
}

/// Starts a member: its sockets are bound and its data is read when this returns. It may take a
/// moment more until it has found its leader.
pub async fn start(config: Config) -> Result<Running, Error> {
    let settings = config.check()?;
    let client_listener = listen("listen-client-urls", settings.listen_client).await?;
    let peer_listener = listen("listen-peer-urls", settings.listen_peer).await?;
    let client_addr = local_addr("listen-client-urls", settings.listen_client, &client_listener)?;
    let peer_addr = local_addr("listen-peer-urls", settings.listen_peer, &peer_listener)?;

    std::fs::create_dir_all(&config.data_dir)
        .map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
    space::check_disk(&config.data_dir, &settings.space)?;
    let cluster_id = Identity::cluster_id_in(&config.data_dir, settings.cluster_id)?;
    let settings = Settings { cluster_id, ..settings };
    Identity::new(settings.cluster_id, settings.member_id).claim(&config.data_dir)?;
    let storage = Storage::open(&config.data_dir).await?;
    let log = storage.log.clone();

    let (leadership_sender, leadership) = watch::channel(Leadership::default());
    let (member, pristine) = assemble(&config, &settings, storage, leadership).await?;
    if pristine {
        refuse_to_forget(&member, &settings, &config.data_dir).await?;
        initialize(&member.raft, &settings).await?;
    }
    // From here on everybody who asks is told who the members are.
    let is_known = |metrics: &openraft::RaftMetrics<TypeConfig>| {
        metrics.membership_config.nodes().next().is_some()
    };
    let known = member.raft.wait(Some(MEMBERSHIP_TIMEOUT)).metrics(is_known, "membership").await;
    known.map_err(|error| Error::Raft(error.to_string()))?;

    let stop = member.stop.clone();
    let mut tasks = Tasks { set: JoinSet::new(), stop: stop.clone(), reason: Reason::default() };
    let raft = member.raft.clone();
    tasks.run("consensus", leadership::follow(raft, Arc::new(leadership_sender)));
    tasks.run("proposer", proposer::run(Arc::clone(&member)));
    tasks.run("read index", read_index::run(Arc::clone(&member)));
    tasks.run("lease clock", leases::follow_leadership(Arc::clone(&member)));
    tasks.run("lease expiry", leases::revoke_expired(Arc::clone(&member)));
    tasks.run_until("write-behind", housekeeping::write_behind(member.mvcc.clone(), log.clone()));
    tasks.run_until("compaction", housekeeping::compact(member.mvcc.clone()));
    let snapshots =
        housekeeping::snapshots(Arc::clone(&member), log.clone(), config.snapshot_log_bytes);
    tasks.run("snapshots", snapshots);
    tasks.run_until("log", housekeeping::log_failure(log.clone()));
    tasks.run("state", housekeeping::state_failure(member.state.clone()));
    let disk = space::watch_over(Arc::clone(&member));
    tasks.run_until("disk", async { disk.await.into() });
    if let Some(retention) = settings.auto_compaction {
        tasks.run("auto-compaction", auto_compaction::run(Arc::clone(&member), retention));
    }
    let attributes = MemberAttributes {
        member_id: settings.member_id,
        name: config.name.clone(),
        client_urls: config.client_urls(client_addr),
    };
    tasks.run("self-introduction", publish(Arc::clone(&member), attributes));
    let peer_router = rpc::peer_router(&member);
    tasks
        .set
        .spawn(served("peer port", rpc::serve::serve(peer_listener, peer_router, stop.clone())));
    let router = rpc::client_router(&member);
    tasks
        .set
        .spawn(served("client port", rpc::serve::serve(client_listener, router, stop.clone())));

    tracing::info!(
        name = config.name,
        member = format!("{:x}", settings.member_id),
        cluster = format!("{:x}", settings.cluster_id),
        clients = %client_addr,
        peers = %peer_addr,
        revision = member.mvcc.current_revision(),
        "store member started"
    );
    Ok(Running {
        client_addr,
        peer_addr,
        member,
        log,
        stop,
        tasks: tasks.set,
        reason: tasks.reason,
    })
}

struct Tasks {
    set: JoinSet<&'static str>,
    stop: CancellationToken,
    reason: Reason,
}

impl Tasks {
    /// Runs `work` until the member is asked to stop; if it ends before, [`Running::join`] tells.
    fn run(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.set.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
            name
        });
    }

    /// The same for work that can tell why it ended.
    fn run_until(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Error> + Send + 'static,
    ) {
        let reason = Arc::clone(&self.reason);
        self.run(name, async move {
            let error = work.await;
            reason.lock().get_or_insert(error);
        });
    }
}

impl Error {
    /// For a file of `what` that cannot be written any more.
    pub(crate) fn write(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let hint = if is_disk_full(&*source) {
            ": its disk is full; make room there, then start this member again"
        } else {
            ""
        };
        Self::Write { what, hint, source }
    }
}

/// Whether a full disk, or a full quota of its user, is at the bottom of an error.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_full = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            // One that only carries another does not show it among its sources.
            match error.get_ref() {
                Some(inner) if is_disk_full(inner) => return true,
                _ if is_full(error) => return true,
                _ => {}
            }
        }
        next = error.source();
    }
    false
}

async fn served(name: &'static str, serving: impl Future<Output = ()>) -> &'static str {
    serving.await;
    name
}

/// An address that is taken is tried again for a moment: a member that was just killed and started
/// again meets its own predecessor, which the system has not quite cleared away.
async fn listen(flag: &'static str, addr: SocketAddr) -> Result<TcpListener, Error> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    loop {
        match TcpListener::bind(addr).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
            bound => return bound.map_err(|source| Error::Listen { flag, addr, source }),
        }
    }
}

fn local_addr(
    flag: &'static str,
    addr: SocketAddr,
    listener: &TcpListener,
) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|source| Error::Listen { flag, addr, source })
}

/// Puts a member together; true when it has never been part of a cluster.
async fn assemble(
    config: &Config,
    settings: &Settings,
    storage: Storage,
    leadership: watch::Receiver<Leadership>,
) -> Result<(Arc<Member>, bool), Error> {
    let Storage { log, mvcc, snapshots, state_dir } = storage.clone();
    let (applied, _) = mvcc.applied();
    let (applied_sender, applied_index) =
        watch::channel(applied.as_ref().map_or(0, |log_id| log_id.index()));
    let hub = WatchHub::new(mvcc.current_revision(), WatchLimits::default());
    let proposals = Arc::new(Proposals::new(rand::random(), config.max_proposals));
    let leases = Arc::default();
    let applier = Applier {
        storage,
        hub: Arc::clone(&hub),
        proposals: Arc::clone(&proposals),
        leases: Arc::clone(&leases),
        applied_index: applied_sender,
        applied_term: Mutex::new(applied.map_or(0, |log_id| **log_id.committed_leader_id())),
    };
    let network = Network::new(settings.cluster_id);
    let raft = Raft::new(
        settings.member_id,
        raft_config(config)?,
        network.clone(),
        log,
        StateMachine::new(Arc::new(applier)),
    )
    .await
    .map_err(|fatal| Error::Raft(fatal.to_string()))?;
    let pristine = !raft.is_initialized().await.map_err(|fatal| Error::Raft(fatal.to_string()))?;
    let member = Member {
        id: settings.member_id,
        cluster_id: settings.cluster_id,
        request_timeout: config.request_timeout(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        max_request_bytes: config.max_request_bytes,
        raft,
        state: Reads::new(mvcc.clone()),
        mvcc,
        hub,
        proposals,
        reads: ReadIndex::default(),
        leases,
        leadership,
        applied_index,
        snapshots,
        snapshot_dir: config.data_dir.join(SNAPSHOT_DIR),
        backups: Arc::new(Semaphore::new(BACKUPS_AT_ONCE)),
        network,
        space: Arc::new(Space::new(settings.space, config.data_dir.clone())),
        state_dir,
        defragmenting: Arc::default(),
        peers: Mutex::new(HashMap::new()),
    };
    Ok((Arc::new(member), pristine))
}

/// A follower gives its leader up after the lease (`election_timeout_max`) and a random time
/// between the two bounds on top: with these, within three quarters and the whole of
/// `--election-timeout`.
fn raft_config(config: &Config) -> Result<Arc<openraft::Config>, Error> {
    let half = config.election_timeout / 2;
    let raft_config = openraft::Config {
        cluster_name: config.initial_cluster_token.clone(),
        heartbeat_interval: config.heartbeat_interval,
        election_timeout_min: config.election_timeout / 4,
        election_timeout_max: half,
        // A leader without a quorum falls silent for a while, so that the others can elect one.
        quorum_loss_probe_interval: Some(2 * half),
        enable_pre_vote: Some(true),
        // A restarted leader would go on in its old term, while writes that were sent to it before
        // are known to be lost only once a new term begins.
        enable_leader_restore: Some(false),
        max_payload_entries: ENTRIES_PER_MESSAGE,
        // Snapshots are taken by the bytes of the log, not by its entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: LOG_ENTRIES_KEPT,
        replication_lag_threshold: REPLICATION_LAG,
        ..openraft::Config::default()
    };
    let raft_config = raft_config.validate().map_err(|error| Error::Raft(error.to_string()))?;
    Ok(Arc::new(raft_config))
}

/// A member whose log was lost must not vote as if it had never had one (the Raft paper's
/// persistent state, §5.2): if any of the others remembers it, it does not start. etcd refuses in
/// the same case.
async fn refuse_to_forget(
    member: &Member,
    settings: &Settings,
    data_dir: &Path,
) -> Result<(), Error> {
    let mut asked = JoinSet::new();
    for other in settings.initial_members.iter().filter(|other| other.id != member.id) {
        let node = MemberNode { peer_urls: other.peer_urls.clone(), ..MemberNode::default() };
        let Some(mut peer) = member.network.peer(other.id, &node) else { continue };
        let request = IsKnownRequest { member_id: member.id };
        asked.spawn(async move { tokio::time::timeout(ASK_PEER, peer.is_known(request)).await });
    }
    while let Some(answer) = asked.join_next().await {
        // Whoever cannot be reached does not know; at a first start nobody can.
        if let Ok(Ok(Ok(response))) = answer
            && response.get_ref().known
        {
            return Err(Error::Forgotten { member: member.id, path: data_dir.to_owned() });
        }
    }
    Ok(())
}

/// The first start of a cluster: every member begins with the same first entry.
async fn initialize(raft: &Raft, settings: &Settings) -> Result<(), Error> {
    let nodes: BTreeMap<u64, MemberNode> = settings
        .initial_members
        .iter()
        .map(|member| {
            let node = MemberNode {
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                client_urls: Vec::new(),
            };
            (member.id, node)
        })
        .collect();
    raft.initialize(nodes).await.map_err(|error| Error::Raft(error.to_string()))
}

/// Tells the cluster this member's name and addresses, once it can.
async fn publish(member: Arc<Member>, attributes: MemberAttributes) {
    let known = || member.mvcc.members().get(&attributes.member_id) == Some(&attributes);
    while !known() {
        if let Err(error) = member.propose(Op::Publish(attributes.clone())).await {
            tracing::debug!(%error, "this member could not introduce itself yet");
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }
    std::future::pending::<()>().await;
}
