//! etcd's Lock and Election services: who waits, who is next, and what is left of those that went
//! away. `MINIKU_TEST_STORE=etcd` holds a real etcd to the same.

use store_proto::etcdserverpb::lease_client::LeaseClient;
use store_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use store_proto::v3electionpb::election_client::ElectionClient;
use store_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use store_proto::v3lockpb::lock_client::LockClient;
use store_proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store, within_deadline};
use crate::support::wait::{holds, wait_for};

const TTL_SECONDS: i64 = 600;

async fn start(scratch: &Scratch) -> Option<Store> {
    if Kind::under_test() == Kind::Etcd && !have(&[Need::Etcd]) {
        return None;
    }
    Some(Store::start(scratch, 3).await)
}

async fn grant(member: &Member, ttl: i64) -> i64 {
    let request = LeaseGrantRequest { ttl, id: 0 };
    let mut client = LeaseClient::new(member.channel());
    within_deadline(client.lease_grant(request)).await.expect("a lease").into_inner().id
}

async fn revoke(member: &Member, id: i64) {
    let mut client = LeaseClient::new(member.channel());
    within_deadline(client.lease_revoke(LeaseRevokeRequest { id })).await.expect("revoked");
}

/// Has a call under way; it goes away when the handle does.
#[expect(clippy::disallowed_methods, reason = "the handle owns the task")]
fn begin<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(call))
}

fn begin_lock(
    member: &Member,
    name: &'static str,
    lease: i64,
) -> AbortOnDropHandle<Result<String, Status>> {
    let mut client = LockClient::new(member.channel());
    begin(async move {
        let response = client.lock(LockRequest { name: name.into(), lease }).await?;
        Ok(String::from_utf8_lossy(&response.get_ref().key).into_owned())
    })
}

async fn unlock(member: &Member, key: &str) {
    let mut client = LockClient::new(member.channel());
    let request = UnlockRequest { key: key.to_owned().into() };
    within_deadline(client.unlock(request)).await.expect("unlocked");
}

fn begin_campaign(
    member: &Member,
    lease: i64,
    value: &'static str,
) -> AbortOnDropHandle<Result<CampaignResponse, Status>> {
    let mut client = ElectionClient::new(member.channel());
    let request = CampaignRequest { name: "election".into(), lease, value: value.into() };
    begin(async move { Ok(client.campaign(request).await?.into_inner()) })
}

/// The keys of a queue, oldest first.
async fn queue(member: &Member, name: &str) -> Result<Vec<String>, Status> {
    let request = RangeRequest {
        key: format!("{name}/").into(),
        range_end: format!("{name}0").into(),
        ..Default::default()
    };
    let mut kvs = member.range(request).await?.kvs;
    kvs.sort_by_key(|kv| kv.create_revision);
    Ok(kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect())
}

async fn wait_for_queue(member: &Member, name: &str, expected: &[&str]) {
    wait_for(&format!("{expected:?} queue up"), async || {
        let queue = queue(member, name).await.map_err(|error| error.to_string())?;
        holds(queue == expected, format!("the queue is {queue:?}"))
    })
    .await;
}

