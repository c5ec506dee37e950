//! What becomes of a pod whose node is in trouble.
//!
//! | the pod | its node | |
//! | --- | --- | --- |
//! | does not tolerate one of the `NoExecute` taints | any | is evicted: deleted, so that it is replaced elsewhere |
//! | tolerates each, some for a time | any | is evicted when the first of these times is over |
//! | is being deleted | not heard of | goes a while after its grace period: nobody else ends its deletion |
//! | is being deleted | not ready, `out-of-service` | goes at once: a person says that its containers are gone |
//! | otherwise | any | stays |
//!
//! A toleration's time runs from when the taint was added, or the pod was bound, whichever came
//! later: a controller that is started anew does not begin to count again.

use std::time::Duration;

use api::taints::{NO_EXECUTE, OUT_OF_SERVICE, UNREACHABLE, tolerates, tolerations};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::taints;
use crate::pod;

/// What to do about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing, until the node changes.
    Stay,
    /// Look again at this time.
    Wait(Timestamp),
    /// Delete it.
    Evict,
    /// End its deletion, as its kubelet would.
    Remove,
}

/// Whether there can be anything to do about the pods of a node.
pub(crate) fn concerns(node: &Node) -> bool {
    taints::trouble(node).is_some()
        || taints::of(node).iter().any(|taint| taint.effect == NO_EXECUTE)
}

/// Decides for a pod of the node. `removal_period` is how much longer than its grace period a pod
/// stays that is being deleted on a node which is not heard of.
pub(crate) fn decide(pod: &Pod, node: &Node, removal_period: Duration, now: Timestamp) -> Verdict {
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        let trouble = taints::trouble(node);
        let is_down = |taint: &Taint| taint.key == OUT_OF_SERVICE;
        return if trouble.is_some() && taints::of(node).iter().any(is_down) {
            Verdict::Remove
        } else if trouble == Some(UNREACHABLE) {
            due(later(deleted.0, removal_period), Verdict::Remove, now)
        } else {
            Verdict::Stay
        };
    }
    let bound = bound_at(pod);
    let mut first = None;
    for taint in taints::of(node).iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let mut tolerating = tolerations(pod).iter().filter(|own| tolerates(own, taint)).peekable();
        if tolerating.peek().is_none() {
            return Verdict::Evict;
        }
        let Some(seconds) = tolerating.filter_map(|own| own.toleration_seconds).min() else {
            continue;
        };
        let added = taint.time_added.as_ref().map(|time| time.0);
        let since = added.max(bound).unwrap_or(now);
        let until = later(since, Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        first = Some(first.map_or(until, |first: Timestamp| first.min(until)));
    }
    first.map_or(Verdict::Stay, |first| due(first, Verdict::Evict, now))
}

fn due(at: Timestamp, verdict: Verdict, now: Timestamp) -> Verdict {
    if at <= now { verdict } else { Verdict::Wait(at) }
}

