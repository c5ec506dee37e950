//! Linearizable reads: one confirmation by a quorum serves all reads that wait for it.
//!
//! A read that arrives while a round is under way waits for the next one: a confirmation says what
//! was committed when the round *began* (the Raft paper's ReadIndex, §6.4 of the dissertation).
//! Members that do not lead ask the leader for the index and read their own state.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::RequestError;
use crate::member::Member;

/// After a round that failed, how long until the next one.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The reads that wait for the next round.
#[derive(Default)]
pub(crate) struct ReadIndex {
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    asked: Notify,
}

impl ReadIndex {
    /// Returns once this member's state holds all that was acknowledged before the call.
    pub(crate) async fn wait(&self, timeout: Duration) -> Result<(), RequestError> {
        let (confirmed, confirmation) = oneshot::channel();
        self.waiting.lock().push(confirmed);
        self.asked.notify_one();
        match tokio::time::timeout(timeout, confirmation).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(RequestError::Stopped),
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// The reads that nobody has given up, in one go.
    fn take(&self) -> Vec<oneshot::Sender<()>> {
        let mut waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.retain(|read| !read.is_closed());
        waiting
    }
}

/// Confirms reads, round by round. Never ends.
pub(crate) async fn run(member: Arc<Member>) {
    loop {
        member.reads.asked.notified().await;
        let mut reads = member.reads.take();
        while !reads.is_empty() {
            if let Some(index) = member.confirmed_index().await {
                if !member.wait_for_applied(index).await {
                    member.metrics.read_indexes_slow.inc();
                    continue;
                }
                for read in reads.drain(..) {
                    // Whoever asked may have gone away.
                    let _ = read.send(());
                }
            } else {
                member.metrics.read_indexes_failed.inc();
                tokio::time::sleep(RETRY_PAUSE).await;
                reads.retain(|read| !read.is_closed());
            }
        }
    }
}
