//! The flat API as a client with curl meets it, on Debian's etcd.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;

use api::ObjectKey;
use fixture::{Etcd, PATIENCE, Server, free_ports};
use hyper::StatusCode;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NGINX: &str = r#"{"name":"nginx","desiredCount":4,"selector":{"app":"nginx"},"template":{"image":"nginx:latest"}}"#;

fn pod(name: &str) -> String {
    json!({"name": name, "image": "nginx:latest", "labels": {"app": "nginx"}}).to_string()
}

/// What another part of the system writes.
fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn the_session_of_the_design() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;

    let created = server.send("POST", "/replicasets", NGINX).await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(
        created.text,
        r#"{"name":"nginx","desiredCount":4,"currentCount":0,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}"#
    );

    // The controllers and a kubelet do their part.
    let store = etcd.store();
    let sets = store.api::<ReplicaSet>();
    let key = ObjectKey::namespaced("default", "nginx");
    let count = |set: &mut ReplicaSet| {
        set.status = Some(ReplicaSetStatus { replicas: 4, ..ReplicaSetStatus::default() });
        Ok(())
    };
    sets.modify_status(&key, count).await.unwrap();
    let pods = store.api::<Pod>();
    let made = pods.create(object(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "nginx-d3950207", "namespace": "default", "labels": {"app": "nginx"}},
        "spec": {"containers": [{"name": "main", "image": "nginx:latest"}]},
    })));
    let bound = pods.bind(&made.await.unwrap(), "node-2").await.unwrap();
    let run = |pod: &mut Pod| {
        pod.status = Some(object(json!({
            "phase": "Running",
            "containerStatuses": [{
                "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "docker://d803aed8", "state": {"running": {}},
            }],
        })));
        Ok(())
    };
    pods.modify_status_from(&bound, run).await.unwrap();

    let sets = server.get("/replicasets").await;
    assert_eq!(sets.status, StatusCode::OK);
    assert_eq!(
        sets.text,
        r#"[{"name":"nginx","desiredCount":4,"currentCount":4,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}]"#
    );
    assert_eq!(
        server.get("/pods").await.text,
        r#"[{"spec":{"name":"nginx-d3950207","image":"nginx:latest","node_name":"node-2","labels":{"app":"nginx"}},"status":"Running","containerId":"d803aed8","retry_count":0,"next_retry_at":"0001-01-01T00:00:00Z"}]"#
    );
}

