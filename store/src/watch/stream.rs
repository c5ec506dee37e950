//! One client's watch stream: requests in, responses out, as etcd answers them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::future;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use store_proto::etcdserverpb::watch_create_request::FilterType;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use store_proto::mvccpb::{self, event::EventType};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::history::{History, ReadError};
use super::hub::{Subscriptions, WatchHub};
use super::inbox::{Interest, Work};
use super::ranges::watched_range;
use crate::RequestError;
use crate::mvcc::RevisionEvents;

/// The id of what belongs to no watcher: a refused create, an answered progress request.
const NO_WATCH_ID: i64 = -1;
/// Stands for any negative start: below -1, which is the compacted revision of a store that was never
/// compacted.
const BEFORE_HISTORY: i64 = -2;
/// What lies between two changes that a watcher wants is read with them if it is so little.
const SCANNED_REVISIONS: i64 = 256;
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// Serves one watch stream: the answers to `requests`, and the events of the watches that they create.
///
/// `header` gives cluster id, member id and term for the next response; its revision is set here. A
/// failed request ends the stream with its error. When `requests` end, the watches go on, and the
/// stream ends with the last of them. Dropping the stream removes its watches.
///
/// # Errors
/// [`RequestError::TooManyRequests`] when too many streams are open. The stream ends with
/// [`RequestError::Stopped`] when the state cannot be read.
pub(crate) fn watch<H, R, F, E>(
    hub: &Arc<WatchHub>,
    history: Arc<H>,
    requests: R,
    header: F,
) -> Result<impl Stream<Item = Result<WatchResponse, E>> + Send + use<H, R, F, E>, RequestError>
where
    H: History,
    R: Stream<Item = Result<WatchRequest, E>> + Send + 'static,
    F: Fn() -> ResponseHeader + Send + 'static,
    E: From<RequestError> + Send + 'static,
{
    let period = hub.limits().progress_interval;
    let mut progress_tick = interval_at(Instant::now() + period, period);
    progress_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let session = Session {
        subscriptions: hub.subscribe()?,
        history,
        header,
        watches: BTreeMap::new(),
        compacted_ids: BTreeSet::new(),
        next_watch_id: 0,
        progress_from: None,
        outbox: VecDeque::new(),
    };
    let requests = Some(Box::pin(requests));
    Ok(stream::unfold(Some((session, requests, progress_tick)), |state| async {
        let (mut session, mut requests, mut progress_tick) = state?;
        match session.next(&mut requests, &mut progress_tick).await? {
            Ok(response) => Some((Ok(response), Some((session, requests, progress_tick)))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Session<H, F> {
    subscriptions: Subscriptions,
    history: Arc<H>,
    header: F,
    watches: BTreeMap<i64, Watch>,
    /// The ids of watches that a compaction ended. As with etcd they stay taken until the client
    /// cancels them, too, which is answered once more.
    compacted_ids: BTreeSet<i64>,
    next_watch_id: i64,
    /// A progress request waits until all events up to this revision have been sent.
    progress_from: Option<i64>,
    /// What is to be sent before anything else is looked at: the fragments of one response, the answer
    /// to one request, or one round of progress marks.
    outbox: VecDeque<WatchResponse>,
}

/// What a watch asked for beyond its range.
#[derive(Debug)]
struct Watch {
    start: i64,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// No event was sent since the last round of progress marks.
    quiet: bool,
}

impl<H: History, F: Fn() -> ResponseHeader> Session<H, F> {
    async fn next<R, E>(
        &mut self,
        requests: &mut Option<Pin<Box<R>>>,
        progress_tick: &mut Interval,
    ) -> Option<Result<WatchResponse, E>>
    where
        R: Stream<Item = Result<WatchRequest, E>>,
        E: From<RequestError>,
    {
        loop {
            if let Some(response) = self.outbox.pop_front() {
                return Some(Ok(response));
            }
            if requests.is_none() && self.watches.is_empty() {
                return None;
            }
            // Each round does one piece of work and takes one request, so that neither requests nor
            // events can keep the other from their turn.
            if let Some(work) = self.subscriptions.fetch()
                && let Err(error) = self.work(work).await
            {
                return Some(Err(error.into()));
            }
            self.answer_progress_request();
            let something_to_send = !self.outbox.is_empty();
            let more = something_to_send || self.subscriptions.has_work();
            let go_on = async {
                if !something_to_send {
                    // A watcher that goes through a long history without finding anything for it.
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = progress_tick.tick() => self.mark_progress(),
                request = receive(requests) => match request {
                    Some(Ok(request)) => self.handle(request),
                    Some(Err(error)) => return Some(Err(error)),
                    None => *requests = None,
                },
                () = go_on, if more => {}
                () = self.subscriptions.changed() => {}
            }
        }
    }

    fn handle(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => {
                let created = self.create(&request);
                self.outbox.push_back(created);
            }
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                // Requests that wait share one answer, which must do for the latest of them.
                self.progress_from = Some(self.current_revision());
            }
            None => {}
        }
    }

    fn create(&mut self, request: &WatchCreateRequest) -> WatchResponse {
        let current = self.current_revision();
        let mut response = WatchResponse {
            header: self.header_at(current),
            created: true,
            ..WatchResponse::default()
        };
        match self.subscribe(request, current) {
            Ok(watch_id) => response.watch_id = watch_id,
            Err(reason) => {
                response.watch_id = NO_WATCH_ID;
                response.canceled = true;
                response.cancel_reason = reason;
            }
        }
        response
    }

    /// Returns the new watch's id, or why there is none.
    fn subscribe(&mut self, request: &WatchCreateRequest, current: i64) -> Result<i64, String> {
        let range = watched_range(&request.key, &request.range_end).ok_or(EMPTY_RANGE)?;
        if request.watch_id != 0 && self.is_taken(request.watch_id) {
            return Err(DUPLICATE_ID.to_owned());
        }
        let ids = self.watches.len() + self.compacted_ids.len();
        if ids >= self.subscriptions.hub().limits().watchers_per_stream {
            return Err(RequestError::TooManyRequests.to_string());
        }
        let watch_id = if request.watch_id == 0 { self.unused_id() } else { request.watch_id };
        let interest = Interest {
            range,
            no_put: request.filters().any(|filter| filter == FilterType::Noput),
            no_delete: request.filters().any(|filter| filter == FilterType::Nodelete),
        };
        let start = match request.start_revision {
            0 => current + 1,
            ..0 => BEFORE_HISTORY,
            revision => revision,
        };
        self.subscriptions.add(watch_id, interest, start);
        let watch = Watch {
            start,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
        };
        self.watches.insert(watch_id, watch);
        Ok(watch_id)
    }

    fn unused_id(&mut self) -> i64 {
        while self.is_taken(self.next_watch_id) {
            self.next_watch_id += 1;
        }
        self.next_watch_id += 1;
        self.next_watch_id - 1
    }

    fn is_taken(&self, watch_id: i64) -> bool {
        self.watches.contains_key(&watch_id) || self.compacted_ids.contains(&watch_id)
    }

    fn cancel(&mut self, watch_id: i64) {
        if !self.forget(watch_id) && !self.compacted_ids.remove(&watch_id) {
            return;
        }
        self.outbox.push_back(WatchResponse {
            header: self.header_at(self.current_revision()),
            watch_id,
            canceled: true,
            ..Default::default()
        });
    }

    fn forget(&mut self, watch_id: i64) -> bool {
        self.subscriptions.remove(watch_id);
        self.watches.remove(&watch_id).is_some()
    }

    async fn work(&mut self, work: Work) -> Result<(), RequestError> {
        match work {
            Work::Send { watch_id, revisions } => {
                let revisions: Vec<_> = revisions.iter().map(|one| &one.revision).collect();
                self.send(watch_id, &revisions).await
            }
            Work::CatchUp { watch_id, from } => self.catch_up(watch_id, from).await,
        }
    }

    async fn catch_up(&mut self, watch_id: i64, from: i64) -> Result<(), RequestError> {
        // Nothing that is published later is lost if history has nothing from here on: the watcher is
        // only moved to what had been published, and so was readable, before the read.
        let published = self.subscriptions.hub().published_revision();
        let mut max_bytes = self.subscriptions.hub().limits().response_bytes;
        let mut read_from = from;
        let interest = self.subscriptions.interest(watch_id);
        if let Some(changes) =
            interest.and_then(|interest| self.history.next_changes(&interest.range, from))
        {
            let Some(first) = changes.first.filter(|first| *first <= published) else {
                self.subscriptions.caught_up(watch_id, (published + 1).max(from));
                return Ok(());
            };
            read_from = first;
            if changes.second.is_none_or(|second| second - first > SCANNED_REVISIONS) {
                // That revision alone.
                max_bytes = 1;
            }
        }
        match self.history.read(read_from, max_bytes).await {
            Ok(revisions) => {
                self.send(watch_id, &revisions.iter().collect::<Vec<_>>()).await?;
                let last = revisions.last().map_or(published, |last| last.revision);
                self.subscriptions.caught_up(watch_id, (last + 1).max(from));
                Ok(())
            }
            Err(ReadError::Compacted) => {
                self.cancel_compacted(watch_id);
                Ok(())
            }
            Err(ReadError::Failed(error)) => Err(give_up(&*error, from)),
        }
    }

    /// etcd's header here carries no revision, and a reason is not given.
    fn cancel_compacted(&mut self, watch_id: i64) {
        self.forget(watch_id);
        self.compacted_ids.insert(watch_id);
        self.outbox.push_back(WatchResponse {
            header: self.header_at(0),
            watch_id,
            canceled: true,
            // A negative start ends here without any compaction, and 1 is the first revision.
            compact_revision: self.history.compacted_revision().max(1),
            ..Default::default()
        });
    }

    /// Sends what a watcher wants of `revisions`, which are whole, in order and next in its turn.
    async fn send(
        &mut self,
        watch_id: i64,
        revisions: &[&Arc<RevisionEvents>],
    ) -> Result<(), RequestError> {
        let Some(watch) = self.watches.get_mut(&watch_id) else { return Ok(()) };
        let Some(interest) = self.subscriptions.interest(watch_id) else { return Ok(()) };
        let mut events: Vec<mvccpb::Event> = revisions
            .iter()
            .flat_map(|revision| &revision.events)
            .filter(|event| interest.wants(event))
            .cloned()
            .collect();
        let Some(last) = revisions.last().filter(|_| !events.is_empty()) else { return Ok(()) };
        watch.quiet = false;
        self.subscriptions.hub().note_sent(events.len());
        let fragment = watch.fragment;
        if watch.prev_kv {
            for event in &mut events {
                event.prev_kv = previous(self.history.as_ref(), event).await?;
            }
        }
        let response = WatchResponse {
            header: self.header_at(last.revision),
            watch_id,
            events,
            ..Default::default()
        };
        let max_bytes = self.subscriptions.hub().limits().fragment_bytes;
        if fragment && response.encoded_len() >= max_bytes {
            self.outbox.extend(fragments(response, max_bytes));
        } else {
            self.outbox.push_back(response);
        }
        Ok(())
    }

    fn answer_progress_request(&mut self) {
        let Some(from) = self.progress_from else { return };
        // A mark from before a watch's start would take its client back.
        let at_least = self.watches.values().fold(from, |most, watch| most.max(watch.start - 1));
        if let Some(revision) = self.subscriptions.sent_through(at_least) {
            self.progress_from = None;
            self.push_progress(NO_WATCH_ID, revision);
        }
    }

    /// The periodic marks, for watches that asked for them and saw no event since the last round.
    fn mark_progress(&mut self) {
        let mut marks = Vec::new();
        for (watch_id, watch) in &mut self.watches {
            if watch.progress_notify
                && watch.quiet
                && let Some(revision) = self.subscriptions.idle_at(*watch_id)
            {
                marks.push((*watch_id, revision));
            }
            watch.quiet = true;
        }
        for (watch_id, revision) in marks {
            self.push_progress(watch_id, revision);
        }
    }

    fn push_progress(&mut self, watch_id: i64, revision: i64) {
        let header = self.header_at(revision);
        self.outbox.push_back(WatchResponse { header, watch_id, ..Default::default() });
    }

    /// Never behind what has been published.
    fn current_revision(&self) -> i64 {
        self.history.current_revision().max(self.subscriptions.hub().published_revision())
    }

    fn header_at(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..(self.header)() })
    }
}

async fn receive<R: Stream>(requests: &mut Option<Pin<Box<R>>>) -> Option<R::Item> {
    match requests {
        Some(requests) => requests.next().await,
        None => future::pending().await,
    }
}

/// The key as it was before `event`; absent for a key that the event created, and once it is compacted.
async fn previous<H: History>(
    history: &H,
    event: &mvccpb::Event,
) -> Result<Option<mvccpb::KeyValue>, RequestError> {
    let Some(kv) = &event.kv else { return Ok(None) };
    if event.r#type() == EventType::Put && kv.create_revision == kv.mod_revision {
        return Ok(None);
    }
    match history.value_at(&kv.key, kv.mod_revision - 1).await {
        Ok(previous) => Ok(previous),
        Err(ReadError::Compacted) => Ok(None),
        Err(ReadError::Failed(error)) => Err(give_up(&*error, kv.mod_revision)),
    }
}

fn give_up(error: &(dyn Error + Send + Sync + 'static), revision: i64) -> RequestError {
    tracing::warn!(error, revision, "a watch stream ends: the history cannot be read");
    RequestError::Stopped
}

/// Cuts a response into pieces below `max_bytes` of at least one event each; all but the last say that
/// more follows.
fn fragments(response: WatchResponse, max_bytes: usize) -> Vec<WatchResponse> {
    let WatchResponse { events, .. } = response;
    let envelope = WatchResponse { fragment: true, events: Vec::new(), ..response };
    let envelope_bytes = envelope.encoded_len();
    let mut pieces = Vec::new();
    let mut piece = envelope.clone();
    let mut piece_bytes = envelope_bytes;
    for event in events {
        let event_bytes = prost::encoding::message::encoded_len(EVENTS_FIELD, &event);
        if !piece.events.is_empty() && piece_bytes + event_bytes >= max_bytes {
            pieces.push(std::mem::replace(&mut piece, envelope.clone()));
            piece_bytes = envelope_bytes;
        }
        piece_bytes += event_bytes;
        piece.events.push(event);
    }
    piece.fragment = false;
    pieces.push(piece);
    pieces
}

/// The number of `WatchResponse.events`.
const EVENTS_FIELD: u32 = 11;
