//! A pod's status as Kubernetes words it, from what its container does.
//!
//! Pure: the same container, the same previous status and the same moment give the same status,
//! so that a status is written only when something changed. Times are cut to whole seconds, as
//! they come back from the store.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState as K8sState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::runtime::{Container, Exit};
use crate::spec::{self, RestartPolicy};

/// The conditions that a kubelet speaks of; others belong to others.
const OWN_CONDITIONS: [&str; 4] = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];

/// What a pod's container is shown to be doing.
#[derive(Clone, Debug)]
pub(crate) enum Shown<'a> {
    /// Not running, and why.
    Waiting { reason: &'a str, message: Option<String> },
    /// Running since then.
    Running { started_at: Timestamp },
    /// Ended.
    Terminated(&'a Exit),
}

/// What a status is made from.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    /// The status that was last made for this pod, or the one the store had at first.
    pub(crate) previous: &'a PodStatus,
    /// The container on the engine, in whatever state.
    pub(crate) container: Option<&'a Container>,
    pub(crate) shown: Shown<'a>,
    pub(crate) restart_count: u32,
    /// The scheme of container ids: `docker` in `docker://d803aed8…`.
    pub(crate) scheme: &'a str,
    pub(crate) host_ip: &'a str,
    pub(crate) now: Timestamp,
}

/// The pod's status that these facts amount to.
pub(crate) fn pod_status(facts: &Facts<'_>) -> PodStatus {
    let Facts { pod, previous, container, host_ip, now, .. } = facts;
    let container_status = container_status(facts);
    let running = container_status.ready;
    let name = container_status.name.clone();
    let phase = phase(RestartPolicy::of(pod), &container_status);
    let ended = matches!(phase, "Succeeded" | "Failed");
    let mut conditions = previous.conditions.clone().unwrap_or_default();
    set_condition(&mut conditions, "PodScheduled", true, None, *now);
    set_condition(&mut conditions, "Initialized", true, None, *now);
    let unready = || match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{name}]")),
    };
    for kind in ["ContainersReady", "Ready"] {
        set_condition(&mut conditions, kind, running, (!running).then(unready), *now);
    }
    let ip = container.and_then(|container| container.ip.clone()).filter(|_| running);
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(vec![container_status]),
        host_ip: Some((*host_ip).to_owned()),
        host_ips: Some(vec![HostIP { ip: (*host_ip).to_owned() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: previous.start_time.clone().or_else(|| Some(time(*now))),
        // Whoever failed the pod from outside (an eviction) said why; that stays.
        reason: previous.reason.clone().filter(|_| ended),
        message: previous.message.clone().filter(|_| ended),
        ..(*previous).clone()
    }
}

/// The status entry of the pod's container in `status`.
pub(crate) fn container_entry(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.as_ref()?.first()
}

/// Whether the pod reached its end: nothing is started for it any more.
pub(crate) fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The end of a container that went away unseen: nobody knows its exit code, and Kubernetes
/// reports 137 for such.
pub(crate) fn vanished(since: Option<Timestamp>, now: Timestamp) -> Exit {
    Exit {
        code: 137,
        started_at: since,
        finished_at: now,
        reason: "ContainerStatusUnknown",
        message: Some("the container was removed from the engine by someone else".into()),
    }
}

fn container_status(facts: &Facts<'_>) -> ContainerStatus {
    let Facts { pod, previous, container, shown, restart_count, scheme, now, .. } = facts;
    let declared = spec::container(pod);
    let before = container_entry(previous);
    let id = container.map(|container| format!("{scheme}://{}", container.id));
    let same_container =
        id.is_some() && before.and_then(|b| b.container_id.as_ref()) == id.as_ref();
    let terminated = |exit: &Exit, id: &Option<String>| K8sState {
        terminated: Some(ContainerStateTerminated {
            container_id: id.clone(),
            exit_code: exit.code,
            finished_at: Some(time(exit.finished_at)),
            started_at: exit.started_at.map(time),
            reason: Some(exit.reason.to_owned()),
            message: exit.message.clone(),
            signal: None,
        }),
        ..K8sState::default()
    };
    let state = match shown {
        Shown::Waiting { reason, message } => K8sState {
            waiting: Some(ContainerStateWaiting {
                reason: Some((*reason).to_owned()),
                message: message.clone(),
            }),
            ..K8sState::default()
        },
        Shown::Running { started_at } => K8sState {
            running: Some(ContainerStateRunning { started_at: Some(time(*started_at)) }),
            ..K8sState::default()
        },
        Shown::Terminated(exit) => terminated(exit, &id),
    };
    // The end of the life before the one shown. A waiting container's own end is its last state,
    // and so is that of a container which ran when last seen and is gone now.
    let exit = container.and_then(|container| match &container.state {
        crate::runtime::ContainerState::Exited(exit) => Some(exit),
        _ => None,
    });
    let last_state = match (exit, before) {
        (Some(exit), _) if state.waiting.is_some() => Some(terminated(exit, &id)),
        (_, Some(before)) if same_container => before.last_state.clone(),
        (_, Some(before)) => match before.state.as_ref() {
            Some(K8sState { terminated: Some(_), .. }) => before.state.clone(),
            Some(K8sState { running: Some(running), .. }) => {
                let since = running.started_at.as_ref().map(|time| time.0);
                Some(terminated(&vanished(since, *now), &before.container_id))
            }
            _ => before.last_state.clone(),
        },
        (_, None) => None,
    };
    let running = state.running.is_some();
    let image = declared.and_then(|declared| declared.image.clone()).unwrap_or_default();
    ContainerStatus {
        name: declared.map(|declared| declared.name.clone()).unwrap_or_default(),
        image: container.map_or(image, |container| container.image.clone()),
        image_id: container
            .map(|container| container.image_id.clone())
            .or_else(|| before.map(|before| before.image_id.clone()))
            .unwrap_or_default(),
        container_id: id.or_else(|| before.and_then(|before| before.container_id.clone())),
        ready: running,
        started: Some(running),
        restart_count: i32::try_from(*restart_count).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last_state.filter(|state| state.terminated.is_some()),
        ..ContainerStatus::default()
    }
}

/// Kubernetes' rule for the phase (its `getPhase`), for one container.
fn phase(policy: RestartPolicy, status: &ContainerStatus) -> &'static str {
    let Some(state) = &status.state else { return "Pending" };
    if state.running.is_some() {
        return "Running";
    }
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(ended) = state.terminated.as_ref().or(last) else { return "Pending" };
    if policy.restarts_after(ended.exit_code) {
        "Running"
    } else if ended.exit_code == 0 {
        "Succeeded"
    } else {
        "Failed"
    }
}

