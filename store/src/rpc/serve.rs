//! Serves HTTP on a listener: HTTP/1 and HTTP/2 on the same port, without TLS.

use std::convert::Infallible;
use std::time::Duration;

use axum::BoxError;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use store_transport::{Coalesced, Streams};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::authority::AnyAuthority;

/// A connection that answers no ping for this long is closed.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// When accepting fails (no file descriptors left), how long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After the end was asked for, how long connections may still finish what they are at.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests on one connection that their client gives up before they are looked at. With more of them
/// the HTTP/2 library closes the connection, and all else on it ends too; its own limit of 20 is
/// reached by one busy client whose deadlines pass.
const GIVEN_UP_STREAMS: usize = 4096;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Serves what `service` answers until `stop` is cancelled, then lets connections finish within a
/// deadline. A router or another service of tower's comes as [`hyper_util::service::TowerToHyperService`].
///
/// `max_streams`: requests that a client may have under way on one connection at once; `None`: as
/// many as it likes.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    max_streams: Option<u32>,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve_connection(
                    stream,
                    service.clone(),
                    max_streams,
                    stop.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // Watches never end by themselves: what is left is cut off as the set is dropped.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

async fn serve_connection<S, B>(
    stream: TcpStream,
    service: S,
    max_streams: Option<u32>,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let mut streams = Streams::of_server();
    let mut builder = auto::Builder::new(streams.arrivals());
    builder
        .http2()
        // etcd's gRPC answers have none. Over HTTP/2 those of the gateway go without, too.
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams)
        .max_pending_accept_reset_streams(GIVEN_UP_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let stream = TokioIo::new(AnyAuthority::new(Coalesced::new(stream)));
    let connection = builder.serve_connection(stream, service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = streams.drive(connection.as_mut()) => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            streams.drive(connection).await
        }
    };
    if let Err(error) = result {
        // Clients go away as they like.
        tracing::debug!(error, "a connection ended early");
    }
}
