//! Garbage collection: what becomes of objects when their owners go, and of owners that wait for it.
//!
//! Woken when an object goes that others name as their owner, when one comes whose owner nobody
//! knows, and when one is deleted that waits for its dependents. The rules are in [`plan`]. The
//! caches only say where to look: whether an owner is gone is asked of the store itself, right before
//! anything is deleted; and before an object is told that nothing depends on it any more, the
//! caches must show all that was written until then.
//!
//! It deals with all kinds alike ([`collection`]) but for events, as in Kubernetes: those expire by
//! themselves.

mod collection;
mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use api::{
    Cache, Error, FOREGROUND_FINALIZER, Kind, ORPHAN_FINALIZER, ObjectKey, Outcome, Propagation,
    Store, WorkQueue, kind_of,
};
use futures::future::BoxFuture;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio_util::sync::CancellationToken;

use crate::reconcile;
use collection::{Collection, Happening, Item, Typed};
use plan::{Standing, Verdict, Waits, blocks, plan, waits};

/// Dependents of one object that are let go at the same time.
const WRITES_IN_FLIGHT: usize = 16;

/// What the collector hears from: the kinds whose objects it deals with.
pub(crate) struct Caches {
    pub(crate) sets: Cache<ReplicaSet>,
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) leases: Cache<Lease>,
    pub(crate) classes: Cache<PriorityClass>,
}

/// Deletes what nobody owns any more.
pub(crate) struct GarbageCollector {
    collections: Vec<Box<dyn Collection>>,
    queue: WorkQueue<Reference>,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reference {
    kind: &'static Kind,
    key: ObjectKey,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.plural, self.key)
    }
}

impl GarbageCollector {
    pub(crate) fn new(store: &Store, caches: Caches) -> Self {
        let collections = vec![
            Typed::boxed(store, caches.sets),
            Typed::boxed(store, caches.pods),
            Typed::boxed(store, caches.nodes),
            Typed::boxed(store, caches.leases),
            Typed::boxed(store, caches.classes),
        ];
        Self { collections, queue: WorkQueue::new(reconcile::BACKOFF) }
    }

    /// Runs until cancelled, or until the informers end.
    pub(crate) async fn run(self, workers: usize, cancelled: CancellationToken) {
        let this = Arc::new(self);
        let worker = Arc::clone(&this);
        let work = move |object: Reference| {
            let this = Arc::clone(&worker);
            async move { this.reconcile(&object).await }
        };
        reconcile::run("garbage", this.queue.clone(), workers, cancelled, this.listen(), work)
            .await;
    }

    /// Turns changes into objects to look at.
    async fn listen(&self) {
        let synced = join_all(self.collections.iter().map(|objects| objects.synced())).await;
        // Without all of them, everything would look as if it were gone.
        if synced.contains(&false) {
            return;
        }
        let tell = |happening: Happening<'_>| self.heard(&happening);
        let mut listeners: stream::FuturesUnordered<_> =
            self.collections.iter().map(|objects| objects.listen(&tell)).collect();
        listeners.next().await;
    }

    fn heard(&self, happening: &Happening<'_>) {
        let &Happening { kind, key, old, new } = happening;
        if new.is_some_and(|new| self.concerns(new)) {
            self.queue.add(Reference { kind, key: key.clone() });
        }
        let Some(old) = old else { return };
        if new.is_none_or(|new| new.uid != old.uid) {
            for dependent in self.dependents(uid(old)) {
                self.queue.add(dependent.reference());
            }
        }
        // It may be what an owner waited for.
        if new.is_none_or(|new| new.owner_references != old.owner_references) {
            for owner in old.owner_references.iter().flatten() {
                let Some((owners, key)) = self.find(old, owner) else { continue };
                let found = owners.cached(&key);
                if found.is_some_and(|owner| waits(owner.metadata()) != Waits::Not) {
                    self.queue.add(Reference { kind: owners.kind(), key });
                }
            }
        }
    }

    /// Whether there may be something to do about an object, as far as the caches tell.
    fn concerns(&self, object: &ObjectMeta) -> bool {
        if object.deletion_timestamp.is_some() {
            return waits(object) != Waits::Not;
        }
        object.owner_references.iter().flatten().any(|owner| {
            self.find(object, owner).is_some_and(|(owners, key)| {
                let found = owners.cached(&key);
                standing(owner, found.as_ref().map(|owner| owner.metadata())) != Standing::There
            })
        })
    }

    fn collection(&self, kind: &'static Kind) -> Option<&dyn Collection> {
        self.collections.iter().find(|objects| objects.kind() == kind).map(|objects| &**objects)
    }

