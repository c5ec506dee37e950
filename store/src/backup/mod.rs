//! Backup and restore of the whole store, as a real etcd database.
//!
//! `etcdctl snapshot save`, `status` and `restore` work on what comes out of here, and a file of a
//! real etcd (3.4, 3.5) can be looked at and restored here: the way from etcd to this store and back.
//!
//! ```text
//! a backup = a bbolt database ([`bolt`]) with etcd's buckets ([`schema`]), and its SHA-256
//! ```
//! The checksum is 32 bytes at the end. It is told from a page by the size of the file, as etcd does:
//! pages are of 512 bytes or a multiple.

mod bolt;
mod command;
mod file;
mod restore;
mod save;
mod schema;
mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use self::command::{Command, OutputFormat, RestoreFlags};
pub(crate) use self::save::{BACKUPS_AT_ONCE, send};

use self::bolt::BoltError;
use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::storage::StorageError;

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not as it was written.
    #[error("{} is damaged: {reason}; use another backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file has no checksum at its end.
    #[error(
        "{} has no checksum, so it may be damaged or cut off: if it was copied from a data directory \
         of etcd, and not saved by `etcdctl snapshot save`, use --skip-hash-check",
        path.display()
    )]
    NoChecksum {
        /// The file.
        path: PathBuf,
    },
    /// Whoever had to log in before would not have to any more.
    #[error(
        "{} comes from an etcd with authentication, which this store does not have: restored, its data \
         is open to everybody who reaches the store; use --without-auth if that is meant",
        path.display()
    )]
    Auth {
        /// The file.
        path: PathBuf,
    },
    /// A flag cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The member's own address is another one in --initial-cluster.
    #[error(
        "--initial-advertise-peer-urls: `{urls}` is not what --initial-cluster says of `{name}`"
    )]
    OwnUrls {
        /// What was given.
        urls: String,
        /// The member.
        name: String,
    },
    /// Revisions do not go so far.
    #[error("--bump-revision: {0} is too much")]
    Bump(i64),
    /// Nothing that exists is ever replaced.
    #[error("{} exists: choose another --data-dir, or move it out of the way", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Another process does the same.
    #[error("another process is restoring into {}", path.display())]
    Busy {
        /// The directory in which it works.
        path: PathBuf,
    },
    /// The data directory cannot be made.
    #[error("{} cannot be written", path.display())]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data cannot be written, or makes no state.
    #[error("the data directory cannot be filled")]
    Storage(#[from] StorageError),
    /// The data directory cannot be marked as the member's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Error {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    fn bolt(path: &Path) -> impl FnOnce(BoltError) -> Self {
        move |error| match error {
            BoltError::Io(source) => Self::Read { path: path.to_owned(), source },
            BoltError::Damaged { .. } | BoltError::Unwritable(_) => {
                Self::Damaged { path: path.to_owned(), reason: error.to_string() }
            }
        }
    }
}
