//! The steps of one container of a pod that is to run, and how it is shown meanwhile.

use crate::backoff;
use crate::runtime::{Container, ContainerState, Exit};
use crate::spec::{self, RestartPolicy};
use crate::status::{self, Shown, Subject};

use super::view::View;
use super::{Action, CONTAINER_CREATING, Life, Retry, SOON, Steps, ending, failure_shown};

/// The network that the pod's containers are to be in.
pub(super) struct Network<'a> {
    /// The sandbox that holds it, by its id; none if each container has its own or the node's.
    pub(super) sandbox: Option<&'a str>,
    /// The sandbox's address.
    pub(super) ip: Option<&'a str>,
}

impl Network<'_> {
    /// Whether a container was made in this network.
    pub(super) fn holds(&self, container: &Container) -> bool {
        container.identity.sandbox.as_deref() == self.sandbox
    }
}

/// Whether a container runs, or nobody knows yet that it does not.
pub(super) fn is_up(container: &Container) -> bool {
    matches!(container.state, ContainerState::Running { .. } | ContainerState::Removing)
}

/// The steps of a container that is to run now.
pub(super) fn run<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    network: &Network<'_>,
    policy: RestartPolicy,
    steps: &mut Steps,
) -> Shown<'a> {
    let input = view.input;
    let Some(current) = subject.current else {
        return absent(view, subject, network, policy, steps);
    };
    let id = || current.id.clone();
    match &current.state {
        ContainerState::Running { started_at } => {
            let probes = input.probes.get(&current.id);
            let must_end = !network.holds(current)
                || input.stopping.contains_key(&current.id)
                || probes.is_some_and(|results| results.must_restart);
            if must_end {
                let grace_seconds = probes
                    .and_then(|results| results.grace_seconds)
                    .unwrap_or_else(|| spec::grace_seconds(input.pod));
                ending::wind_down(current, Some(subject.declared), grace_seconds, input, steps);
            }
            Shown::Running { started_at: *started_at }
        }
        ContainerState::Removing => {
            steps.wake(backoff::later(input.now, SOON));
            creating()
        }
        ContainerState::Created if !network.holds(current) => {
            steps.act(Action::Remove { id: id() });
            creating()
        }
        ContainerState::Created => hold_back(view, subject, steps).unwrap_or_else(|| {
            steps.act(Action::Start { id: id(), container: subject.declared.name.clone() });
            creating()
        }),
        ContainerState::Exited(exit) => {
            let again =
                policy.restarts_after(exit.code) || (subject.is_init && !network.holds(current));
            if again {
                exited(view, subject, current, exit, network, steps)
            } else {
                Shown::Terminated(exit.clone())
            }
        }
    }
}

/// How a container is shown that is neither started nor stopped: one whose turn is over.
pub(super) fn at_rest<'a>(subject: &Subject<'a>) -> Shown<'a> {
    match subject.current.map(|current| &current.state) {
        Some(ContainerState::Exited(exit)) => Shown::Terminated(exit.clone()),
        Some(ContainerState::Running { started_at }) => Shown::Running { started_at: *started_at },
        _ => Shown::AsBefore,
    }
}

/// A container whose turn comes after the init containers. One that runs although it is not its
/// turn is left from a network that is gone.
pub(super) fn waiting_for_init<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    network: &Network<'_>,
    steps: &mut Steps,
) -> Shown<'a> {
    if let Some(current) = subject.current
        && let ContainerState::Running { started_at } = current.state
    {
        if !network.holds(current) {
            let grace_seconds = spec::grace_seconds(view.input.pod);
            ending::wind_down(current, Some(subject.declared), grace_seconds, view.input, steps);
        }
        return Shown::Running { started_at };
    }
    Shown::Waiting { reason: "PodInitializing", message: None }
}

/// Whether an init container has done its work in this network.
pub(super) fn is_done(view: &View<'_>, subject: &Subject<'_>, network: &Network<'_>) -> bool {
    match (&subject.shown, subject.current) {
        (Shown::Terminated(exit), Some(current)) => exit.code == 0 && network.holds(current),
        (Shown::AsBefore, None) => status::ended_with(view.input.previous, subject) == Some(0),
        _ => false,
    }
}

