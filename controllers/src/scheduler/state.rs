//! What the scheduler knows, and what it makes of it: changes go in, decisions come out.
//!
//! One task owns it, so nothing is locked, and a decision sees everything that was known when it
//! began. Nothing here waits for anything; time and chance are passed in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use rand::Rng;
use tokio::time::Instant;

use super::SCHEDULER_NAME;
use super::decide::{Decision, Refusals, Search, decide};
use super::explain::{self, Waiting};
use super::hints::{Happening, may_help};
use super::node_info::NodeFacts;
use super::nominations::Nominations;
use super::pod_info::{self, PendingPod, PodInfo};
use super::preempt::{Preemption, preempt};
use super::priority::PriorityClasses;
use super::queue::{Attempt, Queue};
use super::snapshot::{NodeChange, NodeIndex, Snapshot};
use crate::pod;

/// How long a pod that was bound may stay unseen on its node before it is looked at anew.
const UNSEEN_MAX: Duration = Duration::from_secs(60);

/// A pod, by its name and by what sets it apart from others of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodId {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Arc<str>,
}

impl PodId {
    fn of(pod: &PodInfo) -> Self {
        Self { key: pod.key.clone(), uid: pod.uid.clone() }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The pod gets that node.
    Bind { pod: PodId, node: Arc<str> },
    /// The pod's status says why it waits.
    Tell(Told),
    /// The victims are deleted, so that the pod can have that node.
    Preempt { told: Told, node: Arc<str>, victims: Vec<PodId> },
}

/// What a pod's status is to say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) pod: PodId,
    pub(crate) waiting: Waiting,
    pub(crate) message: String,
    pub(crate) nominated: Nominated,
}

/// What becomes of `status.nominatedNodeName`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Nominated {
    Keep,
    Set(Arc<str>),
    Clear,
}

/// How a bind has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// It was written.
    Done,
    /// It was not written.
    Failed,
}

/// What the scheduler knows.
#[derive(Debug)]
pub(crate) struct State {
    snapshot: Snapshot,
    queue: Queue,
    nominations: Nominations,
    classes: PriorityClasses,
    search: Search,
    /// The pods whose bind was not seen yet.
    assumed: HashMap<Arc<str>, Assumed>,
    /// Until when those of them are to be seen that were bound, in that order; some were seen.
    unseen: VecDeque<(Instant, Arc<str>)>,
    /// What is to be told to pods, before anything else is decided.
    to_tell: Vec<Told>,
}

#[derive(Debug)]
struct Assumed {
    attempt: Attempt,
    /// Whether the bind has ended well.
    bound: bool,
}

impl State {
    pub(crate) fn new(classes: &[Arc<PriorityClass>]) -> Self {
        Self {
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            nominations: Nominations::default(),
            classes: PriorityClasses::new(classes),
            search: Search::default(),
            assumed: HashMap::new(),
            unseen: VecDeque::new(),
            to_tell: Vec::new(),
        }
    }

    // --- What happens

    /// Takes note of a node as it is now.
    pub(crate) fn node_set(&mut self, node: &Node, now: Instant) {
        let (index, change) = self.snapshot.set_node(node.name(), NodeFacts::read(node));
        if change != NodeChange::Nothing {
            self.wake(Happening::Node(index, change), now);
        }
    }

    /// Takes note that a node is gone.
    pub(crate) fn node_gone(&mut self, name: &str, now: Instant) {
        if self.snapshot.remove_node(name) {
            self.wake(Happening::NodeGone, now);
        }
    }

    /// Takes note of all nodes there are.
    pub(crate) fn nodes_resync(&mut self, nodes: &[Arc<Node>], now: Instant) {
        let seen: HashSet<&str> = nodes.iter().map(|node| node.name()).collect();
        for name in self.snapshot.node_names() {
            if !seen.contains(&*name) {
                self.node_gone(&name, now);
            }
        }
        nodes.iter().for_each(|node| self.node_set(node, now));
    }

    /// Takes note of a change of a pod, or of one of its name.
    pub(crate) fn pod_changed(&mut self, old: Option<&Pod>, new: Option<&Pod>, now: Instant) {
        if let Some(old) = old
            && new.is_none_or(|new| new.uid() != old.uid())
        {
            self.forget(old.uid(), now);
        }
        let Some(new) = new else { return };
        if old.is_some_and(|old| pod_info::is_same(old, new)) {
            return;
        }
        if pod::is_finished(new) {
            self.forget(new.uid(), now);
        } else if let Some(node) = new.node_name() {
            self.seen_on(new, node, now);
        } else if !wants_node(new) {
            self.forget(new.uid(), now);
        } else if !self.snapshot.is_placed(new.uid()) {
            self.wait_for_node(new, now);
        }
    }

