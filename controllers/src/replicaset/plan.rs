//! What a ReplicaSet needs done, decided from what is known and from nothing else.
//!
//! The pods of a set are those it owns as their controller; labels only decide who may join
//! (adoption) and who must leave (release):
//!
//! | controller | labels match | pod | action |
//! | --- | --- | --- | --- |
//! | this set | yes | any | counted while active |
//! | this set | no | active or finished | release: it lives on without an owner |
//! | none | yes | active | adopt, and count |
//! | none | no | any | nothing |
//! | another | any | any | nothing |
//!
//! Terminating pods are neither adopted nor released nor counted. Finished ones (`Succeeded`,
//! `Failed`) are not counted either, so a new pod takes their place; they stay, for people to
//! look at, until the set goes.

use std::sync::Arc;
use std::time::Duration;

use api::{Cause, Object, Selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::rank::by_deletion_order;
use super::status::{self, Counted};
use crate::pod;

/// Pods created or deleted for one set in one go, as in Kubernetes. The rest follows once these
/// have been seen.
pub(crate) const BURST: usize = 500;

/// What to do for a set, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Pods to become the set's own.
    pub(crate) adopt: Vec<Arc<Pod>>,
    /// Pods that no longer match, to be let go.
    pub(crate) release: Vec<Arc<Pod>>,
    /// How the number of pods is to change.
    pub(crate) scale: Scale,
    /// The status to write, when it differs from the one that is stored.
    pub(crate) status: Option<ReplicaSetStatus>,
    /// When to look again although nothing happens: a pod becomes available by waiting.
    pub(crate) recheck_after: Option<Duration>,
}

/// How the number of pods is to change.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Scale {
    /// Not at all.
    #[default]
    Keep,
    /// So many more.
    Create(usize),
    /// Without these.
    Delete(Vec<Arc<Pod>>),
}

/// Why nothing can be done for a set. Validation keeps such objects out; whoever writes to the
/// store directly gets past it, and creating pods for these would never come to an end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidReplicaSet {
    /// `spec.selector` makes no sense.
    #[error("spec.selector.{} {}", .0.field, .0.reason)]
    Selector(Cause),
    /// `spec.selector` asks for nothing.
    #[error("spec.selector is empty and would select every pod: give it labels")]
    SelectsEverything,
    /// The pods made from the template would not be the set's own.
    #[error("spec.template.metadata.labels do not match spec.selector: make them agree")]
    TemplateNotSelected,
}

/// Plans for `set`, given the pods of its namespace.
///
/// `settled` says that the effects of earlier actions for this set can be seen in `pods`; until
/// then pods are neither created nor deleted, as counting on a stale view would do it twice.
pub(crate) fn plan(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    settled: bool,
    now: Timestamp,
) -> Result<Plan, InvalidReplicaSet> {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels =
        spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let selector = Selector::new(&spec.selector).map_err(InvalidReplicaSet::Selector)?;
    if selector.is_empty() {
        return Err(InvalidReplicaSet::SelectsEverything);
    }
    if !selector.matches(template_labels) {
        return Err(InvalidReplicaSet::TemplateNotSelected);
    }

    let going = set.is_deleting();
    let mut plan = Plan::default();
    let mut counted = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
        let matches = selector.matches(pod.metadata.labels.as_ref());
        match pod.controller() {
            Some(owner) if owner.uid == set.uid() => {
                if !matches && !going {
                    plan.release.push(pod.clone());
                } else if pod::is_active(pod) {
                    counted.push(pod.clone());
                }
            }
            None if matches && !going && pod::is_active(pod) => {
                plan.adopt.push(pod.clone());
                counted.push(pod.clone());
            }
            Some(_) | None => {}
        }
    }

    let min_ready = u64::try_from(spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0);
    let counts = Counted::new(&counted, template_labels, Duration::from_secs(min_ready), now);
    plan.recheck_after = counts.available_in;
    plan.status = status::changed(set, &counts);
    if settled && !going {
        // An absent count means one, as Kubernetes' default does.
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        plan.scale = scale(wanted, counted);
    }
    Ok(plan)
}

