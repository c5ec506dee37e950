//! Garbage collection: pods go when all their owners have gone.
//!
//! Woken when a ReplicaSet goes, and by every pod that comes with an owner nobody knows of, such
//! as one that was created while its set was being deleted. The cache only says where to look:
//! whether an owner is gone is asked of the store itself, right before anything is deleted.

mod plan;

use std::collections::HashSet;
use std::sync::Arc;

use api::{
    Api, Cache, Change, DeleteOptions, Error, Notice, Object, ObjectKey, Outcome, Store, WorkQueue,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio_util::sync::CancellationToken;

use crate::reconcile;
use plan::{Verdict, plan};

/// Collects the pods that nobody owns any more.
pub(crate) struct GarbageCollector {
    sets: Api<ReplicaSet>,
    pods: Api<Pod>,
    set_cache: Cache<ReplicaSet>,
    pod_cache: Cache<Pod>,
    queue: WorkQueue<ObjectKey>,
}

impl GarbageCollector {
    pub(crate) fn new(store: &Store, set_cache: Cache<ReplicaSet>, pod_cache: Cache<Pod>) -> Self {
        Self {
            sets: store.api(),
            pods: store.api(),
            set_cache,
            pod_cache,
            queue: WorkQueue::new(reconcile::BACKOFF),
        }
    }

    /// Runs until cancelled, or until the informers end.
    pub(crate) async fn run(self, workers: usize, cancelled: CancellationToken) {
        let this = Arc::new(self);
        let worker = Arc::clone(&this);
        let work = move |key: ObjectKey| {
            let this = Arc::clone(&worker);
            async move { this.reconcile(&key).await }
        };
        reconcile::run("garbage", this.queue.clone(), workers, cancelled, this.listen(), work)
            .await;
    }

    /// Turns changes into keys of pods to look at.
    async fn listen(&self) {
        let (mut sets, mut pods) = (self.set_cache.subscribe(), self.pod_cache.subscribe());
        if !self.set_cache.synced().await || !self.pod_cache.synced().await {
            return;
        }
        loop {
            tokio::select! {
                notice = sets.next() => match notice {
                    Some(Notice::Changed(changes)) => self.sets_changed(&changes),
                    Some(Notice::Resync) => self.look_at_all(),
                    None => return,
                },
                notice = pods.next() => match notice {
                    Some(Notice::Changed(changes)) => {
                        for change in changes {
                            self.look_at(change.new.as_ref());
                        }
                    }
                    Some(Notice::Resync) => self.look_at_all(),
                    None => return,
                },
            }
        }
    }

    fn sets_changed(&self, changes: &[Change<ReplicaSet>]) {
        let uid = |set: &Option<Arc<ReplicaSet>>| set.as_ref().map(|set| set.uid().to_owned());
        let gone: HashSet<String> = changes
            .iter()
            .filter(|change| uid(&change.old) != uid(&change.new))
            .filter_map(|change| uid(&change.old))
            .collect();
        if !gone.is_empty() {
            self.look_at_all();
        }
    }

    fn look_at_all(&self) {
        for pod in self.pod_cache.list() {
            self.look_at(Some(&pod));
        }
    }

    /// Puts a pod in the queue if one of its owners is not in the cache.
    fn look_at(&self, pod: Option<&Arc<Pod>>) {
        let Some(pod) = pod.filter(|pod| !pod.is_deleting()) else { return };
        let mut owners = pod.metadata.owner_references.iter().flatten();
        if owners.any(|owner| is_set(owner) && !self.is_cached(pod, owner)) {
            self.queue.add(pod.key());
        }
    }

    fn is_cached(&self, pod: &Pod, owner: &OwnerReference) -> bool {
        let set = self.set_cache.get(&ObjectKey::namespaced(pod.namespace(), &owner.name));
        set.is_some_and(|set| set.uid() == owner.uid)
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.pod_cache.get(key) else { return Ok(Outcome::Done) };
        let mut gone = HashSet::new();
        for owner in pod.metadata.owner_references.iter().flatten().filter(|owner| is_set(owner)) {
            let key = ObjectKey::namespaced(pod.namespace(), &owner.name);
            let there = self.sets.find(&key).await?;
            if there.is_none_or(|set| set.uid() != owner.uid) {
                gone.insert(owner.uid.as_str());
            }
        }
        match plan(&pod.metadata, |owner| gone.contains(owner.uid.as_str())) {
            Verdict::Keep => {}
            Verdict::Delete => self.delete(&pod).await?,
            Verdict::Unlink(uids) => self.unlink(&pod, &uids).await?,
        }
        Ok(Outcome::Done)
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        // With the revision: somebody may be giving it another owner right now.
        let options = DeleteOptions {
            uid: Some(pod.uid().to_owned()),
            revision: Some(pod.revision()),
            ..DeleteOptions::default()
        };
        match self.pods.delete(&pod.key(), &options).await {
            Ok(_) => {
                tracing::info!(pod = pod.name(), "deleted: its owners are gone");
                Ok(())
            }
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn unlink(&self, pod: &Pod, uids: &[String]) -> Result<(), Error> {
        let unlinked = self.pods.modify_from(pod, |current| {
            if let Some(owners) = &mut current.metadata.owner_references {
                owners.retain(|owner| !uids.contains(&owner.uid));
            }
            Ok(())
        });
        match unlinked.await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Owners of other kinds are none of this collector's business.
fn is_set(owner: &OwnerReference) -> bool {
    owner.kind == ReplicaSet::kind().kind && owner.api_version == ReplicaSet::kind().api_version()
}
