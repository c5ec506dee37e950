//! The API server: the HTTP face of the objects in the store.
//!
//! It keeps nothing itself. Every request is a read or a compare-and-swap in the store, every watch
//! is a watch of the store; several copies may run side by side, and any of them may be killed at
//! any moment.
//!
//! # The flat API
//! Pods, ReplicaSets, nodes and events of namespace `default`, in the flat form, under `/pods`,
//! `/replicasets`, `/nodes` and `/events`; any Content-Type is taken as JSON.
//!
//! | Request | Answer |
//! | --- | --- |
//! | `GET /pods` | 200: a list; header `X-Resource-Version`: the revision it was read at |
//! | `GET /pods?watch=true` | 200: what changes from now on, one JSON object a line, without end |
//! | `GET /pods?watch=true&resourceVersion=N` | the same for what changed after revision `N` |
//! | `POST /pods` | 201 and the object; 409 when the name is taken |
//! | `GET /pods/{name}` | 200 and the object |
//! | `PUT /pods/{name}` | 200 and the object as replaced, 201 when it was not there |
//! | `DELETE /pods/{name}` | 204; its containers follow |
//! | `GET /pods/{name}/log` | 200: what its container wrote, as text; [`remote::log`] has the parameters |
//! | `POST /pods/{name}/exec` | 200: what a command wrote that was run in its container, and its exit code |
//! | `GET /pods/{name}/exec` | a WebSocket to a command; [`remote::exec`] has the parameters |
//! | `GET /events` | 200: what happened, the latest last; with `?watch=true` what happens from now on |
//! | `GET /events?pod=NAME` | the same of one pod; likewise `replicaset` and `node` |
//! | `GET /healthz` | 200 `{"status":"ok"}` when the store answers |
//! | `GET /version` | 200 `{"version":"…"}` |
//!
//! A pod is written as GET shows it (`{"spec":{"name":…,"image":…},…}`) or as its spec alone; what a
//! GET gave is good for a PUT, and fields that only the system sets are ignored. On a pod that
//! exists a PUT may change the labels: its container was made of the rest. On a ReplicaSet it may
//! change all but the selector. Nodes come from their kubelets: they can be read and deleted, not
//! written. Events can be listed and watched.
//!
//! A line of a watch is `{"type":"ADDED","object":{…},"resourceVersion":"123"}`, its type `ADDED`,
//! `MODIFIED` or `DELETED` (with the object as it was last). A watch that broke continues without a
//! gap or a repeat when it is started again with the last line's `resourceVersion`, or, when there
//! was no line, with the list's. The first line of a watch is preceded by the response's
//! `X-Resource-Version`, the revision after which it begins. When the store has compacted what came
//! after `N`, the answer is 410; when that happens under a running watch, its last line is
//! `{"type":"ERROR","error":{"code":"Expired",…}}`. Either way: list again.
//!
//! A log is read with `?tail=10`, `?since=5m` (or a time), `?timestamps=true`, `?limitBytes=1000`,
//! `?previous=true` (of the container before the last restart), and with `?follow=true` goes on until the
//! container ends. Where a pod has several containers, `container` names one. Both are asked of the
//! kubelet whose pod it is; when its node is away, the answer is a 503 of code `NodeUnreachable`.
//!
//! Failures answer `{"error":{"code":"Invalid","field":"desiredCount","reason":"…"}}`: 400 for bad
//! input, with the field that is wrong; 404, 405, 408, 409, 410 and 413; 503 when the store does not
//! answer in time. Nothing is stored but by a 2xx, save that after a 503 of code `Timeout` it is not
//! known.

mod config;
mod flat;
mod health;
mod objects;
mod problem;
mod remote;
mod request;
mod serve;
mod watch;

pub use config::{Config, Error};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use api::taints::DefaultTolerations;
use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::flat::{Events, Nodes, Pods, ReplicaSets};
use crate::problem::Problem;

/// How long requests get to finish when the server is asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// What every request may cost.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_body_bytes: usize,
    request_timeout: Duration,
}

