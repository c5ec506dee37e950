//! The JSON form of the services, for curl and for clients without gRPC: etcd's gRPC gateway.
//!
//! A message is the proto3 JSON of its gRPC twin: bytes in base64, 64-bit integers as strings,
//! fields with their zero value left out. A stream is a line for each message, `{"result":{…}}`.
//! An error carries the gRPC code and text, under the HTTP status that belongs to the code.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use futures::{Stream, StreamExt as _, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store_proto::etcdserverpb::auth_server::Auth as _;
use store_proto::etcdserverpb::cluster_server::Cluster as _;
use store_proto::etcdserverpb::kv_server::Kv as _;
use store_proto::etcdserverpb::lease_server::Lease as _;
use store_proto::etcdserverpb::maintenance_server::Maintenance as _;
use store_proto::etcdserverpb::{LeaseKeepAliveRequest, WatchRequest};
use store_proto::v3electionpb::election_server::Election as _;
use store_proto::v3lockpb::lock_server::Lock as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::auth::AuthServer;
use super::cluster::ClusterServer;
use super::election::ElectionServer;
use super::kv::KvServer;
use super::lease::LeaseServer;
use super::lock::LockServer;
use super::maintenance::MaintenanceServer;
use super::watch::WatchServer;
use crate::member::Member;

/// Base64 and the names of the fields take room that the message itself does not.
const JSON_OVERHEAD: usize = 2;
const JSON_EXTRA_BYTES: usize = 64 << 10;

