//! A control plane on an etcd of its own: the controllers under test, and nodes that are faked as
//! far as the controllers can see. A fake node has a lease that is renewed, reports its pods as
//! running, and lets go of those being deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use api::{
    Api, Client, ClientConfig, Clock, DeleteOptions, Error, Informer, Object, ObjectKey, Scope,
    Store, WatchEvent,
};
use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    Container, Event, Node, NodeCondition, NodeStatus, Pod, PodCondition, PodSpec, PodTemplateSpec,
};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, MicroTime, ObjectMeta};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::etcd::Etcd;
use crate::flaky;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The grace period that the controllers get; heartbeats are much more frequent.
const GRACE: &str = "3s";
/// Longer than that.
pub(crate) const BEYOND_GRACE: Duration = Duration::from_secs(4);
/// How often a fake kubelet renews its lease, and looks again after its pods.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A store with fake nodes, and whatever controllers a test starts.
pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    store: Store,
    tasks: JoinSet<()>,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: controllers::Config,
}

impl Cluster {
    /// A store of so many members that answers, or none when there is no etcd to be had.
    pub(crate) async fn start(members: usize) -> Option<Self> {
        let etcd = Etcd::start(members)?;
        let config = ClientConfig::new(&etcd.urls()).expect("etcd's own URLs");
        let store = Store::new(Client::new(config).expect("a client"), Clock::system());
        let cluster = Self { etcd, store, tasks: JoinSet::new() };
        cluster.until_store_answers().await;
        Some(cluster)
    }

    pub(crate) async fn until_store_answers(&self) {
        let answers = async || self.nodes().list(&Scope::All).await.is_ok();
        self.until("the store answers", answers).await;
    }

    /// Starts the controllers as the command line does.
    pub(crate) async fn controllers(&self) -> controllers::Running {
        self.controllers_on(&self.etcd.urls()).await
    }

    /// Starts the controllers with a store of that address.
    pub(crate) async fn controllers_on(&self, store: &str) -> controllers::Running {
        Self::start_controllers(store, &[]).await
    }

    /// Starts the controllers with more flags.
    pub(crate) async fn controllers_with(&self, flags: &[&str]) -> controllers::Running {
        Self::start_controllers(&self.etcd.urls(), flags).await
    }

    async fn start_controllers(store: &str, more: &[&str]) -> controllers::Running {
        let flags = ["controllers", "--store", store, "--node-monitor-grace-period", GRACE];
        let flags = flags.iter().chain(more);
        let config = Flags::try_parse_from(flags).expect("flags").config;
        controllers::start(config).await.expect("the controllers start")
    }

    /// Puts a network between the controllers and the store whose connections never last; returns
    /// the address that leads through it.
    pub(crate) async fn flaky_network(&mut self) -> String {
        let store = self.etcd.urls().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        self.tasks.spawn(flaky::forward(listener, store));
        format!("http://{addr}")
    }

    pub(crate) fn api<K: Object>(&self) -> Api<K> {
        self.store.api()
    }

    /// The names of the next pods that went after a revision, in the order in which they did.
    pub(crate) async fn deleted_pods_since(&self, revision: i64, count: usize) -> Vec<String> {
        let mut watch = self.pods().watch(&Scope::All, Some(revision));
        let mut names = Vec::new();
        while names.len() < count {
            for event in watch.next().await.expect("nothing is compacted").events {
                if let WatchEvent::Deleted(pod) = event {
                    names.push(pod.name().to_owned());
                }
            }
        }
        names
    }

    pub(crate) fn sets(&self) -> Api<ReplicaSet> {
        self.store.api()
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        self.store.api()
    }

    pub(crate) fn events(&self) -> Api<Event> {
        self.store.api()
    }

    pub(crate) fn nodes(&self) -> Api<Node> {
        self.store.api()
    }

