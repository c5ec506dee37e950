//! The scheduler's rules once each, from an object in the store to what becomes of it there.

use std::collections::BTreeMap;

use api::{DeleteOptions, Object, ObjectKey, Scope};
use k8s_openapi::api::core::v1::{Event, Pod, PodSpec};
use serde_json::{Value, json};

use crate::cluster::{Cluster, app};
use crate::key;

/// What a pod of so many cores has in its spec.
fn cores(cores: &str) -> Value {
    json!({ "containers": [{
        "name": "main", "image": "nginx", "resources": { "requests": { "cpu": cores } },
    }] })
}

impl Cluster {
    async fn create(&self, name: &str, spec: Value) {
        self.create_with(name, app(name), spec).await;
    }

    async fn create_with(&self, name: &str, labels: BTreeMap<String, String>, spec: Value) {
        let mut spec: PodSpec = serde_json::from_value(spec).expect("a pod's spec");
        spec.containers.iter_mut().for_each(|container| {
            container.image.get_or_insert_with(|| "nginx".into());
        });
        self.create_pod_of(name, labels, spec).await;
    }

    async fn pod(&self, name: &str) -> Option<Pod> {
        self.pods().find(&key(name)).await.expect("the store answers")
    }

    /// Waits until a pod runs on a node.
    async fn until_on(&self, pod: &str, node: &str) {
        self.until(&format!("{pod} is on {node}"), async || {
            self.pod(pod).await.is_some_and(|pod| pod.node_name() == Some(node))
        })
        .await;
    }

    /// Waits until a pod says why it has no node.
    async fn until_told(&self, pod: &str, reason: &str, message: &str) {
        let mut last = None;
        let told = async || {
            let status = self.pod(pod).await.and_then(|pod| pod.status).unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let told = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled");
            last = told.map(|told| (told.reason, told.message));
            last == Some((Some(reason.to_owned()), Some(message.to_owned())))
        };
        self.until(&format!("{pod} waits for {reason}: {message}"), told).await;
    }

    async fn delete(&self, pod: &str) {
        self.pods().delete(&key(pod), &DeleteOptions::default()).await.expect("the pod is there");
    }

    /// Waits until an event tells of a pod.
    async fn until_event(&self, pod: &str, reason: &str, message: &str) {
        self.until(&format!("an event {reason} of {pod}"), async || {
            let events = self.events().list(&Scope::All).await.expect("the store answers").items;
            events.iter().any(|event: &Event| {
                event.involved_object.name.as_deref() == Some(pod)
                    && event.reason.as_deref() == Some(reason)
                    && event.message.as_deref().is_some_and(|text| text.starts_with(message))
            })
        })
        .await;
    }
}

#[tokio::test]
async fn pods_wait_for_room_and_say_so() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create("large", cores("3")).await;
    cluster.until_on("large", "node-1").await;
    cluster
        .until_event("large", "Scheduled", "Successfully assigned default/large to node-1")
        .await;

    cluster.create("next", cores("2")).await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 No preemption victims found for incoming pod.";
    cluster.until_told("next", "Unschedulable", message).await;
    cluster.until_event("next", "FailedScheduling", message).await;
    cluster.create("small", cores("1")).await;
    cluster.until_on("small", "node-1").await;

    cluster.delete("large").await;
    cluster.until_on("next", "node-1").await;
}

#[tokio::test]
async fn pods_go_where_labels_taints_and_other_pods_let_them() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.until_scheduled_on(2).await;
    let change = |node: &mut k8s_openapi::api::core::v1::Node| {
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert("disk".into(), "ssd".into());
        let taints = json!([{ "key": "dedicated", "value": "db", "effect": "NoSchedule" }]);
        node.spec.get_or_insert_default().taints = serde_json::from_value(taints).unwrap();
        Ok(())
    };
    cluster.nodes().modify(&ObjectKey::cluster("node-2"), change).await.unwrap();

    let selecting = |tolerations: Value| {
        let mut spec = cores("100m");
        spec["nodeSelector"] = json!({ "disk": "ssd" });
        spec["tolerations"] = tolerations;
        spec
    };
    cluster.create("stranger", selecting(json!([]))).await;
    let message = "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
                   1 node(s) had untolerated taint {dedicated: db}. preemption: 0/2 nodes are available: \
                   2 Preemption is not helpful for scheduling.";
    cluster.until_told("stranger", "Unschedulable", message).await;
    cluster.create("db", selecting(json!([{ "key": "dedicated", "operator": "Exists" }]))).await;
    cluster.until_on("db", "node-2").await;

    let mut apart = cores("100m");
    apart["affinity"] = json!({ "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": "apart" } },
        }],
    } });
    for name in ["node-1", "node-2"] {
        let label = |node: &mut k8s_openapi::api::core::v1::Node| {
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("kubernetes.io/hostname".into(), name.into());
            Ok(())
        };
        cluster.nodes().modify(&ObjectKey::cluster(name), label).await.unwrap();
    }
    cluster.create_with("apart-1", app("apart"), apart.clone()).await;
    cluster.until_on("apart-1", "node-1").await;
    cluster.create_with("apart-2", app("apart"), apart).await;
    let message = "0/2 nodes are available: 1 node(s) didn't match pod anti-affinity rules, \
                   1 node(s) had untolerated taint {dedicated: db}. preemption: 0/2 nodes are available: \
                   1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.";
    cluster.until_told("apart-2", "Unschedulable", message).await;

    // Each is tried again as soon as what held it back is gone.
    let untaint = |node: &mut k8s_openapi::api::core::v1::Node| {
        node.spec.get_or_insert_default().taints = None;
        Ok(())
    };
    cluster.nodes().modify(&ObjectKey::cluster("node-2"), untaint).await.unwrap();
    cluster.until_on("stranger", "node-2").await;
    cluster.until_on("apart-2", "node-2").await;
}

#[tokio::test]
async fn less_important_pods_make_room() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create("low", cores("3")).await;
    cluster.until_on("low", "node-1").await;
    let mut high = cores("2");
    high["priorityClassName"] = json!("high");
    cluster.create("high", high).await;
    let message = "no PriorityClass with name high was found";
    cluster.until_told("high", "Unschedulable", message).await;

    cluster.create_priority_class("high", 1000).await;
    cluster.until_on("high", "node-1").await;
    cluster.until("the victim is gone", async || cluster.pod("low").await.is_none()).await;
    cluster.until_event("low", "Preempted", "Preempted by pod ").await;
    let high = cluster.pod("high").await.unwrap();
    assert_eq!(high.status.unwrap().nominated_node_name.as_deref(), Some("node-1"));
}

#[tokio::test]
async fn a_gated_pod_waits_until_it_is_let_go() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    let mut gated = cores("1");
    gated["schedulingGates"] = json!([{ "name": "example.com/wait" }]);
    cluster.create("gated", gated).await;
    let message = "Scheduling is blocked due to non-empty scheduling gates";
    cluster.until_told("gated", "SchedulingGated", message).await;
    let let_go = |pod: &mut Pod| {
        pod.spec.get_or_insert_default().scheduling_gates = None;
        Ok(())
    };
    cluster.pods().modify(&key("gated"), let_go).await.unwrap();
    cluster.until_on("gated", "node-1").await;
}
