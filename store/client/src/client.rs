//! The calls, and what happens when an endpoint does not answer them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use store_proto::etcdserverpb::cluster_client::ClusterClient;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::lease_client::LeaseClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    MemberListRequest, MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    StatusRequest, StatusResponse, TxnRequest, TxnResponse,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::endpoint::Member;
use crate::error::{Outcome, classify, refused};
use crate::{ClientConfig, Error, Failure, Watch, WatchOptions};

/// What an answer may measure, as in etcd's own client: a range of many objects is large.
pub(crate) const MAX_ANSWER_BYTES: usize = i32::MAX as usize;

/// The pause after every endpoint failed once, doubled with each further round.
const ROUND_PAUSE: Duration = Duration::from_millis(25);
const MAX_ROUND_PAUSE: Duration = Duration::from_millis(200);

/// A client of one store, for all its endpoints. Clones are cheap and share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Its calls wait for no turn.
    urgent: bool,
}

struct Inner {
    config: ClientConfig,
    members: Vec<Member>,
    /// Index of the member that is asked first.
    current: AtomicUsize,
    /// One for each call that may be under way.
    turns: Semaphore,
}

/// What it means to send a request again when it is not known what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// It changes nothing.
    Read,
    /// It changes something, but twice no more than once.
    RepeatableWrite,
    /// It must not be sent again.
    Write,
}

/// What is known when a request has its answer.
struct Answered<T> {
    response: T,
    /// Another attempt was sent and its answer is not known.
    repeated: bool,
}