/// What the handlers of requests share.
#[derive(Clone)]
struct App {
    store: api::Store,
    limits: Limits,
    /// Cancelled when the server stops: watches end then, which would otherwise go on for ever.
    stop: CancellationToken,
    /// Commands that are run over WebSockets.
    sessions: TaskTracker,
}

impl App {
    /// Gives a call of the store its deadline.
    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, Problem>> + Send,
    ) -> Result<T, Problem> {
        let patience = self.limits.request_timeout;
        tokio::time::timeout(patience, call)
            .await
            .unwrap_or_else(|_| Err(Problem::store_timeout(patience)))
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route("/pods", get(objects::list::<Pods>).post(objects::create::<Pods>))
        .route(
            "/pods/{name}",
            get(objects::read::<Pods>)
                .put(objects::replace::<Pods>)
                .delete(objects::delete::<Pods>),
        )
        .route("/pods/{name}/log", get(remote::log::read))
        .route("/pods/{name}/exec", get(remote::exec::attach).post(remote::exec::run))
        .route(
            "/replicasets",
            get(objects::list::<ReplicaSets>).post(objects::create::<ReplicaSets>),
        )
        .route(
            "/replicasets/{name}",
            get(objects::read::<ReplicaSets>)
                .put(objects::replace::<ReplicaSets>)
                .delete(objects::delete::<ReplicaSets>),
        )
        .route("/nodes", get(objects::list::<Nodes>))
        .route("/nodes/{name}", get(objects::read::<Nodes>).delete(objects::delete::<Nodes>))
        .route("/events", get(objects::list::<Events>))
        .route("/healthz", get(health::healthz))
        .route("/version", get(health::version))
        .fallback(async |request: Request| Problem::unknown_path(request.uri().path()))
        .method_not_allowed_fallback(async |request: Request| {
            Problem::method_not_allowed(request.method().as_str(), request.uri().path())
        })
        .with_state(app)
}

/// A running API server.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Starts an API server. Its socket is bound when this returns; the store need not be there yet.
///
/// # Errors
/// The configuration cannot be used, or the address cannot be listened on.
pub async fn start(config: Config) -> Result<Running, Error> {
    let limits = Limits {
        max_body_bytes: config.max_body_bytes,
        request_timeout: Duration::from_millis(config.request_timeout_ms),
    };
    let listener = listen(config.listen)
        .await
        .map_err(|source| Error::Listen { address: config.listen, source })?;
    let addr =
        listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
    let client = api::Client::new(api::ClientConfig::for_endpoints(config.store.clone()))?;
    let tolerations = DefaultTolerations {
        not_ready_seconds: config.default_not_ready_toleration_seconds,
        unreachable_seconds: config.default_unreachable_toleration_seconds,
    };
    let store = api::Store::new(client, api::Clock::system()).with_tolerations(tolerations);
    let stop = CancellationToken::new();
    let sessions = TaskTracker::new();
    let app = App { store, limits, stop: stop.clone(), sessions: sessions.clone() };
    let mut tasks = JoinSet::new();
    let serving = serve::serve(listener, router(app), stop.clone());
    // However serving ends, the commands of its clients end with it.
    let guard = stop.clone().drop_guard();
    tasks.spawn(async move {
        serving.await;
        drop(guard);
        sessions.close();
        sessions.wait().await;
    });
    info!(%addr, store = %config.store, "listening");
    Ok(Running { addr, stop, tasks })
}

const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(1);
const LISTEN_PAUSE: Duration = Duration::from_millis(50);

/// An address that is taken is tried again for a moment: an API server that was just killed and
/// started again meets its own predecessor, which the system has not quite cleared away.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it ends by itself, which it only does when something is wrong with it.
    pub async fn join(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Err(error)) => Error::Ended(Some(error)),
            Some(Ok(())) | None => Error::Ended(None),
        }
    }

    /// Takes no more requests, ends the watches, and lets the requests that are under way finish;
    /// those that take longer than a few seconds are cut off.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("requests were cut off at the deadline");
        }
        self.tasks.shutdown().await;
    }
}
