//! Objects for the table tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodCondition,
    PodSpec, PodStatus, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, MicroTime, ObjectMeta, OwnerReference, Time,
};

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a test's second is within range")
}

fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

/// A pod in namespace `default`, its uid being `uid-<name>`.
pub(crate) fn pod(name: &str) -> PodBuilder {
    PodBuilder(Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(format!("uid-{name}")),
            creation_timestamp: Some(Time(at(0))),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: Some(PodStatus::default()),
    })
}

pub(crate) struct PodBuilder(Pod);

impl PodBuilder {
    pub(crate) fn build(self) -> Arc<Pod> {
        Arc::new(self.0)
    }

    fn status(&mut self) -> &mut PodStatus {
        self.0.status.get_or_insert_default()
    }

    pub(crate) fn on(mut self, node: &str) -> Self {
        self.0.spec.get_or_insert_default().node_name = Some(node.into());
        self
    }

    pub(crate) fn scheduler(mut self, name: &str) -> Self {
        self.0.spec.get_or_insert_default().scheduler_name = Some(name.into());
        self
    }

    /// What its spec says, but for what was set before.
    pub(crate) fn spec(mut self, spec: serde_json::Value) -> Self {
        let before = self.0.spec.take().unwrap_or_default();
        let mut spec: PodSpec = serde_json::from_value(spec).expect("a test's spec can be read");
        spec.node_name = spec.node_name.or(before.node_name);
        spec.scheduler_name = spec.scheduler_name.or(before.scheduler_name);
        self.0.spec = Some(spec);
        self
    }

    pub(crate) fn namespace(mut self, namespace: &str) -> Self {
        self.0.metadata.namespace = Some(namespace.into());
        self
    }

    pub(crate) fn phase(mut self, phase: &str) -> Self {
        self.status().phase = Some(phase.into());
        self
    }

    pub(crate) fn ready_at(mut self, second: i64) -> Self {
        self.status().conditions = Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(second))),
            ..PodCondition::default()
        }]);
        self
    }

    pub(crate) fn restarts(mut self, count: i32) -> Self {
        self.status().container_statuses =
            Some(vec![ContainerStatus { restart_count: count, ..ContainerStatus::default() }]);
        self
    }

    pub(crate) fn created_at(mut self, second: i64) -> Self {
        self.0.metadata.creation_timestamp = Some(Time(at(second)));
        self
    }

    pub(crate) fn terminating(mut self) -> Self {
        self.0.metadata.deletion_timestamp = Some(Time(at(1)));
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().extend(labels(key, value));
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.annotations.get_or_insert_default().extend(labels(key, value));
        self
    }

    /// Owned, and steered, by the ReplicaSet with that uid.
    pub(crate) fn owned_by(mut self, uid: &str) -> Self {
        self.0.metadata.owner_references.get_or_insert_default().push(OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: "nginx".into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        });
        self
    }

    /// Its owners are of that kind instead.
    pub(crate) fn owner_kind(mut self, kind: &str) -> Self {
        for owner in self.0.metadata.owner_references.iter_mut().flatten() {
            owner.kind = kind.into();
        }
        self
    }
}

/// The ReplicaSet `nginx` with uid `rs-uid`, which wants that many pods labelled `app: nginx`.
pub(crate) fn replicaset(replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("nginx".into()),
            namespace: Some("default".into()),
            uid: Some("rs-uid".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(labels("app", "nginx")),
                match_expressions: None,
            },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels("app", "nginx")),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    containers: vec![Container {
                        name: "nginx".into(),
                        image: Some("nginx:latest".into()),
                        ..Container::default()
                    }],
                    ..PodSpec::default()
                }),
            }),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

/// A node with that `Ready` condition.
pub(crate) fn node(name: &str, ready: &str) -> Node {
    Node {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".into(),
                status: ready.into(),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        }),
    }
}

/// The node's lease, renewed at that time.
pub(crate) fn lease_renewed(node: &str, renewed: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some("kube-node-lease".into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec { renew_time: Some(MicroTime(renewed)), ..LeaseSpec::default() }),
    }
}
