//! Whether something that happened may let a pod be placed that no node took.
//!
//! A pod is tried again when the node where something happened would take it now, as far as that
//! node alone tells, and when what happened bears on the rules that reach beyond a node. What
//! cannot matter to a pod wakes it not: thousands of pods may wait.

use super::counts::Role;
use super::filters::{self, Filter, Filters};
use super::pod_info::{PendingPod, PodInfo};
use super::snapshot::{NodeChange, NodeIndex, Snapshot};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Happening<'a> {
    /// A node is new, or was changed.
    Node(NodeIndex, NodeChange),
    /// A node is gone.
    NodeGone,
    /// A pod has left its node.
    Left(&'a PodInfo, NodeIndex),
    /// A pod is on a node that was not there, or has other labels, or is on its way out now.
    Placed(&'a PodInfo),
}

/// Whether that may help a pod that was refused by these filters.
pub(crate) fn may_help(
    happening: Happening<'_>,
    pod: &PendingPod,
    refused_by: Filters,
    snapshot: &Snapshot,
) -> bool {
    // Nothing refused it: there were no nodes.
    if refused_by.is_empty() {
        return !matches!(happening, Happening::NodeGone);
    }
    let by_others = refused_by.contains(Filter::Spread) || refused_by.contains(Filter::PodAffinity);
    match happening {
        Happening::Node(index, change) => {
            (by_others && change == NodeChange::Topology) || takes(snapshot, index, pod)
        }
        Happening::NodeGone => refused_by.contains(Filter::Spread),
        Happening::Left(other, index) => {
            let makes_room =
                refused_by.contains(Filter::Resources) || refused_by.contains(Filter::Ports);
            (makes_room && takes(snapshot, index, pod))
                || (refused_by.contains(Filter::Spread) && is_counted(pod, other))
                || (refused_by.contains(Filter::PodAffinity) && kept_apart(pod, other))
        }
        Happening::Placed(other) => {
            (refused_by.contains(Filter::Spread) && is_counted(pod, other))
                || (refused_by.contains(Filter::PodAffinity) && is_wanted(pod, other))
        }
    }
}

fn takes(snapshot: &Snapshot, index: NodeIndex, pod: &PendingPod) -> bool {
    let node = snapshot.node(index);
    node.is_some_and(|node| filters::refusal_by_node(pod, node).is_none())
}

fn is_counted(pod: &PendingPod, other: &PodInfo) -> bool {
    pod.spread.iter().any(|rule| rule.pods.matches(&other.key.namespace, other.labels.as_ref()))
}

fn kept_apart(pod: &PendingPod, other: &PodInfo) -> bool {
    let speaks_of = |speaker: &PodInfo, of: &PodInfo| {
        let mut terms = super::counts::carried_by(speaker);
        terms.any(|(role, term)| {
            role == Role::Forbidden && term.pods.matches(&of.key.namespace, of.labels.as_ref())
        })
    };
    speaks_of(&pod.info, other) || speaks_of(other, &pod.info)
}

fn is_wanted(pod: &PendingPod, other: &PodInfo) -> bool {
    let mut terms = pod.info.affinity.required.iter();
    terms.any(|term| term.pods.matches(&other.key.namespace, other.labels.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::fixture::{Cluster, info, pending};

    fn by(filters: &[Filter]) -> Filters {
        let mut set = Filters::default();
        filters.iter().for_each(|filter| set.insert(*filter));
        set
    }

    fn web(name: &str) -> PodBuilder {
        fixture::pod(name).label("app", "web")
    }

    fn affinity(kind: &str) -> Value {
        json!({ kind: { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": "web" } } },
        ] } })
    }

    #[test]
    fn what_may_help() {
        let mut cluster = Cluster::default();
        let open = cluster.node("open", json!({ "status": { "allocatable": { "cpu": "2" } } }));
        let tainted = cluster.node(
            "tainted",
            json!({ "spec": { "taints": [{ "key": "x", "effect": "NoSchedule" }] } }),
        );
        let asking = |cpu: &str| {
            pending(fixture::pod("n").spec(json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] })))
        };
        let spread = pending(fixture::pod("n").spec(
            json!({ "containers": [], "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } },
        }] }),
        ));
        let near = pending(
            fixture::pod("n")
                .spec(json!({ "containers": [], "affinity": affinity("podAffinity") })),
        );
        let far = pending(
            fixture::pod("n")
                .spec(json!({ "containers": [], "affinity": affinity("podAntiAffinity") })),
        );
        let like = pending(web("n"));
        let (small, large) = (asking("1"), asking("3"));
        let (web, db) = (info(web("w")), info(fixture::pod("d").label("app", "db")));
        let shy = info(
            fixture::pod("s")
                .spec(json!({ "containers": [], "affinity": affinity("podAntiAffinity") })),
        );
        let (resources, taints) = (by(&[Filter::Resources]), by(&[Filter::Taints]));
        let (spreads, others) = (by(&[Filter::Spread]), by(&[Filter::PodAffinity]));
        let (room, topology) = (NodeChange::Room, NodeChange::Topology);
        use Happening::{Left, Node, NodeGone, Placed};
        let rows = [
            (Node(open, topology), &small, by(&[]), true),
            (NodeGone, &small, by(&[]), false),
            (Node(open, room), &small, resources, true),
            (Node(open, room), &large, resources, false),
            (Node(tainted, room), &small, resources, false),
            (Node(tainted, room), &small, taints, false),
            (Node(open, room), &small, taints, true),
            (NodeGone, &small, resources, false),
            (Left(&db, open), &small, resources, true),
            (Left(&db, open), &large, resources, false),
            (Left(&db, tainted), &small, resources, false),
            (Left(&db, open), &small, taints, false),
            (Placed(&db), &small, resources, false),
            (Left(&web, open), &spread, spreads, true),
            (Left(&db, open), &spread, spreads, false),
            (Placed(&web), &spread, spreads, true),
            (Placed(&db), &spread, spreads, false),
            (NodeGone, &spread, spreads, true),
            (Node(tainted, topology), &spread, spreads, true),
            (Node(tainted, room), &spread, spreads, false),
            (Placed(&web), &near, others, true),
            (Placed(&db), &near, others, false),
            (Left(&web, open), &near, others, false),
            (Left(&web, open), &far, others, true),
            (Left(&db, open), &far, others, false),
            (Placed(&web), &far, others, false),
            (Left(&shy, open), &like, others, true),
            (Left(&shy, open), &small, others, false),
        ];
        for (row, (happening, pod, refused_by, expected)) in rows.into_iter().enumerate() {
            let found = may_help(happening, pod, refused_by, &cluster.snapshot);
            assert_eq!(found, expected, "row {row}: {happening:?} {refused_by:?}");
        }
    }
}
