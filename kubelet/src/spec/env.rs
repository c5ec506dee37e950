//! A container's environment, and the `$(NAME)` in its command line.
//!
//! `$(NAME)` stands for the value of a variable that was defined before; `$$(NAME)` is the text
//! `$(NAME)`; a name that is not defined is left as it is written. These are Kubernetes' rules.

use api::Object;
use k8s_openapi::api::core::v1::{Container as PodContainer, EnvVar, EnvVarSource, Pod};

use super::refusal::Refusal;
use super::{Host, all_containers, pod_spec, resources, uses_host_network};
use crate::plan::Life;

/// The fields of a pod that a variable can take its value from, besides labels and annotations.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A container's environment, in order.
pub(super) struct Env(Vec<(String, String)>);

impl Env {
    /// The environment of that life of a container.
    pub(super) fn of(
        pod: &Pod,
        container: &PodContainer,
        host: &Host,
        life: &Life,
    ) -> Result<Self, Refusal> {
        let mut env = Self(Vec::new());
        for variable in container.env.iter().flatten() {
            let value = match &variable.value_from {
                None => env.expand(variable.value.as_deref().unwrap_or_default()),
                Some(source) => match value_from(source, pod, container, host, life) {
                    Ok(Some(value)) => value,
                    Ok(None) => continue,
                    Err(why) => {
                        return Err(Refusal::config(format!("env {}: {why}", variable.name)));
                    }
                },
            };
            env.0.push((variable.name.clone(), value));
        }
        Ok(env)
    }

    pub(super) fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }

    /// The text with the values of variables in place of their names.
    pub(super) fn expand(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            expanded.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let name = after.strip_prefix('(').and_then(|after| after.split_once(')'));
            if let Some(after) = after.strip_prefix('$') {
                expanded.push('$');
                rest = after;
            } else if let Some((name, after)) = name {
                match self.get(name) {
                    Some(value) => expanded.push_str(value),
                    None => expanded.extend(["$(", name, ")"]),
                }
                rest = after;
            } else {
                expanded.push('$');
                rest = after;
            }
        }
        expanded.push_str(rest);
        expanded
    }

    fn get(&self, name: &str) -> Option<&str> {
        // A later definition of the same name wins.
        self.0.iter().rev().find(|(defined, _)| defined == name).map(|(_, value)| value.as_str())
    }
}

/// Whether the environment of any container asks for the pod's address.
pub(super) fn asks_for_pod_ip(pod: &Pod) -> bool {
    let variables = all_containers(pod).flat_map(|container| container.env.iter().flatten());
    variables.filter_map(field_path).any(|path| path.starts_with("status.podIP"))
}

/// Whether the variables can be had here; otherwise which cannot, and why.
pub(super) fn check(container: &PodContainer) -> Result<(), String> {
    for variable in container.env.iter().flatten() {
        let name = &variable.name;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("env {name:?}: a name cannot be empty or hold '=' or NUL"));
        }
        if let Some(path) = field_path(variable)
            && !FIELDS.contains(&path)
            && key_of(path, "metadata.labels").is_none()
            && key_of(path, "metadata.annotations").is_none()
        {
            return Err(format!("env {name}: valueFrom.fieldRef: there is no field {path:?}"));
        }
        let Some(source) = &variable.value_from else { continue };
        let known = source.field_ref.is_some() || source.resource_field_ref.is_some();
        if !known && !is_optional(source) {
            return Err(format!(
                "env {name}: valueFrom is supported with fieldRef and resourceFieldRef only"
            ));
        }
    }
    Ok(())
}

fn field_path(variable: &EnvVar) -> Option<&str> {
    Some(&variable.value_from.as_ref()?.field_ref.as_ref()?.field_path)
}

/// There are no ConfigMaps and Secrets here, and some can do without.
fn is_optional(source: &EnvVarSource) -> bool {
    let config_map = source.config_map_key_ref.as_ref().and_then(|key| key.optional);
    let secret = source.secret_key_ref.as_ref().and_then(|key| key.optional);
    config_map.or(secret) == Some(true)
}

/// `app` in `metadata.labels['app']`.
fn key_of<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")
}

fn value_from(
    source: &EnvVarSource,
    pod: &Pod,
    container: &PodContainer,
    host: &Host,
    life: &Life,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(field_value(&field.field_path, pod, host, life)));
    }
    if let Some(field) = &source.resource_field_ref {
        let name = field.container_name.as_ref();
        let of = all_containers(pod).find(|one| Some(&one.name) == name).unwrap_or(container);
        return resources::field(of, &field.resource, field.divisor.as_ref()).map(Some);
    }
    Ok(None)
}

fn field_value(path: &str, pod: &Pod, host: &Host, life: &Life) -> String {
    let metadata = &pod.metadata;
    let value = match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => Some(pod.uid().to_owned()),
        "spec.nodeName" => pod_spec(pod).node_name.clone(),
        "spec.serviceAccountName" => pod_spec(pod).service_account_name.clone(),
        "status.hostIP" | "status.hostIPs" => Some(host.ip.clone()),
        "status.podIP" | "status.podIPs" if uses_host_network(pod) => Some(host.ip.clone()),
        "status.podIP" | "status.podIPs" => life.pod_ip.clone(),
        _ => {
            let label = key_of(path, "metadata.labels")
                .and_then(|key| metadata.labels.as_ref()?.get(key).cloned());
            label.or_else(|| {
                let key = key_of(path, "metadata.annotations")?;
                metadata.annotations.as_ref()?.get(key).cloned()
            })
        }
    };
    value.unwrap_or_default()
}
