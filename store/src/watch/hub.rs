//! The hub: takes each applied revision once and finds the watchers of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::WatchLimits;
use super::inbox::{Inbox, Interest, Offered, Pending, Work};
use super::ranges::RangeIndex;
use crate::RequestError;
use crate::mvcc::RevisionEvents;

/// The watchers of this member. See the [module](super) for what they are promised.
#[derive(Debug)]
pub(crate) struct WatchHub {
    registry: Mutex<Registry>,
    pending_bytes: Arc<AtomicUsize>,
    sent_events: AtomicU64,
    limits: WatchLimits,
}

#[derive(Debug)]
struct Registry {
    /// The last revision that was offered to the watchers.
    published: i64,
    watchers: RangeIndex<Arc<Watcher>>,
    next_registration: u64,
    watcher_count: usize,
    lagging_count: usize,
    streams: BTreeMap<u64, Arc<Inbox>>,
    next_stream: u64,
    /// Streams that wait for `published` to move on before they can tell how far they are.
    awaiting_publish: BTreeSet<u64>,
}

#[derive(Debug)]
struct Watcher {
    /// Unique in the hub.
    registration: u64,
    /// Unique in the stream.
    watch_id: i64,
    interest: Interest,
    inbox: Arc<Inbox>,
}

impl WatchHub {
    /// A hub for a state that is at `current_revision`.
    pub(crate) fn new(current_revision: i64, limits: WatchLimits) -> Arc<Self> {
        Arc::new(Self {
            registry: Mutex::new(Registry {
                published: current_revision,
                watchers: RangeIndex::new(),
                next_registration: 0,
                watcher_count: 0,
                lagging_count: 0,
                streams: BTreeMap::new(),
                next_stream: 0,
                awaiting_publish: BTreeSet::new(),
            }),
            pending_bytes: Arc::default(),
            sent_events: AtomicU64::new(0),
            limits,
        })
    }

    /// Offers revisions that have just been applied, and can be read from the state, to their watchers.
    /// Never waits for a client, and costs next to nothing while nobody watches.
    ///
    /// Each revision is to be published once, in order. One that was published before is left out;
    /// where one is missing, every watcher goes through history from there on.
    pub(crate) fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        for revision in revisions {
            // Locked for one revision at a time, so that streams need not wait for a long batch.
            let mut registry = self.registry.lock();
            if revision.revision <= registry.published {
                continue;
            }
            if revision.revision > registry.published + 1 {
                tracing::warn!(
                    revision = revision.revision,
                    published = registry.published,
                    "revisions were not published: watchers read them from history"
                );
                registry.make_all_lagging();
            }
            if !registry.watchers.is_empty() {
                self.offer(&mut registry, revision);
            }
            registry.move_on(revision.revision);
        }
    }

    fn offer(&self, registry: &mut Registry, revision: &Arc<RevisionEvents>) {
        let mut size_bytes = None;
        let mut shared: Option<Arc<Pending>> = None;
        let Registry { watchers, lagging_count, .. } = registry;
        for event in &revision.events {
            let Some(kv) = &event.kv else { continue };
            watchers.for_each_at(&kv.key, |watcher| {
                if !watcher.interest.wants_type(event) {
                    return;
                }
                let bytes = *size_bytes.get_or_insert_with(|| revision.size_bytes());
                let pend = || {
                    if shared.is_none() {
                        let (total, max) = (&self.pending_bytes, self.limits.pending_bytes);
                        shared = Pending::new(revision, bytes, total, max);
                    }
                    shared.clone()
                };
                let inbox = &watcher.inbox;
                let offered =
                    inbox.offer(watcher.watch_id, revision.revision, bytes, &self.limits, pend);
                if offered == Offered::Overflowed {
                    *lagging_count += 1;
                }
            });
        }
    }

    /// Tells that the state was replaced by one at `current_revision` (a snapshot was installed): every
    /// watcher goes on in the new state's history from the first revision that it has not had.
    pub(crate) fn reset(&self, current_revision: i64) {
        let mut registry = self.registry.lock();
        registry.make_all_lagging();
        let published = registry.published.max(current_revision);
        registry.move_on(published);
    }

    /// The last revision that was offered to the watchers.
    pub(crate) fn published_revision(&self) -> i64 {
        self.registry.lock().published
    }

    pub(super) fn limits(&self) -> &WatchLimits {
        &self.limits
    }

    /// Opens a stream's place in the hub.
    ///
    /// # Errors
    /// [`RequestError::TooManyRequests`] when there are as many streams as there may be.
    pub(super) fn subscribe(self: &Arc<Self>) -> Result<Subscriptions, RequestError> {
        let mut registry = self.registry.lock();
        if registry.streams.len() >= self.limits.streams {
            return Err(RequestError::TooManyRequests);
        }
        let stream = registry.next_stream;
        registry.next_stream += 1;
        let inbox = Arc::<Inbox>::default();
        registry.streams.insert(stream, Arc::clone(&inbox));
        Ok(Subscriptions { hub: Arc::clone(self), stream, inbox, watchers: BTreeMap::new() })
    }
}

