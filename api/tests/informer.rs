//! Watches and informers on a real etcd, while connections break, members die and history goes.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::testing::{Etcd, Proxy};
use api::{
    Api, Cache, DeleteOptions, Error, Informer, Notice, Object, ObjectKey, Scope, Subscription,
    WatchEvent,
};
use k8s_openapi::api::core::v1::Pod;
use store_client::etcdserverpb::CompactionRequest;
use support::{PATIENCE, api, pod, until};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn start(api: &Api<Pod>, scope: Scope, tasks: &mut JoinSet<()>) -> Cache<Pod> {
    let informer = Informer::new(api.clone(), scope);
    let cache = informer.cache();
    tasks.spawn(informer.run(CancellationToken::new()));
    cache
}

async fn note(api: &Api<Pod>, name: &str, text: &str) -> Pod {
    let change = |pod: &mut Pod| {
        pod.metadata.annotations.get_or_insert_default().insert("note".into(), text.into());
        Ok(())
    };
    api.modify(&key(name), change).await.unwrap()
}

async fn remove(api: &Api<Pod>, name: &str) {
    api.delete(&key(name), &DeleteOptions::default()).await.unwrap();
}

/// Follows a subscription until the cache shows what the store holds, and checks that what it
/// tells leads there: each change begins with what is known, and no version comes back.
struct Follower {
    subscription: Subscription<Pod>,
    known: BTreeMap<ObjectKey, Arc<Pod>>,
    newest: i64,
}

impl Follower {
    fn new(cache: &Cache<Pod>) -> Self {
        Self { subscription: cache.subscribe(), known: BTreeMap::new(), newest: 0 }
    }

    async fn follow(&mut self, cache: &Cache<Pod>, store: &Api<Pod>, scope: &Scope) {
        let list = store.list(scope).await.unwrap();
        let expected: BTreeMap<ObjectKey, Pod> =
            list.items.into_iter().map(|pod| (pod.key(), pod)).collect();
        let same = |known: &BTreeMap<ObjectKey, Arc<Pod>>| {
            known.len() == expected.len()
                && known.iter().all(|(key, pod)| expected.get(key) == Some(pod))
        };
        while !same(&self.known) {
            let notice = timeout(PATIENCE, self.subscription.next()).await.expect("a notice");
            match notice.expect("the informer runs") {
                Notice::Resync => {
                    assert_eq!(self.newest, 0, "nobody fell behind");
                    self.known = cache.list().into_iter().map(|pod| (pod.key(), pod)).collect();
                }
                Notice::Changed(changes) => {
                    for change in changes {
                        if let Some(known) = self.known.remove(&change.key) {
                            assert_eq!(change.old, Some(Arc::clone(&known)));
                            let new = change.new.as_ref();
                            assert!(new.is_none_or(|new| new.revision() > known.revision()));
                        }
                        if let Some(new) = change.new {
                            self.known.insert(change.key, new);
                        }
                    }
                }
            }
            let newest = self.known.values().map(|pod| pod.revision()).max();
            self.newest = self.newest.max(newest.unwrap_or(0)).max(1);
        }
        let cached: BTreeMap<ObjectKey, Arc<Pod>> =
            cache.list().into_iter().map(|pod| (pod.key(), pod)).collect();
        assert_eq!(cached, self.known);
    }
}

#[tokio::test]
async fn a_watch_tells_what_happened_in_order() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let mut now = pods.watch(&Scope::All, None);
    let begin = timeout(PATIENCE, now.next()).await.unwrap().unwrap();
    assert!(begin.events.is_empty());

    let created = pods.create(pod("a")).await.unwrap();
    let changed = note(&pods, "a", "1").await;
    remove(&pods, "a").await;
    let again = pods.create(pod("a")).await.unwrap();
    let expected =
        [("ADDED", &created), ("MODIFIED", &changed), ("DELETED", &changed), ("ADDED", &again)];

    let mut past = pods.watch(&Scope::Namespace("default".into()), Some(begin.revision));
    for watch in [&mut now, &mut past] {
        let mut events = Vec::new();
        while events.len() < expected.len() {
            events.extend(timeout(PATIENCE, watch.next()).await.unwrap().unwrap().events);
        }
        for (event, (type_name, object)) in events.iter().zip(expected) {
            assert_eq!(event.type_name(), type_name);
            match event {
                WatchEvent::Deleted(last) => {
                    assert_eq!(last.metadata.annotations, object.metadata.annotations);
                    let (created, again) = (changed.revision(), again.revision());
                    assert!((created + 1..again).contains(&last.revision()));
                }
                WatchEvent::Added(now) | WatchEvent::Modified(now) => assert_eq!(now, object),
            }
        }
    }
}

