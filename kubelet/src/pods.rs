//! Carries out what [`plan`](crate::plan) decides, one pod at a time and many pods side by side.
//!
//! A pod is worked on by one worker at a time; while an engine call of one pod hangs, others go on.
//! A look at a pod begins with the engine itself, not with what was seen before, so that it does
//! not matter which event made it necessary, or how many. What a step did is seen at the next look.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Backoff, Cache, Clock, Error, Informer, Notice, Object, ObjectKey, Scope, Store, WorkItem,
    WorkQueue,
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::engine;
use crate::error::Chain;
use crate::images::Puller;
use crate::node::NodeFacts;
use crate::plan::{Action, ERR_IMAGE_PULL, Input, Plan, plan, plan_orphan};
use crate::record::{Record, annotate};
use crate::runtime::{Container, ContainerSpec, ContainerState, Identity, Runtime, RuntimeError};
use crate::spec::{self, PullPolicy, Unsupported};
use crate::status;

/// Pods worked on at a time.
const WORKERS_MAX: usize = 64;
/// Steps that one look at a pod may take before others get their turn.
const STEPS_MAX: usize = 8;
/// Until the next look at a pod that is in the middle of something.
const SOON: Duration = Duration::from_millis(200);
/// Waits after a look that failed: the store or the engine is away, or somebody else changed the
/// pod at the same time.
const RETRIES: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(10) };
/// The pause before the store is asked again which cluster this is.
const CLUSTER_ID_PAUSE: Duration = Duration::from_secs(1);
/// The lease whose uid is the cluster's id. It is made by the first kubelet and never renewed.
const CLUSTER_ID_LEASE: (&str, &str) = ("kube-system", "miniku-cluster");

/// The pods of one node.
pub(crate) struct Pods {
    node: String,
    host_ip: String,
    cluster: String,
    runtime: Arc<dyn Runtime>,
    pods: Api<Pod>,
    cache: Cache<Pod>,
    queue: WorkQueue<ObjectKey>,
    records: Mutex<HashMap<ObjectKey, Record>>,
    puller: Puller,
    clock: Clock,
}

/// A look at a pod that could not be finished.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Engine(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] Error),
}

impl Unfinished {
    /// Whether the engine or the store is away, which the heartbeat tells for all pods at once.
    fn is_outage(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_outage(),
            Self::Store(error) => matches!(error, Error::Store(_)),
        }
    }
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Look again at once.
    Again,
    /// Look again after that long, or when something happens.
    After(Duration),
    /// Nothing until something happens.
    Idle,
    /// The pod and its containers are gone.
    Gone,
}

/// Runs the node's pods until told to stop; work that has begun is then finished.
pub(crate) async fn run(
    facts: NodeFacts,
    runtime: Arc<dyn Runtime>,
    store: Store,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let pods = store.api::<Pod>();
    let informer = Informer::new(pods.clone(), Scope::Node(facts.name.clone()));
    let cache = informer.cache();
    tasks.spawn(informer.run(stop.clone()).in_current_span());
    // Until the store has told which cluster this is and which pods there are, every container
    // would look like an orphan.
    let known = async {
        let cluster = cluster_id(&store).await;
        cache.synced().await.then_some(cluster)
    };
    if let Some(Some(cluster)) = stop.run_until_cancelled(known).await {
        let queue = WorkQueue::new(RETRIES);
        let woken = queue.clone();
        let pods = Arc::new(Pods {
            node: facts.name,
            host_ip: facts.ip.to_string(),
            cluster,
            puller: Puller::new(runtime.clone(), move |pod| woken.add(pod)),
            runtime,
            pods,
            cache,
            queue,
            records: Mutex::default(),
            clock: store.clock().clone(),
        });
        tasks.spawn(pods.clone().follow().in_current_span());
        tasks.spawn(engine::listen(pods.clone(), stop.clone()).in_current_span());
        tasks.spawn(engine::scan(pods.clone(), stop.clone()).in_current_span());
        tasks.spawn(pods.dispatch(stop.clone()).in_current_span());
    }
    // None of them ends before it is told to; if one does, the others must not go on without it.
    if let Some(ended) = tasks.join_next().await {
        rethrow(ended);
    }
    if stop.is_cancelled() {
        while let Some(ended) = tasks.join_next().await {
            rethrow(ended);
        }
    }
}

impl Pods {
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    /// Looks at a pod again.
    pub(crate) fn wake(&self, pod: ObjectKey) {
        self.queue.add(pod);
    }

