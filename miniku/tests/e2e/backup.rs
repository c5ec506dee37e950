//! Backups, in both directions between this store and a real etcd.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use store_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use store_proto::mvccpb::KeyValue;

use crate::support::etcdctl::{Said, etcdctl};
use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::MINIKU;
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store};
use crate::support::wait::{holds, wait_for};

const FORMATS: [&str; 4] = ["simple", "fields", "json", "table"];

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

fn well(said: Said) -> String {
    assert!(said.success, "{}", said.error);
    said.output
}

fn miniku(arguments: &[&str]) -> Said {
    let output = Command::new(MINIKU).args(arguments).output().expect("miniku starts");
    Said {
        success: output.status.success(),
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Writes something of every kind: versions, deletions, a lease with a key, a large value, a
/// compacted past. The revision of its end.
async fn fill(store: &Store) -> i64 {
    let member = &store.members[0];
    let url = &member.client_url;
    for number in 0..60 {
        member.put(&format!("key/{:02}", number % 20), &format!("value {number}")).await.unwrap();
    }
    member.put("large", &"x".repeat(500_000)).await.unwrap();
    well(etcdctl(url, &["del", "key/03"]));
    let granted = well(etcdctl(url, &["lease", "grant", "1000"]));
    let lease = granted.split(' ').nth(1).expect("the id is the second word");
    well(etcdctl(url, &["put", "--lease", lease, "leased", "x"]));
    well(etcdctl(url, &["compaction", "30"]));
    well(etcdctl(url, &["del", "key/04"]));
    member.put("key/03", "again").await.unwrap()
}

async fn all_at(store: &Store, revision: i64) -> Vec<KeyValue> {
    let all = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        revision,
        ..Default::default()
    };
    store.members[0].range(all).await.unwrap().kvs
}

/// The same data at every revision that can be read, and the same leases.
async fn same(one: &Store, other: &Store, to: i64) {
    for revision in 30..=to {
        let (one, other) = (all_at(one, revision).await, all_at(other, revision).await);
        assert_eq!(one, other, "at revision {revision}");
    }
    for store in [one, other] {
        let below = etcdctl(&store.members[0].client_url, &["get", "--rev=29", "key/01"]);
        assert!(below.error.contains("required revision has been compacted"), "{}", below.error);
    }
    let leases = |store: &Store| well(etcdctl(&store.members[0].client_url, &["lease", "list"]));
    assert_eq!(leases(one), leases(other));
    assert!(leases(one).starts_with("found 1 leases"));
}

fn save(store: &Store, number: usize, file: &Path) {
    let url = &store.members[number].client_url;
    let saved = well(etcdctl(url, &["snapshot", "save", text(file)]));
    assert!(saved.contains("Snapshot saved at"), "{saved}");
    for format in FORMATS {
        let etcd = well(etcdctl(url, &["snapshot", "status", text(file), "-w", format]));
        let ours = well(miniku(&["store", "snapshot", "status", text(file), "-w", format]));
        assert_eq!(ours, etcd);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_backup_goes_into_a_real_etcd() {
    if !have(&[Need::Etcd, Need::Etcdctl]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let ours = Store::start(&scratch, 3).await;
    let revision = fill(&ours).await;
    ours.agree().await;
    let file = scratch.path("backup.db");
    save(&ours, 1, &file);

    let etcd = Store::start_from(&etcd_scratch, Kind::Etcd, 1, |restore| {
        let mut arguments = vec!["snapshot", "restore", text(&file)];
        arguments.extend(restore);
        well(etcdctl("", &arguments));
    })
    .await;
    same(&ours, &etcd, revision).await;
    assert_eq!(etcd.members[0].put("new", "x").await.unwrap(), revision + 1);
}

/// Restores members of ours with these flags before each.
fn restored_from<'a>(file: &'a Path) -> impl Fn(&[&str]) + 'a {
    move |identity| {
        let mut arguments = vec!["store", "snapshot", "restore", text(file)];
        arguments.extend(identity);
        let said = well(miniku(&arguments));
        assert!(said.contains("restored"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_backup_comes_back_as_a_cluster_of_three() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let (scratch, new_scratch) = (Scratch::new(), Scratch::new());
    let old = Store::start_with(&scratch, Kind::Miniku, 1, &[]).await;
    let revision = fill(&old).await;
    let file = scratch.path("backup.db");
    save(&old, 0, &file);

    let mut new = Store::start_from(&new_scratch, Kind::Miniku, 3, restored_from(&file)).await;
    same(&old, &new, revision).await;
    let mut hashes = Vec::new();
    for member in old.members.iter().chain(&new.members) {
        hashes.push(member.hash_kv(revision).await.unwrap());
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    assert_eq!(new.members[2].put("new", "x").await.unwrap(), revision + 1);

    // They are members as any others: one that dies catches up.
    new.members[1].process.kill();
    new.members[0].put("without", "n2").await.unwrap();
    new.members[1].process.start_again();
    new.agree().await;

    // What is there is never replaced.
    let taken = text(&new.members[0].data_dir).to_owned();
    let again = miniku(&["store", "snapshot", "restore", text(&file), "--data-dir", &taken]);
    assert!(!again.success && again.error.contains("exists"), "{}", again.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_etcds_backup_comes_to_us() {
    if !have(&[Need::Etcd, Need::Etcdctl]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 1, &[]).await;
    let revision = fill(&etcd).await;
    let file = scratch.path("backup.db");
    save(&etcd, 0, &file);

    let ours = Store::start_from(&scratch, Kind::Miniku, 3, restored_from(&file)).await;
    same(&etcd, &ours, revision).await;
    assert_eq!(ours.members[1].put("new", "x").await.unwrap(), revision + 1);
    ours.agree().await;

    // And back again.
    let back = scratch.path("back.db");
    save(&ours, 2, &back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_one_state() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let (scratch, new_scratch) = (Scratch::new(), Scratch::new());
    let store = Store::start_with(&scratch, Kind::Miniku, 3, &[]).await;
    let file = scratch.path("backup.db");
    // Every transaction puts the same number under both keys, at every member.
    let written = AtomicU64::new(0);
    let writer = async |member: &Member| {
        loop {
            let number = written.load(Ordering::Relaxed).to_string();
            let put = |key: &'static str| RequestOp {
                request: Some(request_op::Request::RequestPut(PutRequest {
                    key: key.into(),
                    value: number.clone().into(),
                    ..Default::default()
                })),
            };
            let txn = TxnRequest { success: vec![put("one"), put("two")], ..Default::default() };
            member.kv().txn(txn).await.unwrap();
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    let save = async {
        wait_for("some writes", async || holds(written.load(Ordering::Relaxed) > 200, "not yet"))
            .await;
        let (url, path) = (store.members[1].client_url.clone(), file.clone());
        let saving = tokio::task::spawn_blocking(move || {
            well(etcdctl(&url, &["snapshot", "save", text(&path)]))
        });
        saving.await.unwrap();
    };
    tokio::select! {
        () = save => {}
        () = writer(&store.members[0]) => {}
        () = writer(&store.members[1]) => {}
        () = writer(&store.members[2]) => {}
    }
    let restored = Store::start_from(&new_scratch, Kind::Miniku, 1, restored_from(&file)).await;
    let kvs = all_at(&restored, 0).await;
    assert_eq!(kvs.len(), 2);
    assert_eq!(kvs[0].value, kvs[1].value);
    assert_eq!(kvs[0].mod_revision, kvs[1].mod_revision);
    assert!(kvs[0].version > 200);
    // The store that it was taken of had the same at that revision.
    assert_eq!(all_at(&store, kvs[0].mod_revision).await, kvs);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_streams_the_same_file() {
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 1).await;
    store.members[0].put("large", &"x".repeat(500_000)).await.unwrap();
    let http = Http::new(&store.members[0].client_url);
    let answer = http.post("/v3/maintenance/snapshot", "{}").await;
    let mut file = Vec::new();
    let mut remaining = Vec::new();
    for line in answer.body.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let result = &line["result"];
        file.extend(BASE64_STANDARD.decode(result["blob"].as_str().unwrap()).unwrap());
        remaining.push(result["remaining_bytes"].as_str().unwrap_or("0").parse::<u64>().unwrap());
    }
    assert!(remaining.is_sorted_by(|a, b| a >= b) && remaining[0] > 0, "{remaining:?}");
    let path = scratch.path("backup.db");
    std::fs::write(&path, &file).unwrap();
    assert_eq!(file.len() as u64 % 512, 32);
    let said = well(miniku(&["store", "snapshot", "status", text(&path), "-w", "json"]));
    assert!(said.contains("\"revision\":2"), "{said}");
}
