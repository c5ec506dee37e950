//! Requests on watch streams.

use bytes::Bytes;
use rand::Rng as _;
use rand::seq::IteratorRandom as _;
use store_proto::etcdserverpb::{WatchCancelRequest, WatchCreateRequest};

use super::{Bearings, Random, STREAMS};
use crate::call::Call;

impl Random<'_> {
    pub(super) fn watch(&mut self) -> Call {
        let stream = self.rng.random_range(0..STREAMS);
        match self.rng.random_range(0..100) {
            0..60 => Call::WatchCreate(stream, self.watch_create(stream)),
            60..85 => Call::WatchCancel(stream, WatchCancelRequest { watch_id: self.id(stream) }),
            85..94 => Call::WatchProgress(stream),
            94..97 => Call::WatchNothing(stream),
            _ => Call::WatchClose(stream),
        }
    }

    fn watch_create(&mut self, stream: usize) -> WatchCreateRequest {
        let key = self.key_or_empty();
        let filters = match self.rng.random_range(0..10) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            3 => vec![self.pick(&[7, -1])],
            _ => Vec::new(),
        };
        WatchCreateRequest {
            range_end: if self.one_in(3) {
                Bytes::from_static(b"\0")
            } else {
                self.range_end(&key)
            },
            key,
            start_revision: self.start_revision(),
            progress_notify: self.one_in(4),
            filters,
            prev_kv: self.one_in(3),
            watch_id: match self.rng.random_range(0..8) {
                0 => self.rng.random_range(-2..6),
                1 => self.id(stream),
                2 => self.rng.random_range(1..8),
                _ => 0,
            },
            fragment: self.one_in(5),
        }
    }

    fn start_revision(&mut self) -> i64 {
        let Bearings { revision, compacted, .. } = *self.bearings;
        match self.rng.random_range(0..20) {
            0..8 => 0,
            8..12 => (revision - self.rng.random_range(0..12)).max(1),
            12 => revision + 1,
            13 => revision + self.rng.random_range(2..40),
            14 => compacted,
            15 => compacted + 1,
            16 => (compacted - 1).max(-1),
            17 => self.rng.random_range(compacted.max(0)..=revision.max(compacted)),
            18 => self.pick(&[1, -1, -7]),
            _ => revision,
        }
    }

    /// The id of a watch that is or was there, and at times of one that never was.
    fn id(&mut self, stream: usize) -> i64 {
        let known = self.bearings.watches.get(&stream);
        match known.and_then(|ids| ids.iter().choose(&mut self.rng)) {
            Some(id) if !self.one_in(10) => *id,
            _ => self.rng.random_range(-2..12),
        }
    }
}
