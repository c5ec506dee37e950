//! The JSON form of the services, for curl and for clients without gRPC: etcd's gRPC gateway.
//!
//! A message is the proto3 JSON of its gRPC twin: bytes in base64, 64-bit integers as strings,
//! fields with their zero value left out. A stream is a line for each message, `{"result":{…}}`.
//! An error carries the gRPC code and text, under the HTTP status that belongs to the code.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use futures::{Stream, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store_proto::etcdserverpb::cluster_server::Cluster as _;
use store_proto::etcdserverpb::kv_server::Kv as _;
use store_proto::etcdserverpb::lease_server::Lease as _;
use store_proto::etcdserverpb::maintenance_server::Maintenance as _;
use store_proto::etcdserverpb::{LeaseKeepAliveRequest, WatchRequest};
use store_proto::v3electionpb::election_server::Election as _;
use store_proto::v3lockpb::lock_server::Lock as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::cluster::ClusterServer;
use super::election::ElectionServer;
use super::kv::KvServer;
use super::lease::LeaseServer;
use super::lock::LockServer;
use super::maintenance::MaintenanceServer;
use super::watch::WatchServer;
use crate::member::Member;

/// Requests of one JSON watch stream that may wait to be looked at.
const WATCH_REQUESTS: usize = 16;
/// Base64 and the names of the fields take room that the message itself does not.
const JSON_OVERHEAD: usize = 2;
const JSON_EXTRA_BYTES: usize = 64 << 10;

/// The routes below `/v3`.
pub(crate) fn router(member: &Arc<Member>) -> Router {
    /// A route whose JSON goes through one method of one service.
    macro_rules! unary {
        ($server:expr, $method:ident) => {{
            let server = $server.clone();
            post(move |body: Bytes| async move {
                answer(&body, |request| async move { server.$method(Request::new(request)).await })
                    .await
            })
        }};
    }
    let kv = KvServer(Arc::clone(member));
    let lease = LeaseServer(Arc::clone(member));
    let cluster = ClusterServer(Arc::clone(member));
    let maintenance = MaintenanceServer(Arc::clone(member));
    let watch = WatchServer(Arc::clone(member));
    let lock = LockServer(Arc::clone(member));
    let election = ElectionServer(Arc::clone(member));
    let keep_alive = {
        let lease = lease.clone();
        post(move |body: Bytes| keep_alive(lease.clone(), body))
    };
    let backup = {
        let maintenance = maintenance.clone();
        post(move |body: Bytes| backup(maintenance.clone(), body))
    };
    Router::new()
        .route("/v3/kv/range", unary!(kv, range))
        .route("/v3/kv/put", unary!(kv, put))
        .route("/v3/kv/deleterange", unary!(kv, delete_range))
        .route("/v3/kv/txn", unary!(kv, txn))
        .route("/v3/kv/compaction", unary!(kv, compact))
        .route("/v3/lease/grant", unary!(lease, lease_grant))
        .route("/v3/lease/revoke", unary!(lease, lease_revoke))
        .route("/v3/lease/timetolive", unary!(lease, lease_time_to_live))
        .route("/v3/lease/leases", unary!(lease, lease_leases))
        .route("/v3/lease/keepalive", keep_alive)
        .route("/v3/kv/lease/revoke", unary!(lease, lease_revoke))
        .route("/v3/kv/lease/timetolive", unary!(lease, lease_time_to_live))
        .route("/v3/kv/lease/leases", unary!(lease, lease_leases))
        .route("/v3/cluster/member/list", unary!(cluster, member_list))
        .route("/v3/cluster/member/add", unary!(cluster, member_add))
        .route("/v3/cluster/member/remove", unary!(cluster, member_remove))
        .route("/v3/cluster/member/update", unary!(cluster, member_update))
        .route("/v3/cluster/member/promote", unary!(cluster, member_promote))
        .route("/v3/maintenance/alarm", unary!(maintenance, alarm))
        .route("/v3/maintenance/status", unary!(maintenance, status))
        .route("/v3/maintenance/defragment", unary!(maintenance, defragment))
        .route("/v3/maintenance/hash", unary!(maintenance, hash_kv))
        .route("/v3/maintenance/snapshot", backup)
        .route("/v3/maintenance/transfer-leadership", unary!(maintenance, move_leader))
        .route("/v3/lock/lock", unary!(lock, lock))
        .route("/v3/lock/unlock", unary!(lock, unlock))
        .route("/v3/election/campaign", unary!(election, campaign))
        .route("/v3/election/proclaim", unary!(election, proclaim))
        .route("/v3/election/leader", unary!(election, leader))
        .route("/v3/election/resign", unary!(election, resign))
        .route("/v3/election/observe", post(move |body: Bytes| observe(election.clone(), body)))
        .layer(DefaultBodyLimit::max(JSON_OVERHEAD * member.max_request_bytes + JSON_EXTRA_BYTES))
        .route("/v3/watch", post(move |body: Body| watch_stream(watch.clone(), body)))
}

