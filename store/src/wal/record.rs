//! The records of the log: what they say, and how that is written.
//!
//! Payloads are protobuf messages, those of the peer protocol where there is one. Kind numbers,
//! field numbers and the frame are for ever: there are logs on disk that are written with them.

use bytes::Bytes;
use prost::Message as _;
use store_proto::peer;

use crate::raft::codec;
use crate::raft::types::{Entry, LogId, Vote};

use super::MAX_RECORD_BYTES;

/// Bytes before a payload: length, checksum, kind.
pub(super) const FRAME_BYTES: usize = 9;
/// Bytes that a mark takes, frame included.
pub(super) const MARK_BYTES: usize = FRAME_BYTES + 16;
/// The format that is written, and the only one so far.
pub(super) const FORMAT: u32 = 1;
/// The first bytes of a header's payload.
const MAGIC: [u8; 8] = *b"minikwal";

const HEADER: u8 = 1;
const ENTRY: u8 = 2;
const VOTE: u8 = 3;
const COMMITTED: u8 = 4;
const TRUNCATE_AFTER: u8 = 5;
const PURGE_UP_TO: u8 = 6;
const CHECKPOINT: u8 = 7;
const MARK: u8 = 8;

/// One thing to be remembered, in the order in which it happened.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// An entry was appended.
    Entry(Entry),
    /// A vote was given.
    Vote(Vote),
    /// The log is known to be committed up to here.
    Committed(Option<LogId>),
    /// Entries after this one, or all of them, were removed.
    TruncateAfter(Option<LogId>),
    /// Entries up to this one were removed: a snapshot holds what they did.
    PurgeUpTo(LogId),
    /// The applied state is durable up to here.
    Checkpoint(LogId),
}

impl Record {
    /// Whether somebody waits for it to be durable. The others become so with the next that is:
    /// forgetting them is as if they had not happened yet.
    pub(super) fn needs_sync(&self) -> bool {
        match self {
            // A purge is synced so that segments can be unlinked behind it.
            Self::Entry(_) | Self::Vote(_) | Self::PurgeUpTo(_) => true,
            Self::Committed(_) | Self::TruncateAfter(_) | Self::Checkpoint(_) => false,
        }
    }

    /// Appends the framed record to `buffer`.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Entry(entry) => frame(buffer, ENTRY, &codec::entry_to_proto(entry)),
            Self::Vote(vote) => frame(buffer, VOTE, &codec::vote_to_proto(vote)),
            Self::Committed(id) => frame(buffer, COMMITTED, &Place::of(id.as_ref())),
            Self::TruncateAfter(id) => frame(buffer, TRUNCATE_AFTER, &Place::of(id.as_ref())),
            Self::PurgeUpTo(id) => frame(buffer, PURGE_UP_TO, &Place::of(Some(id))),
            Self::Checkpoint(id) => frame(buffer, CHECKPOINT, &Place::of(Some(id))),
        }
    }
}

/// The last of each kind that is not an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Positions {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) checkpoint: Option<LogId>,
}

/// What a segment begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The segment's number, one more than its predecessor's; the first is 1.
    pub(super) sequence: u64,
    /// Where the records of its predecessor end; 0 in the first segment.
    pub(super) previous_end: u64,
    /// What all earlier segments together say.
    pub(super) positions: Positions,
}

impl Header {
    /// Bytes that it takes, frame included.
    pub(super) fn size(&self) -> usize {
        FRAME_BYTES + MAGIC.len() + self.message().encoded_len()
    }

    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        frame_with(buffer, HEADER, |buffer| {
            buffer.extend_from_slice(&MAGIC);
            append(buffer, &self.message());
        });
    }

    fn message(&self) -> HeaderMessage {
        let positions = &self.positions;
        HeaderMessage {
            format: FORMAT,
            sequence: self.sequence,
            previous_end: self.previous_end,
            vote: positions.vote.as_ref().map(codec::vote_to_proto),
            committed: positions.committed.as_ref().map(codec::log_id_to_proto),
            purged: positions.purged.as_ref().map(codec::log_id_to_proto),
            checkpoint: positions.checkpoint.as_ref().map(codec::log_id_to_proto),
        }
    }
}

