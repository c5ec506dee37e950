//! The pods that wait for a node, and when each is tried.
//!
//! ```text
//!            +-- held: has scheduling gates, or makes no sense; until it is changed
//!  new pod --+
//!            +-> active --tried--> placed (not here any more)
//!                 ^  ^     |
//!                 |  |     +-> unschedulable --something relevant changed, or 5 minutes--+
//!                 |  |                                                                   |
//!                 |  +--------------- its backoff is over <------------------------------+
//!                 +-- backoff <------ its backoff goes on <------------------------------+
//! ```
//!
//! Active pods are tried the most important first, then in the order in which they became active.
//! Each failed attempt doubles the backoff, from 1 to 10 seconds. All as in Kubernetes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::Backoff;
use tokio::time::Instant;

use super::filters::Filters;
use super::pod_info::PendingPod;

/// How long a pod waits after an attempt that failed.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(10) };

/// After how long a pod is tried again though nothing has happened that seems to matter.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// The pods that wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// By uid.
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeMap<(Reverse<i32>, u64), Arc<str>>,
    backoff: BTreeMap<(Instant, u64), Arc<str>>,
    /// By when they came here.
    unschedulable: BTreeMap<(Instant, u64), Arc<str>>,
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PendingPod>,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Held,
    Active((Reverse<i32>, u64)),
    Backoff((Instant, u64)),
    Unschedulable { at: (Instant, u64), refused_by: Filters },
}

/// A pod that is being tried.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) pod: Arc<PendingPod>,
    /// How often it was tried, with this time.
    attempts: u32,
}

impl Queue {
    /// Adds a pod, or takes note that it was changed: then it is tried again.
    pub(crate) fn set(&mut self, pod: Arc<PendingPod>, now: Instant) {
        let old = self.take(&pod.info.uid);
        let attempts = old.as_ref().map_or(0, |entry| entry.attempts);
        if pod.gated {
            return self.put(pod, attempts, Place::Held);
        }
        match old.map(|entry| (entry.place, entry.pod.info.priority)) {
            Some((Place::Active((_, turn)), _)) => {
                let rank = (Reverse(pod.info.priority.value), turn);
                self.put(pod, attempts, Place::Active(rank));
            }
            Some((Place::Backoff(until), _)) => self.put(pod, attempts, Place::Backoff(until)),
            Some((Place::Unschedulable { at, .. }, _)) => self.wake(pod, attempts, at.0, now),
            Some((Place::Held, _)) | None => self.activate(pod, attempts),
        }
    }

    /// Drops a pod.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// The pod to be tried now. It is not in the queue while it is.
    pub(crate) fn pop(&mut self) -> Option<Attempt> {
        let uid = self.active.first_key_value()?.1.clone();
        let entry = self.take(&uid)?;
        Some(Attempt { pod: entry.pod, attempts: entry.attempts + 1 })
    }

    /// Whether a pod is to be tried now.
    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// No node takes the pod, because of these filters.
    pub(crate) fn unschedulable(&mut self, attempt: Attempt, refused_by: Filters, now: Instant) {
        let at = (now, self.turn());
        self.put(attempt.pod, attempt.attempts, Place::Unschedulable { at, refused_by });
    }

    /// The pod could not be bound: it is tried again after its backoff.
    pub(crate) fn retry(&mut self, attempt: Attempt, now: Instant) {
        let until = (now + BACKOFF.after(attempt.attempts), self.turn());
        self.put(attempt.pod, attempt.attempts, Place::Backoff(until));
    }

    /// Nothing but a change of the pod itself can help.
    pub(crate) fn hold(&mut self, attempt: Attempt) {
        self.put(attempt.pod, attempt.attempts, Place::Held);
    }

    /// Something has happened: tries those pods again for which it may matter.
    pub(crate) fn wake_where(
        &mut self,
        matters: impl Fn(&PendingPod, Filters) -> bool,
        now: Instant,
    ) {
        let woken = self.unschedulable.values().filter(|uid| {
            self.entries.get(*uid).is_some_and(|entry| match entry.place {
                Place::Unschedulable { refused_by, .. } => matters(&entry.pod, refused_by),
                Place::Held | Place::Active(_) | Place::Backoff(_) => false,
            })
        });
        for uid in woken.cloned().collect::<Vec<_>>() {
            self.wake_one(&uid, now);
        }
    }

    /// Tries a pod again, if it is unschedulable.
    pub(crate) fn wake_one(&mut self, uid: &str, now: Instant) {
        let unschedulable = self
            .entries
            .get(uid)
            .is_some_and(|entry| matches!(entry.place, Place::Unschedulable { .. }));
        if let Some(entry) = unschedulable.then(|| self.take(uid)).flatten()
            && let Place::Unschedulable { at, .. } = entry.place
        {
            self.wake(entry.pod, entry.attempts, at.0, now);
        }
    }

