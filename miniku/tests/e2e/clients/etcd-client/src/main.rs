//! What a program does with the crate `etcd-client`, against the store at the URLs that are its
//! arguments. Prints a line for each part that went well.
//!
//! The crate balances calls over all endpoints, so the parts see every member; what is about one
//! member uses a client of its own.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use etcd_client::{
    AlarmAction, AlarmType, Client, CompactionOptions, Compare, CompareOp, ConnectOptions,
    DeleteOptions, Error, EventType, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions,
    LockOptions, MemberAddOptions, ProclaimOptions, PutOptions, ResignOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};

/// For calls that should wait: they have not answered by then.
const A_WHILE: Duration = Duration::from_millis(500);
/// For what must come some time.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

async fn connect(urls: &[String]) -> anyhow::Result<Client> {
    let options = ConnectOptions::new().with_timeout(PATIENCE).with_require_leader(true);
    Ok(Client::connect(urls, Some(options)).await?)
}

/// What the store refused a call with.
fn refusal<T>(result: Result<T, Error>) -> anyhow::Result<String> {
    match result {
        Err(Error::GRpcStatus(status)) => Ok(status.message().to_owned()),
        Err(other) => Err(other.into()),
        Ok(_) => anyhow::bail!("it was not refused"),
    }
}

async fn kv(client: &mut Client) -> anyhow::Result<()> {
    for (key, value) in [("kv/a", "1"), ("kv/b", "2"), ("kv/c", "3")] {
        client.put(key, value, None).await?;
    }
    let with_previous = PutOptions::new().with_prev_key();
    let answer = client.put("kv/a", "4", Some(with_previous)).await?;
    ensure!(answer.prev_key().context("the previous one")?.value() == b"1");
    let revision = answer.header().context("a header")?.revision();

    let answer = client.get("kv/a", None).await?;
    let pair = &answer.kvs()[0];
    ensure!((pair.value(), pair.version(), pair.mod_revision()) == (&b"4"[..], 2, revision));
    let before = GetOptions::new().with_revision(revision - 1).with_serializable();
    ensure!(client.get("kv/a", Some(before)).await?.kvs()[0].value() == b"1");
    let sorted = GetOptions::new()
        .with_prefix()
        .with_limit(2)
        .with_sort(SortTarget::Value, SortOrder::Descend);
    let answer = client.get("kv/", Some(sorted)).await?;
    let values: Vec<&[u8]> = answer.kvs().iter().map(|pair| pair.value()).collect();
    ensure!(values == [b"4", b"3"] && answer.more() && answer.count() == 3);
    let count = GetOptions::new().with_range("kv/c").with_count_only();
    ensure!(client.get("kv/a", Some(count)).await?.count() == 2);

    client.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    let before = GetOptions::new().with_revision(revision - 1);
    let refused = refusal(client.get("kv/a", Some(before)).await)?;
    ensure!(refused == "etcdserver: mvcc: required revision has been compacted", "{refused}");

    let all = DeleteOptions::new().with_prefix().with_prev_key();
    let answer = client.delete("kv/", Some(all)).await?;
    ensure!(answer.deleted() == 3 && answer.prev_kvs().len() == 3);
    ensure!(client.get("kv/a", None).await?.kvs().is_empty());
    Ok(())
}

