//! Where blocks stand: in files that are only ever appended to.
//!
//! ```text
//! blocks/0000000000000001   [block][block][block]…      full
//! blocks/0000000000000002   [block][block]              the newest; what is written goes behind it
//!
//! a handle, as the index has it:
//!     file: u64 BE | offset: u64 BE | length: u32 BE | checksum: u32 BE
//! ```
//! The checksum covers the block and the key that it is kept under, so an index that leads elsewhere is
//! found out as well as a file that has lost something. A block is never changed: what stands for it is
//! written behind the others, and the old one is dead. A file without live blocks is removed once no
//! crash can bring back an index that leads to it; one that is worth it is given up, by writing again
//! what is live in it ([`BlockFiles::give_up`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::EngineError;
use crate::sync_dir::sync_dir;

/// What is dead may be this part of what is live: one half.
const WASTE_PART: u64 = 2;

/// A file is given up if at least this part of it is dead: a quarter.
const WASTEFUL_FILE_PART: u64 = 4;

/// How files are kept. Tests have small ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileLimits {
    /// A file that has become so long takes no more.
    pub(super) file_bytes: u64,
    /// Less that is dead is not worth writing anything again, however little is live.
    pub(super) waste_min_bytes: u64,
    /// So much is written again until its room is given back, more only for a single file.
    pub(super) pass_bytes: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, waste_min_bytes: 8 << 20, pass_bytes: 256 << 20 }
    }
}

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHandle {
    pub(super) file: u64,
    offset: u64,
    len: u32,
    checksum: u32,
}

impl BlockHandle {
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
        let damaged = || {
            let text = format!("the block {start:02x?} has no handle that this version knows");
            EngineError::Damaged(text)
        };
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

    /// The error when its file is not there.
    pub(super) fn without_file(&self) -> EngineError {
        EngineError::Damaged(format!("file {} of blocks is gone", self.file))
    }

    /// How long the block is.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }
}

/// An open file with blocks.
#[derive(Debug)]
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
}

impl BlockFile {
    /// Reads the block that the index has under `start` into `buffer`, whatever was in it.
    pub(super) fn read(
        &self,
        start: &[u8],
        handle: &BlockHandle,
        buffer: &mut Vec<u8>,
    ) -> Result<(), EngineError> {
        let damaged = |what: &str| {
            let (path, offset) = (self.path.display(), handle.offset);
            EngineError::Damaged(format!("the block {start:02x?} at {offset} of {path} {what}"))
        };
        buffer.resize(handle.len(), 0);
        self.file.read_exact_at(buffer, handle.offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("is cut off"),
            _ => EngineError::io("read", &self.path)(error),
        })?;
        if checksum(start, buffer) == handle.checksum {
            Ok(())
        } else {
            Err(damaged("is not what was written there"))
        }
    }

    /// Unlinks it. Whoever has it open can still read it.
    pub(super) fn remove(&self) -> Result<(), EngineError> {
        fs::remove_file(&self.path).map_err(EngineError::io("remove", &self.path))
    }
}

/// A file and its number.
type Numbered = (u64, Arc<BlockFile>);

fn checksum(start: &[u8], block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(start), block)
}

/// How much of a file is taken, and how much of that is in use.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    len_bytes: u64,
    live_bytes: u64,
}

impl Usage {
    fn dead_bytes(self) -> u64 {
        self.len_bytes - self.live_bytes
    }
}

/// All files with blocks, and what is in use of each.
#[derive(Debug)]
pub(super) struct BlockFiles {
    dir: PathBuf,
    limits: FileLimits,
    usage: BTreeMap<u64, Usage>,
    /// The file that is appended to.
    newest: Option<Numbered>,
    /// What the next file is called. A number is used once while the engine is open.
    next_number: u64,
}

