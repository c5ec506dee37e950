//! Which node carries how many pods, and of which owners.
//!
//! A pod counts from the moment its node is decided (*assumed*), long before its bind can be seen
//! in the store; otherwise pods that come in one burst would all find the same node empty. What
//! is seen always wins over what is assumed. Every operation costs the same however many pods
//! there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::Object;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The pods on every node.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    /// By uid of the pod: a name may come back, a uid never does.
    placements: HashMap<String, Placement>,
    nodes: HashMap<Arc<str>, Tally>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Placement {
    node: Arc<str>,
    owner: Option<Arc<str>>,
    assumed: bool,
}

#[derive(Debug, Default)]
struct Tally {
    pods: u32,
    by_owner: HashMap<Arc<str>, u32>,
}

impl Occupancy {
    /// Takes note of a pod as the store has it, and says whether it has left its node.
    pub(crate) fn observe(&mut self, pod: &Pod) -> bool {
        let uid = pod.uid();
        if pod::is_finished(pod) {
            return self.remove(uid);
        }
        if let Some(node) = pod.node_name() {
            // A pod on its way out still takes its place, but its owner wants another elsewhere.
            let owner = Some(pod).filter(|pod| !pod.is_deleting());
            self.place(uid, node, owner.and_then(|pod| controller(pod)), false);
        }
        // A pod seen without a node may have an assumed one: its bind is on the way.
        false
    }

    /// Counts a pod on a node it is about to be bound to.
    pub(crate) fn assume(&mut self, pod: &Pod, node: &str) {
        self.place(pod.uid(), node, controller(pod), true);
    }

    /// Takes an assumption back, as the bind has failed. A pod that was meanwhile seen on a node
    /// stays there.
    pub(crate) fn withdraw(&mut self, uid: &str) {
        if self.placements.get(uid).is_some_and(|placement| placement.assumed) {
            self.remove(uid);
        }
    }

    /// Whether the pod is on a node, or about to be.
    pub(crate) fn is_placed(&self, uid: &str) -> bool {
        self.placements.contains_key(uid)
    }

    /// The node the pod is about to be bound to, while it was not seen there.
    pub(crate) fn assumed(&self, uid: &str) -> Option<&str> {
        self.placements
            .get(uid)
            .filter(|placement| placement.assumed)
            .map(|placement| &*placement.node)
    }

    /// Takes note of all pods there are, with a node or without, and drops the others.
    pub(crate) fn resync(&mut self, pods: &[Arc<Pod>]) {
        let seen: HashSet<&str> = pods.iter().map(|pod| pod.uid()).collect();
        let gone = self.placements.keys().filter(|uid| !seen.contains(uid.as_str()));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.remove(&uid);
        }
        for pod in pods {
            self.observe(pod);
        }
    }

    /// Drops a pod that is gone, and says whether it was on a node.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(placement) = self.placements.remove(uid) else { return false };
        let Some(tally) = self.nodes.get_mut(&placement.node) else { return true };
        tally.pods -= 1;
        if let Some(owner) = placement.owner
            && let Some(count) = tally.by_owner.get_mut(&owner)
        {
            *count -= 1;
            if *count == 0 {
                tally.by_owner.remove(&owner);
            }
        }
        if tally.pods == 0 {
            self.nodes.remove(&placement.node);
        }
        true
    }

    /// How many pods the node carries.
    pub(crate) fn pods(&self, node: &str) -> u32 {
        self.nodes.get(node).map_or(0, |tally| tally.pods)
    }

    /// How many pods of the owner the node carries.
    pub(crate) fn pods_of(&self, node: &str, owner: &str) -> u32 {
        self.nodes.get(node).and_then(|tally| tally.by_owner.get(owner)).copied().unwrap_or(0)
    }

    fn place(&mut self, uid: &str, node: &str, owner: Option<&str>, assumed: bool) {
        self.remove(uid);
        let (node, owner): (Arc<str>, Option<Arc<str>>) = (node.into(), owner.map(Into::into));
        let tally = self.nodes.entry(node.clone()).or_default();
        tally.pods += 1;
        if let Some(owner) = &owner {
            *tally.by_owner.entry(owner.clone()).or_default() += 1;
        }
        self.placements.insert(uid.to_owned(), Placement { node, owner, assumed });
    }
}

fn controller(pod: &Pod) -> Option<&str> {
    pod.controller().map(|owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    #[test]
    fn what_is_seen_wins_over_what_is_assumed() {
        let mut occupancy = Occupancy::default();
        let unbound = pod("a").owned_by("rs").build();
        occupancy.assume(&unbound, "node-1");
        occupancy.observe(&unbound);
        assert_eq!(occupancy.pods_of("node-1", "rs"), 1, "an old view does not undo an assumption");

        occupancy.observe(&pod("a").owned_by("rs").on("node-2").build());
        assert_eq!((occupancy.pods("node-1"), occupancy.pods("node-2")), (0, 1));

        occupancy.withdraw("uid-a");
        assert!(occupancy.is_placed("uid-a"), "a bind that was seen did not fail");
    }

    #[test]
    fn a_failed_bind_leaves_nothing() {
        let mut occupancy = Occupancy::default();
        occupancy.assume(&pod("a").owned_by("rs").build(), "node-1");
        occupancy.withdraw("uid-a");
        assert!(!occupancy.is_placed("uid-a"));
        assert_eq!((occupancy.pods("node-1"), occupancy.pods_of("node-1", "rs")), (0, 0));
    }

    #[test]
    fn a_resync_drops_what_is_gone_and_keeps_what_is_under_way() {
        let mut occupancy = Occupancy::default();
        occupancy.observe(&pod("gone").on("node-1").build());
        occupancy.assume(&pod("never-bound").build(), "node-1");
        occupancy.assume(&pod("under-way").build(), "node-1");
        assert_eq!(occupancy.assumed("uid-under-way"), Some("node-1"));

        occupancy.resync(&[pod("new").on("node-2").build(), pod("under-way").build()]);
        assert!(!occupancy.is_placed("uid-gone") && !occupancy.is_placed("uid-never-bound"));
        assert_eq!((occupancy.pods("node-1"), occupancy.pods("node-2")), (1, 1));

        occupancy.observe(&pod("under-way").on("node-1").build());
        assert_eq!(occupancy.assumed("uid-under-way"), None);
    }

    #[test]
    fn pods_make_room_as_they_end() {
        let mut occupancy = Occupancy::default();
        let running = || pod("a").owned_by("rs").on("node-1").phase("Running");
        occupancy.observe(&running().build());
        occupancy.observe(&running().build());
        assert_eq!((occupancy.pods("node-1"), occupancy.pods_of("node-1", "rs")), (1, 1));

        occupancy.observe(&running().terminating().build());
        assert_eq!((occupancy.pods("node-1"), occupancy.pods_of("node-1", "rs")), (1, 0));

        occupancy.observe(&running().phase("Succeeded").build());
        assert_eq!(occupancy.pods("node-1"), 0);

        occupancy.observe(&running().build());
        occupancy.remove("uid-a");
        assert_eq!(occupancy.pods("node-1"), 0);
        assert!(occupancy.nodes.is_empty() && occupancy.placements.is_empty());
    }
}
