//! The kinds of objects there are. A new kind is a row in [`KINDS`] and an [`Object`] for its type.

use std::fmt::Debug;

use k8s_openapi::Metadata;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodSpec, PodStatus};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::taints::DefaultTolerations;
use crate::validation::{self, check};
use crate::{Cause, ObjectKey, Selector};

/// The most replicas that one ReplicaSet may ask for.
const MAX_REPLICAS: i32 = 100_000;
/// How long a pod's containers may take to stop when the pod does not say: Kubernetes' default.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// The highest priority that people may give to a class; what is above is the system's.
const MAX_USER_PRIORITY: i32 = 1_000_000_000;
/// What the names of the classes begin with that are the system's.
const SYSTEM_PRIORITY_PREFIX: &str = "system-";

/// What is to be known of a kind without its Rust type.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version within the group.
    pub version: &'static str,
    /// As in `Pod`.
    pub kind: &'static str,
    /// As in `pods`: in the paths of the API and of the store.
    pub plural: &'static str,
    /// As in `pod`.
    pub singular: &'static str,
    /// What `kubectl` users write for short.
    pub short_names: &'static [&'static str],
    /// Whether objects of the kind belong to a namespace.
    pub namespaced: bool,
    /// Whether status is written apart from the rest.
    pub has_status: bool,
    /// Whether there is a `spec`, whose changes `metadata.generation` counts.
    pub has_generation: bool,
}

impl Kind {
    /// The `apiVersion` of objects of the kind, as in `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }
}

/// The row of pods.
pub static POD: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    namespaced: true,
    has_status: true,
    has_generation: true,
};

/// The row of ReplicaSets.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    namespaced: true,
    has_status: true,
    has_generation: true,
};

/// The row of nodes.
pub static NODE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    has_status: true,
    has_generation: true,
};

/// The row of leases, with which nodes show that they live.
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    namespaced: true,
    has_status: false,
    has_generation: false,
};

/// The row of events.
pub static EVENT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    namespaced: true,
    has_status: false,
    has_generation: false,
};

/// The row of priority classes.
pub static PRIORITY_CLASS: Kind = Kind {
    group: "scheduling.k8s.io",
    version: "v1",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    has_status: false,
    has_generation: false,
};

/// All kinds.
pub static KINDS: [&Kind; 6] = [&POD, &REPLICA_SET, &NODE, &LEASE, &EVENT, &PRIORITY_CLASS];

/// The kind with a plural, as in a path.
pub fn kind_named(group: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.group == group && kind.plural == plural)
}

/// The kind of an owner, whatever version of it the reference names.
pub fn kind_of(owner: &OwnerReference) -> Option<&'static Kind> {
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    KINDS.into_iter().find(|kind| kind.group == group && kind.kind == owner.kind)
}

/// An object that is kept in the store.
pub trait Object:
    Metadata<Ty = ObjectMeta>
    + Clone
    + Debug
    + PartialEq
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The row of its kind.
    fn kind() -> &'static Kind;

    /// Takes the status of another object in place of its own.
    fn take_status(&mut self, from: &Self);

    /// Whether the specs are equal, so that an update leaves `metadata.generation` as it is.
    fn same_spec(&self, other: &Self) -> bool;

    /// Takes away what a new object cannot have yet, such as a status that nobody observed, and
    /// gives it what only new ones are given.
    fn make_new(&mut self, _tolerations: DefaultTolerations) {}

    /// Fills in what was left out and has a default.
    fn set_defaults(&mut self) {}

    /// Adds the rules of the kind that the object breaks. Those of all kinds are checked already.
    fn validate(&self, causes: &mut Vec<Cause>);

    /// Adds what may not change from one version of an object to the next and did.
    fn validate_change(&self, _before: &Self, _causes: &mut Vec<Cause>) {}

    /// The node that an object is bound to, under whose prefix it is kept a second time.
    fn node_name(&self) -> Option<&str> {
        None
    }

    /// Seconds that somebody needs to wind up what the object stands for before it may go; none
    /// when it may go at once.
    fn grace_seconds(&self) -> Option<i64> {
        None
    }

    /// Its key, as far as the metadata says.
    fn key(&self) -> ObjectKey {
        ObjectKey::namespaced(self.namespace(), self.name())
    }

    /// Its name; empty before it has one.
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace; empty for kinds without.
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// Its uid; empty before it is created.
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// The revision of its last write; 0 when it was not read from the store.
    fn revision(&self) -> i64 {
        let version = self.metadata().resource_version.as_deref();
        version.and_then(|version| version.parse().ok()).unwrap_or(0)
    }

    /// Whether its deletion was asked for.
    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }

    /// The owner that manages it: the reference with `controller: true`.
    fn controller(&self) -> Option<&OwnerReference> {
        let owners = self.metadata().owner_references.iter().flatten();
        owners.into_iter().find(|owner| owner.controller == Some(true))
    }
}

