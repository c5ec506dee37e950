//! Leases as clients see them: granted and revoked through the log, timed by the leader.

use std::sync::Arc;
use std::time::Duration;

use store_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
};
use store_proto::peer;
use store_proto::peer::Command;
use store_proto::peer::command::Op;
use tokio::time::Instant;

use crate::error::RequestError;
use crate::member::Member;
use crate::mvcc::Outcome;
use crate::proposals::NOBODY_WAITS;
use crate::proposer;
use crate::raft::types::Batch;

/// Shorter leases are raised to this: with etcd's default timings, one and a half elections,
/// rounded up.
pub(crate) const MIN_TTL_SECONDS: i64 = 2;

const EXPIRY_INTERVAL: Duration = Duration::from_millis(250);
/// After the leader could not tell, how long until it (or another) is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

impl Member {
    /// Grants a lease; an id is chosen here if the client leaves it open.
    pub(crate) async fn lease_grant(
        &self,
        mut request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, RequestError> {
        request.ttl = request.ttl.max(MIN_TTL_SECONDS);
        if request.id == 0 {
            request.id = rand::random_range(1..i64::MAX);
        }
        match self.propose(Op::LeaseGrant(request)).await? {
            Outcome::LeaseGrant(response) => Ok(response),
            other => unreachable!("a grant is answered with a grant, not {other:?}"),
        }
    }

    /// Ends a lease and deletes its keys.
    pub(crate) async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse, RequestError> {
        match self.propose(Op::LeaseRevoke(LeaseRevokeRequest { id })).await? {
            Outcome::LeaseRevoke(response) => Ok(response),
            other => unreachable!("a revocation is answered with a revocation, not {other:?}"),
        }
    }

    /// What is left of a lease, asked of whoever leads; with `renew` it gets its full time first.
    /// Both may be repeated, so they are, until somebody answers or the time is up.
    pub(crate) async fn lease_remaining(
        &self,
        id: i64,
        renew: bool,
    ) -> Result<peer::LeaseRemainingResponse, RequestError> {
        let ask = async {
            loop {
                let (_, leader) = self.wait_for_leader().await;
                let answer = if leader == self.id {
                    self.lease_remaining_as_leader(id, renew).await.ok()
                } else {
                    self.lease_remaining_at(leader, id, renew).await
                };
                match answer {
                    Some(answer) => return answer,
                    None => tokio::time::sleep(RETRY_PAUSE).await,
                }
            }
        };
        tokio::time::timeout(self.request_timeout, ask).await.map_err(|_| RequestError::Timeout)
    }

    async fn lease_remaining_at(
        &self,
        leader: u64,
        id: i64,
        renew: bool,
    ) -> Option<peer::LeaseRemainingResponse> {
        let mut peer = self.peer(leader)?;
        let mut leadership = self.leadership.clone();
        tokio::select! {
            answer = peer.lease_remaining(peer::LeaseRemainingRequest { id, renew }) => {
                answer.ok().map(tonic::Response::into_inner)
            }
            _ = leadership.wait_for(|now| now.leader != Some(leader)) => None,
        }
    }

    /// As [`Self::lease_remaining`], on the leader. Leadership is confirmed by a quorum first: a
    /// leader that was cut off must not keep alive what another one may let expire.
    pub(crate) async fn lease_remaining_as_leader(
        &self,
        id: i64,
        renew: bool,
    ) -> Result<peer::LeaseRemainingResponse, RequestError> {
        self.linearize().await?;
        let Some(lease) = self.mvcc.lease(id) else {
            return if self.is_leader() {
                Ok(peer::LeaseRemainingResponse::default())
            } else {
                Err(RequestError::LeaderChanged)
            };
        };
        let now = Instant::now();
        if renew && !self.leases.renew(id, lease.ttl_seconds, now) {
            return Err(RequestError::LeaderChanged);
        }
        if renew {
            self.metrics.leases_renewed.inc();
        }
        let remaining = self.leases.remaining(id, now).ok_or(RequestError::LeaderChanged)?;
        Ok(peer::LeaseRemainingResponse {
            found: true,
            ttl_seconds: i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX),
            granted_ttl_seconds: lease.ttl_seconds,
        })
    }
}

/// Starts and stops the clock as leadership comes and goes.
pub(crate) async fn follow_leadership(member: Arc<Member>) {
    let mut leadership = member.leadership.clone();
    let mut led_term = None;
    loop {
        let now = *leadership.borrow_and_update();
        if now.leader != Some(member.id) {
            led_term = None;
            member.leases.follow();
        } else if led_term != Some(now.term) {
            led_term = Some(now.term);
            // First the clock, then the leases: what is applied in between is heard of as well.
            member.leases.lead(now.term);
            let leases = member.mvcc.leases();
            let ttls = leases.iter().map(|lease| (lease.id, lease.ttl_seconds));
            member.leases.granted_before(ttls, Instant::now());
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Proposes the revocation of what has expired, while this member leads and in its own term only:
/// what another leader finds in its log must not be this one's idea of time. Never ends.
pub(crate) async fn revoke_expired(member: Arc<Member>) {
    let mut interval = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        interval.tick().await;
        let Some((term, expired)) = member.leases.expired(Instant::now()) else { continue };
        tracing::debug!(term, count = expired.len(), "revoking expired leases");
        member.metrics.leases_expired.add(expired.len() as u64);
        let revoke =
            |id| Command { id: NOBODY_WAITS, op: Some(Op::LeaseRevoke(LeaseRevokeRequest { id })) };
        let batch = Batch::new(expired.into_iter().map(revoke).collect());
        // Whatever becomes of it: a lease that still stands comes up again.
        let proposed = proposer::lead(&member, term, batch);
        let _ = tokio::time::timeout(member.request_timeout, proposed).await;
    }
}