fn bound_at(pod: &Pod) -> Option<Timestamp> {
    let bound =
        pod::condition(pod, "PodScheduled").and_then(|bound| bound.last_transition_time.as_ref());
    bound.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// As late as there are times, at most.
fn later(at: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use api::taints::NOT_READY;
    use k8s_openapi::api::core::v1::Toleration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::fixture::{at, node, pod};

    fn tainted(ready: &str, taints: &[(&str, &str, i64)]) -> Node {
        let mut node = node("node-1", ready);
        let taint = |&(key, effect, added): &(&str, &str, i64)| Taint {
            key: key.into(),
            effect: effect.into(),
            time_added: Some(Time(at(added))),
            value: None,
        };
        node.spec.get_or_insert_default().taints = Some(taints.iter().map(taint).collect());
        node
    }

    fn tolerating(tolerations: &[(&str, Option<i64>)]) -> Pod {
        let mut pod = Pod::clone(&pod("a").build());
        let toleration = |&(key, seconds): &(&str, Option<i64>)| Toleration {
            key: (!key.is_empty()).then(|| key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        pod.spec.as_mut().unwrap().tolerations = Some(tolerations.iter().map(toleration).collect());
        pod
    }

    const REMOVAL: Duration = Duration::from_secs(300);

    #[test]
    fn a_pod_leaves_when_it_tolerates_no_longer() {
        use Verdict::{Evict, Stay};
        let wait = |second| Verdict::Wait(at(second));
        let gone = (UNREACHABLE, NO_EXECUTE, 100);
        let gpu = ("gpu", NO_EXECUTE, 110);
        const NONE: &[(&str, Option<i64>)] = &[];
        // The tolerations, the node's taints, the second, the verdict.
        let rows = [
            (NONE, vec![], 120, Stay),
            (&[], vec![(UNREACHABLE, "NoSchedule", 100)], 120, Stay),
            (&[], vec![gone], 120, Evict),
            (&[(UNREACHABLE, Some(30))], vec![gone], 100, wait(130)),
            (&[(UNREACHABLE, Some(30))], vec![gone], 129, wait(130)),
            (&[(UNREACHABLE, Some(30))], vec![gone], 130, Evict),
            (&[(UNREACHABLE, Some(0))], vec![gone], 100, Evict),
            (&[(UNREACHABLE, Some(-5))], vec![gone], 100, Evict),
            (&[(UNREACHABLE, None)], vec![gone], 9_000, Stay),
            (&[("", None)], vec![gone, gpu], 9_000, Stay),
            (&[(NOT_READY, Some(30))], vec![gone], 100, Evict),
            (&[(UNREACHABLE, Some(30)), ("", None)], vec![gone], 100, wait(130)),
            (&[(UNREACHABLE, Some(30)), (UNREACHABLE, Some(9))], vec![gone], 100, wait(109)),
            (&[(UNREACHABLE, Some(30)), ("gpu", Some(5))], vec![gone, gpu], 111, wait(115)),
            (&[(UNREACHABLE, Some(30)), ("gpu", None)], vec![gone, gpu], 111, wait(130)),
            (&[(UNREACHABLE, Some(30))], vec![gone, gpu], 111, Evict),
            (&[(UNREACHABLE, Some(i64::MAX))], vec![gone], 111, Verdict::Wait(Timestamp::MAX)),
        ];
        for (tolerations, taints, second, expected) in rows {
            let (pod, node) = (tolerating(tolerations), tainted("Unknown", &taints));
            let verdict = decide(&pod, &node, REMOVAL, at(second));
            assert_eq!(verdict, expected, "{tolerations:?} {taints:?} at {second}");
        }
    }

    #[test]
    fn a_pod_that_came_later_has_its_full_time() {
        let node = tainted("Unknown", &[(UNREACHABLE, NO_EXECUTE, 100)]);
        let mut pod = tolerating(&[(UNREACHABLE, Some(30))]);
        pod.metadata.creation_timestamp = Some(Time(at(150)));
        assert_eq!(decide(&pod, &node, REMOVAL, at(160)), Verdict::Wait(at(180)));
    }

    #[test]
    fn a_pod_being_deleted_goes_when_nobody_else_can_end_it() {
        let down = (OUT_OF_SERVICE, NO_EXECUTE, 100);
        // Deleted at second 1, with the grace in it.
        let deleting = pod("a").terminating().build();
        let rows = [
            ("True", vec![], 9_000, Verdict::Stay),
            ("False", vec![], 9_000, Verdict::Stay),
            ("Unknown", vec![], 0, Verdict::Wait(at(301))),
            ("Unknown", vec![], 300, Verdict::Wait(at(301))),
            ("Unknown", vec![], 301, Verdict::Remove),
            ("Unknown", vec![down], 0, Verdict::Remove),
            ("False", vec![down], 0, Verdict::Remove),
            ("True", vec![down], 9_000, Verdict::Stay),
        ];
        for (ready, taints, second, expected) in rows {
            let node = tainted(ready, &taints);
            let verdict = decide(&deleting, &node, REMOVAL, at(second));
            assert_eq!(verdict, expected, "{ready} {taints:?} at {second}");
        }
    }

    #[test]
    fn which_nodes_are_looked_at() {
        assert!(!concerns(&node("a", "True")));
        assert!(concerns(&node("a", "False")));
        assert!(concerns(&node("a", "Unknown")));
        assert!(concerns(&tainted("True", &[("gpu", NO_EXECUTE, 0)])));
        assert!(!concerns(&tainted("True", &[("gpu", "NoSchedule", 0)])));
    }
}
