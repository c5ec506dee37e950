//! Prefers nodes that have the pod's images already.
//!
//! What counts is the size of what need not be pulled, times the share of nodes that have it: an
//! image that only one node has would draw all its pods there.

use super::{Candidates, MAX};
use crate::scheduler::snapshot::Snapshot;

const MIB: f64 = 1024.0 * 1024.0;
/// Below this nothing is gained, and above the other, per container, no more is: Kubernetes'
/// numbers.
const WORTH_BYTES: f64 = 23.0 * MIB;
const ENOUGH_BYTES: f64 = 1000.0 * MIB;

pub(super) fn scores(candidates: &Candidates<'_>, snapshot: &Snapshot) -> Option<Vec<f64>> {
    let wanted = &candidates.pod.images;
    if !snapshot.knows_images() || wanted.is_empty() {
        return None;
    }
    let nodes = snapshot.order().len().max(1) as f64;
    let names: Vec<(String, f64)> = wanted
        .iter()
        .map(|image| normal(image))
        .map(|image| {
            let share = snapshot.nodes_with_image(&image) as f64 / nodes;
            (image, share)
        })
        .filter(|(_, share)| *share > 0.0)
        .collect();
    if names.is_empty() {
        return None;
    }
    let enough = ENOUGH_BYTES * wanted.len() as f64;
    let scores = candidates.nodes.iter().map(|(_, node)| {
        let Some(facts) = &node.facts else { return 0.0 };
        let bytes: f64 = names
            .iter()
            .filter_map(|(image, share)| Some(*facts.images.get(image)? as f64 * share))
            .sum();
        MAX * (bytes.clamp(WORTH_BYTES, enough) - WORTH_BYTES) / (enough - WORTH_BYTES)
    });
    Some(scores.collect())
}

/// The name as nodes list it: with a tag.
fn normal(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::of;
    use super::*;
    use crate::fixture;
    use crate::scheduler::fixture::{Cluster, pending};

    #[test]
    fn names_have_tags() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1.25", "nginx:1.25"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("nginx@sha256:0", "nginx@sha256:0"),
        ] {
            assert_eq!(normal(image), expected);
        }
    }

    #[test]
    fn the_node_that_has_the_image() {
        let mut cluster = Cluster::default();
        let has = |mib: i64| {
            json!({ "status": { "images": [
            { "names": ["nginx:latest", "nginx@sha256:0"], "sizeBytes": mib * 1024 * 1024 },
        ] } })
        };
        cluster.node("a", has(2000));
        cluster.node("b", has(20));
        cluster.node("c", json!({}));
        cluster.snapshot.begin_decision();
        let uses = |image: &str| {
            pending(
                fixture::pod("n").spec(json!({ "containers": [{ "name": "c", "image": image }] })),
            )
        };
        // Two of three nodes have it, so 2000 MiB are worth 1333, which is more than enough.
        assert_eq!(of(&mut cluster, &uses("nginx"), scores), Some(vec![100.0, 0.0, 0.0]));
        assert_eq!(of(&mut cluster, &uses("redis"), scores), None);
    }
}
