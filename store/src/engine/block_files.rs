//! Where blocks stand: in files that are only ever appended to.
//!
//! ```text
//! blocks/0000000000000001   [block][block][block]…      full
//! blocks/0000000000000002   [block][block]              the newest; what is written goes behind it
//!
//! a place, as the index has it:
//!     file: u64 BE | offset: u64 BE | length: u32 BE | checksum: u32 BE
//! ```
//! The checksum covers the block and the key that it is kept under, so an index that leads to the
//! wrong place is found out as well as a file that has lost something. A block is never changed: what
//! takes its place is written elsewhere, and the old one is dead. A file of which nothing is in use
//! any more is removed once no crash can bring back an index that leads to it; one that is worth it
//! is given up, by writing again what is alive in it ([`BlockFiles::wasteful`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::EngineError;

/// After so many bytes a file is synced, so that a checkpoint has no hundred megabytes to sync beside
/// the log.
const SYNC_BYTES: u64 = 4 << 20;

/// What is dead may be this part of what is alive: one half.
const WASTE_PART: u64 = 2;

/// A file is given up if at least this part of it is dead: a quarter.
const WASTEFUL_FILE_PART: u64 = 4;

/// How files are kept. Tests have small ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileLimits {
    /// A file that has become so long takes no more.
    pub(super) file_bytes: u64,
    /// Less that is dead is not worth writing anything again, however little is alive.
    pub(super) waste_min_bytes: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { file_bytes: 16 << 20, waste_min_bytes: 8 << 20 }
    }
}

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: u64,
    offset: u64,
    len: u32,
    checksum: u32,
}

impl Place {
    const BYTES: usize = 24;

    /// As it stands in the index.
    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.file.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_be_bytes());
        bytes[20..].copy_from_slice(&self.checksum.to_be_bytes());
        bytes
    }

    /// What the index has under `start`.
    pub(super) fn decode(start: &[u8], bytes: &[u8]) -> Result<Self, EngineError> {
        let damaged = || EngineError::Damaged(format!("the block {start:02x?} has no place"));
        let (file, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (offset, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let checksum = rest.try_into().map_err(|_| damaged())?;
        Ok(Self {
            file: u64::from_be_bytes(*file),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(*len),
            checksum: u32::from_be_bytes(checksum),
        })
    }

    /// How long the block is.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }
}

/// A file with blocks, open for reading, however it is called by now.
#[derive(Debug)]
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
}

impl BlockFile {
    /// Reads the block that the index has under `start` into `buffer`, in the place of what was there.
    pub(super) fn read(
        &self,
        start: &[u8],
        place: &Place,
        buffer: &mut Vec<u8>,
    ) -> Result<(), EngineError> {
        let damaged = |what: &str| {
            let (path, offset) = (self.path.display(), place.offset);
            EngineError::Damaged(format!("the block {start:02x?} at {offset} of {path} {what}"))
        };
        buffer.resize(place.len(), 0);
        self.file.read_exact_at(buffer, place.offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("is cut off"),
            _ => EngineError::io("read", &self.path)(error),
        })?;
        if checksum(start, buffer) == place.checksum {
            Ok(())
        } else {
            Err(damaged("is not what was written there"))
        }
    }
}

fn checksum(start: &[u8], block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(start), block)
}

/// How much of a file is taken, and how much of that is in use.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    len_bytes: u64,
    alive_bytes: u64,
}

impl Usage {
    fn dead_bytes(self) -> u64 {
        self.len_bytes - self.alive_bytes
    }
}

/// The file that is appended to.
#[derive(Debug)]
struct Newest {
    number: u64,
    file: Arc<BlockFile>,
    unsynced_bytes: u64,
}

/// All files with blocks, and what is in use of each.
#[derive(Debug)]
pub(super) struct BlockFiles {
    dir: PathBuf,
    limits: FileLimits,
    usage: BTreeMap<u64, Usage>,
    newest: Option<Newest>,
    /// Whether a file was made that its directory may forget.
    is_dir_unsynced: bool,
}

impl BlockFiles {
    /// The files in `dir`, of which nothing is known to be in use yet. What comes now goes to a new
    /// one: how the newest ends is not known either.
    pub(super) fn open(dir: PathBuf, limits: FileLimits) -> Result<Self, EngineError> {
        fs::create_dir_all(&dir).map_err(EngineError::io("create", &dir))?;
        let mut usage = BTreeMap::new();
        for file in fs::read_dir(&dir).map_err(EngineError::io("list", &dir))? {
            let file = file.map_err(EngineError::io("list", &dir))?;
            if let Some(number) = file.file_name().to_str().and_then(|name| name.parse().ok()) {
                let path = file.path();
                let len_bytes = file.metadata().map_err(EngineError::io("look at", &path))?.len();
                usage.insert(number, Usage { len_bytes, alive_bytes: 0 });
            }
        }
        Ok(Self { dir, limits, usage, newest: None, is_dir_unsynced: true })
    }

    /// All of them, for reading.
    pub(super) fn open_all(&self) -> Result<BTreeMap<u64, Arc<BlockFile>>, EngineError> {
        let open = |number: &u64| {
            let path = self.path(*number);
            let file = File::open(&path).map_err(EngineError::io("open", &path))?;
            Ok((*number, Arc::new(BlockFile { path, file })))
        };
        self.usage.keys().map(open).collect()
    }

    /// Counts in a block that the index leads to.
    pub(super) fn count(&mut self, place: &Place) -> Result<(), EngineError> {
        let end = place.offset.checked_add(place.len.into());
        match self.usage.get_mut(&place.file) {
            Some(usage) if end.is_some_and(|end| end <= usage.len_bytes) => {
                usage.alive_bytes += u64::from(place.len);
                Ok(())
            }
            Some(usage) => {
                let text = format!("file {} of blocks ends at {}", place.file, usage.len_bytes);
                Err(EngineError::Damaged(text))
            }
            None => Err(EngineError::Damaged(format!("file {} of blocks is gone", place.file))),
        }
    }

