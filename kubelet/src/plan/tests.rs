//! Every row of the action table, and what the status says meanwhile.

mod several;

use api::ObjectKey;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use serde_json::json;

use super::*;
use crate::runtime::{Exit, Identity};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod whose status is what the given container entry amounts to.
fn pod(restart_policy: &str, phase: &str, entry: &serde_json::Value) -> Pod {
    let entries = if entry.is_null() { json!([]) } else { json!([entry]) };
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u"},
        "spec": {
            "nodeName": "node-1", "restartPolicy": restart_policy,
            "containers": [{"name": "main", "image": "nginx"}],
        },
        "status": {"phase": phase, "containerStatuses": entries},
    }))
    .unwrap()
}

fn deleted(mut pod: Pod, grace_seconds: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(status::time(at(100)));
    pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
    pod
}

/// A status entry of a container that ran when last seen.
fn was_running(restart_count: i32) -> serde_json::Value {
    json!({
        "name": "main", "image": "nginx", "imageID": "sha256:1", "ready": true,
        "containerID": "docker://old", "restartCount": restart_count,
        "state": {"running": {"startedAt": "1970-01-01T00:00:50Z"}},
    })
}

fn container(id: &str, restart_count: u32, crash_streak: u32, state: ContainerState) -> Container {
    Container {
        id: id.into(),
        name: "web".into(),
        identity: Identity {
            cluster: "c".into(),
            node: "node-1".into(),
            pod: ObjectKey::namespaced("default", "web"),
            pod_uid: "u".into(),
            container: "main".into(),
            sandbox: None,
            restart_count,
            crash_streak,
            grace_seconds: 30,
        },
        image: "nginx".into(),
        image_id: "sha256:1".into(),
        created_at: at(40),
        state,
        ip: Some("172.17.0.2".into()),
    }
}

fn running() -> ContainerState {
    ContainerState::Running { started_at: at(50) }
}

fn exit(code: i32, ran: i64) -> ContainerState {
    ContainerState::Exited(Exit {
        code,
        started_at: Some(at(50)),
        finished_at: at(50 + ran),
        reason: if code == 0 { "Completed" } else { "Error" },
        message: None,
    })
}

/// What a plan is made from, with room for everything it borrows.
pub(super) struct Case {
    pub(super) pod: Pod,
    pub(super) seen: Vec<Container>,
    pub(super) failures: BTreeMap<String, StartFailure>,
    pub(super) pulling: BTreeSet<String>,
    pub(super) stopping: HashMap<String, Stopping>,
    pub(super) probes: HashMap<String, ProbeResults>,
    pub(super) refused: Option<Refusal>,
}

impl Case {
    pub(super) fn new(pod: Pod, seen: impl IntoIterator<Item = Container>) -> Self {
        Self {
            pod,
            seen: seen.into_iter().collect(),
            failures: BTreeMap::new(),
            pulling: BTreeSet::new(),
            stopping: HashMap::new(),
            probes: HashMap::new(),
            refused: None,
        }
    }

    pub(super) fn plan(&self, now: i64) -> Plan {
        plan(&Input {
            pod: &self.pod,
            previous: self.pod.status.as_ref().unwrap(),
            seen: &self.seen,
            failures: &self.failures,
            pulling: &self.pulling,
            stopping: &self.stopping,
            probes: &self.probes,
            refused: self.refused.as_ref(),
            scheme: "docker",
            host_ip: "192.0.2.1",
            now: at(now),
        })
    }

    /// As [`plan`](Self::plan), and the status is the one to go on from.
    pub(super) fn tell(&mut self, now: i64) -> Plan {
        let plan = self.plan(now);
        self.pod.status = Some(plan.status.clone());
        plan
    }
}

/// What the status says of a container.
pub(super) fn entry<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let entries = status.init_container_statuses.iter().chain(&status.container_statuses);
    entries.flatten().find(|entry| entry.name == name).unwrap()
}