/// Appends a mark for the byte `offset` of segment `sequence`, where it must be written.
pub(super) fn encode_mark(buffer: &mut Vec<u8>, sequence: u64, offset: u64) {
    frame_with(buffer, MARK, |buffer| {
        buffer.extend_from_slice(&sequence.to_le_bytes());
        buffer.extend_from_slice(&offset.to_le_bytes());
    });
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderMessage {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(uint64, tag = "3")]
    previous_end: u64,
    #[prost(message, optional, tag = "4")]
    vote: Option<peer::Vote>,
    #[prost(message, optional, tag = "5")]
    committed: Option<peer::LogId>,
    #[prost(message, optional, tag = "6")]
    purged: Option<peer::LogId>,
    #[prost(message, optional, tag = "7")]
    checkpoint: Option<peer::LogId>,
}

/// A place in the log, or the one before its first entry.
#[derive(Clone, PartialEq, prost::Message)]
struct Place {
    #[prost(message, optional, tag = "1")]
    log_id: Option<peer::LogId>,
}

impl Place {
    fn of(id: Option<&LogId>) -> Self {
        Self { log_id: id.map(codec::log_id_to_proto) }
    }
}

fn frame(buffer: &mut Vec<u8>, kind: u8, message: &impl prost::Message) {
    frame_with(buffer, kind, |buffer| append(buffer, message));
}

fn append(buffer: &mut Vec<u8>, message: &impl prost::Message) {
    message.encode(buffer).expect("encoding fails for lack of room only, and a Vec grows");
}

fn frame_with(buffer: &mut Vec<u8>, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; FRAME_BYTES - 1]);
    buffer.push(kind);
    payload(buffer);
    let len = u32::try_from(buffer.len() - start - FRAME_BYTES)
        .expect("who submits keeps to MAX_RECORD_BYTES, which is less than u32::MAX");
    let crc = crc32c::crc32c(&buffer[start + FRAME_BYTES - 1..]);
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// What can be wrong with the bytes of a log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("the checksum of a record does not match")]
    Checksum,
    #[error("a record claims to be {0} bytes long")]
    TooLong(usize),
    #[error("a record reaches beyond the end of the file")]
    BeyondEnd,
    #[error("a record cannot be decoded")]
    Message(#[from] prost::DecodeError),
    #[error("a record cannot be decoded")]
    Entry(#[from] codec::CodecError),
    #[error("a record has the unknown kind {0}")]
    Kind(u8),
    #[error("the file does not begin with a header")]
    NoHeader,
    #[error("the header is of log format {0}, and this program reads format {FORMAT}")]
    Format(u32),
    #[error("the header is that of segment {0}")]
    Sequence(u64),
    #[error("the records end here, but the next segment says that they end at byte {0}")]
    End(u64),
    #[error("there are zeros where a record was")]
    Zeros,
    #[error("entry {found} stands where entry {expected} belongs")]
    Gap { expected: u64, found: u64 },
}

/// What stands at some place in a segment.
pub(super) enum Frame {
    /// A record whose checksum is right, and where the next one begins.
    Whole { kind: u8, payload: Bytes, next: usize },
    /// Zeros where a record would begin, or no room for one: there is none.
    None,
    /// Something else.
    Bad(Damage),
}

/// Looks at what stands at `offset`.
pub(super) fn read_frame(data: &Bytes, offset: usize) -> Frame {
    let rest = &data[offset..];
    let Some((head, body)) = rest.split_first_chunk::<FRAME_BYTES>() else {
        let empty = rest.iter().all(|byte| *byte == 0);
        return if empty { Frame::None } else { Frame::Bad(Damage::BeyondEnd) };
    };
    if *head == [0; FRAME_BYTES] {
        return Frame::None;
    }
    let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = *head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_RECORD_BYTES {
        return Frame::Bad(Damage::TooLong(len));
    }
    if len > body.len() {
        return Frame::Bad(Damage::BeyondEnd);
    }
    let crc = u32::from_le_bytes([c0, c1, c2, c3]);
    if crc32c::crc32c(&rest[FRAME_BYTES - 1..FRAME_BYTES + len]) != crc {
        return Frame::Bad(Damage::Checksum);
    }
    let start = offset + FRAME_BYTES;
    Frame::Whole { kind, payload: data.slice(start..start + len), next: start + len }
}

/// Whether a mark stands at or after `offset`, each byte of which may be where it begins.
pub(super) fn mark_follows(data: &[u8], sequence: u64, offset: usize) -> bool {
    let mut mark = Vec::with_capacity(MARK_BYTES);
    (offset..data.len().saturating_sub(MARK_BYTES - 1)).any(|offset| {
        // The kind is looked at first, as it is wrong nearly everywhere.
        data[offset + FRAME_BYTES - 1] == MARK && {
            mark.clear();
            encode_mark(&mut mark, sequence, offset as u64);
            data[offset..offset + MARK_BYTES] == mark
        }
    })
}

/// A record as it is read again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoded {
    /// Only its id: the rest is left to whoever reads the entry later.
    Entry(LogId),
    Vote(Vote),
    Committed(Option<LogId>),
    TruncateAfter(Option<LogId>),
    PurgeUpTo(LogId),
    Checkpoint(LogId),
    Mark,
}

