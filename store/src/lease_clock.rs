//! When leases expire. Which leases there are is replicated state; how much time each has left is
//! known to the leader alone, by its own clock.
//!
//! A new leader gives every lease its full time again (as etcd's lessor does on promotion), so a
//! lease may live longer than granted, never shorter. An expired lease is only *proposed* for
//! revocation, in the term of the leader whose clock it was: one that has lost its quorum revokes
//! nothing, and what it proposed is not carried out by another. Once a lease has expired it is not
//! renewed any more, as its revocation may be under way.

use std::collections::{BTreeSet, HashMap};
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

struct Deadlines {
    term: u64,
    by_id: HashMap<i64, Lease>,
    /// When each lease is to be looked at, earliest first; one entry for each.
    queue: BTreeSet<(Instant, i64)>,
}

struct Lease {
    deadline: Instant,
    /// Its place in the queue. Renewing leaves it there: it moves when it is looked at.
    queued: Instant,
}

impl Deadlines {
    fn set(&mut self, id: i64, deadline: Instant) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.deadline = deadline;
        } else {
            self.by_id.insert(id, Lease { deadline, queued: deadline });
            self.queue.insert((deadline, id));
        }
    }
}

impl LeaseClock {
    /// This member begins to lead in `term`. The leases that there are follow with
    /// [`Self::granted_before`]; those granted from now on are heard of as they are applied.
    pub(crate) fn lead(&self, term: u64) {
        let deadlines = Deadlines { term, by_id: HashMap::new(), queue: BTreeSet::new() };
        *self.leading.lock() = Some(deadlines);
    }

    /// Leases (id and granted seconds) of before this member led: they have their full time from
    /// `now` on, unless they are known already.
    pub(crate) fn granted_before(
        &self,
        leases: impl IntoIterator<Item = (i64, i64)>,
        now: Instant,
    ) {
        if let Some(deadlines) = &mut *self.leading.lock() {
            for (id, ttl_seconds) in leases {
                if !deadlines.by_id.contains_key(&id) {
                    deadlines.set(id, now + seconds(ttl_seconds));
                }
            }
        }
    }

    /// This member leads no longer.
    pub(crate) fn follow(&self) {
        *self.leading.lock() = None;
    }

    /// A lease was granted with `ttl_seconds` from `now` on.
    pub(crate) fn granted(&self, id: i64, ttl_seconds: i64, now: Instant) {
        if let Some(deadlines) = &mut *self.leading.lock() {
            deadlines.set(id, now + seconds(ttl_seconds));
        }
    }

    /// Gives a lease `ttl_seconds` from `now` on. False when this member does not lead, does not
    /// know the lease, or has seen it expire.
    pub(crate) fn renew(&self, id: i64, ttl_seconds: i64, now: Instant) -> bool {
        let mut leading = self.leading.lock();
        let Some(lease) = leading.as_mut().and_then(|deadlines| deadlines.by_id.get_mut(&id))
        else {
            return false;
        };
        if lease.deadline <= now {
            return false;
        }
        lease.deadline = now + seconds(ttl_seconds);
        true
    }

    /// A lease is gone.
    pub(crate) fn revoked(&self, id: i64) {
        if let Some(deadlines) = &mut *self.leading.lock()
            && let Some(lease) = deadlines.by_id.remove(&id)
        {
            deadlines.queue.remove(&(lease.queued, id));
        }
    }

    /// What is left of a lease; `None` when this member does not lead or knows no such lease.
    pub(crate) fn remaining(&self, id: i64, now: Instant) -> Option<Duration> {
        let leading = self.leading.lock();
        let lease = leading.as_ref()?.by_id.get(&id)?;
        Some(lease.deadline.saturating_duration_since(now))
    }

    /// The leases whose time is over and whose revocation should be proposed now, and the term in
    /// which alone it may be. `None` when there are none.
    pub(crate) fn expired(&self, now: Instant) -> Option<(u64, Vec<i64>)> {
        let mut leading = self.leading.lock();
        let deadlines = leading.as_mut()?;
        let mut expired = Vec::new();
        while let Some((at, id)) = deadlines.queue.first().copied() {
            if at > now || expired.len() == EXPIRED_AT_ONCE {
                break;
            }
            deadlines.queue.remove(&(at, id));
            let Some(lease) = deadlines.by_id.get_mut(&id) else { continue };
            lease.queued = if lease.deadline > now {
                lease.deadline
            } else {
                expired.push(id);
                now + PROPOSE_AGAIN
            };
            deadlines.queue.insert((lease.queued, id));
        }
        (!expired.is_empty()).then_some((deadlines.term, expired))
    }
}

fn seconds(ttl_seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: u64 = 4;

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    fn leading(leases: impl IntoIterator<Item = (i64, i64)>) -> (LeaseClock, Instant) {
        let (clock, now) = (LeaseClock::default(), Instant::now());
        clock.lead(TERM);
        clock.granted_before(leases, now);
        (clock, now)
    }

    #[test]
    fn a_follower_expires_nothing() {
        let (clock, t0) = leading([(7, 2)]);
        clock.follow();
        assert_eq!(clock.expired(at(t0, 100)), None);
        assert!(!clock.renew(7, 2, t0));
    }

    #[test]
    fn a_lease_expires_once_its_time_is_over_and_is_proposed_again_until_it_is_gone() {
        let (clock, t0) = leading([(7, 2), (8, 60)]);
        assert_eq!(clock.expired(at(t0, 1)), None);
        assert_eq!(clock.expired(at(t0, 2)), Some((TERM, vec![7])));
        assert_eq!(clock.expired(at(t0, 3)), None);
        assert_eq!(clock.expired(at(t0, 5)), Some((TERM, vec![7])));
        clock.revoked(7);
        assert_eq!(clock.expired(at(t0, 20)), None);
    }

    #[test]
    fn a_renewed_lease_gets_its_full_time() {
        let (clock, t0) = leading([(7, 10)]);
        assert!(clock.renew(7, 10, at(t0, 9)));
        assert_eq!(clock.expired(at(t0, 12)), None);
        assert_eq!(clock.remaining(7, at(t0, 12)), Some(Duration::from_secs(7)));
        assert_eq!(clock.expired(at(t0, 19)), Some((TERM, vec![7])));
    }

    #[test]
    fn what_has_expired_is_renewed_no_more() {
        let (clock, t0) = leading([(7, 2)]);
        assert_eq!(clock.expired(at(t0, 2)), Some((TERM, vec![7])));
        assert!(!clock.renew(7, 2, at(t0, 2)));
        assert_eq!(clock.remaining(7, at(t0, 2)), Some(Duration::ZERO));
    }

    #[test]
    fn a_lease_that_was_granted_meanwhile_keeps_its_time() {
        let (clock, t0) = leading([]);
        clock.granted(7, 60, t0);
        clock.granted_before([(7, 2)], t0);
        assert_eq!(clock.expired(at(t0, 10)), None);
    }

    #[test]
    fn a_crowd_of_expired_leases_comes_in_parts() {
        let (clock, t0) = leading((0..1200).map(|id| (id, 1)));
        let count = || clock.expired(at(t0, 1)).map_or(0, |(_, ids)| ids.len());
        let parts: Vec<usize> = (0..4).map(|_| count()).collect();
        assert_eq!(parts, [500, 500, 200, 0]);
    }
}
