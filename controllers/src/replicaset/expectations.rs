//! What has been done for each ReplicaSet and cannot be seen in the cache yet.
//!
//! The cache lags behind the store. A controller that has created four pods and looks at a cache
//! that shows none of them must not create another four. So a set is left alone until it is
//! *settled*: the cache has reached the revision of the last write for it. Should that not happen
//! within [`TIMEOUT`], the expectation is given up, as something else must have gone wrong and
//! waiting longer would not mend it.
//!
//! ```text
//! create two pods          -> written at revisions 7 and 8
//! the cache has reached 6  -> waiting
//! the cache has reached 7  -> waiting: one of the two is not in it yet
//! the cache has reached 8  -> settled
//! ```
//!
//! A write whose answer was lost is *unresolved*: it may have been carried out, or still be. It is
//! written again before anything else is decided. As the name of a pod to be created is chosen
//! before the first attempt, and a pod to be deleted is told by its uid, doing it again does
//! nothing more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

/// For how long a set is left alone at most, as in Kubernetes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// A write for a set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    /// Of this new pod.
    Create(Arc<Pod>),
    /// The deletion of this pod.
    Delete(Arc<Pod>),
}

/// The expectations for all sets, by the set's uid.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    sets: HashMap<String, Outstanding>,
}

#[derive(Debug)]
struct Outstanding {
    since: Instant,
    /// Of the last write that was answered.
    revision: i64,
    unresolved: Vec<Write>,
}

/// Whether a set may be scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All that was done can be seen.
    Settled,
    /// Not all; it will be seen within this time or be given up.
    Waiting(Duration),
    /// Not all could be seen in time, which was given up just now.
    GivenUp,
}

impl Expectations {
    /// A pod of the set was created or deleted at that revision.
    pub(crate) fn written(&mut self, set: &str, revision: i64, now: Instant) {
        let outstanding = self.outstanding(set, now);
        outstanding.revision = outstanding.revision.max(revision);
    }

    /// Whether a write was carried out is not known.
    pub(crate) fn unresolved(&mut self, set: &str, write: Write, now: Instant) {
        self.outstanding(set, now).unresolved.push(write);
    }

    /// Hands out the writes that are to be done again. They are forgotten here.
    pub(crate) fn take_unresolved(&mut self, set: &str) -> Vec<Write> {
        self.sets.get_mut(set).map(|all| std::mem::take(&mut all.unresolved)).unwrap_or_default()
    }

    /// Whether a cache that has reached `revision` shows all that was done for the set.
    pub(crate) fn standing(&mut self, set: &str, revision: i64, now: Instant) -> Standing {
        let Some(outstanding) = self.sets.get(set) else { return Standing::Settled };
        let left = TIMEOUT.saturating_sub(now.saturating_duration_since(outstanding.since));
        let standing = if revision >= outstanding.revision && outstanding.unresolved.is_empty() {
            Standing::Settled
        } else if left.is_zero() {
            Standing::GivenUp
        } else {
            return Standing::Waiting(left);
        };
        self.sets.remove(set);
        standing
    }

    /// Drops what was expected for a set that is gone.
    pub(crate) fn forget(&mut self, set: &str) {
        self.sets.remove(set);
    }

    fn outstanding(&mut self, set: &str, now: Instant) -> &mut Outstanding {
        let outstanding = self.sets.entry(set.to_owned()).or_insert_with(|| Outstanding {
            since: now,
            revision: 0,
            unresolved: Vec::new(),
        });
        outstanding.since = now;
        outstanding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    const LATER: Duration = Duration::from_secs(10);

    #[test]
    fn a_set_is_settled_once_the_cache_has_caught_up() {
        let start = Instant::now();
        let mut expectations = Expectations::default();
        assert_eq!(expectations.standing("rs", 0, start), Standing::Settled);

        expectations.written("rs", 7, start);
        expectations.written("rs", 5, start);
        let waiting = Standing::Waiting(TIMEOUT - LATER);
        assert_eq!(expectations.standing("rs", 6, start + LATER), waiting);
        assert_eq!(expectations.standing("other", 6, start + LATER), Standing::Settled);
        assert_eq!(expectations.standing("rs", 7, start + LATER), Standing::Settled);
    }

    #[test]
    fn waiting_ends_even_if_nothing_is_ever_seen() {
        let start = Instant::now();
        let mut expectations = Expectations::default();
        expectations.written("rs", 7, start);
        expectations.written("rs", 9, start + LATER);
        let end = start + LATER + TIMEOUT;
        let second = Duration::from_secs(1);
        assert_eq!(expectations.standing("rs", 6, end - second), Standing::Waiting(second));
        assert_eq!(expectations.standing("rs", 6, end), Standing::GivenUp);
        assert_eq!(expectations.standing("rs", 6, end), Standing::Settled);
    }

    #[test]
    fn an_unresolved_write_keeps_the_set_waiting_until_it_is_taken() {
        let start = Instant::now();
        let mut expectations = Expectations::default();
        let write = Write::Create(pod("a").build());
        expectations.unresolved("rs", write.clone(), start);
        assert_eq!(expectations.standing("rs", 99, start), Standing::Waiting(TIMEOUT));
        assert_eq!(expectations.take_unresolved("rs"), [write]);
        assert_eq!(expectations.take_unresolved("rs"), []);
        assert_eq!(expectations.standing("rs", 99, start), Standing::Settled);

        expectations.written("rs", 100, start);
        expectations.forget("rs");
        assert_eq!(expectations.standing("rs", 99, start), Standing::Settled);
    }
}
