//! Records that nobody can see any more and that the engine still has.
//!
//! The engine keeps records in blocks of a few kilobytes, in the order of the revisions, and writes a
//! block anew when a part of it goes. What a compaction makes invisible is scattered over them: to
//! remove it at once would write a block for each few records, with each compaction again. So it
//! waits until it is worth a pass over the blocks, and then goes in the order of the revisions, each
//! block being written once.
//!
//! ```text
//! in use 100 MB, garbage 20 MB: waits
//! in use 100 MB, garbage 50 MB: goes, and costs the writing of at most 100 MB
//! ```
//! The order also makes it safe to stop anywhere: a deletion goes after every value that it hides.
//! After a restart the first look at the index finds all garbage again.

use super::index::Version;
use super::revision::Revision;
use crate::engine::WriteBatch;

use super::records;

/// Less is not worth a pass, however little is in use.
const MIN_BYTES: u64 = 8 << 20;

/// Garbage is worth a pass once it takes so much of what is in use: one half.
const WORTHWHILE_PART: u64 = 2;

/// So much of it goes in any case: it is kept in memory, 16 bytes for each.
const MAX_RECORDS: usize = 1 << 20;

/// One record that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone {
    main: i64,
    sub: u32,
    value_bytes: u32,
}

impl Gone {
    fn revision(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }
}

/// What waits to be removed from the engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Garbage {
    records: Vec<Gone>,
    bytes: u64,
    /// Whether the newest comes first, so that the oldest is taken from the end.
    is_sorted: bool,
}

impl Garbage {
    /// Adds records that have left the index: of each key the oldest first, and no newer one of a key
    /// before all older ones.
    pub(super) fn add(&mut self, versions: &[Version]) {
        self.is_sorted &= versions.is_empty();
        self.bytes += versions.iter().map(|version| version.record_bytes()).sum::<u64>();
        let gone = |version: &Version| Gone {
            main: version.main,
            sub: version.sub,
            value_bytes: version.value_bytes,
        };
        self.records.extend(versions.iter().map(gone));
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether it takes too much memory to wait for more.
    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= MAX_RECORDS
    }

    /// Whether it is worth a pass over the engine, in which `in_use_bytes` are to stay.
    pub(super) fn is_worthwhile(&self, in_use_bytes: u64) -> bool {
        self.bytes >= MIN_BYTES.max(in_use_bytes / WORTHWHILE_PART)
    }

    /// The oldest records, which the caller removes: at most `count` of them, and no more than `bytes`
    /// but for a single one. Says how many. Cheap but for the first call after [`Garbage::add`].
    pub(super) fn take_oldest(
        &mut self,
        count: usize,
        bytes: u64,
        batch: &mut WriteBatch,
    ) -> usize {
        self.sort();
        let (mut taken, mut taken_bytes) = (0, 0);
        while taken < count
            && let Some(gone) = self.records.pop_if(|gone| {
                taken_bytes += u64::from(gone.value_bytes);
                taken == 0 || taken_bytes <= bytes
            })
        {
            records::delete(batch, gone.revision());
            taken += 1;
        }
        if self.records.is_empty() {
            *self = Self::default();
        }
        taken
    }

    /// Whether the record of `revision` is among them. To be asked of what was [sorted](Self::sort).
    pub(super) fn contains(&self, revision: Revision) -> bool {
        debug_assert!(self.is_sorted || self.records.is_empty());
        let found = self.records.binary_search_by(|gone| revision.cmp(&gone.revision()));
        found.is_ok()
    }

    /// Puts the newest first.
    pub(super) fn sort(&mut self) {
        if !self.is_sorted {
            self.records.sort_unstable_by_key(|gone| std::cmp::Reverse(gone.revision()));
            self.is_sorted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::RECORD_KEY_BYTES;
    use super::*;

    fn version(main: i64) -> Version {
        let value_bytes = 1024 - RECORD_KEY_BYTES as u32;
        Version { main, sub: 0, value_bytes, created: main, version: 1 }
    }

    fn garbage(revisions: impl IntoIterator<Item = i64>) -> Garbage {
        let mut garbage = Garbage::default();
        garbage.add(&revisions.into_iter().map(version).collect::<Vec<_>>());
        garbage
    }

    #[test]
    fn it_waits_until_it_takes_half_of_what_is_in_use() {
        let megabytes = |count: i64| garbage(0..count * 1024);
        for (garbage_mb, in_use_mb, expected) in [
            (0, 0, false),
            (7, 1, false),
            (8, 1, true),
            (8, 16, true),
            (8, 17, false),
            (20, 40, true),
        ] {
            let is_worthwhile = megabytes(garbage_mb).is_worthwhile(in_use_mb << 20);
            assert_eq!(is_worthwhile, expected, "{garbage_mb} MB of {in_use_mb} MB");
        }
        let records = vec![Gone { main: 1, sub: 0, value_bytes: 1 }; MAX_RECORDS - 1];
        let mut garbage = Garbage { records, ..Garbage::default() };
        assert!(!garbage.is_full());
        garbage.add(&[version(1)]);
        assert!(garbage.is_full());
    }

    #[test]
    fn the_oldest_go_first_whenever_they_came() {
        let taken = |garbage: &mut Garbage, count| {
            let mut batch = WriteBatch::default();
            (garbage.take_oldest(count, u64::MAX, &mut batch), batch.bytes())
        };
        let mut garbage = garbage([7, 3, 5]);
        assert_eq!(taken(&mut garbage, 1).0, 1);
        garbage.add(&[version(9), version(4)]);
        garbage.sort();
        let held = |garbage: &Garbage| {
            (1..12).filter(|main| garbage.contains(Revision::first_of(*main))).collect::<Vec<_>>()
        };
        assert_eq!(held(&garbage), [4, 5, 7, 9]);
        assert_eq!(taken(&mut garbage, 3).0, 3);
        assert_eq!(held(&garbage), [9]);
        assert_eq!(taken(&mut garbage, 3), (1, RECORD_KEY_BYTES));
        assert!(garbage.is_empty() && garbage.bytes == 0);
    }

    #[test]
    fn long_records_go_few_at_a_time() {
        let mut garbage = garbage(1..8);
        let mut take = |bytes| garbage.take_oldest(5, bytes, &mut WriteBatch::default());
        assert_eq!([take(2500), take(0), take(u64::MAX), take(0)], [2, 1, 4, 0]);
    }
}
