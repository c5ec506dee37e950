//! Which key was written when: every version that can still be read, without the values.
//!
//! etcd's key index keeps generations, from a creation to a deletion. Here the generation stands in
//! each version instead, as the revision of its creation, which says the same in one flat list:
//!
//! ```text
//! put a (2), put a (3), delete a (4), put a (6)
//! a -> {at 2, created 2, version 1} {at 3, created 2, version 2} {at 4, deleted} {at 6, created 6, version 1}
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::key_range::KeyRange;
use super::keys::RECORD_KEY_BYTES;
use super::revision::Revision;

/// One write of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The revision of the write.
    pub(crate) main: i64,
    /// Its place in the revision.
    pub(crate) sub: u32,
    /// How much room its record takes in the engine, without its key.
    pub(crate) value_bytes: u32,
    /// The revision that created the key; 0 in a tombstone.
    pub(crate) created: i64,
    /// Counts writes since the creation, from 1; 0 in a tombstone.
    pub(crate) version: i64,
}

impl Version {
    pub(crate) fn revision(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }

    /// How much room its record takes in the engine.
    pub(crate) fn record_bytes(&self) -> u64 {
        RECORD_KEY_BYTES as u64 + u64::from(self.value_bytes)
    }

    /// Whether it is the end of the key, not a value.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// The versions of all keys, in the order of the keys.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, History>,
    /// Each key that [may be reduced](History::is_reducible), once: a compaction looks at no other, so
    /// that it costs what was overwritten and not what there is.
    reducible: VecDeque<Bytes>,
    /// The versions of all keys together.
    len: usize,
    /// What their records take in the engine.
    record_bytes: u64,
    /// The keys whose newest version is no tombstone.
    live_keys: usize,
}

/// The versions of one key, oldest first; never empty.
#[derive(Debug)]
struct History(Vec<Version>);

impl History {
    /// What a reader at the revision `at` sees.
    fn at(&self, at: i64) -> Option<&Version> {
        let newer = self.0.partition_point(|version| version.main <= at);
        self.0[..newer].last().filter(|version| !version.is_tombstone())
    }

    /// Whether some compaction, now or later, may take something away without a further write.
    fn is_reducible(&self) -> bool {
        self.0.len() > 1 || self.0.last().is_some_and(Version::is_tombstone)
    }

    /// How many of the oldest versions nobody can see once `compacted` is.
    ///
    /// Whoever reads at `compacted` or later needs the last version up to it, unless that is a
    /// tombstone. Everything written *in* `compacted` stays, tombstones too: a watch may start there.
    fn invisible_after(&self, compacted: i64) -> usize {
        let before = self.0.partition_point(|version| version.main < compacted);
        let is_written_at = self.0.get(before).is_some_and(|version| version.main == compacted);
        match self.0[..before].last() {
            Some(last) if !is_written_at && !last.is_tombstone() => before - 1,
            _ => before,
        }
    }
}

/// When keys of a range were written next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NextChanges {
    /// The first revision; `None`: none yet.
    pub(crate) first: Option<i64>,
    /// The one after it.
    pub(crate) second: Option<i64>,
}

impl NextChanges {
    fn note(&mut self, main: i64) {
        match self.first {
            None => self.first = Some(main),
            Some(first) if main < first => (self.first, self.second) = (Some(main), self.first),
            Some(first) if main > first && self.second.is_none_or(|second| main < second) => {
                self.second = Some(main);
            }
            Some(_) => {}
        }
    }
}

/// Where a compaction of the index stands.
#[derive(Debug)]
pub(crate) struct Removed {
    /// The records that nobody can see any more.
    pub(crate) versions: Vec<Version>,
    /// How many keys are still to be looked at.
    pub(crate) keys_left: usize,
}

impl Index {
    /// The live version of `key` that a reader at the revision `at` sees.
    pub(crate) fn get(&self, key: &[u8], at: i64) -> Option<&Version> {
        self.keys.get(key)?.at(at)
    }

