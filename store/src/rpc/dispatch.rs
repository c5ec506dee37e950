//! Takes what clients ask to whoever answers it: a gRPC call straight to its service, everything else
//! to the routes of HTTP.
//!
//! ```text
//! request -> admitted? -> a gRPC method we know -> counted -> its service  -> counted -> answer
//!                |                     `-> everything else -> routes ----------------> answer
//!                `-> refused
//! ```
//! Routes and their layers copy a request and box it once each, which costs a small write as much as
//! carrying it out: so gRPC, where speed matters and paths are fixed, does without.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use http::{Request, Response};
use http_body_util::Either;
use hyper::body::{Body as HttpBody, Incoming};
use hyper::service::Service;
use store_proto::etcdserverpb::auth_server::{self, AuthServer as AuthService};
use store_proto::etcdserverpb::cluster_server::{self, ClusterServer as ClusterService};
use store_proto::etcdserverpb::kv_server::{self, KvServer as KvService};
use store_proto::etcdserverpb::lease_server::{self, LeaseServer as LeaseService};
use store_proto::etcdserverpb::maintenance_server::{
    self, MaintenanceServer as MaintenanceService,
};
use store_proto::etcdserverpb::watch_server::{self, WatchServer as WatchService};
use store_proto::v3electionpb::election_server::{self, ElectionServer as ElectionService};
use store_proto::v3lockpb::lock_server::{self, LockServer as LockService};
use tonic::Status;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service as _;

use super::admission::{self, UntilCutOff, is_grpc};
use super::measured::{Calls, CallsError, Sent};
use super::{auth, cluster, election, gateway, kv, lease, lock, maintenance, too_large, watch};
use crate::member::Member;

/// gRPC's own framing and fields around a request of the largest size.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type GrpcBody = UntilCutOff<Sent<tonic::body::Body>>;

/// What clients reach, all of it.
#[derive(Clone)]
pub(crate) struct Dispatch(Arc<Parts>);

struct Parts {
    member: Arc<Member>,
    calls: Calls,
    services: Services,
    routes: Router,
}

impl Dispatch {
    /// `routes` answer what is no call of a service.
    ///
    /// # Errors
    /// See [`CallsError`].
    pub(super) fn new(
        member: &Arc<Member>,
        health: HealthReporter,
        routes: Router,
    ) -> Result<Self, CallsError> {
        Ok(Self(Arc::new(Parts {
            member: Arc::clone(member),
            calls: Calls::new(&member.metrics)?,
            services: Services::new(member, health),
            routes,
        })))
    }
}

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<Either<GrpcBody, Body>>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let parts = Arc::clone(&self.0);
        Box::pin(async move { Ok(parts.answer(request).await) })
    }
}

impl Parts {
    async fn answer(&self, request: Request<Incoming>) -> Response<Either<GrpcBody, Body>> {
        let needs_leader = admission::needs_leader(request.headers());
        if let Some(error) = admission::refusal(&self.member, request.uri().path(), needs_leader) {
            let status = Status::from(error);
            let refused = if is_grpc(request.headers()) {
                status.into_http()
            } else {
                gateway::failure(&status)
            };
            return refused.map(Either::Right);
        }
        let Some(call) = self.calls.begin(request.uri().path()) else {
            let answered = Box::pin(self.routes.clone().call(request)).await;
            return answered.unwrap_or_else(|never| match never {}).map(Either::Right);
        };
        let request = request.map(|body| call.received(body));
        let answered = self.services.call(request).await.unwrap_or_else(|never| match never {});
        let cut_off = needs_leader.then(|| self.member.cut_off.clone());
        call.sent(too_large::mend(answered))
            .map(|body| Either::Left(UntilCutOff::new(body, cut_off)))
    }
}

/// The services of gRPC. Those of etcd's API are also called by the gateway, without this.
struct Services {
    kv: KvService<kv::KvServer>,
    watch: WatchService<watch::WatchServer>,
    lease: LeaseService<lease::LeaseServer>,
    cluster: ClusterService<cluster::ClusterServer>,
    maintenance: MaintenanceService<maintenance::MaintenanceServer>,
    lock: LockService<lock::LockServer>,
    election: ElectionService<election::ElectionServer>,
    auth: AuthService<auth::AuthServer>,
    health: HealthServer<HealthService>,
}

impl Services {
    fn new(member: &Arc<Member>, health: HealthReporter) -> Self {
        let max_bytes = member.max_request_bytes + GRPC_OVERHEAD_BYTES;
        let member = || Arc::clone(member);
        let maintenance = MaintenanceService::new(maintenance::MaintenanceServer(member()));
        Self {
            kv: KvService::new(kv::KvServer(member())).max_decoding_message_size(max_bytes),
            watch: WatchService::new(watch::WatchServer(member()))
                .max_decoding_message_size(max_bytes),
            lease: LeaseService::new(lease::LeaseServer(member()))
                .max_decoding_message_size(max_bytes),
            cluster: ClusterService::new(cluster::ClusterServer(member()))
                .max_decoding_message_size(max_bytes),
            maintenance: maintenance.max_decoding_message_size(max_bytes),
            lock: LockService::new(lock::LockServer(member())).max_decoding_message_size(max_bytes),
            election: ElectionService::new(election::ElectionServer(member()))
                .max_decoding_message_size(max_bytes),
            auth: AuthService::new(auth::AuthServer(member())).max_decoding_message_size(max_bytes),
            health: HealthServer::new(HealthService::from_health_reporter(health)),
        }
    }

    /// The services are handles: a call takes a copy of one.
    fn call<B>(
        &self,
        request: Request<B>,
    ) -> BoxFuture<Result<Response<tonic::body::Body>, Infallible>>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let path = request.uri().path();
        match path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name) {
            Some(kv_server::SERVICE_NAME) => self.kv.clone().call(request),
            Some(watch_server::SERVICE_NAME) => self.watch.clone().call(request),
            Some(lease_server::SERVICE_NAME) => self.lease.clone().call(request),
            Some(cluster_server::SERVICE_NAME) => self.cluster.clone().call(request),
            Some(maintenance_server::SERVICE_NAME) => self.maintenance.clone().call(request),
            Some(lock_server::SERVICE_NAME) => self.lock.clone().call(request),
            Some(election_server::SERVICE_NAME) => self.election.clone().call(request),
            Some(auth_server::SERVICE_NAME) => self.auth.clone().call(request),
            Some(health_server::SERVICE_NAME) => self.health.clone().call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("unknown service").into_http()) }),
        }
    }
}
