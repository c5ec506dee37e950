//! Watch streams: what is heard on them, and the rules that hold for any stream.
//!
//! How events are gathered into responses is up to the server, so they are put in a row for each
//! watch. But no revision may be split over responses (unless in fragments), no event may come after
//! a response whose header was at or past it, and nothing may come before a watch is created or
//! after it is canceled.
//!
//! To compare two rows one has to know that they are complete. etcd tells watches that are up to date
//! of a revision before the write is answered, and brings the others up to date in rounds. So a
//! marker key is put, and every stream has a watch of it, its *tail*: when that hears the marker, the
//! up-to-date ones have heard of all before it. For those that started in the past a *sentinel* is
//! created, a watch that starts in the past itself: it is served in the round of those created
//! before it, or later. Both have ids that no call chooses.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use store_proto::etcdserverpb::watch_client::WatchClient;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use store_proto::mvccpb::{Event, event::EventType};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::leases::LeaseIds;
use crate::normal;

/// The key whose puts mark the present.
pub(crate) const MARKER: &[u8] = b"~";
/// How long something may take that should come at once.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT_BYTES: usize = 512 << 20;

/// Ids from here on are those of tails, sentinels and barriers.
const FIRST_OWN_ID: i64 = 1 << 50;
const TAIL_ID: i64 = FIRST_OWN_ID;
/// The id of what belongs to no watch.
const NO_WATCH_ID: i64 = -1;

/// One stream on one side.
pub(crate) struct WatchStream {
    requests: mpsc::Sender<WatchRequest>,
    heard: watch::Receiver<Heard>,
    sender: watch::Sender<Heard>,
    /// Ends with it.
    _reader: JoinSet<()>,
    next_own_id: i64,
}

/// What has come on a stream since it was last compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    watches: BTreeMap<Watch, Heards>,
    /// How often an id has been given to a watch.
    uses: BTreeMap<i64, usize>,
    /// Creations that were refused.
    refused: Vec<String>,
    progress: Vec<String>,
    answered_creates: usize,
    /// The ids of created watches, in their order.
    created: Vec<i64>,
    own: BTreeMap<i64, Own>,
    /// Deletes at these revisions are not looked at.
    forgiven: Vec<(Watch, i64)>,
    /// Rules that were broken.
    broken: Vec<String>,
    /// How the stream ended, which it should not.
    ended: Option<String>,
}

/// An id, and which of the watches that had it one after the other.
type Watch = (i64, usize);