impl Object for Pod {
    fn kind() -> &'static Kind {
        &POD
    }

    fn take_status(&mut self, from: &Self) {
        self.status.clone_from(&from.status);
    }

    fn same_spec(&self, other: &Self) -> bool {
        self.spec == other.spec
    }

    fn make_new(&mut self, tolerations: DefaultTolerations) {
        let phase = Some("Pending".to_owned());
        self.status = Some(PodStatus { phase, ..PodStatus::default() });
        if let Some(spec) = &mut self.spec {
            tolerations.add_to(spec);
        }
    }

    fn set_defaults(&mut self) {
        if let Some(spec) = &mut self.spec {
            pod_spec_defaults(spec);
        }
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        validate_pod_spec("spec", self.spec.as_ref(), causes);
    }

    fn validate_change(&self, before: &Self, causes: &mut Vec<Cause>) {
        if before.node_name().is_some() && self.node_name() != before.node_name() {
            check(causes, || "spec.nodeName".into(), Err("must not change once it is set"));
        }
    }

    fn node_name(&self) -> Option<&str> {
        let node = self.spec.as_ref()?.node_name.as_deref()?;
        (!node.is_empty()).then_some(node)
    }

    /// A bound pod has containers to stop, unless it ended by itself.
    fn grace_seconds(&self) -> Option<i64> {
        self.node_name()?;
        let phase = self.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let asked = self.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Some(asked.unwrap_or(DEFAULT_GRACE_SECONDS))
    }
}

impl Object for ReplicaSet {
    fn kind() -> &'static Kind {
        &REPLICA_SET
    }

    fn take_status(&mut self, from: &Self) {
        self.status.clone_from(&from.status);
    }

    fn same_spec(&self, other: &Self) -> bool {
        self.spec == other.spec
    }

    fn make_new(&mut self, _tolerations: DefaultTolerations) {
        self.status = Some(ReplicaSetStatus::default());
    }

    fn set_defaults(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        spec.replicas.get_or_insert(1);
        if let Some(spec) = spec.template.as_mut().and_then(|template| template.spec.as_mut()) {
            pod_spec_defaults(spec);
        }
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        let Some(spec) = &self.spec else {
            return check(causes, || "spec".into(), Err("is required"));
        };
        let replicas = spec.replicas.unwrap_or(1);
        if replicas < 0 {
            check(causes, || "spec.replicas".into(), Err("must not be negative"));
        }
        if replicas > MAX_REPLICAS {
            check(causes, || "spec.replicas".into(), Err("must not be above 100000"));
        }
        let Some(template) = &spec.template else {
            return check(causes, || "spec.template".into(), Err("is required"));
        };
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
        if let Some(labels) = labels {
            validation::labels("spec.template.metadata.labels", labels, causes);
        }
        if let Some(labels) = &spec.selector.match_labels {
            validation::labels("spec.selector.matchLabels", labels, causes);
        }
        match Selector::new(&spec.selector) {
            Err(cause) => {
                let field = format!("spec.selector.{}", cause.field);
                causes.push(Cause { field, ..cause });
            }
            Ok(selector) if selector.is_empty() => {
                check(causes, || "spec.selector".into(), Err("must not be empty"));
            }
            Ok(selector) if !selector.matches(labels) => check(
                causes,
                || "spec.template.metadata.labels".into(),
                Err("must match the selector"),
            ),
            Ok(_) => {}
        }
        validate_pod_spec("spec.template.spec", template.spec.as_ref(), causes);
    }

    fn validate_change(&self, before: &Self, causes: &mut Vec<Cause>) {
        let selector = |set: &Self| set.spec.as_ref().map(|spec| spec.selector.clone());
        if selector(self) != selector(before) {
            check(causes, || "spec.selector".into(), Err("must not change"));
        }
    }
}

