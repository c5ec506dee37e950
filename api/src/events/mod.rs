//! Events: what happened to an object, told to people, as objects of their own.
//!
//! Whoever acts on objects has an [`EventRecorder`] and tells it what was done or went wrong. It
//! never blocks and never fails: what it is told waits in a bounded queue for an [`EventWriter`],
//! which somebody runs; when the store is too slow for the queue, what does not fit is counted and
//! left out.
//!
//! - Something that happens again counts up the event that tells of it, and many alike become one
//!   (Kubernetes' rules and numbers; [`correlate`]).
//! - Events are written many at a time, in one transaction, without reading anything: their names
//!   belong to the one who wrote them first.
//! - They expire by themselves, each through a lease that those of one minute share ([`leases`]).
//!
//! ```no_run
//! # async fn example(store: api::Store, pod: k8s_openapi::api::core::v1::Pod) {
//! use api::{EventRecorder, Subject};
//! use tokio_util::sync::CancellationToken;
//!
//! let (events, writer) = EventRecorder::new(&store, "kubelet", api::EVENT_TTL);
//! let events = events.on_host("node-1");
//! let mut tasks = tokio::task::JoinSet::new();
//! tasks.spawn(writer.run(CancellationToken::new()));
//!
//! events.normal(&pod, "Killing", "Stopping container main");
//! events.warning(
//!     Subject::of(&pod).container("main"),
//!     "BackOff",
//!     "Back-off restarting failed container main",
//! );
//! # }
//! ```

mod correlate;
mod leases;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EventSource, ObjectReference};
use tokio::sync::mpsc;

use crate::{Clock, NODE, Object, Store};

pub use writer::EventWriter;

/// How long an event stays after it was last told, unless somebody wants it otherwise: Kubernetes'
/// default.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);
/// What is told and not yet looked at.
const QUEUE_MAX: usize = 4096;
/// The longest message, in bytes: Kubernetes' limit.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Tells of what happens. Clones are cheap and share the queue.
#[derive(Clone, Debug)]
pub struct EventRecorder {
    source: Arc<EventSource>,
    /// None: nobody listens.
    queue: Option<Queue>,
}

#[derive(Clone, Debug)]
struct Queue {
    sender: mpsc::Sender<Occurrence>,
    dropped: Arc<AtomicU64>,
    clock: Clock,
}

/// Something that happened.
#[derive(Clone, Debug)]
struct Occurrence {
    at: Timestamp,
    subject: Subject,
    source: Arc<EventSource>,
    /// `Normal` or `Warning`.
    type_: &'static str,
    reason: &'static str,
    message: String,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject(ObjectReference);

impl Subject {
    /// An object as it was read.
    pub fn of<K: Object>(object: &K) -> Self {
        let metadata = object.metadata();
        Self(ObjectReference {
            api_version: Some(K::kind().api_version()),
            kind: Some(K::kind().kind.to_owned()),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: None,
        })
    }

    /// A node by its name alone. As with Kubernetes' kubelets the uid is the name, too: a kubelet
    /// has something to tell before its node is registered.
    pub fn node(name: &str) -> Self {
        Self(ObjectReference {
            api_version: Some(NODE.api_version()),
            kind: Some(NODE.kind.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        })
    }

    /// One container of a pod.
    #[must_use]
    pub fn container(self, name: &str) -> Self {
        self.field(format!("spec.containers{{{name}}}"))
    }

    /// One init container of a pod.
    #[must_use]
    pub fn init_container(self, name: &str) -> Self {
        self.field(format!("spec.initContainers{{{name}}}"))
    }

    fn field(mut self, path: String) -> Self {
        self.0.field_path = Some(path);
        self
    }
}

impl<K: Object> From<&K> for Subject {
    fn from(object: &K) -> Self {
        Self::of(object)
    }
}

impl EventRecorder {
    /// A recorder for a component, as in `kubelet`, and what writes its events to the store, each
    /// for at least as long as `ttl` after it was last told.
    pub fn new(store: &Store, component: &str, ttl: Duration) -> (Self, EventWriter) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = EventWriter::new(store, receiver, Arc::clone(&dropped), ttl);
        let queue = Queue { sender, dropped, clock: store.clock().clone() };
        let source = EventSource { component: Some(component.to_owned()), host: None };
        (Self { source: Arc::new(source), queue: Some(queue) }, writer)
    }

