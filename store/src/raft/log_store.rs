//! openraft's log and vote, kept in the write-ahead log ([`crate::wal`]).
//!
//! Appending returns once an entry can be read, and calls back once it is durable. What was
//! appended lately is kept in memory, bounded in bytes, so that replicating and applying seldom
//! read a file:
//!
//! ```text
//!           first                                              next
//!  purged  |  ......................... | ..................... |
//!             read from files             `cache`: the last ones, those that are still being
//!                                         written among them
//! ```
//! An entry leaves the cache only after it was written, so whatever is not in the cache has a place
//! in a file. Files are read off the runtime's threads.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures::stream::{self, Stream, TryStreamExt as _};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::wal::files::LogDir;
#[cfg(test)]
mod tests;

use crate::wal::{self, MAX_RECORD_BYTES, Record, Recovered, Wal, WalError, WalOptions};

/// How much of the log one replication message carries, and how much is read for applying at once:
/// as many entries as fit, but at least one.
const MESSAGE_BYTES: usize = 1 << 20;

/// What an entry takes in the log and in memory besides what it carries, roughly.
const ENTRY_BYTES: usize = 128;

/// The Raft log of this member, its vote, and what the member itself must remember. Clones share
/// one log; it is closed when the last one is dropped.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    wal: Wal,
    // Held while a submission is queued, so that the log on disk sees changes in the same order.
    view: Mutex<View>,
    cache_bytes: usize,
}

impl LogStore {
    /// Opens the log in a directory, or begins one there, and tells what it holds. Blocks on the
    /// disk.
    pub(crate) fn open(
        dir: Arc<dyn LogDir>,
        options: WalOptions,
    ) -> Result<(Self, Recovered), WalError> {
        let (wal, recovered) = Wal::open(dir, &options)?;
        let view = Mutex::new(View::new(&recovered));
        let shared = Arc::new(Shared { wal, view, cache_bytes: options.cache_bytes });
        Ok((Self { shared }, recovered))
    }

    /// Notes that the applied state is durable up to `log_id`: [`Recovered::checkpoint`] when the
    /// log is next opened. It is written, but not synced for its own sake.
    pub(crate) async fn note_checkpoint(&self, log_id: LogId) -> Result<(), WalError> {
        self.submit(None, |view| view.note_checkpoint(log_id)).await
    }

    /// Bytes of log that a snapshot of the state at `applied` would allow to purge, as far as they
    /// are written.
    pub(crate) fn purgeable_bytes(&self, applied: u64) -> u64 {
        self.bytes_from(0, applied)
    }

    /// The same without the entries before `index`, which another snapshot covers.
    pub(crate) fn bytes_from(&self, index: u64, applied: u64) -> u64 {
        let first = self.shared.view.lock().first;
        self.shared.wal.bytes(first.max(index)..applied.saturating_add(1))
    }

    /// Returns when a write or sync has failed, with the cause: nothing is acknowledged any more,
    /// and the process is to end.
    pub(crate) async fn failed(&self) -> Arc<WalError> {
        self.shared.wal.failed().await
    }

    /// Waits until everything is durable, and closes the log: the directory can be opened again,
    /// and whatever is still asked of this one fails.
    pub(crate) async fn close(&self) -> Result<(), WalError> {
        let committed_waits = self.shared.view.lock().committed_waits;
        if committed_waits {
            self.submit(None, View::take_committed).await?;
        }
        self.shared.wal.close().await
    }

    /// Changes the view, and queues the record that says so, if there is anything to say.
    async fn submit(
        &self,
        done: Option<wal::Done>,
        change: impl FnOnce(&mut View) -> Option<Record>,
    ) -> Result<(), WalError> {
        let slot = self.shared.wal.reserve(ENTRY_BYTES).await?;
        let mut view = self.shared.view.lock();
        if let Some(record) = change(&mut view) {
            let records = view.take_committed().into_iter().chain([record]).collect();
            slot.submit(records, done);
        }
        Ok(())
    }