/// Kind of state and its reason: what a container's entry comes down to.
pub(super) fn shown(plan: &Plan, name: &str) -> (&'static str, String) {
    let state = entry(&plan.status, name).state.as_ref().unwrap();
    let (kind, reason) = if let Some(waiting) = &state.waiting {
        ("waiting", waiting.reason.clone())
    } else if let Some(terminated) = &state.terminated {
        ("terminated", terminated.reason.clone())
    } else {
        ("running", None)
    };
    (kind, reason.unwrap_or_default())
}

pub(super) fn phase(plan: &Plan) -> &str {
    plan.status.phase.as_deref().unwrap()
}

/// Phase, kind of state and its reason: what the status of a pod with one container comes down to.
fn summary(plan: &Plan) -> (String, &'static str, String) {
    let (kind, reason) = shown(plan, "main");
    (phase(plan).to_owned(), kind, reason)
}

pub(super) fn condition<'a>(plan: &'a Plan, kind: &str) -> &'a PodCondition {
    let conditions = plan.status.conditions.as_ref().unwrap();
    conditions.iter().find(|condition| condition.type_ == kind).unwrap()
}

pub(super) fn ready(plan: &Plan) -> bool {
    condition(plan, "Ready").status == "True"
}

fn create(restart_count: u32, crash_streak: u32, retired: Option<&str>) -> Action {
    Action::Create {
        container: "main".to_owned(),
        life: Life { restart_count, crash_streak, ..Life::default() },
        retired: retired.map(str::to_owned),
    }
}

#[test]
fn every_row_of_the_action_table() {
    let gone = None;
    let is = |state| Some(container("x", 0, 0, state));
    let first = || create(0, 0, None);
    let again = || create(1, 1, Some("x"));
    let start = || Action::Start { id: "x".into(), container: "main".into() };
    let none = serde_json::Value::Null;
    // policy, phase, entry, container -> actions, (phase, state, reason)
    #[rustfmt::skip]
    let table = [
        ("Always", "Pending", none.clone(), gone.clone(),
            vec![first()], ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Pending", none.clone(), is(ContainerState::Created),
            vec![start()], ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Pending", none.clone(), is(running()),
            vec![], ("Running", "running", "")),
        ("Always", "Pending", none, is(ContainerState::Removing),
            vec![], ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Running", was_running(0), is(running()),
            vec![], ("Running", "running", "")),
        // The first exit is followed by a restart at once, whatever the code.
        ("Always", "Running", was_running(0), is(exit(1, 5)),
            vec![again()], ("Running", "terminated", "Error")),
        ("Always", "Running", was_running(0), is(exit(0, 5)),
            vec![again()], ("Running", "terminated", "Completed")),
        ("OnFailure", "Running", was_running(0), is(exit(1, 5)),
            vec![again()], ("Running", "terminated", "Error")),
        ("OnFailure", "Running", was_running(0), is(exit(0, 5)),
            vec![], ("Succeeded", "terminated", "Completed")),
        ("Never", "Running", was_running(0), is(exit(1, 5)),
            vec![], ("Failed", "terminated", "Error")),
        ("Never", "Running", was_running(0), is(exit(0, 5)),
            vec![], ("Succeeded", "terminated", "Completed")),
        // A container that vanished is made again, and counts.
        ("Always", "Running", was_running(2), gone.clone(),
            vec![create(3, 1, None)], ("Running", "waiting", "ContainerCreating")),
        ("OnFailure", "Running", was_running(2), gone.clone(),
            vec![create(3, 1, None)], ("Running", "waiting", "ContainerCreating")),
        ("Never", "Running", was_running(0), gone.clone(),
            vec![], ("Failed", "terminated", "ContainerStatusUnknown")),
        // Nothing is started once the pod has ended.
        ("Never", "Failed", was_running(0), is(exit(1, 5)),
            vec![], ("Failed", "terminated", "Error")),
        ("Always", "Failed", was_running(0), gone,
            vec![], ("Failed", "running", "")),
        ("Always", "Failed", was_running(0), is(running()),
            vec![Action::Stop { id: "x".into() }], ("Failed", "running", "")),
    ];
    for (policy, phase, entry, container, actions, (end_phase, state, reason)) in table {
        let row = format!("{policy} {phase} {:?}", container.as_ref().map(|c| &c.state));
        let case = Case::new(pod(policy, phase, &entry), container);
        let plan = case.plan(60);
        assert_eq!(plan.actions, actions, "{row}");
        assert_eq!(summary(&plan), (end_phase.into(), state, reason.into()), "{row}");
    }
}

