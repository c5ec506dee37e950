//! On which node a pod goes: decided from the nodes and from what they carry.
//!
//! Nodes are asked one after the other whether they can take the pod ([`super::filters`]), until
//! enough can: in a large cluster a part of the nodes is as good as all of them, and the next
//! decision goes on where this one stopped. Of those the one that scores best gets the pod
//! ([`super::scores`]); among equals chance decides.
//!
//! ```text
//! nodes              100   1,000   5,000
//! enough             100     420     500
//! ```

use rand::Rng;

use super::filters::{Checks, Filters, Refusal};
use super::nominations::Nominations;
use super::pod_info::PendingPod;
use super::scores;
use super::snapshot::{NodeIndex, Snapshot};

/// Of how many nodes all are asked, and at least so many, of any number: Kubernetes' rule.
const ENOUGH_MIN: usize = 100;
/// The share of the nodes that is enough, in percent: this, less one for every so many nodes, and
/// never below the last number.
const ENOUGH_PERCENT: usize = 50;
const NODES_PER_PERCENT: usize = 125;
const ENOUGH_PERCENT_MIN: usize = 5;

/// Where a pod goes, or why nowhere.
#[derive(Debug)]
pub(crate) enum Decision {
    /// To that node.
    Node(NodeIndex),
    /// To none of all nodes, for now.
    Nowhere(Refusals),
}

/// Why each of all nodes was refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) nodes: Vec<(NodeIndex, Refusal)>,
}

impl Refusals {
    /// The filters that refused any node.
    pub(crate) fn filters(&self) -> Filters {
        let mut filters = Filters::default();
        self.nodes.iter().for_each(|(_, refusal)| filters.insert(refusal.filter));
        filters
    }
}

/// With which node the next decision begins.
#[derive(Debug, Default)]
pub(crate) struct Search {
    next: usize,
}

/// How many nodes that can take a pod are enough to choose from.
fn enough(nodes: usize) -> usize {
    if nodes < ENOUGH_MIN {
        return nodes;
    }
    let percent = ENOUGH_PERCENT.saturating_sub(nodes / NODES_PER_PERCENT).max(ENOUGH_PERCENT_MIN);
    (nodes * percent / 100).max(ENOUGH_MIN)
}

/// Chooses the node for `pod`.
pub(crate) fn decide(
    pod: &PendingPod,
    snapshot: &mut Snapshot,
    nominations: &Nominations,
    search: &mut Search,
    random: &mut impl Rng,
) -> Decision {
    snapshot.begin_decision();
    let checks = Checks::prepare(pod, snapshot, &nominations.pods());
    // Where others made room for it, it goes if it can.
    let nominated = nominations.node_of(&pod.info.uid).and_then(|node| snapshot.find_node(node));
    if let Some(index) = nominated
        && refusal(&checks, pod, snapshot, nominations, index).is_none()
    {
        return Decision::Node(index);
    }

    let order = snapshot.order();
    let enough = enough(order.len());
    let first = if order.is_empty() { 0 } else { search.next % order.len() };
    let mut fitting = Vec::with_capacity(enough);
    let mut refusals = Vec::new();
    let mut asked = 0;
    for index in order[first..].iter().chain(&order[..first]) {
        asked += 1;
        match refusal(&checks, pod, snapshot, nominations, *index) {
            None => fitting.push(*index),
            Some(refusal) => refusals.push((*index, refusal)),
        }
        if fitting.len() == enough {
            break;
        }
    }
    search.next = first + asked;
    match fitting.as_slice() {
        [] => Decision::Nowhere(Refusals { nodes: refusals }),
        [only] => Decision::Node(*only),
        several => {
            let scores = scores::total(pod, snapshot, several);
            Decision::Node(best(several, &scores, random))
        }
    }
}

/// Why the node cannot take the pod: as it is, or with those for whom room is kept on it.
fn refusal(
    checks: &Checks<'_>,
    pod: &PendingPod,
    snapshot: &Snapshot,
    nominations: &Nominations,
    index: NodeIndex,
) -> Option<Refusal> {
    // What is in the order is there.
    let node = snapshot.node(index)?;
    let topology = &snapshot.topology;
    let mut before = nominations.before(&pod.info, &node.name).peekable();
    if before.peek().is_some() {
        let (mut fuller, mut checks) = (node.clone(), checks.clone());
        for other in before {
            checks.add(topology, index, node, other);
            fuller.add(other);
        }
        if let Some(refusal) = checks.refusal(topology, index, &fuller) {
            return Some(refusal);
        }
    }
    checks.refusal(topology, index, node)
}

