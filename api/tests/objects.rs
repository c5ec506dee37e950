//! Objects in a real etcd.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use api::testing::{Etcd, Proxy};
use api::{
    Api, Clock, DeleteOptions, Deletion, Error, ListOptions, Object, ObjectKey, Scope, Store,
};
use k8s_openapi::Metadata as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use store_client::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use store_client::{Client, ClientConfig, request};
use support::{api, object, pod, until};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().unwrap().phase.as_deref().unwrap()
}

fn set_phase(pod: &mut Pod, phase: &str) {
    pod.status.get_or_insert_default().phase = Some(phase.into());
}

fn raw(etcd: &Etcd) -> Client {
    Client::new(ClientConfig::new(&etcd.url()).unwrap()).unwrap()
}

/// What the store holds under a prefix: keys with their mod revisions.
async fn keys(client: &Client, prefix: &'static str) -> Vec<(String, i64)> {
    let response = client.range(request::prefix(prefix)).await.unwrap();
    let name = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    response.kvs.iter().map(|kv| (name(&kv.key), kv.mod_revision)).collect()
}

#[tokio::test]
async fn an_object_from_its_creation_to_its_end() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);

    let created = pods.create(pod("web")).await.unwrap();
    assert_eq!(pods.get(&key("web")).await.unwrap(), created);
    assert!(!created.uid().is_empty() && created.revision() > 0);
    let error = pods.create(pod("web")).await.unwrap_err();
    assert_eq!(error.to_string(), "pods default/web already exists");

    let mut changed = created.clone();
    changed.spec.as_mut().unwrap().containers[0].image = Some("nginx:2".into());
    set_phase(&mut changed, "Running");
    let changed = pods.update(changed).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    assert_eq!(phase(&changed), "Pending");

    let mut reported = changed.clone();
    reported.spec.as_mut().unwrap().containers[0].image = Some("nginx:3".into());
    set_phase(&mut reported, "Running");
    let reported = pods.update_status(reported).await.unwrap();
    assert_eq!(phase(&reported), "Running");
    assert_eq!(reported.metadata.generation, Some(2));
    assert_eq!(reported.spec, changed.spec);
    assert_eq!(pods.get(&key("web")).await.unwrap(), reported);

    let same = pods.update(reported.clone()).await.unwrap();
    assert_eq!(same, reported, "nothing changed, nothing is written");

    let other_uid = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
    let error = pods.delete(&key("web"), &other_uid).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    let gone = pods.delete(&key("web"), &DeleteOptions::default()).await.unwrap();
    assert!(matches!(gone, Deletion::Removed(_)));
    for error in [
        pods.get(&key("web")).await.unwrap_err(),
        pods.update(pod("web")).await.unwrap_err(),
        pods.delete(&key("web"), &DeleteOptions::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "pods default/web not found");
    }
}

#[tokio::test]
async fn what_is_invalid_is_not_stored() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let error = pods.create(pod("Not A Name")).await.unwrap_err();
    assert!(error.to_string().contains("metadata.name must consist of"), "{error}");
    let mut no_containers = pod("web");
    no_containers.spec.as_mut().unwrap().containers.clear();
    assert!(matches!(pods.create(no_containers).await, Err(Error::Invalid(_))));
    let mut large = pod("web");
    large.metadata.annotations = Some([("note".to_owned(), "x".repeat(800 << 10))].into());
    let error = pods.create(large).await.unwrap_err();
    assert!(error.to_string().contains("must not have more than 716800 bytes"), "{error}");
    assert_eq!(keys(&raw(&etcd), "/").await, []);

    let created = pods.create(pod("web")).await.unwrap();
    let mut bad_label = created.clone();
    bad_label.metadata.labels = Some([("a b".to_owned(), "c".to_owned())].into());
    assert!(matches!(pods.update(bad_label).await, Err(Error::Invalid(_))));
    assert_eq!(pods.get(&key("web")).await.unwrap(), created);
}

