//! The node agent: runs the pods that are bound to its node, and tells how they are.
//!
//! It follows the pods under its node's prefix of the store and the containers that carry its
//! node's label, and reconciles the two, one pod at a time:
//!
//! ```text
//! store ── informer ──┐                       ┌── create, start, stop, remove ──> engine
//!                     ├─> queue ─> plan() ────┤
//! engine ─ events ────┤  of pods    (pure)    └── status, compare-and-swap ─────> store
//!          and scans ─┘
//! ```
//!
//! - [`plan`] decides, from what is wanted and what is seen, and knows nothing else.
//! - `pods` carries out; `engine` listens to the engine; `images` fetches images; `hooks` runs preStop hooks;
//!   `node` registers the node and sends its heartbeat; `probe` asks containers how they are; `server`
//!   serves logs and runs commands.
//! - [`runtime`] is the container engine: Docker, or one that only exists in memory.
//!
//! What survives what: a container outlives its kubelet and the store. Its labels tell a new
//! kubelet whose it is and how often it was started, so that it is taken over and never started
//! twice. While the store is away, containers run on and are even restarted; what there is to tell
//! is told afterwards. A container without a pod is removed, but only once the store's list of
//! pods is known, and only if it was made for the same cluster.

mod backoff;
mod engine;
mod error;
mod hollow;
mod hooks;
mod images;
mod node;
mod plan;
mod pods;
mod probe;
mod record;
pub mod runtime;
mod server;
mod spec;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use api::{Client, ClientConfig, Clock, Endpoints, EventRecorder, Store};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use error::Error;

use runtime::Runtime;
use runtime::docker::DockerRuntime;
use runtime::fake::{FakeOptions, FakeRuntime};
use server::{Access, Nodes, Server};

/// The size of the machine that the fake engine pretends to be.
const FAKE_CPUS: u32 = 8;
const FAKE_MEMORY_BYTES: u64 = 32 << 30;

/// How long a kubelet that is asked to stop waits for the engine calls that are under way.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Where a kubelet finds the store, what its node is called and what runs its containers.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The store's members: http://HOST:PORT, several with commas between
    #[arg(long, value_name = "URLS", default_value = "http://127.0.0.1:2379")]
    pub store: Endpoints,
    /// The node's name
    #[arg(long, value_name = "NAME")]
    pub node_name: String,
    /// What runs the containers
    #[arg(long, value_enum, default_value_t = RuntimeKind::Docker)]
    pub runtime: RuntimeKind,
    /// Let pods have access to the node itself: hostPath volumes, hostNetwork, hostPID, hostIPC,
    /// privileged containers, added capabilities
    #[arg(long)]
    pub allow_host_access: bool,
    /// The node's address [default: the one this machine uses to go out]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Where to serve logs and commands of this node's pods to the API server; port 0: any that is
    /// free. The node's status tells where it is
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Serve them to other machines as well. Whoever reaches the port can then read every log and
    /// run commands in every pod of this node
    #[arg(long)]
    pub allow_remote_requests: bool,
    /// Be that many nodes at once, NAME-0001 and so on, each with a kubelet of its own in this
    /// process; for measuring the control plane, with --runtime fake only
    #[arg(long, value_name = "N")]
    pub hollow: Option<NonZeroU32>,
    /// What containers of the fake engine do
    #[command(flatten)]
    pub fake: FakeOptions,
}

/// The container engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeKind {
    /// The Docker Engine, the local one or where DOCKER_HOST says
    Docker,
    /// An engine in memory: its containers do nothing and end with the process
    Fake,
}

/// A kubelet at work. Dropping it stops it; containers run on.
pub struct Running {
    tasks: JoinSet<&'static str>,
    stop: CancellationToken,
}

/// Starts a kubelet with the container engine that the configuration names.
///
/// # Errors
/// [`Error::NoEngine`] when there is none; see [`start_with`] for others.
pub async fn start(config: Config) -> Result<Running, Error> {
    let runtime: Arc<dyn Runtime> = match config.runtime {
        RuntimeKind::Docker if config.fake.are_set() => return Err(Error::OnlyFake("--fake-…")),
        RuntimeKind::Docker if config.hollow.is_some() => return Err(Error::OnlyFake("--hollow")),
        RuntimeKind::Docker => Arc::new(DockerRuntime::connect().await.map_err(Error::NoEngine)?),
        RuntimeKind::Fake => {
            let engine = FakeRuntime::new(FAKE_CPUS, FAKE_MEMORY_BYTES);
            engine.script_all(config.fake.script());
            engine
        }
    };
    start_with(config, runtime).await
}

