//! Between the state and snapshot files: writing one while the store goes on, and replacing
//! everything by one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use store_proto::etcdserverpb::AlarmType;
use store_proto::mvccpb::Event;

use super::lease::LeaseInfo;
use super::pending::{
    put_alarm, put_applied, put_compacted, put_lease, put_member, put_membership, put_records,
};
use super::revision::{NEVER_COMPACTED, Revision};
use super::{EngineWork, Limits, Mvcc, Shared, State, open, records};
use crate::engine::{Engine, EngineError, WriteBatch};
use crate::snapshot::{Item, SnapshotDir, SnapshotMeta, SnapshotReader};

/// How much goes into the engine at once while it is filled; nobody reads it yet.
const FILL_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The state after one entry, to be read at leisure: what is applied later does not show.
pub(crate) struct Capture {
    pub(crate) meta: SnapshotMeta,
    pub(crate) leases: Vec<LeaseInfo>,
    /// How many records there must be.
    records: usize,
    engine: Arc<dyn Engine>,
    epoch: u64,
    shared: Arc<Shared>,
}

impl Mvcc {
    /// Writes a snapshot of the present state into `dir`. Applying goes on meanwhile, removing
    /// compacted records does not. Blocks on the disk, for long. `None` when nothing was applied yet.
    ///
    /// # Errors
    ///
    /// The engine has fewer or more records than it should: it lost data, and a log must never
    /// be purged behind such a snapshot, so none is made.
    pub(crate) fn write_snapshot(
        &self,
        dir: &SnapshotDir,
    ) -> Result<Option<(SnapshotMeta, PathBuf)>, EngineError> {
        self.read_all(|capture| Ok((capture.meta.clone(), write(capture, dir)?)))
    }

    /// Lets `read` see the present state, all of which the engine has by then. Applying goes on
    /// meanwhile, removing compacted records does not. Blocks on the disk. `None` when nothing was
    /// applied yet.
    pub(crate) fn read_all<T, E: From<EngineError>>(
        &self,
        read: impl FnOnce(&Capture) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let _pause = self.pause_compaction();
        loop {
            let Some(capture) = self.capture() else { return Ok(None) };
            while self.persisted().as_ref() < Some(&capture.meta.last_log_id) {
                self.write_behind()?;
            }
            // Should a restore or a move have come in between, the old engine never got the rest.
            let is_same = {
                let state = self.shared.state.read();
                state.epoch == capture.epoch && Arc::ptr_eq(&state.engine, &capture.engine)
            };
            if is_same {
                return read(&capture).map(Some);
            }
        }
    }

    fn capture(&self) -> Option<Capture> {
        // Without a writer at work the state is that after a whole entry.
        let _writer = self.shared.writer.lock();
        let state = self.shared.state.read();
        Some(Capture {
            meta: SnapshotMeta {
                last_log_id: state.applied?,
                membership: state.membership.clone(),
                revision: state.revision,
                compacted: state.compacted,
                members: state.members.values().cloned().collect(),
                alarms: state.alarms.of_type(AlarmType::None),
            },
            leases: state.leases.all(),
            records: state.index.len() + state.garbage,
            engine: Arc::clone(&state.engine),
            epoch: state.epoch,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Replaces everything by a snapshot: fills `engine`, which must be empty, makes it durable,
    /// calls `commit` for what makes it the engine to be opened next time, and only then lets
    /// readers see it. Applying waits; reading and writing behind go on with the old state until
    /// then. Blocks on the disk, for long. After an error the old state is still there.
    pub(crate) fn restore_from(
        &self,
        snapshot: &Path,
        engine: Arc<dyn Engine>,
        commit: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<SnapshotMeta, EngineError> {
        let _writer = self.shared.writer.lock();
        let meta = fill(&*engine, snapshot)?;
        let mut fresh = open::load(engine, self.shared.limits)?;
        commit()?;
        let mut work = self.shared.engine_work.lock();
        *work = EngineWork::new(&fresh);
        self.shared.removed.send_replace(NEVER_COMPACTED);
        let old = {
            let mut state = self.shared.state.write();
            fresh.epoch = state.epoch + 1;
            self.shared.note_size(&fresh);
            std::mem::replace(&mut *state, fresh)
        };
        drop(work);
        drop(old);
        Ok(meta)
    }

    /// A new state from a snapshot, in an engine that must be empty.
    pub(super) fn from_snapshot(
        snapshot: &Path,
        engine: Arc<dyn Engine>,
        limits: Limits,
    ) -> Result<Self, EngineError> {
        fill(&*engine, snapshot)?;
        let state: State = open::load(engine, limits)?;
        Ok(Self::new(state, limits))
    }
}

impl Capture {
    /// Shows all records in revision order, until `visit` fails.
    ///
    /// # Errors
    ///
    /// The engine has fewer or more records than it should: it lost data.
    pub(crate) fn records<E: From<EngineError>>(
        &self,
        mut visit: impl FnMut(Revision, Event) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut count = 0;
        let mut failure = None;
        let to_main = self.meta.revision + 1;
        records::scan(&*self.engine, Revision::first_of(0), to_main, &mut |revision, event| {
            count += 1;
            match visit(revision, event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if count != self.records {
            let text = format!("it has {count} records instead of {}", self.records);
            return Err(EngineError::Damaged(text).into());
        }
        Ok(())
    }

    /// Whether a record is still to be seen, or only waits to be removed by a compaction.
    pub(crate) fn is_visible(&self, key: &[u8], revision: Revision) -> Result<bool, EngineError> {
        if revision.main >= self.meta.compacted {
            return Ok(true);
        }
        let state = self.shared.state.read();
        if state.epoch != self.epoch {
            let text = "the state was replaced by a leader's snapshot meanwhile".to_owned();
            return Err(EngineError::Damaged(text));
        }
        Ok(state.index.is_visible(key, revision, self.meta.compacted))
    }
}

fn write(capture: &Capture, dir: &SnapshotDir) -> Result<PathBuf, EngineError> {
    let mut writer = dir.create(&capture.meta)?;
    for lease in &capture.leases {
        writer.add_lease(lease)?;
    }
    capture.records(|revision, event| {
        writer.add_record(revision.sub, event).map_err(EngineError::from)
    })?;
    writer.finish()?;
    Ok(dir.path_of(&capture.meta.last_log_id))
}

fn fill(engine: &dyn Engine, snapshot: &Path) -> Result<SnapshotMeta, EngineError> {
    open::check_format(engine)?;
    let mut batch = WriteBatch::default();
    let mut count = 0;
    let meta = SnapshotReader::open(snapshot)?.read_all(|item| {
        match item {
            Item::Lease(lease) => put_lease(&mut batch, lease.id, lease.ttl_seconds),
            Item::Record(revision, event) => {
                records::check(revision, &event)?;
                records::put(&mut batch, revision, &event);
                count += 1;
            }
        }
        if batch.bytes() < FILL_BATCH_BYTES {
            return Ok(());
        }
        engine.write(std::mem::take(&mut batch))
    })?;
    // What makes it a state comes last, once all of the file was checked.
    put_records(&mut batch, count);
    put_compacted(&mut batch, meta.compacted);
    put_membership(&mut batch, &meta.membership);
    for member in &meta.members {
        put_member(&mut batch, member);
    }
    for alarm in &meta.alarms {
        put_alarm(&mut batch, alarm);
    }
    put_applied(&mut batch, &meta.last_log_id, meta.revision);
    engine.write(batch)?;
    engine.flush()?;
    Ok(meta)
}
