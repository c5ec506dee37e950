//! What is refused before any service looks at it, as by etcd's interceptors: requests that learners
//! do not take, and requests that insist on a leader (`hasleader: true`) while there is none.
//!
//! A stream that insists on one is ended when there has been none for a while, so that its client
//! goes to another member instead of waiting for news that cannot come.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Request};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame};
use tonic::Status;

use super::gateway;
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

/// Passes a request on, or refuses it.
pub(super) async fn admit(
    State(member): State<Arc<Member>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let needs_leader =
        request.headers().get(HAS_LEADER).is_some_and(|value| value.as_bytes() == b"true");
    let path = today(request.uri().path());
    let refused = if is_api(&path) && member.is_learner() && !FOR_LEARNERS.contains(&&*path) {
        Some(RequestError::NotForLearners)
    } else if needs_leader && member.leader_in_contact().is_none() {
        Some(RequestError::NoLeader)
    } else {
        None
    };
    if let Some(error) = refused {
        let status = Status::from(error);
        return if is_grpc(request.headers()) {
            status.into_http()
        } else {
            gateway::failure(&status)
        };
    }
    let response = next.run(request).await;
    if !needs_leader || !is_grpc(response.headers()) {
        return response;
    }
    let mut cut_off = member.cut_off.clone();
    let without_leader = async move {
        if cut_off.wait_for(|cut_off| *cut_off).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    response.map(|body| Body::new(UntilCutOff { body, without_leader: Box::pin(without_leader) }))
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

/// The body of a gRPC answer, which ends with an error when there is no leader for too long.
struct UntilCutOff {
    body: Body,
    without_leader: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for UntilCutOff {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.body.is_end_stream() {
            return Poll::Ready(None);
        }
        let next = Pin::new(&mut self.body).poll_frame(context);
        if next.is_pending() && self.without_leader.as_mut().poll(context).is_ready() {
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            let ended = Status::from(RequestError::NoLeader).add_header(&mut trailers);
            return Poll::Ready(ended.is_ok().then(|| Ok(Frame::trailers(trailers))));
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