#[tokio::test]
async fn kinds_live_where_kubernetes_keeps_them() {
    let Some(etcd) = Etcd::start().await else { return };
    let sets = api::<ReplicaSet>(&[etcd.url()]);
    let nodes = api::<Node>(&[etcd.url()]);
    let set = sets
        .create(object(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": { "generateName": "web-", "namespace": "default" },
            "spec": {
                "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "main", "image": "nginx" }] },
                },
            },
        })))
        .await
        .unwrap();
    assert_eq!(set.name().len(), "web-".len() + 5);
    assert_eq!(set.spec.unwrap().replicas, Some(1));
    let node = object(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    }));
    let node: Node = nodes.create(node).await.unwrap();
    assert!(node.status.unwrap().conditions.is_some());
    let names: Vec<String> =
        keys(&raw(&etcd), "/registry/").await.into_iter().map(|(key, _)| key).collect();
    let set_key = format!("/registry/replicasets/default/{}", set.metadata.name.unwrap());
    assert_eq!(names, ["/registry/nodes/node-1".to_owned(), set_key]);
}

#[tokio::test]
async fn a_stale_update_is_a_conflict() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let first = pods.create(pod("web")).await.unwrap();
    let mut labelled = first.clone();
    labelled.metadata.labels = Some([("a".to_owned(), "1".to_owned())].into());
    let second = pods.update(labelled.clone()).await.unwrap();
    assert!(second.revision() > first.revision());

    let mut stale = first.clone();
    stale.metadata.labels = Some([("a".to_owned(), "2".to_owned())].into());
    let error = pods.update(stale.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    set_phase(&mut stale, "Running");
    let error = pods.update_status(stale.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    let options = DeleteOptions { revision: Some(first.revision()), ..DeleteOptions::default() };
    let error = pods.delete(&key("web"), &options).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    assert_eq!(pods.get(&key("web")).await.unwrap(), second);

    // Without a resourceVersion, whatever it is now.
    stale.metadata.resource_version = None;
    let third = pods.update(stale).await.unwrap();
    assert_eq!(third.metadata.labels.unwrap()["a"], "2");
    // From what was read long ago, tried again on what it is now.
    let fourth = pods
        .modify_from(&first, |pod| {
            pod.metadata.annotations.get_or_insert_default().insert("b".into(), "3".into());
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(fourth.metadata.labels.unwrap()["a"], "2");
    assert_eq!(fourth.metadata.annotations.unwrap()["b"], "3");
}

#[tokio::test]
async fn two_writers_lose_nothing_of_each_other() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    pods.create(pod("web")).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let pods = pods.clone();
        writers.spawn(async move {
            for i in 0..50 {
                let name = format!("{writer}-{i}");
                let add = |pod: &mut Pod| {
                    let notes = pod.metadata.annotations.get_or_insert_default();
                    notes.insert(name.clone(), "x".into());
                    Ok(())
                };
                pods.modify(&key("web"), add).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let pod = pods.get(&key("web")).await.unwrap();
    assert_eq!(pod.metadata.annotations.unwrap().len(), 100);
}

#[tokio::test]
async fn a_list_is_of_one_revision_whatever_happens_between_its_pages() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    for i in 0..7 {
        pods.create(pod(&format!("p{i}"))).await.unwrap();
    }
    let mut elsewhere = pod("p9");
    elsewhere.metadata.namespace = Some("other".into());
    pods.create(elsewhere).await.unwrap();
    // It is left out, and hides nothing else.
    let junk = PutRequest {
        key: "/registry/pods/default/junk".into(),
        value: "{".into(),
        ..PutRequest::default()
    };
    raw(&etcd).put(junk).await.unwrap();

    let mut options = ListOptions { limit: 3, ..ListOptions::default() };
    let scope = Scope::Namespace("default".into());
    let first = pods.list_page(&scope, options.clone()).await.unwrap();
    assert_eq!((first.items.len(), first.remaining), (2, 5), "the junk is one of three");
    pods.delete(&key("p6"), &DeleteOptions::default()).await.unwrap();
    pods.create(pod("p5a")).await.unwrap();

    let token = first.next.unwrap().to_string();
    options.next = Some(token.parse().unwrap());
    let mut names: Vec<String> = first.items.iter().map(|pod| pod.name().to_owned()).collect();
    loop {
        let page = pods.list_page(&scope, options.clone()).await.unwrap();
        assert_eq!(page.revision, first.revision);
        names.extend(page.items.iter().map(|pod| pod.name().to_owned()));
        options.next = page.next;
        if options.next.is_none() {
            break;
        }
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
    assert_eq!(pods.list(&Scope::All).await.unwrap().items.len(), 8);

    let now = pods.list(&scope).await.unwrap().revision;
    raw(&etcd).compact(CompactionRequest { revision: now, physical: false }).await.unwrap();
    options.next = Some(token.parse().unwrap());
    assert!(matches!(pods.list_page(&scope, options).await, Err(Error::Expired)));
    assert!("nonsense".parse::<api::Continue>().is_err());
}

#[tokio::test]
async fn a_bound_pod_is_under_its_node_for_as_long_as_it_exists() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let raw = raw(&etcd);
    let free = pods.create(pod("web")).await.unwrap();
    assert_eq!(keys(&raw, "/registry/miniku/").await, []);
    // The scheduler's cache may be behind.
    pods.modify_status(&key("web"), |pod| {
        pod.status.get_or_insert_default().message = Some("waiting".into());
        Ok(())
    })
    .await
    .unwrap();

    let bound = pods.bind(&free, "node-1").await.unwrap();
    assert_eq!(bound.status.as_ref().unwrap().message.as_deref(), Some("waiting"));
    let copy_key = "/registry/miniku/node-pods/node-1/default/web";
    assert_eq!(keys(&raw, "/registry/miniku/").await, [(copy_key.into(), bound.revision())]);
    assert_eq!(pods.bind(&free, "node-1").await.unwrap(), bound, "twice is once");
    let error = pods.bind(&free, "node-2").await.unwrap_err();
    assert!(error.to_string().contains("it is bound to node node-1"), "{error}");

    let on_node = Scope::Node("node-1".into());
    let seen = pods.list(&on_node).await.unwrap().items;
    assert_eq!(seen, std::slice::from_ref(&bound));
    let running = pods.modify_status_from(&seen[0], |pod| {
        set_phase(pod, "Running");
        Ok(())
    });
    let running = running.await.unwrap();
    assert_eq!(pods.list(&on_node).await.unwrap().items, [running]);

    let Deletion::Pending(deleting) =
        pods.delete(&key("web"), &DeleteOptions::default()).await.unwrap()
    else {
        panic!("a running pod is not removed at once")
    };
    assert_eq!(deleting.metadata.deletion_grace_period_seconds, Some(30));
    assert_eq!(pods.list(&on_node).await.unwrap().items, [deleting]);
    pods.finish_delete(&key("web"), "another-uid").await.unwrap();
    assert_eq!(keys(&raw, "/registry/").await.len(), 2);
    pods.finish_delete(&key("web"), bound.uid()).await.unwrap();
    assert_eq!(keys(&raw, "/registry/").await, []);
    pods.finish_delete(&key("web"), bound.uid()).await.unwrap();
}

#[tokio::test]
async fn copies_that_somebody_wrote_past_are_repaired() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let raw = raw(&etcd);
    for name in ["kept", "deleted", "changed", "moved", "lost"] {
        let free = pods.create(pod(name)).await.unwrap();
        pods.bind(&free, "node-1").await.unwrap();
    }
    pods.create(pod("free")).await.unwrap();
    assert_eq!(pods.repair_node_copies().await.unwrap(), 0);

    let path = |name: &str| format!("/registry/pods/default/{name}");
    let delete = |key: String| {
        raw.delete_range(DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() })
    };
    delete(path("deleted")).await.unwrap();
    delete("/registry/miniku/node-pods/node-1/default/lost".into()).await.unwrap();
    for (name, from, to) in [("changed", "nginx", "httpd"), ("moved", "node-1", "node-2")] {
        let key = path(name);
        let kv = raw.range(request::key(key.clone())).await.unwrap().kvs.remove(0);
        let value = String::from_utf8(kv.value.to_vec()).unwrap().replace(from, to);
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        raw.put(put).await.unwrap();
    }
    assert!(pods.repair_node_copies().await.unwrap() >= 4);
    // The pod that moved lost its old copy first.
    while pods.repair_node_copies().await.unwrap() > 0 {}
    let on = |node: &str| {
        let (pods, scope) = (pods.clone(), Scope::Node(node.to_owned()));
        async move { pods.list(&scope).await.unwrap().items }
    };
    let mut expected = pods.list(&Scope::All).await.unwrap().items;
    expected.retain(|pod| pod.node_name() == Some("node-1"));
    assert_eq!(on("node-1").await, expected);
    assert_eq!(expected.len(), 3);
    assert_eq!(on("node-2").await, [pods.get(&key("moved")).await.unwrap()]);
}

#[tokio::test]
async fn of_two_schedulers_one_binds() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    for i in 0..20 {
        let free = pods.create(pod(&format!("p{i}"))).await.unwrap();
        let results = tokio::join!(pods.bind(&free, "node-1"), pods.bind(&free, "node-2"));
        let winners = [results.0, results.1].into_iter().filter(Result::is_ok).count();
        assert_eq!(winners, 1);
    }
    let raw = raw(&etcd);
    assert_eq!(keys(&raw, "/registry/miniku/").await.len(), 20);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let mut held = pod("web");
    held.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    pods.create(held).await.unwrap();
    let deletion = pods.delete(&key("web"), &DeleteOptions::default()).await.unwrap();
    assert!(matches!(deletion, Deletion::Pending(ref pod) if pod.is_deleting()), "{deletion:?}");
    pods.modify(&key("web"), |pod| {
        pod.metadata_mut().finalizers = None;
        Ok(())
    })
    .await
    .unwrap();
    assert!(pods.find(&key("web")).await.unwrap().is_none());
}

/// A creation that lies unread in a member that hangs, while another member carries it out, comes
/// to nothing when the member wakes up.
#[tokio::test]
async fn what_was_deleted_is_not_created_again_by_a_member_that_wakes_up() {
    let Some(cluster) = Etcd::cluster(3).await else { return };
    let urls: Vec<String> = cluster.iter().map(Etcd::url).collect();
    let pods = api::<Pod>(&urls);
    pods.create(pod("warm-up")).await.unwrap();
    cluster[0].freeze();
    let created = pods.create(pod("web")).await.unwrap();
    pods.finish_delete(&key("web"), created.uid()).await.unwrap();
    cluster[0].thaw();
    // What the member answers now, it answers after what it had not read yet.
    let woken = api::<Pod>(&urls[..1]);
    until("the member serves again", || async { woken.find(&key("none")).await.is_ok() }).await;
    for i in 0..20 {
        woken.create(pod(&format!("p{i}"))).await.unwrap();
    }
    assert!(pods.find(&key("web")).await.unwrap().is_none());
}

/// Endpoints hang and break while objects are created, changed and deleted: a request whose
/// answer is lost is neither reported as somebody else's doing nor carried out twice.
#[tokio::test]
async fn lost_answers_are_found_out() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::start(etcd.addr()).await, Proxy::start(etcd.addr()).await);
    let pods = api::<Pod>(&[one.url(), two.url()]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for round in 0_u32.. {
            let (dead, alive) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
            alive.restore();
            match round / 2 % 2 {
                0 => dead.stall(),
                _ => dead.cut(),
            }
            sleep(Duration::from_millis(70)).await;
        }
    });
    let mut uids = BTreeSet::new();
    for i in 0..60 {
        let created = pods.create(pod(&format!("p{i}"))).await.unwrap();
        uids.insert(created.uid().to_owned());
        let bound = pods.bind(&created, "node-1").await.unwrap();
        if i % 2 == 0 {
            pods.finish_delete(&bound.key(), bound.uid()).await.unwrap();
            uids.remove(created.uid());
        }
    }
    tasks.abort_all();
    let left = api::<Pod>(&[etcd.url()]).list(&Scope::All).await.unwrap().items;
    assert_eq!(left.iter().map(|pod| pod.uid().to_owned()).collect::<BTreeSet<_>>(), uids);
    assert_eq!(keys(&raw(&etcd), "/registry/miniku/node-pods/").await.len(), uids.len());
}