/// Sets a condition, leaving the time of its last transition unless its status changes.
pub(crate) fn set_condition(
    conditions: &mut Vec<PodCondition>,
    kind: &str,
    holds: bool,
    why: Option<(&str, String)>,
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    let index = conditions.iter().position(|condition| condition.type_ == kind);
    let condition = match index {
        Some(index) => &mut conditions[index],
        None => {
            conditions.push_mut(PodCondition { type_: kind.to_owned(), ..PodCondition::default() })
        }
    };
    if condition.status != status || condition.last_transition_time.is_none() {
        status.clone_into(&mut condition.status);
        condition.last_transition_time = Some(time(now));
    }
    let (reason, message) = why.unzip();
    condition.reason = reason.map(str::to_owned);
    condition.message = message.filter(|message| !message.is_empty());
}

/// Takes the conditions of others as they are in `stored`.
pub(crate) fn adopt_conditions(status: &mut PodStatus, stored: &PodStatus) {
    let is_own = |condition: &PodCondition| OWN_CONDITIONS.contains(&condition.type_.as_str());
    let foreign = stored.conditions.iter().flatten().filter(|condition| !is_own(condition));
    let own = status.conditions.iter().flatten().filter(|condition| is_own(condition));
    status.conditions = Some(own.chain(foreign).cloned().collect());
}

/// A moment as Kubernetes stores it: whole seconds.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
