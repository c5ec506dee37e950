//! What the API server can be told, and how starting it can fail.

use std::io;
use std::net::SocketAddr;

use api::Endpoints;
use api::taints::DefaultTolerations;
use clap::Args;
use tokio::task::JoinError;

/// Where the API server listens and what it serves from.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The store's members, separated by commas: miniku's own store, or etcd.
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL,…")]
    pub store: Endpoints,

    /// Where to listen for HTTP.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// The largest request body, in bytes; larger ones are refused with 413.
    #[arg(long, default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub max_body_bytes: usize,

    /// How long a request may take, in milliseconds, before it is answered with 503. Watches go on
    /// for as long as their client wants.
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout_ms: u64,

    /// How long new pods stay on a node that is not ready, in seconds, unless they say so
    /// themselves. Kubernetes: 300.
    #[arg(long, default_value_t = DefaultTolerations::SECONDS, value_name = "SECONDS")]
    pub default_not_ready_toleration_seconds: u32,

    /// The same for a node that is not heard of.
    #[arg(long, default_value_t = DefaultTolerations::SECONDS, value_name = "SECONDS")]
    pub default_unreachable_toleration_seconds: u32,
}

/// Why the API server could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: choose another address with --listen")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be addressed like that.
    #[error("cannot make a client of the store")]
    Store(#[from] api::StoreError),
    /// It stopped serving though nobody asked it to.
    #[error("the API server ended by itself")]
    Ended(#[source] Option<JoinError>),
}