/// A creation is carried out, its answer is lost, and a controller has written the status before
/// it is tried again.
#[tokio::test]
async fn a_creation_is_known_by_its_uid_when_its_answer_is_lost() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    let (pods, direct) = (api::<Pod>(&[proxy.url()]), api::<Pod>(&[etcd.url()]));
    proxy.mute();
    let meanwhile = async {
        let there = || async { direct.find(&key("web")).await.unwrap().is_some() };
        until("the pod is there", there).await;
        let report = |pod: &mut Pod| {
            pod.status.get_or_insert_default().message = Some("seen".to_owned());
            Ok(())
        };
        let reported = direct.modify_status(&key("web"), report).await.unwrap();
        proxy.cut();
        let addr = proxy.url().trim_start_matches("http://").to_owned();
        let refused = || async { TcpStream::connect(&addr).await.is_err() };
        until("the answer is lost", refused).await;
        proxy.restore();
        reported
    };
    let (created, reported) = tokio::join!(pods.create(pod("web")), meanwhile);
    assert_eq!(created.unwrap(), reported);
    let again = direct.create(pod("web")).await.unwrap_err();
    assert!(matches!(again, Error::AlreadyExists { .. }), "{again:?}");
}

#[tokio::test]
async fn a_leader_writes_nothing_once_another_one_is_elected() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = Store::new(raw(&etcd), Clock::system());
    let (leases, lease_key) = (store.api::<Lease>(), ObjectKey::namespaced("kube-system", "work"));
    let held_by =
        |holder: &str| LeaseSpec { holder_identity: Some(holder.into()), ..LeaseSpec::default() };
    let (lease, first) = leases.take(&lease_key, None, held_by("a")).await.unwrap();
    assert_eq!(leases.get(&lease_key).await.unwrap(), lease);
    let error = leases.take(&lease_key, None, held_by("b")).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error:?}");

    let a = store.clone().during(first.clone()).api::<Pod>();
    let one = a.create(pod("one")).await.unwrap();
    note(&a, "one").await.unwrap();
    // It is taken once more by whoever has it, after an answer that was lost, say.
    let (lease, second) = leases.take(&lease_key, Some(&lease), held_by("a")).await.unwrap();
    assert!(second.revision() > first.revision());
    let (_, third) = leases.take(&lease_key, Some(&lease), held_by("b")).await.unwrap();
    let error = leases.take(&lease_key, Some(&lease), held_by("a")).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");

    for term in [first, second] {
        let deposed = store.clone().during(term).api::<Pod>();
        let refused = [
            deposed.create(pod("two")).await.map(drop),
            note(&deposed, "one").await,
            deposed.bind(&one, "node-1").await.map(drop),
            deposed.delete(&key("one"), &DeleteOptions::default()).await.map(drop),
            // It was never there, and so is no sign of anything.
            deposed.create(pod("one")).await.map(drop),
        ];
        for result in refused {
            assert!(matches!(result, Err(Error::Deposed)), "{result:?}");
        }
        assert!(deposed.find(&key("two")).await.unwrap().is_none());
    }
    let b = store.clone().during(third).api::<Pod>();
    b.create(pod("two")).await.unwrap();
    let error = b.create(pod("one")).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error:?}");
}

async fn note(pods: &Api<Pod>, name: &str) -> Result<(), Error> {
    let change = |pod: &mut Pod| {
        let notes = pod.metadata.annotations.get_or_insert_default();
        notes.insert("notes".into(), format!("{}", notes.len() + 1));
        notes.insert(format!("note-{}", notes.len()), "more".into());
        Ok(())
    };
    pods.modify(&key(name), change).await.map(drop)
}
