//! The flat form of a pod.
//!
//! Its `status` is one word where Kubernetes has a phase and a state for each container: a pod whose
//! container is down and waits for its next start is `Failed` here, with `next_retry_at`, while its
//! phase stays `Running`, as Kubernetes has it.

use std::collections::BTreeMap;

use api::Cause;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::container::Runs;
use super::{Flat, FlatWrite, body, cause, rules};

/// How a time that never was is written.
pub(super) const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// A time in RFC 3339, in whole seconds.
pub(super) fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Pods under `/pods`.
pub(crate) struct Pods;

/// What a client reads; the order of the fields is part of it.
#[derive(Debug, Serialize)]
pub(crate) struct Form {
    spec: Spec,
    status: Status,
    #[serde(rename = "containerId", skip_serializing_if = "String::is_empty")]
    container_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    retry_count: u32,
    next_retry_at: String,
}

#[derive(Debug, Serialize)]
struct Spec {
    name: String,
    image: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Status {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A pod as GET shows it: its spec, and a status that is ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"spec\":{\"name\":…,\"image\":…}}")]
#[allow(dead_code)]
struct Wrapped {
    spec: Option<SpecInput>,
    status: Option<IgnoredAny>,
    #[serde(rename = "containerId")]
    container_id: Option<IgnoredAny>,
    message: Option<IgnoredAny>,
    retry_count: Option<IgnoredAny>,
    next_retry_at: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"name\":…,\"image\":…}")]
struct SpecInput {
    name: Option<String>,
    image: Option<String>,
    node_name: Option<String>,
    command: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

/// Tells the two ways of writing a pod apart: the whole, as GET shows it, or just its spec.
#[derive(Deserialize)]
struct Peek {
    spec: Option<IgnoredAny>,
}

impl Flat for Pods {
    type Object = Pod;
    type Form = Form;

    fn form(object: &Pod) -> Form {
        let runs = Runs::of(object.spec.as_ref());
        let status = object.status.as_ref();
        let container = status
            .and_then(|status| status.container_statuses.as_deref())
            .and_then(<[ContainerStatus]>::first);
        let annotations = object.metadata.annotations.as_ref();
        let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key));
        let restarts = container.map_or(0, |container| container.restart_count);
        Form {
            spec: Spec {
                name: object.metadata.name.clone().unwrap_or_default(),
                image: runs.image.unwrap_or_default(),
                node_name: object
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.node_name.clone())
                    .unwrap_or_default(),
                command: runs.command.unwrap_or_default(),
                env: runs.env.unwrap_or_default(),
                labels: object.metadata.labels.clone().unwrap_or_default(),
            },
            status: flat_status(status, container),
            container_id: container
                .and_then(|container| container.container_id.as_deref())
                .map_or("", bare_container_id)
                .to_owned(),
            message: message(object, container),
            retry_count: annotation(api::annotations::RETRY_COUNT)
                .and_then(|count| count.parse().ok())
                .unwrap_or_else(|| restarts.try_into().unwrap_or(0)),
            next_retry_at: annotation(api::annotations::NEXT_RETRY_AT)
                .and_then(|time| time.parse::<Timestamp>().ok())
                .map_or_else(|| NO_TIME.to_owned(), whole_seconds),
        }
    }
}

/// The projection of phase and container state to one word.
fn flat_status(status: Option<&PodStatus>, container: Option<&ContainerStatus>) -> Status {
    if status.is_some_and(is_node_lost) {
        return Status::Unknown;
    }
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Running") => match container.and_then(|container| container.state.as_ref()) {
            Some(ContainerState { running: None, waiting, terminated })
                if waiting.is_some() || terminated.is_some() =>
            {
                Status::Failed
            }
            _ => Status::Running,
        },
        Some("Succeeded") => Status::Succeeded,
        Some("Failed") => Status::Failed,
        Some("Unknown") => Status::Unknown,
        _ => Status::Pending,
    }
}

