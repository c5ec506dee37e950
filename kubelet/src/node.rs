//! The node as an object, and its heartbeat.
//!
//! The kubelet registers its node, keeps the node's status true, and renews a Lease
//! `kube-node-lease/<node>` every few seconds. The lease is the heartbeat: a small object that
//! nobody but the node lifecycle controller follows, so that a thousand beating nodes do not wake
//! everyone who watches nodes. The node itself is written when something about it changed, when
//! heartbeats were missed (the controller may have declared the node unknown meanwhile, and only
//! the kubelet takes that back), and now and then regardless.
//!
//! The engine is asked for a sign of life at every beat. While it gives none the node is not
//! Ready, and says why; the heartbeat goes on.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use api::{Api, Clock, Error, ObjectKey, Store};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Chain;
use crate::runtime::{EngineInfo, Runtime};
use crate::status;

/// How often the lease is renewed and the engine asked for a sign of life.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How often the node is written though nothing changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// How long a lease is good for, for those who read it; Kubernetes' default.
const LEASE_SECONDS: i32 = 40;
/// Where the leases of nodes are.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Pods that one node takes: Kubernetes' default.
const PODS_MAX: u32 = 110;

/// What does not change about a node while its kubelet runs.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) engine: EngineInfo,
    /// `docker` in `docker://20.10.24`.
    pub(crate) engine_scheme: &'static str,
    pub(crate) machine: Machine,
}

/// Ids of the machine, as far as it tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
}

