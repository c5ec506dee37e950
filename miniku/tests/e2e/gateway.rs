//! etcd's JSON gateway, as curl meets it: ours and a real etcd's, the same requests to both, the
//! same status and the same body but for ids.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::http::{Answer, Http};
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// What must be the same: all but who answered.
fn comparable(answer: &Answer) -> (u16, Value) {
    let mut body = answer.json();
    if let Some(result) = body.get_mut("result") {
        body = result.take();
    }
    if let Some(header) = body.get_mut("header").and_then(Value::as_object_mut) {
        for id in ["cluster_id", "member_id", "raft_term"] {
            header.remove(id).unwrap_or_else(|| panic!("a header without {id}: {}", answer.body));
        }
    }
    (answer.status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_etcds_does() {
    if !have(&[Need::Etcd]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let store = Store::start(&scratch, 1).await;
    let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 1, &[]).await;
    let [ours, etcd] = [store, etcd].map(|store| (Http::new(&store.members[0].client_url), store));

    let (a, b, c) = (base64("a"), base64("b"), base64("c"));
    let put = |key: &str, value: &str| ("put", json!({"key": key, "value": base64(value)}));
    let lease = 7_777;
    for (path, body) in [
        put(&a, "1"),
        put(&a, "2"),
        put(&b, ""),
        ("put", json!({"key": a, "value": base64("3"), "prev_kv": true})),
        ("put", json!({"key": a, "value": base64("4"), "prevKv": true})),
        ("put", json!({"key": a, "value": base64("5"), "no_such_field": [1]})),
        ("put", json!({"value": base64("without a key")})),
        ("put", json!({"key": a, "lease": "4711"})),
        ("range", json!({"key": a})),
        ("range", json!({"key": c})),
        ("range", json!({"key": a, "range_end": c, "limit": "1"})),
        ("range", json!({"key": a, "range_end": c, "sort_order": "DESCEND", "sort_target": "MOD"})),
        ("range", json!({"key": a, "revision": 2})),
        ("range", json!({"key": a, "revision": "999"})),
        ("range", json!({"key": a, "range_end": c, "keys_only": true, "serializable": true})),
        ("range", json!({"key": a, "range_end": c, "count_only": true})),
        (
            "txn",
            json!({
                "compare": [{"target": "VALUE", "key": a, "value": base64("5")}],
                "success": [
                    {"request_put": {"key": c, "value": base64("new")}},
                    {"request_range": {"key": a, "range_end": base64("d")}},
                    {"request_delete_range": {"key": b, "prev_kv": true}},
                ],
                "failure": [{"request_range": {"key": a}}],
            }),
        ),
        (
            "txn",
            json!({
                "compare": [{"target": "CREATE", "result": "GREATER", "key": a, "create_revision": "99"}],
                "failure": [{"request_txn": {"success": [{"request_range": {"key": c}}]}}],
            }),
        ),
        ("deleterange", json!({"key": c, "prev_kv": true})),
        ("deleterange", json!({"key": c})),
        ("compaction", json!({"revision": "4"})),
        ("compaction", json!({"revision": "4"})),
        ("compaction", json!({"revision": "999"})),
        ("range", json!({"key": a, "revision": "3"})),
        ("lease/grant", json!({"ID": lease, "TTL": "600"})),
        ("lease/grant", json!({"ID": lease, "TTL": "600"})),
        ("put", json!({"key": c, "lease": lease})),
        ("lease/timetolive", json!({"ID": "4711"})),
        ("lease/leases", json!({})),
        ("lease/revoke", json!({"ID": lease.to_string()})),
        ("lease/revoke", json!({"ID": lease.to_string()})),
        ("range", json!({"key": "AA==", "range_end": "AA=="})),
    ] {
        let path = match path.starts_with("lease/") {
            true => format!("/v3/{path}"),
            false => format!("/v3/kv/{path}"),
        };
        let body = body.to_string();
        let (ours, etcd) = (ours.0.post(&path, &body).await, etcd.0.post(&path, &body).await);
        assert_eq!(comparable(&ours), comparable(&etcd), "left: ours, right: etcd: {path} {body}");
    }
    // Whole paths: older ones, the other services, and those that are none.
    for (path, body) in [
        ("/v3beta/kv/range", json!({"key": a})),
        ("/v3beta/kv/lease/timetolive", json!({"ID": "4711"})),
        ("/v3/kv/lease/timetolive", json!({"ID": "4711"})),
        ("/v3/kv/lease/revoke", json!({"ID": "4711"})),
        ("/v3/kv/lease/leases", json!({})),
        ("/v3/kv/lease/grant", json!({"TTL": "5"})),
        ("/v3alpha/kv/range", json!({"key": a})),
        ("/v3/nothing", json!({})),
        ("/nothing", json!({})),
        ("/v3/lock/lock", json!({"name": a, "lease": "4711"})),
        ("/v3/lock/unlock", json!({})),
        ("/v3/lock/unlock", json!({"key": b})),
        ("/v3/election/campaign", json!({"name": a, "lease": "4711"})),
        ("/v3/election/leader", json!({"name": a})),
        ("/v3/election/proclaim", json!({})),
        ("/v3/election/proclaim", json!({"leader": {"name": a, "rev": "9"}})),
        ("/v3/election/proclaim", json!({"leader": {"name": a, "key": b, "rev": "9"}})),
        ("/v3/election/resign", json!({})),
        ("/v3/election/resign", json!({"leader": {"name": a, "key": b, "rev": "9"}})),
        ("/v3/auth/enable", json!({})),
        ("/v3/auth/disable", json!({})),
        ("/v3/auth/authenticate", json!({"name": "root", "password": "x"})),
        ("/v3/auth/user/add", json!({})),
        ("/v3/auth/user/list", json!({})),
        ("/v3/auth/user/get", json!({"name": "x"})),
        ("/v3/auth/user/delete", json!({"name": "x"})),
        ("/v3/auth/user/changepw", json!({"name": "x", "password": "y"})),
        ("/v3/auth/user/grant", json!({"user": "x", "role": "y"})),
        ("/v3/auth/user/revoke", json!({"name": "x", "role": "y"})),
        ("/v3/auth/role/list", json!({})),
        ("/v3/auth/role/get", json!({"role": "x"})),
        ("/v3/auth/role/delete", json!({"role": "x"})),
        ("/v3/auth/role/grant", json!({"name": "x", "perm": {"key": a}})),
        ("/v3/auth/role/revoke", json!({"role": "x", "key": a})),
        ("/v3/lease/keepalive", json!({"ID": "4711"})),
    ] {
        let body = body.to_string();
        let (ours, etcd) = (ours.0.post(path, &body).await, etcd.0.post(path, &body).await);
        assert_eq!(ours.status, etcd.status, "{path}: {} {}", ours.body, etcd.body);
        match serde_json::from_str::<Value>(&etcd.body) {
            Ok(_) => assert_eq!(
                comparable(&ours),
                comparable(&etcd),
                "left: ours, right: etcd: {path} {body}"
            ),
            Err(_) => assert_eq!(ours.body, etcd.body, "{path}"),
        }
    }
    for path in ["/v3/kv/range", "/v3/lease/keepalive", "/v3/watch", "/v3/nothing"] {
        let (ours, etcd) = (ours.0.get(path).await, etcd.0.get(path).await);
        assert_eq!((ours.status, &ours.body), (etcd.status, &etcd.body), "GET {path}");
    }
    for (path, broken) in [
        ("/v3/watch", "{nonsense"),
        ("/v3/lease/keepalive", "{nonsense"),
        ("/v3/lease/keepalive", ""),
        ("/v3/election/observe", "{nonsense"),
    ] {
        let (ours, etcd) = (ours.0.post(path, broken).await, etcd.0.post(path, broken).await);
        assert_eq!(ours.status, etcd.status, "{path} {broken}: {} {}", ours.body, etcd.body);
    }
    // etcd says nothing of a message that is none when it is not the first.
    let watch = format!(r#"{{"create_request":{{"key":"{a}"}}}} {{nonsense"#);
    let answer = ours.0.post("/v3/watch", &watch).await;
    let lines: Vec<Value> =
        answer.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{}", answer.body);
    assert_eq!(lines[0]["result"]["created"], true);
    assert_eq!(lines[1]["error"]["grpc_code"], 2, "{}", answer.body);
    // What is wrong with these each says in its own words.
    for broken in ["{", "[]", r#"{"key":7}"#, r#"{"key":"this is not base64!"}"#] {
        let (ours, etcd) = (&ours.0, &etcd.0);
        let ours = ours.post("/v3/kv/range", broken).await;
        let etcd = etcd.post("/v3/kv/range", broken).await;
        assert_eq!(ours.status, etcd.status, "{broken}: {} {}", ours.body, etcd.body);
    }

    let (health, version) = (ours.0.get("/health").await, ours.0.get("/version").await);
    assert_eq!((health.status, &health.json()["health"]), (200, &json!("true")));
    for (field, of_etcd) in etcd.0.get("/version").await.json().as_object().expect("an object") {
        let shape = |version: &Value| {
            let version = version.as_str().expect("a text").to_owned();
            let numbers: Vec<u32> =
                version.split('.').map(|part| part.parse().expect("a number")).collect();
            (numbers.len(), numbers[0])
        };
        assert_eq!(shape(&version.json()[field]), shape(of_etcd), "{field}");
    }
}
