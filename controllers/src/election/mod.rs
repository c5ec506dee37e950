//! The election of a leader among several copies of the controllers, with a Lease object.
//!
//! As in Kubernetes: the leader renews its lease again and again; the others watch it, and when it
//! was not renewed for its duration, or was let go, one of them takes it, which the store decides
//! by compare-and-swap. A leader that cannot renew stops acting by its own clock before another one
//! may begin. That is for hand-over to be quick and rare; that no two leaders ever write is not
//! left to clocks, but to [`Term`].

mod config;
mod record;

use std::time::Duration;

use api::{
    Api, Cache, Error, EventRecorder, Informer, Notice, Object, ObjectKey, Scope, Store,
    Subscription, Term,
};
use k8s_openapi::api::coordination::v1::Lease;
use rand::RngCore;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::reconcile::Chain;
use record::{Next, Seen};

pub use config::{ElectionConfig, InvalidTimes};

/// The lease of the controllers.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "miniku-controllers";
/// How long letting go of the lease may take; without that the others wait a little longer.
const RESIGN_WITHIN: Duration = Duration::from_secs(1);
/// The pause before a renewal that failed is tried again, as a part of the retry period.
const RENEWALS_PER_RETRY_PERIOD: u32 = 4;

/// One of those who may lead.
pub(crate) struct Candidate {
    leases: Api<Lease>,
    /// The leases of the namespace, so that a change wakes those who wait.
    cache: Cache<Lease>,
    key: ObjectKey,
    identity: String,
    events: EventRecorder,
    lease_duration: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
}

/// A lease that is held, until it is lost.
pub(crate) struct Leadership {
    lease: Lease,
    term: Term,
    /// When the last renewal that succeeded was begun.
    renewed: Instant,
}

impl Leadership {
    /// What its writes are made in.
    pub(crate) fn term(&self) -> &Term {
        &self.term
    }
}

impl Candidate {
    /// A candidate, and the informer that it needs.
    pub(crate) fn new(
        store: &Store,
        config: &ElectionConfig,
        events: &EventRecorder,
        random: &mut StdRng,
    ) -> (Self, Informer<Lease>) {
        let leases = store.clone().urgent().api();
        let informer = Informer::new(leases.clone(), Scope::Namespace(NAMESPACE.to_owned()));
        let candidate = Self {
            leases,
            cache: informer.cache(),
            key: ObjectKey::namespaced(NAMESPACE, NAME),
            identity: config.identity.clone().unwrap_or_else(|| new_identity(random)),
            events: events.as_component("miniku-controllers"),
            lease_duration: config.leader_elect_lease_duration,
            renew_deadline: config.leader_elect_renew_deadline,
            retry_period: config.leader_elect_retry_period,
        };
        (candidate, informer)
    }

