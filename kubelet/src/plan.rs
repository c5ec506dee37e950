//! What to do about a pod: a pure function from what is wanted and what is seen to the next steps.
//!
//! For each container of the pod:
//!
//! | Phase | Container | Step |
//! | --- | --- | --- |
//! | Pending | doesn't exist | create it and start it, then Running |
//! | Pending | made, never started | start it |
//! | Pending | running | just Running: it was ours all along |
//! | Running | running | nothing |
//! | Running | running, failed its liveness or startup probe | stop it as for a deletion |
//! | Running | exited | by `restartPolicy`: a successor once its backoff is over, or it has ended |
//! | Running | doesn't exist | create it again, counted as a restart |
//! | Succeeded, Failed | running | stop it; nothing is ever started again |
//! | any, being deleted | running | preStop, stop signal, grace period, SIGKILL |
//! | any, being deleted | none running | remove them |
//! | any, being deleted | none exists | let the pod go from the store |
//!
//! **Lives.** A container that is started again is a new one under the old name: it begins with the
//! image's own files, and its labels say which life of the container it is. Its predecessor is kept
//! under another name until the successor has ended, too: for its log, and so that the restart
//! count, the crash streak and the last state cannot be lost between two writes. Whoever finds the
//! containers finds them.
//!
//! **Sandbox.** The containers of a pod share one network. A pod with a single container has it from
//! that container. Any other has a sandbox, a container that does nothing and holds the network; it
//! is made first and goes last. When it is lost, the other containers are stopped and all are made
//! anew in a new one, init containers included: what ran in a network that is gone cannot be reached.
//!
//! **Init containers** run one after the other, each until it exits with 0; only then the others are
//! started, all at once. One with `restartPolicy: Always` (a sidecar) is waited for only until it has
//! started, runs beside the others, and ends after them.
//!
//! Worked example: a pod's only container exits with 1. The plan says *create* life 1, retiring the
//! old container. That one (restart count 1, streak 1) exits as well: now the plan is to wait until
//! 10 s after that exit, shown as `CrashLoopBackOff`, and to be asked again then.

mod container;
mod ending;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff;
use crate::runtime::{Container, ContainerState, SANDBOX};
use crate::spec::{self, Refusal, RestartPolicy};
use crate::status::{self, Facts, Shown, Subject};

pub(crate) use ending::plan_orphans;

use container::{Network, waiting_for_init};
use view::View;

/// Ask again after this when the engine is about to finish something.
const SOON: SignedDuration = SignedDuration::from_millis(500);

/// The waiting reasons of an image that could not be pulled.
pub(crate) const ERR_IMAGE_PULL: &str = "ErrImagePull";
const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
/// Nothing is wrong: the container is on its way.
pub(crate) const CONTAINER_CREATING: &str = "ContainerCreating";

/// An attempt at getting a container to run that failed and left no container.
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

/// What the probes of a running container have found so far. The default is that of a container
/// without probes, and of one whose probes have not answered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeResults {
    /// The readiness probe's result; nothing while there is none. A container with a readiness probe
    /// is not ready until then, unless it was when its kubelet was started anew.
    pub(crate) ready: Option<bool>,
    /// Whether the startup probe has succeeded; nothing while that is open.
    pub(crate) started: Option<bool>,
    /// The liveness or the startup probe has failed often enough: this life is to be ended.
    pub(crate) must_restart: bool,
    /// The grace period that the failed probe asks for, instead of the pod's.
    pub(crate) grace_seconds: Option<u32>,
}

/// How far a container that is asked to end has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// When it began; the grace period counts from here.
    pub(crate) since: Timestamp,
    /// Its preStop hook, if it has one.
    pub(crate) hook: Option<Hook>,
    /// When it was sent its stop signal.
    pub(crate) signalled_at: Option<Timestamp>,
}

/// How far a preStop hook has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// It is under way.
    Running,
    /// It has ended, well or not.
    Done,
}

/// What the plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a Pod,
    /// The status last made for this pod; at first the one found in the store.
    pub(crate) previous: &'a PodStatus,
    /// The pod's containers on the engine, of all lives and in any order.
    pub(crate) seen: &'a [Container],
    /// By container's name: the last attempt at starting it, if it failed.
    pub(crate) failures: &'a BTreeMap<String, StartFailure>,
    /// The images that are being pulled for this pod.
    pub(crate) pulling: &'a BTreeSet<String>,
    /// By engine id: the containers that were asked to end.
    pub(crate) stopping: &'a HashMap<String, Stopping>,
    /// By engine id: what probes have found.
    pub(crate) probes: &'a HashMap<String, ProbeResults>,
    /// Why the pod cannot be run here at all.
    pub(crate) refused: Option<&'a Refusal>,
    pub(crate) scheme: &'a str,
    pub(crate) host_ip: &'a str,
    pub(crate) now: Timestamp,
}

