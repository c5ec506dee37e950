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
use store_proto::etcdserverpb::auth_server::AuthServer as AuthService;
use store_proto::etcdserverpb::cluster_server::ClusterServer as ClusterService;
use store_proto::etcdserverpb::kv_server::KvServer as KvService;
use store_proto::etcdserverpb::lease_server::LeaseServer as LeaseService;
use store_proto::etcdserverpb::maintenance_server::MaintenanceServer as MaintenanceService;
use store_proto::etcdserverpb::watch_server::WatchServer as WatchService;
use store_proto::peer::peer_server::PeerServer as PeerService;
use store_proto::v3electionpb::election_server::ElectionServer as ElectionService;
use store_proto::v3lockpb::lock_server::LockServer as LockService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer as HealthService};

use self::measured::{Calls, CallsError};
use crate::member::Member;
use crate::raft::network::PEER_MESSAGE_BYTES;
use crate::raft::peer_service::PeerServer;

mod admission;
mod auth;
mod authority;
mod cluster;
mod coalesce;
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

/// gRPC's own framing and fields around a request of the largest size.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// What clients reach.
///
/// # Errors
/// See [`CallsError`].
pub(crate) fn client_router(member: &Arc<Member>) -> Result<Router, CallsError> {
    let calls = Arc::new(Calls::new(&member.metrics)?);
    let max_bytes = member.max_request_bytes + GRPC_OVERHEAD_BYTES;
    let kv = KvService::new(kv::KvServer(Arc::clone(member)));
    let watch = WatchService::new(watch::WatchServer(Arc::clone(member)));
    let lease = LeaseService::new(lease::LeaseServer(Arc::clone(member)));
    let cluster = ClusterService::new(cluster::ClusterServer(Arc::clone(member)));
    let maintenance = MaintenanceService::new(maintenance::MaintenanceServer(Arc::clone(member)));
    let lock = LockService::new(lock::LockServer(Arc::clone(member)));
    let election = ElectionService::new(election::ElectionServer(Arc::clone(member)));
    let auth = AuthService::new(auth::AuthServer(Arc::clone(member)));
    let router = Routes::new(kv.max_decoding_message_size(max_bytes))
        .add_service(watch.max_decoding_message_size(max_bytes))
        .add_service(lease.max_decoding_message_size(max_bytes))
        .add_service(cluster.max_decoding_message_size(max_bytes))
        .add_service(maintenance.max_decoding_message_size(max_bytes))
        .add_service(lock.max_decoding_message_size(max_bytes))
        .add_service(election.max_decoding_message_size(max_bytes))
        .add_service(auth.max_decoding_message_size(max_bytes))
        .add_service(grpc_health(member))
        .into_axum_router()
        .layer(axum::middleware::map_response(too_large::mend))
        .layer(axum::middleware::from_fn_with_state(calls, measured::measure))
        .merge(gateway::router(member))
        .merge(health::router(member))
        .fallback(unknown_path)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(member), admission::admit));
    Ok(router)
}

/// What whoever measures and probes reaches, on a port of its own.
pub(crate) fn metrics_router(member: &Arc<Member>) -> Router {
    health::router(member).fallback(unknown_path)
}

/// The health service of gRPC itself: "serving", until the member is asked to stop.
fn grpc_health(member: &Member) -> HealthService<impl Health + use<>> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let stopped = member.stop.clone().cancelled_owned();
    member.tasks.spawn(async move {
        stopped.await;
        reporter.set_service_status(WHOLE_SERVER, ServingStatus::NotServing).await;
    });
    service
}

/// What the other members reach.
pub(crate) fn peer_router(member: &Arc<Member>) -> Router {
    let peer = PeerService::new(PeerServer::new(Arc::clone(member)))
        .max_decoding_message_size(PEER_MESSAGE_BYTES)
        .max_encoding_message_size(PEER_MESSAGE_BYTES);
    Routes::new(peer).into_axum_router()
}

/// A gRPC client hears "unimplemented" in its own language, everybody else a 404.
async fn unknown_path(request: Request<Body>) -> Response {
    if admission::is_grpc(request.headers()) {
        return tonic::Status::unimplemented("unknown service or method").into_http();
    }
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