    /// Reads the entries with these indexes that are there, from the first on; if they do not fit
    /// into `limit_bytes`, fewer, but at least one.
    async fn read(&self, indexes: Range<u64>, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        let (stored, cached) = {
            let view = self.shared.view.lock();
            let indexes = indexes.start.max(view.first)..indexes.end.min(view.next);
            let files = indexes.start..indexes.end.min(view.cache_first());
            let stored = self.shared.wal.stored(files.clone(), limit_bytes);
            // Those in memory follow on those in files, unless the limit was met before.
            let complete = stored.len() as u64 >= files.end.saturating_sub(files.start);
            let used: usize = stored.iter().map(wal::Stored::bytes).sum();
            let cached = if complete {
                view.cached(files.end.max(indexes.start)..indexes.end, limit_bytes, used)
            } else {
                Vec::new()
            };
            (stored, cached)
        };
        if stored.is_empty() {
            return Ok(cached);
        }
        let mut entries = tokio::task::spawn_blocking(move || wal::read_entries(&stored))
            .await
            .map_err(io::Error::other)??;
        entries.extend(cached);
        Ok(entries)
    }
}

/// The log as openraft sees it: what was queued for the disk counts as done.
struct View {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Whether `committed` is not queued for the disk yet: it goes along with the next record.
    committed_waits: bool,
    checkpoint: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry, or the last purged one if there is none.
    last: Option<LogId>,
    /// The index of the first entry.
    first: u64,
    /// The index behind the last entry: with `first`, which entries there are.
    next: u64,
    /// The last entries.
    cache: VecDeque<Cached>,
    cached_bytes: usize,
}

struct Cached {
    entry: Entry,
    bytes: usize,
    /// The number of the submission that writes it.
    submission: u64,
}

impl View {
    fn new(recovered: &Recovered) -> Self {
        let next = recovered.last.map_or(0, |id| id.index() + 1);
        Self {
            vote: recovered.vote,
            committed: recovered.committed,
            committed_waits: false,
            checkpoint: recovered.checkpoint,
            purged: recovered.purged,
            last: recovered.last,
            first: recovered.first_index.unwrap_or(next),
            next,
            cache: VecDeque::new(),
            cached_bytes: 0,
        }
    }

    fn cache_first(&self) -> u64 {
        self.next - self.cache.len() as u64
    }

    /// Whether these entries may be appended: there must be no hole in the log.
    fn check(&self, entries: &[Entry]) -> Result<(), WalError> {
        let mut expected = self.last.map(|last| last.index() + 1);
        for entry in entries {
            let found = entry.log_id.index();
            match expected {
                Some(expected) if expected != found => {
                    return Err(WalError::Gap { expected, found });
                }
                _ => expected = Some(found + 1),
            }
            let bytes = log_bytes(entry);
            if bytes > MAX_RECORD_BYTES {
                return Err(WalError::TooLarge(bytes));
            }
        }
        Ok(())
    }

    fn append(&mut self, entries: Vec<Entry>, submission: u64) {
        for entry in entries {
            let index = entry.log_id.index();
            if self.last.is_none() {
                self.first = index;
            }
            self.last = Some(entry.log_id);
            self.next = index + 1;
            let bytes = memory_bytes(&entry);
            self.cached_bytes += bytes;
            self.cache.push_back(Cached { entry, bytes, submission });
        }
    }

    /// Forgets the oldest entries in memory that are beyond `limit_bytes`, as long as they are
    /// written.
    fn evict(&mut self, limit_bytes: usize, written: u64) {
        while self.cached_bytes > limit_bytes
            && self.cache.front().is_some_and(|oldest| oldest.submission <= written)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.cache.pop_front() {
            self.cached_bytes -= oldest.bytes;
        }
    }

    fn save_vote(&mut self, vote: Vote) -> Record {
        self.vote = Some(vote);
        Record::Vote(vote)
    }

    /// What is committed only shortens the way to the first applied state after a start, so it is not
    /// worth waking the writer for with every commit.
    fn save_committed(&mut self, committed: Option<LogId>) {
        self.committed_waits |= self.committed != committed;
        self.committed = committed;
    }

    fn take_committed(&mut self) -> Option<Record> {
        std::mem::take(&mut self.committed_waits).then_some(Record::Committed(self.committed))
    }

    fn note_checkpoint(&mut self, checkpoint: LogId) -> Option<Record> {
        let news = self.checkpoint != Some(checkpoint);
        self.checkpoint = Some(checkpoint);
        news.then_some(Record::Checkpoint(checkpoint))
    }

    fn truncate_after(&mut self, last: Option<LogId>) -> Option<Record> {
        let next = last.map_or(0, |last| last.index() + 1).max(self.first);
        if next >= self.next {
            return None;
        }
        while self.next > next {
            self.next -= 1;
            if let Some(newest) = self.cache.pop_back() {
                self.cached_bytes -= newest.bytes;
            }
        }
        self.last = if self.first < self.next { last } else { self.purged };
        Some(Record::TruncateAfter(self.last))
    }