/// A step towards what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the sandbox and start it, removing the one before it.
    CreateSandbox { attempt: u32, crash_streak: u32, replaced: Option<String> },
    /// Make that life of the container and start it. Its predecessor, if it is still there under
    /// the name, is to be given another.
    Create { container: String, life: Life, retired: Option<String> },
    /// Start the container that was made.
    Start { id: String, container: String },
    /// Run the container's preStop hook.
    PreStop { id: String, container: String },
    /// Ask the container to end.
    Stop { id: String },
    /// End the container.
    Kill { id: String },
    /// Remove the container.
    Remove { id: String },
    /// Nothing is left of the pod's containers: let the pod go from the store.
    FinishDeletion,
}

/// Which of a container's lives, and in which sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) restart_count: u32,
    pub(crate) crash_streak: u32,
    /// The sandbox, by its id.
    pub(crate) sandbox: Option<String>,
    /// The pod's address, where it is known beforehand.
    pub(crate) pod_ip: Option<String>,
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
    /// To be carried out in this order. None: nothing to do until something happens.
    pub(crate) actions: Vec<Action>,
    pub(crate) status: PodStatus,
    pub(crate) retry: Option<Retry>,
    /// The status holds news that the actions overtake: an exit that is followed by a restart at
    /// once. Tell it before acting, so that whoever watches sees it.
    pub(crate) tell_first: bool,
    pub(crate) wake_at: Option<Timestamp>,
}

/// What is gathered while the containers are looked at one by one.
#[derive(Default)]
struct Steps {
    actions: Vec<Action>,
    retry: Option<Retry>,
    tell_first: bool,
    wake_at: Option<Timestamp>,
}

impl Steps {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// The soonest of all retries is told of.
    fn retry(&mut self, retry: Retry) {
        if self.retry.is_none_or(|before| retry.at < before.at) {
            self.retry = Some(retry);
        }
    }
}

/// Decides the next steps for a pod.
pub(crate) fn plan(input: &Input<'_>) -> Plan {
    let view = View::of(input);
    if input.pod.metadata.deletion_timestamp.is_some() {
        return ending::delete(&view);
    }
    if status::is_terminal(input.previous) {
        return ending::ended(&view);
    }
    let deadline = active_deadline(input.pod, input.previous);
    if deadline.is_some_and(|deadline| input.now >= deadline) {
        return ending::deadline_exceeded(&view);
    }
    let mut plan = match input.refused {
        Some(refusal) if input.seen.is_empty() => refuse(&view, refusal),
        _ => run(&view),
    };
    let deadline = active_deadline(input.pod, &plan.status);
    if let Some(deadline) = deadline.filter(|_| !status::is_terminal(&plan.status)) {
        plan.wake_at = Some(plan.wake_at.map_or(deadline, |at| at.min(deadline)));
    }
    plan
}

/// When the pod has been active for as long as it may be.
fn active_deadline(pod: &Pod, status: &PodStatus) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let since = status.start_time.as_ref()?.0;
    Some(backoff::later(since, SignedDuration::from_secs(seconds)))
}

/// Nothing is begun; every container says why.
fn refuse(view: &View<'_>, refusal: &Refusal) -> Plan {
    let message = || Some(refusal.message.clone());
    let subjects = view.subjects(|_| Shown::Waiting { reason: refusal.reason, message: message() });
    tell(view, &subjects, Steps::default())
}

/// The steps of a pod that is to run.
fn run(view: &View<'_>) -> Plan {
    let mut steps = Steps::default();
    for stray in &view.strays {
        steps.act(Action::Remove { id: stray.id.clone() });
    }
    let network = match network(view, &mut steps) {
        Ok(network) => network,
        Err(absence) => return without_network(view, &absence, steps),
    };
    let policy = RestartPolicy::of(view.input.pod);
    let mut subjects = Vec::new();
    // Whoever was started after the init containers proves that they were through.
    let begun = view
        .main()
        .filter_map(|subject| subject.current)
        .any(|container| network.holds(container) && container.state != ContainerState::Created);
    let mut held_up = false;
    for mut subject in view.init() {
        let sidecar = spec::is_sidecar(subject.declared);
        subject.shown = if held_up {
            waiting_for_init(view, &subject, &network, &mut steps)
        } else if begun && !sidecar {
            container::at_rest(&subject)
        } else {
            let policy = match policy {
                _ if sidecar => RestartPolicy::Always,
                RestartPolicy::Never => RestartPolicy::Never,
                RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
            };
            container::run(view, &subject, &network, policy, &mut steps)
        };
        if !begun {
            held_up |= if sidecar {
                !status::is_started(view.input, &subject)
            } else {
                !container::is_done(view, &subject, &network)
            };
        }
        subjects.push(subject);
    }
    for mut subject in view.main() {
        subject.shown = if held_up {
            waiting_for_init(view, &subject, &network, &mut steps)
        } else {
            container::run(view, &subject, &network, policy, &mut steps)
        };
        subjects.push(subject);
    }
    tell(view, &subjects, steps)
}

/// Why the pod's network is not there.
enum Absence<'a> {
    /// It is about to be made; containers are shown like this meanwhile.
    ForNow(Shown<'a>),
    /// Nothing would be started in it any more.
    ForGood,
}

