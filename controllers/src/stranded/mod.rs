//! Pods whose node does not exist, so that no kubelet winds them up.
//!
//! Woken when a node goes, and by every pod that is bound to one nobody knows of. The cache only
//! says where to look: whether a node is gone is asked of the store itself, right before anything
//! is deleted.
//!
//! Now and then the copies of pods under their nodes are made what the pods are, for those that
//! somebody wrote past the API.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Cache, Change, DeleteOptions, Error, Notice, Object, ObjectKey, Outcome, Store, WorkQueue,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::reconcile::{self, Chain};
use plan::{GoneNodes, Verdict, plan};

/// How often the copies of pods under their nodes are compared with the pods.
const REPAIR_INTERVAL: Duration = Duration::from_secs(60);

/// Collects the pods that nobody runs any more.
pub(crate) struct StrandedPods {
    pods: Api<Pod>,
    nodes: Api<Node>,
    pod_cache: Cache<Pod>,
    node_cache: Cache<Node>,
    queue: WorkQueue<ObjectKey>,
    gone_nodes: Mutex<GoneNodes>,
}

impl StrandedPods {
    pub(crate) fn new(store: &Store, pod_cache: Cache<Pod>, node_cache: Cache<Node>) -> Self {
        Self {
            pods: store.api(),
            nodes: store.api(),
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
        reconcile::run("stranded-pods", this.queue.clone(), workers, cancelled, listen, work).await;
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
        let (mut pods, mut nodes) = (self.pod_cache.subscribe(), self.node_cache.subscribe());
        // Without all of them, everything would look as if it were gone.
        if !self.pod_cache.synced().await || !self.node_cache.synced().await {
            return;
        }
        loop {
            tokio::select! {
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

    fn look_at_all(&self) {
        for pod in self.pod_cache.list() {
            self.look_at(Some(&pod));
        }
    }

    /// Puts a pod in the queue if its node is not in the cache.
    fn look_at(&self, pod: Option<&Arc<Pod>>) {
        let Some(pod) = pod else { return };
        if self.unknown_node(pod).is_some() {
            self.queue.add(pod.key());
        }
    }

    /// The node that the pod is bound to, if it is not in the cache.
    fn unknown_node<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        pod.node_name().filter(|node| self.node_cache.get(&ObjectKey::cluster(node)).is_none())
    }

    /// Stands in for the kubelet of a node that does not exist.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.pod_cache.get(key) else { return Ok(Outcome::Done) };
        let Some(node) = self.unknown_node(&pod) else { return Ok(Outcome::Done) };
        match plan(pod.is_deleting(), self.gone_for(node).await?) {
            Verdict::Keep => {}
            Verdict::Wait(delay) => return Ok(Outcome::After(delay)),
            Verdict::Delete => self.delete(&pod).await?,
            Verdict::Finish => {
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

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: Some(pod.uid().to_owned()),
            revision: Some(pod.revision()),
            ..DeleteOptions::default()
        };
        match self.pods.delete(&pod.key(), &options).await {
            Ok(_) => {
                tracing::info!(pod = pod.name(), reason = "its node is gone", "deleted");
                Ok(())
            }
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