impl BlockFiles {
    /// The files in `dir`, of which nothing is known to be in use yet; and all of them for reading.
    pub(super) fn open(
        dir: PathBuf,
        limits: FileLimits,
    ) -> Result<(Self, BTreeMap<u64, Arc<BlockFile>>), EngineError> {
        fs::create_dir_all(&dir).map_err(EngineError::io("create", &dir))?;
        let (mut usage, mut files) = (BTreeMap::new(), BTreeMap::new());
        for file in fs::read_dir(&dir).map_err(EngineError::io("list", &dir))? {
            let name = file.map_err(EngineError::io("list", &dir))?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let path = dir.join(name);
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.map_err(EngineError::io("open", &path))?;
            let len_bytes = file.metadata().map_err(EngineError::io("look at", &path))?.len();
            usage.insert(number, Usage { len_bytes, live_bytes: 0 });
            files.insert(number, Arc::new(BlockFile { path, file }));
        }
        // Whatever it ends with, what comes now goes behind that.
        let newest = files.last_key_value().map(|(number, file)| (*number, Arc::clone(file)));
        let next_number = newest.as_ref().map_or(1, |(number, _)| number + 1);
        Ok((Self { dir, limits, usage, newest, next_number }, files))
    }

    /// Counts in a block that the index leads to.
    pub(super) fn count_in(&mut self, handle: &BlockHandle) -> Result<(), EngineError> {
        let end = handle.offset.checked_add(handle.len.into());
        match self.usage.get_mut(&handle.file) {
            Some(usage) if end.is_some_and(|end| end <= usage.len_bytes) => {
                usage.live_bytes += u64::from(handle.len);
                Ok(())
            }
            Some(usage) => {
                let text = format!("file {} of blocks ends at {}", handle.file, usage.len_bytes);
                Err(EngineError::Damaged(text))
            }
            None => Err(handle.without_file()),
        }
    }

    /// Counts out a block that the index no longer leads to.
    pub(super) fn count_out(&mut self, handle: &BlockHandle) {
        if let Some(usage) = self.usage.get_mut(&handle.file) {
            usage.live_bytes -= u64::from(handle.len);
        }
    }

    /// Writes `bytes` behind what was written before and syncs them. Says where each of `blocks` in
    /// them then stands, which counts as live, and gives the file for reading if it is a new one.
    pub(super) fn append<'a>(
        &mut self,
        bytes: &[u8],
        blocks: impl Iterator<Item = (&'a [u8], Range<usize>)>,
    ) -> Result<(Vec<BlockHandle>, Option<Numbered>), EngineError> {
        let takes_more = |usage: &Usage| usage.len_bytes < self.limits.file_bytes;
        let ((number, newest), new_file) = match &self.newest {
            Some(newest) if self.usage.get(&newest.0).is_some_and(takes_more) => {
                (newest.clone(), None)
            }
            _ => {
                let newest = self.create()?;
                (newest.clone(), Some(newest))
            }
        };
        let usage = self.usage.entry(number).or_default();
        let begin = usage.len_bytes;
        let BlockFile { path, file } = &*newest;
        file.write_all_at(bytes, begin).map_err(EngineError::io("write", path))?;
        file.sync_data().map_err(EngineError::io("sync", path))?;
        usage.len_bytes += bytes.len() as u64;
        let mut handles = Vec::new();
        for (start, at) in blocks {
            let block = &bytes[at.clone()];
            let too_long =
                |_| EngineError::Damaged(format!("a block of {} bytes is too long", block.len()));
            let len = u32::try_from(block.len()).map_err(too_long)?;
            usage.live_bytes += u64::from(len);
            handles.push(BlockHandle {
                file: number,
                offset: begin + at.start as u64,
                len,
                checksum: checksum(start, block),
            });
        }
        Ok((handles, new_file))
    }

