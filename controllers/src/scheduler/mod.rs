//! The scheduler: a node for every pod that has none.
//!
//! Where a pod goes is decided by [`decide()`] under a lock, in microseconds, and is counted from
//! that moment on; the bind itself, which takes a write to the store, is done by many workers side
//! by side. So pods spread well however fast they come, and a pod that cannot be placed, or whose
//! bind takes long, holds up no other.
//!
//! A pod that no node takes says why in its condition `PodScheduled`. It is tried again when a node
//! changes, when pods leave their nodes, and now and then regardless.

mod condition;
mod decide;
mod occupancy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Backoff, Cache, Change, Error, Notice, Object, ObjectKey, Outcome, Store, StoreError,
    WorkQueue,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{pod, reconcile};
use decide::{Decision, NodeView, decide};
use occupancy::Occupancy;

/// The scheduler that pods get which name none.
const NAME: &str = "default-scheduler";

/// How long a pod that could not be placed waits while no node changes.
const UNSCHEDULABLE_BACKOFF: Backoff =
    Backoff { base: Duration::from_secs(1), max: Duration::from_secs(60) };

/// How often it is looked whether pods have made room for others.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Finds nodes for pods.
pub(crate) struct Scheduler {
    pods: Api<Pod>,
    pod_cache: Cache<Pod>,
    node_cache: Cache<Node>,
    queue: WorkQueue<ObjectKey>,
    view: Mutex<View>,
}

/// What decisions are made from.
#[derive(Default)]
struct View {
    nodes: BTreeMap<String, NodeView>,
    occupancy: Occupancy,
    /// The pods that could not be placed, and how often in a row.
    unplaced: BTreeMap<ObjectKey, u32>,
    /// A pod has left its node since the unplaced were last tried.
    room: bool,
}

/// What is to be done for a pod.
enum Step {
    Bind(String),
    Explain { message: String, try_again_in: Duration },
}

impl Scheduler {
    pub(crate) fn new(store: &Store, pod_cache: Cache<Pod>, node_cache: Cache<Node>) -> Self {
        Self {
            pods: store.api(),
            pod_cache,
            node_cache,
            queue: WorkQueue::new(reconcile::BACKOFF),
            view: Mutex::default(),
        }
    }

    /// Runs until cancelled, or until the informers end.
    pub(crate) async fn run(self, workers: usize, cancelled: CancellationToken) {
        let this = Arc::new(self);
        let worker = Arc::clone(&this);
        let work = move |key: ObjectKey| {
            let this = Arc::clone(&worker);
            async move { this.schedule(&key).await }
        };
        reconcile::run("scheduler", this.queue.clone(), workers, cancelled, this.listen(), work)
            .await;
    }

