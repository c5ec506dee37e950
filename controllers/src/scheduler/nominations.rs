//! The pods for which others were asked to make room, and where.
//!
//! Until such a pod has its node, its room is kept: pods that are not more important are placed as
//! if it were there already.

use std::collections::HashMap;
use std::sync::Arc;

use super::pod_info::PodInfo;

/// Which node is kept for whom.
#[derive(Debug, Default)]
pub(crate) struct Nominations {
    nodes: HashMap<Arc<str>, Arc<str>>,
    pods: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
}

impl Nominations {
    /// Keeps room on a node for a pod, and no longer on another.
    pub(crate) fn set(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        let node: Arc<str> = node.into();
        self.pods.entry(node.clone()).or_default().push(pod.clone());
        self.nodes.insert(pod.uid.clone(), node);
    }

    /// Keeps no room for a pod any more, and says whether any was kept.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(node) = self.nodes.remove(uid) else { return false };
        if let Some(pods) = self.pods.get_mut(&node) {
            pods.retain(|pod| &*pod.uid != uid);
            if pods.is_empty() {
                self.pods.remove(&node);
            }
        }
        true
    }

    /// Where room is kept for a pod.
    pub(crate) fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.nodes.get(uid)
    }

    /// The pods for which room is kept on a node.
    pub(crate) fn on(&self, node: &str) -> &[Arc<PodInfo>] {
        if self.pods.is_empty() {
            return &[];
        }
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    /// The pods that have to be reckoned with on a node when another is to be placed: those that
    /// are as important as it or more so.
    pub(crate) fn before<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.on(node)
            .iter()
            .filter(|other| other.uid != pod.uid && other.priority.value >= pod.priority.value)
    }

    /// All pods for which room is kept.
    pub(crate) fn pods(&self) -> Vec<Arc<PodInfo>> {
        self.pods.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture;
    use crate::scheduler::fixture::info;

    #[test]
    fn room_is_kept_in_one_place_for_those_who_matter() {
        let pod = |name: &str, priority: i32| {
            info(fixture::pod(name).spec(json!({ "containers": [], "priority": priority })))
        };
        let (high, middle, low) = (pod("high", 9), pod("middle", 5), pod("low", 1));
        let mut nominations = Nominations::default();
        nominations.set(&high, "node-1");
        nominations.set(&high, "node-2");
        nominations.set(&middle, "node-2");
        let before = |nominations: &Nominations, pod: &PodInfo, node: &str| {
            nominations.before(pod, node).map(|pod| pod.key.name.to_string()).collect::<Vec<_>>()
        };
        assert!(nominations.on("node-1").is_empty());
        assert_eq!(before(&nominations, &low, "node-2"), ["high", "middle"]);
        assert_eq!(before(&nominations, &middle, "node-2"), ["high"]);
        assert!(before(&nominations, &high, "node-2").is_empty());
        assert_eq!(nominations.node_of("uid-high").map(|node| &**node), Some("node-2"));
        assert!(nominations.remove("uid-high") && !nominations.remove("uid-high"));
        assert!(before(&nominations, &middle, "node-2").is_empty());
        assert_eq!(nominations.pods().len(), 1);
    }
}
