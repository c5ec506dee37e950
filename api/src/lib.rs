//! Kubernetes objects in the store: where they live, typed access to them, and the informer.
//!
//! - [`Object`] and [`KINDS`]: the kinds there are, one row each.
//! - [`Store`] and [`Api`]: get, list, create, compare-and-swap updates, deletion with grace and
//!   finalizers, the bind of a pod, raw watches. What every kind has in common is done here, once.
//! - [`Term`]: what a leader writes is refused once another one has been elected.
//! - [`Informer`] and [`Cache`]: a local copy of a [`Scope`] that follows the store.
//! - [`EventRecorder`]: tells people what happens to objects.
//! - [`WorkQueue`]: keys to be worked on, each by one worker at a time, with delays and backoff.
//! - [`streaming`]: logs and commands, between an API server and a kubelet.
//! - [`validation`], [`annotations`], [`taints`], [`Selector`], [`Amount`], [`Clock`], [`Error`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use api::{Clock, Informer, Notice, ObjectKey, Scope, Store};
//! use k8s_openapi::api::core::v1::Pod;
//! use tokio_util::sync::CancellationToken;
//!
//! let client = api::Client::new(api::ClientConfig::new("http://127.0.0.1:2379")?)?;
//! let pods = Store::new(client, Clock::system()).api::<Pod>();
//! let pod = pods.get(&ObjectKey::namespaced("default", "web-1")).await?;
//!
//! let informer = Informer::new(pods.clone(), Scope::Node("node-1".into()));
//! let (cache, mut changes) = (informer.cache(), informer.cache().subscribe());
//! let mut tasks = tokio::task::JoinSet::new();
//! tasks.spawn(informer.run(CancellationToken::new()));
//! while let Some(notice) = changes.next().await {
//!     match notice {
//!         Notice::Resync => tracing::info!(pods = cache.len(), "everything may have changed"),
//!         Notice::Changed(changes) => tracing::info!(changes = changes.len(), "changed"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod access;
pub mod annotations;
mod binding;
mod cache;
mod catch_up;
mod clock;
mod duration;
mod error;
mod events;
mod fence;
mod informer;
mod key;
mod kinds;
mod lifecycle;
mod list;
mod node_copies;
mod propagation;
mod quantity;
mod queue;
mod selector;
pub mod streaming;
mod swap;
pub mod taints;
mod term;
pub mod validation;
mod watch;

pub use access::{Api, DeleteOptions, Deletion, Store};
pub use cache::{Cache, Change, Notice, Subscription};
pub use clock::Clock;
pub use duration::positive_duration;
pub use error::{Cause, Error, Invalid};
pub use events::{EVENT_TTL, EventRecorder, EventWriter, Subject};
pub use informer::Informer;
pub use key::{ObjectKey, Scope};
pub use kinds::{
    EVENT, KINDS, Kind, LEASE, NODE, Object, POD, PRIORITY_CLASS, REPLICA_SET, kind_named, kind_of,
};
pub use list::{Continue, List, ListOptions};
pub use propagation::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER, Propagation};
pub use quantity::{Amount, BadQuantity};
pub use queue::{Backoff, Outcome, WorkItem, WorkQueue, run_workers};
pub use selector::Selector;
#[cfg(feature = "testing")]
pub use store_client::testing;
pub use store_client::{Client, ClientConfig, Endpoints, Error as StoreError};
pub use term::Term;
pub use watch::{WatchBatch, WatchEvent, WatchStream};
