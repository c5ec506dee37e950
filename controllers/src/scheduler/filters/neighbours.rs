//! Pod affinity and anti-affinity: what must, and must not, be near.
//!
//! It works both ways: a pod also stays away from pods that want nobody like it near them. And the
//! first pod of a group whose pods all want each other near may go anywhere.

use std::sync::Arc;

use super::{Filter, Reason, Refusal};
use crate::scheduler::counts::Role;
use crate::scheduler::pod_info::PodInfo;
use crate::scheduler::snapshot::{NodeIndex, Snapshot};
use crate::scheduler::terms::{PodSelector, Term};
use crate::scheduler::topology::{ColumnId, Topology};

/// What is near which nodes, as far as it matters to a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbours {
    /// Pods that match all the terms of what must be near, by each term's label.
    wanted: Vec<Sums>,
    wanted_pods: Option<Arc<[PodSelector]>>,
    /// Whether the pod is itself one of those that it wants.
    wants_its_like: bool,
    /// Pods that must not be near, by term.
    unwanted: Vec<(Arc<Term>, Sums)>,
    /// Pods that do not want this one near, by label.
    kept_away_by: Vec<Sums>,
}

/// How many pods of some kind are in each part of the topology.
#[derive(Clone, Debug)]
struct Sums {
    column: ColumnId,
    parts: Vec<i64>,
}

impl Sums {
    fn new(column: ColumnId, topology: &Topology) -> Self {
        Self { column, parts: vec![0; topology.parts(column)] }
    }

    fn add(&mut self, topology: &Topology, node: NodeIndex, by: i64) {
        if let Some(part) = topology.part(self.column, node)
            && let Some(sum) = self.parts.get_mut(part)
        {
            *sum += by;
        }
    }

    /// How many there are near a node; none when the node is in no part.
    fn near(&self, topology: &Topology, node: NodeIndex) -> Option<i64> {
        self.parts.get(topology.part(self.column, node)?).copied()
    }
}

