//! Which of the nodes that can take a pod is the best: Kubernetes' default scores and weights.
//!
//! | score | prefers nodes | weight |
//! | --- | --- | --- |
//! | taints | without taints that would rather not have the pod | 3 |
//! | node affinity | that the pod prefers | 2 |
//! | spread | in parts with fewer pods of the same kind, or of the same owner | 2 |
//! | pod affinity | near pods that it, or that themselves, prefer to be near | 2 |
//! | resources | with more CPU and memory left | 1 |
//! | balance | whose CPU and memory would be used alike | 1 |
//! | images | that have the pod's images | 1 |
//!
//! Each score goes from 0 to 100. A score that says nothing about a pod is left out.

mod images;
mod neighbours;
mod resources;
mod spread;

use super::node_info::NodeInfo;
use super::pod_info::PendingPod;
use super::snapshot::{NodeIndex, Snapshot};
use super::taints;

/// The best that one score gives.
const MAX: f64 = 100.0;

/// The nodes that are compared.
struct Candidates<'a> {
    pod: &'a PendingPod,
    nodes: Vec<(NodeIndex, &'a NodeInfo)>,
}

/// The scores of the nodes, in their order. Nodes that are not there score nothing.
pub(crate) fn total(pod: &PendingPod, snapshot: &mut Snapshot, nodes: &[NodeIndex]) -> Vec<f64> {
    // What needs the snapshot to be brought up to date comes first.
    let spread = spread::Wishes::prepare(pod, snapshot);
    let neighbours = neighbours::Wishes::prepare(pod, snapshot);
    let snapshot = &*snapshot;
    let found = nodes.iter().filter_map(|index| Some((*index, snapshot.node(*index)?)));
    let candidates = Candidates { pod, nodes: found.collect() };
    debug_assert_eq!(
        candidates.nodes.len(),
        nodes.len(),
        "only nodes that are there can take a pod"
    );
    let mut total = vec![0.0; candidates.nodes.len()];
    let mut add = |weight: f64, scores: Option<Vec<f64>>| {
        for (sum, score) in total.iter_mut().zip(scores.into_iter().flatten()) {
            *sum += weight * score;
        }
    };
    add(3.0, taints(&candidates));
    add(2.0, node_affinity(&candidates));
    add(2.0, spread.scores(&candidates, snapshot));
    add(2.0, neighbours.scores(&candidates, snapshot));
    add(1.0, Some(resources::least_allocated(&candidates)));
    add(1.0, resources::balance(&candidates));
    add(1.0, images::scores(&candidates, snapshot));
    total
}

fn taints(candidates: &Candidates<'_>) -> Option<Vec<f64>> {
    let tolerations = &candidates.pod.tolerations;
    let reluctant = candidates.nodes.iter().map(|(_, node)| {
        let taints = node.facts.as_ref().map_or(&[][..], |facts| &facts.taints);
        if taints.is_empty() { 0.0 } else { taints::reluctant(taints, tolerations) as f64 }
    });
    let mut scores: Vec<f64> = reluctant.collect();
    let most = largest(&scores);
    (most > 0.0).then(|| {
        scores.iter_mut().for_each(|score| *score = MAX - *score * MAX / most);
        scores
    })
}

fn node_affinity(candidates: &Candidates<'_>) -> Option<Vec<f64>> {
    let preferred = &candidates.pod.nodes.preferred;
    if preferred.is_empty() {
        return None;
    }
    let worth = candidates.nodes.iter().map(|(_, node)| {
        let Some(facts) = &node.facts else { return 0.0 };
        let matching = preferred.iter().filter(|(_, term)| term.matches(&node.name, &facts.labels));
        matching.map(|(weight, _)| f64::from(*weight)).sum()
    });
    let mut scores: Vec<f64> = worth.collect();
    let most = largest(&scores);
    (most > 0.0).then(|| {
        scores.iter_mut().for_each(|score| *score = *score * MAX / most);
        scores
    })
}

fn largest(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture;
    use crate::scheduler::fixture::{Cluster, pending};

    /// One score of all nodes, by their names.
    pub(super) fn of(
        cluster: &mut Cluster,
        pod: &PendingPod,
        score: impl FnOnce(&Candidates<'_>, &Snapshot) -> Option<Vec<f64>>,
    ) -> Option<Vec<f64>> {
        let mut nodes: Vec<_> = cluster
            .snapshot
            .node_names()
            .into_iter()
            .map(|name| (cluster.snapshot.find_node(&name).unwrap(), name))
            .collect();
        nodes.sort_by(|a, b| a.1.cmp(&b.1));
        let snapshot = &cluster.snapshot;
        let nodes =
            nodes.iter().map(|(index, _)| (*index, snapshot.node(*index).unwrap())).collect();
        let scores = score(&Candidates { pod, nodes }, snapshot)?;
        Some(scores.into_iter().map(f64::round).collect())
    }

    fn tainted(keys: &[&str]) -> Value {
        let taints: Vec<_> =
            keys.iter().map(|key| json!({ "key": key, "effect": "PreferNoSchedule" })).collect();
        json!({ "spec": { "taints": taints } })
    }

    #[test]
    fn nodes_that_would_rather_not() {
        let mut cluster = Cluster::default();
        cluster.node("a", tainted(&["x", "y"]));
        cluster.node("b", tainted(&["x"]));
        cluster.node("c", tainted(&[]));
        let plain = pending(fixture::pod("n"));
        assert_eq!(of(&mut cluster, &plain, |c, _| taints(c)), Some(vec![0.0, 50.0, 100.0]));
        let tolerant = pending(fixture::pod("n").spec(json!({
            "containers": [], "tolerations": [{ "key": "x", "operator": "Exists" }],
        })));
        assert_eq!(of(&mut cluster, &tolerant, |c, _| taints(c)), Some(vec![0.0, 100.0, 100.0]));
        let indifferent = pending(fixture::pod("n").spec(json!({
            "containers": [], "tolerations": [{ "operator": "Exists" }],
        })));
        assert_eq!(of(&mut cluster, &indifferent, |c, _| taints(c)), None);
    }

    #[test]
    fn nodes_that_are_preferred() {
        let mut cluster = Cluster::default();
        cluster.node("a", json!({ "metadata": { "labels": { "disk": "ssd", "big": "yes" } } }));
        cluster.node("b", json!({ "metadata": { "labels": { "disk": "ssd" } } }));
        cluster.node("c", json!({}));
        let prefers = |pairs: &[(&str, i32)]| {
            let terms: Vec<_> = pairs
                .iter()
                .map(|(key, weight)| {
                    json!({ "weight": weight, "preference": {
                    "matchExpressions": [{ "key": key, "operator": "Exists" }],
                } })
                })
                .collect();
            pending(fixture::pod("n").spec(
                json!({ "containers": [], "affinity": { "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": terms,
            } } }),
            ))
        };
        let mut scores = |pairs| of(&mut cluster, &prefers(pairs), |c, _| node_affinity(c));
        assert_eq!(scores(&[("disk", 3), ("big", 9)]), Some(vec![100.0, 25.0, 0.0]));
        assert_eq!(scores(&[("none", 3)]), None);
        assert_eq!(scores(&[]), None);
    }
}
