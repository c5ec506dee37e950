//! Where the applied state is kept on disk, and its twin in memory.
//!
//! An engine is an ordered map of bytes whose batches are atomic: after a crash either the whole
//! batch is there or nothing of it. It may forget the newest batches, even all of them, because it
//! is never the only copy: the log and the snapshots bring the state back (see
//! [`crate::mvcc::StateDir`]). It knows nothing of revisions; [`crate::mvcc`] decides what stands
//! under which key.

mod block_files;
mod blocks;
#[cfg(test)]
mod memory;
mod sled;

use std::fmt;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use bytes::Bytes;

#[cfg(test)]
pub(crate) use self::memory::MemoryEngine;
pub(crate) use self::sled::SledEngine;

/// The applied state can no longer be kept or read. Nothing was refused: the process has to end,
/// and what it acknowledged is found again in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// sled reported an error.
    #[error("the state engine failed")]
    Sled(#[from] ::sled::Error),
    /// sled gave up while opening its files.
    #[error("the state engine panicked while opening {}: {message}", path.display())]
    Panicked {
        /// The directory that was being opened.
        path: PathBuf,
        /// What the panic said.
        message: String,
    },
    /// A file operation of our own failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The engine holds something that was never written, or misses something that was.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// A snapshot file that cannot be used.
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::SnapshotError),
    /// An entry that cannot follow the applied one, or holds what this version does not know.
    #[error("entry {index} of the log cannot be applied: {reason}")]
    Entry {
        /// The entry's index.
        index: u64,
        /// Why not.
        reason: String,
    },
    /// An earlier apply failed half-way.
    #[error("the state cannot be used any more: applying an earlier entry failed")]
    Failed,
}

impl EngineError {
    /// For `map_err` of a file operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// What [`Engine::scan`] shows to its caller, pair by pair: key and value.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An ordered map of bytes with atomic batches. All calls may block on the disk.
pub(crate) trait Engine: Send + Sync + fmt::Debug {
    /// The value of one key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Shows every pair with `range.start <= key < range.end` in the order of the keys, until
    /// `visit` breaks: a caller bounds its own memory, by pairs or by bytes. Pairs written or
    /// deleted meanwhile may be shown or not. `visit` must not call the engine.
    fn scan(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError>;

    /// Carries out a whole batch or, after a crash, nothing of it.
    fn write(&self, batch: WriteBatch) -> Result<(), EngineError>;

    /// Returns once everything written before is on the disk, as far as the engine can tell. Gives back
    /// room that nothing needs any more.
    fn flush(&self) -> Result<(), EngineError>;

    /// Does a little so that room comes back that only holds what was deleted or replaced, where that is
    /// worth it. To be called again as long as it says true, and from time to time after a flush: the
    /// room is given back there, and what this writes takes some until then.
    fn reclaim(&self) -> Result<bool, EngineError>;

    /// What the engine takes up: on disk, or in memory when it has no disk.
    fn size_bytes(&self) -> Result<u64, EngineError>;
}

/// Puts and deletes that belong together. A later one wins over an earlier one of the same key.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch {
    operations: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

impl WriteBatch {
    /// Sets `key` to `value`.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.operations.push((key, Some(value)));
    }

    /// Removes `key` if it is there.
    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.operations.push((key, None));
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The bytes of all keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Opening engines again in one process.

    use std::time::Duration;

    use super::EngineError;

    /// sled's threads let go of their files a moment after it was dropped. Tries until they have,
    /// for ten seconds at most.
    pub(crate) fn once_unlocked<T>(
        open: impl Fn() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let is_locked = |error: &EngineError| {
            matches!(error, EngineError::Sled(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock"))
        };
        for _ in 0..1000 {
            match open() {
                Err(error) if is_locked(&error) => {
                    std::thread::park_timeout(Duration::from_millis(10));
                }
                result => return result,
            }
        }
        open()
    }
}
#[cfg(test)]
mod tests;
