//! Carries out what [`plan`](crate::plan) decides, one pod at a time and many pods side by side.
//!
//! A pod is worked on by one worker at a time; while an engine call of one pod hangs, others go on.
//! A look at a pod begins with the engine itself, not with what was seen before, so that it does
//! not matter which event made it necessary, or how many. What a step did is seen at the next look.

mod carry_out;
mod events;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Backoff, Cache, Clock, Error, EventRecorder, Informer, Notice, Object, ObjectKey, Scope,
    Store, Subject, WorkItem, WorkQueue,
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::events::Told;
use crate::Shared;
use crate::engine;
use crate::error::Chain;
use crate::hooks::Hooks;
use crate::images::Puller;
use crate::node::NodeFacts;
use crate::plan::{Action, ERR_IMAGE_PULL, Input, Plan, plan, plan_orphans};
use crate::probe::{Listener, Probes, Reason, Report};
use crate::record::{Record, annotate, told_restarts};
use crate::runtime::{Container, ContainerState, Identity, Runtime, RuntimeError};
use crate::server::Served;
use crate::spec::{self, Host};

/// Pods worked on at a time.
const WORKERS_MAX: usize = 64;
/// Work on a pod that takes longer gives up its place among those [`WORKERS_MAX`]: an engine that
/// hangs over some pods must not hold up the others.
const SLOW: Duration = Duration::from_secs(5);
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
    host: Host,
    runtime: Arc<dyn Runtime>,
    pods: Api<Pod>,
    cache: Cache<Pod>,
    queue: WorkQueue<ObjectKey>,
    records: Mutex<HashMap<ObjectKey, Record>>,
    puller: Puller,
    hooks: Hooks,
    probes: Probes,
    events: EventRecorder,
    clock: Clock,
}

/// Hears what probes find.
struct ProbeListener {
    queue: WorkQueue<ObjectKey>,
    events: EventRecorder,
}

impl Listener for ProbeListener {
    fn changed(&self, pod: &ObjectKey) {
        self.queue.add(pod.clone());
    }

