//! What becomes of dependents when their owner is deleted.

use std::collections::BTreeSet;

use api::{DeleteOptions, Error, Object, ObjectKey, Propagation};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::cluster::{Cluster, app};
use crate::key;

fn asking(propagation: Propagation) -> DeleteOptions {
    DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() }
}

fn owner<K: Object>(object: &K, blocks: bool) -> OwnerReference {
    OwnerReference {
        api_version: K::kind().api_version(),
        kind: K::kind().kind.to_owned(),
        name: object.name().to_owned(),
        uid: object.uid().to_owned(),
        controller: None,
        block_owner_deletion: Some(blocks),
    }
}

async fn give_owners(cluster: &Cluster, pod: &str, owners: Vec<OwnerReference>) -> Pod {
    let own = |pod: &mut Pod| {
        pod.metadata.owner_references = Some(owners.clone());
        Ok(())
    };
    cluster.pods().modify(&key(pod), own).await.expect("the pod is there")
}

async fn names(cluster: &Cluster) -> BTreeSet<String> {
    cluster.all_pods().await.iter().map(|pod| pod.name().to_owned()).collect()
}

#[tokio::test]
async fn pods_of_a_set_that_is_orphaned_stay_and_can_be_adopted_again() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 20).await;
    cluster.until_running("nginx", 20).await;
    let before = names(&cluster).await;

    cluster.sets().delete(&key("nginx"), &asking(Propagation::Orphan)).await.unwrap();
    let gone = async || cluster.sets().find(&key("nginx")).await.unwrap().is_none();
    cluster.until("the set is gone", gone).await;
    for pod in cluster.all_pods().await {
        assert_eq!(pod.metadata.owner_references, None, "{}", pod.name());
        assert!(!pod.is_deleting());
    }
    cluster.create_set("nginx", 20).await;
    cluster.until_running("nginx", 20).await;
    assert_eq!(names(&cluster).await, before);
    assert!(cluster.all_pods().await.iter().all(|pod| pod.controller().is_some()));
}

#[tokio::test]
async fn a_set_that_is_deleted_in_the_foreground_goes_after_its_pods() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 3).await;
    cluster.until_running("nginx", 3).await;
    // One that takes its time.
    let held = cluster.all_pods().await.remove(0);
    let hold = |finalizers: &'static [&'static str]| {
        move |pod: &mut Pod| -> Result<(), Error> {
            pod.metadata.finalizers = Some(finalizers.iter().map(|&name| name.into()).collect());
            Ok(())
        }
    };
    cluster.pods().modify(&held.key(), hold(&["example.com/hold"])).await.unwrap();

    cluster.sets().delete(&key("nginx"), &asking(Propagation::Foreground)).await.unwrap();
    let one_is_left = async || names(&cluster).await == [held.name().to_owned()].into();
    cluster.until("all pods but one are gone", one_is_left).await;
    let set = cluster.sets().get(&key("nginx")).await.expect("it waits for the last");
    assert!(set.is_deleting());
    let finalizers = set.metadata.finalizers.as_deref();
    assert_eq!(finalizers, Some(&["foregroundDeletion".to_owned()][..]));
    cluster.pods().modify(&held.key(), hold(&[])).await.unwrap();
    let gone = async || cluster.sets().find(&key("nginx")).await.unwrap().is_none();
    cluster.until("the set is gone", gone).await;
    assert!(names(&cluster).await.is_empty());
}

#[tokio::test]
async fn only_dependents_that_say_so_keep_their_owner() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.create_set("nginx", 0).await;
    let set = cluster.sets().get(&key("nginx")).await.unwrap();
    let metadata = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        owner_references: Some(vec![owner(&set, false)]),
        finalizers: Some(vec!["example.com/hold".to_owned()]),
        ..ObjectMeta::default()
    };
    // A dependent may be of any kind.
    let leases = cluster.api::<Lease>();
    leases.create(Lease { metadata: metadata("held"), spec: None }).await.unwrap();
    cluster.sets().delete(&key("nginx"), &asking(Propagation::Foreground)).await.unwrap();
    let gone = async || cluster.sets().find(&key("nginx")).await.unwrap().is_none();
    cluster.until("the set is gone", gone).await;
    let deleting = async || leases.get(&key("held")).await.unwrap().is_deleting();
    cluster.until("the lease is being deleted", deleting).await;
}

#[tokio::test]
async fn a_dependent_lives_as_long_as_one_of_its_owners() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    let node = cluster.node("node-1").await;
    let mut owners = Vec::new();
    for name in ["one", "other"] {
        let pod = cluster.create_pod(name, app(name)).await;
        owners.push(owner(&pod, true));
    }
    cluster.create_pod("dependent", app("dependent")).await;
    give_owners(&cluster, "dependent", owners.clone()).await;
    cluster.pods().delete(&key("one"), &DeleteOptions::default()).await.unwrap();
    let unlinked = async || {
        let pod = cluster.pods().get(&key("dependent")).await.unwrap();
        pod.metadata.owner_references == Some(owners[1..].to_vec())
    };
    cluster.until("the reference to the one is gone", unlinked).await;
    cluster.pods().delete(&key("other"), &DeleteOptions::default()).await.unwrap();
    cluster.until("all are gone", async || names(&cluster).await.is_empty()).await;

    // Of a kind that has no namespace, and one whose name was used before.
    let owner_node = cluster.nodes().get(&ObjectKey::cluster("node-1")).await.unwrap();
    cluster.create_pod("dependent", app("dependent")).await;
    let earlier = OwnerReference { uid: "of-another-life".into(), ..owner(&owner_node, false) };
    let both = vec![owner(&owner_node, false), earlier];
    give_owners(&cluster, "dependent", both).await;
    let unlinked = async || {
        let pod = cluster.pods().get(&key("dependent")).await.unwrap();
        pod.metadata.owner_references == Some(vec![owner(&owner_node, false)])
    };
    cluster.until("the reference to the earlier node is gone", unlinked).await;
    node.abort();
    let node_key = ObjectKey::cluster("node-1");
    cluster.nodes().delete(&node_key, &DeleteOptions::default()).await.unwrap();
    cluster.until("the pod is gone", async || names(&cluster).await.is_empty()).await;
}

#[tokio::test]
async fn a_chain_is_deleted_from_its_end_and_a_circle_is_deleted_too() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    for circle in [false, true] {
        let mut pods = Vec::new();
        for name in ["a", "b", "c"] {
            pods.push(cluster.create_pod(name, app(name)).await);
        }
        give_owners(&cluster, "b", vec![owner(&pods[0], true)]).await;
        give_owners(&cluster, "c", vec![owner(&pods[1], true)]).await;
        if circle {
            give_owners(&cluster, "a", vec![owner(&pods[2], true)]).await;
        }
        let head = cluster.pods().get(&key("a")).await.unwrap();
        let before = head.revision();
        cluster.pods().delete(&key("a"), &asking(Propagation::Foreground)).await.unwrap();
        cluster.until("all are gone", async || names(&cluster).await.is_empty()).await;
        if !circle {
            let gone = cluster.deleted_pods_since(before, 3).await;
            assert_eq!(gone, ["c", "b", "a"]);
        }
    }
}