impl Machine {
    /// Reads the ids from where Linux keeps them.
    pub(crate) fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            machine_id: read("/etc/machine-id"),
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// The address that this machine is reached at: the one it would use itself to go out. Nothing is
/// sent to find it.
pub(crate) fn own_address() -> IpAddr {
    // TEST-NET-1 (RFC 5737): belongs to nobody, and is routed like the rest of the world.
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    found.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

/// Whether the node takes pods, and if not why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready(pub(crate) Result<(), String>);

/// Brings a node up to date with the facts; what others keep in it (labels, taints, whether it is
/// cordoned, conditions of theirs) stays.
fn refresh(status: &mut NodeStatus, facts: &NodeFacts, ready: &Ready, now: Timestamp) {
    let quantities = BTreeMap::from([
        ("cpu".to_owned(), Quantity(facts.engine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", facts.engine.memory_bytes / 1024))),
        ("pods".to_owned(), Quantity(PODS_MAX.to_string())),
    ]);
    status.allocatable = Some(quantities.clone());
    status.capacity = Some(quantities);
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    status.addresses = Some(vec![
        address("InternalIP", facts.ip.to_string()),
        address("Hostname", facts.name.clone()),
    ]);
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    status.node_info = Some(NodeSystemInfo {
        architecture: facts.engine.architecture.clone(),
        boot_id: facts.machine.boot_id.clone(),
        container_runtime_version: format!("{}://{}", facts.engine_scheme, facts.engine.version),
        kernel_version: facts.engine.kernel_version.clone(),
        kube_proxy_version: version.clone(),
        kubelet_version: version,
        machine_id: facts.machine.machine_id.clone(),
        operating_system: facts.engine.operating_system.clone(),
        os_image: facts.engine.os_image.clone(),
        system_uuid: facts.machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    });
    let (holds, reason, message) = match &ready.0 {
        Ok(()) => ("True", "KubeletReady", "kubelet is posting ready status"),
        Err(why) => ("False", "KubeletNotReady", why.as_str()),
    };
    let conditions = status.conditions.get_or_insert_default();
    let index = conditions.iter().position(|condition| condition.type_ == "Ready");
    let condition = match index {
        Some(index) => &mut conditions[index],
        None => conditions
            .push_mut(NodeCondition { type_: "Ready".to_owned(), ..NodeCondition::default() }),
    };
    if condition.status != holds {
        holds.clone_into(&mut condition.status);
        condition.last_transition_time = Some(status::time(now));
    }
    condition.last_heartbeat_time = Some(status::time(now));
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

/// Labels that a node is born with; the scheduler and people select by them.
fn labels(facts: &NodeFacts) -> BTreeMap<String, String> {
    [
        ("kubernetes.io/hostname", &facts.name),
        ("kubernetes.io/os", &facts.engine.operating_system),
        ("kubernetes.io/arch", &facts.engine.architecture),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .collect()
}

/// Keeps one node and its lease.
pub(crate) struct NodeAgent {
    facts: NodeFacts,
    runtime: Arc<dyn Runtime>,
    nodes: Api<Node>,
    leases: Api<Lease>,
    clock: Clock,
    lease: Option<Lease>,
    /// What was last written, and when.
    written: Option<(Ready, Instant)>,
    beat_at: Option<Instant>,
}

impl NodeAgent {
    pub(crate) fn new(facts: NodeFacts, runtime: Arc<dyn Runtime>, store: &Store) -> Self {
        Self {
            facts,
            runtime,
            nodes: store.api(),
            leases: store.api(),
            clock: store.clock().clone(),
            lease: None,
            written: None,
            beat_at: None,
        }
    }

    /// Beats until it is told to stop. Trouble with the store or the engine is logged when it
    /// begins and when it is over, and tried again at the next beat.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.beat() => outcome,
            };
            match &outcome {
                Ok(()) if trouble => tracing::info!("heartbeat is heard again"),
                Err(error) if !trouble => {
                    tracing::warn!(error = %Chain(error), "heartbeat cannot be written");
                }
                _ => {}
            }
            trouble = outcome.is_err();
        }
    }

    async fn beat(&mut self) -> Result<(), Error> {
        // Side by side: an engine that hangs must not silence the heartbeat.
        let runtime = self.runtime.clone();
        let (engine, lease) = tokio::join!(runtime.info(), self.renew());
        lease?;
        let ready = Ready(match engine {
            Ok(engine) => {
                self.facts.engine = engine;
                Ok(())
            }
            Err(error) => Err(Chain(&error).to_string()),
        });
        let now = Instant::now();
        let missed = self.beat_at.is_none_or(|at| now - at > HEARTBEAT_INTERVAL * 2);
        let due = self
            .written
            .as_ref()
            .is_none_or(|(told, at)| *told != ready || now - *at >= STATUS_INTERVAL);
        if missed || due {
            self.write(&ready).await?;
            if self.written.as_ref().is_none_or(|(told, _)| *told != ready) {
                match &ready.0 {
                    Ok(()) => tracing::info!("node is ready"),
                    Err(reason) => tracing::warn!(reason, "node is not ready"),
                }
            }
            self.written = Some((ready, now));
        }
        self.beat_at = Some(Instant::now());
        Ok(())
    }

    /// Writes the node, registering it if it is not there.
    async fn write(&self, ready: &Ready) -> Result<(), Error> {
        let key = ObjectKey::cluster(&self.facts.name);
        let now = self.clock.now();
        let existing = match self.nodes.find(&key).await? {
            Some(existing) => existing,
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.facts.name.clone()),
                    labels: Some(labels(&self.facts)),
                    ..ObjectMeta::default()
                };
                tracing::info!("registering the node");
                self.nodes.create(Node { metadata, ..Node::default() }).await?
            }
        };
        let change = |node: &mut Node| {
            refresh(node.status.get_or_insert_default(), &self.facts, ready, now);
            Ok(())
        };
        self.nodes.modify_status_from(&existing, change).await?;
        Ok(())
    }

    /// Renews the lease, making it if it is not there.
    async fn renew(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let change = |lease: &mut Lease| {
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(self.facts.name.clone());
            spec.lease_duration_seconds = Some(LEASE_SECONDS);
            spec.renew_time = Some(MicroTime(now));
            Ok(())
        };
        let key = ObjectKey::namespaced(LEASE_NAMESPACE, &self.facts.name);
        let renewed = match &self.lease {
            Some(lease) => self.leases.modify_from(lease, change).await,
            None => self.leases.modify(&key, change).await,
        };
        self.lease = match renewed {
            Ok(lease) => Some(lease),
            Err(Error::NotFound { .. }) => {
                let mut lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.facts.name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec::default()),
                };
                change(&mut lease)?;
                Some(self.leases.create(lease).await?)
            }
            Err(error) => {
                // Nothing is known of what is stored now.
                self.lease = None;
                return Err(error);
            }
        };
        Ok(())
    }
}
