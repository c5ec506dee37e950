//! The most recent revisions, whole and in memory, so that reads and watches seldom touch the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use store_proto::mvccpb::Event;

use super::revision::{Revision, RevisionEvents};

/// Revisions without a gap, up to the current one.
///
/// It is bounded in bytes, but only what the engine already has is let go: what is in neither would
/// be lost to readers.
#[derive(Debug)]
pub(crate) struct Window {
    revisions: VecDeque<Arc<RevisionEvents>>,
    /// The revision at the front, or the one that will come when there is none.
    first: i64,
    bytes: usize,
    limit_bytes: usize,
}

impl Window {
    /// An empty window after the revision `current`.
    pub(crate) fn new(current: i64, limit_bytes: usize) -> Self {
        Self { revisions: VecDeque::new(), first: current + 1, bytes: 0, limit_bytes }
    }

    /// The first revision that is in memory, or would be.
    pub(crate) fn first(&self) -> i64 {
        self.first
    }

    /// Adds the next revision.
    pub(crate) fn push(&mut self, revision: Arc<RevisionEvents>) {
        debug_assert_eq!(revision.revision, self.first + self.revisions.len() as i64);
        self.bytes += revision.size_bytes();
        self.revisions.push_back(revision);
    }

    /// Lets the oldest go until the rest fits, but none above `persisted`.
    pub(crate) fn evict(&mut self, persisted: i64) {
        while self.bytes > self.limit_bytes && self.first <= persisted {
            let Some(revision) = self.revisions.pop_front() else { return };
            self.bytes -= revision.size_bytes();
            self.first += 1;
        }
    }

    /// One revision, if it is in memory.
    pub(crate) fn get(&self, revision: i64) -> Option<&Arc<RevisionEvents>> {
        let place = revision.checked_sub(self.first)?;
        self.revisions.get(usize::try_from(place).ok()?)
    }

    /// One write, if it is in memory.
    pub(crate) fn event(&self, revision: Revision) -> Option<&Event> {
        self.get(revision.main)?.events.get(revision.sub as usize)
    }

    /// The revisions from `from` on, as long as that is in memory.
    pub(crate) fn from(&self, from: i64) -> impl Iterator<Item = &Arc<RevisionEvents>> {
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        self.revisions.iter().skip(skip)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mvcc::revision::delete_event;

    fn revision(revision: i64) -> Arc<RevisionEvents> {
        let events = vec![delete_event(Bytes::from_static(b"k"), revision)];
        Arc::new(RevisionEvents { revision, events })
    }

    fn held(window: &Window) -> Vec<i64> {
        window.from(window.first()).map(|revision| revision.revision).collect()
    }

    #[test]
    fn the_oldest_go_first_and_only_once_they_are_persisted() {
        let one = revision(2).size_bytes();
        let mut window = Window::new(1, 2 * one);
        for main in 2..8 {
            window.push(revision(main));
        }
        window.evict(1);
        assert_eq!(held(&window), [2, 3, 4, 5, 6, 7]);
        window.evict(3);
        assert_eq!(held(&window), [4, 5, 6, 7]);
        window.evict(7);
        assert_eq!(held(&window), [6, 7]);
        assert!(
            window.get(5).is_none() && window.get(8).is_none() && window.get(i64::MIN).is_none()
        );
        assert_eq!(window.get(6).unwrap().revision, 6);
        assert_eq!(window.from(7).count(), 1);
        assert_eq!(window.from(9).count(), 0);
        assert!(window.event(Revision { main: 7, sub: 1 }).is_none());
        assert!(window.event(Revision { main: 7, sub: 0 }).is_some());
    }
}
