use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::*;
use crate::fixture::{self, PodBuilder};
use crate::scheduler::fixture::node_object;

const SECOND: Duration = Duration::from_secs(1);

/// A state that time passes for.
struct Desk {
    state: State,
    now: Instant,
    random: StdRng,
}

impl Desk {
    /// With nodes of that many cores.
    fn new(nodes: &[(&str, u32)]) -> Self {
        let mut desk =
            Self { state: State::new(&[]), now: Instant::now(), random: StdRng::seed_from_u64(1) };
        nodes.iter().for_each(|(name, cores)| desk.node(name, *cores));
        desk
    }

    fn node(&mut self, name: &str, cores: u32) {
        let allocatable = json!({ "status": { "allocatable": { "cpu": cores.to_string() } } });
        self.state.node_set(&node_object(name, &[allocatable]), self.now);
    }

    fn pod(&mut self, pod: PodBuilder) -> Arc<Pod> {
        let pod = pod.build();
        self.state.pod_changed(None, Some(&pod), self.now);
        pod
    }

    fn change(&mut self, old: &Pod, new: PodBuilder) -> Arc<Pod> {
        let new = new.build();
        self.state.pod_changed(Some(old), Some(&new), self.now);
        new
    }

    fn next(&mut self) -> Option<Step> {
        self.state.next(self.now, &mut self.random)
    }

    /// Which pod gets which node.
    fn bind(&mut self) -> (String, String) {
        match self.next() {
            Some(Step::Bind { pod, node }) => (pod.key.name.to_string(), node.to_string()),
            other => panic!("{other:?}"),
        }
    }

    /// Why the next pod waits.
    fn told(&mut self) -> Told {
        match self.next() {
            Some(Step::Tell(told)) => told,
            other => panic!("{other:?}"),
        }
    }

    fn wait(&mut self, seconds: u32) {
        self.now += SECOND * seconds;
        self.state.tick(self.now, |_| None);
    }
}

fn asking(name: &str, cpu: u32, priority: i32) -> PodBuilder {
    fixture::pod(name).spec(json!({
        "priority": priority,
        "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu.to_string() } } }],
    }))
}

fn bound(pod: &str, node: &str) -> (String, String) {
    (pod.to_owned(), node.to_owned())
}

#[test]
fn only_pods_that_wait_for_this_scheduler_are_placed() {
    let pod = || fixture::pod("a");
    let of = |scheduler: &str| pod().scheduler(scheduler);
    let rows = [
        (pod(), true),
        (of(SCHEDULER_NAME), true),
        (of(""), true),
        (of("another"), false),
        (pod().on("node-1"), false),
        (pod().terminating(), false),
        (pod().phase("Failed"), false),
    ];
    for (pod, wants) in rows {
        let pod = pod.build();
        assert_eq!(wants_node(&pod), wants, "{pod:?}");
    }
}

