//! The node as an object, and its heartbeat.
//!
//! The kubelet registers its node, keeps the node's status true, and renews a Lease
//! `kube-node-lease/<node>` every few seconds. The lease is the heartbeat: a small object that
//! nobody but the node lifecycle controller follows, so that a thousand beating nodes do not wake
//! everyone who watches nodes. The node itself is read now and then, at once when heartbeats were
//! missed, and written when it does not say what it should: it may have been deleted, or declared
//! unknown, and only its kubelet takes that back.
//!
//! The engine is asked for a sign of life at every beat. While it gives none the node is not
//! Ready, and says why; the heartbeat goes on.

mod pressure;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use api::streaming::KUBELET_IP;
use api::{Api, Clock, Error, ObjectKey, Store};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::pressure::{Gauge, Pressure, Room};
use crate::error::Chain;
use crate::runtime::{EngineInfo, Runtime, RuntimeError};
use crate::status;

/// How often the lease is renewed and the engine asked for a sign of life.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How long the engine has for a sign of life; less than the heartbeat's interval, so that it
/// never holds one back.
const PING_DEADLINE: Duration = Duration::from_secs(3);
/// How often the node is compared with what it should say.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the node is written though nothing changed.
const WRITE_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
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
    /// Where the kubelet's own server listens.
    pub(crate) serves_at: SocketAddr,
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
pub(crate) type Ready = Result<(), String>;

/// The status that the facts amount to, beginning with the one that is stored: what others keep in
/// it, such as conditions of theirs, stays. The heartbeat time alone is no reason to write a node,
/// until it is old.
fn node_status<'a>(
    stored: &NodeStatus,
    facts: &NodeFacts,
    ready: &'a Ready,
    pressures: &'a [Pressure],
    now: Timestamp,
) -> NodeStatus {
    let capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity(facts.engine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", facts.engine.memory_bytes / 1024))),
        ("pods".to_owned(), Quantity(PODS_MAX.to_string())),
    ]);
    let mut status = NodeStatus {
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        addresses: Some(addresses(facts)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: facts.serves_at.port().into() }),
        }),
        node_info: Some(node_info(facts)),
        ..stored.clone()
    };
    let is_ready = match ready {
        Ok(()) => ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Err(why) => ("Ready", false, "KubeletNotReady", why.as_str()),
    };
    let of_pressure = |one: &'a Pressure| (one.type_, one.holds, one.reason, one.message.as_str());
    let told: Vec<_> = pressures.iter().map(of_pressure).chain([is_ready]).collect();
    let conditions = status.conditions.get_or_insert_default();
    let mut is_old = false;
    for (type_, holds, reason, message) in &told {
        let condition = condition(conditions, type_);
        let holds = if *holds { "True" } else { "False" };
        if condition.status != holds {
            holds.clone_into(&mut condition.status);
            condition.last_transition_time = Some(status::time(now));
        }
        condition.reason = Some((*reason).to_owned());
        condition.message = Some((*message).to_owned());
        let written = condition.last_heartbeat_time.as_ref().map(|time| time.0);
        is_old |= written.is_none_or(|at| now.duration_since(at) >= WRITE_INTERVAL);
    }
    if is_old || status != *stored {
        let conditions = status.conditions.get_or_insert_default();
        for (type_, ..) in told {
            condition(conditions, type_).last_heartbeat_time = Some(status::time(now));
        }
    }
    status
}

/// The node's addresses, and that of its kubelet where it does not listen on all of them.
fn addresses(facts: &NodeFacts) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let mut addresses =
        vec![address("InternalIP", facts.ip.to_string()), address("Hostname", facts.name.clone())];
    let serves_at = facts.serves_at.ip();
    if serves_at != facts.ip && !serves_at.is_unspecified() {
        addresses.push(address(KUBELET_IP, serves_at.to_string()));
    }
    addresses
}

fn condition<'a>(conditions: &'a mut Vec<NodeCondition>, type_: &str) -> &'a mut NodeCondition {
    match conditions.iter().position(|condition| condition.type_ == type_) {
        Some(index) => &mut conditions[index],
        None => conditions
            .push_mut(NodeCondition { type_: type_.to_owned(), ..NodeCondition::default() }),
    }
}

