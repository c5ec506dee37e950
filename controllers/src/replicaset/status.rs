//! The status of a ReplicaSet: counts of its active pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The active pods of a set, counted.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    replicas: usize,
    fully_labeled: usize,
    ready: usize,
    available: usize,
    /// When the next ready pod will have been so for long enough.
    pub(crate) available_in: Option<Duration>,
}

impl Counted {
    /// Counts `pods`; available are those ready for at least `min_ready`.
    pub(crate) fn new(
        pods: &[Arc<Pod>],
        template_labels: Option<&BTreeMap<String, String>>,
        min_ready: Duration,
        now: Timestamp,
    ) -> Self {
        let mut counted = Self { replicas: pods.len(), ..Self::default() };
        for pod in pods {
            let carries = |(key, value): (&String, &String)| {
                pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value)
            };
            counted.fully_labeled +=
                usize::from(template_labels.into_iter().flatten().all(carries));
            counted.ready += usize::from(pod::is_ready(pod));
            match pod::available_in(pod, min_ready, now) {
                Some(Duration::ZERO) => counted.available += 1,
                Some(wait) => {
                    let next = counted.available_in.map_or(wait, |known| known.min(wait));
                    counted.available_in = Some(next);
                }
                None => {}
            }
        }
        counted
    }
}

/// The status that `counts` make, unless it is the one the set has already. Conditions are kept.
pub(crate) fn changed(set: &ReplicaSet, counts: &Counted) -> Option<ReplicaSetStatus> {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    // Kubernetes leaves zeros out, except for `replicas`.
    let optional = |count: usize| (count > 0).then(|| number(count));
    let old = set.status.clone().unwrap_or_default();
    let new = ReplicaSetStatus {
        replicas: number(counts.replicas),
        fully_labeled_replicas: optional(counts.fully_labeled),
        ready_replicas: optional(counts.ready),
        available_replicas: optional(counts.available),
        observed_generation: set.metadata.generation,
        ..old.clone()
    };
    (set.status.is_none() || new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{PodBuilder, at, pod, replicaset};

    #[test]
    fn pods_are_counted_by_what_they_have_reached() {
        let labels = BTreeMap::from([("app".to_owned(), "nginx".to_owned())]);
        let labelled = |name: &str| pod(name).label("app", "nginx");
        let ready = |name: &str, second| labelled(name).phase("Running").ready_at(second);
        // (pods, min ready in s, [replicas, fully labelled, ready, available], next available in
        // s), all at second 100
        type Row = (Vec<PodBuilder>, u64, [usize; 4], Option<u64>);
        let rows: Vec<Row> = vec![
            (vec![], 0, [0, 0, 0, 0], None),
            (vec![labelled("a"), labelled("b").phase("Running")], 0, [2, 2, 0, 0], None),
            (vec![pod("a").label("tier", "web").ready_at(1)], 0, [1, 0, 1, 1], None),
            (vec![ready("a", 100), ready("b", 40)], 0, [2, 2, 2, 2], None),
            (vec![ready("a", 100), ready("b", 95), ready("c", 40)], 30, [3, 3, 3, 1], Some(25)),
            (vec![ready("a", 70)], 30, [1, 1, 1, 1], None),
            // A clock that runs ahead is not a reason to wait for ever.
            (vec![ready("a", 140)], 30, [1, 1, 1, 0], Some(30)),
        ];
        for (pods, min_ready, expected, next) in rows {
            let pods: Vec<_> = pods.into_iter().map(PodBuilder::build).collect();
            let counted =
                Counted::new(&pods, Some(&labels), Duration::from_secs(min_ready), at(100));
            let counts =
                [counted.replicas, counted.fully_labeled, counted.ready, counted.available];
            assert_eq!(counts, expected, "{pods:?}");
            assert_eq!(counted.available_in, next.map(Duration::from_secs), "{pods:?}");
        }
    }

    #[test]
    fn it_is_written_on_change_only() {
        let mut set = replicaset(2);
        let counts = Counted { replicas: 2, ready: 1, ..Counted::default() };
        let first = changed(&set, &counts).expect("a set without a status gets one");
        assert_eq!(
            (first.replicas, first.ready_replicas, first.available_replicas),
            (2, Some(1), None)
        );
        assert_eq!(first.observed_generation, Some(1));

        set.status = Some(first);
        assert_eq!(changed(&set, &counts), None);

        set.metadata.generation = Some(2);
        let second = changed(&set, &counts).expect("a new generation is a change");
        assert_eq!(second.observed_generation, Some(2));
    }
}
