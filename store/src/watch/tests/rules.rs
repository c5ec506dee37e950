//! Each of etcd's rules for a watch stream.

use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message as _;
use store_proto::etcdserverpb::watch_create_request::FilterType;
use store_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use tokio::time::timeout;

use super::{A_WHILE, events, everything, from, id, key, revision, store, store_with};
use crate::RequestError;
use crate::watch::WatchLimits;

#[tokio::test(start_paused = true)]
async fn a_watch_from_now_on_gets_what_comes_after_it() {
    let store = store();
    store.put("a", "1");
    let mut client = store.client();
    let created = client.created(key("a")).await;
    let header = ResponseHeader { cluster_id: 7, member_id: 8, raft_term: 9, revision: 2 };
    assert_eq!(
        created,
        WatchResponse { header: Some(header), created: true, ..Default::default() }
    );
    store.put("b", "other");
    store.put("a", "2");
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=2@4"]);
    assert_eq!((response.watch_id, revision(&response)), (0, 4));
    store.delete("a");
    let response = client.next().await;
    assert_eq!(events(&response), ["delete a@5"]);
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_now_on_starts_after_what_is_applied_though_not_yet_published() {
    let store = store();
    let applied = store.history.put("a", "1");
    let mut client = store.client();
    assert_eq!(revision(&client.created(key("a")).await), 2);
    store.publish(&applied);
    store.put("a", "2");
    assert_eq!(events(&client.next().await), ["put a=2@3"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_past_gets_history_in_one_response_and_then_what_comes() {
    let store = store();
    for value in ["1", "2", "3"] {
        store.put("a", value);
        store.put("b", value);
    }
    let mut client = store.client();
    assert_eq!(revision(&client.created(from(3, key("a"))).await), 7);
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=2@4", "put a=3@6"]);
    assert_eq!(revision(&response), 7);
    store.put("a", "4");
    assert_eq!(events(&client.next().await), ["put a=4@8"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_the_future_waits_for_it() {
    let store = store();
    let mut client = store.client();
    assert_eq!(revision(&client.created(from(4, key("a"))).await), 1);
    for value in ["1", "2", "3", "4"] {
        store.put("a", value);
    }
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=3@4", "put a=4@5"]);
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_never_reached_harms_nobody() {
    let store = store();
    let mut client = store.client();
    client.created(from(i64::MAX, key("a"))).await;
    client.created(key("a")).await;
    store.put("a", "1");
    assert_eq!(client.next().await.watch_id, 1);
    client.ask_progress();
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn ids_are_given_from_0_up_and_skip_those_in_use() {
    let store = store();
    let mut client = store.client();
    for (asked, given) in [(1, 1), (0, 0), (0, 2), (-5, -5), (0, 3), (9, 9)] {
        assert_eq!(client.created(id(asked, key("a"))).await.watch_id, given);
    }
    store.put("a", "1");
    let mut told = Vec::new();
    for _ in 0..6 {
        told.push(client.next().await.watch_id);
    }
    told.sort_unstable();
    assert_eq!(told, [-5, 0, 1, 2, 3, 9]);
    client.cancel(0);
    assert!(client.next().await.canceled);
    assert_eq!(client.created(key("a")).await.watch_id, 4, "an id is not given twice");
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_id_and_an_empty_range_are_refused_with_etcds_reasons() {
    let store = store();
    let mut client = store.client();
    client.created(id(7, key("a"))).await;
    let range =
        |start, end| WatchCreateRequest { range_end: Bytes::from_static(end), ..key(start) };
    for (request, reason) in [
        (id(7, key("b")), "mvcc: duplicate watch ID provided on the WatchStream"),
        (range("b", b"a"), "mvcc: watcher range is empty"),
        (id(7, range("b", b"b")), "mvcc: watcher range is empty"),
    ] {
        let response = client.created(request).await;
        assert!(response.canceled);
        assert_eq!((response.watch_id, response.cancel_reason.as_str()), (-1, reason));
        assert_eq!(revision(&response), 1);
    }
    store.put("b", "1");
    store.put("a", "2");
    assert_eq!(events(&client.next().await), ["put a=2@3"], "the first watch goes on");
    assert_eq!(store.hub.watchers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_below_the_compacted_revision_is_canceled_after_created() {
    let store = store();
    for value in ["1", "2", "3", "4"] {
        store.put("a", value);
    }
    store.history.compact(4);
    let mut client = store.client();
    for start in [3, -1, i64::MIN] {
        let created = client.created(id(5, from(start, key("a")))).await;
        assert!(!created.canceled);
        let canceled = client.next().await;
        assert!(canceled.canceled && !canceled.created);
        assert_eq!((canceled.watch_id, canceled.compact_revision), (5, 4));
        assert_eq!((canceled.cancel_reason.as_str(), revision(&canceled)), ("", 0));
        // Until the client cancels it, too, its id stays taken.
        let again = client.created(id(5, key("a"))).await;
        assert_eq!((again.watch_id, again.canceled), (-1, true));
        client.cancel(5);
        let canceled = client.next().await;
        assert!(canceled.canceled && canceled.watch_id == 5 && canceled.compact_revision == 0);
    }
    client.created(from(4, key("a"))).await;
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=3@4", "put a=4@5"], "the compacted one itself is there");
    assert_eq!((store.hub.watchers(), store.hub.lagging_watchers()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn filters_take_events_out_and_an_empty_response_is_not_sent() {
    let store = store();
    store.put("a", "1");
    store.delete("a");
    let filtered = |filters: &[FilterType]| {
        let filters = filters.iter().map(|filter| i32::from(*filter)).collect();
        from(2, WatchCreateRequest { filters, ..key("a") })
    };
    let mut client = store.client();
    client.created(filtered(&[FilterType::Noput])).await;
    assert_eq!(events(&client.next().await), ["delete a@3"]);
    client.created(filtered(&[FilterType::Nodelete])).await;
    assert_eq!(events(&client.next().await), ["put a=1@2"]);
    client.created(filtered(&[FilterType::Noput, FilterType::Nodelete])).await;
    client.nothing().await;
    store.put("a", "2");
    let response = client.next().await;
    assert_eq!((response.watch_id, events(&response)), (1, vec!["put a=2@4".to_owned()]));
    store.delete("a");
    let response = client.next().await;
    assert_eq!((response.watch_id, events(&response)), (0, vec!["delete a@5".to_owned()]));
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn prev_kv_is_the_key_as_it_was_and_absent_when_new_or_compacted() {
    let store = store();
    store.put("a", "1");
    store.put("a", "2");
    store.delete("a");
    store.put("a", "3");
    let previous = |response: &WatchResponse| -> Vec<Option<(Bytes, i64, i64)>> {
        let previous = response.events.iter().map(|event| event.prev_kv.clone());
        previous.map(|kv| kv.map(|kv| (kv.value, kv.mod_revision, kv.version))).collect()
    };
    let value = |value: &'static str| Bytes::from_static(value.as_bytes());
    let mut client = store.client();
    client.created(from(2, WatchCreateRequest { prev_kv: true, ..key("a") })).await;
    assert_eq!(
        previous(&client.next().await),
        [None, Some((value("1"), 2, 1)), Some((value("2"), 3, 2)), None]
    );
    store.history.compact(3);
    client.created(from(3, WatchCreateRequest { prev_kv: true, ..key("a") })).await;
    assert_eq!(previous(&client.next().await), [None, Some((value("2"), 3, 2)), None]);
    client.created(from(3, key("a"))).await;
    assert_eq!(previous(&client.next().await), [None, None, None], "only if asked for");
}

#[tokio::test(start_paused = true)]
async fn cancel_is_answered_for_a_known_id_and_ends_the_events() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    client.created(id(4, key("a"))).await;
    store.put("a", "1");
    client.cancel(99);
    client.cancel(0);
    let mut seen = [client.next().await, client.next().await, client.next().await];
    store.put("a", "2");
    assert_eq!(client.next().await.watch_id, 4);
    client.nothing().await;
    // What was under way for the canceled watch comes before the answer, or not at all.
    seen.sort_by_key(|response| (response.watch_id, response.canceled));
    assert_eq!(
        seen.each_ref().map(|one| (one.watch_id, one.canceled)),
        [(0, false), (0, true), (4, false)]
    );
    assert_eq!(store.hub.watchers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_progress_request_is_answered_once_for_the_whole_stream() {
    let store = store();
    store.put("a", "1");
    let mut client = store.client();
    client.ask_progress();
    let progress = client.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 2), "without any watch as well");
    client.created(key("a")).await;
    client.created(key("b")).await;
    store.put("c", "1");
    client.ask_progress();
    let progress = client.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 3));
    assert!(progress.events.is_empty() && !progress.created && !progress.canceled);
    client.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_progress_answer_waits_for_the_events_before_it() {
    let limits = WatchLimits { response_bytes: 1, ..Default::default() };
    let store = store_with(limits);
    for value in ["1", "2", "3"] {
        store.put("a", value);
    }
    let mut client = store.client();
    client.created(from(2, key("a"))).await;
    client.ask_progress();
    for value in ["1", "2", "3"] {
        let response = client.next().await;
        assert_eq!(response.events[0].kv.as_ref().unwrap().value, value);
    }
    let progress = client.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_progress_answer_is_as_new_as_the_request_and_waits_for_watches_of_the_future() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    let applied = store.history.put("b", "1");
    client.ask_progress();
    client.nothing().await;
    store.publish(&applied);
    assert_eq!(revision(&client.next().await), 2);

    client.created(from(5, key("a"))).await;
    client.ask_progress();
    client.nothing().await;
    store.put("b", "2");
    client.nothing().await;
    store.put("b", "3");
    let progress = client.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 4), "the next it gets is its start");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_that_asked_is_told_its_progress_from_time_to_time() {
    let limits = WatchLimits::default();
    let interval = limits.progress_interval;
    let store = store_with(limits);
    let mut client = store.client();
    client.created(WatchCreateRequest { progress_notify: true, ..key("a") }).await;
    client.created(key("a")).await;
    client.created(from(9, WatchCreateRequest { progress_notify: true, ..key("a") })).await;
    store.put("other", "1");
    let progress = timeout(interval, client.responses.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((progress.watch_id, revision(&progress)), (0, 2));
    assert!(progress.events.is_empty());
    store.put("a", "1");
    client.next().await;
    client.next().await;
    let quiet_again = timeout(interval - A_WHILE, client.responses.next()).await;
    assert!(quiet_again.is_err());
    client.nothing().await;
    // An event came in that round, so only the one after it tells.
    let progress = timeout(interval, client.responses.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((progress.watch_id, revision(&progress)), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn the_events_of_one_revision_stay_together_unless_fragments_are_asked_for() {
    let limits = WatchLimits { fragment_bytes: 200, response_bytes: 100, ..Default::default() };
    let store = store_with(limits);
    let value = vec![b'x'; 50];
    let keys: Vec<String> = (0..10).map(|key| format!("k{key}")).collect();
    let writes: Vec<_> = keys.iter().map(|key| (key.as_bytes(), Some(value.as_slice()))).collect();
    let mut client = store.client();
    client.created(everything()).await;
    client.created(WatchCreateRequest { fragment: true, ..everything() }).await;
    store.publish(&store.history.apply(&writes));
    let whole = client.next().await;
    assert_eq!((whole.watch_id, whole.events.len(), whole.fragment), (0, 10, false));
    let mut rest = whole.events;
    while !rest.is_empty() {
        let piece = client.next().await;
        assert_eq!((piece.watch_id, revision(&piece)), (1, 2));
        assert!(piece.encoded_len() < 200 && !piece.events.is_empty());
        assert_eq!(piece.events, rest[..piece.events.len()]);
        rest.drain(..piece.events.len());
        assert_eq!(piece.fragment, !rest.is_empty(), "all but the last say that more follows");
    }
    store.put("k", "small");
    client.next().await;
    let small = client.next().await;
    assert_eq!((small.watch_id, small.fragment), (1, false));
}

#[tokio::test(start_paused = true)]
async fn one_event_above_the_limit_is_a_fragment_of_its_own() {
    let store = store_with(WatchLimits { fragment_bytes: 64, ..Default::default() });
    let mut client = store.client();
    client.created(WatchCreateRequest { fragment: true, ..everything() }).await;
    let large = vec![b'x'; 500];
    store.publish(&store.history.apply(&[(b"a", Some(&large)), (b"b", Some(&large))]));
    let (first, second) = (client.next().await, client.next().await);
    assert_eq!((first.events.len(), first.fragment), (1, true));
    assert_eq!((second.events.len(), second.fragment), (1, false));
}

#[tokio::test(start_paused = true)]
async fn the_stream_outlives_its_requests_and_ends_with_its_last_watch() {
    let store = store();
    store.put("a", "1");
    store.put("a", "2");
    let mut client = store.client();
    client.created(key("a")).await;
    client.created(from(1, key("a"))).await;
    client.cancel(0);
    drop(client.requests);
    let mut responses = client.responses;
    let mut next = async || {
        let next = timeout(A_WHILE, responses.next()).await;
        next.expect("no response").map(Result::unwrap)
    };
    assert_eq!(events(&next().await.unwrap()).len(), 2);
    assert!(next().await.unwrap().canceled);
    store.history.compact(3);
    store.history.put("a", "3");
    store.history.put("a", "4");
    store.history.compact(5);
    store.hub.reset(5);
    assert_eq!(next().await.unwrap().compact_revision, 5);
    assert_eq!(next().await, None);
    assert_eq!(store.hub.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_ends_the_stream_with_its_error() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    client.requests.try_send(Err(RequestError::NoLeader)).unwrap();
    let end = client.responses.next().await;
    assert!(matches!(end, Some(Err(RequestError::NoLeader))), "{end:?}");
    assert!(client.responses.next().await.is_none());
    assert_eq!(store.hub.watchers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_read_ends_the_stream() {
    let store = store();
    store.put("a", "1");
    store.history.fail();
    let mut client = store.client();
    client.created(from(2, key("a"))).await;
    let end = client.responses.next().await;
    assert!(matches!(end, Some(Err(RequestError::Stopped))), "{end:?}");
    assert!(client.responses.next().await.is_none());
    assert_eq!((store.hub.watchers(), store.hub.lagging_watchers()), (0, 0));
}
