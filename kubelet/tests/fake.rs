//! The kubelet against a real store, with containers that only exist in memory.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

mod support;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use api::annotations::{NEXT_RETRY_AT, RETRY_COUNT};
use api::{Error, ObjectKey, Store};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kubelet::runtime::ContainerState;
use kubelet::runtime::fake::{FakeOptions, FakeRuntime, Script};
use kubelet::{Config, Running, RuntimeKind};
use serde_json::json;

use support::{Etcd, Pods, annotation, entry, eventually, is_ready, phase, restarts, waiting};

struct World {
    etcd: Etcd,
    store: Store,
    pods: Pods,
    engine: Arc<FakeRuntime>,
}

impl World {
    async fn new() -> Option<Self> {
        let etcd = Etcd::start().await?;
        let store = etcd.store();
        let pods = Pods(store.api());
        Some(Self { etcd, store, pods, engine: FakeRuntime::new(4, 8 << 30) })
    }

    async fn kubelet(&self, node: &str) -> Running {
        self.kubelets(node, None).await
    }

    async fn kubelets(&self, node: &str, hollow: Option<NonZeroU32>) -> Running {
        let config = Config {
            store: self.etcd.url.parse().unwrap(),
            node_name: node.into(),
            runtime: RuntimeKind::Fake,
            allow_host_access: false,
            hollow,
            fake: FakeOptions::default(),
            node_ip: Some("192.0.2.7".parse().unwrap()),
            listen: ([127, 0, 0, 1], 0).into(),
            allow_remote_requests: false,
        };
        kubelet::start_with(config, self.engine.clone()).await.unwrap()
    }

    /// The names of all containers but those that were succeeded by another life.
    fn names(&self) -> Vec<String> {
        let mut names = self.all_names();
        names.retain(|name| !name.contains("__"));
        names
    }

    fn all_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.engine.containers().into_iter().map(|container| container.name).collect();
        names.sort();
        names
    }
}

impl World {
    /// The store stops answering, or answers again.
    fn signal_store(&self, signal: &str) {
        let pid = self.etcd.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }
}

/// The status and message of a node's Ready condition.
async fn node_ready(store: &Store, node: &str) -> Option<(String, String)> {
    let found = store.api::<Node>().find(&ObjectKey::cluster(node)).await;
    let node = match found {
        Ok(node) => node?,
        Err(Error::Store(_)) => return None,
        Err(error) => panic!("{error}"),
    };
    let conditions = node.status?.conditions?;
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status, ready.message.unwrap_or_default()))
}

