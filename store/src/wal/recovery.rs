//! Reads the log again when it is opened: what it says, where the entries are, and whether it ends
//! in a torn tail or is damaged (see [`super`] for how one is told from the other).

use std::sync::Arc;

use bytes::Bytes;

use crate::raft::types::LogId;

use super::files::LogDir;
use super::index::{Change, Index, Location};
use super::record::{self, Damage, Decoded, Frame, Header, Positions};
use super::segment::{self, Active, Blank, SegmentFile};
use super::{Recovered, TornTail, WalError, WalOptions};

/// All that the writer goes on from.
pub(super) struct Recovery {
    pub(super) recovered: Recovered,
    pub(super) index: Index,
    pub(super) positions: Positions,
    pub(super) active: Active,
}

/// Reads the log, or begins one if the directory holds none.
pub(super) fn recover(dir: &dyn LogDir, options: &WalOptions) -> Result<Recovery, WalError> {
    let sequences = list_segments(dir)?;
    let Some((&oldest, &newest)) = sequences.first().zip(sequences.last()) else {
        return begin(dir, options);
    };
    if let Some(gap) = sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(WalError::Missing(dir.path(&segment::name(gap[0] + 1))));
    }

    let mut replay = Replay::new(oldest == 1);
    let mut previous: Option<(Arc<SegmentFile>, u64)> = None;
    let mut torn = None;
    for sequence in sequences {
        let segment = Arc::new(SegmentFile::open(dir, sequence)?);
        let size = segment.size()?;
        let data = Bytes::from(segment.read(0, usize::try_from(size).unwrap_or(usize::MAX))?);
        let (header, start) = read_header(&segment, &data)?;
        if let Some((previous, end)) = &previous
            && header.previous_end != *end
        {
            return Err(previous.damaged(*end, Damage::End(header.previous_end)));
        }
        replay.index.add_segment(Arc::clone(&segment), start as u64);
        replay.positions = header.positions;
        let end = replay.segment(&segment, &data, start, sequence == newest)?;
        replay.index.set_end(sequence, end as u64);
        if sequence == newest {
            torn = cut(&segment, &data, end)?;
            // After a kill, what was found may be in the kernel's memory only: nothing may be built
            // on a segment, a vote or an entry that a power cut could still take back.
            segment.sync()?;
            dir.sync().map_err(|source| WalError::Io {
                action: "sync",
                path: dir.path(""),
                source,
            })?;
        }
        previous = Some((segment, end as u64));
    }
    let (segment, end) = previous.expect("there is at least the newest segment");
    let capacity = segment.size()?;
    replay.finish(dir, Active { segment, end, capacity }, oldest, torn)
}

/// The numbers of the segments, in order. Unfinished ones are removed.
fn list_segments(dir: &dyn LogDir) -> Result<Vec<u64>, WalError> {
    let root = || dir.path("");
    let files =
        dir.list().map_err(|source| WalError::Io { action: "list", path: root(), source })?;
    let mut sequences = Vec::new();
    for file in files {
        if let Some(sequence) = segment::sequence_of(&file) {
            sequences.push(sequence);
        } else if file.ends_with(segment::UNFINISHED_SUFFIX) {
            tracing::info!(file, "removing a log segment that was never finished");
            dir.remove(&file).map_err(|source| WalError::Io {
                action: "remove",
                path: dir.path(&file),
                source,
            })?;
        }
    }
    sequences.sort_unstable();
    Ok(sequences)
}

/// Begins a log.
fn begin(dir: &dyn LogDir, options: &WalOptions) -> Result<Recovery, WalError> {
    let header = Header { sequence: 1, previous_end: 0, positions: Positions::default() };
    let capacity = u64::from(options.segment_bytes).max(header.size() as u64);
    let active = Active::begin(dir, &header, Blank::make(dir, header.sequence, capacity)?)?;
    let mut index = Index::new();
    index.add_segment(Arc::clone(&active.segment), active.end);
    let recovered = Recovered::default();
    Ok(Recovery { recovered, index, positions: header.positions, active })
}

/// The header, and where the first record stands.
fn read_header(segment: &SegmentFile, data: &Bytes) -> Result<(Header, usize), WalError> {
    let header = match record::read_frame(data, 0) {
        Frame::Whole { kind, payload, next } => {
            record::decode_header(kind, &payload).map(|header| (header, next))
        }
        Frame::None => Err(Damage::NoHeader),
        Frame::Bad(damage) => Err(damage),
    };
    match header {
        Ok((header, next)) if header.sequence == segment.sequence => Ok((header, next)),
        Ok((header, _)) => Err(segment.damaged(0, Damage::Sequence(header.sequence))),
        Err(damage) => Err(segment.damaged(0, damage)),
    }
}

