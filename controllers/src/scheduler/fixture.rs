//! Nodes and pods for the scheduler's tables.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::node_info::{NodeFacts, NodeInfo};
use super::pod_info::{PendingPod, PodInfo};
use super::priority::PriorityClasses;
use super::snapshot::{NodeIndex, Snapshot};
use crate::fixture::PodBuilder;

/// A pod that has a node.
pub(super) fn info(pod: PodBuilder) -> Arc<PodInfo> {
    let pod = pod.build();
    let priority = PriorityClasses::new(&[]).of(pod.spec.as_ref()).unwrap();
    Arc::new(PodInfo::read(&pod, priority))
}

/// A pod that waits for one.
pub(super) fn pending(pod: PodBuilder) -> PendingPod {
    let pod = pod.build();
    PendingPod::read(&pod, PriorityClasses::new(&[]).of(pod.spec.as_ref()))
}

/// A node that is ready and takes plenty, but for what is said otherwise.
pub(super) fn node_object(name: &str, changes: &[Value]) -> Node {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": {
            "allocatable": { "cpu": "64", "memory": "256Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    for change in changes {
        merge(&mut node, change);
    }
    serde_json::from_value(node).unwrap()
}

/// A node with nothing on it.
pub(super) fn node_with(name: &str, base: Value, change: Value) -> NodeInfo {
    let mut node = NodeInfo::new(name.into());
    node.facts = Some(Arc::new(NodeFacts::read(&node_object(name, &[base, change]))));
    node
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Nodes with pods on them.
#[derive(Default)]
pub(super) struct Cluster {
    pub(super) snapshot: Snapshot,
}

impl Cluster {
    pub(super) fn node(&mut self, name: &str, change: Value) -> NodeIndex {
        let node = node_object(name, &[change]);
        self.snapshot.set_node(name, NodeFacts::read(&node)).0
    }

    /// Puts a pod on the node that it says.
    pub(super) fn pod(&mut self, pod: PodBuilder) -> Arc<PodInfo> {
        let pod = pod.build();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap();
        let priority = PriorityClasses::new(&[]).of(pod.spec.as_ref()).unwrap();
        let info = Arc::new(PodInfo::read(&pod, priority));
        self.snapshot.place(info.clone(), &node, false);
        info
    }

    /// The names of some nodes, sorted.
    pub(super) fn nodes_where(
        &self,
        mut holds: impl FnMut(&Snapshot, NodeIndex, &NodeInfo) -> bool,
    ) -> Vec<String> {
        let mut names: Vec<String> = self
            .snapshot
            .order()
            .iter()
            .map(|index| (*index, self.snapshot.node(*index).unwrap()))
            .filter(|(index, node)| holds(&self.snapshot, *index, node))
            .map(|(_, node)| node.name.to_string())
            .collect();
        names.sort();
        names
    }
}