impl Neighbours {
    pub(super) fn prepare(
        pod: &PodInfo,
        snapshot: &mut Snapshot,
        expected: &[Arc<PodInfo>],
    ) -> Self {
        let affinity = &pod.affinity;
        let is_like = |term: &Term| term.pods.matches(&pod.key.namespace, pod.labels.as_ref());
        let mut found = Self::default();
        if !affinity.required.is_empty() {
            let all: Arc<[PodSelector]> =
                affinity.required.iter().map(|term| term.pods.clone()).collect();
            let selected = snapshot.select(&all);
            let columns: Vec<ColumnId> =
                affinity.required.iter().map(|term| snapshot.column(&term.topology_key)).collect();
            for column in columns {
                let mut sums = Sums::new(column, &snapshot.topology);
                for (node, count) in snapshot.selected(selected) {
                    sums.add(&snapshot.topology, node, count.all.into());
                }
                found.wanted.push(sums);
            }
            found.wanted_pods = Some(all);
            found.wants_its_like = affinity.required.iter().all(|term| is_like(term));
        }
        for term in &affinity.forbidden {
            let selected = snapshot.select(&[term.pods.clone()].into());
            let mut sums = Sums::new(snapshot.column(&term.topology_key), &snapshot.topology);
            for (node, count) in snapshot.selected(selected) {
                sums.add(&snapshot.topology, node, count.all.into());
            }
            found.unwanted.push((term.clone(), sums));
        }
        let about = snapshot.carried.about(pod).filter(|carried| carried.role == Role::Forbidden);
        let mut keys: Vec<Arc<str>> =
            about.map(|carried| carried.term.topology_key.clone()).collect();
        let terms = expected.iter().flat_map(|other| &other.affinity.forbidden);
        keys.extend(terms.filter(|term| is_like(term)).map(|term| term.topology_key.clone()));
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let mut sums = Sums::new(snapshot.column(&key), &snapshot.topology);
            let about = snapshot.carried.about(pod);
            for carried in about.filter(|carried| {
                carried.role == Role::Forbidden && carried.term.topology_key == key
            }) {
                for (node, count) in carried.per_node {
                    sums.add(&snapshot.topology, *node, (*count).into());
                }
            }
            found.kept_away_by.push(sums);
        }
        found
    }

    pub(super) fn refusal(&self, topology: &Topology, node: NodeIndex) -> Option<Refusal> {
        let refuse =
            |reason, may_be_cured| Some(Refusal::new(Filter::PodAffinity, reason, may_be_cured));
        if !self.has_what_it_wants(topology, node) {
            return refuse(Reason::Affinity, false);
        }
        let is_near = |sums: &Sums| sums.near(topology, node).is_some_and(|count| count > 0);
        if self.unwanted.iter().any(|(_, sums)| is_near(sums)) {
            return refuse(Reason::AntiAffinity, true);
        }
        if self.kept_away_by.iter().any(is_near) {
            return refuse(Reason::AntiAffinityOfOthers, true);
        }
        None
    }

    fn has_what_it_wants(&self, topology: &Topology, node: NodeIndex) -> bool {
        let near = || self.wanted.iter().map(|sums| sums.near(topology, node));
        if near().any(|count| count.is_none()) {
            return false;
        }
        if near().all(|count| count.is_some_and(|count| count > 0)) {
            return true;
        }
        self.wants_its_like
            && self.wanted.iter().all(|sums| sums.parts.iter().all(|count| *count <= 0))
    }

    /// As if there were so many more of a pod on a node.
    pub(super) fn adjust(
        &mut self,
        for_pod: &PodInfo,
        topology: &Topology,
        node: NodeIndex,
        other: &PodInfo,
        by: i64,
    ) {
        let is = |selector: &PodSelector, pod: &PodInfo| {
            selector.matches(&pod.key.namespace, pod.labels.as_ref())
        };
        if let Some(wanted) = &self.wanted_pods
            && wanted.iter().all(|selector| is(selector, other))
        {
            self.wanted.iter_mut().for_each(|sums| sums.add(topology, node, by));
        }
        for (term, sums) in &mut self.unwanted {
            if is(&term.pods, other) {
                sums.add(topology, node, by);
            }
        }
        for term in &other.affinity.forbidden {
            if !is(&term.pods, for_pod) {
                continue;
            }
            let Some(column) = topology.known_column(&term.topology_key) else { continue };
            let sums = self.kept_away_by.iter_mut().find(|sums| sums.column == column);
            if let Some(sums) = sums {
                sums.add(topology, node, by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::filters::Checks;
    use crate::scheduler::fixture::{Cluster, pending};

    /// a1, a2 in zone a, b1 in zone b, x in none.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            cluster.node(name, json!({ "metadata": { "labels": { "zone": zone } } }));
        }
        cluster.node("x", json!({}));
        cluster
    }

    fn term(key: &str, app: &str) -> Value {
        json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } })
    }

    fn with(name: &str, app: &str, kind: &str, terms: Value) -> PodBuilder {
        fixture::pod(name).label("app", app).spec(json!({
            "containers": [],
            "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": terms } },
        }))
    }

    /// What each node is refused for, in one letter.
    fn refused(cluster: &mut Cluster, pod: PodBuilder) -> String {
        let pod = pending(pod);
        cluster.snapshot.begin_decision();
        let checks = Checks::prepare(&pod, &mut cluster.snapshot, &[]);
        let mut found = std::collections::BTreeMap::new();
        cluster.nodes_where(|snapshot, index, node| {
            let refusal = checks.neighbours.refusal(&snapshot.topology, index);
            let letter = match refusal.as_ref().map(|refusal| &refusal.reason) {
                None => '.',
                Some(Reason::Affinity) => 'w',
                Some(Reason::AntiAffinity) => 'u',
                Some(Reason::AntiAffinityOfOthers) => 'o',
                other => panic!("{other:?}"),
            };
            found.insert(node.name.clone(), letter);
            true
        });
        found.into_values().collect()
    }

    #[test]
    fn what_must_be_near_and_what_must_not() {
        let (near, far) = ("podAffinity", "podAntiAffinity");
        let host = "kubernetes.io/hostname";
        let web = |node: &str| fixture::pod("web").label("app", "web").on(node);
        let db = |node: &str| fixture::pod("db").label("app", "db").on(node);
        let shy = |node: &str| with("shy", "shy", far, json!([term("zone", "web")])).on(node);
        let new = |app: &str, kind: &str, terms: Value| with("new", app, kind, terms);
        let plain = |app: &str| fixture::pod("new").label("app", app);
        let front =
            json!({ "topologyKey": host, "labelSelector": { "matchLabels": { "tier": "front" } } });
        // What is there, the new pod, and whether a1, a2, b1 and x are refused: not (.), or for
        // what is not near (w: wanted), for what is (u: unwanted), or by others (o).
        let rows = [
            (vec![web("a1")], new("db", near, json!([term("zone", "web")])), "..ww"),
            (vec![web("a1")], new("db", near, json!([term(host, "web")])), ".www"),
            (vec![], new("db", near, json!([term("zone", "web")])), "wwww"),
            // The first of its kind.
            (vec![], new("web", near, json!([term("zone", "web")])), "...w"),
            (vec![web("b1")], new("web", near, json!([term("zone", "web")])), "ww.w"),
            // One pod must match all the terms, in each term's part.
            (
                vec![web("a1"), db("a1")],
                new("n", near, json!([term("zone", "web"), term(host, "db")])),
                "wwww",
            ),
            (
                vec![web("a1").label("tier", "front")],
                new("n", near, json!([term("zone", "web"), front])),
                ".www",
            ),
            (vec![web("a1")], new("db", far, json!([term("zone", "web")])), "uu.."),
            (vec![web("a1")], new("db", far, json!([term(host, "web")])), "u..."),
            (
                vec![web("a1"), db("b1")],
                new("n", far, json!([term("zone", "web"), term("zone", "db")])),
                "uuu.",
            ),
            (vec![shy("a1")], plain("web"), "oo.."),
            (vec![shy("a1")], plain("db"), "...."),
            // One that is on its way out still has its say.
            (vec![shy("b1").terminating()], plain("web"), "..o."),
            // In another namespace it means nothing.
            (
                vec![web("a1").namespace("there")],
                new("db", far, json!([term("zone", "web")])),
                "....",
            ),
        ];
        for (row, (there, pod, expected)) in rows.into_iter().enumerate() {
            let mut cluster = cluster();
            for pod in there {
                cluster.pod(pod);
            }
            assert_eq!(refused(&mut cluster, pod), expected, "row {row}");
        }
    }

    #[test]
    fn as_if_pods_came_and_went() {
        let mut cluster = cluster();
        let shy = cluster
            .pod(with("shy", "shy", "podAntiAffinity", json!([term("zone", "web")])).on("a1"));
        let db = cluster.pod(fixture::pod("db").label("app", "db").on("a1"));
        let pod = pending(with("n", "web", "podAntiAffinity", json!([term("zone", "db")])));
        cluster.snapshot.begin_decision();
        let mut checks = Checks::prepare(&pod, &mut cluster.snapshot, &[]);
        let snapshot = &cluster.snapshot;
        let a2 = snapshot.find_node("a2").unwrap();
        let node = snapshot.node(a2).unwrap();
        let refused = |checks: &Checks<'_>| {
            checks.neighbours.refusal(&snapshot.topology, a2).map(|refusal| refusal.reason)
        };
        assert_eq!(refused(&checks), Some(Reason::AntiAffinity));
        checks.remove(&snapshot.topology, a2, node, &db);
        assert_eq!(refused(&checks), Some(Reason::AntiAffinityOfOthers));
        checks.remove(&snapshot.topology, a2, node, &shy);
        assert_eq!(refused(&checks), None);
        checks.add(&snapshot.topology, a2, node, &shy);
        assert_eq!(refused(&checks), Some(Reason::AntiAffinityOfOthers));
    }
}