fn key(name: &str, lease: i64) -> String {
    format!("{name}/{lease:x}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_from_one_to_the_next_in_their_order() {
    let scratch = Scratch::new();
    let Some(store) = start(&scratch).await else { return };
    let [a, b, c] = &store.members[..] else { panic!("three members") };
    let leases =
        [grant(a, TTL_SECONDS).await, grant(b, TTL_SECONDS).await, grant(c, TTL_SECONDS).await];
    let [key_a, key_b, key_c] = leases.map(|lease| key("lock", lease));

    assert_eq!(begin_lock(a, "lock", leases[0]).await.unwrap().unwrap(), key_a);
    // The same lease has it already, whoever asks.
    assert_eq!(begin_lock(b, "lock", leases[0]).await.unwrap().unwrap(), key_a);
    let second = begin_lock(b, "lock", leases[1]);
    wait_for_queue(a, "lock", &[&key_a, &key_b]).await;
    let third = begin_lock(c, "lock", leases[2]);
    wait_for_queue(a, "lock", &[&key_a, &key_b, &key_c]).await;
    assert!(!second.is_finished() && !third.is_finished());
    // Another name is another lock.
    let other = begin_lock(c, "lock2", 0).await.unwrap().unwrap();
    assert!(other.starts_with("lock2/"), "{other}");

    unlock(c, &key_a).await;
    assert_eq!(second.await.unwrap().unwrap(), key_b);
    wait_for_queue(a, "lock", &[&key_b, &key_c]).await;
    assert!(!third.is_finished());
    revoke(a, leases[1]).await;
    assert_eq!(third.await.unwrap().unwrap(), key_c);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_leaves_nothing_waiting() {
    let scratch = Scratch::new();
    let Some(store) = start(&scratch).await else { return };
    let [a, b, c] = &store.members[..] else { panic!("three members") };
    let leases =
        [grant(a, TTL_SECONDS).await, grant(b, TTL_SECONDS).await, grant(c, TTL_SECONDS).await];
    let [key_a, key_b, key_c] = leases.map(|lease| key("lock", lease));

    begin_lock(a, "lock", leases[0]).await.unwrap().unwrap();
    let second = begin_lock(b, "lock", leases[1]);
    wait_for_queue(a, "lock", &[&key_a, &key_b]).await;
    let third = begin_lock(c, "lock", leases[2]);
    wait_for_queue(a, "lock", &[&key_a, &key_b, &key_c]).await;
    drop(second);
    wait_for_queue(a, "lock", &[&key_a, &key_c]).await;
    // Nor does a client without gRPC.
    let http = Http::new(&b.client_url);
    let body = format!(r#"{{"name":"bG9jaw==","lease":"{}"}}"#, leases[1]);
    let fourth = begin(async move { http.post("/v3/lock/lock", &body).await });
    wait_for_queue(a, "lock", &[&key_a, &key_c, &key_b]).await;
    drop(fourth);
    wait_for_queue(a, "lock", &[&key_a, &key_c]).await;

    unlock(a, &key_a).await;
    assert_eq!(third.await.unwrap().unwrap(), key_c);

    let leader = begin_campaign(a, leases[0], "a").await.unwrap().unwrap();
    let key_a = key("election", leases[0]);
    assert_eq!(leader.leader.expect("a key").key, key_a);
    let second = begin_campaign(b, leases[1], "b");
    wait_for_queue(a, "election", &[&key_a, &key("election", leases[1])]).await;
    drop(second);
    wait_for_queue(a, "election", &[&key_a]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_its_lease_while_it_waits_is_told() {
    let scratch = Scratch::new();
    let Some(store) = start(&scratch).await else { return };
    let [a, b, _] = &store.members[..] else { panic!("three members") };
    let leases = [grant(a, TTL_SECONDS).await, grant(b, TTL_SECONDS).await];
    let [key_a, key_b] = leases.map(|lease| key("lock", lease));
    begin_lock(a, "lock", leases[0]).await.unwrap().unwrap();
    let second = begin_lock(b, "lock", leases[1]);
    wait_for_queue(a, "lock", &[&key_a, &key_b]).await;
    revoke(a, leases[1]).await;
    // etcd 3.4 gives it the lock nevertheless, later ones wait until the lock is free.
    if Kind::under_test() == Kind::Miniku {
        let status = second.await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unknown, "mutex: session is expired"));
    }

    let status = begin_lock(a, "lock", 4711).await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unknown, "etcdserver: requested lease not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_has_one_leader_that_all_observe() {
    let scratch = Scratch::new();
    let Some(store) = start(&scratch).await else { return };
    let [a, b, c] = &store.members[..] else { panic!("three members") };
    let (first, second) = (grant(a, TTL_SECONDS).await, grant(b, TTL_SECONDS).await);
    let mut client = ElectionClient::new(a.channel());
    let name = LeaderRequest { name: "election".into() };

    let status = client.leader(name.clone()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "election: no leader"));
    let mut observer = ElectionClient::new(c.channel());
    let observed = begin({
        let name = name.clone();
        async move {
            let stream = observer.observe(name).await.expect("observed").into_inner();
            let values = stream.map(|response| {
                let kv = response.expect("a leader").kv.expect("with a value");
                String::from_utf8_lossy(&kv.value).into_owned()
            });
            values.take(4).collect::<Vec<_>>().await
        }
    });

    let leader = begin_campaign(a, first, "one").await.unwrap().unwrap().leader.expect("a key");
    assert_eq!((&leader.name[..], leader.lease), (&b"election"[..], first));
    assert_eq!(leader.key, key("election", first));
    let next = begin_campaign(b, second, "three");
    wait_for_queue(a, "election", &[&key("election", first), &key("election", second)]).await;
    // Who observes from the middle on is told of the present leader.
    let told = client.leader(name.clone()).await.expect("a leader").into_inner().kv.expect("a key");
    assert_eq!((told.value, told.create_revision), ("one".into(), leader.rev));

    let proclaim = |leader: LeaderKey, value: &'static str| ProclaimRequest {
        leader: Some(leader),
        value: value.into(),
    };
    client.proclaim(proclaim(leader.clone(), "two")).await.expect("it leads");
    // Who campaigns again leads already, with the new value.
    let again = begin_campaign(c, first, "two and a half").await.unwrap().unwrap();
    assert_eq!(again.leader.as_ref(), Some(&leader));
    assert!(!next.is_finished());

    client.resign(ResignRequest { leader: Some(leader.clone()) }).await.expect("resigned");
    let leader_b = next.await.unwrap().unwrap().leader.expect("a key");
    assert_eq!(leader_b.key, key("election", second));
    let status = client.proclaim(proclaim(leader.clone(), "x")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "election: not leader"));
    // To resign from what was lost is no error, and changes nothing.
    client.resign(ResignRequest { leader: Some(leader) }).await.expect("resigned");
    wait_for_queue(a, "election", &[&key("election", second)]).await;
    assert_eq!(observed.await.unwrap(), ["one", "two", "two and a half", "three"]);

    for status in [
        client.proclaim(ProclaimRequest::default()).await.unwrap_err(),
        client.resign(ResignRequest::default()).await.unwrap_err(),
    ] {
        let expected = (Code::Unknown, "\"leader\" field must be provided");
        assert_eq!((status.code(), status.message()), expected);
    }
}
