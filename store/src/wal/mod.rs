//! The write-ahead log: the one place where an acknowledged write is durable.
//!
//! Everything that consensus must not forget goes through here, in one order: entries of the Raft
//! log, votes, how far the log is committed, where it was truncated and up to where it was purged,
//! and up to where the applied state was found durable (a checkpoint).
//!
//! # What it guarantees
//!
//! - **Order.** Records reach the disk in the order in which they were submitted. Whatever happens,
//!   the log comes back as a prefix of that order.
//! - **Durability.** A submission's callback hears `Ok` only after an `fdatasync` that covers it and
//!   everything before it. Callbacks run in the order of submission.
//! - **No silence about failure.** A write or sync that fails ends the log: every waiting and every
//!   later call fails with the cause, and [`Wal::failed`] tells the owner, who is to end the
//!   process. After a failed sync the kernel may have dropped the very pages that it could not
//!   write, so there is nothing to be tried again.
//! - **No silence about damage.** A log whose bytes are not what was written is refused by file and
//!   offset; only a tail that no sync ever covered is cut.
//!
//! # On disk
//!
//! The log is a directory of segments, `00000000000000000001.wal` and so on. A segment is
//! filled with zeros when it is made, so that a sync has data to flush but neither a new file size
//! nor new blocks. It holds records one after the other, then zeros:
//!
//! ```text
//! len u32 | crc u32 | kind u8 | payload (len bytes)      integers are little-endian;
//!                                                        crc is CRC-32C over kind and payload
//!
//! kind 1  header          what the older segments said: first in a segment, nowhere else
//!      2  entry           one entry of the Raft log
//!      3  vote
//!      4  committed       the log is committed up to here
//!      5  truncate-after  entries after this one are gone
//!      6  purge-up-to     entries up to this one are in a snapshot
//!      7  checkpoint      the applied state is durable up to here
//!      8  mark            everything before this byte was synced when this was written
//! ```
//! Numbers and payloads are for ever ([`record`]).
//!
//! **Making a segment** ([`segment`]): a file of zeros is written and synced under a name that ends
//! in `.new`, while the present segment fills. When that one is full it is synced; then the new
//! one's header is written and synced, the file renamed, and the directory synced. So a `.wal` file
//! always begins with a whole header, a leftover `.new` is thrown away, and a segment with a
//! successor is complete: the successor's header says where it ended. The header also repeats the
//! vote and the committed, purged and checkpoint positions, so that older segments can be unlinked
//! as soon as all their entries are purged: oldest first, the directory synced after each.
//!
//! # Torn, or damaged?
//!
//! A power cut may leave any subset of the sectors that were written since the last sync. So the
//! bytes after the last sync may hold a bad record followed by good ones, and must be cut at the
//! first bad one: nobody was told that any of them is durable. The same picture *before* the last
//! sync is damage. To tell one from the other, the first record written after a sync is a mark that
//! holds its own position:
//!
//! ```text
//! header | entry 1 | entry 2 | ~sync~ | mark | entry 3 | vote | ~sync~ | mark | entry 4 | 0 0 0 …
//!             ^ bad: a mark follows, so a sync covered it: damage, refused
//!                                                 a bad entry 4: no mark follows: torn, cut  ^
//! ```
//! So: a bad record is damage if it is in a segment that has a successor, or if a mark follows it;
//! otherwise it is the torn tail. A clean close adds a mark, after which nothing can pass for torn.
//! What is cut is overwritten with zeros, so that no record of the torn tail can come alive again
//! behind a later one. ([`recovery`])
//!
//! # One thread
//!
//! Writing is blocking file work that must stay off the runtime's threads and in one order, so it
//! has a thread of its own ([`writer`]), owned by the [`Wal`] and joined when that is closed or
//! dropped. It takes what is queued, writes it with as few writes as possible, syncs once, and runs
//! the callbacks. The queue is bounded in submissions and in bytes; who submits waits for room.

pub(crate) mod files;
mod index;
#[cfg(test)]
pub(crate) mod memory;
mod record;
mod recovery;
mod segment;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::raft::types::{LogId, Vote};

pub(crate) use self::files::DiskDir;
use self::files::LogDir;
use self::index::Index;
pub(crate) use self::index::{Stored, read_entries};
pub(crate) use self::record::{Damage, Record};
use self::writer::{Failure, Submission, Writer};

