//! A client of the etcd v3 API, for the components of the control plane.
//!
//! It knows several endpoints of one store and hides that any one of them may die:
//!
//! - it stays with an endpoint for as long as that one answers, and goes on to the next when a
//!   connection fails, an attempt gets no answer in time, or a member says that it cannot serve;
//! - every call ends by its deadline, [`ClientConfig::request_timeout`], whatever the network does;
//! - what may be carried out twice (reads above all) is tried again on other endpoints;
//! - a write is tried again only when it is certain that it was not carried out: no connection
//!   could be made, or the server refused it before proposing it. Otherwise the answer is
//!   [`Error::Ambiguous`], and the caller finds out by reading;
//! - a [`Watch`] continues on another endpoint after its last revision, without a gap or a repeat.
//!
//! Requests and answers are the generated messages of [`etcdserverpb`] and [`mvccpb`].
//!
//! ```no_run
//! # async fn example() -> Result<(), store_client::Error> {
//! use store_client::{Client, ClientConfig, request};
//!
//! let client = Client::new(ClientConfig::new("http://127.0.0.1:2379,http://127.0.0.1:22379")?)?;
//! let pods = client.range(request::prefix("/registry/pods/")).await?;
//! let mut watch = client.watch(store_client::WatchOptions {
//!     start_revision: pods.header.unwrap_or_default().revision + 1,
//!     ..store_client::WatchOptions::prefix("/registry/pods/")
//! });
//! while let Ok(batch) = watch.next().await {
//!     tracing::info!(revision = batch.revision, events = batch.events.len(), "changed");
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod config;
mod endpoint;
mod error;
pub mod request;
#[cfg(feature = "testing")]
pub mod testing;
mod watch;

pub use client::Client;
pub use config::{ClientConfig, Dial, Endpoints};
pub use error::{Error, Failure};
pub use store_proto::{etcdserverpb, mvccpb};
pub use tonic::Code;
pub use watch::{Watch, WatchBatch, WatchOptions};
