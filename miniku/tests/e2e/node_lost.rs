//! A node that is lost with all that runs on it: its pods run elsewhere, none twice, and the node
//! comes back clean.

use std::process::Command;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::control_plane::{ControlPlane, node_is_ready};
use crate::support::docker::{BUSYBOX, Container, Containers, docker, turn};
use crate::support::flat::{FlatPod, pods, pods_run, replicaset};
use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::{MINIKU, Process};
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::wait::{holds, wait_for};

const PODS: usize = 20;
/// With the defaults it takes 15 s until a node counts as lost, and 30 s more until its pods move:
/// with a busy Docker Engine that is too near to what a test waits for at most.
const IMPATIENT: [&str; 4] =
    ["--node-monitor-grace-period", "8s", "--default-unreachable-toleration-seconds", "5"];

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_node_that_dies_run_elsewhere_and_it_comes_back_clean() {
    if !have(&[Need::Docker]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("lost");
    let store = Store::start(&scratch, 1).await;
    let mut plane =
        ControlPlane::start_with(&scratch, &store.urls(), "docker", &["node-1"], &IMPATIENT).await;
    let api = plane.api.clone();
    let name = containers.prefix.clone();

    // All are on node-1 before there is another.
    assert_eq!(api.post("/replicasets", &replicaset(&name, PODS, BUSYBOX)).await.status, 201);
    let before = pods_run(&api, &name, PODS).await;
    assert!(before.iter().all(|pod| pod.node == "node-1"), "{before:#?}");
    let urls = store.urls();
    let flags = ["kubelet", "--store", &urls, "--node-name", "node-2", "--runtime", "docker"];
    let _second = Process::start(&scratch, "kubelet-node-2", MINIKU, flags);
    node_is_ready(&api, "node-2").await;

    plane.kubelets[0].kill();
    let killed = Instant::now();
    // All but one: such as the machine's end leaves when it is only the network that ends.
    let running = containers.running();
    let (survivor, dead) = running.split_first().expect("they run");
    let ids: Vec<&str> = dead.iter().map(|container| container.id.as_str()).collect();
    docker(&[&["kill"], ids.as_slice()].concat());

    let moved = wait_for("all run on node-2", async || {
        let pods = pods(&api, &name).await?;
        let (old, new): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| is_among(pod, &before));
        // Never more than wanted but for those of which nobody can tell.
        assert!(new.len() <= PODS, "{new:#?}");
        let running = new.iter().filter(|pod| pod.status == "Running" && pod.node == "node-2");
        holds(running.count() == PODS && old.len() == PODS, format!("{new:#?}"))?;
        Ok::<_, String>(new)
    })
    .await;
    println!("all run elsewhere after {:.1?}", killed.elapsed());
    let old = pods(&api, &name).await.expect("they were just listed");
    let unknown = old.iter().filter(|pod| is_among(pod, &before));
    assert!(unknown.clone().all(|pod| pod.status == "Unknown"), "{old:#?}");
    assert!(is_running(survivor), "nobody is there to stop it");
    assert_eq!(running_on(&containers, "node-2"), names(&moved));

    plane.kubelets[0].start_again();
    node_is_ready(&api, "node-1").await;
    let after = pods_run(&api, &name, PODS).await;
    assert_eq!(names(&after), names(&moved), "those that moved stay where they are");
    wait_for("nothing is left of the others", async || {
        let found: Vec<Container> = containers.list_all();
        let left: Vec<_> = found.iter().filter(|found| found.node == "node-1").collect();
        holds(left.is_empty(), format!("{left:#?}"))
    })
    .await;
    assert_eq!(running_on(&containers, "node-2"), names(&moved));
    // And it takes pods again.
    until_clean(&store, "node-1").await;
    let body = replicaset(&name, PODS + 2, BUSYBOX);
    assert_eq!(api.put(&format!("/replicasets/{name}"), &body).await.status, 200);
    let grown = pods_run(&api, &name, PODS + 2).await;
    assert!(grown.iter().any(|pod| pod.node == "node-1"), "{grown:#?}");
}

fn is_among(pod: &FlatPod, others: &[FlatPod]) -> bool {
    others.iter().any(|other| other.name == pod.name)
}

fn names(pods: &[FlatPod]) -> Vec<String> {
    pods.iter().map(|pod| pod.name.clone()).collect()
}

fn running_on(containers: &Containers, node: &str) -> Vec<String> {
    let running = containers.running().into_iter().filter(|container| container.node == node);
    running.map(|container| container.name).collect()
}

fn is_running(container: &Container) -> bool {
    let inspect = ["inspect", "-f", "{{.State.Running}}", &container.id];
    let output = Command::new("docker").args(inspect).output().expect("docker starts");
    output.stdout.starts_with(b"true")
}

/// Waits until a node has no taints any more.
async fn until_clean(store: &Store, node: &str) {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    let gateway = Http::new(&store.members[0].client_url);
    let key = BASE64_STANDARD.encode(format!("/registry/nodes/{node}"));
    wait_for("the node has no taints", async || {
        let answer = gateway.post("/v3/kv/range", &format!(r#"{{"key":"{key}"}}"#)).await.json();
        let value = answer["kvs"][0]["value"].as_str().ok_or("there is no node")?.to_owned();
        let value = BASE64_STANDARD.decode(value).expect("base64");
        let node: Value = serde_json::from_slice(&value).expect("JSON");
        holds(node["spec"]["taints"].as_array().is_none_or(Vec::is_empty), &node["spec"])
    })
    .await;
}
