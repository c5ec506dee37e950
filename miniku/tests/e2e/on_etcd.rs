//! The control plane speaks the etcd protocol and nothing else: the same story on a real etcd and on
//! our store, with the same end.

use crate::support::control_plane::ControlPlane;
use crate::support::flat::{FlatPod, pods, pods_are_gone, pods_run, replicaset, spread};
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::{holds, wait_for};

const NODES: [&str; 2] = ["node-1", "node-2"];

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_on_a_real_etcd() {
    if have(&[Need::Etcd]) {
        story(Kind::Etcd).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_on_our_store() {
    story(Kind::Miniku).await;
}

async fn story(kind: Kind) {
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, kind, 3, &[]).await;
    let mut plane = ControlPlane::start(&scratch, &store.urls(), "fake", &NODES).await;
    let api = plane.api.clone();

    // Scaling up and down, spread over the nodes.
    assert_eq!(api.post("/replicasets", &replicaset("web", 4, "i")).await.status, 201);
    assert_eq!(spread(&pods_run(&api, "web-", 4).await, &NODES), [2, 2]);
    assert_eq!(api.put("/replicasets/web", &replicaset("web", 10, "i")).await.status, 200);
    assert_eq!(spread(&pods_run(&api, "web-", 10).await, &NODES), [5, 5]);
    assert_eq!(api.put("/replicasets/web", &replicaset("web", 3, "i")).await.status, 200);
    let three = pods_run(&api, "web-", 3).await;

    // A pod that is deleted is replaced; one of nobody's is not.
    let victim = &three[0].name;
    assert_eq!(api.delete(&format!("/pods/{victim}")).await.status, 204);
    wait_for("another pod takes its place", async || {
        let pods = pods(&api, "web-").await?;
        holds(pods.len() == 3 && pods.iter().all(|pod| pod.name != *victim), format!("{pods:#?}"))
    })
    .await;
    assert_eq!(api.post("/pods", r#"{"name":"alone","image":"i"}"#).await.status, 201);
    pods_run(&api, "alone", 1).await;
    assert_eq!(api.delete("/pods/alone").await.status, 204);
    pods_are_gone(&api, "alone").await;

    // A store member dies in the middle of scaling; each component dies once and comes back.
    let leader = store.leader().await;
    store.members[leader].process.kill();
    wait_for("the replicaset is changed", async || {
        let answer = api.put("/replicasets/web", &replicaset("web", 6, "i")).await;
        holds(answer.status == 200, answer.body)
    })
    .await;
    pods_run(&api, "web-", 6).await;
    store.members[leader].process.start_again();

    plane.controllers.kill();
    assert_eq!(api.put("/replicasets/web", &replicaset("web", 8, "i")).await.status, 200);
    plane.controllers.start_again();
    let eight = pods_run(&api, "web-", 8).await;
    plane.apiserver.kill();
    plane.apiserver.start_again();
    wait_for("the apiserver is back", async || pods(&api, "").await).await;
    let names =
        |pods: &[FlatPod]| -> Vec<String> { pods.iter().map(|pod| pod.name.clone()).collect() };
    assert_eq!(names(&pods_run(&api, "web-", 8).await), names(&eight));

    // A node that falls silent gets no new pods.
    plane.kubelets[1].kill();
    wait_for("node-2 is NotReady", async || {
        let node = api.get("/nodes/node-2").await.body;
        holds(node.contains(r#""status":"NotReady""#), node)
    })
    .await;
    for number in 0..3 {
        let pod = format!(r#"{{"name":"late-{number}","image":"i"}}"#);
        assert_eq!(api.post("/pods", &pod).await.status, 201);
    }
    assert_eq!(spread(&pods_run(&api, "late-", 3).await, &NODES), [3, 0]);
    plane.kubelets[1].start_again();
    wait_for("node-2 is Ready again", async || {
        let node = api.get("/nodes/node-2").await.body;
        holds(node.contains(r#""status":"Ready""#), node)
    })
    .await;

    assert_eq!(api.delete("/replicasets/web").await.status, 204);
    pods_are_gone(&api, "web-").await;
    assert!(plane.controllers.terminate().await.success());
    assert!(plane.apiserver.terminate().await.success());
    assert!(plane.kubelets[0].terminate().await.success());
}
