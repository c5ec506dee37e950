//! A network whose connections never last: what is under way when one is cut is lost.

use std::time::Duration;

use rand::Rng;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection lasts, in milliseconds.
const LIFETIME_MS: std::ops::Range<u64> = 20..300;

/// Forwards connections to `target`, and cuts each of them after a while.
pub(crate) async fn forward(listener: TcpListener, target: String) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut incoming, _)) = listener.accept().await else { continue };
        let target = target.clone();
        let lifetime = Duration::from_millis(rand::rng().random_range(LIFETIME_MS));
        connections.spawn(async move {
            let Ok(mut outgoing) = TcpStream::connect(target).await else { return };
            let _ = timeout(lifetime, copy_bidirectional(&mut incoming, &mut outgoing)).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
