//! What is asked of the member when somebody reads the metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::async_runtime::watch::WatchReceiver as _;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder as _, Gauge, GaugeVec, IntCounter, Opts, TextEncoder};
use tokio::sync::watch;

use super::Metrics;
use crate::leadership::Leadership;
use crate::member::Member;
use crate::rpc::{ETCD_CLUSTER_VERSION, ETCD_VERSION};

/// All metrics of a member as text. Blocks for a moment: it asks the system about this process and
/// the engine about its files.
///
/// # Errors
/// When a name is used twice or a label is missing: a mistake in this module.
pub(crate) fn render(member: &Member) -> Result<String, prometheus::Error> {
    let mut families = member.metrics.registry.gather();
    let mut sample = Sample(Vec::new());
    sample.process(&families)?;
    sample.server(member)?;
    sample.raft(member)?;
    sample.state(member)?;
    sample.watches(member)?;
    sample.counts(&member.metrics)?;
    families.append(&mut sample.0);
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Counts the leaders that this member gets to know. Ends with the channel.
pub(crate) async fn leader_changes(
    metrics: Arc<Metrics>,
    mut leadership: watch::Receiver<Leadership>,
) {
    let mut known = None;
    loop {
        let now = *leadership.borrow_and_update();
        if now.leader.is_some() && known != Some(now) {
            known = Some(now);
            metrics.leader_changes.inc();
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

struct Sample(Vec<MetricFamily>);

type Sampled = Result<(), prometheus::Error>;

impl Sample {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Sampled {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        self.0.extend(gauge.collect());
        Ok(())
    }

    /// A gauge that is 1 for the present value of a label.
    fn is(&mut self, name: &str, help: &str, label: &str, value: &str) -> Sampled {
        let gauge = GaugeVec::new(Opts::new(name, help), &[label])?;
        gauge.with_label_values(&[value]).set(1.0);
        self.0.extend(gauge.collect());
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Sampled {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.0.extend(counter.collect());
        Ok(())
    }

    fn process(&mut self, families: &[MetricFamily]) -> Sampled {
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name)?;
            Some(family.get_metric().first()?.get_gauge().get_value())
        };
        if let Some(used) = value("process_open_fds") {
            self.gauge("os_fd_used", "File descriptors that are in use.", used)?;
        }
        if let Some(limit) = value("process_max_fds") {
            self.gauge("os_fd_limit", "File descriptors that may be in use.", limit)?;
        }
        Ok(())
    }

    fn server(&mut self, member: &Member) -> Sampled {
        let cluster_version = ETCD_CLUSTER_VERSION.trim_end_matches(".0");
        self.is(
            "etcd_cluster_version",
            "The version of etcd whose API all members speak.",
            "cluster_version",
            cluster_version,
        )?;
        self.is(
            "etcd_server_version",
            "The version of etcd whose API this member speaks.",
            "server_version",
            ETCD_VERSION,
        )?;
        self.is(
            "etcd_server_id",
            "This member's id in hexadecimal.",
            "server_id",
            &format!("{:x}", member.id),
        )?;
        let leader = member.leader_in_contact();
        self.gauge(
            "etcd_server_has_leader",
            "Whether a leader is known: 1 or 0.",
            f64::from(u8::from(leader.is_some())),
        )?;
        self.gauge(
            "etcd_server_is_leader",
            "Whether this member leads: 1 or 0.",
            f64::from(u8::from(leader == Some(member.id))),
        )?;
        let is_learner = member.membership().voter_ids().all(|id| id != member.id);
        self.gauge(
            "etcd_server_is_learner",
            "Whether this member only learns: 1 or 0.",
            f64::from(u8::from(is_learner)),
        )
    }

    fn raft(&mut self, member: &Member) -> Sampled {
        let (last, committed, applied) = {
            let metrics = member.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let index = |log_id: &Option<crate::raft::types::LogId>| {
                log_id.as_ref().map_or(0, |log_id| log_id.index())
            };
            (
                index(&metrics.last_log),
                index(&metrics.cluster_committed),
                index(&metrics.last_applied),
            )
        };
        let applied = applied.max(*member.applied_index.borrow());
        self.gauge(
            "etcd_server_proposals_committed_total",
            "The index of the last entry that is known to be committed.",
            committed as f64,
        )?;
        self.gauge(
            "etcd_server_proposals_applied_total",
            "The index of the last entry that is applied here.",
            applied as f64,
        )?;
        self.gauge(
            "etcd_server_proposals_pending",
            "Writes of this member's clients that wait for their answer.",
            member.proposals.waiting_count() as f64,
        )?;
        self.gauge(
            "miniku_store_apply_lag_entries",
            "Entries that are committed and not applied here yet.",
            committed.saturating_sub(applied) as f64,
        )?;
        self.gauge(
            "miniku_store_replication_lag_entries",
            "Entries of this member's log that are not known to be committed yet.",
            last.saturating_sub(committed) as f64,
        )?;
        self.gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "Snapshots of other members that are being installed.",
            member.metrics.snapshots_installing.load(Ordering::Relaxed) as f64,
        )?;
        self.gauge(
            "miniku_store_log_size_bytes",
            "What a snapshot of the present state would allow to remove of the log.",
            member.log.purgeable_bytes(applied) as f64,
        )
    }

    fn state(&mut self, member: &Member) -> Sampled {
        let mvcc = &member.mvcc;
        match mvcc.size_bytes() {
            Ok(bytes) => {
                let help = "What the engine's files take up on the disk.";
                self.gauge("etcd_mvcc_db_total_size_in_bytes", help, bytes as f64)?;
                self.gauge("etcd_debugging_mvcc_db_total_size_in_bytes", help, bytes as f64)?;
            }
            // The other metrics are wanted all the more.
            Err(error) => tracing::warn!(%error, "the size of the state cannot be told"),
        }
        self.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "What the records take, keys and values.",
            mvcc.in_use_bytes() as f64,
        )?;
        self.gauge(
            "etcd_server_quota_backend_bytes",
            "What the records may take; 0: as much as there is.",
            member.space.quota_bytes().unwrap_or(0) as f64,
        )?;
        self.gauge(
            "etcd_debugging_mvcc_current_revision",
            "The newest revision that can be read.",
            mvcc.current_revision() as f64,
        )?;
        self.gauge(
            "etcd_debugging_mvcc_compact_revision",
            "The oldest revision that can be read; -1 before the first compaction.",
            mvcc.compacted_revision() as f64,
        )?;
        self.gauge("etcd_debugging_mvcc_keys_total", "Keys.", mvcc.key_count() as f64)?;
        self.gauge(
            "miniku_store_unwritten_bytes",
            "What is applied and not handed to the engine yet, about.",
            mvcc.pending_bytes() as f64,
        )?;
        let age = member.metrics.checkpoint_at.lock().map(|at| at.elapsed().as_secs_f64());
        self.gauge(
            "miniku_store_checkpoint_age_seconds",
            "How long ago the state was last made durable; 0 before the first time.",
            age.unwrap_or(0.0),
        )
    }

    fn watches(&mut self, member: &Member) -> Sampled {
        let hub = &member.hub;
        self.gauge(
            "etcd_debugging_mvcc_watch_stream_total",
            "Watch streams.",
            hub.streams() as f64,
        )?;
        self.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", hub.watchers() as f64)?;
        self.gauge(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Watchers that read history: they start in the past, or their clients are slow.",
            hub.lagging_watchers() as f64,
        )?;
        self.gauge(
            "etcd_debugging_mvcc_pending_events_total",
            "Events that wait for clients; one that waits for many counts for each.",
            hub.pending_events() as f64,
        )?;
        self.gauge(
            "miniku_store_watch_pending_bytes",
            "Bytes of events that wait for clients; one that waits for many counts once.",
            hub.pending_bytes() as f64,
        )?;
        self.counter(
            "etcd_debugging_mvcc_events_total",
            "Events that were sent to watchers.",
            hub.sent_events(),
        )
    }

    fn counts(&mut self, metrics: &Metrics) -> Sampled {
        for (name, help, count) in [
            ("etcd_mvcc_range_total", "Ranges.", &metrics.ranges),
            ("etcd_mvcc_put_total", "Puts.", &metrics.puts),
            ("etcd_mvcc_delete_total", "Deletions.", &metrics.deletes),
            (
                "etcd_mvcc_txn_total",
                "Transactions of more than one operation.",
                &metrics.transactions,
            ),
            ("etcd_debugging_mvcc_range_total", "Ranges.", &metrics.ranges),
            ("etcd_debugging_mvcc_put_total", "Puts.", &metrics.puts),
            ("etcd_debugging_mvcc_delete_total", "Deletions.", &metrics.deletes),
            (
                "etcd_debugging_mvcc_txn_total",
                "Transactions of more than one operation.",
                &metrics.transactions,
            ),
            ("etcd_debugging_lease_granted_total", "Granted leases.", &metrics.leases_granted),
            ("etcd_debugging_lease_revoked_total", "Revoked leases.", &metrics.leases_revoked),
            (
                "etcd_debugging_lease_renewed_total",
                "Renewals of leases while this member led.",
                &metrics.leases_renewed,
            ),
            (
                "etcd_debugging_server_lease_expired_total",
                "Leases that expired while this member led.",
                &metrics.leases_expired,
            ),
            (
                "etcd_server_leader_changes_seen_total",
                "Leaders that this member got to know.",
                &metrics.leader_changes,
            ),
            (
                "etcd_server_proposals_failed_total",
                "Writes of this member's clients that got no answer in time.",
                &metrics.proposals_failed,
            ),
            (
                "etcd_server_heartbeat_send_failures_total",
                "Heartbeats that did not reach their member.",
                &metrics.heartbeats_failed,
            ),
            (
                "etcd_server_read_indexes_failed_total",
                "Confirmations for linearizable reads that failed.",
                &metrics.read_indexes_failed,
            ),
            (
                "etcd_server_slow_read_indexes_total",
                "Confirmations for linearizable reads for which this member was not up to date.",
                &metrics.read_indexes_slow,
            ),
            (
                "etcd_server_slow_apply_total",
                "Entries that took more than 100 ms to apply.",
                &metrics.slow_applies,
            ),
            ("etcd_server_health_success", "Health checks that passed.", &metrics.health_successes),
            ("etcd_server_health_failures", "Health checks that failed.", &metrics.health_failures),
            (
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes of messages from gRPC clients.",
                &metrics.received_bytes,
            ),
            (
                "etcd_network_client_grpc_sent_bytes_total",
                "Bytes of messages to gRPC clients.",
                &metrics.sent_bytes,
            ),
        ] {
            self.counter(name, help, count.get())?;
        }
        self.gauge(
            "etcd_debugging_mvcc_total_put_size_in_bytes",
            "Bytes of keys and values that were put.",
            metrics.put_bytes.get() as f64,
        )
    }
}
