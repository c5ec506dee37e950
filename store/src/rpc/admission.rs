//! What is refused before any service looks at it, as by etcd's interceptors: requests that learners
//! do not take, and requests that insist on a leader (`hasleader: true`) while there is none.
//!
//! A stream that insists on one is ended when there has been none for a while, so that its client
//! goes to another member instead of waiting for news that cannot come.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::Status;

use crate::error::RequestError;
use crate::member::Member;

/// Whoever sends this wants no answer from a member that is cut off.
const HAS_LEADER: &str = "hasleader";

/// What a learner takes, as with etcd. Of Range only what is serializable: the service looks.
const FOR_LEARNERS: [&str; 6] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
    "/v3/kv/range",
    "/v3/maintenance/status",
    "/v3/maintenance/snapshot",
];

/// Whether a request with these headers insists on a leader.
pub(super) fn needs_leader(headers: &HeaderMap) -> bool {
    headers.get(HAS_LEADER).is_some_and(|value| value.as_bytes() == b"true")
}

/// Why a request for this path is refused, if it is.
pub(super) fn refusal(member: &Member, path: &str, needs_leader: bool) -> Option<RequestError> {
    if member.is_learner() {
        let path = today(path);
        if is_api(&path) && !FOR_LEARNERS.contains(&&*path) {
            return Some(RequestError::NotForLearners);
        }
    }
    (needs_leader && member.leader_in_contact().is_none()).then_some(RequestError::NoLeader)
}

/// The gateway's paths of a version before 3.4, as they are called now.
fn today(path: &str) -> Cow<'_, str> {
    match path.strip_prefix("/v3beta/") {
        Some(rest) => Cow::Owned(format!("/v3/{rest}")),
        None => Cow::Borrowed(path),
    }
}

/// Not the health of the member, nor its version.
fn is_api(path: &str) -> bool {
    path.starts_with("/etcdserverpb.")
        || path.starts_with("/v3lockpb.")
        || path.starts_with("/v3electionpb.")
        || path.starts_with("/v3/")
}

/// Whether a request or an answer with these headers is gRPC's.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The body of a gRPC answer. That of a request that insists on a leader ends with an error when
/// there is none for too long.
pub(crate) struct UntilCutOff<B> {
    /// `None`: it has ended so.
    body: Option<B>,
    without_leader: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<B> UntilCutOff<B> {
    /// `cut_off`: whether there is no leader, where that matters.
    pub(super) fn new(body: B, cut_off: Option<watch::Receiver<bool>>) -> Self {
        let without_leader =
            cut_off.map(|mut cut_off| -> Pin<Box<dyn Future<Output = ()> + Send>> {
                Box::pin(async move {
                    if cut_off.wait_for(|cut_off| *cut_off).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
            });
        Self { body: Some(body), without_leader }
    }
}

impl<B: HttpBody + Unpin> HttpBody for UntilCutOff<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = Pin::new(body).poll_frame(context);
        if next.is_pending()
            && let Some(without_leader) = &mut self.without_leader
            && without_leader.as_mut().poll(context).is_ready()
        {
            self.body = None;
            let mut trailers = HeaderMap::new();
            let ended = Status::from(RequestError::NoLeader).add_header(&mut trailers);
            return Poll::Ready(ended.is_ok().then(|| Ok(Frame::trailers(trailers))));
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
