//! A pod's status as Kubernetes words it, from what its containers do.
//!
//! Pure: the same containers, the same previous status and the same moment give the same status,
//! so that a status is written only when something changed. Times are cut to whole seconds, as
//! they come back from the store.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as PodContainer, ContainerState as K8sState, ContainerStateRunning,
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP, PodCondition, PodIP,
    PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::plan::Input;
use crate::runtime::{Container, ContainerState, Exit};
use crate::spec::{self, RestartPolicy};

/// The conditions that a kubelet speaks of; others belong to others.
const OWN_CONDITIONS: [&str; 4] = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];

/// What a container is shown to be doing.
#[derive(Clone, Debug)]
pub(crate) enum Shown<'a> {
    /// Not running, and why.
    Waiting { reason: &'a str, message: Option<String> },
    /// Running since then.
    Running { started_at: Timestamp },
    /// Ended.
    Terminated(Exit),
    /// What was told last still holds.
    AsBefore,
}

/// A container of the pod: what it is to be, what is there, and how it is shown.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) declared: &'a PodContainer,
    pub(crate) is_init: bool,
    /// The newest of its lives on the engine, in whatever state.
    pub(crate) current: Option<&'a Container>,
    /// The life before it, if it is still there.
    pub(crate) last: Option<&'a Container>,
    pub(crate) shown: Shown<'a>,
}

impl Subject<'_> {
    /// What a status tells of this container.
    pub(crate) fn entry<'s>(&self, status: &'s PodStatus) -> Option<&'s ContainerStatus> {
        let entries =
            if self.is_init { &status.init_container_statuses } else { &status.container_statuses };
        entries.iter().flatten().find(|entry| entry.name == self.declared.name)
    }

    /// The restarts that a status tells of.
    pub(crate) fn restarts_told(&self, status: &PodStatus) -> u32 {
        let count = self.entry(status).map_or(0, |entry| entry.restart_count);
        u32::try_from(count).unwrap_or(0)
    }
}

/// What a status is made from.
pub(crate) struct Facts<'a> {
    pub(crate) input: &'a Input<'a>,
    /// All containers, the init containers first.
    pub(crate) subjects: &'a [Subject<'a>],
    /// The container that holds the pod's network for the others.
    pub(crate) sandbox: Option<&'a Container>,
}

/// The pod's status that these facts amount to.
pub(crate) fn pod_status(facts: &Facts<'_>) -> PodStatus {
    let Input { pod, previous, host_ip, now, .. } = *facts.input;
    let of_kind = |init: bool| {
        let subjects = facts.subjects.iter().filter(move |subject| subject.is_init == init);
        subjects.map(|subject| container_status(facts.input, subject)).collect::<Vec<_>>()
    };
    let (init, main) = (of_kind(true), of_kind(false));
    let phase = phase(RestartPolicy::of(pod), facts.subjects, &init, &main);
    let ended = matches!(phase, "Succeeded" | "Failed");
    let mut conditions = previous.conditions.clone().unwrap_or_default();
    set_condition(&mut conditions, "PodScheduled", true, None, now);
    let uninitialized = names(&init, |entry| !is_through(facts.subjects, entry));
    let initialized = uninitialized.is_empty() || phase == "Succeeded";
    let why = || {
        (
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{uninitialized}]"),
        )
    };
    set_condition(&mut conditions, "Initialized", initialized, (!initialized).then(why), now);
    let unready = names(&main, |entry| !entry.ready);
    let is_ready = unready.is_empty() && !ended;
    let why = || match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{unready}]")),
    };
    for kind in ["ContainersReady", "Ready"] {
        set_condition(&mut conditions, kind, is_ready, (!is_ready).then(why), now);
    }
    let ip = pod_ip(facts);
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main),
        host_ip: Some(host_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: host_ip.to_owned() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: previous.start_time.clone().or_else(|| Some(time(now))),
        // Whoever failed the pod from outside (an eviction) said why; that stays.
        reason: previous.reason.clone().filter(|_| ended),
        message: previous.message.clone().filter(|_| ended),
        ..previous.clone()
    }
}

/// The address of whoever holds the pod's network, while it does.
fn pod_ip(facts: &Facts<'_>) -> Option<String> {
    let running =
        |container: &&Container| matches!(container.state, ContainerState::Running { .. });
    if spec::uses_host_network(facts.input.pod) {
        let mut containers = facts.subjects.iter().filter_map(|subject| subject.current);
        return containers
            .any(|container| running(&container))
            .then(|| facts.input.host_ip.to_owned());
    }
    let holder = if spec::needs_sandbox(facts.input.pod) {
        facts.sandbox
    } else {
        facts.subjects.first().and_then(|subject| subject.current)
    };
    holder.filter(running)?.ip.clone()
}

