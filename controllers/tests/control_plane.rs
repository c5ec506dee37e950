//! The controllers on a real etcd, with faked nodes. Without an etcd that can be started the tests
//! say so and pass.

mod cluster;
mod etcd;
mod flaky;

use std::time::Duration;

use api::{DeleteOptions, Object, ObjectKey, Scope, WatchEvent};
use cluster::{BEYOND_GRACE, Cluster, app};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use tokio::time::sleep;

const NOW: Duration = Duration::ZERO;
const DRAIN: Duration = Duration::from_secs(5);

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn ready(node: &Node) -> NodeCondition {
    let conditions = node.status.clone().unwrap_or_default().conditions.unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .expect("the condition Ready")
}

#[tokio::test]
async fn a_set_is_spread_scaled_and_deleted() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.until_scheduled_on(2).await;

    cluster.create_set("nginx", 4).await;
    cluster.until_spread("nginx", &[("node-1", 2), ("node-2", 2)]).await;
    for pod in cluster.all_pods().await {
        let digits = pod.name().strip_prefix("nginx-").expect("named after its set");
        assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(pod.metadata.labels, Some(app("nginx")));
        assert_eq!(pod.controller().map(|owner| owner.kind.as_str()), Some("ReplicaSet"));
    }

    cluster.scale("nginx", 10).await;
    cluster.until_spread("nginx", &[("node-1", 5), ("node-2", 5)]).await;
    cluster.scale("nginx", 2).await;
    cluster.until_spread("nginx", &[("node-1", 1), ("node-2", 1)]).await;
    let set = cluster.sets().get(&key("nginx")).await.unwrap();
    assert_eq!(set.status.unwrap().observed_generation, set.metadata.generation);

    cluster.sets().delete(&key("nginx"), &DeleteOptions::default()).await.unwrap();
    cluster.until("no pod is left", async || cluster.all_pods().await.is_empty()).await;
    controllers.shutdown(DRAIN).await;
}

#[tokio::test]
async fn controllers_that_are_killed_go_on_where_they_were() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.create_set("nginx", 40).await;
    for pods in [3, 10, 20, 30] {
        let controllers = cluster.controllers().await;
        let some = async || cluster.all_pods().await.len() >= pods;
        cluster.until("some pods are there", some).await;
        // At once: whatever is under way is cut off.
        controllers.shutdown(NOW).await;
    }
    let controllers = cluster.controllers().await;
    cluster.until_running("nginx", 40).await;
    controllers.shutdown(DRAIN).await;
}

#[tokio::test]
async fn never_more_pods_than_wanted() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 0).await;
    let up_and_down = async {
        for _ in 0..3 {
            cluster.scale("nginx", 30).await;
            cluster.scale("nginx", 0).await;
            cluster.scale("nginx", 30).await;
            cluster.until_spread("nginx", &[("node-1", 30)]).await;
            cluster.scale("nginx", 0).await;
            cluster.until_spread("nginx", &[]).await;
        }
    };
    cluster.never_more_pods_than(30, Box::pin(up_and_down)).await;
}

#[tokio::test]
async fn a_pod_that_is_deleted_is_replaced() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 2).await;
    cluster.until_spread("nginx", &[("node-1", 2)]).await;

    let pod = cluster.all_pods().await.remove(0);
    cluster.pods().delete(&pod.key(), &DeleteOptions::default()).await.unwrap();
    cluster
        .until("the pod is gone", async || cluster.pods().find(&pod.key()).await.unwrap().is_none())
        .await;
    cluster.until_spread("nginx", &[("node-1", 2)]).await;
}

#[tokio::test]
async fn pods_join_and_leave_a_set_by_their_labels() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    let orphan = cluster.create_pod("orphan", app("nginx")).await;
    cluster.create_set("nginx", 2).await;
    cluster.until_spread("nginx", &[("node-1", 2)]).await;
    let adopted = cluster.pods().get(&orphan.key()).await.unwrap();
    assert_eq!(adopted.controller().map(|owner| owner.name.as_str()), Some("nginx"));

    cluster
        .pods()
        .modify(&orphan.key(), |pod| {
            pod.metadata.labels = Some(app("other"));
            Ok(())
        })
        .await
        .unwrap();
    cluster
        .until("it is let go and replaced", async || {
            let pods = cluster.all_pods().await;
            let free = pods.iter().filter(|pod| pod.controller().is_none()).count();
            pods.len() == 3 && free == 1
        })
        .await;

    cluster.sets().delete(&key("nginx"), &DeleteOptions::default()).await.unwrap();
    cluster.until("only that one is left", async || cluster.all_pods().await.len() == 1).await;
    assert_eq!(cluster.all_pods().await[0].name(), "orphan");
}