    /// Waits until this candidate is the leader, however long it takes.
    pub(crate) async fn elected(&self) -> Leadership {
        let mut changes = self.cache.subscribe();
        let mut seen: Option<Seen> = None;
        let mut told = None;
        loop {
            let lease = match self.leases.find(&self.key).await {
                Ok(lease) => lease,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "the lease cannot be read");
                    sleep(self.retry_period).await;
                    continue;
                }
            };
            let now = Instant::now();
            let looked = match seen.take() {
                None => Seen::new(lease, now),
                Some(before) => before.again(lease, now),
            };
            let holder = looked.lease.as_ref().and_then(record::holder).map(str::to_owned);
            match looked.next(&self.identity, self.lease_duration, now) {
                Next::Take => match self.take(looked.lease.as_ref()).await {
                    Ok(leadership) => return leadership,
                    Err(Error::Conflict { .. } | Error::AlreadyExists { .. }) => {}
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "the lease cannot be taken");
                        sleep(self.retry_period).await;
                    }
                },
                Next::Wait(left) => {
                    if told != holder {
                        let leader = holder.as_deref().unwrap_or_default();
                        tracing::info!(leader, me = self.identity, "controllers: standing by");
                        told = holder;
                    }
                    tokio::select! {
                        () = sleep(left) => {}
                        () = self.changed(&mut changes) => {}
                    }
                }
            }
            seen = Some(looked);
        }
    }

    async fn take(&self, before: Option<&Lease>) -> Result<Leadership, Error> {
        let renewed = Instant::now();
        let now = self.leases.clock().now();
        let spec = record::taken(before, &self.identity, self.lease_duration, now);
        let (lease, term) = self.leases.take(&self.key, before, spec).await?;
        tracing::info!(
            me = self.identity,
            revision = term.revision(),
            "controllers: this copy is the leader"
        );
        self.events.normal(&lease, "LeaderElection", format!("{} became leader", self.identity));
        Ok(Leadership { lease, term, renewed })
    }

    /// Waits until something happens to the lease, as far as the cache is told of it.
    async fn changed(&self, changes: &mut Subscription<Lease>) {
        loop {
            match changes.next().await {
                Some(Notice::Changed(all)) if all.iter().all(|change| change.key != self.key) => {}
                Some(_) => return,
                // The informer ends with the process.
                None => std::future::pending().await,
            }
        }
    }

    /// Keeps the lease renewed; returns when it is lost, or when the time is over in which it
    /// could be renewed for certain.
    pub(crate) async fn keep(&self, leadership: &mut Leadership) {
        loop {
            sleep(self.retry_period).await;
            let deadline = leadership.renewed + self.renew_deadline;
            let began = Instant::now();
            // A process that was paused finds out here.
            let renewal = timeout_at(deadline, self.renew(&leadership.lease));
            let lost = match renewal.await {
                _ if began >= deadline => "it was not renewed in time".to_owned(),
                Ok(Ok(lease)) => {
                    leadership.lease = lease;
                    leadership.renewed = began;
                    continue;
                }
                Ok(Err(error)) => Chain(&error).to_string(),
                Err(_) => "the store did not answer in time".to_owned(),
            };
            tracing::warn!(me = self.identity, reason = lost, "controllers: leadership lost");
            let message = format!("{} stopped leading", self.identity);
            self.events.normal(&leadership.lease, "LeaderElection", message);
            return;
        }
    }

    /// Renews the lease; fails only when it is not this candidate's any more.
    async fn renew(&self, lease: &Lease) -> Result<Lease, Error> {
        loop {
            match self.write(lease, record::renew).await {
                Err(error @ Error::Store(_)) => {
                    tracing::debug!(error = %Chain(&error), "the lease is not renewed yet");
                    sleep(self.retry_period / RENEWALS_PER_RETRY_PERIOD).await;
                }
                result => return result,
            }
        }
    }

    /// Lets go of the lease, so that another candidate need not wait.
    pub(crate) async fn resign(&self, leadership: &Leadership) {
        match timeout(RESIGN_WITHIN, self.write(&leadership.lease, record::release)).await {
            Ok(Ok(_)) => tracing::info!(me = self.identity, "controllers: leadership given up"),
            Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "the lease is not let go"),
            Err(_) => tracing::debug!("the lease is not let go in time"),
        }
    }

    /// Changes the lease if it is still the one that this candidate took, whoever else wrote it.
    async fn write(
        &self,
        lease: &Lease,
        change: fn(&mut Lease, jiff::Timestamp),
    ) -> Result<Lease, Error> {
        let written = self.leases.modify_from(lease, |current| {
            let holder = record::holder(current);
            if current.uid() != lease.uid() || holder != Some(&self.identity) {
                let reason = format!("it is held by {}", holder.unwrap_or("nobody"));
                let kind = Lease::kind().plural;
                return Err(Error::Conflict { kind, key: self.key.clone(), reason });
            }
            change(current, self.leases.clock().now());
            Ok(())
        });
        written.await
    }
}

/// The machine's name for people, and a number that nobody else has.
fn new_identity(random: &mut StdRng) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = machine.trim();
    let machine = if machine.is_empty() { "localhost" } else { machine };
    format!("{machine}_{:016x}", random.next_u64())
}