/// How many submissions may wait for the writer.
const QUEUE_SUBMISSIONS: usize = 4096;

/// The largest record. A length beyond it can only be damage.
pub(crate) const MAX_RECORD_BYTES: usize = 256 << 20;

/// How a log is laid out and how much memory it may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalOptions {
    /// The size at which a new segment is begun; a single larger record gets a larger segment.
    pub(crate) segment_bytes: u32,
    /// Bytes of recent entries to keep in memory for replication and apply.
    pub(crate) cache_bytes: usize,
    /// Bytes that may wait for the writer; who submits more waits.
    pub(crate) queue_bytes: u32,
    /// Whether the file for the next segment is made on a second thread while the present one
    /// fills. Otherwise the writer makes it when it is needed, and the order of file operations can
    /// be repeated.
    pub(crate) make_ahead: bool,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            cache_bytes: 8 << 20,
            queue_bytes: 16 << 20,
            make_ahead: true,
        }
    }
}

/// Why the log cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalError {
    /// Another process, or another part of this one, has the log open.
    #[error(
        "the log in {} is in use by another process: stop that one, or give this one a data directory of its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done, as in "cannot … file".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The log holds something else than what was written to it.
    #[error(
        "the log is damaged: {} at byte {offset}, and acknowledged writes may be gone from this copy",
        .path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        #[source]
        damage: Damage,
    },
    /// A segment between two others, or before the first that is still needed, is not there.
    #[error(
        "the log is damaged: {} is missing, and acknowledged writes may be gone from this copy",
        .0.display()
    )]
    Missing(PathBuf),
    /// The log was written by another version of the program.
    #[error("{} was written by another version of this program", .path.display())]
    Format {
        /// The segment.
        path: PathBuf,
        #[source]
        damage: Damage,
    },
    /// An earlier write or sync failed; nothing is written any more.
    #[error("the log takes no more writes since one has failed")]
    Failed(#[source] Arc<WalError>),
    /// The thread that writes is gone without having been told to.
    #[error("the log's writer has panicked")]
    Panicked,
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// An entry is larger than a record can be.
    #[error("an entry of {0} bytes does not fit into the log (the limit is {MAX_RECORD_BYTES})")]
    TooLarge(usize),
    /// Entries were appended that do not follow the last one.
    #[error("entry {found} cannot be appended to a log whose next entry is {expected}")]
    Gap {
        /// The index that would have followed.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// Entries were purged while they were being read.
    #[error("entry {0} is not in the log any more")]
    Purged(u64),
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> Self {
        Self::other(error)
    }
}

/// What a log was found to hold when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The last vote.
    pub(crate) vote: Option<Vote>,
    /// How far the log was known to be committed.
    pub(crate) committed: Option<LogId>,
    /// The last entry that was purged; a snapshot that reaches this far must exist.
    pub(crate) purged: Option<LogId>,
    /// The last entry, or the last purged one if there is none.
    pub(crate) last: Option<LogId>,
    /// How far the applied state was durable: a state that comes back with less has lost data.
    pub(crate) checkpoint: Option<LogId>,
    /// The index of the first entry, if there are entries.
    pub(crate) first_index: Option<u64>,
    /// The tail that was cut, if one was.
    pub(crate) torn: Option<TornTail>,
}

/// Bytes at the end of the log that no sync had covered and that were not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TornTail {
    /// The newest segment.
    pub(crate) path: PathBuf,
    /// Where it was cut.
    pub(crate) offset: u64,
    /// Up to the last byte that was not zero.
    pub(crate) bytes: u64,
}

/// Hears whether a submission is durable. Runs on the writer's thread, so it must not block.
pub(crate) type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// An open log. See the module for what it guarantees.
pub(crate) struct Wal {
    /// What ends the writer when it is gone, and then what waits for the writer.
    queue: Mutex<Option<mpsc::Sender<Submission>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    submitted: Mutex<u64>,
    budget: Arc<Semaphore>,
    queue_bytes: u32,
    index: Arc<Mutex<Index>>,
    failed: watch::Receiver<Option<Arc<WalError>>>,
}

