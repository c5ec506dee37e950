//! The Election service: the oldest key of a queue leads, see [`super::session`]; its value is what
//! the leader proclaims.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use store_proto::etcdserverpb::ResponseHeader;
use store_proto::mvccpb::KeyValue;
use store_proto::v3electionpb::election_server::Election;
use store_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::session::{Changes, Session, is_deletion, unknown};
use crate::member::Member;

const MISSING_LEADER: &str = "\"leader\" field must be provided";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const SESSION_EXPIRED: &str = "election: session is expired";

/// Answers the Election service on behalf of a member.
#[derive(Clone)]
pub(crate) struct ElectionServer(pub(crate) Arc<Member>);

#[tonic::async_trait]
impl Election for ElectionServer {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let session = Session::new(&self.0, metadata);
        let response = session.attended(|session, gone| campaign(session, request, gone)).await?;
        Ok(Response::new(response))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let leader = request.leader.ok_or_else(|| unknown(MISSING_LEADER))?;
        let session = Session::new(&self.0, metadata);
        let lease = session.lease(leader.lease).await?;
        let put = session.put_created_at(&leader.key, leader.rev, &request.value, lease).await?;
        if !put.succeeded {
            return Err(unknown(NOT_LEADER));
        }
        Ok(Response::new(ProclaimResponse { header: put.header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let (header, kv) = Session::new(&self.0, metadata).oldest(&request.name).await?;
        let kv = kv.ok_or_else(|| unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse { header, kv: Some(kv) }))
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let observer = Observer {
            session: Session::new(&self.0, metadata),
            name: request.name,
            follows: Follows::Nothing,
            told: VecDeque::new(),
        };
        let told = stream::unfold(Some(observer), |observer| async {
            let mut observer = observer?;
            match observer.next().await {
                Ok(response) => Some((Ok(response), Some(observer))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(told.boxed()))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let leader = request.leader.ok_or_else(|| unknown(MISSING_LEADER))?;
        let session = Session::new(&self.0, metadata);
        let deleted = session.delete_created_at(&leader.key, leader.rev).await?;
        Ok(Response::new(ResignResponse { header: deleted.header }))
    }
}

async fn campaign(
    session: Session,
    request: CampaignRequest,
    abandoned: CancellationToken,
) -> Result<CampaignResponse, Status> {
    let lease = session.lease(request.lease).await?;
    let place = session.enter(&request.name, lease, &request.value).await?;
    if place.value != request.value {
        // It has campaigned before with another value. As with etcd, the answer's header stays that
        // of the entry.
        let put =
            session.put_created_at(&place.key, place.create_revision, &request.value, lease).await;
        match put {
            Ok(put) if put.succeeded => {}
            Ok(_) => return Err(unknown(NOT_LEADER)),
            Err(status) => {
                session.leave(&place).await;
                return Err(status);
            }
        }
    }
    session.become_first(&place, &abandoned, SESSION_EXPIRED).await?;
    let leader =
        LeaderKey { name: request.name, key: place.key, rev: place.create_revision, lease };
    Ok(CampaignResponse { header: place.header, leader: Some(leader) })
}

/// Tells who leads, from now on: every value of every leader, but for those whose whole time fell
/// between two looks.
struct Observer {
    session: Session,
    name: Bytes,
    follows: Follows,
    told: VecDeque<LeaderResponse>,
}

enum Follows {
    /// Who leads is to be looked up.
    Nothing,
    /// Nobody leads; whoever comes first will.
    Queue(Changes),
    /// What the leader proclaims, until its key goes.
    Leader(Changes),
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            if let Some(response) = self.told.pop_front() {
                return Ok(response);
            }
            self.look().await?;
        }
    }

    async fn look(&mut self) -> Result<(), Status> {
        let changes = match &mut self.follows {
            Follows::Nothing => {
                let (header, leader) = self.session.oldest(&self.name).await?;
                let revision = header.as_ref().map_or(0, |header| header.revision);
                self.follows = match leader {
                    Some(kv) => self.tell_and_follow(header, kv, revision)?,
                    None => Follows::Queue(self.session.watch_queue(&self.name, revision + 1)?),
                };
                return Ok(());
            }
            Follows::Queue(changes) | Follows::Leader(changes) => changes,
        };
        let Some(response) = changes.next().await else {
            self.follows = Follows::Nothing;
            return Ok(());
        };
        let response = response?;
        if response.canceled {
            // Compacted before it began.
            self.follows = Follows::Nothing;
            return Ok(());
        }
        let is_leader = matches!(self.follows, Follows::Leader(_));
        for event in response.events {
            if is_deletion(&event) {
                self.follows = Follows::Nothing;
                return Ok(());
            }
            let Some(kv) = event.kv else { continue };
            let header = response.header;
            if is_leader {
                self.told.push_back(LeaderResponse { header, kv: Some(kv) });
            } else {
                let revision = kv.mod_revision;
                let header = header.map(|header| ResponseHeader { revision, ..header });
                self.follows = self.tell_and_follow(header, kv, revision)?;
                return Ok(());
            }
        }
        Ok(())
    }

    fn tell_and_follow(
        &mut self,
        header: Option<ResponseHeader>,
        kv: KeyValue,
        revision: i64,
    ) -> Result<Follows, Status> {
        let changes = self.session.watch_key(kv.key.clone(), revision + 1)?;
        self.told.push_back(LeaderResponse { header, kv: Some(kv) });
        Ok(Follows::Leader(changes))
    }
}
