//! The client against a real etcd whose members and connections die.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use store_client::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, TxnRequest,
};
use store_client::testing::{Etcd, Proxy};
use store_client::{Client, ClientConfig, Code, Error, Watch, WatchOptions, request};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn client(urls: &[String]) -> Client {
    Client::new(ClientConfig::new(&urls.join(",")).unwrap()).unwrap()
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    }
}

async fn value(client: &Client, key: &'static str) -> Option<Bytes> {
    let response = client.range(request::key(key)).await.unwrap();
    response.kvs.into_iter().next().map(|kv| kv.value)
}

/// The values of the next events, until there are so many.
async fn values(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let batch = timeout(PATIENCE, watch.next()).await.expect("events in time").unwrap();
        for event in batch.events {
            values.push(String::from_utf8_lossy(&event.kv.unwrap().value).into_owned());
        }
    }
    values
}

#[tokio::test]
async fn every_call() {
    let Some(etcd) = Etcd::start().await else { return };
    let client = client(&[etcd.url()]);

    let revision = client.put(put("a", "1")).await.unwrap().header.unwrap().revision;
    assert_eq!(value(&client, "a").await.unwrap(), "1");
    let (response, repeated) = client
        .txn_guarded(TxnRequest {
            compare: vec![request::mod_revision_is("a", revision)],
            success: vec![request::put_op("a", "2")],
            failure: vec![request::range_op(request::key("a"))],
        })
        .await
        .unwrap();
    assert!(response.succeeded && !repeated);
    let lease = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap();
    assert_eq!(client.lease_keep_alive(lease.id).await.unwrap().ttl, 60);
    let left = LeaseTimeToLiveRequest { id: lease.id, keys: false };
    assert!(client.lease_time_to_live(left).await.unwrap().ttl > 50);
    client.lease_revoke(lease.id).await.unwrap();
    assert_eq!(client.lease_time_to_live(left).await.unwrap().ttl, -1);
    assert_eq!(client.member_list().await.unwrap().members.len(), 1);
    assert!(client.status().await.unwrap().version.starts_with("3."));
    let all = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    assert_eq!(client.delete_range(all).await.unwrap().prev_kvs[0].value, "2");

    client.compact(CompactionRequest { revision: revision + 1, physical: false }).await.unwrap();
    let old = RangeRequest { revision, ..request::key("a") };
    assert!(matches!(client.range(old).await, Err(Error::Compacted { .. })));
    let future = RangeRequest { revision: revision + 1000, ..request::key("a") };
    assert!(matches!(client.range(future).await, Err(Error::FutureRevision)));
    let refused = client.range(RangeRequest::default()).await.unwrap_err();
    let Error::Request { code: Code::InvalidArgument, message } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(message, "etcdserver: key is not provided");
}

