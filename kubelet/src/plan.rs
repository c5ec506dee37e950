//! What to do about a pod: a pure function from what is wanted and what is seen to the next step.
//!
//! | Phase | Container | Step |
//! | --- | --- | --- |
//! | Pending | doesn't exist | create it and start it, then Running |
//! | Pending | made, never started | start it |
//! | Pending | running | just Running: it was ours all along |
//! | Running | running | nothing |
//! | Running | exited | by `restartPolicy`: replaced once its backoff is over, or the pod has ended |
//! | Running | doesn't exist | create it again, counted as a restart |
//! | Succeeded, Failed | running | stop it; nothing is ever started again |
//! | any, being deleted | running | stop signal, grace period, SIGKILL |
//! | any, being deleted | not running | remove it |
//! | any, being deleted | doesn't exist | let the pod go from the store |
//!
//! A replaced container is a new one under the old name: it begins with the image's own files, and
//! its labels say which life of the pod it is. So the restart count and the crash streak cannot be
//! lost between two writes: whoever finds the container finds them.
//!
//! Worked example: a pod's first container exits with 1. The plan says *replace*, and to record the
//! exit first, so that the status that the next container inherits knows it. The second container
//! (restart count 1, streak 1) exits as well: now the plan is to wait until 10 s after that exit,
//! shown as `CrashLoopBackOff`, and to be asked again then.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff;
use crate::runtime::{Container, ContainerState, Exit};
use crate::spec::{self, RestartPolicy, Unsupported};
use crate::status::{self, Facts, Shown};

/// Ask again after this when the engine is about to finish something.
const SOON: SignedDuration = SignedDuration::from_millis(500);
/// Send SIGKILL again when a container outlives it that long.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// The waiting reasons of an image that could not be pulled.
pub(crate) const ERR_IMAGE_PULL: &str = "ErrImagePull";
const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";

/// An attempt at getting the container to run that failed and left no container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartFailure {
    /// How many such in a row, at least 1.
    pub(crate) count: u32,
    /// The waiting reason: `ErrImagePull`, `CreateContainerError`, …
    pub(crate) reason: String,
    /// What went wrong, in the engine's words.
    pub(crate) message: String,
    /// When to try again.
    pub(crate) retry_at: Timestamp,
}

/// What the plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a Pod,
    /// The status last made for this pod; at first the one found in the store.
    pub(crate) previous: &'a PodStatus,
    /// The pod's container on the engine.
    pub(crate) container: Option<&'a Container>,
    /// The last attempt at starting it, if it failed.
    pub(crate) failure: Option<&'a StartFailure>,
    /// The streak of the container to come, when its predecessor was removed to make way.
    pub(crate) next_streak: Option<u32>,
    /// Whether its image is being pulled.
    pub(crate) pulling: bool,
    /// When its container was asked to stop.
    pub(crate) stop_sent_at: Option<Timestamp>,
    /// Why the pod cannot be run here at all.
    pub(crate) unsupported: Option<&'a Unsupported>,
    pub(crate) scheme: &'a str,
    pub(crate) host_ip: &'a str,
    pub(crate) now: Timestamp,
}

/// The next step for a pod's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing to do until something happens or `wake_at` comes.
    Nothing,
    /// Make the container of that life and start it.
    Create { restart_count: u32, crash_streak: u32 },
    /// Start the container that was made.
    Start { id: String },
    /// Remove the container that ended; the next plan makes its successor, with that streak.
    Replace { id: String, next_streak: u32 },
    /// Ask the container to end.
    Stop { id: String },
    /// End the container.
    Kill { id: String },
    /// Remove the container of a pod that is being deleted.
    Remove { id: String },
    /// Nothing is left on this node: let the pod go from the store.
    FinishDeletion,
}

/// When the pod is tried again, and after how many failed attempts; kept in its annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) start_failures: u32,
    pub(crate) at: Timestamp,
}

/// What to do, what to tell, and when to look again.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) action: Action,
    pub(crate) status: PodStatus,
    pub(crate) retry: Option<Retry>,
    /// The status holds something that the action destroys: write it before acting.
    pub(crate) record_first: bool,
    pub(crate) wake_at: Option<Timestamp>,
}