    /// The objects that events with this reason are about, as in `Pod/web`.
    pub(crate) async fn told(&self, reason: &str) -> BTreeSet<String> {
        let events = self.store.api::<Event>().list(&Scope::All).await.expect("etcd answers").items;
        let about = |event: Event| {
            let object = event.involved_object;
            format!("{}/{}", object.kind.unwrap_or_default(), object.name.unwrap_or_default())
        };
        events
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some(reason))
            .map(about)
            .collect()
    }

    /// A node whose kubelet works until the handle is aborted.
    pub(crate) async fn node(&mut self, name: &str) -> AbortHandle {
        let node = Node { metadata: named("", name), status: Some(ready()), ..Node::default() };
        self.nodes().create(node).await.expect("a new node");
        self.kubelet(name)
    }

    /// Starts the kubelet of a node again.
    pub(crate) async fn revive(&mut self, name: &str) -> AbortHandle {
        let say = |node: &mut Node| {
            node.status = Some(ready());
            Ok(())
        };
        let said = self.nodes().modify_status(&ObjectKey::cluster(name), say).await;
        said.expect("the node is there");
        self.kubelet(name)
    }

    fn kubelet(&mut self, name: &str) -> AbortHandle {
        self.tasks.spawn(fake_kubelet(self.store.clone(), name.to_owned()))
    }

    /// Waits until the scheduler knows of that many nodes: as many pods go to a node each, and are
    /// deleted again. A set that came before would be spread over the nodes known by then.
    pub(crate) async fn until_scheduled_on(&self, nodes: usize) {
        let probes: Vec<String> = (0..nodes).map(|number| format!("probe-{number}")).collect();
        self.until(&format!("pods go to {nodes} nodes"), async || {
            for probe in &probes {
                self.create_pod(probe, app("probe")).await;
            }
            let bound = async || {
                self.spread().await.filter(|spread| spread.values().sum::<usize>() == nodes)
            };
            self.until("the probes run", async || bound().await.is_some()).await;
            let reached = bound().await.is_some_and(|spread| spread.len() == nodes);
            for probe in &probes {
                let key = ObjectKey::namespaced("default", probe);
                self.pods()
                    .delete(&key, &DeleteOptions::default())
                    .await
                    .expect("the probe is there");
            }
            self.until("the probes are gone", async || self.all_pods().await.is_empty()).await;
            reached
        })
        .await;
    }

    /// A ReplicaSet `name` of that many pods labelled `app: <name>`.
    pub(crate) async fn create_set(&self, name: &str, replicas: i32) {
        let labels = app(name);
        let set = ReplicaSet {
            metadata: named("default", name),
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                selector: LabelSelector {
                    match_labels: Some(labels.clone()),
                    match_expressions: None,
                },
                template: Some(PodTemplateSpec {
                    metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                    spec: Some(pod_spec()),
                }),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        };
        self.sets().create(set).await.expect("a new ReplicaSet");
    }

    pub(crate) async fn scale(&self, name: &str, replicas: i32) {
        self.sets()
            .modify(&ObjectKey::namespaced("default", name), |set| {
                set.spec.get_or_insert_default().replicas = Some(replicas);
                Ok(())
            })
            .await
            .expect("the ReplicaSet is scaled");
    }

    /// A pod that nobody owns.
    pub(crate) async fn create_pod(&self, name: &str, labels: BTreeMap<String, String>) -> Pod {
        self.create_pod_of(name, labels, pod_spec()).await
    }

    /// A pod that nobody owns, and what it is like.
    pub(crate) async fn create_pod_of(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        spec: PodSpec,
    ) -> Pod {
        let metadata = ObjectMeta { labels: Some(labels), ..named("default", name) };
        let pod = Pod { metadata, spec: Some(spec), status: None };
        self.pods().create(pod).await.expect("a new pod")
    }

    pub(crate) async fn create_priority_class(&self, name: &str, value: i32) {
        let class = PriorityClass { metadata: named("", name), value, ..PriorityClass::default() };
        self.store.api().create(class).await.expect("a new priority class");
    }

    /// A pod that is bound to a node as it is created, whether or not that exists.
    pub(crate) async fn create_pod_on(&self, name: &str, node: &str) -> Pod {
        let spec = PodSpec { node_name: Some(node.to_owned()), ..pod_spec() };
        let pod = Pod { metadata: named("default", name), spec: Some(spec), status: None };
        self.pods().create(pod).await.expect("a new pod")
    }

    /// All pods, whatever their state.
    pub(crate) async fn all_pods(&self) -> Vec<Pod> {
        self.pods().list(&Scope::All).await.expect("etcd answers").items
    }

    /// The pods that run on each node; a pod that is bound nowhere, being deleted or not yet
    /// running makes none.
    pub(crate) async fn spread(&self) -> Option<BTreeMap<String, usize>> {
        let mut spread = BTreeMap::new();
        for pod in self.all_pods().await {
            if pod.is_deleting() || phase(&pod) != "Running" {
                return None;
            }
            *spread.entry(pod.node_name()?.to_owned()).or_default() += 1;
        }
        Some(spread)
    }

    /// Waits until exactly so many pods run on each node, and the set says how many it has.
    pub(crate) async fn until_spread(&self, set: &str, expected: &[(&str, usize)]) {
        let counts: BTreeMap<String, usize> =
            expected.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
        let total: usize = counts.values().sum();
        self.until(&format!("{set} is spread as {expected:?}"), async || {
            self.spread().await.as_ref() == Some(&counts) && self.counted(set).await == [total; 2]
        })
        .await;
    }

    /// Waits until there are exactly so many pods, all running, and the set says so.
    pub(crate) async fn until_running(&self, set: &str, total: usize) {
        self.until(&format!("{total} pods of {set} run"), async || {
            let spread = self.spread().await;
            spread.is_some_and(|spread| spread.values().sum::<usize>() == total)
                && self.counted(set).await == [total; 2]
        })
        .await;
    }

    /// How many pods the set says that it has, and that are available.
    async fn counted(&self, set: &str) -> [usize; 2] {
        let set = self.sets().get(&ObjectKey::namespaced("default", set)).await;
        let status = set.expect("the ReplicaSet is there").status.unwrap_or_default();
        [status.replicas, status.available_replicas.unwrap_or(0)]
            .map(|count| usize::try_from(count).expect("a count is not negative"))
    }

    /// Waits for a condition, and fails with what was waited for when it does not come about.
    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Watches over a number of pods for a while, in which it must not be exceeded.
    pub(crate) async fn never_more_pods_than(&self, max: usize, during: impl Future<Output = ()>) {
        let pods = self.pods().list(&Scope::All).await.expect("the store answers");
        let mut watch = self.pods().watch(&Scope::All, Some(pods.revision));
        let look = async {
            let mut active: BTreeSet<_> = pods.items.iter().map(Object::key).collect();
            loop {
                for event in watch.next().await.expect("nothing is compacted").events {
                    match event {
                        WatchEvent::Added(pod) | WatchEvent::Modified(pod)
                            if !pod.is_deleting() =>
                        {
                            active.insert(pod.key())
                        }
                        event => active.remove(&event.object().key()),
                    };
                    assert!(active.len() <= max, "{} pods, {max} are wanted", active.len());
                }
            }
        };
        tokio::select! {
            () = during => {}
            () = look => {}
        }
    }
}

