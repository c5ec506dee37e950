//! The engine on sled 0.34.7, with what its habits ask for.
//!
//! * sled writes a leaf page as one piece, and a piece above a quarter of a segment goes to a blob
//!   file that it never syncs. A page holds up to [`LEAF_ITEMS`] pairs, so a value must stay below
//!   [`MAX_VALUE_BYTES`]; longer ones are split by the caller.
//! * Each pair costs it some ten microseconds and its page a good part of a write, however small it
//!   is: what comes in crowds is packed into [`blocks`].
//! * `flush` only hands the bytes to the kernel, so [`SledEngine::flush`] syncs the file itself.
//! * Its cache looks for what is too much only after 64 accesses to each 256th page, and each page may
//!   be a hundred kilobytes: reading 1 GiB once left 1 GiB in memory. So what is read or written is
//!   accessed again, as often as it is long ([`SledEngine::age_cache`]).
//! * Garbage is collected by the background flusher only, so `flush_every_ms` stays on.
//! * Opening damaged files may panic, and a snapshot file that was being written when the process
//!   died makes it fail: the panic is caught, the leftover removed.

use std::any::Any;
use std::fs::{self, File};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::blocks::{self, Block, Change};
use super::{Engine, EngineError, Visit, WriteBatch};

/// With segments of 8 MiB a million inserts took 1.8 GB of memory, with these 0.3 GB.
const SEGMENT_BYTES: usize = 512 * 1024;

/// The most pairs that a leaf page of sled holds: it splits above 16, and a merge may add 3.
const LEAF_ITEMS: usize = 19;

/// The longest value that [`SledEngine`] should be given.
pub(crate) const MAX_VALUE_BYTES: usize = 6 * 1024;

// A full leaf with keys and framing has to fit in a quarter of a segment.
const _: () = assert!(LEAF_ITEMS * (MAX_VALUE_BYTES + 256) < SEGMENT_BYTES / 4);

/// Recent values are kept by the layer above, so pages need little of it.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// One more access to a page for so much that was read from or written to it. It takes sled a fraction
/// of a microsecond, and 64 of them for a full page of some sixty kilobytes make the cache look.
const BYTES_PER_ACCESS: usize = 1024;

/// After so many bytes of blocks, of which sled makes three times as many, its file is synced, so
/// that a checkpoint two seconds later has no hundred megabytes to sync beside the log.
const SYNC_BYTES: usize = 4 * 1024 * 1024;

/// How often sled writes out its buffers and collects garbage, in milliseconds.
const FLUSH_EVERY_MS: u64 = 500;

/// One sled tree in a directory of its own.
pub(crate) struct SledEngine {
    path: PathBuf,
    db: sled::Db,
    /// No key that stands in a block is above this one. Held while blocks change.
    last_key: Mutex<Vec<u8>>,
    /// Counts the batches that may have moved pairs to another block. Held while one does, so that a
    /// scan does not step over them.
    moves: RwLock<u64>,
    /// What was written in blocks since the file was synced.
    unsynced_bytes: AtomicUsize,
}

/// What a batch does to blocks.
#[derive(Default)]
struct BlockChanges {
    /// Whether pairs may move from one block to another.
    moves: bool,
    /// The blocks that are written: where each starts, and its length.
    written: Vec<(Vec<u8>, usize)>,
}

impl BlockChanges {
    fn write(&mut self, batch: &mut sled::Batch, (start, block): Block) {
        self.written.push((start.clone(), block.len()));
        batch.insert(start, block);
    }
}

/// A block that changes.
struct Touched<'a> {
    /// The key that it is kept under and what it holds; `None` if the changes are before all blocks.
    old: Option<(IVec, IVec)>,
    changes: &'a [Change],
}

