//! Compaction of a store with very many keys: how long writes are held up by it. It takes minutes
//! and is a measurement, so it runs when asked for, on a release build:
//!
//! ```console
//! $ cargo test --release -p miniku --test e2e -- --ignored compaction_at_size --nocapture
//! ```
//! `MINIKU_TEST_KEYS` says with how many keys (1,000,000).

use std::time::Duration;

use store_proto::etcdserverpb::request_op::Request;
use store_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store};
use crate::support::wait::{holds, wait_for};

const LOADERS: usize = 16;
const KEYS_PER_TXN: usize = 100;
const WRITERS: usize = 16;
const PHASE: Duration = Duration::from_secs(20);
const COMPACTION_INTERVAL: Duration = Duration::from_secs(3);

fn key(number: usize) -> String {
    format!("/registry/pods/default/{number:08}")
}

fn put(number: usize, value: &str) -> PutRequest {
    PutRequest { key: key(number).into(), value: value.to_owned().into(), ..Default::default() }
}

async fn load(member: &Member, keys: usize) {
    let mut loaders = JoinSet::new();
    for loader in 0..LOADERS {
        let mut kv = member.kv();
        loaders.spawn(async move {
            let value = "v".repeat(100);
            for first in (loader * KEYS_PER_TXN..keys).step_by(LOADERS * KEYS_PER_TXN) {
                let last = (first + KEYS_PER_TXN).min(keys);
                let put =
                    |number| RequestOp { request: Some(Request::RequestPut(put(number, &value))) };
                let success = (first..last).map(put).collect();
                kv.txn(TxnRequest { success, ..Default::default() }).await.expect("it loads");
            }
        });
    }
    loaders.join_all().await;
}

/// Overwrites keys for a while; how long each put took, the shortest first.
async fn overwrite(member: &Member, keys: usize) -> Vec<Duration> {
    let mut writers = JoinSet::new();
    let end = Instant::now() + PHASE;
    for writer in 0..WRITERS {
        let mut kv = member.kv();
        writers.spawn(async move {
            let mut took = Vec::new();
            let mut number = writer;
            while Instant::now() < end {
                // All over the keys: a stride that shares no factor with a round number of them.
                number = (number + 7_919 * WRITERS + 1) % keys;
                let begin = Instant::now();
                kv.put(put(number, &"w".repeat(100))).await.expect("it is written");
                took.push(begin.elapsed());
            }
            took
        });
    }
    let mut took: Vec<Duration> = writers.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    took
}

fn report(what: &str, took: &[Duration]) {
    let part = |of: usize| took[(took.len() - 1) * of / 1000];
    println!(
        "{what}: {} puts, median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}",
        took.len(),
        part(500),
        part(990),
        part(999),
        part(1000)
    );
}

#[ignore = "a measurement that takes minutes"]
#[tokio::test(flavor = "multi_thread")]
async fn compaction_at_size() {
    let keys =
        std::env::var("MINIKU_TEST_KEYS").map_or(1_000_000, |n| n.parse().expect("a number"));
    let scratch = Scratch::new();
    let store = Store::start_with(&scratch, Kind::under_test(), 1, &[]).await;
    let member = &store.members[0];
    let begin = Instant::now();
    load(member, keys).await;
    println!("{keys} keys loaded in {:?}", begin.elapsed());
    let loaded = member.status().await.expect("it runs");
    println!("in use {} MB, on disk {} MB", loaded.db_size_in_use >> 20, loaded.db_size >> 20);

    report("without compaction", &overwrite(member, keys).await);
    let compactions = async {
        let mut count = 0;
        loop {
            tokio::time::sleep(COMPACTION_INTERVAL).await;
            let revision = member.revision().await;
            member.compact_now(revision).await.expect("it compacts");
            count += 1;
            if count == PHASE.as_secs() / COMPACTION_INTERVAL.as_secs() {
                return revision;
            }
        }
    };
    let (took, compacted) = tokio::join!(overwrite(member, keys), compactions);
    report("with a compaction every 3 s", &took);

    // What a reader sees at the compacted revision is whole, and below there is nothing.
    let at = member.at(&key(keys / 2), compacted).await.expect("that can be read");
    assert_eq!(at.kvs.len(), 1);
    let error = member.at(&key(keys / 2), compacted - 1).await.expect_err("that is gone");
    assert!(error.message().ends_with("has been compacted"), "{error}");

    let begin = Instant::now();
    let revision = member.revision().await;
    member.compact_now(revision).await.expect("it compacts");
    wait_for("all but one version of each key is gone", async || {
        let status = member.status().await.map_err(|error| error.to_string())?;
        let in_use = status.db_size_in_use;
        holds(in_use <= loaded.db_size_in_use * 11 / 10, format!("{in_use} bytes are in use"))
    })
    .await;
    let status = member.status().await.expect("it runs");
    let (in_use, on_disk) = (status.db_size_in_use >> 20, status.db_size >> 20);
    println!("room is back after {:?}: in use {in_use} MB, on disk {on_disk} MB", begin.elapsed());
    assert_eq!(member.count().await, i64::try_from(keys).expect("few"));
}