    /// Keeps the view up to date, and turns changes into keys of pods to place.
    async fn listen(&self) {
        let (mut pods, mut nodes) = (self.pod_cache.subscribe(), self.node_cache.subscribe());
        // Nothing may be decided before both are known.
        if !self.pod_cache.synced().await || !self.node_cache.synced().await {
            return;
        }
        self.nodes_resync();
        let mut room = interval(ROOM_INTERVAL);
        room.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = room.tick() => {
                    let mut view = self.view.lock();
                    if view.room {
                        self.try_unplaced(&mut view);
                    }
                }
                notice = nodes.next() => match notice {
                    Some(Notice::Changed(changes)) => self.nodes_changed(&changes),
                    Some(Notice::Resync) => self.nodes_resync(),
                    None => return,
                },
                notice = pods.next() => match notice {
                    Some(Notice::Changed(changes)) => {
                        changes.iter().for_each(|change| self.pod_changed(change));
                    }
                    Some(Notice::Resync) => self.pods_resync(),
                    None => return,
                },
            }
        }
    }

    fn nodes_resync(&self) {
        let nodes = self.node_cache.list();
        let mut view = self.view.lock();
        view.nodes =
            nodes.iter().map(|node| (node.name().to_owned(), NodeView::from(&**node))).collect();
        self.try_unplaced(&mut view);
    }

    fn nodes_changed(&self, changes: &[Change<Node>]) {
        let mut view = self.view.lock();
        let mut matters = false;
        for change in changes {
            let name = change.key.name.to_string();
            let new = change.new.as_deref().map(NodeView::from);
            // Nodes are written with every sign of life; most of that is nothing to pods.
            matters |= view.nodes.get(&name) != new.as_ref();
            match new {
                Some(new) => view.nodes.insert(name, new),
                None => view.nodes.remove(&name),
            };
        }
        if matters {
            self.try_unplaced(&mut view);
        }
    }

    fn try_unplaced(&self, view: &mut View) {
        view.room = false;
        for (key, _) in std::mem::take(&mut view.unplaced) {
            self.queue.add(key);
        }
    }

    fn pods_resync(&self) {
        let pods = self.pod_cache.list();
        self.view.lock().occupancy.resync(&pods);
        for pod in self.pod_cache.unbound() {
            self.queue.add(pod.key());
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        let mut view = self.view.lock();
        if let Some(old) = old
            && new.is_none_or(|new| new.uid() != old.uid())
        {
            view.room |= view.occupancy.remove(old.uid());
            view.unplaced.remove(&change.key);
        }
        let Some(new) = new else { return };
        view.room |= view.occupancy.observe(new);
        // That a pod cannot be placed is written to its status; this is no reason to try again.
        let same = |old: &Pod| old.uid() == new.uid() && old.same_spec(new);
        if new.node_name().is_none() && !old.is_some_and(same) {
            self.queue.add(change.key.clone());
        }
    }

    async fn schedule(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.pod_cache.get(key).filter(|pod| wants_node(pod)) else {
            self.view.lock().unplaced.remove(key);
            return Ok(Outcome::Done);
        };
        match self.step(&pod) {
            None => Ok(Outcome::Done),
            Some(Step::Bind(node)) => self.bind(&pod, &node).await,
            Some(Step::Explain { message, try_again_in }) => {
                self.explain(&pod, &message).await?;
                Ok(Outcome::After(try_again_in))
            }
        }
    }

    /// What is to be done for a pod that is bound nowhere, as far as the cache knows.
    fn step(&self, pod: &Pod) -> Option<Step> {
        let mut view = self.view.lock();
        if view.occupancy.is_placed(pod.uid()) {
            // The answer to a bind was lost: it is bound there now, or is to be.
            return view.occupancy.assumed(pod.uid()).map(|node| Step::Bind(node.to_owned()));
        }
        match decide(pod, &view.nodes, &view.occupancy) {
            Decision::Bind(node) => {
                let name = pod.name();
                tracing::info!(pod = name, node, "scheduler: assigning pod {name} to node {node}");
                view.unplaced.remove(&pod.key());
                view.occupancy.assume(pod, &node);
                Some(Step::Bind(node))
            }
            Decision::Unschedulable(message) => {
                let failures = view.unplaced.entry(pod.key()).or_insert(0);
                *failures = failures.saturating_add(1);
                let try_again_in = UNSCHEDULABLE_BACKOFF.after(*failures);
                Some(Step::Explain { message, try_again_in })
            }
        }
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Result<Outcome, Error> {
        let Err(error) = self.pods.bind(pod, node).await else {
            // It stays assumed until it is seen on its node.
            return Ok(Outcome::Done);
        };
        if !matches!(&error, Error::Store(StoreError::Ambiguous { .. })) {
            self.view.lock().occupancy.withdraw(pod.uid());
        }
        match error {
            Error::NotFound { .. } => Ok(Outcome::Done),
            error => Err(error),
        }
    }

    /// Writes to the pod's status why it is not placed.
    async fn explain(&self, pod: &Pod, message: &str) -> Result<(), Error> {
        let now = self.pods.clock().now();
        let written = self.pods.modify_status_from(pod, |current| {
            if current.uid() == pod.uid() && current.node_name().is_none() {
                condition::set_unschedulable(current, message, now);
            }
            Ok(())
        });
        match written.await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the pod is waiting for a node, from this scheduler.
fn wants_node(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    pod.node_name().is_none()
        && pod::is_active(pod)
        && scheduler.is_none_or(|name| name.is_empty() || name == NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn only_pods_that_wait_for_this_scheduler_are_placed() {
        let pod = || fixture::pod("a");
        let of = |scheduler: &str| pod().scheduler(scheduler);
        let rows = [
            (pod(), true),
            (of(NAME), true),
            (of(""), true),
            (of("another"), false),
            (pod().on("node-1"), false),
            (pod().terminating(), false),
            (pod().phase("Failed"), false),
        ];
        for (pod, wants) in rows {
            let pod = pod.build();
            assert_eq!(wants_node(&pod), wants, "{pod:?}");
        }
    }
}
