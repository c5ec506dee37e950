//! Every row of the action table, and what the status says meanwhile.

use api::ObjectKey;
use serde_json::json;

use super::*;
use crate::runtime::Identity;

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

fn input<'a>(pod: &'a Pod, container: Option<&'a Container>, now: i64) -> Input<'a> {
    Input {
        pod,
        previous: pod.status.as_ref().unwrap(),
        container,
        failure: None,
        next_streak: None,
        pulling: false,
        stop_sent_at: None,
        unsupported: None,
        scheme: "docker",
        host_ip: "192.0.2.1",
        now: at(now),
    }
}

/// Phase, kind of state and its reason: what a status comes down to.
fn summary(plan: &Plan) -> (String, &'static str, String) {
    let entry = status::container_entry(&plan.status).unwrap();
    let state = entry.state.as_ref().unwrap();
    let (kind, reason) = if let Some(waiting) = &state.waiting {
        ("waiting", waiting.reason.clone())
    } else if let Some(terminated) = &state.terminated {
        ("terminated", terminated.reason.clone())
    } else {
        ("running", None)
    };
    (plan.status.phase.clone().unwrap(), kind, reason.unwrap_or_default())
}

fn ready(plan: &Plan) -> bool {
    let conditions = plan.status.conditions.as_ref().unwrap();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    ready.status == "True"
}

#[test]
fn every_row_of_the_action_table() {
    let id = || "x".to_owned();
    let gone = None;
    let is = |state| Some(container("x", 0, 0, state));
    let create = |restart_count, crash_streak| Action::Create { restart_count, crash_streak };
    let replace = |next_streak| Action::Replace { id: id(), next_streak };
    let none = serde_json::Value::Null;
    // policy, phase, entry, container, now -> action, (phase, state, reason)
    #[rustfmt::skip]
    let table = [
        ("Always", "Pending", none.clone(), gone.clone(), 60,
            create(0, 0), ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Pending", none.clone(), is(ContainerState::Created), 60,
            Action::Start { id: id() }, ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Pending", none.clone(), is(running()), 60,
            Action::Nothing, ("Running", "running", "")),
        ("Always", "Pending", none, is(ContainerState::Removing), 60,
            Action::Nothing, ("Pending", "waiting", "ContainerCreating")),
        ("Always", "Running", was_running(0), is(running()), 60,
            Action::Nothing, ("Running", "running", "")),
        // The first exit is followed by a restart at once, whatever the code.
        ("Always", "Running", was_running(0), is(exit(1, 5)), 60,
            replace(1), ("Running", "terminated", "Error")),
        ("Always", "Running", was_running(0), is(exit(0, 5)), 60,
            replace(1), ("Running", "terminated", "Completed")),
        ("OnFailure", "Running", was_running(0), is(exit(1, 5)), 60,
            replace(1), ("Running", "terminated", "Error")),
        ("OnFailure", "Running", was_running(0), is(exit(0, 5)), 60,
            Action::Nothing, ("Succeeded", "terminated", "Completed")),
        ("Never", "Running", was_running(0), is(exit(1, 5)), 60,
            Action::Nothing, ("Failed", "terminated", "Error")),
        ("Never", "Running", was_running(0), is(exit(0, 5)), 60,
            Action::Nothing, ("Succeeded", "terminated", "Completed")),
        // A container that vanished is made again, and counts.
        ("Always", "Running", was_running(2), gone.clone(), 60,
            create(3, 1), ("Running", "waiting", "ContainerCreating")),
        ("OnFailure", "Running", was_running(2), gone.clone(), 60,
            create(3, 1), ("Running", "waiting", "ContainerCreating")),
        ("Never", "Running", was_running(0), gone.clone(), 60,
            Action::Nothing, ("Failed", "terminated", "ContainerStatusUnknown")),
        // Nothing is started once the pod has ended.
        ("Never", "Failed", was_running(0), is(exit(1, 5)), 60,
            Action::Nothing, ("Failed", "running", "")),
        ("Always", "Failed", was_running(0), gone, 60,
            Action::Nothing, ("Failed", "running", "")),
        ("Always", "Failed", was_running(0), is(running()), 60,
            Action::Stop { id: id() }, ("Failed", "running", "")),
    ];
    for (policy, phase, entry, container, now, action, (end_phase, state, reason)) in table {
        let row = format!("{policy} {phase} {:?}", container.as_ref().map(|c| &c.state));
        let pod = pod(policy, phase, &entry);
        let plan = plan(&input(&pod, container.as_ref(), now));
        assert_eq!(plan.action, action, "{row}");
        assert_eq!(summary(&plan), (end_phase.into(), state, reason.into()), "{row}");
    }
}

