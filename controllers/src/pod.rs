//! What the controllers read off a pod, in Kubernetes' words.
//!
//! A pod is *finished* once its phase is `Succeeded` or `Failed`, *terminating* once it carries a
//! deletionTimestamp, and *active* while it is neither: only active pods count as replicas.

use std::time::Duration;

use api::Object;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The pod's phase; a pod without one has not been looked at by anybody and is `Pending`.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether all containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !pod.is_deleting()
}

/// The condition of that type.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Since when the pod has been ready, if it is. The outer `Option` says whether it is ready, the
/// inner one whether anybody noted since when.
pub(crate) fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map(|time| time.0))
}

/// Whether the pod takes requests.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// How long until a ready pod has been so for `min_ready`: zero once it is *available*, `None`
/// while it is not ready (or nobody noted since when, and waiting is asked for).
pub(crate) fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    let since = ready_since(pod)?;
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    let ready_for = Duration::try_from(now.duration_since(since?)).unwrap_or(Duration::ZERO);
    Some(min_ready.saturating_sub(ready_for))
}

/// The most restarts of any of the pod's containers.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}
