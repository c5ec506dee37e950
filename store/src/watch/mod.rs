//! Watches: every event once, in revision order, to whoever asked for its key.
//!
//! # What a watch is promised
//! Its stream equals the history from its start revision on, filtered by its range: ordered, nothing
//! missing, nothing twice, the events of one revision never apart (unless `fragment` was asked for).
//! Every response's `header.revision` can be resumed from: no event of that watch at or below it is
//! still to come. The one exception that is told is compaction: a watch whose next revision has been
//! compacted away is canceled with `compact_revision`.
//!
//! # How
//! [`WatchHub`] is told of every applied revision, in order, and hands it to the watchers of its keys.
//! A watcher is in one of two states:
//! - *synced*: it has been offered every revision that was published. What it has been offered and its
//!   client has not yet fetched waits in a short list of its own;
//! - *lagging*: it has a next revision, and nothing else. It reads on in [`History`], a bounded piece
//!   each time its client is ready for more, until it has passed the last published revision.
//!
//! A list that would grow beyond its bound is thrown away and its watcher lags from the first revision
//! that was in it. So a client that stops reading costs a number, and loses nothing:
//!
//! ```text
//! published  watcher             its client
//! 5          synced [5]
//! 6          synced [5, 6]       (bound: 2)
//! 7          lagging from 5
//! 8          lagging from 5      fetches: history 5, 6, 7    -> sent with header.revision 7
//!            lagging from 8      fetches: history 8          -> sent, 8 is the last published: synced
//! 9          synced [9]          fetches 9
//! ```
//!
//! Both changes of state happen under the lock that publishing takes, so that no revision falls between
//! what history gave and what the hub will offer.
//!
//! [`watch`] is one client's stream: it is pulled, never pushes. It reads a request, or builds the next
//! response, when the one before has been taken, so a stream holds one response in memory, and when it
//! is dropped its watchers are gone.

use std::time::Duration;

mod history;
mod hub;
mod inbox;
mod ranges;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use self::history::{History, ReadError};
pub(crate) use self::hub::WatchHub;
pub(crate) use self::stream::watch;

/// Streams at one time, on this member.
pub(crate) const MAX_STREAMS: usize = 16_384;
/// Watchers on one stream.
pub(crate) const MAX_WATCHERS_PER_STREAM: usize = 16_384;
/// Revisions that one synced watcher may have waiting.
pub(crate) const MAX_PENDING_REVISIONS: usize = 1024;
/// Bytes of events that the synced watchers of one stream may have waiting.
pub(crate) const MAX_PENDING_BYTES_PER_STREAM: usize = 4 << 20;
/// Bytes of events that wait on this member; an event that waits for many watchers counts once.
pub(crate) const MAX_PENDING_BYTES: usize = 64 << 20;
/// Bytes of events that are gathered into one response; a single revision may be larger.
pub(crate) const MAX_RESPONSE_BYTES: usize = 512 << 10;
/// Above this a response is cut for watches that asked for `fragment`: etcd's largest request and
/// 512 KiB.
pub(crate) const MAX_FRAGMENT_BYTES: usize = (1536 + 512) << 10;
/// How often a watch that asked for it and saw no event is told how far it is; etcd's interval.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// The bounds of the watches of one member.
#[derive(Clone, Debug)]
pub(crate) struct WatchLimits {
    /// See [`MAX_STREAMS`].
    pub(crate) streams: usize,
    /// See [`MAX_WATCHERS_PER_STREAM`].
    pub(crate) watchers_per_stream: usize,
    /// See [`MAX_PENDING_REVISIONS`].
    pub(crate) pending_revisions: usize,
    /// See [`MAX_PENDING_BYTES_PER_STREAM`].
    pub(crate) pending_bytes_per_stream: usize,
    /// See [`MAX_PENDING_BYTES`].
    pub(crate) pending_bytes: usize,
    /// See [`MAX_RESPONSE_BYTES`].
    pub(crate) response_bytes: usize,
    /// See [`MAX_FRAGMENT_BYTES`].
    pub(crate) fragment_bytes: usize,
    /// See [`PROGRESS_INTERVAL`].
    pub(crate) progress_interval: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            streams: MAX_STREAMS,
            watchers_per_stream: MAX_WATCHERS_PER_STREAM,
            pending_revisions: MAX_PENDING_REVISIONS,
            pending_bytes_per_stream: MAX_PENDING_BYTES_PER_STREAM,
            pending_bytes: MAX_PENDING_BYTES,
            response_bytes: MAX_RESPONSE_BYTES,
            fragment_bytes: MAX_FRAGMENT_BYTES,
            progress_interval: PROGRESS_INTERVAL,
        }
    }
}