#[test]
fn a_crash_loop_waits_longer_each_time_and_says_until_when() {
    // crash streak, seconds run -> seconds waited after the exit
    for (streak, ran, wait) in [(1, 5, 10), (2, 5, 20), (3, 5, 40), (7, 5, 300), (7, 700, 0)] {
        let ended = container("old", 3, streak, exit(1, ran));
        let mut case = Case::new(pod("Always", "Running", &was_running(3)), [ended]);
        let due = 50 + ran + wait;
        if wait > 0 {
            let early = case.plan(due - 1);
            assert_eq!((early.actions.len(), early.wake_at), (0, Some(at(due))));
            assert_eq!(early.retry, Some(Retry { start_failures: 0, at: at(due) }));
            assert_eq!(summary(&early), ("Running".into(), "waiting", "CrashLoopBackOff".into()));
            assert!(!ready(&early));
            let entry = entry(&early.status, "main");
            let last = entry.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
            assert_eq!((last.exit_code, entry.restart_count), (1, 3));
            let message = entry.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone();
            let expected = format!("back-off {wait}s restarting failed container=main");
            assert!(message.as_ref().unwrap().starts_with(&expected), "{message:?}");
        }
        let next_streak = if ran >= 600 { 1 } else { streak + 1 };
        let on_time = case.plan(due);
        assert_eq!(on_time.actions, [create(4, next_streak, Some("old"))]);
        assert_eq!(on_time.retry, Some(Retry { start_failures: 0, at: at(due) }));
        // An exit that nobody was told of is told before it is overtaken, and once.
        assert!(on_time.tell_first);
        case.tell(due - wait.min(1));
        assert!(!case.plan(due).tell_first);
    }
}

#[test]
fn the_successor_keeps_count_and_tells_how_its_predecessor_ended() {
    let first = container("old", 0, 0, exit(3, 5));
    let mut case = Case::new(pod("Always", "Running", &was_running(0)), [first.clone()]);
    assert_eq!(case.plan(60).actions, [create(1, 1, Some("old"))]);

    // Nobody was told in between: the predecessor itself says how it ended.
    case.seen = vec![container("new", 1, 1, running()), first];
    let after = case.tell(61);
    let told = entry(&after.status, "main");
    assert_eq!((told.restart_count, told.ready), (1, true));
    assert_eq!(told.container_id.as_deref(), Some("docker://new"));
    let last = told.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.container_id.as_deref()), (3, Some("docker://old")));
    assert_eq!((after.actions, after.retry), (vec![], None));

    // It is kept until its successor has ended, too, and a third is there.
    case.seen.insert(0, container("newer", 2, 2, running()));
    assert_eq!(case.plan(62).actions, [Action::Remove { id: "old".into() }]);
    // Should it go before, the status still knows.
    case.seen = vec![container("new", 1, 1, running())];
    let told = case.plan(63).status;
    assert!(entry(&told, "main").last_state.as_ref().unwrap().terminated.is_some());

    // What is left of an earlier life is not mistaken for the one that vanished.
    case.seen = vec![container("old", 0, 0, exit(3, 5))];
    let vanished = case.tell(64);
    assert_eq!(vanished.actions, [create(2, 1, None)]);
    case.seen.push(container("newer", 2, 1, running()));
    let after = case.plan(65);
    let last = entry(&after.status, "main").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));
    assert_eq!(last.container_id.as_deref(), Some("docker://new"));
}

