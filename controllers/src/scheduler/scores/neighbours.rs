//! Prefers nodes near pods that the pod would like to be near, and near pods that would like, or
//! needed, to be near it; and the other way round for those to be avoided.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Candidates, MAX};
use crate::scheduler::counts::Role;
use crate::scheduler::pod_info::PendingPod;
use crate::scheduler::snapshot::{NodeIndex, Snapshot};
use crate::scheduler::topology::ColumnId;

/// What a pod is worth to one that could not do without pods like it near: Kubernetes' default.
const REQUIRED_WORTH: f64 = 1.0;

/// What being near is worth, by part of the topology.
pub(super) struct Wishes {
    worth: Vec<(ColumnId, Vec<f64>)>,
}

impl Wishes {
    pub(super) fn prepare(pod: &PendingPod, snapshot: &mut Snapshot) -> Self {
        let mut near: HashMap<Arc<str>, Vec<(NodeIndex, f64)>> = HashMap::new();
        for (weight, term) in &pod.info.affinity.preferred {
            let selected = snapshot.select(&[term.pods.clone()].into());
            let worth = near.entry(term.topology_key.clone()).or_default();
            worth.extend(
                snapshot
                    .selected(selected)
                    .map(|(node, count)| (node, f64::from(*weight) * f64::from(count.all))),
            );
        }
        for carried in snapshot.carried.about(&pod.info) {
            let each = match carried.role {
                Role::Forbidden => continue,
                Role::Required => REQUIRED_WORTH,
                Role::Preferred(weight) => f64::from(weight),
            };
            let worth = near.entry(carried.term.topology_key.clone()).or_default();
            worth.extend(
                carried.per_node.iter().map(|(node, count)| (*node, each * f64::from(*count))),
            );
        }
        let worth = near.into_iter().map(|(key, nodes)| {
            let column = snapshot.column(&key);
            let mut parts = vec![0.0; snapshot.topology.parts(column)];
            for (node, worth) in nodes {
                if let Some(part) = snapshot.topology.part(column, node) {
                    parts[part] += worth;
                }
            }
            (column, parts)
        });
        Self { worth: worth.collect() }
    }

    pub(super) fn scores(
        &self,
        candidates: &Candidates<'_>,
        snapshot: &Snapshot,
    ) -> Option<Vec<f64>> {
        if self.worth.is_empty() {
            return None;
        }
        let sum = |index: NodeIndex| -> f64 {
            let parts = self
                .worth
                .iter()
                .filter_map(|(column, parts)| parts.get(snapshot.topology.part(*column, index)?));
            parts.sum()
        };
        let raw: Vec<f64> = candidates.nodes.iter().map(|(index, _)| sum(*index)).collect();
        let most = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = raw.iter().copied().fold(f64::INFINITY, f64::min);
        (most > least).then(|| raw.iter().map(|raw| MAX * (raw - least) / (most - least)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::of;
    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::fixture::{Cluster, pending};

    fn term(app: &str) -> Value {
        json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": app } } })
    }

    fn prefers(name: &str, kind: &str, terms: &[(i32, &str)]) -> PodBuilder {
        let terms: Vec<_> = terms
            .iter()
            .map(|(weight, app)| json!({ "weight": weight, "podAffinityTerm": term(app) }))
            .collect();
        fixture::pod(name).label("app", name).spec(json!({ "containers": [], "affinity": { kind: {
            "preferredDuringSchedulingIgnoredDuringExecution": terms,
        } } }))
    }

    fn scores(there: Vec<PodBuilder>, pod: PodBuilder) -> Option<Vec<f64>> {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
            cluster.node(name, json!({ "metadata": { "labels": { "zone": zone } } }));
        }
        for pod in there {
            cluster.pod(pod);
        }
        let pod = pending(pod);
        cluster.snapshot.begin_decision();
        let wishes = Wishes::prepare(&pod, &mut cluster.snapshot);
        of(&mut cluster, &pod, |candidates, snapshot| wishes.scores(candidates, snapshot))
    }

    #[test]
    fn what_is_good_to_be_near() {
        let (near, far) = ("podAffinity", "podAntiAffinity");
        let plain =
            |name: &str, app: &str, node: &str| fixture::pod(name).label("app", app).on(node);
        let needs = |name: &str, app: &str| {
            fixture::pod(name).spec(json!({ "containers": [], "affinity": { near: {
                "requiredDuringSchedulingIgnoredDuringExecution": [term(app)],
            } } }))
        };
        type Row = (&'static str, Vec<PodBuilder>, PodBuilder, Option<[f64; 4]>);
        let rows: Vec<Row> = vec![
            ("nobody", vec![], prefers("n", near, &[(10, "web")]), None),
            (
                "one",
                vec![plain("1", "web", "a1")],
                prefers("n", near, &[(10, "web")]),
                Some([100.0, 100.0, 0.0, 0.0]),
            ),
            (
                "more is better",
                vec![plain("1", "web", "a1"), plain("2", "web", "b1"), plain("3", "web", "b1")],
                prefers("n", near, &[(10, "web")]),
                Some([50.0, 50.0, 100.0, 0.0]),
            ),
            (
                "weights",
                vec![plain("1", "web", "a1"), plain("2", "db", "b1")],
                prefers("n", near, &[(10, "web"), (40, "db")]),
                Some([25.0, 25.0, 100.0, 0.0]),
            ),
            (
                "avoided",
                vec![plain("1", "web", "a1")],
                prefers("n", far, &[(10, "web")]),
                Some([0.0, 0.0, 100.0, 100.0]),
            ),
            (
                "wanted by others",
                vec![prefers("1", near, &[(10, "n")]).on("b1")],
                fixture::pod("n").label("app", "n"),
                Some([0.0, 0.0, 100.0, 0.0]),
            ),
            (
                "avoided by others",
                vec![prefers("1", far, &[(10, "n")]).on("b1")],
                fixture::pod("n").label("app", "n"),
                Some([100.0, 100.0, 0.0, 100.0]),
            ),
            (
                "needed by others",
                vec![needs("1", "n").on("c1")],
                fixture::pod("n").label("app", "n"),
                Some([0.0, 0.0, 0.0, 100.0]),
            ),
            (
                "others do not care",
                vec![plain("1", "web", "a1")],
                fixture::pod("n").label("app", "n"),
                None,
            ),
        ];
        for (what, there, pod, expected) in rows {
            assert_eq!(scores(there, pod), expected.map(Vec::from), "{what}");
        }
    }
}
