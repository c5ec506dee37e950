//! What a kubelet asks of a container engine.
//!
//! A [`Runtime`] knows containers and images, never pods as the store keeps them: it is told what
//! to run by a [`ContainerSpec`] and tells what it sees as [`Container`]s. Every container carries
//! an [`Identity`] in its labels, and those labels are all that a restarted kubelet needs to find
//! its containers again and to go on counting where its predecessor stopped.
//!
//! Each method is one short exchange with the engine and has a deadline of its own. In particular
//! [`Runtime::stop`] only asks: waiting out the grace period is the caller's, so that a container
//! that ignores its signal occupies nobody.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use api::ObjectKey;
use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::time::Instant;

pub mod docker;
pub mod fake;
mod labels;
mod streams;

pub(crate) use streams::exit_code;
pub use streams::{
    Captured, ExecRequest, Execution, Input, LogEntry, LogRequest, Logs, Output, OutputStream,
    Process, RunOutcome, TerminalSize,
};

/// The name that a pod's sandbox has among its containers: no container can be called so, because
/// Kubernetes' names have no capitals.
pub const SANDBOX: &str = "POD";

/// Whose container this is and which of its lives; kept in the container's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, so that two clusters can share an engine and reuse node names.
    pub cluster: String,
    /// The node whose kubelet made it, so that two kubelets can share an engine.
    pub node: String,
    /// The pod it belongs to.
    pub pod: ObjectKey,
    /// That pod's uid: a pod that was deleted and created again is another pod.
    pub pod_uid: String,
    /// The container's name within the pod, or [`SANDBOX`].
    pub container: String,
    /// The id of the sandbox whose network it shares, if the pod has one.
    pub sandbox: Option<String>,
    /// How many containers of this name the pod had before: Kubernetes' `restartCount`.
    pub restart_count: u32,
    /// How many times in a row the container was started again without having run long enough to
    /// be forgiven; decides how long the next one waits.
    pub crash_streak: u32,
    /// The pod's grace period, for when the pod itself can no longer be asked.
    pub grace_seconds: u32,
}

impl Identity {
    /// Whether this is the container that holds a pod's network for the others.
    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        self.container == SANDBOX
    }
}

/// Everything needed to make a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name on the engine, unique there.
    pub name: String,
    /// Whose it is.
    pub identity: Identity,
    /// The image, as the pod names it.
    pub image: String,
    /// Replaces the image's entrypoint unless empty.
    pub command: Vec<String>,
    /// Replaces the image's command unless empty.
    pub args: Vec<String>,
    /// Environment, in order; a later entry of the same name wins.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// The network it is in.
    pub network: Network,
    /// What it may use of the machine.
    pub resources: Resources,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// Keeps standard input open.
    pub stdin: bool,
    /// Gives it a terminal.
    pub tty: bool,
    /// Whether it is meant to end by itself before others are started.
    pub init: bool,
    /// Annotations of the pod, for engines that read some.
    pub annotations: BTreeMap<String, String>,
}

/// The network a container is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// One of its own.
    Own {
        /// The host name inside.
        hostname: String,
        /// What is served, and on which ports of the node.
        ports: Vec<Port>,
        /// Further names of addresses: (name, address).
        hosts: Vec<(String, String)>,
    },
    /// That of the container with this id.
    Of(String),
    /// The node's.
    Host,
}

/// A port that a container serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port inside.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// The port of the node that leads there.
    pub host: Option<u16>,
    /// The only address of the node on which that port is open; empty for all.
    pub host_ip: String,
}

/// What a container may use of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// At most so many billionths of a processor.
    pub nano_cpus: Option<i64>,
    /// Its share of the processors while they are contended: 1024 for each it requested.
    pub cpu_shares: Option<i64>,
    /// At most so much memory.
    pub memory_bytes: Option<i64>,
}

