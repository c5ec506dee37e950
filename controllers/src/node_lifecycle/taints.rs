//! The taints that a node has because of its state, as Kubernetes has them.
//!
//! | the node | `NoSchedule` | `NoExecute`, when its turn has come |
//! | --- | --- | --- |
//! | `Ready` is `False` | `not-ready` | `not-ready` |
//! | `Ready` is `Unknown` | `unreachable` | `unreachable` |
//! | is short of memory, disk or process ids | `memory-pressure`, `disk-pressure`, `pid-pressure` | |
//! | is `spec.unschedulable` | `unschedulable` | |
//!
//! The first sort keeps new pods away, the second makes those that are there leave once they do not
//! tolerate it any longer. A taint's `timeAdded` stays while the taint does. The taints that others
//! made stay as they are.

use api::taints::{
    DISK_PRESSURE, MEMORY_PRESSURE, NO_EXECUTE, NO_SCHEDULE, NOT_READY, PID_PRESSURE, UNREACHABLE,
    UNSCHEDULABLE,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::condition;

/// Conditions that mean a taint when they are `True`.
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", MEMORY_PRESSURE),
    ("DiskPressure", DISK_PRESSURE),
    ("PIDPressure", PID_PRESSURE),
];

/// Whether the pods of a node in trouble are to leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exodus {
    /// Its turn has come.
    Begin,
    /// It goes on if it had begun.
    AsBefore,
    /// Not now, even if it had begun.
    Halt,
}

/// The taints of a node.
pub(crate) fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether the node's pods have been told to leave because of its state.
pub(crate) fn has_exodus(node: &Node) -> bool {
    of(node).iter().any(is_exodus)
}

fn is_exodus(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE)
}

/// The key of the taints of a node that is not ready; none when it is, or has not said anything yet.
pub(crate) fn trouble(node: &Node) -> Option<&'static str> {
    match condition::ready(node)?.status.as_str() {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    }
}

/// The taints that the node should have; none when it has them.
pub(crate) fn changed(node: &Node, exodus: Exodus, now: Timestamp) -> Option<Vec<Taint>> {
    let wanted = wanted(node, exodus);
    let is_wanted = |taint: &Taint| {
        wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    };
    let before = of(node);
    let kept = before.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned();
    let mut taints: Vec<Taint> = kept.collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (taints != before).then_some(taints)
}

fn wanted(node: &Node, exodus: Exodus) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    if let Some(key) = trouble(node) {
        wanted.push((key, NO_SCHEDULE));
        let leave = match exodus {
            Exodus::Begin => true,
            Exodus::AsBefore => has_exodus(node),
            Exodus::Halt => false,
        };
        if leave {
            wanted.push((key, NO_EXECUTE));
        }
    }
    for (condition, key) in PRESSURES {
        if condition::status(node, condition) == Some("True") {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    wanted
}

/// Whether a taint is one that comes and goes with the node's state.
fn is_ours(taint: &Taint) -> bool {
    let by_state = taint.key == UNSCHEDULABLE
        || matches!(taint.key.as_str(), NOT_READY | UNREACHABLE)
        || PRESSURES.iter().any(|(_, key)| taint.key == *key);
    is_exodus(taint) || (taint.effect == NO_SCHEDULE && by_state)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeCondition;

    use super::*;
    use crate::fixture::{at, node};

    fn taint(key: &str, effect: &str, second: i64) -> Taint {
        Taint {
            key: key.into(),
            effect: effect.into(),
            time_added: Some(Time(at(second))),
            value: None,
        }
    }

    fn tainted(ready: &str, taints: &[Taint]) -> Node {
        let mut node = node("node-1", ready);
        node.spec.get_or_insert_default().taints = Some(taints.to_vec());
        node
    }

    #[test]
    fn a_node_that_is_not_ready() {
        let new = |key| taint(key, NO_SCHEDULE, 50);
        let new_exodus = |key| taint(key, NO_EXECUTE, 50);
        let old = |key| taint(key, NO_SCHEDULE, 7);
        let old_exodus = |key| taint(key, NO_EXECUTE, 7);
        let foreign = taint("gpu", NO_SCHEDULE, 1);
        use Exodus::{AsBefore, Begin, Halt};
        let rows = [
            ("True", vec![], Begin, None),
            ("True", vec![old(NOT_READY), old_exodus(NOT_READY)], AsBefore, Some(vec![])),
            ("True", vec![foreign.clone(), old(UNREACHABLE)], Begin, Some(vec![foreign])),
            ("False", vec![], AsBefore, Some(vec![new(NOT_READY)])),
            ("False", vec![], Begin, Some(vec![new(NOT_READY), new_exodus(NOT_READY)])),
            ("Unknown", vec![], Halt, Some(vec![new(UNREACHABLE)])),
            ("Unknown", vec![old(UNREACHABLE)], AsBefore, None),
            (
                "Unknown",
                vec![old(UNREACHABLE)],
                Begin,
                Some(vec![old(UNREACHABLE), new_exodus(UNREACHABLE)]),
            ),
            ("Unknown", vec![old(UNREACHABLE), old_exodus(UNREACHABLE)], AsBefore, None),
            (
                "Unknown",
                vec![old(UNREACHABLE), old_exodus(UNREACHABLE)],
                Halt,
                Some(vec![old(UNREACHABLE)]),
            ),
            // It was silent, and now says that it is not ready.
            (
                "False",
                vec![old(UNREACHABLE), old_exodus(UNREACHABLE)],
                AsBefore,
                Some(vec![new(NOT_READY), new_exodus(NOT_READY)]),
            ),
        ];
        for (ready, before, exodus, expected) in rows {
            let node = tainted(ready, &before);
            assert_eq!(changed(&node, exodus, at(50)), expected, "{ready} {before:?} {exodus:?}");
        }
        assert_eq!(changed(&Node::default(), Begin, at(50)), None, "it said nothing yet");
    }

    #[test]
    fn pressures_and_cordons() {
        let mut node = node("node-1", "True");
        for (condition, key) in PRESSURES {
            for (status, expected) in [
                ("True", Some(vec![taint(key, NO_SCHEDULE, 50)])),
                ("False", None),
                ("Unknown", None),
            ] {
                let mut node = node.clone();
                condition::set(
                    &mut node,
                    NodeCondition {
                        type_: condition.into(),
                        status: status.into(),
                        ..NodeCondition::default()
                    },
                );
                assert_eq!(changed(&node, Exodus::AsBefore, at(50)), expected, "{condition}");
            }
        }
        node.spec.get_or_insert_default().unschedulable = Some(true);
        let cordoned = vec![taint(UNSCHEDULABLE, NO_SCHEDULE, 50)];
        assert_eq!(changed(&node, Exodus::AsBefore, at(50)), Some(cordoned.clone()));
        let mut uncordoned = tainted("True", &cordoned);
        assert_eq!(changed(&uncordoned, Exodus::AsBefore, at(60)), Some(vec![]));
        uncordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(changed(&uncordoned, Exodus::AsBefore, at(60)), None);
    }
}
