//! The scheduler: a node for every pod that has none.
//!
//! ```text
//!  informers --changes--> state: snapshot, queue --one decision at a time--> writes, many at once
//!                           ^                                                        |
//!                           +------------------- how they ended --------------------+
//! ```
//!
//! Where a pod goes is decided in memory, in microseconds, and is counted from that moment on
//! ([`state`]); the bind itself, which takes a write to the store, is done side by side with
//! hundreds of others. So pods spread well however fast they come, and a pod that cannot be placed,
//! or whose bind takes long, holds up no other. The store decides in the end: a bind is a
//! compare-and-swap, so no pod ever gets two nodes, however many schedulers there are.
//!
//! - [`snapshot`], [`node_info`], [`pod_info`], [`counts`], [`topology`]: the cluster, with what is
//!   summed up over pods kept as sums.
//! - [`resources`], [`ports`], [`taints`], [`node_terms`], [`terms`], [`priority`]: what pods and
//!   nodes say, made ready.
//! - [`filters`], [`scores`], [`decide`]: which nodes will do, and which is best.
//! - [`preempt`], [`nominations`]: who has to go for a more important pod, and whose room is kept.
//! - [`queue`], [`hints`]: which pod is next, and when one that no node took is tried again.
//! - [`explain`]: why a pod has no node, in its condition `PodScheduled`.
//! - [`write`](mod@write): what is done in the store.

mod counts;
mod decide;
mod explain;
mod filters;
#[cfg(test)]
mod fixture;
mod hints;
mod node_info;
mod node_terms;
mod nominations;
mod pod_info;
mod ports;
mod preempt;
mod priority;
mod queue;
mod resources;
mod scores;
mod snapshot;
#[cfg(test)]
mod speed;
mod state;
mod taints;
mod terms;
mod topology;
mod write;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::{Cache, Change, EventRecorder, Notice, Store};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use rand::rngs::StdRng;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use state::{PodId, State, Step, Told};
use write::{Outcome, Writer};

/// The scheduler that pods get which name none.
pub(crate) const SCHEDULER_NAME: &str = "default-scheduler";

/// Binds that are under way at the same time.
const MAX_BINDS: usize = 256;
/// Other writes that are: statuses that say why pods wait, and deletions of victims.
const MAX_OTHER_WRITES: usize = 32;

/// What the scheduler hears from.
pub(crate) struct Caches {
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) classes: Cache<PriorityClass>,
}

/// Finds nodes for pods.
pub(crate) struct Scheduler {
    caches: Caches,
    writer: Writer,
    random: StdRng,
    binds: JoinSet<Outcome>,
    others: JoinSet<Outcome>,
    /// What waits until other writes are done; only the newest is told to a pod.
    to_tell: HashMap<Arc<str>, Told>,
    to_preempt: Vec<(Told, Arc<str>, Vec<PodId>)>,
    /// The pods whose statuses are being written.
    being_told: HashSet<Arc<str>>,
}

impl Scheduler {
    pub(crate) fn new(
        store: &Store,
        caches: Caches,
        events: EventRecorder,
        random: StdRng,
    ) -> Self {
        let writer = Writer::new(store, caches.pods.clone(), events);
        Self {
            caches,
            writer,
            random,
            binds: JoinSet::new(),
            others: JoinSet::new(),
            to_tell: HashMap::new(),
            to_preempt: Vec::new(),
            being_told: HashSet::new(),
        }
    }

    /// Runs until cancelled, or until the informers end. What is under way then is finished.
    pub(crate) async fn run(mut self, cancelled: CancellationToken) {
        cancelled.run_until_cancelled(self.schedule()).await;
        while self.binds.join_next().await.is_some() {}
        while self.others.join_next().await.is_some() {}
    }