/// Decides the next step for a pod.
pub(crate) fn plan(input: &Input<'_>) -> Plan {
    if input.pod.metadata.deletion_timestamp.is_some() {
        return delete(input);
    }
    if status::is_terminal(input.previous) {
        return ended(input);
    }
    if let (Some(unsupported), None) = (input.unsupported, input.container) {
        let message = Some(unsupported.message.clone());
        return tell(input, Shown::Waiting { reason: unsupported.reason, message });
    }
    match input.container {
        None => absent(input),
        Some(container) => match &container.state {
            ContainerState::Running { started_at } => {
                tell(input, Shown::Running { started_at: *started_at })
            }
            ContainerState::Created => hold_back(input).unwrap_or_else(|| Plan {
                action: Action::Start { id: container.id.clone() },
                ..tell(input, creating())
            }),
            ContainerState::Removing => {
                Plan { wake_at: Some(backoff::later(input.now, SOON)), ..tell(input, creating()) }
            }
            ContainerState::Exited(exit) => exited(input, container, exit),
        },
    }
}

/// The step for a container that belongs to no pod any more, or to an earlier pod of the name.
pub(crate) fn plan_orphan(
    container: &Container,
    stop_sent_at: Option<Timestamp>,
    now: Timestamp,
) -> (Action, Option<Timestamp>) {
    wind_down(container, container.identity.grace_seconds, stop_sent_at, now)
}

/// Stop signal, grace period, SIGKILL, removal.
fn wind_down(
    container: &Container,
    grace_seconds: u32,
    stop_sent_at: Option<Timestamp>,
    now: Timestamp,
) -> (Action, Option<Timestamp>) {
    let id = container.id.clone();
    match container.state {
        ContainerState::Removing => (Action::Nothing, Some(backoff::later(now, SOON))),
        ContainerState::Created | ContainerState::Exited(_) => (Action::Remove { id }, None),
        ContainerState::Running { .. } => {
            let grace = SignedDuration::from_secs(i64::from(grace_seconds));
            let kill_at = backoff::later(stop_sent_at.unwrap_or(now), grace);
            if now >= kill_at {
                (Action::Kill { id }, Some(backoff::later(now, KILL_AGAIN)))
            } else if stop_sent_at.is_some() {
                (Action::Nothing, Some(kill_at))
            } else {
                (Action::Stop { id }, Some(kill_at))
            }
        }
    }
}

fn delete(input: &Input<'_>) -> Plan {
    let (action, wake_at) = match input.container {
        None => (Action::FinishDeletion, None),
        Some(container) => {
            wind_down(container, spec::grace_seconds(input.pod), input.stop_sent_at, input.now)
        }
    };
    Plan { action, status: input.previous.clone(), retry: None, record_first: false, wake_at }
}

/// A pod that ended stays as it is; what somebody else declared ended is stopped, and kept for
/// whoever wants to look at it until the pod is deleted.
fn ended(input: &Input<'_>) -> Plan {
    let mut plan = Plan {
        action: Action::Nothing,
        status: input.previous.clone(),
        retry: None,
        record_first: false,
        wake_at: None,
    };
    if let Some(container @ Container { state: ContainerState::Running { .. }, .. }) =
        input.container
    {
        let grace = spec::grace_seconds(input.pod);
        (plan.action, plan.wake_at) = wind_down(container, grace, input.stop_sent_at, input.now);
    }
    plan
}

fn absent(input: &Input<'_>) -> Plan {
    let before = status::container_entry(input.previous);
    let ran_before = before.is_some_and(|before| before.container_id.is_some());
    if ran_before && RestartPolicy::of(input.pod) == RestartPolicy::Never {
        let running = before.and_then(|before| before.state.as_ref()?.running.as_ref());
        let since = running.and_then(|running| running.started_at.as_ref()).map(|time| time.0);
        let exit = status::vanished(since, input.now);
        return tell(input, Shown::Terminated(&exit));
    }
    if input.pulling {
        // A pull that failed before goes on being told of until this one has ended, too.
        if let Some(failure) = input.failure {
            return tell_failure(input, failure);
        }
        let image = spec::container(input.pod).and_then(|container| container.image.as_deref());
        let message = Some(format!("pulling image {:?}", image.unwrap_or_default()));
        return tell(input, Shown::Waiting { reason: "ContainerCreating", message });
    }
    if let Some(plan) = hold_back(input) {
        return plan;
    }
    let restart_count = recorded_restarts(input).saturating_add(u32::from(ran_before));
    let crash_streak = input.next_streak.unwrap_or(u32::from(ran_before));
    let action = Action::Create { restart_count, crash_streak };
    Plan { action, ..tell(input, creating()) }
}