#[tokio::test]
async fn objects_are_created_replaced_and_deleted() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    for (list, name, body) in
        [("/replicasets", "nginx", NGINX.to_owned()), ("/pods", "web", pod("web"))]
    {
        let item = &format!("{list}/{name}");
        assert_eq!(server.get(list).await.text, "[]");
        assert_eq!(server.send("POST", list, body.clone()).await.status, StatusCode::CREATED);
        let again = server.send("POST", list, body.clone()).await;
        assert_eq!(again.status, StatusCode::CONFLICT);
        assert_eq!(again.error().0, "AlreadyExists");

        let there = server.get(item).await;
        assert_eq!(there.status, StatusCode::OK);
        assert_eq!(server.get(list).await.text, format!("[{}]", there.text));
        let same = server.send("PUT", item, there.text.clone()).await;
        assert_eq!(
            (same.status, same.text),
            (StatusCode::OK, there.text),
            "what GET gives, PUT takes"
        );

        let deleted = server.send("DELETE", item, "").await;
        assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::NO_CONTENT, ""));
        for (method, body) in [("GET", ""), ("DELETE", "")] {
            let gone = server.send(method, item, body).await;
            assert_eq!(gone.status, StatusCode::NOT_FOUND, "{method}");
            assert_eq!(gone.error().0, "NotFound");
        }
        assert_eq!(server.send("PUT", item, body).await.status, StatusCode::CREATED);
        assert_eq!(server.send("DELETE", item, "").await.status, StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn a_put_changes_the_count_and_keeps_the_rest() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    server.send("POST", "/replicasets", NGINX).await;
    let sets = etcd.store().api::<ReplicaSet>();
    let key = ObjectKey::namespaced("default", "nginx");
    let before = sets
        .modify(&key, |set| {
            let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
            template.spec.as_mut().unwrap().containers[0].args = Some(vec!["-v".into()]);
            Ok(())
        })
        .await
        .unwrap();

    let body = NGINX.replace("\"desiredCount\":4", "\"desiredCount\":10");
    let put = server.send("PUT", "/replicasets/nginx", body).await;
    assert_eq!((put.status, put.json()["desiredCount"].as_i64()), (StatusCode::OK, Some(10)));

    let after = sets.get(&key).await.unwrap();
    assert_eq!(after.metadata.uid, before.metadata.uid);
    let (mut before, after) = (before.spec.unwrap(), after.spec.unwrap());
    before.replicas = Some(10);
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_is_not_replaced() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    server.send("POST", "/pods", pod("a")).await;
    let pods = etcd.store().api::<Pod>();
    let key = ObjectKey::namespaced("default", "a");
    pods.bind(&pods.get(&key).await.unwrap(), "node-1").await.unwrap();

    // Its kubelet has to stop it first.
    assert_eq!(server.send("DELETE", "/pods/a", "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get("/pods/a").await.json()["message"], "is being deleted");
    assert_eq!(server.send("DELETE", "/pods/a", "").await.status, StatusCode::NO_CONTENT);
    let put = server.send("PUT", "/pods/a", pod("a")).await;
    assert_eq!((put.status, put.error().0.as_str()), (StatusCode::CONFLICT, "Conflict"));

    let uid = pods.get(&key).await.unwrap().metadata.uid.unwrap();
    pods.finish_delete(&key, &uid).await.unwrap();
    assert_eq!(server.send("PUT", "/pods/a", pod("a")).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn nodes_can_be_read_and_deleted_only() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    let nodes = etcd.store().api::<Node>();
    let node = nodes.create(object(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-1"},
        "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-02T03:04:05Z"},
        ]},
    })));
    node.await.unwrap();
    let shown = r#"{"name":"node-1","status":"Ready","time":"2026-01-02T03:04:05Z"}"#;
    assert_eq!(server.get("/nodes").await.text, format!("[{shown}]"));
    assert_eq!(server.get("/nodes/node-1").await.text, shown);

    let leases = etcd.store().api::<Lease>();
    let lease = leases.create(object(json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "node-1", "namespace": "kube-node-lease"},
        "spec": {"renewTime": "2026-01-02T03:04:15.123456Z"},
    })));
    lease.await.unwrap();
    let shown = r#"{"name":"node-1","status":"Ready","time":"2026-01-02T03:04:15Z"}"#;
    assert_eq!(server.get("/nodes").await.text, format!("[{shown}]"));
    assert_eq!(server.get("/nodes/node-1").await.text, shown);

    for (method, path) in [("POST", "/nodes"), ("PUT", "/nodes/node-1")] {
        let refused = server.send(method, path, shown).await;
        assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.error().0, "MethodNotAllowed");
        assert!(refused.allow.unwrap().contains("GET"));
    }
    assert_eq!(server.send("DELETE", "/nodes/node-1", "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get("/nodes").await.text, "[]");
}

#[tokio::test]
async fn events_can_be_listed_watched_and_narrowed_down() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    let events = etcd.store().api::<Event>();
    let tell = async |number: u8, kind: &str, name: &str| {
        let event = events.create(object(json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("{name}.{number}"), "namespace": "default"},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Normal",
            "reason": "Told",
            "message": "something happened",
            "count": number,
            "lastTimestamp": format!("2026-01-02T03:04:0{number}Z"),
        })));
        event.await.unwrap();
    };
    tell(3, "Pod", "a").await;
    tell(2, "Node", "a").await;
    tell(1, "Pod", "b").await;
    let shown = |number: u8, object: &str| {
        json!({
            "time": format!("2026-01-02T03:04:0{number}Z"),
            "type": "Normal",
            "reason": "Told",
            "object": object,
            "message": "something happened",
            "count": number,
        })
    };
    let all = json!([shown(1, "pod/b"), shown(2, "node/a"), shown(3, "pod/a")]);
    assert_eq!(server.get("/events").await.json(), all);
    assert_eq!(server.get("/events?pod=a").await.json(), json!([shown(3, "pod/a")]));
    assert_eq!(server.get("/events?node=a").await.json(), json!([shown(2, "node/a")]));
    assert_eq!(server.get("/events?replicaset=a").await.text, "[]");
    assert_eq!(server.get("/events?image=a").await.error().1, "image");
    assert_eq!(server.get("/pods?pod=a").await.error().1, "pod");

    let mut watch = server.watch("/events", "&pod=c").await;
    tell(4, "Pod", "d").await;
    tell(5, "Pod", "c").await;
    let line = watch.next().await.unwrap();
    assert_eq!((&line["type"], &line["object"]), (&json!("ADDED"), &shown(5, "pod/c")));
    let refused = server.send("POST", "/events", "{}").await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn bad_requests_say_why_and_store_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &["--max-body-bytes", "1000"]).await;
    server.send("POST", "/replicasets", NGINX).await;
    let before = server.get("/replicasets").await;

    let bad = StatusCode::BAD_REQUEST;
    let with = |from: &str, to: &str| NGINX.replace(from, to);
    let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(1000));
    for (method, path, body, status, code, field) in [
        ("POST", "/replicasets", "{\"name\":".into(), bad, "Invalid", ""),
        ("POST", "/replicasets", String::new(), bad, "Invalid", ""),
        ("POST", "/replicasets", with("\"name\":\"nginx\",", ""), bad, "Invalid", "name"),
        (
            "POST",
            "/replicasets",
            with("\"name\":\"nginx\"", "\"name\":\"Nginx_1\""),
            bad,
            "Invalid",
            "name",
        ),
        ("POST", "/replicasets", with(":4", ":-1"), bad, "Invalid", "desiredCount"),
        ("POST", "/replicasets", with(":4", ":2147483648"), bad, "Invalid", "desiredCount"),
        ("POST", "/replicasets", with(":4", ":1000000"), bad, "Invalid", "desiredCount"),
        (
            "POST",
            "/replicasets",
            with("\"template\":{", "\"template\":{\"labels\":{\"app\":\"x\"},"),
            bad,
            "Invalid",
            "template.labels",
        ),
        ("POST", "/replicasets", with("\"name\":", "\"nmae\":1,\"name\":"), bad, "Invalid", "nmae"),
        (
            "POST",
            "/replicasets",
            with("\"image\":\"nginx:latest\"", ""),
            bad,
            "Invalid",
            "template.image",
        ),
        ("PUT", "/replicasets/other", NGINX.into(), bad, "Invalid", "name"),
        (
            "PUT",
            "/replicasets/nginx",
            with("{\"app\":\"nginx\"}", "{\"app\":\"x\"}"),
            bad,
            "Invalid",
            "selector",
        ),
        ("PUT", "/replicasets/A_b", with("\"name\":\"nginx\",", ""), bad, "Invalid", "name"),
        ("POST", "/pods", r#"{"spec":{"name":"a"}}"#.into(), bad, "Invalid", "spec.image"),
        (
            "POST",
            "/replicasets",
            long.clone(),
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "",
        ),
        ("PUT", "/pods/a", long, StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", ""),
        ("GET", "/replicasets/none", String::new(), StatusCode::NOT_FOUND, "NotFound", ""),
        ("GET", "/replicasets/A%2Fb", String::new(), StatusCode::NOT_FOUND, "NotFound", ""),
        ("GET", "/replicasets/%ff", String::new(), bad, "Invalid", "name"),
        ("DELETE", "/pods/none", String::new(), StatusCode::NOT_FOUND, "NotFound", ""),
        ("GET", "/deployments", String::new(), StatusCode::NOT_FOUND, "NotFound", ""),
        ("GET", "/", String::new(), StatusCode::NOT_FOUND, "NotFound", ""),
        ("PATCH", "/pods/a", String::new(), StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", ""),
        ("DELETE", "/pods", String::new(), StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", ""),
        ("GET", "/pods?wacth=true", String::new(), bad, "Invalid", "wacth"),
        (
            "GET",
            "/pods?watch=true&resourceVersion=x",
            String::new(),
            bad,
            "Invalid",
            "resourceVersion",
        ),
    ] {
        let answer = server.send(method, path, body.clone()).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert_eq!(answer.error(), (code.to_owned(), field.to_owned()), "{method} {path} {body}");
    }

    let huge = "a".repeat(20_000_000);
    let answer = server.send("POST", "/replicasets", huge).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "the client reads the answer");

    let after = server.get("/replicasets").await;
    assert_eq!((after.text, after.revision), (before.text, before.revision), "nothing was written");
}

#[tokio::test]
async fn a_watch_tells_every_change_and_continues_where_it_broke() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    server.send("POST", "/pods", pod("before")).await;
    let listed = server.get("/pods").await.revision.unwrap();
    let mut from_now = server.watch("/pods", "").await;
    assert_eq!(from_now.revision, listed);

    server.send("POST", "/pods", pod("a")).await;
    server.send("POST", "/replicasets", NGINX).await;
    let body = json!({"name": "a", "image": "nginx:latest", "labels": {"app": "other"}});
    server.send("PUT", "/pods/a", body.to_string()).await;
    server.send("DELETE", "/pods/a", "").await;

    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(from_now.next().await.unwrap());
    }
    let brief = |line: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&line["type"]),
            text(&line["object"]["spec"]["name"]),
            text(&line["object"]["spec"]["labels"]["app"]),
        )
    };
    let expected = [("ADDED", "a", "nginx"), ("MODIFIED", "a", "other"), ("DELETED", "a", "other")]
        .map(|(kind, name, label)| (kind.to_owned(), name.to_owned(), label.to_owned()));
    assert_eq!(seen.iter().map(brief).collect::<Vec<_>>(), expected);
    let keys: Vec<&String> = seen[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["object", "resourceVersion", "type"], "as serde_json sorts them");

    // From every line's resourceVersion on, the rest comes again, and nothing else.
    let mut resume_from = vec![listed];
    resume_from
        .extend(seen.iter().map(|line| line["resourceVersion"].as_str().unwrap().to_owned()));
    server.send("POST", "/pods", pod("last")).await;
    seen.push(from_now.next().await.unwrap());
    for (at, revision) in resume_from.iter().enumerate() {
        let mut tail = server.watch("/pods", &format!("&resourceVersion={revision}")).await;
        assert_eq!(&tail.revision, revision);
        for expected in &seen[at..] {
            assert_eq!(tail.next().await.as_ref(), Some(expected), "from {revision}");
        }
    }
}

