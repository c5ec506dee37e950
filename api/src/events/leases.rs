//! The leases that events expire through: one for all that are written within a window, not one
//! for each.
//!
//! A lease lives for the events' time and the window, so that what is written at its end still
//! lasts as long as promised; what is written at its beginning lasts a window longer. It is never
//! renewed. Kubernetes' API server does the same, with the same limits.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lease is used for new events, at most, and which part of their time to live.
const WINDOW_MAX: Duration = Duration::from_secs(60);
const WINDOWS_PER_TTL: u32 = 10;
/// How many writes one lease takes: its end deletes its keys in one step of the store.
const WRITES_MAX: usize = 1000;

/// Decides when another lease is needed.
pub(super) struct EventLeases {
    ttl: Duration,
    current: Option<Current>,
}

struct Current {
    id: i64,
    granted_at: Instant,
    writes: usize,
}

impl EventLeases {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, current: None }
    }

    fn window(&self) -> Duration {
        (self.ttl / WINDOWS_PER_TTL).min(WINDOW_MAX)
    }

    /// The seconds that a new lease is to live.
    pub(super) fn ttl_seconds(&self) -> i64 {
        let seconds = (self.ttl + self.window()).as_secs_f64().ceil();
        // Saturates, and a store bounds it further.
        seconds as i64
    }

    /// The lease for so many writes; none when a new one is needed.
    pub(super) fn usable(&self, writes: usize, now: Instant) -> Option<i64> {
        let current = self.current.as_ref()?;
        let in_time = now.duration_since(current.granted_at) < self.window();
        (in_time && current.writes + writes <= WRITES_MAX).then_some(current.id)
    }

    /// Takes a lease into use that was asked for at that moment.
    pub(super) fn granted(&mut self, id: i64, asked_at: Instant) {
        self.current = Some(Current { id, granted_at: asked_at, writes: 0 });
    }

    /// So many events were written with the present lease.
    pub(super) fn written(&mut self, writes: usize) {
        if let Some(current) = &mut self.current {
            current.writes += writes;
        }
    }

    /// The present lease is not there any more.
    pub(super) fn lost(&mut self) {
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_a_window_share_a_lease() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut leases = EventLeases::new(Duration::from_secs(3600));
        assert_eq!(leases.ttl_seconds(), 3660);
        assert_eq!(leases.usable(1, start), None);
        leases.granted(7, start);
        assert_eq!(leases.usable(100, later(59)), Some(7));
        assert_eq!(leases.usable(1, later(60)), None);
        leases.written(990);
        assert_eq!(leases.usable(10, later(1)), Some(7));
        assert_eq!(leases.usable(11, later(1)), None);
        leases.granted(8, later(1));
        assert_eq!(leases.usable(11, later(2)), Some(8));
        leases.lost();
        assert_eq!(leases.usable(1, later(2)), None);
    }

    #[test]
    fn a_short_life_has_short_windows() {
        let leases = EventLeases::new(Duration::from_secs(5));
        assert_eq!(leases.window(), Duration::from_millis(500));
        assert_eq!(leases.ttl_seconds(), 6);
    }
}
