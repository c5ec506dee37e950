//! bbolt's file format, as far as a backup needs it: written once from sorted keys, and read front
//! to back. The format is defined by the sources of `go.etcd.io/bbolt`; all numbers are
//! little-endian.
//!
//! A file is pages of one size. Pages 0 and 1 are metas, of which the valid one with the higher
//! transaction id counts; the others form one tree for each bucket:
//!
//! ```text
//! page    = id:u64 flags:u16 count:u16 overflow:u32, elements, their keys and values
//!           `overflow` pages more belong to it when it does not fit into one
//! leaf    = flags:u32 pos:u32 ksize:u32 vsize:u32   each; pos counts from the element itself
//! branch  = pos:u32 ksize:u32 page:u64              each; the key is the first one below that page
//! meta    = magic:u32 version:u32 page_size:u32 flags:u32, root bucket, freelist:u64,
//!           end:u64 (the first page that is not in use), transaction:u64, checksum:u64 (FNV-1a)
//! bucket  = root:u64 sequence:u64                   the value of a leaf element with flag 1
//! ```
//! The root bucket holds the other buckets by name. A small bucket has root 0, and its one leaf page
//! stands right behind these 16 bytes.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

pub(crate) use self::reader::{Bolt, BucketRef, Entry};
pub(crate) use self::writer::BoltWriter;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// The page size of the files that are written here: the usual one of etcd's machines.
const PAGE_BYTES: usize = 4096;
/// bbolt's own limit of a key.
const MAX_KEY_BYTES: usize = 32768;
/// bbolt keeps buckets up to a quarter of a page within their parent.
const MAX_INLINE_BYTES: usize = PAGE_BYTES / 4;

const PAGE_HEAD_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
const BUCKET_HEAD_BYTES: usize = 16;
/// A meta up to its checksum, and with it.
const META_SUMMED_BYTES: usize = 56;
const META_BYTES: usize = META_SUMMED_BYTES + 8;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;

/// The flag of a leaf element that holds a bucket.
const IS_BUCKET: u32 = 0x01;

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoltError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not what bbolt would have written.
    #[error("{reason} (at byte {offset})")]
    Damaged {
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// What is to be written has no place in the format.
    #[error("{0}")]
    Unwritable(&'static str),
}

/// FNV-1a with 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What a meta page says beyond what is the same in every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meta {
    page_bytes: u32,
    root: u64,
    sequence: u64,
    freelist: u64,
    /// The first page that is not in use.
    end: u64,
    transaction: u64,
}

impl Meta {
    fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = Vec::with_capacity(META_BYTES);
        for number in [MAGIC, VERSION, self.page_bytes, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.root, self.sequence, self.freelist, self.end, self.transaction] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        bytes.try_into().expect("four numbers of 4 bytes and six of 8")
    }

    /// `None` for what is no meta, or a damaged one.
    fn decode(bytes: &[u8; META_BYTES]) -> Option<Self> {
        let known = u32_at(bytes, 0)? == MAGIC && u32_at(bytes, 4)? == VERSION;
        let whole = u64_at(bytes, META_SUMMED_BYTES)? == checksum(&bytes[..META_SUMMED_BYTES]);
        let meta = Self {
            page_bytes: u32_at(bytes, 8)?,
            root: u64_at(bytes, 16)?,
            sequence: u64_at(bytes, 24)?,
            freelist: u64_at(bytes, 32)?,
            end: u64_at(bytes, 40)?,
            transaction: u64_at(bytes, 48)?,
        };
        (known && whole).then_some(meta)
    }
}

/// What stands at the beginning of a page.
#[derive(Clone, Copy, Debug)]
struct PageHead {
    id: u64,
    flags: u16,
    count: u16,
    overflow: u32,
}

impl PageHead {
    fn encode(self) -> [u8; PAGE_HEAD_BYTES] {
        let mut bytes = [0; PAGE_HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    /// `None` when there are too few bytes.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let flags_and_count = u32_at(bytes, 8)?;
        Some(Self {
            id: u64_at(bytes, 0)?,
            flags: (flags_and_count & 0xffff) as u16,
            count: (flags_and_count >> 16) as u16,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}
