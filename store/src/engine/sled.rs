//! The engine: sled 0.34.7, with what its habits ask for, and beside it the files of its blocks.
//!
//! Keys below [`blocks::FIRST_KEY`], which are few and change in place, stand in sled with their
//! values. All others stand in [`blocks`], which lie in [files of their own](super::block_files).
//! sled is the index of these: it maps the key that a block is kept under to the block's handle. The
//! handles of a whole batch change at once, together with the keys of the first kind.
//!
//! ```text
//! sled:    04 -> 00 00 00 00 00 00 00 0b          blocks/0000000000000001
//!          10 00 07 -> file 1, from 0 on    --->  [10 00 07: …][10 00 08: …][10 00 09: …]
//!          10 00 0a -> file 1, from 96 on   --->  [10 00 0a: …][10 00 0b: …]
//! ```
//! Values in sled itself would be written four to five times each until they lie where they stay, and
//! take nearly twice their length there.
//!
//! * sled hands a batch to the kernel when the next one comes, so blocks are on the disk before sled
//!   hears of them: it may forget a handle, but never has one of a block that is not there.
//! * `flush` of sled only hands the bytes to the kernel, so [`SledEngine::flush`] syncs the file itself.
//! * sled writes a leaf page as one piece, and a piece above a quarter of a segment goes to a blob
//!   file that it never syncs: its values have to be short.
//! * Garbage is collected by the background flusher only, so `flush_every_ms` stays on.
//! * Opening damaged files may panic, and a snapshot file that was being written when the process
//!   died makes it fail: the panic is caught, the leftover removed.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::block_files::{BlockFile, BlockFiles, BlockHandle, FileLimits};
use super::blocks::{self, Change, Packed};
use super::{Engine, EngineError, Visit, WriteBatch};
use crate::sync_dir::sync_dir;

/// Where sled keeps its tree.
const INDEX_FILE: &str = "db";

/// The directory of the files with blocks, beside sled's.
const BLOCKS_DIR: &str = "blocks";

/// With segments of 8 MiB a million inserts took 1.8 GB of memory, with these 0.3 GB.
const SEGMENT_BYTES: usize = 512 * 1024;

/// For sled's pages. Recent values are kept by the layer above.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// How often sled collects garbage, in milliseconds, and syncs its file beside our checkpoints.
const FLUSH_EVERY_MS: u64 = 10_000;

/// How much is written again at once to give up files.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepLimits {
    pub(super) bytes: usize,
    /// At so many blocks it looks.
    pub(super) blocks: usize,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self { bytes: 1 << 20, blocks: 4096 }
    }
}

/// One sled tree in a directory of its own, and the files of its blocks.
pub(crate) struct SledEngine {
    path: PathBuf,
    db: sled::Db,
    /// Open all the time, so that no error of writing it back goes unnoticed.
    index_file: File,
    step: StepLimits,
    /// Held while blocks change; taken before `layout`.
    writer: Mutex<Writer>,
    /// Held for reading from looking up a block's handle until its file is at hand, and for writing
    /// while a batch may move pairs or the set of files changes.
    layout: RwLock<Layout>,
    /// What the files of the blocks take.
    blocks_bytes: AtomicU64,
}

struct Writer {
    /// No key that stands in a block is above this one.
    last_key: Vec<u8>,
    files: BlockFiles,
    /// What [`SledEngine::reclaim`] is about, if anything.
    pass: Option<Pass>,
}

struct Layout {
    /// Counts the batches that may have moved pairs to another block, so that a scan does not step
    /// over them.
    moves: u64,
    /// Every file that a handle in sled may lead to.
    files: BTreeMap<u64, Arc<BlockFile>>,
}

/// A walk over all blocks that writes again what is live in some files.
struct Pass {
    files: BTreeSet<u64>,
    /// Where to go on.
    next: Vec<u8>,
}

/// A block, with its handle and the key that it is kept under.
struct Block {
    start: IVec,
    handle: BlockHandle,
    bytes: Vec<u8>,
}

/// What a batch does to blocks.
#[derive(Default)]
struct BlockChanges {
    /// Whether pairs may move from one block to another.
    moves: bool,
    removed: Vec<(IVec, BlockHandle)>,
    added: Packed,
}

