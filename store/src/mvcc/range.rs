//! Reading keys, now or at a past revision.
//!
//! A read fixes its revision first, then walks the index, then gets the values from the window or
//! the engine. The lock is let go between the steps of a long walk: what a reader at one revision
//! sees does not change, unless a compaction overtakes it. Then a read at a revision of its own is
//! told so, and a read of the present starts over.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use store_proto::etcdserverpb::{
    RangeRequest, RangeResponse,
    range_request::{SortOrder, SortTarget},
};
use store_proto::mvccpb::{Event, KeyValue};

use super::apply::header;
use super::index::Version;
use super::key_range::KeyRange;
use super::revision::kv_of;
use super::{Failure, Mvcc, Shared, State, records};
use crate::engine::{Engine, EngineError};
use crate::error::RequestError;

/// How many keys are walked, or values taken from memory, before writers are let in.
const STEP_KEYS: usize = 1024;

/// What the writer's own reads see beyond what is published.
#[derive(Clone, Copy)]
pub(super) struct Unpublished<'a> {
    pub(super) revision: i64,
    pub(super) events: &'a [Event],
}

/// How a read stands to the rest of the world.
#[derive(Clone, Copy)]
struct Reader<'a> {
    unpublished: Option<Unpublished<'a>>,
    /// No compaction removes anything while it reads.
    is_guarded: bool,
}

/// Where in the history a read takes place.
#[derive(Clone, Copy)]
struct Point {
    at: i64,
    current: i64,
    epoch: u64,
}

/// A compaction or a restore took away what was being read.
pub(super) struct Overtaken;

/// Why a read, or one of several at one revision, came to nothing.
pub(super) enum ReadFailure {
    /// All of it has to be done again, at a later revision.
    Overtaken,
    /// To do it again would be of no use.
    Failed(Failure),
}

impl From<Overtaken> for ReadFailure {
    fn from(Overtaken: Overtaken) -> Self {
        Self::Overtaken
    }
}

impl From<EngineError> for ReadFailure {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RequestError> for ReadFailure {
    fn from(refused: RequestError) -> Self {
        Self::Failed(refused.into())
    }
}

/// Reads that belong together: all of them see the state after the same revision.
pub(super) struct ReadTxn<'a> {
    shared: &'a Shared,
    reader: Reader<'static>,
    /// The revision that was the current one when it began.
    revision: i64,
    epoch: u64,
}

impl<'a> ReadTxn<'a> {
    /// `is_guarded`: no compaction removes anything meanwhile, so only a restore can overtake it.
    pub(super) fn begin(shared: &'a Shared, is_guarded: bool) -> Self {
        let state = shared.state.read();
        let reader = Reader { unpublished: None, is_guarded };
        Self { shared, reader, revision: state.revision, epoch: state.epoch }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// The compacted revision, which goes on rising.
    pub(super) fn compacted(&self) -> i64 {
        self.shared.state.read().compacted
    }

    /// etcd's Range; its revision was checked.
    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadFailure> {
        let at = if request.revision <= 0 { self.revision } else { request.revision };
        Ok(self.shared.range_at(request, self.reader, self.at(at))??)
    }

    /// What the keys of `range` hold.
    pub(super) fn get_all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, ReadFailure> {
        Ok(self.shared.get_all_at(range, self.reader, self.at(self.revision))??)
    }

    fn at(&self, at: i64) -> Point {
        Point { at, current: self.revision, epoch: self.epoch }
    }
}

impl Mvcc {
    /// etcd's Range. Blocks when values have to come from the disk, and for as long as it takes to
    /// walk the range.
    ///
    /// # Errors
    ///
    /// The revision asked for is compacted or in the future.
    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        self.until_not_overtaken(|is_guarded| self.shared.range(request, is_guarded))
    }

    /// Reads until nothing overtakes it. `read` is told whether compactions wait for it: those that come
    /// faster than it reads must not keep it from ever ending.
    pub(super) fn until_not_overtaken<T>(
        &self,
        read: impl Fn(bool) -> Result<T, ReadFailure>,
    ) -> Result<T, Failure> {
        let mut pause = None;
        loop {
            match read(pause.is_some()) {
                Ok(found) => return Ok(found),
                Err(ReadFailure::Failed(failure)) => return Err(failure),
                Err(ReadFailure::Overtaken) => {
                    pause.get_or_insert_with(|| self.pause_compaction());
                }
            }
        }
    }

    /// The same from memory alone, for threads that must not block: `None` when the disk would be
    /// needed, or when the range is long.
    pub(crate) fn range_cached(
        &self,
        request: &RangeRequest,
    ) -> Option<Result<RangeResponse, RequestError>> {
        let state = self.shared.state.read();
        let point = match state.point(request) {
            Ok(point) => point,
            Err(error) => return Some(Err(error)),
        };
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut selection = Selection::new(request);
        let rest = state.index.walk(&range, None, point.at, STEP_KEYS, |version| {
            selection.add(version);
        });
        if rest.is_some() {
            return None;
        }
        selection.sort_by_version();
        if !selection.sorts_values() {
            selection.truncate_found();
        }
        let kv = |version: &Version| state.window.event(version.revision()).map(kv_of).cloned();
        let kvs = selection.found.iter().map(kv).collect::<Option<Vec<_>>>()?;
        Some(Ok(selection.respond(kvs, point.current)))
    }
}

