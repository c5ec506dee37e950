//! The keys that a request is about: etcd's `key` and `range_end`.

use std::ops::Bound;

use bytes::Bytes;

/// Where a range begins and ends in an ordered map.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A key, the keys between two, or all from one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyRange {
    /// `range_end` is empty.
    One(Bytes),
    /// From the first up to, but without, the second.
    Between(Bytes, Bytes),
    /// `range_end` is one zero byte.
    From(Bytes),
}

impl KeyRange {
    /// As etcd reads the two fields of a request.
    pub(crate) fn new(key: &Bytes, range_end: &Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::One(key.clone()),
            [0] => Self::From(key.clone()),
            _ => Self::Between(key.clone(), range_end.clone()),
        }
    }

    /// For a search in an ordered map; `None` when no key can be in it, as when the end comes
    /// before the start.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::From(key) => Some((Bound::Included(key), Bound::Unbounded)),
            Self::Between(key, end) if key < end => {
                Some((Bound::Included(key), Bound::Excluded(end)))
            }
            Self::Between(..) => None,
        }
    }
}
