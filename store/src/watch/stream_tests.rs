//! Each of etcd's rules for a watch stream, and the whole under random interleavings.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use proptest::prelude::*;
use prost::Message as _;
use store_proto::etcdserverpb::watch_create_request::FilterType;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use store_proto::mvccpb::{Event, event::EventType};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::testing::FakeHistory;
use super::{History, RevisionEvents, WatchHub, WatchLimits, watch};
use crate::RequestError;

/// Longer than anything but a progress interval takes; the clock is the test's.
const A_WHILE: Duration = Duration::from_secs(5);

struct Store {
    hub: Arc<WatchHub>,
    history: Arc<FakeHistory>,
}

struct Client {
    requests: mpsc::Sender<Result<WatchRequest, RequestError>>,
    responses: Pin<Box<dyn Stream<Item = Result<WatchResponse, RequestError>> + Send>>,
}

fn store_with(limits: WatchLimits) -> Store {
    let history = Arc::new(FakeHistory::default());
    Store { hub: WatchHub::new(history.current_revision(), limits), history }
}

fn store() -> Store {
    store_with(WatchLimits::default())
}

impl Store {
    fn client(&self) -> Client {
        let (requests, received) = mpsc::channel(1024);
        let header = || ResponseHeader { cluster_id: 7, member_id: 8, raft_term: 9, revision: 0 };
        let received = tokio_stream::wrappers::ReceiverStream::new(received);
        let history = Arc::clone(&self.history);
        let responses = watch(&self.hub, history, received, header).unwrap();
        Client { requests, responses: Box::pin(responses) }
    }

    fn publish(&self, revision: &Arc<RevisionEvents>) {
        self.hub.publish(std::slice::from_ref(revision));
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        let revision = self.history.put(key, value);
        self.publish(&revision);
        revision.revision
    }

    fn delete(&self, key: &str) -> i64 {
        let revision = self.history.delete(key);
        self.publish(&revision);
        revision.revision
    }
}

impl Client {
    fn send(&self, request: RequestUnion) {
        self.requests.try_send(Ok(WatchRequest { request_union: Some(request) })).unwrap();
    }

    fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request));
    }

    fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    async fn next(&mut self) -> WatchResponse {
        timeout(A_WHILE, self.responses.next()).await.expect("no response").unwrap().unwrap()
    }

    async fn nothing(&mut self) {
        if let Ok(response) = timeout(A_WHILE, self.responses.next()).await {
            panic!("unexpected: {response:?}");
        }
    }

    /// Creates a watch and takes the answer.
    async fn created(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.create(request);
        let response = self.next().await;
        assert!(response.created, "{response:?}");
        response
    }
}

fn key(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() }
}

fn everything() -> WatchCreateRequest {
    let all = Bytes::from_static(b"\0");
    WatchCreateRequest { key: all.clone(), range_end: all, ..Default::default() }
}

fn from(start_revision: i64, request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, ..request }
}

fn id(watch_id: i64, request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { watch_id, ..request }
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().unwrap().revision
}