/// A container that can be neither found nor made again: the pod's network is gone for good.
pub(super) fn lost<'a>(view: &View<'_>, subject: &Subject<'_>) -> Shown<'a> {
    if status::ended_with(view.input.previous, subject).is_some() {
        return Shown::AsBefore;
    }
    let since = status::running_since(view.input.previous, subject);
    Shown::Terminated(status::vanished(since, view.input.now))
}

fn absent<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    network: &Network<'_>,
    policy: RestartPolicy,
    steps: &mut Steps,
) -> Shown<'a> {
    let previous = view.input.previous;
    let ran_before = subject.entry(previous).is_some_and(|entry| entry.container_id.is_some());
    // It was removed after it had ended for good: that is how it stays.
    if status::ended_with(previous, subject).is_some_and(|code| !policy.restarts_after(code)) {
        return Shown::AsBefore;
    }
    if ran_before && policy == RestartPolicy::Never {
        return lost(view, subject);
    }
    let life = Life {
        restart_count: subject.restarts_told(previous).saturating_add(u32::from(ran_before)),
        crash_streak: u32::from(ran_before),
        ..in_network(network)
    };
    make(view, subject, life, None, steps)
}

/// A container that ended and is to be started again, once its backoff is over.
fn exited<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    container: &Container,
    exit: &Exit,
    network: &Network<'_>,
    steps: &mut Steps,
) -> Shown<'a> {
    let identity = &container.identity;
    let restart = backoff::restart(identity.crash_streak, exit);
    if view.input.now < restart.due {
        steps.wake(restart.due);
        steps.retry(Retry { start_failures: 0, at: restart.due });
        let message = format!(
            "back-off {}s restarting failed container={} pod={}: {}",
            restart.delay.as_secs(),
            identity.container,
            identity.pod,
            exit.message.clone().unwrap_or_else(|| format!("it ended with code {}", exit.code)),
        );
        return Shown::Waiting { reason: "CrashLoopBackOff", message: Some(message) };
    }
    let life = Life {
        restart_count: identity.restart_count.saturating_add(1),
        crash_streak: restart.next_streak,
        ..in_network(network)
    };
    let before = steps.actions.len();
    let shown = make(view, subject, life, Some(container.id.clone()), steps);
    if steps.actions.len() == before {
        return shown;
    }
    steps.retry(Retry { start_failures: 0, at: restart.due });
    steps.tell_first |= !status::knows_end_of(view.input, subject, container);
    Shown::Terminated(exit.clone())
}

/// Makes a container, as soon as its image is there and the backoff of earlier attempts is over.
fn make<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    life: Life,
    retired: Option<String>,
    steps: &mut Steps,
) -> Shown<'a> {
    let image = spec::image(subject.declared);
    if view.input.pulling.contains(image) {
        // A pull that failed before goes on being told of until this one has ended, too.
        return tell_failure(view, subject, steps).unwrap_or_else(|| Shown::Waiting {
            reason: CONTAINER_CREATING,
            message: Some(format!("pulling image {image:?}")),
        });
    }
    if let Some(shown) = hold_back(view, subject, steps) {
        return shown;
    }
    steps.act(Action::Create { container: subject.declared.name.clone(), life, retired });
    creating()
}

/// Waiting for the next attempt, if the last one failed and its backoff is not over.
fn hold_back<'a>(view: &View<'a>, subject: &Subject<'a>, steps: &mut Steps) -> Option<Shown<'a>> {
    let failure = view.input.failures.get(&subject.declared.name)?;
    if view.input.now >= failure.retry_at {
        return None;
    }
    steps.wake(failure.retry_at);
    tell_failure(view, subject, steps)
}

fn tell_failure<'a>(
    view: &View<'a>,
    subject: &Subject<'a>,
    steps: &mut Steps,
) -> Option<Shown<'a>> {
    let failure = view.input.failures.get(&subject.declared.name)?;
    steps.retry(Retry { start_failures: failure.count, at: failure.retry_at });
    let (reason, message) = failure_shown(spec::image(subject.declared), failure);
    Some(Shown::Waiting { reason, message: Some(message) })
}

fn in_network(network: &Network<'_>) -> Life {
    Life {
        sandbox: network.sandbox.map(str::to_owned),
        pod_ip: network.ip.map(str::to_owned),
        ..Life::default()
    }
}

fn creating<'a>() -> Shown<'a> {
    Shown::Waiting { reason: CONTAINER_CREATING, message: None }
}
