//! What matters about a node when pods are placed.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod_info::PodInfo;
use super::resources::{self, Load, Resources};
use super::taints;
use super::terms::Labels;

/// The label that says in which zone a node is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What a node says of itself.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct NodeFacts {
    pub(crate) labels: Labels,
    pub(crate) taints: Vec<Taint>,
    /// Whether nobody said that it gets no new pods.
    pub(crate) schedulable: bool,
    pub(crate) allocatable: Resources,
    pub(crate) pods_allowed: usize,
    /// The images that it has, with their sizes in bytes.
    pub(crate) images: BTreeMap<String, i64>,
}

impl NodeFacts {
    /// Reads a node. What makes no sense in it counts as not there: it takes no pods then.
    pub(crate) fn read(node: &Node) -> Self {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let resources = allocatable.map(|allocatable| Resources::read(allocatable, "allocatable"));
        let resources = resources.unwrap_or(Ok(Resources::default())).unwrap_or_else(|error| {
            tracing::warn!(
                node = node.name(),
                error,
                "scheduler: what the node offers is not clear"
            );
            Resources::default()
        });
        let images = status.and_then(|status| status.images.as_ref()).into_iter().flatten();
        let images = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: taints::of_node(node),
            schedulable: !cordoned && !node.is_deleting(),
            pods_allowed: allocatable.map_or(0, resources::pods_allowed),
            allocatable: resources,
            images: images.collect(),
        }
    }

    pub(crate) fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE_LABEL).map(String::as_str)
    }
}

/// A node, and what its pods take of it.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) name: Arc<str>,
    /// None when there are pods on a node that is not there, or not yet.
    pub(crate) facts: Option<Arc<NodeFacts>>,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    pub(crate) requested: Resources,
    pub(crate) load: Load,
}

impl NodeInfo {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            facts: None,
            pods: Vec::new(),
            requested: Resources::default(),
            load: Load::default(),
        }
    }

    pub(crate) fn add(&mut self, pod: &Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.load.add(pod.load);
        self.pods.push(pod.clone());
    }

    /// Takes away a pod; does nothing when it is not there.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(index) = self.pods.iter().position(|pod| &*pod.uid == uid) else { return };
        let pod = self.pods.swap_remove(index);
        self.requested.subtract(&pod.requests);
        self.load.subtract(pod.load);
    }
}
