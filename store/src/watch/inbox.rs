//! What waits for one stream: where each of its watchers stands, and which have something to send.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use store_proto::mvccpb::{self, event::EventType};
use tokio::sync::Notify;

use super::WatchLimits;
use super::ranges::contains;
use crate::mvcc::{KeyRange, RevisionEvents};

/// Which events a watcher wants.
#[derive(Clone, Debug)]
pub(super) struct Interest {
    pub(super) range: KeyRange,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
}

impl Interest {
    pub(super) fn wants(&self, event: &mvccpb::Event) -> bool {
        self.wants_type(event) && event.kv.as_ref().is_some_and(|kv| contains(&self.range, &kv.key))
    }

    /// As [`Self::wants`], for an event whose key is known to be in the range.
    pub(super) fn wants_type(&self, event: &mvccpb::Event) -> bool {
        match event.r#type() {
            EventType::Put => !self.no_put,
            EventType::Delete => !self.no_delete,
        }
    }
}

/// A revision that waits for somebody. Its bytes count towards the hub's total until the last watcher
/// that it waits for has fetched or dropped it.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) revision: Arc<RevisionEvents>,
    bytes: usize,
    total_bytes: Arc<AtomicUsize>,
}

impl Pending {
    /// `None` when the total would exceed `max_total_bytes`.
    pub(super) fn new(
        revision: &Arc<RevisionEvents>,
        bytes: usize,
        total_bytes: &Arc<AtomicUsize>,
        max_total_bytes: usize,
    ) -> Option<Arc<Self>> {
        // Only the publisher adds, under its lock, so nobody else can take the room in between.
        if total_bytes.load(Ordering::Relaxed) + bytes > max_total_bytes {
            return None;
        }
        total_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Arc::new(Self {
            revision: Arc::clone(revision),
            bytes,
            total_bytes: Arc::clone(total_bytes),
        }))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.total_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where a watcher stands. All matching events below `next` have been sent, or wait in `pending`.
#[derive(Debug)]
enum Position {
    /// The hub offers it every matching revision from `next` on.
    Synced { next: i64, pending: VecDeque<Arc<Pending>> },
    /// It reads history from `next` on.
    Lagging { next: i64 },
}

/// What a stream is to do next.
#[derive(Debug)]
pub(super) enum Work {
    /// Send the watcher's events of these revisions, each of which has some.
    Send { watch_id: i64, revisions: Vec<Arc<Pending>> },
    /// Read history for the watcher, and tell [`super::hub::Subscriptions::caught_up`] how far.
    CatchUp { watch_id: i64, from: i64 },
}

/// How the publisher's offer to a watcher ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It waits, or the watcher does not want it or will find it in history.
    Done,
    /// There was no room for it: the watcher lags now.
    Overflowed,
}

/// Shared by the stream, which fetches, and the hub, which offers. Lock order: the hub's, then this.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    positions: BTreeMap<i64, Position>,
    /// Watchers that have something pending, or lag. A watcher leaves while the stream works for it,
    /// and comes back if there is more.
    ready: BTreeSet<i64>,
    /// Whose turn was the last: the next above has the next one, and the first comes after the last.
    last_turn: Option<i64>,
    pending_bytes: usize,
}

impl Inbox {
    /// How many events wait here, each for as many watchers as it waits for.
    pub(super) fn pending_events(&self) -> usize {
        let state = self.state.lock();
        let waiting = state.positions.values().map(|position| match position {
            Position::Synced { pending, .. } => {
                pending.iter().map(|one| one.revision.events.len()).sum()
            }
            Position::Lagging { .. } => 0,
        });
        waiting.sum()
    }

    /// Waits until something has changed since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// A watcher that has nothing waiting and takes events from `next` on.
    pub(super) fn add_synced(&self, watch_id: i64, next: i64) {
        let synced = Position::Synced { next, pending: VecDeque::new() };
        self.state.lock().positions.insert(watch_id, synced);
    }

    pub(super) fn add_lagging(&self, watch_id: i64, next: i64) {
        let mut state = self.state.lock();
        state.positions.insert(watch_id, Position::Lagging { next });
        state.ready.insert(watch_id);
    }

    /// Returns whether the watcher lagged.
    pub(super) fn remove(&self, watch_id: i64) -> bool {
        let mut state = self.state.lock();
        state.ready.remove(&watch_id);
        match state.positions.remove(&watch_id) {
            Some(Position::Lagging { .. }) => true,
            Some(Position::Synced { pending, .. }) => {
                state.pending_bytes -= bytes_of(&pending);
                false
            }
            None => false,
        }
    }

