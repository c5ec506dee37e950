//! Events in a real etcd.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::time::Duration;

use api::testing::{Etcd, Proxy};
use api::{Client, ClientConfig, Clock, EVENT_TTL, EventRecorder, Object, Scope, Store, Subject};
use k8s_openapi::api::core::v1::Event;
use store_client::etcdserverpb::LeaseTimeToLiveRequest;
use store_client::request;
use support::{PATIENCE, pod, until};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn store(url: &str) -> Store {
    let mut config = ClientConfig::new(url).unwrap();
    config.request_timeout = Duration::from_secs(2);
    Store::new(Client::new(config).unwrap(), Clock::system())
}

struct Recorder {
    events: EventRecorder,
    stop: CancellationToken,
    writer: JoinSet<()>,
}

fn recorder(store: &Store, ttl: Duration) -> Recorder {
    let (events, writer) = EventRecorder::new(store, "kubelet", ttl);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run(stop.clone()));
    Recorder { events: events.on_host("node-1"), stop, writer: tasks }
}

async fn stored(store: &Store) -> Vec<Event> {
    store.api().list(&Scope::All).await.unwrap().items
}

/// Reasons and counts of the events that are stored.
async fn counts(store: &Store) -> Vec<(String, i32)> {
    let mut counts: Vec<_> = stored(store)
        .await
        .into_iter()
        .map(|event| (event.reason.unwrap(), event.count.unwrap()))
        .collect();
    counts.sort();
    counts
}

/// The leases of the keys under `/registry/events/`.
async fn leases(store: &Store) -> Vec<i64> {
    let kvs = store.client().range(request::prefix("/registry/events/")).await.unwrap().kvs;
    kvs.iter().map(|kv| kv.lease).collect()
}

#[tokio::test]
async fn events_are_stored_counted_and_share_a_lease() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = store(&etcd.url());
    let Recorder { events, stop, mut writer } = recorder(&store, EVENT_TTL);
    let web = store.api().create(pod("web")).await.unwrap();

    events.normal(Subject::of(&web).container("main"), "Created", "Created container main");
    events.warning(&web, "BackOff", "Back-off restarting failed container main");
    let expected = [("BackOff", 1), ("Created", 1)].map(|(reason, n)| (reason.to_owned(), n));
    until("both are stored", async || counts(&store).await == expected).await;
    events.warning(&web, "BackOff", "Back-off restarting failed container main");
    let expected = [("BackOff", 2), ("Created", 1)].map(|(reason, n)| (reason.to_owned(), n));
    until("one is counted up", async || counts(&store).await == expected).await;

    let about = |event: &Event| event.involved_object.field_path.clone();
    let stored = stored(&store).await;
    let created = stored.iter().find(|event| event.reason.as_deref() == Some("Created")).unwrap();
    assert_eq!(about(created).as_deref(), Some("spec.containers{main}"));
    assert_eq!(created.involved_object.uid.as_deref(), Some(web.uid()));
    assert_eq!(created.namespace(), "default");
    assert_eq!(created.source.as_ref().unwrap().host.as_deref(), Some("node-1"));

    let leases = leases(&store).await;
    assert!(leases[0] > 0 && leases.iter().all(|lease| *lease == leases[0]), "{leases:?}");
    let asked = LeaseTimeToLiveRequest { id: leases[0], ..LeaseTimeToLiveRequest::default() };
    let lease = store.client().lease_time_to_live(asked).await.unwrap();
    assert_eq!(lease.granted_ttl, 3660);

    // What was told before the end is written before it.
    events.normal(&web, "Killing", "Stopping container main");
    stop.cancel();
    timeout(PATIENCE, writer.join_next()).await.unwrap().unwrap().unwrap();
    assert!(counts(&store).await.contains(&("Killing".to_owned(), 1)));
}

#[tokio::test]
async fn events_expire_and_a_lost_lease_is_replaced() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = store(&etcd.url());
    let recorder = recorder(&store, EVENT_TTL);
    let node = || Subject::node("node-1");
    recorder.events.normal(node(), "Starting", "Starting kubelet.");
    until("it is stored", async || counts(&store).await.len() == 1).await;

    // The end of a lease is the end of its events.
    let lease = leases(&store).await[0];
    store.client().lease_revoke(lease).await.unwrap();
    assert!(counts(&store).await.is_empty());
    recorder.events.normal(node(), "NodeReady", "Node node-1 status is now: NodeReady");
    until("another is stored", async || counts(&store).await.len() == 1).await;
    assert_ne!(leases(&store).await, [lease]);

    let short_lived = self::recorder(&store, Duration::from_secs(1));
    short_lived.events.normal(node(), "Rebooted", "Node node-1 has been rebooted");
    until("it is stored", async || counts(&store).await.len() == 2).await;
    until("it is gone", async || counts(&store).await.len() == 1).await;
}

#[tokio::test]
async fn events_wait_for_a_store_that_is_away() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    let store = store(&etcd.url());
    let recorder = recorder(&self::store(&proxy.url()), EVENT_TTL);
    proxy.cut();
    recorder.events.normal(Subject::node("node-1"), "Starting", "Starting kubelet.");
    recorder.events.normal(Subject::node("node-1"), "Starting", "Starting kubelet.");
    proxy.restore();
    let expected = [("Starting".to_owned(), 2)];
    until("they are stored", async || counts(&store).await == expected).await;
}
