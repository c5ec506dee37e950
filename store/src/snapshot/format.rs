//! The blocks of a snapshot file. Numbers and tags are for ever.

use store_proto::{mvccpb, peer};

/// What a file begins with; the last byte is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"MKUSNAP\x01";

/// Length, checksum and kind.
pub(super) const BLOCK_HEAD_BYTES: usize = 4 + 4 + 1;

/// When a block of leases or records is full. One record alone may be longer.
pub(super) const BLOCK_BYTES: usize = 64 * 1024;

/// No block is longer: a length above is damage, and nothing is allocated for it. Far above what a
/// request may carry.
pub(super) const MAX_BLOCK_BYTES: usize = 256 * 1024 * 1024;

pub(super) const HEADER: u8 = 1;
pub(super) const LEASES: u8 = 2;
pub(super) const RECORDS: u8 = 3;
pub(super) const TRAILER: u8 = 4;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(message, tag = "1")]
    pub(super) last_log_id: Option<peer::LogId>,
    #[prost(message, tag = "2")]
    pub(super) membership: Option<peer::StoredMembership>,
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
    #[prost(int64, tag = "4")]
    pub(super) compacted: i64,
    #[prost(message, repeated, tag = "5")]
    pub(super) members: Vec<peer::MemberAttributes>,
    #[prost(message, repeated, tag = "6")]
    pub(super) alarms: Vec<peer::Alarm>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Leases {
    #[prost(message, repeated, tag = "1")]
    pub(super) leases: Vec<Lease>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Lease {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(int64, tag = "2")]
    pub(super) ttl_seconds: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Records {
    #[prost(message, repeated, tag = "1")]
    pub(super) records: Vec<Record>,
}

/// One write. Its revision is the event's `mod_revision`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(uint32, tag = "1")]
    pub(super) sub: u32,
    #[prost(message, optional, tag = "2")]
    pub(super) event: Option<mvccpb::Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Trailer {
    #[prost(uint64, tag = "1")]
    pub(super) leases: u64,
    #[prost(uint64, tag = "2")]
    pub(super) records: u64,
}

/// The checksum of a block.
pub(super) fn checksum(kind: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload)
}
