//! A watch that outlives the connections and the members it runs on.
//!
//! Each watch is a gRPC stream of its own, so that one that is not read holds back no other. It
//! remembers the revision up to which everything was delivered, from events and from progress
//! marks; when the stream breaks, or its member falls silent, it is opened again on the next
//! endpoint from the revision after that one. A member that is behind delivers once it has caught
//! up, so nothing is missed, repeated or reordered.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use store_proto::etcdserverpb::watch_client::WatchClient;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use store_proto::mvccpb::Event;
use tokio::sync::oneshot;
use tokio::sync::watch::Receiver;
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use crate::client::MAX_ANSWER_BYTES;
use crate::endpoint::WatchSlot;
use crate::error::{Outcome, classify, refused};
use crate::{Client, Error, request};

/// The pause before a stream that broke is opened again, doubled with each failure in a row.
const REOPEN_PAUSE: Duration = Duration::from_millis(10);
const MAX_REOPEN_PAUSE: Duration = Duration::from_millis(400);
/// How often a wait is doubled at most.
const MAX_DOUBLINGS: u32 = 6;

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// The key, or the first key of the range.
    pub key: Bytes,
    /// The end of the range, not part of it; empty: the key alone.
    pub range_end: Bytes,
    /// The first revision whose events are wanted; 0: those after the watch began.
    pub start_revision: i64,
    /// Whether events carry what the key held before.
    pub prev_kv: bool,
}

impl WatchOptions {
    /// Everything that begins with a prefix, from now on.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key = prefix.into();
        Self { range_end: request::prefix_end(&key), key, ..Self::default() }
    }
}

/// Events of one or several whole revisions, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchBatch {
    /// Everything up to this revision has been delivered.
    pub revision: i64,
    /// The events; none when the store only says that nothing happened up to the revision.
    pub events: Vec<Event>,
}

/// A watch, from [`Client::watch`]. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    options: WatchOptions,
    open: Option<Open>,
    failures: u32,
}

struct Open {
    member: usize,
    stream: Streaming<WatchResponse>,
    lost: Receiver<u64>,
    /// Asks the member for signs of life; never ends.
    watch_over: BoxFuture<'static, ()>,
    /// Keeps the place on the connection taken.
    _slot: WatchSlot,
    /// Ends the stream of requests when this is dropped, and with it the watch at the member.
    _alive: oneshot::Sender<()>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("member", &self.member).finish_non_exhaustive()
    }
}

/// What one message, or the lack of it, means for the watch.
#[derive(Debug, PartialEq)]
enum Step {
    Deliver(WatchBatch),
    Wait,
    Reopen,
}

impl Watch {
    pub(crate) fn new(client: Client, options: WatchOptions) -> Self {
        Self { client, options, open: None, failures: 0 }
    }

    /// The next batch. It waits as long as it takes, also while no endpoint can be reached.
    /// Cancel safe: nothing is lost when the future is dropped before it is ready.
    ///
    /// A watch that began at revision 0 gives a batch without events first, with the revision
    /// after which it begins.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the next revision is not to be had any more: list again. Other
    /// errors when the store refuses the watch for good.
    pub async fn next(&mut self) -> Result<WatchBatch, Error> {
        loop {
            let Some(open) = &mut self.open else {
                self.reopen().await?;
                continue;
            };
            let step = tokio::select! {
                message = open.stream.message() => self.take(message)?,
                _ = open.lost.changed() => Step::Reopen,
                () = &mut open.watch_over => Step::Reopen,
            };
            match step {
                Step::Deliver(batch) => return Ok(batch),
                Step::Wait => {}
                Step::Reopen => self.open = None,
            }
        }
    }

    fn take(&mut self, message: Result<Option<WatchResponse>, Status>) -> Result<Step, Error> {
        let member = self.open.as_ref().map_or(0, |open| open.member);
        match message {
            Ok(Some(response)) => {
                self.client.member(member).answered();
                self.failures = 0;
                advance(&mut self.options.start_revision, response)
            }
            Ok(None) => {
                self.client.leave(member);
                Ok(Step::Reopen)
            }
            Err(status) if classify(&status) == Outcome::Refused => Err(refused(&status)),
            Err(status) => {
                tracing::debug!(%status, "watch stream broke");
                self.client.leave(member);
                Ok(Step::Reopen)
            }
        }
    }

