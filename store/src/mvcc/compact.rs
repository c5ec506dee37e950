//! Removing what a compaction made invisible, in the background and in small steps.
//!
//! The index says which keys were overwritten or deleted and which of their records nobody can see any
//! more, so neither it nor the engine is searched. These records leave the index at once and count as
//! [`Garbage`] until they leave the engine, which takes place when it is worth it or somebody waits for
//! it. A record goes only once the engine itself has the compaction's mark: then it also has every
//! write up to it, and a crash cannot bring back a value whose deletion was forgotten. Room in
//! the engine's files that is only partly used then is given back last.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::garbage::Garbage;
use super::pending::put_records;
use super::revision::NEVER_COMPACTED;
use super::{EngineWork, Mvcc, Shared};
use crate::engine::{EngineError, WriteBatch};

/// How many keys are looked at in one step, under the lock, which each write takes twice.
const STEP_KEYS: usize = 128;

/// How many versions leave the index in one step, under the lock.
const STEP_VERSIONS: usize = 4096;

/// How many records leave the engine in one step, which ends with a sync. At worst each of them is in
/// another block, which is some 4 MB to be written.
const STEP_RECORDS: usize = 512;
/// No more than this either: the blocks that they stand in are in memory meanwhile.
const STEP_BYTES: u64 = 2 << 20;

/// Where the removal stands.
#[derive(Debug)]
pub(super) struct Progress {
    /// Everything invisible since this revision has left the index, as far as this process knows.
    done: i64,
    /// The revision up to which something leaves the index now, and how many keys are still to be
    /// looked at.
    current: Option<(i64, usize)>,
    /// What still has to leave the engine.
    pub(super) garbage: Garbage,
    /// It is leaving.
    is_removing: bool,
}

impl Default for Progress {
    /// A crash may have left something behind that was invisible before.
    fn default() -> Self {
        Self {
            done: NEVER_COMPACTED,
            current: None,
            garbage: Garbage::default(),
            is_removing: false,
        }
    }
}

/// What a step of the background removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompactStep {
    /// There is nothing to remove, or not enough that it is worth it.
    Idle,
    /// Somebody reads all of it, a snapshot for example; to be tried again later.
    Paused,
    /// A part was removed; call again.
    More,
}

impl Mvcc {
    /// Removes some of what nobody can see any more. Blocks on the disk, for some ten milliseconds.
    /// Between two calls writes should be given time to take the state's lock.
    pub(crate) fn compact_step(&self) -> Result<CompactStep, EngineError> {
        let mut work = self.shared.engine_work.lock();
        if self.shared.pauses.load(Ordering::Acquire) > 0 {
            return Ok(CompactStep::Paused);
        }
        let is_wanted =
            self.shared.removal_wanted.load(Ordering::Acquire) > *self.shared.removed.borrow();
        let Progress { garbage, is_removing, .. } = &mut work.compaction;
        *is_removing |= garbage.is_full();
        if *is_removing {
            self.shared.remove_garbage(&mut work)?;
            return Ok(CompactStep::More);
        }
        if self.shared.examine_keys(&mut work) {
            return Ok(CompactStep::More);
        }
        let Progress { done, garbage, is_removing, .. } = &mut work.compaction;
        if garbage.is_empty() {
            self.shared.note_removed(*done);
        } else {
            *is_removing = is_wanted || garbage.is_worthwhile(self.in_use_bytes());
        }
        let engine = Arc::clone(&self.shared.state.read().engine);
        Ok(if *is_removing || engine.reclaim()? { CompactStep::More } else { CompactStep::Idle })
    }

    /// Has the records of a compaction at `revision` leave the engine even if that is not worth it.
    pub(crate) fn want_removal(&self, revision: i64) {
        self.shared.removal_wanted.fetch_max(revision, Ordering::AcqRel);
    }

    /// Returns once everything that a compaction at `revision` made invisible is removed from the
    /// engine, and sees to it that it is.
    pub(crate) async fn removed(&self, revision: i64) {
        self.want_removal(revision);
        let mut removed = self.shared.removed.subscribe();
        removed
            .wait_for(|removed| *removed >= revision)
            .await
            .expect("the sender lives as long as this handle");
    }

    /// Nothing is removed while the guard lives. Waits for a step that is under way.
    pub(super) fn pause_compaction(&self) -> CompactionPause {
        let _work = self.shared.engine_work.lock();
        self.shared.pauses.fetch_add(1, Ordering::AcqRel);
        CompactionPause { shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    /// Takes out of the index what some keys no longer need. False if there is nothing to be looked
    /// at.
    fn examine_keys(&self, work: &mut EngineWork) -> bool {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let progress = &mut work.compaction;
        let (target, keys_left) = match progress.current.take() {
            Some(current) => current,
            None if progress.done < state.persisted.compacted => {
                (state.persisted.compacted, state.index.reducible_keys())
            }
            None => return false,
        };
        let removed = state.index.compact(target, keys_left, STEP_KEYS, STEP_VERSIONS);
        progress.garbage.add(&removed.versions);
        state.garbage = progress.garbage.len();
        self.note_size(state);
        match removed.keys_left {
            0 => progress.done = target,
            keys_left => progress.current = Some((target, keys_left)),
        }
        true
    }

    /// Takes some of the garbage, the oldest, out of the engine.
    fn remove_garbage(&self, work: &mut EngineWork) -> Result<(), EngineError> {
        let engine = Arc::clone(&self.state.read().engine);
        let mut batch = WriteBatch::default();
        let progress = &mut work.compaction;
        let left =
            work.records - progress.garbage.take_oldest(STEP_RECORDS, STEP_BYTES, &mut batch);
        put_records(&mut batch, left);
        engine.write(batch)?;
        work.records = left;
        self.state.write().garbage = progress.garbage.len();
        if progress.garbage.is_empty() {
            progress.is_removing = false;
            self.note_removed(progress.done);
        }
        Ok(())
    }

    fn note_removed(&self, revision: i64) {
        self.removed.send_if_modified(|removed| std::mem::replace(removed, revision) != revision);
    }
}

/// Keeps every record where it is.
#[must_use]
pub(super) struct CompactionPause {
    shared: Arc<Shared>,
}

impl Drop for CompactionPause {
    fn drop(&mut self) {
        self.shared.pauses.fetch_sub(1, Ordering::AcqRel);
    }
}