/// The routes below `/v3`, and below the older `/v3beta`, which etcd 3.4 serves as well.
pub(super) fn router(member: &Arc<Member>) -> Router {
    let api = api(member);
    let router = Router::new().nest("/v3beta", api.clone()).nest("/v3", api);
    router.method_not_allowed_fallback(async || {
        (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n").into_response()
    })
}

fn api(member: &Arc<Member>) -> Router {
    /// A route whose JSON goes through one method of one service.
    macro_rules! unary {
        ($server:expr, $method:ident) => {{
            let server = $server.clone();
            post(move |headers: HeaderMap, body: Bytes| async move {
                answer(&headers, &body, |request| async move { server.$method(request).await })
                    .await
            })
        }};
    }
    /// The same for one that answers with a stream.
    macro_rules! streaming {
        ($server:expr, $method:ident) => {{
            let server = $server.clone();
            post(move |headers: HeaderMap, body: Bytes| async move {
                let request = match parse(&body) {
                    Ok(request) => with_metadata(&headers, request),
                    Err(status) => return failure(&status),
                };
                match server.$method(request).await {
                    Ok(responses) => streamed(responses.into_inner()),
                    Err(status) => failure(&status),
                }
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
    let auth = AuthServer(Arc::clone(member));
    let keep_alive = {
        let lease = lease.clone();
        post(move |body: Body| keep_alive(lease.clone(), body))
    };
    Router::new()
        .route("/kv/range", unary!(kv, range))
        .route("/kv/put", unary!(kv, put))
        .route("/kv/deleterange", unary!(kv, delete_range))
        .route("/kv/txn", unary!(kv, txn))
        .route("/kv/compaction", unary!(kv, compact))
        .route("/lease/grant", unary!(lease, lease_grant))
        .route("/lease/revoke", unary!(lease, lease_revoke))
        .route("/lease/timetolive", unary!(lease, lease_time_to_live))
        .route("/lease/leases", unary!(lease, lease_leases))
        .route("/kv/lease/revoke", unary!(lease, lease_revoke))
        .route("/kv/lease/timetolive", unary!(lease, lease_time_to_live))
        .route("/kv/lease/leases", unary!(lease, lease_leases))
        .route("/cluster/member/list", unary!(cluster, member_list))
        .route("/cluster/member/add", unary!(cluster, member_add))
        .route("/cluster/member/remove", unary!(cluster, member_remove))
        .route("/cluster/member/update", unary!(cluster, member_update))
        .route("/cluster/member/promote", unary!(cluster, member_promote))
        .route("/maintenance/alarm", unary!(maintenance, alarm))
        .route("/maintenance/status", unary!(maintenance, status))
        .route("/maintenance/defragment", unary!(maintenance, defragment))
        .route("/maintenance/hash", unary!(maintenance, hash))
        .route("/maintenance/hashkv", unary!(maintenance, hash_kv))
        .route("/maintenance/transfer-leadership", unary!(maintenance, move_leader))
        .route("/maintenance/snapshot", streaming!(maintenance, snapshot))
        .route("/lock/lock", unary!(lock, lock))
        .route("/lock/unlock", unary!(lock, unlock))
        .route("/election/campaign", unary!(election, campaign))
        .route("/election/proclaim", unary!(election, proclaim))
        .route("/election/leader", unary!(election, leader))
        .route("/election/resign", unary!(election, resign))
        .route("/election/observe", streaming!(election, observe))
        .route("/auth/enable", unary!(auth, auth_enable))
        .route("/auth/disable", unary!(auth, auth_disable))
        .route("/auth/status", unary!(auth, auth_status))
        .route("/auth/authenticate", unary!(auth, authenticate))
        .route("/auth/user/add", unary!(auth, user_add))
        .route("/auth/user/get", unary!(auth, user_get))
        .route("/auth/user/list", unary!(auth, user_list))
        .route("/auth/user/delete", unary!(auth, user_delete))
        .route("/auth/user/changepw", unary!(auth, user_change_password))
        .route("/auth/user/grant", unary!(auth, user_grant_role))
        .route("/auth/user/revoke", unary!(auth, user_revoke_role))
        .route("/auth/role/add", unary!(auth, role_add))
        .route("/auth/role/get", unary!(auth, role_get))
        .route("/auth/role/list", unary!(auth, role_list))
        .route("/auth/role/delete", unary!(auth, role_delete))
        .route("/auth/role/grant", unary!(auth, role_grant_permission))
        .route("/auth/role/revoke", unary!(auth, role_revoke_permission))
        .layer(DefaultBodyLimit::max(JSON_OVERHEAD * member.max_request_bytes + JSON_EXTRA_BYTES))
        .route("/lease/keepalive", keep_alive)
        .route("/watch", post(move |body: Body| watch_stream(watch.clone(), body)))
        .fallback(async || (StatusCode::NOT_FOUND, "Not Found\n"))
}

/// The request with what the client said of itself.
fn with_metadata<T>(headers: &HeaderMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(authorization) = headers.get(header::AUTHORIZATION)
        && let Ok(authorization) = MetadataValue::try_from(authorization.as_bytes())
    {
        request.metadata_mut().insert("authorization", authorization);
    }
    request
}

async fn answer<Req, Resp, Call, Answer>(headers: &HeaderMap, body: &[u8], call: Call) -> Response
where
    Req: DeserializeOwned,
    Resp: Serialize,
    Call: FnOnce(Request<Req>) -> Answer,
    Answer: Future<Output = Result<tonic::Response<Resp>, Status>>,
{
    let request = match parse(body) {
        Ok(request) => with_metadata(headers, request),
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

/// A keep-alive for each JSON object in the body, and a line for each, as they come.
async fn keep_alive(lease: LeaseServer, body: Body) -> Response {
    let limit_bytes = lease.0.max_request_bytes;
    let requests = match begun(messages::<LeaseKeepAliveRequest>(body, limit_bytes)).await {
        Ok(requests) => requests,
        Err(status) => return failure(&status),
    };
    streamed(requests.then(move |request| {
        let lease = lease.clone();
        async move { lease.keep_alive(request?.id).await }
    }))
}

/// A watch stream: requests are taken from the body as they come in; the end of the body does not
/// end the watches, a message that is none does.
async fn watch_stream(watch: WatchServer, body: Body) -> Response {
    let limit_bytes = watch.0.max_request_bytes;
    let requests = match begun(messages::<WatchRequest>(body, limit_bytes)).await {
        Ok(requests) => requests,
        Err(status) => return failure(&status),
    };
    match watch.open(requests) {
        Ok(responses) => streamed(responses),
        Err(status) => failure(&status),
    }
}

/// The stream once its first message is there, so that nonsense is answered with an error's status.
async fn begun<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Result<impl Stream<Item = Result<T, Status>> + Send + 'static, Status> {
    // Fused: a body without any message ends before the stream is handed on.
    let mut messages = Box::pin(messages.fuse());
    let first = messages.next().await.transpose()?;
    Ok(stream::iter(first).map(Ok).chain(messages))
}

/// The JSON objects of a body as they come. Ends after an error.
fn messages<T: DeserializeOwned + Send + 'static>(
    body: Body,
    limit_bytes: usize,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let parts = body.into_data_stream();
    let state = (parts, JsonObjects::new(limit_bytes), VecDeque::new(), None);
    stream::unfold(Some(state), |state| async {
        let (mut parts, mut parser, mut complete, mut failed) = state?;
        loop {
            if let Some(message) = complete.pop_front() {
                return Some((Ok(message), Some((parts, parser, complete, failed))));
            }
            if let Some(status) = failed {
                return Some((Err(status), None));
            }
            let result = match parts.next().await {
                Some(Ok(part)) => parser.push(&part, &mut complete),
                Some(Err(error)) => Err(Status::cancelled(error.to_string())),
                None if parser.is_between_objects() => return None,
                None => Err(Status::unknown("unexpected EOF")),
            };
            failed = result.err();
        }
    })
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

    /// Whether nothing is begun and not complete.
    fn is_between_objects(&self) -> bool {
        self.buffer.trim_ascii().is_empty()
    }

    /// Adds the objects that are complete now, also those before one that is wrong.
    fn push<T: DeserializeOwned>(
        &mut self,
        part: &[u8],
        complete: &mut impl Extend<T>,
    ) -> Result<(), Status> {
        self.buffer.extend_from_slice(part);
        let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter();
        let mut used = 0;
        while let Some(value) = values.next() {
            match value {
                Ok(value) => {
                    complete.extend([value]);
                    used = values.byte_offset();
                }
                Err(error) if error.is_eof() => break,
                // As etcd's gateway: no code of its own in a stream.
                Err(error) => return Err(Status::unknown(error.to_string())),
            }
        }
        self.buffer.drain(..used);
        if self.buffer.len() > self.limit_bytes {
            return Err(crate::RequestError::RequestTooLarge.into());
        }
        Ok(())
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
            let mut requests: Vec<WatchRequest> = Vec::new();
            parser.push(&text[..cut], &mut requests).unwrap();
            parser.push(&text[cut..], &mut requests).unwrap();
            assert_eq!(requests.len(), 2, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_a_stream_with_an_error() {
        for (body, complete, text) in [
            (r#"{"cancel_request":{}}"#, 1, None),
            (" ", 0, None),
            (r#"{"cancel_request":{}} nonsense"#, 1, Some("expected")),
            (r#"{"cancel_request":{}} {"create_"#, 1, Some("unexpected EOF")),
        ] {
            let messages = messages::<WatchRequest>(Body::from(body), 1000);
            let mut messages: Vec<_> = messages.collect().await;
            let error = messages.pop_if(|last| last.is_err()).and_then(Result::err);
            assert_eq!(messages.len(), complete, "{body}");
            assert_eq!(error.is_some(), text.is_some(), "{body}: {error:?}");
            if let (Some(error), Some(text)) = (error, text) {
                assert!(error.message().contains(text), "{error}");
            }
        }
    }

    #[test]
    fn an_object_without_an_end_is_refused_at_the_limit() {
        let mut parser = JsonObjects::new(8);
        let result = parser.push(b"{\"create_req", &mut Vec::<WatchRequest>::new());
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
