//! The ReplicaSet controller: as many pods as the set asks for.
//!
//! Woken by every change of a set or of a pod that is, or could be, a set's own; what there is to
//! do is decided by [`plan()`] from the caches alone. It ends with exactly as many pods as wanted
//! whatever happens in between: a controller that is killed leaves nothing behind but pods that
//! name their owner, which the next one counts; a write whose answer is lost is resolved before
//! the next is decided ([`expectations`]).

mod act;
mod expectations;
mod plan;
mod rank;
mod status;
mod template;

use std::sync::Arc;

use api::{
    Api, Cache, Change, Error, EventRecorder, Notice, Object, ObjectKey, Outcome, Selector, Store,
    WorkQueue,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::reconcile;
use act::Attempt;
use expectations::{Expectations, Standing};
use plan::plan;

/// Keeps the pods of all sets at their numbers.
pub(crate) struct Controller {
    sets: Api<ReplicaSet>,
    pods: Api<Pod>,
    set_cache: Cache<ReplicaSet>,
    pod_cache: Cache<Pod>,
    queue: WorkQueue<ObjectKey>,
    expectations: Mutex<Expectations>,
    events: EventRecorder,
    random: Mutex<StdRng>,
}

impl Controller {
    pub(crate) fn new(
        store: &Store,
        set_cache: Cache<ReplicaSet>,
        pod_cache: Cache<Pod>,
        events: EventRecorder,
        random: StdRng,
    ) -> Self {
        Self {
            sets: store.api(),
            pods: store.api(),
            set_cache,
            pod_cache,
            queue: WorkQueue::new(reconcile::BACKOFF),
            expectations: Mutex::default(),
            events,
            random: Mutex::new(random),
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
        reconcile::run("replicaset", this.queue.clone(), workers, cancelled, this.listen(), work)
            .await;
    }

    /// Turns changes into keys of sets to look at.
    async fn listen(&self) {
        let (mut sets, mut pods) = (self.set_cache.subscribe(), self.pod_cache.subscribe());
        // Nothing may be decided before both are known.
        if !self.set_cache.synced().await || !self.pod_cache.synced().await {
            return;
        }
        loop {
            tokio::select! {
                notice = sets.next() => match notice {
                    Some(Notice::Changed(changes)) => self.sets_changed(changes),
                    Some(Notice::Resync) => self.add_all(),
                    None => return,
                },
                notice = pods.next() => match notice {
                    Some(Notice::Changed(changes)) => self.pods_changed(&changes),
                    Some(Notice::Resync) => self.add_all(),
                    None => return,
                },
            }
        }
    }

    fn add_all(&self) {
        for set in self.set_cache.list() {
            self.queue.add(set.key());
        }
    }

    fn sets_changed(&self, changes: Vec<Change<ReplicaSet>>) {
        for change in changes {
            if let Some(old) = change.old
                && change.new.is_none_or(|new| new.uid() != old.uid())
            {
                self.expectations.lock().forget(old.uid());
            }
            self.queue.add(change.key);
        }
    }

    fn pods_changed(&self, changes: &[Change<Pod>]) {
        for change in changes {
            // Also the set that a pod has left must hear of it.
            for pod in change.old.iter().chain(&change.new) {
                for set in concerned(pod, || self.set_cache.list()) {
                    self.queue.add(set);
                }
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(set) = self.set_cache.get(key) else { return Ok(Outcome::Done) };
        let unresolved = self.expectations.lock().take_unresolved(set.uid());
        self.write_all(&set, unresolved, Attempt::Repeated).await?;
        // The revision comes first: the pods are at least as new.
        let revision = self.pod_cache.revision();
        let mut pods = self.pod_cache.controlled_by(set.uid());
        pods.extend(self.pod_cache.uncontrolled());
        pods.retain(|pod| pod.namespace() == set.namespace());
        let standing = self.expectations.lock().standing(set.uid(), revision, Instant::now());
        if standing == Standing::GivenUp {
            tracing::warn!("pods written a while ago cannot be seen: going by those that can");
        }
        let settled = !matches!(standing, Standing::Waiting(_));
        let plan = match plan(&set, &pods, settled, self.sets.clock().now()) {
            Ok(plan) => plan,
            Err(invalid) => {
                tracing::warn!(%invalid, "nothing can be done for this ReplicaSet");
                return Ok(Outcome::Done);
            }
        };
        let again = plan.recheck_after;
        let acted = self.act(&set, plan).await;
        if self.set_cache.get(key).is_none_or(|now| now.uid() != set.uid()) {
            // It went meanwhile, and nobody will ask for what was noted since.
            self.expectations.lock().forget(set.uid());
        }
        acted?;
        let waiting = match standing {
            Standing::Waiting(left) => Some(left),
            Standing::Settled | Standing::GivenUp => None,
        };
        Ok(waiting.into_iter().chain(again).min().map_or(Outcome::Done, Outcome::After))
    }
}

/// The sets that a pod means something to: the one that controls it, or, when nobody does, all
/// that could adopt it.
fn concerned(pod: &Pod, sets: impl FnOnce() -> Vec<Arc<ReplicaSet>>) -> Vec<ObjectKey> {
    match pod.controller() {
        Some(owner) if owner.kind == ReplicaSet::kind().kind => {
            vec![ObjectKey::namespaced(pod.namespace(), &owner.name)]
        }
        Some(_) => Vec::new(),
        None => {
            let could_adopt =
                |set: &Arc<ReplicaSet>| set.namespace() == pod.namespace() && selects(set, pod);
            sets().iter().filter(|set| could_adopt(set)).map(|set| set.key()).collect()
        }
    }
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    let selector = set.spec.as_ref().and_then(|spec| Selector::new(&spec.selector).ok());
    selector.is_some_and(|selector| selector.matches(pod.metadata.labels.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{pod, replicaset};

    #[test]
    fn a_pod_wakes_its_set_or_those_that_could_adopt_it() {
        let mut elsewhere = replicaset(1);
        elsewhere.metadata.namespace = Some("elsewhere".into());
        let sets = || vec![Arc::new(replicaset(1)), Arc::new(elsewhere.clone())];
        let nginx = || ObjectKey::namespaced("default", "nginx");
        let labelled = || pod("a").label("app", "nginx");
        let rows = [
            (labelled().owned_by("rs-uid"), vec![nginx()]),
            // Its labels do not matter once it is owned.
            (pod("a").owned_by("rs-uid"), vec![nginx()]),
            (labelled().owned_by("job-uid").owner_kind("Job"), vec![]),
            (labelled(), vec![nginx()]),
            (pod("a").label("app", "redis"), vec![]),
        ];
        for (pod, expected) in rows {
            let pod = pod.build();
            assert_eq!(concerned(&pod, sets), expected, "{:?}", pod.metadata);
        }
    }
}
