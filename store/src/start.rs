//! Starts a member and owns its tasks.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
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
use crate::config::{ClusterState, Config, ConfigError, Settings};
use crate::identity::{Identity, IdentityError};
use crate::leadership::{self, Contact, Leadership};
use crate::member::{Member, Raft};
use crate::members::join::{self, JoinError};
use crate::members::{keeper, removal};
use crate::metrics::{self, Metrics};
use crate::proposals::{ProposalLimits, Proposals};
use crate::raft::log_store::LogStore;
use crate::raft::network::Network;
use crate::raft::peer_service::ANOTHER_CLUSTER;
use crate::raft::state_machine::{Applier, StateMachine};
use crate::raft::types::MemberNode;
use crate::read_index::ReadIndex;
use crate::reads::Reads;
use crate::rpc;
use crate::space::{DiskFull, Space};
use crate::storage::{SNAPSHOT_DIR, Storage, StorageError};
use crate::watch::WatchHub;
use crate::{auto_compaction, housekeeping, leases, proposer, read_index, space};

/// Entries that stay in the log behind a snapshot, for followers that are a little behind.
const LOG_ENTRIES_KEPT: u64 = 256;
/// How many entries a follower may be behind before it is sent a snapshot although the log still
/// has them: never, as the log is the cheaper way.
const REPLICATION_LAG: u64 = u64::MAX / 2;
const ENTRIES_PER_MESSAGE: u64 = 1024;
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
    /// The log or the state on disk is lost, but the other members have it.
    #[error("{instead}")]
    Lost {
        /// Why.
        #[source]
        source: StorageError,
        /// What can be done.
        instead: Replacement,
    },
    /// There is no cluster that it could join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The log is gone, but the cluster remembers this member's votes.
    #[error(
        "member {:x} has taken part in this cluster before, but {} holds no log: with an \
         empty log it would break promises that its old one kept; bring its data back, or {instead}",
        instead.id,
        path.display()
    )]
    Forgotten {
        /// Its data directory.
        path: PathBuf,
        /// What can be done.
        instead: Replacement,
    },
    /// The addresses of the others are those of members of another cluster.
    #[error(
        "{url} belongs to another cluster than the one that the flags describe: check \
         --initial-cluster and --initial-cluster-token; to bring a member back whose data are gone, \
         {instead}"
    )]
    AnotherCluster {
        /// Where a member of the other cluster answers.
        url: String,
        /// What can be done.
        instead: Replacement,
    },
    /// This member is none any more.
    #[error(
        "{}: nothing in {} is needed any more; to have it back, add it as a new member \
         (`etcdctl member add`), with an empty --data-dir",
        removal::REMOVED,
        path.display()
    )]
    Removed {
        /// Its data directory.
        path: PathBuf,
    },
    /// What is to be measured cannot be: a mistake in the program.
    #[error("the metrics cannot be set up")]
    Metrics(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Consensus could not start, or came to an end by itself.
    #[error("consensus failed: {0}")]
    Raft(String),
    /// A part of the member ended by itself, which none may.
    #[error("the member's {0} ended unexpectedly")]
    TaskEnded(&'static str),
}

/// How a member whose data is lost is replaced, in commands to paste.
#[derive(Clone, Debug)]
pub struct Replacement {
    id: u64,
    name: String,
    peer_urls: Vec<String>,
}

impl std::fmt::Display for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, name, peer_urls } = self;
        let urls = peer_urls.join(",");
        write!(
            f,
            "replace it by a new one: ask a member that runs to `etcdctl member remove {id:x}` and \
             `etcdctl member add {name} --peer-urls={urls}`, then start it with an empty --data-dir, \
             --initial-cluster-state existing, and the --initial-cluster that was printed"
        )
    }
}

