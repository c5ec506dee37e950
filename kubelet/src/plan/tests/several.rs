//! Pods of several containers: the sandbox, init containers and sidecars.

use super::*;

/// A pod with the init containers `i1`, `i2` and the containers `a`, `b`, all never seen before.
fn pair(restart_policy: &str) -> Pod {
    let containers = |names: [&str; 2]| names.map(|name| json!({"name": name, "image": name}));
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u"},
        "spec": {
            "restartPolicy": restart_policy,
            "initContainers": containers(["i1", "i2"]),
            "containers": containers(["a", "b"]),
        },
        "status": {"phase": "Pending"},
    }))
    .unwrap()
}

/// That life of a container, in the sandbox `s`. Its id is name and life, as in `a0`.
fn life(name: &str, restart_count: u32, state: ContainerState) -> Container {
    let mut made =
        container(&format!("{name}{restart_count}"), restart_count, restart_count, state);
    made.identity.container = name.to_owned();
    made.identity.sandbox = Some("s".to_owned());
    made.ip = None;
    made
}

fn sandbox(state: ContainerState) -> Container {
    let mut made = container("s", 0, 0, state);
    made.identity.container = SANDBOX.to_owned();
    made.ip = Some("172.17.0.9".to_owned());
    made
}

fn create(name: &str, restart_count: u32, retired: Option<&str>) -> Action {
    Action::Create {
        container: name.to_owned(),
        life: Life {
            restart_count,
            crash_streak: restart_count,
            sandbox: Some("s".to_owned()),
            pod_ip: Some("172.17.0.9".to_owned()),
        },
        retired: retired.map(str::to_owned),
    }
}

fn stop(id: &str) -> Action {
    Action::Stop { id: id.to_owned() }
}

fn remove(id: &str) -> Action {
    Action::Remove { id: id.to_owned() }
}

/// A case with a sandbox that runs.
fn up(restart_policy: &str, others: impl IntoIterator<Item = Container>) -> Case {
    let mut case = Case::new(pair(restart_policy), others);
    case.seen.push(sandbox(running()));
    case
}

#[test]
fn sandbox_then_init_containers_in_order_then_the_others_at_once() {
    let waits = |what: &str| ("waiting", what.to_owned());
    let mut case = Case::new(pair("Always"), []);
    let plan = case.tell(60);
    let first = Action::CreateSandbox { attempt: 0, crash_streak: 0, replaced: None };
    assert_eq!(plan.actions, [first]);
    case.seen = vec![sandbox(ContainerState::Created)];
    let start = Action::Start { id: "s".into(), container: SANDBOX.into() };
    assert_eq!(case.plan(60).actions, [start]);

    case.seen = vec![sandbox(running())];
    let plan = case.tell(60);
    assert_eq!(plan.actions, [create("i1", 0, None)]);
    assert_eq!(plan.status.pod_ip.as_deref(), Some("172.17.0.9"));
    assert_eq!(shown(&plan, "a"), waits("PodInitializing"));
    assert_eq!(phase(&plan), "Pending");

    case.seen.push(life("i1", 0, running()));
    let plan = case.tell(60);
    assert_eq!((plan.actions.len(), phase(&plan)), (0, "Pending"));
    assert_eq!(shown(&plan, "i2"), waits("PodInitializing"));
    let initialized = condition(&plan, "Initialized");
    assert_eq!(initialized.status, "False");
    let message = initialized.message.as_deref();
    assert_eq!(message, Some("containers with incomplete status: [i1 i2]"));

    case.seen[1] = life("i1", 0, exit(0, 5));
    assert_eq!(case.tell(60).actions, [create("i2", 0, None)]);
    case.seen.push(life("i2", 0, exit(0, 5)));
    let plan = case.tell(60);
    assert_eq!(plan.actions, [create("a", 0, None), create("b", 0, None)]);
    assert_eq!(condition(&plan, "Initialized").status, "True");
    assert!(entry(&plan.status, "i1").ready);

    case.seen.extend([life("a", 0, running()), life("b", 0, ContainerState::Created)]);
    let plan = case.tell(60);
    assert_eq!(plan.actions, [Action::Start { id: "b0".into(), container: "b".into() }]);
    assert!(!ready(&plan));
    *case.seen.last_mut().unwrap() = life("b", 0, running());
    let plan = case.tell(60);
    assert_eq!((plan.actions.len(), phase(&plan), ready(&plan)), (0, "Running", true));
    assert_eq!(case.plan(600).status, plan.status);

    // Whatever becomes of the init containers now, they are not run again.
    case.seen.retain(|container| !container.identity.container.starts_with('i'));
    let plan = case.plan(600);
    assert_eq!((plan.actions.len(), plan.status), (0, case.pod.status.clone().unwrap()));
}

