//! The thread that writes: it gathers what is queued, writes and syncs it once, and tells.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::files::LogDir;
use super::index::{Change, Index, Location};
use super::record::{self, Header, MARK_BYTES, Positions, Record};
use super::segment::{self, Active, Blank};
use super::{Done, QUEUE_SUBMISSIONS, WalError, WalOptions};

/// How much of the buffer is kept between batches.
const BUFFER_BYTES: usize = 1 << 20;

/// Records that share a callback.
pub(super) struct Submission {
    pub(super) records: Vec<Record>,
    pub(super) done: Option<Done>,
    /// Room in the queue that is free again when this is dropped.
    pub(super) _budget: Option<OwnedSemaphorePermit>,
}

/// How the writer tells that it has failed.
pub(super) struct Failure {
    pub(super) cause: watch::Sender<Option<Arc<WalError>>>,
    /// Closed at a failure, so that nobody waits for room any more.
    pub(super) budget: Arc<Semaphore>,
}

impl Failure {
    fn tell(&self, error: WalError) -> Arc<WalError> {
        let cause = Arc::new(error);
        self.cause.send_replace(Some(Arc::clone(&cause)));
        self.budget.close();
        cause
    }
}

impl Drop for Failure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell(WalError::Panicked);
        }
    }
}

/// Writes what is queued until nobody is left to queue more, or until a write fails. This is the
/// body of the thread.
pub(super) fn run(mut writer: Writer, mut queue: mpsc::Receiver<Submission>, failure: &Failure) {
    let mut batch = Vec::new();
    let error = loop {
        let ended = queue.blocking_recv_many(&mut batch, QUEUE_SUBMISSIONS) == 0;
        let written = if ended { writer.finish() } else { writer.write(&batch) };
        match written {
            Ok(()) if ended => return,
            Ok(()) => batch.drain(..).filter_map(|one| one.done).for_each(|done| done(Ok(()))),
            Err(error) => break error,
        }
        if let Err(error) = writer.unlink_purged() {
            break error;
        }
    };
    let cause = failure.tell(error);
    queue.close();
    loop {
        for done in batch.drain(..).filter_map(|one| one.done) {
            done(Err(WalError::Failed(Arc::clone(&cause))));
        }
        if queue.blocking_recv_many(&mut batch, QUEUE_SUBMISSIONS) == 0 {
            return;
        }
    }
}

/// The file for the next segment, while it is being made. Writing its zeros takes so long that the
/// records of a busy log would wait for it noticeably.
struct Ahead(Option<JoinHandle<Result<Blank, WalError>>>);

impl Ahead {
    /// Begins to make one, if that has not begun.
    fn make(&mut self, dir: &Arc<dyn LogDir>, sequence: u64, capacity: u64) {
        if self.0.is_none() {
            let dir = Arc::clone(dir);
            let thread = std::thread::Builder::new().name("wal-ahead".to_owned());
            // Without a thread it is made when it is needed.
            self.0 = thread.spawn(move || Blank::make(&*dir, sequence, capacity)).ok();
        }
    }

    /// The file, if one was begun.
    fn take(&mut self) -> Result<Option<Blank>, WalError> {
        let Some(thread) = self.0.take() else { return Ok(None) };
        thread.join().map_err(|_| WalError::Panicked)?.map(Some)
    }
}

impl Drop for Ahead {
    /// Nothing may be written to the directory once the log is closed.
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // What became of it is of no interest: the next to open the log removes it.
            let _ = thread.join();
        }
    }
}

/// Puts records into segments.
pub(super) struct Writer {
    dir: Arc<dyn LogDir>,
    segment_bytes: u64,
    make_ahead: bool,
    active: Active,
    ahead: Ahead,
    positions: Positions,
    index: Arc<Mutex<Index>>,
    /// Records that belong behind the active segment's end.
    buffer: Vec<u8>,
    /// What the present batch changes in the index.
    changes: Vec<Change>,
    /// Whether anything was written since the last sync.
    unsynced: bool,
    /// Whether anything was synced since the last mark or header.
    unmarked: bool,
    /// Whether there may be segments to unlink.
    purged: bool,
}

impl Writer {
    /// Goes on at the end of `active`, which is synced.
    pub(super) fn new(
        dir: Arc<dyn LogDir>,
        options: &WalOptions,
        active: Active,
        positions: Positions,
        index: Arc<Mutex<Index>>,
    ) -> Self {
        Self {
            dir,
            segment_bytes: u64::from(options.segment_bytes),
            make_ahead: options.make_ahead,
            active,
            ahead: Ahead(None),
            positions,
            index,
            buffer: Vec::new(),
            changes: Vec::new(),
            unsynced: false,
            unmarked: true,
            purged: false,
        }
    }

