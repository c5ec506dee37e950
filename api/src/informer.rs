//! Keeps a [`Cache`] like the store: lists a scope at one revision, watches it from the next.
//!
//! A watch that breaks goes on after its last revision, on another endpoint if need be, by itself.
//! When that revision is compacted, the scope is listed again and the cache gets the differences,
//! so its subscribers miss nothing and hear nothing twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{Api, Cache, Error, Object, Scope, WatchEvent};

/// The pause before a list that failed is tried again, doubled with each failure in a row.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Keeps a cache of a scope like the store, for as long as [`Informer::run`] runs.
pub struct Informer<K: Object> {
    api: Api<K>,
    scope: Scope,
    cache: Cache<K>,
}

impl<K: Object> Informer<K> {
    /// An informer of a scope. Its cache is empty until it runs.
    pub fn new(api: Api<K>, scope: Scope) -> Self {
        Self { api, scope, cache: Cache::new() }
    }

    /// The cache that it fills.
    pub fn cache(&self) -> Cache<K> {
        self.cache.clone()
    }

    /// Runs until it is cancelled; failures of the store are logged and outlived. The caller
    /// spawns it where its tasks belong. When it ends, or is dropped, so do all subscriptions.
    pub async fn run(self, cancelled: CancellationToken) {
        cancelled.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&self) {
        let kind = K::kind().plural;
        let mut pause = RETRY_PAUSE;
        loop {
            match self.list_and_watch(&mut pause).await {
                Error::Expired => {
                    tracing::info!(kind, "the watch fell behind the compaction: listing again");
                }
                error => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(kind, %error, cause, ?pause, "trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_RETRY_PAUSE);
                }
            }
        }
    }

    async fn list_and_watch(&self, pause: &mut Duration) -> Error {
        let list = match self.api.list(&self.scope).await {
            Ok(list) => list,
            Err(error) => return error,
        };
        let revision = list.revision;
        tracing::debug!(kind = K::kind().plural, objects = list.items.len(), revision, "listed");
        self.cache.replace(list.items, revision);
        *pause = RETRY_PAUSE;
        let mut watch = self.api.watch(&self.scope, Some(revision));
        loop {
            match watch.next().await {
                Ok(batch) => {
                    let changes = batch.events.into_iter().map(|event| match event {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                            (object.key(), Some(Arc::new(object)))
                        }
                        WatchEvent::Deleted(object) => (object.key(), None),
                    });
                    self.cache.apply(changes.collect(), batch.revision);
                }
                Err(error) => return error,
            }
        }
    }
}

impl<K: Object> Drop for Informer<K> {
    fn drop(&mut self) {
        self.cache.end();
    }
}