    /// A recorder that nobody listens to.
    pub fn silent() -> Self {
        Self { source: Arc::default(), queue: None }
    }

    /// The same recorder, on behalf of another component.
    #[must_use]
    pub fn as_component(&self, component: &str) -> Self {
        self.with_source(|source| source.component = Some(component.to_owned()))
    }

    /// The same recorder, on behalf of a node.
    #[must_use]
    pub fn on_host(&self, host: &str) -> Self {
        self.with_source(|source| source.host = Some(host.to_owned()))
    }

    fn with_source(&self, change: impl FnOnce(&mut EventSource)) -> Self {
        let mut source = EventSource::clone(&self.source);
        change(&mut source);
        Self { source: Arc::new(source), queue: self.queue.clone() }
    }

    /// Tells of something that is as it should be. `reason` is one word in camel case, for
    /// programs; `message` is for people.
    pub fn normal(
        &self,
        about: impl Into<Subject>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(about, "Normal", reason, message);
    }

    /// Tells of trouble.
    pub fn warning(
        &self,
        about: impl Into<Subject>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(about, "Warning", reason, message);
    }

    fn record(
        &self,
        about: impl Into<Subject>,
        type_: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let Some(queue) = &self.queue else { return };
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        let occurrence = Occurrence {
            at: queue.clock.now(),
            subject: about.into(),
            source: Arc::clone(&self.source),
            type_,
            reason,
            message,
        };
        // Closed when the process is about to end.
        if let Err(mpsc::error::TrySendError::Full(_)) = queue.sender.try_send(occurrence) {
            queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::{Client, ClientConfig};

    fn nowhere() -> Store {
        let config = ClientConfig::new("http://127.0.0.1:1").unwrap();
        Store::new(Client::new(config).unwrap(), Clock::system())
    }

    #[tokio::test]
    async fn a_recorder_never_waits_and_counts_what_it_leaves_out() {
        let (events, _writer) = EventRecorder::new(&nowhere(), "kubelet", EVENT_TTL);
        for _ in 0..QUEUE_MAX + 7 {
            events.normal(Subject::node("node-1"), "Starting", "Starting kubelet.");
        }
        let dropped = &events.queue.as_ref().unwrap().dropped;
        assert_eq!(dropped.load(Ordering::Relaxed), 7);
        EventRecorder::silent().warning(&Pod::default(), "Failed", "nobody hears this");
    }

    #[tokio::test]
    async fn a_message_has_a_limit_and_a_source() {
        let (events, mut writer) = EventRecorder::new(&nowhere(), "kubelet", EVENT_TTL);
        let long = "ä".repeat(MESSAGE_BYTES_MAX);
        events.on_host("node-1").warning(&Pod::default(), "Failed", long);
        let told = writer.receive().await.unwrap();
        assert_eq!(told.message.len(), MESSAGE_BYTES_MAX);
        assert_eq!(told.source.component.as_deref(), Some("kubelet"));
        assert_eq!(told.source.host.as_deref(), Some("node-1"));
        assert_eq!((told.type_, told.reason), ("Warning", "Failed"));
    }

    #[test]
    fn a_subject_says_which_object_and_which_part_of_it() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        pod.metadata.uid = Some("uid-1".into());
        let Subject(reference) = Subject::of(&pod).container("main");
        assert_eq!(reference.kind.as_deref(), Some("Pod"));
        assert_eq!(reference.api_version.as_deref(), Some("v1"));
        assert_eq!(reference.uid.as_deref(), Some("uid-1"));
        assert_eq!(reference.field_path.as_deref(), Some("spec.containers{main}"));
        let Subject(reference) = Subject::node("node-1");
        assert_eq!(reference.uid.as_deref(), Some("node-1"));
    }
}