    /// Makes the file that is appended to from now on.
    fn create(&mut self) -> Result<Numbered, EngineError> {
        let number = self.next_number;
        self.next_number += 1;
        let path = self.dir.join(format!("{number:016}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(EngineError::io("create", &path))?;
        sync_dir(&self.dir).map_err(EngineError::io("sync", &self.dir))?;
        let file = Arc::new(BlockFile { path, file });
        self.usage.insert(number, Usage::default());
        self.newest = Some((number, Arc::clone(&file)));
        Ok((number, file))
    }

    /// The files without live blocks, to be removed. Nothing is appended to them any more.
    pub(super) fn retire_dead(&mut self) -> Vec<u64> {
        let dead: Vec<u64> = self
            .usage
            .iter()
            .filter(|(_, usage)| usage.live_bytes == 0)
            .map(|(number, _)| *number)
            .collect();
        self.newest.take_if(|(number, _)| dead.contains(number));
        dead
    }

    /// No longer counts a dead file, which the caller removes.
    pub(super) fn forget(&mut self, number: u64) {
        self.usage.remove(&number);
    }

    /// The files to give up next, once what is dead in all of them takes half of what is live; nothing
    /// is appended to them any more.
    ///
    /// ```text
    /// live 100 MB, dead 40 MB: none
    /// live 100 MB, dead 50 MB: those of which a quarter or more is dead, the emptiest first
    /// ```
    /// So at most three bytes are written again for each that is given back. They are as many as may
    /// be written before room comes back: what is dead already waits to be removed first.
    pub(super) fn give_up(&mut self) -> Option<BTreeSet<u64>> {
        let given_up = self.to_give_up()?;
        self.newest.take_if(|(number, _)| given_up.contains(number));
        Some(given_up)
    }

    fn to_give_up(&self) -> Option<BTreeSet<u64>> {
        let (used, unused): (Vec<_>, Vec<_>) =
            self.usage.iter().partition(|(_, usage)| usage.live_bytes > 0);
        let live: u64 = used.iter().map(|(_, usage)| usage.live_bytes).sum();
        let dead: u64 = used.iter().map(|(_, usage)| usage.dead_bytes()).sum();
        let waiting: u64 = unused.iter().map(|(_, usage)| usage.len_bytes).sum();
        if dead < self.limits.waste_min_bytes.max(live / WASTE_PART)
            || waiting >= self.limits.pass_bytes
        {
            return None;
        }
        let is_wasteful =
            |usage: &Usage| usage.dead_bytes() >= usage.len_bytes / WASTEFUL_FILE_PART;
        let mut wasteful: Vec<_> =
            used.into_iter().filter(|(_, usage)| is_wasteful(usage)).collect();
        wasteful.sort_by_key(|(_, usage)| usage.live_bytes);
        let mut bytes = 0;
        let fits = |(_, usage): &(&u64, &Usage)| {
            let is_first = bytes == 0;
            bytes += usage.live_bytes;
            is_first || bytes <= self.limits.pass_bytes
        };
        Some(wasteful.into_iter().take_while(fits).map(|(number, _)| *number).collect())
    }

    /// What all of them take.
    pub(super) fn size_bytes(&self) -> u64 {
        self.usage.values().map(|usage| usage.len_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of each file, and what is live of it.
    type Sizes = &'static [(u64, u64)];

    /// Which of the files, numbered from 1, are to be given up.
    fn to_give_up(files: Sizes) -> Option<Vec<u64>> {
        let usage = |(len_bytes, live_bytes): &(u64, u64)| Usage {
            len_bytes: *len_bytes,
            live_bytes: *live_bytes,
        };
        let files = BlockFiles {
            dir: PathBuf::new(),
            limits: FileLimits { file_bytes: 100, waste_min_bytes: 40, pass_bytes: 200 },
            usage: (1..).zip(files.iter().map(usage)).collect(),
            newest: None,
            next_number: 1,
        };
        files.to_give_up().map(|files| files.into_iter().collect())
    }

    #[test]
    fn files_are_given_up_once_half_as_much_is_dead_as_is_live() {
        let cases: [(Sizes, Option<&[u64]>); 9] = [
            (&[], None),
            (&[(100, 70), (100, 70), (100, 70)], None),
            (&[(100, 66), (100, 66), (100, 66)], Some(&[1, 2, 3])),
            (&[(100, 76), (100, 20), (100, 75)], Some(&[2, 3])),
            // Nothing is to be written again for these.
            (&[(100, 0), (100, 0), (100, 90)], None),
            // However little is live, a little is not worth it.
            (&[(40, 1)], None),
            (&[(41, 1)], Some(&[1])),
            // What is written again has its bounds, and what is dead goes first.
            (&[(200, 100), (300, 150), (200, 110), (100, 80)], Some(&[1])),
            (&[(200, 100), (100, 0), (100, 0)], None),
        ];
        for (files, expected) in cases {
            assert_eq!(to_give_up(files).as_deref(), expected, "{files:?}");
        }
    }

    #[test]
    fn a_handle_is_read_as_it_was_written() {
        let handle = BlockHandle { file: 1, offset: 2, len: 3, checksum: 4 };
        let bytes = handle.encode();
        let expected = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        assert_eq!(bytes, expected);
        assert_eq!(BlockHandle::decode(b"k", &bytes).unwrap(), handle);
        for other in [&bytes[..23], &[&bytes[..], &[0]].concat()] {
            assert!(BlockHandle::decode(b"k", other).is_err());
        }
    }
}
