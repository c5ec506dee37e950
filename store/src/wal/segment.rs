//! One segment: its name, how it is made, and how records are added to it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::WalError;
use super::files::{LogDir, LogFile};
use super::record::{Damage, Header};

/// What the name of a segment ends in once it is part of the log.
const SUFFIX: &str = ".wal";
/// What the name of one that is being made ends in.
pub(super) const UNFINISHED_SUFFIX: &str = ".new";
/// How many zeros are written at once.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// The name of a segment. Twenty digits hold any number, so names sort as numbers do.
pub(super) fn name(sequence: u64) -> String {
    format!("{sequence:020}{SUFFIX}")
}

fn unfinished(name: &str) -> String {
    format!("{name}{UNFINISHED_SUFFIX}")
}

/// The number of the segment with this name; `None` for any other file.
pub(super) fn sequence_of(file: &str) -> Option<u64> {
    let digits = file.strip_suffix(SUFFIX)?;
    let sequence = digits.parse().ok()?;
    (name(sequence) == file).then_some(sequence)
}

/// A segment's file, and what to call it.
pub(super) struct SegmentFile {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    file: Arc<dyn LogFile>,
}

impl SegmentFile {
    /// Opens a segment that is there.
    pub(super) fn open(dir: &dyn LogDir, sequence: u64) -> Result<Self, WalError> {
        let name = name(sequence);
        let path = dir.path(&name);
        match dir.open(&name) {
            Ok(file) => Ok(Self { sequence, path, file }),
            Err(source) => Err(WalError::Io { action: "open", path, source }),
        }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> Result<u64, WalError> {
        self.file.len().map_err(|source| self.error("read", source))
    }

    /// Reads `len` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, WalError> {
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, offset).map_err(|source| self.error("read", source))?;
        Ok(data)
    }

    /// Overwrites a part of it with zeros.
    pub(super) fn write_zeros(&self, from: u64, to: u64) -> Result<(), WalError> {
        let mut offset = from;
        while offset < to {
            let len = usize::try_from(to - offset).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(offset, &ZEROS[..len])?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), WalError> {
        self.file.sync_data().map_err(|source| self.error("sync", source))
    }

    /// What is wrong with it, and where.
    pub(super) fn damaged(&self, offset: u64, damage: Damage) -> WalError {
        let path = self.path.clone();
        match damage {
            Damage::Format(_) => WalError::Format { path, damage },
            damage => WalError::Damaged { path, offset, damage },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), WalError> {
        self.file.write_all_at(data, offset).map_err(|source| self.error("write", source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> WalError {
        WalError::Io { action, path: self.path.clone(), source }
    }
}

/// A file of zeros that waits to become a segment.
pub(super) struct Blank {
    segment: SegmentFile,
    pub(super) capacity: u64,
}

impl Blank {
    /// Makes the file, and writes its zeros to the disk.
    pub(super) fn make(dir: &dyn LogDir, sequence: u64, capacity: u64) -> Result<Self, WalError> {
        let name = name(sequence);
        let path = dir.path(&name);
        let file = match dir.create(&unfinished(&name)) {
            Ok(file) => file,
            Err(source) => return Err(WalError::Io { action: "create", path, source }),
        };
        let segment = SegmentFile { sequence, path, file };
        segment.write_zeros(0, capacity)?;
        segment.sync()?;
        Ok(Self { segment, capacity })
    }
}

/// The newest segment, the one that is written to.
pub(super) struct Active {
    pub(super) segment: Arc<SegmentFile>,
    /// Where the next record goes.
    pub(super) end: u64,
    /// The size of the file: up to here it was filled with zeros.
    pub(super) capacity: u64,
}

impl Active {
    /// Makes a file of zeros into the segment with this header, durably.
    pub(super) fn begin(dir: &dyn LogDir, header: &Header, blank: Blank) -> Result<Self, WalError> {
        let Blank { segment, capacity } = blank;
        let mut data = Vec::new();
        header.encode(&mut data);
        segment.write(0, &data)?;
        segment.sync()?;
        let name = name(segment.sequence);
        dir.rename(&unfinished(&name), &name)
            .and_then(|()| dir.sync())
            .map_err(|source| segment.error("create", source))?;
        Ok(Self { segment: Arc::new(segment), end: data.len() as u64, capacity })
    }

    /// Writes at the end, without a sync.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), WalError> {
        self.segment.write(self.end, data)?;
        self.end += data.len() as u64;
        Ok(())
    }

    /// Whether it is time to think of the next one.
    pub(super) fn is_half_full(&self) -> bool {
        self.end > self.capacity / 2
    }

    /// Whether `bytes` fit behind what was written.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.end + bytes as u64 <= self.capacity
    }
}

/// Unlinks a segment, durably, so that never a newer one is gone while an older one is still there.
pub(super) fn unlink(dir: &dyn LogDir, sequence: u64) -> Result<(), WalError> {
    let name = name(sequence);
    dir.remove(&name).and_then(|()| dir.sync()).map_err(|source| WalError::Io {
        action: "remove",
        path: dir.path(&name),
        source,
    })
}
