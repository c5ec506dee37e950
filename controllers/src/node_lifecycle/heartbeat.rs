//! How long a node's heartbeat has been missing, judged by what was seen here and when.
//!
//! A heartbeat is a *change* of the node's lease (or of the heartbeat time in its `Ready`
//! condition); the times written in them are compared for equality only, so it does not matter
//! what the node's clock says.
//!
//! Age is counted in [`ObservedTime`], which stands still while the store does not answer: no
//! heartbeat could have been seen meanwhile, and the nodes are not to blame. It stands still, too,
//! while this process does not run.
//!
//! ```text
//! store answers     yes   yes   yes   no    no    yes   yes
//! clock               0     1     2     3     4     5     6
//! observed time       0     1     2     2     2     2     3
//! ```

use std::collections::HashMap;
use std::time::Duration;

use api::Object;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use super::condition;

/// Time during which a heartbeat would have been seen.
#[derive(Debug)]
pub(crate) struct ObservedTime {
    observed: Duration,
    last: Option<Instant>,
    /// A longer step than this means that the process was stopped in between.
    step_max: Duration,
}

impl ObservedTime {
    /// A clock to be ticked more often than every `step_max`.
    pub(crate) fn new(step_max: Duration) -> Self {
        Self { observed: Duration::ZERO, last: None, step_max }
    }

    /// Moves on to `now`. `reachable` says whether the store answers at this moment; time counts
    /// between two ticks at which it did.
    pub(crate) fn tick(&mut self, now: Instant, reachable: bool) {
        if let Some(last) = self.last
            && reachable
        {
            self.observed += now.saturating_duration_since(last).min(self.step_max);
        }
        self.last = reachable.then_some(now);
    }

    /// The time so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.observed
    }
}

/// What changes with every heartbeat, as somebody saw it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mark {
    lease: Sign,
    condition: Sign,
}

/// A time that a heartbeat sets, and the revision at which it was read.
#[derive(Debug, Clone, Copy, Default)]
struct Sign {
    revision: i64,
    time: Option<Timestamp>,
}

impl Mark {
    /// The mark of a node and its lease, if it has one.
    pub(crate) fn new(node: &Node, lease: Option<&Lease>) -> Self {
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let heartbeat =
            condition::ready(node).and_then(|condition| condition.last_heartbeat_time.as_ref());
        Self {
            lease: Sign {
                revision: lease.map_or(0, Object::revision),
                time: renewed.map(|time| time.0),
            },
            condition: Sign { revision: node.revision(), time: heartbeat.map(|time| time.0) },
        }
    }

    /// Takes over what is newer in another mark, and says whether that was a heartbeat.
    fn update(&mut self, seen: Self) -> bool {
        let lease = self.lease.update(seen.lease);
        let condition = self.condition.update(seen.condition);
        lease || condition
    }
}

impl Sign {
    /// What was read from the store and what a cache shows may come in any order: the newer counts.
    fn update(&mut self, seen: Self) -> bool {
        if seen.revision <= self.revision {
            return false;
        }
        let changed = seen.time != self.time;
        *self = seen;
        changed
    }
}

/// The latest heartbeat of every node.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    by_node: HashMap<String, (Mark, Duration)>,
}

impl Heartbeats {
    /// Takes note of a node's mark at observed time `at`, and says how long it has been silent.
    /// A node seen for the first time has just sent a heartbeat, for all that is known.
    pub(crate) fn observe(&mut self, node: &str, mark: Mark, at: Duration) -> Duration {
        match self.by_node.get_mut(node) {
            Some((known, since)) => {
                if known.update(mark) {
                    *since = at;
                }
                at.saturating_sub(*since)
            }
            None => {
                self.by_node.insert(node.to_owned(), (mark, at));
                Duration::ZERO
            }
        }
    }

    /// Lets the silence of all nodes begin anew.
    pub(crate) fn forgive(&mut self, at: Duration) {
        self.by_node.values_mut().for_each(|(_, since)| *since = at);
    }

    /// Drops the nodes that are gone.
    pub(crate) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_node.retain(|node, _| exists(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, lease_renewed, node};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn time_counts_only_while_heartbeats_could_be_seen() {
        // (ticks: (second, reachable), observed seconds), steps of at most 2 s
        let rows: Vec<(&[(u64, bool)], u64)> = vec![
            (&[], 0),
            (&[(7, true)], 0),
            (&[(0, true), (1, true), (2, true)], 2),
            (&[(0, true), (1, true), (2, false), (3, false), (4, true)], 1),
            (&[(0, true), (1, false), (2, true), (3, true)], 1),
            (&[(0, false), (1, false), (2, true)], 0),
            (&[(0, true), (1, true), (61, true), (62, true)], 4),
        ];
        let start = Instant::now();
        for (ticks, expected) in rows {
            let mut time = ObservedTime::new(seconds(2));
            for (second, reachable) in ticks {
                time.tick(start + seconds(*second), *reachable);
            }
            assert_eq!(time.elapsed(), seconds(expected), "{ticks:?}");
        }
    }

    #[test]
    fn any_change_is_a_heartbeat_whatever_the_clocks_say() {
        let mut heartbeats = Heartbeats::default();
        // (observed second, lease's revision and renewal, age in s)
        let rows = [
            (5, None, 0),
            (9, None, 4),
            (10, Some((3, 1_000)), 0),
            (14, Some((3, 1_000)), 4),
            (15, Some((4, 400)), 0),
            // Older news, from a cache that lags behind.
            (20, Some((3, 1_000)), 5),
            // Somebody wrote the lease, but not its time.
            (25, Some((5, 400)), 10),
            // The lease is gone: that is no sign of life.
            (30, None, 15),
            (36, Some((6, 401)), 0),
        ];
        for (second, lease, age) in rows {
            let lease = lease.map(|(revision, renewed)| {
                let mut lease = lease_renewed("node-1", at(renewed));
                lease.metadata.resource_version = Some(i32::to_string(&revision));
                lease
            });
            let mark = Mark::new(&node("node-1", "True"), lease.as_ref());
            let silent_for = heartbeats.observe("node-1", mark, seconds(second));
            assert_eq!(silent_for, seconds(age), "at {second}");
        }
    }

    #[test]
    fn the_time_in_the_condition_counts_too() {
        let mut heartbeats = Heartbeats::default();
        let mut beating = node("node-1", "True");
        assert_eq!(heartbeats.observe("node-1", Mark::new(&beating, None), seconds(1)), seconds(0));
        let conditions = beating.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions[0].last_heartbeat_time = Some(Time(at(7)));
        beating.metadata.resource_version = Some("9".into());
        assert_eq!(heartbeats.observe("node-1", Mark::new(&beating, None), seconds(5)), seconds(0));

        // Written by others, as by the one who finds it silent.
        beating.metadata.resource_version = Some("10".into());
        assert_eq!(heartbeats.observe("node-1", Mark::new(&beating, None), seconds(9)), seconds(4));

        heartbeats.forgive(seconds(12));
        assert_eq!(heartbeats.observe("node-1", Mark::default(), seconds(14)), seconds(2));

        heartbeats.retain(|_| false);
        assert_eq!(heartbeats.observe("node-1", Mark::default(), seconds(99)), seconds(0));
    }
}
