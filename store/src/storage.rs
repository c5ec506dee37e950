//! Opens what a member has on disk, and mends what can be mended: a state that was lost or damaged
//! is rebuilt from the newest snapshot and the log.
//!
//! | found                                         | done                                      |
//! |-----------------------------------------------|-------------------------------------------|
//! | a log with a torn tail                        | the tail is cut: no sync had covered it   |
//! | a log that is damaged before its tail         | refused: it is the truth                  |
//! | a state that is damaged, missing, or behind   | set aside, rebuilt from the newest        |
//! | what the log says was once durable            | snapshot that is whole, and the log       |
//! | the same, but the log no longer reaches back  | refused: the member has to be replaced    |
//! | to any whole snapshot                         |                                           |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::RaftLogStorage as _;
use prometheus::Histogram;
use store_proto::mvccpb::Event;

use crate::engine::EngineError;
use crate::metrics::Metrics;
use crate::mvcc::{LeaseInfo, Limits, Mvcc, Opened, StateDir};
use crate::raft::log_store::LogStore;
use crate::raft::types::LogId;
use crate::snapshot::{self, SnapshotDir, SnapshotError, SnapshotMeta};
use crate::wal::{DiskDir, WalError, WalOptions};

/// The folder of the snapshots in a data directory.
pub(crate) const SNAPSHOT_DIR: &str = "snapshots";
const LOG_DIR: &str = "wal";
const STATE_DIR: &str = "state";
/// The log is purged behind the newest one but for a few entries, so an older one would hardly ever
/// be of use: a member that loses both its state and the snapshot has to be replaced.
const SNAPSHOTS_KEPT: usize = 1;

/// Why a member's data cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StorageError(#[from] Failure);

