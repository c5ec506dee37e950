//! A store of one or more members, each a process: ours, or a real etcd, which is started with the
//! same flags and is what ours is measured against.

use std::path::PathBuf;
use std::time::Duration;

use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::watch_client::WatchClient;
use store_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, PutRequest, RangeRequest, RangeResponse,
    StatusRequest, StatusResponse,
};
use store_proto::mvccpb::KeyValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::ports::free_port;
use super::processes::{MINIKU, Process};
use super::scratch::Scratch;
use super::wait::{holds, wait_for};

/// Longer than a store takes to say by itself that it cannot answer (etcd: 7 s).
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A whole small store fits into one answer.
const ANSWER_LIMIT_BYTES: usize = 256 << 20;

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Miniku,
    Etcd,
}

impl Kind {
    /// Ours, unless `MINIKU_TEST_STORE=etcd` asks whether the tests themselves are right.
    pub(crate) fn under_test() -> Self {
        match std::env::var("MINIKU_TEST_STORE").as_deref() {
            Ok("etcd") => Kind::Etcd,
            _ => Kind::Miniku,
        }
    }
}

/// The members, in the order of their names.
pub(crate) struct Store {
    pub(crate) members: Vec<Member>,
    kind: Kind,
}

/// One member, which may be dead.
pub(crate) struct Member {
    pub(crate) process: Process,
    pub(crate) client_url: String,
    pub(crate) peer_url: String,
    pub(crate) data_dir: PathBuf,
    channel: Channel,
}

impl Store {
    /// Starts `count` members, with flags beyond the usual ones, and waits until all serve.
    pub(crate) async fn start_with(
        scratch: &Scratch,
        kind: Kind,
        count: usize,
        flags: &[&str],
    ) -> Self {
        Self::start_prepared(scratch, kind, count, flags, |_| {}).await
    }

    /// Starts `count` members whose data directories `restore` makes before, from the flags that
    /// name a member and its cluster.
    pub(crate) async fn start_from(
        scratch: &Scratch,
        kind: Kind,
        count: usize,
        restore: impl Fn(&[&str]),
    ) -> Self {
        Self::start_prepared(scratch, kind, count, &[], restore).await
    }

    async fn start_prepared(
        scratch: &Scratch,
        kind: Kind,
        count: usize,
        flags: &[&str],
        prepare: impl Fn(&[&str]),
    ) -> Self {
        let peers: Vec<(String, String)> =
            (1..=count).map(|number| (format!("n{number}"), free_url())).collect();
        let cluster: Vec<String> =
            peers.iter().map(|(name, url)| format!("{name}={url}")).collect();
        let cluster = cluster.join(",");
        for (name, peer_url) in &peers {
            let data_dir = scratch.path(name);
            let data_dir = data_dir.to_str().expect("a temporary path is UTF-8");
            let mut identity = vec!["--name", name, "--data-dir", data_dir];
            identity.extend(["--initial-advertise-peer-urls", peer_url]);
            identity.extend(["--initial-cluster", &cluster]);
            prepare(&identity);
        }
        let start = |(name, peer_url): &(String, String)| {
            Member::start(scratch, kind, name, peer_url, &cluster, flags)
        };
        let store = Self { members: peers.iter().map(start).collect(), kind };
        for number in 0..count {
            store.serves(number).await;
        }
        store
    }

    /// Starts `count` members of the store under test and waits until all serve.
    pub(crate) async fn start(scratch: &Scratch, count: usize) -> Self {
        Self::start_with(scratch, Kind::under_test(), count, &[]).await
    }

    /// Starts a member that the cluster has added already, on an empty disk, as one that joins. `cluster`
    /// is what `etcdctl member add` printed.
    pub(crate) fn join(
        &self,
        scratch: &Scratch,
        name: &str,
        peer_url: &str,
        cluster: &str,
    ) -> Member {
        let joins = ["--initial-cluster-state", "existing"];
        Member::start(scratch, self.kind, name, peer_url, cluster, &joins)
    }

    /// The members' addresses as clients are given them.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<&str> =
            self.members.iter().map(|member| member.client_url.as_str()).collect();
        urls.join(",")
    }

    /// Waits until this member answers a linearizable read.
    pub(crate) async fn serves(&self, number: usize) {
        let member = &self.members[number];
        wait_for(&format!("{} serves", member.process.name), async || {
            member.range(RangeRequest { key: "any".into(), ..Default::default() }).await
        })
        .await;
    }

    /// Waits for a leader that is alive and knows it; its number.
    pub(crate) async fn leader(&self) -> usize {
        wait_for("a member leads", async || {
            let mut seen = Vec::new();
            for (number, member) in self.members.iter().enumerate() {
                match member.status().await {
                    Ok(status) if leads(&status) => return Ok(number),
                    Ok(status) => {
                        seen.push(format!("{:x} follows {:x}", member_id(&status), status.leader));
                    }
                    Err(error) => seen.push(error.code().to_string()),
                }
            }
            Err(seen.join(", "))
        })
        .await
    }

    /// Waits until all members hold the same data, asked locally, and returns it.
    pub(crate) async fn agree(&self) -> Vec<KeyValue> {
        wait_for("all members hold the same data", async || {
            let mut states = Vec::new();
            for member in &self.members {
                let state = member.everything().await.map_err(|error| error.to_string())?;
                states.push(state);
            }
            let revisions: Vec<i64> = states.iter().map(|(revision, _)| *revision).collect();
            holds(
                revisions.iter().all(|revision| *revision == revisions[0]),
                format!("revisions {revisions:?}"),
            )?;
            let first = states.swap_remove(0).1;
            for (_, state) in &states {
                assert!(*state == first, "members differ at revision {}", revisions[0]);
            }
            // And so is their history.
            let mut hashes = Vec::new();
            for member in &self.members {
                hashes.push(member.hash_kv(revisions[0]).await.map_err(|error| error.to_string())?);
            }
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "HashKV: {hashes:?}");
            Ok::<_, String>(first)
        })
        .await
    }
}

