//! The rules that look at one node and what it carries, and at nothing beyond it.

use super::{Filter, Reason, Refusal};
use crate::scheduler::node_info::{NodeFacts, NodeInfo};
use crate::scheduler::pod_info::{PendingPod, PodInfo};
use crate::scheduler::taints;

/// Why the node, whatever is around it, cannot take the pod.
pub(crate) fn refusal(pod: &PendingPod, node: &NodeInfo) -> Option<Refusal> {
    let Some(facts) = &node.facts else {
        return Some(Refusal::new(Filter::Unschedulable, Reason::Unschedulable, false));
    };
    if !facts.schedulable && !taints::tolerates_unschedulable(&pod.tolerations) {
        return Some(Refusal::new(Filter::Unschedulable, Reason::Unschedulable, false));
    }
    if let Some(taint) = taints::untolerated(&facts.taints, &pod.tolerations) {
        let value = taint.value.clone().unwrap_or_default();
        let reason = Reason::Taint { key: taint.key.clone(), value };
        return Some(Refusal::new(Filter::Taints, reason, false));
    }
    if !pod.nodes.allows(&node.name, &facts.labels) {
        return Some(Refusal::new(Filter::NodeAffinity, Reason::NodeAffinity, false));
    }
    if ports_are_taken(&pod.info, node) {
        return Some(Refusal::new(Filter::Ports, Reason::Ports, true));
    }
    not_enough(&pod.info, node, facts)
}

fn ports_are_taken(pod: &PodInfo, node: &NodeInfo) -> bool {
    let taken = || node.pods.iter().flat_map(|other| &other.ports);
    pod.ports.iter().any(|port| taken().any(|other| port.conflicts_with(other)))
}