    /// Where an owner is; none when its kind is not known here, or when it cannot be an owner: one
    /// with a namespace only owns what is in the same.
    fn find(
        &self,
        dependent: &ObjectMeta,
        owner: &OwnerReference,
    ) -> Option<(&dyn Collection, ObjectKey)> {
        let owners = self.collection(kind_of(owner)?)?;
        let key = if owners.kind().namespaced {
            ObjectKey::namespaced(dependent.namespace.as_deref()?, &owner.name)
        } else {
            ObjectKey::cluster(&owner.name)
        };
        Some((owners, key))
    }

    fn dependents<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = Dependent<'a>> {
        self.collections.iter().flat_map(move |objects| {
            let owned = objects.owned_by(uid).into_iter();
            owned.map(|object| Dependent { collection: &**objects, object })
        })
    }

    async fn reconcile(&self, object: &Reference) -> Result<Outcome, Error> {
        let Some(collection) = self.collection(object.kind) else { return Ok(Outcome::Done) };
        let Some(live) = collection.live(&object.key).await? else { return Ok(Outcome::Done) };
        match waits(&live) {
            Waits::Not if live.deletion_timestamp.is_some() => Ok(Outcome::Done),
            Waits::Not => self.judge(collection, &object.key, &live).await,
            Waits::Orphaning => self.orphan(collection, &object.key, &live).await,
            Waits::Foreground => self.delete_dependents(collection, &object.key, &live).await,
        }
    }

    /// Does about an object what its owners make necessary.
    async fn judge(
        &self,
        collection: &dyn Collection,
        key: &ObjectKey,
        object: &ObjectMeta,
    ) -> Result<Outcome, Error> {
        let mut found = HashMap::new();
        for owner in object.owner_references.iter().flatten() {
            if let Some((owners, key)) = self.find(object, owner) {
                let live = owners.live(&key).await?;
                found.insert(owner.uid.as_str(), standing(owner, live.as_ref()));
            }
        }
        let how = |owner: &OwnerReference| {
            found.get(owner.uid.as_str()).copied().unwrap_or(Standing::There)
        };
        let has_dependents = self.collections.iter().any(|objects| objects.owns(uid(object)));
        match plan(object, how, has_dependents) {
            Verdict::Keep => {}
            Verdict::Unlink(uids) => {
                collection.edit(key, uid(object), &|current| unlink(current, &uids)).await?;
            }
            Verdict::Delete(propagation) => {
                let circular = propagation == Some(Propagation::Foreground)
                    && self
                        .dependents(uid(object))
                        .any(|dependent| waits(dependent.object.metadata()) != Waits::Not);
                if circular {
                    // They would wait for each other. Met again when that is seen.
                    collection.edit(key, uid(object), &unblock).await?;
                    let now = collection.live(key).await?;
                    let Some(now) = now.filter(|now| now.uid == object.uid) else {
                        return Ok(Outcome::Done);
                    };
                    collection.delete(key, &now, propagation).await?;
                } else {
                    collection.delete(key, object, propagation).await?;
                }
                tracing::info!(reason = "its owners are gone", "deleted");
            }
        }
        Ok(Outcome::Done)
    }

    /// Lets go of all dependents of an object, and then of the object.
    async fn orphan(
        &self,
        collection: &dyn Collection,
        key: &ObjectKey,
        owner: &ObjectMeta,
    ) -> Result<Outcome, Error> {
        if !self.catch_up().await? {
            return Ok(Outcome::After(reconcile::BACKOFF.base));
        }
        let owner_uid = [uid(owner).to_owned()];
        let edit = |current: &mut ObjectMeta| unlink(current, &owner_uid);
        // Boxed before they are in a stream, as the compiler does not see through one that borrows.
        let mut writes: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        for dependent in self.dependents(&owner_uid[0]) {
            let Dependent { collection, object } = dependent;
            let edit = &edit;
            writes.push(Box::pin(async move {
                collection.edit(&object.key(), uid(object.metadata()), edit).await
            }));
        }
        let count = writes.len();
        let done: Vec<_> = stream::iter(writes).buffer_unordered(WRITES_IN_FLIGHT).collect().await;
        done.into_iter().collect::<Result<(), Error>>()?;
        let finish = |current: &mut ObjectMeta| drop_finalizer(current, ORPHAN_FINALIZER);
        collection.edit(key, uid(owner), &finish).await?;
        tracing::info!(dependents = count, "let its dependents go");
        Ok(Outcome::Done)
    }

    /// Has the dependents of an object deleted, and lets the object go when none blocks it.
    async fn delete_dependents(
        &self,
        collection: &dyn Collection,
        key: &ObjectKey,
        owner: &ObjectMeta,
    ) -> Result<Outcome, Error> {
        if !self.catch_up().await? {
            return Ok(Outcome::After(reconcile::BACKOFF.base));
        }
        let mut blocked = false;
        for dependent in self.dependents(uid(owner)) {
            let metadata = dependent.object.metadata();
            blocked |= blocks(metadata, uid(owner));
            if metadata.deletion_timestamp.is_none() {
                self.queue.add(dependent.reference());
            }
        }
        if !blocked {
            let finish = |current: &mut ObjectMeta| drop_finalizer(current, FOREGROUND_FINALIZER);
            collection.edit(key, uid(owner), &finish).await?;
            tracing::info!("nothing keeps it any more");
        }
        Ok(Outcome::Done)
    }

    /// Waits until the caches show everything that was written before.
    async fn catch_up(&self) -> Result<bool, Error> {
        let all = self.collections.iter().map(|objects| objects.catch_up());
        Ok(try_join_all(all).await?.into_iter().all(|caught_up| caught_up))
    }
}

