//! Bounds of memory and number, and what is beyond them.

use std::collections::BTreeMap;
use std::sync::Arc;

use store_proto::etcdserverpb::ResponseHeader;

use super::{events, from, id, key, revision, store, store_with};
use crate::RequestError;
use crate::watch::{History as _, MAX_RESPONSE_BYTES, WatchLimits, watch};

#[tokio::test(start_paused = true)]
async fn watches_and_streams_have_limits() {
    let limits = WatchLimits { watchers_per_stream: 2, streams: 2, ..Default::default() };
    let store = store_with(limits);
    let (mut client, other) = (store.client(), store.client());
    client.created(key("a")).await;
    client.created(key("a")).await;
    let refused = client.created(key("a")).await;
    assert!(refused.canceled);
    assert_eq!(refused.cancel_reason, "etcdserver: too many requests");
    let requests = futures::stream::empty::<Result<_, RequestError>>();
    let third = watch(&store.hub, Arc::clone(&store.history), requests, ResponseHeader::default);
    assert_eq!(third.err(), Some(RequestError::TooManyRequests));
    assert_eq!((store.hub.streams(), store.hub.watchers()), (2, 2));
    drop((client, other));
    assert_eq!((store.hub.streams(), store.hub.watchers()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn compaction_that_overtakes_a_slow_client_cancels_its_watch() {
    let store = store_with(WatchLimits { pending_revisions: 1, ..Default::default() });
    let mut client = store.client();
    client.created(key("a")).await;
    for value in ["1", "2", "3"] {
        store.put("a", value);
    }
    assert_eq!(store.hub.lagging_watchers(), 1);
    store.history.compact(3);
    let canceled = client.next().await;
    assert!(canceled.canceled);
    assert_eq!(canceled.compact_revision, 3);
    assert_eq!((store.hub.watchers(), store.hub.lagging_watchers()), (0, 0));
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_revisions_share_a_response_up_to_its_bound() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    for value in ["1", "2", "3"] {
        store.put("a", value);
    }
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=1@2", "put a=2@3", "put a=3@4"]);
    assert_eq!(revision(&response), 4);
    let large = "x".repeat(MAX_RESPONSE_BYTES / 2);
    for _ in 0..3 {
        store.put("a", &large);
    }
    for revisions in [5, 6, 7] {
        assert_eq!(revision(&client.next().await), revisions);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_no_memory_and_misses_nothing() {
    let limits = WatchLimits { pending_revisions: 4, ..Default::default() };
    let store = store_with(limits);
    let mut client = store.client();
    client.created(key("a")).await;
    for n in 0..4 {
        store.put("a", &n.to_string());
    }
    assert_eq!(store.hub.lagging_watchers(), 0);
    assert!(store.hub.pending_bytes() > 0);
    for n in 4..100 {
        store.put("a", &n.to_string());
    }
    assert_eq!((store.hub.lagging_watchers(), store.hub.pending_bytes()), (1, 0));
    let mut seen = Vec::new();
    while seen.len() < 100 {
        seen.extend(events(&client.next().await));
    }
    let expected: Vec<String> = (0..100).map(|n| format!("put a={n}@{}", n + 2)).collect();
    assert_eq!(seen, expected);
    client.nothing().await;
    assert_eq!(store.hub.lagging_watchers(), 0);
    store.put("a", "live");
    assert_eq!(events(&client.next().await), ["put a=live@102"]);
    assert_eq!(store.hub.pending_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn pending_bytes_are_bounded_for_a_stream_and_for_the_member() {
    let large = "x".repeat(1000);
    for limits in [
        WatchLimits { pending_bytes_per_stream: 3000, ..Default::default() },
        WatchLimits { pending_bytes: 3000, ..Default::default() },
    ] {
        let store = store_with(limits);
        let mut client = store.client();
        for _ in 0..4 {
            client.created(key("a")).await;
        }
        for _ in 0..5 {
            store.put("a", &large);
            assert!(store.hub.pending_bytes() <= 3000);
        }
        assert!(store.hub.lagging_watchers() > 0);
        let mut seen = BTreeMap::<i64, Vec<i64>>::new();
        while seen.values().map(Vec::len).sum::<usize>() < 20 {
            let response = client.next().await;
            let revisions = response.events.iter().map(|event| event.kv.as_ref().unwrap());
            seen.entry(response.watch_id).or_default().extend(revisions.map(|kv| kv.mod_revision));
        }
        for revisions in seen.values() {
            assert_eq!(revisions, &[2, 3, 4, 5, 6]);
        }
        client.nothing().await;
        assert_eq!((store.hub.pending_bytes(), store.hub.lagging_watchers()), (0, 0));
        for _ in 0..20 {
            store.put("a", &large[..300]);
            assert_eq!(store.hub.lagging_watchers(), 0, "all of the room is there again");
            for _ in 0..4 {
                client.next().await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_reset_watches_go_on_in_the_new_history() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    store.put("a", "1");
    for value in ["2", "3"] {
        store.history.put("a", value);
    }
    store.hub.reset(store.history.current_revision());
    assert_eq!(events(&client.next().await), ["put a=1@2", "put a=2@3", "put a=3@4"]);
    store.history.put("a", "4");
    store.history.compact(5);
    store.hub.reset(store.history.current_revision());
    assert_eq!(events(&client.next().await), ["put a=4@5"], "its next revision is still there");
    store.history.put("a", "5");
    store.history.put("a", "6");
    store.history.compact(7);
    store.hub.reset(store.history.current_revision());
    let canceled = client.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, 7));
}

#[tokio::test(start_paused = true)]
async fn a_reset_takes_a_watch_that_has_all_back_to_nothing_that_is_compacted() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    for _ in 0..5 {
        store.put("b", "");
    }
    store.history.put("b", "");
    store.history.compact(7);
    store.hub.reset(store.history.current_revision());
    client.nothing().await;
    store.put("a", "1");
    assert_eq!(events(&client.next().await), ["put a=1@8"]);
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_was_not_published_is_read_and_one_published_twice_is_not_sent_twice() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    let first = store.history.put("a", "1");
    let second = store.history.put("a", "2");
    store.publish(&second);
    store.publish(&first);
    assert_eq!(store.hub.published_revision(), 3);
    store.publish(&second);
    assert_eq!(events(&client.next().await), ["put a=1@2", "put a=2@3"]);
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn neither_requests_nor_events_keep_the_other_from_their_turn() {
    let store = store_with(WatchLimits { response_bytes: 1, ..Default::default() });
    for n in 0..100 {
        store.put("a", &n.to_string());
    }
    let mut client = store.client();
    client.created(from(1, key("a"))).await;
    for _ in 0..500 {
        client.cancel(99);
    }
    client.create(id(55, key("b")));
    let mut events_before = 0;
    while !client.next().await.created {
        events_before += 1;
    }
    assert_eq!(events_before, 100, "requests without an answer do not hold events up");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_far_behind_reads_only_what_it_wants() {
    for wide in [false, true] {
        let store = store_with(WatchLimits { response_bytes: 1, ..Default::default() });
        for n in 0..1000 {
            store.put("a", &n.to_string());
            if n == 400 || n == 800 {
                store.put("b", &n.to_string());
            }
        }
        if wide {
            store.history.widen();
        }
        let mut client = store.client();
        client.created(from(1, key("b"))).await;
        assert_eq!(events(&client.next().await), ["put b=400@403"]);
        assert_eq!(events(&client.next().await), ["put b=800@804"]);
        // What comes now is not missed.
        store.put("b", "more");
        assert_eq!(events(&client.next().await), ["put b=more@1004"]);
        let reads = store.history.reads();
        assert_eq!(reads > 100, wide, "{reads} reads");
    }
}
