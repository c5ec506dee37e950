//! An engine that is stopped, or killed, and started again under running pods: the node says so, and
//! the pods come back.
//!
//! The engine is one of this test's own, in a network of its own, so that it leaves the machine's
//! engine alone.

use std::fs::File;
use std::process::Child;
use std::sync::Arc;

use api::ObjectKey;
use k8s_openapi::api::core::v1::Node;
use kubelet::runtime::docker::DockerRuntime;
use tempfile::TempDir;

use super::*;

/// A Docker Engine.
struct Engine {
    dir: TempDir,
    process: Option<Child>,
}

impl Engine {
    /// Starts one, where that can be done.
    async fn start() -> Option<Self> {
        let there = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            let command = command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if !there("dockerd", &["--version"]) || !there("unshare", &["--net", "true"]) {
            support::skip("this needs dockerd, and the right to run one");
            return None;
        }
        let mut engine = Self { dir: TempDir::new().unwrap(), process: None };
        std::fs::write(engine.path("daemon.json"), "{}").unwrap();
        engine.go().await;
        Some(engine)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts it, again, with what it had.
    async fn go(&mut self) {
        let [config, data, exec, pid] =
            ["daemon.json", "data", "exec", "pid"].map(|name| self.path(name));
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let socket = format!("unix://{}", self.path("docker.sock"));
        // Without iptables there is nothing of the machine's that it could touch.
        let process = Command::new("unshare")
            .args(["--net", "dockerd", "--config-file", &config, "--host", &socket])
            .args(["--data-root", &data, "--exec-root", &exec, "--pidfile", &pid])
            .args(["--iptables=false", "--ip-forward=false", "--storage-driver=vfs"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(process.unwrap());
        eventually("the engine answers", async || self.docker(&["version"]).is_some()).await;
    }

    fn docker(&self, args: &[&str]) -> Option<String> {
        let socket = format!("unix://{}", self.path("docker.sock"));
        docker(&[&["--host", &*socket], args].concat())
    }

    /// Ends it with that signal, and waits until it is gone.
    fn end(&mut self, signal: &str) {
        if let Some(mut process) = self.process.take() {
            let pid = process.id().to_string();
            assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            process.wait().unwrap();
        }
    }

    /// An engine that was killed leaves its directory mounted onto itself, as often as it was.
    fn unmount(&self) {
        let mut umount = Command::new("umount");
        umount.arg(self.path("data")).stdout(Stdio::null()).stderr(Stdio::null());
        while umount.status().is_ok_and(|status| status.success()) {}
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for id in self.docker(&["ps", "-aq"]).unwrap_or_default().lines() {
            self.docker(&["rm", "-f", id]);
        }
        self.end("TERM");
        self.unmount();
    }
}

/// Waits until the node's Ready condition is so, and gives back its message.
async fn until_node(world: &World, status: &str) -> String {
    let nodes = world.etcd.store().api::<Node>();
    let key = ObjectKey::cluster(&world.node(1));
    let mut message = None;
    eventually(&format!("the node is {status}"), async || {
        let node = nodes.find(&key).await.unwrap();
        let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
        message = ready.filter(|ready| ready.status == status).and_then(|ready| ready.message);
        message.is_some()
    })
    .await;
    message.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_back_when_their_engine_does() {
    let world = world!();
    let Some(mut engine) = Engine::start().await else { return };
    engine.docker(&["import", &tar_of_busybox(&engine), &world.image()]).unwrap();
    let runtime = DockerRuntime::connect_to(&engine.path("docker.sock")).await.unwrap();
    let kubelet = kubelet::start_with(world.config(1, false), Arc::new(runtime)).await.unwrap();
    until_node(&world, "True").await;

    let always = world.run("always", 1, SERVE, json!({})).await;
    let never = world.run("never", 1, SERVE, json!({"restartPolicy": "Never"})).await;
    let both = json!({
        "containers": [world.container("first", SERVE), world.container("second", SERVE)],
    });
    let several = world.run_pod("several", 1, &both).await;
    for name in [&always, &never, &several] {
        world.pods.until(name, "runs", support::is_pod_ready).await;
    }

    engine.end("TERM");
    let why = until_node(&world, "False").await;
    assert!(why.contains("cannot be reached") || why.contains("does not answer"), "{why}");
    // What is new meanwhile waits, what is deleted waits, and what was there is as it was last seen.
    let late = world.run("late", 1, SERVE, json!({})).await;
    let pod = world.pods.get(&always).await.unwrap();
    assert_eq!((phase(&pod), restarts(&pod)), ("Running", 0));
    engine.go().await;
    until_node(&world, "True").await;
    let is_back = |pod: &Pod| support::is_pod_ready(pod) && restarts(pod) == 1;
    for name in [&always, &several] {
        world.pods.until(name, "is back", is_back).await;
    }
    world.pods.until(&never, "has ended", |pod| phase(pod) == "Succeeded").await;
    world.pods.until(&late, "runs", support::is_pod_ready).await;

    // Killed, with nothing told to anybody.
    engine.end("KILL");
    until_node(&world, "False").await;
    engine.go().await;
    until_node(&world, "True").await;
    let is_back = |pod: &Pod| support::is_pod_ready(pod) && restarts(pod) >= 1;
    for name in [&always, &several, &late] {
        world.pods.until(name, "is back again", is_back).await;
        let runs = engine.docker(&["inspect", "-f", "{{.State.Running}}", name]);
        assert_eq!(runs.as_deref(), Some("true"), "{name}");
    }
    for name in [&always, &never, &several, &late] {
        world.delete(name).await;
    }
    eventually("nothing is left", async || engine.docker(&["ps", "-aq"]).as_deref() == Some(""))
        .await;
    kubelet.shutdown().await;
}

/// A file with an image's content.
fn tar_of_busybox(engine: &Engine) -> String {
    let path = engine.path("busybox.tar");
    let made = Command::new("tar").args(["-cC", "/", "-f", &path, "bin/busybox"]).status();
    assert!(made.unwrap().success());
    path
}
