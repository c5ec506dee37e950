//! Store members killed under load: what was acknowledged stays, and the rest goes on.

use rustix::process::Signal;
use store_proto::etcdserverpb::RangeRequest;
use store_proto::mvccpb::KeyValue;
use tokio::time::Instant;
use tonic::Code;

use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::wait_for;
use crate::support::writers::Writers;

/// How often the leader is killed: `MINIKU_TEST_FAILOVERS`, or a few times.
fn failovers() -> usize {
    let wanted = std::env::var("MINIKU_TEST_FAILOVERS");
    wanted.map_or(5, |number| number.parse().expect("MINIKU_TEST_FAILOVERS is a number"))
}

/// Whether the store under test can be started here at all.
fn ready() -> bool {
    Kind::under_test() == Kind::Miniku || have(&[Need::Etcd])
}

/// Where every write is of another key, every revision from 2 on is one of these keys'.
fn assert_contiguous(everything: &[KeyValue]) {
    let mut revisions: Vec<i64> = everything.iter().map(|pair| pair.mod_revision).collect();
    revisions.sort_unstable();
    for (expected, found) in (2..).zip(revisions) {
        assert_eq!(found, expected, "revisions have no gap and no double");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_no_acknowledged_write() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    let writers = Writers::start(&store, 4);
    let mut kills = Vec::new();
    for _ in 0..failovers() {
        writers.go_on(100).await;
        let leader = store.leader().await;
        let killed = Instant::now();
        store.members[leader].process.kill();
        writers.go_on(100).await;
        kills.push((killed, Instant::now()));
        store.members[leader].process.start_again();
        store.serves(leader).await;
    }
    let history = writers.stop().await;
    let stored = store.agree().await;
    history.check(&stored);
    assert_contiguous(&stored);

    let mut gaps: Vec<_> = kills.iter().map(|(from, to)| history.longest_gap(*from, *to)).collect();
    gaps.sort_unstable();
    // For a reader of the log: timings on a shared machine are nothing to fail for.
    println!("gaps without an acknowledged write: {gaps:.0?}, median {:.0?}", gaps[gaps.len() / 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_answers_nothing_stale_when_it_wakes() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 3).await;
    let writers = Writers::start(&store, 3);
    writers.go_on(50).await;
    let leader = store.leader().await;
    store.members[leader].process.signal(Signal::STOP);
    writers.go_on(100).await;

    let others = (0..3).filter(|number| *number != leader);
    let mut newest = 0;
    for number in others {
        let status = store.members[number].status().await.expect("it runs");
        newest = newest.max(status.header.expect("a header").revision);
    }
    store.members[leader].process.signal(Signal::CONT);
    let any = RangeRequest { key: "any".into(), ..Default::default() };
    let answer =
        wait_for("the old leader answers", async || store.members[leader].range(any.clone()).await)
            .await;
    let revision = answer.header.expect("a header").revision;
    assert!(revision >= newest, "a read at {revision} after writes at {newest}");

    writers.go_on(50).await;
    let history = writers.stop().await;
    history.check(&store.agree().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_acknowledged_and_one_member_back_is_enough() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    let last = store.members[0].put("/before", "1").await.expect("all are up");
    store.agree().await;
    store.members[1].process.kill();
    store.members[2].process.kill();

    let left = &store.members[0];
    for key in ["/without", "/without/too"] {
        let error = left.put(key, "1").await.expect_err("one of three is no quorum");
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().starts_with("etcdserver: "), "{error}");
    }
    let before = RangeRequest { key: "/before".into(), ..Default::default() };
    left.range(before.clone()).await.expect_err("a linearizable read needs a quorum");
    let local = RangeRequest { serializable: true, ..before };
    let answer = left.range(local).await.expect("a serializable read does not");
    assert_eq!(answer.kvs[0].value, "1");
    assert_eq!(answer.header.expect("a header").revision, last, "nothing was applied");

    store.members[2].process.start_again();
    let survivor = &store.members[0];
    let back = wait_for("writes go on", async || survivor.put("/after", "1").await).await;
    assert!(back > last);
    store.members[1].process.start_again();
    store.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_killed_under_load_come_back_with_everything() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    let writers = Writers::start(&store, 4);
    for _ in 0..2 {
        writers.go_on(200).await;
        for member in &mut store.members {
            member.process.kill();
        }
        for member in &mut store.members {
            member.process.start_again();
        }
        writers.go_on(100).await;
    }
    let history = writers.stop().await;
    let stored = store.agree().await;
    history.check(&stored);
    assert_contiguous(&stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_restarted_in_turn_lose_nothing() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    let writers = Writers::start(&store, 4);
    for number in 0..3 {
        writers.go_on(50).await;
        let status = store.members[number].process.terminate().await;
        assert!(status.success(), "SIGTERM ends it in good order");
        writers.go_on(50).await;
        store.members[number].process.start_again();
        store.serves(number).await;
    }
    let history = writers.stop().await;
    history.check(&store.agree().await);
}
