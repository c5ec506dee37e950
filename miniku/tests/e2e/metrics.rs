//! The pages for probes and measurements: `/metrics` under the names that dashboards know, and
//! `/health` with its kin, in good times and in bad.

use std::collections::{BTreeMap, BTreeSet};

use hyper::Method;
use serde_json::{Value, json};
use store_proto::etcdserverpb::lease_client::LeaseClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::{HashKvRequest, HashRequest, LeaseGrantRequest};
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::{holds, wait_for};

/// What a dashboard may count on. What is not here is not promised, and nothing else is there.
const PROMISED: &str = "
etcd_cluster_version
etcd_debugging_lease_granted_total
etcd_debugging_lease_renewed_total
etcd_debugging_lease_revoked_total
etcd_debugging_lease_ttl_total
etcd_debugging_mvcc_compact_revision
etcd_debugging_mvcc_current_revision
etcd_debugging_mvcc_db_total_size_in_bytes
etcd_debugging_mvcc_delete_total
etcd_debugging_mvcc_events_total
etcd_debugging_mvcc_keys_total
etcd_debugging_mvcc_pending_events_total
etcd_debugging_mvcc_put_total
etcd_debugging_mvcc_range_total
etcd_debugging_mvcc_slow_watcher_total
etcd_debugging_mvcc_total_put_size_in_bytes
etcd_debugging_mvcc_txn_total
etcd_debugging_mvcc_watch_stream_total
etcd_debugging_mvcc_watcher_total
etcd_debugging_server_lease_expired_total
etcd_disk_backend_commit_duration_seconds
etcd_disk_wal_fsync_duration_seconds
etcd_mvcc_db_total_size_in_bytes
etcd_mvcc_db_total_size_in_use_in_bytes
etcd_mvcc_delete_total
etcd_mvcc_hash_duration_seconds
etcd_mvcc_hash_rev_duration_seconds
etcd_mvcc_put_total
etcd_mvcc_range_total
etcd_mvcc_txn_total
etcd_network_client_grpc_received_bytes_total
etcd_network_client_grpc_sent_bytes_total
etcd_network_peer_round_trip_time_seconds
etcd_server_has_leader
etcd_server_health_failures
etcd_server_health_success
etcd_server_healthcheck
etcd_server_healthchecks_total
etcd_server_heartbeat_send_failures_total
etcd_server_id
etcd_server_is_leader
etcd_server_is_learner
etcd_server_leader_changes_seen_total
etcd_server_proposals_applied_total
etcd_server_proposals_committed_total
etcd_server_proposals_failed_total
etcd_server_proposals_pending
etcd_server_quota_backend_bytes
etcd_server_read_indexes_failed_total
etcd_server_slow_apply_total
etcd_server_slow_read_indexes_total
etcd_server_snapshot_apply_in_progress_total
etcd_server_version
grpc_server_handled_total
grpc_server_handling_seconds
grpc_server_msg_received_total
grpc_server_msg_sent_total
grpc_server_started_total
miniku_store_apply_lag_entries
miniku_store_checkpoint_age_seconds
miniku_store_log_size_bytes
miniku_store_proposal_batch_size
miniku_store_replication_lag_entries
miniku_store_unwritten_bytes
miniku_store_watch_pending_bytes
os_fd_limit
os_fd_used
process_cpu_seconds_total
process_max_fds
process_open_fds
process_resident_memory_bytes
process_start_time_seconds
process_threads
process_virtual_memory_bytes
";

/// What a family of metrics is like, whatever its values are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    /// The bounds of a histogram, as text.
    buckets: BTreeSet<String>,
}

