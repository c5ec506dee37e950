//! A store to test against: Debian's etcd, in a directory and on ports of its own.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::{Api, Client, ClientConfig, Clock, ObjectKey, Store};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

/// What a test waits for at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says why a test is left out, past the test runner's capture; fails it when none may be.
pub(crate) fn skip(missing: &str) {
    assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
}

/// A running etcd; it ends with this value.
pub(crate) struct Etcd {
    pub(crate) child: Child,
    _dir: TempDir,
    pub(crate) url: String,
}

impl Etcd {
    /// Starts one, or says that there is none on this machine.
    pub(crate) async fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        let dir = TempDir::new().unwrap();
        // Both are free at once, so they differ; somebody else may take one before etcd does.
        let ports = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")]
            .map(|listener| listener.unwrap().local_addr().unwrap().port());
        let [url, peer_url] = ports.map(|port| format!("http://127.0.0.1:{port}"));
        let child = Command::new("etcd")
            .args(["--data-dir", dir.path().to_str().unwrap()])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(["--unsafe-no-fsync", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { child, _dir: dir, url };
        let store = etcd.store();
        eventually("etcd answers", async || store.client().status().await.is_ok()).await;
        Some(etcd)
    }

    pub(crate) fn store(&self) -> Store {
        let config = ClientConfig::new(&self.url).unwrap();
        Store::new(Client::new(config).unwrap(), Clock::system())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The pods of a test.
pub(crate) struct Pods(pub(crate) Api<Pod>);

impl Pods {
    /// Makes a pod with one container and binds it to a node.
    pub(crate) async fn run(&self, name: &str, node: &str, container: Value, spec: Value) -> Pod {
        let mut container = container;
        container["name"] = json!("main");
        let mut spec = spec;
        spec["containers"] = json!([container]);
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }));
        let pod = self.0.create(pod.unwrap()).await.unwrap();
        self.0.bind(&pod, node).await.unwrap()
    }

    pub(crate) async fn get(&self, name: &str) -> Option<Pod> {
        self.0.find(&key(name)).await.unwrap()
    }

    /// Waits until a pod is as wished, and gives it back.
    pub(crate) async fn until(&self, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Pod {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            last = self.get(name).await;
            if let Some(pod) = last.take_if(|pod| holds(pod)) {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("in vain: {name} {what}: {last:#?}");
    }

    pub(crate) async fn until_running(&self, name: &str) -> Pod {
        self.until(name, "runs", is_ready).await
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.0.delete(&key(name), &api::DeleteOptions::default()).await.unwrap();
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        eventually(&format!("{name} is gone"), async || self.get(name).await.is_none()).await;
    }
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn entry(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    entry(pod).is_some_and(|entry| entry.ready)
}

/// Whether the pod as a whole is ready.
#[allow(dead_code, reason = "not every test file asks")]
pub(crate) fn is_pod_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How the pod's first container ended.
#[allow(dead_code, reason = "not every test file asks")]
pub(crate) fn ended(pod: &Pod) -> Option<ContainerStateTerminated> {
    entry(pod)?.state.clone()?.terminated
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    entry(pod).map_or(0, |entry| entry.restart_count)
}

/// Reason and message of a container that waits.
pub(crate) fn waiting(pod: &Pod) -> Option<(String, String)> {
    let waiting = entry(pod)?.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
}

pub(crate) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}
