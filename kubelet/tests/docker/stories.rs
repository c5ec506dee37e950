//! Pods that go wrong, or end: status, counts, reasons and events tell the story, and nothing is left
//! behind. Pods whose probe fails are in [`probes`](super::probes).

use super::*;

fn crash_loops(pod: &Pod) -> bool {
    waiting(pod).is_some_and(|(reason, _)| reason == "CrashLoopBackOff")
}

/// Exit code and reason of the life before.
fn last(pod: &Pod) -> (i32, String) {
    let last = entry(pod).unwrap().last_state.clone().unwrap().terminated.unwrap();
    (last.exit_code, last.reason.unwrap_or_default())
}

/// Status and reason of the pod's Ready condition.
fn readiness(pod: &Pod) -> (String, String) {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    let ready = ready.next().unwrap();
    (ready.status.clone(), ready.reason.clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_crashes_at_once_waits_longer_each_time_whatever_becomes_of_its_kubelet() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let name = world.run("crash", 1, "echo no good; exit 3", json!({})).await;
    let pod = world.pods.until(&name, "waits", crash_loops).await;
    assert_eq!((phase(&pod), restarts(&pod)), ("Running", 1));
    assert_eq!(last(&pod), (3, "Error".to_owned()));
    assert_eq!(readiness(&pod), ("False".to_owned(), "ContainersNotReady".to_owned()));
    assert!(waiting(&pod).unwrap().1.starts_with("back-off 10s"), "{:?}", waiting(&pod));
    assert!(annotation(&pod, NEXT_RETRY_AT).is_some());
    world.until_told(&name, "Created", "Created container: main").await;
    world.until_told(&name, "Started", "Started container main").await;
    world.until_told(&name, "BackOff", "Back-off restarting failed container main").await;

    kubelet.shutdown().await;
    let kubelet = world.kubelet(1).await;
    let longer = |pod: &Pod| crash_loops(pod) && restarts(pod) == 2;
    let pod = world.pods.until(&name, "waits longer", longer).await;
    assert!(waiting(&pod).unwrap().1.starts_with("back-off 20s"), "{:?}", waiting(&pod));
    // The lives that were are there for their logs.
    for life in [name.clone(), format!("{name}__main__1")] {
        assert_eq!(docker(&["logs", &life]).as_deref(), Some("no good"), "{life}");
    }
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_done_has_succeeded() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let name = world.run("done", 1, "exit 0", json!({"restartPolicy": "Never"})).await;
    let pod = world.pods.until(&name, "succeeds", |pod| phase(pod) == "Succeeded").await;
    let end = ended(&pod).unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(restarts(&pod), 0);
    assert_eq!(readiness(&pod), ("False".to_owned(), "PodCompleted".to_owned()));
    world.until_told(&name, "Started", "Started container main").await;
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ignores_sigterm_is_killed_when_its_time_is_over() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let deaf = "trap 'echo heard' TERM; while :; do /bin/busybox sleep 1; done";
    let name = world.run("deaf", 1, deaf, json!({"terminationGracePeriodSeconds": 3})).await;
    let pod = world.pods.until_running(&name).await;
    let id = container_id(&pod);
    world.pods.delete(&name).await;
    world.until_told(&name, "Killing", "Stopping container main").await;
    // It heard, and stays, and so does the pod, until the signal that nobody survives.
    eventually("it was asked first", async || {
        docker(&["logs", &id]).is_none_or(|log| log.contains("heard"))
    })
    .await;
    world.pods.until_gone(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_image_is_missing_says_so_and_tries_again() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let image = &world.elsewhere();
    let name = world.pod("absent");
    let container = json!({"image": image, "command": [BUSYBOX, "sh", "-c", SERVE]});
    world.pods.run(&name, &world.node(1), container, json!({})).await;
    let waits_with =
        |why: &'static str| move |pod: &Pod| waiting(pod).is_some_and(|(reason, _)| reason == why);
    let pod = world.pods.until(&name, "cannot be pulled", waits_with("ErrImagePull")).await;
    assert_eq!(phase(&pod), "Pending");
    assert_eq!(readiness(&pod), ("False".to_owned(), "ContainersNotReady".to_owned()));
    world.until_told(&name, "Pulling", &format!("Pulling image {image:?}")).await;
    world.until_told(&name, "Failed", &format!("Failed to pull image {image:?}: ")).await;
    let pod = world.pods.until(&name, "backs off", waits_with("ImagePullBackOff")).await;
    assert!(waiting(&pod).unwrap().1.starts_with("Back-off pulling image"), "{:?}", waiting(&pod));
    assert_eq!((annotation(&pod, RETRY_COUNT), restarts(&pod)), (Some("2"), 0));
    world.until_told(&name, "BackOff", &format!("Back-off pulling image {image:?}")).await;

    // The image comes, by another way.
    docker(&["tag", &world.image(), image]).unwrap();
    let pod = world.pods.until_running(&name).await;
    assert_eq!((annotation(&pod, RETRY_COUNT), restarts(&pod)), (None, 0));
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_eats_its_memory_limit_is_started_again_and_says_why() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut eater = world.container("main", "x=aaaaaaaa; while :; do x=$x$x; done");
    eater["resources"] = json!({"limits": {"memory": "16Mi"}});
    let spec = json!({"restartPolicy": "OnFailure", "containers": [eater]});
    let name = world.run_pod("eater", 1, &spec).await;
    let pod = world.pods.until(&name, "waits", crash_loops).await;
    assert_eq!(last(&pod), (137, "OOMKilled".to_owned()));
    assert_eq!((phase(&pod), restarts(&pod)), ("Running", 1));
    world.until_told(&name, "BackOff", "Back-off restarting failed container main").await;
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_name_is_taken_or_whose_program_is_missing_says_so() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let broken = world.pod("broken");
    let container = json!({"image": world.image(), "command": ["/bin/nope"]});
    world.pods.run(&broken, &world.node(1), container, json!({})).await;
    let taken = world.pod("taken");
    docker(&["create", "--name", &taken, &world.image(), BUSYBOX, "true"]).unwrap();
    world.run("taken", 1, SERVE, json!({})).await;
    world.until_told(&broken, "Failed", "Error: ").await;
    world.until_told(&broken, "BackOff", "Back-off restarting failed container main").await;
    world.until_told(&taken, "Failed", "Error: ").await;
    let pod = world.pods.until(&broken, "says why", crash_loops).await;
    assert_eq!(last(&pod).1, "StartError");
    docker(&["rm", &taken]).unwrap();
    for name in [&broken, &taken] {
        world.delete(name).await;
    }
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_may_pause_or_ask_and_says_when_it_fails() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let serve = "mkdir /www; echo bye > /www/bye; trap 'exit 0' TERM;
                 /bin/busybox httpd -p 8080 -h /www; /bin/busybox sleep 1000000 & wait";
    let hooked = async |name: &str, hook: Value| {
        let mut container = world.container("main", serve);
        container["lifecycle"] = json!({"preStop": hook});
        world.run_pod(name, 1, &json!({"containers": [container]})).await
    };
    let pauses = hooked("pauses", json!({"sleep": {"seconds": 1}})).await;
    let asks = hooked("asks", json!({"httpGet": {"port": 8080, "path": "/bye"}})).await;
    let fails = hooked("fails", json!({"httpGet": {"port": 8080, "path": "/absent"}})).await;
    for name in [&pauses, &asks, &fails] {
        world.pods.until_running(name).await;
    }
    let listens = || docker(&["exec", &fails, BUSYBOX, "nc", "127.0.0.1", "8080", "-w", "1"]);
    eventually("it listens", async || listens().is_some()).await;
    for name in [&pauses, &asks, &fails] {
        world.delete(name).await;
    }
    world.until_told(&fails, "FailedPreStopHook", "PreStopHook failed: HTTP probe failed").await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}