/// The status of a node whose kubelet says that it is well.
fn ready() -> NodeStatus {
    let condition =
        NodeCondition { type_: "Ready".into(), status: "True".into(), ..NodeCondition::default() };
    let offers = [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")];
    let allocatable: BTreeMap<String, Quantity> =
        offers.map(|(resource, amount)| (resource.to_owned(), Quantity(amount.to_owned()))).into();
    NodeStatus {
        conditions: Some(vec![condition]),
        allocatable: Some(allocatable.clone()),
        capacity: Some(allocatable),
        ..NodeStatus::default()
    }
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

/// The labels `app: <name>`.
pub(crate) fn app(name: &str) -> BTreeMap<String, String> {
    [("app".to_owned(), name.to_owned())].into()
}

fn pod_spec() -> PodSpec {
    let container = Container {
        name: "main".into(),
        image: Some("nginx:latest".into()),
        ..Container::default()
    };
    PodSpec { containers: vec![container], ..PodSpec::default() }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

async fn fake_kubelet(store: Store, node: String) {
    let pods = store.api::<Pod>();
    let informer = Informer::new(pods.clone(), Scope::Node(node.clone()));
    let cache = informer.cache();
    let mut changes = cache.subscribe();
    let mut tasks = JoinSet::new();
    tasks.spawn(informer.run(CancellationToken::new()));
    tasks.spawn(heartbeat(store.api(), node));
    loop {
        // A pod that could not be written is met again at the next heartbeat.
        let _ = timeout(HEARTBEAT, changes.next()).await;
        for pod in cache.list() {
            if pod.is_deleting() {
                let _ = pods.finish_delete(&pod.key(), pod.uid()).await;
            } else if phase(&pod) != "Running" {
                let _ = pods.modify_status_from(&pod, report_running).await;
            }
        }
    }
}

fn report_running(pod: &mut Pod) -> Result<(), Error> {
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.conditions.get_or_insert_default().push(PodCondition {
        type_: "Ready".into(),
        status: "True".into(),
        ..PodCondition::default()
    });
    Ok(())
}

async fn heartbeat(leases: Api<Lease>, node: String) {
    let key = ObjectKey::namespaced("kube-node-lease", &node);
    loop {
        let spec =
            LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..LeaseSpec::default() };
        let renewed = leases.modify(&key, |lease| {
            lease.spec = Some(spec.clone());
            Ok(())
        });
        if let Err(Error::NotFound { .. }) = renewed.await {
            let lease = Lease { metadata: named("kube-node-lease", &node), spec: Some(spec) };
            let _ = leases.create(lease).await;
        }
        sleep(HEARTBEAT).await;
    }
}
