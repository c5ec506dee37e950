//! The nodes and what they carry, as decisions see them; kept up to date change by change.
//!
//! A pod counts from the moment its node is decided (*assumed*), long before its bind can be seen
//! in the store; otherwise pods that come in one burst would all find the same node empty. What is
//! seen always wins over what is assumed. Everything that a decision sums up over pods is kept as
//! a sum, so a change costs the same, and a decision too, however many pods there are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::counts::{Carried, PerNode, Selected, SelectedId};
use super::node_info::{NodeFacts, NodeInfo};
use super::pod_info::PodInfo;
use super::terms::PodSelector;
use super::topology::{ColumnId, Topology};

/// A node's place in the snapshot, as long as the node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeIndex(pub(crate) u32);

/// The nodes with their pods.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    slots: Vec<Option<NodeInfo>>,
    free: Vec<NodeIndex>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    /// The nodes there are, one zone after the other in turn.
    order: Vec<NodeIndex>,
    order_is_old: bool,
    /// By uid.
    placed: HashMap<Arc<str>, Placed>,
    /// How many pods of each priority have a node.
    priorities: BTreeMap<i32, usize>,
    owners: HashMap<Arc<str>, PerNode<u32>>,
    /// How many nodes have each image.
    images: HashMap<String, usize>,
    selected: Selected,
    pub(crate) carried: Carried,
    pub(crate) topology: Topology,
}

#[derive(Clone, Debug)]
struct Placed {
    info: Arc<PodInfo>,
    node: NodeIndex,
    assumed: bool,
}

/// What a change of a node changed for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeChange {
    /// Nothing; nodes are written with every sign of life.
    Nothing,
    /// What it takes, or what keeps pods away from it.
    Room,
    /// It is new, or in another part of the topology.
    Topology,
}

impl Snapshot {
    // --- Nodes

    /// Takes note of a node.
    pub(crate) fn set_node(&mut self, name: &str, facts: NodeFacts) -> (NodeIndex, NodeChange) {
        let index = self.slot(name);
        let node = self.slots[index.0 as usize].get_or_insert_with(|| NodeInfo::new(name.into()));
        let old = node.facts.clone();
        if old.as_deref() == Some(&facts) {
            return (index, NodeChange::Nothing);
        }
        let facts = Arc::new(facts);
        node.facts = Some(facts.clone());
        self.topology.set(index, Some(&facts.labels));
        let images = |facts: Option<&NodeFacts>| -> Vec<String> {
            facts.into_iter().flat_map(|facts| facts.images.keys().cloned()).collect()
        };
        self.forget_images(images(old.as_deref()));
        for image in images(Some(&facts)) {
            *self.images.entry(image).or_default() += 1;
        }
        self.order_is_old |= old.as_ref().is_none_or(|old| old.zone() != facts.zone());
        let moved = old.is_none_or(|old| old.labels != facts.labels);
        (index, if moved { NodeChange::Topology } else { NodeChange::Room })
    }

    /// Drops a node, and says whether it was there. Its pods stay until they are gone too.
    pub(crate) fn remove_node(&mut self, name: &str) -> bool {
        let Some(index) = self.by_name.get(name).copied() else { return false };
        let Some(node) = &mut self.slots[index.0 as usize] else { return false };
        let Some(facts) = node.facts.take() else { return false };
        self.topology.set(index, None);
        self.forget_images(facts.images.keys().cloned().collect());
        self.order_is_old = true;
        self.drop_if_unused(index);
        true
    }