/// A member that runs.
pub struct Running {
    /// Where it listens for clients.
    pub client_addr: SocketAddr,
    /// Where it listens for other members.
    pub peer_addr: SocketAddr,
    member: Arc<Member>,
    log: LogStore,
    data_dir: PathBuf,
    stop: CancellationToken,
    /// Cancelled when no client waits for an answer any more.
    halt: CancellationToken,
    tasks: JoinSet<&'static str>,
    reason: Reason,
}

/// The task that serves clients: it ends once they have their answers, or have had their time.
const CLIENT_PORT: &str = "client port";

/// Why a task ended that may not, if it could tell.
type Reason = Arc<Mutex<Option<Error>>>;

impl Running {
    /// Waits until a part of the member ends by itself: then the process has to.
    pub async fn join(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(_)) if self.member.removed.is_cancelled() => {
                Error::Removed { path: self.data_dir.clone() }
            }
            Some(Ok(name)) => self.reason.lock().take().unwrap_or(Error::TaskEnded(name)),
            Some(Err(panic)) => Error::Raft(panic.to_string()),
            None => Error::TaskEnded("last task"),
        }
    }

    /// Hands leadership over, lets requests finish within a deadline, stops taking part, and brings the
    /// state to disk.
    pub async fn shutdown(mut self) {
        self.member.resign().await;
        self.stop.cancel();
        let served = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(CLIENT_PORT) => {
                        // Up to here writes and reads under way needed all the rest for their answers.
                        self.member.tasks.close();
                        self.member.tasks.wait().await;
                        self.halt.cancel();
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "a task of the store ended badly"),
                }
            }
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
    let mut metrics_listeners = Vec::new();
    for addr in &settings.listen_metrics {
        metrics_listeners.push(listen("listen-metrics-urls", *addr).await?);
    }
    let client_addr = local_addr("listen-client-urls", settings.listen_client, &client_listener)?;
    let peer_addr = local_addr("listen-peer-urls", settings.listen_peer, &peer_listener)?;

    std::fs::create_dir_all(&config.data_dir)
        .map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
    space::check_disk(&config.data_dir, &settings.space)?;
    let settings = identify(&config, settings).await?;
    let metrics = Arc::new(Metrics::new().map_err(|error| Error::Metrics(error.into()))?);
    let storage = open_storage(&config, &settings, &metrics).await?;
    let log = storage.log.clone();

    let (leadership_sender, leadership) = watch::channel(Leadership::default());
    let (cut_off_sender, cut_off) = watch::channel(false);
    let (member, pristine) =
        assemble(&config, &settings, storage, leadership, cut_off, metrics).await?;
    if pristine {
        refuse_to_forget(&member, &config, &settings).await?;
        if config.initial_cluster_state == ClusterState::New {
            initialize(&member.raft, &settings).await?;
        }
    }

    let (stop, member_stop) = (member.stop.clone(), member.stop.clone());
    let halt = CancellationToken::new();
    let mut tasks = Tasks { set: JoinSet::new(), stop: halt.clone(), reason: Reason::default() };
    let raft = member.raft.clone();
    tasks.run("consensus", leadership::follow(raft, Arc::new(leadership_sender)));
    tasks.run("addresses", member.network.clone().follow_addresses(member.raft.clone()));
    tasks.run("contact", leadership::watch_contact(Arc::clone(&member), cut_off_sender));
    tasks.run("membership", removal::notice(Arc::clone(&member)));
    tasks.run("keeper of the members", keeper::run(Arc::clone(&member)));
    tasks.run("newcomers", keeper::forgive_newcomers(Arc::clone(&member)));
    tasks.run("proposer", proposer::run(Arc::clone(&member)));
    tasks.run("read index", read_index::run(Arc::clone(&member)));
    tasks.run("lease clock", leases::follow_leadership(Arc::clone(&member)));
    tasks.run("lease expiry", leases::revoke_expired(Arc::clone(&member)));
    let write_behind =
        housekeeping::write_behind(member.mvcc.clone(), log.clone(), Arc::clone(&member.metrics));
    tasks.run_until("write-behind", write_behind);
    let leader_changes =
        metrics::leader_changes(Arc::clone(&member.metrics), member.leadership.clone());
    tasks.run("leader changes", leader_changes);
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
        removed: false,
    };
    tasks.run("self-introduction", publish(Arc::clone(&member), attributes));
    let peers = TowerToHyperService::new(rpc::for_peers(&member));
    let serving = rpc::serve::serve(peer_listener, peers, None, halt.clone());
    tasks.set.spawn(served("peer port", serving));
    let clients = rpc::for_clients(&member).map_err(|error| Error::Metrics(error.into()))?;
    let max_streams = config.max_concurrent_streams;
    let serving = rpc::serve::serve(client_listener, clients, max_streams, stop.clone());
    let known = knows_members(Arc::clone(&member));
    // From here on every client is told who the members are. One that joins hears it from the leader.
    tasks.set.spawn(served(CLIENT_PORT, async move {
        tokio::select! {
            () = known => serving.await,
            () = member_stop.cancelled() => {}
        }
    }));
    for listener in metrics_listeners {
        let monitoring = TowerToHyperService::new(rpc::for_monitoring(&member));
        let serving = rpc::serve::serve(listener, monitoring, None, stop.clone());
        tasks.set.spawn(served("metrics port", serving));
    }

    tracing::info!(
        name = config.name,
        member = format!("{:x}", settings.member_id),
        cluster = format!("{:x}", settings.cluster_id),
        clients = %client_addr,
        peers = %peer_addr,
        revision = member.mvcc.current_revision(),
        "store member started"
    );
    let (data_dir, reason, tasks) = (config.data_dir, tasks.reason, tasks.set);
    Ok(Running { client_addr, peer_addr, member, log, data_dir, stop, halt, tasks, reason })
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
    cut_off: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
) -> Result<(Arc<Member>, bool), Error> {
    let Storage { log, mvcc, snapshots, state_dir } = storage.clone();
    let (applied, _) = mvcc.applied();
    let (applied_sender, applied_index) =
        watch::channel(applied.as_ref().map_or(0, |log_id| log_id.index()));
    let hub = WatchHub::new(mvcc.current_revision(), settings.watch_limits.clone());
    let limits = ProposalLimits { count: config.max_proposals, bytes: config.max_proposals_bytes };
    let proposals = Arc::new(Proposals::new(rand::random(), limits));
    let leases = Arc::default();
    let applier = Applier {
        storage,
        metrics: Arc::clone(&metrics),
        hub: Arc::clone(&hub),
        proposals: Arc::clone(&proposals),
        leases: Arc::clone(&leases),
        applied_index: applied_sender,
        applied_term: Mutex::new(applied.map_or(0, |log_id| **log_id.committed_leader_id())),
    };
    let removed = CancellationToken::new();
    let network = Network::new(
        settings.cluster_id,
        settings.member_id,
        removed.clone(),
        Arc::clone(&metrics),
    );
    let raft = Raft::new(
        settings.member_id,
        raft_config(config)?,
        network.clone(),
        log.clone(),
        StateMachine::new(Arc::new(applier)),
    )
    .await
    .map_err(|fatal| Error::Raft(fatal.to_string()))?;
    let pristine = !raft.is_initialized().await.map_err(|fatal| Error::Raft(fatal.to_string()))?;
    let member = Member {
        id: settings.member_id,
        cluster_id: settings.cluster_id,
        request_timeout: config.request_timeout(),
        election_timeout: config.election_timeout(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        max_request_bytes: config.max_request_bytes,
        max_txn_ops: config.max_txn_ops,
        metrics,
        log,
        raft,
        state: Reads::new(mvcc.clone()),
        mvcc,
        hub,
        proposals,
        reads: ReadIndex::default(),
        leases,
        leadership,
        contact: Contact::default(),
        cut_off,
        member_changes: Semaphore::new(1),
        removed,
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

/// Who this member is: what its directory says; what the flags say of a new cluster; or what the
/// cluster says that it joins.
async fn identify(config: &Config, settings: Settings) -> Result<Settings, Error> {
    let known = Identity::read(&config.data_dir)?;
    let joins = config.initial_cluster_state == ClusterState::Existing;
    let (cluster_id, member_id) = match known.as_ref().and_then(Identity::ids) {
        Some(ids) if joins => ids,
        _ if joins => {
            let admitted = join::ask(&settings.initial_members, &config.name).await?;
            tracing::info!(
                member = format_args!("{:x}", admitted.member_id),
                cluster = format_args!("{:x}", admitted.cluster_id),
                "joining a cluster"
            );
            (admitted.cluster_id, admitted.member_id)
        }
        _ => {
            let cluster_id = Identity::cluster_id_in(&config.data_dir, settings.cluster_id)?;
            (cluster_id, settings.member_id)
        }
    };
    let identity = Identity::new(cluster_id, member_id, &config.name);
    if let Some(found) = known.filter(|known| joins && !known.may_be_called(&config.name)) {
        return Err(identity.is_not(found, config.data_dir.clone()).into());
    }
    identity.claim(&config.data_dir)?;
    Ok(Settings { cluster_id, member_id, ..settings })
}

/// Opens what is on disk. What is lost for good is said together with what can be done, if there are
/// others that have it.
async fn open_storage(
    config: &Config,
    settings: &Settings,
    metrics: &Metrics,
) -> Result<Storage, Error> {
    let is_alone = settings.initial_members.len() < 2;
    Storage::open(&config.data_dir, metrics).await.map_err(|source| {
        if source.is_loss() && !is_alone {
            Error::Lost { instead: replacement(config, settings), source }
        } else {
            Error::Storage(source)
        }
    })
}

fn replacement(config: &Config, settings: &Settings) -> Replacement {
    let own = settings.initial_members.iter().find(|member| member.name == config.name);
    Replacement {
        id: settings.member_id,
        name: config.name.clone(),
        peer_urls: own.map(|own| own.peer_urls.clone()).unwrap_or_default(),
    }
}

/// Waits until this member is one of those that its log tells of.
async fn knows_members(member: Arc<Member>) {
    let mut metrics = member.raft.server_metrics();
    while member.membership().get_node(&member.id).is_none() {
        if metrics.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A member whose log was lost must not vote as if it had never had one (the Raft paper's
/// persistent state, §5.2): if any of the others remembers it, it does not start. etcd refuses in
/// the same case. Whoever joins a cluster begins without a vote.
async fn refuse_to_forget(
    member: &Member,
    config: &Config,
    settings: &Settings,
) -> Result<(), Error> {
    let joins = config.initial_cluster_state == ClusterState::Existing;
    let mut asked = JoinSet::new();
    for other in settings.initial_members.iter().filter(|other| other.name != config.name) {
        let node = MemberNode { peer_urls: other.peer_urls.clone(), ..MemberNode::default() };
        let Some(mut peer) = member.network.peer(other.id, &node) else { continue };
        let request = IsKnownRequest { member_id: member.id };
        let url = other.peer_urls.join(",");
        asked.spawn(
            async move { (url, tokio::time::timeout(ASK_PEER, peer.is_known(request)).await) },
        );
    }
    while let Some(answer) = asked.join_next().await {
        // Whoever cannot be reached does not know; at a first start nobody can.
        let Ok((url, Ok(answer))) = answer else { continue };
        let instead = replacement(config, settings);
        let remembered = match answer {
            Ok(response) => response.get_ref().known || (joins && response.get_ref().votes),
            Err(status) if status.message() == ANOTHER_CLUSTER => {
                return Err(Error::AnotherCluster { url, instead });
            }
            Err(status) => removal::is_refusal(&status),
        };
        if remembered {
            return Err(Error::Forgotten { path: config.data_dir.clone(), instead });
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
                learner: false,
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
