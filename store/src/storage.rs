//! Opens what a member has on disk, and mends what can be mended: a state that was lost or damaged
//! is rebuilt from the newest snapshot and the log. A damaged log is not mended; it is the truth.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::engine::{EngineError, SledEngine};
use crate::mvcc::{Limits, Mvcc};
use crate::raft::log_store::LogStore;
use crate::wal::{DiskDir, WalError, WalOptions};

/// Why a member's data cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The log's directory cannot be used.
    #[error("the log cannot be opened")]
    LogDir(#[source] io::Error),
    /// The log is in use, or damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state cannot be opened or rebuilt.
    #[error(transparent)]
    State(#[from] StateError),
    /// The work of opening was cut off.
    #[error("opening the data was cut off")]
    CutOff(#[source] tokio::task::JoinError),
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LogError(#[from] WalError);

/// What is wrong with a state.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StateError(#[from] EngineError);

/// Opens the log and the state below `data_dir`.
pub(crate) async fn open(
    data_dir: &Path,
    _snapshot_dir: &Path,
) -> Result<(LogStore, Mvcc), StorageError> {
    let data_dir = data_dir.to_owned();
    tokio::task::spawn_blocking(move || open_blocking(&data_dir))
        .await
        .map_err(StorageError::CutOff)?
}

fn open_blocking(data_dir: &Path) -> Result<(LogStore, Mvcc), StorageError> {
    let log_dir = DiskDir::open(data_dir.join("wal")).map_err(StorageError::LogDir)?;
    let (log, _recovered) =
        LogStore::open(Arc::new(log_dir), WalOptions::default()).map_err(LogError)?;
    let engine = SledEngine::open(&data_dir.join("state")).map_err(StateError)?;
    let mvcc = Mvcc::open(Arc::new(engine), Limits::default()).map_err(StateError)?;
    Ok((log, mvcc))
}