/// The families and samples of one page.
#[derive(Debug, Default)]
struct Metrics {
    families: BTreeMap<String, Family>,
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    async fn of(http: &Http) -> Self {
        let answer = http.get("/metrics").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.content_type.starts_with("text/plain; version=0.0.4"));
        let mut metrics = Self::default();
        let mut name = String::new();
        for line in answer.body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (family, kind) = rest.split_once(' ').expect("a name and a type");
                name = family.to_owned();
                let twice = metrics
                    .families
                    .insert(name.clone(), Family { kind: kind.to_owned(), ..Family::default() });
                assert!(twice.is_none(), "{name} is told twice");
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
                assert!(sample.starts_with(&name), "{sample} below {name}");
                metrics.samples.insert(sample.to_owned(), value.parse().expect("a number"));
                let family = metrics.families.get_mut(&name).expect("its type came first");
                let Some((_, labels)) = sample.split_once('{') else { continue };
                for label in labels.trim_end_matches('}').split("\",") {
                    let (label, value) = label.split_once("=\"").expect("a label and its value");
                    if label == "le" {
                        // Large ones are written in more than one way.
                        let bound: f64 = value.trim_end_matches('"').parse().expect("a bound");
                        family.buckets.insert(bound.to_string());
                    } else {
                        family.labels.insert(label.to_owned());
                    }
                }
            }
        }
        metrics
    }

    fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("{sample} is not told"))
    }
}

