//! What the copy that leads does, and the others are ready to do.
//!
//! The informers run in every copy. The controllers are made anew for each term: they begin when
//! the caches show all that was written before it, so that they count no pod twice and miss none,
//! and they write to a store in which their writes are refused once the term is over. Then they are
//! dropped with all that they remember, and this copy stands by again.

use std::time::Duration;

use api::{Cache, Error, EventRecorder, Informer, Object, Scope, Store, Term};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::election::Candidate;
use crate::reconcile::Chain;
use crate::{Config, garbage, node_lifecycle, replicaset, scheduler, stranded};

/// Objects that the garbage collector looks at at the same time.
const GARBAGE_WORKERS: usize = 16;
/// Pods without nodes that are deleted at the same time.
const STRANDED_WORKERS: usize = 8;
/// Nodes that are marked at the same time.
const NODE_WORKERS: usize = 8;
/// The pause before the store is asked again how far the caches have to get.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);

/// Everything that is needed to run the controllers, again and again.
pub(crate) struct Work {
    store: Store,
    caches: Caches,
    events: EventRecorder,
    config: Config,
    random: StdRng,
}

/// The caches that the controllers share.
struct Caches {
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    classes: Cache<PriorityClass>,
}

impl Work {
    /// Starts the informers among those of the process.
    pub(crate) fn new(
        store: Store,
        events: EventRecorder,
        config: Config,
        random: StdRng,
        informers: &mut JoinSet<()>,
    ) -> Self {
        let caches = Caches {
            sets: follow(&store, informers),
            pods: follow(&store, informers),
            nodes: follow(&store, informers),
            leases: follow(&store, informers),
            classes: follow(&store, informers),
        };
        Self { store, caches, events, config, random }
    }

    /// Runs until it is stopped, or until a controller ends by itself, whenever the candidate is
    /// elected; without one, at once.
    pub(crate) async fn run(mut self, candidate: Option<Candidate>, stop: CancellationToken) {
        let mut controllers = JoinSet::new();
        let Some(candidate) = candidate else {
            let store = self.store.clone();
            return self.act(store, &mut controllers, &stop).await;
        };
        while let Some(mut leadership) = stop.run_until_cancelled(candidate.elected()).await {
            let term = leadership.term().clone();
            let lost = tokio::select! {
                // First, so that one that was paused does nothing more.
                biased;
                () = candidate.keep(&mut leadership) => true,
                () = self.lead(term, &mut controllers, &stop) => false,
            };
            controllers.shutdown().await;
            if !lost {
                candidate.resign(&leadership).await;
                return;
            }
        }
    }

    async fn lead(&mut self, term: Term, controllers: &mut JoinSet<()>, stop: &CancellationToken) {
        let Some(true) = stop.run_until_cancelled(self.caches.catch_up(&self.store)).await else {
            return;
        };
        tracing::debug!("controllers: caught up");
        let store = self.store.clone().during(term);
        self.act(store, controllers, stop).await;
    }

    /// Runs the controllers on a store until one of them ends, or, when they are stopped, all.
    async fn act(&mut self, store: Store, controllers: &mut JoinSet<()>, stop: &CancellationToken) {
        self.start(&store, controllers, stop);
        while let Some(ended) = controllers.join_next().await {
            ended.unwrap_or_else(go_on_panicking);
            if !stop.is_cancelled() {
                return;
            }
        }
    }

    fn start(&mut self, store: &Store, controllers: &mut JoinSet<()>, stop: &CancellationToken) {
        let Self { caches, events, config, random, .. } = self;
        let replicaset = replicaset::Controller::new(
            store,
            caches.sets.clone(),
            caches.pods.clone(),
            events.as_component("replicaset-controller"),
            StdRng::from_rng(random),
        );
        let garbage = garbage::GarbageCollector::new(
            store,
            garbage::Caches {
                sets: caches.sets.clone(),
                pods: caches.pods.clone(),
                nodes: caches.nodes.clone(),
                leases: caches.leases.clone(),
                classes: caches.classes.clone(),
            },
        );
        let stranded =
            stranded::StrandedPods::new(store, caches.pods.clone(), caches.nodes.clone());
        let scheduler = scheduler::Scheduler::new(
            store,
            scheduler::Caches {
                pods: caches.pods.clone(),
                nodes: caches.nodes.clone(),
                classes: caches.classes.clone(),
            },
            events.as_component(scheduler::SCHEDULER_NAME),
            StdRng::from_rng(random),
        );
        let node_lifecycle = node_lifecycle::NodeLifecycle::new(
            store,
            caches.nodes.clone(),
            caches.leases.clone(),
            caches.pods.clone(),
            events,
            &config.node_lifecycle,
        );
        controllers.spawn(replicaset.run(config.concurrent_replicaset_syncs.get(), stop.clone()));
        controllers.spawn(garbage.run(GARBAGE_WORKERS, stop.clone()));
        controllers.spawn(stranded.run(STRANDED_WORKERS, stop.clone()));
        controllers.spawn(scheduler.run(stop.clone()));
        controllers.spawn(node_lifecycle.run(NODE_WORKERS, stop.clone()));
    }
}

impl Caches {
    /// Waits until the caches show all that was written before; false when the informers ended.
    async fn catch_up(&self, store: &Store) -> bool {
        let all = async || {
            let caught_up = tokio::try_join!(
                catch_up(store, &self.sets),
                catch_up(store, &self.pods),
                catch_up(store, &self.nodes),
                catch_up(store, &self.leases),
                catch_up(store, &self.classes),
            )?;
            let (sets, pods, nodes, leases, classes) = caught_up;
            Ok::<_, Error>(sets && pods && nodes && leases && classes)
        };
        loop {
            match all().await {
                Ok(caught_up) => return caught_up,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "cannot ask how far to catch up");
                    sleep(CATCH_UP_PAUSE).await;
                }
            }
        }
    }
}

async fn catch_up<K: Object>(store: &Store, cache: &Cache<K>) -> Result<bool, Error> {
    store.api::<K>().catch_up(cache, &Scope::All).await
}

fn follow<K: Object>(store: &Store, informers: &mut JoinSet<()>) -> Cache<K> {
    let informer = Informer::new(store.api(), Scope::All);
    let cache = informer.cache();
    informers.spawn(informer.run(CancellationToken::new()));
    cache
}

/// A panic of a controller goes on to whoever runs them all.
fn go_on_panicking(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}
