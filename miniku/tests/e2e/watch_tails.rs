//! Streams of changes that people leave running, while leading store members die under them: no
//! change is missed, none comes twice.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::control_plane::ControlPlane;
use crate::support::history::{Change, PODS, REGISTRY, end_of, history};
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::tail::Tail;
use crate::support::wait::{holds, wait_for};
use crate::support::writers::Writers;

const LEADERS_KILLED: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn tails_go_on_without_a_gap_or_a_repeat_while_leaders_die() {
    if !have(&[Need::Curl, Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    let control_plane =
        ControlPlane::start(&scratch, &store.urls(), "fake", &["node-1", "node-2"]).await;
    let api = &control_plane.api;
    let mut tails = [
        etcdctl_tail(&scratch, &store.urls()),
        gateway_tail(&scratch, &store),
        pods_tail(&scratch, &control_plane.api_url),
    ];
    // Each has begun when it has seen a pod come.
    let mut probes = 0;
    wait_for("all tails have begun", async || {
        let pod = format!(r#"{{"name":"probe-{probes}","image":"i"}}"#);
        probes += 1;
        api.post("/pods", &pod).await;
        holds(tails.iter().all(|tail| tail.reached().is_some()), "some have seen nothing")
    })
    .await;

    let writers = Writers::start(&store, 2);
    let desired = |count: usize| {
        json!({"name": "web", "desiredCount": count, "selector": {"app": "web"}, "template": {"image": "i"}})
            .to_string()
    };
    api.post("/replicasets", &desired(4)).await;
    for round in 0..LEADERS_KILLED {
        let leader = store.leader().await;
        store.members[leader].process.kill();
        let count = if round % 2 == 0 { 8 } else { 4 };
        wait_for("the replicaset is changed", async || {
            let answer = api.put("/replicasets/web", &desired(count)).await;
            holds(answer.status == 200, answer.body)
        })
        .await;
        wait_for(&format!("{count} pods run"), async || {
            tails.iter_mut().for_each(|tail| tail.keep_going(&scratch));
            let pods = api.get("/pods").await;
            let running =
                pods.body.matches(r#""labels":{"app":"web"}},"status":"Running""#).count();
            holds(running == count, pods.body)
        })
        .await;
        store.members[leader].process.start_again();
        store.serves(leader).await;
    }

    let written = writers.stop().await;

    // The last pod marks the end, as heartbeats never end.
    wait_for("the last pod is made", async || {
        let answer = api.post("/pods", r#"{"name":"the-last","image":"i"}"#).await;
        holds(matches!(answer.status, 201 | 409), answer.body)
    })
    .await;
    let history = history(&store.members[0], &format!("{PODS}the-last")).await;
    let end = history.last().expect("the last pod").revision;
    for tail in &mut tails {
        wait_for("the tail sees the last pod", async || {
            tail.keep_going(&scratch);
            holds(tail.reached() >= Some(end), format!("{:?}", tail.lines().last()))
        })
        .await;
    }
    let [etcdctl, gateway, pods] = tails;
    for (name, tail) in [("etcdctl watch", etcdctl), ("/v3/watch", gateway)] {
        let seen: Vec<Change> = tail.lines().iter().flat_map(|line| etcd_changes(line)).collect();
        assert_same(name, seen, &history);
    }
    let seen: Vec<Change> = pods.lines().iter().map(|line| pod_change(line)).collect();
    let of_pods: Vec<Change> =
        history.iter().filter(|change| change.key.starts_with(PODS)).cloned().collect();
    assert_same("/pods?watch=true", seen, &of_pods);

    written.check(&store.agree().await);
    for process in control_plane
        .kubelets
        .into_iter()
        .chain([control_plane.apiserver, control_plane.controllers])
    {
        let mut process = process;
        assert!(process.is_running(), "{} went down with the leaders", process.name);
    }
}

/// From its first to the end of the history, a tail saw just what happened.
fn assert_same(name: &str, seen: Vec<Change>, history: &[Change]) {
    let first = seen.first().unwrap_or_else(|| panic!("{name} saw nothing")).revision;
    let end = history.last().expect("something happened").revision;
    let seen: Vec<Change> = seen.into_iter().filter(|change| change.revision <= end).collect();
    let happened: Vec<Change> =
        history.iter().filter(|change| change.revision >= first).cloned().collect();
    let differ = seen.iter().zip(&happened).find(|(seen, happened)| seen != happened);
    assert_eq!(differ, None, "{name}: left: seen, right: happened");
    assert_eq!(seen.len(), happened.len(), "{name}");
}

fn etcdctl_tail(scratch: &Scratch, urls: &str) -> Tail {
    let endpoints = format!("--endpoints={urls}");
    Tail::start(scratch, "etcdctl-watch", "etcdctl", last_revision, move |after| {
        let mut arguments: Vec<String> =
            [&endpoints, "watch", "--prefix", REGISTRY, "-w", "json"].map(str::to_owned).into();
        arguments.extend(after.map(|after| format!("--rev={}", after + 1)));
        arguments
    })
}

/// Each run goes to the next member: its own may be the one that died.
fn gateway_tail(scratch: &Scratch, store: &Store) -> Tail {
    let urls: Vec<String> = store.members.iter().map(|member| member.client_url.clone()).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    Tail::start(scratch, "gateway-watch", "curl", last_revision, move |after| {
        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let create = json!({"create_request": {
            "key": BASE64_STANDARD.encode(REGISTRY),
            "range_end": BASE64_STANDARD.encode(end_of(REGISTRY)),
            "start_revision": after.map_or(0, |after| after + 1).to_string(),
        }});
        let url = format!("{}/v3/watch", urls[number % urls.len()]);
        ["-sN", &url, "-d", &create.to_string()].map(str::to_owned).into()
    })
}

fn pods_tail(scratch: &Scratch, api_url: &str) -> Tail {
    let url = format!("{api_url}/pods?watch=true");
    let revision = |line: &str| Some(pod_change(line).revision);
    Tail::start(scratch, "pods-watch", "curl", revision, move |after| {
        let from = after.map_or(String::new(), |after| format!("&resourceVersion={after}"));
        ["-sN".to_owned(), format!("{url}{from}")].into()
    })
}

fn last_revision(line: &str) -> Option<i64> {
    etcd_changes(line).last().map(|change| change.revision)
}

/// The changes in a line of `etcdctl watch -w json`, or of the gateway, which writes numbers as
/// strings and wraps all in a result.
fn etcd_changes(line: &str) -> Vec<Change> {
    let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let response = json.get("result").unwrap_or(&json);
    let events = response.get("events").or_else(|| response.get("Events"));
    let events = events.and_then(Value::as_array).into_iter().flatten();
    events
        .map(|event| {
            let pair = &event["kv"];
            let key = BASE64_STANDARD.decode(pair["key"].as_str().expect("a key")).expect("base64");
            let number = |name: &str| {
                let number = &pair[name];
                number.as_i64().or_else(|| number.as_str()?.parse().ok())
            };
            let revision = number("mod_revision").unwrap_or_else(|| panic!("no revision: {line}"));
            let deleted = matches!(&event["type"], kind if *kind == 1 || *kind == "DELETE");
            let key = String::from_utf8(key).expect("the registry's keys are text");
            Change::new(key, revision, number("create_revision").unwrap_or(0), deleted)
        })
        .collect()
}

fn pod_change(line: &str) -> Change {
    let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let name = json["object"]["spec"]["name"].as_str().unwrap_or_else(|| panic!("no name: {line}"));
    let revision = json["resourceVersion"].as_str().and_then(|revision| revision.parse().ok());
    Change {
        revision: revision.unwrap_or_else(|| panic!("no revision: {line}")),
        key: format!("{PODS}{name}"),
        kind: ["ADDED", "MODIFIED", "DELETED"]
            .into_iter()
            .find(|kind| json["type"] == *kind)
            .unwrap_or_else(|| panic!("of no kind: {line}")),
    }
}