    /// Takes note of all pods there are.
    pub(crate) fn pods_resync(&mut self, pods: &[Arc<Pod>], now: Instant) {
        let seen: HashSet<&str> = pods.iter().map(|pod| pod.uid()).collect();
        let mut gone = self.snapshot.placed_beside(&seen);
        gone.extend(self.queue.beside(&seen));
        for uid in gone {
            self.forget(&uid, now);
        }
        let mut pods: Vec<&Arc<Pod>> = pods.iter().collect();
        // Those that have waited longest are tried first.
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let (bound, unbound): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| pod.node_name().is_some());
        bound.into_iter().chain(unbound).for_each(|pod| self.pod_changed(None, Some(pod), now));
    }

    /// Takes note of all priority classes; `pods` are all pods there are.
    pub(crate) fn classes_resync(
        &mut self,
        classes: &[Arc<PriorityClass>],
        pods: &[Arc<Pod>],
        now: Instant,
    ) {
        self.classes = PriorityClasses::new(classes);
        for pod in pods {
            if self.queue.contains(pod.uid()) {
                self.wait_for_node(pod, now);
            }
        }
    }

    /// Takes note of how a bind has ended. `pod` is what is known of the pod now.
    pub(crate) fn bind_ended(&mut self, uid: &str, bound: Bound, pod: Option<&Pod>, now: Instant) {
        match (bound, self.assumed.get_mut(uid)) {
            // It was seen, or is gone.
            (_, None) => {}
            (Bound::Done, Some(assumed)) => {
                assumed.bound = true;
                self.unseen.push_back((now + UNSEEN_MAX, uid.into()));
            }
            (Bound::Failed, Some(_)) => self.withdraw(uid, pod, now),
        }
    }

    /// Takes note that making room for a pod has failed.
    pub(crate) fn preemption_failed(&mut self, uid: &str, now: Instant) {
        self.nominations.remove(uid);
        self.queue.wake_one(uid, now);
    }

    /// Takes note of the time. `pods` finds what is known of a pod now.
    pub(crate) fn tick(&mut self, now: Instant, pods: impl Fn(&ObjectKey) -> Option<Arc<Pod>>) {
        self.queue.flush(now);
        while let Some((until, uid)) = self.unseen.front()
            && *until <= now
        {
            let uid = uid.clone();
            self.unseen.pop_front();
            let assumed = self.assumed.get(&uid).filter(|assumed| assumed.bound);
            if let Some(key) = assumed.map(|assumed| assumed.attempt.pod.info.key.clone()) {
                tracing::warn!(pod = %key, "scheduler: the bind of a pod was not seen, it is looked at anew");
                self.withdraw(&uid, pods(&key).as_deref(), now);
            }
        }
    }

    /// When the time is to be noted at the latest.
    pub(crate) fn next_tick(&mut self) -> Option<Instant> {
        while self.unseen.front().is_some_and(|(_, uid)| !self.assumed.contains_key(uid)) {
            self.unseen.pop_front();
        }
        let unseen = self.unseen.front().map(|(until, _)| *until);
        self.queue.next_flush().into_iter().chain(unseen).min()
    }

    fn wake(&mut self, happening: Happening<'_>, now: Instant) {
        let snapshot = &self.snapshot;
        self.queue
            .wake_where(|pod, refused_by| may_help(happening, pod, refused_by, snapshot), now);
    }

    fn forget(&mut self, uid: &str, now: Instant) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.nominations.remove(uid);
        let left = self.snapshot.remove(uid);
        self.left(left, now);
    }

    fn left(&mut self, left: Option<(Arc<PodInfo>, NodeIndex)>, now: Instant) {
        if let Some((pod, node)) = left {
            self.wake(Happening::Left(&pod, node), now);
        }
    }

    fn seen_on(&mut self, pod: &Pod, node: &str, now: Instant) {
        let uid = pod.uid();
        self.queue.remove(uid);
        self.nominations.remove(uid);
        self.assumed.remove(uid);
        // Whoever bound it may know classes that are gone by now.
        let priority = self.classes.of(pod.spec.as_ref()).unwrap_or_default();
        let info = Arc::new(PodInfo::read(pod, priority));
        // Where it was assumed to be, and is not, there is room again.
        let left = if self.snapshot.is_assumed(uid) { self.snapshot.withdraw(uid) } else { None };
        self.snapshot.place(info.clone(), node, false);
        self.left(left.filter(|(_, index)| self.snapshot.find_node(node) != Some(*index)), now);
        self.wake(Happening::Placed(&info), now);
    }

    fn wait_for_node(&mut self, pod: &Pod, now: Instant) {
        let pending = self.read(pod);
        if pending.gated {
            self.to_tell.push(Told {
                pod: PodId::of(&pending.info),
                waiting: Waiting::Gated,
                message: explain::GATED.to_owned(),
                nominated: Nominated::Keep,
            });
        }
        let known = self.nominations.node_of(&pending.info.uid).cloned();
        if let Some(node) = known.as_deref().or(pending.nominated.as_deref()) {
            let node = node.to_owned();
            self.nominations.set(&pending.info, &node);
        }
        self.queue.set(Arc::new(pending), now);
    }

    fn read(&self, pod: &Pod) -> PendingPod {
        PendingPod::read(pod, self.classes.of(pod.spec.as_ref()))
    }

    /// The pod has no node after all: it is tried again, if it is still there.
    fn withdraw(&mut self, uid: &str, pod: Option<&Pod>, now: Instant) {
        let Some(Assumed { mut attempt, .. }) = self.assumed.remove(uid) else { return };
        let left = self.snapshot.withdraw(uid);
        if let Some(pod) = pod.filter(|pod| pod.uid() == uid && wants_node(pod)) {
            attempt.pod = Arc::new(self.read(pod));
            self.queue.retry(attempt, now);
        }
        self.left(left, now);
    }

    // --- What is to be done

    /// Whether there is something to be done.
    pub(crate) fn has_work(&self) -> bool {
        self.queue.has_active() || !self.to_tell.is_empty()
    }

    /// Decides on one pod; none when no pod is to be tried now.
    pub(crate) fn next(&mut self, now: Instant, random: &mut impl Rng) -> Option<Step> {
        if let Some(told) = self.to_tell.pop() {
            return Some(Step::Tell(told));
        }
        let attempt = self.queue.pop()?;
        let pod = attempt.pod.clone();
        if let Some(defect) = &pod.defect {
            self.queue.hold(attempt);
            return Some(Step::Tell(waits(&pod, defect.clone(), Nominated::Keep)));
        }
        let decision =
            decide(&pod, &mut self.snapshot, &self.nominations, &mut self.search, random);
        match decision {
            Decision::Node(index) => Some(self.assume(attempt, index)),
            Decision::Nowhere(refusals) => Some(self.nowhere(attempt, &refusals, now, random)),
        }
    }

    fn assume(&mut self, attempt: Attempt, index: NodeIndex) -> Step {
        let pod = attempt.pod.info.clone();
        let name = self.snapshot.node(index).map(|node| node.name.clone());
        let node = name.expect("a decision chooses one of the nodes of this moment");
        self.snapshot.place(pod.clone(), &node, true);
        self.nominations.remove(&pod.uid);
        self.assumed.insert(pod.uid.clone(), Assumed { attempt, bound: false });
        Step::Bind { pod: PodId::of(&pod), node }
    }

    fn nowhere(
        &mut self,
        attempt: Attempt,
        refusals: &Refusals,
        now: Instant,
        random: &mut impl Rng,
    ) -> Step {
        let pod = attempt.pod.clone();
        let why = explain::refused(refusals);
        self.queue.unschedulable(attempt, refusals.filters(), now);
        if refusals.nodes.is_empty() {
            return Step::Tell(waits(&pod, why, Nominated::Keep));
        }
        let found = preempt(&pod, refusals, &mut self.snapshot, &self.nominations, random);
        match found {
            Preemption::Wait(what) => {
                Step::Tell(waits(&pod, format!("{why} preemption: {what}"), Nominated::Keep))
            }
            Preemption::None(what) => {
                self.nominations.remove(&pod.info.uid);
                Step::Tell(waits(&pod, format!("{why} preemption: {what}"), Nominated::Clear))
            }
            Preemption::Victims { node, victims } => {
                let name = self.snapshot.node(node).map(|node| node.name.clone());
                let node = name.expect("victims are found on one of the nodes of this moment");
                self.keep_room(&pod.info, &node, now);
                let victims = victims.iter().map(|victim| PodId::of(victim)).collect();
                let told = waits(&pod, why, Nominated::Set(node.clone()));
                Step::Preempt { told, node, victims }
            }
        }
    }

    /// Keeps room on a node for a pod; less important ones for which room was kept there look for
    /// another place.
    fn keep_room(&mut self, pod: &Arc<PodInfo>, node: &str, now: Instant) {
        let others = self.nominations.on(node).iter();
        let lower: Vec<Arc<PodInfo>> =
            others.filter(|other| other.priority.value < pod.priority.value).cloned().collect();
        for other in lower {
            self.nominations.remove(&other.uid);
            self.queue.wake_one(&other.uid, now);
        }
        self.nominations.set(pod, node);
    }
}

fn waits(pod: &PendingPod, message: String, nominated: Nominated) -> Told {
    Told { pod: PodId::of(&pod.info), waiting: Waiting::Unschedulable, message, nominated }
}

/// Whether the pod is waiting for a node, from this scheduler.
fn wants_node(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    pod.node_name().is_none()
        && pod::is_active(pod)
        && scheduler.is_none_or(|name| name.is_empty() || name == SCHEDULER_NAME)
}

#[cfg(test)]
mod tests;