#[tokio::test]
async fn a_watch_from_before_the_history_must_list_again() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    let listed = server.get("/pods").await.revision.unwrap();
    for name in ["a", "b", "c"] {
        server.send("POST", "/pods", pod(name)).await;
    }
    let now = server.get("/pods").await.revision.unwrap();
    compact(&etcd, now.parse().unwrap()).await;

    let expired = server.get(&format!("/pods?watch=true&resourceVersion={listed}")).await;
    assert_eq!(expired.status, StatusCode::GONE);
    assert_eq!(expired.error().0, "Expired");
    assert!(expired.text.contains("list again"), "{}", expired.text);

    let mut tail = server.watch("/pods", &format!("&resourceVersion={now}")).await;
    server.send("DELETE", "/pods/a", "").await;
    assert_eq!(tail.next().await.unwrap()["type"], "DELETED");
}

/// With etcdctl, as this crate's tests know the store through `api` only.
async fn compact(etcd: &Etcd, revision: i64) {
    let done = tokio::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.url, "compaction", &revision.to_string()])
        .output();
    let done = tokio::time::timeout(PATIENCE, done).await.unwrap().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test]
async fn many_watches_see_the_same() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    let mut tails = Vec::new();
    for _ in 0..20 {
        tails.push(server.watch("/pods", "").await);
    }
    let names: Vec<String> = (0..50).map(|i| format!("pod-{i}")).collect();
    for name in &names {
        assert_eq!(server.send("POST", "/pods", pod(name)).await.status, StatusCode::CREATED);
    }
    for tail in &mut tails {
        for name in &names {
            assert_eq!(tail.next().await.unwrap()["object"]["spec"]["name"], name.as_str());
        }
    }
}