/// Who a container runs as and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `uid` or `uid:gid`, instead of the image's user.
    pub user: Option<String>,
    /// Further groups.
    pub groups: Vec<String>,
    /// Nothing can be written outside its mounts.
    pub read_only_root: bool,
    /// Nothing is kept from it.
    pub privileged: bool,
    /// No program gives it more rights than it has.
    pub no_new_privileges: bool,
    /// Capabilities it gets besides the engine's usual ones.
    pub add_capabilities: Vec<String>,
    /// Capabilities it does not get.
    pub drop_capabilities: Vec<String>,
    /// It sees the node's processes.
    pub host_pid: bool,
    /// It sees the node's shared memory and semaphores.
    pub host_ipc: bool,
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// Whether it cannot be written there.
    pub read_only: bool,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A volume of this name on the engine.
    Volume(String),
    /// A path of the node.
    HostPath {
        /// The path.
        path: String,
        /// Whether it has to be there; a directory is made otherwise.
        must_exist: bool,
    },
}

/// A directory that lives as long as its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name on the engine, unique there.
    pub name: String,
    /// Whether it is kept in memory, and at most how many bytes of it (0: no limit).
    pub memory: Option<u64>,
}

/// Whose volume this is; kept in the volume's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedVolume {
    /// Its name on the engine.
    pub name: String,
    /// The cluster.
    pub cluster: String,
    /// The pod.
    pub pod: ObjectKey,
    /// That pod's uid.
    pub pod_uid: String,
}

/// A container as the engine shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// The engine-wide name.
    pub name: String,
    /// Whose it is.
    pub identity: Identity,
    /// The image's name as it was asked for.
    pub image: String,
    /// The image's digest or id.
    pub image_id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it does now.
    pub state: ContainerState,
    /// Its address, while it has one.
    pub ip: Option<String>,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, and not yet asked to start.
    Created,
    /// Running since then.
    Running {
        /// When it was started.
        started_at: Timestamp,
    },
    /// It ended, or could not be started.
    Exited(Exit),
    /// The engine is about to forget it; neither usable nor gone.
    Removing,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code of its process, 128 plus the signal's number if one ended it.
    pub code: i32,
    /// When it was started; nothing if it never ran.
    pub started_at: Option<Timestamp>,
    /// When it ended, or when the attempt at starting it failed.
    pub finished_at: Timestamp,
    /// `Completed`, `Error`, `OOMKilled` or `StartError`, as Kubernetes has them.
    pub reason: &'static str,
    /// What the engine had to say.
    pub message: Option<String>,
}

/// A line of [`Runtime::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The engine's id.
    pub id: String,
    /// Whose it is.
    pub identity: Identity,
    /// Whether it runs.
    pub running: bool,
}

/// What the engine says about itself and its machine.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// The engine's version.
    pub version: String,
    /// Processors.
    pub cpus: u32,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// `linux`.
    pub operating_system: String,
    /// The distribution's name.
    pub os_image: String,
    /// The kernel's release.
    pub kernel_version: String,
    /// Go's name of the architecture, as Kubernetes uses it: `amd64`, `arm64`.
    pub architecture: String,
    /// Where it keeps its data; nothing if it keeps none.
    pub data_dir: Option<PathBuf>,
}

/// Something happened to a container of this pod; look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The pod concerned.
    pub pod: ObjectKey,
}

/// Why the engine did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answered, or the connection broke: nothing is known of the outcome.
    #[error("the container engine cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time: nothing is known of the outcome.
    #[error("the container engine did not answer {call} within {deadline_s} s")]
    Deadline {
        /// What it was asked.
        call: &'static str,
        /// How long it was given.
        deadline_s: u64,
    },
    /// There is no such container or image.
    #[error("{0}")]
    NotFound(String),
    /// Not in its present state: the name is in use, or the container is busy going away.
    #[error("{0}")]
    Conflict(String),
    /// The engine refused; these are its words.
    #[error("{0}")]
    Refused(String),
}