async fn answer<Req, Resp, Call, Answer>(body: &[u8], call: Call) -> Response
where
    Req: DeserializeOwned,
    Resp: Serialize,
    Call: FnOnce(Req) -> Answer,
    Answer: Future<Output = Result<tonic::Response<Resp>, Status>>,
{
    let request = match parse(body) {
        Ok(request) => request,
        Err(status) => return failure(&status),
    };
    match call(request).await {
        Ok(response) => match serde_json::to_vec(response.get_ref()) {
            Ok(json) => with_json(StatusCode::OK, Body::from(json)),
            Err(error) => failure(&Status::internal(error.to_string())),
        },
        Err(status) => failure(&status),
    }
}

/// An empty body stands for an empty message.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn with_json(status: StatusCode, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// What stands in the body of an answer that is an error.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    message: &'a str,
    code: i32,
}

pub(super) fn failure(status: &Status) -> Response {
    let message = status.message();
    let body = ErrorBody { error: message, message, code: status.code() as i32 };
    let json = serde_json::to_vec(&body).unwrap_or_default();
    with_json(http_status(status.code()), Body::from(json))
}

/// The gateway's own table of codes.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// One line of a stream. The names and their order are the gateway's.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a, T> {
    Result(T),
    Error { grpc_code: i32, http_code: u16, message: &'a str, http_status: Option<&'a str> },
}

fn line<T: Serialize>(message: &Result<T, Status>) -> Bytes {
    let line = match message {
        Ok(message) => Line::Result(message),
        Err(status) => Line::Error {
            grpc_code: status.code() as i32,
            http_code: http_status(status.code()).as_u16(),
            message: status.message(),
            http_status: http_status(status.code()).canonical_reason(),
        },
    };
    // These messages are of strings, numbers and lists only, which JSON can always hold.
    let mut json = serde_json::to_vec(&line).unwrap_or_default();
    json.push(b'\n');
    Bytes::from(json)
}

fn streamed<T: Serialize + Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Response {
    let lines = messages.map(|message| Ok::<_, Infallible>(line(&message)));
    with_json(StatusCode::OK, Body::from_stream(lines))
}

async fn backup(maintenance: MaintenanceServer, body: Bytes) -> Response {
    let request = match parse(&body) {
        Ok(request) => request,
        Err(status) => return failure(&status),
    };
    match maintenance.snapshot(Request::new(request)).await {
        Ok(response) => streamed(response.into_inner()),
        Err(status) => failure(&status),
    }
}

/// A keep-alive for each JSON object in the body, and a line for each.
async fn keep_alive(lease: LeaseServer, body: Bytes) -> Response {
    let requests: Result<Vec<LeaseKeepAliveRequest>, _> =
        serde_json::Deserializer::from_slice(&body).into_iter().collect();
    let requests = match requests {
        Ok(requests) => requests,
        Err(error) => return failure(&Status::invalid_argument(error.to_string())),
    };
    streamed(futures::stream::iter(requests).then(move |request| {
        let lease = lease.clone();
        async move { lease.keep_alive(request.id).await }
    }))
}

async fn observe(election: ElectionServer, body: Bytes) -> Response {
    let request = match parse(&body) {
        Ok(request) => request,
        Err(status) => return failure(&status),
    };
    match election.observe(Request::new(request)).await {
        Ok(responses) => streamed(responses.into_inner()),
        Err(status) => failure(&status),
    }
}