    fn forget_images(&mut self, images: Vec<String>) {
        for image in images {
            if let Some(nodes) = self.images.get_mut(&image) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.images.remove(&image);
                }
            }
        }
    }

    fn slot(&mut self, name: &str) -> NodeIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            NodeIndex(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 nodes fit"))
        });
        let name: Arc<str> = name.into();
        self.slots[index.0 as usize] = Some(NodeInfo::new(name.clone()));
        self.by_name.insert(name, index);
        index
    }

    fn drop_if_unused(&mut self, index: NodeIndex) {
        let slot = &mut self.slots[index.0 as usize];
        if let Some(node) = slot.take_if(|node| node.facts.is_none() && node.pods.is_empty()) {
            self.by_name.remove(&node.name);
            self.free.push(index);
        }
    }

    pub(crate) fn node(&self, index: NodeIndex) -> Option<&NodeInfo> {
        self.slots.get(index.0 as usize)?.as_ref()
    }

    /// The place of a node that is there.
    pub(crate) fn find_node(&self, name: &str) -> Option<NodeIndex> {
        let index = *self.by_name.get(name)?;
        self.node(index)?.facts.as_ref().map(|_| index)
    }

    /// The names of the nodes that are there.
    pub(crate) fn node_names(&self) -> Vec<Arc<str>> {
        let nodes = self.slots.iter().flatten().filter(|node| node.facts.is_some());
        nodes.map(|node| node.name.clone()).collect()
    }

    /// The nodes that are there, in the order in which they are tried.
    pub(crate) fn order(&self) -> &[NodeIndex] {
        debug_assert!(!self.order_is_old, "a decision begins with `begin_decision`");
        &self.order
    }

    /// Brings up to date what is only needed by decisions.
    pub(crate) fn begin_decision(&mut self) {
        self.topology.begin_decision();
        if !std::mem::take(&mut self.order_is_old) {
            return;
        }
        let mut zones: BTreeMap<&str, Vec<NodeIndex>> = BTreeMap::new();
        for (index, node) in (0..).map(NodeIndex).zip(&self.slots) {
            if let Some(facts) = node.as_ref().and_then(|node| node.facts.as_ref()) {
                zones.entry(facts.zone().unwrap_or_default()).or_default().push(index);
            }
        }
        self.order = in_turn(&zones.into_values().collect::<Vec<_>>());
    }

    // --- Pods

    /// Counts a pod on a node: one that was seen there, or one that is about to be bound to it. A
    /// pod that was seen stays where it was seen.
    pub(crate) fn place(&mut self, info: Arc<PodInfo>, node: &str, assumed: bool) {
        if assumed && self.placed.get(&info.uid).is_some_and(|placed| !placed.assumed) {
            return;
        }
        self.remove(&info.uid.clone());
        let index = self.slot(node);
        if let Some(node) = &mut self.slots[index.0 as usize] {
            node.add(&info);
        }
        *self.priorities.entry(info.priority.value).or_default() += 1;
        if let Some(owner) = info.owner.as_ref().filter(|_| !info.terminating) {
            *self.owners.entry(owner.clone()).or_default().entry(index).or_default() += 1;
        }
        self.selected.add(&info, index);
        self.carried.add(&info, index);
        self.placed.insert(info.uid.clone(), Placed { info, node: index, assumed });
    }

    /// Drops a pod, and says which node it has left.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<(Arc<PodInfo>, NodeIndex)> {
        let Placed { info, node: index, .. } = self.placed.remove(uid)?;
        if let Some(node) = &mut self.slots[index.0 as usize] {
            node.remove(uid);
        }
        if let Some(count) = self.priorities.get_mut(&info.priority.value) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&info.priority.value);
            }
        }
        if let Some(owner) = info.owner.as_ref().filter(|_| !info.terminating)
            && let Some(nodes) = self.owners.get_mut(owner)
        {
            if let Some(count) = nodes.get_mut(&index) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&index);
                }
            }
            if nodes.is_empty() {
                self.owners.remove(owner);
            }
        }
        self.selected.remove(&info, index);
        self.carried.remove(&info, index);
        self.drop_if_unused(index);
        Some((info, index))
    }

    /// Takes an assumption back. A pod that was meanwhile seen on a node stays there.
    pub(crate) fn withdraw(&mut self, uid: &str) -> Option<(Arc<PodInfo>, NodeIndex)> {
        self.placed.get(uid).filter(|placed| placed.assumed)?;
        self.remove(uid)
    }

    /// Whether the pod is on a node, or about to be.
    pub(crate) fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// Whether the pod is about to be bound, and was not seen on a node.
    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// The uids of the pods that are not among those.
    pub(crate) fn placed_beside(&self, seen: &HashSet<&str>) -> Vec<Arc<str>> {
        self.placed.keys().filter(|uid| !seen.contains(&***uid)).cloned().collect()
    }

    // --- Sums

    /// Whether a pod that has a node is less important than that.
    pub(crate) fn has_less_important_than(&self, priority: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    /// How many pods of an owner each node has, without those on their way out.
    pub(crate) fn of_owner(&self, owner: &str) -> impl Iterator<Item = (NodeIndex, u32)> + '_ {
        self.owners.get(owner).into_iter().flatten().map(|(node, count)| (*node, *count))
    }

    /// How many nodes have an image.
    pub(crate) fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// Whether any node says which images it has.
    pub(crate) fn knows_images(&self) -> bool {
        !self.images.is_empty()
    }

    /// Counts the pods that match all of these selectors, from now on.
    pub(crate) fn select(&mut self, selectors: &Arc<[PodSelector]>) -> SelectedId {
        let placed = self.placed.values().map(|placed| (&*placed.info, placed.node));
        self.selected.watch(selectors, placed)
    }

    /// The pods that match, on each node that has any.
    pub(crate) fn selected(
        &self,
        id: SelectedId,
    ) -> impl Iterator<Item = (NodeIndex, super::counts::Count)> + '_ {
        self.selected.per_node(id)
    }

    /// The parts that a node label divides the nodes into.
    pub(crate) fn column(&mut self, key: &Arc<str>) -> ColumnId {
        let nodes = (0..)
            .map(NodeIndex)
            .zip(&self.slots)
            .filter_map(|(index, node)| Some((index, &node.as_ref()?.facts.as_ref()?.labels)));
        self.topology.column(key, nodes)
    }
}