impl Client {
    /// A client for the endpoints of a configuration. Connects when it is first used, so an
    /// endpoint that is down shows only then.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        let members: Vec<Member> =
            config.endpoints.iter().map(|uri| Member::new(uri.clone(), &config)).collect();
        let current = AtomicUsize::new(config.first_endpoint % members.len());
        let turns = Semaphore::new(config.calls_at_once);
        let inner = Inner { config, members, current, turns };
        Ok(Self { inner: Arc::new(inner), urgent: false })
    }

    /// The same client for calls that are few and must not wait behind others, such as signs of
    /// life.
    #[must_use]
    pub fn urgent(&self) -> Self {
        Self { urgent: true, ..self.clone() }
    }

    /// Waits until this call may be sent.
    async fn turn(&self) -> Result<Option<SemaphorePermit<'_>>, Error> {
        if self.urgent {
            return Ok(None);
        }
        let config = &self.inner.config;
        match timeout(config.turn_timeout, self.inner.turns.acquire()).await {
            // It is never closed.
            Ok(turn) => Ok(turn.ok()),
            Err(_) => {
                Err(Error::Unavailable { endpoints: config.endpoints.to_string(), source: None })
            }
        }
    }

    /// Reads a key or a range of keys.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.read(|channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        })
        .await
    }

    /// Writes one key, whatever it held before. [`Error::Ambiguous`] when the answer is lost.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        self.write(|channel| {
            let request = request.clone();
            async move { kv(channel).put(request).await }
        })
        .await
    }

    /// Deletes a key or a range of keys. [`Error::Ambiguous`] when the answer is lost.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        self.write(|channel| {
            let request = request.clone();
            async move { kv(channel).delete_range(request).await }
        })
        .await
    }

    /// Carries out a transaction. [`Error::Ambiguous`] when the answer is lost.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        self.write(|channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        })
        .await
    }

    /// Carries out a transaction whose compares do not hold any more once it has been carried
    /// out, such as a compare-and-swap on a mod revision, or one that may be carried out twice. So
    /// it is sent again when an answer is late or lost.
    ///
    /// The second part of the answer is true when there was an attempt that nobody knows the
    /// answer of. If the transaction then did not succeed, that may be *because* the attempt did:
    /// the caller reads, best in the failure branch, whether what is there is its own. And that
    /// attempt may still be carried out later, when a member that hangs wakes up, if its compares
    /// hold by then: "the key is not there" may be true again, a mod revision never is.
    pub async fn txn_guarded(&self, request: TxnRequest) -> Result<(TxnResponse, bool), Error> {
        let send = |channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        };
        let answered = self.call(Nature::RepeatableWrite, send).await?;
        Ok((answered.response, answered.repeated))
    }

    /// Gives up the history before a revision. [`Error::Compacted`] when it is given up already.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Error> {
        let send = |channel| async move { kv(channel).compact(request).await };
        Ok(self.call(Nature::RepeatableWrite, send).await?.response)
    }

    /// Creates a lease. When the answer is lost and the server chose the id, another one may be
    /// left over, which expires by itself.
    pub async fn lease_grant(
        &self,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        let nature = if request.id == 0 { Nature::RepeatableWrite } else { Nature::Write };
        let send = |channel| async move { lease(channel).lease_grant(request).await };
        Ok(self.call(nature, send).await?.response)
    }

    /// Gives a lease its full time again, once. A lease that is not there has a TTL of 0 in the
    /// answer.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        self.read(|channel| async move {
            let requests = stream::iter([LeaseKeepAliveRequest { id }]);
            let mut answers = lease(channel).lease_keep_alive(requests).await?.into_inner();
            match answers.message().await? {
                Some(answer) => Ok(Response::new(answer)),
                None => Err(Status::unavailable("the stream ended without an answer")),
            }
        })
        .await
    }

    /// Ends a lease and deletes its keys. [`Error::Ambiguous`] when the answer is lost.
    pub async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Error> {
        self.write(
            |channel| async move { lease(channel).lease_revoke(LeaseRevokeRequest { id }).await },
        )
        .await
    }

    /// How long a lease has left; a TTL of -1 for one that is not there.
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        self.read(|channel| async move { lease(channel).lease_time_to_live(request).await }).await
    }

    /// The members of the store.
    pub async fn member_list(&self) -> Result<MemberListResponse, Error> {
        self.read(|channel| async move {
            let mut client =
                ClusterClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
            client.member_list(MemberListRequest { linearizable: false }).await
        })
        .await
    }

    /// How one member sees the store: the one that is asked first at present.
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.read(|channel| async move {
            MaintenanceClient::new(channel).status(StatusRequest {}).await
        })
        .await
    }

    /// Watches a key or a range of keys. Connects when its first batch is asked for.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch::new(self.clone(), options)
    }

    async fn read<T, F, Fut>(&self, send: F) -> Result<T, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.call(Nature::Read, send).await?.response)
    }

    async fn write<T, F, Fut>(&self, send: F) -> Result<T, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.call(Nature::Write, send).await?.response)
    }

    /// Sends a request to one endpoint after the other until there is an answer or the deadline.
    ///
    /// An attempt that is late is not given up: it goes on beside the next one, and whichever
    /// answers first is taken, so that a store which is merely slow loses nothing.
    async fn call<T, F, Fut>(&self, nature: Nature, send: F) -> Result<Answered<T>, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let _turn = self.turn().await?;
        let members = &self.inner.members;
        let config = &self.inner.config;
        let deadline = Instant::now() + config.request_timeout;
        let mut attempts = FuturesUnordered::new();
        let mut next = self.current();
        let mut latest = next;
        let mut next_at = Instant::now();
        let mut patience = config.attempt_timeout;
        let mut pause = ROUND_PAUSE;
        let mut failures = 0_usize;
        let mut lost_answer = false;
        let mut last_failure = None;
        loop {
            tokio::select! {
                biased;
                Some(answer) = attempts.next(), if !attempts.is_empty() => {
                    let (member, result): (usize, Result<Response<T>, Status>) = answer;
                    let status = match result {
                        Ok(response) => {
                            members[member].answered();
                            let repeated = lost_answer || !attempts.is_empty();
                            return Ok(Answered { response: response.into_inner(), repeated });
                        }
                        Err(status) => status,
                    };
                    let failure = Failure::new(members[member].uri(), &status);
                    tracing::debug!(%failure, "attempt failed");
                    let outcome = classify(&status);
                    let unclear = lost_answer || !attempts.is_empty();
                    match outcome {
                        Outcome::Refused if nature == Nature::Read || !unclear => {
                            return Err(refused(&status));
                        }
                        Outcome::Unknown if nature == Nature::Write => {
                            self.leave(member);
                            return Err(Error::Ambiguous { source: Some(failure) });
                        }
                        Outcome::Refused => {
                            return Err(Error::Ambiguous { source: Some(failure) });
                        }
                        Outcome::Unknown => lost_answer = true,
                        Outcome::NotDone => {}
                    }
                    self.leave(member);
                    last_failure = Some(failure);
                    failures += 1;
                    next_at = Instant::now();
                    if failures.is_multiple_of(members.len()) {
                        next_at += pause;
                        pause = (pause * 2).min(MAX_ROUND_PAUSE);
                    }
                }
                () = sleep_until(deadline) => {
                    let unclear = lost_answer || !attempts.is_empty();
                    return Err(if unclear && nature != Nature::Read {
                        Error::Ambiguous { source: last_failure }
                    } else {
                        let endpoints = config.endpoints.to_string();
                        Error::Unavailable { endpoints, source: last_failure }
                    });
                }
                () = sleep_until(next_at) => {
                    if !attempts.is_empty() {
                        self.leave(latest);
                        if nature == Nature::Write {
                            next_at = deadline;
                            continue;
                        }
                    }
                    latest = next;
                    next = (next + 1) % members.len();
                    let attempt = send(members[latest].calls());
                    attempts.push(async move { (latest, attempt.await) });
                    next_at = Instant::now() + patience;
                    patience *= 2;
                }
            }
        }
    }

    /// Index of the member to ask first.
    pub(crate) fn current(&self) -> usize {
        self.inner.current.load(Ordering::Relaxed)
    }

    pub(crate) fn member(&self, index: usize) -> &Member {
        &self.inner.members[index]
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// A member failed: the next one is asked first, unless somebody found that out already.
    pub(crate) fn leave(&self, index: usize) {
        let next = (index + 1) % self.inner.members.len();
        let swap =
            self.inner.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if swap.is_ok() && next != index {
            let (from, to) = (self.member(index).uri(), self.member(next).uri());
            tracing::info!(%from, %to, "going to another store endpoint");
        }
    }

    /// Asks a member for a sign of life whenever it was silent for a while, for as long as it is
    /// polled. A member that gives none is left by every watch.
    pub(crate) async fn watch_over(self, index: usize) {
        let silence = self.config().watch_probe_interval;
        loop {
            let member = self.member(index);
            sleep_until(member.heard() + silence).await;
            if let Some(asked) = member.claim_probe(silence) {
                self.probe(index, asked).await;
            }
        }
    }

    async fn probe(&self, index: usize, asked: Instant) {
        let (member, config) = (self.member(index), self.config());
        // Answered by the member alone, so it lives even when it has no leader.
        let request = RangeRequest {
            key: PROBE_KEY.into(),
            serializable: true,
            count_only: true,
            ..RangeRequest::default()
        };
        let mut client = kv(member.calls());
        match timeout(config.attempt_timeout, client.range(request)).await {
            Ok(Ok(_)) => member.answered(),
            Ok(Err(status)) if classify(&status) == Outcome::Refused => member.answered(),
            // Too busy for the question, and yet it answers others.
            _ if member.heard() > asked => {}
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(endpoint = %member.uri(), "store endpoint gives no sign of life");
                self.leave(index);
                member.is_lost();
            }
        }
    }
}

/// A key that nobody needs to have written.
const PROBE_KEY: &str = "/";

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn lease(channel: Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
