//! The applied state, as watches see it.

use std::future;
use std::panic;
use std::sync::Arc;

use bytes::Bytes;
use store_proto::mvccpb::KeyValue;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::MAX_DISK_READS;
use crate::engine::EngineError;
use crate::mvcc::{HistoryError, Mvcc, RevisionEvents};

/// What happened so far. A revision can be read here before it is published to the hub.
pub(crate) trait History: Send + Sync + 'static {
    /// The last applied revision.
    fn current_revision(&self) -> i64;

    /// Whole revisions from `from` on, in order without a gap, about `max_bytes` of them but at least
    /// one if there is one.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] when `from` is below the compacted revision.
    fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> impl Future<Output = Result<Vec<Arc<RevisionEvents>>, HistoryError>> + Send;

    /// What `key` was at `revision`; `None` as well when that is compacted.
    ///
    /// # Errors
    /// The state cannot be read.
    fn value_at(
        &self,
        key: &Bytes,
        revision: i64,
    ) -> impl Future<Output = Result<Option<KeyValue>, EngineError>> + Send;
}

/// The history of the applied state: at once what is in memory, else read from the disk beside the
/// runtime, [`MAX_DISK_READS`] at a time, so that many who are far behind cannot take all its threads.
#[derive(Debug)]
pub(crate) struct AppliedHistory {
    mvcc: Mvcc,
    disk_reads: Semaphore,
}

impl AppliedHistory {
    /// The history of `mvcc`, for all watch streams of this member.
    pub(crate) fn new(mvcc: Mvcc) -> Self {
        Self { mvcc, disk_reads: Semaphore::new(MAX_DISK_READS) }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Mvcc) -> T + Send + 'static,
    ) -> T {
        let _permit = self.disk_reads.acquire().await.expect("the semaphore is never closed");
        let mvcc = self.mvcc.clone();
        match spawn_blocking(move || read(&mvcc)).await {
            Ok(read) => read,
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down, and this task with it.
            Err(_) => future::pending().await,
        }
    }
}

impl History for AppliedHistory {
    fn current_revision(&self) -> i64 {
        self.mvcc.current_revision()
    }

    async fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> Result<Vec<Arc<RevisionEvents>>, HistoryError> {
        match self.mvcc.try_history(from, max_bytes) {
            Some(read) => read,
            None => self.on_disk(move |mvcc| mvcc.history(from, max_bytes)).await,
        }
    }

    async fn value_at(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, EngineError> {
        match self.mvcc.try_value_at(key, revision) {
            Some(value) => Ok(value),
            None => {
                let key = key.clone();
                self.on_disk(move |mvcc| mvcc.value_at(&key, revision)).await
            }
        }
    }
}