    /// Puts `revision`, which weighs `bytes`, up for a watcher that wants it. `pend` gives what is
    /// shared by all watchers that it waits for, unless there is no room left on this member.
    pub(super) fn offer(
        &self,
        watch_id: i64,
        revision: i64,
        bytes: usize,
        limits: &WatchLimits,
        pend: impl FnOnce() -> Option<Arc<Pending>>,
    ) -> Offered {
        let mut state = self.state.lock();
        let State { positions, ready, pending_bytes, .. } = &mut *state;
        let Some(position) = positions.get_mut(&watch_id) else { return Offered::Done };
        let Position::Synced { next, pending } = position else { return Offered::Done };
        if revision < *next {
            return Offered::Done;
        }
        if pending.is_empty() {
            ready.insert(watch_id);
            self.changed.notify_one();
        }
        if pending.len() < limits.pending_revisions
            && *pending_bytes + bytes <= limits.pending_bytes_per_stream
            && let Some(new) = pend()
        {
            *pending_bytes += bytes;
            *next = revision + 1;
            pending.push_back(new);
            return Offered::Done;
        }
        *pending_bytes -= bytes_of(pending);
        let first = pending.front().map_or(revision, |first| first.revision.revision);
        *position = Position::Lagging { next: first };
        Offered::Overflowed
    }

    /// Makes every synced watcher lag from the first revision that it has not fetched, `next` if it has
    /// fetched all that it was offered. Returns how many were synced.
    pub(super) fn make_all_lagging(&self, next: i64) -> usize {
        let mut state = self.state.lock();
        let State { positions, ready, pending_bytes, .. } = &mut *state;
        let mut made = 0;
        for (watch_id, position) in positions {
            let Position::Synced { next: own, pending } = position else { continue };
            if pending.is_empty() {
                ready.insert(*watch_id);
            }
            let first = pending.front().map_or(next.max(*own), |first| first.revision.revision);
            *position = Position::Lagging { next: first };
            made += 1;
        }
        *pending_bytes = 0;
        self.changed.notify_one();
        made
    }

    /// A lagging watcher has been sent everything below `next`. It is synced from there on if
    /// `synced`, else its next turn will come.
    pub(super) fn advance(&self, watch_id: i64, next: i64, synced: bool) {
        if synced {
            self.add_synced(watch_id, next);
        } else {
            self.add_lagging(watch_id, next);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// The next watcher's turn; up to `max_bytes` of what it has pending, but at least one revision.
    pub(super) fn fetch(&self, max_bytes: usize) -> Option<Work> {
        let mut state = self.state.lock();
        let State { positions, ready, last_turn, pending_bytes } = &mut *state;
        let after_last = last_turn.map_or(Bound::Unbounded, Bound::Excluded);
        let watch_id =
            *ready.range((after_last, Bound::Unbounded)).next().or_else(|| ready.first())?;
        ready.remove(&watch_id);
        *last_turn = Some(watch_id);
        match positions.get_mut(&watch_id)? {
            Position::Lagging { next } => Some(Work::CatchUp { watch_id, from: *next }),
            Position::Synced { pending, .. } => {
                let mut bytes = 0;
                let mut revisions = Vec::new();
                while let Some(first) = pending.front()
                    && (revisions.is_empty() || bytes + first.bytes <= max_bytes)
                {
                    bytes += first.bytes;
                    revisions.extend(pending.pop_front());
                }
                *pending_bytes -= bytes;
                if !pending.is_empty() {
                    ready.insert(watch_id);
                }
                Some(Work::Send { watch_id, revisions })
            }
        }
    }

    /// The revision up to which every watcher has been sent all its events, given that `published` has
    /// been offered.
    pub(super) fn sent_through(&self, published: i64) -> i64 {
        let state = self.state.lock();
        let each = state.positions.values().map(|position| match position {
            Position::Lagging { next } => next - 1,
            Position::Synced { pending, .. } => {
                pending.front().map_or(published, |first| first.revision.revision - 1)
            }
        });
        each.fold(published, i64::min)
    }

    /// Whether a watcher has been sent all its events up to `published` and has nothing waiting.
    pub(super) fn is_idle(&self, watch_id: i64, published: i64) -> bool {
        matches!(
            self.state.lock().positions.get(&watch_id),
            Some(Position::Synced { next, pending }) if pending.is_empty() && *next <= published + 1
        )
    }
}

fn bytes_of(pending: &VecDeque<Arc<Pending>>) -> usize {
    pending.iter().map(|pending| pending.bytes).sum()
}
