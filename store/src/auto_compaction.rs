//! Compaction by itself: etcd's `--auto-compaction-mode` and `--auto-compaction-retention`.
//!
//! * `periodic`: what is older than the retention goes. The revision is noted every tenth of the
//!   period (an hour's, if that is less); once a full period has gone by, the store is compacted at
//!   what was current a period ago, and again after each period (after each hour, if that is less).
//! * `revision`: all but the newest so many revisions go, every five minutes.
//!
//! Every member notes revisions, the leader alone proposes: a new leader goes on where the old one
//! was. When is decided by [`Schedule`], which reads no clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use store_proto::etcdserverpb::CompactionRequest;
use store_proto::peer::command::Op;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::RequestError;
use crate::member::Member;

const HOUR: Duration = Duration::from_secs(3600);
/// How often a period's revisions are noted; and a failed compaction is tried again as often.
const LOOKS_PER_PERIOD: u32 = 10;
/// For retentions that are absurdly short.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// etcd's, for the mode `revision`.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How `--auto-compaction-retention` is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AutoCompactionMode {
    /// A time, in hours unless it has a unit.
    Periodic,
    /// A number of revisions.
    Revision,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    /// What happened in this time.
    Period(Duration),
    /// So many of the newest revisions.
    Revisions(i64),
}

impl Retention {
    /// etcd's flags: 0 is off (`Ok(None)`), a bare number counts hours or revisions, and a duration
    /// is one of Go's, such as `1h30m`.
    pub(crate) fn parse(
        mode: AutoCompactionMode,
        text: &str,
    ) -> Result<Option<Self>, &'static str> {
        let number = text.parse::<u32>().ok();
        match mode {
            AutoCompactionMode::Revision => {
                let kept = number.ok_or("a number of revisions is expected, such as 1000")?;
                Ok((kept > 0).then_some(Self::Revisions(kept.into())))
            }
            AutoCompactionMode::Periodic => {
                let period = match number {
                    Some(hours) => HOUR * hours,
                    None => go_duration(text)
                        .ok_or("a time is expected, such as 5m or 1h30m, or a number of hours")?,
                };
                Ok((!period.is_zero()).then_some(Self::Period(period)))
            }
        }
    }
}

/// A duration as Go writes it, without a sign: numbers, each with a unit.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// When to compact, and where.
#[derive(Debug)]
pub(crate) struct Schedule {
    retention: Retention,
    /// The revisions of the last looks, oldest first.
    noted: VecDeque<i64>,
    /// When the last compaction was, or the first look.
    last: Option<Instant>,
    /// Whether a first full period has gone by.
    is_past_first: bool,
    last_revision: i64,
}

impl Schedule {
    pub(crate) fn new(retention: Retention) -> Self {
        let noted = VecDeque::new();
        Self { retention, noted, last: None, is_past_first: false, last_revision: 0 }
    }

