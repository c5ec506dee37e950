//! Where each entry of the log is stored, as far as the writer has come.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::raft::types::Entry;

use super::WalError;
use super::record::{self, Damage, Frame};
use super::segment::SegmentFile;

/// How much is read from a file at once, unless a single record is longer.
const READ_BYTES: u64 = 1 << 20;

/// The place of a record: its segment, and the offset and length of its frame in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl Location {
    /// Where the next record stands.
    fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// What a record changes in the index.
pub(super) enum Change {
    /// An entry was added.
    Append(u64, Location),
    /// The entries from this index on are gone.
    TruncateFrom(u64),
    /// The entries before this index are gone.
    PurgeBefore(u64),
}

/// The places of the entries that are in the log's files and not purged.
///
/// The writer moves it on, in the order of submission, once it has written a batch. It is behind
/// what consensus sees by what is still queued.
pub(super) struct Index {
    /// The index of the first location.
    first: u64,
    locations: VecDeque<Location>,
    segments: BTreeMap<u64, Segment>,
    written: u64,
}

/// A segment that has not been unlinked.
struct Segment {
    file: Arc<SegmentFile>,
    /// Where its records end, as far as they are written.
    end: u64,
    /// The largest index of an entry in it, truncated ones included.
    last_index: Option<u64>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { first: 0, locations: VecDeque::new(), segments: BTreeMap::new(), written: 0 }
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Counts submissions that were carried out.
    pub(super) fn add_written(&mut self, submissions: usize) {
        self.written += submissions as u64;
    }

    /// The indexes of the entries.
    pub(super) fn range(&self) -> Range<u64> {
        self.first..self.first + self.locations.len() as u64
    }

    /// Adds a segment whose header ends at `end`.
    pub(super) fn add_segment(&mut self, file: Arc<SegmentFile>, end: u64) {
        self.segments.insert(file.sequence, Segment { file, end, last_index: None });
    }

    /// Notes how far a segment is filled.
    pub(super) fn set_end(&mut self, sequence: u64, end: u64) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.end = end;
        }
    }

    /// Where the records of the newest segment end.
    #[cfg(test)]
    pub(super) fn newest_end(&self) -> u64 {
        self.segments.last_key_value().unwrap().1.end
    }

    /// Carries out a change. An added entry follows the last one, or is the first.
    pub(super) fn apply(&mut self, change: &Change) {
        match *change {
            Change::Append(index, location) => {
                if self.locations.is_empty() {
                    self.first = index;
                }
                self.locations.push_back(location);
                if let Some(segment) = self.segments.get_mut(&location.segment) {
                    segment.last_index = segment.last_index.max(Some(index));
                }
            }
            Change::TruncateFrom(index) => {
                self.locations.truncate(position(index, self.first));
            }
            Change::PurgeBefore(index) => {
                let purged = position(index, self.first).min(self.locations.len());
                self.locations.drain(..purged);
                self.first = self.first.max(index);
            }
        }
    }

    /// Takes out the oldest segment if it has a successor and no entry from `first_needed` on.
    pub(super) fn take_purged_segment(&mut self, first_needed: u64) -> Option<u64> {
        let (sequence, oldest) = self.segments.first_key_value()?;
        let needed = oldest.last_index.is_some_and(|last| last >= first_needed);
        if needed || self.segments.len() == 1 {
            return None;
        }
        let sequence = *sequence;
        self.segments.remove(&sequence);
        Some(sequence)
    }

    /// Where the entries with these indexes are, as many as there are from the first on and as fit
    /// into `limit_bytes`, but at least one.
    pub(super) fn stored(&self, indexes: Range<u64>, limit_bytes: usize) -> Vec<Stored> {
        let mut bytes = 0;
        indexes
            .map_while(|index| {
                index.checked_sub(self.first)?;
                let location = *self.locations.get(position(index, self.first))?;
                let segment = self.segments.get(&location.segment)?;
                let within = bytes == 0 || bytes + location.len as usize <= limit_bytes;
                bytes += location.len as usize;
                within.then(|| Stored { index, location, segment: Arc::clone(&segment.file) })
            })
            .collect()
    }

    /// Bytes of log from the first of these entries to the last, other records among them included.
    pub(super) fn bytes(&self, indexes: Range<u64>) -> u64 {
        let start = position(indexes.start, self.first);
        let end = position(indexes.end, self.first).min(self.locations.len());
        if start >= end {
            return 0;
        }
        let (first, last) = (self.locations[start], self.locations[end - 1]);
        let whole: u64 =
            self.segments.range(first.segment..last.segment).map(|(_, segment)| segment.end).sum();
        whole + last.end() - u64::from(first.offset)
    }
}

/// How many places `index` is behind `first`; 0 if it is before it.
fn position(index: u64, first: u64) -> usize {
    usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX)
}

/// An entry's place, with a hold on its file: it can be read even if its segment is unlinked.
pub(crate) struct Stored {
    index: u64,
    location: Location,
    segment: Arc<SegmentFile>,
}

impl Stored {
    /// How much it takes in the file.
    pub(crate) fn bytes(&self) -> usize {
        self.location.len as usize
    }
}

/// Reads entries, those that stand close together in one go. Blocks on the disk.
pub(crate) fn read_entries(stored: &[Stored]) -> Result<Vec<Entry>, WalError> {
    let mut entries = Vec::with_capacity(stored.len());
    let mut rest = stored;
    while let Some(first) = rest.first() {
        let start = first.location;
        let is_close = |other: Location| {
            other.segment == start.segment && other.end() <= u64::from(start.offset) + READ_BYTES
        };
        // The first one may be longer than that by itself.
        let count = rest.iter().take_while(|one| is_close(one.location)).count().max(1);
        let (run, after) = rest.split_at(count);
        rest = after;

        let bytes = run[count - 1].location.end() - u64::from(start.offset);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let span = first.segment.read(u64::from(start.offset), bytes)?;
        for one in run {
            let from = (one.location.offset - start.offset) as usize;
            // Copied, so that a value that is kept does not keep its neighbours.
            let record = Bytes::copy_from_slice(&span[from..from + one.location.len as usize]);
            let offset = u64::from(one.location.offset);
            entries
                .push(decode(one, &record).map_err(|damage| one.segment.damaged(offset, damage))?);
        }
    }
    Ok(entries)
}

fn decode(stored: &Stored, record: &Bytes) -> Result<Entry, Damage> {
    match record::read_frame(record, 0) {
        Frame::Whole { kind, payload, next } if next == record.len() => {
            let entry = record::decode_entry(kind, payload)?;
            let found = entry.log_id.index();
            if found == stored.index {
                Ok(entry)
            } else {
                Err(Damage::Gap { expected: stored.index, found })
            }
        }
        Frame::Whole { .. } | Frame::None => Err(Damage::Checksum),
        Frame::Bad(damage) => Err(damage),
    }
}