#[test]
fn an_init_container_that_fails_is_run_again_by_the_restart_policy() {
    // policy, streak of the life that failed, now -> action, phase, state
    let table = [
        ("Always", 0, 60, Some(create("i1", 1, Some("i10"))), "Pending", "Error"),
        ("OnFailure", 0, 60, Some(create("i1", 1, Some("i10"))), "Pending", "Error"),
        ("Always", 1, 60, None, "Pending", "CrashLoopBackOff"),
        ("OnFailure", 1, 64, None, "Pending", "CrashLoopBackOff"),
        ("Always", 1, 65, Some(create("i1", 2, Some("i11"))), "Pending", "Error"),
        ("Never", 0, 60, None, "Failed", "Error"),
    ];
    for (policy, streak, now, action, end_phase, reason) in table {
        let case = up(policy, [life("i1", streak, exit(1, 5))]);
        let plan = case.plan(now);
        assert_eq!(plan.actions, Vec::from_iter(action), "{policy} {streak} {now}");
        assert_eq!(phase(&plan), end_phase, "{policy} {streak} {now}");
        assert_eq!(shown(&plan, "i1").1, reason, "{policy} {streak} {now}");
        assert_eq!(shown(&plan, "a").1, "PodInitializing");
    }
}

#[test]
fn the_phase_is_what_all_containers_together_make_of_it() {
    let table = [
        ("Always", running(), running(), "Running", true),
        ("Always", running(), exit(0, 5), "Running", false),
        ("OnFailure", exit(0, 5), exit(0, 5), "Succeeded", false),
        ("OnFailure", exit(0, 5), running(), "Running", false),
        ("OnFailure", exit(0, 5), exit(2, 5), "Running", false),
        ("Never", exit(0, 5), exit(0, 5), "Succeeded", false),
        ("Never", exit(0, 5), exit(2, 5), "Failed", false),
        ("Never", running(), exit(2, 5), "Running", false),
    ];
    for (policy, a, b, expected, is_ready) in table {
        let row = format!("{policy} {a:?} {b:?}");
        let done = ["i1", "i2"].map(|name| life(name, 0, exit(0, 1)));
        let mut case = up(policy, done);
        // Only the second life waits, so that no row begins something new.
        case.seen.extend([life("a", 1, a), life("b", 1, b)]);
        let plan = case.plan(60);
        assert_eq!(plan.actions, [], "{row}");
        assert_eq!((phase(&plan), ready(&plan)), (expected, is_ready), "{row}");
        let unready = condition(&plan, "Ready").message.as_deref();
        if expected == "Running" && !is_ready {
            assert!(unready.unwrap().starts_with("containers with unready status: ["), "{row}");
        }
    }
}

#[test]
fn one_that_fails_leaves_the_others_alone() {
    let done = ["i1", "i2"].map(|name| life(name, 0, exit(0, 1)));
    let mut case = up("Always", done);
    case.seen.extend([life("a", 0, exit(1, 5)), life("b", 0, running())]);
    let plan = case.tell(60);
    assert_eq!(plan.actions, [create("a", 1, Some("a0"))]);
    let failure = StartFailure {
        count: 1,
        reason: "ErrImagePull".into(),
        message: "no".into(),
        retry_at: at(70),
    };
    case.failures.insert("a".into(), failure);
    let plan = case.plan(60);
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(70))));
    assert_eq!(shown(&plan, "a").1, "ErrImagePull");
    assert_eq!(shown(&plan, "b").0, "running");
}

#[test]
fn a_lost_sandbox_takes_all_containers_with_it() {
    let all = || {
        let done = ["i1", "i2"].map(|name| life(name, 0, exit(0, 1)));
        done.into_iter().chain(["a", "b"].map(|name| life(name, 0, running())))
    };
    for lost in [None, Some(sandbox(exit(137, 10)))] {
        let mut case = up("Always", all());
        case.tell(60);
        case.seen = all().chain(lost.clone()).collect();
        // First the others end, as at a deletion.
        assert_eq!(case.plan(100).actions, [stop("a0"), stop("b0")]);
        let ended = ["a", "b"].map(|name| life(name, 0, exit(143, 50)));
        case.seen.retain(|container| !matches!(container.state, ContainerState::Running { .. }));
        case.seen.extend(ended);
        let (attempt, crash_streak) = if lost.is_some() { (1, 1) } else { (0, 0) };
        let replaced = lost.as_ref().map(|_| "s".to_owned());
        let again = Action::CreateSandbox { attempt, crash_streak, replaced };
        let plan = case.tell(101);
        assert_eq!(plan.actions, [again]);
        assert_eq!((phase(&plan), plan.status.pod_ip.as_deref()), ("Running", None));

        // Then everything begins anew, in the new one.
        case.seen.retain(|container| !container.identity.is_sandbox());
        let mut new = sandbox(running());
        new.id = "new".to_owned();
        case.seen.push(new);
        let plan = case.tell(102);
        let life = Life {
            restart_count: 1,
            crash_streak: 1,
            sandbox: Some("new".to_owned()),
            pod_ip: Some("172.17.0.9".to_owned()),
        };
        let retired = Some("i10".to_owned());
        assert_eq!(plan.actions, [Action::Create { container: "i1".into(), life, retired }]);
        assert_eq!(shown(&plan, "a").1, "PodInitializing");
    }
    // What is not to be started twice is not given a second sandbox.
    for (policy, code, ends) in
        [("Never", 0, "Succeeded"), ("Never", 143, "Failed"), ("OnFailure", 0, "Succeeded")]
    {
        let ended = ["a", "b"].map(|name| life(name, 0, exit(code, 50)));
        let done = ["i1", "i2"].map(|name| life(name, 0, exit(0, 1)));
        let case = Case::new(pair(policy), done.into_iter().chain(ended));
        let plan = case.plan(101);
        assert_eq!((plan.actions.len(), phase(&plan)), (0, ends), "{policy} {code}");
    }
}