impl State {
    fn point(&self, request: &RangeRequest) -> Result<Point, RequestError> {
        let at = if request.revision <= 0 { self.revision } else { request.revision };
        if at > self.revision {
            return Err(RequestError::FutureRevision);
        }
        if at < self.compacted {
            return Err(RequestError::Compacted);
        }
        Ok(Point { at, current: self.revision, epoch: self.epoch })
    }

    fn still_holds(&self, point: Point, is_guarded: bool) -> Result<(), Overtaken> {
        let is_there = self.epoch == point.epoch && (is_guarded || self.compacted <= point.at);
        if is_there { Ok(()) } else { Err(Overtaken) }
    }
}

impl Shared {
    /// A Range within the writer's transaction. Its revision was checked before.
    pub(super) fn range_for_writer(
        &self,
        request: &RangeRequest,
        unpublished: Unpublished<'_>,
    ) -> Result<RangeResponse, EngineError> {
        let reader = Reader { unpublished: Some(unpublished), is_guarded: true };
        let current = unpublished.revision;
        let at = if request.revision <= 0 { current } else { request.revision };
        let point = Point { at, current, epoch: self.state.read().epoch };
        self.range_at(request, reader, point)?.map_err(|Overtaken| replaced_under_the_writer())
    }

    /// What the writer sees of `range`, in the order of the keys.
    pub(super) fn get_all_for_writer(
        &self,
        range: &KeyRange,
        unpublished: Unpublished<'_>,
    ) -> Result<Vec<KeyValue>, EngineError> {
        let current = unpublished.revision;
        let point = Point { at: current, current, epoch: self.state.read().epoch };
        let reader = Reader { unpublished: Some(unpublished), is_guarded: true };
        self.get_all_at(range, reader, point)?.map_err(|Overtaken| replaced_under_the_writer())
    }

    fn get_all_at(
        &self,
        range: &KeyRange,
        reader: Reader<'_>,
        point: Point,
    ) -> Result<Result<Vec<KeyValue>, Overtaken>, EngineError> {
        let found: Vec<Version> = {
            let state = self.state.read();
            if let Err(overtaken) = state.still_holds(point, reader.is_guarded) {
                return Ok(Err(overtaken));
            }
            state.index.range(range, point.at).map(|(_, version)| *version).collect()
        };
        self.fetch(&found, reader, point)
    }

    fn range(
        &self,
        request: &RangeRequest,
        is_guarded: bool,
    ) -> Result<RangeResponse, ReadFailure> {
        let point = self.state.read().point(request)?;
        Ok(self.range_at(request, Reader { unpublished: None, is_guarded }, point)??)
    }

    fn range_at(
        &self,
        request: &RangeRequest,
        reader: Reader<'_>,
        point: Point,
    ) -> Result<Result<RangeResponse, Overtaken>, EngineError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut selection = Selection::new(request);
        let mut from: Option<Bytes> = None;
        loop {
            let state = self.state.read();
            if let Err(overtaken) = state.still_holds(point, reader.is_guarded) {
                return Ok(Err(overtaken));
            }
            let next = state.index.walk(&range, from.as_ref(), point.at, STEP_KEYS, |version| {
                selection.add(version);
            });
            match next {
                Some(key) => from = Some(key),
                None => break,
            }
        }
        selection.sort_by_version();
        if !selection.sorts_values() {
            selection.truncate_found();
        }
        Ok(self
            .fetch(&selection.found, reader, point)?
            .map(|kvs| selection.respond(kvs, point.current)))
    }

    /// The records of `found`, in their order.
    fn fetch(
        &self,
        found: &[Version],
        reader: Reader<'_>,
        point: Point,
    ) -> Result<Result<Vec<KeyValue>, Overtaken>, EngineError> {
        let mut kvs = Vec::with_capacity(found.len());
        for step in found.chunks(STEP_KEYS) {
            let (engine, in_memory) = {
                let state = self.state.read();
                if let Err(overtaken) = state.still_holds(point, reader.is_guarded) {
                    return Ok(Err(overtaken));
                }
                let in_memory: Vec<Option<KeyValue>> =
                    step.iter().map(|version| in_memory(&state, version, reader)).collect();
                (Arc::clone(&state.engine), in_memory)
            };
            for (version, kv) in step.iter().zip(in_memory) {
                let kv = match kv {
                    Some(kv) => kv,
                    None => match self.read_record(&*engine, version, point, reader)? {
                        Ok(kv) => kv,
                        Err(overtaken) => return Ok(Err(overtaken)),
                    },
                };
                kvs.push(kv);
            }
        }
        Ok(Ok(kvs))
    }

    fn read_record(
        &self,
        engine: &dyn Engine,
        version: &Version,
        point: Point,
        reader: Reader<'_>,
    ) -> Result<Result<KeyValue, Overtaken>, EngineError> {
        let revision = version.revision();
        match records::get(engine, revision)?.and_then(|event| event.kv) {
            Some(kv) => Ok(Ok(kv)),
            // The mark of a compaction comes before its deletes, so it is seen here.
            None => match self.state.read().still_holds(point, reader.is_guarded) {
                Err(overtaken) => Ok(Err(overtaken)),
                Ok(()) => Err(EngineError::Damaged(format!("record {revision} is missing"))),
            },
        }
    }
}

