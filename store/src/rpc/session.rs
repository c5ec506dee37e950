//! What locks and elections have in common: a place in a queue of keys.
//!
//! Whoever wants in puts the key `NAME/LEASE` (the lease's id in hexadecimal), bound to its lease.
//! First is who has the oldest key, by create revision; everybody else waits for the deletion of
//! the one key that is next older than its own, so that a deletion wakes one waiter:
//!
//! ```text
//! create revision  key        waits for the deletion of
//! 5                job/694d   nobody: it holds the lock, or leads
//! 7                job/694f   job/694d
//! 9                job/6951   job/694f
//! ```
//!
//! This is etcd's scheme (its `client/v3/concurrency`), so locks and elections of etcd's own
//! clients, which write these keys themselves, queue up with those of the two services. Everything
//! goes through the other services with the metadata of the call, as if the client had sent it.
//!
//! Nobody waits for nobody: when a call goes away while it waits, its key is deleted. Two things are
//! done better than in etcd: a waiter whose key is gone (its lease expired) is told at once, and so
//! is one in an election; and a call that goes away before its first answer leaves no key either.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use store_proto::etcdserverpb::kv_server::Kv as _;
use store_proto::etcdserverpb::lease_server::Lease as _;
use store_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use store_proto::etcdserverpb::request_op::Request as Op;
use store_proto::etcdserverpb::response_op::Response as OpResponse;
use store_proto::etcdserverpb::watch_create_request::FilterType;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchRequest, WatchResponse,
};
use store_proto::mvccpb::KeyValue;
use store_proto::mvccpb::event::EventType;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Status};

use super::kv::KvServer;
use super::lease::LeaseServer;
use super::watch::WatchServer;
use crate::member::Member;

/// The lease of a client that brings none; etcd's.
const DEFAULT_TTL_SECONDS: i64 = 60;
/// How long a key that must go is tried to be deleted: after that time a default lease is over.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);
const LEAVE_PAUSE: Duration = Duration::from_millis(200);

/// The calls of one client to the other services.
#[derive(Clone)]
pub(super) struct Session {
    member: Arc<Member>,
    metadata: MetadataMap,
}

/// A key in the queue.
#[derive(Clone, Debug)]
pub(super) struct Place {
    prefix: Bytes,
    pub(super) key: Bytes,
    pub(super) create_revision: i64,
    /// The key was put by this call; otherwise another one with the same lease stood there.
    is_new: bool,
    /// Nothing in the queue was older when it was entered.
    is_first: bool,
    /// What stood at the key, if it is not new.
    pub(super) value: Bytes,
    /// The header of the answer that told the place.
    pub(super) header: Option<ResponseHeader>,
}