    /// Opens the stream on the endpoint that is first at present. Returns without one when that
    /// failed for now.
    async fn reopen(&mut self) -> Result<(), Error> {
        if self.failures > 0 {
            let doublings = (self.failures - 1).min(MAX_DOUBLINGS);
            sleep((REOPEN_PAUSE * (1 << doublings)).min(MAX_REOPEN_PAUSE)).await;
        }
        // A store that is slow as a whole gets more time with each failure.
        let limit = self.client.config().attempt_timeout * (1 << self.failures.min(MAX_DOUBLINGS));
        self.failures += 1;

        let index = self.client.current();
        let member = self.client.member(index);
        let lost = member.losses();
        let slot = member.watch_slot();
        let create = WatchCreateRequest {
            key: self.options.key.clone(),
            range_end: self.options.range_end.clone(),
            start_revision: self.options.start_revision,
            prev_kv: self.options.prev_kv,
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open for as long as the watch does, and no longer: one that
        // never ended would keep the watch alive at the member after it was dropped here.
        let (alive, dropped) = oneshot::channel::<()>();
        let requests = stream::once(async { create })
            .chain(stream::pending::<WatchRequest>())
            .take_until(dropped);
        let mut request = Request::new(requests);
        // A member without a leader ends the stream instead of falling silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client =
            WatchClient::new(slot.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        match timeout(limit, client.watch(request)).await {
            Ok(Ok(response)) => {
                let stream = response.into_inner();
                let watch_over = self.client.clone().watch_over(index).boxed();
                self.open = Some(Open {
                    member: index,
                    stream,
                    lost,
                    watch_over,
                    _slot: slot,
                    _alive: alive,
                });
                Ok(())
            }
            Ok(Err(status)) if classify(&status) == Outcome::Refused => Err(refused(&status)),
            Ok(Err(status)) => {
                tracing::debug!(endpoint = %member.uri(), %status, "watch could not be opened");
                self.client.leave(index);
                Ok(())
            }
            Err(_) => {
                tracing::debug!(endpoint = %member.uri(), "watch was not opened in time");
                self.client.leave(index);
                Ok(())
            }
        }
    }
}

/// What a response means, and the revision to go on from after it.
fn advance(next_revision: &mut i64, response: WatchResponse) -> Result<Step, Error> {
    let now = response.header.as_ref().map_or(0, |header| header.revision);
    if response.canceled {
        if response.compact_revision > 0 {
            return Err(Error::Compacted { revision: Some(response.compact_revision) });
        }
        if response.created {
            return Err(Error::Request {
                code: Code::InvalidArgument,
                message: response.cancel_reason,
            });
        }
        return Ok(Step::Reopen);
    }
    if response.created {
        if *next_revision != 0 {
            return Ok(Step::Wait);
        }
        *next_revision = now + 1;
        return Ok(Step::Deliver(WatchBatch { revision: now, events: Vec::new() }));
    }
    // Only a watch that has delivered everything up to the header's revision gets a progress mark.
    if response.events.is_empty() {
        if now < *next_revision {
            return Ok(Step::Wait);
        }
        *next_revision = now + 1;
        return Ok(Step::Deliver(WatchBatch { revision: now, events: Vec::new() }));
    }
    let mut events = response.events;
    events.retain(|event| revision_of(event) >= *next_revision);
    let Some(last) = events.last().map(revision_of) else { return Ok(Step::Wait) };
    *next_revision = last + 1;
    Ok(Step::Deliver(WatchBatch { revision: last, events }))
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use store_proto::etcdserverpb::ResponseHeader;
    use store_proto::mvccpb::KeyValue;

    use super::*;

    fn response(now: i64, events: &[i64]) -> WatchResponse {
        let event = |&revision: &i64| Event {
            kv: Some(KeyValue { mod_revision: revision, ..KeyValue::default() }),
            ..Event::default()
        };
        WatchResponse {
            header: Some(ResponseHeader { revision: now, ..ResponseHeader::default() }),
            events: events.iter().map(event).collect(),
            ..WatchResponse::default()
        }
    }

    /// The revisions that a response delivers, the revision up to which it does, and where the
    /// watch goes on.
    fn delivered(from: i64, response: WatchResponse) -> (Option<(Vec<i64>, i64)>, i64) {
        let mut next = from;
        match advance(&mut next, response).unwrap() {
            Step::Deliver(batch) => {
                let revisions = batch.events.iter().map(revision_of).collect();
                (Some((revisions, batch.revision)), next)
            }
            Step::Wait => (None, next),
            Step::Reopen => panic!("reopened"),
        }
    }

    #[test]
    fn what_a_response_delivers_and_where_the_watch_goes_on() {
        let created = |now| WatchResponse { created: true, ..response(now, &[]) };
        let cases = [
            ("from now on", 0, created(7), (Some((vec![], 7)), 8)),
            ("from the past: events are still to come", 3, created(7), (None, 3)),
            ("events", 3, response(9, &[3, 3, 5]), (Some((vec![3, 3, 5], 5)), 6)),
            ("some were seen", 5, response(9, &[3, 4, 5, 6]), (Some((vec![5, 6], 6)), 7)),
            ("all were seen", 5, response(9, &[3, 4]), (None, 5)),
            ("a progress mark", 5, response(9, &[]), (Some((vec![], 9)), 10)),
            ("one of a member that is behind", 5, response(4, &[]), (None, 5)),
        ];
        for (name, from, response, expected) in cases {
            assert_eq!(delivered(from, response), expected, "{name}");
        }
    }

    #[test]
    fn how_a_watch_is_canceled() {
        let canceled = WatchResponse { canceled: true, ..response(9, &[]) };
        let mut next = 5;
        let again = advance(&mut next, canceled.clone()).unwrap();
        assert_eq!((again, next), (Step::Reopen, 5));
        let compacted = WatchResponse { compact_revision: 7, ..canceled.clone() };
        let error = advance(&mut next, compacted).unwrap_err();
        assert!(matches!(error, Error::Compacted { revision: Some(7) }), "{error:?}");
        let refused = WatchResponse {
            created: true,
            cancel_reason: "mvcc: watcher range is empty".into(),
            ..canceled
        };
        let error = advance(&mut next, refused).unwrap_err();
        assert!(error.to_string().contains("watcher range is empty"), "{error}");
    }
}
