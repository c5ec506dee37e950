//! Taints: what keeps pods away from a node that do not tolerate it.

use api::taints::{
    NO_EXECUTE, NO_SCHEDULE, NOT_READY, PREFER_NO_SCHEDULE, UNREACHABLE, UNSCHEDULABLE, tolerates,
};
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// The taints that a node has, with that of a node which is not ready: the node lifecycle
/// controller writes it a moment after the condition, and no pod should slip through between.
pub(crate) fn of_node(node: &Node) -> Vec<Taint> {
    let mut taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let key = match ready.map(|ready| ready.status.as_str()) {
        Some("True") => return taints,
        Some("Unknown") => UNREACHABLE,
        _ => NOT_READY,
    };
    // That of the effect NoExecute says nothing here: pods tolerate it for a while by default.
    if !taints.iter().any(|taint| taint.key == key && taint.effect == NO_SCHEDULE) {
        taints.push(no_schedule(key));
    }
    taints
}

fn no_schedule(key: &str) -> Taint {
    Taint { key: key.to_owned(), effect: NO_SCHEDULE.to_owned(), ..Taint::default() }
}

/// Whether a taint keeps pods from being placed on the node.
fn keeps_away(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE)
}

/// The first taint that keeps a pod with these tolerations away.
pub(crate) fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
) -> Option<&'a Taint> {
    taints.iter().find(|taint| keeps_away(taint) && !is_tolerated(taint, tolerations))
}

/// How many taints there are that would rather not have a pod with these tolerations.
pub(crate) fn reluctant(taints: &[Taint], tolerations: &[Toleration]) -> usize {
    taints
        .iter()
        .filter(|taint| taint.effect == PREFER_NO_SCHEDULE && !is_tolerated(taint, tolerations))
        .count()
}

/// Whether a pod may go to a node that takes no new pods.
pub(crate) fn tolerates_unschedulable(tolerations: &[Toleration]) -> bool {
    !tolerations.is_empty() && is_tolerated(&no_schedule(UNSCHEDULABLE), tolerations)
}

fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: (!value.is_empty()).then(|| value.into()),
            effect: effect.into(),
            time_added: None,
        }
    }

    fn tolerations(value: Value) -> Vec<Toleration> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn effects() {
        let taints = [
            taint("a", "", PREFER_NO_SCHEDULE),
            taint("b", "", NO_EXECUTE),
            taint("c", "", PREFER_NO_SCHEDULE),
        ];
        assert_eq!(untolerated(&taints, &[]), Some(&taints[1]));
        assert_eq!(reluctant(&taints, &[]), 2);
        let some = tolerations(json!([{ "key": "b" }, { "key": "c", "operator": "Exists" }]));
        assert_eq!(untolerated(&taints, &some), None);
        assert_eq!(reluctant(&taints, &some), 1);
        assert!(!tolerates_unschedulable(&some));
        assert!(tolerates_unschedulable(&tolerations(json!([{ "operator": "Exists" }]))));
    }

    #[test]
    fn a_node_that_is_not_ready_is_tainted_before_anybody_writes_it() {
        let keys =
            |node: &Node| of_node(node).into_iter().map(|taint| taint.key).collect::<Vec<_>>();
        assert!(keys(&fixture::node("a", "True")).is_empty());
        assert_eq!(keys(&fixture::node("a", "False")), [NOT_READY]);
        assert_eq!(keys(&fixture::node("a", "Unknown")), [UNREACHABLE]);
        assert_eq!(keys(&Node::default()), [NOT_READY]);
        let mut written = fixture::node("a", "Unknown");
        written.spec.get_or_insert_default().taints =
            Some(vec![taint(UNREACHABLE, "", NO_EXECUTE)]);
        assert_eq!(keys(&written), [UNREACHABLE; 2], "pods tolerate the other one for a while");
        written.spec.get_or_insert_default().taints =
            Some(vec![taint(UNREACHABLE, "", NO_SCHEDULE)]);
        assert_eq!(keys(&written), [UNREACHABLE], "once is enough");
    }
}
