//! What is told of a pod in events, so that people see how it went: Kubernetes' reasons and words.
//!
//! What was done is told where it is done. What a pod has come to be is told when its status is
//! written, by comparing it with the one before: [`of_change`].
//!
//! Unlike in Kubernetes an image that was there already is not told of: that is how it mostly is.

use api::{EventRecorder, Object, Subject};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, Pod, PodStatus};

use super::Pods;
use crate::plan::ERR_IMAGE_PULL;
use crate::record::Record;
use crate::runtime::SANDBOX;
use crate::spec;

/// Something to be told of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The container that it is about, if not the whole pod.
    container: Option<String>,
    is_trouble: bool,
    reason: &'static str,
    message: String,
}

impl Told {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { container: None, is_trouble: false, reason, message: message.into() }
    }

    fn trouble(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_trouble: true, ..Self::normal(reason, message) }
    }

    fn of(self, container: &str) -> Self {
        Self { container: Some(container.to_owned()), ..self }
    }

    pub(super) fn pulling(container: &str, image: &str) -> Self {
        Self::normal("Pulling", format!("Pulling image {image:?}")).of(container)
    }

    pub(super) fn pulled(container: &str, image: &str) -> Self {
        Self::normal("Pulled", format!("Successfully pulled image {image:?}")).of(container)
    }

    pub(super) fn created(container: &str) -> Self {
        Self::normal("Created", format!("Created container: {container}")).of(container)
    }

    pub(super) fn started(container: &str) -> Self {
        Self::normal("Started", format!("Started container {container}")).of(container)
    }

    pub(super) fn killing(container: &str) -> Self {
        Self::normal("Killing", format!("Stopping container {container}")).of(container)
    }

    pub(super) fn start_failed(container: &str, why: &str) -> Self {
        Self::trouble("Failed", format!("Error: {why}")).of(container)
    }

    pub(super) fn sandbox_changed() -> Self {
        Self::normal("SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
    }

    pub(super) fn hook_failed(container: &str, why: &str) -> Self {
        Self::trouble("FailedPreStopHook", format!("PreStopHook failed: {why}")).of(container)
    }

    /// An attempt at starting a container that left no container, with its waiting reason.
    fn failure(pod: &Pod, container: &str, reason: &str, why: &str) -> Self {
        if container == SANDBOX {
            let message = format!("Failed to create pod sandbox: {why}");
            return Self::trouble("FailedCreatePodSandBox", message);
        }
        let declared = spec::all_containers(pod).find(|one| one.name == container);
        let image = declared.map(spec::image).unwrap_or_default();
        let told = match reason {
            ERR_IMAGE_PULL => {
                Self::trouble("Failed", format!("Failed to pull image {image:?}: {why}"))
            }
            "ErrImageNeverPull" => Self::trouble("ErrImageNeverPull", why),
            _ => Self::trouble("Failed", format!("Error: {why}")),
        };
        told.of(container)
    }

    /// Tells it.
    pub(super) fn record(self, events: &EventRecorder, pod: &Pod) {
        let subject = match &self.container {
            None => Subject::of(pod),
            Some(name) if spec::init_containers(pod).iter().any(|init| init.name == *name) => {
                Subject::of(pod).init_container(name)
            }
            Some(name) => Subject::of(pod).container(name),
        };
        if self.is_trouble {
            events.warning(subject, self.reason, self.message);
        } else {
            events.normal(subject, self.reason, self.message);
        }
    }
}

impl Pods {
    pub(super) fn tell_of(&self, pod: &Pod, told: Told) {
        told.record(&self.events, pod);
    }

    /// Remembers a failed attempt at a container, and tells of it.
    pub(super) fn failed(
        &self,
        pod: &Pod,
        container: &str,
        reason: &str,
        message: String,
        record: &mut Record,
    ) {
        self.tell_of(pod, Told::failure(pod, container, reason, &message));
        record.failed(container, reason, message, self.clock.now());
    }
}

/// What a pod's new status tells of, compared with the one before.
pub(super) fn of_change(pod: &Pod, before: &PodStatus, after: &PodStatus) -> Vec<Told> {
    let entries = |status: &PodStatus| -> Vec<ContainerStatus> {
        let (init, main) = (&status.init_container_statuses, &status.container_statuses);
        init.iter().chain(main).flatten().cloned().collect()
    };
    let waiting = |entry: &ContainerStatus| entry.state.clone().and_then(|state| state.waiting);
    let known = entries(before);
    let mut told = Vec::new();
    for entry in entries(after) {
        let Some(waits) = waiting(&entry) else { continue };
        let waited = known.iter().find(|one| one.name == entry.name).and_then(waiting);
        if waited.as_ref() != Some(&waits) {
            told.extend(of_waiting(pod, &entry, &waits, waited.as_ref()));
        }
    }
    if after.reason.as_deref() == Some("DeadlineExceeded") && after.reason != before.reason {
        let message = after.message.clone().unwrap_or_default();
        told.push(Told::normal("DeadlineExceeded", message));
    }
    told
}