impl StorageError {
    /// Whether what is on disk is lost, so that only other members can help.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(
            self.0,
            Failure::Lost { .. } | Failure::Log(WalError::Damaged { .. } | WalError::Missing(_))
        )
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the log cannot be opened")]
    LogDir(#[source] io::Error),
    #[error(transparent)]
    Log(#[from] WalError),
    #[error("the state cannot be opened")]
    State(#[from] EngineError),
    #[error("the snapshots cannot be used")]
    Snapshots(#[from] SnapshotError),
    #[error(
        "the state is lost ({reason}) and cannot be rebuilt: the log begins after entry \
         {first_needed}, and there is no whole snapshot that reaches so far"
    )]
    Lost { reason: String, first_needed: u64 },
    #[error("a damaged snapshot cannot be removed")]
    Damaged(#[source] io::Error),
    #[error("opening the data was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

/// What a member has on disk.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) log: LogStore,
    pub(crate) mvcc: Mvcc,
    pub(crate) state_dir: Arc<StateDir>,
    pub(crate) snapshots: SnapshotDir,
}

impl Storage {
    /// Opens the log, the state and the snapshots below `data_dir`.
    pub(crate) async fn open(data_dir: &Path, metrics: &Metrics) -> Result<Self, StorageError> {
        let data_dir = data_dir.to_owned();
        let sync_seconds = metrics.wal_sync_seconds.clone();
        let opened = tokio::task::spawn_blocking(move || open(&data_dir, sync_seconds)).await;
        Ok(opened.map_err(Failure::CutOff)??)
    }

    /// Removes the snapshots that newer ones have made superfluous. Blocks on the disk.
    pub(crate) fn drop_old_snapshots(&self) -> Result<(), SnapshotError> {
        self.snapshots.keep_newest(SNAPSHOTS_KEPT)
    }
}

/// The data of a member that begins with a state, where others begin with nothing.
#[derive(Debug)]
pub(crate) struct NewData {
    data_dir: PathBuf,
    last_log_id: LogId,
}

impl NewData {
    /// Makes a snapshot of what `records` adds, and the state from it. Blocks on the disk, for long.
    pub(crate) fn create<E: From<StorageError>>(
        data_dir: &Path,
        meta: &SnapshotMeta,
        leases: &[LeaseInfo],
        records: impl FnOnce(&mut dyn FnMut(u32, Event) -> Result<(), StorageError>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let failed = |error: SnapshotError| StorageError::from(Failure::from(error));
        let snapshots = SnapshotDir::open(&data_dir.join(SNAPSHOT_DIR)).map_err(failed)?;
        let mut writer = snapshots.create(meta).map_err(failed)?;
        for lease in leases {
            writer.add_lease(lease).map_err(failed)?;
        }
        records(&mut |sub, event| writer.add_record(sub, event).map_err(failed))?;
        writer.finish().map_err(failed)?;
        let path = snapshots.path_of(&meta.last_log_id);
        StateDir::new(&data_dir.join(STATE_DIR), Limits::default())
            .and_then(|state_dir| state_dir.set_aside_and_rebuild(Some(&path)))
            .map_err(|error| StorageError::from(Failure::from(error)))?;
        Ok(Self { data_dir: data_dir.to_owned(), last_log_id: meta.last_log_id })
    }

    /// Makes the log, which goes on behind the snapshot.
    pub(crate) async fn begin_log(self) -> Result<(), StorageError> {
        let log_dir = self.data_dir.join(LOG_DIR);
        let opened = tokio::task::spawn_blocking(move || {
            let log_dir = DiskDir::open(log_dir).map_err(Failure::LogDir)?;
            let (log, _) = LogStore::open(Arc::new(log_dir), WalOptions::default())?;
            Ok::<_, Failure>(log)
        });
        let mut log = opened.await.map_err(Failure::CutOff)??;
        log.save_committed(Some(self.last_log_id)).await.map_err(Failure::LogDir)?;
        log.purge(self.last_log_id).await.map_err(Failure::LogDir)?;
        log.note_checkpoint(self.last_log_id).await.map_err(Failure::Log)?;
        Ok(log.close().await.map_err(Failure::Log)?)
    }
}

fn open(data_dir: &Path, sync_seconds: Histogram) -> Result<Storage, Failure> {
    let log_dir = DiskDir::open(data_dir.join(LOG_DIR)).map_err(Failure::LogDir)?;
    let log_dir = log_dir.measured(sync_seconds);
    let (log, recovered) = LogStore::open(Arc::new(log_dir), WalOptions::default())?;
    if let Some(torn) = &recovered.torn {
        tracing::warn!(
            file = %torn.path.display(),
            offset = torn.offset,
            bytes = torn.bytes,
            "the log ended in the middle of a record; nothing there was acknowledged"
        );
    }
    let snapshots = SnapshotDir::open(&data_dir.join(SNAPSHOT_DIR))?;
    let state_dir = StateDir::new(&data_dir.join(STATE_DIR), Limits::default())?;
    let needed = recovered.checkpoint.max(recovered.purged);
    let mvcc = match state_dir.open(needed.as_ref())? {
        Opened::Ready(mvcc) => mvcc,
        Opened::NeedsRebuild { reason } => {
            tracing::warn!(reason, "the state is set aside and rebuilt from snapshot and log");
            rebuild(&state_dir, &snapshots, recovered.purged, reason)?
        }
    };
    Ok(Storage { log, mvcc, state_dir: Arc::new(state_dir), snapshots })
}

/// From the newest whole snapshot that the log continues; from nothing if the log is complete.
fn rebuild(
    state_dir: &StateDir,
    snapshots: &SnapshotDir,
    purged: Option<LogId>,
    reason: String,
) -> Result<Mvcc, Failure> {
    for file in snapshots.list()? {
        match snapshot::verify(&file.path) {
            Ok(meta) if Some(meta.last_log_id) >= purged => {
                return Ok(state_dir.set_aside_and_rebuild(Some(&file.path))?);
            }
            Ok(_) => break,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(file = %file.path.display(), error, "a snapshot is not whole: removed");
                std::fs::remove_file(&file.path).map_err(Failure::Damaged)?;
            }
        }
    }
    match purged {
        None => Ok(state_dir.set_aside_and_rebuild(None)?),
        Some(purged) => Err(Failure::Lost { reason, first_needed: purged.index() }),
    }
}
