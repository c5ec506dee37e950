//! The applied state as openraft sees it: entries go in, in order, and snapshots come out.
//!
//! For every entry: first the state changes, then watchers hear of it, then whoever proposed it
//! gets the answer. So an answered client finds its write in every read, and a watch that is
//! created after the answer does not see it again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{Stream, StreamExt as _};
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot,
};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, SnapshotMeta};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::snapshot_transfer::{SnapshotFile, blocking};
use super::types::{Entry, LogId, StoredMembership, TypeConfig};
use crate::error::RequestError;
use crate::lease_clock::LeaseClock;
use crate::metrics::Metrics;
use crate::mvcc::{self, Outcome};
use crate::proposals::Proposals;
use crate::snapshot::{self, SnapshotReader};
use crate::storage::Storage;
use crate::watch::WatchHub;

/// Entries applied in one go, off the runtime's threads.
const ENTRIES_AT_ONCE: usize = 64;
/// So many simple commands are applied on the runtime's own thread: each takes a few microseconds.
const QUICK_COMMANDS: usize = 256;
/// Applying waits while this much is not yet handed to the engine below.
const PENDING_BYTES: usize = 64 << 20;

/// Everything that hears of an applied entry.
pub(crate) struct Applier {
    pub(crate) storage: Storage,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) proposals: Arc<Proposals>,
    pub(crate) leases: Arc<LeaseClock>,
    pub(crate) applied_index: watch::Sender<u64>,
    pub(crate) applied_term: Mutex<u64>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Applier {
    /// Applies one entry and tells everybody.
    fn apply(&self, entry: &Entry, now: Instant) -> io::Result<()> {
        let log_id = entry.log_id;
        self.notice_term(**log_id.committed_leader_id());
        let begun = Instant::now();
        let applied = self.storage.mvcc.apply(log_id, &entry.payload).map_err(io::Error::other)?;
        self.metrics.applied_in(begun.elapsed());
        self.hub.publish(&applied.revisions);
        if let EntryPayload::Normal(batch) = &entry.payload {
            for (command, answer) in batch.commands().iter().zip(&applied.results) {
                self.metrics.applied(command, answer);
                match answer {
                    Ok(Outcome::LeaseGrant(granted)) => {
                        self.leases.granted(granted.id, granted.ttl, now);
                    }
                    Ok(Outcome::LeaseRevoke(_)) | Err(RequestError::LeaseNotFound) => {
                        if let Some(store_proto::peer::command::Op::LeaseRevoke(revoke)) =
                            &command.op
                        {
                            self.leases.revoked(revoke.id);
                        }
                    }
                    _ => {}
                }
            }
            let ids = batch.commands().iter().map(|command| command.id);
            self.proposals.answer(ids.zip(applied.results));
        }
        self.applied_index.send_replace(log_id.index());
        Ok(())
    }

    /// Tells the proposals once when entries of a new leader begin.
    fn notice_term(&self, term: u64) {
        let mut applied_term = self.applied_term.lock();
        if term > *applied_term {
            *applied_term = term;
            self.proposals.term_began(term);
        }
    }
}

type ToApply = (Entry, Option<ApplyResponder<TypeConfig>>);

/// Whether these entries are applied in about a millisecond and without the disk.
fn is_quick(chunk: &[ToApply]) -> bool {
    let commands = || {
        chunk.iter().flat_map(|(entry, _)| match &entry.payload {
            EntryPayload::Normal(batch) => batch.commands(),
            EntryPayload::Blank | EntryPayload::Membership(_) => &[],
        })
    };
    commands().count() <= QUICK_COMMANDS
        && commands().all(|command| command.op.as_ref().is_some_and(mvcc::is_quick))
}

/// What openraft drives.
#[derive(Clone)]
pub(crate) struct StateMachine {
    applier: Arc<Applier>,
}

impl StateMachine {
    pub(crate) fn new(applier: Arc<Applier>) -> Self {
        Self { applier }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.applier.storage.mvcc.applied())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let mut chunks = entries.ready_chunks(ENTRIES_AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            // At the start of a member nobody else writes behind yet, so it is done here.
            while self.applier.storage.mvcc.pending_bytes() > PENDING_BYTES {
                let mvcc = self.applier.storage.mvcc.clone();
                blocking(move || mvcc.write_behind().map(drop).map_err(io::Error::other)).await?;
            }
            let chunk: Vec<ToApply> = chunk.into_iter().collect::<io::Result<_>>()?;
            let applier = Arc::clone(&self.applier);
            let now = Instant::now();
            let is_quick = is_quick(&chunk);
            let apply = move || {
                for (entry, responder) in chunk {
                    applier.apply(&entry, now)?;
                    if let Some(responder) = responder {
                        responder.send(());
                    }
                }
                Ok(())
            };
            // To wake another thread takes longer than most entries do.
            if is_quick { apply()? } else { blocking(apply).await? }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        tracing::info!(snapshot = ?meta.last_log_id, "installing a snapshot from the leader");
        let _installing = Installing::begin(&self.applier.metrics);
        let applier = Arc::clone(&self.applier);
        blocking(move || {
            let Storage { state_dir, mvcc, .. } = &applier.storage;
            state_dir.restore(mvcc, snapshot.path()).map_err(io::Error::other)?;
            applier.storage.drop_old_snapshots().map_err(io::Error::other)
        })
        .await?;
        if let Some(last) = &meta.last_log_id {
            *self.applier.applied_term.lock() = **last.committed_leader_id();
            self.applier.applied_index.send_replace(last.index());
        }
        self.applier.proposals.state_replaced();
        self.applier.hub.reset(self.applier.storage.mvcc.current_revision());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        let snapshots = self.applier.storage.snapshots.clone();
        blocking(move || {
            let mut looked_at = Vec::new();
            loop {
                let files = snapshots.list().map_err(io::Error::other)?;
                // One that could not be opened may just have been replaced by a newer one.
                if files == looked_at {
                    return Ok(None);
                }
                let readable = files.iter().find_map(|file| {
                    let reader = SnapshotReader::open(&file.path).ok()?;
                    Some(for_openraft(reader.meta().clone(), file.path.clone()))
                });
                if readable.is_some() {
                    return Ok(readable);
                }
                looked_at = files;
            }
        })
        .await
    }
}

/// Counts as a snapshot that is being installed for as long as it is there.
struct Installing(Arc<Metrics>);

impl Installing {
    fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.snapshots_installing.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(metrics))
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        self.0.snapshots_installing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// openraft's form of a snapshot of ours.
pub(crate) fn for_openraft(
    meta: snapshot::SnapshotMeta,
    path: PathBuf,
) -> SnapshotOf<TypeConfig, SnapshotFile> {
    Snapshot {
        meta: SnapshotMeta {
            last_log_id: Some(meta.last_log_id),
            last_membership: meta.membership,
        },
        snapshot: SnapshotFile::new(path),
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let storage = self.applier.storage.clone();
        blocking(move || {
            let written =
                storage.mvcc.write_snapshot(&storage.snapshots).map_err(io::Error::other)?;
            let (meta, path) = written
                .ok_or_else(|| io::Error::other("there is nothing to take a snapshot of"))?;
            storage.drop_old_snapshots().map_err(io::Error::other)?;
            Ok(for_openraft(meta, path))
        })
        .await
    }
}
