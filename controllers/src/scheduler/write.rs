//! What is done in the store: binds, statuses that say why pods wait, deletions of victims.

use std::sync::Arc;
use std::time::Duration;

use api::{Api, Cache, DeleteOptions, Error, EventRecorder, Object, Store, StoreError};
use futures::StreamExt as _;
use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};

use super::explain::{self, Waiting};
use super::state::{Bound, Nominated, PodId, Told};
use crate::reconcile::{BACKOFF, Chain};

/// How long it is tried to find out whether a bind was written whose answer was lost.
const SURE_WITHIN: Duration = Duration::from_secs(60);
/// Victims of one pod that are deleted at the same time.
const DELETIONS: usize = 8;

/// What has become of a write.
#[derive(Debug)]
pub(super) enum Outcome {
    Bind { pod: PodId, bound: Bound },
    Told { pod: PodId },
    Preempted { pod: PodId, succeeded: bool },
}

/// Writes to the store. Clones are cheap.
#[derive(Clone)]
pub(super) struct Writer {
    pods: Api<Pod>,
    cache: Cache<Pod>,
    events: EventRecorder,
}

impl Writer {
    pub(super) fn new(store: &Store, cache: Cache<Pod>, events: EventRecorder) -> Self {
        Self { pods: store.api(), cache, events }
    }

    /// Gives a pod its node. A bind whose answer was lost is tried again on the same node until it
    /// is clear whether it was written.
    pub(super) async fn bind(self, id: PodId, node: Arc<str>) -> Outcome {
        let bound = match self.find(&id) {
            Some(pod) => self.bind_surely(&pod, &node).await,
            None => Bound::Failed,
        };
        Outcome::Bind { pod: id, bound }
    }

    async fn bind_surely(&self, pod: &Pod, node: &str) -> Bound {
        let deadline = Instant::now() + SURE_WITHIN;
        let mut failures = 0;
        loop {
            let Err(error) = self.pods.bind(pod, node).await else {
                let message = format!("Successfully assigned {} to {node}", pod.key());
                self.events.normal(pod, "Scheduled", message);
                return Bound::Done;
            };
            match &error {
                Error::Store(StoreError::Ambiguous { .. }) if Instant::now() < deadline => {
                    failures += 1;
                    tracing::debug!(pod = %pod.key(), error = %Chain(&error), "was it bound?");
                    sleep(BACKOFF.after(failures)).await;
                    continue;
                }
                // It is gone, or somebody else's business.
                Error::NotFound { .. } | Error::Conflict { .. } => {
                    tracing::debug!(pod = %pod.key(), %error, "not bound");
                }
                _ => {
                    tracing::warn!(pod = %pod.key(), node, error = %Chain(&error), "scheduler: the bind has failed");
                }
            }
            return Bound::Failed;
        }
    }

    /// Tells the event of a pod that waits.
    pub(super) fn tell_event(&self, told: &Told) {
        if told.waiting == Waiting::Unschedulable
            && let Some(pod) = self.find(&told.pod)
        {
            self.events.warning(&*pod, "FailedScheduling", told.message.clone());
        }
    }

    /// Writes to a pod's status why it waits, unless it says so already.
    pub(super) async fn tell(self, told: Told) -> Outcome {
        if let Err(error) = self.write_status(&told).await {
            tracing::warn!(pod = %told.pod.key, error = %Chain(&error), "scheduler: cannot say why the pod waits");
        }
        Outcome::Told { pod: told.pod }
    }

    async fn write_status(&self, told: &Told) -> Result<(), Error> {
        let Some(pod) = self.find(&told.pod) else { return Ok(()) };
        let now = self.pods.clock().now();
        let written = self.pods.modify_status_from(&pod, |current| {
            if current.uid() != &*told.pod.uid || current.node_name().is_some() {
                return Ok(());
            }
            explain::set_waiting(current, told.waiting, &told.message, now);
            let status = current.status.get_or_insert_default();
            match &told.nominated {
                Nominated::Keep => {}
                Nominated::Set(node) => status.nominated_node_name = Some(node.to_string()),
                Nominated::Clear => status.nominated_node_name = None,
            }
            Ok(())
        });
        match written.await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the victims of a pod, each with the grace that it asks for itself.
    pub(super) async fn preempt(self, told: Told, node: Arc<str>, victims: Vec<PodId>) -> Outcome {
        let succeeded = match self.write_status(&told).await {
            Ok(()) => {
                // Collected, as the compiler does not see through a stream that borrows.
                let deletions: Vec<_> =
                    victims.iter().map(|victim| self.evict(victim, &told.pod, &node)).collect();
                let deleted = stream::iter(deletions).buffer_unordered(DELETIONS);
                deleted.fold(true, |all, deleted| std::future::ready(all && deleted)).await
            }
            Err(error) => {
                tracing::warn!(pod = %told.pod.key, error = %Chain(&error), "scheduler: no room is made for the pod");
                false
            }
        };
        Outcome::Preempted { pod: told.pod, succeeded }
    }

    async fn evict(&self, victim: &PodId, by: &PodId, node: &str) -> bool {
        let Some(pod) = self.find(victim) else { return true };
        tracing::info!(pod = %victim.key, by = %by.key, node, "scheduler: a pod makes room for a more important one");
        match self.delete(&pod).await {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", by.uid);
                self.events.normal(&*pod, "Preempted", message);
                true
            }
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => true,
            Err(error) => {
                tracing::warn!(pod = %victim.key, error = %Chain(&error), "scheduler: cannot delete the pod");
                false
            }
        }
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        let now = self.pods.clock().now();
        let marked = self.pods.modify_status_from(pod, |current| {
            if current.uid() == pod.uid() {
                explain::set_preempted(current, now);
            }
            Ok(())
        });
        let marked = marked.await?;
        let options = DeleteOptions { uid: Some(pod.uid().to_owned()), ..DeleteOptions::default() };
        self.pods.delete_from(&marked, &options).await.map(drop)
    }

    /// The pod as it is known now.
    fn find(&self, id: &PodId) -> Option<Arc<Pod>> {
        self.cache.get(&id.key).filter(|pod| pod.uid() == &*id.uid)
    }
}
