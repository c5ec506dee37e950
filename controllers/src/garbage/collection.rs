//! The objects of one kind, as the garbage collector deals with all kinds alike.

use std::sync::Arc;
use std::time::Duration;

use api::{
    Api, Cache, DeleteOptions, Error, Kind, Notice, Object, ObjectKey, Propagation, Scope, Store,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::timeout;

/// How long a cache may take to catch up before the object is put back in the queue.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);

/// An object of whatever kind.
pub(super) trait Item: Send + Sync {
    fn metadata(&self) -> &ObjectMeta;
    fn key(&self) -> ObjectKey;
}

impl<K: Object> Item for K {
    fn metadata(&self) -> &ObjectMeta {
        k8s_openapi::Metadata::metadata(self)
    }

    fn key(&self) -> ObjectKey {
        Object::key(self)
    }
}

/// What happened to an object, or that it is to be looked at whatever happened.
pub(super) struct Happening<'a> {
    pub(super) kind: &'static Kind,
    pub(super) key: &'a ObjectKey,
    pub(super) old: Option<&'a ObjectMeta>,
    pub(super) new: Option<&'a ObjectMeta>,
}

/// A change of the metadata of an object; whatever it leaves as it is is not written.
pub(super) type Edit<'a> = &'a (dyn Fn(&mut ObjectMeta) + Send + Sync);

/// The objects of one kind: from the cache where nothing else is said.
pub(super) trait Collection: Send + Sync {
    fn kind(&self) -> &'static Kind;
    fn cached(&self, key: &ObjectKey) -> Option<Arc<dyn Item>>;
    /// Those that name the uid among their owners.
    fn owned_by(&self, uid: &str) -> Vec<Arc<dyn Item>>;
    /// Whether there are any.
    fn owns(&self, uid: &str) -> bool;
    /// Waits until the cache is filled; false when the informer ended before.
    fn synced(&self) -> BoxFuture<'_, bool>;
    /// Waits until the cache shows all that was written before; false when it does not in time.
    fn catch_up(&self) -> BoxFuture<'_, Result<bool, Error>>;
    /// Tells of every change, and of every object when changes were missed. Ends with the informer.
    fn listen<'a>(&'a self, tell: &'a (dyn Fn(Happening<'_>) + Send + Sync)) -> BoxFuture<'a, ()>;
    /// What the store holds.
    fn live<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectMeta>, Error>>;
    /// Deletes the object if it is still as it was read.
    fn delete<'a>(
        &'a self,
        key: &'a ObjectKey,
        seen: &'a ObjectMeta,
        propagation: Option<Propagation>,
    ) -> BoxFuture<'a, Result<(), Error>>;
    /// Changes the metadata of the object with that uid, if it is there.
    fn edit<'a>(
        &'a self,
        key: &'a ObjectKey,
        uid: &'a str,
        edit: Edit<'a>,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// A kind with its type.
pub(super) struct Typed<K> {
    api: Api<K>,
    cache: Cache<K>,
}

impl<K: Object> Typed<K> {
    pub(super) fn boxed(store: &Store, cache: Cache<K>) -> Box<dyn Collection> {
        Box::new(Self { api: store.api(), cache })
    }
}

impl<K: Object> Collection for Typed<K> {
    fn kind(&self) -> &'static Kind {
        K::kind()
    }

    fn cached(&self, key: &ObjectKey) -> Option<Arc<dyn Item>> {
        self.cache.get(key).map(|object| object as Arc<dyn Item>)
    }

    fn owned_by(&self, uid: &str) -> Vec<Arc<dyn Item>> {
        self.cache.owned_by(uid).into_iter().map(|object| object as Arc<dyn Item>).collect()
    }

    fn owns(&self, uid: &str) -> bool {
        self.cache.owns(uid)
    }

    fn synced(&self) -> BoxFuture<'_, bool> {
        self.cache.synced().boxed()
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<bool, Error>> {
        async {
            let caught_up = self.api.catch_up(&self.cache, &Scope::All);
            timeout(CATCH_UP_WITHIN, caught_up).await.unwrap_or(Ok(false))
        }
        .boxed()
    }

    fn listen<'a>(&'a self, tell: &'a (dyn Fn(Happening<'_>) + Send + Sync)) -> BoxFuture<'a, ()> {
        async move {
            let kind = K::kind();
            let mut changes = self.cache.subscribe();
            while let Some(notice) = changes.next().await {
                match notice {
                    Notice::Changed(changes) => {
                        for change in &changes {
                            let [old, new] = [&change.old, &change.new]
                                .map(|object| object.as_deref().map(Item::metadata));
                            tell(Happening { kind, key: &change.key, old, new });
                        }
                    }
                    Notice::Resync => {
                        for object in self.cache.list() {
                            let new = Some(Item::metadata(&*object));
                            tell(Happening { kind, key: &Object::key(&*object), old: None, new });
                        }
                    }
                }
            }
        }
        .boxed()
    }

    fn live<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectMeta>, Error>> {
        async {
            let found = self.api.find(key).await?;
            Ok(found.map(|object| Item::metadata(&object).clone()))
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        key: &'a ObjectKey,
        seen: &'a ObjectMeta,
        propagation: Option<Propagation>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            // With the revision: somebody may be giving it another owner right now.
            let revision = seen.resource_version.as_ref().and_then(|version| version.parse().ok());
            let options = DeleteOptions {
                uid: seen.uid.clone(),
                revision,
                propagation,
                ..DeleteOptions::default()
            };
            match self.api.delete(key, &options).await {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn edit<'a>(
        &'a self,
        key: &'a ObjectKey,
        uid: &'a str,
        edit: Edit<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let before = match self.cache.get(key).filter(|object| object.uid() == uid) {
                Some(cached) => K::clone(&cached),
                None => match self.api.find(key).await? {
                    Some(found) => found,
                    None => return Ok(()),
                },
            };
            let edited = self.api.modify_from(&before, |current| {
                if current.uid() == uid {
                    edit(current.metadata_mut());
                }
                Ok(())
            });
            match edited.await {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}
