//! Which watchers want a key: an index over the ranges of all watchers.
//!
//! Watchers of a single key are found in a hash map. Watchers of a range sit in an interval tree: a
//! balanced binary tree ordered by (start, end) in which every node also knows the greatest end
//! below it, so that a lookup walks past whole subtrees that end too early.
//!
//! ```text
//!                 [c, g)  greatest end: z         lookup "e":  [c, g) yes
//!                /      \                                      left ends at d: skipped whole
//!           [a, d)      [f, z)                                 [f, z) starts too late
//! ```
//!
//! With n distinct ranges a lookup that finds k of them costs O((k + 1) log n), adding or removing
//! one O(log n), and the memory is O(n) however much they overlap. (Cutting the key space into
//! segments would find faster, but n nested ranges would need n² entries.)

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::mvcc::KeyRange;

/// Reads `key` and `range_end` as etcd's watch does: as in a range request, but no key is the smallest
/// key. `None`: the range is empty.
///
/// The bytes are copied: a watch lives long, and a slice would keep the whole message it came in.
pub(super) fn watched_range(key: &[u8], range_end: &[u8]) -> Option<KeyRange> {
    let key = Bytes::copy_from_slice(if key.is_empty() { b"\0" } else { key });
    let range = KeyRange::new(&key, &Bytes::copy_from_slice(range_end));
    range.bounds().is_some().then_some(range)
}

pub(super) fn contains(range: &KeyRange, key: &[u8]) -> bool {
    match range {
        KeyRange::One(own) => own == key,
        KeyRange::Between(start, end) => start.as_ref() <= key && key < end.as_ref(),
        KeyRange::From(start) => start.as_ref() <= key,
    }
}

/// Where a span ends. Every key is below `Unbounded`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RangeEnd {
    Before(Bytes),
    Unbounded,
}

impl RangeEnd {
    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Unbounded => true,
        }
    }
}

/// Where a range belongs in the index: under its key, or at its span.
fn place(range: &KeyRange) -> Place<'_> {
    match range {
        KeyRange::One(key) => Place::Key(key),
        KeyRange::Between(start, end) => Place::Span(start, RangeEnd::Before(end.clone())),
        KeyRange::From(start) => Place::Span(start, RangeEnd::Unbounded),
    }
}