fn in_memory(state: &State, version: &Version, reader: Reader<'_>) -> Option<KeyValue> {
    let event = match reader.unpublished {
        Some(own) if !own.events.is_empty() && version.main == own.revision => {
            own.events.get(version.sub as usize)
        }
        _ => state.window.event(version.revision()),
    };
    event.map(kv_of).cloned()
}

/// A restore waits for the writer, so it cannot come in between.
fn replaced_under_the_writer() -> EngineError {
    EngineError::Damaged("the state was replaced while an entry was applied".to_owned())
}

/// etcd's order of things: filter, then sort, then limit.
struct Selection<'a> {
    request: &'a RangeRequest,
    order: SortOrder,
    target: SortTarget,
    /// How many are worth collecting.
    keep: usize,
    count: i64,
    found: Vec<Version>,
    more: bool,
}

impl<'a> Selection<'a> {
    fn new(request: &'a RangeRequest) -> Self {
        // Unknown values are refused before; should one come through a log, it sorts nothing.
        let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let has_filter = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        // Keys come in ascending order. With a target but no order etcd limits before it sorts, and
        // sorts ascending: clients see that, so it is done the same way here.
        let sorts_after_limit = order == SortOrder::None && !has_filter;
        let comes_sorted = target == SortTarget::Key && order != SortOrder::Descend;
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        let keep = match limit {
            _ if request.count_only => 0,
            Some(limit) if comes_sorted || sorts_after_limit => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let order = match order {
            SortOrder::None if target != SortTarget::Key => SortOrder::Ascend,
            order => order,
        };
        Self { request, order, target, keep, count: 0, found: Vec::new(), more: false }
    }

    fn add(&mut self, version: &Version) {
        self.count += 1;
        if self.found.len() < self.keep && self.passes(version) {
            self.found.push(*version);
        }
    }

    fn passes(&self, version: &Version) -> bool {
        let within = |revision: i64, min: i64, max: i64| {
            (min == 0 || revision >= min) && (max == 0 || revision <= max)
        };
        let request = self.request;
        within(version.main, request.min_mod_revision, request.max_mod_revision)
            && within(version.created, request.min_create_revision, request.max_create_revision)
    }

    /// Sorting by value has to wait until the values are there.
    fn sorts_values(&self) -> bool {
        self.target == SortTarget::Value
    }

    fn sort_by_version(&mut self) {
        let by =
            |value: fn(&Version) -> i64| move |a: &Version, b: &Version| value(a).cmp(&value(b));
        match self.target {
            SortTarget::Key if self.order == SortOrder::Descend => self.found.reverse(),
            SortTarget::Key | SortTarget::Value => {}
            SortTarget::Version => sort(&mut self.found, self.order, by(|version| version.version)),
            SortTarget::Create => sort(&mut self.found, self.order, by(|version| version.created)),
            SortTarget::Mod => sort(&mut self.found, self.order, by(|version| version.main)),
        }
    }

    fn truncate_found(&mut self) {
        self.more = truncate(&mut self.found, self.request.limit);
    }

    fn respond(mut self, mut kvs: Vec<KeyValue>, current: i64) -> RangeResponse {
        if self.sorts_values() {
            sort(&mut kvs, self.order, |a, b| a.value.cmp(&b.value));
            self.more = truncate(&mut kvs, self.request.limit);
        }
        if self.request.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
            }
        }
        RangeResponse { header: header(current), kvs, more: self.more, count: self.count }
    }
}

fn sort<T>(items: &mut [T], order: SortOrder, compare: impl Fn(&T, &T) -> Ordering) {
    match order {
        SortOrder::Descend => items.sort_by(|a, b| compare(b, a)),
        SortOrder::Ascend | SortOrder::None => items.sort_by(compare),
    }
}

/// Cuts to `limit`, if there is one, and says whether that took anything away.
fn truncate<T>(items: &mut Vec<T>, limit: i64) -> bool {
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 && items.len() > limit => {
            items.truncate(limit);
            true
        }
        _ => false,
    }
}
