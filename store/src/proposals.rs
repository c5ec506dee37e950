//! Writes that wait for their answer, and the one rule by which they may be sent again.
//!
//! A member hands a write to the leader and forgets how it got there: the answer comes from its own
//! apply loop, where every member sees every entry. So an answer is never lost with a leader, and
//! whoever reads from this member afterwards sees the write.
//!
//! A write is sent to the leader of one term only, and only that leader, in that term, may take it
//! into its log. That makes "may I send it again?" decidable:
//!
//! | what is known                                             | then                          |
//! |-----------------------------------------------------------|-------------------------------|
//! | the leader refused it, or could not be reached at all     | send it again                 |
//! | it was sent in term 4, and an entry of term 5 was applied | it is not in the log: again   |
//! | it was sent in term 4, and a snapshot was installed       | unknown: answered as timeout  |
//! | anything else                                             | wait for apply, or time out   |
//!
//! The second row is the Raft paper's leader completeness (§5.4): the log of the leader of term 5
//! holds all that was ever committed in term 4 before its own first entry, and this member has
//! applied up to there without meeting the write.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use store_proto::peer::{Command, command};
use tokio::sync::{Notify, oneshot};

use crate::error::RequestError;
use crate::mvcc::Outcome;

/// Writes that share one log entry, at most.
const BATCH_COMMANDS: usize = 1024;
/// Bytes that share one log entry, unless a single write is larger.
const BATCH_BYTES: usize = 1 << 20;

/// The id of a command whose answer nobody waits for.
pub(crate) const NOBODY_WAITS: u64 = 0;

/// What a write comes to.
pub(crate) type Answer = Result<Outcome, RequestError>;

/// How much may wait at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProposalLimits {
    /// Writes.
    pub(crate) count: usize,
    /// What they take together, unless a single one is larger.
    pub(crate) bytes: usize,
}

/// All writes of this member's clients that have no answer yet.
pub(crate) struct Proposals {
    waiting: Mutex<Waiting>,
    queued: Notify,
    limits: ProposalLimits,
}

struct Waiting {
    next_id: u64,
    by_id: HashMap<u64, Proposal>,
    /// What the proposals take, encoded.
    bytes: usize,
    /// Those that are to be sent, oldest first. An id without a proposal has been given up.
    queue: VecDeque<u64>,
}

struct Proposal {
    /// The command as it stands in a batch. Encoded at once, because what a request was decoded to
    /// holds on to the whole buffer that it came in.
    encoded: Bytes,
    answer: oneshot::Sender<Answer>,
    /// The term to whose leader it was sent.
    sent_in: Option<u64>,
}

/// Writes that are to share one log entry.
#[derive(Debug)]
pub(crate) struct Queued {
    /// Their ids, in their order.
    pub(crate) ids: Vec<u64>,
    /// A [`store_proto::peer::Batch`] of them.
    pub(crate) batch: Bytes,
}

/// The number of `Batch.commands`.
const COMMANDS_FIELD: u32 = 1;

impl Proposals {
    /// `first_id` must differ from run to run and from member to member: it is random.
    pub(crate) fn new(first_id: u64, limits: ProposalLimits) -> Self {
        let waiting = Waiting {
            next_id: first_id.max(NOBODY_WAITS + 1),
            by_id: HashMap::new(),
            bytes: 0,
            queue: VecDeque::new(),
        };
        Self { waiting: Mutex::new(waiting), queued: Notify::new(), limits }
    }

