//! The flat form of a ReplicaSet.

use std::collections::BTreeMap;

use api::Cause;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::container::{self, Runs};
use super::{Flat, FlatWrite, body, cause, rules};

/// ReplicaSets under `/replicasets`.
pub(crate) struct ReplicaSets;

/// What a client reads; the order of the fields is part of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Form {
    name: String,
    desired_count: i32,
    current_count: i32,
    selector: BTreeMap<String, String>,
    template: Template,
}

#[derive(Debug, Serialize)]
struct Template {
    name: String,
    image: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    /// Left out when they are just the selector's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "an object such as {\"name\":…,\"desiredCount\":…,\"selector\":{…},\"template\":{\"image\":…}}"
)]
struct Input {
    name: Option<String>,
    desired_count: Option<serde_json::Number>,
    /// Read-only: counted by the ReplicaSet controller.
    #[allow(dead_code)]
    current_count: Option<IgnoredAny>,
    selector: Option<BTreeMap<String, String>>,
    template: Option<TemplateInput>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"image\":\"nginx:latest\"}")]
struct TemplateInput {
    name: Option<String>,
    image: Option<String>,
    command: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Flat for ReplicaSets {
    type Object = ReplicaSet;
    type Form = Form;

    fn form(object: &ReplicaSet) -> Form {
        let spec = object.spec.as_ref();
        let selector = spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
        let template = spec.and_then(|spec| spec.template.as_ref());
        let metadata = template.and_then(|template| template.metadata.as_ref());
        let runs = Runs::of(template.and_then(|template| template.spec.as_ref()));
        Form {
            name: object.metadata.name.clone().unwrap_or_default(),
            // Kubernetes' default when nothing is said.
            desired_count: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            current_count: object.status.as_ref().map_or(0, |status| status.replicas),
            template: Template {
                name: metadata.and_then(|metadata| metadata.name.clone()).unwrap_or_default(),
                image: runs.image.unwrap_or_default(),
                command: runs.command.unwrap_or_default(),
                env: runs.env.unwrap_or_default(),
                labels: metadata
                    .and_then(|metadata| metadata.labels.clone())
                    .filter(|labels| *labels != selector)
                    .unwrap_or_default(),
            },
            selector,
        }
    }
}

impl FlatWrite for ReplicaSets {
    fn parse(bytes: &[u8], path_name: Option<&str>) -> Result<ReplicaSet, Cause> {
        let input: Input = body::parse(bytes)?;
        let name = rules::name(input.name, "name", path_name)?;
        rules::name_leaves_room_for_pods(&name)?;
        let replicas = rules::desired_count(input.desired_count.as_ref())?;
        let selector = rules::required(input.selector, "selector")?;
        if selector.is_empty() {
            return Err(cause("selector", "must have at least one label"));
        }
        rules::labels(&selector, "selector")?;
        let template = rules::required(input.template, "template")?;
        let template = template.into_object(&selector)?;
        Ok(ReplicaSet {
            metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                selector: LabelSelector { match_labels: Some(selector), match_expressions: None },
                template: Some(template),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        })
    }

