//! What happened, for watches: whole revisions in order, and what a key held at one of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use store_proto::mvccpb::KeyValue;

use super::index::{NextChanges, Version};
use super::key_range::KeyRange;
use super::revision::{EMPTY_REVISION, Revision, RevisionEvents, event_size_bytes, kv_of};
use super::{Mvcc, State, records};
use crate::engine::{Engine, EngineError};

/// A range of so many keys at most is looked up in the index to tell when it changed.
const NARROW_KEYS: usize = 256;

/// Why there is no history from a revision on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// It was compacted away.
    #[error("the history begins at revision {compact_revision}")]
    Compacted {
        /// The first revision that can still be had.
        compact_revision: i64,
    },
    /// Ends the process.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

type History = Vec<Arc<RevisionEvents>>;

impl Mvcc {
    /// The revisions from `from_revision` on, in order and without a gap: as many as fit into
    /// `max_bytes`, at least one if there is one. Empty when `from_revision` is in the future.
    /// Blocks on the disk for what is not in memory.
    pub(crate) fn history(
        &self,
        from_revision: i64,
        max_bytes: usize,
    ) -> Result<History, HistoryError> {
        // Nothing happened before the first write.
        let mut from = from_revision.max(EMPTY_REVISION + 1);
        loop {
            let (engine, epoch, window_first) = {
                let state = self.shared.state.read();
                state.check_history(from_revision)?;
                if let Some(history) = state.history(from, max_bytes) {
                    return history;
                }
                (Arc::clone(&state.engine), state.epoch, state.window.first())
            };
            let history = read_history(&*engine, from, window_first, max_bytes)?;
            let state = self.shared.state.read();
            if state.epoch != epoch {
                continue;
            }
            // Records go only after the mark, so what was read before this line was all there.
            state.check_history(from_revision)?;
            // Of the compacted revision itself there may be nothing: then it goes on behind it.
            let complete_from = from.max(state.compacted + 1);
            let complete = history.iter().skip_while(|made| made.revision < complete_from);
            let is_gapless =
                (complete_from..).zip(complete).all(|(main, made)| made.revision == main);
            if is_gapless && history.is_empty() && from < complete_from {
                from = complete_from;
                continue;
            }
            if history.is_empty() || !is_gapless {
                let text = format!("the history from revision {from} on has a gap");
                return Err(EngineError::Damaged(text).into());
            }
            return Ok(history);
        }
    }

    /// The same from memory alone: `None` when the disk would be needed.
    pub(crate) fn try_history(
        &self,
        from_revision: i64,
        max_bytes: usize,
    ) -> Option<Result<History, HistoryError>> {
        self.shared.state.read().history(from_revision, max_bytes)
    }

    /// When a key of `range` was written next, from `from` on. `None` when that is not told at once: of
    /// a range of many keys, or of what is compacted.
    pub(crate) fn next_changes(&self, range: &KeyRange, from: i64) -> Option<NextChanges> {
        let state = self.shared.state.read();
        if from < state.compacted {
            return None;
        }
        state.index.next_changes(range, from, NARROW_KEYS)
    }

    /// What `key` held at `revision`: `None` if nothing, or if that is compacted. For an event's
    /// `prev_kv` the revision before the event's. Blocks on the disk for what is not in memory.
    pub(crate) fn value_at(
        &self,
        key: &[u8],
        revision: i64,
    ) -> Result<Option<KeyValue>, EngineError> {
        loop {
            let (engine, epoch, version) = {
                let state = self.shared.state.read();
                let Some(version) = state.version_at(key, revision) else { return Ok(None) };
                if let Some(event) = state.window.event(version.revision()) {
                    return Ok(Some(kv_of(event).clone()));
                }
                (Arc::clone(&state.engine), state.epoch, version)
            };
            if let Some(event) = records::get(&*engine, version.revision())? {
                return Ok(event.kv);
            }
            let state = self.shared.state.read();
            if state.epoch == epoch && state.compacted <= revision {
                let text = format!("record {} is missing", version.revision());
                return Err(EngineError::Damaged(text));
            }
        }
    }

    /// The same from memory alone: the outer `None` when the disk would be needed.
    #[expect(clippy::option_option, reason = "two questions: is it known here, and was there one")]
    pub(crate) fn try_value_at(&self, key: &[u8], revision: i64) -> Option<Option<KeyValue>> {
        let state = self.shared.state.read();
        let Some(version) = state.version_at(key, revision) else { return Some(None) };
        state.window.event(version.revision()).map(|event| Some(kv_of(event).clone()))
    }
}

impl State {
    fn check_history(&self, from: i64) -> Result<(), HistoryError> {
        if from < self.compacted {
            return Err(HistoryError::Compacted { compact_revision: self.compacted });
        }
        Ok(())
    }

    /// `None` when the engine is needed.
    fn history(&self, from: i64, max_bytes: usize) -> Option<Result<History, HistoryError>> {
        if let Err(error) = self.check_history(from) {
            return Some(Err(error));
        }
        if from > self.revision {
            return Some(Ok(Vec::new()));
        }
        let from = from.max(EMPTY_REVISION + 1);
        if from < self.window.first() {
            return None;
        }
        let mut bytes = 0;
        let mut history = Vec::new();
        for made in self.window.from(from) {
            bytes += made.size_bytes();
            if bytes > max_bytes && !history.is_empty() {
                break;
            }
            history.push(Arc::clone(made));
        }
        Some(Ok(history))
    }

    fn version_at(&self, key: &[u8], revision: i64) -> Option<Version> {
        if revision < self.compacted {
            return None;
        }
        self.index.get(key, revision).copied()
    }
}

/// Whole revisions from `from` on, below `to`, until `max_bytes` are reached.
fn read_history(
    engine: &dyn Engine,
    from: i64,
    to: i64,
    max_bytes: usize,
) -> Result<History, EngineError> {
    let mut bytes = 0;
    let mut history: Vec<RevisionEvents> = Vec::new();
    records::scan(engine, Revision::first_of(from), to, &mut |revision, event| {
        bytes += event_size_bytes(&event);
        match history.last_mut() {
            Some(last) if last.revision == revision.main => last.events.push(event),
            // The first revision that does not fit ends it, when it begins and when it goes on.
            Some(_) if bytes > max_bytes => return ControlFlow::Break(()),
            _ => history.push(RevisionEvents { revision: revision.main, events: vec![event] }),
        }
        ControlFlow::Continue(())
    })?;
    Ok(history.into_iter().map(Arc::new).collect())
}
