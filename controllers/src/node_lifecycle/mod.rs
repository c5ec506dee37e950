//! Node lifecycle: a node that is not heard of any more becomes `NotReady`, and gives up its pods.
//!
//! Kubelets renew the lease `kube-node-lease/<node>`. With Kubernetes' steps, and this project's
//! times:
//!
//! | after | |
//! | --- | --- |
//! | 15 s of silence | the node's conditions become `Unknown`, its pods are not ready any more; what counts as silence, and that the time during which the store is away does not, is in [`heartbeat`] |
//! | at once | the node is tainted, so that it gets no more pods ([`taints`]) |
//! | when its turn has come | it is tainted such that its pods leave; the turns, and when there are none, are in [`zones`] |
//! | 30 s, or as long as a pod tolerates it | its pods are deleted, and so replaced elsewhere ([`eviction`]) |
//! | another 5 min and the grace period | what is being deleted is removed from the store |
//!
//! When the kubelet is back it says so itself. It then stops what is being deleted, or is not there
//! any more.

mod condition;
mod config;
mod evict;
mod eviction;
mod heartbeat;
mod taints;
mod zones;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Cache, Error, EventRecorder, ListOptions, Object, ObjectKey, Outcome, Scope, Store,
    WorkQueue,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::reconcile::{self, Chain};
use condition::{Verdict, judge};
use heartbeat::{Heartbeats, Mark, ObservedTime};
use taints::Exodus;
use zones::{Health, Rates, Zone, Zones, zone};

pub use config::NodeLifecycleConfig;

/// The namespace of the leases with which nodes show that they live.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// How often heartbeats are looked at: so many times in a grace period, and at least this often.
const LOOKS_PER_GRACE: u32 = 15;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The scope of the leases to follow.
pub(crate) fn leases() -> Scope {
    Scope::Namespace(LEASE_NAMESPACE.to_owned())
}

/// Watches over the nodes.
pub(crate) struct NodeLifecycle {
    nodes: Api<Node>,
    leases: Api<Lease>,
    pods: Api<Pod>,
    node_cache: Cache<Node>,
    lease_cache: Cache<Lease>,
    pod_cache: Cache<Pod>,
    grace: Duration,
    removal_period: Duration,
    events: EventRecorder,
    taint_eviction_events: EventRecorder,
    queue: WorkQueue<Work>,
    seen: Mutex<Seen>,
    started: Instant,
}

/// What there is to do about a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// Its conditions and taints.
    Node(ObjectKey),
    /// Its pods.
    Pods(ObjectKey),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Pods(node) => write!(f, "the pods of node {node}"),
        }
    }
}

struct Seen {
    time: ObservedTime,
    heartbeats: Heartbeats,
    zones: Zones,
    /// The nodes in trouble whose turn to give up their pods has come.
    leaving: HashSet<String>,
}

impl Seen {
    fn exodus(&self, node: &str) -> Exodus {
        if self.zones.all_dead() {
            Exodus::Halt
        } else if self.leaving.contains(node) {
            Exodus::Begin
        } else {
            Exodus::AsBefore
        }
    }
}

impl NodeLifecycle {
    pub(crate) fn new(
        store: &Store,
        node_cache: Cache<Node>,
        lease_cache: Cache<Lease>,
        pod_cache: Cache<Pod>,
        events: &EventRecorder,
        config: &NodeLifecycleConfig,
    ) -> Self {
        let grace = config.node_monitor_grace_period;
        let time = ObservedTime::new(look_interval(grace) * 2);
        let zones = Zones::new(Rates::from(config));
        Self {
            nodes: store.api(),
            leases: store.api(),
            pods: store.api(),
            node_cache,
            lease_cache,
            pod_cache,
            grace,
            removal_period: config.unreachable_pod_removal_period,
            events: events.as_component("node-controller"),
            taint_eviction_events: events.as_component("taint-eviction-controller"),
            queue: WorkQueue::new(reconcile::BACKOFF),
            seen: Mutex::new(Seen {
                time,
                heartbeats: Heartbeats::default(),
                zones,
                leaving: HashSet::new(),
            }),
            started: Instant::now(),
        }
    }

    /// Runs until cancelled, or until the informers end.
    pub(crate) async fn run(self, workers: usize, cancelled: CancellationToken) {
        let this = Arc::new(self);
        let worker = Arc::clone(&this);
        let work = move |work: Work| {
            let this = Arc::clone(&worker);
            async move {
                match work {
                    Work::Node(key) => this.reconcile(&key).await,
                    Work::Pods(key) => this.look_after_pods(&key).await,
                }
            }
        };
        reconcile::run(
            "node-lifecycle",
            this.queue.clone(),
            workers,
            cancelled,
            this.look_out(),
            work,
        )
        .await;
    }

    /// Looks at all nodes and heartbeats again and again, and finds those to do something about.
    async fn look_out(&self) {
        if !self.node_cache.synced().await
            || !self.lease_cache.synced().await
            || !self.pod_cache.synced().await
        {
            return;
        }
        let mut ticks = interval(look_interval(self.grace));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_reachable = true;
        loop {
            ticks.tick().await;
            let reachable = self.store_answers().await;
            if reachable != was_reachable {
                tracing::info!(
                    reachable,
                    "node lifecycle: nodes are judged while the store answers"
                );
                was_reachable = reachable;
            }
            self.look(reachable);
        }
    }

