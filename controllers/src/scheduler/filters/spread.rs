//! Topology spread with `DoNotSchedule`: no part may get ahead of the others by too many pods.
//!
//! ```text
//! maxSkew 1, zones:   a: 3 pods    b: 2 pods    c: 2 pods    -> a pod goes to b or c
//! ```

use super::{Filter, Reason, Refusal};
use crate::scheduler::node_info::{NodeFacts, NodeInfo};
use crate::scheduler::pod_info::{PendingPod, PodInfo};
use crate::scheduler::snapshot::{NodeIndex, Snapshot};
use crate::scheduler::taints;
use crate::scheduler::terms::SpreadRule;
use crate::scheduler::topology::{ColumnId, Topology};

/// The required rules of a pod, with the pods counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread<'a> {
    rules: Vec<Counted<'a>>,
}

#[derive(Clone, Debug)]
struct Counted<'a> {
    pod: &'a PendingPod,
    rule: &'a SpreadRule,
    column: ColumnId,
    /// The pods in each part; none in those that do not count.
    parts: Vec<Option<i64>>,
    fewest: i64,
}

/// Whether the pods on a node count for a rule.
pub(crate) fn counts(rule: &SpreadRule, pod: &PendingPod, name: &str, facts: &NodeFacts) -> bool {
    (!rule.honors_node_affinity || pod.nodes.is_empty() || pod.nodes.allows(name, &facts.labels))
        && (!rule.honors_taints
            || (taints::untolerated(&facts.taints, &pod.tolerations).is_none()
                && (facts.schedulable || taints::tolerates_unschedulable(&pod.tolerations))))
}

impl<'a> Spread<'a> {
    pub(super) fn prepare(pod: &'a PendingPod, snapshot: &mut Snapshot) -> Self {
        let required: Vec<&SpreadRule> = pod.spread.iter().filter(|rule| rule.required).collect();
        if required.is_empty() {
            return Self::default();
        }
        let columns: Vec<ColumnId> =
            required.iter().map(|rule| snapshot.column(&rule.topology_key)).collect();
        let selected: Vec<_> =
            required.iter().map(|rule| snapshot.select(&[(*rule.pods).clone()].into())).collect();
        let snapshot = &*snapshot;
        let topology = &snapshot.topology;
        // Nodes that lack one of the labels count for none of the rules.
        let counting = |rule: &SpreadRule, index: NodeIndex| {
            let node = snapshot.node(index)?;
            let facts = node.facts.as_ref()?;
            (columns.iter().all(|column| topology.part(*column, index).is_some())
                && counts(rule, pod, &node.name, facts))
            .then_some(())
        };
        let rules =
            required.iter().zip(&columns).zip(selected).map(|((rule, column), selected)| {
                let mut parts = vec![None; topology.parts(*column)];
                for index in snapshot.order() {
                    if let Some(part) = topology.part(*column, *index)
                        && parts[part].is_none()
                        && counting(rule, *index).is_some()
                    {
                        parts[part] = Some(0);
                    }
                }
                for (index, count) in snapshot.selected(selected) {
                    if let Some(part) = topology.part(*column, index)
                        && counting(rule, index).is_some()
                        && let Some(sum) = &mut parts[part]
                    {
                        *sum += i64::from(count.staying);
                    }
                }
                let mut counted = Counted { pod, rule, column: *column, parts, fewest: 0 };
                counted.find_fewest();
                counted
            });
        Self { rules: rules.collect() }
    }

    pub(super) fn refusal(&self, topology: &Topology, index: NodeIndex) -> Option<Refusal> {
        self.rules.iter().find_map(|counted| {
            let Some(part) = topology.part(counted.column, index) else {
                return Some(Refusal::new(Filter::Spread, Reason::SpreadLabelMissing, false));
            };
            let here = counted.parts.get(part).copied().flatten().unwrap_or(0);
            let with_it = here + i64::from(counted.rule.counts_itself);
            (with_it - counted.fewest > counted.rule.max_skew)
                .then(|| Refusal::new(Filter::Spread, Reason::Spread, true))
        })
    }

    /// As if there were so many more of a pod on a node.
    pub(super) fn adjust(
        &mut self,
        topology: &Topology,
        index: NodeIndex,
        node: &NodeInfo,
        pod: &PodInfo,
        by: i64,
    ) {
        let Some(facts) = node.facts.as_ref().filter(|_| !pod.terminating) else { return };
        let columns: Vec<ColumnId> = self.rules.iter().map(|counted| counted.column).collect();
        if columns.iter().any(|column| topology.part(*column, index).is_none()) {
            return;
        }
        for counted in &mut self.rules {
            if counted.rule.pods.matches(&pod.key.namespace, pod.labels.as_ref())
                && counts(counted.rule, counted.pod, &node.name, facts)
                && let Some(part) = topology.part(counted.column, index)
                && let Some(Some(sum)) = counted.parts.get_mut(part)
            {
                *sum += by;
                counted.find_fewest();
            }
        }
    }
}

