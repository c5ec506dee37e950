//! A new pod of a ReplicaSet, made from the set's template.

use api::Object;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rand::RngCore;

/// A pod's name is also its host name, and a host name is one DNS label.
const NAME_BYTES_MAX: usize = 63;
const SUFFIX_BYTES: usize = 9;

/// The pod, with a name of its own and owned by the set.
pub(crate) fn new_pod(set: &ReplicaSet, random: &mut impl RngCore) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(set.name(), random)),
            namespace: set.metadata.namespace.clone(),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// What makes the set the controller of a pod.
pub(crate) fn controller_reference(set: &ReplicaSet) -> OwnerReference {
    let kind = ReplicaSet::kind();
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: set.name().to_owned(),
        uid: set.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The set's name, a hyphen and eight hexadecimal digits, as in `nginx-d3950207`. A set's name
/// that leaves no room for the digits is cut.
fn pod_name(set: &str, random: &mut impl RngCore) -> String {
    let room = set.floor_char_boundary(NAME_BYTES_MAX - SUFFIX_BYTES);
    // Cutting must not leave a part that ends in what no part of a name may end in.
    let base = set[..room].trim_end_matches(['-', '.']);
    format!("{base}-{:08x}", random.next_u32())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::replicaset;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn names_are_the_sets_with_eight_digits() {
        let mut random = StdRng::seed_from_u64(1);
        let long = "a".repeat(53) + "-" + &"b".repeat(30);
        for (set, base) in
            [("nginx", "nginx"), ("web.example", "web.example"), (&long, &long[..53])]
        {
            let name = pod_name(set, &mut random);
            let digits = name.strip_prefix(&format!("{base}-")).expect("the set's name first");
            assert_eq!(digits.len(), 8, "{name}");
            assert!(digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{name}");
            assert!(name.len() <= NAME_BYTES_MAX);
        }
        assert_ne!(pod_name("nginx", &mut random), pod_name("nginx", &mut random));
    }

    #[test]
    fn a_pod_is_made_after_the_template_and_owned_by_the_set() {
        let mut set = replicaset(1);
        let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
        let metadata = template.metadata.as_mut().unwrap();
        metadata.annotations = Some([("note".to_owned(), "kept".to_owned())].into());
        // A template has no name of its own to give.
        metadata.name = Some("ignored".to_owned());

        let pod = new_pod(&set, &mut StdRng::seed_from_u64(1));
        let template = set.spec.unwrap().template.unwrap();
        assert!(pod.name().starts_with("nginx-"));
        assert_eq!(pod.namespace(), "default");
        assert_eq!(pod.metadata.labels, template.metadata.as_ref().unwrap().labels);
        assert_eq!(pod.metadata.annotations, template.metadata.unwrap().annotations);
        assert_eq!(pod.spec, template.spec);
        let owner = pod.controller().expect("the set controls it");
        assert_eq!(
            (owner.api_version.as_str(), owner.kind.as_str(), owner.uid.as_str()),
            ("apps/v1", "ReplicaSet", "rs-uid")
        );
    }
}