    /// Has `op` carried out by the cluster. An error of [`RequestError::Timeout`] leaves open
    /// whether it was or will be; [`RequestError::NoLeader`] says that it was not and will not.
    pub(crate) async fn propose(self: &Arc<Self>, op: command::Op, timeout: Duration) -> Answer {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting.lock();
            if waiting.by_id.len() >= self.limits.count {
                return Err(RequestError::TooManyRequests);
            }
            let id = waiting.next_id;
            let command = Command { id, op: Some(op) };
            let bytes = waiting.bytes + encoded_len(&command);
            if bytes > self.limits.bytes && !waiting.by_id.is_empty() {
                return Err(RequestError::TooManyRequests);
            }
            let encoded = encode(&command);
            waiting.next_id = id.wrapping_add(1).max(NOBODY_WAITS + 1);
            waiting.bytes = bytes;
            waiting.by_id.insert(id, Proposal { encoded, answer, sent_in: None });
            waiting.queue.push_back(id);
            id
        };
        self.queued.notify_one();
        // Whoever goes away takes its proposal along, so that nothing is sent for nobody.
        let mut entry = RemoveOnDrop { proposals: self, id, is_there: true };
        let answer = tokio::time::timeout(timeout, answered).await;
        entry.is_there = false;
        match answer {
            Ok(answer) => answer.unwrap_or(Err(RequestError::Stopped)),
            Err(_) => Err(self.reason_for_timeout(id)),
        }
    }

    fn reason_for_timeout(&self, id: u64) -> RequestError {
        // It is taken away under the same lock: what was never sent never will be.
        match self.waiting.lock().remove(id) {
            Some(proposal) if proposal.sent_in.is_none() => RequestError::NoLeader,
            _ => RequestError::Timeout,
        }
    }

    /// How many writes wait for their answer.
    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.lock().by_id.len()
    }

    /// Waits until there is something to send.
    pub(crate) async fn any_queued(&self) {
        self.queued_until(|waiting| !waiting.queue.is_empty()).await;
    }

    /// Waits until as much is to be sent as one log entry takes, or `least` writes and one of `parts`
    /// equal parts of all that wait for an answer.
    pub(crate) async fn enough_queued(&self, least: usize, parts: usize) {
        self.queued_until(|waiting| waiting.is_enough(least, parts)).await;
    }

    async fn queued_until(&self, is_enough: impl Fn(&Waiting) -> bool) {
        loop {
            let queued = self.queued.notified();
            if is_enough(&self.waiting.lock()) {
                return;
            }
            queued.await;
        }
    }

    /// The next writes for one log entry, marked as sent to the leader of `term`, if there are any.
    pub(crate) fn next_batch(&self, term: u64) -> Option<Queued> {
        let mut waiting = self.waiting.lock();
        let waiting = &mut *waiting;
        let (mut ids, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(id) = waiting.queue.front() {
            if let Some(proposal) = waiting.by_id.get_mut(id) {
                bytes += proposal.encoded.len();
                if ids.len() == BATCH_COMMANDS || (bytes > BATCH_BYTES && !ids.is_empty()) {
                    break;
                }
                proposal.sent_in = Some(term);
                ids.push(*id);
                parts.push(proposal.encoded.clone());
            }
            waiting.queue.pop_front();
        }
        if ids.is_empty() { None } else { Some(Queued { ids, batch: parts.concat().into() }) }
    }

    /// These were sent to the leader of `term` and certainly not taken into its log: they are sent
    /// again. Those that were sent again since, because another term began, are none of them.
    pub(crate) fn refused(&self, term: u64, ids: &[u64]) {
        self.send_again(ids.iter().copied(), |sent_in| sent_in == term);
    }

    /// The first entry of `term` is about to be applied: whatever was sent in an earlier term and
    /// is still waiting is in no log.
    pub(crate) fn term_began(&self, term: u64) {
        let mut ids: Vec<u64> = self.waiting.lock().by_id.keys().copied().collect();
        ids.sort_unstable();
        let count = self.send_again(ids.into_iter(), |sent_in| sent_in < term);
        if count > 0 {
            tracing::info!(term, count, "sending writes again to the new leader");
        }
    }

    /// Puts those of `ids` whose last leader was of a `lost` term in front of the queue. What is in
    /// the queue has been sent to nobody, so nothing is ever in it twice.
    fn send_again(
        &self,
        ids: impl DoubleEndedIterator<Item = u64>,
        lost: impl Fn(u64) -> bool,
    ) -> usize {
        let mut waiting = self.waiting.lock();
        let mut count = 0;
        for id in ids.rev() {
            if let Some(proposal) = waiting.by_id.get_mut(&id)
                && proposal.sent_in.is_some_and(&lost)
            {
                proposal.sent_in = None;
                waiting.queue.push_front(id);
                count += 1;
            }
        }
        drop(waiting);
        if count > 0 {
            self.queued.notify_one();
        }
        count
    }

    /// The state jumped ahead over entries that this member never saw one by one: what was sent
    /// before may be among them.
    pub(crate) fn state_replaced(&self) {
        let mut waiting = self.waiting.lock();
        let sent: Vec<u64> =
            waiting.by_id.iter().filter(|(_, p)| p.sent_in.is_some()).map(|(id, _)| *id).collect();
        for id in sent {
            if let Some(proposal) = waiting.remove(id) {
                // The asker may have gone away already.
                let _ = proposal.answer.send(Err(RequestError::Timeout));
            }
        }
    }

    /// Writes were applied; the clients of those that are this member's get their answers.
    pub(crate) fn answer(&self, answers: impl IntoIterator<Item = (u64, Answer)>) {
        let mut waiting = self.waiting.lock();
        let own: Vec<_> = answers
            .into_iter()
            .filter_map(|(id, answer)| Some((waiting.remove(id)?.answer, answer)))
            .collect();
        drop(waiting);
        for (asker, answer) in own {
            // The asker may have gone away in this very moment.
            let _ = asker.send(answer);
        }
    }
}