/// Overwrites what stands behind the last record of the newest segment.
fn cut(segment: &SegmentFile, data: &[u8], end: usize) -> Result<Option<TornTail>, WalError> {
    let Some(last) = data[end..].iter().rposition(|byte| *byte != 0) else { return Ok(None) };
    let torn = TornTail { path: segment.path.clone(), offset: end as u64, bytes: last as u64 + 1 };
    tracing::warn!(
        file = %torn.path.display(),
        offset = torn.offset,
        bytes = torn.bytes,
        "cutting a torn tail off the log, which no sync had covered"
    );
    segment.write_zeros(torn.offset, torn.offset + torn.bytes)?;
    Ok(Some(torn))
}

/// The log as far as it has been read.
struct Replay {
    index: Index,
    positions: Positions,
    last: Option<LogId>,
    /// Whether `last` is known. In a log whose oldest segments were unlinked it is not, until there
    /// is an entry or a truncation.
    anchored: bool,
}

impl Replay {
    fn new(anchored: bool) -> Self {
        Self { index: Index::new(), positions: Positions::default(), last: None, anchored }
    }

    /// Takes in the records of a segment, and returns where they end.
    fn segment(
        &mut self,
        segment: &SegmentFile,
        data: &Bytes,
        start: usize,
        newest: bool,
    ) -> Result<usize, WalError> {
        let mut offset = start;
        loop {
            let damage = match record::read_frame(data, offset) {
                Frame::Whole { kind, payload, next } => {
                    let place =
                        |offset: usize| u32::try_from(offset).map_err(|_| Damage::TooLong(offset));
                    record::decode(kind, payload)
                        .and_then(|record| {
                            let location = Location {
                                segment: segment.sequence,
                                offset: place(offset)?,
                                len: place(next - offset)?,
                            };
                            self.record(record, location)
                        })
                        .map_err(|damage| segment.damaged(offset as u64, damage))?;
                    offset = next;
                    continue;
                }
                // Where an older segment ends is checked against its successor's header.
                Frame::None if !newest => return Ok(offset),
                Frame::None => Damage::Zeros,
                Frame::Bad(damage) => damage,
            };
            if newest && !record::mark_follows(data, segment.sequence, offset) {
                return Ok(offset);
            }
            return Err(segment.damaged(offset as u64, damage));
        }
    }

    fn record(&mut self, record: Decoded, location: Location) -> Result<(), Damage> {
        match record {
            Decoded::Entry(id) => {
                if let Some(last) = &self.last
                    && id.index() != last.index() + 1
                {
                    return Err(Damage::Gap { expected: last.index() + 1, found: id.index() });
                }
                self.index.apply(&Change::Append(id.index(), location));
                self.last = Some(id);
                self.anchored = true;
            }
            Decoded::TruncateAfter(id) => {
                let from = id.as_ref().map_or(0, |id| id.index() + 1);
                self.index.apply(&Change::TruncateFrom(from));
                self.last = id;
                self.anchored = true;
            }
            Decoded::PurgeUpTo(id) => {
                self.index.apply(&Change::PurgeBefore(id.index() + 1));
                if self.anchored {
                    self.last = later(self.last, Some(id));
                }
                self.positions.purged = Some(id);
            }
            Decoded::Vote(vote) => self.positions.vote = Some(vote),
            Decoded::Committed(id) => self.positions.committed = id,
            Decoded::Checkpoint(id) => self.positions.checkpoint = Some(id),
            Decoded::Mark => {}
        }
        Ok(())
    }

    fn finish(
        mut self,
        dir: &dyn LogDir,
        active: Active,
        oldest: u64,
        torn: Option<TornTail>,
    ) -> Result<Recovery, WalError> {
        let purged = self.positions.purged;
        let first = purged.map_or(0, |id| id.index() + 1);
        self.index.apply(&Change::PurgeBefore(first));
        let range = self.index.range();
        if oldest > 1 && (purged.is_none() || (!range.is_empty() && range.start != first)) {
            let missing = dir.path(&segment::name(oldest - 1));
            return Err(WalError::Missing(missing));
        }
        while let Some(sequence) = self.index.take_purged_segment(first) {
            segment::unlink(dir, sequence)?;
        }
        let recovered = Recovered {
            vote: self.positions.vote,
            committed: self.positions.committed,
            purged,
            last: later(self.last, purged),
            checkpoint: self.positions.checkpoint,
            first_index: (!range.is_empty()).then_some(range.start),
            torn,
        };
        Ok(Recovery { recovered, index: self.index, positions: self.positions, active })
    }
}

/// The one with the larger index, the first if they have the same.
fn later(one: Option<LogId>, other: Option<LogId>) -> Option<LogId> {
    if other.map(|id| id.index()) > one.map(|id| id.index()) { other } else { one }
}
