//! The conditions of a node that is no longer heard of.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What kubelets say about their nodes, and nobody knows any more when they fall silent.
const TOLD_BY_KUBELETS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node's condition of that type.
fn find<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// The node's `Ready` condition.
pub(crate) fn ready(node: &Node) -> Option<&NodeCondition> {
    find(node, "Ready")
}

/// Whether the condition of that type is `True`, `False` or `Unknown`.
pub(crate) fn status<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    find(node, type_).map(|condition| condition.status.as_str())
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Heard of lately enough.
    Alive,
    /// Not heard of for the grace period: it is to be declared unknown.
    Lost,
    /// Not heard of, and known to be so.
    KnownLost,
}

/// Judges a node whose last heartbeat was seen `silent_for` ago.
///
/// Only a kubelet makes its node ready again: silence is noticed here, recovery is not.
pub(crate) fn judge(node: &Node, silent_for: Duration, grace: Duration) -> Verdict {
    if silent_for < grace {
        return Verdict::Alive;
    }
    match ready(node) {
        Some(condition) if condition.status == "Unknown" => Verdict::KnownLost,
        _ => Verdict::Lost,
    }
}

/// Makes everything `Unknown` that the node's kubelet said of it.
pub(crate) fn declare_unknown(node: &mut Node, now: Timestamp) {
    for type_ in TOLD_BY_KUBELETS {
        let known = find(node, type_);
        if known.is_some_and(|condition| condition.status == "Unknown") {
            continue;
        }
        let (reason, message) = match known {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let condition = NodeCondition {
            type_: type_.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: known.and_then(|known| known.last_heartbeat_time.clone()),
            last_transition_time: Some(Time(now)),
        };
        set(node, condition);
    }
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
    fn silence_beyond_the_grace_period_is_a_loss() {
        let grace = Duration::from_secs(15);
        let rows = [
            ("True", 0, Verdict::Alive),
            ("True", 14, Verdict::Alive),
            ("True", 15, Verdict::Lost),
            ("True", 90, Verdict::Lost),
            ("False", 15, Verdict::Lost),
            ("Unknown", 3, Verdict::Alive),
            ("Unknown", 15, Verdict::KnownLost),
        ];
        for (ready, silent_seconds, expected) in rows {
            let verdict = judge(&node("node-1", ready), Duration::from_secs(silent_seconds), grace);
            assert_eq!(verdict, expected, "{ready}, {silent_seconds}");
        }
        assert_eq!(judge(&Node::default(), grace, grace), Verdict::Lost);
    }

    #[test]
    fn a_lost_node_is_unknown_in_all_that_its_kubelet_said() {
        let mut lost = node("node-1", "True");
        let pressure = NodeCondition {
            type_: "DiskPressure".into(),
            status: "False".into(),
            last_heartbeat_time: Some(Time(at(400))),
            ..NodeCondition::default()
        };
        let weather = NodeCondition {
            type_: "Weather".into(),
            status: "True".into(),
            ..NodeCondition::default()
        };
        set(&mut lost, pressure);
        set(&mut lost, weather.clone());
        declare_unknown(&mut lost, at(500));
        for (type_, reason) in [
            ("Ready", "NodeStatusUnknown"),
            ("DiskPressure", "NodeStatusUnknown"),
            ("MemoryPressure", "NodeStatusNeverUpdated"),
            ("PIDPressure", "NodeStatusNeverUpdated"),
        ] {
            let condition = find(&lost, type_).unwrap();
            assert_eq!(condition.status, "Unknown", "{type_}");
            assert_eq!(condition.reason.as_deref(), Some(reason), "{type_}");
            assert_eq!(condition.last_transition_time, Some(Time(at(500))), "{type_}");
        }
        assert_eq!(find(&lost, "Weather"), Some(&weather));
        let heartbeat = find(&lost, "DiskPressure").unwrap().last_heartbeat_time.clone();
        assert_eq!(heartbeat, Some(Time(at(400))));

        let again = lost.clone();
        declare_unknown(&mut lost, at(600));
        assert_eq!(lost, again, "it is not declared twice");
    }
}
