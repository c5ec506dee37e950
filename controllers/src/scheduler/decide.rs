//! On which node a pod goes: decided from the nodes and from what they carry.
//!
//! Nodes that cannot take the pod are sorted out, each for the first reason that applies. Of the
//! others the pod gets the one with the fewest pods of its own owner, then with the fewest pods,
//! then the first by name. So the pods of a ReplicaSet spread over the nodes whatever else runs
//! there:
//!
//! ```text
//!            pods of nginx   pods   for the next pod of nginx
//! node-1          2            2
//! node-2          1            9    <- fewest of its owner
//! node-3          1           10
//! ```

use std::collections::BTreeMap;
use std::fmt;

use api::Object;
use k8s_openapi::api::core::v1::{Node, Pod};

use super::occupancy::Occupancy;

/// What matters about a node when pods are placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeView {
    ready: bool,
    schedulable: bool,
    /// How many pods the node takes, when it says so.
    pods_max: Option<u32>,
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let pods_max =
            status.and_then(|status| status.allocatable.as_ref()?.get("pods")?.0.parse().ok());
        Self {
            ready: conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            schedulable: !cordoned && !node.is_deleting(),
            pods_max,
        }
    }
}

/// Where a pod goes, or why nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// To the node of that name.
    Bind(String),
    /// To none, for now; the message says why, with a count for each reason.
    Unschedulable(String),
}

/// Why a node cannot take a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NotReady,
    Unschedulable,
    TooManyPods,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "node(s) were not ready",
            Self::Unschedulable => "node(s) were unschedulable",
            Self::TooManyPods => "node(s) had too many pods",
        })
    }
}

/// Chooses the node for `pod`.
pub(crate) fn decide(
    pod: &Pod,
    nodes: &BTreeMap<String, NodeView>,
    occupancy: &Occupancy,
) -> Decision {
    let owner = pod.controller().map(|owner| owner.uid.as_str());
    let mut refusals: BTreeMap<Refusal, usize> = BTreeMap::new();
    let mut candidates = Vec::new();
    for (name, node) in nodes {
        match refusal(node, occupancy.pods(name)) {
            Some(refusal) => *refusals.entry(refusal).or_default() += 1,
            None => candidates.push(name),
        }
    }
    let best = candidates.into_iter().min_by_key(|name| {
        let siblings = owner.map_or(0, |owner| occupancy.pods_of(name, owner));
        (siblings, occupancy.pods(name), *name)
    });
    match best {
        Some(node) => Decision::Bind(node.clone()),
        None => Decision::Unschedulable(explain(nodes.len(), &refusals)),
    }
}

fn refusal(node: &NodeView, pods: u32) -> Option<Refusal> {
    if !node.ready {
        Some(Refusal::NotReady)
    } else if !node.schedulable {
        Some(Refusal::Unschedulable)
    } else if node.pods_max.is_some_and(|max| pods >= max) {
        Some(Refusal::TooManyPods)
    } else {
        None
    }
}

fn explain(nodes: usize, refusals: &BTreeMap<Refusal, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons: Vec<_> =
        refusals.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("0/{nodes} nodes are available: {}", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn cordoned(name: &str) -> Node {
        let mut node = fixture::node(name, "True");
        node.spec.get_or_insert_default().unschedulable = Some(true);
        node
    }

    fn takes(name: &str, pods: &str) -> Node {
        let mut node = fixture::node(name, "True");
        let allocatable = node.status.get_or_insert_default().allocatable.get_or_insert_default();
        allocatable.insert(
            "pods".into(),
            k8s_openapi::apimachinery::pkg::api::resource::Quantity(pods.into()),
        );
        node
    }

    #[test]
    fn a_pod_goes_where_it_spreads_best_or_learns_why_not() {
        let ready = |name: &str| fixture::node(name, "True");
        let bind = |name: &str| Decision::Bind(name.into());
        let none = |why: &str| Decision::Unschedulable(why.into());
        // (nodes, what they carry: (node, owner), decision for a pod of owner `rs`)
        type Carried = Vec<(&'static str, Option<&'static str>)>;
        let rows: Vec<(Vec<Node>, Carried, Decision)> = vec![
            (vec![], vec![], none("no nodes available to schedule pods")),
            (vec![ready("node-2"), ready("node-1")], vec![], bind("node-1")),
            (vec![ready("node-1"), ready("node-2")], vec![("node-1", Some("rs"))], bind("node-2")),
            (vec![ready("node-1"), ready("node-2")], vec![("node-1", None)], bind("node-2")),
            (
                vec![ready("node-1"), ready("node-2")],
                vec![("node-1", Some("rs")), ("node-2", None), ("node-2", Some("other"))],
                bind("node-2"),
            ),
            (
                vec![ready("node-1"), ready("node-2"), ready("node-3")],
                vec![("node-1", Some("rs")), ("node-2", None), ("node-2", None), ("node-3", None)],
                bind("node-3"),
            ),
            (vec![fixture::node("node-1", "Unknown"), ready("node-2")], vec![], bind("node-2")),
            (
                vec![fixture::node("node-1", "Unknown"), fixture::node("node-2", "False")],
                vec![],
                none("0/2 nodes are available: 2 node(s) were not ready"),
            ),
            (
                vec![fixture::node("node-1", "Unknown"), cordoned("node-2"), cordoned("node-3")],
                vec![],
                none(
                    "0/3 nodes are available: 1 node(s) were not ready, 2 node(s) were unschedulable",
                ),
            ),
            (vec![takes("node-1", "2")], vec![("node-1", None)], bind("node-1")),
            (
                vec![takes("node-1", "1")],
                vec![("node-1", None)],
                none("0/1 nodes are available: 1 node(s) had too many pods"),
            ),
            (
                vec![Node::default()],
                vec![],
                none("0/1 nodes are available: 1 node(s) were not ready"),
            ),
        ];
        for (nodes, carried, expected) in rows {
            let nodes =
                nodes.iter().map(|node| (node.name().to_owned(), NodeView::from(node))).collect();
            let mut occupancy = Occupancy::default();
            for (number, (node, owner)) in carried.iter().enumerate() {
                let mut pod = fixture::pod(&number.to_string()).on(node);
                if let Some(owner) = owner {
                    pod = pod.owned_by(owner);
                }
                occupancy.observe(&pod.build());
            }
            let pod = fixture::pod("new").owned_by("rs").build();
            assert_eq!(decide(&pod, &nodes, &occupancy), expected, "{nodes:?} {carried:?}");
        }
    }

    #[test]
    fn many_pods_end_up_spread_evenly() {
        let nodes: BTreeMap<_, _> = (1..=3)
            .map(|number| format!("node-{number}"))
            .map(|name| (name.clone(), NodeView::from(&fixture::node(&name, "True"))))
            .collect();
        let mut occupancy = Occupancy::default();
        for number in 0..10 {
            let pod = fixture::pod(&format!("pod-{number}")).owned_by("rs").build();
            match decide(&pod, &nodes, &occupancy) {
                Decision::Bind(node) => occupancy.assume(&pod, &node),
                Decision::Unschedulable(why) => panic!("{why}"),
            }
        }
        let counts: Vec<_> = nodes.keys().map(|name| occupancy.pods(name)).collect();
        assert_eq!(counts, [4, 3, 3]);
    }
}
