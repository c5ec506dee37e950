//! What matters about a pod when pods are placed, read off once.
//!
//! [`PodInfo`] is what a pod means to others: what it takes up, and whom it keeps away. It is kept
//! for every pod there is. [`PendingPod`] adds what the pod itself wants, and is kept only until
//! the pod has a node.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};

use super::node_terms::NodeAffinity;
use super::ports::HostPort;
use super::priority::Priority;
use super::resources::{self, Load, Resources};
use super::terms::{Labels, PodAffinity, SpreadRule};
use crate::pod;

/// What a pod means to others.
#[derive(Debug, PartialEq)]
pub(crate) struct PodInfo {
    pub(crate) key: ObjectKey,
    /// A name may come back, a uid never does.
    pub(crate) uid: Arc<str>,
    pub(crate) labels: Option<Labels>,
    pub(crate) requests: Resources,
    pub(crate) load: Load,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) affinity: PodAffinity,
    pub(crate) priority: Priority,
    /// The uid of the owner that manages it.
    pub(crate) owner: Option<Arc<str>>,
    /// It still takes its place, but its owner wants another elsewhere.
    pub(crate) terminating: bool,
    /// Since when it runs; before that, since when it is there.
    pub(crate) since: Option<Timestamp>,
}

/// A pod that waits for a node.
#[derive(Debug)]
pub(crate) struct PendingPod {
    pub(crate) info: Arc<PodInfo>,
    pub(crate) nodes: NodeAffinity,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) spread: Vec<SpreadRule>,
    /// The images of its containers.
    pub(crate) images: Vec<String>,
    /// Whether something holds it back from being placed at all.
    pub(crate) gated: bool,
    /// The node where others were asked to make room for it.
    pub(crate) nominated: Option<String>,
    /// What makes no sense in it, so that it cannot be placed.
    pub(crate) defect: Option<String>,
}

impl PodInfo {
    /// Reads a pod that has a node. What makes no sense in it counts as not there.
    pub(crate) fn read(pod: &Pod, priority: Priority) -> Self {
        let mut info = Self::without_wishes(pod, priority);
        // Whoever placed it had the pod's errors to explain.
        let _defects = info.read_wishes(pod);
        info
    }

    fn without_wishes(pod: &Pod, priority: Priority) -> Self {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        Self {
            key: pod.key(),
            uid: pod.uid().into(),
            labels: pod.metadata.labels.clone(),
            requests: Resources::default(),
            load: Load::default(),
            ports: pod.spec.as_ref().map(HostPort::of_pod).unwrap_or_default(),
            affinity: PodAffinity::default(),
            priority,
            owner: pod.controller().map(|owner| owner.uid.as_str().into()),
            terminating: pod.is_deleting(),
            since: started.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0),
        }
    }

    /// What can be wrong in a pod; gives back all that is.
    fn read_wishes(&mut self, pod: &Pod) -> Vec<String> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let mut defects = Vec::new();
        match resources::requested(spec) {
            Ok((requests, load)) => (self.requests, self.load) = (requests, load),
            Err(defect) => defects.push(defect),
        }
        if let Some(affinity) = &spec.affinity {
            match PodAffinity::read(affinity, &self.key.namespace, self.labels.as_ref()) {
                Ok(affinity) => self.affinity = affinity,
                Err(defect) => defects.push(defect),
            }
        }
        defects
    }
}

impl PendingPod {
    /// Reads a pod that has no node. `priority` may say that there is none to be had.
    pub(crate) fn read(pod: &Pod, priority: Result<Priority, String>) -> Self {
        let (priority, defect) = match priority {
            Ok(priority) => (priority, None),
            Err(defect) => (Priority::default(), Some(defect)),
        };
        let mut defects: Vec<String> = defect.into_iter().collect();
        let mut info = PodInfo::without_wishes(pod, priority);
        defects.extend(info.read_wishes(pod));
        let no_spec = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&no_spec);
        let spread = SpreadRule::read_all(spec, &info.key.namespace, info.labels.as_ref());
        let spread = spread.unwrap_or_else(|defect| {
            defects.push(defect);
            Vec::new()
        });
        let images: BTreeSet<&String> =
            spec.containers.iter().filter_map(|container| container.image.as_ref()).collect();
        let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.clone());
        Self {
            info: Arc::new(info),
            nodes: NodeAffinity::read(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            spread,
            images: images.into_iter().cloned().collect(),
            gated: spec.scheduling_gates.iter().flatten().next().is_some(),
            nominated: nominated.filter(|node| !node.is_empty()),
            defect: (!defects.is_empty()).then(|| defects.join("; ")),
        }
    }
}

/// Whether two versions of a pod mean the same to the scheduler, apart from its node.
pub(crate) fn is_same(old: &Pod, new: &Pod) -> bool {
    // The generation counts changes of the spec, which are rare and long to compare.
    let generation = |pod: &Pod| pod.metadata.generation;
    let same_spec = match (generation(old), generation(new)) {
        (Some(old), Some(new)) => old == new,
        _ => old.same_spec(new),
    };
    let since = |pod: &Pod| pod.status.as_ref().and_then(|status| status.start_time.clone());
    same_spec
        && old.uid() == new.uid()
        && old.node_name() == new.node_name()
        && old.metadata.labels == new.metadata.labels
        && old.is_deleting() == new.is_deleting()
        && pod::is_finished(old) == pod::is_finished(new)
        && since(old) == since(new)
        && controller_uid(old) == controller_uid(new)
}

fn controller_uid(pod: &Pod) -> Option<&str> {
    pod.controller().map(|owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_pod_with_errors_says_all_of_them() {
        let pod = fixture::pod("a").spec(serde_json::json!({
            "containers": [{ "name": "c", "resources": { "requests": { "cpu": "x", "memory": "1Gi" } } }],
            "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "", "whenUnsatisfiable": "ScheduleAnyway" }],
        }));
        let pod = pod.build();
        let pending = PendingPod::read(&pod, Err("no class".into()));
        assert_eq!(
            pending.defect.as_deref(),
            Some(
                "no class; spec.containers[0].resources.requests[cpu]: \"x\" is not a quantity such as 500m, 2 or 1.5Gi; \
                 spec.topologySpreadConstraints[0].topologyKey: must not be empty"
            )
        );
        assert_eq!(PodInfo::read(&pod, Priority::default()).requests, Resources::default());
    }

    #[test]
    fn what_makes_a_pod_another() {
        let pod = || fixture::pod("a").label("app", "web").phase("Pending");
        let old = pod().build();
        assert!(is_same(&old, &pod().ready_at(5).build()), "the kubelet writes all the time");
        for (what, new) in [
            ("node", pod().on("node-1")),
            ("labels", pod().label("app", "db")),
            ("deletion", pod().terminating()),
            ("end", pod().phase("Failed")),
            ("owner", pod().owned_by("rs")),
            ("spec", pod().scheduler("other")),
        ] {
            assert!(!is_same(&old, &new.build()), "{what}");
        }
    }
}