impl Session {
    pub(super) fn new(member: &Arc<Member>, metadata: MetadataMap) -> Self {
        Self { member: Arc::clone(member), metadata }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), Extensions::default(), message)
    }

    /// The client's lease, or one that is granted now if it names none.
    pub(super) async fn lease(&self, id: i64) -> Result<i64, Status> {
        if id != 0 {
            return Ok(id);
        }
        let grant = LeaseGrantRequest { ttl: DEFAULT_TTL_SECONDS, id: 0 };
        let granted = LeaseServer(Arc::clone(&self.member)).lease_grant(self.request(grant)).await;
        Ok(granted.map_err(plain)?.get_ref().id)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let server = KvServer(Arc::clone(&self.member));
        Ok(server.range(self.request(request)).await.map_err(plain)?.into_inner())
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let server = KvServer(Arc::clone(&self.member));
        Ok(server.txn(self.request(request)).await.map_err(plain)?.into_inner())
    }

    pub(super) async fn delete(&self, key: Bytes) -> Result<DeleteRangeResponse, Status> {
        let server = KvServer(Arc::clone(&self.member));
        let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        Ok(server.delete_range(self.request(request)).await.map_err(plain)?.into_inner())
    }

    /// Watches keys, each from its own revision on, on one stream.
    fn watch(&self, watches: Vec<WatchCreateRequest>) -> Result<Changes, Status> {
        let create =
            |create| WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests: Vec<_> = watches.into_iter().map(create).map(Ok).collect();
        let server = WatchServer(Arc::clone(&self.member));
        server.open(stream::iter(requests).chain(stream::pending()))
    }

    /// Puts the key of this lease into the queue `name`, unless it stands there already.
    pub(super) async fn enter(
        &self,
        name: &Bytes,
        lease: i64,
        value: &Bytes,
    ) -> Result<Place, Status> {
        let prefix = prefix(name);
        let key = Bytes::from([&prefix[..], hexadecimal(lease).as_bytes()].concat());
        let put = Op::RequestPut(PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        });
        let get = Op::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() });
        let oldest = Op::RequestRange(oldest(&prefix));
        let request = if_created_at(&key, 0, [put, oldest.clone()], [get, oldest]);
        let response = self.txn(request).await?;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let mut found = response.responses.into_iter().filter_map(|op| match op.response {
            Some(OpResponse::ResponseRange(range)) => Some(range.kvs.into_iter().next()),
            _ => None,
        });
        let own = if response.succeeded { None } else { found.next().flatten() };
        let (create_revision, value) = match own {
            Some(kv) => (kv.create_revision, kv.value),
            None => (revision, value.clone()),
        };
        let oldest = found.next().flatten();
        Ok(Place {
            prefix,
            key,
            create_revision,
            is_new: response.succeeded,
            is_first: oldest.is_none_or(|oldest| oldest.create_revision == create_revision),
            value,
            header: response.header,
        })
    }

    /// Waits until every older key of the queue is deleted; the header of the answer that said so.
    /// `None` when the place itself is gone.
    async fn first(&self, place: &Place) -> Result<Option<ResponseHeader>, Status> {
        loop {
            let older = RangeRequest {
                key: place.prefix.clone(),
                range_end: end_of_prefix(&place.prefix),
                limit: 1,
                max_create_revision: place.create_revision - 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                keys_only: true,
                ..RangeRequest::default()
            };
            // Nothing is older than the first revision.
            let older = match older.max_create_revision {
                1.. => self.range(older).await?,
                _ => RangeResponse::default(),
            };
            let own = RangeRequest { key: place.key.clone(), ..RangeRequest::default() };
            let own = self.range(own).await?;
            if own.kvs.first().is_none_or(|kv| kv.create_revision != place.create_revision) {
                return Ok(None);
            }
            let Some(next_older) = older.kvs.into_iter().next() else {
                return Ok(own.header);
            };
            let deletion = |key: Bytes, header: &Option<ResponseHeader>| WatchCreateRequest {
                key,
                start_revision: header.as_ref().map_or(0, |header| header.revision) + 1,
                filters: vec![FilterType::Noput.into()],
                ..WatchCreateRequest::default()
            };
            let mut changes = self.watch(vec![
                deletion(next_older.key, &older.header),
                deletion(place.key.clone(), &own.header),
            ])?;
            while let Some(response) = changes.next().await {
                let response = response?;
                // Canceled: compacted before it began, so what happened is read instead.
                if response.canceled || !response.events.is_empty() {
                    break;
                }
            }
        }
    }

    /// Waits until a place is the first, for a client that may go away meanwhile; the header of the
    /// answer that told so. However that ends but well, the place is given up.
    pub(super) async fn become_first(
        &self,
        place: &Place,
        abandoned: &CancellationToken,
        expired: &str,
    ) -> Result<Option<ResponseHeader>, Status> {
        let waiting = async {
            if place.is_first {
                return Ok(place.header);
            }
            self.first(place).await?.map(Some).ok_or_else(|| unknown(expired))
        };
        let waited = tokio::select! {
            biased;
            waited = waiting => waited,
            () = abandoned.cancelled() => Err(went_away()),
        };
        // Who has been first already with another call stays so when this one is lost.
        let was_lost = abandoned.is_cancelled() && place.is_new;
        if waited.is_err() || was_lost {
            self.leave(place).await;
        }
        waited
    }

    /// Deletes the key of a place, if it is still that place's; tries for a while.
    pub(super) async fn leave(&self, place: &Place) {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while let Err(error) = self.delete_created_at(&place.key, place.create_revision).await {
            if self.member.stop.is_cancelled() || Instant::now() >= deadline {
                tracing::warn!(%error, "the key of a waiter that went away stays until its lease ends");
                return;
            }
            tokio::time::sleep(LEAVE_PAUSE).await;
        }
    }

    /// Deletes `key` if it was created at this revision.
    pub(super) async fn delete_created_at(
        &self,
        key: &Bytes,
        create_revision: i64,
    ) -> Result<TxnResponse, Status> {
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        let delete = Op::RequestDeleteRange(delete);
        self.txn(if_created_at(key, create_revision, [delete], [])).await
    }

    /// Puts `value` to `key` if it was created at this revision.
    pub(super) async fn put_created_at(
        &self,
        key: &Bytes,
        create_revision: i64,
        value: &Bytes,
        lease: i64,
    ) -> Result<TxnResponse, Status> {
        let put = Op::RequestPut(PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        });
        self.txn(if_created_at(key, create_revision, [put], [])).await
    }

    /// The oldest key of the queue `name` with its value.
    pub(super) async fn oldest(
        &self,
        name: &Bytes,
    ) -> Result<(Option<ResponseHeader>, Option<KeyValue>), Status> {
        let response = self.range(oldest(&prefix(name))).await?;
        Ok((response.header, response.kvs.into_iter().next()))
    }

    /// Watches the whole queue `name`.
    pub(super) fn watch_queue(&self, name: &Bytes, from: i64) -> Result<Changes, Status> {
        let prefix = prefix(name);
        let queue = WatchCreateRequest {
            range_end: end_of_prefix(&prefix),
            key: prefix,
            start_revision: from,
            filters: vec![FilterType::Nodelete.into()],
            ..WatchCreateRequest::default()
        };
        self.watch(vec![queue])
    }

    /// Watches one key.
    pub(super) fn watch_key(&self, key: Bytes, from: i64) -> Result<Changes, Status> {
        let key = WatchCreateRequest { key, start_revision: from, ..WatchCreateRequest::default() };
        self.watch(vec![key])
    }

    /// Runs `work` to its end, whatever becomes of the call that this is a part of: when that goes
    /// away, `work` hears of it and can clean up.
    pub(super) async fn attended<T, Work>(
        self,
        work: impl FnOnce(Self, CancellationToken) -> Work,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let abandoned = CancellationToken::new();
        let _abandon = abandoned.clone().drop_guard();
        let tasks = self.member.tasks.clone();
        let work = tasks.spawn(work(self, abandoned));
        work.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }
}

