//! Room: alarms as etcd has them, a quota that refuses what needs room and lets go again by itself,
//! and compaction by itself.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::etcdctl::etcdctl;
use crate::support::http::{Answer, Http};
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::{holds, wait_for};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// Status and body, without who answered: etcd 3.4 leaves that out of what it says of alarms.
fn comparable(answer: &Answer) -> (u16, Value) {
    let mut body = answer.json();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("header");
        for one_of_two in ["ID", "version", "raftIndex", "raftAppliedIndex", "raftTerm", "leader"] {
            fields.remove(one_of_two);
        }
        fields.retain(|name, _| !name.starts_with("dbSize"));
    }
    (answer.status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_refuse_what_etcds_refuse() {
    if !have(&[Need::Etcd, Need::Etcdctl]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let mut ours = Store::start_with(&scratch, Kind::Miniku, 1, &[]).await;
    let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 1, &[]).await;
    let https = [&ours, &etcd].map(|store| Http::new(&store.members[0].client_url));
    let same = async |path: &str, body: &Value| {
        let mut answers = Vec::new();
        for http in &https {
            answers.push(comparable(&http.post(&format!("/v3/{path}"), &body.to_string()).await));
        }
        assert_eq!(answers[0], answers[1], "left: ours, right: etcd; {path} {body}");
        answers.swap_remove(0)
    };
    let (a, lease) = (base64("a"), json!("4711"));
    let put = json!({"request_put": {"key": a, "value": a}});
    let delete = json!({"request_delete_range": {"key": base64("none")}});
    let range = json!({"request_range": {"key": a}});
    let requests = [
        ("kv/put", json!({"key": a, "value": a})),
        ("kv/range", json!({"key": a})),
        ("kv/txn", json!({"success": [range]})),
        ("kv/txn", json!({"success": [delete]})),
        ("kv/txn", json!({"success": [delete], "failure": [put]})),
        ("kv/txn", json!({})),
        ("kv/deleterange", json!({"key": base64("none")})),
        ("lease/grant", json!({"ID": lease, "TTL": "600"})),
        ("lease/timetolive", json!({"ID": "1"})),
        ("lease/revoke", json!({"ID": lease})),
        ("maintenance/status", json!({})),
    ];
    let alarm = |action: &str, kind: &str, member: u64| json!({"action": action, "alarm": kind, "memberID": member.to_string()});
    let etcdctl_same = |arguments: &[&str]| {
        let said = [&ours, &etcd].map(|store| etcdctl(&store.urls(), arguments));
        assert_eq!(said[0].output, said[1].output, "left: ours, right: etcd; {arguments:?}");
        said[0].output.clone()
    };
    for kind in ["NOSPACE", "CORRUPT"] {
        same("maintenance/alarm", &alarm("ACTIVATE", kind, 7)).await;
        same("maintenance/alarm", &alarm("ACTIVATE", kind, 7)).await;
        for get in ["NONE", "NOSPACE", "CORRUPT"] {
            same("maintenance/alarm", &alarm("GET", get, 0)).await;
        }
        for (path, body) in &requests {
            same(path, body).await;
        }
        let (status, refused) = same("kv/put", &requests[0].1).await;
        assert_ne!(status, 200, "{refused}");
        assert!(etcdctl_same(&["alarm", "list"]).contains(&format!("memberID:7 alarm:{kind} ")));
        same("maintenance/alarm", &alarm("DEACTIVATE", kind, 8)).await;
        etcdctl_same(&["alarm", "disarm"]);
        assert_eq!(etcdctl_same(&["alarm", "list"]), "");
        etcdctl_same(&["alarm", "disarm"]);
        for (path, body) in &requests {
            same(path, body).await;
        }
    }

    // An alarm is part of the state.
    same("maintenance/alarm", &alarm("ACTIVATE", "NOSPACE", 9)).await;
    ours.members[0].process.kill();
    ours.members[0].process.start_again();
    ours.serves(0).await;
    same("kv/put", &requests[0].1).await;
    let listed = same("maintenance/alarm", &alarm("GET", "NONE", 0)).await;
    assert_eq!(listed.1["alarms"][0]["memberID"], "9");
}

/// What a store says of its alarms.
async fn errors(store: &Store, number: usize) -> Vec<String> {
    store.members[number].status().await.expect("it runs").errors
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_refuses_growth_and_has_room_again_after_a_compaction() {
    let scratch = Scratch::new();
    let flags = ["--quota-backend-bytes=1000000"];
    let store = Store::start_with(&scratch, Kind::Miniku, 3, &flags).await;
    let value = "x".repeat(10_000);
    let mut acknowledged = 0;
    let refusal = loop {
        match store.members[acknowledged % 3].put(&format!("/key/{acknowledged}"), &value).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 200, "2 MB went into 1 MB");
    };
    assert_eq!((refusal.code(), refusal.message()), (tonic::Code::ResourceExhausted, NO_SPACE));
    assert!(acknowledged > 90, "{acknowledged} of 100 went in");
    wait_for("the alarm is raised", async || {
        let errors = errors(&store, 0).await;
        holds(errors.iter().any(|error| error.ends_with(" alarm:NOSPACE ")), errors.join("; "))
    })
    .await;
    for member in &store.members {
        // Small ones as well, on all members.
        let refusal = member.put("/small", "x").await.expect_err("there is no room");
        assert_eq!(refusal.message(), NO_SPACE);
    }
    assert_eq!(store.agree().await.len(), acknowledged);

    // Deletions and compactions pass, and make room.
    let deleted = store.members[1].delete("/key/", "/key0").await.expect("deleting takes no room");
    let said = store.members[2].put("/small", "x").await.expect_err("the history is still there");
    assert_eq!(said.message(), NO_SPACE);
    store.members[2].compact(deleted).await.expect("compacting takes no room");
    wait_for("there is room again", async || store.members[0].put("/small", "x").await).await;
    wait_for("the alarm is taken back", async || {
        let errors = errors(&store, 2).await;
        holds(errors.is_empty(), errors.join("; "))
    })
    .await;
    let status = store.members[0].status().await.expect("it runs");
    assert!(status.db_size_in_use < 100_000, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_compacted_by_itself() {
    let scratch = Scratch::new();
    let flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];
    let store = Store::start_with(&scratch, Kind::Miniku, 3, &flags).await;
    let first = store.members[0].put("/key", "first").await.expect("it runs");
    store.members[0].put("/key", "second").await.expect("it runs");
    wait_for("the first revision is gone", async || {
        let read = store.members[1].at("/key", first).await;
        holds(
            read.is_err_and(|error| error.message().ends_with("has been compacted")),
            "it is there",
        )
    })
    .await;
    assert_eq!(store.agree().await[0].value, "second".as_bytes());
}