/// The events, as "put a=1@2" or "delete a@3".
fn events(response: &WatchResponse) -> Vec<String> {
    let text = |event: &Event| {
        let kv = event.kv.as_ref().unwrap();
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let value = String::from_utf8_lossy(&kv.value).into_owned();
        match event.r#type() {
            EventType::Put => format!("put {key}={value}@{}", kv.mod_revision),
            EventType::Delete => format!("delete {key}@{}", kv.mod_revision),
        }
    };
    response.events.iter().map(text).collect()
}

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
async fn a_start_below_the_compacted_revision_is_canceled_after_created() {
    let store = store();
    for value in ["1", "2", "3", "4"] {
        store.put("a", value);
    }
    store.history.compact(4);
    let mut client = store.client();
    for start in [3, -1] {
        let created = client.created(id(5, from(start, key("a")))).await;
        assert!(!created.canceled);
        let canceled = client.next().await;
        assert!(canceled.canceled && !canceled.created);
        assert_eq!((canceled.watch_id, canceled.compact_revision), (5, 4));
        assert_eq!((canceled.cancel_reason.as_str(), revision(&canceled)), ("", 0));
    }
    client.created(from(4, key("a"))).await;
    let response = client.next().await;
    assert_eq!(events(&response), ["put a=3@4", "put a=4@5"], "the compacted one itself is there");
    assert_eq!((store.hub.watchers(), store.hub.lagging_watchers()), (1, 0));
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
    let large = "x".repeat(super::MAX_RESPONSE_BYTES / 2);
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
async fn a_revision_that_was_not_published_is_read_and_one_published_twice_is_not_sent_twice() {
    let store = store();
    let mut client = store.client();
    client.created(key("a")).await;
    let first = store.history.put("a", "1");
    let second = store.history.put("a", "2");
    store.publish(&second);
    store.publish(&first);
    store.publish(&second);
    assert_eq!(events(&client.next().await), ["put a=1@2", "put a=2@3"]);
    client.nothing().await;
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
    assert_eq!(client.responses.next().await, Some(Err(RequestError::NoLeader)));
    assert_eq!(client.responses.next().await, None);
    assert_eq!(store.hub.watchers(), 0);
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
    client.created_amid_events().await;
}

impl Client {
    async fn created_amid_events(&mut self) {
        self.create(id(55, key("b")));
        let mut events_before = 0;
        loop {
            let response = self.next().await;
            if response.created {
                break;
            }
            events_before += 1;
        }
        assert_eq!(events_before, 100, "requests without an answer do not hold events up");
    }
}

/// One step of a random run.
#[derive(Clone, Debug)]
enum Step {
    /// Applies a revision; `publish` says whether it and what waits before it are published.
    Write {
        writes: Vec<(u8, Option<u8>)>,
        publish: bool,
    },
    /// Replaces the state: all that is applied is there, none of it was published.
    Reset,
    Compact {
        behind: i64,
    },
    Create {
        start_behind: Option<i64>,
        key: u8,
        end: u8,
        no_put: bool,
        fragment: bool,
        prev_kv: bool,
    },
    Cancel(prop::sample::Index),
    Progress,
    Read {
        responses: usize,
    },
}

fn a_key(key: u8) -> Vec<u8> {
    vec![b'a' + key % 6]
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0u8..6, prop::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        8 => (prop::collection::vec(write, 1..4), prop::bool::weighted(0.7))
            .prop_map(|(writes, publish)| Step::Write { writes, publish }),
        1 => Just(Step::Reset),
        1 => (0i64..6).prop_map(|behind| Step::Compact { behind }),
        2 => (prop::option::of(-3i64..12), 0u8..6, 0u8..8, prop::bool::weighted(0.2), any::<bool>(), any::<bool>())
            .prop_map(|(start_behind, key, end, no_put, fragment, prev_kv)| Step::Create {
                start_behind, key, end, no_put, fragment, prev_kv,
            }),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => Just(Step::Progress),
        5 => (1usize..6).prop_map(|responses| Step::Read { responses }),
    ]
}

/// What one watch has to see, and has seen.
#[derive(Debug)]
struct Seen {
    request: WatchCreateRequest,
    start: i64,
    events: Vec<Event>,
    /// No event at or below this may come any more.
    sent_through: i64,
    in_fragments: bool,
    canceled: bool,
    compacted_at: i64,
}

impl Seen {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().unwrap();
        let (key, end) = (&self.request.key, &self.request.range_end);
        let in_range = match end.as_ref() {
            b"" => kv.key == key,
            b"\0" => kv.key >= key,
            end => kv.key >= key && kv.key.as_ref() < end,
        };
        in_range && (self.request.filters.is_empty() || event.r#type() == EventType::Delete)
    }
}

#[derive(Default)]
struct Model {
    watches: BTreeMap<i64, Seen>,
    ended: Vec<Seen>,
    /// Requests whose answer has not come yet, in order.
    creating: std::collections::VecDeque<WatchCreateRequest>,
    progress_asked: Vec<i64>,
}