#[test]
fn a_crash_loop_waits_longer_each_time_and_says_until_when() {
    // crash streak, seconds run -> seconds waited after the exit
    for (streak, ran, wait) in [(1, 5, 10), (2, 5, 20), (3, 5, 40), (7, 5, 300), (7, 700, 0)] {
        let pod = pod("Always", "Running", &was_running(3));
        let ended = container("old", 3, streak, exit(1, ran));
        let due = 50 + ran + wait;
        if wait > 0 {
            let early = plan(&input(&pod, Some(&ended), due - 1));
            assert_eq!(early.action, Action::Nothing);
            assert_eq!(early.wake_at, Some(at(due)));
            assert_eq!(early.retry, Some(Retry { start_failures: 0, at: at(due) }));
            assert_eq!(summary(&early), ("Running".into(), "waiting", "CrashLoopBackOff".into()));
            assert!(!ready(&early));
            let entry = status::container_entry(&early.status).unwrap();
            let last = entry.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
            assert_eq!((last.exit_code, entry.restart_count), (1, 3));
            let message = entry.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone();
            let expected = format!("back-off {wait}s restarting failed container=main");
            assert!(message.as_ref().unwrap().starts_with(&expected), "{message:?}");
            // What was told while it waited need not be told again when it is replaced.
            let waited = Input { previous: &early.status, ..input(&pod, Some(&ended), due) };
            assert!(!plan(&waited).record_first);
        }
        let on_time = plan(&input(&pod, Some(&ended), due));
        let next_streak = if ran >= 600 { 1 } else { streak + 1 };
        assert_eq!(on_time.action, Action::Replace { id: "old".into(), next_streak });
        assert!(on_time.record_first);
        assert_eq!(on_time.retry, Some(Retry { start_failures: 0, at: at(due) }));
    }
}

#[test]
fn the_successor_keeps_count_and_tells_how_its_predecessor_ended() {
    let mut pod = pod("Always", "Running", &was_running(0));
    let first = container("old", 0, 0, exit(3, 5));
    let exited = plan(&input(&pod, Some(&first), 60));
    pod.status = Some(exited.status);

    let between = Input { next_streak: Some(4), ..input(&pod, None, 60) };
    assert_eq!(plan(&between).action, Action::Create { restart_count: 1, crash_streak: 4 });

    let second = container("new", 1, 1, running());
    let plan = plan(&input(&pod, Some(&second), 61));
    let entry = status::container_entry(&plan.status).unwrap();
    assert_eq!((entry.restart_count, entry.ready), (1, true));
    assert_eq!(entry.container_id.as_deref(), Some("docker://new"));
    let last = entry.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.container_id.as_deref()), (3, Some("docker://old")));
    assert_eq!(plan.retry, None);
}

#[test]
fn a_status_that_says_all_is_not_changed_by_telling_it_again() {
    let mut pod = pod("Always", "Pending", &serde_json::Value::Null);
    let running = container("x", 0, 0, running());
    let first = plan(&input(&pod, Some(&running), 60));
    assert!(ready(&first));
    assert_eq!(first.status.pod_ip.as_deref(), Some("172.17.0.2"));
    assert_eq!(first.status.host_ip.as_deref(), Some("192.0.2.1"));
    // As the store gives it back.
    let stored = serde_json::to_value(&first.status).unwrap();
    pod.status = Some(serde_json::from_value(stored).unwrap());
    assert_eq!(plan(&input(&pod, Some(&running), 600)).status, first.status);

    let waiting = container("x", 0, 5, exit(1, 5));
    let first = plan(&input(&pod, Some(&waiting), 60));
    pod.status = Some(first.status.clone());
    assert_eq!(plan(&input(&pod, Some(&waiting), 61)).status, first.status);
}