enum Place<'a> {
    Key(&'a Bytes),
    Span(&'a Bytes, RangeEnd),
}

/// Values found by the ranges they were added under. Each carries an id of its own, unique in the
/// index; values come out in an order that depends on nothing but ranges and ids.
#[derive(Debug)]
pub(super) struct RangeIndex<V> {
    keys: HashMap<Bytes, BTreeMap<u64, V>>,
    spans: Tree<V>,
}

impl<V> RangeIndex<V> {
    pub(super) fn new() -> Self {
        Self { keys: HashMap::new(), spans: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.spans.is_none()
    }

    pub(super) fn insert(&mut self, range: &KeyRange, id: u64, value: V) {
        match place(range) {
            Place::Key(key) => {
                self.keys.entry(key.clone()).or_default().insert(id, value);
            }
            Place::Span(start, end) => {
                self.spans = Some(insert(self.spans.take(), start, &end, id, value));
            }
        }
    }

    pub(super) fn remove(&mut self, range: &KeyRange, id: u64) -> Option<V> {
        match place(range) {
            Place::Key(key) => {
                let values = self.keys.get_mut(key)?;
                let removed = values.remove(&id);
                if values.is_empty() {
                    self.keys.remove(key);
                }
                removed
            }
            Place::Span(start, end) => {
                let (spans, removed) = remove(self.spans.take(), start, &end, id);
                self.spans = spans;
                removed
            }
        }
    }

    /// Calls `found` for each value whose range holds `key`.
    pub(super) fn for_each_at(&self, key: &[u8], mut found: impl FnMut(&V)) {
        if let Some(values) = self.keys.get(key) {
            values.values().for_each(&mut found);
        }
        stab(self.spans.as_deref(), key, &mut found);
    }
}

type Tree<V> = Option<Box<Node<V>>>;

#[derive(Debug)]
struct Node<V> {
    start: Bytes,
    end: RangeEnd,
    /// Never empty.
    values: BTreeMap<u64, V>,
    /// The greatest `end` in this subtree.
    max_end: RangeEnd,
    height: u32,
    left: Tree<V>,
    right: Tree<V>,
}

impl<V> Node<V> {
    fn order(&self, start: &Bytes, end: &RangeEnd) -> Ordering {
        (start, end).cmp(&(&self.start, &self.end))
    }

    /// Restores what a node knows about its subtree from its children.
    fn refresh(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
        self.max_end = [&self.left, &self.right]
            .into_iter()
            .flatten()
            .map(|child| &child.max_end)
            .fold(&self.end, Ord::max)
            .clone();
    }
}

fn height<V>(tree: &Tree<V>) -> u32 {
    tree.as_ref().map_or(0, |node| node.height)
}

fn stab<V>(tree: Option<&Node<V>>, key: &[u8], found: &mut impl FnMut(&V)) {
    let Some(node) = tree.filter(|node| node.max_end.is_above(key)) else { return };
    stab(node.left.as_deref(), key, found);
    if node.start.as_ref() <= key {
        if node.end.is_above(key) {
            node.values.values().for_each(&mut *found);
        }
        stab(node.right.as_deref(), key, found);
    }
}

fn insert<V>(tree: Tree<V>, start: &Bytes, end: &RangeEnd, id: u64, value: V) -> Box<Node<V>> {
    let Some(mut node) = tree else {
        return Box::new(Node {
            start: start.clone(),
            end: end.clone(),
            values: BTreeMap::from([(id, value)]),
            max_end: end.clone(),
            height: 1,
            left: None,
            right: None,
        });
    };
    match node.order(start, end) {
        Ordering::Less => node.left = Some(insert(node.left.take(), start, end, id, value)),
        Ordering::Greater => node.right = Some(insert(node.right.take(), start, end, id, value)),
        Ordering::Equal => {
            node.values.insert(id, value);
            return node;
        }
    }
    balance(node)
}

fn remove<V>(tree: Tree<V>, start: &Bytes, end: &RangeEnd, id: u64) -> (Tree<V>, Option<V>) {
    let Some(mut node) = tree else { return (None, None) };
    let removed;
    match node.order(start, end) {
        Ordering::Less => (node.left, removed) = remove(node.left.take(), start, end, id),
        Ordering::Greater => (node.right, removed) = remove(node.right.take(), start, end, id),
        Ordering::Equal => {
            removed = node.values.remove(&id);
            if node.values.is_empty() {
                return (join(node.left.take(), node.right.take()), removed);
            }
        }
    }
    (Some(balance(node)), removed)
}

/// One tree of two, all of `left` being smaller than all of `right`.
fn join<V>(left: Tree<V>, right: Tree<V>) -> Tree<V> {
    let Some(right) = right else { return left };
    let (rest, mut smallest) = take_smallest(right);
    smallest.left = left;
    smallest.right = rest;
    Some(balance(smallest))
}

fn take_smallest<V>(mut node: Box<Node<V>>) -> (Tree<V>, Box<Node<V>>) {
    match node.left.take() {
        None => (node.right.take(), node),
        Some(left) => {
            let (rest, smallest) = take_smallest(left);
            node.left = rest;
            (Some(balance(node)), smallest)
        }
    }
}

/// The AVL rule: the heights of two siblings differ by one at most.
fn balance<V>(mut node: Box<Node<V>>) -> Box<Node<V>> {
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        node.left = node.left.take().map(|child| {
            if height(&child.right) > height(&child.left) { rotate_left(child) } else { child }
        });
        rotate_right(node)
    } else if right > left + 1 {
        node.right = node.right.take().map(|child| {
            if height(&child.left) > height(&child.right) { rotate_right(child) } else { child }
        });
        rotate_left(node)
    } else {
        node.refresh();
        node
    }
}

fn rotate_left<V>(mut node: Box<Node<V>>) -> Box<Node<V>> {
    let Some(mut top) = node.right.take() else {
        node.refresh();
        return node;
    };
    node.right = top.left.take();
    node.refresh();
    top.left = Some(node);
    top.refresh();
    top
}

fn rotate_right<V>(mut node: Box<Node<V>>) -> Box<Node<V>> {
    let Some(mut top) = node.left.take() else {
        node.refresh();
        return node;
    };
    node.left = top.right.take();
    node.refresh();
    top.right = Some(node);
    top.refresh();
    top
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_as_etcd_reads_it() {
        let bytes = Bytes::from_static;
        for (key, range_end, expected) in [
            (&b"a"[..], &b""[..], Some(KeyRange::One(bytes(b"a")))),
            (b"", b"", Some(KeyRange::One(bytes(b"\0")))),
            (b"a", b"b", Some(KeyRange::Between(bytes(b"a"), bytes(b"b")))),
            (b"", b"b", Some(KeyRange::Between(bytes(b"\0"), bytes(b"b")))),
            (b"a", b"\0", Some(KeyRange::From(bytes(b"a")))),
            (b"", b"\0", Some(KeyRange::From(bytes(b"\0")))),
            (b"a", b"a\0", Some(KeyRange::Between(bytes(b"a"), bytes(b"a\0")))),
            (b"b", b"b", None),
            (b"b", b"a", None),
        ] {
            assert_eq!(watched_range(key, range_end), expected, "{key:?}..{range_end:?}");
        }
    }

    /// Checks order, balance and what each node knows; returns the height.
    fn check(tree: &Tree<u64>) -> u32 {
        let Some(node) = tree else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert!(left.abs_diff(right) <= 1, "unbalanced");
        assert_eq!(node.height, 1 + left.max(right));
        assert!(!node.values.is_empty());
        let mut max_end = &node.end;
        for child in [&node.left, &node.right].into_iter().flatten() {
            max_end = max_end.max(&child.max_end);
        }
        assert_eq!(&node.max_end, max_end);
        if let Some(left) = &node.left {
            assert_eq!(node.order(&left.start, &left.end), Ordering::Less);
        }
        if let Some(right) = &node.right {
            assert_eq!(node.order(&right.start, &right.end), Ordering::Greater);
        }
        node.height
    }

    fn short_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(&b"\0abc\xff"[..]), 0..3)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(Vec<u8>, Vec<u8>),
        Remove(prop::sample::Index),
        Find(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (short_key(), short_key()).prop_map(|(key, end)| Step::Add(key, end)),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
            4 => short_key().prop_map(Step::Find),
        ]
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_scan_finds(steps in prop::collection::vec(step(), 1..200)) {
            let mut index = RangeIndex::new();
            let mut all: Vec<(KeyRange, u64)> = Vec::new();
            for (id, step) in (0..).zip(steps) {
                match step {
                    Step::Add(key, end) => {
                        let Some(range) = watched_range(&key, &end) else { continue };
                        index.insert(&range, id, id);
                        all.push((range, id));
                    }
                    Step::Remove(which) if !all.is_empty() => {
                        let (range, id) = all.swap_remove(which.index(all.len()));
                        prop_assert_eq!(index.remove(&range, id), Some(id));
                        prop_assert_eq!(index.remove(&range, id), None);
                    }
                    Step::Remove(_) => {}
                    Step::Find(key) => {
                        let mut found = Vec::new();
                        index.for_each_at(&key, |id| found.push(*id));
                        found.sort_unstable();
                        let mut expected: Vec<u64> = all
                            .iter()
                            .filter(|(range, _)| contains(range, &key))
                            .map(|(_, id)| *id)
                            .collect();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
                check(&index.spans);
                prop_assert_eq!(index.is_empty(), all.is_empty());
            }
        }
    }

    #[test]
    fn ranges_in_key_order_do_not_make_a_list_of_the_tree() {
        let mut index = RangeIndex::new();
        let prefix = |n: u64| {
            let (key, end) = (format!("/registry/pods/{n:05}/"), format!("/registry/pods/{n:05}0"));
            watched_range(key.as_bytes(), end.as_bytes()).unwrap()
        };
        for id in 0..4096 {
            index.insert(&prefix(id), id, id);
        }
        assert!(check(&index.spans) <= 18, "1.44 log2 n is an AVL tree's greatest height");
        let mut found = Vec::new();
        index.for_each_at(b"/registry/pods/01234/web", |id| found.push(*id));
        assert_eq!(found, [1234]);
        for id in 0..4096 {
            assert_eq!(index.remove(&prefix(id), id), Some(id));
        }
        assert!(index.is_empty());
    }
}