/// An object that names another one as its owner.
struct Dependent<'a> {
    collection: &'a dyn Collection,
    object: Arc<dyn Item>,
}

impl Dependent<'_> {
    fn reference(&self) -> Reference {
        Reference { kind: self.collection.kind(), key: self.object.key() }
    }
}

fn uid(object: &ObjectMeta) -> &str {
    object.uid.as_deref().unwrap_or_default()
}

/// How an owner is, given what is stored under its name.
fn standing(owner: &OwnerReference, found: Option<&ObjectMeta>) -> Standing {
    match found.filter(|found| uid(found) == owner.uid) {
        None => Standing::Gone,
        Some(found) if waits(found) == Waits::Foreground => Standing::Waiting,
        Some(_) => Standing::There,
    }
}

fn unlink(object: &mut ObjectMeta, uids: &[String]) {
    if let Some(owners) = &mut object.owner_references {
        owners.retain(|owner| !uids.contains(&owner.uid));
    }
    object.owner_references.take_if(|owners| owners.is_empty());
}

fn unblock(object: &mut ObjectMeta) {
    for owner in object.owner_references.iter_mut().flatten() {
        owner.block_owner_deletion = Some(false);
    }
}

fn drop_finalizer(object: &mut ObjectMeta, finalizer: &str) {
    if let Some(finalizers) = &mut object.finalizers {
        finalizers.retain(|name| name != finalizer);
    }
}

#[cfg(test)]
mod tests {
    use api::{Client, ClientConfig, Clock, EVENT, Informer, KINDS, Object, Scope};

    use super::*;
    use crate::fixture::pod;

    fn collector() -> GarbageCollector {
        let config = ClientConfig::new("http://127.0.0.1:1").unwrap();
        let store = Store::new(Client::new(config).unwrap(), Clock::system());
        fn cache<K: Object>(store: &Store) -> Cache<K> {
            Informer::new(store.api(), Scope::All).cache()
        }
        let caches = Caches {
            sets: cache(&store),
            pods: cache(&store),
            nodes: cache(&store),
            leases: cache(&store),
            classes: cache(&store),
        };
        GarbageCollector::new(&store, caches)
    }

    #[test]
    fn every_kind_is_collected_but_events() {
        let collector = collector();
        for kind in KINDS {
            assert_eq!(collector.collection(kind).is_some(), kind != &EVENT, "{kind:?}");
        }
    }

    #[test]
    fn where_an_owner_is_looked_for() {
        let collector = collector();
        let owner = |api_version: &str, kind: &str| OwnerReference {
            api_version: api_version.into(),
            kind: kind.into(),
            name: "x".into(),
            ..OwnerReference::default()
        };
        let pod = pod("a").build();
        let cluster_wide = ObjectMeta { namespace: None, ..pod.metadata.clone() };
        let place = |object: &ObjectMeta, owner: &OwnerReference| {
            let (owners, key) = collector.find(object, owner)?;
            Some(Reference { kind: owners.kind(), key }.to_string())
        };
        for (object, owner, expected) in [
            (&pod.metadata, owner("apps/v1", "ReplicaSet"), Some("replicasets/default/x")),
            (&pod.metadata, owner("apps/v2", "ReplicaSet"), Some("replicasets/default/x")),
            (&pod.metadata, owner("v1", "Node"), Some("nodes/x")),
            (&pod.metadata, owner("batch/v1", "Job"), None),
            (&cluster_wide, owner("v1", "Node"), Some("nodes/x")),
            // It could be in any namespace, so it is in none.
            (&cluster_wide, owner("v1", "Pod"), None),
        ] {
            assert_eq!(place(object, &owner).as_deref(), expected, "{owner:?}");
        }
    }
}