#[test]
fn a_status_that_says_all_is_not_changed_by_telling_it_again() {
    let pod = pod("Always", "Pending", &serde_json::Value::Null);
    let mut case = Case::new(pod, [container("x", 0, 0, running())]);
    let first = case.plan(60);
    assert!(ready(&first));
    assert_eq!(first.status.pod_ip.as_deref(), Some("172.17.0.2"));
    assert_eq!(first.status.host_ip.as_deref(), Some("192.0.2.1"));
    // As the store gives it back.
    let stored = serde_json::to_value(&first.status).unwrap();
    case.pod.status = Some(serde_json::from_value(stored).unwrap());
    assert_eq!(case.plan(600).status, first.status);

    case.seen = vec![container("x", 0, 5, exit(1, 5))];
    let first = case.tell(60);
    assert_eq!(case.plan(61).status, first.status);
}

#[test]
fn conditions_of_others_stay_and_transitions_are_dated() {
    let mut pod = pod("Always", "Pending", &serde_json::Value::Null);
    let foreign = json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z"},
        {"type": "example.org/weather", "status": "False"},
    ]);
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(foreign).unwrap();
    let plan = Case::new(pod, [container("x", 0, 0, running())]).plan(60);
    let since = |kind| condition(&plan, kind).last_transition_time.clone();
    assert_eq!(since("PodScheduled"), Some(status::time(at(1))));
    assert_eq!(condition(&plan, "example.org/weather").status, "False");
    assert_eq!(since("Ready"), Some(status::time(at(60))));
    assert_eq!(plan.status.start_time, Some(status::time(at(60))));
}

#[test]
fn a_failed_attempt_is_told_and_tried_again_later() {
    let failure = |count, reason: &str| StartFailure {
        count,
        reason: reason.into(),
        message: "no route".into(),
        retry_at: at(70),
    };
    let table = [
        (failure(1, "ErrImagePull"), "ErrImagePull", "no route"),
        (
            failure(2, "ErrImagePull"),
            "ImagePullBackOff",
            "Back-off pulling image \"nginx\": no route",
        ),
        (failure(3, "CreateContainerError"), "CreateContainerError", "no route"),
    ];
    for (failure, reason, message) in table {
        let mut case = Case::new(pod("Always", "Pending", &serde_json::Value::Null), []);
        case.failures.insert("main".into(), failure.clone());
        let early = case.plan(60);
        assert_eq!((early.actions.len(), early.wake_at), (0, Some(at(70))));
        assert_eq!(early.retry, Some(Retry { start_failures: failure.count, at: at(70) }));
        assert_eq!(summary(&early), ("Pending".into(), "waiting", reason.into()));
        let state = entry(&early.status, "main").state.clone().unwrap();
        assert_eq!(state.waiting.unwrap().message.as_deref(), Some(message));

        assert_eq!(case.plan(70).actions, [create(0, 0, None)]);
        case.pulling.insert("nginx".into());
        assert_eq!(case.plan(70).actions, []);

        // The same when a container is to be succeeded.
        case.seen = vec![container("x", 0, 0, exit(1, 5))];
        case.pulling.clear();
        assert_eq!(summary(&case.plan(69)).2, reason);
        assert_eq!(case.plan(70).actions, [create(1, 1, Some("x"))]);
    }
}

#[test]
fn what_is_refused_is_told_and_not_tried() {
    let mut case = Case::new(pod("Always", "Pending", &serde_json::Value::Null), []);
    let (reason, message) = ("CreateContainerConfigError", "no".to_owned());
    case.refused = Some(Refusal { reason, message });
    let plan = case.plan(60);
    assert_eq!(plan.actions, []);
    let expected = ("Pending".into(), "waiting", "CreateContainerConfigError".into());
    assert_eq!(summary(&plan), expected);
}

fn stopping(signalled_at: i64) -> Stopping {
    Stopping { since: at(signalled_at), hook: None, signalled_at: Some(at(signalled_at)) }
}