fn not_enough(pod: &PodInfo, node: &NodeInfo, facts: &NodeFacts) -> Option<Refusal> {
    let (wanted, all, taken) = (&pod.requests, &facts.allocatable, &node.requested);
    let extended = wanted.extended.iter();
    let extended = extended.map(|(name, wanted)| {
        (Reason::Insufficient(name.clone()), *wanted, all.extended(name), taken.extended(name))
    });
    let storage = Reason::InsufficientEphemeralStorage;
    let lacks = [
        (Reason::InsufficientCpu, wanted.cpu_millis, all.cpu_millis, taken.cpu_millis),
        (Reason::InsufficientMemory, wanted.memory_bytes, all.memory_bytes, taken.memory_bytes),
        (storage, wanted.ephemeral_bytes, all.ephemeral_bytes, taken.ephemeral_bytes),
    ]
    .into_iter()
    .chain(extended)
    .filter(|(_, wanted, all, taken)| *wanted > 0 && *wanted > all.saturating_sub(*taken));

    let is_full = node.pods.len() >= facts.pods_allowed;
    let mut may_be_cured = !is_full || facts.pods_allowed > 0;
    let lacks = lacks.map(|(reason, wanted, all, _)| {
        may_be_cured &= wanted <= all;
        reason
    });
    let reasons = is_full.then_some(Reason::TooManyPods).into_iter().chain(lacks);
    let refusal = Refusal::for_reasons(Filter::Resources, reasons, true)?;
    Some(Refusal { may_be_cured, ..refusal })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::fixture::{info, node_with, pending};

    fn with_requests(requests: Value) -> PodBuilder {
        fixture::pod("new")
            .spec(json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] }))
    }

    fn with_port(port: i32) -> PodBuilder {
        fixture::pod("port").spec(json!({ "containers": [
            { "name": "c", "ports": [{ "containerPort": 1, "hostPort": port }] },
        ] }))
    }

    /// A node with 2 cores, 4 GiB, 1 GPU and room for 3 pods, changed and filled.
    fn check(pod: PodBuilder, change: Value, carries: Vec<PodBuilder>) -> Option<Refusal> {
        let mut node = node_with(
            "node-1",
            json!({
                "metadata": { "labels": { "disk": "ssd" } },
                "status": { "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "3", "example.com/gpu": "1" } },
            }),
            change,
        );
        for pod in carries {
            node.add(&info(pod));
        }
        refusal(&pending(pod), &node)
    }

    #[test]
    fn what_a_node_is_refused_for() {
        let plain = || fixture::pod("new");
        let tolerating = |key: &str| {
            plain().spec(
                json!({ "containers": [], "tolerations": [{ "key": key, "operator": "Exists" }] }),
            )
        };
        let selecting = |disk: &str| {
            plain().spec(json!({ "containers": [], "nodeSelector": { "disk": disk } }))
        };
        let nothing = || json!({});
        let cordoned = || json!({ "spec": { "unschedulable": true } });
        let tainted = |effect: &str| json!({ "spec": { "taints": [{ "key": "gpu", "value": "a100", "effect": effect }] } });
        let not_ready =
            || json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
        let cpu = |text: &str| with_requests(json!({ "cpu": text }));
        let memory = |text: &str| with_requests(json!({ "memory": text }));
        type Row = (&'static str, PodBuilder, Value, Vec<PodBuilder>, Option<(&'static str, bool)>);
        let rows: Vec<Row> = vec![
            ("nothing", plain(), nothing(), vec![], None),
            ("cordoned", plain(), cordoned(), vec![], Some(("node(s) were unschedulable", false))),
            (
                "cordoned, tolerated",
                tolerating("node.kubernetes.io/unschedulable"),
                cordoned(),
                vec![],
                None,
            ),
            (
                "going",
                plain(),
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
                vec![],
                Some(("node(s) were unschedulable", false)),
            ),
            (
                "tainted",
                plain(),
                tainted("NoSchedule"),
                vec![],
                Some(("node(s) had untolerated taint {gpu: a100}", false)),
            ),
            ("tainted, tolerated", tolerating("gpu"), tainted("NoSchedule"), vec![], None),
            ("rather not", plain(), tainted("PreferNoSchedule"), vec![], None),
            (
                "not ready",
                plain(),
                not_ready(),
                vec![],
                Some(("node(s) had untolerated taint {node.kubernetes.io/not-ready: }", false)),
            ),
            ("selected", selecting("ssd"), nothing(), vec![], None),
            (
                "not selected",
                selecting("hdd"),
                nothing(),
                vec![],
                Some(("node(s) didn't match Pod's node affinity/selector", false)),
            ),
            ("port", with_port(80), nothing(), vec![with_port(81)], None),
            (
                "port taken",
                with_port(80),
                nothing(),
                vec![with_port(80)],
                Some(("node(s) didn't have free ports for the requested pod ports", true)),
            ),
            (
                "full of pods",
                plain(),
                nothing(),
                (0..3).map(|n| fixture::pod(&n.to_string())).collect(),
                Some(("Too many pods", true)),
            ),
            (
                "takes no pods",
                plain(),
                json!({ "status": { "allocatable": { "pods": "0" } } }),
                vec![],
                Some(("Too many pods", false)),
            ),
            ("all of it", cpu("2"), nothing(), vec![memory("4Gi")], None),
            (
                "cpu taken",
                cpu("1500m"),
                nothing(),
                vec![cpu("501m")],
                Some(("Insufficient cpu", true)),
            ),
            (
                "more than there is",
                cpu("2001m"),
                nothing(),
                vec![],
                Some(("Insufficient cpu", false)),
            ),
            (
                "both taken",
                with_requests(json!({ "cpu": "2", "memory": "4Gi" })),
                nothing(),
                vec![with_requests(json!({ "cpu": "1m", "memory": "1" }))],
                Some(("Insufficient cpu, Insufficient memory", true)),
            ),
            (
                "one for good",
                with_requests(json!({ "cpu": "2", "memory": "5Gi" })),
                nothing(),
                vec![cpu("1")],
                Some(("Insufficient cpu, Insufficient memory", false)),
            ),
            ("gpu", with_requests(json!({ "example.com/gpu": "1" })), nothing(), vec![], None),
            (
                "gpu taken",
                with_requests(json!({ "example.com/gpu": "1" })),
                nothing(),
                vec![with_requests(json!({ "example.com/gpu": "1" }))],
                Some(("Insufficient example.com/gpu", true)),
            ),
            (
                "no such thing",
                with_requests(json!({ "example.com/fpga": "1" })),
                nothing(),
                vec![],
                Some(("Insufficient example.com/fpga", false)),
            ),
            ("nothing asked of what is overdrawn", plain(), nothing(), vec![cpu("9")], None),
            (
                "storage",
                with_requests(json!({ "ephemeral-storage": "1Gi" })),
                nothing(),
                vec![],
                Some(("Insufficient ephemeral-storage", false)),
            ),
        ];
        for (what, pod, change, carries, expected) in rows {
            let found = check(pod, change, carries).map(|refusal| {
                let reasons: Vec<_> = refusal.reasons().map(ToString::to_string).collect();
                (reasons.join(", "), refusal.may_be_cured)
            });
            assert_eq!(
                found,
                expected.map(|(reasons, cured)| (reasons.to_owned(), cured)),
                "{what}"
            );
        }
    }

    #[test]
    fn a_node_that_is_not_there_takes_nothing() {
        let node = NodeInfo::new(Arc::from("ghost"));
        assert!(refusal(&pending(fixture::pod("new")), &node).is_some());
    }
}