impl Waiting {
    fn is_enough(&self, least: usize, parts: usize) -> bool {
        let part = (self.by_id.len() / parts).clamp(least, BATCH_COMMANDS);
        // What those that are queued take, as far as they are like the others.
        let bytes = self.bytes / self.by_id.len().max(1) * self.queue.len();
        self.queue.len() >= part || bytes >= BATCH_BYTES
    }

    fn remove(&mut self, id: u64) -> Option<Proposal> {
        let proposal = self.by_id.remove(&id)?;
        self.bytes -= proposal.encoded.len();
        Some(proposal)
    }
}

/// One element of a batch, with its framing: batches are such elements one behind the other.
fn encode(command: &Command) -> Bytes {
    let mut encoded = BytesMut::with_capacity(encoded_len(command));
    prost::encoding::message::encode(COMMANDS_FIELD, command, &mut encoded);
    encoded.freeze()
}

fn encoded_len(command: &Command) -> usize {
    prost::encoding::message::encoded_len(COMMANDS_FIELD, command)
}

struct RemoveOnDrop<'a> {
    proposals: &'a Proposals,
    id: u64,
    /// Whether it may still be in the table.
    is_there: bool,
}

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        if self.is_there {
            self.proposals.waiting.lock().remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use store_proto::etcdserverpb::{PutRequest, PutResponse};
    use store_proto::peer::Batch;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(7);
    const LIMITS: ProposalLimits = ProposalLimits { count: 100, bytes: 4 * BATCH_BYTES };

    fn put(key: &'static str) -> command::Op {
        command::Op::Put(PutRequest { key: key.into(), ..PutRequest::default() })
    }

    fn done() -> Answer {
        Ok(Outcome::Put(PutResponse::default()))
    }

    /// A proposal under way; it is in the table once the test has yielded.
    fn start(proposals: &Arc<Proposals>, key: &'static str) -> AbortOnDropHandle<Answer> {
        start_op(proposals, put(key))
    }

    #[expect(clippy::disallowed_methods, reason = "the handle owns the task")]
    fn start_op(proposals: &Arc<Proposals>, op: command::Op) -> AbortOnDropHandle<Answer> {
        let proposals = Arc::clone(proposals);
        AbortOnDropHandle::new(tokio::task::spawn(
            async move { proposals.propose(op, TIMEOUT).await },
        ))
    }

    /// The ids of a batch that is as it should be; none when there is none.
    fn ids(queued: Option<Queued>) -> Vec<u64> {
        let Some(queued) = queued else { return Vec::new() };
        let batch = Batch::decode(queued.batch).unwrap();
        let ids: Vec<u64> = batch.commands.iter().map(|command| command.id).collect();
        assert_eq!(ids, queued.ids);
        ids
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_reaches_whoever_asked() {
        let proposals = Arc::new(Proposals::new(10, LIMITS));
        let asked = start(&proposals, "a");
        proposals.any_queued().await;
        assert_eq!(ids(proposals.next_batch(1)), [10]);
        proposals.answer([(99, done())]);
        proposals.answer([(10, done())]);
        assert!(asked.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_leader_lost_is_sent_again_in_order_and_once() {
        let proposals = Arc::new(Proposals::new(10, LIMITS));
        let tasks: Vec<_> = ["a", "b", "c"].map(|key| start(&proposals, key)).into();
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(4)), [10, 11, 12]);
        proposals.answer([(11, done())]);
        proposals.term_began(4);
        assert!(proposals.next_batch(4).is_none(), "term 4 may still commit them");
        proposals.term_began(5);
        assert_eq!(ids(proposals.next_batch(5)), [10, 12]);
        proposals.term_began(5);
        assert!(proposals.next_batch(5).is_none());
        for id in [10, 12] {
            proposals.answer([(id, done())]);
        }
        for task in tasks {
            assert!(task.await.unwrap().is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_comes_late_sends_nothing_twice() {
        let proposals = Arc::new(Proposals::new(10, LIMITS));
        let asked = start(&proposals, "a");
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(4)), [10]);
        proposals.term_began(5);
        proposals.refused(4, &[10]);
        assert_eq!(ids(proposals.next_batch(5)), [10]);
        proposals.refused(4, &[10]);
        assert!(proposals.next_batch(5).is_none(), "it is in the log of term 5");
        proposals.refused(5, &[10]);
        proposals.term_began(6);
        assert_eq!(ids(proposals.next_batch(6)), [10]);
        assert!(proposals.next_batch(6).is_none());
        proposals.answer([(10, done())]);
        assert!(asked.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_snapshot_nothing_that_was_sent_is_sent_again() {
        let proposals = Arc::new(Proposals::new(10, LIMITS));
        let sent = start(&proposals, "sent");
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(4)), [10]);
        let queued = start(&proposals, "queued");
        tokio::task::yield_now().await;
        proposals.state_replaced();
        proposals.term_began(5);
        assert_eq!(sent.await.unwrap().unwrap_err(), RequestError::Timeout);
        assert_eq!(ids(proposals.next_batch(5)), [11]);
        proposals.answer([(11, done())]);
        assert!(queued.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_says_whether_it_may_have_been_carried_out() {
        let proposals = Arc::new(Proposals::new(10, LIMITS));
        let (sent, unsent) = (start(&proposals, "sent"), start(&proposals, "unsent"));
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(4)), [10, 11]);
        proposals.refused(4, &[11]);
        assert_eq!(sent.await.unwrap().unwrap_err(), RequestError::Timeout);
        assert_eq!(unsent.await.unwrap().unwrap_err(), RequestError::NoLeader);
        assert!(proposals.next_batch(5).is_none(), "what nobody waits for is not sent");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_limit_is_refused() {
        let proposals = Arc::new(Proposals::new(10, ProposalLimits { count: 1, ..LIMITS }));
        let first = start(&proposals, "a");
        tokio::task::yield_now().await;
        let refused = proposals.propose(put("b"), TIMEOUT).await;
        assert_eq!(refused.unwrap_err(), RequestError::TooManyRequests);
        first.abort();
        let _ = first.await;
        let next = start(&proposals, "c");
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(1)), [11]);
        next.abort();
    }

    #[test]
    fn enough_for_an_entry_is_an_equal_part_of_what_waits_and_no_more_than_it_takes() {
        const KIB: usize = 1 << 10;
        // How many wait for an answer, what each takes, how many of them are queued.
        for (waiting, bytes_each, queued, expected) in [
            (0, 0, 0, false),
            (20, 300, 15, false),
            (20, 300, 16, true),
            (512, 300, 127, false),
            (512, 300, 128, true),
            (16_000, 60, BATCH_COMMANDS - 1, false),
            (16_000, 60, BATCH_COMMANDS, true),
            (512, 64 * KIB, 15, false),
            (512, 64 * KIB, 16, true),
            (8, 512 * KIB, 1, false),
            (8, 512 * KIB, 2, true),
        ] {
            let proposal = |id| {
                let answer = oneshot::channel().0;
                (id, Proposal { encoded: Bytes::new(), answer, sent_in: None })
            };
            let waits = Waiting {
                next_id: 0,
                by_id: (0..waiting).map(proposal).collect(),
                bytes: waiting as usize * bytes_each,
                queue: (0..queued as u64).collect(),
            };
            assert_eq!(
                waits.is_enough(16, 4),
                expected,
                "{queued} of {waiting}, {bytes_each} bytes"
            );
        }
    }

    fn large(bytes: usize) -> command::Op {
        let value = vec![0; bytes].into();
        command::Op::Put(PutRequest { key: "k".into(), value, ..PutRequest::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_bytes_but_one_large_write_is_let_in() {
        let proposals = Arc::new(Proposals::new(1, ProposalLimits { count: 100, bytes: 1000 }));
        let first = start_op(&proposals, large(2000));
        tokio::task::yield_now().await;
        let refused = proposals.propose(put("b"), TIMEOUT).await;
        assert_eq!(refused.unwrap_err(), RequestError::TooManyRequests);
        assert_eq!(ids(proposals.next_batch(1)), [1]);
        proposals.answer([(1, done())]);
        assert!(first.await.unwrap().is_ok());
        let _asked = [600, 300].map(|bytes| start_op(&proposals, large(bytes)));
        tokio::task::yield_now().await;
        assert_eq!(ids(proposals.next_batch(1)), [2, 3]);
        assert_eq!(
            proposals.propose(large(100), TIMEOUT).await.unwrap_err(),
            RequestError::TooManyRequests
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_bounded_in_bytes_but_takes_one_large_write() {
        let proposals = Arc::new(Proposals::new(1, LIMITS));
        let sizes = [BATCH_BYTES + 1, BATCH_BYTES / 2, BATCH_BYTES / 2];
        let _asked = sizes.map(|bytes| start_op(&proposals, large(bytes)));
        tokio::task::yield_now().await;
        let sizes: Vec<usize> = (0..3).map(|_| ids(proposals.next_batch(1)).len()).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }
}
