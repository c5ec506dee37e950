//! The files under the log, behind a small trait, so that tests can cut the power.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sync_dir::sync_dir;
use prometheus::Histogram;
use tokio::time::Instant;

/// Held for as long as the log is open; dropping it lets another open the directory.
pub(crate) type DirLock = Box<dyn Send + Sync>;

/// A directory that holds one log. All methods block.
pub(crate) trait LogDir: Send + Sync {
    /// Takes the directory for this log alone; `None` if somebody else has it.
    fn lock(&self) -> io::Result<Option<DirLock>>;
    /// The names of the files in it, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes an empty file, in place of one with that name if there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    /// Gives a file another name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks a file; whoever has it open can still read it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes what was created, renamed and removed durable.
    fn sync(&self) -> io::Result<()>;
    /// What to call a file when talking to people.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file of a log. All methods block.
pub(crate) trait LogFile: Send + Sync {
    /// Its size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` on.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`, and makes the file longer where needed.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable, and the size where it is needed to read it again.
    fn sync_data(&self) -> io::Result<()>;
}

/// The file that is locked. It stays: unlinking a lock file lets two hold it.
const LOCK_FILE: &str = "lock";

/// A directory of the file system.
pub(crate) struct DiskDir {
    path: PathBuf,
    sync_seconds: Option<Histogram>,
}

impl DiskDir {
    /// Makes the directory if there is none, durably. The directory above it must exist.
    pub(crate) fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        match fs::create_dir(&path) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                sync_dir(parent.unwrap_or(Path::new(".")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Self { path, sync_seconds: None })
    }

    /// Tells how long each sync of a file takes.
    pub(crate) fn measured(self, sync_seconds: Histogram) -> Self {
        Self { sync_seconds: Some(sync_seconds), ..self }
    }

    fn file(&self, file: File) -> Arc<dyn LogFile> {
        Arc::new(DiskFile { file, sync_seconds: self.sync_seconds.clone() })
    }
}

impl LogDir for DiskDir {
    fn lock(&self) -> io::Result<Option<DirLock>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let path = self.path.join(name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

struct DiskFile {
    file: File,
    sync_seconds: Option<Histogram>,
}

impl LogFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let begun = Instant::now();
        self.file.sync_data()?;
        if let Some(seconds) = &self.sync_seconds {
            seconds.observe(begun.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
