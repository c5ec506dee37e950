//! The Cluster service: who the members are, and changes of them. As with etcd, its headers tell no
//! revision.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use store_proto::etcdserverpb::cluster_server::Cluster;
use store_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};
use store_proto::peer::member_change::Change;
use tonic::{Request, Response, Status};

use crate::member::Member;

/// Answers the Cluster service on behalf of a member.
#[derive(Clone)]
pub(crate) struct ClusterServer(pub(crate) Arc<Member>);

impl ClusterServer {
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.0.header_at(0))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterServer {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.0.linearize().await?;
        }
        let members = self.0.listed_members();
        Ok(Response::new(MemberListResponse { header: self.header(), members }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let urls = &request.peer_ur_ls;
        let (member, members) = self.0.member_add(urls, request.is_learner, now.as_nanos()).await?;
        let member = Some(member);
        Ok(Response::new(MemberAddResponse { header: self.header(), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let members = self.0.change_members(Change::Remove(request.into_inner().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let members = self.0.member_update(request.id, &request.peer_ur_ls).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let members = self.0.change_members(Change::Promote(request.into_inner().id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(), members }))
    }
}