#[tokio::test]
async fn nobody_there_says_who_was_asked_and_why_it_failed() {
    let mut config = ClientConfig::new("http://127.0.0.1:1,http://127.0.0.1:2").unwrap();
    config.request_timeout = Duration::from_millis(300);
    let client = Client::new(config).unwrap();
    for error in [
        client.range(request::key("a")).await.map(drop).unwrap_err(),
        client.put(put("a", "1")).await.map(drop).unwrap_err(),
        client.txn_guarded(TxnRequest::default()).await.map(drop).unwrap_err(),
    ] {
        let text = error.to_string();
        assert_eq!(
            text,
            "no store endpoint of http://127.0.0.1:1,http://127.0.0.1:2 answered in time"
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("Connection refused"), "{cause}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_cut_is_left_for_another() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::start(etcd.addr()).await, Proxy::start(etcd.addr()).await);
    let client = client(&[one.url(), two.url()]);
    for round in 0..6 {
        let (dead, alive) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        alive.restore();
        dead.cut();
        let text = round.to_string();
        // A put may be ambiguous when the cut meets the connection in use; never twice in a row.
        if let Err(error) = client.put(put("a", &text)).await {
            assert!(matches!(error, Error::Ambiguous { .. }), "{error:?}");
            client.put(put("a", &text)).await.unwrap();
        }
        assert_eq!(value(&client, "a").await.unwrap(), text);
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_left_for_another() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::start(etcd.addr()).await, Proxy::start(etcd.addr()).await);
    let client = client(&[one.url(), two.url()]);
    let revision = client.put(put("a", "1")).await.unwrap().header.unwrap().revision;
    one.stall();
    assert_eq!(value(&client, "a").await.unwrap(), "1");
    two.stall();
    one.restore();
    // The answer of the attempt that hangs is not known.
    let (response, repeated) = client
        .txn_guarded(TxnRequest {
            compare: vec![request::mod_revision_is("a", revision)],
            success: vec![request::put_op("a", "2")],
            failure: Vec::new(),
        })
        .await
        .unwrap();
    assert!(response.succeeded && repeated);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_ambiguous() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    let mut config = ClientConfig::new(&proxy.url()).unwrap();
    config.request_timeout = Duration::from_millis(300);
    let client = Client::new(config).unwrap();
    client.put(put("a", "1")).await.unwrap();
    proxy.stall();
    let error = client.put(put("a", "2")).await.unwrap_err();
    assert!(matches!(error, Error::Ambiguous { .. }), "{error:?}");
    let error = client.txn_guarded(TxnRequest::default()).await.unwrap_err();
    assert!(matches!(error, Error::Ambiguous { .. }), "{error:?}");
    let error = client.range(request::key("a")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_on_another_endpoint() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::start(etcd.addr()).await, Proxy::start(etcd.addr()).await);
    let writer = client(&[etcd.url()]);
    let mut watch = client(&[one.url(), two.url()]).watch(WatchOptions::prefix("a"));
    assert_eq!(timeout(PATIENCE, watch.next()).await.unwrap().unwrap().events, []);

    for (round, breaks) in [Proxy::cut, Proxy::stall].into_iter().cycle().take(6).enumerate() {
        let (dead, alive) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        alive.restore();
        let before = format!("{round} before");
        writer.put(put("a1", &before)).await.unwrap();
        assert_eq!(values(&mut watch, 1).await, [before]);
        breaks(dead);
        let during: Vec<String> = (0..20).map(|i| format!("{round} during {i}")).collect();
        for text in &during {
            writer.put(put("a2", text)).await.unwrap();
        }
        assert_eq!(values(&mut watch, 20).await, during);
    }
}

#[tokio::test]
async fn a_watch_below_the_compaction_says_so() {
    let Some(etcd) = Etcd::start().await else { return };
    let client = client(&[etcd.url()]);
    let mut revision = 0;
    for i in 0..10 {
        revision = client.put(put("a", &i.to_string())).await.unwrap().header.unwrap().revision;
    }
    client.compact(CompactionRequest { revision, physical: false }).await.unwrap();
    let mut watch = client.watch(WatchOptions { start_revision: 2, ..WatchOptions::prefix("a") });
    let error = timeout(PATIENCE, watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Compacted { revision: Some(at) } if at == revision));
    // At the compacted revision itself it is still to be had.
    let mut watch =
        client.watch(WatchOptions { start_revision: revision, ..WatchOptions::prefix("a") });
    assert_eq!(values(&mut watch, 1).await, ["9"]);
}

#[tokio::test]
async fn progress_marks_move_the_revision_of_a_quiet_watch() {
    let flags = ["--experimental-watch-progress-notify-interval", "1s"];
    let Some(etcd) = Etcd::start_with(&flags).await else { return };
    let client = client(&[etcd.url()]);
    let mut watch = client.watch(WatchOptions::prefix("quiet"));
    let begin = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().revision;
    let written = client.put(put("other", "1")).await.unwrap().header.unwrap().revision;
    assert!(written > begin);
    let mark = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((mark.revision, mark.events.len()), (written, 0));
}

#[tokio::test]
async fn many_watches_share_few_connections_and_leave_calls_theirs() {
    let Some(etcd) = Etcd::start().await else { return };
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let mut config = ClientConfig::new(&etcd.url()).unwrap();
    config.dial = Some(Arc::new(move |endpoint| {
        counted.fetch_add(1, Ordering::SeqCst);
        endpoint.connect_lazy()
    }));
    let client = Client::new(config).unwrap();
    let mut watches: Vec<Watch> =
        (0..350).map(|_| client.watch(WatchOptions::prefix("a"))).collect();
    for watch in &mut watches {
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    }
    client.put(put("a", "1")).await.unwrap();
    for watch in &mut watches {
        assert_eq!(values(watch, 1).await, ["1"]);
    }
    assert_eq!(dials.load(Ordering::SeqCst), 5);
    // A place that is given up is taken again.
    drop(watches.split_off(300));
    for _ in 0..50 {
        let mut watch = client.watch(WatchOptions::prefix("a"));
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        watches.push(watch);
    }
    assert_eq!(dials.load(Ordering::SeqCst), 5);
}

/// Members are killed and frozen in turn while one task writes and a watch follows: nothing that
/// was acknowledged is missing, and the watch sees every write once and in order.
#[tokio::test]
async fn members_that_die_and_hang_cost_nothing_but_time() {
    let Some(mut cluster) = Etcd::cluster(3).await else { return };
    let urls: Vec<String> = cluster.iter().map(Etcd::url).collect();
    let mut config = ClientConfig::new(&urls.join(",")).unwrap();
    config.request_timeout = PATIENCE;
    let client = Client::new(config).unwrap();
    let mut watch = client.watch(WatchOptions::prefix("n"));
    timeout(PATIENCE, watch.next()).await.unwrap().unwrap();

    let mut revision = 0;
    let mut number = 0_u32;
    let mut seen: Vec<String> = Vec::new();
    for round in 0..6 {
        let victim = round % 3;
        match round / 3 {
            0 => cluster[victim].kill(),
            _ => cluster[victim].freeze(),
        }
        for _ in 0..10 {
            let text = (number + 1).to_string();
            let (response, repeated) = client
                .txn_guarded(TxnRequest {
                    compare: vec![request::mod_revision_is("n", revision)],
                    success: vec![request::put_op("n", text.clone())],
                    failure: vec![request::range_op(request::key("n"))],
                })
                .await
                .unwrap();
            if !response.succeeded {
                assert!(repeated, "nobody else writes");
                assert_eq!(value(&client, "n").await.unwrap(), text);
            }
            number += 1;
            revision = client.range(request::key("n")).await.unwrap().kvs[0].mod_revision;
        }
        seen.extend(values(&mut watch, 10).await);
        match round / 3 {
            0 => cluster[victim].start_again(),
            _ => cluster[victim].thaw(),
        }
        // It must serve again before the next one goes, or there is no quorum.
        let back = Client::new(ClientConfig::new(&urls[victim]).unwrap()).unwrap();
        timeout(PATIENCE, async { while back.range(request::key("n")).await.is_err() {} })
            .await
            .unwrap();
    }
    let expected: Vec<String> = (1..=number).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn calls_wait_for_their_turn_unless_they_are_urgent() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    let mut config = ClientConfig::new(&proxy.url()).unwrap();
    (config.calls_at_once, config.turn_timeout) = (1, Duration::from_millis(50));
    config.request_timeout = PATIENCE;
    let client = Client::new(config).unwrap();
    assert_eq!(value(&client, "a").await, None);

    proxy.stall();
    let (first, urgent) = (client.clone(), client.urgent());
    let under_way = async {
        tokio::join!(first.put(put("a", "1")), async {
            tokio::task::yield_now().await;
            urgent.put(put("b", "2")).await
        })
    };
    let refused = async {
        let error = client.put(put("c", "3")).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { source: None, .. }), "{error:?}");
        proxy.restore();
    };
    let ((first, urgent), ()) = tokio::join!(under_way, refused);
    assert!(first.is_ok() && urgent.is_ok(), "{first:?} {urgent:?}");
    assert_eq!(value(&client, "a").await.unwrap(), "1");
    assert_eq!(value(&client, "b").await.unwrap(), "2");
    assert_eq!(value(&client, "c").await, None, "it was never sent");
}
