//! What a pod asks to be run, as a [`ContainerSpec`]; and what of it this kubelet cannot do.
//!
//! A field that would change what runs and is not supported is refused by name rather than
//! ignored: the pod stays Pending and says which field it was.

use api::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{Container as PodContainer, Pod, PodSpec};

use crate::runtime::{ContainerSpec, Identity};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
pub(crate) const DEFAULT_GRACE_SECONDS: u32 = 30;

/// Why a pod cannot be run here; nothing but a change of the pod will help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    /// The waiting reason, one of Kubernetes'.
    pub(crate) reason: &'static str,
    /// Which field, and why.
    pub(crate) message: String,
}

/// When an image is fetched: the pod's `imagePullPolicy`. `IfNotPresent` unless the pod says
/// otherwise, `:latest` included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// When a container is started again: the pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with this code is started again.
    pub(crate) fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// The pod's container, for the status as well as for the engine.
pub(crate) fn container(pod: &Pod) -> Option<&PodContainer> {
    pod.spec.as_ref()?.containers.first()
}

pub(crate) fn pull_policy(pod: &Pod) -> PullPolicy {
    match container(pod).and_then(|container| container.image_pull_policy.as_deref()) {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// How long the pod's containers may take to end: of the deletion if there is one, which may have
/// shortened it, otherwise of the spec.
pub(crate) fn grace_seconds(pod: &Pod) -> u32 {
    let of_spec = || pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(of_spec)
        .map_or(DEFAULT_GRACE_SECONDS, |seconds| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

/// The container's name on the engine: the pod's name, so that `docker ps` shows the pods.
///
/// Pods outside the namespace `default`, and names of one letter, which engines refuse, get
/// `_<namespace>` behind: a pod's name holds no underscore, so the two forms never meet.
pub(crate) fn engine_name(key: &ObjectKey) -> String {
    if &*key.namespace == "default" && key.name.len() > 1 {
        key.name.to_string()
    } else {
        format!("{}_{}", key.name, key.namespace)
    }
}

/// The container that `pod` asks for, as its life number `restart_count`.
pub(crate) fn container_spec(
    pod: &Pod,
    cluster: &str,
    node: &str,
    restart_count: u32,
    crash_streak: u32,
) -> Result<ContainerSpec, Unsupported> {
    let unsupported =
        |message: String| Unsupported { reason: "CreateContainerConfigError", message };
    let spec = pod.spec.as_ref().ok_or_else(|| unsupported("spec: missing".into()))?;
    refuse_unsupported(spec).map_err(unsupported)?;
    let [container] = spec.containers.as_slice() else {
        return Err(unsupported(format!(
            "spec.containers: {} containers, exactly one is supported",
            spec.containers.len()
        )));
    };
    let image = container.image.clone().unwrap_or_default();
    check_image_name(&image)
        .map_err(|message| Unsupported { reason: "InvalidImageName", message })?;
    let env = container.env.iter().flatten();
    let env = env
        .map(|var| match (&var.value_from, var.name.contains(['=', '\0'])) {
            (Some(_), _) => Err(format!("env {}: valueFrom is not supported", var.name)),
            (_, true) => Err(format!("env {:?}: a name cannot hold '=' or NUL", var.name)),
            _ => Ok((var.name.clone(), var.value.clone().unwrap_or_default())),
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|message| unsupported(format!("spec.containers[0].{message}")))?;
    let key = pod.key();
    Ok(ContainerSpec {
        name: engine_name(&key),
        image,
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        env,
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        hostname: hostname(spec, &key.name),
        identity: Identity {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            pod_uid: pod.uid().to_owned(),
            container: container.name.clone(),
            restart_count,
            crash_streak,
            grace_seconds: grace_seconds(pod),
            pod: key,
        },
    })
}

/// Host names hold 63 characters at most; Kubernetes cuts a longer pod name likewise.
fn hostname(spec: &PodSpec, pod_name: &str) -> String {
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(pod_name);
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

fn refuse_unsupported(spec: &PodSpec) -> Result<(), String> {
    let container = spec.containers.first();
    let refused = [
        ("spec.initContainers", spec.init_containers.as_ref().is_some_and(|list| !list.is_empty())),
        ("spec.hostNetwork", spec.host_network == Some(true)),
        ("spec.hostPID", spec.host_pid == Some(true)),
        ("spec.hostIPC", spec.host_ipc == Some(true)),
        (
            "spec.containers[0].volumeMounts",
            container.and_then(|c| c.volume_mounts.as_ref()).is_some_and(|list| !list.is_empty()),
        ),
        (
            "spec.containers[0].envFrom",
            container.and_then(|c| c.env_from.as_ref()).is_some_and(|list| !list.is_empty()),
        ),
        (
            "spec.containers[0].securityContext.privileged",
            container.and_then(|c| c.security_context.as_ref()?.privileged) == Some(true),
        ),
    ];
    match refused.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(format!("{field} is not supported by this kubelet")),
        None => Ok(()),
    }
}

/// An image's name ends up in the path of an engine request, so it is held to the characters that
/// names are made of; whether such an image exists is the registry's to say.
fn check_image_name(image: &str) -> Result<(), String> {
    let well_formed = image.starts_with(|c: char| c.is_ascii_alphanumeric())
        && image.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c))
        && !image.contains("..")
        && !image.contains("//")
        && !image.ends_with(['/', ':', '@']);
    if well_formed {
        Ok(())
    } else {
        Err(format!("spec.containers[0].image: {image:?} is no image name"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn a_full_spec_is_carried_over() {
        let pod = pod(&json!({
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "main", "image": "registry.example:5000/nginx:1.2",
                "command": ["/bin/sh"], "args": ["-c", "true"], "workingDir": "/tmp",
                "env": [{"name": "A", "value": "1"}, {"name": "B"}],
            }],
        }));
        let spec = container_spec(&pod, "c", "node-1", 3, 2).unwrap();
        assert_eq!(spec.name, "web");
        assert_eq!(spec.hostname, "web");
        assert_eq!(spec.image, "registry.example:5000/nginx:1.2");
        assert_eq!(spec.command, ["/bin/sh"]);
        assert_eq!(spec.args, ["-c", "true"]);
        assert_eq!(spec.working_dir.as_deref(), Some("/tmp"));
        assert_eq!(spec.env, [("A".into(), "1".into()), ("B".into(), String::new())]);
        let identity = spec.identity;
        assert_eq!((identity.restart_count, identity.crash_streak), (3, 2));
        assert_eq!((identity.grace_seconds, identity.pod_uid.as_str()), (5, "u1"));
    }

    #[test]
    fn engine_names_never_meet() {
        let name =
            |namespace: &str, name: &str| engine_name(&ObjectKey::namespaced(namespace, name));
        assert_eq!(name("default", "web"), "web");
        assert_eq!(name("default", "w"), "w_default");
        assert_eq!(name("prod", "web"), "web_prod");
        assert_eq!(name("default", "web.prod"), "web.prod");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let container = json!({"name": "main", "image": "nginx"});
        let with = |extra: serde_json::Value| {
            let mut container = container.clone();
            container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        let table = [
            (json!({"containers": [container, container]}), "spec.containers"),
            (json!({"containers": []}), "spec.containers"),
            (json!({"containers": [container], "initContainers": [container]}), "initContainers"),
            (json!({"containers": [container], "hostNetwork": true}), "hostNetwork"),
            (with(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})), "volumeMounts"),
            (with(json!({"securityContext": {"privileged": true}})), "privileged"),
            (with(json!({"env": [{"name": "A", "valueFrom": {}}]})), "valueFrom"),
            (with(json!({"env": [{"name": "A=B"}]})), "A=B"),
            (with(json!({"image": "../../containers"})), "image"),
            (with(json!({"image": "nginx latest"})), "image"),
            (with(json!({"image": ""})), "image"),
        ];
        for (spec, field) in table {
            let refused = container_spec(&pod(&spec), "c", "n", 0, 0).unwrap_err();
            assert!(refused.message.contains(field), "{field}: {}", refused.message);
        }
    }

    #[test]
    fn the_deletion_may_shorten_the_grace_period() {
        let mut pod = pod(&json!({"containers": [], "terminationGracePeriodSeconds": 60}));
        assert_eq!(grace_seconds(&pod), 60);
        pod.metadata.deletion_grace_period_seconds = Some(1);
        assert_eq!(grace_seconds(&pod), 1);
        pod.metadata.deletion_grace_period_seconds = None;
        pod.spec.as_mut().unwrap().termination_grace_period_seconds = None;
        assert_eq!(grace_seconds(&pod), DEFAULT_GRACE_SECONDS);
    }
}