/// One of each list after the other, until all are used up.
fn in_turn(lists: &[Vec<NodeIndex>]) -> Vec<NodeIndex> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|turn| lists.iter().filter_map(move |list| list.get(turn)));
    turns.copied().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::fixture;
    use crate::scheduler::counts::{Count, carried_by};
    use crate::scheduler::priority::Priority;
    use crate::scheduler::terms::SpreadRule;

    fn pod(name: &str, owner: &str) -> Arc<PodInfo> {
        Arc::new(PodInfo::read(&fixture::pod(name).owned_by(owner).build(), Priority::default()))
    }

    fn count(snapshot: &Snapshot, node: &str) -> usize {
        let index = snapshot.by_name.get(node);
        index.and_then(|index| snapshot.node(*index)).map_or(0, |node| node.pods.len())
    }

    #[test]
    fn what_is_seen_wins_over_what_is_assumed() {
        let mut snapshot = Snapshot::default();
        snapshot.place(pod("a", "rs"), "node-1", true);
        assert!(snapshot.is_assumed("uid-a"));
        snapshot.place(pod("a", "rs"), "node-2", false);
        assert_eq!((count(&snapshot, "node-1"), count(&snapshot, "node-2")), (0, 1));
        assert_eq!(snapshot.withdraw("uid-a"), None, "a bind that was seen did not fail");
        snapshot.place(pod("a", "rs"), "node-1", true);
        assert_eq!(count(&snapshot, "node-2"), 1, "nor is it undone");
    }

    #[test]
    fn a_failed_bind_leaves_nothing() {
        let mut snapshot = Snapshot::default();
        snapshot.place(pod("a", "rs"), "node-1", true);
        assert!(snapshot.withdraw("uid-a").is_some());
        assert!(!snapshot.is_placed("uid-a"));
        assert!(snapshot.by_name.is_empty() && snapshot.owners.is_empty());
        assert!(!snapshot.has_less_important_than(i32::MAX));
    }

    #[test]
    fn pods_outlive_their_node_and_come_before_it() {
        let mut snapshot = Snapshot::default();
        snapshot.place(pod("a", "rs"), "node-1", false);
        assert_eq!(snapshot.find_node("node-1"), None);
        let (index, change) = snapshot.set_node("node-1", NodeFacts::default());
        assert_eq!(change, NodeChange::Topology);
        assert_eq!(snapshot.node(index).unwrap().pods.len(), 1);
        assert_eq!(snapshot.set_node("node-1", NodeFacts::default()).1, NodeChange::Nothing);
        assert!(snapshot.remove_node("node-1") && !snapshot.remove_node("node-1"));
        assert_eq!(count(&snapshot, "node-1"), 1);
        snapshot.remove("uid-a");
        assert!(snapshot.by_name.is_empty());
    }

    #[test]
    fn zones_take_turns() {
        let mut snapshot = Snapshot::default();
        for (name, zone) in
            [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")]
        {
            let mut node = fixture::node(name, "True");
            node.metadata.labels =
                Some([("topology.kubernetes.io/zone".into(), zone.into())].into());
            snapshot.set_node(name, NodeFacts::read(&node));
        }
        snapshot.begin_decision();
        let names: Vec<_> = snapshot
            .order()
            .iter()
            .map(|index| snapshot.node(*index).unwrap().name.to_string())
            .collect();
        assert_eq!(names, ["a1", "b1", "c1", "a2", "c2", "a3"]);
    }

    /// What happens to a cluster.
    #[derive(Clone, Debug)]
    enum Happening {
        Node { node: u8, zone: u8 },
        NodeGone(u8),
        Place { pod: u8, kind: u8, node: u8, assumed: bool },
        Withdraw(u8),
        Gone(u8),
        Ask(u8),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (0..6_u8, 0..3_u8).prop_map(|(node, zone)| Happening::Node { node, zone }),
            (0..6_u8).prop_map(Happening::NodeGone),
            (0..30_u8, 0..8_u8, 0..6_u8, any::<bool>()).prop_map(|(pod, kind, node, assumed)| {
                Happening::Place { pod, kind, node, assumed }
            }),
            (0..30_u8).prop_map(Happening::Withdraw),
            (0..30_u8).prop_map(Happening::Gone),
            (0..4_u8).prop_map(Happening::Ask),
        ]
    }

    /// A pod of one of eight kinds.
    fn some_pod(number: u8, kind: u8) -> Arc<PodInfo> {
        let mut builder = fixture::pod(&number.to_string())
            .label("app", if kind.is_multiple_of(2) { "web" } else { "db" })
            .owned_by(if kind < 4 { "rs-1" } else { "rs-2" })
            .spec(json!({
                "containers": [{ "name": "c", "resources": { "requests": {
                    "cpu": format!("{kind}00m"), "memory": "1Mi", "example.com/gpu": (kind / 4).to_string(),
                } } }],
                "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": if kind < 2 { "web" } else { "db" } } },
                }] } },
            }));
        if kind == 7 {
            builder = builder.terminating();
        }
        let priority = Priority { value: (kind / 3).into(), preempts: true };
        Arc::new(PodInfo::read(&builder.build(), priority))
    }

    fn question(number: u8) -> Arc<[PodSelector]> {
        let selector = match number {
            0 => json!({ "matchLabels": { "app": "web" } }),
            1 => json!({ "matchLabels": { "app": "db" } }),
            2 => {
                json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["web"] }] })
            }
            _ => json!({}),
        };
        let spec = serde_json::from_value(json!({ "containers": [], "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector,
        }] }))
        .unwrap();
        let rule = SpreadRule::read_all(&spec, "default", None).unwrap().remove(0);
        [(*rule.pods).clone()].into()
    }

    proptest! {
        /// Whatever happened, the sums are what one would get by counting.
        #[test]
        fn sums_are_what_counting_gives(happenings in prop::collection::vec(happening(), 0..120)) {
            let mut snapshot = Snapshot::default();
            // What should be there: pod -> (kind, node, assumed), and the nodes.
            let mut pods: BTreeMap<u8, (u8, u8, bool)> = BTreeMap::new();
            let mut nodes: BTreeMap<u8, u8> = BTreeMap::new();
            let name = |node: u8| format!("node-{node}");
            let uid = |pod: u8| format!("uid-{pod}");
            for happening in happenings {
                match happening {
                    Happening::Node { node, zone } => {
                        let mut object = fixture::node(&name(node), "True");
                        object.metadata.labels = Some([("zone".into(), zone.to_string())].into());
                        snapshot.set_node(&name(node), NodeFacts::read(&object));
                        nodes.insert(node, zone);
                    }
                    Happening::NodeGone(node) => {
                        prop_assert_eq!(snapshot.remove_node(&name(node)), nodes.remove(&node).is_some());
                    }
                    Happening::Place { pod, kind, node, assumed } => {
                        snapshot.place(some_pod(pod, kind), &name(node), assumed);
                        let seen = pods.get(&pod).is_some_and(|(.., assumed)| !assumed);
                        if !(assumed && seen) {
                            pods.insert(pod, (kind, node, assumed));
                        }
                    }
                    Happening::Withdraw(pod) => {
                        snapshot.withdraw(&uid(pod));
                        if pods.get(&pod).is_some_and(|(.., assumed)| *assumed) {
                            pods.remove(&pod);
                        }
                    }
                    Happening::Gone(pod) => {
                        prop_assert_eq!(snapshot.remove(&uid(pod)).is_some(), pods.remove(&pod).is_some());
                    }
                    Happening::Ask(number) => {
                        snapshot.select(&question(number));
                        snapshot.column(&"zone".into());
                    }
                }
            }

            snapshot.begin_decision();
            prop_assert_eq!(snapshot.order().len(), nodes.len());
            let zones = snapshot.column(&"zone".into());
            for (a, zone_a) in &nodes {
                for (b, zone_b) in &nodes {
                    let part = |node: u8| snapshot.topology.part(zones, snapshot.find_node(&name(node)).unwrap());
                    prop_assert_eq!(part(*a) == part(*b), zone_a == zone_b);
                }
            }
            let infos: Vec<(Arc<PodInfo>, u8)> =
                pods.iter().map(|(pod, (kind, node, _))| (some_pod(*pod, *kind), *node)).collect();
            for node in 0..6 {
                let here: Vec<_> = infos.iter().filter(|(_, on)| *on == node).map(|(info, _)| info).collect();
                let mut expected = NodeInfo::new(name(node).into());
                here.iter().for_each(|info| expected.add(info));
                let Some(index) = snapshot.by_name.get(&*name(node)).copied() else {
                    prop_assert!(here.is_empty() && !nodes.contains_key(&node));
                    continue;
                };
                let found = snapshot.node(index).unwrap();
                prop_assert_eq!(&found.requested, &expected.requested);
                prop_assert_eq!(found.load, expected.load);
                prop_assert_eq!(found.pods.len(), here.len());
                for owner in ["rs-1", "rs-2"] {
                    let count = here.iter().filter(|info| info.owner.as_deref() == Some(owner) && !info.terminating).count();
                    let kept = snapshot.of_owner(owner).find(|(node, _)| *node == index).map_or(0, |(_, count)| count);
                    prop_assert_eq!(kept as usize, count);
                }
                for number in 0..4 {
                    let selectors = question(number);
                    let matching = || here.iter().filter(|info| selectors[0].matches("default", info.labels.as_ref()));
                    let count = Count {
                        all: matching().count() as u32,
                        staying: matching().filter(|info| !info.terminating).count() as u32,
                    };
                    let id = snapshot.select(&selectors);
                    let kept = snapshot.selected(id).find(|(node, _)| *node == index);
                    prop_assert_eq!(kept.map(|(_, count)| count).unwrap_or_default(), count);
                }
                for probe in 0..8 {
                    let probe = some_pod(99, probe);
                    let about: u32 = snapshot.carried.about(&probe).filter_map(|carried| carried.per_node.get(&index)).sum();
                    let expected = here.iter().flat_map(|info| carried_by(info))
                        .filter(|(_, term)| term.pods.matches("default", probe.labels.as_ref())).count();
                    prop_assert_eq!(about as usize, expected);
                }
            }
            let lowest = infos.iter().map(|(info, _)| info.priority.value).min();
            for priority in 0..4 {
                prop_assert_eq!(snapshot.has_less_important_than(priority), lowest.is_some_and(|lowest| lowest < priority));
            }
        }
    }
}