/// What the metrics tell.
impl WatchHub {
    /// How many events were sent to clients.
    pub(crate) fn sent_events(&self) -> u64 {
        self.sent_events.load(Ordering::Relaxed)
    }

    pub(super) fn note_sent(&self, events: usize) {
        self.sent_events.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many events wait for clients; one that waits for many counts for each.
    pub(crate) fn pending_events(&self) -> usize {
        let inboxes: Vec<_> = self.registry.lock().streams.values().cloned().collect();
        inboxes.iter().map(|inbox| inbox.pending_events()).sum()
    }

    /// How many watchers there are.
    pub(crate) fn watchers(&self) -> usize {
        self.registry.lock().watcher_count
    }

    /// How many watchers read history, because they started in the past or their clients are slow.
    pub(crate) fn lagging_watchers(&self) -> usize {
        self.registry.lock().lagging_count
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.registry.lock().streams.len()
    }

    /// Bytes of events that wait for clients; an event that waits for many counts once.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Relaxed)
    }
}

impl Registry {
    fn make_all_lagging(&mut self) {
        for inbox in self.streams.values() {
            self.lagging_count += inbox.make_all_lagging(self.published + 1);
        }
    }

    fn move_on(&mut self, published: i64) {
        self.published = published;
        while let Some(stream) = self.awaiting_publish.pop_first() {
            if let Some(inbox) = self.streams.get(&stream) {
                inbox.wake();
            }
        }
    }

    fn forget(&mut self, watcher: &Watcher) {
        self.watchers.remove(&watcher.interest.range, watcher.registration);
        self.watcher_count -= 1;
        if watcher.inbox.remove(watcher.watch_id) {
            self.lagging_count -= 1;
        }
    }
}

/// The watchers of one stream, by watch id. They are gone from the hub when this is dropped.
#[derive(Debug)]
pub(super) struct Subscriptions {
    hub: Arc<WatchHub>,
    stream: u64,
    inbox: Arc<Inbox>,
    watchers: BTreeMap<i64, Arc<Watcher>>,
}

impl Subscriptions {
    pub(super) fn hub(&self) -> &WatchHub {
        &self.hub
    }

    pub(super) fn interest(&self, watch_id: i64) -> Option<&Interest> {
        self.watchers.get(&watch_id).map(|watcher| &watcher.interest)
    }

    /// Adds a watcher of the events from `start` on; replaces one that has the same id.
    pub(super) fn add(&mut self, watch_id: i64, interest: Interest, start: i64) {
        self.remove(watch_id);
        let mut registry = self.hub.registry.lock();
        let registration = registry.next_registration;
        registry.next_registration += 1;
        let inbox = Arc::clone(&self.inbox);
        let watcher = Arc::new(Watcher { registration, watch_id, interest, inbox });
        if start > registry.published {
            self.inbox.add_synced(watch_id, start);
        } else {
            self.inbox.add_lagging(watch_id, start);
            registry.lagging_count += 1;
        }
        let range = &watcher.interest.range;
        registry.watchers.insert(range, registration, Arc::clone(&watcher));
        registry.watcher_count += 1;
        self.watchers.insert(watch_id, watcher);
    }

    /// Returns whether there was such a watcher.
    pub(super) fn remove(&mut self, watch_id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(&watch_id) else { return false };
        self.hub.registry.lock().forget(&watcher);
        true
    }

    /// What to do next, if there is anything.
    pub(super) fn fetch(&self) -> Option<Work> {
        self.inbox.fetch(self.hub.limits.response_bytes)
    }

    pub(super) fn has_work(&self) -> bool {
        self.inbox.has_work()
    }

    /// Waits until there may be something to do.
    pub(super) async fn changed(&self) {
        self.inbox.changed().await;
    }

    /// A lagging watcher has gone through history up to just before `next`.
    pub(super) fn caught_up(&self, watch_id: i64, next: i64) {
        let mut registry = self.hub.registry.lock();
        let synced = next > registry.published;
        self.inbox.advance(watch_id, next, synced);
        if synced {
            registry.lagging_count -= 1;
        }
    }

    /// The revision up to which every watcher has been sent all its events, if it is `at_least` that
    /// far. If not, [`Self::changed`] returns when it may be.
    pub(super) fn sent_through(&self, at_least: i64) -> Option<i64> {
        let mut registry = self.hub.registry.lock();
        if registry.published >= at_least {
            let sent_through = self.inbox.sent_through(registry.published);
            if sent_through >= at_least {
                return Some(sent_through);
            }
        }
        registry.awaiting_publish.insert(self.stream);
        None
    }

    /// The last published revision, if the watcher has been sent everything up to it.
    pub(super) fn idle_at(&self, watch_id: i64) -> Option<i64> {
        let registry = self.hub.registry.lock();
        self.inbox.is_idle(watch_id, registry.published).then_some(registry.published)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for watcher in self.watchers.values() {
            self.hub.registry.lock().forget(watcher);
        }
        let mut registry = self.hub.registry.lock();
        registry.streams.remove(&self.stream);
        registry.awaiting_publish.remove(&self.stream);
    }
}
