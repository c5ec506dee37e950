//! The applied state as openraft sees it: entries go in, in order, and snapshots come out.
//!
//! For every entry: first the state changes, then watchers hear of it, then whoever proposed it
//! gets the answer. So an answered client finds its write in every read, and a watch that is
//! created after the answer does not see it again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::snapshot_transfer::{SnapshotFile, blocking};
use super::types::{Entry, LogId, StoredMembership, TypeConfig};
use crate::lease_clock::LeaseClock;
use crate::mvcc::{Mvcc, Outcome};
use crate::proposals::Proposals;
use crate::watch::WatchHub;

/// Entries applied in one go, off the runtime's threads.
const ENTRIES_AT_ONCE: usize = 64;
/// Applying waits while this much is not yet handed to the engine below.
const PENDING_BYTES: usize = 64 << 20;
const PENDING_POLL: Duration = Duration::from_millis(5);

/// Everything that hears of an applied entry.
pub(crate) struct Applier {
    pub(crate) mvcc: Mvcc,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) proposals: Arc<Proposals>,
    pub(crate) leases: Arc<LeaseClock>,
    pub(crate) applied_index: watch::Sender<u64>,
    pub(crate) applied_term: Mutex<u64>,
    pub(crate) snapshot_dir: PathBuf,
}

impl Applier {
    /// Applies one entry and tells everybody.
    fn apply(&self, entry: &Entry, now: Instant) -> io::Result<()> {
        let log_id = entry.log_id;
        self.notice_term(**log_id.committed_leader_id());
        let applied = self.mvcc.apply(log_id, &entry.payload).map_err(io::Error::other)?;
        self.hub.publish(&applied.revisions);
        if let EntryPayload::Normal(batch) = &entry.payload {
            for (command, answer) in batch.commands().iter().zip(applied.results) {
                match &answer {
                    Ok(Outcome::LeaseGrant(granted)) => {
                        self.leases.renew(granted.id, granted.ttl, now);
                    }
                    Ok(Outcome::LeaseRevoke(_)) => {
                        if let Some(store_proto::peer::command::Op::LeaseRevoke(revoke)) =
                            &command.op
                        {
                            self.leases.revoked(revoke.id);
                        }
                    }
                    _ => {}
                }
                self.proposals.answer(command.id, answer);
            }
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
        Ok(self.applier.mvcc.applied())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let mut chunks = entries.ready_chunks(ENTRIES_AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            while self.applier.mvcc.pending_bytes() > PENDING_BYTES {
                tokio::time::sleep(PENDING_POLL).await;
            }
            let chunk: Vec<(Entry, Option<ApplyResponder<TypeConfig>>)> =
                chunk.into_iter().collect::<io::Result<_>>()?;
            let applier = Arc::clone(&self.applier);
            let now = Instant::now();
            blocking(move || {
                for (entry, responder) in chunk {
                    applier.apply(&entry, now)?;
                    if let Some(responder) = responder {
                        responder.send(());
                    }
                }
                Ok(())
            })
            .await?;
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
        let _ = (meta, snapshot);
        Err(snapshots_are_not_there_yet())
    }
    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        Ok(None)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        Err(snapshots_are_not_there_yet())
    }
}

fn snapshots_are_not_there_yet() -> io::Error {
    io::Error::from(io::ErrorKind::Unsupported)
}