#[tokio::test]
async fn lone_pods_are_spread_too() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.until_scheduled_on(2).await;
    cluster.create_pod("a", app("a")).await;
    cluster.create_pod("b", app("b")).await;
    let expected = [("node-1".to_owned(), 1), ("node-2".to_owned(), 1)].into();
    cluster
        .until("one runs on each", async || cluster.spread().await.as_ref() == Some(&expected))
        .await;
}

#[tokio::test]
async fn a_pod_without_a_node_says_why_until_there_is_one() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    let pod = cluster.create_pod("a", app("a")).await;
    let message = async || {
        let pod = cluster.pods().get(&pod.key()).await.unwrap();
        let conditions = pod.status.unwrap_or_default().conditions.unwrap_or_default();
        let told = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")?;
        assert_eq!(
            (told.status.as_str(), told.reason.as_deref()),
            ("False", Some("Unschedulable"))
        );
        told.message
    };
    cluster
        .until("it says that there are no nodes", async || {
            message().await.as_deref() == Some("no nodes available to schedule pods")
        })
        .await;

    cluster.node("node-1").await;
    let expected = [("node-1".to_owned(), 1)].into();
    cluster.until("it runs", async || cluster.spread().await.as_ref() == Some(&expected)).await;
}

#[tokio::test]
async fn a_pod_on_a_node_that_does_not_exist_can_be_deleted() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    let silent = cluster.node("silent").await;
    silent.abort();
    for (name, node) in [("held", "silent"), ("stranded", "nowhere")] {
        let pod = cluster.create_pod_on(name, node).await;
        cluster.pods().delete(&pod.key(), &DeleteOptions::default()).await.unwrap();
    }
    let gone = async |name: &str| cluster.pods().find(&key(name)).await.unwrap().is_none();
    cluster.until("the pod without a node is gone", async || gone("stranded").await).await;
    assert!(!gone("held").await, "its node is there, and so may its containers be");

    cluster.nodes().delete(&ObjectKey::cluster("silent"), &DeleteOptions::default()).await.unwrap();
    cluster.until("the other one goes with its node", async || gone("held").await).await;
}

#[tokio::test]
async fn a_silent_node_gets_no_pods() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    let kubelet = cluster.node("node-1").await;
    cluster.node("node-2").await;
    let ready =
        async |name: &str| ready(&cluster.nodes().get(&ObjectKey::cluster(name)).await.unwrap());

    kubelet.abort();
    cluster
        .until("node-1 is not heard of", async || ready("node-1").await.status == "Unknown")
        .await;
    assert_eq!(ready("node-1").await.reason.as_deref(), Some("NodeStatusUnknown"));
    assert_eq!(ready("node-2").await.status, "True");

    cluster.create_set("nginx", 4).await;
    cluster.until_spread("nginx", &[("node-2", 4)]).await;
}

#[tokio::test]
async fn nodes_are_not_blamed_for_a_store_that_is_away() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.until_scheduled_on(2).await;
    cluster.create_set("nginx", 2).await;
    cluster.until_spread("nginx", &[("node-1", 1), ("node-2", 1)]).await;
    let before = cluster.nodes().list(&Scope::All).await.unwrap().revision;

    cluster.etcd.kill_member(0);
    sleep(BEYOND_GRACE).await;
    cluster.etcd.start_member(0);
    cluster.until_store_answers().await;
    cluster.scale("nginx", 4).await;
    cluster.until_spread("nginx", &[("node-1", 2), ("node-2", 2)]).await;
    // Long enough for what was missed to count, if it did.
    sleep(BEYOND_GRACE).await;
    cluster.nodes().delete(&ObjectKey::cluster("node-2"), &DeleteOptions::default()).await.unwrap();
    let mut nodes = cluster.nodes().watch(&Scope::All, Some(before));
    let first = nodes.next().await.unwrap().events.remove(0);
    assert!(matches!(first, WatchEvent::Deleted(_)), "no node was written before: {first:?}");
}

#[tokio::test]
async fn members_of_the_store_die_while_a_set_is_scaled() {
    let Some(mut cluster) = Cluster::start(3).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 0).await;
    // One of them leads, so a leader is killed at least once.
    for member in 0..cluster.etcd.members() {
        cluster.scale("nginx", 60).await;
        let some = async || cluster.all_pods().await.len() >= 10;
        cluster.until("scaling is under way", some).await;
        cluster.etcd.kill_member(member);
        cluster.until_running("nginx", 60).await;
        cluster.etcd.start_member(member);
        cluster.scale("nginx", 0).await;
        cluster.until_running("nginx", 0).await;
    }
}

#[tokio::test]
async fn lost_answers_double_nothing() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let address = cluster.flaky_network().await;
    let _controllers = cluster.controllers_on(&address).await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 0).await;
    let up_and_down = async {
        for _ in 0..5 {
            cluster.scale("nginx", 40).await;
            cluster.until_running("nginx", 40).await;
            cluster.scale("nginx", 0).await;
            cluster.until_running("nginx", 0).await;
        }
    };
    cluster.never_more_pods_than(40, Box::pin(up_and_down)).await;
}
