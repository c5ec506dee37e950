//! Compaction of a store with very many keys under writes and watches: what can be read stays right,
//! every watch sees every revision, room comes back; and how long writes are held up by it.
//!
//! It runs small among the tests. For a measurement, on a release build:
//!
//! ```console
//! $ MINIKU_TEST_KEYS=1000000 MINIKU_TEST_SECONDS=30 \
//!     cargo test --release -p miniku --test e2e -- compaction_at_size --nocapture
//! ```
//! `MINIKU_TEST_MEMBERS` says of how many members the store is (3).

use std::time::Duration;

use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;
use tonic::Streaming;

use crate::support::many_keys::{key, load, put};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store};
use crate::support::wait::{PATIENCE, holds, wait_for};

const WRITERS: usize = 16;
const COMPACTION_INTERVAL: Duration = Duration::from_secs(3);
/// Of so many puts one is looked at again.
const SAMPLE: usize = 100;
/// What a key beside the others holds when all is over.
const LAST: &str = "/registry/the-last";

/// What was put, and at which revision.
struct Sample {
    key: String,
    revision: i64,
    value: String,
}

/// Overwrites keys for a while; how long each put took, the shortest first, and some of the puts.
async fn overwrite(store: &Store, keys: usize, time: Duration) -> (Vec<Duration>, Vec<Sample>) {
    let mut writers = JoinSet::new();
    let end = Instant::now() + time;
    for writer in 0..WRITERS {
        let mut kv = store.members[writer % store.members.len()].kv();
        writers.spawn(async move {
            let (mut took, mut samples) = (Vec::new(), Vec::new());
            let mut number = writer;
            while Instant::now() < end {
                // All over the keys: a stride that shares no factor with a round number of them.
                number = (number + 7_919 * WRITERS + 1) % keys;
                let value = format!("{writer:02}-{:07}-{}", took.len(), "w".repeat(89));
                let begin = Instant::now();
                let answer = kv.put(put(number, &value)).await.expect("it is written");
                took.push(begin.elapsed());
                if took.len() % SAMPLE == 0 {
                    let revision = answer.into_inner().header.map_or(0, |header| header.revision);
                    samples.push(Sample { key: key(number), revision, value });
                }
            }
            (took, samples)
        });
    }
    let (mut took, mut samples) = (Vec::new(), Vec::new());
    for (of_writer, its_samples) in writers.join_all().await {
        took.extend(of_writer);
        samples.extend(its_samples);
    }
    took.sort_unstable();
    (took, samples)
}

fn report(what: &str, took: &[Duration]) {
    let part = |of: usize| took[(took.len() - 1) * of / 1000];
    let slow = took.iter().filter(|took| **took > Duration::from_millis(100)).count();
    println!(
        "{what}: {} puts, median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}; {slow} above 100 ms",
        took.len(),
        part(500),
        part(990),
        part(999),
        part(1000)
    );
}

