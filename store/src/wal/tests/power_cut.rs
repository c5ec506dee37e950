//! Whatever is written and whenever the power goes, what was acknowledged is there, and the log is
//! what it was after some record that was written.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::raft::types::{Entry, LogId, Vote};
use crate::wal::Recovered;
use crate::wal::memory::{Fault, MemoryDir};
use crate::wal::record::Record;

use super::{Log, content, entry, log_id};

/// Small enough for every few records to begin a new one.
const SEGMENT_BYTES: u32 = 600;

/// What is done to a log.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append {
        value_bytes: usize,
    },
    Vote,
    Commit,
    /// Removes so many entries from the end.
    Truncate {
        entries: u64,
    },
    /// Purges so many entries from the beginning, or goes beyond the end.
    Purge {
        entries: u64,
    },
    Checkpoint,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..400usize).prop_map(|value_bytes| Op::Append { value_bytes }),
        1 => Just(Op::Vote),
        2 => Just(Op::Commit),
        1 => (0..6u64).prop_map(|entries| Op::Truncate { entries }),
        1 => (1..12u64).prop_map(|entries| Op::Purge { entries }),
        1 => Just(Op::Checkpoint),
    ]
}

/// A time that the log is open.
#[derive(Clone, Debug)]
struct Run {
    batches: Vec<Vec<Op>>,
    /// Whether it is closed at its end, if it comes to that.
    close: bool,
    /// How many file operations succeed.
    operations: u64,
    /// Whether the power is cut, and how much of what was not synced survives; else the process is
    /// killed.
    cut: Option<(u64, f64)>,
}

fn run() -> impl Strategy<Value = Run> {
    let cut = proptest::option::weighted(
        0.8,
        (any::<u64>(), prop_oneof![Just(0.0), Just(0.5), Just(0.95), Just(1.0)]),
    );
    (vec(vec(op(), 1..6), 0..12), any::<bool>(), 0..80u64, cut)
        .prop_map(|(batches, close, operations, cut)| Run { batches, close, operations, cut })
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    checkpoint: Option<LogId>,
    last: Option<LogId>,
    entries: BTreeMap<u64, Bytes>,
    term: u64,
}

impl Model {
    /// Does what the returned record says, if there is anything to do.
    pub(crate) fn carry_out(&mut self, op: &Op) -> Option<Record> {
        let next = self.last.map_or(0, |last| last.index() + 1);
        Some(match op {
            Op::Append { value_bytes } => {
                let entry = entry(self.term, next, *value_bytes);
                self.entries.insert(next, content(&entry).1);
                self.last = Some(entry.log_id);
                Record::Entry(entry)
            }
            Op::Vote => {
                self.term += 1;
                self.vote = Some(Vote::new(self.term, 1));
                Record::Vote(Vote::new(self.term, 1))
            }
            Op::Commit => {
                self.committed = self.last;
                Record::Committed(self.last)
            }
            Op::Truncate { entries } => {
                let gone: Vec<u64> =
                    self.entries.keys().rev().take(*entries as usize).copied().collect();
                let from = *gone.last()?;
                self.entries.retain(|index, _| *index < from);
                self.term += 1;
                self.last =
                    if self.entries.is_empty() { self.purged } else { Some(log_id(0, from - 1)) };
                Record::TruncateAfter(self.last)
            }
            Op::Purge { entries } => {
                let first = self.entries.keys().next().copied().unwrap_or(next);
                let upto = log_id(0, first + entries - 1);
                self.entries.retain(|index, _| *index > upto.index());
                self.purged = Some(upto);
                if self.entries.is_empty() {
                    self.last = Some(upto);
                }
                Record::PurgeUpTo(upto)
            }
            Op::Checkpoint => {
                self.checkpoint = Some(self.last?);
                Record::Checkpoint(self.last?)
            }
        })
    }

