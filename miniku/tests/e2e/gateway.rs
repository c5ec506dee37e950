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
