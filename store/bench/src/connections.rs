//! The HTTP/2 connections that clients share: how many and to whom is the same for every system.

use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, MEMBERS};

/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 16;
/// Larger than HTTP/2's 64 KiB, so that a range of 500 values does not wait for the window.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Connections, in turns to one member after the other.
#[derive(Clone)]
pub(crate) struct Connections {
    channels: Vec<Channel>,
    next: usize,
}

impl Connections {
    /// Connects for so many clients.
    pub(crate) async fn open(cluster: &Cluster, clients: usize) -> anyhow::Result<Self> {
        Self::to(&cluster.urls(), count(clients)).await
    }

    /// Connects `count` times to these members in turns.
    pub(crate) async fn to(urls: &[String], count: usize) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for url in urls.iter().cycle().take(count) {
            channels.push(connect(url).await?);
        }
        Ok(Self { channels, next: 0 })
    }

    /// The same connections, for a client that begins at another one.
    pub(crate) fn for_client(&self, client: usize) -> Self {
        Self { channels: self.channels.clone(), next: client }
    }

    /// The connection for the next request.
    pub(crate) fn next(&mut self) -> Channel {
        self.next += 1;
        self.channels[self.next % self.channels.len()].clone()
    }
}

async fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(endpoint.connect().await?)
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