impl SledEngine {
    /// Opens the engine in `path`, or starts an empty one there.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
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
        let last_key = match db.range(blocks::FIRST_KEY..).next_back() {
            None => Vec::new(),
            Some(last) => {
                let (_, block) = last?;
                let last = blocks::pairs(&block).last().transpose()?;
                last.map_or(Vec::new(), |(key, _)| key.to_vec())
            }
        };
        Ok(Self {
            path: path.to_owned(),
            db,
            last_key: Mutex::new(last_key),
            moves: RwLock::new(0),
            unsynced_bytes: AtomicUsize::new(0),
        })
    }

    /// How many blocks there are.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.db.range(blocks::FIRST_KEY..).count()
    }

    /// Has on the disk what sled has handed to the kernel.
    fn sync_file(&self) -> Result<(), EngineError> {
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        // An fdatasync by any descriptor covers what sled wrote through its own.
        let file = self.path.join("db");
        File::open(&file).and_then(|file| file.sync_data()).map_err(EngineError::io("sync", &file))
    }

    /// Accesses the page of the block at `start` as often as `bytes` ask for.
    fn age_cache(&self, start: &[u8], bytes: usize) -> Result<(), EngineError> {
        for _ in 0..bytes / BYTES_PER_ACCESS {
            self.db.get(start)?;
        }
        Ok(())
    }

    /// The block in which `key` stands if it is there, and the key that it is kept under.
    fn block_at(&self, key: &[u8]) -> Result<Option<(IVec, IVec)>, EngineError> {
        Ok(self.db.range(blocks::FIRST_KEY..=key).next_back().transpose()?)
    }

    /// Adds what `changes`, in the order of their keys, do to blocks.
    fn change_blocks(
        &self,
        batch: &mut sled::Batch,
        changes: &[Change],
        last_key: &mut Vec<u8>,
    ) -> Result<BlockChanges, EngineError> {
        let (within, beyond) =
            changes.split_at(changes.partition_point(|(key, _)| key <= last_key));
        let mut done = BlockChanges { moves: !within.is_empty(), ..BlockChanges::default() };
        for run in self.touched(within)? {
            let mut pairs = Vec::new();
            for Touched { old, changes } in &run {
                let block = old.as_ref().map_or(&[][..], |(_, block)| block);
                pairs.extend(blocks::merge(block, changes)?);
            }
            let mut pieces = blocks::pack(pairs)?;
            let first = run.first().and_then(|touched| touched.old.as_ref());
            if let (Some((start, _)), Some((key, _))) = (first, pieces.first_mut()) {
                *key = start.to_vec();
            }
            for (start, _) in run.iter().filter_map(|touched| touched.old.as_ref()) {
                batch.remove(start);
            }
            // Of two operations on one key the later one wins.
            pieces.into_iter().for_each(|block| done.write(batch, block));
        }
        let added = beyond.iter().filter_map(|(key, value)| Some((&**key, value.as_deref()?)));
        blocks::pack(added)?.into_iter().for_each(|block| done.write(batch, block));
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
            let old = self.block_at(key)?;
            let next = self.db.get_gt(key)?.map(|(next, _)| next);
            let end = next.as_ref().map_or(changes.len(), |next| {
                changes.partition_point(|(key, _)| key.as_slice() < &**next)
            });
            let (here, later) = changes.split_at(end);
            changes = later;
            let is_neighbour =
                old.as_ref().is_some_and(|(start, _)| neighbour.as_ref() == Some(start));
            let touched = Touched { old, changes: here };
            match runs.last_mut() {
                Some(run) if is_neighbour => run.push(touched),
                _ => runs.push(vec![touched]),
            }
            neighbour = next;
        }
        Ok(runs)
    }

    fn scan_blocks(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        // Where to go on. A block whose pairs have moved meanwhile would show some of them again.
        let mut next = range.start.to_vec();
        let mut at_moves = None;
        let mut blocks = self.db.range(range.clone());
        loop {
            let block = {
                let moves = self.moves.read();
                if at_moves != Some(*moves) {
                    at_moves = Some(*moves);
                    let first = self.block_at(&next)?;
                    let first = first.as_ref().map_or(next.as_slice(), |(start, _)| start);
                    blocks = self.db.range(first..range.end);
                }
                blocks.next()
            };
            let Some(block) = block else { return Ok(()) };
            let (start, block) = block?;
            self.age_cache(&start, block.len())?;
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

impl std::fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SledEngine({})", self.path.display())
    }
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
        let Some((start, block)) = self.block_at(key)? else { return Ok(None) };
        self.age_cache(&start, block.len())?;
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
        let mut last_key = self.last_key.lock();
        let done = self.change_blocks(&mut sled_batch, &changes, &mut last_key)?;
        let mut moves = done.moves.then(|| self.moves.write());
        self.db.apply_batch(sled_batch)?;
        if let Some(moves) = &mut moves {
            **moves += 1;
        }
        drop((moves, last_key));
        let mut written_bytes = 0;
        for (start, bytes) in &done.written {
            self.age_cache(start, *bytes)?;
            written_bytes += bytes;
        }
        if self.unsynced_bytes.fetch_add(written_bytes, Ordering::Relaxed) >= SYNC_BYTES {
            self.sync_file()?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.db.flush()?;
        self.sync_file()?;
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(EngineError::io("sync", &self.path))
    }

    fn size_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.db.size_on_disk()?)
    }
}