    /// How often [`Self::look`] is to be called.
    pub(crate) fn interval(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => (period.min(HOUR) / LOOKS_PER_PERIOD).max(MIN_INTERVAL),
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// The revision to compact at, if it is time. A leader then does so and tells by
    /// [`Self::compacted`]; who does not lead notes the revision only.
    pub(crate) fn look(&mut self, now: Instant, revision: i64, leads: bool) -> Option<i64> {
        match self.retention {
            Retention::Revisions(kept) => {
                let target = revision - kept;
                (leads && target > 0 && target != self.last_revision).then_some(target)
            }
            Retention::Period(period) => {
                let last = *self.last.get_or_insert(now);
                let wait = if self.is_past_first { period.min(HOUR) } else { period };
                let due = leads && now.duration_since(last) >= wait;
                // The oldest of the notes is the revision of a period ago.
                let target = self.noted.front().copied();
                self.noted.push_back(revision);
                let looks = period.as_nanos() / self.interval().as_nanos();
                while self.noted.len() as u128 > looks.max(1) {
                    self.noted.pop_front();
                }
                if !due {
                    return None;
                }
                self.is_past_first = true;
                target
            }
        }
    }

    /// It was compacted at `revision`, by this member or before.
    pub(crate) fn compacted(&mut self, now: Instant, revision: i64) {
        self.last = Some(now);
        self.last_revision = revision;
    }
}

/// Compacts the store for as long as this member leads. Never ends.
pub(crate) async fn run(member: Arc<Member>, retention: Retention) {
    let mut schedule = Schedule::new(retention);
    let mut interval = tokio::time::interval(schedule.interval());
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let current = member.mvcc.current_revision();
        let Some(revision) = schedule.look(Instant::now(), current, member.is_leader()) else {
            continue;
        };
        let request = CompactionRequest { revision, physical: false };
        match member.propose(Op::Compaction(request)).await {
            Ok(_) => {
                tracing::info!(revision, "compacted the history");
                schedule.compacted(Instant::now(), revision);
            }
            // Nothing was written for a whole period, or somebody else has compacted.
            Err(RequestError::Compacted) => schedule.compacted(Instant::now(), revision),
            Err(error) => {
                tracing::warn!(%error, revision, "the history could not be compacted yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retentions_are_read_as_etcd_reads_them() {
        use AutoCompactionMode::{Periodic, Revision};
        let period = |seconds| Ok(Some(Retention::Period(Duration::from_secs_f64(seconds))));
        let cases = [
            (Periodic, "0", Ok(None)),
            (Periodic, "0s", Ok(None)),
            (Periodic, "2", period(7200.0)),
            (Periodic, "5m", period(300.0)),
            (Periodic, "1h30m", period(5400.0)),
            (Periodic, "1.5s", period(1.5)),
            (Periodic, "250ms", period(0.25)),
            (Revision, "0", Ok(None)),
            (Revision, "1000", Ok(Some(Retention::Revisions(1000)))),
        ];
        for (mode, text, expected) in cases {
            assert_eq!(Retention::parse(mode, text), expected, "{mode:?} {text}");
        }
        for (mode, text) in [
            (Periodic, ""),
            (Periodic, "-1"),
            (Periodic, "5 m"),
            (Periodic, "m"),
            (Periodic, "5y"),
            (Periodic, "1.2.3s"),
            (Revision, "5m"),
            (Revision, "-5"),
        ] {
            assert!(Retention::parse(mode, text).is_err(), "{mode:?} {text}");
        }
    }

    /// Looks once a minute, with one revision a minute; when it compacts and where.
    fn compactions(
        retention: Retention,
        minutes: u64,
        leads: impl Fn(u64) -> bool,
    ) -> Vec<(u64, i64)> {
        let start = Instant::now();
        let mut schedule = Schedule::new(retention);
        let step = schedule.interval();
        let mut seen = Vec::new();
        let looks = Duration::from_secs(60 * minutes).as_nanos() / step.as_nanos();
        for look in 0..=u32::try_from(looks).unwrap() {
            let (now, minute) = (start + step * look, (step * look).as_secs() / 60);
            if let Some(revision) = schedule.look(now, minute as i64 + 1, leads(minute)) {
                schedule.compacted(now, revision);
                seen.push((minute, revision));
            }
        }
        seen
    }

    #[test]
    fn what_is_older_than_the_period_goes_after_each_period() {
        let minutes = |count: u64| Retention::Period(Duration::from_secs(60 * count));
        assert_eq!(compactions(minutes(10), 35, |_| true), [(10, 1), (20, 11), (30, 21)]);
        // Above an hour: after the first period every hour.
        let two_hours = compactions(minutes(120), 300, |_| true);
        assert_eq!(two_hours, [(120, 1), (180, 61), (240, 121), (300, 181)]);
        // A new leader has noted the revisions as well.
        assert_eq!(compactions(minutes(10), 25, |minute| minute >= 13), [(13, 4), (23, 14)]);
        assert_eq!(compactions(minutes(10), 25, |_| false), []);
    }

    #[test]
    fn all_but_the_newest_revisions_go_every_five_minutes() {
        let seen = compactions(Retention::Revisions(7), 15, |_| true);
        assert_eq!(seen, [(10, 4), (15, 9)]);
    }
}
