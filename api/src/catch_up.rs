//! Waits until a cache shows all that the store held at one moment.
//!
//! A cache lags behind the store, and a watch on which nothing happens does not say that it has
//! seen a revision; marks of progress are minutes apart. So the store is asked what the cache would
//! have to show, which costs one read of two numbers: the newest revision of any object that is
//! there, and how many there are.
//!
//! ```text
//! the store, at revision 20          3 objects, the newest written at 17
//! the cache has reached 15           waiting: at 17 something was written
//! the cache has reached 17, shows 4  waiting: one was deleted after 17
//! the cache has reached 18, shows 3  it shows what the store held at 20
//! ```
//!
//! That is enough: whatever was put up to 20 and is still there is in it from 17 on, and what was
//! not put any more can only have been deleted since.

use std::time::Duration;

use store_client::etcdserverpb::RangeRequest;
use store_client::etcdserverpb::range_request::{SortOrder, SortTarget};
use store_client::request;
use tokio::time::{Instant, timeout_at};

use crate::{Api, Cache, Error, Object, Scope};

/// How long deletions are waited for. What cannot be read as an object counts in the store and is
/// not in the cache, so the numbers need not ever be the same.
const DELETIONS_WITHIN: Duration = Duration::from_secs(2);

/// What the store held at one moment.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Of that moment.
    revision: i64,
    /// Of the last write of any object that was there.
    newest: i64,
    objects: usize,
}

/// What a cache shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    All,
    /// All but perhaps some deletions.
    Puts,
    NotAll,
}

impl<K: Object> Api<K> {
    /// Waits until the cache of a scope shows everything that was written before this was called.
    /// Whether everything that was deleted is gone from it is waited for, too, but not for long
    /// where keys in the scope hold something else than objects.
    ///
    /// Returns false when the informer has ended.
    pub async fn catch_up(&self, cache: &Cache<K>, scope: &Scope) -> Result<bool, Error> {
        if !cache.synced().await {
            return Ok(false);
        }
        let held = self.held(scope).await?;
        let mut progress = cache.progress();
        let mut deadline = None;
        loop {
            progress.mark_unchanged();
            if cache.has_ended() {
                return Ok(false);
            }
            // In this order: what is counted is at least as new as the first revision, and no newer
            // than the second.
            let (before, objects, after) = (cache.revision(), cache.len(), cache.revision());
            match shown(held, before, objects, after) {
                Shown::All => return Ok(true),
                Shown::Puts => {
                    let deadline =
                        *deadline.get_or_insert_with(|| Instant::now() + DELETIONS_WITHIN);
                    match timeout_at(deadline, progress.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Ok(false),
                        Err(_) => {
                            let kind = K::kind().plural;
                            tracing::debug!(kind, ?held, objects, "caught up but for the number");
                            return Ok(true);
                        }
                    }
                }
                Shown::NotAll => {
                    if progress.changed().await.is_err() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    async fn held(&self, scope: &Scope) -> Result<Held, Error> {
        let newest = RangeRequest {
            keys_only: true,
            limit: 1,
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Mod.into(),
            ..request::prefix(scope.prefix(K::kind()))
        };
        let response = self.client().range(newest).await?;
        Ok(Held {
            revision: response.header.map_or(0, |header| header.revision),
            newest: response.kvs.first().map_or(0, |kv| kv.mod_revision),
            objects: usize::try_from(response.count).unwrap_or(0),
        })
    }
}

/// What a cache shows that had `objects` at some moment between two of its revisions.
fn shown(held: Held, before: i64, objects: usize, after: i64) -> Shown {
    if before >= held.revision {
        Shown::All
    } else if before < held.newest {
        Shown::NotAll
    } else if after < held.revision && objects == held.objects {
        Shown::All
    } else {
        Shown::Puts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cache_shows_of_what_the_store_held() {
        let held = Held { revision: 20, newest: 17, objects: 3 };
        for (before, objects, after, expected) in [
            (20, 9, 20, Shown::All),
            (25, 0, 26, Shown::All),
            (16, 3, 16, Shown::NotAll),
            (16, 3, 18, Shown::NotAll),
            (17, 4, 17, Shown::Puts),
            (17, 3, 17, Shown::All),
            (18, 3, 19, Shown::All),
            // Counted when it may have been beyond the moment: the number says nothing.
            (18, 3, 21, Shown::Puts),
        ] {
            assert_eq!(shown(held, before, objects, after), expected, "{before} {objects} {after}");
        }
        let empty = Held { revision: 20, newest: 0, objects: 0 };
        assert_eq!(shown(empty, 1, 0, 1), Shown::All);
        assert_eq!(shown(empty, 1, 1, 1), Shown::Puts);
    }
}
