//! One member of the store as its client sees it: the connections to it and what was last heard.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::ClientConfig;

/// Streams that share one connection. An HTTP/2 server may allow no more than 100 at a time, and
/// watches stay open, so they are spread over connections and keep out of the way of calls.
const WATCHES_PER_CONNECTION: usize = 100;

/// What may be under way unread on one stream, and what on one connection: a watch that is not
/// read holds back itself alone.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * WATCHES_PER_CONNECTION as u32;

/// etcd closes a connection whose pings come more often than every five seconds, or while nothing
/// is under way on it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Member {
    uri: Uri,
    endpoint: Endpoint,
    dial: Option<crate::Dial>,
    connections: Mutex<Connections>,
    /// When the member last answered, or was last asked for a sign of life.
    heard: Mutex<Instant>,
    /// Counts how often the member was found silent, so that all its watches go elsewhere at once.
    lost: watch::Sender<u64>,
}

/// Made when first needed: a [`Channel`] can only be made within a runtime.
#[derive(Default)]
struct Connections {
    calls: Option<Channel>,
    watches: Vec<(Channel, Arc<()>)>,
}

/// A connection for a watch, and the place on it, which is free again when this is dropped.
pub(crate) struct WatchSlot {
    pub(crate) channel: Channel,
    _place: Arc<()>,
}

impl Member {
    pub(crate) fn new(uri: Uri, config: &ClientConfig) -> Self {
        let endpoint = Endpoint::from(uri.clone())
            .connect_timeout(config.dial_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Self {
            uri,
            endpoint,
            dial: config.dial.clone(),
            connections: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            lost: watch::Sender::new(0),
        }
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    fn connect(&self) -> Channel {
        match &self.dial {
            Some(dial) => dial(self.endpoint.clone()),
            None => self.endpoint.connect_lazy(),
        }
    }

    /// The connection that all calls share.
    pub(crate) fn calls(&self) -> Channel {
        self.connections.lock().calls.get_or_insert_with(|| self.connect()).clone()
    }

    /// A place for one more watch.
    pub(crate) fn watch_slot(&self) -> WatchSlot {
        let mut connections = self.connections.lock();
        // The count includes the one that the list itself holds.
        let free = connections
            .watches
            .iter()
            .find(|(_, places)| Arc::strong_count(places) <= WATCHES_PER_CONNECTION);
        if let Some((channel, places)) = free {
            return WatchSlot { channel: channel.clone(), _place: Arc::clone(places) };
        }
        let (channel, places) = (self.connect(), Arc::new(()));
        connections.watches.push((channel.clone(), Arc::clone(&places)));
        WatchSlot { channel, _place: places }
    }

    /// The member answered something.
    pub(crate) fn answered(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// When the member was last heard, or last asked for a sign of life.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.lock()
    }

    /// Whether the caller is the one who asks for a sign of life, as nothing was heard for so long:
    /// then the moment at which it began to.
    pub(crate) fn claim_probe(&self, silence: Duration) -> Option<Instant> {
        let mut heard = self.heard.lock();
        let due = heard.elapsed() >= silence;
        due.then(|| {
            *heard = Instant::now();
            *heard
        })
    }

    /// The member gave no sign of life: its watches go elsewhere, and whoever comes back to it
    /// makes new connections.
    pub(crate) fn is_lost(&self) {
        *self.connections.lock() = Connections::default();
        self.lost.send_modify(|times| *times += 1);
    }

    /// Changes whenever the member is found silent.
    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        self.lost.subscribe()
    }
}