#[test]
fn a_pod_takes_its_place_from_the_decision_on() {
    let mut desk = Desk::new(&[("n", 2)]);
    let (a, b) = (desk.pod(asking("a", 2, 0)), desk.pod(asking("b", 2, 0)));
    assert_eq!(desk.bind(), bound("a", "n"));
    assert_eq!(
        desk.told().message,
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    assert_eq!(desk.next(), None);

    // A bind that failed makes room again, first of all for the other.
    desk.wait(2);
    desk.state.bind_ended("uid-a", Bound::Failed, Some(&a), desk.now);
    assert_eq!(desk.bind(), bound("b", "n"));
    desk.state.bind_ended("uid-b", Bound::Done, Some(&b), desk.now);
    let b = desk.change(&b, asking("b", 2, 0).on("n"));
    desk.wait(10);
    assert_eq!(desk.told().pod.key, a.key());

    // And so does a pod that ends.
    desk.wait(60);
    desk.change(&b, asking("b", 2, 0).on("n").phase("Succeeded"));
    assert_eq!(desk.bind(), bound("a", "n"));
}

#[test]
fn no_pod_is_decided_on_twice() {
    let mut desk = Desk::new(&[("n", 8)]);
    let pod = desk.pod(asking("a", 1, 0));
    assert_eq!(desk.bind(), bound("a", "n"));
    // News of the pod as it was before its bind, and the whole list again.
    let pod = desk.change(&pod, asking("a", 1, 0).label("new", "label"));
    desk.state.pods_resync(std::slice::from_ref(&pod), desk.now);
    assert_eq!(desk.next(), None);
    desk.state.bind_ended("uid-a", Bound::Done, Some(&pod), desk.now);
    assert_eq!(desk.next(), None);
}

#[test]
fn a_bind_that_is_never_seen_is_looked_at_anew() {
    let mut desk = Desk::new(&[("n", 8)]);
    let pod = desk.pod(asking("a", 8, 0));
    desk.bind();
    desk.state.bind_ended("uid-a", Bound::Done, Some(&pod), desk.now);
    assert_eq!(desk.state.next_tick(), Some(desk.now + UNSEEN_MAX));
    desk.now += UNSEEN_MAX;
    desk.state.tick(desk.now, |_| Some(pod.clone()));
    desk.wait(1);
    assert_eq!(desk.bind(), bound("a", "n"));
    // Had it been seen, or were it gone, nobody would ask again.
    desk.state.bind_ended("uid-a", Bound::Done, Some(&pod), desk.now);
    desk.change(&pod, asking("a", 8, 0).on("n"));
    assert_eq!(desk.state.next_tick(), None);
}

#[test]
fn a_pod_without_nodes_waits_for_the_first() {
    let mut desk = Desk::new(&[]);
    desk.pod(asking("a", 1, 0));
    assert_eq!(desk.told().message, "no nodes available to schedule pods");
    desk.wait(1);
    desk.node("n", 4);
    assert_eq!(desk.bind(), bound("a", "n"));
}

#[test]
fn a_gated_pod_says_so_and_waits() {
    let mut desk = Desk::new(&[("n", 8)]);
    let gated = desk.pod(fixture::pod("a").spec(json!({
        "containers": [], "schedulingGates": [{ "name": "example.com/wait" }],
    })));
    let told = desk.told();
    assert_eq!((told.waiting, told.message.as_str()), (Waiting::Gated, explain::GATED));
    assert_eq!(desk.next(), None);
    desk.change(&gated, fixture::pod("a").spec(json!({ "containers": [] })));
    assert_eq!(desk.bind(), bound("a", "n"));
}

#[test]
fn a_pod_that_makes_no_sense_says_so_until_it_is_changed() {
    let mut desk = Desk::new(&[("n", 8)]);
    let wrong = fixture::pod("a").spec(json!({ "containers": [
        { "name": "c", "resources": { "requests": { "cpu": "lots" } } },
    ] }));
    let wrong = desk.pod(wrong);
    assert!(desk.told().message.starts_with("spec.containers[0].resources.requests[cpu]"));
    desk.wait(1000);
    desk.node("m", 8);
    assert_eq!(desk.next(), None);
    desk.change(&wrong, asking("a", 1, 0));
    desk.bind();
}

#[test]
fn a_priority_class_may_come_later_than_its_pods() {
    let mut desk = Desk::new(&[("n", 8)]);
    let pod =
        desk.pod(fixture::pod("a").spec(json!({ "containers": [], "priorityClassName": "high" })));
    assert_eq!(desk.told().message, "no PriorityClass with name high was found");
    let class = PriorityClass {
        metadata: ObjectMeta { name: Some("high".into()), ..ObjectMeta::default() },
        value: 5,
        ..PriorityClass::default()
    };
    desk.state.classes_resync(&[Arc::new(class)], &[pod], desk.now);
    assert_eq!(desk.bind(), bound("a", "n"));
}

#[test]
fn less_important_pods_make_room() {
    let mut desk = Desk::new(&[("n", 4)]);
    let low = desk.pod(asking("low", 4, 1).on("n"));
    let high = desk.pod(asking("high", 4, 9));
    let Some(Step::Preempt { told, node, victims }) = desk.next() else { panic!("no victims") };
    assert_eq!((&*told.pod.key.name, &*node), ("high", "n"));
    assert_eq!(told.message, "0/1 nodes are available: 1 Insufficient cpu.");
    assert_eq!(told.nominated, Nominated::Set("n".into()));
    assert_eq!(victims, [PodId { key: low.key(), uid: "uid-low".into() }]);

    // While the victim goes nobody else does, and the room is kept.
    let low = desk.change(&low, asking("low", 4, 1).on("n").terminating());
    desk.wait(301);
    let told = desk.told();
    assert!(
        told.message
            .ends_with("preemption: not eligible due to a terminating pod on the nominated node."),
        "{}",
        told.message
    );
    desk.pod(asking("middle", 4, 5));
    desk.state.pod_changed(Some(&low), None, desk.now);
    assert_eq!(desk.told().pod.key.name.as_ref(), "middle");
    desk.wait(10);
    assert_eq!(desk.bind(), bound("high", "n"));
    assert!(desk.state.nominations.pods().is_empty());
    desk.state.pod_changed(Some(&high), None, desk.now);
    desk.wait(10);
    assert_eq!(desk.bind(), bound("middle", "n"));
}

#[test]
fn a_more_important_pod_takes_the_room_that_was_kept() {
    let mut desk = Desk::new(&[("n", 4)]);
    desk.pod(asking("low", 4, 1).on("n"));
    desk.pod(asking("middle", 4, 5));
    assert!(matches!(desk.next(), Some(Step::Preempt { .. })));
    desk.pod(asking("high", 4, 9));
    let Some(Step::Preempt { told, .. }) = desk.next() else { panic!("no victims") };
    assert_eq!(told.pod.key.name.as_ref(), "high");
    assert_eq!(desk.state.nominations.node_of("uid-middle"), None);
}

#[test]
fn room_is_kept_across_a_restart() {
    let mut desk = Desk::new(&[("n", 4)]);
    let mut high = (*asking("high", 4, 9).build()).clone();
    high.status.get_or_insert_default().nominated_node_name = Some("n".into());
    desk.state.pods_resync(&[asking("low", 4, 1).on("n").build(), Arc::new(high)], desk.now);
    assert_eq!(desk.state.nominations.node_of("uid-high").map(|node| &**node), Some("n"));
}

#[test]
fn a_preemption_that_failed_is_tried_again() {
    let mut desk = Desk::new(&[("n", 4)]);
    desk.pod(asking("low", 4, 1).on("n"));
    desk.pod(asking("high", 4, 9));
    assert!(matches!(desk.next(), Some(Step::Preempt { .. })));
    desk.state.preemption_failed("uid-high", desk.now);
    desk.wait(1);
    assert!(matches!(desk.next(), Some(Step::Preempt { .. })));
}

#[derive(Clone, Debug)]
enum Event {
    Node { node: u8, cores: u8 },
    NodeGone(u8),
    Create { pod: u8, cpu: u8, priority: u8 },
    Delete(u8),
    Finish(u8),
    Decide,
    BindEnds { pod: u8, written: bool },
    Resync,
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..4_u8, 0..6_u8).prop_map(|(node, cores)| Event::Node { node, cores }),
        1 => (0..4_u8).prop_map(Event::NodeGone),
        3 => (0..10_u8, 0..4_u8, 0..3_u8)
            .prop_map(|(pod, cpu, priority)| Event::Create { pod, cpu, priority }),
        1 => (0..10_u8).prop_map(Event::Delete),
        1 => (0..10_u8).prop_map(Event::Finish),
        4 => Just(Event::Decide),
        3 => (0..10_u8, any::<bool>()).prop_map(|(pod, written)| Event::BindEnds { pod, written }),
        1 => Just(Event::Resync),
        1 => (0..70_u8).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens: no node carries more than it has, no pod is bound while a bind of it is
    /// under way, and no pod that waits is forgotten.
    #[test]
    fn nothing_is_overdrawn_doubled_or_lost(events in prop::collection::vec(event(), 0..150)) {
        let mut desk = Desk::new(&[]);
        // The store: pods, and how many cores each node has.
        let mut pods: BTreeMap<u8, Arc<Pod>> = BTreeMap::new();
        let mut binding: BTreeMap<String, String> = BTreeMap::new();
        let mut uids = 0;
        let number = |uid: &str| uid.trim_start_matches("uid-").split('-').next().unwrap().parse::<u8>().unwrap();
        for event in events {
            match event {
                Event::Node { node, cores } => desk.node(&format!("n{node}"), cores.into()),
                Event::NodeGone(node) => desk.state.node_gone(&format!("n{node}"), desk.now),
                Event::Create { pod, cpu, priority } => if let Entry::Vacant(vacant) = pods.entry(pod) {
                    uids += 1;
                    let new = asking(&format!("{pod}-{uids}"), cpu.into(), priority.into()).build();
                    desk.state.pod_changed(None, Some(&new), desk.now);
                    vacant.insert(new);
                }
                Event::Delete(pod) => if let Some(old) = pods.remove(&pod) {
                    desk.state.pod_changed(Some(&old), None, desk.now);
                }
                Event::Finish(pod) => if let Some(old) = pods.get(&pod).filter(|pod| pod.node_name().is_some()).cloned() {
                    let mut new = (*old).clone();
                    new.status.get_or_insert_default().phase = Some("Succeeded".into());
                    desk.state.pod_changed(Some(&old), Some(&new), desk.now);
                    pods.insert(pod, Arc::new(new));
                }
                Event::Decide => if let Some(Step::Bind { pod, node }) = desk.next() {
                    let known = &pods[&number(&pod.uid)];
                    prop_assert_eq!(known.uid(), &*pod.uid);
                    prop_assert_eq!(known.node_name(), None, "it has a node");
                    prop_assert_eq!(binding.insert(pod.uid.to_string(), node.to_string()), None, "a bind is under way");
                    let index = desk.state.snapshot.find_node(&node).unwrap();
                    let node = desk.state.snapshot.node(index).unwrap();
                    let asked = known.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0 != "0";
                    let all = &node.facts.as_ref().unwrap().allocatable;
                    prop_assert!(!asked || node.requested.cpu_millis <= all.cpu_millis, "overdrawn");
                },
                Event::BindEnds { pod, written } => {
                    let uid = binding.keys().find(|uid| number(uid) == pod).cloned();
                    if let Some((uid, node)) = uid.and_then(|uid| binding.remove_entry(&uid)) {
                        let known = pods.get(&pod).filter(|known| known.uid() == uid).cloned();
                        if let Some(old) = known.clone().filter(|_| written) {
                            let mut new = (*old).clone();
                            new.spec.get_or_insert_default().node_name = Some(node);
                            desk.state.pod_changed(Some(&old), Some(&new), desk.now);
                            pods.insert(pod, Arc::new(new));
                            desk.state.bind_ended(&uid, Bound::Done, Some(&old), desk.now);
                        } else {
                            desk.state.bind_ended(&uid, Bound::Failed, known.as_deref(), desk.now);
                        }
                    }
                }
                Event::Resync => {
                    let all: Vec<_> = pods.values().cloned().collect();
                    desk.state.pods_resync(&all, desk.now);
                }
                Event::Wait(seconds) => {
                    desk.now += SECOND * u32::from(seconds);
                    let all = pods.clone();
                    desk.state.tick(desk.now, |key| all.values().find(|pod| pod.key() == *key).cloned());
                }
            }
            for pod in pods.values().filter(|pod| wants_node(pod)) {
                let waits = desk.state.queue.contains(pod.uid());
                let assumed = desk.state.snapshot.is_assumed(pod.uid());
                prop_assert!(waits != assumed, "{} waits: {waits}, is assumed: {assumed}", pod.uid());
                prop_assert_eq!(assumed, binding.contains_key(pod.uid()));
            }
        }
    }
}