#[tokio::test]
async fn a_watch_misses_repeats_and_reorders_nothing_while_endpoints_break() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::start(etcd.addr()).await, Proxy::start(etcd.addr()).await);
    let writer = api::<Pod>(&[etcd.url()]);
    let mut watch = api::<Pod>(&[one.url(), two.url()]).watch(&Scope::All, None);
    timeout(PATIENCE, watch.next()).await.unwrap().unwrap();

    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for round in 0_u32.. {
            let (dead, alive) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
            alive.restore();
            match round / 2 % 2 {
                0 => dead.stall(),
                _ => dead.cut(),
            }
            sleep(Duration::from_millis(300)).await;
        }
    });
    let mut writes = JoinSet::new();
    writes.spawn(async move {
        let mut expected = Vec::new();
        for round in 0..150 {
            let name = format!("p{}", round % 7);
            let created = writer.create(pod(&name)).await.unwrap();
            expected.push(("ADDED", created.revision()));
            expected.push(("MODIFIED", note(&writer, &name, "x").await.revision()));
            let gone = writer.delete(&key(&name), &DeleteOptions::default()).await.unwrap();
            expected.push(("DELETED", gone.into_object().revision()));
            sleep(Duration::from_millis(10)).await;
        }
        expected
    });
    let mut seen = Vec::new();
    while seen.len() < 450 {
        let batch = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        seen.extend(
            batch.events.iter().map(|event| (event.type_name(), event.object().revision())),
        );
    }
    assert_eq!(seen, writes.join_next().await.unwrap().unwrap());
}

#[tokio::test]
async fn an_informer_survives_a_compaction_that_it_slept_through() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    let store = api::<Pod>(&[etcd.url()]);
    for name in ["kept", "changed", "gone", "replaced"] {
        store.create(pod(name)).await.unwrap();
    }
    let mut tasks = JoinSet::new();
    let cache = start(&api(&[proxy.url()]), Scope::All, &mut tasks);
    let mut follower = Follower::new(&cache);
    assert!(timeout(PATIENCE, cache.synced()).await.unwrap());
    follower.follow(&cache, &store, &Scope::All).await;

    for breaks in [Proxy::cut, Proxy::stall] {
        breaks(&proxy);
        // A stalled watch may have passed its bytes on already: what it must not miss comes after.
        note(&store, "changed", "1").await;
        remove(&store, "gone").await;
        remove(&store, "replaced").await;
        store.create(pod("replaced")).await.unwrap();
        let new = store.create(pod("new")).await.unwrap();
        let compact = CompactionRequest { revision: new.revision(), physical: false };
        let client = api::Client::new(api::ClientConfig::new(&etcd.url()).unwrap()).unwrap();
        client.compact(compact).await.unwrap();
        let old = store.watch(&Scope::All, Some(new.revision() - 2)).next().await;
        assert!(matches!(old, Err(Error::Expired)), "{old:?}");
        proxy.restore();
        follower.follow(&cache, &store, &Scope::All).await;
        remove(&store, "new").await;
        store.create(pod("gone")).await.unwrap();
        note(&store, "changed", "2").await;
        follower.follow(&cache, &store, &Scope::All).await;
    }
}

/// A three-member etcd whose members are killed and frozen in turn, while a writer writes.
#[tokio::test]
async fn an_informer_survives_the_members_it_watches() {
    let Some(mut cluster) = Etcd::cluster(3).await else { return };
    let urls: Vec<String> = cluster.iter().map(Etcd::url).collect();
    let store = api::<Pod>(&urls);
    let mut tasks = JoinSet::new();
    let cache = start(&api(&urls), Scope::All, &mut tasks);
    let mut follower = Follower::new(&cache);
    assert!(timeout(PATIENCE, cache.synced()).await.unwrap());
    for round in 0..4 {
        let victim = round % 3;
        match round % 2 {
            0 => cluster[victim].kill(),
            _ => cluster[victim].freeze(),
        }
        for i in 0..5 {
            store.create(pod(&format!("p{round}-{i}"))).await.unwrap();
            note(&store, &format!("p{round}-{i}"), "x").await;
        }
        remove(&store, &format!("p{round}-0")).await;
        follower.follow(&cache, &store, &Scope::All).await;
        match round % 2 {
            0 => cluster[victim].start_again(),
            _ => cluster[victim].thaw(),
        }
        let back = api::<Pod>(&urls[victim..=victim]);
        until("the member serves again", || async { back.find(&key("none")).await.is_ok() }).await;
    }
    assert_eq!(cache.len(), 16);
}