/// The names of the entries that are so.
fn names(entries: &[ContainerStatus], so: impl Fn(&ContainerStatus) -> bool) -> String {
    let mut names = String::new();
    for entry in entries.iter().filter(|entry| so(entry)) {
        let space = if names.is_empty() { "" } else { " " };
        let _ = write!(names, "{space}{}", entry.name);
    }
    names
}

/// Whether an init container has done what the others wait for.
fn is_through(subjects: &[Subject<'_>], entry: &ContainerStatus) -> bool {
    let subject =
        subjects.iter().find(|subject| subject.is_init && subject.declared.name == entry.name);
    if subject.is_some_and(|subject| spec::is_sidecar(subject.declared)) {
        return entry.started == Some(true);
    }
    exit_code(entry) == Some(0)
}

/// How the container that the entry tells of has ended.
fn exit_code(entry: &ContainerStatus) -> Option<i32> {
    Some(entry.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// The code with which a container has ended, if that is what was told of it last.
pub(crate) fn ended_with(previous: &PodStatus, subject: &Subject<'_>) -> Option<i32> {
    exit_code(subject.entry(previous)?)
}

/// Whether it was told already how this container ended.
pub(crate) fn knows_end_of(
    input: &Input<'_>,
    subject: &Subject<'_>,
    container: &Container,
) -> bool {
    let id = id_shown(input, container);
    let entry = subject.entry(input.previous);
    let states = entry.into_iter().flat_map(|entry| [&entry.state, &entry.last_state]);
    let mut ends = states.flatten().filter_map(|state| state.terminated.as_ref());
    ends.any(|end| end.container_id.as_ref() == Some(&id))
}

/// Since when a container runs, if that is what was told of it last.
pub(crate) fn running_since(previous: &PodStatus, subject: &Subject<'_>) -> Option<Timestamp> {
    let running = subject.entry(previous)?.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref()?.0)
}

/// Whether the pod reached its end: nothing is started for it any more.
pub(crate) fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Takes readiness from a pod that was failed.
pub(crate) fn not_ready(status: &mut PodStatus, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    for kind in ["ContainersReady", "Ready"] {
        set_condition(conditions, kind, false, Some(("PodFailed", String::new())), now);
    }
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

/// Whether a container runs and its startup probe, if any, has succeeded.
pub(crate) fn is_started(input: &Input<'_>, subject: &Subject<'_>) -> bool {
    probed(input, subject).0
}

/// Whether a container has started, and whether it is ready.
fn probed(input: &Input<'_>, subject: &Subject<'_>) -> (bool, bool) {
    let (Shown::Running { .. }, Some(current)) = (&subject.shown, subject.current) else {
        return (false, false);
    };
    let results = input.probes.get(&current.id).copied().unwrap_or_default();
    // A kubelet that was started anew goes on from what its predecessor told of the same life.
    let told = subject
        .entry(input.previous)
        .filter(|entry| entry.container_id.as_deref() == Some(&*id_shown(input, current)));
    let declared = subject.declared;
    let started = results.started.unwrap_or_else(|| {
        declared.startup_probe.is_none() || told.is_some_and(|entry| entry.started == Some(true))
    });
    let ready = results.ready.unwrap_or_else(|| {
        declared.readiness_probe.is_none() || told.is_some_and(|entry| entry.ready)
    });
    (started, started && ready)
}

fn id_shown(input: &Input<'_>, container: &Container) -> String {
    format!("{}://{}", input.scheme, container.id)
}

fn container_status(input: &Input<'_>, subject: &Subject<'_>) -> ContainerStatus {
    let Subject { declared, current, shown, .. } = subject;
    let before = subject.entry(input.previous);
    if let (Shown::AsBefore, Some(before)) = (shown, before) {
        let ready = is_kept_ready(subject, before);
        return ContainerStatus { ready, started: Some(false), ..before.clone() };
    }
    let id = current.map(|container| id_shown(input, container));
    let state = match shown {
        Shown::Waiting { reason, message } => waiting(reason, message.clone()),
        Shown::Running { started_at } => K8sState {
            running: Some(ContainerStateRunning { started_at: Some(time(*started_at)) }),
            ..K8sState::default()
        },
        Shown::Terminated(exit) => {
            let of = id.clone().or_else(|| before.and_then(|before| before.container_id.clone()));
            terminated(exit, of)
        }
        Shown::AsBefore => waiting(crate::plan::CONTAINER_CREATING, None),
    };
    let last_state = last_state(input, subject, &state, before);
    let (started, ready) = probed(input, subject);
    // An init container is ready once it has ended well.
    let ready = ready || (is_plain_init(subject) && ends_well(&state));
    let image_id = current.map(|container| container.image_id.clone());
    ContainerStatus {
        name: declared.name.clone(),
        image: current
            .map_or_else(|| spec::image(declared).to_owned(), |container| container.image.clone()),
        image_id: image_id
            .or_else(|| before.map(|before| before.image_id.clone()))
            .unwrap_or_default(),
        container_id: id.or_else(|| before.and_then(|before| before.container_id.clone())),
        ready,
        started: Some(started),
        // The container knows best which life it is; without one, the status does.
        restart_count: current
            .map_or_else(|| subject.restarts_told(input.previous), |c| c.identity.restart_count)
            .try_into()
            .unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last_state.filter(|state| state.terminated.is_some()),
        ..ContainerStatus::default()
    }
}

fn is_plain_init(subject: &Subject<'_>) -> bool {
    subject.is_init && !spec::is_sidecar(subject.declared)
}

fn ends_well(state: &K8sState) -> bool {
    state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0)
}

/// A container without a life on the engine is not ready, but for an init container that is done.
fn is_kept_ready(subject: &Subject<'_>, before: &ContainerStatus) -> bool {
    is_plain_init(subject) && exit_code(before) == Some(0)
}

/// The end of the life before the one shown. A waiting container's own end is its last state, and
/// so is that of a container which ran when last seen and is gone now.
fn last_state(
    input: &Input<'_>,
    subject: &Subject<'_>,
    state: &K8sState,
    before: Option<&ContainerStatus>,
) -> Option<K8sState> {
    let end_of = |container: &Container| match &container.state {
        ContainerState::Exited(exit) => Some(terminated(exit, Some(id_shown(input, container)))),
        _ => None,
    };
    if state.waiting.is_some()
        && let Some(end) = subject.current.and_then(end_of)
    {
        return Some(end);
    }
    if let (Some(current), Some(last)) = (subject.current, subject.last)
        && last.identity.restart_count.checked_add(1) == Some(current.identity.restart_count)
        && let Some(end) = end_of(last)
    {
        return Some(end);
    }
    let before = before?;
    let id = subject.current.map(|current| id_shown(input, current));
    let same_life = match &id {
        Some(id) => before.container_id.as_ref() == Some(id),
        None => state.terminated.is_some(),
    };
    if same_life {
        return before.last_state.clone();
    }
    match before.state.as_ref() {
        Some(K8sState { terminated: Some(_), .. }) => before.state.clone(),
        Some(K8sState { running: Some(running), .. }) => {
            let since = running.started_at.as_ref().map(|time| time.0);
            Some(terminated(&vanished(since, input.now), before.container_id.clone()))
        }
        _ => before.last_state.clone(),
    }
}

fn waiting(reason: &str, message: Option<String>) -> K8sState {
    K8sState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..K8sState::default()
    }
}

fn terminated(exit: &Exit, container_id: Option<String>) -> K8sState {
    K8sState {
        terminated: Some(ContainerStateTerminated {
            container_id,
            exit_code: exit.code,
            finished_at: Some(time(exit.finished_at)),
            started_at: exit.started_at.map(time),
            reason: Some(exit.reason.to_owned()),
            message: exit.message.clone(),
            signal: None,
        }),
        ..K8sState::default()
    }
}

/// Kubernetes' rule for the phase (its `getPhase`).
fn phase(
    policy: RestartPolicy,
    subjects: &[Subject<'_>],
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> &'static str {
    let last_code = |entry: &ContainerStatus| {
        entry.last_state.as_ref()?.terminated.as_ref().map(|ended| ended.exit_code)
    };
    let is_waiting = |entry: &ContainerStatus| {
        entry
            .state
            .as_ref()
            .is_none_or(|state| state.running.is_none() && state.terminated.is_none())
    };
    let mut initializing = false;
    for entry in init {
        let sidecar = subjects
            .iter()
            .any(|one| one.declared.name == entry.name && spec::is_sidecar(one.declared));
        let code = exit_code(entry).or_else(|| last_code(entry).filter(|_| is_waiting(entry)));
        match code {
            _ if sidecar => {
                initializing |= code.is_none() && entry.started != Some(true);
            }
            Some(code) if code != 0 && policy == RestartPolicy::Never => return "Failed",
            Some(_) => {}
            None => initializing = true,
        }
    }
    let (mut waits, mut runs) = (false, false);
    let mut ends = Vec::new();
    for entry in main {
        match exit_code(entry).or_else(|| last_code(entry).filter(|_| is_waiting(entry))) {
            Some(code) => ends.push(code),
            None if is_waiting(entry) => waits = true,
            None => runs = true,
        }
    }
    if initializing || waits || main.is_empty() {
        "Pending"
    } else if runs || ends.iter().any(|code| policy.restarts_after(*code)) {
        "Running"
    } else if ends.iter().all(|code| *code == 0) {
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