#[derive(Clone, Debug, Default)]
struct Heards {
    controls: Vec<String>,
    events: Vec<Event>,
    is_canceled: bool,
    /// In the middle of a fragmented response.
    is_fragmented: bool,
    /// The last event's revision, and the last header's.
    last_event: i64,
    last_header: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Own {
    is_created: bool,
    is_canceled: bool,
    last_event: i64,
}

impl WatchStream {
    pub(crate) async fn open(channel: Channel) -> Result<Self, String> {
        let (requests, received) = mpsc::channel(16);
        let (own_sender, heard) = watch::channel(Heard::default());
        let sender = own_sender.clone();
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut client =
                WatchClient::new(channel).max_decoding_message_size(ANSWER_LIMIT_BYTES);
            let end = match client.watch(ReceiverStream::new(received)).await {
                Ok(responses) => {
                    let mut responses = responses.into_inner();
                    loop {
                        match responses.message().await {
                            Ok(Some(response)) => {
                                sender.send_modify(|heard| heard.hear(response));
                            }
                            Ok(None) => break "the server ended it".to_owned(),
                            Err(status) => {
                                break format!("{:?}: {}", status.code(), status.message());
                            }
                        }
                    }
                }
                Err(status) => format!("{:?}: {}", status.code(), status.message()),
            };
            sender.send_modify(|heard| heard.ended = Some(end));
        });
        let stream =
            Self { requests, heard, sender: own_sender, _reader: reader, next_own_id: TAIL_ID + 1 };
        stream.create_own(TAIL_ID, 0).await?;
        Ok(stream)
    }

    async fn send(&self, union: Option<RequestUnion>) -> Result<(), String> {
        let request = WatchRequest { request_union: union };
        self.requests.send(request).await.map_err(|_| self.why("the stream has ended"))
    }

    fn why(&self, what: &str) -> String {
        let heard = self.heard.borrow();
        match &heard.ended {
            Some(end) => format!("{what}; the stream has ended: {end}"),
            None => what.to_owned(),
        }
    }

    async fn wait(&self, what: &str, is_there: impl Fn(&Heard) -> bool) -> Result<(), String> {
        let mut heard = self.heard.clone();
        let waited = heard.wait_for(|heard| heard.ended.is_some() || is_there(heard));
        match tokio::time::timeout(WAIT_TIMEOUT, waited).await {
            Ok(Ok(heard)) if is_there(&heard) => Ok(()),
            _ => Err(self.why(&format!("{what} does not come"))),
        }
    }

    /// Creates a watch; its id, if it was not refused.
    pub(crate) async fn create(&self, request: WatchCreateRequest) -> Result<Option<i64>, String> {
        let (answered, created) = {
            let heard = self.heard.borrow();
            (heard.answered_creates, heard.created.len())
        };
        self.send(Some(RequestUnion::CreateRequest(request))).await?;
        self.wait("the answer to a create request", |heard| heard.answered_creates > answered)
            .await?;
        Ok(self.heard.borrow().created.get(created).copied())
    }

    /// Leaves a watch's deletes at one revision out of the comparison.
    pub(crate) fn forgive_deletes(&self, watch_id: i64, revision: i64) {
        self.sender.send_if_modified(|heard| {
            let uses = heard.uses.get(&watch_id).copied().unwrap_or(0);
            heard.forgiven.push(((watch_id, uses), revision));
            false
        });
    }

    /// Cancels a watch, whether or not there is one with that id.
    pub(crate) async fn cancel(&mut self, watch_id: i64) -> Result<(), String> {
        self.send(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))).await?;
        self.barrier().await
    }

    /// Sends a request that says nothing.
    pub(crate) async fn nothing(&mut self) -> Result<(), String> {
        self.send(None).await?;
        self.barrier().await
    }

    /// Asks for a progress mark and waits for it.
    pub(crate) async fn progress(&self) -> Result<(), String> {
        let marks = self.heard.borrow().progress.len();
        self.send(Some(RequestUnion::ProgressRequest(WatchProgressRequest {}))).await?;
        self.wait("a progress mark", |heard| heard.progress.len() > marks).await
    }

    /// Waits until all requests before have been answered that are answered at all: answers to
    /// requests come in their order.
    async fn barrier(&mut self) -> Result<(), String> {
        let id = self.own_id();
        self.create_own(id, i64::MAX - 1).await?;
        self.cancel_own(id).await
    }

    fn own_id(&mut self) -> i64 {
        self.next_own_id += 1;
        self.next_own_id
    }

    async fn create_own(&self, watch_id: i64, start_revision: i64) -> Result<(), String> {
        let request = WatchCreateRequest {
            key: Bytes::from_static(MARKER),
            watch_id,
            start_revision,
            ..WatchCreateRequest::default()
        };
        self.send(Some(RequestUnion::CreateRequest(request))).await?;
        self.wait("the answer to a create request", |heard| heard.own(watch_id).is_created).await
    }

    async fn cancel_own(&self, watch_id: i64) -> Result<(), String> {
        self.send(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))).await?;
        self.wait("the answer to a cancel request", |heard| heard.own(watch_id).is_canceled).await
    }

    /// Waits until all watches should have heard of all before `marker`, the revision in which the
    /// marker was put; with `is_dirty`, also those that started in the past.
    pub(crate) async fn catch_up(&mut self, marker: i64, is_dirty: bool) -> Result<(), String> {
        self.wait("the marker", |heard| heard.own(TAIL_ID).last_event >= marker).await?;
        if is_dirty {
            let id = self.own_id();
            self.create_own(id, marker).await?;
            self.wait("a past marker", |heard| heard.own(id).last_event >= marker).await?;
            self.cancel_own(id).await?;
        }
        Ok(())
    }

    /// Something has been heard since the last look.
    pub(crate) async fn changed(&mut self) {
        // The sender is this stream's own, too, so it is there.
        let _ = self.heard.changed().await;
    }
}

/// Compares what two streams have heard, and forgets it when it is the same.
///
/// Returns the first difference: what is heard on the one and on the other.
pub(crate) fn compare(
    (one, one_ids): (&mut WatchStream, &LeaseIds),
    (other, other_ids): (&mut WatchStream, &LeaseIds),
) -> Option<[String; 2]> {
    for stream in [&mut *one, &mut *other] {
        stream.sender.send_if_modified(|heard| {
            heard.drop_forgiven();
            false
        });
    }
    let compared = {
        let (one, other) = (one.heard.borrow_and_update(), other.heard.borrow_and_update());
        if let Some(difference) = one.difference(one_ids, &other, other_ids) {
            return Some(difference);
        }
        one.counts()
    };
    for stream in [one, other] {
        stream.sender.send_if_modified(|heard| {
            heard.forget(&compared);
            false
        });
    }
    None
}

impl Heard {
    fn own(&self, id: i64) -> Own {
        self.own.get(&id).copied().unwrap_or_default()
    }