/// The node with the highest score, any of them if there are several.
fn best(nodes: &[NodeIndex], scores: &[f64], random: &mut impl Rng) -> NodeIndex {
    let mut best = 0;
    let mut equals = 1_u32;
    for (i, score) in scores.iter().enumerate().skip(1) {
        if *score > scores[best] {
            (best, equals) = (i, 1);
        } else if *score == scores[best] {
            equals += 1;
            if random.random_ratio(1, equals) {
                best = i;
            }
        }
    }
    nodes[best]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::json;

    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::fixture::{Cluster, info, pending};

    fn chance() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    #[test]
    fn how_many_are_enough() {
        let rows = [
            (0, 0),
            (1, 1),
            (99, 99),
            (100, 100),
            (300, 144),
            (1000, 420),
            (5000, 500),
            (20_000, 1000),
        ];
        for (nodes, expected) in rows {
            assert_eq!(enough(nodes), expected, "{nodes} nodes");
        }
    }

    /// Places a pod as the scheduler does, and says where.
    fn place(
        cluster: &mut Cluster,
        pod: PodBuilder,
        search: &mut Search,
        random: &mut StdRng,
    ) -> Option<String> {
        let pod = pending(pod);
        match decide(&pod, &mut cluster.snapshot, &Nominations::default(), search, random) {
            Decision::Nowhere(_) => None,
            Decision::Node(index) => {
                let name = cluster.snapshot.node(index).unwrap().name.clone();
                cluster.snapshot.place(pod.info, &name, true);
                Some(name.to_string())
            }
        }
    }

    #[test]
    fn pods_of_one_owner_end_up_spread_evenly() {
        for (nodes, pods, expected) in
            [(2, 4, vec![2, 2]), (3, 10, vec![3, 3, 4]), (5, 200, vec![40; 5])]
        {
            let mut cluster = Cluster::default();
            for number in 0..nodes {
                cluster.node(
                    &format!("node-{number}"),
                    json!({ "status": { "allocatable": { "cpu": "2", "memory": "4Gi" } } }),
                );
            }
            let (mut search, mut random) = (Search::default(), chance());
            let mut counts: BTreeMap<String, i32> = BTreeMap::new();
            for number in 0..pods {
                let pod = fixture::pod(&number.to_string()).owned_by("rs");
                let node =
                    place(&mut cluster, pod, &mut search, &mut random).expect("there is room");
                *counts.entry(node).or_default() += 1;
            }
            let mut counts: Vec<_> = counts.into_values().collect();
            counts.sort_unstable();
            assert_eq!(counts, expected);
        }
    }

    #[test]
    fn lone_pods_are_spread_too() {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            cluster.node(name, json!({}));
        }
        let (mut search, mut random) = (Search::default(), chance());
        let nodes: BTreeSet<_> = (0..3)
            .map(|number| {
                let pod = fixture::pod(&number.to_string())
                    .spec(json!({ "containers": [{ "name": "c" }] }));
                place(&mut cluster, pod, &mut search, &mut random).unwrap()
            })
            .collect();
        assert_eq!(nodes.len(), 3);
    }

    #[test]
    fn a_large_cluster_is_searched_in_turns() {
        let mut cluster = Cluster::default();
        for number in 0..300 {
            cluster.node(&format!("node-{number}"), json!({}));
        }
        let (mut search, mut random) = (Search::default(), chance());
        let mut starts = Vec::new();
        for number in 0..3 {
            starts.push(search.next % 300);
            place(&mut cluster, fixture::pod(&number.to_string()), &mut search, &mut random)
                .unwrap();
        }
        assert_eq!(starts, [0, 144, 288]);
        assert_eq!(search.next % 300, (288 + 144) % 300);
    }

    #[test]
    fn chance_decides_among_equals() {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            cluster.node(name, json!({}));
        }
        let mut random = chance();
        let pod = pending(fixture::pod("n"));
        let mut chosen = BTreeSet::new();
        for _ in 0..100 {
            let decision = decide(
                &pod,
                &mut cluster.snapshot,
                &Nominations::default(),
                &mut Search::default(),
                &mut random,
            );
            if let Decision::Node(index) = decision {
                chosen.insert(index);
            }
        }
        assert_eq!(chosen.len(), 3);
    }

    #[test]
    fn refusals_tell_all_filters() {
        let mut cluster = Cluster::default();
        cluster.node("a", json!({ "spec": { "unschedulable": true } }));
        cluster.node("b", json!({ "status": { "allocatable": { "pods": "0" } } }));
        let pod = pending(fixture::pod("n"));
        let decision = decide(
            &pod,
            &mut cluster.snapshot,
            &Nominations::default(),
            &mut Search::default(),
            &mut chance(),
        );
        let Decision::Nowhere(refusals) = decision else { panic!("{decision:?}") };
        assert_eq!(refusals.nodes.len(), 2);
        let mut expected = Filters::default();
        expected.insert(super::super::filters::Filter::Unschedulable);
        expected.insert(super::super::filters::Filter::Resources);
        assert_eq!(refusals.filters(), expected);
    }

    #[test]
    fn room_that_is_kept_is_kept() {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            cluster.node(name, json!({ "status": { "allocatable": { "pods": "1" } } }));
        }
        let of = |name: &str, priority: i32| {
            fixture::pod(name).spec(json!({ "containers": [], "priority": priority }))
        };
        let mut nominations = Nominations::default();
        nominations.set(&info(of("kept", 5)), "a");
        let mut node = |pod: PodBuilder| {
            let pod = pending(pod);
            match decide(
                &pod,
                &mut cluster.snapshot,
                &nominations,
                &mut Search::default(),
                &mut chance(),
            ) {
                Decision::Node(index) => cluster.snapshot.node(index).unwrap().name.to_string(),
                Decision::Nowhere(_) => panic!("nowhere"),
            }
        };
        for _ in 0..10 {
            assert_eq!(node(of("lower", 1)), "b");
            assert_eq!(node(of("as-important", 5)), "b");
            assert_eq!(node(of("kept", 5)), "a", "it is kept for this one");
        }
    }
}