    /// Whether a log that was opened says the same. Terms of ids are not compared: the model does
    /// not keep them for each entry.
    pub(crate) fn is(&self, recovered: &Recovered, entries: &[Entry]) -> bool {
        let index = |id: Option<LogId>| id.map(|id| id.index());
        let entries: BTreeMap<u64, Bytes> =
            entries.iter().map(|entry| (entry.log_id.index(), content(entry).1)).collect();
        recovered.vote == self.vote
            && index(recovered.committed) == index(self.committed)
            && index(recovered.purged) == index(self.purged)
            && index(recovered.checkpoint) == index(self.checkpoint)
            && index(recovered.last) == index(self.last)
            && recovered.first_index == self.entries.keys().next().copied()
            && entries == self.entries
    }
}

/// What happens to the log while it is open: what it said after each record, and how many of those
/// must be there later.
fn carry_out(run: &Run, dir: &MemoryDir, mut model: Model) -> (Vec<Model>, usize) {
    let mut said = vec![model.clone()];
    let mut acknowledged = 0;
    dir.inject(Fault::PowerCut(run.operations));
    let Ok(mut log) = Log::open(dir, SEGMENT_BYTES) else { return (said, acknowledged) };
    for batch in &run.batches {
        let mut records = Vec::new();
        for op in batch {
            if let Some(record) = model.carry_out(op) {
                records.push(record);
                said.push(model.clone());
            }
        }
        let synced = records.iter().any(Record::needs_sync);
        if log.write(records).is_err() {
            return (said, acknowledged);
        }
        if synced {
            acknowledged = said.len() - 1;
        }
    }
    if run.close && log.writer.finish().is_ok() {
        acknowledged = said.len() - 1;
    }
    (said, acknowledged)
}

fn survives(runs: &[Run]) {
    let mut dir = MemoryDir::default();
    let mut model = Model::default();
    for run in runs {
        let (said, acknowledged) = carry_out(run, &dir, model);
        match run.cut {
            Some((seed, survival)) => {
                let mut random = StdRng::seed_from_u64(seed);
                dir = dir.power_cut(|| random.random_bool(survival));
            }
            None => dir.kill(),
        }
        let log = Log::open(&dir, SEGMENT_BYTES).unwrap();
        // The last of them that fits: later ones say the same or more.
        let entries = log.entries().unwrap();
        let mut fits = said[acknowledged..].iter().rev();
        let fits = fits.find(|model| model.is(&log.recovered, &entries));
        model = fits
            .unwrap_or_else(|| {
                panic!("{:?} is none of {:#?}", log.recovered, &said[acknowledged..])
            })
            .clone();
    }
}

proptest! {
    // A failure prints its runs: that is enough to make a test of its own of it.
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_acknowledged_is_there_and_nothing_is_invented(runs in vec(run(), 1..6)) {
        survives(&runs);
    }
}

/// Kills the process after each number of file operations. What the next one finds, it may build
/// on, so a power cut must not take it back: neither before it has written nor after.
#[test]
fn what_was_found_after_a_kill_stays() {
    for operations in 0.. {
        let dir = MemoryDir::default();
        dir.inject(Fault::PowerCut(operations));
        let whole = Log::open(&dir, SEGMENT_BYTES).and_then(|mut log| {
            (0..8).try_for_each(|index| log.write(vec![Record::Entry(entry(1, index, 150))]))
        });
        dir.kill();

        let mut log = Log::open(&dir, SEGMENT_BYTES).unwrap();
        let found = log.recovered.clone();
        let reopened = Log::open(&dir.power_cut(|| false), SEGMENT_BYTES).unwrap();
        assert_eq!(reopened.recovered, found, "after {operations} operations");

        let next = found.last.map_or(0, |last| last.index() + 1);
        log.write(vec![Record::Entry(entry(2, next, 10))]).unwrap();
        let reopened = Log::open(&dir.power_cut(|| false), SEGMENT_BYTES).unwrap();
        assert_eq!(reopened.recovered.last, Some(log_id(2, next)));
        assert_eq!(reopened.entries().unwrap().len() as u64, next + 1);
        if whole.is_ok() {
            assert_eq!(next, 8);
            return;
        }
    }
}