/// A watch stream: requests are taken from the body as they come in; the end of the body does not
/// end the watches.
async fn watch_stream(watch: WatchServer, body: Body) -> Response {
    let mut body = body.into_data_stream();
    let mut parser = JsonObjects::new(watch.0.max_request_bytes);
    // The first part is read before anything is answered, so that nonsense gets a 400.
    let first = match next_requests(&mut body, &mut parser).await {
        Some(Ok(requests)) => requests,
        Some(Err(status)) => return failure(&status),
        None => Vec::new(),
    };
    let (sender, requests) = mpsc::channel(WATCH_REQUESTS);
    let responses = match watch.open(ReceiverStream::new(requests).map(Ok)) {
        Ok(responses) => responses,
        Err(status) => return failure(&status),
    };
    let feed = async move {
        let mut next = Some(Ok(first));
        while let Some(Ok(requests)) = next {
            for request in requests {
                if sender.send(request).await.is_err() {
                    return;
                }
            }
            next = next_requests(&mut body, &mut parser).await;
        }
        // The sender is kept: dropping it would look like a client that hung up.
        std::future::pending::<()>().await;
    };
    streamed(alongside(responses, feed))
}

/// `stream`, with `work` polled as a part of it and dropped with it.
fn alongside<T>(
    stream: impl Stream<Item = T> + Send + 'static,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = T> + Send + 'static {
    let work = futures::stream::once(work).filter_map(|()| async { None });
    futures::stream::select(stream, work)
}

async fn next_requests(
    body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
    parser: &mut JsonObjects,
) -> Option<Result<Vec<WatchRequest>, Status>> {
    loop {
        let part = body.next().await?;
        let result = part
            .map_err(|error| Status::cancelled(error.to_string()))
            .and_then(|part| parser.push(&part));
        match result {
            Ok(requests) if requests.is_empty() => {}
            result => return Some(result),
        }
    }
}

/// Cuts a stream of bytes into JSON objects.
struct JsonObjects {
    buffer: Vec<u8>,
    limit_bytes: usize,
}

impl JsonObjects {
    fn new(limit_bytes: usize) -> Self {
        Self { buffer: Vec::new(), limit_bytes }
    }

    /// The objects that are complete now.
    fn push<T: DeserializeOwned>(&mut self, part: &[u8]) -> Result<Vec<T>, Status> {
        self.buffer.extend_from_slice(part);
        let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter();
        let mut complete = Vec::new();
        let mut used = 0;
        while let Some(value) = values.next() {
            match value {
                Ok(value) => {
                    complete.push(value);
                    used = values.byte_offset();
                }
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(Status::invalid_argument(error.to_string())),
            }
        }
        self.buffer.drain(..used);
        if self.buffer.len() > self.limit_bytes {
            return Err(crate::RequestError::RequestTooLarge.into());
        }
        Ok(complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_cut_wherever_the_parts_end() {
        let text = br#"{"create_request":{"key":"Zm9v"}} {"cancel_request":{"watch_id":"3"}}"#;
        for cut in 0..text.len() {
            let mut parser = JsonObjects::new(1000);
            let mut requests: Vec<WatchRequest> = parser.push(&text[..cut]).unwrap();
            requests.extend(parser.push::<WatchRequest>(&text[cut..]).unwrap());
            assert_eq!(requests.len(), 2, "cut at {cut}");
        }
    }

    #[test]
    fn an_object_without_an_end_is_refused_at_the_limit() {
        let mut parser = JsonObjects::new(8);
        let result: Result<Vec<WatchRequest>, _> = parser.push(b"{\"create_req");
        assert_eq!(result.unwrap_err().message(), "etcdserver: request is too large");
    }

    #[test]
    fn either_case_is_read_and_snake_case_is_written() {
        let request: store_proto::etcdserverpb::RangeRequest =
            parse(br#"{"key":"Zm9v","rangeEnd":"AA==","sort_target":"MOD","unknown":1}"#).unwrap();
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"key":"Zm9v","range_end":"AA==","sort_target":"MOD"}"#);
    }
}
