//! The kubelet's HTTP server: the logs of its pods' containers, and commands in them.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /containerLogs/{namespace}/{pod}/{container}` | the log, as text; with `follow=true` until the container ends |
//! | `GET /exec/{namespace}/{pod}/{container}` | a WebSocket that carries the command's streams |
//! | `GET /healthz` | `ok` |
//!
//! Paths, parameters and protocol are those of Kubernetes' kubelet; they are told in
//! [`api::streaming`]. What cannot be done is answered with a status and a line of text. A client
//! that goes away ends what it asked for: the log is no longer read, the command is killed.
//!
//! Whoever reaches this port could do with every pod as it likes. It listens on this machine only,
//! unless it is told otherwise, and [`access`] is the one place that decides who is heard.

mod access;
mod exec;
mod logs;
mod lookup;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use access::Access;
pub(crate) use lookup::{Nodes, Served};

use crate::error::{Chain, Error};
use crate::runtime::RuntimeError;

/// Connections served at a time; more wait in the listener's backlog. Each request has one.
const CONNECTIONS_MAX: usize = 1024;
/// A connection on which no request's head arrives for so long is closed.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait after the system refused to accept (it is out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server whose socket is bound.
pub(crate) struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    access: Access,
    nodes: Nodes,
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    nodes: Nodes,
    streams: Streams,
}

/// What goes on after its request was answered, and its end.
#[derive(Clone)]
struct Streams {
    stop: CancellationToken,
    sessions: TaskTracker,
}

impl Server {
    /// Listens, for the pods of `nodes`.
    pub(crate) async fn bind(
        address: SocketAddr,
        access: Access,
        nodes: Nodes,
    ) -> Result<Self, Error> {
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let addr = listener.local_addr()?;
            Ok((listener, addr))
        };
        let (listener, addr) =
            bound.await.map_err(|source: io::Error| Error::Listen { address, source })?;
        Ok(Self { listener, addr, access, nodes })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until it is told to stop, and ends logs and commands then.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // However this ends, what was begun ends with it.
        let streams = Streams { stop: stop.child_token(), sessions: TaskTracker::new() };
        let _end = streams.stop.clone().drop_guard();
        let router = Router::new()
            .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::read))
            .route("/exec/{namespace}/{pod}/{container}", any(exec::attach))
            .route("/healthz", get(async || "ok"))
            .with_state(Shared { nodes: self.nodes, streams: streams.clone() });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, peer)) => {
                            let permit = middleware::from_fn_with_state((self.access, peer), permit);
                            let router = router.clone().layer(permit);
                            connections.spawn(connection(stream, router, streams.stop.clone()));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            }
        }
        while connections.join_next().await.is_some() {}
        streams.sessions.close();
        streams.sessions.wait().await;
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    // What a container writes is small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn permit(
    State((access, peer)): State<(Access, SocketAddr)>,
    request: Request,
    next: Next,
) -> Response {
    match access.check(peer.ip(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => {
            tracing::warn!(%peer, path = request.uri().path(), reason, "a request was refused");
            Refusal { status: StatusCode::FORBIDDEN, reason }.into_response()
        }
    }
}

/// Why a request is not carried out, for whoever made it.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<api::Cause> for Refusal {
    fn from(api::Cause { field, reason }: api::Cause) -> Self {
        Self::bad_request(format!("{field}: {reason}"))
    }
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        let status = match &error {
            RuntimeError::Unreachable(_) | RuntimeError::Deadline { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            RuntimeError::NotFound(_) => StatusCode::NOT_FOUND,
            RuntimeError::Conflict(_) => StatusCode::CONFLICT,
            RuntimeError::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, Chain(&error).to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, self.reason + "\n").into_response()
    }
}