impl Model {
    fn take(&mut self, response: WatchResponse, history: &FakeHistory) {
        let revision = revision(&response);
        if response.created {
            let request = self.creating.pop_front().expect("created without a create");
            if response.canceled {
                assert_eq!(response.watch_id, -1);
                assert!(!request.range_end.is_empty() && request.key >= request.range_end);
                return;
            }
            let start =
                if request.start_revision == 0 { revision + 1 } else { request.start_revision };
            let seen = Seen {
                request,
                start,
                events: Vec::new(),
                sent_through: 0,
                in_fragments: false,
                canceled: false,
                compacted_at: 0,
            };
            assert!(self.watches.insert(response.watch_id, seen).is_none());
            return;
        }
        if response.watch_id == -1 {
            assert!(response.events.is_empty());
            assert!(self.progress_asked.iter().any(|asked| *asked <= revision), "too old");
            for seen in self.watches.values_mut() {
                assert!(revision >= seen.start - 1, "progress before the watch's start");
                seen.sent_through = seen.sent_through.max(revision);
            }
            return;
        }
        let seen =
            self.watches.get_mut(&response.watch_id).expect("a response of an unknown watch");
        if response.canceled {
            seen.canceled = true;
            seen.compacted_at = response.compact_revision;
            let seen = self.watches.remove(&response.watch_id).unwrap();
            self.ended.push(seen);
            return;
        }
        assert!(!response.events.is_empty());
        assert!(seen.request.fragment || !response.fragment);
        for event in &response.events {
            let kv = event.kv.as_ref().unwrap();
            assert!(kv.mod_revision > seen.sent_through, "told to be sent already: {event:?}");
            assert!(kv.mod_revision <= revision);
            let previous = event.prev_kv.as_ref();
            if seen.request.prev_kv && kv.mod_revision > history.compacted_revision() {
                let before = history.all_events(0);
                let before = before.iter().rfind(|old| {
                    let old = old.kv.as_ref().unwrap();
                    old.key == kv.key && old.mod_revision < kv.mod_revision
                });
                let before = before.filter(|old| old.r#type() == EventType::Put);
                assert_eq!(previous, before.and_then(|old| old.kv.as_ref()));
            } else if !seen.request.prev_kv {
                assert_eq!(previous, None);
            }
        }
        if !response.fragment {
            seen.sent_through = revision;
        }
        seen.in_fragments = response.fragment;
        let without_previous = |event| Event { prev_kv: None, ..event };
        seen.events.extend(response.events.into_iter().map(without_previous));
    }

    /// At the end, when all has been read.
    fn check(&self, history: &FakeHistory) {
        assert!(self.creating.is_empty());
        for seen in self.watches.values().chain(&self.ended) {
            assert!(!seen.in_fragments, "the last fragment is missing");
            let mut expected = history.all_events(seen.start);
            expected.retain(|event| seen.wants(event));
            if seen.canceled {
                // Canceled early by compaction or by the client: what came is the beginning.
                expected.truncate(seen.events.len());
                let last =
                    seen.events.last().map_or(0, |last| last.kv.as_ref().unwrap().mod_revision);
                assert!(seen.compacted_at == 0 || last < seen.compacted_at);
            }
            assert_eq!(seen.events, expected, "{:?} from {}", seen.request, seen.start);
        }
    }
}

async fn run(steps: Vec<Step>, limits: WatchLimits) {
    let store = store_with(limits);
    let mut client = store.client();
    let mut model = Model::default();
    let mut unpublished = Vec::new();
    for step in steps {
        match step {
            Step::Write { writes, publish } => {
                let mut once = BTreeMap::new();
                for (key, value) in writes {
                    once.insert(a_key(key), value.map(|value| vec![value; usize::from(value)]));
                }
                let writes: Vec<_> =
                    once.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
                unpublished.push(store.history.apply(&writes));
                if publish {
                    store.hub.publish(&std::mem::take(&mut unpublished));
                }
            }
            Step::Reset => {
                unpublished.clear();
                store.hub.reset(store.history.current_revision());
            }
            Step::Compact { behind } => {
                // As in the store: never beyond what is there, never back.
                let at = store.history.current_revision() - behind;
                if at > store.history.compacted_revision() {
                    store.history.compact(at);
                }
            }
            Step::Create { start_behind, key, end, no_put, fragment, prev_kv } => {
                let start = start_behind.map(|behind| store.history.current_revision() - behind);
                let range_end = match end {
                    0..=5 => a_key(end),
                    6 => vec![0],
                    _ => Vec::new(),
                };
                let request = WatchCreateRequest {
                    key: a_key(key).into(),
                    range_end: range_end.into(),
                    start_revision: start.unwrap_or(0).max(0),
                    filters: if no_put { vec![FilterType::Noput.into()] } else { Vec::new() },
                    prev_kv,
                    fragment,
                    ..Default::default()
                };
                client.create(request.clone());
                model.creating.push_back(request);
            }
            Step::Cancel(which) => {
                if !model.watches.is_empty() {
                    let ids: Vec<i64> = model.watches.keys().copied().collect();
                    client.cancel(*which.get(&ids));
                }
            }
            Step::Progress => {
                client.ask_progress();
                model.progress_asked.push(store.history.current_revision());
            }
            Step::Read { responses } => {
                for _ in 0..responses {
                    let Ok(next) = timeout(A_WHILE, client.responses.next()).await else { break };
                    model.take(next.unwrap().unwrap(), &store.history);
                }
            }
        }
    }
    store.hub.publish(&unpublished);
    while let Ok(next) = timeout(A_WHILE, client.responses.next()).await {
        model.take(next.unwrap().unwrap(), &store.history);
    }
    model.check(&store.history);
    assert_eq!(store.hub.pending_bytes(), 0);
    assert_eq!(store.hub.watchers(), model.watches.len());
    assert_eq!(store.hub.lagging_watchers(), 0);
}

proptest! {
    #[test]
    fn a_stream_is_the_filtered_history_however_it_is_stalled(
        steps in prop::collection::vec(step(), 1..120),
        pending_revisions in 0usize..4,
        bytes in prop::sample::select(&[1usize, 600, 5000, 1 << 20][..]),
    ) {
        let limits = WatchLimits {
            pending_revisions,
            pending_bytes_per_stream: bytes,
            response_bytes: bytes,
            fragment_bytes: 300,
            ..Default::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps, limits));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishing_beside_reading_loses_and_repeats_nothing() {
    const REVISIONS: i64 = 20_000;
    let limits = WatchLimits { pending_revisions: 8, response_bytes: 2000, ..Default::default() };
    let store = store_with(limits);
    let mut readers = tokio::task::JoinSet::new();
    for start in [1, 1, 5000, 15_000] {
        let mut client = store.client();
        client.created(from(start, key("a"))).await;
        readers.spawn(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&(REVISIONS + 1)) {
                let response = client.responses.next().await.unwrap().unwrap();
                let revisions = response.events.iter().map(|event| event.kv.as_ref().unwrap());
                seen.extend(revisions.map(|kv| kv.mod_revision));
            }
            assert_eq!(seen, (start.max(2)..=REVISIONS + 1).collect::<Vec<_>>());
        });
    }
    let (hub, history) = (Arc::clone(&store.hub), Arc::clone(&store.history));
    let publisher = tokio::task::spawn_blocking(move || {
        for _ in 0..REVISIONS {
            let revision = history.put_unversioned("a");
            hub.publish(&[revision]);
        }
    });
    let all = async {
        publisher.await.unwrap();
        while let Some(done) = readers.join_next().await {
            done.unwrap();
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("the readers did not finish");
    assert_eq!((store.hub.watchers(), store.hub.pending_bytes()), (0, 0));
}
