//! Takes waiting writes to the leader, a batch at a time.
//!
//! A few batches are under way at once: while one is being synced to the logs the next one fills,
//! so that batches grow with the load and a lone write waits for nobody.
//!
//! ```text
//! 1 client: sent at once | 64 clients: batches of 16 | 512 clients: batches of about 128
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use store_proto::peer;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::leadership::Leadership;
use crate::member::Member;
use crate::proposals::Queued;
use crate::raft::network::never_sent;
use crate::raft::types::Batch;

/// Batches under way at once.
const BATCHES_IN_FLIGHT: usize = 4;
/// While batches are under way, the next one is sent as soon as it has this many writes, and an equal
/// part of all that wait for an answer…
const FULL_ENOUGH_COMMANDS: usize = 16;
/// …or has waited for this long, or one of the others is done.
const GATHER_TIME: Duration = Duration::from_millis(2);
/// After the leader refused or could not be reached, how long until the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    /// It is in the log, or may be: the answers come from the apply loop, or a new term shows that
    /// it is not.
    Taken,
    /// It is certainly in no log.
    Refused,
}

/// Sends what waits in the member's proposals. Never ends.
pub(crate) async fn run(member: Arc<Member>) {
    let slots = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT));
    let mut under_way = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        while under_way.try_join_next().is_some() {}
        member.proposals.any_queued().await;
        if !under_way.is_empty() {
            // An entry costs every member as much as some ten writes do: a further one is worth it for
            // that many, or when the ones under way take their time.
            tokio::select! {
                () = member.proposals.enough_queued(FULL_ENOUGH_COMMANDS, BATCHES_IN_FLIGHT) => {}
                _ = under_way.join_next() => {}
                () = tokio::time::sleep(GATHER_TIME) => {}
            }
        }
        let (term, leader) = member.wait_for_leader().await;
        let Some(Queued { ids, batch }) = member.proposals.next_batch(term) else { continue };
        member.metrics.batch_commands.observe(ids.len() as f64);
        let member = Arc::clone(&member);
        under_way.spawn(async move {
            let submitted = if leader == member.id {
                let batch =
                    Batch::decode(batch).expect("the proposals encode what they were given");
                lead(&member, term, batch).await
            } else {
                forward(&member, term, leader, batch).await
            };
            if submitted == Submitted::Refused {
                member.proposals.refused(term, &ids);
                // Holding its slot, so that a leader that refuses is not asked without a pause.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            drop(slot);
        });
    }
}

/// Takes `batch` into the log if this member is the leader of `term`.
pub(crate) async fn lead(member: &Member, term: u64, batch: Batch) -> Submitted {
    let (responder, completed) = ProgressResponder::complete_only();
    let written = member.raft.write(batch).with_leader(term).responder(responder).await;
    if written.is_err() {
        // The Raft core has stopped, and with it this process will.
        return Submitted::Taken;
    }
    match completed.await {
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Submitted::Refused,
        _ => Submitted::Taken,
    }
}

async fn forward(member: &Member, term: u64, leader: u64, batch: Bytes) -> Submitted {
    let Some(mut peer) = member.peer(leader) else { return Submitted::Refused };
    let request = peer::ProposeRequest { term, batch };
    let mut leadership = member.leadership.clone();
    let expected = Leadership { term, leader: Some(leader) };
    tokio::select! {
        // A leader that hangs must not hold a slot any longer than it leads.
        _ = leadership.wait_for(|now| *now != expected) => Submitted::Taken,
        response = tokio::time::timeout(member.request_timeout, peer.propose(request)) => {
            match response {
                Ok(Ok(response)) if !response.get_ref().accepted => Submitted::Refused,
                Ok(Err(status)) if never_sent(&status) => Submitted::Refused,
                _ => Submitted::Taken,
            }
        }
    }
}
