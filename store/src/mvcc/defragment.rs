//! Moving the state into a fresh engine, so that its files shrink to what it holds.
//!
//! Everything goes on meanwhile. The records are copied in their order while the old engine takes
//! new ones behind them; when little is left, write-behind stands still for the last of them and for
//! what changes in place (applied entry, leases, …), and the fresh engine takes over. Who reads from
//! the old one reads on: it has all that was in it at that moment. A crash finds either the old one
//! behind `CURRENT` or the new one, whole and durable.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::garbage::Garbage;
use super::keys::{self, Key};
use super::pending::put_records;
use super::revision::Revision;
use super::{Mvcc, open};
use crate::engine::{Engine, EngineError, WriteBatch};

/// How much is copied at once.
const STEP_BYTES: usize = 1 << 20;
/// A pass that copied no more than this was short, and so is the last one, in which write-behind
/// stands still.
const SHORT_PASS_BYTES: usize = 4 << 20;
/// With writers faster than the copy it stands still for more.
const MAX_PASSES: usize = 10;

/// What became of moving the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// The fresh engine is in use.
    Done,
    /// A snapshot from the leader came in between: it is in a fresh engine of its own.
    Replaced,
    /// The member is stopping.
    Stopped,
}

impl Mvcc {
    /// Copies everything into `fresh`, which must be empty, makes it durable, calls `commit` for what
    /// makes it the engine to be opened next time, and has it take over. `commit` says false when
    /// another one is about to take over. Blocks on the disk, for long. Unless it returns
    /// [`Moved::Done`] nothing has changed.
    ///
    /// # Errors
    ///
    /// One of the engines failed, or the old one has fewer records than it should.
    pub(crate) fn move_to(
        &self,
        fresh: Arc<dyn Engine>,
        is_stopping: impl Fn() -> bool,
        commit: impl FnOnce() -> Result<bool, EngineError>,
    ) -> Result<Moved, EngineError> {
        let _pause = self.pause_compaction();
        let (source, epoch) = {
            let state = self.shared.state.read();
            (Arc::clone(&state.engine), state.epoch)
        };
        // It stays as it is while compaction pauses.
        let garbage = {
            let mut work = self.shared.engine_work.lock();
            work.compaction.garbage.sort();
            work.compaction.garbage.clone()
        };
        let mut copy = Copy {
            source: &*source,
            fresh: &*fresh,
            garbage: &garbage,
            next: Revision::first_of(0),
            records: 0,
            bytes: 0,
        };
        for _ in 0..MAX_PASSES {
            let end = self.shared.state.read().persisted.revision + 1;
            let before_bytes = copy.bytes;
            if copy.records_up_to(end, &|| is_stopping() || self.is_replaced(epoch))?
                == Copied::Cancelled
            {
                return Ok(if is_stopping() { Moved::Stopped } else { Moved::Replaced });
            }
            if copy.bytes - before_bytes <= SHORT_PASS_BYTES {
                break;
            }
        }
        // So that little is left to be made durable later.
        fresh.flush()?;

        let mut work = self.shared.engine_work.lock();
        if self.is_replaced(epoch) {
            return Ok(Moved::Replaced);
        }
        let end = self.shared.state.read().persisted.revision + 1;
        copy.records_up_to(end, &|| false)?;
        let expected = work.records - garbage.len();
        if copy.records != expected {
            let text = format!("it has {} records instead of {expected}", copy.records);
            return Err(EngineError::Damaged(text));
        }
        let (start, end) = keys::state_bounds();
        copy.range(&start, &end, &|| false)?;
        let mut batch = WriteBatch::default();
        put_records(&mut batch, expected);
        fresh.write(batch)?;
        open::check_format(&*fresh)?;
        fresh.flush()?;
        if !commit()? {
            return Ok(Moved::Replaced);
        }
        work.records = expected;
        work.compaction.garbage = Garbage::default();
        let mut state = self.shared.state.write();
        state.engine = fresh;
        state.garbage = 0;
        Ok(Moved::Done)
    }

    fn is_replaced(&self, epoch: u64) -> bool {
        self.shared.state.read().epoch != epoch
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    All,
    Cancelled,
}

struct Copy<'a> {
    source: &'a dyn Engine,
    fresh: &'a dyn Engine,
    /// What is left behind.
    garbage: &'a Garbage,
    /// Where to go on.
    next: Revision,
    /// How many records were copied.
    records: usize,
    /// How many bytes.
    bytes: usize,
}

impl Copy<'_> {
    fn records_up_to(
        &mut self,
        end: i64,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Copied, EngineError> {
        let (start, stop) = keys::record_bounds(self.next, end);
        self.next = Revision::first_of(end);
        self.range(&start, &stop, is_cancelled)
    }

    /// Copies the pairs of a range as they are, in steps, without the garbage.
    fn range(
        &mut self,
        start: &[u8],
        end: &[u8],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Copied, EngineError> {
        let mut from = start.to_vec();
        loop {
            if is_cancelled() {
                return Ok(Copied::Cancelled);
            }
            let mut batch = WriteBatch::default();
            let mut last = None;
            self.source.scan(&from..end, &mut |key, value| {
                if let Some(Key::Record(revision)) = Key::decode(key) {
                    if self.garbage.contains(revision) {
                        return ControlFlow::Continue(());
                    }
                    self.records += 1;
                }
                batch.put(key.to_vec(), value.to_vec());
                if batch.bytes() < STEP_BYTES {
                    return ControlFlow::Continue(());
                }
                last = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
            self.bytes += batch.bytes();
            if !batch.is_empty() {
                self.fresh.write(batch)?;
            }
            // The next key after one is that with a zero byte behind.
            let Some(mut last) = last else { return Ok(Copied::All) };
            last.push(0);
            from = last;
        }
    }
}
