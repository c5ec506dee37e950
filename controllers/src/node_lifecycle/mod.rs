//! Node lifecycle: a node that is not heard of any more becomes `NotReady`.
//!
//! Kubelets renew the lease `kube-node-lease/<node>`. A node whose heartbeat has been missing for
//! the grace period gets the condition `Ready=Unknown`, whereupon the scheduler gives it no more
//! pods; when its kubelet is back, it says so itself. What counts as missing, and that the time
//! during which the store is away does not, is in [`heartbeat`].
//!
//! The pods of such a node stay as they are: nobody knows whether they still run.

mod condition;
mod heartbeat;

use std::sync::Arc;
use std::time::Duration;

use api::{Api, Cache, Error, ListOptions, Object, ObjectKey, Outcome, Scope, Store, WorkQueue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::reconcile::{self, Chain};
use condition::{Verdict, judge};
use heartbeat::{Heartbeats, Mark, ObservedTime};

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
    node_cache: Cache<Node>,
    lease_cache: Cache<Lease>,
    grace: Duration,
    queue: WorkQueue<ObjectKey>,
    seen: Mutex<Seen>,
}

struct Seen {
    time: ObservedTime,
    heartbeats: Heartbeats,
}

impl NodeLifecycle {
    pub(crate) fn new(
        store: &Store,
        node_cache: Cache<Node>,
        lease_cache: Cache<Lease>,
        grace: Duration,
    ) -> Self {
        let time = ObservedTime::new(look_interval(grace) * 2);
        Self {
            nodes: store.api(),
            leases: store.api(),
            node_cache,
            lease_cache,
            grace,
            queue: WorkQueue::new(reconcile::BACKOFF),
            seen: Mutex::new(Seen { time, heartbeats: Heartbeats::default() }),
        }
    }

    /// Runs until cancelled, or until the informers end.
    pub(crate) async fn run(self, workers: usize, cancelled: CancellationToken) {
        let this = Arc::new(self);
        let worker = Arc::clone(&this);
        let work = move |key: ObjectKey| {
            let this = Arc::clone(&worker);
            async move { this.reconcile(&key).await }
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

    /// Looks at all heartbeats again and again, and finds the nodes that are not heard of.
    async fn look_out(&self) {
        if !self.node_cache.synced().await || !self.lease_cache.synced().await {
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
        let Seen { time, heartbeats } = &mut *seen;
        time.tick(Instant::now(), reachable);
        heartbeats.retain(|name| self.node_cache.get(&ObjectKey::cluster(name)).is_some());
        for node in nodes {
            let lease = self.lease_cache.get(&lease_key(node.name()));
            let mark = Mark::new(&node, lease.as_deref());
            let silent_for = heartbeats.observe(node.name(), mark, time.elapsed());
            if matches!(judge(&node, silent_for, self.grace, now), Verdict::Lost(_)) {
                self.queue.add(node.key());
            }
        }
    }

    /// Judges a node by what the store holds at this moment, and writes what is found.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.find(key).await? else { return Ok(Outcome::Done) };
        let lease = self.leases.find(&lease_key(node.name())).await?;
        let mark = Mark::new(&node, lease.as_ref());
        let silent_for = {
            let mut seen = self.seen.lock();
            let at = seen.time.elapsed();
            seen.heartbeats.observe(node.name(), mark, at)
        };
        let now = self.nodes.clock().now();
        let Verdict::Lost(unknown) = judge(&node, silent_for, self.grace, now) else {
            return Ok(Outcome::Done);
        };
        let written = self.nodes.modify_status_from(&node, |current| {
            // Somebody who writes the node at this very moment knows better.
            if current.revision() == node.revision() {
                condition::set(current, unknown.clone());
            }
            Ok(())
        });
        match written.await {
            Ok(_) => {
                tracing::warn!(
                    node = node.name(),
                    silent_for_s = silent_for.as_secs(),
                    "node lifecycle: node is not heard of, it gets no more pods"
                );
                Ok(Outcome::Done)
            }
            Err(Error::NotFound { .. }) => Ok(Outcome::Done),
            Err(error) => Err(error),
        }
    }
}

fn lease_key(node: &str) -> ObjectKey {
    ObjectKey::namespaced(LEASE_NAMESPACE, node)
}

fn look_interval(grace: Duration) -> Duration {
    (grace / LOOKS_PER_GRACE).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)
}