    /// Looks at every pod again, and at every one that left something behind.
    pub(crate) fn wake_all(&self) {
        let remembered: Vec<ObjectKey> = self.records.lock().keys().cloned().collect();
        let known = self.cache.list().into_iter().map(|pod| pod.key());
        known.chain(remembered).for_each(|pod| self.queue.add(pod));
    }

    /// Whether a container is this kubelet's to remove: made for a pod of this cluster.
    pub(crate) fn is_ours(&self, identity: &Identity) -> bool {
        identity.cluster == self.cluster
            || self.cache.get(&identity.pod).is_some_and(|pod| pod.uid() == identity.pod_uid)
    }

    async fn follow(self: Arc<Self>) {
        let mut notices = self.cache.subscribe();
        while let Some(notice) = notices.next().await {
            match notice {
                Notice::Resync => self.wake_all(),
                Notice::Changed(changes) => {
                    changes.into_iter().for_each(|change| self.wake(change.key));
                }
            }
        }
    }

    async fn dispatch(self: Arc<Self>, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(WORKERS_MAX));
        let mut work = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = work.join_next() => rethrow(ended),
                (item, slot) = self.next(&slots) => {
                    let span = tracing::info_span!("reconcile", pod = %item.key());
                    work.spawn(self.clone().work(item, slot).instrument(span));
                }
            }
        }
        while let Some(ended) = work.join_next().await {
            rethrow(ended);
        }
    }

    async fn next(&self, slots: &Arc<Semaphore>) -> (WorkItem<ObjectKey>, OwnedSemaphorePermit) {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        (self.queue.next().await, slot)
    }

    async fn work(self: Arc<Self>, item: WorkItem<ObjectKey>, _slot: OwnedSemaphorePermit) {
        let key = item.key();
        let mut record = self.records.lock().remove(key).unwrap_or_default();
        let outcome = self.look_at(key, &mut record).await;
        match &outcome {
            Ok(Next::Gone) => self.puller.forget(key),
            _ => {
                self.records.lock().insert(key.clone(), record);
            }
        }
        match outcome {
            Ok(next) => {
                self.queue.forget(key);
                match next {
                    Next::Again => self.queue.add_after(key.clone(), SOON),
                    Next::After(wait) => self.queue.add_after(key.clone(), wait),
                    Next::Idle | Next::Gone => {}
                }
            }
            Err(error) => {
                let again_in = self.queue.retry(key.clone());
                let cause = Chain(&error);
                if error.is_outage() {
                    tracing::debug!(error = %cause, ?again_in, "the pod cannot be looked after");
                } else {
                    tracing::warn!(error = %cause, ?again_in, "the pod cannot be looked after");
                }
            }
        }
    }

    /// Takes steps until there is none to take.
    async fn look_at(&self, key: &ObjectKey, record: &mut Record) -> Result<Next, Unfinished> {
        for _ in 0..STEPS_MAX {
            let next = self.step(key, record).await?;
            if next != Next::Again {
                return Ok(next);
            }
        }
        Ok(Next::Again)
    }

    /// Looks at a pod and its containers, and takes one step.
    async fn step(&self, key: &ObjectKey, record: &mut Record) -> Result<Next, Unfinished> {
        let pod = self.cache.get(key).map(|cached| record.turn_to(cached));
        let containers = self.containers(key).await?;
        record.stop_sent_at.retain(|id, _| containers.iter().any(|container| container.id == *id));
        let uid = pod.as_deref().map(Object::uid);
        let (own, others): (Vec<_>, Vec<_>) = containers
            .into_iter()
            .partition(|container| uid.is_some_and(|uid| uid == container.identity.pod_uid));
        // An earlier pod of that name has to be out of the way first.
        let left = others.iter().find(|container| container.identity.cluster == self.cluster);
        if let Some(orphan) = left {
            let stop_sent_at = record.stop_sent_at.get(&orphan.id).copied();
            let (action, wake_at) = plan_orphan(orphan, stop_sent_at, self.clock.now());
            if action != Action::Nothing {
                tracing::info!(container = short(&orphan.id), "the container has no pod any more");
            }
            return self.wind_down(action, wake_at, record).await;
        }
        match pod {
            None => Ok(Next::Gone),
            Some(pod) => self.step_for(&pod, own.first(), record).await,
        }
    }

    async fn step_for(
        &self,
        pod: &Arc<Pod>,
        container: Option<&Container>,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        let key = pod.key();
        let now = self.clock.now();
        match self.puller.take(&key) {
            Some(Ok(())) => record.pulled = true,
            Some(Err(error)) => record.failed(ERR_IMAGE_PULL, Chain(&*error).to_string(), now),
            None => {}
        }
        if container.is_some_and(|c| matches!(c.state, ContainerState::Running { .. })) {
            record.succeeded();
        }
        let previous = record.previous(pod);
        let unsupported = self.spec(pod, 0, 0).err();
        let plan = plan(&Input {
            pod,
            previous: &previous,
            container,
            failure: record.failure.as_ref(),
            next_streak: record.next_streak,
            pulling: self.puller.is_pulling(&key),
            stop_sent_at: container.and_then(|c| record.stop_sent_at.get(&c.id)).copied(),
            unsupported: unsupported.as_ref(),
            scheme: self.runtime.scheme(),
            host_ip: &self.host_ip,
            now,
        });
        if plan.action == Action::Nothing {
            self.tell(pod, &plan, record).await?;
            return Ok(plan.wake_at.map_or(Next::Idle, |at| self.until(at)));
        }
        if plan.record_first
            && let Err(error) = self.tell(pod, &plan, record).await
        {
            // The pod must not stay down because the store is; it is told later.
            tracing::debug!(error = %Chain(&error), "the exit is not told of yet");
        }
        match plan.action {
            Action::Create { restart_count, crash_streak } => {
                self.create(pod, restart_count, crash_streak, record).await
            }
            Action::Start { id } => self.start(&id, record).await,
            Action::Replace { id, next_streak } => {
                tracing::info!(container = short(&id), "replacing the container that ended");
                record.next_streak = Some(next_streak);
                self.runtime.remove(&id).await?;
                Ok(Next::Again)
            }
            Action::FinishDeletion => {
                self.pods.finish_delete(&key, pod.uid()).await?;
                tracing::info!("pod deleted");
                Ok(Next::Gone)
            }
            Action::Nothing | Action::Stop { .. } | Action::Kill { .. } | Action::Remove { .. } => {
                self.wind_down(plan.action, plan.wake_at, record).await
            }
        }
    }

    /// A step towards the end of a container.
    async fn wind_down(
        &self,
        action: Action,
        wake_at: Option<Timestamp>,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        match action {
            Action::Stop { id } => {
                tracing::info!(container = short(&id), "stopping");
                self.runtime.stop(&id).await?;
                record.stop_sent_at.insert(id, self.clock.now());
            }
            Action::Kill { id } => {
                tracing::info!(container = short(&id), "killing, the grace period is over");
                self.runtime.kill(&id).await?;
            }
            Action::Remove { id } => {
                self.runtime.remove(&id).await?;
                return Ok(Next::Again);
            }
            _ => {}
        }
        Ok(wake_at.map_or(Next::Idle, |at| self.until(at)))
    }

    async fn create(
        &self,
        pod: &Pod,
        restart_count: u32,
        crash_streak: u32,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        let spec = match self.spec(pod, restart_count, crash_streak) {
            Ok(spec) => spec,
            Err(Unsupported { reason, message }) => {
                record.failed(reason, message, self.clock.now());
                return Ok(Next::Again);
            }
        };
        if !self.has_image(pod, &spec.image, record).await? {
            return Ok(Next::Again);
        }
        match self.runtime.create(&spec).await {
            Ok(id) => {
                tracing::info!(
                    container = short(&id),
                    image = spec.image,
                    restart_count,
                    "created"
                );
                self.start(&id, record).await
            }
            Err(RuntimeError::Conflict(message)) => {
                self.name_taken(pod, &spec, message, record).await
            }
            Err(error) if error.is_outage() => Err(error.into()),
            Err(error) => {
                record.pulled = false;
                record.failed("CreateContainerError", error.to_string(), self.clock.now());
                Ok(Next::Again)
            }
        }
    }

    /// The name is in use: by this pod's own container if an earlier attempt went through after
    /// all, by one that is about to go, or by a stranger's.
    async fn name_taken(
        &self,
        pod: &Pod,
        spec: &ContainerSpec,
        message: String,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        match self.runtime.inspect(&spec.name).await? {
            Some(other) if other.state == ContainerState::Removing => Ok(Next::After(SOON)),
            Some(own) if own.identity.pod_uid == pod.uid() => Ok(Next::Again),
            _ => {
                let message = format!(
                    "{message} (it does not belong to this pod: remove or rename it, as in \
                     `docker rm -f {}`)",
                    spec.name
                );
                record.failed("CreateContainerError", message, self.clock.now());
                Ok(Next::Again)
            }
        }
    }

    async fn start(&self, id: &str, record: &mut Record) -> Result<Next, Unfinished> {
        match self.runtime.start(id).await {
            Ok(()) => tracing::info!(container = short(id), "started"),
            Err(error) if error.is_outage() => return Err(error.into()),
            Err(error) => {
                // An engine keeps the reason with the container, which then counts as ended. If it
                // does not, the attempt is remembered here.
                let ended = self.runtime.inspect(id).await?.map(|container| container.state);
                if ended == Some(ContainerState::Created) {
                    record.failed("RunContainerError", error.to_string(), self.clock.now());
                } else {
                    tracing::warn!(container = short(id), %error, "the container cannot be started");
                }
            }
        }
        Ok(Next::Again)
    }

    /// Whether the image is there. If not, it is on its way or the attempt has failed.
    async fn has_image(
        &self,
        pod: &Pod,
        image: &str,
        record: &mut Record,
    ) -> Result<bool, Unfinished> {
        if record.pulled {
            return Ok(true);
        }
        let policy = spec::pull_policy(pod);
        if policy != PullPolicy::Always && self.runtime.has_image(image).await? {
            return Ok(true);
        }
        if policy == PullPolicy::Never {
            let message = format!("image {image:?} is not there and imagePullPolicy is Never");
            record.failed("ErrImageNeverPull", message, self.clock.now());
        } else {
            self.puller.begin(image, &pod.key());
        }
        Ok(false)
    }

    /// Writes what the plan has to tell, if it is news.
    async fn tell(&self, pod: &Arc<Pod>, plan: &Plan, record: &mut Record) -> Result<(), Error> {
        let entry = status::container_entry(&plan.status);
        let restarts = entry.and_then(|entry| u32::try_from(entry.restart_count).ok()).unwrap_or(0);
        let apply = |pod: &mut Pod| {
            pod.status = Some(plan.status.clone());
            annotate(&mut pod.metadata.annotations, plan.retry, restarts);
        };
        let mut told = Pod::clone(pod);
        apply(&mut told);
        if told == **pod {
            record.unwritten = None;
            return Ok(());
        }
        let write = self.pods.modify_status_from(pod, |current| {
            if current.revision() != pod.revision() {
                // What was decided may not hold any more: decide anew on what is there now.
                return Err(Error::Conflict {
                    kind: Pod::kind().plural,
                    key: current.key(),
                    reason: "somebody else wrote it first".to_owned(),
                });
            }
            apply(current);
            Ok(())
        });
        match write.await {
            Ok(written) => {
                record.wrote(written);
                Ok(())
            }
            // The informer is about to say so, too.
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                // A status that only tells what can be seen is made anew next time, from what
                // somebody else wrote. One that could not be written at all, or that tells what
                // is about to be destroyed, is kept.
                if plan.record_first || !matches!(error, Error::Conflict { .. }) {
                    record.unwritten = Some(plan.status.clone());
                }
                Err(error)
            }
        }
    }

    /// The pod's containers as the engine has them at this moment.
    async fn containers(&self, key: &ObjectKey) -> Result<Vec<Container>, RuntimeError> {
        let mut containers = Vec::new();
        for listed in self.runtime.list(&self.node, Some(key)).await? {
            containers.extend(self.runtime.inspect(&listed.id).await?);
        }
        Ok(containers)
    }

    fn spec(&self, pod: &Pod, restarts: u32, streak: u32) -> Result<ContainerSpec, Unsupported> {
        spec::container_spec(pod, &self.cluster, &self.node, restarts, streak)
    }

    fn until(&self, at: Timestamp) -> Next {
        let wait = at.duration_since(self.clock.now());
        Next::After(Duration::try_from(wait).unwrap_or(Duration::ZERO))
    }
}

/// The id of the cluster that the store is of, for containers of several clusters on one engine to
/// be told apart.
async fn cluster_id(store: &Store) -> String {
    let leases = store.api::<Lease>();
    let (namespace, name) = CLUSTER_ID_LEASE;
    let key = ObjectKey::namespaced(namespace, name);
    let lease = Lease {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    };
    let mut trouble = false;
    loop {
        let found = match leases.find(&key).await {
            Ok(None) => leases.create(lease.clone()).await.map(Some),
            found => found,
        };
        match found {
            Ok(Some(lease)) => return lease.uid().to_owned(),
            // Another kubelet was faster.
            Ok(None) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => {
                if !std::mem::replace(&mut trouble, true) {
                    tracing::warn!(error = %Chain(&error), "waiting for the store");
                }
                tokio::time::sleep(CLUSTER_ID_PAUSE).await;
            }
        }
    }
}

/// A container id as `docker ps` shows it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Lets a panic of a task go on; being aborted is none.
fn rethrow(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
