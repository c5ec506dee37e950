//! Why a pod has no node, in Kubernetes' words, and the condition `PodScheduled` that says so.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::Refusals;
use super::filters::Reason;

const POD_SCHEDULED: &str = "PodScheduled";
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Why a pod waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// No node takes it.
    Unschedulable,
    /// Somebody holds it back.
    Gated,
}

impl Waiting {
    fn reason(self) -> &'static str {
        match self {
            Self::Unschedulable => "Unschedulable",
            Self::Gated => "SchedulingGated",
        }
    }
}

pub(crate) const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

/// How many of all nodes were refused for which reasons.
pub(crate) fn refused(refusals: &Refusals) -> String {
    if refusals.nodes.is_empty() {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: HashMap<&Reason, usize> = HashMap::new();
    for reason in refusals.nodes.iter().flat_map(|(_, refusal)| refusal.reasons()) {
        *counts.entry(reason).or_default() += 1;
    }
    unavailable(refusals.nodes.len(), counts.into_iter().map(|(reason, count)| (count, reason)))
}

/// That none of so many nodes will do, with how many for which reason.
pub(crate) fn unavailable(
    nodes: usize,
    counts: impl IntoIterator<Item = (usize, impl ToString)>,
) -> String {
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let mut reasons: Vec<String> =
        counts.map(|(count, reason)| format!("{count} {}", reason.to_string())).collect();
    reasons.sort_unstable();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

/// Says in the pod's status that it waits, and why. The transition time is that of the first
/// time; a pod that says so already is left as it is.
pub(crate) fn set_waiting(pod: &mut Pod, waiting: Waiting, message: &str, now: Timestamp) {
    set(pod, POD_SCHEDULED, "False", waiting.reason(), message, now);
}

/// Says in the status of a pod that it has to make room for another.
pub(crate) fn set_preempted(pod: &mut Pod, now: Timestamp) {
    let message = "default-scheduler: preempting to accommodate a higher priority pod";
    set(pod, DISRUPTION_TARGET, "True", "PreemptionByScheduler", message, now);
}

fn set(pod: &mut Pod, type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == type_);
    let since = known
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == status)
        .and_then(|condition| condition.last_transition_time.clone());
    let condition = PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
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
    use crate::scheduler::filters::{Filter, Refusal};
    use crate::scheduler::snapshot::NodeIndex;

    #[test]
    fn every_reason_with_its_count() {
        let refusal = |reasons: &[Reason]| {
            Refusal::for_reasons(Filter::Resources, reasons.iter().cloned(), true).unwrap()
        };
        let message = |nodes: &[&[Reason]]| {
            let nodes = (0..).map(NodeIndex).zip(nodes.iter().map(|reasons| refusal(reasons)));
            refused(&Refusals { nodes: nodes.collect() })
        };
        let cpu = Reason::InsufficientCpu;
        let memory = Reason::InsufficientMemory;
        let taint = |key: &str, value: &str| Reason::Taint { key: key.into(), value: value.into() };
        assert_eq!(message(&[]), "no nodes available to schedule pods");
        assert_eq!(
            message(&[&[taint("a", "b")], std::slice::from_ref(&cpu), &[taint("a", "b")]]),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {a: b}."
        );
        assert_eq!(
            message(&[&[cpu, memory.clone()], &[memory], &[taint("x", "")]]),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {x: }, 2 Insufficient memory."
        );
        assert_eq!(
            message(&[&[Reason::Spread], &[Reason::TooManyPods]]),
            "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints."
        );
    }

    #[test]
    fn the_reason_is_told_and_dated_once() {
        let mut pod = (*pod("a").build()).clone();
        set_waiting(
            &mut pod,
            Waiting::Unschedulable,
            "no nodes available to schedule pods",
            at(100),
        );
        let first = pod::condition(&pod, POD_SCHEDULED).unwrap().clone();
        assert_eq!(
            (first.status.as_str(), first.reason.as_deref()),
            ("False", Some("Unschedulable"))
        );
        assert_eq!(first.last_transition_time, Some(Time(at(100))));

        let before = pod.clone();
        set_waiting(
            &mut pod,
            Waiting::Unschedulable,
            "no nodes available to schedule pods",
            at(200),
        );
        assert_eq!(pod, before, "nothing new to say");

        set_waiting(&mut pod, Waiting::Gated, GATED, at(300));
        let second = pod::condition(&pod, POD_SCHEDULED).unwrap();
        assert_eq!(second.reason.as_deref(), Some("SchedulingGated"));
        assert_eq!(second.last_transition_time, first.last_transition_time);

        set_preempted(&mut pod, at(400));
        assert_eq!(pod::condition(&pod, DISRUPTION_TARGET).unwrap().status, "True");
        assert_eq!(pod.status.unwrap().conditions.unwrap().len(), 2);
    }
}
