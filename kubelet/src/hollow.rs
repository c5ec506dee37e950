//! Nodes by the thousand in one process, to see how the control plane fares with many.
//!
//! Each has a kubelet of its own, as whole as any: it registers its node, renews its lease, watches its
//! pods, plans and reports. Only the containers are made up. What they share is what costs: the store's
//! client, so that hundreds of watches are on one connection, the engine, and the writer of events.
//!
//! They start one after the other, spread over the time between two heartbeats, and so they beat for as
//! long as they live: of 5,000 nodes one a millisecond, and never all at once.

use std::num::NonZeroU32;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::node::{HEARTBEAT_INTERVAL, NodeFacts};

/// Digits in a node's name at least, so that lists are in order.
const DIGITS_MIN: usize = 4;

/// The names of all nodes: `hollow-0001` and so on for `hollow`.
pub(crate) fn names(prefix: &str, count: NonZeroU32) -> Vec<String> {
    let digits = count.to_string().len().max(DIGITS_MIN);
    (1..=count.get()).map(|number| format!("{prefix}-{number:0digits$}")).collect()
}

/// Runs the kubelets of all these nodes; `facts` are those of each, but for the name. Ends when told to,
/// once all have, or with the part of a kubelet that ended by itself.
pub(crate) async fn run(
    names: Vec<String>,
    facts: NodeFacts,
    shared: Shared,
    stop: CancellationToken,
) -> &'static str {
    let nodes = u32::try_from(names.len()).unwrap_or(u32::MAX).max(1);
    let mut turns = interval(HEARTBEAT_INTERVAL / nodes);
    // Late ones start at once: the next beats are in the order of the first.
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tasks = JoinSet::new();
    tracing::info!(nodes, "hollow nodes: starting");
    for name in names {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => return part(ended),
            _ = turns.tick() => {}
        }
        shared.spawn(NodeFacts { name, ..facts.clone() }, &mut tasks, &stop);
    }
    let ended = tasks.join_next().await.map_or("hollow nodes", part);
    if stop.is_cancelled() {
        while let Some(ended) = tasks.join_next().await {
            part(ended);
        }
    }
    ended
}

/// The part that has ended. Its panic goes on.
fn part(ended: Result<&'static str, tokio::task::JoinError>) -> &'static str {
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => "aborted task",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_however_many_there_are() {
        let named = |count| names("hollow", NonZeroU32::new(count).unwrap());
        assert_eq!(named(2), ["hollow-0001", "hollow-0002"]);
        let many = named(10_000);
        assert_eq!((&*many[0], &*many[9_999]), ("hollow-00001", "hollow-10000"));
        assert!(many.is_sorted());
    }
}
