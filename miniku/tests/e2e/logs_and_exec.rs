//! What pods write, and commands in them, through the API server: a person with curl.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::control_plane::{ControlPlane, Up};
use crate::support::docker::{BUSYBOX, Containers, turn};
use crate::support::flat::{pod, pods_are_gone, pods_run};
use crate::support::http::{Answer, Http};
use crate::support::prerequisites::{Need, have};
use crate::support::processes::Process;
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::wait::{holds, wait_for};

/// Runs a command in a pod.
async fn exec(api: &Http, pod: &str, body: &Value) -> Answer {
    api.post(&format!("/pods/{pod}/exec"), &body.to_string()).await
}

/// Makes a pod that runs a shell script.
async fn run(api: &Http, name: &str, script: &str) {
    let command = ["sh", "-c", script];
    let pod = json!({"name": name, "image": BUSYBOX, "command": command});
    assert_eq!(api.post("/pods", &pod.to_string()).await.status, 201);
    pods_run(api, name, 1).await;
}

async fn until_log(api: &Http, query: &str, holds_that: impl Fn(&str) -> bool) -> String {
    wait_for(&format!("{query} is as expected"), async || {
        let answer = api.get(query).await;
        holds(answer.status == 200 && holds_that(&answer.body), &answer.body)?;
        Ok::<_, String>(answer.body)
    })
    .await
}

fn assert_error(answer: &Answer, status: u16, code: &str, says: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{error}");
    assert!(error["reason"].as_str().is_some_and(|reason| reason.contains(says)), "{error}");
}