/// Whether the pod was given up because its node is not heard of.
fn is_node_lost(status: &PodStatus) -> bool {
    status.reason.as_deref() == Some("NodeLost")
}

/// `docker://d803aed8…` without the engine in front.
fn bare_container_id(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// The most telling sentence the object has: why its container is not running, why it has no node,
/// or what its status says.
fn message(pod: &Pod, container: Option<&ContainerStatus>) -> String {
    let joined = |reason: Option<&str>, message: Option<&str>| {
        let texts = [reason, message].into_iter().flatten().filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join(": ")
    };
    if let Some(status) = pod.status.as_ref().filter(|status| is_node_lost(status)) {
        return joined(status.reason.as_deref(), status.message.as_deref());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return "is being deleted".to_owned();
    }
    let state = container.and_then(|container| container.state.as_ref());
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        return joined(waiting.reason.as_deref(), waiting.message.as_deref());
    }
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        let exit = format!("exit code {}", ended.exit_code);
        return joined(
            ended.reason.as_deref(),
            ended.message.as_deref().filter(|message| !message.is_empty()).or(Some(&exit)),
        );
    }
    let Some(status) = pod.status.as_ref() else { return String::new() };
    let said = joined(status.reason.as_deref(), status.message.as_deref());
    if !said.is_empty() {
        return said;
    }
    let unscheduled = status.conditions.as_deref().unwrap_or_default().iter();
    unscheduled
        .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .map(|condition| joined(condition.reason.as_deref(), condition.message.as_deref()))
        .next()
        .unwrap_or_default()
}

impl FlatWrite for Pods {
    fn parse(bytes: &[u8], path_name: Option<&str>) -> Result<Pod, Cause> {
        let (spec, prefix) = match serde_json::from_slice::<Peek>(bytes) {
            Ok(Peek { spec: Some(_) }) => {
                let wrapped: Wrapped = body::parse(bytes)?;
                (rules::required(wrapped.spec, "spec")?, "spec.")
            }
            _ => (body::parse::<SpecInput>(bytes)?, ""),
        };
        spec.into_object(prefix, path_name)
    }

    fn replace(stored: &mut Pod, wanted: Pod) -> Result<(), Cause> {
        let Some(new) = wanted.spec else { return Ok(()) };
        let old = stored.spec.get_or_insert_default();
        // Its container is made once from what the pod says; only labels mean something later on.
        let fixed =
            |field: &str| cause(field, "cannot be changed on a pod; delete it and create it again");
        if new.node_name.is_some() && new.node_name != old.node_name {
            return Err(fixed("spec.node_name"));
        }
        let (before, after) = (Runs::of(Some(old)), Runs::of(Some(&new)));
        if before.image != after.image {
            return Err(fixed("spec.image"));
        }
        if before.command != after.command {
            return Err(fixed("spec.command"));
        }
        if before.env.unwrap_or_default() != after.env.unwrap_or_default() {
            return Err(fixed("spec.env"));
        }
        stored.metadata.labels = wanted.metadata.labels;
        Ok(())
    }
}

