//! What the controllers can be told, and how they can fail.

use std::num::NonZeroUsize;
use std::time::Duration;

use api::Endpoints;
use api::taints::DefaultTolerations;
use clap::Args;
use tokio::task::JoinError;

use crate::election::{ElectionConfig, InvalidTimes};
use crate::node_lifecycle::NodeLifecycleConfig;

/// Where the controllers find the store, and how they behave.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The store's members, separated by commas: miniku's own store, or etcd.
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL,…")]
    pub store: Endpoints,

    /// Which of several copies acts.
    #[command(flatten)]
    pub election: ElectionConfig,

    /// What becomes of nodes that are in trouble.
    #[command(flatten)]
    pub node_lifecycle: NodeLifecycleConfig,

    /// How many ReplicaSets are worked on at the same time.
    #[arg(long, default_value = "5", value_name = "N")]
    pub concurrent_replicaset_syncs: NonZeroUsize,

    /// How long events are kept.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = api::positive_duration)]
    pub event_ttl: Duration,

    /// How long new pods stay on a node that is not ready, in seconds, unless they say so
    /// themselves. Kubernetes: 300.
    #[arg(long, default_value_t = DefaultTolerations::SECONDS, value_name = "SECONDS")]
    pub default_not_ready_toleration_seconds: u32,

    /// The same for a node that is not heard of.
    #[arg(long, default_value_t = DefaultTolerations::SECONDS, value_name = "SECONDS")]
    pub default_unreachable_toleration_seconds: u32,
}

/// Why the controllers could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store cannot be addressed like that.
    #[error("cannot make a client of the store")]
    Store(#[from] api::StoreError),
    /// The times of the election cannot work together.
    #[error(transparent)]
    Election(#[from] InvalidTimes),
    /// One of them ended though nobody asked it to.
    #[error("a controller ended by itself")]
    Ended(#[source] Option<JoinError>),
}