    fn purge(&mut self, upto: LogId) -> Option<Record> {
        if self.purged.is_some_and(|purged| purged.index() >= upto.index()) {
            return None;
        }
        let first = upto.index() + 1;
        while !self.cache.is_empty() && self.cache_first() < first {
            self.forget_oldest();
        }
        self.purged = Some(upto);
        self.first = self.first.max(first);
        if self.next <= first {
            self.next = first;
            self.last = Some(upto);
        }
        Some(Record::PurgeUpTo(upto))
    }

    /// Entries in memory, as many as fit into what of `limit_bytes` is not `used`, but at least one
    /// if nothing is used.
    fn cached(&self, indexes: Range<u64>, limit_bytes: usize, mut used: usize) -> Vec<Entry> {
        let skip = usize::try_from(indexes.start.saturating_sub(self.cache_first()));
        let take = usize::try_from(indexes.end.saturating_sub(indexes.start));
        self.cache
            .iter()
            .skip(skip.unwrap_or(usize::MAX))
            .take(take.unwrap_or(usize::MAX))
            .take_while(|cached| {
                let bytes = log_bytes(&cached.entry);
                let within = used == 0 || used + bytes <= limit_bytes;
                used += bytes;
                within
            })
            .map(|cached| cached.entry.clone())
            .collect()
    }
}

/// What an entry takes in the log or in a message, roughly.
fn log_bytes(entry: &Entry) -> usize {
    ENTRY_BYTES
        + match &entry.payload {
            EntryPayload::Normal(batch) => batch.encoded().len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}

/// What an entry takes in memory, roughly: it is held encoded and decoded, but values are shared.
fn memory_bytes(entry: &Entry) -> usize {
    log_bytes(entry)
        + match &entry.payload {
            EntryPayload::Normal(batch) => size_of_val(batch.commands()),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}

fn to_range(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    /// Reads what is to be applied, bounded in memory however much it is.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = to_range(&range);
        let (first, next) = {
            let view = self.shared.view.lock();
            (view.first, view.next)
        };
        let log = self.clone();
        let all = range.start.max(first)..range.end.min(next);
        let chunks = stream::try_unfold(all, move |rest| {
            let log = log.clone();
            async move {
                if rest.is_empty() {
                    return Ok(None);
                }
                let entries = log.read(rest.clone(), MESSAGE_BYTES).await?;
                if entries.first().map(|entry| entry.log_id.index()) != Some(rest.start) {
                    return Err(io::Error::from(WalError::Purged(rest.start)));
                }
                let read = rest.start + entries.len() as u64;
                Ok(Some((stream::iter(entries.into_iter().map(Ok)), read..rest.end)))
            }
        });
        chunks.try_flatten()
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(to_range(&range), usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.view.lock().vote)
    }

    /// Reads what goes into one replication message.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let entries = self.read(start..end, MESSAGE_BYTES).await?;
        // Later entries without the first would be taken to follow on the one before it.
        let found = entries.first().is_some_and(|first| first.log_id.index() == start);
        Ok(if found { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let view = self.shared.view.lock();
        Ok(LogState { last_purged_log_id: view.purged, last_log_id: view.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        let done = Box::new(|result| {
            // Nobody to hear it: the call was given up.
            let _ = done.send(result);
        });
        self.submit(Some(done), |view| Some(view.save_vote(*vote))).await?;
        Ok(saved.await.map_err(|_| WalError::Panicked)??)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.view.lock().save_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.view.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let bytes = entries.iter().map(log_bytes).sum();
        let slot = self.shared.wal.reserve(bytes).await?;
        let mut view = self.shared.view.lock();
        view.check(&entries)?;
        let entry_records = entries.iter().cloned().map(Record::Entry);
        let records = view.take_committed().into_iter().chain(entry_records).collect();
        let done = Box::new(|result: Result<(), WalError>| {
            callback.io_completed(result.map_err(io::Error::from));
        });
        let submission = slot.submit(records, Some(done));
        view.append(entries, submission);
        view.evict(self.shared.cache_bytes, self.shared.wal.written());
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.submit(None, |view| view.truncate_after(last)).await?)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        Ok(self.submit(None, |view| view.purge(upto)).await?)
    }
}