    /// Whether heartbeats can be written, as far as a linearizable read tells.
    async fn store_answers(&self) -> bool {
        let one = ListOptions { limit: 1, ..ListOptions::default() };
        match self.leases.list_page(&leases(), one).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the store does not answer");
                false
            }
        }
    }

    fn look(&self, reachable: bool) {
        let nodes = self.node_cache.list();
        let now = self.nodes.clock().now();
        let mut seen = self.seen.lock();
        seen.time.tick(Instant::now(), reachable);
        let at = seen.time.elapsed();
        seen.heartbeats.retain(|name| self.node_cache.get(&ObjectKey::cluster(name)).is_some());
        let mut zones: HashMap<Zone, Health> = HashMap::new();
        let mut lost = HashSet::new();
        for node in &nodes {
            let lease = self.lease_cache.get(&lease_key(node.name()));
            let mark = Mark::new(node, lease.as_deref());
            let silent_for = seen.heartbeats.observe(node.name(), mark, at);
            let verdict = judge(node, silent_for, self.grace);
            if verdict == Verdict::Lost {
                lost.insert(node.name());
            }
            let health = zones.entry(zone(node)).or_default();
            // One that has not said anything yet is no sign of trouble elsewhere.
            if verdict != Verdict::Alive || taints::trouble(node).is_some() {
                health.in_trouble += 1;
            } else {
                health.ready += 1;
            }
        }
        self.begin_turns(&mut seen, &nodes, &zones, at);
        for node in &nodes {
            let exodus = seen.exodus(node.name());
            if lost.contains(node.name()) || taints::changed(node, exodus, now).is_some() {
                self.queue.add(Work::Node(node.key()));
            }
            if eviction::concerns(node) {
                self.queue.add(Work::Pods(node.key()));
            }
        }
    }

    /// Finds out which nodes in trouble may be told to give up their pods.
    fn begin_turns(
        &self,
        seen: &mut Seen,
        nodes: &[Arc<Node>],
        zones: &HashMap<Zone, Health>,
        at: Duration,
    ) {
        let now = self.started.elapsed();
        let all_were_dead = seen.zones.all_dead();
        seen.zones.observe(zones, now);
        if seen.zones.all_dead() != all_were_dead {
            if all_were_dead {
                // Others may be about to be heard of again, too.
                seen.heartbeats.forgive(at);
                tracing::info!("node lifecycle: not all nodes look dead any more");
            } else {
                tracing::warn!("node lifecycle: all nodes look dead, so no pod is moved");
            }
        }
        if seen.zones.all_dead() {
            seen.leaving.clear();
            return;
        }
        let in_trouble: HashSet<&str> = nodes
            .iter()
            .filter(|node| taints::trouble(node).is_some())
            .map(|node| node.name())
            .collect();
        seen.leaving.retain(|node| in_trouble.contains(node.as_str()));
        for node in nodes {
            let waits = in_trouble.contains(node.name())
                && !taints::has_exodus(node)
                && !seen.leaving.contains(node.name());
            if waits && seen.zones.take_turn(&zone(node), now) {
                seen.leaving.insert(node.name().to_owned());
            }
        }
    }

    /// Judges a node by what the store holds at this moment, and writes what is found.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.find(key).await? else { return Ok(Outcome::Done) };
        let lease = self.leases.find(&lease_key(node.name())).await?;
        let mark = Mark::new(&node, lease.as_ref());
        let (silent_for, exodus) = {
            let mut seen = self.seen.lock();
            let at = seen.time.elapsed();
            let silent_for = seen.heartbeats.observe(node.name(), mark, at);
            (silent_for, seen.exodus(node.name()))
        };
        let written = async {
            let node = match judge(&node, silent_for, self.grace) {
                Verdict::Lost => self.declare_unknown(&node, silent_for).await?,
                Verdict::Alive | Verdict::KnownLost => node,
            };
            self.taint(&node, exodus).await
        };
        match written.await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(Outcome::Done),
            Err(error) => Err(error),
        }
    }

    async fn declare_unknown(&self, node: &Node, silent_for: Duration) -> Result<Node, Error> {
        let now = self.nodes.clock().now();
        let written = self.nodes.modify_status_from(node, |current| {
            // Somebody who writes the node at this very moment knows better.
            if current.revision() == node.revision() {
                condition::declare_unknown(current, now);
            }
            Ok(())
        });
        let written = written.await?;
        if condition::status(&written, "Ready") == Some("Unknown") {
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            self.events.normal(node, "NodeNotReady", message);
            tracing::warn!(
                node = node.name(),
                silent_for_s = silent_for.as_secs(),
                "node lifecycle: node is not heard of, it gets no more pods"
            );
        }
        Ok(written)
    }

    async fn taint(&self, node: &Node, exodus: Exodus) -> Result<(), Error> {
        let now = self.nodes.clock().now();
        if taints::changed(node, exodus, now).is_none() {
            return Ok(());
        }
        let written = self.nodes.modify_from(node, |current| {
            if current.uid() == node.uid()
                && let Some(taints) = taints::changed(current, exodus, now)
            {
                current.spec.get_or_insert_default().taints = Some(taints);
            }
            Ok(())
        });
        let written = written.await?;
        let keys: Vec<String> = taints::of(&written)
            .iter()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect();
        tracing::info!(node = node.name(), taints = keys.join(","), "node lifecycle: tainted");
        Ok(())
    }
}

fn lease_key(node: &str) -> ObjectKey {
    ObjectKey::namespaced(LEASE_NAMESPACE, node)
}

fn look_interval(grace: Duration) -> Duration {
    (grace / LOOKS_PER_GRACE).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)
}
