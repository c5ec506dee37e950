//! A store in memory and a client of its watches.

mod applied;
mod history;
mod interleavings;
mod limits;
mod rules;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use store_proto::mvccpb::{Event, event::EventType};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::history::FakeHistory;
use super::{History as _, WatchHub, WatchLimits, watch};
use crate::RequestError;
use crate::mvcc::RevisionEvents;

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
