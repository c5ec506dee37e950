//! Several copies of the controllers: one acts, and hands over.

use api::{Object, ObjectKey};
use k8s_openapi::api::coordination::v1::Lease;
use tokio::time::sleep;

use crate::cluster::{BEYOND_GRACE, Cluster};
use crate::{DRAIN, NOW};

const QUICK: [&str; 3] = [
    "--leader-elect-lease-duration=2s",
    "--leader-elect-renew-deadline=1500ms",
    "--leader-elect-retry-period=300ms",
];

async fn lease(cluster: &Cluster) -> Option<Lease> {
    let key = ObjectKey::namespaced("kube-system", "miniku-controllers");
    cluster.api::<Lease>().find(&key).await.expect("the store answers")
}

async fn holder(cluster: &Cluster) -> Option<String> {
    lease(cluster).await?.spec?.holder_identity
}

#[tokio::test]
async fn copies_that_are_killed_in_turn_double_and_lose_nothing() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    cluster.node("node-1").await;
    cluster.node("node-2").await;
    let mut copies = vec![cluster.controllers_with(&QUICK).await];
    cluster.until("one leads", async || holder(&cluster).await.is_some()).await;
    cluster.create_set("nginx", 0).await;
    let turns = async {
        for round in 0..3 {
            copies.push(cluster.controllers_with(&QUICK).await);
            let before = holder(&cluster).await;
            cluster.scale("nginx", 100).await;
            let some = async || cluster.all_pods().await.len() >= 10;
            cluster.until("scaling is under way", some).await;
            // The first one leads, as it was the first there. Once it is asked, once it is cut off.
            let leader = copies.remove(0);
            leader.shutdown(if round == 1 { DRAIN } else { NOW }).await;
            let other = async || holder(&cluster).await.is_some_and(|now| Some(now) != before);
            cluster.until("another one leads", other).await;
            cluster.until_running("nginx", 100).await;
            cluster.scale("nginx", 0).await;
            cluster.until_running("nginx", 0).await;
        }
    };
    cluster.never_more_pods_than(100, Box::pin(turns)).await;
    let spec = lease(&cluster).await.and_then(|lease| lease.spec).expect("it is there");
    assert_eq!(spec.lease_transitions, Some(3));
    assert_eq!(spec.lease_duration_seconds, Some(2));
    assert!(cluster.told("LeaderElection").await.contains("Lease/miniku-controllers"));
}

#[tokio::test]
async fn a_lease_that_somebody_else_takes_or_deletes_is_lost_and_won_again() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    cluster.node("node-1").await;
    let _controllers = cluster.controllers_with(&QUICK).await;
    cluster.create_set("nginx", 2).await;
    cluster.until_running("nginx", 2).await;
    let ours = holder(&cluster).await.expect("it leads");
    let leases = cluster.api::<Lease>();
    let key = ObjectKey::namespaced("kube-system", "miniku-controllers");

    let robbed = leases.modify(&key, |lease| {
        lease.spec.get_or_insert_default().holder_identity = Some("a-robber".into());
        Ok(())
    });
    let robbed = robbed.await.unwrap();
    let back = async || holder(&cluster).await.as_ref() == Some(&ours);
    cluster.until("it leads again", back).await;
    assert!(lease(&cluster).await.unwrap().revision() > robbed.revision());
    cluster.scale("nginx", 4).await;
    cluster.until_running("nginx", 4).await;

    leases.delete(&key, &api::DeleteOptions::default()).await.unwrap();
    cluster.until("it leads again", back).await;
    cluster.scale("nginx", 6).await;
    cluster.until_running("nginx", 6).await;
}

#[tokio::test]
async fn without_the_election_every_copy_acts() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    cluster.node("node-1").await;
    let _controllers = cluster.controllers_with(&["--leader-elect=false"]).await;
    cluster.create_set("nginx", 2).await;
    cluster.until_running("nginx", 2).await;
    assert!(lease(&cluster).await.is_none());
}

#[tokio::test]
async fn a_leader_goes_on_when_the_store_was_away() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let _controllers = cluster.controllers_with(&QUICK).await;
    cluster.node("node-1").await;
    cluster.create_set("nginx", 2).await;
    cluster.until_running("nginx", 2).await;
    cluster.etcd.kill_member(0);
    sleep(BEYOND_GRACE).await;
    cluster.etcd.start_member(0);
    cluster.until_store_answers().await;
    cluster.scale("nginx", 4).await;
    cluster.until_running("nginx", 4).await;
}
