//! The controllers: what turns the wishes in the store into pods on nodes.
//!
//! | controller | watches | does |
//! | --- | --- | --- |
//! | ReplicaSet | sets, pods | creates and deletes pods until there are as many as wanted |
//! | scheduler | pods, nodes, priority classes | binds pods to nodes |
//! | node lifecycle | nodes, leases, pods | marks nodes that are in trouble, and moves their pods |
//! | garbage | all but events | deletes objects whose owners are gone, and lets owners go |
//! | stranded pods | pods, nodes | deletes pods whose nodes are gone |
//!
//! All of them are built alike. Informers keep caches like the store; changes become keys in a
//! queue; workers take a key, decide with a pure function what is to be done about it as things
//! are, and do that. Nothing is remembered that is not in the store, but for hints that save
//! writing twice, so a controller that is killed at any moment goes on where it was.
//!
//! They may run several times over: one copy is elected and acts ([`election`]); the informers of
//! the others run as well, so that whichever is next begins with caches that are full ([`work`]).

mod config;
mod election;
#[cfg(test)]
mod fixture;
mod garbage;
mod node_lifecycle;
mod pod;
mod reconcile;
mod replicaset;
mod scheduler;
mod stranded;
mod work;

pub use config::{Config, Error};
pub use election::{ElectionConfig, InvalidTimes};
pub use node_lifecycle::NodeLifecycleConfig;

use std::time::Duration;

use api::taints::DefaultTolerations;
use api::{Client, ClientConfig, Clock, EventRecorder, Store};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use election::Candidate;
use work::Work;

/// The running controllers, or those that stand by.
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
    config.election.check()?;
    let client = Client::new(ClientConfig::for_endpoints(config.store.clone()))?;
    let store = Store::new(client, Clock::system()).with_tolerations(DefaultTolerations {
        not_ready_seconds: config.default_not_ready_toleration_seconds,
        unreachable_seconds: config.default_unreachable_toleration_seconds,
    });
    let (events, event_writer) = EventRecorder::new(&store, "controllers", config.event_ttl);
    let mut random = StdRng::from_os_rng();
    let mut informers = JoinSet::new();
    let stop = CancellationToken::new();
    let mut controllers = JoinSet::new();
    let candidate = config.election.leader_elect.then(|| {
        let (candidate, leases) = Candidate::new(&store, &config.election, &events, &mut random);
        informers.spawn(leases.run(CancellationToken::new()));
        candidate
    });
    tracing::info!(store = %config.store, "controllers: running");
    let work = Work::new(store, events, config, random, &mut informers);
    controllers.spawn(work.run(candidate, stop.clone()));
    let written = CancellationToken::new();
    let mut event_writers = JoinSet::new();
    event_writers.spawn(event_writer.run(written.clone()));
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
    /// takes longer is cut off, which does no harm. A leader lets go of its lease in the end.
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
