//! All that ever happened to objects, as the store tells it.

use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use store_proto::mvccpb::event::EventType;

use super::store::Member;
use super::wait::wait_for;

/// What the keys of all objects begin with.
pub(crate) const REGISTRY: &str = "/registry/";
/// What the keys of the pods that the flat API shows begin with.
pub(crate) const PODS: &str = "/registry/pods/default/";

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) key: String,
    pub(crate) kind: &'static str,
}

impl Change {
    /// Of what etcd tells, as the flat API names it.
    pub(crate) fn new(key: String, revision: i64, created: i64, deleted: bool) -> Self {
        let kind = match deleted {
            true => "DELETED",
            false if created == revision => "ADDED",
            false => "MODIFIED",
        };
        Self { revision, key, kind }
    }
}

/// All changes from the first revision to the last one of `last_key`, asked of one member.
pub(crate) async fn history(member: &Member, last_key: &str) -> Vec<Change> {
    let create = WatchCreateRequest {
        key: REGISTRY.into(),
        range_end: end_of(REGISTRY).into(),
        start_revision: 1,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    wait_for("one member tells the whole history", async || {
        let requests = tokio_stream::StreamExt::chain(
            tokio_stream::once(request.clone()),
            tokio_stream::pending(),
        );
        let mut stream = member.watch().watch(requests).await?.into_inner();
        let mut changes = Vec::new();
        while let Some(answer) = stream.message().await? {
            for event in answer.events {
                let pair = event.kv.clone().unwrap_or_default();
                let key = String::from_utf8_lossy(&pair.key).into_owned();
                let deleted = event.r#type() == EventType::Delete;
                let last = key == last_key;
                changes.push(Change::new(key, pair.mod_revision, pair.create_revision, deleted));
                if last {
                    return Ok(changes);
                }
            }
        }
        Err(tonic::Status::aborted("the watch ended"))
    })
    .await
}

/// The end of the range of all keys that begin so.
pub(crate) fn end_of(prefix: &str) -> String {
    let (last, front) = prefix.as_bytes().split_last().expect("a prefix is not empty");
    let mut end = front.to_vec();
    end.push(last + 1);
    String::from_utf8(end).expect("ASCII")
}