const SERVE: &str = "trap 'echo bye; exit 0' TERM; while :; do sleep 3600 & wait $!; done";

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_commands_of_real_containers_on_separate_nodes() {
    if !have(&[Need::Docker, Need::Curl]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("logs");
    let store = Store::start(&scratch, 1).await;
    let nodes = ["node-1", "node-2"];
    let mut plane = ControlPlane::start(&scratch, &store.urls(), "docker", &nodes).await;
    let api = plane.api.clone();
    let names = ["a", "b"].map(|name| format!("{}-{name}", containers.prefix));
    for name in &names {
        run(&api, name, &format!("echo one; echo two >&2; echo three; {SERVE}")).await;
    }

    for name in &names {
        let log = format!("/pods/{name}/log");
        let three = |text: &str| text.lines().count() == 3;
        let whole = until_log(&api, &log, three).await;
        assert!(["one", "two", "three"].iter().all(|line| whole.contains(line)), "{whole}");
        assert_eq!(api.get(&format!("{log}?tail=1")).await.body.lines().count(), 1);
        let stamped = api.get(&format!("{log}?timestamps=true&tail=1")).await.body;
        assert!(stamped.starts_with("20") && stamped.contains("Z "), "{stamped}");
        assert_eq!(api.get(&format!("{log}?since=1h")).await.body, whole);

        let told = exec(
            &api,
            name,
            &json!({"command": ["sh", "-c", "hostname; cat >&2; exit 3"], "stdin": "in"}),
        )
        .await;
        let hostname = format!("{name}\n");
        assert_eq!(told.json(), json!({"exitCode": 3, "stdout": hostname, "stderr": "in"}));
    }
    let loud = json!({"command": ["sh", "-c", "yes | head -c 3000000"]});
    let loud = exec(&api, &names[0], &loud).await.json();
    assert_eq!((&loud["exitCode"], &loud["truncated"]), (&json!(0), &json!(true)));
    let slow =
        json!({"command": ["sh", "-c", "echo begun; exec sleep 987654"], "timeoutSeconds": 1});
    let slow = exec(&api, &names[0], &slow).await.json();
    assert_eq!(slow, json!({"stdout": "begun\n", "stderr": "", "timedOut": true}));
    wait_for("the slow command is gone", async || {
        let all =
            exec(&api, &names[0], &json!({"command": ["sh", "-c", "cat /proc/[0-9]*/cmdline"]}))
                .await;
        holds(!all.body.contains("987654"), all.body)
    })
    .await;

    // Followed to its end, which is the container's.
    let url = format!("{}/pods/{}/log?follow=true&tail=0", plane.api_url, names[1]);
    let mut follower = Process::start(&scratch, "follow", "curl", ["-sN", &url]);
    let line = json!({"command": ["sh", "-c", "echo from outside > /proc/1/fd/1"]});
    wait_for("the follower reads along", async || {
        assert_eq!(exec(&api, &names[1], &line).await.json()["exitCode"], 0);
        holds(follower.output().contains("from outside"), follower.output())
    })
    .await;
    assert_eq!(api.delete(&format!("/pods/{}", names[1])).await.status, 204);
    assert!(follower.ended().await.success(), "curl saw the end");
    assert!(follower.output().ends_with("bye\n"), "{:?}", follower.output());

    // A node that is away says so, at once or when its time is over.
    let node = pod(&api, &names[0]).await.expect("it is there").node;
    let at = nodes.iter().position(|name| *name == node).expect("it is one of them");
    plane.kubelets[at].kill();
    let answer = api.get(&format!("/pods/{}/log", names[0])).await;
    assert_error(&answer, 503, "NodeUnreachable", &node);
    let answer = exec(&api, &names[0], &json!({"command": ["true"]})).await;
    assert_error(&answer, 503, "NodeUnreachable", &node);
    plane.kubelets[at].start_again();
    // On another port, and the log is still there.
    let log = format!("/pods/{}/log", names[0]);
    until_log(&api, &log, |text| text.contains("three")).await;
    assert_eq!(api.delete(&format!("/pods/{}", names[0])).await.status, 204);
    pods_are_gone(&api, &containers.prefix).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_before_the_crash_is_kept() {
    if !have(&[Need::Docker]) {
        return;
    }
    let _turn = turn().await;
    let scratch = Scratch::new();
    let containers = Containers::of_test("previous");
    let up = Up::start(&scratch, "docker").await;
    let api = &up.api;
    let name = format!("{}-crash", containers.prefix);
    let command = ["sh", "-c", "echo life of $(hostname); exit 1"];
    let pod = json!({"name": name, "image": BUSYBOX, "command": command});
    assert_eq!(api.post("/pods", &pod.to_string()).await.status, 201);
    let said = format!("life of {name}\n");
    until_log(api, &format!("/pods/{name}/log?previous=true"), |text| text == said).await;
    until_log(api, &format!("/pods/{name}/log"), |text| text == said).await;
    assert_eq!(api.delete(&format!("/pods/{name}")).await.status, 204);
    pods_are_gone(api, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pretended_containers_have_logs_and_commands_too() {
    let scratch = Scratch::new();
    let mut up = Up::start(&scratch, "fake").await;
    let api = up.api.clone();
    assert_eq!(api.post("/pods", r#"{"name":"web","image":"nginx"}"#).await.status, 201);
    pods_run(&api, "web", 1).await;
    let answer = api.get("/pods/web/log").await;
    assert_eq!((answer.status, &*answer.content_type), (200, "text/plain; charset=utf-8"));
    let echo = exec(&api, "web", &json!({"command": ["cat"], "stdin": "hello"})).await;
    assert_eq!(echo.json(), json!({"exitCode": 0, "stdout": "hello", "stderr": ""}));

    assert_error(&api.get("/pods/nobody/log").await, 404, "NotFound", "nobody");
    assert_error(&api.get("/pods/web/log?container=x").await, 400, "Invalid", "main");
    assert_error(&api.get("/pods/web/log?tail=all").await, 400, "Invalid", "whole number");
    assert_error(&api.get("/pods/web/log?previous=1").await, 400, "BadRequest", "earlier life");
    assert_error(&exec(&api, "web", &json!({"command": []})).await, 400, "Invalid", "program");
    assert_error(&api.get("/pods/web/exec?command=ls").await, 400, "BadRequest", "WebSocket");
    let body = r#"{"name":"elsewhere","image":"nginx","node_name":"node-9"}"#;
    assert_eq!(api.post("/pods", body).await.status, 201);
    assert_error(&api.get("/pods/elsewhere/log").await, 503, "NodeUnreachable", "node-9");

    // Somebody who follows does not keep the process from ending.
    if have(&[Need::Curl]) {
        let url = format!("{}/pods/web/log?follow=true", up.api_url);
        let mut follower = Process::start(&scratch, "follow", "curl", ["-sN", &url]);
        wait_for("it follows", async || holds(follower.is_running(), "curl ended")).await;
        up.process.signal(Signal::TERM);
        assert!(up.process.ended().await.success());
        follower.ended().await;
    }
}