impl Object for Node {
    fn kind() -> &'static Kind {
        &NODE
    }

    fn take_status(&mut self, from: &Self) {
        self.status.clone_from(&from.status);
    }

    fn same_spec(&self, other: &Self) -> bool {
        self.spec == other.spec
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        for (i, taint) in self.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).enumerate()
        {
            check(causes, || format!("spec.taints[{i}].key"), validation::label_key(&taint.key));
        }
    }
}

impl Object for Lease {
    fn kind() -> &'static Kind {
        &LEASE
    }

    fn take_status(&mut self, _from: &Self) {}

    fn same_spec(&self, other: &Self) -> bool {
        self.spec == other.spec
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        let seconds = self.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        if seconds.is_some_and(|seconds| seconds <= 0) {
            check(causes, || "spec.leaseDurationSeconds".into(), Err("must be above 0"));
        }
    }
}

impl Object for Event {
    fn kind() -> &'static Kind {
        &EVENT
    }

    fn take_status(&mut self, _from: &Self) {}

    fn same_spec(&self, _other: &Self) -> bool {
        true
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        let about = self.involved_object.namespace.as_deref().unwrap_or_default();
        if !about.is_empty() && about != self.namespace() {
            let rule = "must be the event's own namespace";
            check(causes, || "involvedObject.namespace".into(), Err(rule));
        }
    }
}

impl Object for PriorityClass {
    fn kind() -> &'static Kind {
        &PRIORITY_CLASS
    }

    fn take_status(&mut self, _from: &Self) {}

    fn same_spec(&self, other: &Self) -> bool {
        self.value == other.value
    }

    fn set_defaults(&mut self) {
        self.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }

    fn validate(&self, causes: &mut Vec<Cause>) {
        if self.name().starts_with(SYSTEM_PRIORITY_PREFIX) {
            let rule = "must not begin with 'system-', which is for the classes that are built in";
            check(causes, || "metadata.name".into(), Err(rule));
        }
        if self.value > MAX_USER_PRIORITY {
            check(causes, || "value".into(), Err("must not be above 1000000000"));
        }
        let policy = self.preemption_policy.as_deref().unwrap_or("PreemptLowerPriority");
        if !matches!(policy, "PreemptLowerPriority" | "Never") {
            let rule = "must be PreemptLowerPriority or Never";
            check(causes, || "preemptionPolicy".into(), Err(rule));
        }
    }

    fn validate_change(&self, before: &Self, causes: &mut Vec<Cause>) {
        if self.value != before.value {
            check(causes, || "value".into(), Err("must not change"));
        }
        if self.preemption_policy != before.preemption_policy {
            check(causes, || "preemptionPolicy".into(), Err("must not change"));
        }
    }
}

fn pod_spec_defaults(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(DEFAULT_GRACE_SECONDS);
}