#[test]
fn conditions_of_others_stay_and_transitions_are_dated() {
    let mut pod = pod("Always", "Pending", &serde_json::Value::Null);
    let foreign = json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z"},
        {"type": "example.org/weather", "status": "False"},
    ]);
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(foreign).unwrap();
    let condition = |plan: &Plan, kind: &str| {
        let conditions = plan.status.conditions.clone().unwrap();
        conditions.into_iter().find(|condition| condition.type_ == kind).unwrap()
    };
    let plan = plan(&input(&pod, Some(&container("x", 0, 0, running())), 60));
    assert_eq!(condition(&plan, "PodScheduled").last_transition_time, Some(status::time(at(1))));
    assert_eq!(condition(&plan, "example.org/weather").status, "False");
    assert_eq!(condition(&plan, "Ready").last_transition_time, Some(status::time(at(60))));
    assert_eq!(plan.status.start_time, Some(status::time(at(60))));
}

#[test]
fn a_failed_attempt_is_told_and_tried_again_later() {
    let pod = pod("Always", "Pending", &serde_json::Value::Null);
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
        let early = plan(&Input { failure: Some(&failure), ..input(&pod, None, 60) });
        assert_eq!((&early.action, early.wake_at), (&Action::Nothing, Some(at(70))));
        assert_eq!(early.retry, Some(Retry { start_failures: failure.count, at: at(70) }));
        assert_eq!(summary(&early), ("Pending".into(), "waiting", reason.into()));
        let entry = status::container_entry(&early.status).unwrap();
        let waiting = entry.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.message.as_deref(), Some(message));

        let due = Input { failure: Some(&failure), ..input(&pod, None, 70) };
        assert_eq!(plan(&due).action, Action::Create { restart_count: 0, crash_streak: 0 });
        let pulling = Input { pulling: true, ..due };
        assert_eq!(plan(&pulling).action, Action::Nothing);
    }
}

#[test]
fn what_is_not_supported_is_told_and_not_tried() {
    let pod = pod("Always", "Pending", &serde_json::Value::Null);
    let unsupported = Unsupported { reason: "CreateContainerConfigError", message: "no".into() };
    let plan = plan(&Input { unsupported: Some(&unsupported), ..input(&pod, None, 60) });
    assert_eq!(plan.action, Action::Nothing);
    let expected = ("Pending".into(), "waiting", "CreateContainerConfigError".into());
    assert_eq!(summary(&plan), expected);
}

#[test]
fn deletion_asks_waits_kills_removes_and_lets_go() {
    let id = || "x".to_owned();
    // grace, container, stop sent at, now -> action, wake at
    #[rustfmt::skip]
    let table = [
        (30, Some(running()), None, 100, Action::Stop { id: id() }, Some(130)),
        (30, Some(running()), Some(100), 129, Action::Nothing, Some(130)),
        (30, Some(running()), Some(100), 130, Action::Kill { id: id() }, Some(140)),
        (0, Some(running()), None, 100, Action::Kill { id: id() }, Some(110)),
        (30, Some(exit(143, 50)), Some(100), 101, Action::Remove { id: id() }, None),
        (30, Some(ContainerState::Created), None, 101, Action::Remove { id: id() }, None),
        (30, None, None, 101, Action::FinishDeletion, None),
    ];
    for (grace, state, stop_sent_at, now, action, wake_at) in table {
        let row = format!("{grace} {state:?} {stop_sent_at:?} {now}");
        for phase in ["Pending", "Running", "Succeeded", "Failed"] {
            let pod = deleted(pod("Always", phase, &was_running(0)), grace);
            let container = state.clone().map(|state| container("x", 0, 0, state));
            let input = input(&pod, container.as_ref(), now);
            let plan = plan(&Input { stop_sent_at: stop_sent_at.map(at), ..input });
            assert_eq!((plan.action, plan.wake_at), (action.clone(), wake_at.map(at)), "{row}");
            assert_eq!(Some(plan.status), pod.status, "{row}");
        }
    }
}

#[test]
fn an_orphan_is_wound_down_with_the_grace_it_was_made_with() {
    let id = || "x".to_owned();
    let orphan = container("x", 0, 0, running());
    let plan = |stop_sent_at: Option<i64>, now| plan_orphan(&orphan, stop_sent_at.map(at), at(now));
    assert_eq!(plan(None, 100), (Action::Stop { id: id() }, Some(at(130))));
    assert_eq!(plan(Some(100), 130), (Action::Kill { id: id() }, Some(at(140))));
    let ended = container("x", 0, 0, exit(0, 1));
    assert_eq!(plan_orphan(&ended, None, at(100)), (Action::Remove { id: id() }, None));
}
