//! How long decisions take: prints, and asserts nothing.
//!
//! `cargo test --release -p controllers --lib -- --ignored --nocapture speed`

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fixture::{info, node_object};
use super::pod_info::PendingPod;
use super::state::{Bound, State, Step};
use crate::fixture::{self, PodBuilder};

const PODS: usize = 50_000;
const OWNERS: usize = 500;
const DECISIONS: usize = 2_000;

fn pod(number: usize, spec: &Value) -> PodBuilder {
    let owner = number % OWNERS;
    fixture::pod(&number.to_string())
        .label("app", &format!("app-{owner}"))
        .owned_by(&format!("rs-{owner}"))
        .spec(spec.clone())
}

fn containers() -> Value {
    json!([{ "name": "c", "image": "nginx", "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } } }])
}

fn term(owner: usize) -> Value {
    json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": format!("app-{owner}") } } })
}

/// Nodes in ten zones, with pods on them.
fn state(nodes: usize, now: Instant) -> State {
    let mut state = State::new(&[]);
    let room =
        json!({ "status": { "allocatable": { "pods": (PODS / nodes * 2 + 110).to_string() } } });
    for number in 0..nodes {
        let zone = json!({ "metadata": { "labels": {
            "topology.kubernetes.io/zone": format!("zone-{}", number % 10),
            "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        } } });
        state.node_set(&node_object(&format!("node-{number}"), &[room.clone(), zone]), now);
    }
    let spec = json!({ "containers": containers() });
    for number in 0..PODS {
        let pod = pod(number, &spec).on(&format!("node-{}", number % nodes)).build();
        state.pod_changed(None, Some(&pod), now);
    }
    state
}

/// The median, and the one that 99 of 100 are below.
fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    format!("p50 {:>5} µs   p99 {:>5} µs", at(0.5), at(0.99))
}

#[test]
#[ignore = "prints figures, which mean something in a release build only"]
fn speed_of_decisions() {
    let spread = json!([{
        "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "app-7" } },
    }]);
    let kinds: Vec<(&str, Value)> = vec![
        ("plain", json!({ "containers": containers() })),
        (
            "selector",
            json!({ "containers": containers(), "nodeSelector": { "topology.kubernetes.io/zone": "zone-3" } }),
        ),
        (
            "spread by zone",
            json!({ "containers": containers(), "topologySpreadConstraints": spread }),
        ),
        (
            "affinity",
            json!({ "containers": containers(), "affinity": { "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term(7)],
        } } }),
        ),
        (
            "anti-affinity",
            json!({ "containers": containers(), "affinity": { "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 10, "podAffinityTerm": term(7) }],
        } } }),
        ),
        (
            "no room",
            json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "9999" } } }] }),
        ),
    ];
    for nodes in [100, 1_000, 5_000] {
        println!("{nodes} nodes, {PODS} pods");
        for (kind, spec) in &kinds {
            let now = Instant::now();
            let mut state = state(nodes, now);
            let mut random = StdRng::seed_from_u64(1);
            let (mut decisions, mut changes) = (Vec::new(), Vec::new());
            for number in PODS..PODS + DECISIONS {
                let waiting = pod(number, spec).build();
                let bound = |node: &str| pod(number, spec).on(node).build();
                let begin = Instant::now();
                state.pod_changed(None, Some(&waiting), now);
                let step = state.next(now, &mut random);
                decisions.push(begin.elapsed());
                match step {
                    Some(Step::Bind { pod, node }) => {
                        let bound = bound(&node);
                        let begin = Instant::now();
                        state.bind_ended(&pod.uid, Bound::Done, Some(&waiting), now);
                        state.pod_changed(Some(&waiting), Some(&bound), now);
                        changes.push(begin.elapsed());
                    }
                    _ => state.pod_changed(Some(&waiting), None, now),
                }
            }
            if changes.is_empty() {
                changes.push(Duration::ZERO);
            }
            println!(
                "  {kind:<15} decision {}   seen bound {}",
                figures(decisions),
                figures(changes)
            );
        }
    }
    let one = info(pod(0, &kinds[0].1));
    let waiting: Arc<PendingPod> = Arc::new(super::fixture::pending(pod(0, &kinds[0].1)));
    println!(
        "bytes of a pod, inline: {} with a node, {} while it waits",
        size_of_val(&*one),
        size_of_val(&*waiting)
    );
}