/// Reads any record but a header.
pub(super) fn decode(kind: u8, payload: Bytes) -> Result<Decoded, Damage> {
    Ok(match kind {
        ENTRY => Decoded::Entry(required(peer::Entry::decode(payload)?.log_id.as_ref())?),
        VOTE => Decoded::Vote(codec::vote_from_proto(&peer::Vote::decode(payload)?)),
        COMMITTED => Decoded::Committed(place(payload)?),
        TRUNCATE_AFTER => Decoded::TruncateAfter(place(payload)?),
        PURGE_UP_TO => Decoded::PurgeUpTo(required(Place::decode(payload)?.log_id.as_ref())?),
        CHECKPOINT => Decoded::Checkpoint(required(Place::decode(payload)?.log_id.as_ref())?),
        MARK => Decoded::Mark,
        other => return Err(Damage::Kind(other)),
    })
}

/// Reads an entry with all that it carries.
pub(super) fn decode_entry(kind: u8, payload: Bytes) -> Result<Entry, Damage> {
    if kind != ENTRY {
        return Err(Damage::Kind(kind));
    }
    Ok(codec::entry_from_proto(peer::Entry::decode(payload)?)?)
}

/// Reads the header.
pub(super) fn decode_header(kind: u8, payload: &Bytes) -> Result<Header, Damage> {
    if kind != HEADER || !payload.starts_with(&MAGIC) {
        return Err(Damage::NoHeader);
    }
    let message = HeaderMessage::decode(payload.slice(MAGIC.len()..))?;
    if message.format != FORMAT {
        return Err(Damage::Format(message.format));
    }
    Ok(Header {
        sequence: message.sequence,
        previous_end: message.previous_end,
        positions: Positions {
            vote: message.vote.as_ref().map(codec::vote_from_proto),
            committed: message.committed.as_ref().map(codec::log_id_from_proto),
            purged: message.purged.as_ref().map(codec::log_id_from_proto),
            checkpoint: message.checkpoint.as_ref().map(codec::log_id_from_proto),
        },
    })
}

fn place(payload: Bytes) -> Result<Option<LogId>, Damage> {
    Ok(Place::decode(payload)?.log_id.as_ref().map(codec::log_id_from_proto))
}

fn required(id: Option<&peer::LogId>) -> Result<LogId, Damage> {
    let id = id.ok_or(codec::CodecError::Missing("log_id"))?;
    Ok(codec::log_id_from_proto(id))
}
