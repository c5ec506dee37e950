//! What the controllers can be told, and how they can fail.

use std::num::NonZeroUsize;
use std::time::Duration;

use api::Endpoints;
use clap::Args;
use tokio::task::JoinError;

/// Where the controllers find the store, and how they behave.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The store's members, separated by commas: miniku's own store, or etcd.
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL,…")]
    pub store: Endpoints,

    /// How long a node may be silent before it counts as NotReady, as in 15s or 1m30s. Kubelets
    /// send a heartbeat every 5 s.
    #[arg(long, default_value = "15s", value_name = "DURATION", value_parser = duration)]
    pub node_monitor_grace_period: Duration,

    /// How many ReplicaSets are worked on at the same time.
    #[arg(long, default_value = "5", value_name = "N")]
    pub concurrent_replicaset_syncs: NonZeroUsize,
}

/// Why the controllers could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store cannot be addressed like that.
    #[error("cannot make a client of the store")]
    Store(#[from] api::StoreError),
    /// One of them ended though nobody asked it to.
    #[error("a controller ended by itself")]
    Ended(#[source] Option<JoinError>),
}

/// Reads a duration above zero, such as `15s`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be above zero, as in 15s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_are_above_zero() {
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "15", "0s", "-3s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