#[test]
fn a_sandbox_that_cannot_be_made_is_tried_again_later() {
    let mut case = Case::new(pair("Always"), []);
    let failure = StartFailure {
        count: 2,
        reason: "CreateContainerError".into(),
        message: "port is taken".into(),
        retry_at: at(70),
    };
    case.failures.insert(SANDBOX.into(), failure);
    let plan = case.plan(60);
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(70))));
    assert_eq!(shown(&plan, "i1"), ("waiting", "ContainerCreating".to_owned()));
    let told = entry(&plan.status, "a").state.clone().unwrap().waiting.unwrap();
    assert!(told.message.unwrap().contains("port is taken"));
    assert_eq!(case.plan(70).actions.len(), 1);
}

#[test]
fn the_sandbox_and_the_sidecars_go_last() {
    let done = || life("i1", 0, exit(0, 1));
    let mut pod = deleted(pair("Always"), 30);
    pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1].restart_policy =
        Some("Always".to_owned());
    let running_ones = ["i2", "a", "b"].map(|name| life(name, 0, running()));
    let mut case = Case::new(pod, [done(), sandbox(running())].into_iter().chain(running_ones));
    assert_eq!(case.plan(100).actions, [stop("a0"), stop("b0")]);
    case.seen.truncate(3);
    case.seen.extend(["a", "b"].map(|name| life(name, 0, exit(143, 50))));
    let plan = case.tell(101);
    assert_eq!(plan.actions, [stop("i20")]);
    assert_eq!(shown(&plan, "a").0, "terminated");
    case.seen[2] = life("i2", 0, exit(143, 51));
    let all = ["i10", "s", "i20", "a0", "b0"].map(remove);
    assert_eq!(case.plan(102).actions, all);
    case.seen.clear();
    assert_eq!(case.plan(103).actions, [Action::FinishDeletion]);

    // A pod that has ended gives up its sandbox, and keeps the others for their logs.
    let ended = ["a", "b"].map(|name| life(name, 0, exit(0, 5)));
    let mut case = up("Never", ["i1", "i2"].map(|name| life(name, 0, exit(0, 1))));
    case.seen.extend(ended);
    assert_eq!(phase(&case.tell(60)), "Succeeded");
    assert_eq!(case.plan(60).actions, [remove("s")]);
}

#[test]
fn a_sidecar_runs_beside_the_others_and_holds_nobody_up_once_started() {
    let mut pod = pair("OnFailure");
    let inits = pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    inits[0].restart_policy = Some("Always".to_owned());
    inits[0].startup_probe = Some(serde_json::from_value(json!({"exec": {}})).unwrap());
    let mut case = Case::new(pod, [sandbox(running()), life("i1", 0, running())]);
    let plan = case.plan(60);
    assert_eq!((plan.actions.len(), phase(&plan)), (0, "Pending"));
    let results = ProbeResults { started: Some(true), ..ProbeResults::default() };
    case.probes.insert("i10".into(), results);
    assert_eq!(case.plan(60).actions, [create("i2", 0, None)]);
    case.seen.push(life("i2", 0, exit(0, 1)));
    case.seen.extend(["a", "b"].map(|name| life(name, 0, running())));
    let plan = case.tell(60);
    assert_eq!((plan.actions.len(), phase(&plan), ready(&plan)), (0, "Running", true));
    // It is started again while the others run, and not counted among them.
    case.seen[1] = life("i1", 0, exit(0, 5));
    assert_eq!(case.plan(60).actions, [create("i1", 1, Some("i10"))]);
    case.seen[1] = life("i1", 0, running());
    case.seen[3] = life("a", 0, exit(0, 5));
    case.seen[4] = life("b", 0, exit(0, 5));
    assert_eq!(phase(&case.tell(61)), "Succeeded");
    assert_eq!(case.plan(62).actions, [stop("i10")]);
}

#[test]
fn what_the_pod_does_not_declare_is_removed() {
    let mut case = up("Always", [life("i1", 0, running())]);
    case.seen.extend([life("VOLUMES", 0, ContainerState::Created), life("i1", 1, running())]);
    case.seen.push(life("i1", 2, running()));
    assert_eq!(case.plan(60).actions, [remove("i10"), remove("VOLUMES0")]);
}