impl Counted<'_> {
    fn find_fewest(&mut self) {
        let parts = || self.parts.iter().copied().flatten();
        self.fewest =
            if parts().count() < self.rule.min_domains { 0 } else { parts().min().unwrap_or(0) };
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::{Value, json};

    use super::*;
    use crate::fixture;
    use crate::scheduler::filters::Checks;
    use crate::scheduler::fixture::{Cluster, pending};

    /// a1, a2 in zone a, b1 in zone b, c1 in zone c with another disk and a taint, x without a zone.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, labels) in [
            ("a1", json!({ "zone": "a", "disk": "ssd" })),
            ("a2", json!({ "zone": "a", "disk": "ssd" })),
            ("b1", json!({ "zone": "b", "disk": "ssd" })),
            ("x", json!({ "disk": "ssd" })),
        ] {
            cluster.node(name, json!({ "metadata": { "labels": labels } }));
        }
        cluster.node(
            "c1",
            json!({
                "metadata": { "labels": { "zone": "c", "disk": "hdd" } },
                "spec": { "taints": [{ "key": "old", "effect": "NoSchedule" }] },
            }),
        );
        cluster
    }

    fn rule(extra: Value) -> Value {
        let mut rule = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } },
        });
        rule.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        rule
    }

    fn pod(rules: Value, more: Value) -> PendingPod {
        let mut spec = json!({ "containers": [], "topologySpreadConstraints": rules });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pending(fixture::pod("new").label("app", "web").spec(spec))
    }

    /// The nodes that the rules of a pod allow, whatever else there is against them.
    fn allowed(cluster: &mut Cluster, pod: &PendingPod) -> Vec<String> {
        cluster.snapshot.begin_decision();
        let checks = Checks::prepare(pod, &mut cluster.snapshot, &[]);
        cluster.nodes_where(|snapshot, index, _| {
            checks.spread.refusal(&snapshot.topology, index).is_none()
        })
    }

    #[test]
    fn no_part_gets_too_far_ahead() {
        let nothing = json!({});
        // (pods on nodes, the rule, more of the pod, allowed nodes)
        let rows = [
            (vec![], json!({}), nothing.clone(), vec!["a1", "a2", "b1", "c1"]),
            (vec!["a1"], json!({}), nothing.clone(), vec!["b1", "c1"]),
            (vec!["a1", "b1"], json!({}), nothing.clone(), vec!["c1"]),
            (vec!["a1", "b1", "c1"], json!({}), nothing.clone(), vec!["a1", "a2", "b1", "c1"]),
            (vec!["a1", "a2", "b1"], json!({ "maxSkew": 2 }), nothing.clone(), vec!["b1", "c1"]),
            // A pod without a zone is not counted; nor are those of other labels.
            (vec!["x", "x"], json!({}), nothing.clone(), vec!["a1", "a2", "b1", "c1"]),
            // Zone c does not count where the pod cannot go: neither its pods nor that it is empty.
            (
                vec!["a1", "b1"],
                json!({}),
                json!({ "nodeSelector": { "disk": "ssd" } }),
                vec!["a1", "a2", "b1", "c1"],
            ),
            (
                vec!["a1", "b1"],
                json!({ "nodeAffinityPolicy": "Ignore" }),
                json!({ "nodeSelector": { "disk": "ssd" } }),
                vec!["c1"],
            ),
            (
                vec!["a1", "b1"],
                json!({ "nodeTaintsPolicy": "Honor" }),
                nothing.clone(),
                vec!["a1", "a2", "b1", "c1"],
            ),
            (vec!["a1", "b1", "c1"], json!({ "minDomains": 4 }), nothing.clone(), vec![]),
            (
                vec!["a1", "b1", "c1"],
                json!({ "minDomains": 3 }),
                nothing.clone(),
                vec!["a1", "a2", "b1", "c1"],
            ),
            // Its own labels do not match, so it makes nothing worse.
            (
                vec!["a1"],
                json!({ "labelSelector": { "matchLabels": { "app": "db" } } }),
                nothing,
                vec!["a1", "a2", "b1", "c1"],
            ),
        ];
        for (pods, extra, more, expected) in rows {
            let mut cluster = cluster();
            for (number, node) in pods.iter().enumerate() {
                cluster.pod(fixture::pod(&format!("web-{number}")).label("app", "web").on(node));
                cluster.pod(fixture::pod(&format!("db-{number}")).label("app", "other").on(node));
                cluster.pod(
                    fixture::pod(&format!("going-{number}"))
                        .label("app", "web")
                        .on(node)
                        .terminating(),
                );
            }
            let pod = pod(json!([rule(extra.clone())]), more.clone());
            assert_eq!(allowed(&mut cluster, &pod), expected, "{pods:?} {extra} {more}");
        }
    }

    #[test]
    fn several_rules_must_all_hold() {
        let mut cluster = cluster();
        cluster.pod(fixture::pod("web-1").label("app", "web").on("a1"));
        cluster.pod(fixture::pod("web-2").label("app", "web").on("b1"));
        cluster.pod(fixture::pod("web-3").label("app", "web").on("c1"));
        let hosts = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "web" } } });
        let pod = pod(json!([rule(json!({})), rule(hosts)]), json!({}));
        assert_eq!(allowed(&mut cluster, &pod), ["a2"]);
    }

    #[test]
    fn as_if_pods_came_and_went() {
        let mut cluster = cluster();
        let there = cluster.pod(fixture::pod("web-1").label("app", "web").on("a1"));
        let pod = pod(json!([rule(json!({}))]), json!({}));
        cluster.snapshot.begin_decision();
        let mut checks = Checks::prepare(&pod, &mut cluster.snapshot, &[]);
        let snapshot = &cluster.snapshot;
        let a1 = snapshot.find_node("a1").unwrap();
        let refused = |checks: &Checks<'_>| checks.spread.refusal(&snapshot.topology, a1).is_some();
        assert!(refused(&checks));
        checks.remove(&snapshot.topology, a1, snapshot.node(a1).unwrap(), &there);
        assert!(!refused(&checks));
        checks.add(&snapshot.topology, a1, snapshot.node(a1).unwrap(), &there);
        assert!(refused(&checks));
    }
}
