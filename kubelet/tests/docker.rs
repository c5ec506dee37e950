//! The kubelet against a real store and a real Docker Engine.
//!
//! The image is made on the spot from a static busybox, so nothing is pulled. Containers and images
//! have names that nobody else uses, and are removed by id at the end.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use api::annotations::{NEXT_RETRY_AT, RETRY_COUNT};
use k8s_openapi::api::core::v1::Pod;
use kubelet::{Config, Running, RuntimeKind};
use serde_json::{Value, json};

use support::{Etcd, Pods, annotation, entry, eventually, is_ready, phase, restarts, waiting};

const BUSYBOX: &str = "/bin/busybox";

/// Runs until it is asked to stop, and obeys at once.
const SERVE: &str = "trap 'exit 0' TERM; /bin/busybox sleep 1000000 & wait";

struct World {
    etcd: Etcd,
    pods: Pods,
    /// Makes the names of nodes, pods and images this test's own.
    tag: String,
}

impl World {
    async fn new() -> Option<Self> {
        let answers = docker(&["version", "--format", "{{.Server.Version}}"]).is_some();
        if !answers || !Path::new(BUSYBOX).exists() {
            support::skip(&format!("this needs a Docker Engine and {BUSYBOX}"));
            return None;
        }
        let etcd = Etcd::start().await?;
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let number = TESTS.fetch_add(1, Ordering::Relaxed);
        let world = Self {
            pods: Pods(etcd.store().api()),
            etcd,
            tag: format!("kt{}x{number}", std::process::id()),
        };
        world.make_image(&world.image());
        Some(world)
    }

    fn image(&self) -> String {
        format!("miniku-test-{}:latest", self.tag)
    }

    fn make_image(&self, name: &str) {
        let tar = Command::new("tar").args(["-cC", "/", "bin/busybox"]).output().unwrap();
        let mut import = Command::new("docker")
            .args(["import", "-", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        import.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
        assert!(import.wait().unwrap().success());
    }

    fn node(&self, number: u32) -> String {
        format!("{}-node-{number}", self.tag)
    }

    fn pod(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    async fn kubelet(&self, node: u32) -> Running {
        kubelet::start(Config {
            store: self.etcd.url.parse().unwrap(),
            node_name: self.node(node),
            runtime: RuntimeKind::Docker,
            allow_host_access: false,
            node_ip: None,
        })
        .await
        .unwrap()
    }

    /// Runs a shell script in a pod, and gives back the pod's name.
    async fn run(&self, name: &str, node: u32, script: &str, spec: Value) -> String {
        let name = self.pod(name);
        let container =
            json!({"image": self.image(), "command": [BUSYBOX, "sh", "-c"], "args": [script]});
        self.pods.run(&name, &self.node(node), container, spec).await;
        name
    }

    /// The names and ids of all containers of a node, also of those that do not run.
    fn containers(&self, node: u32) -> Vec<(String, String)> {
        let label = format!("label=miniku.node={}", self.node(node));
        let listed = docker(&[
            "ps",
            "-a",
            "--no-trunc",
            "--filter",
            &label,
            "--format",
            "{{.Names}} {{.ID}}",
        ]);
        let mut containers: Vec<(String, String)> = listed
            .unwrap()
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect();
        containers.sort();
        containers
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in [1, 2] {
            for (_, id) in self.containers(node) {
                docker(&["rm", "-f", &id]);
            }
        }
        docker(&["rmi", &self.image()]);
    }
}

/// What a docker command prints, if it succeeds.
fn docker(args: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn container_id(pod: &Pod) -> String {
    entry(pod).unwrap().container_id.clone().unwrap().replace("docker://", "")
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
async fn containers_are_started_restored_and_removed() {
    let world = world!();
    let kubelets = (world.kubelet(1).await, world.kubelet(2).await);
    let mut names = Vec::new();
    for (name, node) in [("a", 1), ("b", 1), ("c", 2), ("d", 2)] {
        names.push(world.run(name, node, SERVE, json!({})).await);
    }
    for name in &names {
        let pod = world.pods.until_running(name).await;
        let running = docker(&["inspect", "--format", "{{.Id}} {{.State.Running}}", name]);
        assert_eq!(running, Some(format!("{} true", container_id(&pod))));
        assert!(pod.status.unwrap().pod_ip.is_some());
    }
    let on_node = |node| {
        let named = world.containers(node).into_iter().map(|(name, _)| name);
        named.collect::<Vec<_>>()
    };
    assert_eq!((on_node(1), on_node(2)), (names[..2].to_vec(), names[2..].to_vec()));

    // Removed by somebody: it comes back.
    docker(&["rm", "-f", &names[0]]).unwrap();
    let again = |count| move |pod: &Pod| restarts(pod) == count && is_ready(pod);
    world.pods.until(&names[0], "is back", again(1)).await;
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &names[0]]).unwrap(), "true");

    // Killed: it is restarted at once; killed again: it waits.
    docker(&["kill", &names[1]]).unwrap();
    let killed = world.pods.until(&names[1], "is back", again(1)).await;
    let last = entry(&killed).unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("Error")));
    docker(&["kill", &names[1]]).unwrap();
    let crash_loop = |pod: &Pod| waiting(pod).is_some_and(|(why, _)| why == "CrashLoopBackOff");
    let waits = world.pods.until(&names[1], "waits", crash_loop).await;
    assert!(annotation(&waits, NEXT_RETRY_AT).is_some());
    world.pods.until(&names[1], "is back", again(2)).await;