    /// The live versions of all keys of `range` that a reader at `at` sees, in the order of the
    /// keys.
    pub(crate) fn range<'a>(
        &'a self,
        range: &'a KeyRange,
        at: i64,
    ) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a Version)> {
        self.histories(range).filter_map(move |(key, history)| Some((key, history.at(at)?)))
    }

    /// Up to `keys` keys of `range`, live or not, from `from` on: what a reader at `at` sees of
    /// them, and the key to go on with. A long walk is taken in such steps, so that writers are let
    /// in between.
    pub(crate) fn walk<'a>(
        &'a self,
        range: &'a KeyRange,
        from: Option<&Bytes>,
        at: i64,
        keys: usize,
        mut visit: impl FnMut(&'a Version),
    ) -> Option<Bytes> {
        let (start, end) = range.bounds()?;
        let start = from.map_or(start, |key| Bound::Included(key.as_ref()));
        let mut histories = self.keys.range::<[u8], _>((start, end));
        for (_, history) in histories.by_ref().take(keys) {
            if let Some(version) = history.at(at) {
                visit(version);
            }
        }
        histories.next().map(|(key, _)| key.clone())
    }

    /// When a key of `range` was written next, from the revision `from` on, which must not be
    /// compacted. `None` when the range has more than `keys` keys: it would take long to tell.
    pub(crate) fn next_changes(
        &self,
        range: &KeyRange,
        from: i64,
        keys: usize,
    ) -> Option<NextChanges> {
        let mut changes = NextChanges::default();
        for (examined, (_, history)) in self.histories(range).enumerate() {
            if examined == keys {
                return None;
            }
            let before = history.0.partition_point(|version| version.main < from);
            history.0[before..].iter().take(2).for_each(|version| changes.note(version.main));
        }
        Some(changes)
    }

    fn histories<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a History)> {
        range.bounds().map(|bounds| self.keys.range::<[u8], _>(bounds)).into_iter().flatten()
    }

    /// How many versions there are, which is how many records the engine has once all are written.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many keys there are now.
    pub(crate) fn live_keys(&self) -> usize {
        self.live_keys
    }

    /// What the records of all versions take in the engine, once all are written.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.record_bytes
    }

    /// The versions that are still to be seen once `compacted` is, no matter how far the removal of
    /// the others has come.
    #[cfg(test)]
    pub(crate) fn visible_versions(&self, compacted: i64) -> impl Iterator<Item = &Version> {
        self.keys.values().flat_map(move |history| &history.0[history.invisible_after(compacted)..])
    }

    /// Whether one of them is the write of `key` at `revision`.
    pub(crate) fn is_visible(&self, key: &[u8], revision: Revision, compacted: i64) -> bool {
        self.keys.get(key).is_some_and(|history| {
            let visible = &history.0[history.invisible_after(compacted)..];
            visible.binary_search_by_key(&revision, Version::revision).is_ok()
        })
    }

    /// Adds the newest version of a key.
    pub(crate) fn insert(&mut self, key: &[u8], version: Version) {
        self.insert_after(key, |_| version);
    }

    /// Adds the newest version of a key, which follows from the one before it, if the key is there. The
    /// index keeps a key of its own: the one of a request shares the memory of the whole batch that it
    /// came with.
    pub(crate) fn insert_after(
        &mut self,
        key: &[u8],
        next: impl FnOnce(Option<&Version>) -> Version,
    ) {
        let (version, was_live);
        let becomes_reducible = if let Some(history) = self.keys.get_mut(key) {
            let previous = history.0.last().filter(|last| !last.is_tombstone());
            was_live = previous.is_some();
            version = next(previous);
            debug_assert!(
                history.0.last().is_some_and(|last| last.revision() < version.revision())
            );
            let was_reducible = history.is_reducible();
            history.0.push(version);
            !was_reducible
        } else {
            was_live = false;
            version = next(None);
            let history = History(vec![version]);
            let is_reducible = history.is_reducible();
            self.keys.insert(Bytes::copy_from_slice(key), history);
            is_reducible
        };
        self.len += 1;
        self.record_bytes += version.record_bytes();
        match (was_live, !version.is_tombstone()) {
            (false, true) => self.live_keys += 1,
            (true, false) => self.live_keys -= 1,
            _ => {}
        }
        if becomes_reducible && let Some((key, _)) = self.keys.get_key_value(key) {
            self.reducible.push_back(key.clone());
        }
    }

    /// How many keys a compaction has to look at now.
    pub(crate) fn reducible_keys(&self) -> usize {
        self.reducible.len()
    }

    /// Removes what nobody can see once `compacted` is, from the next `keys_left` of the
    /// [reducible keys](Self::reducible_keys), of which there must be as many: at most `versions` of at
    /// most `keys` keys.
    ///
    /// A key's oldest versions come first. So wherever a crash cuts the removal of their records,
    /// a tombstone still stands behind each value that it hides.
    pub(crate) fn compact(
        &mut self,
        compacted: i64,
        mut keys_left: usize,
        keys: usize,
        versions: usize,
    ) -> Removed {
        let mut removed = Vec::new();
        for _ in 0..keys {
            let room = versions - removed.len();
            if keys_left == 0 || room == 0 {
                break;
            }
            let key = self.reducible.pop_front().expect("there are keys_left of them");
            let history = self.keys.get_mut(&key).expect("a key leaves both at once");
            let invisible = history.invisible_after(compacted);
            removed.extend(history.0.drain(..invisible.min(room)));
            if invisible > room {
                self.reducible.push_front(key);
                break;
            }
            keys_left -= 1;
            history.0.shrink_to(2 * history.0.len());
            if history.0.is_empty() {
                self.keys.remove(&key);
            } else if history.is_reducible() {
                self.reducible.push_back(key);
            }
        }
        if keys_left == 0 {
            self.reducible.shrink_to(2 * self.reducible.len());
        }
        self.len -= removed.len();
        self.record_bytes -= removed.iter().map(|version| version.record_bytes()).sum::<u64>();
        Removed { versions: removed, keys_left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE_BYTES: u32 = 83;

    /// A history from its revisions; a negative one is a deletion.
    fn index(revisions: &[i64]) -> Index {
        let mut index = Index::default();
        let (mut created, mut version) = (0, 0);
        for revision in revisions {
            let main = revision.abs();
            if version == 0 {
                created = main;
            }
            version = if *revision < 0 { 0 } else { version + 1 };
            let of = if version == 0 { 0 } else { created };
            index.insert(
                b"k",
                Version { main, sub: 0, value_bytes: VALUE_BYTES, created: of, version },
            );
        }
        index
    }

    #[test]
    fn it_tells_when_a_narrow_range_was_written_next() {
        let mut index = index(&[2, 3, -4, 9]);
        let other = Version { main: 6, sub: 0, value_bytes: VALUE_BYTES, created: 6, version: 1 };
        index.insert(b"l", other);
        let both = KeyRange::From(Bytes::from_static(b"k"));
        let one = KeyRange::One(Bytes::from_static(b"k"));
        for (range, from, first, second) in [
            (&both, 0, Some(2), Some(3)),
            (&both, 4, Some(4), Some(6)),
            (&one, 4, Some(4), Some(9)),
            (&both, 5, Some(6), Some(9)),
            (&both, 7, Some(9), None),
            (&both, 10, None, None),
            (&KeyRange::One(Bytes::from_static(b"m")), 0, None, None),
        ] {
            let expected = NextChanges { first, second };
            assert_eq!(index.next_changes(range, from, 2), Some(expected), "{range:?} {from}");
        }
        assert_eq!(index.next_changes(&both, 0, 1), None, "it has two keys");
    }

    fn seen(index: &Index, at: i64) -> Option<(i64, i64, i64)> {
        index.get(b"k", at).map(|version| (version.main, version.created, version.version))
    }

    fn left(index: &Index) -> Vec<i64> {
        index.visible_versions(-1).map(|version| version.main).collect()
    }

    #[test]
    fn a_reader_sees_the_last_write_up_to_its_revision() {
        let index = index(&[2, 4, -6, 8]);
        let seen = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(|at| seen(&index, at));
        let (first, second, third) = ((2, 2, 1), (4, 2, 2), (8, 8, 1));
        let expected = [
            None,
            Some(first),
            Some(first),
            Some(second),
            Some(second),
            None,
            None,
            Some(third),
            Some(third),
        ];
        assert_eq!(seen, expected);
    }

    /// A whole compaction in steps of so many versions; the revisions that it removed.
    fn compact(index: &mut Index, compacted: i64, step: usize) -> Vec<i64> {
        let (mut keys_left, mut removed) = (index.reducible_keys(), Vec::new());
        while keys_left > 0 {
            let part = index.compact(compacted, keys_left, 100, step);
            assert!(part.versions.len() <= step);
            removed.extend(part.versions.iter().map(|version| version.main));
            keys_left = part.keys_left;
        }
        removed
    }

    #[test]
    fn a_compaction_looks_at_keys_that_it_may_reduce_and_at_no_other() {
        // What is written when, where it is compacted, and whether a later one finds something.
        let cases: [(&[i64], i64, bool); 8] = [
            (&[2], 9, false),
            (&[2, 4], 1, true),
            (&[2, 4], 3, true),
            (&[2, 4], 4, false),
            (&[2, 4, 6], 4, true),
            (&[2, -4], 3, true),
            (&[2, -4], 4, true),
            (&[2, -4], 5, false),
        ];
        for (revisions, compacted, is_reducible) in cases {
            let mut index = index(revisions);
            assert_eq!(index.reducible_keys(), usize::from(revisions.len() > 1), "{revisions:?}");
            compact(&mut index, compacted, 100);
            let keys = index.reducible_keys();
            assert_eq!(keys, usize::from(is_reducible), "{revisions:?} compacted at {compacted}");
            // However often it is written, it is looked at once.
            let live = |main| Version {
                main,
                sub: 0,
                value_bytes: VALUE_BYTES,
                created: main,
                version: 1,
            };
            index.insert(b"k", live(10));
            index.insert(b"k", live(11));
            assert_eq!(index.reducible_keys(), 1, "{revisions:?} compacted at {compacted}");
            compact(&mut index, 12, 1);
            assert_eq!((left(&index), index.reducible_keys()), (vec![11], 0), "{revisions:?}");
        }
    }

    #[test]
    fn what_is_overwritten_during_a_compaction_is_for_the_next_one() {
        let mut index = Index::default();
        let version =
            |main| Version { main, sub: 0, value_bytes: VALUE_BYTES, created: main, version: 1 };
        for main in 1..=20 {
            index.insert(&[(main % 10) as u8], version(main));
        }
        let begun = index.compact(20, index.reducible_keys(), 3, 100);
        assert_eq!((begun.versions.len(), begun.keys_left), (3, 7));
        index.insert(&[1], version(21));
        let ended = index.compact(20, begun.keys_left, 100, 100);
        assert_eq!((ended.versions.len(), ended.keys_left), (7, 0));
        assert_eq!((index.len(), index.reducible_keys()), (11, 1));
        assert_eq!(compact(&mut index, 21, 100), [11]);
    }

    #[test]
    fn compaction_leaves_what_can_be_read_or_watched_from_its_revision_on() {
        // What is written when, where it is compacted, and what is left.
        let cases: [(&[i64], i64, &[i64]); 11] = [
            (&[2, 4, 6], 1, &[2, 4, 6]),
            (&[2, 4, 6], 2, &[2, 4, 6]),
            (&[2, 4, 6], 3, &[2, 4, 6]),
            (&[2, 4, 6], 4, &[4, 6]),
            (&[2, 4, 6], 9, &[6]),
            (&[2, -4], 3, &[2, 4]),
            // The deletion itself can still be watched.
            (&[2, -4], 4, &[4]),
            (&[2, -4], 5, &[]),
            (&[2, -4, 6], 5, &[6]),
            (&[2, -4, 6], 4, &[4, 6]),
            (&[2, -4, 6, -8, 10], 9, &[10]),
        ];
        for (revisions, compacted, expected) in cases {
            let whole = index(revisions);
            let visible: Vec<i64> =
                whole.visible_versions(compacted).map(|version| version.main).collect();
            assert_eq!(visible, expected, "{revisions:?} compacted at {compacted}");
            let is_visible =
                |main: &i64| whole.is_visible(b"k", Revision::first_of(*main), compacted);
            let visible: Vec<i64> = (1..12).filter(is_visible).collect();
            assert_eq!(visible, expected, "{revisions:?} compacted at {compacted}");

            // At once, and one by one.
            for step in [100, 1] {
                let mut index = index(revisions);
                let removed = compact(&mut index, compacted, step);
                assert_eq!(left(&index), expected, "{revisions:?} compacted at {compacted}");
                assert_eq!(index.len(), expected.len());
                assert_eq!(index.record_bytes(), 100 * expected.len() as u64);
                assert!(removed.is_sorted(), "a tombstone goes after what it hides");
                for at in compacted.max(1)..12 {
                    assert_eq!(seen(&index, at), seen(&whole, at));
                }
            }
        }
    }

    #[test]
    fn long_walks_are_taken_in_steps() {
        let mut index = Index::default();
        for n in 0..10_u8 {
            let version = i64::from(n % 3 != 0);
            index.insert(
                &[n],
                Version { main: 2, sub: n.into(), value_bytes: VALUE_BYTES, created: 2, version },
            );
        }
        let range = KeyRange::Between(Bytes::from_static(&[1]), Bytes::from_static(&[9]));
        let (mut from, mut subs, mut steps) = (None, Vec::new(), 0);
        loop {
            from = index.walk(&range, from.as_ref(), 5, 3, |version| subs.push(version.sub));
            steps += 1;
            if from.is_none() {
                break;
            }
        }
        assert_eq!((subs, steps), (vec![1, 2, 4, 5, 7, 8], 3));
    }
}