fn leads(status: &StatusResponse) -> bool {
    status.leader != 0 && status.leader == member_id(status)
}

pub(crate) fn member_id(status: &StatusResponse) -> u64 {
    status.header.as_ref().map_or(0, |header| header.member_id)
}

pub(crate) fn free_url() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

impl Member {
    fn start(
        scratch: &Scratch,
        kind: Kind,
        name: &str,
        peer_url: &str,
        cluster: &str,
        flags: &[&str],
    ) -> Self {
        let client_url = free_url();
        let data_dir = scratch.path(name);
        let (program, command) = match kind {
            Kind::Miniku => (MINIKU, Some("store")),
            Kind::Etcd => ("etcd", None),
        };
        let data_dir_flag = data_dir.to_str().expect("a temporary path is UTF-8");
        let mut arguments = Vec::from_iter(command);
        arguments.extend(["--name", name, "--data-dir", data_dir_flag]);
        arguments.extend(["--listen-client-urls", &client_url]);
        arguments.extend(["--advertise-client-urls", &client_url]);
        arguments.extend(["--listen-peer-urls", peer_url]);
        arguments.extend(["--initial-advertise-peer-urls", peer_url]);
        arguments.extend(["--initial-cluster", cluster]);
        arguments.extend(flags);
        let process = Process::start(scratch, name, program, arguments);
        let channel = Endpoint::from_shared(client_url.clone())
            .expect("a valid URL")
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        Self { process, client_url, peer_url: peer_url.to_owned(), data_dir, channel }
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LIMIT_BYTES)
    }

    /// For the clients of other services.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LIMIT_BYTES)
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(within_deadline(self.kv().range(in_time(request))).await?.into_inner())
    }

    /// Puts a value; the revision it got.
    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let put = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let answer = within_deadline(self.kv().put(in_time(put))).await?.into_inner();
        Ok(answer.header.ok_or_else(|| Status::internal("no header"))?.revision)
    }

    /// Deletes the keys from `key` up to `range_end`; the revision after it.
    pub(crate) async fn delete(&self, key: &str, range_end: &str) -> Result<i64, Status> {
        let delete = DeleteRangeRequest {
            key: key.to_owned().into(),
            range_end: range_end.to_owned().into(),
            prev_kv: false,
        };
        let answer = within_deadline(self.kv().delete_range(in_time(delete))).await?.into_inner();
        Ok(answer.header.ok_or_else(|| Status::internal("no header"))?.revision)
    }

    /// Compacts the history, and waits until its records are gone.
    pub(crate) async fn compact(&self, revision: i64) -> Result<(), Status> {
        let compact = CompactionRequest { revision, physical: true };
        within_deadline(self.kv().compact(in_time(compact))).await.map(drop)
    }

    /// Compacts the history, and does not wait for what follows.
    pub(crate) async fn compact_now(&self, revision: i64) -> Result<(), Status> {
        let compact = CompactionRequest { revision, physical: false };
        within_deadline(self.kv().compact(in_time(compact))).await.map(drop)
    }

    /// The current revision.
    pub(crate) async fn revision(&self) -> i64 {
        let status = self.status().await.expect("it runs");
        status.header.map_or(0, |header| header.revision)
    }

    /// How many keys there are.
    pub(crate) async fn count(&self) -> i64 {
        let all = RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            count_only: true,
            ..Default::default()
        };
        self.range(all).await.expect("it runs").count
    }

    /// What a key held at a revision.
    pub(crate) async fn at(&self, key: &str, revision: i64) -> Result<RangeResponse, Status> {
        self.range(RangeRequest { key: key.to_owned().into(), revision, ..Default::default() })
            .await
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        Ok(within_deadline(client.status(in_time(StatusRequest {}))).await?.into_inner())
    }

    /// The hash over this member's history up to a revision, and where that begins.
    pub(crate) async fn hash_kv(&self, revision: i64) -> Result<(u32, i64), Status> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let request = in_time(HashKvRequest { revision });
        let answer = within_deadline(client.hash_kv(request)).await?.into_inner();
        Ok((answer.hash, answer.compact_revision))
    }

    /// This member's own revision and data, whatever the others have.
    pub(crate) async fn everything(&self) -> Result<(i64, Vec<KeyValue>), Status> {
        let all = RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            serializable: true,
            ..Default::default()
        };
        let answer = self.range(all).await?;
        Ok((answer.header.map_or(0, |header| header.revision), answer.kvs))
    }
}

fn in_time<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}

/// The server is told of the deadline, but it may be stopped or dead.
pub(crate) async fn within_deadline<T>(
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(result) => result,
        Err(_) => Err(Status::new(Code::DeadlineExceeded, "the client gave up waiting")),
    }
}