/// What it tells that a container waits, and did not before or for something else.
fn of_waiting(
    pod: &Pod,
    entry: &ContainerStatus,
    waits: &ContainerStateWaiting,
    waited: Option<&ContainerStateWaiting>,
) -> Option<Told> {
    let message = waits.message.clone().unwrap_or_default();
    let told = match waits.reason.as_deref()? {
        "CrashLoopBackOff" => {
            let (name, key, uid) = (&entry.name, pod.key(), pod.uid());
            let text = format!(
                "Back-off restarting failed container {name} in pod {}_{}({uid})",
                key.name, key.namespace
            );
            Told::trouble("BackOff", text)
        }
        "ImagePullBackOff" if waited.is_none_or(|waited| waited.reason != waits.reason) => {
            Told::normal("BackOff", format!("Back-off pulling image {:?}", entry.image))
        }
        "CreateContainerConfigError" | "InvalidImageName" | "Blocked" => {
            Told::trouble("Failed", format!("Error: {message}"))
        }
        _ => return None,
    };
    Some(told.of(&entry.name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {
                "initContainers": [{"name": "setup", "image": "tools"}],
                "containers": [{"name": "main", "image": "nginx"}],
            },
        }))
        .unwrap()
    }

    fn status(state: &Value) -> PodStatus {
        let entry = json!({
            "name": "main", "image": "nginx", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        });
        serde_json::from_value(json!({"containerStatuses": [entry]})).unwrap()
    }

    #[test]
    fn what_a_container_waits_for_is_told_once() {
        let waiting = |reason: &str, message: &str| {
            status(&json!({"waiting": {"reason": reason, "message": message}}))
        };
        let creating = waiting("ContainerCreating", "");
        let running = status(&json!({"running": {}}));
        let loops = waiting("CrashLoopBackOff", "back-off 10s");
        let loops_longer = waiting("CrashLoopBackOff", "back-off 20s");
        let pull = waiting("ErrImagePull", "no route");
        let back_off = waiting("ImagePullBackOff", "no route");
        let back_off_still = waiting("ImagePullBackOff", "no such host");
        let blocked = waiting("Blocked", "spec.hostNetwork gives access");
        let restarting = "Back-off restarting failed container main in pod web_default(u)";
        let table = [
            (&creating, &running, None),
            (&running, &loops, Some(("BackOff", restarting))),
            (&loops, &loops, None),
            (&loops, &loops_longer, Some(("BackOff", restarting))),
            (&creating, &pull, None),
            (&pull, &back_off, Some(("BackOff", "Back-off pulling image \"nginx\""))),
            (&back_off, &back_off_still, None),
            (&creating, &blocked, Some(("Failed", "Error: spec.hostNetwork gives access"))),
            (&blocked, &blocked, None),
        ];
        for (before, after, expected) in table {
            let told = of_change(&pod(), before, after);
            let told: Vec<_> = told.iter().map(|told| (told.reason, &*told.message)).collect();
            assert_eq!(told, Vec::from_iter(expected), "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_pod_that_took_too_long_is_told_of_once() {
        let failed = PodStatus {
            reason: Some("DeadlineExceeded".into()),
            message: Some("too long".into()),
            ..PodStatus::default()
        };
        let told = of_change(&pod(), &PodStatus::default(), &failed);
        assert_eq!(told, [Told::normal("DeadlineExceeded", "too long")]);
        assert!(of_change(&pod(), &failed, &failed).is_empty());
    }

    #[test]
    fn a_failed_attempt_is_told_in_kubernetes_words() {
        for (container, waits, reason, message) in [
            (SANDBOX, "x", "FailedCreatePodSandBox", "Failed to create pod sandbox: why"),
            ("main", ERR_IMAGE_PULL, "Failed", "Failed to pull image \"nginx\": why"),
            ("setup", ERR_IMAGE_PULL, "Failed", "Failed to pull image \"tools\": why"),
            ("main", "ErrImageNeverPull", "ErrImageNeverPull", "why"),
            ("main", "CreateContainerError", "Failed", "Error: why"),
        ] {
            let told = Told::failure(&pod(), container, waits, "why");
            assert_eq!((told.reason, &*told.message), (reason, message));
            assert_eq!(told.container.is_none(), container == SANDBOX);
        }
    }
}