fn scale(wanted: usize, pods: Vec<Arc<Pod>>) -> Scale {
    if pods.len() < wanted {
        Scale::Create((wanted - pods.len()).min(BURST))
    } else if pods.len() > wanted {
        let surplus = (pods.len() - wanted).min(BURST);
        let mut doomed = by_deletion_order(pods);
        doomed.truncate(surplus);
        Scale::Delete(doomed)
    } else {
        Scale::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{PodBuilder, at, pod, replicaset};

    fn own(name: &str) -> PodBuilder {
        pod(name).label("app", "nginx").owned_by("rs-uid")
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.name()).collect()
    }

    #[test]
    fn the_number_of_pods_follows_the_count() {
        let create = |n| Scale::Create(n);
        let delete = |pods: Vec<PodBuilder>| {
            Scale::Delete(pods.into_iter().map(PodBuilder::build).collect())
        };
        let rows: Vec<(&str, i32, Vec<PodBuilder>, Scale)> = vec![
            ("from nothing", 4, vec![], create(4)),
            ("one is missing", 2, vec![own("a")], create(1)),
            ("as many as wanted", 2, vec![own("a"), own("b")], Scale::Keep),
            ("one too many", 1, vec![own("a"), own("b").on("node-1")], delete(vec![own("a")])),
            ("down to nothing", 0, vec![own("a")], delete(vec![own("a")])),
            ("a negative count is none", -1, vec![], Scale::Keep),
            ("no more than a burst at once", 9_999, vec![], create(BURST)),
            ("a terminating pod is replaced", 1, vec![own("a").terminating()], create(1)),
            ("a failed pod is replaced", 1, vec![own("a").phase("Failed")], create(1)),
            ("a succeeded pod is replaced", 1, vec![own("a").phase("Succeeded")], create(1)),
            ("a finished pod is not deleted", 0, vec![own("a").phase("Failed")], Scale::Keep),
            ("an unknown pod still counts", 1, vec![own("a").phase("Unknown")], Scale::Keep),
            (
                "another set's pod does not count",
                1,
                vec![pod("a").label("app", "nginx").owned_by("other")],
                create(1),
            ),
            ("a stranger does not count", 1, vec![pod("a").label("app", "redis")], create(1)),
            ("an orphan that matches counts", 1, vec![pod("a").label("app", "nginx")], Scale::Keep),
            (
                "one that no longer matches does not",
                1,
                vec![pod("a").owned_by("rs-uid")],
                create(1),
            ),
        ];
        for (row, wanted, pods, expected) in rows {
            let pods: Vec<_> = pods.into_iter().map(PodBuilder::build).collect();
            let plan = plan(&replicaset(wanted), &pods, true, at(1_000)).unwrap();
            assert_eq!(plan.scale, expected, "{row}");
        }
    }

    #[test]
    fn nothing_is_scaled_before_earlier_actions_are_seen() {
        let pods = vec![own("a").build()];
        for wanted in [0, 1, 5] {
            let plan = plan(&replicaset(wanted), &pods, false, at(1_000)).unwrap();
            assert_eq!(plan.scale, Scale::Keep);
            assert!(plan.status.is_some(), "the status does not wait");
        }
    }

    #[test]
    fn orphans_join_and_strays_leave() {
        let pods: Vec<_> = vec![
            own("own"),
            pod("orphan").label("app", "nginx"),
            pod("orphan-finished").label("app", "nginx").phase("Succeeded"),
            pod("orphan-terminating").label("app", "nginx").terminating(),
            pod("orphan-stranger").label("app", "redis"),
            pod("stray").label("app", "redis").owned_by("rs-uid"),
            pod("stray-finished").owned_by("rs-uid").phase("Failed"),
            pod("stray-terminating").owned_by("rs-uid").terminating(),
            pod("taken").label("app", "nginx").owned_by("other"),
        ]
        .into_iter()
        .map(PodBuilder::build)
        .collect();

        let decided = plan(&replicaset(2), &pods, true, at(1_000)).unwrap();
        assert_eq!(names(&decided.adopt), ["orphan"]);
        assert_eq!(names(&decided.release), ["stray", "stray-finished"]);
        assert_eq!(decided.scale, Scale::Keep);

        let mut going = replicaset(2);
        going.metadata.deletion_timestamp =
            own("x").terminating().build().metadata.deletion_timestamp.clone();
        let decided = plan(&going, &pods, true, at(1_000)).unwrap();
        assert_eq!((decided.adopt, decided.release, decided.scale), (vec![], vec![], Scale::Keep));
    }

    #[test]
    fn a_set_without_a_count_wants_one() {
        let mut set = replicaset(0);
        set.spec.as_mut().unwrap().replicas = None;
        assert_eq!(plan(&set, &[], true, at(0)).unwrap().scale, Scale::Create(1));
    }

    #[test]
    fn a_set_that_could_never_be_filled_is_refused() {
        let mut everything = replicaset(1);
        everything.spec.as_mut().unwrap().selector = Default::default();
        assert_eq!(plan(&everything, &[], true, at(0)), Err(InvalidReplicaSet::SelectsEverything));

        let mut mismatched = replicaset(1);
        mismatched.spec.as_mut().unwrap().template = None;
        assert_eq!(
            plan(&mismatched, &[], true, at(0)),
            Err(InvalidReplicaSet::TemplateNotSelected)
        );
    }
}
