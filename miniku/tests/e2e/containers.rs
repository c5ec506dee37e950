//! Pods as real containers on the Docker Engine: they follow what is asked for, come back when they
//! die, and outlive everything that manages them.

use rustix::process::Signal;

use crate::support::control_plane::{ControlPlane, Up};
use crate::support::docker::{BUSYBOX, Container, Containers, NGINX, address, docker, turn};
use crate::support::flat::{FlatPod, pod, pods, pods_are_gone, pods_run, replicaset, spread};
use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::wait::{holds, wait_for};

const NODES: [&str; 2] = ["node-1", "node-2"];

/// Waits until the containers are the pods': one each, running, of its name, on its node.
async fn containers_match(api: &Http, containers: &Containers, count: usize) -> Vec<Container> {
    pods_run(api, &containers.prefix, count).await;
    wait_for(&format!("{count} containers are the {count} pods'"), async || {
        let pods = pods(api, &containers.prefix).await?;
        let expected: Vec<Container> = pods.iter().map(container_of).collect();
        let found = containers.list();
        holds(expected.len() == count && found == expected, format!("{found:#?} for {pods:#?}"))?;
        Ok::<_, String>(found)
    })
    .await
}

fn container_of(pod: &FlatPod) -> Container {
    Container {
        name: pod.name.clone(),
        id: pod.container_id.clone(),
        node: pod.node.clone(),
        running: pod.status == "Running",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn up_runs_a_replicaset_and_finds_it_again_after_its_own_death() {
    if !have(&[Need::Docker]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("up");
    let mut up = Up::start(&scratch, "docker").await;
    let name = containers.prefix.clone();
    let path = format!("/replicasets/{name}");

    assert_eq!(up.api.post("/replicasets", &replicaset(&name, 4, NGINX)).await.status, 201);
    let four = containers_match(&up.api, &containers, 4).await;
    let all = pods(&up.api, &name).await.expect("they were just listed");
    assert_eq!(spread(&all, &NODES), [2, 2]);
    for container in &four {
        let nginx = Http::new(&format!("http://{}", address(&container.id)));
        let page =
            wait_for("nginx answers", async || nginx.try_send(hyper::Method::GET, "/", "").await)
                .await;
        assert!(page.body.contains("Welcome to nginx"), "{}", page.body);
    }

    // Killed; a container more proves that all are awake again before the others are counted.
    up.process.kill();
    assert_eq!(containers.running(), four, "containers do not need us");
    up.process.start_again();
    up.is_ready().await;
    assert_eq!(up.api.put(&path, &replicaset(&name, 5, NGINX)).await.status, 200);
    let five = containers_match(&up.api, &containers, 5).await;
    for container in &four {
        assert!(five.contains(container), "{container:?} is among {five:#?}");
    }

    assert_eq!(up.api.put(&path, &replicaset(&name, 10, NGINX)).await.status, 200);
    containers_match(&up.api, &containers, 10).await;
    assert_eq!(up.api.put(&path, &replicaset(&name, 2, NGINX)).await.status, 200);
    containers_match(&up.api, &containers, 2).await;
    assert_eq!(up.api.delete(&path).await.status, 204);
    pods_are_gone(&up.api, &name).await;
    wait_for("no container is left", async || {
        let left = containers.list_all();
        holds(left.is_empty(), format!("{left:#?}"))
    })
    .await;
    assert!(up.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_die_come_back() {
    if !have(&[Need::Docker]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("die");
    let store = Store::start(&scratch, 1).await;
    let plane = ControlPlane::start(&scratch, &store.urls(), "docker", &NODES).await;
    let api = &plane.api;
    let name = &containers.prefix;
    assert_eq!(api.post("/replicasets", &replicaset(name, 2, BUSYBOX)).await.status, 201);
    let before = containers_match(api, &containers, 2).await;

    docker(&["rm", "-f", &before[0].id]);
    docker(&["kill", &before[1].id]);
    wait_for("both run again", async || {
        let after = containers.running();
        let names: Vec<&str> = after.iter().map(|container| container.name.as_str()).collect();
        holds(names == [&before[0].name, &before[1].name], format!("{after:#?}"))?;
        holds(after[0].id != before[0].id, "the removed one is another")
    })
    .await;
    containers_match(api, &containers, 2).await;
    let killed = pod(api, &before[1].name).await.expect("it is there");
    assert!(killed.retry_count >= 1, "a restart is counted: {killed:?}");

    // One that dies at once again and again waits longer each time, and says until when.
    let crashing = format!("{name}-crash");
    let body = format!(r#"{{"name":"{crashing}","image":"{BUSYBOX}","command":["false"]}}"#);
    assert_eq!(api.post("/pods", &body).await.status, 201);
    wait_for("it is started again and again", async || {
        let pod = pod(api, &crashing).await?;
        let waits = pod.status == "Failed" && !pod.next_retry_at.starts_with("0001-");
        holds(pod.retry_count >= 2 && waits && !pod.message.is_empty(), format!("{pod:?}"))
    })
    .await;

    // Nor does it, or one whose image does not exist, hold up others.
    let missing = format!("{name}-missing");
    let body = format!(r#"{{"name":"{missing}","image":"miniku-test/does-not-exist:1"}}"#);
    assert_eq!(api.post("/pods", &body).await.status, 201);
    wait_for("it says why it is Pending", async || {
        let pod = pod(api, &missing).await?;
        let says = pod.message.contains("miniku-test/does-not-exist:1");
        holds(pod.status == "Pending" && says && pod.container_id.is_empty(), format!("{pod:?}"))
    })
    .await;
    for number in 0..2 {
        let other = format!("{name}-other-{number}");
        let body = format!(r#"{{"name":"{other}","image":"{BUSYBOX}"}}"#);
        assert_eq!(api.post("/pods", &body).await.status, 201);
    }
    pods_run(api, &format!("{name}-other-"), 2).await;

    for pod in [&crashing, &missing] {
        assert_eq!(api.delete(&format!("/pods/{pod}")).await.status, 204);
        pods_are_gone(api, pod).await;
    }
    let left: Vec<Container> = containers.list_all();
    assert!(left.iter().all(|container| !container.name.starts_with(&crashing)), "{left:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_each_component() {
    if !have(&[Need::Docker]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("kill");
    let mut store = Store::start(&scratch, 3).await;
    let mut plane = ControlPlane::start(&scratch, &store.urls(), "docker", &NODES).await;
    let api = plane.api.clone();
    let name = &containers.prefix;
    let path = format!("/replicasets/{name}");
    assert_eq!(api.post("/replicasets", &replicaset(name, 4, BUSYBOX)).await.status, 201);
    let mut alive = containers_match(&api, &containers, 4).await;

    // One kubelet, while one of its containers dies and the set grows.
    let at = |node: &str| alive.iter().position(|container| container.node == node);
    let victim = at(NODES[0]).expect("two of four are there");
    let victim = alive.remove(victim);
    plane.kubelets[0].kill();
    docker(&["kill", &victim.id]);
    assert_eq!(api.put(&path, &replicaset(name, 6, BUSYBOX)).await.status, 200);
    plane.kubelets[0].start_again();
    alive = grown(&api, &containers, 6, &alive).await;
    assert!(alive.iter().any(|container| container.name == victim.name), "it was restarted");

    plane.controllers.kill();
    assert_eq!(api.put(&path, &replicaset(name, 7, BUSYBOX)).await.status, 200);
    plane.controllers.start_again();
    alive = grown(&api, &containers, 7, &alive).await;

    plane.apiserver.kill();
    plane.apiserver.start_again();
    alive = grown(&api, &containers, 7, &alive).await;

    // Everything at once, the whole store included.
    plane.apiserver.kill();
    plane.controllers.kill();
    plane.kubelets.iter_mut().for_each(|kubelet| kubelet.kill());
    store.members.iter_mut().for_each(|member| member.process.kill());
    assert_eq!(containers.running(), alive, "containers do not need us");
    store.members.iter_mut().for_each(|member| member.process.start_again());
    plane.kubelets.iter_mut().for_each(|kubelet| kubelet.start_again());
    plane.controllers.start_again();
    plane.apiserver.start_again();
    wait_for("the set can be changed", async || {
        let body = replicaset(name, 8, BUSYBOX);
        let answer = api.try_send(hyper::Method::PUT, &path, &body).await?;
        holds(answer.status == 200, answer.body)
    })
    .await;
    grown(&api, &containers, 8, &alive).await;

    // A pod deleted while its kubelet is stopped is gone when it goes on.
    plane.kubelets[1].signal(Signal::STOP);
    assert_eq!(api.delete(&path).await.status, 204);
    plane.kubelets[1].signal(Signal::CONT);
    pods_are_gone(&api, name).await;
    wait_for("no container is left", async || {
        let left = containers.list_all();
        holds(left.is_empty(), format!("{left:#?}"))
    })
    .await;
}

/// Waits until there are `count`, all of `before` still among them.
async fn grown(
    api: &Http,
    containers: &Containers,
    count: usize,
    before: &[Container],
) -> Vec<Container> {
    wait_for("the apiserver answers", async || pods(api, "").await).await;
    let after = containers_match(api, containers, count).await;
    for container in before {
        assert!(after.contains(container), "{container:?} is among {after:#?}");
    }
    after
}
