//! Carries out what was planned for a set.

use std::sync::Arc;

use api::{DeleteOptions, Error, Object, StoreError};
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::expectations::Write;
use super::plan::{Plan, Scale};
use super::template::{controller_reference, new_pod};
use super::{Controller, selects};
use crate::reconcile::Chain;

/// Writes for one set that are under way at the same time.
const WRITES_IN_FLIGHT: usize = 32;

/// Whether a write is tried for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    First,
    /// The answer to an earlier attempt was lost: it may have been carried out.
    Repeated,
}

impl Controller {
    /// Does what the plan says, in its order, up to the first failure; the status is written in
    /// any case, as a set whose pods cannot be made is to tell how many there are.
    pub(super) async fn act(&self, set: &ReplicaSet, plan: Plan) -> Result<(), Error> {
        let scaled = async {
            self.claim(set, &plan.adopt, &plan.release).await?;
            self.scale(set, plan.scale).await
        };
        let scaled = scaled.await;
        if let Some(status) = &plan.status {
            self.write_status(set, status).await?;
        }
        scaled
    }

    async fn claim(
        &self,
        set: &ReplicaSet,
        adopt: &[Arc<Pod>],
        release: &[Arc<Pod>],
    ) -> Result<(), Error> {
        for pod in release {
            let released = self.pods.modify_from(pod, |current| {
                // Somebody may have given the labels back, or deleted it.
                let still = current.uid() == pod.uid() && !current.is_deleting();
                if still
                    && !selects(set, current)
                    && let Some(owners) = &mut current.metadata.owner_references
                {
                    owners.retain(|owner| owner.uid != set.uid());
                }
                Ok(())
            });
            match released.await {
                Ok(_) => tracing::info!(pod = pod.name(), "released: its labels do not match"),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if adopt.is_empty() {
            return Ok(());
        }
        // The cache may not know yet that the set is gone, or another of its name.
        let live = self.sets.get(&set.key()).await?;
        if live.uid() != set.uid() || live.is_deleting() {
            return Err(changed(set, "it is not the one that was to adopt pods"));
        }
        for pod in adopt {
            self.pods.modify_from(pod, |current| check_and_adopt(set, pod, current)).await?;
            tracing::info!(pod = pod.name(), "adopted");
        }
        Ok(())
    }

    async fn scale(&self, set: &ReplicaSet, scale: Scale) -> Result<(), Error> {
        match scale {
            Scale::Keep => Ok(()),
            Scale::Delete(pods) => {
                let writes = pods.into_iter().map(Write::Delete).collect();
                self.write_all(set, writes, Attempt::First).await
            }
            Scale::Create(mut missing) => {
                // Slow start, as in Kubernetes: a set whose pods are refused costs one refusal.
                let mut batch = 1;
                while missing > 0 {
                    let now = missing.min(batch);
                    let writes = {
                        let random = &mut *self.random.lock();
                        (0..now).map(|_| Write::Create(Arc::new(new_pod(set, random)))).collect()
                    };
                    self.write_all(set, writes, Attempt::First).await?;
                    missing -= now;
                    batch *= 2;
                }
                Ok(())
            }
        }
    }

    /// Does all writes, several at a time, and answers with the first failure.
    pub(super) async fn write_all(
        &self,
        set: &ReplicaSet,
        writes: Vec<Write>,
        attempt: Attempt,
    ) -> Result<(), Error> {
        let results: Vec<_> = stream::iter(writes)
            .map(|write| self.write(set, write, attempt))
            .buffer_unordered(WRITES_IN_FLIGHT)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn write(&self, set: &ReplicaSet, write: Write, attempt: Attempt) -> Result<(), Error> {
        let result = match &write {
            Write::Create(pod) => self.create(set, pod, attempt).await,
            Write::Delete(pod) => self.delete(pod).await,
        };
        self.tell(set, &write, &result);
        let mut expectations = self.expectations.lock();
        let now = Instant::now();
        match result {
            Ok(Some(revision)) => expectations.written(set.uid(), revision, now),
            Ok(None) => {}
            Err(error) => {
                let lost = matches!(&error, Error::Store(StoreError::Ambiguous { .. }));
                // A repetition that was certainly not carried out says nothing of the attempt
                // before it.
                let still_lost = attempt == Attempt::Repeated && matches!(&error, Error::Store(_));
                if lost || still_lost {
                    expectations.unresolved(set.uid(), write, now);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells the set's readers what became of a write.
    fn tell(&self, set: &ReplicaSet, write: &Write, result: &Result<Option<i64>, Error>) {
        let events = &self.events;
        match (write, result) {
            (Write::Create(pod), Ok(Some(_))) => {
                events.normal(set, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
            }
            (Write::Delete(pod), Ok(Some(_))) => {
                events.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            }
            (_, Ok(None)) => {}
            (Write::Create(_), Err(error)) => {
                events.warning(set, "FailedCreate", format!("Error creating: {}", Chain(error)));
            }
            (Write::Delete(pod), Err(error)) => {
                let (pod, cause) = (pod.name(), Chain(error));
                events.warning(set, "FailedDelete", format!("Error deleting {pod}: {cause}"));
            }
        }
    }

    /// Creates a pod and returns the revision at which it is there; none when it is not, and was
    /// never going to be.
    async fn create(
        &self,
        set: &ReplicaSet,
        pod: &Pod,
        attempt: Attempt,
    ) -> Result<Option<i64>, Error> {
        match self.pods.create(pod.clone()).await {
            Ok(created) => {
                tracing::info!(pod = created.name(), "created pod");
                Ok(Some(created.revision()))
            }
            Err(Error::AlreadyExists { .. }) if attempt == Attempt::Repeated => {
                let there = self.pods.find(&pod.key()).await?;
                let ours = |pod: &Pod| pod.controller().is_some_and(|owner| owner.uid == set.uid());
                Ok(there.filter(ours).map(|pod| pod.revision()))
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes a pod and returns the revision at which that can be seen; none when there was
    /// nothing to delete any more.
    async fn delete(&self, pod: &Pod) -> Result<Option<i64>, Error> {
        let options = DeleteOptions { uid: Some(pod.uid().to_owned()), ..DeleteOptions::default() };
        match self.pods.delete(&pod.key(), &options).await {
            Ok(deletion) => {
                tracing::info!(pod = pod.name(), "deleted pod");
                Ok(Some(deletion.into_object().revision()))
            }
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write_status(&self, set: &ReplicaSet, status: &ReplicaSetStatus) -> Result<(), Error> {
        let written = self.sets.modify_status_from(set, |current| {
            let newer = current.status.as_ref().and_then(|status| status.observed_generation)
                > status.observed_generation;
            if current.uid() == set.uid() && !newer {
                let conditions = current.status.take().and_then(|status| status.conditions);
                current.status = Some(ReplicaSetStatus { conditions, ..status.clone() });
            }
            Ok(())
        });
        match written.await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Makes the set the controller of a pod, if what was decided still holds of the pod as it is.
fn check_and_adopt(set: &ReplicaSet, decided: &Pod, current: &mut Pod) -> Result<(), Error> {
    let free = current.controller().is_none() && !current.is_deleting();
    if current.uid() != decided.uid() || !selects(set, current) || !free {
        return Err(changed(current, "it is not the pod that was to be adopted"));
    }
    let owners = current.metadata.owner_references.get_or_insert_default();
    // The set may be named already, as an owner that does not control.
    owners.retain(|owner| owner.uid != set.uid());
    owners.push(controller_reference(set));
    Ok(())
}

fn changed<K: Object>(object: &K, reason: &str) -> Error {
    Error::Conflict { kind: K::kind().plural, key: object.key(), reason: reason.to_owned() }
}