    fn hear(&mut self, response: WatchResponse) {
        let id = response.watch_id;
        if id >= FIRST_OWN_ID {
            let own = self.own.entry(id).or_default();
            own.is_created |= response.created;
            own.is_canceled |= response.canceled;
            let revisions = response.events.iter().map(revision_of);
            own.last_event = revisions.fold(own.last_event, i64::max);
            return;
        }
        if response.created {
            self.answered_creates += 1;
            if response.canceled {
                self.refused.push(control(response));
                return;
            }
            self.created.push(id);
            let uses = self.uses.entry(id).or_default();
            *uses += 1;
            let mut heards = Heards::default();
            heards.controls.push(control(response));
            self.watches.insert((id, *uses), heards);
            return;
        }
        let uses = self.uses.get(&id).copied().unwrap_or(0);
        let is_mark = !response.canceled && response.events.is_empty();
        match self.watches.get_mut(&(id, uses)) {
            _ if is_mark && id == NO_WATCH_ID => self.progress.push(control(response)),
            Some(heards) => {
                if let Err(rule) = heards.hear(response) {
                    self.broken.push(format!("watch {id}: {rule}"));
                }
            }
            None => self.broken.push(format!("nobody created watch {id}: {response:?}")),
        }
    }

    fn difference(
        &self,
        ids: &LeaseIds,
        other: &Self,
        other_ids: &LeaseIds,
    ) -> Option<[String; 2]> {
        if (&self.broken, &self.ended) != (&Vec::new(), &None)
            || (&other.broken, &other.ended) != (&Vec::new(), &None)
        {
            return Some([self, other].map(|heard| {
                format!("rules broken: {:#?}, ended: {:?}", heard.broken, heard.ended)
            }));
        }
        if (&self.refused, &self.progress) != (&other.refused, &other.progress) {
            return Some([self, other].map(|heard| {
                format!("refused: {:#?}\nprogress: {:#?}", heard.refused, heard.progress)
            }));
        }
        for watch in self.watches.keys().chain(other.watches.keys()) {
            let empty = Heards::default();
            let one = self.watches.get(watch).unwrap_or(&empty);
            let two = other.watches.get(watch).unwrap_or(&empty);
            let of = format!("watch {} (number {} with that id)", watch.0, watch.1);
            if one.controls != two.controls {
                return Some([one, two].map(|heards| format!("{of}: {:#?}", heards.controls)));
            }
            for at in 0..one.events.len().max(two.events.len()) {
                let get = |heards: &Heards, ids: &LeaseIds| {
                    heards.events.get(at).map(|event| normal::event(event.clone(), ids))
                };
                let events = [get(one, ids), get(two, other_ids)];
                if events[0] != events[1] {
                    return Some(events.map(|event| {
                        let event =
                            event.map_or("nothing".to_owned(), |event| format!("{event:#?}"));
                        format!("{of}, event {at} since the last comparison: {event}")
                    }));
                }
            }
        }
        None
    }

    fn drop_forgiven(&mut self) {
        for (watch, revision) in &self.forgiven {
            if let Some(heards) = self.watches.get_mut(watch) {
                heards.events.retain(|event| {
                    event.r#type() != EventType::Delete || revision_of(event) != *revision
                });
            }
        }
    }

    /// How much there is of everything.
    fn counts(&self) -> Counts {
        Counts {
            refused: self.refused.len(),
            progress: self.progress.len(),
            watches: self
                .watches
                .iter()
                .map(|(watch, heards)| (*watch, (heards.controls.len(), heards.events.len())))
                .collect(),
        }
    }

    fn forget(&mut self, counts: &Counts) {
        self.refused.drain(..counts.refused);
        self.progress.drain(..counts.progress);
        for (watch, (controls, events)) in &counts.watches {
            if let Some(heards) = self.watches.get_mut(watch) {
                heards.controls.drain(..*controls);
                heards.events.drain(..*events);
            }
        }
    }
}

struct Counts {
    refused: usize,
    progress: usize,
    watches: BTreeMap<Watch, (usize, usize)>,
}

impl Heards {
    /// Takes a response; says which rule it breaks.
    fn hear(&mut self, response: WatchResponse) -> Result<(), String> {
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled {
            self.is_canceled = true;
            self.controls.push(control(response));
            return Ok(());
        }
        let (Some(first), Some(last)) = (response.events.first(), response.events.last()) else {
            return Err(format!("an empty response: {response:?}"));
        };
        if self.is_canceled {
            return Err(format!("an event after it was canceled: {response:?}"));
        }
        let (first, last) = (revision_of(first), revision_of(last));
        if !response.events.is_sorted_by_key(revision_of) || first < self.last_event {
            return Err(format!("out of order after {}: {response:?}", self.last_event));
        }
        if !self.is_fragmented {
            if first == self.last_event {
                return Err(format!("revision {first} is split: {response:?}"));
            }
            if first <= self.last_header {
                let promised = self.last_header;
                return Err(format!("revision {first} after a header with {promised}"));
            }
        }
        if last > header {
            return Err(format!("a header that is behind its events: {response:?}"));
        }
        self.is_fragmented = response.fragment;
        self.last_event = last;
        if !response.fragment {
            self.last_header = header;
        }
        self.events.extend(response.events);
        Ok(())
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// A response as it is compared.
fn control(mut response: WatchResponse) -> String {
    normal::strip(&mut response.header);
    format!("{response:?}")
}
