//! How containers are brought to their end: preStop hook, stop signal, grace period, SIGKILL,
//! removal; sidecars after the others, and the sandbox last.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container as PodContainer;

use crate::backoff;
use crate::runtime::{Container, ContainerState};
use crate::spec;
use crate::status::{self, Subject};

use super::view::View;
use super::{Action, Hook, Input, Plan, SOON, Steps, Stopping, container, tell};

/// Send SIGKILL again when a container outlives it that long.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// What is left of the grace period, at least, once a preStop hook has ended; Kubernetes' value.
const AFTER_HOOK: SignedDuration = SignedDuration::from_secs(2);

/// The steps for containers that belong to no pod any more, or to an earlier pod of the name.
pub(crate) fn plan_orphans(
    orphans: &[Container],
    stopping: &HashMap<String, Stopping>,
    now: Timestamp,
) -> (Vec<Action>, Option<Timestamp>) {
    let mut steps = Steps::default();
    let mut up = false;
    for orphan in orphans.iter().filter(|orphan| !orphan.identity.is_sandbox()) {
        up |= matches!(orphan.state, ContainerState::Running { .. });
        let grace_seconds = orphan.identity.grace_seconds;
        ask_to_end(orphan, None, grace_seconds, stopping.get(&orphan.id), now, &mut steps);
    }
    if !up {
        remove(orphans.iter(), now, &mut steps);
    }
    (steps.actions, steps.wake_at)
}

/// A pod that is being deleted.
pub(super) fn delete(view: &View<'_>) -> Plan {
    let input = view.input;
    let mut steps = Steps::default();
    if input.seen.is_empty() {
        steps.act(Action::FinishDeletion);
    } else if !end_all(view, &mut steps) {
        remove(input.seen.iter(), input.now, &mut steps);
    }
    let mut plan = tell(view, &as_they_are(view), steps);
    keep_phase(input, &mut plan);
    plan
}

/// A pod that ended stays as it is. What somebody else declared ended is stopped, and kept for
/// whoever wants to know; only the sandbox goes.
pub(super) fn ended(view: &View<'_>) -> Plan {
    let input = view.input;
    let mut steps = Steps::default();
    if !end_all(view, &mut steps) {
        let sandboxes = input.seen.iter().filter(|container| container.identity.is_sandbox());
        remove(sandboxes, input.now, &mut steps);
    }
    let mut plan = tell(view, &as_they_are(view), steps);
    keep_phase(input, &mut plan);
    plan
}

/// The phase is not for what remains of the pod to say.
fn keep_phase(input: &Input<'_>, plan: &mut Plan) {
    plan.status.phase.clone_from(&input.previous.phase);
    plan.status.reason.clone_from(&input.previous.reason);
    plan.status.message.clone_from(&input.previous.message);
}

/// A pod that was active for longer than it may be.
pub(super) fn deadline_exceeded(view: &View<'_>) -> Plan {
    let mut steps = Steps::default();
    // What is left to do is seen once the phase is told.
    steps.wake(view.input.now);
    let mut plan = tell(view, &as_they_are(view), steps);
    plan.status.phase = Some("Failed".to_owned());
    plan.status.reason = Some("DeadlineExceeded".to_owned());
    plan.status.message =
        Some("Pod was active on the node longer than the specified deadline".to_owned());
    status::not_ready(&mut plan.status, view.input.now);
    plan
}

/// All containers as they are, without anything being done to them.
fn as_they_are<'a>(view: &View<'a>) -> Vec<Subject<'a>> {
    view.subjects(container::at_rest)
}

/// The steps towards the end of all containers but the sandbox; whether any of them still runs.
fn end_all(view: &View<'_>, steps: &mut Steps) -> bool {
    let input = view.input;
    let grace_seconds = spec::grace_seconds(input.pod);
    let declared = |container: &Container| {
        spec::all_containers(input.pod).find(|one| one.name == container.identity.container)
    };
    let runs = |container: &&Container| {
        matches!(container.state, ContainerState::Running { .. })
            && !container.identity.is_sandbox()
    };
    let (sidecars, others): (Vec<_>, Vec<_>) = input
        .seen
        .iter()
        .filter(runs)
        .map(|container| (container, declared(container)))
        .partition(|(_, declared)| declared.is_some_and(spec::is_sidecar));
    let first = if others.is_empty() { &sidecars } else { &others };
    for (container, declared) in first {
        wind_down(container, *declared, grace_seconds, input, steps);
    }
    !first.is_empty()
}

/// Removes those that do not run; a sandbox is not asked first.
fn remove<'a>(containers: impl Iterator<Item = &'a Container>, now: Timestamp, steps: &mut Steps) {
    for container in containers {
        if container.state == ContainerState::Removing {
            steps.wake(backoff::later(now, SOON));
        } else {
            steps.act(Action::Remove { id: container.id.clone() });
        }
    }
}

/// The next step towards the end of a container, if it runs.
pub(super) fn wind_down(
    container: &Container,
    declared: Option<&PodContainer>,
    grace_seconds: u32,
    input: &Input<'_>,
    steps: &mut Steps,
) {
    let hooked = declared.filter(|declared| spec::pre_stop(declared).is_some());
    let stopping = input.stopping.get(&container.id);
    ask_to_end(container, hooked, grace_seconds, stopping, input.now, steps);
}

fn ask_to_end(
    container: &Container,
    hooked: Option<&PodContainer>,
    grace_seconds: u32,
    stopping: Option<&Stopping>,
    now: Timestamp,
    steps: &mut Steps,
) {
    if !matches!(container.state, ContainerState::Running { .. }) {
        return;
    }
    let id = container.id.clone();
    let grace = SignedDuration::from_secs(i64::from(grace_seconds));
    let over = backoff::later(stopping.map_or(now, |stopping| stopping.since), grace);
    let kill = |steps: &mut Steps| {
        steps.act(Action::Kill { id: id.clone() });
        steps.wake(backoff::later(now, KILL_AGAIN));
    };
    match (stopping, hooked) {
        _ if grace_seconds == 0 => kill(steps),
        (None, Some(declared)) => {
            steps.act(Action::PreStop { id, container: declared.name.clone() });
            steps.wake(over);
        }
        (None, None) => {
            steps.act(Action::Stop { id });
            steps.wake(over);
        }
        (Some(Stopping { hook: Some(Hook::Running), signalled_at: None, .. }), _) if now < over => {
            steps.wake(over);
        }
        (Some(Stopping { hook, signalled_at: None, .. }), _) => {
            steps.act(Action::Stop { id });
            let after_hook = backoff::later(now, AFTER_HOOK);
            steps.wake(if hook.is_some() { over.max(after_hook) } else { over });
        }
        (Some(Stopping { hook, signalled_at: Some(signalled_at), .. }), _) => {
            let after_hook = backoff::later(*signalled_at, AFTER_HOOK);
            let kill_at = if hook.is_some() { over.max(after_hook) } else { over };
            if now >= kill_at { kill(steps) } else { steps.wake(kill_at) }
        }
    }
}
