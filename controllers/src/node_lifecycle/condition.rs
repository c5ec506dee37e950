//! The `Ready` condition of a node that is no longer heard of.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The node's `Ready` condition.
pub(crate) fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

/// What to do about a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Heard of lately enough.
    Alive,
    /// Not heard of for the grace period: its `Ready` condition is to become this one.
    Lost(NodeCondition),
    /// Not heard of, and known to be so.
    KnownLost,
}

/// Judges a node whose last heartbeat was seen `silent_for` ago.
///
/// Only a kubelet makes its node ready again: silence is noticed here, recovery is not.
pub(crate) fn judge(node: &Node, silent_for: Duration, grace: Duration, now: Timestamp) -> Verdict {
    if silent_for < grace {
        return Verdict::Alive;
    }
    let (reason, message) = match ready(node) {
        Some(condition) if condition.status == "Unknown" => return Verdict::KnownLost,
        Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
        None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
    };
    Verdict::Lost(NodeCondition {
        type_: "Ready".to_owned(),
        status: "Unknown".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: ready(node)
            .and_then(|condition| condition.last_heartbeat_time.clone()),
        last_transition_time: Some(Time(now)),
    })
}

/// Puts the condition in the place of the node's own one of that type.
pub(crate) fn set(node: &mut Node, condition: NodeCondition) {
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, node};

    #[test]
    fn silence_beyond_the_grace_period_makes_a_node_unknown() {
        let grace = Duration::from_secs(15);
        let rows = [
            ("True", 0, Ok(Verdict::Alive)),
            ("True", 14, Ok(Verdict::Alive)),
            ("True", 15, Err("NodeStatusUnknown")),
            ("True", 90, Err("NodeStatusUnknown")),
            ("False", 15, Err("NodeStatusUnknown")),
            ("Unknown", 3, Ok(Verdict::Alive)),
            ("Unknown", 15, Ok(Verdict::KnownLost)),
        ];
        for (ready, silent_seconds, expected) in rows {
            let node = node("node-1", ready);
            let verdict = judge(&node, Duration::from_secs(silent_seconds), grace, at(500));
            match (verdict, expected) {
                (Verdict::Lost(condition), Err(reason)) => {
                    assert_eq!(condition.reason.as_deref(), Some(reason));
                    assert_eq!(condition.status, "Unknown");
                    assert_eq!(condition.last_transition_time, Some(Time(at(500))));
                }
                (verdict, expected) => {
                    assert_eq!(Ok(verdict), expected, "{ready}, {silent_seconds}");
                }
            }
        }
    }

    #[test]
    fn a_node_that_never_had_a_kubelet_is_told_apart() {
        let node = Node::default();
        match judge(&node, Duration::from_secs(15), Duration::from_secs(15), at(0)) {
            Verdict::Lost(condition) => {
                assert_eq!(condition.reason.as_deref(), Some("NodeStatusNeverUpdated"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_condition_replaces_the_one_that_was_there() {
        let mut changed = node("node-1", "True");
        let condition = |status: &str| NodeCondition {
            type_: "Ready".into(),
            status: status.into(),
            ..NodeCondition::default()
        };
        set(&mut changed, condition("Unknown"));
        assert_eq!(changed, node("node-1", "Unknown"));

        let mut bare = Node::default();
        set(&mut bare, condition("Unknown"));
        assert_eq!(ready(&bare), Some(&condition("Unknown")));
    }
}
