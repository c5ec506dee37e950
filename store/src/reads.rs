//! The applied state for async code: from memory at once where that suffices, else off the
//! runtime's threads.
//!
//! A state that cannot be read is damaged or gone. The request is answered as by a member that
//! stops, and the member does stop: [`Reads::broken`] tells.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use store_proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use store_proto::mvccpb::KeyValue;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::engine::EngineError;
use crate::error::RequestError;
use crate::mvcc::{Failure, HashKv, HistoryError, KeyRange, Mvcc, NextChanges, RevisionEvents};
use crate::watch::{History, ReadError};

/// Reads from the disk at one time; more of them wait, so that a crowd of them (all watchers coming
/// back at once) leaves threads and disk to the writes.
const DISK_READS: usize = 8;

/// Reads one state.
#[derive(Clone)]
pub(crate) struct Reads {
    mvcc: Mvcc,
    disk_reads: Arc<Semaphore>,
    broken: Arc<Broken>,
}

#[derive(Default)]
struct Broken {
    error: Mutex<Option<EngineError>>,
    noticed: Notify,
}

impl Reads {
    pub(crate) fn new(mvcc: Mvcc) -> Self {
        Self { mvcc, disk_reads: Arc::new(Semaphore::new(DISK_READS)), broken: Arc::default() }
    }

    /// etcd's Range.
    pub(crate) async fn range(
        &self,
        request: &RangeRequest,
    ) -> Result<RangeResponse, RequestError> {
        if let Some(response) = self.mvcc.range_cached(request) {
            return response;
        }
        let request = request.clone();
        self.off_runtime(move |mvcc| mvcc.range(&request)).await
    }

    /// A transaction that only reads.
    pub(crate) async fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, RequestError> {
        let request = request.clone();
        self.off_runtime(move |mvcc| mvcc.read_txn(&request)).await
    }

    /// The hash of everything up to `revision`; 0 is the current one.
    pub(crate) async fn hash(&self, revision: i64) -> Result<HashKv, RequestError> {
        self.off_runtime(move |mvcc| mvcc.hash(revision)).await
    }

    /// Waits until a read has found the state unreadable.
    pub(crate) async fn broken(&self) -> EngineError {
        loop {
            let noticed = self.broken.noticed.notified();
            if let Some(error) = self.broken.error.lock().take() {
                return error;
            }
            noticed.await;
        }
    }

    async fn disk_turn(&self) -> SemaphorePermit<'_> {
        self.disk_reads.acquire().await.expect("the semaphore is never closed")
    }

    async fn off_runtime<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Mvcc) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, RequestError> {
        let _turn = self.disk_turn().await;
        let mvcc = self.mvcc.clone();
        match tokio::task::spawn_blocking(move || read(&mvcc)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(Failure::Request(refused))) => Err(refused),
            Ok(Err(Failure::Engine(error))) => Err(self.give_up(error)),
            // It panicked, or the runtime is shutting down.
            Err(_) => Err(RequestError::Stopped),
        }
    }

    fn give_up(&self, error: EngineError) -> RequestError {
        *self.broken.error.lock() = Some(error);
        self.broken.noticed.notify_one();
        RequestError::Stopped
    }
}

impl History for Reads {
    fn current_revision(&self) -> i64 {
        self.mvcc.current_revision()
    }

    fn compacted_revision(&self) -> i64 {
        self.mvcc.compacted_revision()
    }

    fn next_changes(&self, range: &KeyRange, from: i64) -> Option<NextChanges> {
        self.mvcc.next_changes(range, from)
    }

    async fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> Result<Vec<Arc<RevisionEvents>>, ReadError> {
        let history = match self.mvcc.try_history(from, max_bytes) {
            Some(history) => history,
            None => {
                let _turn = self.disk_turn().await;
                let mvcc = self.mvcc.clone();
                tokio::task::spawn_blocking(move || mvcc.history(from, max_bytes))
                    .await
                    .map_err(|error| ReadError::Failed(error.into()))?
            }
        };
        history.map_err(|error| match error {
            HistoryError::Compacted { .. } => ReadError::Compacted,
            HistoryError::Engine(error) => ReadError::Failed(self.give_up(error).into()),
        })
    }

    async fn value_at(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, ReadError> {
        if let Some(value) = self.mvcc.try_value_at(key, revision) {
            return Ok(value);
        }
        let key = key.clone();
        self.off_runtime(move |mvcc| Ok(mvcc.value_at(&key, revision)?))
            .await
            .map_err(|error| ReadError::Failed(error.into()))
    }
}