    /// Moves what is due.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(((until, _), uid)) = self.backoff.first_key_value()
            && *until <= now
        {
            let uid = uid.clone();
            if let Some(entry) = self.take(&uid) {
                self.activate(entry.pod, entry.attempts);
            }
        }
        while let Some(((since, _), uid)) = self.unschedulable.first_key_value()
            && *since + UNSCHEDULABLE_MAX <= now
        {
            self.wake_one(&uid.clone(), now);
        }
    }

    /// When there is something to move.
    pub(crate) fn next_flush(&self) -> Option<Instant> {
        let backoff = self.backoff.first_key_value().map(|((until, _), _)| *until);
        let unschedulable = self.unschedulable.first_key_value();
        let unschedulable = unschedulable.map(|((since, _), _)| *since + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(unschedulable).min()
    }

    /// The uids of the pods that are not among those.
    pub(crate) fn beside(&self, seen: &HashSet<&str>) -> Vec<Arc<str>> {
        self.entries.keys().filter(|uid| !seen.contains(&***uid)).cloned().collect()
    }

    fn wake(&mut self, pod: Arc<PendingPod>, attempts: u32, failed_at: Instant, now: Instant) {
        let until = failed_at + BACKOFF.after(attempts);
        if until <= now {
            return self.activate(pod, attempts);
        }
        let until = (until, self.turn());
        self.put(pod, attempts, Place::Backoff(until));
    }

    fn activate(&mut self, pod: Arc<PendingPod>, attempts: u32) {
        let rank = (Reverse(pod.info.priority.value), self.turn());
        self.put(pod, attempts, Place::Active(rank));
    }

    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn put(&mut self, pod: Arc<PendingPod>, attempts: u32, place: Place) {
        let uid = pod.info.uid.clone();
        self.take(&uid);
        match place {
            Place::Held => {}
            Place::Active(rank) => drop(self.active.insert(rank, uid.clone())),
            Place::Backoff(until) => drop(self.backoff.insert(until, uid.clone())),
            Place::Unschedulable { at, .. } => drop(self.unschedulable.insert(at, uid.clone())),
        }
        self.entries.insert(uid, Entry { pod, attempts, place });
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        match entry.place {
            Place::Held => {}
            Place::Active(rank) => drop(self.active.remove(&rank)),
            Place::Backoff(until) => drop(self.backoff.remove(&until)),
            Place::Unschedulable { at, .. } => drop(self.unschedulable.remove(&at)),
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::fixture;
    use crate::scheduler::filters::Filter;
    use crate::scheduler::fixture::pending;

    fn pod(name: &str, priority: i32) -> Arc<PendingPod> {
        Arc::new(pending(
            fixture::pod(name).spec(json!({ "containers": [], "priority": priority })),
        ))
    }

    fn gated(name: &str) -> Arc<PendingPod> {
        let spec = json!({ "containers": [], "schedulingGates": [{ "name": "example.com/wait" }] });
        Arc::new(pending(fixture::pod(name).spec(spec)))
    }

    fn names(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop())
            .map(|attempt| attempt.pod.info.key.name.to_string())
            .collect()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_most_important_first_then_in_turn() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -3)] {
            queue.set(pod(name, priority), now);
        }
        queue.set(pod("a", 0), now);
        queue.remove("uid-c");
        assert_eq!(queue.entries.len(), 4);
        assert_eq!(names(&mut queue), ["b", "d", "a", "e"], "a change costs nobody its turn");
        assert!(!queue.has_active() && queue.next_flush().is_none() && queue.entries.is_empty());
    }

    #[test]
    fn a_gated_pod_is_held_until_it_is_changed() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.set(gated("a"), now);
        queue.wake_where(|_, _| true, now);
        assert!(queue.pop().is_none());
        queue.set(pod("a", 0), now);
        assert_eq!(names(&mut queue), ["a"]);
    }

    #[test]
    fn backoff_doubles_with_each_failure_up_to_ten_seconds() {
        let mut now = Instant::now();
        let mut queue = Queue::default();
        queue.set(pod("a", 0), now);
        for seconds in [1, 2, 4, 8, 10, 10] {
            let attempt = queue.pop().expect("it is active");
            queue.retry(attempt, now);
            assert_eq!(queue.next_flush(), Some(now + SECOND * seconds));
            queue.flush(now + SECOND * seconds - Duration::from_millis(1));
            assert!(!queue.has_active());
            now += SECOND * seconds;
            queue.flush(now);
        }
    }

    #[test]
    fn an_unschedulable_pod_waits_for_what_matters_and_for_its_backoff() {
        let now = Instant::now();
        let mut refused_by = Filters::default();
        refused_by.insert(Filter::Ports);
        let mut queue = Queue::default();
        queue.set(pod("a", 0), now);
        let attempt = queue.pop().unwrap();
        queue.unschedulable(attempt, refused_by, now);
        queue.wake_where(|_, filters| filters.contains(Filter::Taints), now + SECOND * 2);
        assert!(!queue.has_active(), "that does not matter to it");

        queue.wake_where(|_, filters| filters.contains(Filter::Ports), now + SECOND / 2);
        assert!(!queue.has_active(), "it was tried just before");
        assert_eq!(queue.next_flush(), Some(now + SECOND));
        queue.flush(now + SECOND);
        let attempt = queue.pop().expect("its backoff is over");
        queue.unschedulable(attempt, refused_by, now + SECOND);
        queue.wake_where(|_, _| true, now + SECOND * 3);
        assert_eq!(names(&mut queue), ["a"], "at once when the backoff is over already");
    }

    #[test]
    fn in_the_end_an_unschedulable_pod_is_tried_regardless() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.set(pod("a", 0), now);
        let attempt = queue.pop().unwrap();
        queue.unschedulable(attempt, Filters::default(), now);
        assert_eq!(queue.next_flush(), Some(now + UNSCHEDULABLE_MAX));
        queue.flush(now + UNSCHEDULABLE_MAX - SECOND);
        assert!(!queue.has_active());
        queue.flush(now + UNSCHEDULABLE_MAX);
        assert_eq!(names(&mut queue), ["a"]);
    }

    #[test]
    fn a_change_of_the_pod_is_a_reason_to_try_again() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, held) in [("a", false), ("b", true)] {
            queue.set(pod(name, 0), now);
            let attempt = queue.pop().unwrap();
            if held {
                queue.hold(attempt);
            } else {
                queue.unschedulable(attempt, Filters::default(), now);
            }
        }
        queue.wake_where(|pod, _| &*pod.info.key.name == "b", now + SECOND);
        assert!(!queue.has_active(), "what is held is not woken");
        for name in ["a", "b"] {
            queue.set(pod(name, 0), now + SECOND);
        }
        assert_eq!(names(&mut queue), ["a", "b"]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set { pod: u8, priority: i32, gated: bool },
        Remove(u8),
        Try { unschedulable: bool },
        Wake(u8),
        Wait(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8_u8, 0..3_i32, any::<bool>()).prop_map(|(pod, priority, gated)| Step::Set {
                pod,
                priority,
                gated
            }),
            (0..8_u8).prop_map(Step::Remove),
            any::<bool>().prop_map(|unschedulable| Step::Try { unschedulable }),
            (0..8_u8).prop_map(Step::Wake),
            (0..200_u8).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens, a pod is in exactly one place, and none is lost.
        #[test]
        fn no_pod_is_lost_or_doubled(steps in prop::collection::vec(step(), 0..100)) {
            let mut now = Instant::now();
            let mut queue = Queue::default();
            let mut there = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set { pod: number, priority, gated: is_gated } => {
                        let name = number.to_string();
                        queue.set(if is_gated { gated(&name) } else { pod(&name, priority) }, now);
                        there.insert(format!("uid-{name}"), is_gated);
                    }
                    Step::Remove(number) => {
                        queue.remove(&format!("uid-{number}"));
                        there.remove(&format!("uid-{number}"));
                    }
                    Step::Try { unschedulable } => if let Some(attempt) = queue.pop() {
                        if unschedulable {
                            queue.unschedulable(attempt, Filters::default(), now);
                        } else {
                            queue.retry(attempt, now);
                        }
                    },
                    Step::Wake(number) => queue.wake_one(&format!("uid-{number}"), now),
                    Step::Wait(seconds) => {
                        now += SECOND * u32::from(seconds);
                        queue.flush(now);
                    }
                }
                let held = queue.entries.values().filter(|entry| matches!(entry.place, Place::Held)).count();
                let elsewhere = queue.active.len() + queue.backoff.len() + queue.unschedulable.len();
                prop_assert_eq!(held + elsewhere, there.len());
                prop_assert_eq!(queue.entries.len(), there.len());
                prop_assert!(there.keys().all(|uid| queue.contains(uid)));
            }
            // After long enough all are tried but those that are gated.
            queue.flush(now + UNSCHEDULABLE_MAX);
            queue.flush(now + UNSCHEDULABLE_MAX * 2);
            let tried = std::iter::from_fn(|| queue.pop()).count();
            prop_assert_eq!(tried, there.values().filter(|gated| !**gated).count());
        }
    }
}
