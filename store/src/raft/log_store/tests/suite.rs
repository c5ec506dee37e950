//! openraft's own suite for log storages, on both kinds of directory.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageError};

use crate::raft::log_store::LogStore;
use crate::raft::types::{LogId, StoredMembership, TypeConfig};
use crate::wal::WalOptions;
use crate::wal::files::{DiskDir, LogDir};
use crate::wal::memory::MemoryDir;

/// A state machine that knows how far it is and nothing else.
#[derive(Default)]
struct Position {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMetaOf<TypeConfig>>,
}

/// As the suite asks, a snapshot that was built becomes the current one: they share their state.
#[derive(Clone, Default)]
struct StateMachine(Arc<parking_lot::Mutex<Position>>);

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let mut state = self.0.lock();
        let meta =
            SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        state.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<TypeConfig, ()> { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.0.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, _) = next?;
            let mut state = self.0.lock();
            state.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        (): (),
    ) -> io::Result<()> {
        let mut state = self.0.lock();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        let meta = self.0.lock().snapshot.clone();
        Ok(meta.map(|meta| SnapshotOf::<TypeConfig, ()> { meta, snapshot: () }))
    }
}

/// Small segments, so that the suite goes over several.
fn options(cache_bytes: usize) -> WalOptions {
    WalOptions { segment_bytes: 400, cache_bytes, ..WalOptions::default() }
}

struct InMemory {
    cache_bytes: usize,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir: Arc<dyn LogDir> = Arc::new(MemoryDir::default());
        let (log, _) = LogStore::open(dir, options(self.cache_bytes)).unwrap();
        Ok(((), log, StateMachine::default()))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OnDisk {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        let dir = DiskDir::open(temp.path().join("wal")).unwrap();
        let (log, _) = LogStore::open(Arc::new(dir), options(0)).unwrap();
        Ok((temp, log, StateMachine::default()))
    }
}

// The suite sleeps after each purge, for storages that purge in the background.
#[tokio::test(start_paused = true)]
async fn in_memory_from_the_cache() {
    Suite::test_all(InMemory { cache_bytes: 1 << 20 }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_memory_from_the_files() {
    Suite::test_all(InMemory { cache_bytes: 0 }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}