impl SpecInput {
    fn into_object(self, prefix: &str, path_name: Option<&str>) -> Result<Pod, Cause> {
        let field = |name: &str| format!("{prefix}{name}");
        let name = rules::name(self.name, &field("name"), path_name)?;
        let node_name = self.node_name.filter(|node| !node.is_empty());
        if let Some(node) = &node_name {
            rules::dns_name(node, &field("node_name"))?;
        }
        let labels = self.labels.filter(|labels| !labels.is_empty());
        if let Some(labels) = &labels {
            rules::labels(labels, &field("labels"))?;
        }
        let runs = Runs { image: self.image, command: self.command, env: self.env };
        let mut spec = runs.into_spec(prefix)?;
        spec.node_name = node_name;
        Ok(Pod {
            metadata: ObjectMeta { name: Some(name), labels, ..ObjectMeta::default() },
            spec: Some(spec),
            status: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(annotations: &Value, spec: &Value, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "nginx-d3950207", "labels": {"app": "nginx"}, "annotations": annotations},
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    fn show(pod: &Pod) -> String {
        serde_json::to_string(&Pods::form(pod)).unwrap()
    }

    #[test]
    fn the_session_of_the_design_reads_as_written() {
        let pod = pod(
            &json!(null),
            &json!({"nodeName": "node-2", "containers": [{"name": "main", "image": "nginx:latest"}]}),
            &json!({"phase": "Running", "containerStatuses": [{
                "name": "main", "image": "nginx:latest", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "docker://d803aed8",
                "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}},
            }]}),
        );
        assert_eq!(
            show(&pod),
            r#"{"spec":{"name":"nginx-d3950207","image":"nginx:latest","node_name":"node-2","labels":{"app":"nginx"}},"status":"Running","containerId":"d803aed8","retry_count":0,"next_retry_at":"0001-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn the_status_is_a_projection() {
        let running = json!({"running": {}});
        let crash_loop =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let no_image = json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}});
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let ended_well = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        for (phase, state, status, message) in [
            (json!(null), json!(null), Status::Pending, ""),
            (json!("Pending"), json!(null), Status::Pending, ""),
            (json!("Pending"), creating, Status::Pending, "ContainerCreating"),
            (json!("Pending"), no_image, Status::Pending, "ErrImagePull: no such image"),
            (json!("Running"), json!(null), Status::Running, ""),
            (json!("Running"), json!({}), Status::Running, ""),
            (json!("Running"), running, Status::Running, ""),
            (json!("Running"), crash_loop, Status::Failed, "CrashLoopBackOff: back-off 10s"),
            (json!("Running"), ended.clone(), Status::Failed, "Error: exit code 3"),
            (json!("Failed"), ended, Status::Failed, "Error: exit code 3"),
            (json!("Succeeded"), ended_well, Status::Succeeded, "Completed: exit code 0"),
            (json!("Unknown"), json!(null), Status::Unknown, ""),
            (json!("NeverHeardOf"), json!(null), Status::Pending, ""),
        ] {
            let pod = pod(
                &json!(null),
                &json!({"containers": []}),
                &json!({"phase": phase, "containerStatuses": [{
                    "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 2,
                    "state": state,
                }]}),
            );
            let form = Pods::form(&pod);
            assert_eq!((form.status, form.message.as_str()), (status, message), "{phase} {state}");
            assert_eq!(form.retry_count, 2);
            assert_eq!(form.container_id, "");
        }
    }

    #[test]
    fn a_pod_without_a_node_says_why() {
        let mut pod = pod(
            &json!(null),
            &json!({"containers": []}),
            &json!({"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node is Ready",
            }]}),
        );
        assert_eq!(Pods::form(&pod).message, "Unschedulable: no node is Ready");
        pod.status.as_mut().unwrap().message = Some("something else".into());
        assert_eq!(Pods::form(&pod).message, "something else");
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert_eq!(Pods::form(&pod).message, "is being deleted");
    }

    #[test]
    fn nobody_knows_of_a_pod_whose_node_is_lost() {
        let pod = pod(
            &json!(null),
            &json!({"containers": []}),
            &json!({"phase": "Running", "reason": "NodeLost", "message": "Node a is unresponsive"}),
        );
        let form = Pods::form(&pod);
        assert_eq!(
            (form.status, form.message.as_str()),
            (Status::Unknown, "NodeLost: Node a is unresponsive")
        );
    }

    #[test]
    fn retries_come_from_the_kubelets_annotations() {
        for (count, at, expected) in [
            ("3", "2026-01-02T03:04:05Z", (3, "2026-01-02T03:04:05Z")),
            ("not a number", "not a time", (0, NO_TIME)),
        ] {
            let pod = pod(
                &json!({api::annotations::RETRY_COUNT: count, api::annotations::NEXT_RETRY_AT: at}),
                &json!({"containers": []}),
                &json!({"phase": "Pending"}),
            );
            let form = Pods::form(&pod);
            assert_eq!((form.retry_count, form.next_retry_at.as_str()), expected);
        }
    }

    #[test]
    fn an_object_without_anything_still_has_a_form() {
        assert_eq!(
            show(&Pod::default()),
            r#"{"spec":{"name":"","image":""},"status":"Pending","retry_count":0,"next_retry_at":"0001-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn a_pod_is_written_whole_or_as_its_spec() {
        let spec = r#"{"name":"a","image":"i","node_name":"node-1","command":["x"],"env":{"A":"1"},"labels":{"app":"a"}}"#;
        let bare = Pods::parse(spec.as_bytes(), None).unwrap();
        let shown = show(&bare);
        assert_eq!(
            shown,
            format!(
                r#"{{"spec":{spec},"status":"Pending","retry_count":0,"next_retry_at":"{NO_TIME}"}}"#
            )
        );
        assert_eq!(Pods::parse(shown.as_bytes(), Some("a")), Ok(bare.clone()));
        assert_eq!(
            serde_json::to_value(bare).unwrap(),
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a", "labels": {"app": "a"}},
                "spec": {
                    "nodeName": "node-1",
                    "containers": [{
                        "name": "main",
                        "image": "i",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["x"],
                        "env": [{"name": "A", "value": "1"}],
                    }],
                    "restartPolicy": "Always",
                },
            })
        );
    }

    #[test]
    fn bad_input_names_the_field() {
        for (body, field) in [
            ("{\"spec\":", ""),
            ("[]", ""),
            (r#"{"image":"i"}"#, "name"),
            (r#"{"spec":{"image":"i"}}"#, "spec.name"),
            (r#"{"spec":{"name":"A","image":"i"}}"#, "spec.name"),
            (r#"{"spec":{"name":"a"}}"#, "spec.image"),
            (r#"{"name":"a","image":"i","labels":{"a b":"c"}}"#, "labels.a b"),
            (r#"{"name":"a","image":"i","node_name":"A"}"#, "node_name"),
            (r#"{"name":"a","image":"i","command":"sleep"}"#, "command"),
            (r#"{"name":"a","image":"i","env":{"A":1}}"#, "env.A"),
            (r#"{"name":"a","image":"i","restart":"x"}"#, "restart"),
            (r#"{"spec":{"name":"a","image":"i","x":1}}"#, "spec.x"),
            (r#"{"spec":{"name":"a","image":"i"},"x":1}"#, "x"),
            (r#"{"spec":7}"#, "spec"),
        ] {
            let error = Pods::parse(body.as_bytes(), None).unwrap_err();
            assert_eq!(error.field, field, "{body}: {}", error.reason);
        }
    }

    #[test]
    fn a_pod_stays_what_and_where_it_is() {
        let parse = |body: &str| Pods::parse(body.as_bytes(), None).unwrap();
        let stored = parse(r#"{"name":"a","image":"i","node_name":"node-1","command":["x"]}"#);
        for (body, field) in [
            (r#"{"name":"a","image":"i","node_name":"node-2","command":["x"]}"#, "spec.node_name"),
            (r#"{"name":"a","image":"j","command":["x"]}"#, "spec.image"),
            (r#"{"name":"a","image":"i","command":["y"]}"#, "spec.command"),
            (r#"{"name":"a","image":"i","command":["x"],"env":{"A":"1"}}"#, "spec.env"),
        ] {
            let mut changed = stored.clone();
            let error = Pods::replace(&mut changed, parse(body)).unwrap_err();
            assert_eq!(error.field, field);
            assert_eq!(changed, stored);
        }
        let mut changed = stored;
        let body = r#"{"name":"a","image":"i","command":["x"],"labels":{"app":"a"}}"#;
        Pods::replace(&mut changed, parse(body)).unwrap();
        let form = Pods::form(&changed);
        assert_eq!((form.spec.image.as_str(), form.spec.node_name.as_str()), ("i", "node-1"));
        assert_eq!(form.spec.labels["app"], "a");
    }
}
