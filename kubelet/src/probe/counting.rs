//! From the answers of probes to what is made of them: counting, and nothing else.
//!
//! Kubernetes' rules (its `prober/worker.go`): an answer counts once it has come so often in a row
//! as its threshold says; until then what held before goes on to hold.
//!
//! Worked example, a readiness probe with `failureThreshold: 2` and `successThreshold: 1`:
//!
//! | answer | in a row | ready |
//! | --- | --- | --- |
//! | failure | 1 | not known: as before the first answer |
//! | success | 1 | yes |
//! | failure | 1 | yes |
//! | failure | 2 | no |

use super::ProbeResults;
use super::settings::{Kind, Settings};

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Success,
    Failure,
}

/// Counts the answers of one probe of one container.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<Verdict>,
    in_a_row: u32,
}

impl Counter {
    pub(super) fn new(kind: Kind, settings: &Settings) -> Self {
        Self {
            // One success is enough to be alive, and to have started.
            success_threshold: match kind {
                Kind::Readiness => settings.success_threshold,
                Kind::Startup | Kind::Liveness => 1,
            },
            failure_threshold: settings.failure_threshold,
            last: None,
            in_a_row: 0,
        }
    }

    /// Takes an answer; gives it back if it has come often enough to count.
    pub(super) fn count(&mut self, verdict: Verdict) -> Option<Verdict> {
        if self.last == Some(verdict) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            (self.last, self.in_a_row) = (Some(verdict), 1);
        }
        let threshold = match verdict {
            Verdict::Success => self.success_threshold,
            Verdict::Failure => self.failure_threshold,
        };
        (self.in_a_row >= threshold).then_some(verdict)
    }
}

/// What an answer that counts makes of the results.
pub(super) fn apply(results: &ProbeResults, kind: Kind, verdict: Verdict) -> ProbeResults {
    let success = verdict == Verdict::Success;
    match kind {
        Kind::Startup => ProbeResults {
            started: success.then_some(true).or(results.started),
            must_restart: results.must_restart || !success,
            ..*results
        },
        Kind::Liveness => {
            ProbeResults { must_restart: results.must_restart || !success, ..*results }
        }
        Kind::Readiness => ProbeResults { ready: Some(success), ..*results },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` and `-` for answers; the results' letters are `.` for none that counts.
    fn counted(kind: Kind, success: u32, failure: u32, answers: &str) -> String {
        let probe = k8s_openapi::api::core::v1::Probe {
            success_threshold: Some(success.try_into().unwrap()),
            failure_threshold: Some(failure.try_into().unwrap()),
            ..Default::default()
        };
        let mut counter = Counter::new(kind, &Settings::of(&probe));
        let verdict = |answer| if answer == '+' { Verdict::Success } else { Verdict::Failure };
        let counted = answers.chars().map(|answer| match counter.count(verdict(answer)) {
            None => '.',
            Some(Verdict::Success) => '+',
            Some(Verdict::Failure) => '-',
        });
        counted.collect()
    }

    #[test]
    fn answers_count_once_there_are_enough_in_a_row() {
        let table = [
            (Kind::Readiness, 1, 3, "+--+---+", "+..+..-+"),
            (Kind::Readiness, 1, 2, "-+--", ".+.-"),
            (Kind::Readiness, 3, 1, "-++-+++++", "-..-..+++"),
            (Kind::Readiness, 1, 1, "+-+-", "+-+-"),
            // A success threshold is readiness' alone.
            (Kind::Liveness, 3, 3, "+---", "+..-"),
            (Kind::Startup, 3, 3, "--+", "..+"),
            (Kind::Startup, 1, 2, "----", ".---"),
        ];
        for (kind, success, failure, answers, expected) in table {
            let case = format!("{kind:?} {success} {failure} {answers}");
            assert_eq!(counted(kind, success, failure, answers), expected, "{case}");
        }
    }

    #[test]
    fn what_counts_is_made_of_it() {
        let none = ProbeResults::default();
        let ready = ProbeResults { ready: Some(true), ..none };
        let unready = ProbeResults { ready: Some(false), ..none };
        let started = ProbeResults { started: Some(true), ..none };
        let failed = ProbeResults { must_restart: true, ..none };
        let (success, failure) = (Verdict::Success, Verdict::Failure);
        let table = [
            (none, Kind::Readiness, success, ready),
            (ready, Kind::Readiness, failure, unready),
            (unready, Kind::Readiness, success, ready),
            (none, Kind::Startup, success, started),
            (none, Kind::Startup, failure, failed),
            (started, Kind::Liveness, success, started),
            (ready, Kind::Liveness, failure, ProbeResults { must_restart: true, ..ready }),
            // What is to be ended stays so.
            (failed, Kind::Liveness, success, failed),
        ];
        for (before, kind, verdict, after) in table {
            assert_eq!(apply(&before, kind, verdict), after, "{before:?} {kind:?} {verdict:?}");
        }
    }
}