#[tokio::test]
async fn a_kubelet_sees_its_own_pods_and_no_others() {
    let Some(etcd) = Etcd::start().await else { return };
    let pods = api::<Pod>(&[etcd.url()]);
    let mine = pods.create(pod("mine")).await.unwrap();
    pods.bind(&mine, "node-1").await.unwrap();
    let mut tasks = JoinSet::new();
    let scope = Scope::Node("node-1".into());
    let cache = start(&pods, scope.clone(), &mut tasks);
    let mut follower = Follower::new(&cache);

    let other = pods.create(pod("other")).await.unwrap();
    pods.bind(&other, "node-11").await.unwrap();
    pods.create(pod("free")).await.unwrap();
    let second = pods.create(pod("second")).await.unwrap();
    let bound = pods.bind(&second, "node-1").await.unwrap();
    assert!(timeout(PATIENCE, cache.reached(bound.revision())).await.unwrap());
    follower.follow(&cache, &pods, &scope).await;
    let names: Vec<String> = cache.list().iter().map(|pod| pod.name().to_owned()).collect();
    assert_eq!(names, ["mine", "second"]);

    remove(&pods, "second").await;
    follower.follow(&cache, &pods, &scope).await;
    assert!(cache.get(&key("second")).unwrap().is_deleting());
    pods.finish_delete(&key("second"), bound.uid()).await.unwrap();
    follower.follow(&cache, &pods, &scope).await;
    assert_eq!(cache.len(), 1);
}

#[tokio::test]
async fn an_informer_waits_for_a_store_that_comes_late_and_ends_when_it_is_told() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::start(etcd.addr()).await;
    proxy.cut();
    let informer = Informer::new(api::<Pod>(&[proxy.url()]), Scope::All);
    let cache = informer.cache();
    let mut subscription = cache.subscribe();
    let cancelled = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(informer.run(cancelled.clone()));
    assert!(timeout(Duration::from_millis(300), subscription.next()).await.is_err());
    proxy.restore();
    assert_eq!(timeout(PATIENCE, subscription.next()).await.unwrap(), Some(Notice::Resync));
    cancelled.cancel();
    timeout(PATIENCE, tasks.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(subscription.next().await, None);
}

#[tokio::test]
async fn a_cache_catches_up_with_what_was_written_elsewhere() {
    let Some(etcd) = Etcd::start().await else { return };
    let (proxy, mut tasks) = (Proxy::start(etcd.addr()).await, JoinSet::new());
    let (here, elsewhere) = (api::<Pod>(&[proxy.url()]), api::<Pod>(&[etcd.url()]));
    let cache = start(&here, Scope::All, &mut tasks);
    assert!(elsewhere.catch_up(&cache, &Scope::All).await.unwrap(), "with nothing");

    for round in 0..20 {
        for name in ["a", "b", "c"] {
            elsewhere.create(pod(&format!("{name}-{round}"))).await.unwrap();
        }
        // The last write is a deletion, at a revision that the cache is told of by nothing else.
        remove(&elsewhere, &format!("b-{round}")).await;
        assert!(elsewhere.catch_up(&cache, &Scope::All).await.unwrap());
        assert_eq!(cache.list().len(), 2 * (round + 1));
    }

    proxy.stall();
    elsewhere.create(pod("unseen")).await.unwrap();
    let caught_up = elsewhere.catch_up(&cache, &Scope::All);
    let early = timeout(Duration::from_millis(300), caught_up).await;
    assert!(early.is_err() || cache.get(&key("unseen")).is_some(), "it was not told of it");
    proxy.restore();
    assert!(elsewhere.catch_up(&cache, &Scope::All).await.unwrap());
    assert!(cache.get(&key("unseen")).is_some());

    tasks.shutdown().await;
    assert!(!elsewhere.catch_up(&cache, &Scope::All).await.unwrap(), "the informer has ended");
}
