//! What becomes of a pod whose node does not exist, so that no kubelet winds it up.
//!
//! | node | pod | |
//! | --- | --- | --- |
//! | there | any | stays |
//! | gone | being deleted | its deletion is finished at once |
//! | gone for less than [`QUARANTINE`] | not being deleted | stays for the rest of it |
//! | gone for longer | not being deleted | is deleted, and so meets the row above |
//!
//! As Kubernetes' pod garbage collector does it, which waits for as long: a node may be registered
//! again, and a pod may be bound to one that is about to be.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long a node must be gone before pods that nobody asked to delete go too.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(40);

/// What to do about a pod that is bound to a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Look again after this time.
    Wait(Duration),
    /// Delete it.
    Delete,
    /// Finish its deletion, as its kubelet would.
    Finish,
}

/// Decides for a pod, given how long its node has been gone, if it is.
pub(crate) fn plan(is_deleting: bool, node_gone_for: Option<Duration>) -> Verdict {
    match node_gone_for {
        None => Verdict::Keep,
        Some(_) if is_deleting => Verdict::Finish,
        Some(gone_for) if gone_for >= QUARANTINE => Verdict::Delete,
        Some(gone_for) => Verdict::Wait(QUARANTINE - gone_for),
    }
}

/// Since when nodes have been known to be gone.
#[derive(Debug, Default)]
pub(crate) struct GoneNodes(HashMap<String, Instant>);

impl GoneNodes {
    /// Takes down that the node was found gone, and says for how long it has been so.
    pub(crate) fn found_gone(&mut self, node: &str, now: Instant) -> Duration {
        now.duration_since(*self.0.entry(node.to_owned()).or_insert(now))
    }

    /// The node is there, or nobody knows: its quarantine begins anew when it is found gone.
    pub(crate) fn forget(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// Forgets the nodes for which this does not hold.
    pub(crate) fn retain(&mut self, matters: impl Fn(&str) -> bool) {
        self.0.retain(|node, _| matters(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_goes_when_its_node_is_gone_for_long_enough() {
        let seconds = Duration::from_secs;
        let rows = [
            (false, None, Verdict::Keep),
            (true, None, Verdict::Keep),
            (true, Some(seconds(0)), Verdict::Finish),
            (true, Some(seconds(50)), Verdict::Finish),
            (false, Some(seconds(0)), Verdict::Wait(seconds(40))),
            (false, Some(seconds(30)), Verdict::Wait(seconds(10))),
            (false, Some(seconds(40)), Verdict::Delete),
            (false, Some(seconds(41)), Verdict::Delete),
        ];
        for (is_deleting, gone_for, expected) in rows {
            assert_eq!(plan(is_deleting, gone_for), expected, "{is_deleting} {gone_for:?}");
        }
    }

    #[test]
    fn a_node_that_was_there_in_between_is_gone_anew() {
        let (mut gone, start) = (GoneNodes::default(), Instant::now());
        let later = |s| start + Duration::from_secs(s);
        assert_eq!(gone.found_gone("a", start), Duration::ZERO);
        assert_eq!(gone.found_gone("a", later(30)), Duration::from_secs(30));
        gone.forget("a");
        assert_eq!(gone.found_gone("a", later(50)), Duration::ZERO);
        gone.retain(|node| node != "a");
        assert_eq!(gone.found_gone("a", later(60)), Duration::ZERO);
    }
}