/// What happens to watched keys.
pub(super) type Changes = stream::BoxStream<'static, Result<WatchResponse, Status>>;

/// Whether a deletion is among what happened.
pub(super) fn is_deletion(event: &store_proto::mvccpb::Event) -> bool {
    event.r#type() == EventType::Delete
}

fn prefix(name: &Bytes) -> Bytes {
    Bytes::from([&name[..], b"/"].concat())
}

fn oldest(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end_of_prefix(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

/// The first key behind those with this prefix, which ends with a slash.
fn end_of_prefix(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// A lease's id as Go writes it with `%x`: of a negative one the sign and then the amount.
fn hexadecimal(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

fn if_created_at<const S: usize, const F: usize>(
    key: &Bytes,
    create_revision: i64,
    success: [Op; S],
    failure: [Op; F],
) -> TxnRequest {
    let operations = |operations: &mut dyn Iterator<Item = Op>| {
        operations.map(|request| RequestOp { request: Some(request) }).collect()
    };
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(create_revision)),
            ..Compare::default()
        }],
        success: operations(&mut success.into_iter()),
        failure: operations(&mut failure.into_iter()),
    }
}

fn went_away() -> Status {
    Status::cancelled("the client went away")
}

/// etcd's two services answer with the texts of the others but without their codes. That the store
/// is not available is told as such nevertheless: clients go on to another member by that.
fn plain(status: Status) -> Status {
    match status.code() {
        Code::Unavailable | Code::Unauthenticated => status,
        _ => unknown(status.message()),
    }
}

/// An error with a text and no code of its own.
pub(super) fn unknown(text: impl Display) -> Status {
    Status::unknown(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_written_as_etcds_clients_write_them() {
        let cases = [(1, "1"), (0x694d_81e1_0a0a_7b04, "694d81e10a0a7b04"), (-255, "-ff")];
        for (id, text) in cases {
            assert_eq!(hexadecimal(id), text);
        }
        assert_eq!(hexadecimal(i64::MIN), "-8000000000000000");
    }

    #[test]
    fn a_queue_is_the_keys_below_its_name() {
        let prefix = prefix(&"job".into());
        assert_eq!((&prefix[..], &end_of_prefix(&prefix)[..]), (&b"job/"[..], &b"job0"[..]));
    }

    #[test]
    fn only_a_store_that_is_not_there_keeps_its_code() {
        let codes = [
            (Code::Unavailable, Code::Unavailable),
            (Code::NotFound, Code::Unknown),
            (Code::InvalidArgument, Code::Unknown),
        ];
        for (code, expected) in codes {
            let status = plain(Status::new(code, "text"));
            assert_eq!((status.code(), status.message()), (expected, "text"));
        }
    }
}
