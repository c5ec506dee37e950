//! Prefers parts of the topology with fewer pods of the same kind: the pod's own rules with
//! `ScheduleAnyway`, or, without any rule of its own, an even spread of its owner's pods over nodes
//! and zones.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Candidates, MAX};
use crate::scheduler::counts::SelectedId;
use crate::scheduler::filters::counts_for_spread;
use crate::scheduler::pod_info::PendingPod;
use crate::scheduler::snapshot::{NodeIndex, Snapshot};
use crate::scheduler::terms::SpreadRule;
use crate::scheduler::topology::ColumnId;

/// The rules for the pods of one owner: Kubernetes' system defaults.
const OWNER_NODE_SKEW: f64 = 3.0;
const OWNER_ZONE_SKEW: f64 = 5.0;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// How a pod is to be spread.
pub(super) enum Wishes<'a> {
    None,
    /// By its own rules, all of which a node's labels must fit.
    Rules(Vec<(&'a SpreadRule, ColumnId, SelectedId)>),
    /// With the other pods of its owner, by node and by zone.
    Owner {
        owner: Arc<str>,
        zones: ColumnId,
    },
}

impl<'a> Wishes<'a> {
    pub(super) fn prepare(pod: &'a PendingPod, snapshot: &mut Snapshot) -> Self {
        if !pod.spread.is_empty() {
            let rules: Vec<_> = pod
                .spread
                .iter()
                .filter(|rule| !rule.required)
                .map(|rule| {
                    let column = snapshot.column(&rule.topology_key);
                    (rule, column, snapshot.select(&[(*rule.pods).clone()].into()))
                })
                .collect();
            return if rules.is_empty() { Self::None } else { Self::Rules(rules) };
        }
        match &pod.info.owner {
            Some(owner) => {
                Self::Owner { owner: owner.clone(), zones: snapshot.column(&ZONE_LABEL.into()) }
            }
            None => Self::None,
        }
    }

    pub(super) fn scores(
        &self,
        candidates: &Candidates<'_>,
        snapshot: &Snapshot,
    ) -> Option<Vec<f64>> {
        let raw: Vec<Option<f64>> = match self {
            Self::None => return None,
            Self::Owner { owner, zones } => by_owner(candidates, snapshot, owner, *zones),
            Self::Rules(rules) => by_rules(candidates, snapshot, rules),
        };
        Some(normal(&raw))
    }
}

/// The weight of one more pod in a part: with more parts each has fewer pods.
fn weight(parts: usize) -> f64 {
    (parts as f64 + 2.0).ln()
}

fn by_owner(
    candidates: &Candidates<'_>,
    snapshot: &Snapshot,
    owner: &str,
    zones: ColumnId,
) -> Vec<Option<f64>> {
    let per_node: HashMap<NodeIndex, u32> = snapshot.of_owner(owner).collect();
    let topology = &snapshot.topology;
    let mut zone_sums = vec![0_u32; topology.parts(zones)];
    for (node, count) in &per_node {
        if let Some(zone) = topology.part(zones, *node) {
            zone_sums[zone] += count;
        }
    }
    let node_weight = weight(candidates.nodes.len());
    let zone_weight = weight(parts_among(candidates, snapshot, zones));
    let scores = candidates.nodes.iter().map(|(index, _)| {
        let here = per_node.get(index).copied().unwrap_or(0);
        let by_node = f64::from(here) * node_weight + OWNER_NODE_SKEW - 1.0;
        let by_zone = topology
            .part(zones, *index)
            .map_or(0.0, |zone| f64::from(zone_sums[zone]) * zone_weight + OWNER_ZONE_SKEW - 1.0);
        Some(by_node + by_zone)
    });
    scores.collect()
}

fn by_rules(
    candidates: &Candidates<'_>,
    snapshot: &Snapshot,
    rules: &[(&SpreadRule, ColumnId, SelectedId)],
) -> Vec<Option<f64>> {
    let topology = &snapshot.topology;
    let has_all =
        |index| rules.iter().all(|(_, column, _)| topology.part(*column, index).is_some());
    let mut scores: Vec<Option<f64>> =
        candidates.nodes.iter().map(|(index, _)| has_all(*index).then_some(0.0)).collect();
    for (rule, column, selected) in rules {
        let mut sums = vec![0_u32; topology.parts(*column)];
        for (index, count) in snapshot.selected(*selected) {
            let Some(node) = snapshot.node(index) else { continue };
            if let Some(facts) = &node.facts
                && has_all(index)
                && counts_for_spread(rule, candidates.pod, &node.name, facts)
                && let Some(part) = topology.part(*column, index)
            {
                sums[part] += count.staying;
            }
        }
        let weight = weight(parts_among(candidates, snapshot, *column));
        for ((index, _), score) in candidates.nodes.iter().zip(&mut scores) {
            if let Some(score) = score
                && let Some(part) = topology.part(*column, *index)
            {
                *score += f64::from(sums[part]) * weight + rule.max_skew as f64 - 1.0;
            }
        }
    }
    scores
}

fn parts_among(candidates: &Candidates<'_>, snapshot: &Snapshot, column: ColumnId) -> usize {
    let mut seen = vec![false; snapshot.topology.parts(column)];
    for (index, _) in &candidates.nodes {
        if let Some(part) = snapshot.topology.part(column, *index) {
            seen[part] = true;
        }
    }
    seen.into_iter().filter(|seen| *seen).count()
}

/// The fewer, the better; nodes that the rules do not fit are worst.
fn normal(raw: &[Option<f64>]) -> Vec<f64> {
    let most = raw.iter().copied().flatten().fold(0.0, f64::max);
    let least = raw.iter().copied().flatten().fold(f64::INFINITY, f64::min);
    let score = |raw: &Option<f64>| match raw {
        None => 0.0,
        Some(_) if most <= 0.0 => MAX,
        Some(raw) => MAX * (most + least - raw) / most,
    };
    raw.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::of;
    use super::*;
    use crate::fixture;
    use crate::scheduler::fixture::{Cluster, pending};

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            cluster.node(name, json!({ "metadata": { "labels": { ZONE_LABEL: zone } } }));
        }
        cluster.node("x", json!({}));
        cluster
    }

    fn scores(cluster: &mut Cluster, pod: &PendingPod) -> Option<Vec<f64>> {
        cluster.snapshot.begin_decision();
        let wishes = Wishes::prepare(pod, &mut cluster.snapshot);
        of(cluster, pod, |candidates, snapshot| wishes.scores(candidates, snapshot))
    }

    #[test]
    fn pods_of_one_owner_keep_apart() {
        let mut cluster = cluster();
        let pod = pending(fixture::pod("n").owned_by("rs"));
        let empty = scores(&mut cluster, &pod).unwrap();
        assert!(empty[0] == empty[1] && empty[1] == empty[2], "{empty:?}");
        cluster.pod(fixture::pod("1").owned_by("rs").on("a1"));
        cluster.pod(fixture::pod("2").owned_by("other").on("b1"));
        cluster.pod(fixture::pod("3").owned_by("rs").terminating().on("b1"));
        let found = scores(&mut cluster, &pod).unwrap();
        assert!(found[0] < found[1] && found[1] < found[2], "node, then zone: {found:?}");
        assert_eq!(scores(&mut cluster, &pending(fixture::pod("n"))), None, "a pod of nobody");
    }

    #[test]
    fn rules_that_may_be_broken() {
        let rule = |extra: Value| {
            let mut rule = json!({
                "maxSkew": 1, "topologyKey": ZONE_LABEL, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": { "app": "web" } },
            });
            rule.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            pending(fixture::pod("n").label("app", "web").owned_by("rs").spec(json!({
                "containers": [], "topologySpreadConstraints": [rule],
            })))
        };
        let mut cluster = cluster();
        assert_eq!(scores(&mut cluster, &rule(json!({}))), Some(vec![100.0, 100.0, 100.0, 0.0]));
        cluster.pod(fixture::pod("1").label("app", "web").on("a1"));
        cluster.pod(fixture::pod("2").label("app", "web").on("a2"));
        cluster.pod(fixture::pod("3").label("app", "web").on("b1"));
        cluster.pod(fixture::pod("4").label("app", "db").on("b1"));
        assert_eq!(scores(&mut cluster, &rule(json!({}))), Some(vec![50.0, 50.0, 100.0, 0.0]));
        let required = rule(json!({ "whenUnsatisfiable": "DoNotSchedule" }));
        assert_eq!(scores(&mut cluster, &required), None, "that is a filter's business");
    }
}
