//! How long to wait before a container is started again.
//!
//! Kubernetes' CrashLoopBackOff: the first restart is immediate, the next waits 10 s after the
//! exit, then 20 s, 40 s, … up to 300 s; a container that ran for ten minutes is forgiven, and
//! begins again with an immediate restart. The *streak*, the number of restarts since then, is
//! kept in a label of the container, so it outlives the kubelet.
//!
//! | streak of the exited container | waits | streak of the next |
//! | --- | --- | --- |
//! | any, it ran for 10 min | 0 s | 1 |
//! | 0 (the pod's first container) | 0 s | 1 |
//! | 1 | 10 s | 2 |
//! | 2 | 20 s | 3 |
//! | 6 and more | 300 s | one more |
//!
//! Attempts that leave no container (an image that cannot be pulled, a name that is taken) wait
//! 10 s after the first failure and double likewise; their count is kept in an annotation of the
//! pod.

use jiff::{SignedDuration, Timestamp};

use crate::runtime::Exit;

/// The shortest wait.
pub(crate) const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait.
pub(crate) const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long starts with a clean slate.
pub(crate) const FORGIVEN_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// When an exited container is due to be replaced, and the streak of its replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restart {
    /// How long the pod waits, counted from the exit.
    pub(crate) delay: SignedDuration,
    /// When that is over.
    pub(crate) due: Timestamp,
    /// The crash streak that the next container is labelled with.
    pub(crate) next_streak: u32,
}

/// The restart that follows `exit` of a container with that streak.
pub(crate) fn restart(streak: u32, exit: &Exit) -> Restart {
    let ran =
        exit.started_at.map_or(SignedDuration::ZERO, |at| exit.finished_at.duration_since(at));
    let (delay, next_streak) = if streak == 0 || ran >= FORGIVEN_AFTER {
        (SignedDuration::ZERO, 1)
    } else {
        (after_failures(streak), streak.saturating_add(1))
    };
    Restart { delay, due: later(exit.finished_at, delay), next_streak }
}

/// The wait after that many failures in a row: 10 s, 20 s, … 300 s.
pub(crate) fn after_failures(count: u32) -> SignedDuration {
    // 10 s doubled five times is past the longest wait, so the shift cannot overflow.
    let doubled = INITIAL * (1 << count.saturating_sub(1).min(5));
    doubled.min(LONGEST)
}

/// `at` plus `wait`, held at the end of representable time.
pub(crate) fn later(at: Timestamp, wait: SignedDuration) -> Timestamp {
    at.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes() {
        let delays: Vec<i64> = (1..=8).map(|n| after_failures(n).as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(after_failures(u32::MAX).as_secs(), 300);
    }

    #[test]
    fn the_streak_decides_and_ten_minutes_forgive() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let exit = |ran: i64| Exit {
            code: 1,
            started_at: Some(at(1000)),
            finished_at: at(1000 + ran),
            reason: "Error",
            message: None,
        };
        // streak, seconds run -> delay, next streak
        let table = [
            (0, 1, 0, 1),
            (0, 700, 0, 1),
            (1, 1, 10, 2),
            (1, 599, 10, 2),
            (1, 600, 0, 1),
            (3, 5, 40, 4),
            (9, 5, 300, 10),
            (9, 3600, 0, 1),
        ];
        for (streak, ran, delay, next_streak) in table {
            let got = restart(streak, &exit(ran));
            assert_eq!(
                (got.delay.as_secs(), got.next_streak),
                (delay, next_streak),
                "{streak} {ran}"
            );
            assert_eq!(got.due, at(1000 + ran + delay));
        }
        let never_ran = Exit { started_at: None, ..exit(5) };
        assert_eq!(restart(2, &never_ran).delay.as_secs(), 20);
    }
}
