//! Snapshots: the whole applied state after one entry of the log, as a checksummed file.
//!
//! They are what a lost state is rebuilt from, what a follower gets that is too far behind, and what
//! the log is purged behind. So a file has its final name only once all of it is on the disk, and
//! nothing of one is believed before all of it was checked. They are written and read in blocks;
//! none is ever whole in memory.
//!
//! ```text
//! file    = magic block*
//! magic   = "MKUSNAP" 01                    the last byte is the version of the format
//! block   = length:u32 LE  crc:u32 LE  kind:u8  payload         crc: CRC-32C of kind and payload
//! blocks  = one header, any number of leases, any number of records, one trailer
//! ```
//! The payloads are protobuf, see [`format`]. Records come in revision order and the trailer counts
//! them, so a block that is missing, doubled or out of place is noticed too.
//!
//! The name says the entry, in hexadecimal as etcd does: `<term>-<index>.snap`, 16 digits each.

mod dir;
mod format;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use store_proto::peer::{Alarm, MemberAttributes};

pub(crate) use self::dir::SnapshotDir;
pub(crate) use self::reader::{Item, SnapshotReader, verify};
pub(crate) use self::writer::SnapshotWriter;

use crate::raft::types::{LogId, StoredMembership};

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotMeta {
    /// The last entry of the log that is in it.
    pub(crate) last_log_id: LogId,
    /// The last membership up to that entry.
    pub(crate) membership: StoredMembership,
    /// The revision of the state.
    pub(crate) revision: i64,
    /// The compacted revision; -1 if there was no compaction.
    pub(crate) compacted: i64,
    /// What members told of themselves.
    pub(crate) members: Vec<MemberAttributes>,
    /// The alarms that were raised.
    pub(crate) alarms: Vec<Alarm>,
}

/// Why a snapshot file cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a whole snapshot.
    #[error("the snapshot {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

impl SnapshotError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