    fn reported(&self, pod: &Pod, report: Report) {
        let Report { container, reason, message } = report;
        let subject = Subject::of(pod);
        let is_init = spec::init_containers(pod).iter().any(|init| init.name == container);
        let subject = if is_init {
            subject.init_container(&container)
        } else {
            subject.container(&container)
        };
        match reason {
            Reason::Unhealthy => self.events.warning(subject, "Unhealthy", message),
            Reason::ProbeError => self.events.warning(subject, "ProbeError", message),
            Reason::Killing => self.events.normal(subject, "Killing", message),
        }
    }
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
pub(crate) async fn run(facts: NodeFacts, shared: Shared, stop: CancellationToken) {
    let Shared { runtime, store, events, cluster, nodes, allow_host_access } = shared;
    let mut tasks = JoinSet::new();
    let pods = store.api::<Pod>();
    let informer = Informer::new(pods.clone(), Scope::Node(facts.name.clone()));
    let cache = informer.cache();
    tasks.spawn(informer.run(stop.clone()).in_current_span());
    nodes.add(Served { node: facts.name.clone(), pods: cache.clone(), runtime: runtime.clone() });
    // Until the store has told which cluster this is and which pods there are, every container
    // would look like an orphan.
    let known = async {
        let cluster = cluster.get_or_init(|| cluster_id(&store)).await;
        cache.synced().await.then(|| cluster.clone())
    };
    if let Some(Some(cluster)) = stop.run_until_cancelled(known).await {
        let queue = WorkQueue::new(RETRIES);
        let events = events.on_host(&facts.name);
        let listener = ProbeListener { queue: queue.clone(), events: events.clone() };
        let (pulled, hooked) = (queue.clone(), queue.clone());
        let pods = Arc::new(Pods {
            host: Host { cluster, node: facts.name, ip: facts.ip.to_string(), allow_host_access },
            puller: Puller::new(runtime.clone(), move |pod| pulled.add(pod)),
            hooks: Hooks::new(runtime.clone(), move |pod| hooked.add(pod)),
            probes: Probes::new(runtime.clone(), store.clock().clone(), Arc::new(listener)),
            runtime,
            events,
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
        &self.host.node
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
        identity.cluster == self.host.cluster
            || self.cache.get(&identity.pod).is_some_and(|pod| pod.uid() == identity.pod_uid)
    }

    /// Removes the volumes of pods that are gone, which went while no kubelet was there to see it.
    pub(crate) async fn sweep_volumes(&self) -> Result<(), RuntimeError> {
        for volume in self.runtime.list_volumes(&self.host.node, None).await? {
            let is_wanted =
                || self.cache.get(&volume.pod).is_some_and(|pod| pod.uid() == volume.pod_uid);
            if volume.cluster == self.host.cluster && !is_wanted() {
                tracing::info!(volume = volume.name, "the volume has no pod any more");
                match self.runtime.remove_volume(&volume.name).await {
                    // Its containers are still on their way out.
                    Err(RuntimeError::Conflict(_)) => {}
                    outcome => outcome?,
                }
            }
        }
        Ok(())
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

    async fn work(self: Arc<Self>, item: WorkItem<ObjectKey>, slot: OwnedSemaphorePermit) {
        let mut work = std::pin::pin!(self.work_on(item));
        if tokio::time::timeout(SLOW, &mut work).await.is_err() {
            drop(slot);
            tracing::debug!("this takes long");
            work.await;
        }
    }

    async fn work_on(&self, item: WorkItem<ObjectKey>) {
        let key = item.key();
        let mut record = self.records.lock().remove(key).unwrap_or_default();
        let outcome = self.look_at(key, &mut record).await;
        match &outcome {
            Ok(Next::Gone) => {
                self.puller.forget(key);
                self.probes.forget(key);
            }
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

    /// Looks at a pod and its containers, and takes the steps that are due.
    async fn step(&self, key: &ObjectKey, record: &mut Record) -> Result<Next, Unfinished> {
        let pod = self.cache.get(key).map(|cached| record.turn_to(cached));
        let containers = self.containers(key).await?;
        record.stopping.retain(|id, _| containers.iter().any(|container| container.id == *id));
        record.hooks_ended(|id| !self.hooks.is_running(id));
        let uid = pod.as_deref().map(Object::uid);
        let (own, others): (Vec<_>, Vec<_>) = containers
            .into_iter()
            .partition(|container| uid.is_some_and(|uid| uid == container.identity.pod_uid));
        // An earlier pod of that name has to be out of the way first.
        let is_left = |container: &Container| container.identity.cluster == self.host.cluster;
        let left: Vec<_> = others.into_iter().filter(is_left).collect();
        if !left.is_empty() {
            let (actions, wake_at) = plan_orphans(&left, &record.stopping, self.clock.now());
            let mut next = wake_at.map_or(Next::Idle, |at| self.until(at));
            let last = actions.len() == left.len()
                && actions.iter().all(|action| matches!(action, Action::Remove { .. }));
            for action in actions {
                tracing::info!(?action, "the container has no pod any more");
                if self.carry_out(action, None, &left, record).await? == Next::Again {
                    next = Next::Again;
                }
            }
            if last {
                for orphan in &left {
                    self.remove_volumes(&orphan.identity.pod_uid).await?;
                }
            }
            return Ok(next);
        }
        match pod {
            None => Ok(Next::Gone),
            Some(pod) => self.step_for(&pod, &own, record).await,
        }
    }

    async fn step_for(
        &self,
        pod: &Arc<Pod>,
        seen: &[Container],
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        let key = pod.key();
        let now = self.clock.now();
        for (image, outcome) in self.puller.take(&key) {
            let error = outcome.err().map(|error| Chain(&*error).to_string());
            for container in record.pull_ended(&image) {
                match &error {
                    None => {
                        self.tell_of(pod, Told::pulled(&container, &image));
                        record.pulled.insert(container);
                    }
                    Some(why) => {
                        self.failed(pod, &container, ERR_IMAGE_PULL, why.clone(), record);
                    }
                }
            }
        }
        for container in seen {
            if matches!(container.state, ContainerState::Running { .. }) {
                record.succeeded(&container.identity.container);
            }
        }
        let previous = record.previous(pod);
        let refused = if seen.is_empty() { spec::check(pod, &self.host).err() } else { None };
        let probes = self.probes.follow(pod, seen);
        let plan = plan(&Input {
            pod,
            previous: &previous,
            seen,
            failures: &record.failures,
            pulling: &self.puller.pulling(&key),
            stopping: &record.stopping,
            probes: &probes,
            refused: refused.as_ref(),
            scheme: self.runtime.scheme(),
            host_ip: &self.host.ip,
            now,
        });
        if plan.actions.is_empty() {
            self.tell(pod, &previous, &plan, record).await?;
            return Ok(plan.wake_at.map_or(Next::Idle, |at| self.until(at)));
        }
        if plan.tell_first
            && let Err(error) = self.tell(pod, &previous, &plan, record).await
        {
            // The pod must not stay down because the store is; it is told later.
            tracing::debug!(error = %Chain(&error), "the exit is not told of yet");
        }
        let mut next = plan.wake_at.map_or(Next::Idle, |at| self.until(at));
        for action in plan.actions {
            if let Some(container) = first_asked_to_end(&action, seen, record)
                // Its probe has told already, and why.
                && !probes.get(&container.id).is_some_and(|results| results.must_restart)
            {
                self.tell_of(pod, Told::killing(&container.identity.container));
            }
            match self.carry_out(action, Some(pod), seen, record).await? {
                Next::Gone => return Ok(Next::Gone),
                Next::Again => next = Next::Again,
                Next::After(_) | Next::Idle => {}
            }
        }
        Ok(next)
    }

    /// Writes what the plan has to tell, if it is news.
    async fn tell(
        &self,
        pod: &Arc<Pod>,
        previous: &PodStatus,
        plan: &Plan,
        record: &mut Record,
    ) -> Result<(), Error> {
        let restarts = told_restarts(&plan.status);
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
        let written = write.await;
        if !matches!(written, Err(Error::Conflict { .. } | Error::NotFound { .. })) {
            for told in events::of_change(pod, previous, &plan.status) {
                self.tell_of(pod, told);
            }
        }
        match written {
            Ok(written) => {
                record.wrote(written);
                Ok(())
            }
            // The informer is about to say so, too.
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                // After a conflict the status is made anew, from what somebody else wrote. One that
                // could not be written at all is kept, to go on from.
                if !matches!(error, Error::Conflict { .. }) {
                    record.unwritten = Some(plan.status.clone());
                }
                Err(error)
            }
        }
    }

    /// The pod's containers as the engine has them at this moment.
    async fn containers(&self, key: &ObjectKey) -> Result<Vec<Container>, RuntimeError> {
        let mut containers = Vec::new();
        for listed in self.runtime.list(&self.host.node, Some(key)).await? {
            containers.extend(self.runtime.inspect(&listed.id).await?);
        }
        Ok(containers)
    }

    fn until(&self, at: Timestamp) -> Next {
        let wait = at.duration_since(self.clock.now());
        Next::After(Duration::try_from(wait).unwrap_or(Duration::ZERO))
    }
}

/// The container that a step asks to end, if it was not asked before.
fn first_asked_to_end<'a>(
    action: &Action,
    seen: &'a [Container],
    record: &Record,
) -> Option<&'a Container> {
    let (Action::PreStop { id, .. } | Action::Stop { id } | Action::Kill { id }) = action else {
        return None;
    };
    seen.iter().find(|one| one.id == *id && !record.stopping.contains_key(id))
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

/// Lets a panic of a task go on; being aborted is none.
fn rethrow(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
