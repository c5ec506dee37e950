//! The condition `PodScheduled` of a pod that no node takes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const TYPE: &str = "PodScheduled";

/// Says in the pod's status that it cannot be placed, and why. The transition time is that of the
/// first time; a pod that says so already is left as it is.
pub(crate) fn set_unschedulable(pod: &mut Pod, message: &str, now: Timestamp) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == TYPE);
    let since = known
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == "False")
        .and_then(|condition| condition.last_transition_time.clone());
    let condition = PodCondition {
        type_: TYPE.to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since.or_else(|| Some(whole_seconds(now))),
        ..PodCondition::default()
    };
    match known {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

/// Objects carry times in whole seconds.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, pod};
    use crate::pod;

    #[test]
    fn the_reason_is_told_and_dated_once() {
        let mut pod = (*pod("a").build()).clone();
        set_unschedulable(&mut pod, "no nodes available to schedule pods", at(100));
        let first = pod::condition(&pod, TYPE).unwrap().clone();
        assert_eq!(
            (first.status.as_str(), first.reason.as_deref()),
            ("False", Some("Unschedulable"))
        );
        assert_eq!(first.last_transition_time, Some(Time(at(100))));

        let before = pod.clone();
        set_unschedulable(&mut pod, "no nodes available to schedule pods", at(200));
        assert_eq!(pod, before, "nothing new to say");

        set_unschedulable(&mut pod, "0/1 nodes are available: 1 node(s) were not ready", at(300));
        let second = pod::condition(&pod, TYPE).unwrap();
        assert_ne!(second.message, first.message);
        assert_eq!(second.last_transition_time, first.last_transition_time);
        assert_eq!(pod.status.unwrap().conditions.unwrap().len(), 1);
    }
}
