//! Which pods go first when a ReplicaSet shrinks: Kubernetes' order.
//!
//! A pod goes before another when, at the first of these that tells them apart, it
//! 1. is bound to no node,
//! 2. is `Pending` rather than `Unknown`, or `Unknown` rather than `Running`,
//! 3. is not ready,
//! 4. has the lower `controller.kubernetes.io/pod-deletion-cost`,
//! 5. shares its node with more pods of the set, those not counted that go before it,
//! 6. has become ready more recently,
//! 7. has restarted more often,
//! 8. is newer,
//!
//! and by name in the end, so that two runs choose alike. (Kubernetes counts under 5 what is there
//! in the beginning. Going by what is left then, a set that was spread stays so as it shrinks.)

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The annotation by which users say which pods they would rather keep.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The pods of a set in the order in which they are to go.
pub(crate) fn by_deletion_order(mut pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut left_on_node: HashMap<String, usize> = HashMap::new();
    for node in pods.iter().filter_map(|pod| pod.node_name()) {
        *left_on_node.entry(node.to_owned()).or_default() += 1;
    }
    pods.sort_by_cached_key(|pod| (rank(pod, 0), pod.name().to_owned()));
    // In this order the pods of one node would go, so each knows with how many it shares the node
    // by then.
    let mut ranked: Vec<(Rank, Arc<Pod>)> = Vec::with_capacity(pods.len());
    for pod in pods {
        let left = pod.node_name().and_then(|node| left_on_node.get_mut(node));
        let neighbours = left.map_or(0, |left| {
            *left -= 1;
            *left
        });
        ranked.push((rank(&pod, neighbours), pod));
    }
    ranked.sort_by(|(one, a), (other, b)| one.cmp(other).then_with(|| a.name().cmp(b.name())));
    ranked.into_iter().map(|(_, pod)| pod).collect()
}

type Rank =
    (bool, u8, bool, i32, Reverse<usize>, Reverse<Timestamp>, Reverse<i32>, Reverse<Timestamp>);

/// A pod that has not noted a time counts as the newest.
fn rank(pod: &Pod, neighbours: usize) -> Rank {
    let ready_since = pod::ready_since(pod);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
    (
        pod.node_name().is_some(),
        match pod::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready_since.is_some(),
        deletion_cost(pod),
        Reverse(neighbours),
        Reverse(ready_since.flatten().unwrap_or(Timestamp::MAX)),
        Reverse(pod::restarts(pod)),
        Reverse(created),
    )
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(DELETION_COST))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{PodBuilder, pod};

    /// Each row: the first pod goes before the second.
    #[test]
    fn each_rule_tells_two_pods_apart() {
        let running =
            |name: &str| pod(name).on("node-1").phase("Running").ready_at(100).created_at(10);
        let rows: Vec<(&str, PodBuilder, PodBuilder)> = vec![
            ("unassigned first", pod("b").phase("Running").ready_at(1), running("a")),
            ("Pending before Running", pod("b").on("node-1"), running("a")),
            (
                "Pending before Unknown",
                pod("b").on("node-1"),
                pod("a").on("node-1").phase("Unknown"),
            ),
            (
                "Unknown before Running",
                pod("b").on("node-1").phase("Unknown").ready_at(1),
                running("a"),
            ),
            ("not ready first", pod("b").on("node-1").phase("Running").created_at(1), running("a")),
            ("lower cost first", running("b").annotation(DELETION_COST, "-5"), running("a")),
            (
                "a cost that is no number is none",
                running("b"),
                running("a").annotation(DELETION_COST, "5"),
            ),
            ("ready more recently first", running("b").ready_at(200), running("a")),
            ("more restarts first", running("b").restarts(3), running("a").restarts(2)),
            ("newer first", running("b").created_at(20), running("a")),
            ("the name decides in the end", running("a"), running("b")),
        ];
        for (rule, first, second) in rows {
            let (first, second) = (first.build(), second.build());
            for pods in [vec![first.clone(), second.clone()], vec![second, first.clone()]] {
                assert_eq!(by_deletion_order(pods)[0].metadata, first.metadata, "{rule}");
            }
        }
    }

    #[test]
    fn the_fuller_node_gives_first_until_it_is_no_fuller() {
        let on = |name: &str, node: &str| pod(name).on(node).phase("Running").ready_at(100);
        let order = |pods: Vec<PodBuilder>| {
            let pods = pods.into_iter().map(PodBuilder::build).collect();
            by_deletion_order(pods).iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>()
        };
        let uneven = vec![on("a", "node-1"), on("b", "node-2"), on("c", "node-2")];
        assert_eq!(order(uneven), ["b", "a", "c"]);

        let even = vec![
            on("a", "node-1"),
            on("b", "node-1"),
            on("c", "node-2").ready_at(200),
            on("d", "node-2").ready_at(200),
        ];
        assert_eq!(order(even), ["c", "a", "d", "b"]);

        // What goes first anyway is not in the way of those that stay.
        let starting =
            vec![on("a", "node-1"), on("b", "node-2"), on("c", "node-2").phase("Pending")];
        assert_eq!(order(starting), ["c", "a", "b"]);
    }
}