    for name in &names {
        world.pods.delete(name).await;
    }
    for name in &names {
        world.pods.until_gone(name).await;
    }
    assert_eq!((on_node(1), on_node(2)), (vec![], vec![]));
    kubelets.0.shutdown().await;
    kubelets.1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let node = world.node(1);
    let missing = world.pod("missing");
    let image = "127.0.0.1:1/miniku/absent:1";
    world.pods.run(&missing, &node, json!({"image": image}), json!({})).await;
    let broken = world.pod("broken");
    let container = json!({"image": world.image(), "command": ["/bin/nope"]});
    world.pods.run(&broken, &node, container, json!({})).await;
    let taken = world.pod("taken");
    docker(&["create", "--name", &taken, &world.image(), BUSYBOX, "true"]).unwrap();
    world.run("taken", 1, SERVE, json!({})).await;
    let fine = world.run("fine", 1, SERVE, json!({})).await;

    world.pods.until_running(&fine).await;
    let pull = |pod: &Pod| waiting(pod).is_some_and(|(why, _)| why == "ErrImagePull");
    let pod = world.pods.until(&missing, "says why", pull).await;
    assert_eq!(phase(&pod), "Pending");
    assert!(waiting(&pod).unwrap().1.contains("127.0.0.1:1"), "{:?}", waiting(&pod));
    assert!(annotation(&pod, RETRY_COUNT).is_some() && annotation(&pod, NEXT_RETRY_AT).is_some());
    let crash_loop = |pod: &Pod| waiting(pod).is_some_and(|(why, _)| why == "CrashLoopBackOff");
    let pod = world.pods.until(&broken, "says why", crash_loop).await;
    assert!(waiting(&pod).unwrap().1.contains("/bin/nope"), "{:?}", waiting(&pod));
    let create = |pod: &Pod| waiting(pod).is_some_and(|(why, _)| why == "CreateContainerError");
    let pod = world.pods.until(&taken, "says why", create).await;
    assert_eq!(phase(&pod), "Pending");
    assert!(waiting(&pod).unwrap().1.contains("docker rm"), "{:?}", waiting(&pod));

    // The stranger goes away: the pod runs.
    docker(&["rm", &taken]).unwrap();
    world.pods.until_running(&taken).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_was_killed_is_succeeded_by_one_that_takes_over() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut names = Vec::new();
    for name in ["a", "b", "c", "d"] {
        names.push(world.run(name, 1, SERVE, json!({})).await);
    }
    // Dropped in the middle of creating and starting.
    eventually("the first container is there", async || !world.containers(1).is_empty()).await;
    drop(kubelet);
    let kubelet = world.kubelet(1).await;
    for name in &names {
        let pod = world.pods.until_running(name).await;
        assert_eq!(restarts(&pod), 0);
    }
    let before = world.containers(1);
    assert_eq!(
        before.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    drop(kubelet);
    let at_once = api::DeleteOptions { grace_seconds: Some(0), ..Default::default() };
    world.pods.0.delete(&support::key(&names[3]), &at_once).await.unwrap();
    let kubelet = world.kubelet(1).await;
    eventually("the orphan is removed", async || world.containers(1) == before[..3]).await;
    for name in &names[..3] {
        assert_eq!(restarts(&world.pods.get(name).await.unwrap()), 0);
    }
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_end_as_their_restart_policy_says_and_the_deaf_are_killed() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let never = || json!({"restartPolicy": "Never"});
    let good = world.run("good", 1, "test \"$PWD\" = /bin", never()).await;
    let failed = world.run("failed", 1, "exit 3", never()).await;
    let container = json!({
        "image": world.image(), "command": [BUSYBOX, "sh", "-c", "test \"$PWD $A\" = \"/bin b\""],
        "workingDir": "/bin", "env": [{"name": "A", "value": "b"}],
    });
    let set = world.pod("set");
    world.pods.run(&set, &world.node(1), container, never()).await;
    let grace = json!({"terminationGracePeriodSeconds": 1});
    let deaf =
        world.run("deaf", 1, "trap '' TERM; while :; do /bin/busybox sleep 1; done", grace).await;

    let end = |wanted: &'static str| move |pod: &Pod| phase(pod) == wanted;
    world.pods.until(&good, "fails, being in /", end("Failed")).await;
    let pod = world.pods.until(&failed, "fails", end("Failed")).await;
    let ended = entry(&pod).unwrap().state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.exit_code, 3);
    world.pods.until(&set, "succeeds", end("Succeeded")).await;
    world.pods.until_running(&deaf).await;
    for name in [&good, &failed, &set, &deaf] {
        world.pods.delete(name).await;
        world.pods.until_gone(name).await;
    }
    eventually("nothing is left", async || world.containers(1).is_empty()).await;
    kubelet.shutdown().await;
}