/// Watches everything from a revision on, and sees every revision, in order, until the last key
/// comes.
async fn watch(watches: &mut JoinSet<i64>, member: &Member, start_revision: i64) {
    let create = WatchCreateRequest {
        key: "/registry/".into(),
        range_end: "/registry0".into(),
        start_revision,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut stream: Streaming<WatchResponse> =
        member.watch().watch(requests).await.expect("a watch begins").into_inner();
    let created = stream.message().await.expect("it goes on").expect("it goes on");
    assert!(created.created && !created.canceled, "{created:?}");
    watches.spawn(async move {
        let mut next = start_revision;
        loop {
            let answer = timeout(PATIENCE, stream.message()).await.expect("something always comes");
            let answer = answer.expect("it goes on").expect("it goes on");
            assert!(!answer.canceled, "{answer:?}");
            for event in answer.events {
                let pair = event.kv.expect("a put");
                assert_eq!(pair.mod_revision, next, "a revision is missing, or comes twice");
                next += 1;
                if pair.key == LAST {
                    return next;
                }
            }
        }
    });
}

/// The hashes of all members over the history that there is.
async fn hashes(store: &Store, revision: i64) -> Vec<(u32, i64)> {
    let mut hashes = Vec::new();
    for member in &store.members {
        let of_member = wait_for("all is there", async || member.hash_kv(revision).await).await;
        hashes.push(of_member);
    }
    hashes
}

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_at_size() {
    let keys = setting("MINIKU_TEST_KEYS", 10_000);
    let time = Duration::from_secs(setting("MINIKU_TEST_SECONDS", 4) as u64);
    let members = setting("MINIKU_TEST_MEMBERS", 3);
    let scratch = Scratch::new();
    let store = Store::start_with(&scratch, Kind::under_test(), members, &[]).await;
    let member = &store.members[0];
    let begin = Instant::now();
    load(member, keys).await;
    println!("{keys} keys loaded in {:?}", begin.elapsed());
    let loaded = member.status().await.expect("it runs");
    println!("in use {} MB, on disk {} MB", loaded.db_size_in_use >> 20, loaded.db_size >> 20);

    let first = member.revision().await + 1;
    let mut watches = JoinSet::new();
    for member in &store.members {
        watch(&mut watches, member, first).await;
    }
    let (took, before) = overwrite(&store, keys, time).await;
    report("without compaction", &took);
    let compactions = async {
        let mut count = 0;
        loop {
            tokio::time::sleep(COMPACTION_INTERVAL).await;
            let revision = member.revision().await;
            member.compact_now(revision).await.expect("it compacts");
            count += 1;
            if count >= time.as_secs() / COMPACTION_INTERVAL.as_secs() {
                return revision;
            }
        }
    };
    let ((took, after), compacted) = tokio::join!(overwrite(&store, keys, time), compactions);
    report("with a compaction every 3 s", &took);
    let written = member.status().await.expect("it runs");
    println!("in use {} MB, on disk {} MB", written.db_size_in_use >> 20, written.db_size >> 20);

    // From the compacted revision on history is right, and below there is nothing.
    let revision = member.put(LAST, "1").await.expect("it is written");
    watch(&mut watches, &store.members[members - 1], compacted).await;
    let seen = watches.join_all().await;
    assert_eq!(seen, vec![revision + 1; members + 1]);
    for sample in after.iter().filter(|sample| sample.revision >= compacted) {
        let at = member.at(&sample.key, sample.revision).await.expect("that can be read");
        assert_eq!(at.kvs[0].value, sample.value, "{} at {}", sample.key, sample.revision);
    }
    for sample in before.iter().rev().take(100) {
        let at = member.at(&sample.key, compacted).await.expect("that can be read");
        assert!(at.kvs[0].mod_revision >= sample.revision, "{}", sample.key);
        let error = member.at(&sample.key, sample.revision).await.expect_err("that is gone");
        assert!(error.message().ends_with("has been compacted"), "{error}");
    }
    let early = hashes(&store, revision).await;
    assert!(early.iter().all(|hash| *hash == (early[0].0, compacted)), "{early:?}");

    let begin = Instant::now();
    member.compact_now(revision).await.expect("it compacts");
    wait_for("all but one version of each key is gone", async || {
        let status = member.status().await.map_err(|error| error.to_string())?;
        let in_use = status.db_size_in_use;
        holds(in_use <= loaded.db_size_in_use * 11 / 10, format!("{in_use} bytes are in use"))
    })
    .await;
    println!("room is back after {:?}", begin.elapsed());
    let compacted = hashes(&store, revision).await;
    // What is removed, and when, changes nothing that can be seen.
    let error = member.compact(revision).await.expect_err("that was compacted");
    assert!(error.message().ends_with("has been compacted"), "{error}");
    let revision = member.put(LAST, "2").await.expect("it is written");
    let begin = Instant::now();
    member.compact(revision).await.expect("it compacts, and removes what it has left");
    let status = member.status().await.expect("it runs");
    let (in_use, on_disk) = (status.db_size_in_use >> 20, status.db_size >> 20);
    println!("removed after {:?}: in use {in_use} MB, on disk {on_disk} MB", begin.elapsed());
    if Kind::under_test() == Kind::Miniku {
        // Half as much as is in use may be dead, and some megabytes in any case.
        let files_shrunk = async || {
            let status = member.status().await.map_err(|error| error.to_string())?;
            let limit = status.db_size_in_use * 3 / 2 + (16 << 20);
            holds(status.db_size <= limit, format!("{} bytes are taken", status.db_size))?;
            Ok::<_, String>(status.db_size >> 20)
        };
        let on_disk = wait_for("room comes back on the disk", files_shrunk).await;
        println!("on disk {on_disk} MB after {:?}", begin.elapsed());
    }
    assert!(compacted.iter().all(|hash| *hash == compacted[0]), "{compacted:?}");
    let removed = hashes(&store, revision).await;
    assert!(removed.iter().all(|hash| *hash == removed[0]), "{removed:?}");
    assert_eq!(member.count().await, i64::try_from(keys).expect("few") + 1);
}