impl Wal {
    /// Locks the directory, recovers what the log holds and starts the writer. Blocks on the disk.
    pub(crate) fn open(
        dir: Arc<dyn LogDir>,
        options: &WalOptions,
    ) -> Result<(Self, Recovered), WalError> {
        let root = dir.path("");
        let lock = dir
            .lock()
            .map_err(|source| WalError::Io { action: "lock", path: root.clone(), source })?
            .ok_or_else(|| WalError::Locked(root.clone()))?;
        let recovery = recovery::recover(&*dir, options)?;
        let index = Arc::new(Mutex::new(recovery.index));
        let (queue, submissions) = mpsc::channel(QUEUE_SUBMISSIONS);
        let (cause, failed) = watch::channel(None);
        let budget = Arc::new(Semaphore::new(options.queue_bytes as usize));
        let writer =
            Writer::new(dir, options, recovery.active, recovery.positions, Arc::clone(&index));
        let failure = Failure { cause, budget: Arc::clone(&budget) };
        let thread = std::thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || {
                // Nobody else may open the directory before the last write.
                let _lock = lock;
                writer::run(writer, submissions, &failure);
            })
            .map_err(|source| WalError::Io { action: "start a thread for", path: root, source })?;
        let wal = Self {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            submitted: Mutex::new(0),
            budget,
            queue_bytes: options.queue_bytes,
            index,
            failed,
        };
        Ok((wal, recovery.recovered))
    }

    /// Waits for room in the queue for `bytes`. What is submitted through the returned slot is
    /// ordered by when it is submitted, not by when room was found.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Slot<'_>, WalError> {
        // A submission larger than the whole budget waits until it is alone.
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.queue_bytes);
        let budget = Arc::clone(&self.budget)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| self.why_ended())?;
        let queue = self.queue.lock().clone().ok_or_else(|| self.why_ended())?;
        let place = queue.reserve_owned().await.map_err(|_| self.why_ended())?;
        Ok(Slot { wal: self, place, budget })
    }

    /// How many submissions have been carried out, counted as [`Slot::submit`] counts them.
    pub(crate) fn written(&self) -> u64 {
        self.index.lock().written()
    }

    /// Where the entries with these indexes are stored, from the first on, as many as are written
    /// and fit into `limit_bytes`, but at least one.
    pub(crate) fn stored(&self, indexes: Range<u64>, limit_bytes: usize) -> Vec<Stored> {
        self.index.lock().stored(indexes, limit_bytes)
    }

    /// Bytes of log from the first of these entries to the last, other records among them included,
    /// as far as they are written.
    pub(crate) fn bytes(&self, indexes: Range<u64>) -> u64 {
        self.index.lock().bytes(indexes)
    }

    /// Returns when a write or sync has failed, with the cause: the process is to end. Never
    /// returns if the log is closed before that.
    pub(crate) async fn failed(&self) -> Arc<WalError> {
        let mut failed = self.failed.clone();
        let cause = failed.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        match cause {
            Some(cause) => cause,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything that was submitted is durable, and ends the writer. The directory
    /// can be opened again after that.
    pub(crate) async fn close(&self) -> Result<(), WalError> {
        drop(self.queue.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(|| thread.join()).await;
            joined.map_err(|_| WalError::Panicked)?.map_err(|_| WalError::Panicked)?;
        }
        match self.why_ended() {
            WalError::Closed => Ok(()),
            error => Err(error),
        }
    }

    fn why_ended(&self) -> WalError {
        match &*self.failed.borrow() {
            Some(cause) => WalError::Failed(Arc::clone(cause)),
            None => WalError::Closed,
        }
    }
}

impl Drop for Wal {
    /// As [`Wal::close`], for those who cannot wait: blocks for as long as it takes to write what
    /// is queued.
    fn drop(&mut self) {
        drop(self.queue.get_mut().take());
        if let Some(thread) = self.thread.get_mut().take() {
            // A panic there was told to whoever waits in `Wal::failed`.
            let _ = thread.join();
        }
    }
}

/// Room in the queue.
pub(crate) struct Slot<'a> {
    wal: &'a Wal,
    place: mpsc::OwnedPermit<Submission>,
    budget: OwnedSemaphorePermit,
}

impl Slot<'_> {
    /// Hands records to the writer, and returns the submission's number: the first is 1. They are
    /// synced if there is a callback, or if one of them is of a kind that somebody relies on.
    pub(crate) fn submit(self, records: Vec<Record>, done: Option<Done>) -> u64 {
        // Counted and sent under one lock, so that numbers are in the queue's order.
        let mut submitted = self.wal.submitted.lock();
        *submitted += 1;
        self.place.send(Submission { records, done, _budget: Some(self.budget) });
        *submitted
    }
}