/// The network that the pod's containers are to be in; without one, the step towards it.
fn network<'a>(view: &View<'a>, steps: &mut Steps) -> Result<Network<'a>, Absence<'a>> {
    let input = view.input;
    let waiting = |message| Absence::ForNow(Shown::Waiting { reason: CONTAINER_CREATING, message });
    if !view.needs_sandbox {
        return Ok(Network { sandbox: None, ip: None });
    }
    if let Some(Container { state: ContainerState::Running { .. }, id, ip, .. }) = view.sandbox {
        return Ok(Network { sandbox: Some(id), ip: ip.as_deref() });
    }
    if !goes_on_without_sandbox(view) {
        return Err(Absence::ForGood);
    }
    if let Some(failure) =
        input.failures.get(SANDBOX).filter(|failure| input.now < failure.retry_at)
    {
        steps.wake(failure.retry_at);
        steps.retry(Retry { start_failures: failure.count, at: failure.retry_at });
        let message = format!("the pod's sandbox cannot be made: {}", failure.message);
        return Err(waiting(Some(message)));
    }
    // Those that are in the old network have to end first.
    if view.containers().any(container::is_up) {
        return Err(waiting(None));
    }
    match view.sandbox {
        None => steps.act(Action::CreateSandbox { attempt: 0, crash_streak: 0, replaced: None }),
        Some(Container { state: ContainerState::Created, id, .. }) => {
            steps.act(Action::Start { id: id.clone(), container: SANDBOX.to_owned() });
        }
        Some(Container { state: ContainerState::Exited(exit), id, identity, .. }) => {
            let restart = backoff::restart(identity.crash_streak, exit);
            if input.now < restart.due {
                steps.wake(restart.due);
                steps.retry(Retry { start_failures: 0, at: restart.due });
                let message =
                    exit.message.as_ref().map(|why| format!("the pod's sandbox has ended: {why}"));
                return Err(waiting(message));
            }
            steps.act(Action::CreateSandbox {
                attempt: identity.restart_count.saturating_add(1),
                crash_streak: restart.next_streak,
                replaced: Some(id.clone()),
            });
        }
        Some(_) => steps.wake(backoff::later(input.now, SOON)),
    }
    Err(waiting(None))
}

/// Whether a pod without a sandbox is given one. Kubernetes' rule: not when nothing would be started
/// in it, because the pod's containers are not started twice or have done what they were to do.
fn goes_on_without_sandbox(view: &View<'_>) -> bool {
    let policy = RestartPolicy::of(view.input.pod);
    let over = |container: &Container| match &container.state {
        ContainerState::Exited(exit) => !policy.restarts_after(exit.code),
        _ => false,
    };
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => view.main().any(|subject| !subject.current.is_some_and(over)),
        RestartPolicy::Never => !view.ever_made(),
    }
}

/// The pod's network is not there: what ran in it is stopped, and the rest waits.
fn without_network(view: &View<'_>, absence: &Absence<'_>, mut steps: Steps) -> Plan {
    let subjects = view.subjects(|subject| {
        match (subject.current.map(|container| &container.state), absence) {
            (Some(ContainerState::Running { .. } | ContainerState::Exited(_)), _) => {
                container::at_rest(subject)
            }
            (_, Absence::ForNow(shown)) => shown.clone(),
            (_, Absence::ForGood) => container::lost(view, subject),
        }
    });
    let grace_seconds = spec::grace_seconds(view.input.pod);
    for subject in &subjects {
        if let Some(current) = subject.current {
            let declared = Some(subject.declared);
            ending::wind_down(current, declared, grace_seconds, view.input, &mut steps);
        }
    }
    tell(view, &subjects, steps)
}

/// The plan that takes these steps and tells what was found.
fn tell(view: &View<'_>, subjects: &[Subject<'_>], steps: Steps) -> Plan {
    let facts = Facts { input: view.input, subjects, sandbox: view.sandbox };
    let Steps { actions, retry, tell_first, wake_at } = steps;
    Plan { actions, status: status::pod_status(&facts), retry, tell_first, wake_at }
}

/// How a failed attempt is worded: the first failed pull is `ErrImagePull`, later ones are
/// `ImagePullBackOff`.
fn failure_shown<'a>(image: &str, failure: &'a StartFailure) -> (&'a str, String) {
    if failure.reason == ERR_IMAGE_PULL && failure.count > 1 {
        (IMAGE_PULL_BACK_OFF, format!("{}{}", pull_back_off(image), failure.message))
    } else {
        (&failure.reason, failure.message.clone())
    }
}

/// The way back from the words to the failure's own reason and message.
pub(crate) fn failure_from_shown(image: &str, reason: &str, message: &str) -> (String, String) {
    if reason == IMAGE_PULL_BACK_OFF {
        let message = message.strip_prefix(&pull_back_off(image)).unwrap_or(message);
        (ERR_IMAGE_PULL.to_owned(), message.to_owned())
    } else {
        (reason.to_owned(), message.to_owned())
    }
}

fn pull_back_off(image: &str) -> String {
    format!("Back-off pulling image {image:?}: ")
}

#[cfg(test)]
mod tests;
