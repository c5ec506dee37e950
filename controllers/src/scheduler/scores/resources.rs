//! Scores by CPU and memory, with the pod on the node.

use super::{Candidates, MAX};
use crate::scheduler::node_info::NodeFacts;

/// Prefers nodes with a larger share of their CPU and memory left.
pub(super) fn least_allocated(candidates: &Candidates<'_>) -> Vec<f64> {
    let added = candidates.pod.info.load;
    let score = |facts: &NodeFacts, cpu: i64, memory: i64| {
        let left = |all: i64, taken: i64| {
            (all > 0).then(|| if taken > all { 0.0 } else { (all - taken) as f64 / all as f64 })
        };
        let shares = [
            left(facts.allocatable.cpu_millis, cpu.saturating_add(added.cpu_millis)),
            left(facts.allocatable.memory_bytes, memory.saturating_add(added.memory_bytes)),
        ];
        let known = shares.iter().flatten().count();
        if known == 0 { 0.0 } else { MAX * shares.iter().flatten().sum::<f64>() / known as f64 }
    };
    let nodes = candidates.nodes.iter();
    nodes
        .map(|(_, node)| {
            let load = node.load;
            node.facts
                .as_ref()
                .map_or(0.0, |facts| score(facts, load.cpu_millis, load.memory_bytes))
        })
        .collect()
}

/// Prefers nodes of which the same share of CPU and of memory would be taken. Says nothing about
/// a pod that asks for neither.
pub(super) fn balance(candidates: &Candidates<'_>) -> Option<Vec<f64>> {
    let asked = &candidates.pod.info.requests;
    if asked.cpu_millis == 0 && asked.memory_bytes == 0 {
        return None;
    }
    let scores = candidates.nodes.iter().map(|(_, node)| {
        let Some(facts) = &node.facts else { return 0.0 };
        let share = |taken: i64, asked: i64, all: i64| {
            (all > 0).then(|| (taken.saturating_add(asked) as f64 / all as f64).min(1.0))
        };
        let (taken, all) = (&node.requested, &facts.allocatable);
        let cpu = share(taken.cpu_millis, asked.cpu_millis, all.cpu_millis);
        let memory = share(taken.memory_bytes, asked.memory_bytes, all.memory_bytes);
        // The standard deviation of two numbers is half their distance.
        let deviation = cpu.zip(memory).map_or(0.0, |(cpu, memory)| (cpu - memory).abs() / 2.0);
        MAX * (1.0 - deviation)
    });
    Some(scores.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::of;
    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::fixture::{Cluster, pending};

    fn asking(name: &str, cpu: &str, memory: &str) -> PodBuilder {
        fixture::pod(name).spec(json!({ "containers": [
            { "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } },
        ] }))
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let offers = |cpu: &str, memory: &str| json!({ "status": { "allocatable": { "cpu": cpu, "memory": memory, "pods": "10" } } });
        cluster.node("a", offers("4", "4Gi"));
        cluster.node("b", offers("4", "4Gi"));
        cluster.node("c", offers("8", "8Gi"));
        cluster.pod(asking("there", "2", "1Gi").on("a"));
        cluster
    }

    #[test]
    fn the_emptiest_node() {
        let pod = pending(asking("n", "1", "1Gi"));
        let scores = of(&mut cluster(), &pod, |c, _| Some(least_allocated(c))).unwrap();
        assert_eq!(scores, [((0.25 + 0.5) / 2.0 * MAX).round(), 75.0, 88.0]);
        // What asks for nothing counts a little, so it is spread as well.
        let pod = pending(fixture::pod("n").spec(json!({ "containers": [{ "name": "c" }] })));
        let scores = of(&mut cluster(), &pod, |c, _| Some(least_allocated(c))).unwrap();
        assert!(scores[0] < scores[1] && scores[1] < scores[2], "{scores:?}");
    }

    #[test]
    fn a_node_that_is_overdrawn_or_has_nothing_scores_nothing() {
        let mut cluster = Cluster::default();
        cluster.node(
            "a",
            json!({ "status": { "allocatable": { "cpu": "1", "memory": "1", "pods": "10" } } }),
        );
        cluster.node(
            "b",
            json!({ "status": { "allocatable": { "cpu": "0", "memory": "0", "pods": "10" } } }),
        );
        let pod = pending(asking("n", "2", "2"));
        assert_eq!(of(&mut cluster, &pod, |c, _| Some(least_allocated(c))), Some(vec![0.0, 0.0]));
    }

    #[test]
    fn the_node_that_stays_balanced() {
        // On a: 2.4/4 CPU and 3/4 memory; on b: 0.4/4 and 2/4; on c: 0.4/8 and 2/8.
        let pod = pending(asking("n", "400m", "2Gi"));
        let scores = of(&mut cluster(), &pod, |c, _| balance(c)).unwrap();
        assert_eq!(scores, [93.0, 80.0, 90.0]);
        let nothing = pending(fixture::pod("n"));
        assert_eq!(of(&mut cluster(), &nothing, |c, _| balance(c)), None);
    }
}