macro_rules! world {
    () => {
        match World::new().await {
            Some(world) => world,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_are_told_of_and_go() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    for name in ["web-1", "web-2"] {
        world.pods.run(name, "node-1", json!({"image": "nginx"}), json!({})).await;
    }
    world.pods.run("elsewhere", "node-2", json!({"image": "nginx"}), json!({})).await;
    for name in ["web-1", "web-2"] {
        let pod = world.pods.until_running(name).await;
        let status = pod.status.as_ref().unwrap();
        assert_eq!(phase(&pod), "Running");
        assert_eq!(status.host_ip.as_deref(), Some("192.0.2.7"));
        assert!(status.pod_ip.is_some() && status.start_time.is_some());
        assert!(entry(&pod).unwrap().container_id.as_ref().unwrap().starts_with("fake://"));
        let conditions = status.conditions.as_ref().unwrap();
        for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
            let found = conditions.iter().filter(|condition| condition.type_ == kind);
            assert_eq!(found.map(|c| c.status.as_str()).collect::<Vec<_>>(), ["True"], "{kind}");
        }
    }
    assert_eq!(world.names(), ["web-1", "web-2"]);
    world.pods.delete("web-1").await;
    world.pods.until_gone("web-1").await;
    assert_eq!(world.names(), ["web-2"]);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hollow_nodes_are_nodes_each_with_its_own_pods() {
    let world = world!();
    let kubelets = world.kubelets("hollow", NonZeroU32::new(150)).await;
    let nodes: Vec<String> = (1..=150).map(|number| format!("hollow-{number:04}")).collect();
    for node in &nodes {
        let pod = format!("on-{node}");
        world.pods.run(&pod, node, json!({"image": "nginx"}), json!({})).await;
    }
    for node in &nodes {
        world.pods.until_running(&format!("on-{node}")).await;
        eventually("each is ready", async || {
            node_ready(&world.store, node).await.is_some_and(|(status, _)| status == "True")
        })
        .await;
    }
    assert_eq!(world.all_names().len(), nodes.len());
    for container in world.engine.containers() {
        assert_eq!(container.name, format!("on-{}", container.identity.node));
    }
    let leases = world.store.api::<Lease>().list(&api::Scope::All).await.unwrap();
    let beats: BTreeSet<_> =
        leases.items.into_iter().filter_map(|lease| lease.spec?.renew_time).collect();
    assert_eq!(beats.len(), nodes.len(), "no two beat at one moment");
    kubelets.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_registers_and_beats() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    eventually("the node is ready", async || {
        node_ready(&world.store, "node-1").await.is_some_and(|(status, _)| status == "True")
    })
    .await;
    let node = world.store.api::<Node>().get(&ObjectKey::cluster("node-1")).await.unwrap();
    let status = node.status.unwrap();
    assert_eq!(status.capacity.as_ref().unwrap()["cpu"].0, "4");
    assert_eq!(status.capacity.unwrap()["memory"].0, "8388608Ki");
    assert!(status.node_info.unwrap().container_runtime_version.starts_with("fake://"));
    let leases = world.store.api::<Lease>();
    let lease = ObjectKey::namespaced("kube-node-lease", "node-1");
    let renewed = async || leases.get(&lease).await.unwrap().spec.unwrap().renew_time.unwrap();
    let first = renewed().await;
    eventually("the lease is renewed", async || renewed().await > first).await;

    world.engine.set_down(true);
    eventually("the node tells that its engine is gone", async || {
        let told = node_ready(&world.store, "node-1").await;
        told.is_some_and(|(status, why)| status == "False" && why.contains("cannot be reached"))
    })
    .await;
    world.engine.set_down(false);
    eventually("the node is ready again", async || {
        node_ready(&world.store, "node-1").await.is_some_and(|(status, _)| status == "True")
    })
    .await;

    // Somebody deletes the node: its kubelet registers it again.
    world
        .store
        .api::<Node>()
        .delete(&ObjectKey::cluster("node-1"), &Default::default())
        .await
        .unwrap();
    eventually("the node is back", async || {
        node_ready(&world.store, "node-1").await.is_some_and(|(status, _)| status == "True")
    })
    .await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_kubelet_takes_its_containers_over() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    for name in ["stays", "goes", "goes-at-once", "ends"] {
        world.pods.run(name, "node-1", json!({"image": "nginx"}), json!({})).await;
    }
    world.pods.run("other", "node-2", json!({"image": "nginx"}), json!({})).await;
    let other = world.kubelet("node-2").await;
    for name in ["stays", "goes", "goes-at-once", "ends", "other"] {
        world.pods.until_running(name).await;
    }
    let before = world.pods.get("stays").await.unwrap();
    drop(kubelet);

    world.pods.delete("goes").await;
    let at_once = api::DeleteOptions { grace_seconds: Some(0), ..Default::default() };
    world.pods.0.delete(&support::key("goes-at-once"), &at_once).await.unwrap();
    world.engine.end("ends", 3);
    world.pods.run("new", "node-1", json!({"image": "nginx"}), json!({})).await;

    let kubelet = world.kubelet("node-1").await;
    world.pods.until_gone("goes").await;
    world.pods.until_running("new").await;
    let ended = world.pods.until("ends", "was restarted", |pod| restarts(pod) == 1).await;
    let last = entry(&ended).unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 3);
    eventually("the orphan is removed", async || {
        world.names() == ["ends", "new", "other", "stays"]
    })
    .await;
    let after = world.pods.get("stays").await.unwrap();
    assert_eq!(entry(&after), entry(&before));
    kubelet.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_and_losses_are_made_good_and_counted() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    world.pods.run("web", "node-1", json!({"image": "nginx"}), json!({})).await;
    let first = world.pods.until_running("web").await;

    world.engine.end("web", 137);
    let second =
        world.pods.until("web", "is back", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    assert_ne!(entry(&first).unwrap().container_id, entry(&second).unwrap().container_id);
    assert_eq!(annotation(&second, NEXT_RETRY_AT), None);

    world.engine.lose("web");
    let third = world.pods.until("web", "is back", |pod| restarts(pod) == 2 && is_ready(pod)).await;
    let last = entry(&third).unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));

    // It keeps dying: now it waits, and says until when.
    world.engine.end("web", 1);
    let waits = world
        .pods
        .until("web", "waits", |pod| waiting(pod).is_some_and(|(r, _)| r == "CrashLoopBackOff"))
        .await;
    assert_eq!((phase(&waits), restarts(&waits)), ("Running", 2));
    assert!(annotation(&waits, NEXT_RETRY_AT).is_some());
    // A new kubelet waits on, and starts it when it is time.
    kubelet.shutdown().await;
    let kubelet = world.kubelet("node-1").await;
    let fourth =
        world.pods.until("web", "is back", |pod| restarts(pod) == 3 && is_ready(pod)).await;
    assert_eq!(annotation(&fourth, NEXT_RETRY_AT), None);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_end_stay_ended() {
    let world = world!();
    let ends =
        |code| Script { exit_after: Some((Duration::from_millis(50), code)), ..Script::default() };
    world.engine.script("good", ends(0));
    world.engine.script("bad", ends(1));
    let kubelet = world.kubelet("node-1").await;
    for (name, image, policy) in
        [("done", "good", "OnFailure"), ("over", "good", "Never"), ("failed", "bad", "Never")]
    {
        let spec = json!({"restartPolicy": policy});
        world.pods.run(name, "node-1", json!({"image": image}), spec).await;
    }
    for (name, end) in [("done", "Succeeded"), ("over", "Succeeded"), ("failed", "Failed")] {
        let pod = world.pods.until(name, end, |pod| phase(pod) == end).await;
        assert_eq!(restarts(&pod), 0);
        world.pods.delete(name).await;
        world.pods.until_gone(name).await;
    }
    eventually("nothing is left", async || world.all_names().is_empty()).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why_and_holds_nobody_up() {
    let world = world!();
    let pull_error = Some("manifest unknown".into());
    world.engine.script("missing", Script { pull_error, ..Script::default() });
    let start_error = Some("no such file: /bin/nope".into());
    world.engine.script("broken", Script { start_error, ..Script::default() });
    let start_delay = Duration::from_secs(3600);
    world.engine.script("stuck", Script { start_delay, ..Script::default() });
    let kubelet = world.kubelet("node-1").await;
    world.pods.run("stuck", "node-1", json!({"image": "stuck"}), json!({})).await;
    world.pods.run("missing", "node-1", json!({"image": "missing"}), json!({})).await;
    world.pods.run("broken", "node-1", json!({"image": "broken"}), json!({})).await;
    let never = json!({"image": "absent", "imagePullPolicy": "Never"});
    world.pods.run("never", "node-1", never, json!({})).await;
    let two = json!({"image": "nginx", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    world.pods.run("volumes", "node-1", two, json!({})).await;
    world.pods.run("fine", "node-1", json!({"image": "nginx"}), json!({})).await;

    world.pods.until_running("fine").await;
    let reason = |wanted: &'static str| {
        move |pod: &_| waiting(pod).is_some_and(|(reason, _)| reason == wanted)
    };
    let missing = world.pods.until("missing", "says why", reason("ErrImagePull")).await;
    assert_eq!(phase(&missing), "Pending");
    assert_eq!(waiting(&missing).unwrap().1, "manifest unknown");
    assert_eq!(annotation(&missing, RETRY_COUNT), Some("1"));
    assert!(annotation(&missing, NEXT_RETRY_AT).is_some());
    world.pods.until("never", "says why", reason("ErrImageNeverPull")).await;
    world.pods.until("volumes", "says why", reason("CreateContainerConfigError")).await;
    let broken = world.pods.until("broken", "says why", reason("CrashLoopBackOff")).await;
    assert!(waiting(&broken).unwrap().1.contains("no such file: /bin/nope"));
    assert_eq!((phase(&broken), restarts(&broken)), ("Running", 1));

    // The image appears: the pod runs without anybody's doing.
    world.engine.script("missing", Script::default());
    let fixed = world.pods.until_running("missing").await;
    assert_eq!(annotation(&fixed, RETRY_COUNT), None);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ignores_its_signal_is_killed_after_its_grace() {
    let world = world!();
    world.engine.script("deaf", Script { ignores_stop: true, ..Script::default() });
    let kubelet = world.kubelet("node-1").await;
    let grace = json!({"terminationGracePeriodSeconds": 1});
    world.pods.run("deaf", "node-1", json!({"image": "deaf"}), grace).await;
    world.pods.until_running("deaf").await;
    world.pods.delete("deaf").await;
    // It is given its second, during which it is still there.
    assert!(world.pods.get("deaf").await.unwrap().metadata.deletion_timestamp.is_some());
    world.pods.until_gone("deaf").await;
    assert!(world.all_names().is_empty());
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_containers_run_on_and_are_restarted() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    world.pods.run("web", "node-1", json!({"image": "nginx"}), json!({})).await;
    world.pods.until_running("web").await;

    world.signal_store("STOP");
    world.engine.end("web", 9);
    eventually("it is restarted though nobody can be told", async || {
        let containers = world.engine.containers();
        containers.iter().any(|container| {
            container.identity.restart_count == 1
                && matches!(container.state, ContainerState::Running { .. })
        })
    })
    .await;
    world.signal_store("CONT");
    let told = world.pods.until("web", "is told of", |pod| restarts(pod) == 1).await;
    let last = entry(&told).unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 9);
    assert_eq!(world.names(), ["web"]);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_made_again_under_its_name_is_another_pod() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    world.pods.run("web", "node-1", json!({"image": "nginx"}), json!({})).await;
    let first = world.pods.until_running("web").await;
    let at_once = api::DeleteOptions { grace_seconds: Some(0), ..Default::default() };
    world.pods.0.delete(&support::key("web"), &at_once).await.unwrap();
    world.pods.run("web", "node-1", json!({"image": "nginx"}), json!({})).await;
    let second = world.pods.until_running("web").await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert_eq!(restarts(&second), 0);
    assert_ne!(entry(&first).unwrap().container_id, entry(&second).unwrap().container_id);
    assert_eq!(world.names(), ["web"]);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_containers_live_and_die_together() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    let container = |name: &str| json!({"name": name, "image": "nginx"});
    let spec = json!({
        "initContainers": [container("init")], "containers": [container("a"), container("b")],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    let pod = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    let pod = world.pods.0.create(serde_json::from_value(pod).unwrap()).await.unwrap();
    world.pods.0.bind(&pod, "node-1").await.unwrap();
    let pod = world.pods.until("web", "is ready", support::is_pod_ready).await;
    assert!(pod.status.unwrap().pod_ip.is_some());
    assert_eq!(world.all_names(), ["web", "web__a", "web__b", "web__init"]);
    assert_eq!(world.engine.volumes().len(), 1);

    world.engine.end("web__a", 1);
    let again = |pod: &_| restarts(pod) == 1 && support::is_pod_ready(pod);
    world.pods.until("web", "is ready again", again).await;
    assert_eq!(world.all_names(), ["web", "web__a", "web__a__0", "web__b", "web__init"]);

    world.pods.delete("web").await;
    world.pods.until_gone("web").await;
    assert_eq!(world.all_names(), [""; 0]);
    assert_eq!(world.engine.volumes(), [""; 0]);
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_say_what_fake_containers_do() {
    let world = world!();
    let kubelet = world.kubelet("node-1").await;
    let run = async |name: &str, annotations: serde_json::Value, policy: &str| {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"restartPolicy": policy, "containers": [{"name": "main", "image": "nginx"}]},
        });
        let pod = world.pods.0.create(serde_json::from_value(pod).unwrap()).await.unwrap();
        world.pods.0.bind(&pod, "node-1").await.unwrap();
    };
    let exits = |code: &str| json!({"fake.miniku.dev/exit-after": "20ms", "fake.miniku.dev/exit-code": code});
    run("fails", exits("7"), "Never").await;
    run("succeeds", exits("0"), "OnFailure").await;
    run("crashes", exits("1"), "Always").await;
    run("broken", json!({"fake.miniku.dev/start-error": "no such file"}), "Always").await;
    run("unclear", json!({"fake.miniku.dev/exit-after": "soon"}), "Always").await;
    let pod = world.pods.until("fails", "fails", |pod| phase(pod) == "Failed").await;
    assert_eq!(support::ended(&pod).unwrap().exit_code, 7);
    world.pods.until("succeeds", "succeeds", |pod| phase(pod) == "Succeeded").await;
    let reason = |wanted: &'static str| {
        move |pod: &_| waiting(pod).is_some_and(|(reason, _)| reason == wanted)
    };
    for name in ["crashes", "broken"] {
        let pod = world.pods.until(name, "waits", reason("CrashLoopBackOff")).await;
        assert_eq!(restarts(&pod), 1);
    }
    let pod = world.pods.until("unclear", "says why", reason("CreateContainerError")).await;
    assert!(waiting(&pod).unwrap().1.contains("fake.miniku.dev/exit-after"));
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_stuck_containers_hold_nobody_up() {
    let world = world!();
    let start_delay = Duration::from_secs(3600);
    world.engine.script("stuck", Script { start_delay, ..Script::default() });
    let kubelet = world.kubelet("node-1").await;
    // More than are worked on side by side.
    for number in 0..70 {
        let name = format!("stuck-{number}");
        world.pods.run(&name, "node-1", json!({"image": "stuck"}), json!({})).await;
    }
    eventually("all are being started", async || world.names().len() >= 64).await;
    world.pods.run("fine", "node-1", json!({"image": "nginx"}), json!({})).await;
    world.pods.until_running("fine").await;
    drop(kubelet);
}