impl RuntimeError {
    /// Whether the engine itself is the trouble, rather than what it was asked.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Deadline { .. })
    }
}

/// A container engine.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The scheme of its container ids in a pod's status: `docker` in `docker://d803aed8…`.
    fn scheme(&self) -> &'static str;

    /// A sign of life.
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// The engine's version and its machine's size.
    async fn info(&self) -> Result<EngineInfo, RuntimeError>;

    /// The containers labelled with that node, of one pod or of all.
    async fn list(&self, node: &str, pod: Option<&ObjectKey>) -> Result<Vec<Listed>, RuntimeError>;

    /// One container by id or name; nothing if there is none or it is not labelled by a kubelet.
    async fn inspect(&self, id: &str) -> Result<Option<Container>, RuntimeError>;

    /// Makes a container and answers its id. [`RuntimeError::Conflict`] if the name is in use.
    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError>;

    /// The image that sandboxes are made of, which is there once this has answered.
    async fn sandbox_image(&self) -> Result<String, RuntimeError>;

    /// Gives a container another name. Does nothing if there is no such container.
    async fn rename(&self, id: &str, name: &str) -> Result<(), RuntimeError>;

    /// Makes the volumes of a pod that are not there yet: empty, and writable for everybody.
    async fn create_volumes(
        &self,
        owner: &Identity,
        volumes: &[Volume],
    ) -> Result<(), RuntimeError>;

    /// The volumes of pods that were made for that node, of one pod (by uid) or of all.
    async fn list_volumes(
        &self,
        node: &str,
        pod_uid: Option<&str>,
    ) -> Result<Vec<ListedVolume>, RuntimeError>;

    /// Removes a volume that no container uses. Does nothing if it is gone.
    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError>;

    /// Starts a container that was made; does nothing if it runs.
    async fn start(&self, id: &str) -> Result<(), RuntimeError>;

    /// Asks a container to end, with its image's stop signal, and returns without waiting.
    /// Does nothing if it does not run.
    async fn stop(&self, id: &str) -> Result<(), RuntimeError>;

    /// Ends a container with SIGKILL. Does nothing if it does not run.
    async fn kill(&self, id: &str) -> Result<(), RuntimeError>;

    /// Removes a container, killing it if it runs. Does nothing if it is gone or about to be.
    async fn remove(&self, id: &str) -> Result<(), RuntimeError>;

    /// Whether the image is there.
    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError>;

    /// Fetches the image. May take minutes; fails when nothing moves for long.
    async fn pull(&self, image: &str) -> Result<(), RuntimeError>;

    /// Starts a command in a running container. [`RuntimeError::Conflict`] if the container does not
    /// run, [`RuntimeError::NotFound`] if there is none.
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Execution, RuntimeError>;

    /// Runs a command in a container to its end, or kills it at the deadline. Of what it writes
    /// the first `output_max_bytes` are kept.
    async fn run(
        &self,
        id: &str,
        command: &[String],
        deadline: Duration,
        output_max_bytes: usize,
    ) -> Result<RunOutcome, RuntimeError> {
        let deadline = Instant::now() + deadline;
        let request = ExecRequest { command: command.to_vec(), ..ExecRequest::default() };
        let execution = self.exec(id, &request).await?;
        streams::wait(execution, deadline, output_max_bytes).await
    }

    /// Reads a container's log, also of one that ended, oldest entry first. The stream ends with
    /// the log, or when it is followed, with the container. That there is no such container may
    /// also be said by the stream.
    async fn logs(&self, id: &str, request: &LogRequest) -> Result<Logs, RuntimeError>;

    /// What happens from now on to containers labelled with that node. The stream ends, or yields
    /// an error and ends, when the engine goes away.
    async fn events(
        &self,
        node: &str,
    ) -> Result<BoxStream<'static, Result<Event, RuntimeError>>, RuntimeError>;
}

/// Labels as an engine keeps them.
pub(crate) type Labels = BTreeMap<String, String>;