#[tokio::test]
async fn without_a_store_every_request_fails_in_time() {
    let [port] = free_ports();
    let store = format!("http://127.0.0.1:{port}");
    let server = Server::start(&["--store", &store, "--request-timeout-ms", "300"]).await;
    for (method, path, body) in [
        ("GET", "/healthz", String::new()),
        ("GET", "/pods", String::new()),
        ("GET", "/pods/a", String::new()),
        ("GET", "/pods?watch=true", String::new()),
        ("GET", "/pods?watch=true&resourceVersion=7", String::new()),
        ("POST", "/pods", pod("a")),
        ("PUT", "/pods/a", pod("a")),
        ("DELETE", "/pods/a", String::new()),
    ] {
        let answer = server.send(method, path, body).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
        answer.error();
    }
    assert_eq!(server.get("/version").await.status, StatusCode::OK);
    assert_eq!(server.send("POST", "/pods", "{").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn stopping_ends_the_watches_and_frees_the_port() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &[]).await;
    let mut tail = server.watch("/pods", "").await;
    let addr = server.running.addr();
    server.running.shutdown().await;
    assert_eq!(tail.next().await, None);
    std::net::TcpListener::bind(addr).unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let error = apiserver::start(fixture::config(&["--listen", &addr])).await.unwrap_err();
    assert!(error.to_string().contains(&addr), "{error}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let Some(etcd) = Etcd::start() else { return };
    let server = Server::on(&etcd, &["--request-timeout-ms", "500"]).await;
    let mut slow = tokio::net::TcpStream::connect(server.running.addr()).await.unwrap();
    let head = "POST /pods HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let read = slow.read_exact(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}