    /// Counts out a block that the index no longer leads to.
    pub(super) fn release(&mut self, place: &Place) {
        if let Some(usage) = self.usage.get_mut(&place.file) {
            usage.alive_bytes -= u64::from(place.len);
        }
    }

    /// Begins another file if there is none that takes more. Gives it for reading.
    pub(super) fn begin_file(&mut self) -> Result<Option<(u64, Arc<BlockFile>)>, EngineError> {
        let is_full = |newest: &Newest| self.len_bytes(newest.number) >= self.limits.file_bytes;
        if self.newest.as_ref().is_some_and(|newest| !is_full(newest)) {
            return Ok(None);
        }
        self.end_file()?;
        let number = self.usage.keys().next_back().map_or(1, |last| last + 1);
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(EngineError::io("create", &path))?;
        let file = Arc::new(BlockFile { path, file });
        self.is_dir_unsynced = true;
        self.usage.insert(number, Usage::default());
        self.newest = Some(Newest { number, file: Arc::clone(&file), unsynced_bytes: 0 });
        Ok(Some((number, file)))
    }

    /// Leaves the newest file as it is.
    pub(super) fn end_file(&mut self) -> Result<(), EngineError> {
        self.sync_file()?;
        self.newest = None;
        Ok(())
    }

    /// Writes `bytes` to the file that was [begun](Self::begin_file), and says where each of `blocks`
    /// in it then stands. All of them count as in use.
    pub(super) fn append<'a>(
        &mut self,
        bytes: &[u8],
        blocks: impl Iterator<Item = (&'a [u8], Range<usize>)>,
    ) -> Result<Vec<Place>, EngineError> {
        let newest = self.newest.as_mut().expect("begin_file was called before");
        let usage = self.usage.entry(newest.number).or_default();
        let begin = usage.len_bytes;
        let BlockFile { path, file } = &*newest.file;
        file.write_all_at(bytes, begin).map_err(EngineError::io("write", path))?;
        usage.len_bytes += bytes.len() as u64;
        newest.unsynced_bytes += bytes.len() as u64;
        let mut places = Vec::new();
        for (start, at) in blocks {
            let block = &bytes[at.clone()];
            let too_long =
                |_| EngineError::Damaged(format!("a block of {} bytes is too long", block.len()));
            let len = u32::try_from(block.len()).map_err(too_long)?;
            usage.alive_bytes += u64::from(len);
            places.push(Place {
                file: newest.number,
                offset: begin + at.start as u64,
                len,
                checksum: checksum(start, block),
            });
        }
        if newest.unsynced_bytes >= SYNC_BYTES {
            self.sync_file()?;
        }
        Ok(places)
    }

    fn sync_file(&mut self) -> Result<(), EngineError> {
        let Some(newest) = &mut self.newest else { return Ok(()) };
        if newest.unsynced_bytes > 0 {
            let BlockFile { path, file } = &*newest.file;
            file.sync_data().map_err(EngineError::io("sync", path))?;
            newest.unsynced_bytes = 0;
        }
        Ok(())
    }

    /// Has on the disk everything that was appended.
    pub(super) fn sync(&mut self) -> Result<(), EngineError> {
        self.sync_file()?;
        if self.is_dir_unsynced {
            File::open(&self.dir)
                .and_then(|dir| dir.sync_all())
                .map_err(EngineError::io("sync", &self.dir))?;
            self.is_dir_unsynced = false;
        }
        Ok(())
    }

    /// The files of which nothing is in use any more.
    pub(super) fn dead(&self) -> Vec<u64> {
        let newest = self.newest.as_ref().map(|newest| newest.number);
        let dead = self
            .usage
            .iter()
            .filter(|(number, usage)| usage.alive_bytes == 0 && Some(**number) != newest);
        dead.map(|(number, _)| *number).collect()
    }

    /// Removes a file. Whoever has it open can still read it.
    pub(super) fn remove(&mut self, number: u64) -> Result<(), EngineError> {
        let path = self.path(number);
        fs::remove_file(&path).map_err(EngineError::io("remove", &path))?;
        self.usage.remove(&number);
        Ok(())
    }

    /// The files to give up, once what is dead in all of them takes half of what is alive:
    ///
    /// ```text
    /// alive 100 MB, dead 40 MB: none
    /// alive 100 MB, dead 50 MB: those of which a quarter or more is dead
    /// ```
    /// So each byte that is written again stands for about one that has died.
    pub(super) fn wasteful(&self) -> Option<BTreeSet<u64>> {
        // The others go by themselves.
        let used = || self.usage.iter().filter(|(_, usage)| usage.alive_bytes > 0);
        let alive: u64 = used().map(|(_, usage)| usage.alive_bytes).sum();
        let dead: u64 = used().map(|(_, usage)| usage.dead_bytes()).sum();
        if dead < self.limits.waste_min_bytes.max(alive / WASTE_PART) {
            return None;
        }
        let is_wasteful =
            |usage: &Usage| usage.dead_bytes() >= usage.len_bytes / WASTEFUL_FILE_PART;
        Some(used().filter(|(_, usage)| is_wasteful(usage)).map(|(number, _)| *number).collect())
    }

    /// What all of them take.
    pub(super) fn size_bytes(&self) -> u64 {
        self.usage.values().map(|usage| usage.len_bytes).sum()
    }

    fn len_bytes(&self, number: u64) -> u64 {
        self.usage.get(&number).map_or(0, |usage| usage.len_bytes)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016}"))
    }
}