    async fn schedule(&mut self) {
        let Caches { pods, nodes, classes } = &self.caches;
        let mut pod_changes = pods.subscribe();
        let mut node_changes = nodes.subscribe();
        let mut class_changes = classes.subscribe();
        // Nothing may be decided before all is known.
        if !(classes.synced().await && nodes.synced().await && pods.synced().await) {
            return;
        }
        let mut state = State::new(&classes.list());
        loop {
            let tick = state.next_tick();
            let may_decide = state.has_work() && self.binds.len() < MAX_BINDS;
            // What has happened comes before what is decided on it.
            tokio::select! {
                biased;
                Some(ended) = self.binds.join_next() => self.ended(&mut state, written(ended)),
                Some(ended) = self.others.join_next() => self.ended(&mut state, written(ended)),
                notice = class_changes.next() => match notice {
                    Some(_) => {
                        let Caches { pods, classes, .. } = &self.caches;
                        state.classes_resync(&classes.list(), &pods.list(), Instant::now());
                    }
                    None => return,
                },
                notice = node_changes.next() => match notice {
                    Some(notice) => self.nodes_changed(&mut state, notice),
                    None => return,
                },
                notice = pod_changes.next() => match notice {
                    Some(notice) => self.pods_changed(&mut state, notice),
                    None => return,
                },
                () = until(tick) => {
                    let pods = &self.caches.pods;
                    state.tick(Instant::now(), |key| pods.get(key));
                }
                () = std::future::ready(()), if may_decide => {
                    if let Some(step) = state.next(Instant::now(), &mut self.random) {
                        self.begin(step);
                    }
                    // The writes that were begun get their turn.
                    yield_now().await;
                }
            }
        }
    }

    fn nodes_changed(&self, state: &mut State, notice: Notice<Node>) {
        let now = Instant::now();
        match notice {
            Notice::Resync => state.nodes_resync(&self.caches.nodes.list(), now),
            Notice::Changed(changes) => {
                for Change { key, new, .. } in changes {
                    match new {
                        Some(node) => state.node_set(&node, now),
                        None => state.node_gone(&key.name, now),
                    }
                }
            }
        }
    }

    fn pods_changed(&self, state: &mut State, notice: Notice<Pod>) {
        let now = Instant::now();
        match notice {
            Notice::Resync => state.pods_resync(&self.caches.pods.list(), now),
            Notice::Changed(changes) => {
                for Change { old, new, .. } in changes {
                    state.pod_changed(old.as_deref(), new.as_deref(), now);
                }
            }
        }
    }

    /// Begins to do what was decided.
    fn begin(&mut self, step: Step) {
        match step {
            Step::Bind { pod, node } => {
                let name = &*pod.key.name;
                tracing::info!(pod = name, %node, "scheduler: assigning pod {name} to node {node}");
                // What was to be said is not so any more.
                self.to_tell.remove(&pod.uid);
                self.binds.spawn(self.writer.clone().bind(pod, node));
            }
            Step::Tell(told) => {
                self.writer.tell_event(&told);
                self.to_tell.insert(told.pod.uid.clone(), told);
            }
            Step::Preempt { told, node, victims } => {
                self.writer.tell_event(&told);
                self.to_tell.remove(&told.pod.uid);
                self.to_preempt.push((told, node, victims));
            }
        }
        self.write_more();
    }

    /// Begins as many of the writes that wait as may be under way.
    fn write_more(&mut self) {
        while self.others.len() < MAX_OTHER_WRITES {
            if let Some((told, node, victims)) = self.to_preempt.pop() {
                self.being_told.insert(told.pod.uid.clone());
                self.others.spawn(self.writer.clone().preempt(told, node, victims));
                continue;
            }
            let next = self.to_tell.keys().find(|uid| !self.being_told.contains(*uid)).cloned();
            let Some(told) = next.and_then(|uid| self.to_tell.remove(&uid)) else { return };
            self.being_told.insert(told.pod.uid.clone());
            self.others.spawn(self.writer.clone().tell(told));
        }
    }

    fn ended(&mut self, state: &mut State, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Bind { pod, bound } => {
                let known = self.caches.pods.get(&pod.key);
                state.bind_ended(&pod.uid, bound, known.as_deref(), now);
            }
            Outcome::Told { pod } => {
                self.being_told.remove(&pod.uid);
            }
            Outcome::Preempted { pod, succeeded } => {
                self.being_told.remove(&pod.uid);
                if !succeeded {
                    state.preemption_failed(&pod.uid, now);
                }
            }
        }
        self.write_more();
    }
}

/// What a write has come to; its panic goes on to whoever runs the scheduler.
fn written(ended: Result<Outcome, tokio::task::JoinError>) -> Outcome {
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => unreachable!("nobody cancels a write: {error}"),
    })
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