    fn replace(stored: &mut ReplicaSet, wanted: ReplicaSet) -> Result<(), Cause> {
        let Some(new) = wanted.spec else { return Ok(()) };
        let Some(old) = stored.spec.as_mut() else {
            stored.spec = Some(new);
            return Ok(());
        };
        // As in Kubernetes: with another selector the set would forget the pods it has.
        if old.selector.match_labels.as_ref().is_some_and(|old| !old.is_empty())
            && old.selector.match_labels != new.selector.match_labels
        {
            return Err(cause(
                "selector",
                "cannot be changed; delete the replicaset and create it again",
            ));
        }
        old.selector.match_labels = new.selector.match_labels;
        old.replicas = new.replicas;
        let Some(new) = new.template else { return Ok(()) };
        let old = old.template.get_or_insert_default();
        if let Some(new) = new.metadata {
            let old = old.metadata.get_or_insert_default();
            old.name = new.name;
            old.labels = new.labels;
        }
        if let Some(new) = new.spec {
            container::replace(old.spec.get_or_insert_default(), new);
        }
        Ok(())
    }
}

impl TemplateInput {
    fn into_object(self, selector: &BTreeMap<String, String>) -> Result<PodTemplateSpec, Cause> {
        let name = self.name.filter(|name| !name.is_empty());
        if let Some(name) = &name {
            rules::dns_name(name, "template.name")?;
        }
        let labels = self.labels.filter(|labels| !labels.is_empty());
        if let Some(labels) = &labels {
            rules::labels(labels, "template.labels")?;
            if let Some((key, value)) =
                selector.iter().find(|(key, value)| labels.get(*key) != Some(value))
            {
                return Err(cause(
                    "template.labels",
                    format!("must hold what the selector asks for, {key:?}: {value:?}"),
                ));
            }
        }
        let runs = Runs { image: self.image, command: self.command, env: self.env };
        Ok(PodTemplateSpec {
            metadata: Some(ObjectMeta {
                name,
                labels: Some(labels.unwrap_or_else(|| selector.clone())),
                ..ObjectMeta::default()
            }),
            spec: Some(runs.into_spec("template.")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSetStatus;

    const SESSION: &str = r#"{"name":"nginx","desiredCount":4,"selector":{"app":"nginx"},"template":{"image":"nginx:latest"}}"#;

    fn parse(body: &str) -> Result<ReplicaSet, Cause> {
        ReplicaSets::parse(body.as_bytes(), None)
    }

    fn show(object: &ReplicaSet) -> String {
        serde_json::to_string(&ReplicaSets::form(object)).unwrap()
    }

    #[test]
    fn the_session_of_the_design_reads_as_written() {
        let mut object = parse(SESSION).unwrap();
        assert_eq!(
            show(&object),
            r#"{"name":"nginx","desiredCount":4,"currentCount":0,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}"#
        );
        object.status = Some(ReplicaSetStatus { replicas: 4, ..ReplicaSetStatus::default() });
        assert_eq!(
            show(&object),
            r#"{"name":"nginx","desiredCount":4,"currentCount":4,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}"#
        );
    }

    #[test]
    fn it_is_a_kubernetes_replicaset() {
        let object = serde_json::to_value(parse(SESSION).unwrap()).unwrap();
        assert_eq!(
            object,
            serde_json::json!({
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {"name": "nginx"},
                "spec": {
                    "replicas": 4,
                    "selector": {"matchLabels": {"app": "nginx"}},
                    "template": {
                        "metadata": {"labels": {"app": "nginx"}},
                        "spec": {
                            "containers": [{
                                "name": "main",
                                "image": "nginx:latest",
                                "imagePullPolicy": "IfNotPresent",
                            }],
                            "restartPolicy": "Always",
                        },
                    },
                },
            })
        );
    }

    #[test]
    fn what_get_gives_put_takes() {
        let full = r#"{"name":"a","desiredCount":0,"currentCount":0,"selector":{"app":"a"},"template":{"name":"t","image":"i","command":["x","y"],"env":{"A":"1"},"labels":{"app":"a","tier":"b"}}}"#;
        for body in [full.to_owned(), show(&parse(SESSION).unwrap())] {
            let object = ReplicaSets::parse(body.as_bytes(), None).unwrap();
            assert_eq!(show(&object), body);
            let name = object.metadata.name.clone().unwrap();
            let mut stored = object.clone();
            let wanted = ReplicaSets::parse(body.as_bytes(), Some(&name)).unwrap();
            ReplicaSets::replace(&mut stored, wanted).unwrap();
            assert_eq!(stored, object);
        }
    }

    #[test]
    fn an_object_without_anything_still_has_a_form() {
        assert_eq!(
            show(&ReplicaSet::default()),
            r#"{"name":"","desiredCount":1,"currentCount":0,"selector":{},"template":{"name":"","image":""}}"#
        );
    }

    #[test]
    fn bad_input_names_the_field() {
        for (body, field) in [
            ("{", ""),
            ("[]", ""),
            ("4", ""),
            (r#"{"desiredCount":4,"selector":{"app":"x"},"template":{"image":"i"}}"#, "name"),
            (
                r#"{"name":"","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "name",
            ),
            (
                r#"{"name":"A_b","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "name",
            ),
            (
                r#"{"name":7,"desiredCount":4,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "name",
            ),
            (
                r#"{"name":"a","desiredCount":-1,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "desiredCount",
            ),
            (
                r#"{"name":"a","desiredCount":1000000,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "desiredCount",
            ),
            (
                r#"{"name":"a","desiredCount":"4","selector":{"app":"x"},"template":{"image":"i"}}"#,
                "desiredCount",
            ),
            (r#"{"name":"a","selector":{"app":"x"},"template":{"image":"i"}}"#, "desiredCount"),
            (r#"{"name":"a","desiredCount":4,"template":{"image":"i"}}"#, "selector"),
            (r#"{"name":"a","desiredCount":4,"selector":{},"template":{"image":"i"}}"#, "selector"),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"a b":"x"},"template":{"image":"i"}}"#,
                "selector.a b",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":1},"template":{"image":"i"}}"#,
                "selector.app",
            ),
            (r#"{"name":"a","desiredCount":4,"selector":{"app":"x"}}"#, "template"),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{}}"#,
                "template.image",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{"image":""}}"#,
                "template.image",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i","name":"A"}}"#,
                "template.name",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i","labels":{"app":"y"}}}"#,
                "template.labels",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i","labels":{"other":"x"}}}"#,
                "template.labels",
            ),
            (
                r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":{"image":"i","ports":[]}}"#,
                "template.ports",
            ),
            (
                r#"{"name":"a","desiredCount":4,"replicas":4,"selector":{"app":"x"},"template":{"image":"i"}}"#,
                "replicas",
            ),
            (r#"{"name":"a","desiredCount":4,"selector":{"app":"x"},"template":"i"}"#, "template"),
        ] {
            assert_eq!(parse(body).unwrap_err().field, field, "{body}");
        }
        let long = "a".repeat(250);
        let body = SESSION.replace("\"name\":\"nginx\"", &format!("\"name\":{long:?}"));
        assert_eq!(parse(&body).unwrap_err().field, "name");
        let elsewhere = ReplicaSets::parse(SESSION.as_bytes(), Some("other")).unwrap_err();
        assert_eq!(elsewhere.field, "name");
    }

    #[test]
    fn the_selector_stays() {
        let mut stored = parse(SESSION).unwrap();
        let before = stored.clone();
        let body = r#"{"name":"nginx","desiredCount":4,"selector":{"app":"other"},"template":{"image":"nginx:latest"}}"#;
        let error = ReplicaSets::replace(&mut stored, parse(body).unwrap()).unwrap_err();
        assert_eq!(error.field, "selector");
        assert_eq!(stored, before);
    }
}
