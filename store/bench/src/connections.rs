//! The HTTP/2 connections that clients share: how many and to whom is the same for every system.
//!
//! They are the HTTP library's own, without the queue that tonic's channel has before it, and share
//! what makes the store's own connections cheap: whatever a client takes of the machine is missing to
//! the servers, and hides the difference between them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use store_transport::{Coalesced, Streams};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::body::Body;
use tower_service::Service;

use crate::cluster::{Cluster, MEMBERS};

/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 16;
/// Larger than HTTP/2's 64 KiB, so that a range of 500 values does not wait for the window.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Connections, in turns to one member after the other.
#[derive(Clone)]
pub(crate) struct Connections {
    all: Vec<Connection>,
    next: usize,
}

/// A handle of one connection, which lasts as long as any handle.
#[derive(Clone)]
pub(crate) struct Connection {
    requests: http2::SendRequest<Body>,
    authority: Authority,
    /// What reads and writes; it ends with the last handle.
    _driver: Arc<JoinSet<()>>,
}

impl Connections {
    /// Connects for so many clients.
    pub(crate) async fn open(cluster: &Cluster, clients: usize) -> anyhow::Result<Self> {
        Self::to(&cluster.urls(), count(clients)).await
    }

    /// Connects `count` times to these members in turns.
    pub(crate) async fn to(urls: &[String], count: usize) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for url in urls.iter().cycle().take(count) {
            all.push(Connection::open(url).await?);
        }
        Ok(Self { all, next: 0 })
    }

    /// The same connections, for a client that begins at another one.
    pub(crate) fn for_client(&self, client: usize) -> Self {
        Self { all: self.all.clone(), next: client }
    }

    /// The connection for the next request.
    pub(crate) fn next(&mut self) -> Connection {
        self.next += 1;
        self.all[self.next % self.all.len()].clone()
    }
}

impl Connection {
    async fn open(url: &str) -> anyhow::Result<Self> {
        let url: Uri = url.parse()?;
        let authority = url.authority().context("a member's URL names no host")?.clone();
        let stream = TcpStream::connect(authority.as_str()).await?;
        stream.set_nodelay(true)?;
        let mut streams = Streams::of_client();
        let (requests, driver) = http2::Builder::new(streams.arrivals())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(Coalesced::new(stream)))
            .await?;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            tokio::pin!(driver);
            // Whoever waits for an answer hears why there is none.
            let _ = streams.drive(driver).await;
        });
        Ok(Self { requests, authority, _driver: Arc::new(driving) })
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() =
            Uri::from_parts(parts).expect("a path with a scheme and an authority is a URI");
        Box::pin(self.requests.send_request(request))
    }
}

/// One for every few clients, the same number to each member, and at least one.
fn count(clients: usize) -> usize {
    clients.div_ceil(CLIENTS_PER_CONNECTION).next_multiple_of(MEMBERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_gets_the_same_number_of_connections() {
        let counts = [1, 16, 48, 49, 64, 512].map(count);
        assert_eq!(counts, [3, 3, 3, 6, 6, 33]);
    }
}
