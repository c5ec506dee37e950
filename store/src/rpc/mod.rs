//! The faces of a member: etcd's gRPC services, their JSON gateway and the health endpoints, all on
//! the client port; the peer protocol on a port of its own.
//!
//! Nothing here decides anything: a handler checks the shape of a request, calls
//! [`crate::member::Member`] and completes the header. Every call comes through the methods of the
//! services with what its client said of itself (its metadata), also one in JSON and one that a lock
//! or an election makes for its client.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use store_proto::peer::peer_server::PeerServer as PeerService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::dispatch::Dispatch;
use self::measured::CallsError;
use crate::member::Member;
use crate::raft::network::PEER_MESSAGE_BYTES;
use crate::raft::peer_service::PeerServer;

mod admission;
mod auth;
mod authority;
mod cluster;
mod dispatch;
mod election;
mod gateway;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod measured;
pub(crate) mod serve;
mod session;
mod too_large;
mod watch;

/// The version of etcd whose API is spoken. Clients compare its digits.
pub(crate) const ETCD_VERSION: &str = "3.5.21";
pub(crate) const ETCD_CLUSTER_VERSION: &str = "3.5.0";

/// The name that gRPC's health protocol gives to all services together.
const WHOLE_SERVER: &str = "";

/// What clients reach.
///
/// # Errors
/// See [`CallsError`].
pub(crate) fn for_clients(member: &Arc<Member>) -> Result<Dispatch, CallsError> {
    let routes = gateway::router(member).merge(health::router(member)).fallback(unknown_path);
    Dispatch::new(member, grpc_health(member), routes)
}

/// What whoever measures and probes reaches, on a port of its own.
pub(crate) fn for_monitoring(member: &Arc<Member>) -> Router {
    health::router(member).fallback(unknown_path)
}

/// What the health service of gRPC itself tells: "serving", until the member is asked to stop.
fn grpc_health(member: &Member) -> HealthReporter {
    let reporter = HealthReporter::new();
    let told = reporter.clone();
    let stopped = member.stop.clone().cancelled_owned();
    member.tasks.spawn(async move {
        stopped.await;
        reporter.set_service_status(WHOLE_SERVER, ServingStatus::NotServing).await;
    });
    told
}

/// What the other members reach.
pub(crate) fn for_peers(member: &Arc<Member>) -> PeerService<PeerServer> {
    PeerService::new(PeerServer::new(Arc::clone(member)))
        .max_decoding_message_size(PEER_MESSAGE_BYTES)
        .max_encoding_message_size(PEER_MESSAGE_BYTES)
}

/// A gRPC client hears "unimplemented" in its own language, everybody else a 404.
async fn unknown_path(request: Request<Body>) -> Response {
    if admission::is_grpc(request.headers()) {
        return tonic::Status::unimplemented("unknown service or method").into_http();
    }
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