#[test]
fn deletion_asks_waits_kills_removes_and_lets_go() {
    let id = || "x".to_owned();
    // grace, container, stop sent at, now -> action, wake at
    #[rustfmt::skip]
    let table = [
        (30, Some(running()), None, 100, Some(Action::Stop { id: id() }), Some(130)),
        (30, Some(running()), Some(100), 129, None, Some(130)),
        (30, Some(running()), Some(100), 130, Some(Action::Kill { id: id() }), Some(140)),
        (0, Some(running()), None, 100, Some(Action::Kill { id: id() }), Some(110)),
        (30, Some(exit(143, 50)), Some(100), 101, Some(Action::Remove { id: id() }), None),
        (30, Some(ContainerState::Created), None, 101, Some(Action::Remove { id: id() }), None),
        (30, None, None, 101, Some(Action::FinishDeletion), None),
    ];
    for (grace, state, stop_sent_at, now, action, wake_at) in table {
        let row = format!("{grace} {state:?} {stop_sent_at:?} {now}");
        for phase in ["Pending", "Running", "Succeeded", "Failed"] {
            let pod = deleted(pod("Always", phase, &was_running(0)), grace);
            let seen = state.clone().map(|state| container("x", 0, 0, state));
            let mut case = Case::new(pod, seen);
            case.stopping.extend(stop_sent_at.map(|sent| (id(), stopping(sent))));
            let plan = case.plan(now);
            assert_eq!(plan.actions, Vec::from_iter(action.clone()), "{row}");
            assert_eq!(plan.wake_at, wake_at.map(at), "{row}");
            assert_eq!(plan.status.phase.as_deref(), Some(phase), "{row}");
        }
    }
}

#[test]
fn an_orphan_is_wound_down_with_the_grace_it_was_made_with() {
    let id = || "x".to_owned();
    let orphan = [container("x", 0, 0, running())];
    let plan = |sent: Option<i64>, now| {
        let stopping = sent.map(|sent| (id(), stopping(sent))).into_iter().collect();
        plan_orphans(&orphan, &stopping, at(now))
    };
    assert_eq!(plan(None, 100), (vec![Action::Stop { id: id() }], Some(at(130))));
    assert_eq!(plan(Some(100), 130), (vec![Action::Kill { id: id() }], Some(at(140))));
    let ended = [container("x", 0, 0, exit(0, 1))];
    let none = HashMap::new();
    assert_eq!(plan_orphans(&ended, &none, at(100)), (vec![Action::Remove { id: id() }], None));
}

#[test]
fn a_hook_has_the_grace_period_and_the_container_two_seconds_after_it() {
    let hooked = json!({"preStop": {"exec": {"command": ["true"]}}});
    let stopping = |hook, signalled_at: Option<i64>| {
        Some(Stopping { since: at(100), hook: Some(hook), signalled_at: signalled_at.map(at) })
    };
    let pre_stop = || Action::PreStop { id: "x".into(), container: "main".into() };
    let stop = || Action::Stop { id: "x".into() };
    let kill = || Action::Kill { id: "x".into() };
    // stopping, now -> action, wake at
    let table = [
        (None, 100, Some(pre_stop()), Some(130)),
        (stopping(Hook::Running, None), 129, None, Some(130)),
        // The hook took all of it.
        (stopping(Hook::Running, None), 130, Some(stop()), Some(132)),
        (stopping(Hook::Done, None), 110, Some(stop()), Some(130)),
        (stopping(Hook::Done, None), 129, Some(stop()), Some(131)),
        (stopping(Hook::Done, Some(110)), 129, None, Some(130)),
        (stopping(Hook::Done, Some(110)), 130, Some(kill()), Some(140)),
        (stopping(Hook::Done, Some(129)), 130, None, Some(131)),
        (stopping(Hook::Done, Some(129)), 131, Some(kill()), Some(141)),
    ];
    for (stopping, now, action, wake_at) in table {
        let mut pod = deleted(pod("Always", "Running", &was_running(0)), 30);
        let declared = &mut pod.spec.as_mut().unwrap().containers[0];
        declared.lifecycle = Some(serde_json::from_value(hooked.clone()).unwrap());
        let mut case = Case::new(pod, [container("x", 0, 0, running())]);
        case.stopping.extend(stopping.map(|stopping| ("x".to_owned(), stopping)));
        let plan = case.plan(now);
        assert_eq!(plan.actions, Vec::from_iter(action), "{stopping:?} {now}");
        assert_eq!(plan.wake_at, wake_at.map(at), "{stopping:?} {now}");
    }
}