/// Starts a kubelet, or as many as the configuration says, with a container engine of the caller's,
/// whatever the configuration says.
///
/// The store need not answer yet: the kubelet waits for it.
///
/// # Errors
/// A node name that no object can have, an engine that does not answer, a store client that cannot
/// be made.
pub async fn start_with(config: Config, runtime: Arc<dyn Runtime>) -> Result<Running, Error> {
    let names = match config.hollow {
        Some(count) => hollow::names(&config.node_name, count),
        None => vec![config.node_name],
    };
    for name in &names {
        api::validation::dns_subdomain(name)
            .map_err(|reason| Error::NodeName { name: name.clone(), reason })?;
    }
    let engine = runtime.info().await.map_err(Error::NoEngine)?;
    let client = Client::new(ClientConfig::for_endpoints(config.store)).map_err(Error::Store)?;
    let store = Store::new(client, Clock::system());
    let nodes = Nodes::new(store.clock().clone());
    let access = Access { remote: config.allow_remote_requests };
    let server = Server::bind(config.listen, access, nodes.clone()).await?;
    let facts = node::NodeFacts {
        ip: config.node_ip.unwrap_or_else(node::own_address),
        serves_at: server.addr(),
        engine,
        engine_scheme: runtime.scheme(),
        machine: node::Machine::read(),
        name: String::new(),
    };
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (events, writer) = EventRecorder::new(&store, "kubelet", api::EVENT_TTL);
    let written = stop.clone();
    tasks.spawn(async {
        writer.run(written).await;
        "event writer"
    });
    let serving = server.run(stop.clone());
    tasks.spawn(async {
        serving.await;
        "server"
    });
    let allow_host_access = config.allow_host_access;
    let cluster = Arc::default();
    let shared = Shared { runtime, store, events, cluster, nodes, allow_host_access };
    match <[String; 1]>::try_from(names) {
        Ok([name]) => {
            shared.spawn(node::NodeFacts { name, ..facts }, &mut tasks, &stop);
        }
        Err(names) => {
            tasks.spawn(hollow::run(names, facts, shared, stop.clone()));
        }
    }
    Ok(Running { tasks, stop })
}

/// What the kubelets of one process have in common: mostly there is one.
#[derive(Clone)]
struct Shared {
    runtime: Arc<dyn Runtime>,
    store: Store,
    events: EventRecorder,
    /// Which cluster this is, once the store has told.
    cluster: Arc<OnceCell<String>>,
    /// What the one server for logs and commands serves.
    nodes: Nodes,
    allow_host_access: bool,
}

impl Shared {
    /// Starts the kubelet of one node.
    fn spawn(
        &self,
        facts: node::NodeFacts,
        tasks: &mut JoinSet<&'static str>,
        stop: &CancellationToken,
    ) {
        let span = tracing::info_span!("kubelet", node = %facts.name);
        tracing::info!(parent: &span, engine = %facts.engine.version, ip = %facts.ip, listen = %facts.serves_at, "starting");
        let agent = node::NodeAgent::new(facts.clone(), self.runtime.clone(), &self.store);
        let beating = agent.run(stop.clone());
        tasks.spawn(
            async {
                beating.await;
                "heartbeat"
            }
            .instrument(span.clone()),
        );
        let running = pods::run(facts, self.clone(), stop.clone());
        tasks.spawn(
            async {
                running.await;
                "pod workers"
            }
            .instrument(span),
        );
    }
}

impl Running {
    /// Stops the kubelet, once the steps that have begun are finished or a few seconds have passed.
    /// The containers run on.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::warn!("the kubelet stops with engine calls under way");
        }
        self.tasks.shutdown().await;
    }

    /// Waits until a part of the kubelet ends that never should, which is for as long as it runs.
    ///
    /// # Panics
    /// If a task of the kubelet panicked, so that the process ends as it should.
    pub async fn join(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(part)) => Error::TaskEnded(part),
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Error::TaskEnded("aborted task"),
            },
            None => Error::TaskEnded("last task"),
        }
    }
}
