//! Which pods have to go so that a more important one can be placed.
//!
//! Of the nodes that could take the pod if less important ones were gone, some are tried: all of
//! those are thought away, and the more important of them come back as long as the pod still fits.
//! What does not come back are the victims. The node is chosen, as in Kubernetes, whose most
//! important victim is the least so; then by the sum of the victims' priorities, their number, and
//! how short the most important of them has run.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use rand::Rng;

use super::decide::Refusals;
use super::explain;
use super::filters::Checks;
use super::nominations::Nominations;
use super::pod_info::{PendingPod, PodInfo};
use super::snapshot::{NodeIndex, Snapshot};

/// How many nodes are tried at least, and of many which share in percent: Kubernetes' numbers.
const TRIED_MIN: usize = 100;
const TRIED_PERCENT: usize = 10;

/// What can be done for a pod that no node takes.
#[derive(Debug, PartialEq)]
pub(crate) enum Preemption {
    /// The node can take it once these pods are gone; the most important is first.
    Victims { node: NodeIndex, victims: Vec<Arc<PodInfo>> },
    /// Nothing now; what was begun for it goes on.
    Wait(String),
    /// Nothing at all, and why.
    None(String),
}

/// Looks for pods to be deleted for one that was refused by all nodes.
pub(crate) fn preempt(
    pod: &PendingPod,
    refusals: &Refusals,
    snapshot: &mut Snapshot,
    nominations: &Nominations,
    random: &mut impl Rng,
) -> Preemption {
    if !pod.info.priority.preempts {
        return Preemption::None("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let nominated = nominations.node_of(&pod.info.uid).and_then(|node| snapshot.find_node(node));
    if let Some(node) = nominated.and_then(|index| snapshot.node(index)) {
        let going = |other: &Arc<PodInfo>| {
            other.terminating && other.priority.value < pod.info.priority.value
        };
        let hopeless = refusals
            .nodes
            .iter()
            .any(|(index, refusal)| Some(*index) == nominated && !refusal.may_be_cured);
        if node.pods.iter().any(going) && !hopeless {
            let why = "not eligible due to a terminating pod on the nominated node.";
            return Preemption::Wait(why.to_owned());
        }
    }
    let curable: Vec<NodeIndex> = refusals
        .nodes
        .iter()
        .filter(|(_, refusal)| refusal.may_be_cured)
        .map(|(index, _)| *index)
        .collect();
    if !curable.is_empty() && snapshot.has_less_important_than(pod.info.priority.value) {
        let checks = Checks::prepare(pod, snapshot, &nominations.pods());
        let tried_max = (refusals.nodes.len() * TRIED_PERCENT / 100).max(TRIED_MIN);
        let first = random.random_range(0..curable.len());
        let best = curable[first..]
            .iter()
            .chain(&curable[..first])
            .filter_map(|index| {
                Some((*index, victims(pod, &checks, snapshot, nominations, *index)?))
            })
            .take(tried_max)
            .min_by_key(|(_, victims)| cost(victims));
        if let Some((node, victims)) = best {
            return Preemption::Victims { node, victims };
        }
    }
    let none = refusals.nodes.len() - curable.len();
    let counts = [
        (curable.len(), "No preemption victims found for incoming pod"),
        (none, "Preemption is not helpful for scheduling"),
    ];
    Preemption::None(explain::unavailable(refusals.nodes.len(), counts))
}

/// The pods that would have to leave a node, the most important first; none when that would not
/// help.
fn victims(
    pod: &PendingPod,
    checks: &Checks<'_>,
    snapshot: &Snapshot,
    nominations: &Nominations,
    index: NodeIndex,
) -> Option<Vec<Arc<PodInfo>>> {
    let present = snapshot.node(index)?;
    let topology = &snapshot.topology;
    let less_important = |other: &&Arc<PodInfo>| other.priority.value < pod.info.priority.value;
    let mut candidates: Vec<Arc<PodInfo>> =
        present.pods.iter().filter(less_important).cloned().collect();
    if candidates.is_empty() {
        return None;
    }
    let (mut node, mut checks) = (present.clone(), checks.clone());
    for other in nominations.before(&pod.info, &present.name) {
        node.add(other);
        checks.add(topology, index, present, other);
    }
    for other in &candidates {
        node.remove(&other.uid);
        checks.remove(topology, index, present, other);
    }
    if checks.refusal(topology, index, &node).is_some() {
        return None;
    }
    candidates.sort_by_key(|other| (Reverse(other.priority.value), other.since));
    candidates.retain(|other| {
        node.add(other);
        checks.add(topology, index, present, other);
        let in_the_way = checks.refusal(topology, index, &node).is_some();
        if in_the_way {
            node.remove(&other.uid);
            checks.remove(topology, index, present, other);
        }
        in_the_way
    });
    (!candidates.is_empty()).then_some(candidates)
}

/// What it costs to delete these pods, of which the first is the most important: the less the
/// better.
fn cost(victims: &[Arc<PodInfo>]) -> (i32, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = victims.first().map_or(i32::MIN, |victim| victim.priority.value);
    // Every victim counts, also those whose priority is below zero.
    let sum =
        victims.iter().map(|victim| i64::from(victim.priority.value) - i64::from(i32::MIN) + 1);
    let most_important = victims.iter().take_while(|victim| victim.priority.value == highest);
    let oldest = most_important.map(|victim| victim.since).min().flatten();
    (highest, sum.sum(), victims.len(), Reverse(oldest))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{self, PodBuilder};
    use crate::scheduler::decide::{Decision, Search, decide};
    use crate::scheduler::fixture::{Cluster, pending};

    fn asking(name: &str, priority: i32, cpu: &str) -> PodBuilder {
        with(
            name,
            priority,
            json!({
                "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }],
            }),
        )
    }

    fn with(name: &str, priority: i32, mut spec: Value) -> PodBuilder {
        spec["priority"] = json!(priority);
        fixture::pod(name).spec(spec)
    }

    fn cluster(nodes: &[&str]) -> Cluster {
        let mut cluster = Cluster::default();
        for name in nodes {
            cluster.node(
                name,
                json!({
                    "metadata": { "labels": { "zone": "z" } },
                    "status": { "allocatable": { "cpu": "4" } },
                }),
            );
        }
        cluster
    }

    fn decided(cluster: &mut Cluster, pod: PodBuilder, nominations: &Nominations) -> Preemption {
        let pod = pending(pod);
        let mut random = StdRng::seed_from_u64(3);
        match decide(&pod, &mut cluster.snapshot, nominations, &mut Search::default(), &mut random)
        {
            Decision::Node(_) => panic!("there is room"),
            Decision::Nowhere(refusals) => {
                preempt(&pod, &refusals, &mut cluster.snapshot, nominations, &mut random)
            }
        }
    }

    /// The node that was chosen and who has to leave it.
    fn chosen(cluster: &mut Cluster, pod: PodBuilder) -> (String, Vec<String>) {
        match decided(cluster, pod, &Nominations::default()) {
            Preemption::Victims { node, victims } => (
                cluster.snapshot.node(node).unwrap().name.to_string(),
                victims.iter().map(|victim| victim.key.name.to_string()).collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_has_to_go() {
        type Row = (&'static str, Vec<PodBuilder>, &'static str, (&'static str, Vec<&'static str>));
        let rows: Vec<Row> = vec![
            (
                "no more than needed, the least important",
                vec![
                    asking("a", 1, "1").on("n1"),
                    asking("b", 2, "1").on("n1"),
                    asking("c", 3, "2").on("n1"),
                    asking("d", 20, "4").on("n2"),
                ],
                "1",
                ("n1", vec!["a"]),
            ),
            (
                "among equals those who came last",
                vec![
                    asking("a", 1, "2").on("n1").created_at(5),
                    asking("b", 1, "2").on("n1").created_at(9),
                    asking("d", 20, "4").on("n2"),
                ],
                "2",
                ("n1", vec!["b"]),
            ),
            (
                "the least important highest",
                vec![
                    asking("a", 1, "2").on("n1"),
                    asking("b", 5, "2").on("n1"),
                    asking("c", 4, "4").on("n2"),
                ],
                "4",
                ("n2", vec!["c"]),
            ),
            (
                "the least sum",
                vec![
                    asking("a", 5, "2").on("n1"),
                    asking("b", 4, "2").on("n1"),
                    asking("c", 5, "2").on("n2"),
                    asking("d", 3, "2").on("n2"),
                ],
                "4",
                ("n2", vec!["c", "d"]),
            ),
            (
                "the fewest",
                vec![
                    asking("a", 5, "2").on("n1"),
                    asking("b", -2, "2").on("n1"),
                    asking("c", 5, "4").on("n2"),
                ],
                "4",
                ("n2", vec!["c"]),
            ),
            (
                "the one that ran shortest",
                vec![
                    asking("a", 5, "4").on("n1").created_at(100),
                    asking("b", 5, "4").on("n2").created_at(50),
                ],
                "4",
                ("n1", vec!["a"]),
            ),
        ];
        for (what, there, cpu, (node, victims)) in rows {
            let mut cluster = cluster(&["n1", "n2"]);
            for pod in there {
                cluster.pod(pod);
            }
            let found = chosen(&mut cluster, asking("new", 10, cpu));
            assert_eq!(
                found,
                (node.to_owned(), victims.into_iter().map(str::to_owned).collect()),
                "{what}"
            );
        }
    }

    #[test]
    fn nobody_has_to_go_when_it_does_not_help() {
        let none = |cluster: &mut Cluster, pod: PodBuilder| match decided(
            cluster,
            pod,
            &Nominations::default(),
        ) {
            Preemption::None(why) => why,
            other => panic!("{other:?}"),
        };
        let mut cluster = cluster(&["n1", "n2"]);
        cluster.node("gone", json!({ "spec": { "unschedulable": true } }));
        cluster.pod(asking("a", 10, "4").on("n1"));
        cluster.pod(asking("b", 10, "4").on("n2"));
        assert_eq!(
            none(&mut cluster, asking("new", 10, "1")),
            "0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
        );
        cluster.pod(asking("c", 1, "0").on("n2"));
        assert_eq!(
            none(&mut cluster, asking("new", 10, "5")),
            "0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            none(&mut cluster, asking("new", 10, "1")),
            "0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
        );
        let patient = with(
            "new",
            90,
            json!({
                "preemptionPolicy": "Never",
                "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }],
            }),
        );
        assert_eq!(none(&mut cluster, patient), "not eligible due to preemptionPolicy=Never.");
    }

    #[test]
    fn who_stands_in_the_way_of_affinity_and_spread() {
        let term =
            json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": "web" } } });
        let mut cluster = cluster(&["n1"]);
        cluster.pod(asking("other", 1, "1").on("n1"));
        cluster.pod(asking("web", 1, "1").label("app", "web").on("n1"));
        let far = with(
            "new",
            10,
            json!({ "containers": [], "affinity": { "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term],
        } } }),
        );
        assert_eq!(chosen(&mut cluster, far), ("n1".into(), vec!["web".into()]));

        let mut cluster = self::cluster(&["n1", "n2"]);
        cluster.node("empty", json!({ "metadata": { "labels": { "zone": "y" } }, "status": { "allocatable": { "cpu": "1" } } }));
        cluster.pod(asking("web", 1, "1").label("app", "web").on("n1"));
        cluster.pod(asking("other", 1, "1").on("n1"));
        let spread = with(
            "new",
            10,
            json!({
                "containers": [{ "name": "c", "resources": { "requests": { "cpu": "2" } } }],
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": { "matchLabels": { "app": "web" } },
                }],
            }),
        )
        .label("app", "web");
        assert_eq!(chosen(&mut cluster, spread), ("n1".into(), vec!["web".into()]));
    }

    #[test]
    fn once_is_enough_while_the_victims_go() {
        let mut cluster = cluster(&["n1"]);
        cluster.pod(asking("a", 1, "4").on("n1").terminating());
        let mut nominations = Nominations::default();
        let new = || asking("new", 10, "4");
        nominations.set(&pending(new()).info, "n1");
        assert_eq!(
            decided(&mut cluster, new(), &nominations),
            Preemption::Wait("not eligible due to a terminating pod on the nominated node.".into())
        );
    }

    #[test]
    fn room_kept_for_others_is_not_given_away() {
        let mut cluster = cluster(&["n1", "n2"]);
        cluster.pod(asking("a", 1, "4").on("n1"));
        cluster.pod(asking("b", 1, "4").on("n2"));
        let mut nominations = Nominations::default();
        nominations.set(&pending(asking("kept", 20, "4")).info, "n1");
        match decided(&mut cluster, asking("new", 10, "4"), &nominations) {
            Preemption::Victims { victims, .. } => assert_eq!(&*victims[0].key.name, "b"),
            other => panic!("{other:?}"),
        }
    }
}