#[test]
fn probes_decide_who_is_ready_and_who_is_started_again() {
    let probe = json!({"exec": {"command": ["true"]}});
    let with = |kinds: &[&str]| {
        let mut pod = pod("Always", "Pending", &serde_json::Value::Null);
        let declared = &mut pod.spec.as_mut().unwrap().containers[0];
        let probe = || Some(serde_json::from_value(probe.clone()).unwrap());
        for kind in kinds {
            match *kind {
                "startup" => declared.startup_probe = probe(),
                "liveness" => declared.liveness_probe = probe(),
                _ => declared.readiness_probe = probe(),
            }
        }
        Case::new(pod, [container("x", 0, 0, running())])
    };
    let results = |started, ready| ProbeResults { started, ready, ..ProbeResults::default() };
    // probes, results -> started, ready
    let table = [
        (&[][..], results(None, None), true, true),
        (&["liveness"], results(None, None), true, true),
        (&["readiness"], results(None, None), true, false),
        (&["readiness"], results(None, Some(false)), true, false),
        (&["readiness"], results(None, Some(true)), true, true),
        (&["startup"], results(None, None), false, false),
        (&["startup"], results(Some(false), None), false, false),
        (&["startup"], results(Some(true), None), true, true),
        (&["startup", "readiness"], results(Some(false), Some(true)), false, false),
        (&["startup", "readiness"], results(Some(true), Some(true)), true, true),
    ];
    for (probes, results, started, is_ready) in table {
        let mut case = with(probes);
        case.probes.insert("x".into(), results);
        let plan = case.tell(60);
        let told = entry(&plan.status, "main");
        let seen = (told.started, told.ready, ready(&plan));
        assert_eq!(seen, (Some(started), is_ready, is_ready), "{probes:?} {results:?}");
        assert_eq!(phase(&plan), "Running");
        // A kubelet that begins anew goes on from there, for this life only.
        case.probes.clear();
        assert_eq!(case.plan(61).status, plan.status, "{probes:?} {results:?}");
        case.seen = vec![container("y", 1, 1, running())];
        assert_eq!(
            ready(&case.plan(62)),
            !probes.contains(&"readiness") && !probes.contains(&"startup")
        );
    }

    let mut case = with(&["liveness"]);
    case.probes.insert("x".into(), ProbeResults { must_restart: true, ..ProbeResults::default() });
    let plan = case.tell(100);
    assert_eq!(plan.actions, [Action::Stop { id: "x".into() }]);
    assert_eq!((phase(&plan), plan.wake_at), ("Running", Some(at(130))));
    // Once it is being stopped there is no way back.
    case.probes.clear();
    case.stopping.insert("x".into(), stopping(100));
    assert_eq!(case.plan(129).actions, []);
    assert_eq!(case.plan(130).actions, [Action::Kill { id: "x".into() }]);
    case.seen = vec![container("x", 0, 0, exit(137, 80))];
    assert_eq!(case.plan(131).actions, [create(1, 1, Some("x"))]);
}

#[test]
fn a_pod_is_failed_when_it_was_active_for_too_long() {
    let mut case = Case::new(
        pod("Always", "Pending", &serde_json::Value::Null),
        [container("x", 0, 0, running())],
    );
    case.pod.spec.as_mut().unwrap().active_deadline_seconds = Some(20);
    let first = case.tell(60);
    assert_eq!((phase(&first), first.wake_at), ("Running", Some(at(80))));
    let late = case.tell(80);
    assert_eq!((phase(&late), late.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    assert!(!ready(&late));
    let after = case.tell(80);
    assert_eq!(after.actions, [Action::Stop { id: "x".into() }]);
    case.seen = vec![container("x", 0, 0, exit(143, 31))];
    let end = case.plan(81);
    assert_eq!((end.actions.len(), phase(&end)), (0, "Failed"));
    assert_eq!(end.status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(shown(&end, "main"), ("terminated", "Error".to_owned()));
}
