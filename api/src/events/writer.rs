//! Takes what a recorder was told, decides which events tell of it, and writes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Event;
use store_client::etcdserverpb::{LeaseGrantRequest, TxnRequest};
use store_client::{Client, Code, Error, request};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Occurrence;
use super::correlate::Correlator;
use super::leases::EventLeases;
use crate::swap::encode;
use crate::{Backoff, Object, Store};

/// Events of one transaction; etcd takes 128 operations.
const BATCH_MAX: usize = 100;
/// How long a batch waits for company: what happens to a pod comes in threes and fours, and nobody
/// waits for it.
const COMPANY_WAIT: Duration = Duration::from_millis(100);
/// How often a batch is tried that the store does not take, and the waits in between. Meanwhile
/// the queue fills, and then drops.
const TRIES_MAX: u32 = 12;
const RETRIES: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(10) };

/// Writes a recorder's events; somebody has to [`run`](Self::run) it.
pub struct EventWriter {
    client: Client,
    queue: mpsc::Receiver<Occurrence>,
    dropped: Arc<AtomicU64>,
    correlator: Correlator,
    leases: EventLeases,
}

impl std::fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventWriter")
    }
}

/// Events by their keys in the store: what happens twice within a batch is written once.
type Batch = BTreeMap<String, Bytes>;

impl EventWriter {
    pub(super) fn new(
        store: &Store,
        queue: mpsc::Receiver<Occurrence>,
        dropped: Arc<AtomicU64>,
        ttl: Duration,
    ) -> Self {
        Self {
            client: store.client().clone(),
            queue,
            dropped,
            correlator: Correlator::default(),
            leases: EventLeases::new(ttl),
        }
    }

    /// Writes events until cancelled, or until the last recorder is gone. What was told before is
    /// then still written, if the store takes it at once.
    pub async fn run(mut self, cancelled: CancellationToken) {
        loop {
            let batch = tokio::select! {
                biased;
                () = cancelled.cancelled() => break,
                batch = self.gather() => match batch {
                    Some(batch) => batch,
                    None => return,
                },
            };
            self.write(&batch, &cancelled).await;
        }
        self.queue.close();
        while let Some(batch) = self.gather().await {
            self.write(&batch, &cancelled).await;
        }
    }

    /// The next events to write, a few at a time if there are; none when there will be no more.
    async fn gather(&mut self) -> Option<Batch> {
        let mut batch = Batch::new();
        let first = self.queue.recv().await?;
        self.put(first, &mut batch);
        let deadline = Instant::now() + COMPANY_WAIT;
        while batch.len() < BATCH_MAX {
            match timeout_at(deadline, self.queue.recv()).await {
                Ok(Some(occurrence)) => self.put(occurrence, &mut batch),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    fn put(&mut self, occurrence: Occurrence, batch: &mut Batch) {
        let event = self.correlator.observe(occurrence, || Uuid::new_v4().to_string());
        let Some(mut event) = event else { return };
        match encode(&mut event) {
            Ok(value) => {
                batch.insert(event.key().store_key(Event::kind()), value);
            }
            Err(error) => tracing::warn!(%error, "an event cannot be written"),
        }
    }

    async fn write(&mut self, batch: &Batch, cancelled: &CancellationToken) {
        if batch.is_empty() {
            return;
        }
        let mut tries = 0;
        loop {
            let error = match self.try_write(batch).await {
                Ok(()) => break,
                Err(error) => error,
            };
            tries += 1;
            if is_lease_gone(&error) && tries == 1 {
                self.leases.lost();
                continue;
            }
            let refused = matches!(error, Error::Request { .. });
            if refused || tries >= TRIES_MAX || cancelled.is_cancelled() {
                self.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
                tracing::warn!(%error, events = batch.len(), "events are not written");
                break;
            }
            tracing::debug!(%error, "events wait for the store");
            let _ = cancelled.run_until_cancelled(sleep(RETRIES.after(tries))).await;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "events were left out: the store did not keep up");
        }
    }

    /// Puts the events whatever is there, so that it does no harm to send them twice.
    async fn try_write(&mut self, batch: &Batch) -> Result<(), Error> {
        let lease = self.lease(batch.len()).await?;
        let puts = batch.iter();
        let success = puts
            .map(|(key, value)| request::put_with_lease_op(key.clone(), value.clone(), lease))
            .collect();
        self.client.txn_guarded(TxnRequest { success, ..TxnRequest::default() }).await?;
        self.leases.written(batch.len());
        Ok(())
    }

    async fn lease(&mut self, writes: usize) -> Result<i64, Error> {
        let now = Instant::now();
        if let Some(lease) = self.leases.usable(writes, now) {
            return Ok(lease);
        }
        let ttl = self.leases.ttl_seconds();
        let lease = self.client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.id;
        self.leases.granted(lease, now);
        Ok(lease)
    }

    #[cfg(test)]
    pub(super) async fn receive(&mut self) -> Option<Occurrence> {
        self.queue.recv().await
    }
}

/// Whether the store has revoked the lease, or never heard of it.
fn is_lease_gone(error: &Error) -> bool {
    matches!(error, Error::Request { code: Code::NotFound, .. })
}