impl BlockChanges {
    /// Packs the blocks of a run of neighbours anew, with their changes.
    fn repack(&mut self, run: &[Touched<'_>]) -> Result<(), EngineError> {
        let mut pairs = Vec::new();
        for Touched { old, changes } in run {
            let block = old.as_ref().map_or(&[][..], |block| &block.bytes);
            pairs.extend(blocks::merge(block, changes)?);
        }
        let start = run.first().and_then(|touched| touched.old.as_ref()).map(|old| &*old.start);
        self.added.pack(start, pairs)?;
        let old = run.iter().filter_map(|touched| touched.old.as_ref());
        self.removed.extend(old.map(|block| (block.start.clone(), block.handle)));
        Ok(())
    }
}

/// A block that changes.
struct Touched<'a> {
    /// `None` if the changes are before all blocks.
    old: Option<Block>,
    changes: &'a [Change],
}

impl SledEngine {
    /// Opens the engine in `path`, or starts an empty one there.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        Self::open_with(path, FileLimits::default(), StepLimits::default())
    }

    pub(super) fn open_with(
        path: &Path,
        limits: FileLimits,
        step: StepLimits,
    ) -> Result<Self, EngineError> {
        fs::create_dir_all(path).map_err(EngineError::io("create", path))?;
        remove_unfinished_snapshots(path)?;
        let config = sled::Config::new()
            .path(path)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = panic::catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|panic| {
            EngineError::Panicked { path: path.to_owned(), message: panic_message(&*panic) }
        })??;
        let index_file = path.join(INDEX_FILE);
        let index_file = File::open(&index_file).map_err(EngineError::io("open", &index_file))?;
        let (mut files, open_files) = BlockFiles::open(path.join(BLOCKS_DIR), limits)?;
        let mut last = None;
        for found in db.range(blocks::FIRST_KEY..) {
            let (start, handle) = decode(found)?;
            files.count_in(&handle)?;
            last = Some((start, handle));
        }
        let engine = Self {
            path: path.to_owned(),
            db,
            index_file,
            step,
            layout: RwLock::new(Layout { moves: 0, files: open_files }),
            blocks_bytes: AtomicU64::new(files.size_bytes()),
            writer: Mutex::new(Writer { last_key: Vec::new(), files, pass: None }),
        };
        if let Some((start, handle)) = last {
            let block = engine.read(start, handle)?;
            if let Some(pair) = blocks::pairs(&block.bytes).last() {
                engine.writer.lock().last_key = pair?.0.to_vec();
            }
        }
        Ok(engine)
    }

    /// How many blocks there are.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.db.range(blocks::FIRST_KEY..).count()
    }

    /// Has on the disk what sled has handed to the kernel, and that there are such files at all.
    fn sync_index(&self) -> Result<(), EngineError> {
        // An fdatasync by any descriptor covers what sled wrote through its own.
        self.index_file
            .sync_data()
            .map_err(EngineError::io("sync", &self.path.join(INDEX_FILE)))?;
        sync_dir(&self.path).map_err(EngineError::io("sync", &self.path))
    }

    /// The key that the block is kept under in which `key` stands if it is there, and the block's
    /// handle.
    fn handle_of(&self, key: &[u8]) -> Result<Option<(IVec, BlockHandle)>, EngineError> {
        self.db.range(blocks::FIRST_KEY..=key).next_back().map(decode).transpose()
    }

    fn read(&self, start: IVec, handle: BlockHandle) -> Result<Block, EngineError> {
        let file = self.layout.read().file(&handle)?;
        let mut bytes = Vec::new();
        file.read(&start, &handle, &mut bytes)?;
        Ok(Block { start, handle, bytes })
    }

    /// What `changes`, in the order of their keys, do to blocks.
    fn change_blocks(
        &self,
        changes: &[Change],
        last_key: &mut Vec<u8>,
    ) -> Result<BlockChanges, EngineError> {
        let (within, beyond) =
            changes.split_at(changes.partition_point(|(key, _)| key <= last_key));
        let mut done = BlockChanges { moves: !within.is_empty(), ..BlockChanges::default() };
        for run in self.touched(within)? {
            done.repack(&run)?;
        }
        let added = beyond.iter().filter_map(|(key, value)| Some((&**key, value.as_deref()?)));
        done.added.pack(None, added)?;
        if let Some((key, _)) = beyond.last() {
            last_key.clone_from(key);
        }
        Ok(done)
    }

    /// The blocks that `changes` fall into, in runs of neighbours.
    fn touched<'a>(&self, mut changes: &'a [Change]) -> Result<Vec<Vec<Touched<'a>>>, EngineError> {
        let mut runs: Vec<Vec<Touched<'a>>> = Vec::new();
        let mut neighbour: Option<IVec> = None;
        while let Some((key, _)) = changes.first() {
            let old = self.handle_of(key)?;
            let next = self.db.get_gt(key)?.map(|(next, _)| next);
            let end = next.as_ref().map_or(changes.len(), |next| {
                changes.partition_point(|(key, _)| key.as_slice() < &**next)
            });
            let (here, later) = changes.split_at(end);
            changes = later;
            let is_neighbour =
                old.as_ref().is_some_and(|(start, _)| neighbour.as_ref() == Some(start));
            let old = old.map(|(start, handle)| self.read(start, handle)).transpose()?;
            let touched = Touched { old, changes: here };
            match runs.last_mut() {
                Some(run) if is_neighbour => run.push(touched),
                _ => runs.push(vec![touched]),
            }
            neighbour = next;
        }
        Ok(runs)
    }

    /// Writes the new blocks to their file, and their handles to sled instead of those before, along
    /// with the rest of `batch`.
    fn carry_out(
        &self,
        files: &mut BlockFiles,
        mut batch: sled::Batch,
        changes: &BlockChanges,
    ) -> Result<(), EngineError> {
        for (start, _) in &changes.removed {
            batch.remove(start);
        }
        let added = &changes.added;
        if !added.bytes().is_empty() {
            let (handles, new_file) = files.append(added.bytes(), added.blocks())?;
            if let Some((number, file)) = new_file {
                self.layout.write().files.insert(number, file);
            }
            self.blocks_bytes.store(files.size_bytes(), Ordering::Relaxed);
            for ((start, _), handle) in added.blocks().zip(handles) {
                // Of two operations on one key the later one wins.
                batch.insert(start, &handle.encode());
            }
        }
        let mut layout = changes.moves.then(|| self.layout.write());
        self.db.apply_batch(batch)?;
        if let Some(layout) = &mut layout {
            layout.moves += 1;
        }
        drop(layout);
        for (_, handle) in &changes.removed {
            files.count_out(handle);
        }
        Ok(())
    }

    fn scan_blocks(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        // Where to go on. A block whose pairs have moved meanwhile would show some of them again.
        let mut next = range.start.to_vec();
        let mut at_moves = None;
        let mut blocks = self.db.range(range.clone());
        let mut block = Vec::new();
        loop {
            let (start, handle, file) = {
                let layout = self.layout.read();
                if at_moves != Some(layout.moves) {
                    at_moves = Some(layout.moves);
                    let first = self.handle_of(&next)?;
                    let first = first.as_ref().map_or(next.as_slice(), |(start, _)| start);
                    blocks = self.db.range(first..range.end);
                }
                let Some(found) = blocks.next() else { return Ok(()) };
                let (start, handle) = decode(found)?;
                (start, handle, layout.file(&handle)?)
            };
            // No lock is held while it is read and shown.
            file.read(&start, &handle, &mut block)?;
            let mut last = None;
            for pair in blocks::pairs(&block) {
                let (key, value) = pair?;
                if key >= range.end {
                    return Ok(());
                }
                if key >= next.as_slice() {
                    if visit(key, value).is_break() {
                        return Ok(());
                    }
                    last = Some(key);
                }
            }
            if let Some(last) = last {
                // The key right behind it.
                next.clear();
                next.extend_from_slice(last);
                next.push(0);
            }
        }
    }
}

