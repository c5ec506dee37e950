//! What a candidate reads in the lease, and what it writes there: Kubernetes' rules.
//!
//! | the lease | a candidate |
//! | --- | --- |
//! | is not there, or names no holder | takes it |
//! | names the candidate | takes it: it was this one's before it was started again |
//! | was seen to change less than its duration ago | waits for the rest of it |
//! | was not seen to change for so long | takes it |
//!
//! Times in the lease are for people. How long ago it changed is told by the candidate's own clock,
//! from when it first saw the version that is there: no two clocks need agree.

use std::time::Duration;

use api::Object;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// What to do about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Take it.
    Take,
    /// Look again after this time, or when it changes.
    Wait(Duration),
}

/// The version of a lease that was seen last.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) lease: Option<Lease>,
    since: Instant,
}

impl Seen {
    pub(super) fn new(lease: Option<Lease>, now: Instant) -> Self {
        Self { lease, since: now }
    }

    /// Takes down what the lease is now. One that has not changed is as old as before.
    pub(super) fn again(self, lease: Option<Lease>, now: Instant) -> Self {
        let revision = |lease: &Option<Lease>| lease.as_ref().map(Object::revision);
        let same = revision(&self.lease) == revision(&lease);
        Self { lease, since: if same { self.since } else { now } }
    }

    /// Decides for a candidate. A lease that does not say how long it lasts does so for `default`.
    pub(super) fn next(&self, identity: &str, default: Duration, now: Instant) -> Next {
        let Some(holder) = self.lease.as_ref().and_then(holder) else { return Next::Take };
        if holder == identity {
            return Next::Take;
        }
        let spec = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let duration = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(default, Duration::from_secs);
        match duration.checked_sub(now.saturating_duration_since(self.since)) {
            None | Some(Duration::ZERO) => Next::Take,
            Some(left) => Next::Wait(left),
        }
    }
}

/// Who holds a lease.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    (!holder.is_empty()).then_some(holder)
}

/// A lease as the candidate takes it.
pub(super) fn taken(
    before: Option<&Lease>,
    identity: &str,
    duration: Duration,
    now: Timestamp,
) -> LeaseSpec {
    let changes = before
        .and_then(|lease| lease.spec.as_ref())
        .map(|spec| spec.lease_transitions.unwrap_or(0));
    let same = before.and_then(holder) == Some(identity);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(changes.map_or(0, |count| count + i32::from(!same))),
        ..LeaseSpec::default()
    }
}

/// Renews a lease.
pub(super) fn renew(lease: &mut Lease, now: Timestamp) {
    lease.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
}

/// Lets go of a lease, so that anybody may take it at once.
pub(super) fn release(lease: &mut Lease, now: Timestamp) {
    renew(lease, now);
    lease.spec.get_or_insert_default().holder_identity = None;
}

#[cfg(test)]
mod tests {
    use api::ObjectKey;

    use super::*;
    use crate::fixture::at;

    const DEFAULT: Duration = Duration::from_secs(4);

    fn lease(revision: i64, holder: Option<&str>, seconds: Option<i32>) -> Option<Lease> {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(revision.to_string());
        let holder_identity = holder.map(str::to_owned);
        let spec = LeaseSpec { holder_identity, ..LeaseSpec::default() };
        lease.spec = Some(LeaseSpec { lease_duration_seconds: seconds, ..spec });
        Some(lease)
    }

    #[test]
    fn who_may_take_a_lease_and_when() {
        let start = Instant::now();
        let wait = |millis| Next::Wait(Duration::from_millis(millis));
        for (lease, millis, expected) in [
            (None, 0, Next::Take),
            (lease(1, None, Some(2)), 0, Next::Take),
            (lease(1, Some(""), Some(2)), 0, Next::Take),
            (lease(1, Some("me"), Some(2)), 0, Next::Take),
            (lease(1, Some("other"), Some(2)), 0, wait(2000)),
            (lease(1, Some("other"), Some(2)), 1500, wait(500)),
            (lease(1, Some("other"), Some(2)), 2000, Next::Take),
            (lease(1, Some("other"), Some(2)), 9000, Next::Take),
            (lease(1, Some("other"), None), 1000, wait(3000)),
            (lease(1, Some("other"), Some(-2)), 1000, wait(3000)),
        ] {
            let now = start + Duration::from_millis(millis);
            let seen = Seen::new(lease, start);
            assert_eq!(seen.next("me", DEFAULT, now), expected, "{millis} {seen:?}");
        }
    }

    #[test]
    fn a_lease_is_as_old_as_its_newest_version() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let seen = Seen::new(lease(1, Some("other"), Some(4)), start);
        let seen = seen.again(lease(1, Some("other"), Some(4)), later(3));
        assert_eq!(seen.next("me", DEFAULT, later(3)), Next::Wait(Duration::from_secs(1)));
        let seen = seen.again(lease(2, Some("other"), Some(4)), later(3));
        assert_eq!(seen.next("me", DEFAULT, later(6)), Next::Wait(Duration::from_secs(1)));
        let seen = seen.again(None, later(6));
        assert_eq!(seen.next("me", DEFAULT, later(6)), Next::Take);
    }

    #[test]
    fn what_is_written() {
        let key = ObjectKey::namespaced("kube-system", "work");
        let write = |before: Option<&Lease>, identity: &str| {
            let spec = taken(before, identity, DEFAULT, at(100));
            let mut lease = Lease { spec: Some(spec), ..Lease::default() };
            lease.metadata.name = Some(key.name.to_string());
            lease
        };
        let count = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        let first = write(None, "a");
        assert_eq!((holder(&first), count(&first)), (Some("a"), Some(0)));
        assert_eq!(first.spec.as_ref().unwrap().lease_duration_seconds, Some(4));
        let again = write(Some(&first), "a");
        assert_eq!(count(&again), Some(0), "it changed no hands");
        let second = write(Some(&again), "b");
        assert_eq!((holder(&second), count(&second)), (Some("b"), Some(1)));

        let mut renewed = second;
        renew(&mut renewed, at(110));
        let spec = renewed.spec.as_ref().unwrap();
        assert_eq!(spec.acquire_time, Some(MicroTime(at(100))));
        assert_eq!(spec.renew_time, Some(MicroTime(at(110))));
        release(&mut renewed, at(120));
        assert_eq!((holder(&renewed), count(&renewed)), (None, Some(1)));
        assert_eq!(count(&write(Some(&renewed), "b")), Some(2));
    }
}