/// All ten strings are there, if empty: some clients cannot do without.
fn node_info(facts: &NodeFacts) -> NodeSystemInfo {
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    NodeSystemInfo {
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
    }
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
    /// Beats in a row at which the engine did not answer in time.
    silences: u32,
    /// What the node was last made to say, and when that was checked.
    told: Option<(Ready, Instant)>,
    beat_at: Option<Instant>,
    gauge: Gauge,
}

impl NodeAgent {
    pub(crate) fn new(facts: NodeFacts, runtime: Arc<dyn Runtime>, store: &Store) -> Self {
        Self {
            facts,
            runtime,
            nodes: store.api(),
            leases: store.clone().urgent().api(),
            clock: store.clock().clone(),
            lease: None,
            silences: 0,
            told: None,
            beat_at: None,
            gauge: Gauge::default(),
        }
    }

    /// Beats until it is told to stop. Trouble with the store or the engine is logged when it
    /// begins and when it is over, and tried again at the next beat.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = false;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let Some(outcome) = stop.run_until_cancelled(Box::pin(self.beat())).await else {
                return;
            };
            match &outcome {
                Ok(()) if trouble => tracing::info!("the store takes heartbeats again"),
                Err(error) if !trouble => {
                    tracing::warn!(error = %Chain(error), "the heartbeat cannot be written");
                }
                _ => {}
            }
            trouble = outcome.is_err();
        }
    }

    async fn beat(&mut self) -> Result<(), Error> {
        let runtime = self.runtime.clone();
        let ping = tokio::time::timeout(PING_DEADLINE, runtime.ping());
        // Side by side: an engine that hangs must not silence the heartbeat.
        let (ping, renewed) = tokio::join!(ping, self.renew());
        renewed?;
        let ready = self.judge(ping.ok());
        let missed = self.beat_at.is_none_or(|at| at.elapsed() > HEARTBEAT_INTERVAL * 2);
        let as_told = self
            .told
            .as_ref()
            .is_some_and(|(told, at)| *told == ready && at.elapsed() < CHECK_INTERVAL);
        if missed || !as_told {
            self.check(&ready).await?;
            if self.told.as_ref().is_none_or(|(told, _)| *told != ready) {
                match &ready {
                    Ok(()) => tracing::info!("node is ready"),
                    Err(reason) => tracing::warn!(reason, "node is not ready"),
                }
            }
            self.told = Some((ready, Instant::now()));
        }
        self.beat_at = Some(Instant::now());
        Ok(())
    }

    /// An engine that refuses is gone; one that is silent may only be busy, once.
    fn judge(&mut self, answer: Option<Result<(), RuntimeError>>) -> Ready {
        self.silences = if answer.is_none() { self.silences + 1 } else { 0 };
        match answer {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Chain(&error).to_string()),
            None if self.silences < 2 => Ok(()),
            None => Err("the container engine does not answer".to_owned()),
        }
    }

    /// Makes the node say what it should; registers it if it is not there.
    async fn check(&mut self, ready: &Ready) -> Result<(), Error> {
        if ready.is_ok()
            && let Ok(Ok(engine)) = tokio::time::timeout(PING_DEADLINE, self.runtime.info()).await
        {
            self.facts.engine = engine;
        }
        let room = Room::measure(self.facts.engine.data_dir.clone()).await;
        let now = self.clock.now();
        let pressures = self.gauge.read(&room, now);
        let status = |stored: &Option<NodeStatus>| {
            let stored = stored.clone().unwrap_or_default();
            Some(node_status(&stored, &self.facts, ready, &pressures, now))
        };
        let key = ObjectKey::cluster(&self.facts.name);
        match self.nodes.find(&key).await? {
            Some(node) => {
                let change = |node: &mut Node| {
                    node.status = status(&node.status);
                    Ok(())
                };
                self.nodes.modify_status_from(&node, change).await?;
            }
            None => {
                tracing::info!("registering the node");
                let metadata = ObjectMeta {
                    name: Some(self.facts.name.clone()),
                    labels: Some(labels(&self.facts)),
                    ..ObjectMeta::default()
                };
                self.nodes.create(Node { metadata, status: status(&None), spec: None }).await?;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: "node-1".into(),
            ip: [192, 0, 2, 7].into(),
            serves_at: ([127, 0, 0, 1], 4711).into(),
            engine: EngineInfo { cpus: 2, memory_bytes: 4096, ..EngineInfo::default() },
            engine_scheme: "fake",
            machine: Machine::default(),
        }
    }

    fn made(stored: &NodeStatus, ready: &Ready, now: Timestamp) -> NodeStatus {
        let pressures = Gauge::default().read(&Room::default(), now);
        node_status(stored, &facts(), ready, &pressures, now)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(status: &NodeStatus) -> NodeCondition {
        let conditions = status.conditions.clone().unwrap();
        conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap()
    }

    #[test]
    fn a_node_is_written_on_news_and_now_and_then() {
        let first = made(&NodeStatus::default(), &Ok(()), at(100));
        assert_eq!(ready(&first).status, "True");
        assert_eq!(ready(&first).last_heartbeat_time, Some(status::time(at(100))));
        assert_eq!(made(&first, &Ok(()), at(159)), first);
        let later = made(&first, &Ok(()), at(160));
        assert_eq!(ready(&later).last_heartbeat_time, Some(status::time(at(160))));
        assert_eq!(ready(&later).last_transition_time, Some(status::time(at(100))));

        let down = made(&first, &Err("gone".into()), at(110));
        assert_eq!(ready(&down).status, "False");
        assert_eq!(ready(&down).message.as_deref(), Some("gone"));
        assert_eq!(ready(&down).last_transition_time, Some(status::time(at(110))));
    }

    #[test]
    fn what_others_wrote_is_kept_and_being_declared_unknown_is_taken_back() {
        let mut stored = made(&NodeStatus::default(), &Ok(()), at(100));
        let conditions = stored.conditions.as_mut().unwrap();
        conditions.iter_mut().for_each(|condition| condition.status = "Unknown".into());
        let foreign = NodeCondition { type_: "Weather".into(), ..NodeCondition::default() };
        conditions.push(foreign.clone());
        let status = made(&stored, &Ok(()), at(105));
        assert_eq!(ready(&status).status, "True");
        assert_eq!(ready(&status).last_heartbeat_time, Some(status::time(at(105))));
        let conditions = status.conditions.unwrap();
        assert!(conditions.contains(&foreign));
        for pressure in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            let mut found = conditions.iter().filter(|condition| condition.type_ == pressure);
            assert_eq!(found.next().map(|one| one.status.as_str()), Some("False"), "{pressure}");
        }
    }

    #[test]
    fn a_node_tells_where_its_kubelet_serves() {
        for (serves_at, tells) in [
            ("127.0.0.1:4711", "127.0.0.1:4711"),
            ("0.0.0.0:4711", "192.0.2.7:4711"),
            ("192.0.2.7:4711", "192.0.2.7:4711"),
        ] {
            let facts = NodeFacts { serves_at: serves_at.parse().unwrap(), ..facts() };
            let status = node_status(&NodeStatus::default(), &facts, &Ok(()), &[], at(100));
            let node = Node { status: Some(status), ..Node::default() };
            let told = api::streaming::kubelet_address(&node).unwrap();
            assert_eq!(told.to_string(), tells, "{serves_at}");
        }
    }

    #[tokio::test]
    async fn one_silence_of_the_engine_is_forgiven() {
        let client = api::ClientConfig::new("http://127.0.0.1:1").unwrap();
        let store = Store::new(api::Client::new(client).unwrap(), Clock::system());
        let runtime = crate::runtime::fake::FakeRuntime::new(1, 1);
        let mut agent = NodeAgent::new(facts(), runtime, &store);
        assert!(agent.judge(None).is_ok());
        assert!(agent.judge(None).is_err());
        assert!(agent.judge(Some(Ok(()))).is_ok());
        assert!(agent.judge(None).is_ok());
        assert!(agent.judge(Some(Err(RuntimeError::Unreachable("gone".into())))).is_err());
    }
}