    /// Writes a batch, and syncs it if there is anybody to hear of it.
    pub(super) fn write(&mut self, batch: &[Submission]) -> Result<(), WalError> {
        let mut sync = false;
        for submission in batch {
            sync |= submission.done.is_some();
            for record in &submission.records {
                sync |= record.needs_sync();
                self.put(record)?;
            }
        }
        self.flush()?;
        if sync {
            self.sync()?;
        }
        let mut index = self.index.lock();
        for change in self.changes.drain(..) {
            index.apply(&change);
        }
        index.add_written(batch.len());
        drop(index);
        if self.make_ahead && self.active.is_half_full() {
            self.ahead.make(&self.dir, self.active.segment.sequence + 1, self.segment_bytes);
        }
        Ok(())
    }

    /// Unlinks the segments whose entries are all purged; the purge itself is durable by now.
    pub(super) fn unlink_purged(&mut self) -> Result<(), WalError> {
        if !std::mem::take(&mut self.purged) {
            return Ok(());
        }
        let first = self.positions.purged.map_or(0, |id| id.index() + 1);
        loop {
            let taken = self.index.lock().take_purged_segment(first);
            match taken {
                Some(sequence) => segment::unlink(&*self.dir, sequence)?,
                None => return Ok(()),
            }
        }
    }

    /// Syncs what is left, and adds a mark: no damage to a log that was closed passes for a torn
    /// tail.
    pub(super) fn finish(&mut self) -> Result<(), WalError> {
        if self.unsynced {
            self.sync()?;
        }
        if self.put_mark() {
            self.flush()?;
            self.sync()?;
        }
        Ok(())
    }

    fn put(&mut self, record: &Record) -> Result<(), WalError> {
        if self.buffer.is_empty() {
            self.put_mark();
        }
        let mut start = self.buffer.len();
        record.encode(&mut self.buffer);
        let len = self.buffer.len() - start;
        if !self.active.has_room(self.buffer.len()) {
            let encoded = self.buffer.split_off(start);
            self.roll(len)?;
            self.buffer = encoded;
            start = 0;
        }
        let in_bounds = "a segment is no larger than its size as a u32 or one record";
        let location = Location {
            segment: self.active.segment.sequence,
            offset: u32::try_from(self.active.end + start as u64).expect(in_bounds),
            len: u32::try_from(len).expect(in_bounds),
        };
        self.note(record, location);
        Ok(())
    }

    /// Keeps in mind what a record says, for the index and for the headers of later segments.
    fn note(&mut self, record: &Record, location: Location) {
        match record {
            Record::Entry(entry) => {
                self.changes.push(Change::Append(entry.log_id.index(), location));
            }
            Record::TruncateAfter(id) => {
                let from = id.as_ref().map_or(0, |id| id.index() + 1);
                self.changes.push(Change::TruncateFrom(from));
            }
            Record::PurgeUpTo(id) => {
                self.changes.push(Change::PurgeBefore(id.index() + 1));
                self.positions.purged = Some(*id);
                self.purged = true;
            }
            Record::Vote(vote) => self.positions.vote = Some(*vote),
            Record::Committed(id) => self.positions.committed = *id,
            Record::Checkpoint(id) => self.positions.checkpoint = Some(*id),
        }
    }

    /// Writes the buffer.
    fn flush(&mut self) -> Result<(), WalError> {
        if !self.buffer.is_empty() {
            self.active.write(&self.buffer)?;
            self.index.lock().set_end(self.active.segment.sequence, self.active.end);
            self.unsynced = true;
            self.buffer.clear();
            self.buffer.shrink_to(BUFFER_BYTES);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WalError> {
        self.active.segment.sync()?;
        self.unsynced = false;
        self.unmarked = true;
        Ok(())
    }

    /// Goes on in a new segment, with room for a record of `room` bytes. The old one is durable
    /// before the new one is there, so that no record is ever there without its predecessors.
    fn roll(&mut self, room: usize) -> Result<(), WalError> {
        self.flush()?;
        if self.unsynced {
            self.sync()?;
        }
        let header = Header {
            sequence: self.active.segment.sequence + 1,
            previous_end: self.active.end,
            positions: self.positions.clone(),
        };
        let needed = (header.size() + room) as u64;
        let blank = match self.ahead.take()? {
            Some(blank) if blank.capacity >= needed => blank,
            _ => Blank::make(&*self.dir, header.sequence, self.segment_bytes.max(needed))?,
        };
        let next = Active::begin(&*self.dir, &header, blank)?;
        self.index.lock().add_segment(Arc::clone(&next.segment), next.end);
        self.active = next;
        self.unmarked = false;
        Ok(())
    }

    /// Adds a mark to an empty buffer, if one is due and there is room for it.
    fn put_mark(&mut self) -> bool {
        let put = self.unmarked && self.active.has_room(MARK_BYTES);
        if put {
            record::encode_mark(&mut self.buffer, self.active.segment.sequence, self.active.end);
            self.unmarked = false;
        }
        put
    }
}
