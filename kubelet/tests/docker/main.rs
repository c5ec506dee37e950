//! The kubelet against a real store and a real Docker Engine.
//!
//! The image is made on the spot from a static busybox, so nothing is pulled. Containers and images
//! have names that nobody else uses, and are removed by id at the end.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

/// A [`World`]; where there can be none, the test is left out.
macro_rules! world {
    () => {
        match World::new().await {
            Some(world) => world,
            None => return,
        }
    };
}

mod engine;
mod probes;
mod stories;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use api::annotations::{NEXT_RETRY_AT, RETRY_COUNT};
use k8s_openapi::api::core::v1::Pod;
use kubelet::runtime::fake::FakeOptions;
use kubelet::{Config, Running, RuntimeKind};
use serde_json::{Value, json};

use support::{
    Etcd, Pods, annotation, ended, entry, eventually, is_ready, phase, restarts, waiting,
};

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

    /// An image of a registry that does not answer.
    fn elsewhere(&self) -> String {
        format!("127.0.0.1:1/miniku/{}:1", self.tag)
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
        self.kubelet_that(node, false).await
    }

    async fn kubelet_that(&self, node: u32, allow_host_access: bool) -> Running {
        kubelet::start(self.config(node, allow_host_access)).await.unwrap()
    }

    fn config(&self, node: u32, allow_host_access: bool) -> Config {
        Config {
            store: self.etcd.url.parse().unwrap(),
            node_name: self.node(node),
            runtime: RuntimeKind::Docker,
            allow_host_access,
            node_ip: None,
            listen: ([127, 0, 0, 1], 0).into(),
            allow_remote_requests: false,
            hollow: None,
            fake: FakeOptions::default(),
        }
    }

    /// Runs a shell script in a pod, and gives back the pod's name.
    async fn run(&self, name: &str, node: u32, script: &str, spec: Value) -> String {
        let name = self.pod(name);
        let container =
            json!({"image": self.image(), "command": [BUSYBOX, "sh", "-c"], "args": [script]});
        self.pods.run(&name, &self.node(node), container, spec).await;
        name
    }

    /// A container that runs a shell script.
    fn container(&self, name: &str, script: &str) -> Value {
        let command = [BUSYBOX, "sh", "-c", script];
        json!({"name": name, "image": self.image(), "command": command})
    }

    /// Runs a pod as it is written, and gives back its name.
    async fn run_pod(&self, name: &str, node: u32, spec: &Value) -> String {
        let name = self.pod(name);
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let pod = self.pods.0.create(serde_json::from_value(pod).unwrap()).await.unwrap();
        self.pods.0.bind(&pod, &self.node(node)).await.unwrap();
        name
    }

    async fn delete(&self, name: &str) {
        self.pods.delete(name).await;
        self.pods.until_gone(name).await;
    }

    /// Nothing that a kubelet made for the node is left.
    async fn until_clean(&self, node: u32) {
        let label = format!("label=miniku.node={}", self.node(node));
        let volumes = || docker(&["volume", "ls", "-q", "--filter", &label]).unwrap();
        // A pod that has ended goes from the store at once, and its containers after it.
        eventually("nothing is left", async || {
            self.containers(node).is_empty() && volumes().is_empty()
        })
        .await;
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
            let label = format!("label=miniku.node={}", self.node(node));
            for volume in
                docker(&["volume", "ls", "-q", "--filter", &label]).unwrap_or_default().lines()
            {
                docker(&["volume", "rm", volume]);
            }
        }
        docker(&["rmi", &self.image()]);
        docker(&["rmi", &self.elsewhere()]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_containers_share_a_network_and_a_volume() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut init = world.container("init", "echo hello >/data/x");
    let mut server = world.container(
        "server",
        "trap 'exit 0' TERM; /bin/busybox httpd -f -p 127.0.0.1:8080 -h /data & wait",
    );
    let fetch = "trap 'exit 0' TERM; until /bin/busybox wget -qO /data/got 127.0.0.1:8080/x; \
                 do /bin/busybox sleep 0.1; done; /bin/busybox sleep 1000000 & wait";
    let mut client = world.container("client", fetch);
    for container in [&mut init, &mut server, &mut client] {
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    }
    // Everybody may write an emptyDir.
    client["securityContext"] = json!({"runAsUser": 1000});
    let spec = json!({
        "initContainers": [init], "containers": [server, client],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    let name = world.run_pod("many", 1, &spec).await;
    let all_ready = |pod: &Pod| phase(pod) == "Running" && support::is_pod_ready(pod);
    let before = world.pods.until(&name, "runs", all_ready).await;
    let names = || world.containers(1).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let expected = [
        name.clone(),
        format!("{name}__client"),
        format!("{name}__init"),
        format!("{name}__server"),
    ];
    assert_eq!(names(), expected);
    let got = || docker(&["exec", &expected[1], BUSYBOX, "cat", "/data/got"]);
    eventually("one has fetched from the other", async || got().as_deref() == Some("hello")).await;
    let address = docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", &name]).unwrap();
    assert_eq!(before.status.as_ref().unwrap().pod_ip.as_deref(), Some(&*address));

    // One of them dies: the other does not notice.
    docker(&["kill", &expected[3]]).unwrap();
    let server_again =
        |pod: &Pod| all_ready(pod) && entry(pod).is_some_and(|server| server.restart_count == 1);
    let pod = world.pods.until(&name, "serves again", server_again).await;
    let other = |pod: &Pod| pod.status.clone().unwrap().container_statuses.unwrap()[1].clone();
    assert_eq!(other(&pod), other(&before));

    // The network is lost: everything begins anew, by another kubelet just as well.
    kubelet.shutdown().await;
    docker(&["rm", "-f", &name]).unwrap();
    let kubelet = world.kubelet(1).await;
    let anew = |pod: &Pod| all_ready(pod) && other(pod).restart_count == 1;
    let pod = world.pods.until(&name, "is made anew", anew).await;
    assert_eq!(pod.status.unwrap().init_container_statuses.unwrap()[0].restart_count, 1);
    eventually("it has fetched again", async || got().as_deref() == Some("hello")).await;

    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_roots_limits_and_memory_are_as_asked_for() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let b = BUSYBOX;
    let script = format!(
        "set -e; test $({b} id -u):$({b} id -g) = 1000:2000; ! {b} touch /x; {b} touch /disk/x; \
         test $({b} stat -f -c %T /memory) = tmpfs; {b} touch /memory/x; \
         test $({b} hostname) = fixed; test \"$IP\" = $({b} hostname -i)"
    );
    let mut container = world.container("main", &script);
    container["securityContext"] =
        json!({"runAsUser": 1000, "runAsGroup": 2000, "readOnlyRootFilesystem": true});
    container["env"] =
        json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    container["volumeMounts"] = json!([
        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
    ]);
    let spec = json!({
        "restartPolicy": "Never", "hostname": "fixed", "containers": [container],
        "volumes": [
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    });
    let user = world.run_pod("user", 1, &spec).await;
    let mut eater = world.container("main", "x=aaaaaaaa; while :; do x=$x$x; done");
    eater["resources"] = json!({"limits": {"memory": "16Mi", "cpu": "500m"}});
    let spec = json!({"restartPolicy": "Never", "containers": [eater]});
    let eater = world.run_pod("eater", 1, &spec).await;

    let end = |wanted: &'static str| move |pod: &Pod| phase(pod) == wanted;
    world.pods.until(&user, "finds everything in order", end("Succeeded")).await;
    let pod = world.pods.until(&eater, "eats too much", end("Failed")).await;
    let killed = ended(&pod).unwrap();
    assert_eq!((killed.exit_code, killed.reason.as_deref()), (137, Some("OOMKilled")));
    let limits =
        docker(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", &eater]);
    assert_eq!(limits.unwrap(), "16777216 500000000");
    for name in [&user, &eater] {
        world.delete(name).await;
    }
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_to_the_node_only_where_that_is_allowed() {
    let world = world!();
    let kubelets = (world.kubelet(1).await, world.kubelet_that(2, true).await);
    let dir = tempfile::tempdir().unwrap();
    let mut container = world.container("main", SERVE);
    container["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
    let hook = [BUSYBOX, "sh", "-c", "echo said >/host/goodbye"];
    container["lifecycle"] = json!({"preStop": {"exec": {"command": hook}}});
    let spec = json!({
        "hostNetwork": true, "containers": [container],
        "volumes": [{"name": "host", "hostPath": {"path": dir.path()}}],
    });
    let refused = world.run_pod("refused", 1, &spec).await;
    let allowed = world.run_pod("allowed", 2, &spec).await;
    let blocked = |pod: &Pod| waiting(pod).is_some_and(|(why, _)| why == "Blocked");
    let pod = world.pods.until(&refused, "is refused", blocked).await;
    assert!(waiting(&pod).unwrap().1.starts_with("spec.hostNetwork "), "{:?}", waiting(&pod));
    assert_eq!((phase(&pod), world.containers(1).len()), ("Pending", 0));

    let status = world.pods.until_running(&allowed).await.status.unwrap();
    assert_eq!(status.pod_ip, status.host_ip);
    for name in [&refused, &allowed] {
        world.delete(name).await;
    }
    let said = std::fs::read_to_string(dir.path().join("goodbye")).unwrap();
    assert_eq!(said, "said\n", "the preStop hook ran before it was stopped");
    world.until_clean(1).await;
    world.until_clean(2).await;
    kubelets.0.shutdown().await;
    kubelets.1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_deleted_while_they_are_made_leave_nothing_behind() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut names = Vec::new();
    for number in 0..6 {
        let mut first = world.container("first", SERVE);
        first["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let spec = json!({
            "terminationGracePeriodSeconds": 5,
            "initContainers": [world.container("init", "true")],
            "containers": [first, world.container("second", SERVE)],
            "volumes": [{"name": "data", "emptyDir": {}}],
        });
        names.push(world.run_pod(&format!("short-{number}"), 1, &spec).await);
    }
    // Each is caught at another stage.
    for (stage, name) in names.iter().enumerate() {
        let made = || world.containers(1).iter().filter(|(one, _)| one.starts_with(name)).count();
        eventually("it has come that far", async || made() >= stage.min(4)).await;
        world.pods.delete(name).await;
    }
    for name in &names {
        world.pods.until_gone(name).await;
    }
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_means_what_the_restart_policy_says() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut names = Vec::new();
    for (policy, script) in
        [("Always", "true"), ("OnFailure", "true"), ("OnFailure", "exit 4"), ("Never", "true")]
    {
        let spec =
            json!({"restartPolicy": policy, "containers": [world.container("main", script)]});
        let name = format!("{}-{}", policy.to_lowercase(), names.len());
        names.push(world.run_pod(&name, 1, &spec).await);
    }
    let failing = json!({
        "restartPolicy": "Never", "initContainers": [world.container("init", "exit 5")],
        "containers": [world.container("main", SERVE)],
    });
    names.push(world.run_pod("init-fails", 1, &failing).await);
    let waits = |pod: &Pod| {
        waiting(pod).is_some_and(|(why, _)| why == "CrashLoopBackOff") && phase(pod) == "Running"
    };
    let last = |pod: &Pod| entry(pod).unwrap().last_state.clone().unwrap().terminated.unwrap();
    let pod = world.pods.until(&names[0], "is run again and again", waits).await;
    assert_eq!((last(&pod).exit_code, last(&pod).reason.as_deref()), (0, Some("Completed")));
    assert_eq!(restarts(&pod), 1);
    let pod = world.pods.until(&names[2], "is run again and again", waits).await;
    assert_eq!((last(&pod).exit_code, last(&pod).reason.as_deref()), (4, Some("Error")));
    // The life before is there for its log.
    let lives =
        docker(&["inspect", "-f", "{{.State.ExitCode}}", &format!("{}__main__0", names[2])]);
    assert_eq!(lives.as_deref(), Some("4"));
    let end = |wanted: &'static str| move |pod: &Pod| phase(pod) == wanted;
    for name in [&names[1], &names[3]] {
        let pod = world.pods.until(name, "succeeds", end("Succeeded")).await;
        assert_eq!(restarts(&pod), 0);
    }
    let pod = world.pods.until(&names[4], "fails with its init container", end("Failed")).await;
    assert_eq!(waiting(&pod).unwrap().0, "PodInitializing");
    for name in &names {
        world.delete(name).await;
    }
    world.until_clean(1).await;
    kubelet.shutdown().await;
}
