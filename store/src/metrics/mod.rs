//! What a member counts, in the form that Prometheus reads.
//!
//! The names, types, labels and buckets are etcd's wherever etcd has one, so that its dashboards and
//! alerts work; those of our own begin with `miniku_store_`. What happens on the way of a request is
//! an atomic addition, or an observation in a histogram of atomics; everything that can be asked of
//! the member itself is asked only when somebody reads the metrics ([`sample`]).

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};
use tokio::time::Instant;

mod applied;
mod sample;

pub(crate) use self::sample::{leader_changes, render};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts and histograms of one member.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) wal_sync_seconds: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) hash_seconds: Histogram,
    pub(crate) hash_revision_seconds: Histogram,
    pub(crate) round_trip_seconds: HistogramVec,
    pub(crate) granted_ttl_seconds: Histogram,
    pub(crate) batch_commands: Histogram,
    pub(crate) health_checks: IntCounterVec,
    pub(crate) health_check_results: IntGaugeVec,
    pub(crate) ranges: Count,
    pub(crate) puts: Count,
    pub(crate) deletes: Count,
    pub(crate) transactions: Count,
    pub(crate) put_bytes: Count,
    pub(crate) leases_granted: Count,
    pub(crate) leases_revoked: Count,
    pub(crate) leases_renewed: Count,
    pub(crate) leases_expired: Count,
    pub(crate) leader_changes: Count,
    pub(crate) proposals_failed: Count,
    pub(crate) heartbeats_failed: Count,
    pub(crate) read_indexes_failed: Count,
    pub(crate) read_indexes_slow: Count,
    pub(crate) slow_applies: Count,
    pub(crate) health_successes: Count,
    pub(crate) health_failures: Count,
    pub(crate) received_bytes: Count,
    pub(crate) sent_bytes: Count,
    /// Snapshots of other members that are being installed.
    pub(crate) snapshots_installing: AtomicU64,
    /// When the state was last made durable.
    pub(crate) checkpoint_at: Mutex<Option<Instant>>,
}

impl Metrics {
    /// # Errors
    /// A name that cannot be used, or is used twice.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let histogram = |name: &str, help: &str, start: f64, count: usize| {
            let buckets = exponential_buckets(start, 2.0, count)?;
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let round_trip_seconds = HistogramVec::new(
            HistogramOpts::new(
                "etcd_network_peer_round_trip_time_seconds",
                "Round trips of the leader's heartbeats to the other members.",
            )
            .buckets(exponential_buckets(0.0001, 2.0, 16)?),
            &["To"],
        )?;
        registry.register(Box::new(round_trip_seconds.clone()))?;
        let health_checks = IntCounterVec::new(
            Opts::new("etcd_server_healthchecks_total", "Health checks of each kind."),
            &["type", "name", "status"],
        )?;
        registry.register(Box::new(health_checks.clone()))?;
        let health_check_results = IntGaugeVec::new(
            Opts::new("etcd_server_healthcheck", "The last result of each health check."),
            &["type", "name"],
        )?;
        registry.register(Box::new(health_check_results.clone()))?;
        Ok(Self {
            wal_sync_seconds: histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "How long the log's syncs take.",
                0.001,
                14,
            )?,
            commit_seconds: histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "How long it takes to hand a batch of applied entries to the engine.",
                0.001,
                14,
            )?,
            hash_seconds: histogram(
                "etcd_mvcc_hash_duration_seconds",
                "How long it takes to hash the whole state.",
                0.01,
                15,
            )?,
            hash_revision_seconds: histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "How long it takes to hash the state up to a revision.",
                0.01,
                15,
            )?,
            granted_ttl_seconds: histogram(
                "etcd_debugging_lease_ttl_total",
                "The TTLs of granted leases in seconds.",
                1.0,
                24,
            )?,
            batch_commands: histogram(
                "miniku_store_proposal_batch_size",
                "Writes that share one entry of the log.",
                1.0,
                11,
            )?,
            round_trip_seconds,
            health_checks,
            health_check_results,
            ranges: Count::default(),
            puts: Count::default(),
            deletes: Count::default(),
            transactions: Count::default(),
            put_bytes: Count::default(),
            leases_granted: Count::default(),
            leases_revoked: Count::default(),
            leases_renewed: Count::default(),
            leases_expired: Count::default(),
            leader_changes: Count::default(),
            proposals_failed: Count::default(),
            heartbeats_failed: Count::default(),
            read_indexes_failed: Count::default(),
            read_indexes_slow: Count::default(),
            slow_applies: Count::default(),
            health_successes: Count::default(),
            health_failures: Count::default(),
            received_bytes: Count::default(),
            sent_bytes: Count::default(),
            snapshots_installing: AtomicU64::new(0),
            checkpoint_at: Mutex::new(None),
            registry,
        })
    }

    /// For what has metrics of its own.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
}
