//! Removing what a compaction made invisible, in the background and in small steps.
//!
//! The index says which records nobody can see any more, so the engine is never searched. A record
//! goes only once the engine itself has the compaction's mark: then it also has every write up to
//! it, and a crash cannot bring back a value whose deletion was forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::pending::put_records;
use super::revision::NEVER_COMPACTED;
use super::{Mvcc, Shared, records};
use crate::engine::{EngineError, WriteBatch};

/// How many keys are examined in one step, under the lock.
const STEP_KEYS: usize = 2048;

/// How many records are removed in one step: sled takes about 10 ms for that.
const STEP_RECORDS: usize = 1000;

/// Where the removal stands.
#[derive(Debug)]
pub(super) struct Progress {
    /// Everything invisible since this revision is removed, as far as this process knows.
    done: i64,
    /// What is being removed now, and where to go on.
    current: Option<(i64, Option<Bytes>)>,
}

impl Default for Progress {
    /// A crash may have left something behind, so the first pass of a process looks at all.
    fn default() -> Self {
        Self { done: NEVER_COMPACTED, current: None }
    }
}

/// What a step of the background removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompactStep {
    /// There is nothing to remove.
    Idle,
    /// Somebody reads all of it, a snapshot for example; to be tried again later.
    Paused,
    /// A part was removed; call again.
    More,
}

impl Mvcc {
    /// Removes some of what nobody can see any more. Blocks on the disk, for some ten milliseconds.
    pub(crate) fn compact_step(&self) -> Result<CompactStep, EngineError> {
        let mut work = self.shared.engine_work.lock();
        if self.shared.pauses.load(Ordering::Acquire) > 0 {
            return Ok(CompactStep::Paused);
        }
        let mut guard = self.shared.state.write();
        let state = &mut *guard;
        let progress = &mut work.compaction;
        let (target, from) = match progress.current.take() {
            Some(current) => current,
            None if progress.done < state.persisted.compacted => (state.persisted.compacted, None),
            None => return Ok(CompactStep::Idle),
        };
        let removed = state.index.compact(target, from.as_ref(), STEP_KEYS, STEP_RECORDS);
        self.shared.note_size(state);
        let engine = Arc::clone(&state.engine);
        drop(guard);

        let mut batch = WriteBatch::default();
        for version in &removed.versions {
            records::delete(&mut batch, version.revision(), version.extent.parts);
        }
        if !batch.is_empty() {
            let left = work.records - removed.versions.len();
            put_records(&mut batch, left);
            engine.write(batch)?;
            work.records = left;
        }
        let progress = &mut work.compaction;
        match removed.next_key {
            Some(key) => progress.current = Some((target, Some(key))),
            None => {
                progress.done = target;
                self.shared.removed.send_replace(target);
            }
        }
        Ok(CompactStep::More)
    }

    /// Returns once everything that a compaction at `revision` made invisible is removed from the
    /// engine.
    pub(crate) async fn removed(&self, revision: i64) {
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
