//! The controllers on a real etcd, with faked nodes. Without an etcd that can be started the tests
//! say so and pass.

mod cluster;
mod election;
mod etcd;
mod flaky;
mod garbage;
mod scheduling;

use std::time::Duration;

use api::{DeleteOptions, Object, ObjectKey, Scope, WatchEvent};
use cluster::{BEYOND_GRACE, Cluster, app};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
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

/// Keys and effects of the node's taints.
async fn taints(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let node = cluster.nodes().get(&ObjectKey::cluster(node)).await.expect("the node is there");
    let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
    taints.into_iter().map(|taint| (taint.key, taint.effect)).collect()
}

fn unreachable(effects: &[&str]) -> Vec<(String, String)> {
    let taint = |effect: &&str| ("node.kubernetes.io/unreachable".to_owned(), (*effect).to_owned());
    effects.iter().map(taint).collect()
}

/// The pods that are being deleted, and of those that are not, how many run on a node.
async fn moved(cluster: &Cluster, node: &str) -> (Vec<Pod>, usize) {
    let (deleting, active): (Vec<_>, Vec<_>) =
        cluster.all_pods().await.into_iter().partition(|pod| pod.is_deleting());
    let runs = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.node_name() == Some(node) && phase == Some("Running")
    };
    (deleting, active.iter().filter(runs).count())
}

/// Pods leave a node in trouble after 2 s.
const IMPATIENT: [&str; 2] = ["--default-unreachable-toleration-seconds", "2"];

#[tokio::test]
async fn the_pods_of_a_silent_node_move_and_it_comes_back_clean() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers_with(&IMPATIENT).await;
    let kubelet = cluster.node("node-1").await;
    cluster.node("node-2").await;
    cluster.until_scheduled_on(2).await;
    cluster.create_set("nginx", 20).await;
    cluster.until_spread("nginx", &[("node-1", 10), ("node-2", 10)]).await;
    let mut before = cluster.all_pods().await;
    before.retain(|pod| pod.node_name() == Some("node-1"));

    kubelet.abort();
    let all_move = async {
        let all = async || moved(&cluster, "node-2").await.1 == 20;
        cluster.until("all run on node-2", all).await;
    };
    cluster.never_more_pods_than(20, all_move).await;
    let (deleting, _) = moved(&cluster, "node-2").await;
    let names = |pods: &[Pod]| pods.iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&deleting), names(&before), "only their kubelet knows when they have ended");
    for pod in &deleting {
        let status = pod.status.as_ref().unwrap();
        assert_eq!(status.reason.as_deref(), Some("NodeLost"));
        let ready = status.conditions.iter().flatten().find(|known| known.type_ == "Ready");
        assert_eq!(ready.unwrap().status, "False");
    }
    assert_eq!(taints(&cluster, "node-1").await, unreachable(&["NoSchedule", "NoExecute"]));
    let pods: Vec<String> = names(&before).iter().map(|name| format!("Pod/{name}")).collect();
    let all_told = async || {
        let evicted = cluster.told("TaintManagerEviction").await;
        let lost = cluster.told("NodeNotReady").await;
        pods.iter().all(|pod| evicted.contains(pod)) && lost.contains("Node/node-1")
    };
    cluster.until("events tell of it", all_told).await;
    assert!(cluster.told("SuccessfulCreate").await.contains("ReplicaSet/nginx"));

    let _kubelet = cluster.revive("node-1").await;
    cluster.until_spread("nginx", &[("node-2", 20)]).await;
    let clean = async || taints(&cluster, "node-1").await.is_empty();
    cluster.until("node-1 has no taints", clean).await;
}

#[tokio::test]
async fn no_pod_moves_while_all_nodes_look_dead() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let patient = ["--default-unreachable-toleration-seconds", "12"];
    let _controllers = cluster.controllers_with(&patient).await;
    let kubelets = [cluster.node("node-1").await, cluster.node("node-2").await];
    cluster.until_scheduled_on(2).await;
    cluster.create_set("nginx", 4).await;
    cluster.until_spread("nginx", &[("node-1", 2), ("node-2", 2)]).await;
    let before = cluster.all_pods().await;

    kubelets[0].abort();
    let leaving = unreachable(&["NoSchedule", "NoExecute"]);
    let node_1_leaves = async || taints(&cluster, "node-1").await == leaving;
    cluster.until("the pods of node-1 are to leave", node_1_leaves).await;
    kubelets[1].abort();
    let staying = unreachable(&["NoSchedule"]);
    for node in ["node-1", "node-2"] {
        let stays = async || taints(&cluster, node).await == staying;
        cluster.until(&format!("the pods of {node} are to stay"), stays).await;
    }

    // Once one is back, the other one's pods are moved to it.
    let _kubelet = cluster.revive("node-1").await;
    let all = async || moved(&cluster, "node-1").await.1 == 4;
    cluster.until("all run on the node that is back", all).await;
    for pod in before.iter().filter(|pod| pod.node_name() == Some("node-1")) {
        let now = cluster.pods().get(&pod.key()).await.unwrap();
        assert_eq!((now.uid(), now.is_deleting()), (pod.uid(), false), "it never left");
    }
}

#[tokio::test]
async fn a_deletion_that_nobody_can_end_is_ended_after_a_while() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let period = ["--unreachable-pod-removal-period", "1s"];
    let _controllers = cluster.controllers_with(&period).await;
    cluster.node("node-1").await;
    let kubelet = cluster.node("silent").await;
    kubelet.abort();
    let pod = cluster.create_pod_on("held", "silent").await;
    let options = DeleteOptions { grace_seconds: Some(1), ..DeleteOptions::default() };
    cluster.pods().delete(&pod.key(), &options).await.unwrap();
    let gone = async || cluster.pods().find(&key("held")).await.unwrap().is_none();
    cluster.until("it is gone", gone).await;
    let node = cluster.nodes().get(&ObjectKey::cluster("silent")).await.unwrap();
    assert_eq!(ready(&node).status, "Unknown", "not before");
}

#[tokio::test]
async fn a_cordoned_node_is_tainted_for_as_long() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers().await;
    cluster.node("node-1").await;
    for (cordoned, count) in [(true, 1), (false, 0)] {
        let cordon = |node: &mut Node| {
            node.spec.get_or_insert_default().unschedulable = Some(cordoned);
            Ok(())
        };
        cluster.nodes().modify(&ObjectKey::cluster("node-1"), cordon).await.unwrap();
        let tainted = async || {
            let taints = taints(&cluster, "node-1").await;
            let is_cordon = |(key, effect): &(String, String)| {
                key == "node.kubernetes.io/unschedulable" && effect == "NoSchedule"
            };
            taints.len() == count && taints.iter().all(is_cordon)
        };
        cluster.until("the taint follows", tainted).await;
    }
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