/// Something of everything, so that what is told only once it has happened is told.
async fn use_it(store: &Store) {
    let member = &store.members[0];
    for number in 0..10 {
        member.put(&format!("key/{number}"), "value").await.expect("put");
    }
    LeaseClient::new(member.channel())
        .lease_grant(LeaseGrantRequest { ttl: 60, id: 0 })
        .await
        .expect("granted");
    let mut maintenance = MaintenanceClient::new(member.channel());
    maintenance.hash(HashRequest {}).await.expect("hashed");
    maintenance.hash_kv(HashKvRequest::default()).await.expect("hashed");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_the_promised_ones_and_of_etcds_form() {
    let scratch = Scratch::new();
    let store = Store::start_with(&scratch, Kind::Miniku, 3, &[]).await;
    use_it(&store).await;
    let members: Vec<Http> =
        store.members.iter().map(|member| Http::new(&member.client_url)).collect();
    for http in &members {
        http.get("/health").await;
        http.get("/readyz").await;
    }
    let leader = &members[store.leader().await];
    wait_for("the leader has measured a round trip", async || {
        let metrics = Metrics::of(leader).await;
        let round_trips = "etcd_network_peer_round_trip_time_seconds";
        holds(metrics.families.contains_key(round_trips), "there is none")
    })
    .await;
    let ours = Metrics::of(leader).await;
    let names: BTreeSet<&str> = ours.families.keys().map(String::as_str).collect();
    let promised: BTreeSet<&str> = PROMISED.split_whitespace().collect();
    assert_eq!(names, promised, "left: told, right: promised");

    let asked = Metrics::of(&members[0]).await;
    let keys = "etcd_debugging_mvcc_keys_total";
    assert_eq!((asked.value(keys), ours.value(keys)), (10.0, 10.0));
    assert!(asked.value("etcd_mvcc_put_total") >= 10.0);
    let puts = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
    assert_eq!(asked.value(puts), 10.0);
    assert!(asked.value("etcd_network_client_grpc_received_bytes_total") > 0.0);
    assert!(asked.value("etcd_disk_wal_fsync_duration_seconds_count") > 0.0);
    assert!(asked.value("process_resident_memory_bytes") > 1e6);
    let mut leaders = 0.0;
    for http in &members {
        let metrics = Metrics::of(http).await;
        assert_eq!(metrics.value("etcd_server_has_leader"), 1.0);
        assert!(metrics.value("etcd_server_leader_changes_seen_total") >= 1.0);
        leaders += metrics.value("etcd_server_is_leader");
    }
    assert_eq!(leaders, 1.0);

    if !have(&[Need::Etcd]) {
        return;
    }
    let scratch = Scratch::new();
    let etcd = Store::start_with(&scratch, Kind::Etcd, 3, &["--metrics", "extensive"]).await;
    use_it(&etcd).await;
    let etcd_leader = Http::new(&etcd.members[etcd.leader().await].client_url);
    wait_for("etcd has measured a round trip", async || {
        let metrics = Metrics::of(&etcd_leader).await;
        let round_trips = "etcd_network_peer_round_trip_time_seconds";
        holds(metrics.families.contains_key(round_trips), "there is none")
    })
    .await;
    let theirs = Metrics::of(&etcd_leader).await;
    let mut compared = 0;
    for (name, family) in &ours.families {
        if let Some(of_etcd) = theirs.families.get(name) {
            assert_eq!(family, of_etcd, "{name}: left: ours, right: etcd");
            compared += 1;
        }
    }
    assert!(compared > 50, "only {compared} families are in both");
}

async fn status_of(http: &Http, path: &str) -> (u16, String) {
    let answer = http.get(path).await;
    (answer.status, answer.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_is_wrong() {
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &[]).await;
    let http = Http::new(&store.members[0].client_url);
    let healthy = (200, r#"{"health":"true","reason":""}"#.to_owned());
    let ok = (200, "ok\n".to_owned());
    assert_eq!(status_of(&http, "/health").await, healthy);
    for path in [
        "/livez",
        "/readyz",
        "/livez/serializable_read",
        "/readyz/serializable_read",
        "/readyz/linearizable_read",
        "/readyz/data_corruption",
        "/readyz/non_learner",
    ] {
        assert_eq!(status_of(&http, path).await, ok, "{path}");
    }
    let verbose = status_of(&http, "/readyz?verbose").await;
    let expected = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
                    [+]non_learner ok\nok\n";
    assert_eq!(verbose, (200, expected.to_owned()));
    assert_eq!(status_of(&http, "/readyz/nonsense").await.0, 404);
    for path in ["/health", "/livez", "/version"] {
        let answer = http.send(Method::POST, path, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (405, "Method Not Allowed\n"), "{path}");
    }

    let mut client = HealthClient::new(store.members[0].channel());
    let request = || Request::new(HealthCheckRequest::default());
    let answer = client.check(request()).await.expect("checked").into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let mut watched = client.watch(request()).await.expect("watched").into_inner();
    let first = watched.message().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);

    for (alarm, readyz) in [("NOSPACE", 200), ("CORRUPT", 503)] {
        let member_id = "1";
        let change =
            |action: &str| json!({"action": action, "memberID": member_id, "alarm": alarm});
        let raised = http.post("/v3/maintenance/alarm", &change("ACTIVATE").to_string()).await;
        assert_eq!(raised.status, 200, "{}", raised.body);
        let answer = http.get("/health").await;
        assert_eq!(answer.status, 503);
        let expected = json!({"health": "false", "reason": format!("ALARM {alarm}")});
        assert_eq!(answer.json(), expected);
        let other = if alarm == "NOSPACE" { "CORRUPT" } else { "NOSPACE" };
        assert_eq!(status_of(&http, &format!("/health?exclude={other}")).await.0, 503);
        assert_eq!(status_of(&http, &format!("/health?exclude={alarm}")).await, healthy);
        assert_eq!(status_of(&http, "/readyz").await.0, readyz, "{alarm}");
        assert_eq!(status_of(&http, "/readyz/data_corruption").await.0, readyz, "{alarm}");
        assert_eq!(status_of(&http, "/readyz?exclude=data_corruption").await, ok);
        assert_eq!(status_of(&http, "/livez").await, ok);
        let cleared = http.post("/v3/maintenance/alarm", &change("DEACTIVATE").to_string()).await;
        assert_eq!(cleared.status, 200, "{}", cleared.body);
        assert_eq!(status_of(&http, "/health").await, healthy);
    }

    for member in &mut store.members[1..] {
        member.process.kill();
    }
    wait_for("health notices that the others are gone", async || {
        let (status, body) = status_of(&http, "/health").await;
        holds(status == 503, format!("{status} {body}"))
    })
    .await;
    let body: Value = http.get("/health").await.json();
    let reason = body["reason"].as_str().expect("a reason").to_owned();
    let known = reason == "RAFT NO LEADER" || reason.starts_with("RANGE ERROR:etcdserver: ");
    assert!(known, "{reason}");
    assert_eq!(status_of(&http, "/health?serializable=true").await, healthy);
    assert_eq!(status_of(&http, "/livez").await, ok);
    let (status, report) = status_of(&http, "/readyz").await;
    assert_eq!(status, 503);
    assert!(report.contains("[-]linearizable_read failed: etcdserver: "), "{report}");
    assert!(report.contains("[+]serializable_read ok\n"), "{report}");

    // A member that stops says so to those who watch.
    store.members[0].process.signal(rustix::process::Signal::TERM);
    let last = watched.message().await;
    let said_so = matches!(&last, Ok(Some(answer)) if answer.status() == ServingStatus::NotServing);
    assert!(said_so, "{last:?}");
}
