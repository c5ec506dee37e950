//! The Cluster service. Members can be listed; changing them is not there yet.

use std::sync::Arc;

use store_proto::etcdserverpb::cluster_server::Cluster;
use store_proto::etcdserverpb::{
    Member as MemberMessage, MemberAddRequest, MemberAddResponse, MemberListRequest,
    MemberListResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
    MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use crate::member::Member;

/// Answers the Cluster service on behalf of a member.
#[derive(Clone)]
pub(crate) struct ClusterServer(pub(crate) Arc<Member>);

fn not_yet() -> Status {
    Status::unimplemented("members cannot be changed yet")
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
        let membership = self.0.membership();
        let mut attributes = self.0.mvcc.members();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| {
            // A member that has not been up yet is listed by what the cluster was started with.
            let told = attributes.remove(id).unwrap_or_default();
            let name = if told.name.is_empty() { node.name.clone() } else { told.name };
            MemberMessage {
                id: *id,
                name,
                peer_ur_ls: node.peer_urls.clone(),
                client_ur_ls: told.client_urls,
                is_learner: !voters.contains(id),
            }
        });
        let members = members.collect();
        // As with etcd the answers of this service have no revision.
        Ok(Response::new(MemberListResponse { header: Some(self.0.header_at(0)), members }))
    }

    async fn member_add(
        &self,
        _: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(not_yet())
    }

    async fn member_remove(
        &self,
        _: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(not_yet())
    }

    async fn member_update(
        &self,
        _: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(not_yet())
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(not_yet())
    }
}
