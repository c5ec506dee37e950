//! Garbage collection: pods go when all their owners have gone, or when their node has.
//!
//! Woken when a ReplicaSet or a node goes, and by every pod that comes with an owner or a node
//! nobody knows of, such as one that was created while its set was being deleted. The cache only
//! says where to look: whether an owner or a node is gone is asked of the store itself, right
//! before anything is deleted.
//!
//! Now and then the copies of pods under their nodes are made what the pods are, for those that
//! somebody wrote past the API.

mod plan;
mod stranded;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Cache, Change, DeleteOptions, Error, Notice, Object, ObjectKey, Outcome, Store, WorkQueue,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::reconcile::{self, Chain};
use plan::{Verdict, plan};
use stranded::GoneNodes;

/// How often the copies of pods under their nodes are compared with the pods.
const REPAIR_INTERVAL: Duration = Duration::from_secs(60);

/// Collects the pods that nobody owns any more, and those that nobody runs any more.
pub(crate) struct GarbageCollector {
    sets: Api<ReplicaSet>,
    pods: Api<Pod>,
    nodes: Api<Node>,
    set_cache: Cache<ReplicaSet>,
    pod_cache: Cache<Pod>,
    node_cache: Cache<Node>,
    queue: WorkQueue<ObjectKey>,
    gone_nodes: Mutex<GoneNodes>,
}

impl GarbageCollector {
    pub(crate) fn new(
        store: &Store,
        set_cache: Cache<ReplicaSet>,
        pod_cache: Cache<Pod>,
        node_cache: Cache<Node>,
    ) -> Self {
        Self {
            sets: store.api(),
            pods: store.api(),
            nodes: store.api(),
            set_cache,
            pod_cache,
            node_cache,
            queue: WorkQueue::new(reconcile::BACKOFF),
            gone_nodes: Mutex::default(),
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
        let listen = async {
            tokio::select! {
                () = this.listen() => {}
                () = this.tidy_now_and_then() => {}
            }
        };
        reconcile::run("garbage", this.queue.clone(), workers, cancelled, listen, work).await;
    }

    /// Repairs the copies of pods, and forgets the nodes that have no pods any more.
    async fn tidy_now_and_then(&self) {
        let mut ticks = interval(REPAIR_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let has_pods = |node: &str| !self.pod_cache.on_node(node).is_empty();
            self.gone_nodes.lock().retain(has_pods);
            match self.pods.repair_node_copies().await {
                Ok(0) => {}
                Ok(repaired) => tracing::info!(repaired, "copies of pods under their nodes"),
                // The store is away, or busy with others: the next time does as well.
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "copies of pods are not looked at");
                }
            }
        }
    }

    /// Turns changes into keys of pods to look at.
    async fn listen(&self) {
        let (mut sets, mut pods) = (self.set_cache.subscribe(), self.pod_cache.subscribe());
        let mut nodes = self.node_cache.subscribe();
        // Without all of them, everything would look as if it were gone.
        if !self.set_cache.synced().await
            || !self.pod_cache.synced().await
            || !self.node_cache.synced().await
        {
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
                notice = nodes.next() => match notice {
                    Some(Notice::Changed(changes)) => self.nodes_changed(&changes),
                    Some(Notice::Resync) => self.look_at_all(),
                    None => return,
                },
            }
        }
    }

    fn nodes_changed(&self, changes: &[Change<Node>]) {
        for change in changes {
            let node = &change.key.name;
            self.gone_nodes.lock().forget(node);
            if change.new.is_none() {
                for pod in self.pod_cache.on_node(node) {
                    self.look_at(Some(&pod));
                }
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

    /// Puts a pod in the queue if one of its owners, or its node, is not in the cache.
    fn look_at(&self, pod: Option<&Arc<Pod>>) {
        let Some(pod) = pod else { return };
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let has_lost_owner =
            !pod.is_deleting() && owners.any(|owner| is_set(owner) && !self.is_cached(pod, owner));
        if has_lost_owner || self.unknown_node(pod).is_some() {
            self.queue.add(pod.key());
        }
    }

    /// The node that the pod is bound to, if it is not in the cache.
    fn unknown_node<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        pod.node_name().filter(|node| self.node_cache.get(&ObjectKey::cluster(node)).is_none())
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
            Verdict::Delete => {
                self.delete(&pod, "its owners are gone").await?;
                // Seen again, being deleted, if it stays.
                return Ok(Outcome::Done);
            }
            Verdict::Unlink(uids) => self.unlink(&pod, &uids).await?,
        }
        self.wind_up_if_stranded(&pod).await
    }

    /// Stands in for the kubelet of a node that does not exist.
    async fn wind_up_if_stranded(&self, pod: &Pod) -> Result<Outcome, Error> {
        let Some(node) = self.unknown_node(pod) else { return Ok(Outcome::Done) };
        match stranded::plan(pod.is_deleting(), self.gone_for(node).await?) {
            stranded::Verdict::Keep => {}
            stranded::Verdict::Wait(delay) => return Ok(Outcome::After(delay)),
            stranded::Verdict::Delete => self.delete(pod, "its node is gone").await?,
            stranded::Verdict::Finish => {
                self.pods.finish_delete(&pod.key(), pod.uid()).await?;
                tracing::info!(pod = pod.name(), node, "deletion finished: its node is gone");
            }
        }
        Ok(Outcome::Done)
    }

    /// How long the node has been gone, by the store's own word; none when it is there.
    async fn gone_for(&self, node: &str) -> Result<Option<Duration>, Error> {
        let found = self.nodes.find(&ObjectKey::cluster(node)).await;
        let mut gone_nodes = self.gone_nodes.lock();
        if let Ok(None) = found {
            return Ok(Some(gone_nodes.found_gone(node, Instant::now())));
        }
        // While the store is away, no node can be registered: that time does not count.
        gone_nodes.forget(node);
        found.map(|_| None)
    }

    async fn delete(&self, pod: &Pod, reason: &'static str) -> Result<(), Error> {
        // With the revision: somebody may be giving it another owner right now.
        let options = DeleteOptions {
            uid: Some(pod.uid().to_owned()),
            revision: Some(pod.revision()),
            ..DeleteOptions::default()
        };
        match self.pods.delete(&pod.key(), &options).await {
            Ok(_) => {
                tracing::info!(pod = pod.name(), reason, "deleted");
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