/// Waiting for the next attempt, if the last one failed and its backoff is not over.
fn hold_back(input: &Input<'_>) -> Option<Plan> {
    let failure = input.failure.filter(|failure| input.now < failure.retry_at)?;
    Some(Plan { wake_at: Some(failure.retry_at), ..tell_failure(input, failure) })
}

fn tell_failure(input: &Input<'_>, failure: &StartFailure) -> Plan {
    let (reason, message) = failure_shown(input.pod, failure);
    let retry = Some(Retry { start_failures: failure.count, at: failure.retry_at });
    Plan { retry, ..tell(input, Shown::Waiting { reason, message: Some(message) }) }
}

fn exited(input: &Input<'_>, container: &Container, exit: &Exit) -> Plan {
    if !RestartPolicy::of(input.pod).restarts_after(exit.code) {
        return tell(input, Shown::Terminated(exit));
    }
    let restart = backoff::restart(container.identity.crash_streak, exit);
    let retry = Some(Retry { start_failures: 0, at: restart.due });
    if input.now < restart.due {
        let message = format!(
            "back-off {}s restarting failed container={} pod={}: {}",
            restart.delay.as_secs(),
            container.identity.container,
            container.identity.pod,
            exit.message.clone().unwrap_or_else(|| format!("it ended with code {}", exit.code)),
        );
        let shown = Shown::Waiting { reason: "CrashLoopBackOff", message: Some(message) };
        return Plan { retry, wake_at: Some(restart.due), ..tell(input, shown) };
    }
    Plan {
        action: Action::Replace { id: container.id.clone(), next_streak: restart.next_streak },
        retry,
        record_first: !is_told(input, container),
        ..tell(input, Shown::Terminated(exit))
    }
}

/// Whether the status knows already how this container ended.
fn is_told(input: &Input<'_>, container: &Container) -> bool {
    let id = format!("{}://{}", input.scheme, container.id);
    let entry = status::container_entry(input.previous);
    let states = entry.into_iter().flat_map(|entry| [&entry.state, &entry.last_state]);
    let mut ends = states.flatten().filter_map(|state| state.terminated.as_ref());
    ends.any(|end| end.container_id.as_ref() == Some(&id))
}

/// A plan that only tells.
fn tell(input: &Input<'_>, shown: Shown<'_>) -> Plan {
    let facts = Facts {
        pod: input.pod,
        previous: input.previous,
        container: input.container,
        shown,
        restart_count: recorded_restarts(input),
        scheme: input.scheme,
        host_ip: input.host_ip,
        now: input.now,
    };
    Plan {
        action: Action::Nothing,
        status: status::pod_status(&facts),
        retry: None,
        record_first: false,
        wake_at: None,
    }
}

/// The container knows best which life it is; without one, the status does.
fn recorded_restarts(input: &Input<'_>) -> u32 {
    let of_status = || {
        let entry = status::container_entry(input.previous)?;
        u32::try_from(entry.restart_count).ok()
    };
    match input.container {
        Some(container) => container.identity.restart_count,
        None => of_status().unwrap_or(0),
    }
}

fn creating() -> Shown<'static> {
    Shown::Waiting { reason: "ContainerCreating", message: None }
}

/// How a failed attempt is worded: the first failed pull is `ErrImagePull`, later ones are
/// `ImagePullBackOff`.
fn failure_shown<'a>(pod: &Pod, failure: &'a StartFailure) -> (&'a str, String) {
    if failure.reason == ERR_IMAGE_PULL && failure.count > 1 {
        (IMAGE_PULL_BACK_OFF, format!("{}{}", pull_back_off(pod), failure.message))
    } else {
        (&failure.reason, failure.message.clone())
    }
}

/// The way back from the words to the failure's own reason and message.
pub(crate) fn failure_from_shown(pod: &Pod, reason: &str, message: &str) -> (String, String) {
    if reason == IMAGE_PULL_BACK_OFF {
        let message = message.strip_prefix(&pull_back_off(pod)).unwrap_or(message);
        (ERR_IMAGE_PULL.to_owned(), message.to_owned())
    } else {
        (reason.to_owned(), message.to_owned())
    }
}

fn pull_back_off(pod: &Pod) -> String {
    let image = spec::container(pod).and_then(|container| container.image.as_deref());
    format!("Back-off pulling image {:?}: ", image.unwrap_or_default())
}

#[cfg(test)]
mod tests;
