//! A backup of very many keys: `etcdctl snapshot save` from one of three members, and three members
//! that begin with it. It runs small among the tests; `MINIKU_TEST_KEYS` says with how many keys, and
//! then it is a measurement, on a release build:
//!
//! ```console
//! $ MINIKU_TEST_KEYS=1000000 cargo test --release -p miniku --test e2e -- backup_at_size --nocapture
//! ```

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::many_keys::{key, load};
use crate::support::prerequisites::{Need, have};
use crate::support::processes::MINIKU;
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::{holds, wait_for};

const POLL: Duration = Duration::from_millis(20);

/// Runs a program to its end, which must be a good one; how much memory it took at most, in MB.
fn run(program: &str, arguments: &[&str]) -> u64 {
    let mut child = Command::new(program)
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("it starts");
    let mut peak_kilobytes = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        peak_kilobytes = peak_kilobytes.max(kilobytes.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            assert!(status.success(), "{program} {arguments:?}: {status}");
            return peak_kilobytes >> 10;
        }
        std::thread::park_timeout(POLL);
    }
}

fn megabytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("it is there").len() >> 20
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_at_size() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let keys = std::env::var("MINIKU_TEST_KEYS").map_or(5_000, |n| n.parse().expect("a number"));
    let (scratch, restored_scratch) = (Scratch::new(), Scratch::new());
    let mut store = Store::start(&scratch, 3).await;
    load(&store.members[0], keys).await;
    // Something that is gone, and something with a history.
    store.members[0].delete(&key(0), &key(10)).await.expect("it is deleted");
    store.members[0].put(&key(10), "again").await.expect("it is written");
    let revision = store.members[0].revision().await;
    let asked = (store.leader().await + 1) % 3;
    wait_for("all is there", async || {
        let there = store.members[asked].revision().await;
        holds(there == revision, format!("it is at {there}"))
    })
    .await;
    let count = store.members[asked].count().await;
    let hash = store.members[asked].hash_kv(revision).await.expect("it is hashed");

    let file = scratch.path("backup.db");
    let path = file.to_str().expect("a temporary path is UTF-8");
    let begin = Instant::now();
    let endpoints = format!("--endpoints={}", store.members[asked].client_url);
    let save = ["snapshot", "save", path, &endpoints, "--command-timeout=300s"];
    let etcdctl_peak = run("etcdctl", &save);
    println!(
        "{count} keys saved in {:?}: {} MB; etcdctl took {etcdctl_peak} MB of memory",
        begin.elapsed(),
        megabytes(&file)
    );
    store.members.iter_mut().for_each(|member| member.process.kill());

    let begin = Instant::now();
    let restore = |flags: &[&str]| {
        let begin = Instant::now();
        let arguments = [&["store", "snapshot", "restore", path], flags].concat();
        let peak = run(MINIKU, &arguments);
        println!("restored for a member in {:?}, with {peak} MB of memory", begin.elapsed());
    };
    let restored = Store::start_from(&restored_scratch, Kind::Miniku, 3, restore).await;
    println!("all three restored, started and serving after {:?}", begin.elapsed());
    for member in &restored.members {
        assert_eq!(member.count().await, count);
        assert_eq!(member.hash_kv(revision).await.expect("it is hashed"), hash);
    }
    let latest = restored.members[0].at(&key(10), 0).await.expect("it is read");
    assert_eq!(latest.kvs[0].value, "again");
}
