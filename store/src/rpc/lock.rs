//! The Lock service: a lock is held by the oldest key of its queue, see [`super::session`].

use std::sync::Arc;

use store_proto::v3lockpb::lock_server::Lock;
use store_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::session::Session;
use crate::member::Member;

const SESSION_EXPIRED: &str = "mutex: session is expired";

/// Answers the Lock service on behalf of a member.
#[derive(Clone)]
pub(crate) struct LockServer(pub(crate) Arc<Member>);

#[tonic::async_trait]
impl Lock for LockServer {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let session = Session::new(&self.0, metadata);
        let response = session.attended(|session, gone| lock(session, request, gone)).await?;
        Ok(Response::new(response))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let deleted = Session::new(&self.0, metadata).delete(request.key).await?;
        Ok(Response::new(UnlockResponse { header: deleted.header }))
    }
}

async fn lock(
    session: Session,
    request: LockRequest,
    abandoned: CancellationToken,
) -> Result<LockResponse, Status> {
    let lease = session.lease(request.lease).await?;
    let place = session.enter(&request.name, lease, &Default::default()).await?;
    let header = session.become_first(&place, &abandoned, SESSION_EXPIRED).await?;
    Ok(LockResponse { header, key: place.key })
}
