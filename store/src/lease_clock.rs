//! When leases expire. Which leases there are is replicated state; how much time each has left is
//! known to the leader alone, by its own clock.
//!
//! A new leader gives every lease its full time again (as etcd's lessor does on promotion), so a
//! lease may live longer than granted, never shorter. An expired lease is only *proposed* for
//! revocation: a leader that has lost its quorum revokes nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Revocations that one look at the clock brings up, so that a crowd of leases that expire at once
/// does not hold up everything else.
const EXPIRED_AT_ONCE: usize = 500;
/// After a revocation was proposed, how long until it is proposed again if the lease still stands.
const PROPOSE_AGAIN: Duration = Duration::from_secs(3);

/// The time that every lease has left, while this member leads.
#[derive(Default)]
pub(crate) struct LeaseClock {
    leading: Mutex<Option<Deadlines>>,
}

#[derive(Default)]
struct Deadlines {
    by_id: HashMap<i64, Instant>,
    /// Earliest first; an entry that disagrees with `by_id` is out of date.
    queue: BinaryHeap<Reverse<(Instant, i64)>>,
}

impl Deadlines {
    fn set(&mut self, id: i64, deadline: Instant) {
        self.by_id.insert(id, deadline);
        self.queue.push(Reverse((deadline, id)));
    }
}

impl LeaseClock {
    /// This member begins to lead: `leases` (id and granted seconds) have their full time from
    /// `now` on.
    pub(crate) fn lead(&self, leases: impl IntoIterator<Item = (i64, i64)>, now: Instant) {
        let mut deadlines = Deadlines::default();
        for (id, ttl_seconds) in leases {
            deadlines.set(id, now + seconds(ttl_seconds));
        }
        *self.leading.lock() = Some(deadlines);
    }

    /// This member leads no longer.
    pub(crate) fn follow(&self) {
        *self.leading.lock() = None;
    }

    /// A lease was granted, or renewed, with `ttl_seconds` from `now` on. False when this member
    /// does not lead.
    pub(crate) fn renew(&self, id: i64, ttl_seconds: i64, now: Instant) -> bool {
        match &mut *self.leading.lock() {
            Some(deadlines) => {
                deadlines.set(id, now + seconds(ttl_seconds));
                true
            }
            None => false,
        }
    }

    /// A lease is gone.
    pub(crate) fn revoked(&self, id: i64) {
        if let Some(deadlines) = &mut *self.leading.lock() {
            deadlines.by_id.remove(&id);
        }
    }

    /// What is left of a lease; `None` when this member does not lead or knows no such lease.
    pub(crate) fn remaining(&self, id: i64, now: Instant) -> Option<Duration> {
        let leading = self.leading.lock();
        let deadline = leading.as_ref()?.by_id.get(&id)?;
        Some(deadline.saturating_duration_since(now))
    }

    /// The leases whose time is over and whose revocation should be proposed now.
    pub(crate) fn expired(&self, now: Instant) -> Vec<i64> {
        let mut leading = self.leading.lock();
        let Some(deadlines) = &mut *leading else { return Vec::new() };
        let mut expired = Vec::new();
        while let Some(Reverse((deadline, id))) = deadlines.queue.peek().copied() {
            if deadline > now || expired.len() == EXPIRED_AT_ONCE {
                break;
            }
            deadlines.queue.pop();
            if deadlines.by_id.get(&id) == Some(&deadline) {
                expired.push(id);
                // It stays expired for whoever asks, and comes up again if the proposal is lost.
                let again = now + PROPOSE_AGAIN;
                deadlines.queue.push(Reverse((again, id)));
                deadlines.by_id.insert(id, again);
            }
        }
        expired
    }
}

fn seconds(ttl_seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn a_follower_expires_nothing() {
        let (clock, t0) = (LeaseClock::default(), Instant::now());
        clock.lead([(7, 2)], t0);
        clock.follow();
        assert!(clock.expired(at(t0, 100)).is_empty());
        assert!(!clock.renew(7, 2, t0));
    }

    #[test]
    fn a_lease_expires_once_its_time_is_over_and_is_proposed_again_until_it_is_gone() {
        let (clock, t0) = (LeaseClock::default(), Instant::now());
        clock.lead([(7, 2), (8, 60)], t0);
        assert!(clock.expired(at(t0, 1)).is_empty());
        assert_eq!(clock.expired(at(t0, 2)), [7]);
        assert!(clock.expired(at(t0, 3)).is_empty());
        assert_eq!(clock.expired(at(t0, 5)), [7]);
        clock.revoked(7);
        assert!(clock.expired(at(t0, 20)).is_empty());
    }

    #[test]
    fn a_renewed_lease_gets_its_full_time() {
        let (clock, t0) = (LeaseClock::default(), Instant::now());
        clock.lead([(7, 10)], t0);
        assert!(clock.renew(7, 10, at(t0, 9)));
        assert!(clock.expired(at(t0, 12)).is_empty());
        assert_eq!(clock.remaining(7, at(t0, 12)), Some(Duration::from_secs(7)));
        assert_eq!(clock.expired(at(t0, 19)), [7]);
    }

    #[test]
    fn a_crowd_of_expired_leases_comes_in_parts() {
        let (clock, t0) = (LeaseClock::default(), Instant::now());
        clock.lead((0..1200).map(|id| (id, 1)), t0);
        let parts: Vec<usize> = (0..4).map(|_| clock.expired(at(t0, 1)).len()).collect();
        assert_eq!(parts, [500, 500, 200, 0]);
    }
}