impl Layout {
    fn file(&self, handle: &BlockHandle) -> Result<Arc<BlockFile>, EngineError> {
        self.files.get(&handle.file).cloned().ok_or_else(|| handle.without_file())
    }
}

impl std::fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SledEngine({})", self.path.display())
    }
}

/// The key that a block is kept under, and its handle, as sled has found them.
fn decode(found: sled::Result<(IVec, IVec)>) -> Result<(IVec, BlockHandle), EngineError> {
    let (start, handle) = found?;
    let handle = BlockHandle::decode(&start, &handle)?;
    Ok((start, handle))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// sled writes `snap.<lsn>.generating` and renames it; one that is left over makes it fail.
fn remove_unfinished_snapshots(path: &Path) -> Result<(), EngineError> {
    for file in fs::read_dir(path).map_err(EngineError::io("list", path))? {
        let file = file.map_err(EngineError::io("list", path))?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(file.path()).map_err(EngineError::io("remove", &file.path()))?;
        }
    }
    Ok(())
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if !blocks::holds(key) {
            return Ok(self.db.get(key)?.map(|value| Bytes::copy_from_slice(&value)));
        }
        let (start, handle, file) = {
            let layout = self.layout.read();
            let Some((start, handle)) = self.handle_of(key)? else { return Ok(None) };
            (start, handle, layout.file(&handle)?)
        };
        let mut block = Vec::new();
        file.read(&start, &handle, &mut block)?;
        Ok(blocks::find(&block, key)?.map(Bytes::copy_from_slice))
    }

    fn scan(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        if range.start < range.end.min(blocks::FIRST_KEY) {
            for pair in self.db.range(range.start..range.end.min(blocks::FIRST_KEY)) {
                let (key, value) = pair?;
                if visit(&key, &value).is_break() {
                    return Ok(());
                }
            }
        }
        if range.start.max(blocks::FIRST_KEY) < range.end {
            self.scan_blocks(range.start.max(blocks::FIRST_KEY)..range.end, visit)?;
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let mut sled_batch = sled::Batch::default();
        let mut changes = Vec::new();
        for (key, value) in batch.operations {
            match value {
                value if blocks::holds(&key) => changes.push((key, value)),
                Some(value) => sled_batch.insert(key, value),
                None => sled_batch.remove(key),
            }
        }
        if !changes.is_sorted_by(|(before, _), (after, _)| before < after) {
            // Of the changes of one key the last is the first then, and stays.
            changes.reverse();
            changes.sort_by(|(a, _), (b, _)| a.cmp(b));
            changes.dedup_by(|(later, _), (kept, _)| later == kept);
        }
        let mut writer = self.writer.lock();
        let done = self.change_blocks(&changes, &mut writer.last_key)?;
        self.carry_out(&mut writer.files, sled_batch, &done)
    }

    fn flush(&self) -> Result<(), EngineError> {
        let dead = self.writer.lock().files.retire_dead();
        self.db.flush()?;
        self.sync_index()?;
        // From here on no crash brings back a handle that leads to them.
        let mut removed = Vec::new();
        {
            let mut writer = self.writer.lock();
            let mut layout = self.layout.write();
            for number in dead {
                // Another flush may have been faster.
                if let Some(file) = layout.files.remove(&number) {
                    writer.files.forget(number);
                    removed.push(file);
                }
            }
            self.blocks_bytes.store(writer.files.size_bytes(), Ordering::Relaxed);
        }
        for file in removed {
            // It is tried again when the engine is opened.
            if let Err(error) = file.remove() {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a file without use stays");
            }
        }
        Ok(())
    }

    fn reclaim(&self) -> Result<bool, EngineError> {
        let mut writer = self.writer.lock();
        let Writer { files, pass, .. } = &mut *writer;
        let Some(Pass { files: given_up, next }) = pass else {
            let Some(given_up) = files.give_up() else { return Ok(false) };
            *pass = Some(Pass { files: given_up, next: blocks::FIRST_KEY.to_vec() });
            return Ok(true);
        };
        let mut done = BlockChanges { moves: true, ..BlockChanges::default() };
        let (mut run, mut bytes, mut is_last) = (Vec::new(), 0, true);
        for (looked_at, found) in self.db.range(next.as_slice()..).enumerate() {
            let (start, handle) = decode(found)?;
            if looked_at == self.step.blocks || bytes >= self.step.bytes {
                *next = start.to_vec();
                is_last = false;
                break;
            }
            if given_up.contains(&handle.file) {
                bytes += handle.len();
                run.push(Touched { old: Some(self.read(start, handle)?), changes: &[] });
            } else {
                done.repack(&run)?;
                run.clear();
            }
        }
        done.repack(&run)?;
        if is_last {
            *pass = None;
        }
        if !done.removed.is_empty() {
            self.carry_out(files, sled::Batch::default(), &done)?;
        }
        Ok(true)
    }

    fn size_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.db.size_on_disk()? + self.blocks_bytes.load(Ordering::Relaxed))
    }
}
