//! The Lease service.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use store_proto::etcdserverpb::lease_server::Lease;
use store_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::member::Member;

/// Answers the Lease service on behalf of a member.
#[derive(Clone)]
pub(crate) struct LeaseServer(pub(crate) Arc<Member>);

impl LeaseServer {
    /// Renews one lease; a TTL of 0 says that it is not there (any more).
    pub(crate) async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let remaining = self.0.lease_remaining(id, true).await?;
        let ttl = if remaining.found { remaining.granted_ttl_seconds } else { 0 };
        Ok(LeaseKeepAliveResponse { header: Some(self.0.header()), id, ttl })
    }
}

#[tonic::async_trait]
impl Lease for LeaseServer {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut response = self.0.lease_grant(request.into_inner()).await?;
        response.header = Some(self.0.header());
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let mut response = self.0.lease_revoke(request.into_inner().id).await?;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        response.header = Some(self.0.header_at(revision));
        Ok(Response::new(response))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let server = self.clone();
        let responses = request.into_inner().then(move |request| {
            let server = server.clone();
            async move { server.keep_alive(request?.id).await }
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let remaining = self.0.lease_remaining(request.id, false).await?;
        let mut response = LeaseTimeToLiveResponse {
            header: Some(self.0.header()),
            id: request.id,
            ttl: -1,
            ..LeaseTimeToLiveResponse::default()
        };
        if remaining.found {
            response.ttl = remaining.ttl_seconds;
            response.granted_ttl = remaining.granted_ttl_seconds;
            if request.keys {
                // The leader told the time; the keys are this member's, so it has to be up to date.
                self.0.linearize().await?;
                response.keys = self.0.mvcc.lease_keys(request.id);
            }
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.0.linearize().await?;
        let leases =
            self.0.mvcc.leases().iter().map(|lease| LeaseStatus { id: lease.id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.0.header()), leases }))
    }
}