fn validate_pod_spec(field: &str, spec: Option<&PodSpec>, causes: &mut Vec<Cause>) {
    let Some(spec) = spec else { return check(causes, || field.into(), Err("is required")) };
    if spec.containers.is_empty() {
        check(causes, || format!("{field}.containers"), Err("must not be empty"));
    }
    for (i, container) in spec.containers.iter().enumerate() {
        let at = |name: &str| format!("{field}.containers[{i}].{name}");
        check(causes, || at("name"), validation::dns_label(&container.name));
        if spec.containers[..i].iter().any(|other| other.name == container.name) {
            check(causes, || at("name"), Err("must not be the name of another container"));
        }
        let image = container.image.as_deref().unwrap_or_default();
        if image.is_empty() {
            check(causes, || at("image"), Err("must not be empty"));
        } else if image.contains(|c: char| c.is_whitespace() || c.is_control()) {
            check(causes, || at("image"), Err("must not contain white space"));
        }
        for (j, variable) in container.env.iter().flatten().enumerate() {
            if variable.name.is_empty() || variable.name.contains('=') {
                check(
                    causes,
                    || at(&format!("env[{j}].name")),
                    Err("must not be empty and must not contain '='"),
                );
            }
        }
    }
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        check(causes, || format!("{field}.nodeName"), validation::dns_subdomain(node));
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    if !matches!(policy, "Always" | "OnFailure" | "Never") {
        check(
            causes,
            || format!("{field}.restartPolicy"),
            Err("must be Always, OnFailure or Never"),
        );
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        check(
            causes,
            || format!("{field}.terminationGracePeriodSeconds"),
            Err("must not be negative"),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn row<K: Object>() {
        let kind = K::kind();
        assert_eq!((kind.group, kind.version, kind.kind), (K::GROUP, K::VERSION, K::KIND));
        assert_eq!(kind.plural, K::URL_PATH_SEGMENT);
        assert_eq!(kind.api_version(), K::API_VERSION);
        assert_eq!(kind_named(kind.group, kind.plural), Some(kind));
    }

    #[test]
    fn rows_are_what_kubernetes_says() {
        row::<Pod>();
        row::<ReplicaSet>();
        row::<Node>();
        row::<Lease>();
        row::<Event>();
        row::<PriorityClass>();
        assert_eq!(kind_named("", "replicasets"), None);
    }

    fn pod_spec() -> Value {
        json!({ "containers": [{ "name": "main", "image": "nginx:latest" }] })
    }

    fn replica_set() -> Value {
        json!({
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": pod_spec() },
        })
    }

    /// The fields that are wrong in an object with a spec that was changed in one place.
    fn wrong<K: Object>(mut spec: Value, at: &str, value: Value) -> Vec<String> {
        *spec.pointer_mut(at).unwrap() = value;
        let object: K = serde_json::from_value(json!({
            "apiVersion": K::API_VERSION, "kind": K::KIND, "metadata": {}, "spec": spec,
        }))
        .unwrap();
        let mut causes = Vec::new();
        object.validate(&mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn pods_that_break_a_rule() {
        let main = json!({ "name": "main", "image": "nginx" });
        let cases = [
            ("/containers", json!([main]), None),
            ("/containers", json!([]), Some("spec.containers")),
            ("/containers", json!([main, main]), Some("spec.containers[1].name")),
            ("/containers/0/name", json!("Main"), Some("spec.containers[0].name")),
            ("/containers/0/image", json!(""), Some("spec.containers[0].image")),
            ("/containers/0/image", json!("a b"), Some("spec.containers[0].image")),
        ];
        for (at, value, field) in cases {
            let expected: Vec<&str> = field.into_iter().collect();
            assert_eq!(wrong::<Pod>(pod_spec(), at, value.clone()), expected, "{at} {value}");
        }
        for (name, value) in [
            ("restartPolicy", json!("Sometimes")),
            ("terminationGracePeriodSeconds", json!(-1)),
            ("nodeName", json!("a/b")),
        ] {
            let mut spec = pod_spec();
            spec[name] = Value::Null;
            assert_eq!(wrong::<Pod>(spec, &format!("/{name}"), value), [format!("spec.{name}")]);
        }
    }

    #[test]
    fn priority_classes_that_break_a_rule() {
        let class = |name: &str, value: i32, policy: Option<&str>| PriorityClass {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            value,
            preemption_policy: policy.map(str::to_owned),
            ..PriorityClass::default()
        };
        for (class, expected) in [
            (class("high", 1_000_000_000, None), None),
            (class("low", -5, Some("Never")), None),
            (class("higher", 1_000_000_001, None), Some("value")),
            (class("high", 1, Some("Sometimes")), Some("preemptionPolicy")),
            (class("system-mine", 1, None), Some("metadata.name")),
        ] {
            let mut causes = Vec::new();
            class.validate(&mut causes);
            let fields: Vec<_> = causes.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(fields, expected.into_iter().collect::<Vec<_>>(), "{class:?}");
        }
        let mut causes = Vec::new();
        class("high", 2, Some("Never")).validate_change(&class("high", 1, None), &mut causes);
        assert_eq!(causes.len(), 2);
    }

    #[test]
    fn replica_sets_that_break_a_rule() {
        let cases = [
            ("/replicas", json!(0), None),
            ("/replicas", json!(-1), Some("spec.replicas")),
            ("/replicas", json!(100_001), Some("spec.replicas")),
            ("/template", Value::Null, Some("spec.template")),
            ("/selector", json!({}), Some("spec.selector")),
            (
                "/selector",
                json!({ "matchExpressions": [{ "key": "app", "operator": "Like" }] }),
                Some("spec.selector.matchExpressions[0].operator"),
            ),
            (
                "/template/metadata/labels",
                json!({ "app": "db" }),
                Some("spec.template.metadata.labels"),
            ),
            ("/template/spec/containers", json!([]), Some("spec.template.spec.containers")),
        ];
        for (at, value, field) in cases {
            let expected: Vec<&str> = field.into_iter().collect();
            let found = wrong::<ReplicaSet>(replica_set(), at, value.clone());
            assert_eq!(found, expected, "{at} {value}");
        }
    }
}