async fn txn(client: &mut Client) -> anyhow::Result<()> {
    client.put("txn/a", "1", None).await?;
    let nested = Txn::new()
        .when([Compare::create_revision("txn/new", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("txn/new", "n", None)]);
    let transaction = Txn::new()
        .when([
            Compare::value("txn/a", CompareOp::Equal, "1"),
            Compare::version("txn/a", CompareOp::Less, 2),
            Compare::lease("txn/a", CompareOp::Equal, 0),
        ])
        .and_then([
            TxnOp::put("txn/a", "2", None),
            TxnOp::get("txn/a", None),
            TxnOp::delete("txn/nothing", None),
            TxnOp::txn(nested),
        ])
        .or_else([TxnOp::get("txn/a", None)]);
    let answer = client.txn(transaction.clone()).await?;
    ensure!(answer.succeeded());
    let responses = answer.op_responses();
    ensure!(matches!(&responses[1], TxnOpResponse::Get(get) if get.kvs()[0].value() == b"2"));
    ensure!(matches!(&responses[2], TxnOpResponse::Delete(deleted) if deleted.deleted() == 0));
    ensure!(matches!(&responses[3], TxnOpResponse::Txn(nested) if nested.succeeded()));
    let answer = client.txn(transaction).await?;
    ensure!(!answer.succeeded());
    let twice = Txn::new().and_then([TxnOp::put("t", "1", None), TxnOp::put("t", "2", None)]);
    let refused = refusal(client.txn(twice).await)?;
    ensure!(refused == "etcdserver: duplicate key given in txn request", "{refused}");
    Ok(())
}

async fn watch(client: &mut Client) -> anyhow::Result<()> {
    let first = client.put("watch/a", "1", None).await?.header().context("a header")?.revision();
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_start_revision(first)
        .with_watch_id(7);
    let mut stream = client.watch("watch/", Some(options)).await?;
    let created = stream.message().await?.context("it has begun")?;
    ensure!(created.created() && created.watch_id() == 7);
    client.put("watch/a", "2", None).await?;
    client.delete("watch/a", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        for event in stream.message().await?.context("it goes on")?.events() {
            let pair = event.kv().context("a pair")?;
            let before = event.prev_kv().map(|pair| pair.value().to_vec());
            seen.push((event.event_type(), pair.value().to_vec(), before));
        }
    }
    ensure!(
        seen == [
            (EventType::Put, b"1".to_vec(), None),
            (EventType::Put, b"2".to_vec(), Some(b"1".to_vec())),
            (EventType::Delete, b"".to_vec(), Some(b"2".to_vec())),
        ],
        "{seen:?}"
    );
    // Another one on the same stream, that does not want to hear of puts.
    let no_puts =
        WatchOptions::new().with_filters([WatchFilterType::NoPut]).with_start_revision(first);
    stream.watch("watch/a", Some(no_puts)).await?;
    let created = stream.message().await?.context("it goes on")?;
    ensure!(created.created() && created.watch_id() != 7);
    let event = stream.message().await?.context("it goes on")?;
    ensure!(event.events()[0].event_type() == EventType::Delete);
    stream.request_progress().await?;
    let progress = stream.message().await?.context("it goes on")?;
    ensure!(progress.events().is_empty() && !progress.canceled());
    stream.cancel(7).await?;
    let canceled = stream.message().await?.context("it goes on")?;
    ensure!(canceled.canceled() && canceled.watch_id() == 7);
    Ok(())
}

async fn lease(client: &mut Client) -> anyhow::Result<()> {
    let id = client.lease_grant(600, Some(LeaseGrantOptions::new().with_id(4711))).await?.id();
    ensure!(id == 4711);
    let refused =
        refusal(client.lease_grant(600, Some(LeaseGrantOptions::new().with_id(id))).await)?;
    ensure!(refused == "etcdserver: lease already exists", "{refused}");
    client.put("lease/a", "1", Some(PutOptions::new().with_lease(id))).await?;
    let with_keys = LeaseTimeToLiveOptions::new().with_keys();
    let answer = client.lease_time_to_live(id, Some(with_keys)).await?;
    ensure!(answer.granted_ttl() == 600 && answer.ttl() > 500);
    ensure!(answer.keys() == [b"lease/a".to_vec()]);
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    let answer = answers.message().await?.context("an answer")?;
    ensure!((answer.id(), answer.ttl()) == (id, 600));
    ensure!(client.leases().await?.leases().iter().any(|lease| lease.id() == id));
    client.lease_revoke(id).await?;
    ensure!(client.get("lease/a", None).await?.kvs().is_empty());
    ensure!(client.lease_time_to_live(id, None).await?.ttl() == -1);
    let refused = refusal(client.lease_revoke(id).await)?;
    ensure!(refused == "etcdserver: requested lease not found", "{refused}");
    Ok(())
}

async fn lock(client: &mut Client) -> anyhow::Result<()> {
    let lease = client.lease_grant(60, None).await?.id();
    let with_lease = LockOptions::new().with_lease(lease);
    let held = client.lock("name", Some(with_lease)).await?.key().to_vec();
    let mut other = client.clone();
    let mut waiting = tokio::spawn(async move { other.lock("name", None).await });
    ensure!(tokio::time::timeout(A_WHILE, &mut waiting).await.is_err(), "both have the lock");
    client.unlock(held).await?;
    let held = tokio::time::timeout(PATIENCE, waiting).await???.key().to_vec();
    client.unlock(held).await?;
    client.lease_revoke(lease).await?;
    Ok(())
}

async fn election(client: &mut Client) -> anyhow::Result<()> {
    let lease = client.lease_grant(60, None).await?.id();
    let answer = client.campaign("post", "one", lease).await?;
    let leader = answer.leader().context("it leads")?.clone();
    ensure!((leader.name(), leader.lease()) == (&b"post"[..], lease));
    let mut observed = client.observe("post").await?;
    let seen = observed.message().await?.context("somebody leads")?;
    ensure!(seen.kv().context("its key")?.value() == b"one");

    let mut other = client.clone();
    let other_lease = client.lease_grant(60, None).await?.id();
    let mut waiting = tokio::spawn(async move { other.campaign("post", "two", other_lease).await });
    ensure!(tokio::time::timeout(A_WHILE, &mut waiting).await.is_err(), "both lead");
    let as_leader = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("still one", Some(as_leader)).await?;
    ensure!(client.leader("post").await?.kv().context("its key")?.value() == b"still one");
    let seen = observed.message().await?.context("it goes on")?;
    ensure!(seen.kv().context("its key")?.value() == b"still one");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    tokio::time::timeout(PATIENCE, waiting).await???;
    let seen = observed.message().await?.context("it goes on")?;
    ensure!(seen.kv().context("its key")?.value() == b"two");
    client.lease_revoke(other_lease).await?;
    let refused = refusal(client.leader("post").await)?;
    ensure!(refused == "election: no leader", "{refused}");
    Ok(())
}

/// Each call may go to another member, and lists as this crate asks for them may lag behind.
async fn until_listed(client: &mut Client, learner: u64, peer_url: &str) -> anyhow::Result<()> {
    loop {
        let listed = client.member_list().await?;
        let found = listed.members().iter().find(|member| member.id() == learner);
        if found.is_some_and(|member| member.is_learner() && member.peer_urls() == [peer_url]) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn members(client: &mut Client) -> anyhow::Result<()> {
    let before = client.member_list().await?;
    ensure!(before.members().len() == 3);
    ensure!(before.members().iter().all(|member| !member.client_urls().is_empty()));
    // Nobody listens there: a learner costs nothing.
    let as_learner = MemberAddOptions::new().with_is_learner();
    let added = client.member_add(["http://127.0.0.1:1"], Some(as_learner)).await?;
    let id = added.member().context("the new member")?.id();
    ensure!(added.member_list().len() == 4);
    client.member_update(id, vec!["http://127.0.0.1:2".to_owned()]).await?;
    tokio::time::timeout(PATIENCE, until_listed(client, id, "http://127.0.0.1:2")).await??;
    let refused = refusal(client.member_promote(id).await)?;
    ensure!(
        refused == "etcdserver: can only promote a learner member which is in sync with leader",
        "{refused}"
    );
    ensure!(client.member_remove(id).await?.members().len() == 3);
    let refused = refusal(client.member_remove(id).await)?;
    ensure!(refused == "etcdserver: member not found", "{refused}");
    Ok(())
}

async fn status(client: &mut Client) -> anyhow::Result<()> {
    let status = client.status().await?;
    ensure!(status.version().starts_with("3.") && status.leader() != 0 && !status.is_learner());
    ensure!(status.db_size() > 0 && status.raft_used_db_size() > 0);
    ensure!(status.raft_index() >= status.raft_applied_index() && status.raft_term() > 0);
    ensure!(client.alarm(AlarmAction::Get, AlarmType::None, None).await?.alarms().is_empty());
    client.hash().await?;
    let hash = client.hash_kv(0).await?;
    ensure!(hash.header().context("a header")?.revision() > 1);
    client.defragment().await?;
    Ok(())
}

async fn snapshot(client: &mut Client) -> anyhow::Result<()> {
    client.put("snapshot/a", "this is in it", None).await?;
    let mut stream = client.snapshot().await?;
    let mut database = Vec::new();
    while let Some(part) = stream.message().await? {
        database.extend_from_slice(part.blob());
    }
    // A database of bbolt has its mark in the first page, and a checksum follows the pages.
    ensure!(database.len() % 512 == 32, "{} bytes", database.len());
    ensure!(database[16..20] == 0xED0C_DAED_u32.to_le_bytes());
    ensure!(database.windows(13).any(|bytes| bytes == b"this is in it"));
    Ok(())
}

/// Only the leader itself moves the leadership; the others refuse.
async fn move_leader(urls: &[String]) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for url in urls {
        let mut client = connect(std::slice::from_ref(url)).await?;
        let status = client.status().await?;
        let id = status.header().context("a header")?.member_id();
        clients.push((id, status.leader() == id, client));
    }
    let target = clients.iter().find(|(_, leads, _)| !leads).context("a follower")?.0;
    for (_, leads, client) in &mut clients {
        if !*leads {
            let refused = refusal(client.move_leader(target).await)?;
            ensure!(refused == "etcdserver: not leader", "{refused}");
        }
    }
    let (_, _, leader) = clients.iter_mut().find(|(_, leads, _)| *leads).context("a leader")?;
    leader.move_leader(target).await?;
    ensure!(leader.status().await?.leader() == target);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let mut client = connect(&urls).await?;
    macro_rules! part {
        ($part:ident($argument:expr)) => {
            $part($argument).await.context(stringify!($part))?;
            println!("{}", stringify!($part));
        };
    }
    part!(kv(&mut client));
    part!(txn(&mut client));
    part!(watch(&mut client));
    part!(lease(&mut client));
    part!(lock(&mut client));
    part!(election(&mut client));
    part!(members(&mut client));
    part!(status(&mut client));
    part!(snapshot(&mut client));
    part!(move_leader(&urls));
    Ok(())
}
