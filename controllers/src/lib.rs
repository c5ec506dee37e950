//! The controllers: what turns the wishes in the store into pods on nodes.
//!
//! | controller | watches | does |
//! | --- | --- | --- |
//! | ReplicaSet | sets, pods | creates and deletes pods until there are as many as wanted |
//! | scheduler | pods, nodes, priority classes | binds pods to nodes |
//! | node lifecycle | nodes, leases, pods | marks nodes that are in trouble, and moves their pods |
//! | garbage | sets, pods, nodes | deletes pods whose owners or nodes are gone |
//!
//! All of them are built alike. Informers keep caches like the store; changes become keys in a
//! queue; workers take a key, decide with a pure function what is to be done about it as things
//! are, and do that. Nothing is remembered that is not in the store, but for hints that save
//! writing twice, so a controller that is killed at any moment goes on where it was.

mod config;
#[cfg(test)]
mod fixture;
mod garbage;
mod node_lifecycle;
mod pod;
mod reconcile;
mod replicaset;
mod scheduler;

pub use config::{Config, Error};
pub use node_lifecycle::NodeLifecycleConfig;

use std::time::Duration;

use api::taints::DefaultTolerations;
use api::{Client, ClientConfig, Clock, EventRecorder, Informer, Scope, Store};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Deletions of pods without owners that are under way at the same time.
const GARBAGE_WORKERS: usize = 16;
/// Nodes that are marked at the same time.
const NODE_WORKERS: usize = 8;

/// The running controllers.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    controllers: JoinSet<()>,
    /// Aborted when the controllers have ended, which cannot end well without them.
    informers: JoinSet<()>,
    /// Cancelled when the controllers have ended, so that their last events are written, too.
    written: CancellationToken,
    event_writers: JoinSet<()>,
}

/// Starts the controllers. The store need not be there yet.
///
/// # Errors
/// The configuration cannot be used.
pub async fn start(config: Config) -> Result<Running, Error> {
    let client = Client::new(ClientConfig::for_endpoints(config.store.clone()))?;
    let store = Store::new(client, Clock::system()).with_tolerations(DefaultTolerations {
        not_ready_seconds: config.default_not_ready_toleration_seconds,
        unreachable_seconds: config.default_unreachable_toleration_seconds,
    });
    let (events, event_writer) = EventRecorder::new(&store, "controllers", config.event_ttl);
    let mut informers = JoinSet::new();
    let sets = Informer::new(store.api(), Scope::All);
    let pods = Informer::new(store.api(), Scope::All);
    let nodes = Informer::new(store.api(), Scope::All);
    let leases = Informer::new(store.api(), node_lifecycle::leases());
    let classes = Informer::new(store.api(), Scope::All);
    let (set_cache, pod_cache) = (sets.cache(), pods.cache());
    let (node_cache, lease_cache, class_cache) = (nodes.cache(), leases.cache(), classes.cache());
    informers.spawn(sets.run(CancellationToken::new()));
    informers.spawn(pods.run(CancellationToken::new()));
    informers.spawn(nodes.run(CancellationToken::new()));
    informers.spawn(leases.run(CancellationToken::new()));
    informers.spawn(classes.run(CancellationToken::new()));

    let replicaset = replicaset::Controller::new(
        &store,
        set_cache.clone(),
        pod_cache.clone(),
        events.as_component("replicaset-controller"),
        StdRng::from_os_rng(),
    );
    let garbage =
        garbage::GarbageCollector::new(&store, set_cache, pod_cache.clone(), node_cache.clone());
    let scheduler = scheduler::Scheduler::new(
        &store,
        scheduler::Caches {
            pods: pod_cache.clone(),
            nodes: node_cache.clone(),
            classes: class_cache,
        },
        events.as_component(scheduler::SCHEDULER_NAME),
        StdRng::from_os_rng(),
    );
    let node_lifecycle = node_lifecycle::NodeLifecycle::new(
        &store,
        node_cache,
        lease_cache,
        pod_cache,
        &events,
        &config.node_lifecycle,
    );
    let stop = CancellationToken::new();
    let mut controllers = JoinSet::new();
    controllers.spawn(replicaset.run(config.concurrent_replicaset_syncs.get(), stop.clone()));
    controllers.spawn(garbage.run(GARBAGE_WORKERS, stop.clone()));
    controllers.spawn(scheduler.run(stop.clone()));
    controllers.spawn(node_lifecycle.run(NODE_WORKERS, stop.clone()));
    let written = CancellationToken::new();
    let mut event_writers = JoinSet::new();
    event_writers.spawn(event_writer.run(written.clone()));
    tracing::info!(store = %config.store, "controllers: running");
    Ok(Running { stop, controllers, informers, written, event_writers })
}

impl Running {
    /// Waits until one of them ends by itself, which it only does when something is wrong.
    pub async fn join(&mut self) -> Error {
        let ended = tokio::select! {
            ended = self.controllers.join_next() => ended,
            ended = self.informers.join_next() => ended,
            ended = self.event_writers.join_next() => ended,
        };
        Error::Ended(ended.and_then(Result::err))
    }

    /// Begins nothing more, and lets what is under way finish until `deadline` has passed; what
    /// takes longer is cut off, which does no harm.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.stop.cancel();
        let drained = async {
            while self.controllers.join_next().await.is_some() {}
            self.written.cancel();
            while self.event_writers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(deadline, drained).await.is_err() {
            tracing::warn!("controllers: work was cut off at the deadline");
        }
        self.controllers.shutdown().await;
        self.informers.shutdown().await;
        self.event_writers.shutdown().await;
    }
}
