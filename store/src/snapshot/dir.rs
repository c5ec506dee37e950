//! The directory that holds the snapshots of a member.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::writer::publish;
use super::{SnapshotError, SnapshotMeta, SnapshotWriter, verify};
use crate::raft::types::LogId;

const SUFFIX: &str = ".snap";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A snapshot that is whole on the disk, as far as its name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StoredSnapshot {
    /// The term of the last entry in it.
    pub(crate) term: u64,
    /// The index of the last entry in it.
    pub(crate) index: u64,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// A directory of snapshots. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    /// So that two writers never share a temporary file.
    next_temporary: Arc<AtomicU64>,
}

impl SnapshotDir {
    /// Opens a directory, creates it if it is not there, and removes what was never finished: files
    /// whose names end in `.tmp`.
    /// At one time there may be one for a directory.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(path).map_err(SnapshotError::io("create", path))?;
        for path in unfinished(path).map_err(SnapshotError::io("list", path))? {
            fs::remove_file(&path).map_err(SnapshotError::io("remove", &path))?;
        }
        Ok(Self { path: path.to_owned(), next_temporary: Arc::default() })
    }

    /// The snapshots by the entry that they reach to, newest first.
    pub(crate) fn list(&self) -> Result<Vec<StoredSnapshot>, SnapshotError> {
        let mut files = Vec::new();
        for file in fs::read_dir(&self.path).map_err(SnapshotError::io("list", &self.path))? {
            let file = file.map_err(SnapshotError::io("list", &self.path))?;
            if let Some((term, index)) = parse_name(&file.file_name().to_string_lossy()) {
                files.push(StoredSnapshot { term, index, path: file.path() });
            }
        }
        files.sort_by(|a, b| b.cmp(a));
        Ok(files)
    }

    /// The newest snapshot, if there is one.
    #[cfg(test)]
    pub(crate) fn newest(&self) -> Result<Option<StoredSnapshot>, SnapshotError> {
        Ok(self.list()?.into_iter().next())
    }

    /// Removes all but the newest `count` snapshots. One that is being read stays readable.
    pub(crate) fn keep_newest(&self, count: usize) -> Result<(), SnapshotError> {
        for old in self.list()?.into_iter().skip(count) {
            match fs::remove_file(&old.path) {
                // One may be made while another one is installed, and both see to this.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(SnapshotError::io("remove", &old.path))?,
            }
        }
        Ok(())
    }

    /// What snapshots take that are still being written; they make room for it when they are done.
    pub(crate) fn unfinished_bytes(&self) -> io::Result<u64> {
        // One may be done, and gone from here, by now.
        let bytes = |path: &PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
        Ok(unfinished(&self.path)?.iter().map(bytes).sum())
    }

    /// Where the snapshot up to `log_id` is, or would be.
    pub(crate) fn path_of(&self, log_id: &LogId) -> PathBuf {
        let term = **log_id.committed_leader_id();
        self.path.join(format!("{term:016x}-{:016x}{SUFFIX}", log_id.index()))
    }

    /// Begins a snapshot of this member's state.
    pub(crate) fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, SnapshotError> {
        SnapshotWriter::create(self.path_of(&meta.last_log_id), self.temporary(), meta)
    }

    /// Takes in a file that came from another member and lies in this directory: checks all of it,
    /// makes it durable, and only then gives it its name. A file that is refused is left alone.
    pub(crate) fn adopt(&self, incoming: &Path) -> Result<(SnapshotMeta, PathBuf), SnapshotError> {
        File::open(incoming)
            .and_then(|file| file.sync_all())
            .map_err(SnapshotError::io("sync", incoming))?;
        let meta = verify(incoming)?;
        let path = self.path_of(&meta.last_log_id);
        publish(incoming, &path)?;
        Ok((meta, path))
    }

    /// A file without a name, for whatever is needed for a while: it is gone with its last handle,
    /// also when the process is killed.
    pub(crate) fn unnamed_file(&self) -> Result<File, SnapshotError> {
        let path = self.temporary();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(SnapshotError::io("create", &path))?;
        fs::remove_file(&path).map_err(SnapshotError::io("remove", &path))?;
        Ok(file)
    }

    fn temporary(&self) -> PathBuf {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.path.join(format!("{number}{SUFFIX}{TEMPORARY_SUFFIX}"))
    }
}

/// The files in `dir` that are being written, or that nobody will finish any more.
fn unfinished(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        if file.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            paths.push(file.path());
        }
    }
    Ok(paths)
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (term, index) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let number = |digits: &str| {
        let is_number = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_number.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    Some((number(term)?, number(index)?))
}
