//! Members that are added, promoted, replaced, moved and removed, while writers write; and what a
//! member says that has been cut off from the others.

use std::fs;

use rustix::process::Signal;
use serde_json::json;
use store_proto::etcdserverpb::cluster_client::ClusterClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{
    MemberListRequest, MoveLeaderRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use crate::support::etcdctl::{Said, etcdctl};
use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store, free_url, member_id, within_deadline};
use crate::support::wait::{holds, wait_for};
use crate::support::writers::Writers;

/// So that nobody is elected just because the machine is slow.
const PATIENT: [&str; 2] = ["--election-timeout", "3000"];

/// The exit code of a member that has been removed.
const REMOVED: i32 = 3;

fn any() -> RangeRequest {
    RangeRequest { key: "any".into(), ..Default::default() }
}

/// Runs a command until it succeeds, and returns what it printed: a member that answers late on a slow
/// machine makes the cluster unhealthy.
async fn done(endpoints: &str, arguments: &[&str]) -> String {
    wait_for(&format!("{arguments:?} is done"), async || {
        let said = etcdctl(endpoints, arguments);
        holds(said.success, said.error)?;
        Ok::<_, String>(said.output)
    })
    .await
}

async fn id_of(member: &Member) -> u64 {
    let status = wait_for("it answers", async || member.status().await).await;
    member_id(&status)
}

/// Adds a member through `asked` and starts it; it need not have caught up when this returns.
async fn add(scratch: &Scratch, store: &Store, asked: usize, name: &str, flags: &[&str]) -> Member {
    let peer_url = free_url();
    let urls = format!("--peer-urls={peer_url}");
    let command = [&["member", "add", name, urls.as_str()], flags].concat();
    let printed = done(&store.members[asked].client_url, &command).await;
    store.join(scratch, name, &peer_url, &printed_cluster(&printed))
}

/// The `--initial-cluster` in what `member add` prints.
fn printed_cluster(printed: &str) -> String {
    let line = printed.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="));
    line.expect("it prints the cluster").trim_matches('"').to_owned()
}

/// Waits until a member answers a linearizable read.
async fn serves(member: &Member) {
    wait_for("the new member serves", async || member.range(any()).await).await;
}

/// What must be the same of two commands' outputs: no ids, no addresses, and lists in order.
fn comparable(said: &Said) -> (bool, Vec<String>, Vec<String>) {
    let word = |word: &str| {
        let bare = word.trim_end_matches([',', ':']);
        // Printed without leading zeros.
        let is_id = (10..=16).contains(&bare.len()) && bare.bytes().all(|b| b.is_ascii_hexdigit());
        if is_id { word.replace(bare, "ID") } else { word.to_owned() }
    };
    let line = |line: &str| {
        // etcdctl pads short ids.
        let line = line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
        let mut parts: Vec<String> = line
            .split_inclusive("http://127.0.0.1:")
            .enumerate()
            .map(|(at, part)| {
                let digits = if at == 0 { "" } else { "0123456789" };
                part.trim_start_matches(|c| digits.contains(c)).to_owned()
            })
            .collect();
        if let Some(cluster) = line.strip_prefix("ETCD_INITIAL_CLUSTER=") {
            parts = cluster.trim_matches('"').split(',').map(|part| part[..2].to_owned()).collect();
            parts.sort_unstable();
        }
        parts.concat()
    };
    let mut output: Vec<String> = said.output.lines().map(line).collect();
    output.sort_unstable();
    let errors = said.error.lines().filter(|line| line.starts_with("Error: "));
    (said.success, output, errors.map(line).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_says_what_it_says_of_etcd() {
    if !have(&[Need::Etcd, Need::Etcdctl]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let ours = Store::start(&scratch, 3).await;
    let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 3, &[]).await;
    // In one order on both: the ids of the members in it follow the names.
    let ids = async |store: &Store| {
        let mut ids = Vec::new();
        for member in &store.members {
            ids.push(format!("{:x}", id_of(member).await));
        }
        ids
    };
    let (mut our_ids, mut etcd_ids) = (ids(&ours).await, ids(&etcd).await);
    let spare = free_url();
    let other = free_url();
    // `ID2` is the second member's, `URL2` its peer URL, `ADDED` the one that was added last.
    let run = |store: &Store, ids: &[String], command: &str| {
        let word = |word: &str| {
            let mut word = word.replace("URL2", &store.members[1].peer_url);
            word = word.replace("ID2", &ids[1]).replace("ADDED", ids.last().expect("an id"));
            word.replace("SPARE", &spare).replace("OTHER", &other)
        };
        let words: Vec<String> = command.split(' ').map(word).collect();
        etcdctl(&store.urls(), &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // etcd counts members as connected after five seconds only.
    wait_for("etcd adds members", async || {
        let said = run(&etcd, &etcd_ids, "member add xx --peer-urls=URL2");
        holds(said.error.contains("Peer URLs already exists"), said.error)
    })
    .await;
    for command in [
        "member list",
        "member add xx --peer-urls=URL2",
        "member add xx --peer-urls=127.0.0.1:1",
        "member add xx --peer-urls=http://127.0.0.1",
        "member add xx --peer-urls=SPARE --learner",
        "member list",
        "member add yy --peer-urls=OTHER --learner",
        "member add yy --peer-urls=SPARE",
        "member promote ADDED",
        "member promote ID2",
        "member promote 1234",
        "member update 1234 --peer-urls=SPARE",
        "member remove ADDED",
        "member remove ADDED",
        "member remove 1234",
        "member add xx --peer-urls=SPARE",
        "member list",
        "member add yy --peer-urls=OTHER",
        "member add yy --peer-urls=OTHER --learner",
        "member promote ADDED",
        // Not of the learner: etcd 3.4 makes it a voter by that, in its list.
        "member update ADDED --peer-urls=OTHER",
        "member update ADDED --peer-urls=URL2",
        "member list",
        "member remove ADDED",
        "member list",
        "move-leader 1234",
    ] {
        let (our_said, etcd_said) = (run(&ours, &our_ids, command), run(&etcd, &etcd_ids, command));
        assert_eq!(comparable(&our_said), comparable(&etcd_said), "left: ours; {command}");
        for (said, ids) in [(&our_said, &mut our_ids), (&etcd_said, &mut etcd_ids)] {
            if let Some(added) = said.output.strip_prefix("Member ")
                && added.contains(" added to cluster ")
            {
                ids.push(added.split_whitespace().next().expect("an id").to_owned());
            }
        }
    }
    let [ours, etcd] = [&ours, &etcd].map(|store| Http::new(&store.members[0].client_url));
    for (path, body) in [
        ("member/add", json!({"peerURLs": ["nonsense"]})),
        ("member/remove", json!({"ID": "1234"})),
        ("member/update", json!({"ID": "1234", "peerURLs": ["http://127.0.0.1:1"]})),
        ("member/promote", json!({"ID": "1234"})),
    ] {
        let path = format!("/v3/cluster/{path}");
        let (our, theirs) =
            (ours.post(&path, &body.to_string()).await, etcd.post(&path, &body.to_string()).await);
        assert_eq!((our.status, our.json()), (theirs.status, theirs.json()), "{path}");
    }
    let listed = async |http: &Http| {
        let mut list = http.post("/v3/cluster/member/list", "{}").await.json();
        for id in ["cluster_id", "member_id", "raft_term"] {
            list["header"].as_object_mut().expect("a header").remove(id).expect("an id");
        }
        for member in list["members"].as_array_mut().expect("members") {
            for field in ["ID", "peerURLs", "clientURLs"] {
                member.as_object_mut().expect("a member").remove(field).expect("a field");
            }
        }
        let members = list["members"].as_array_mut().expect("members");
        members.sort_by_key(|member| member["name"].to_string());
        list
    };
    assert_eq!(listed(&ours).await, listed(&etcd).await);
}

/// What an operator does after a disk is gone, as the message of the member itself says.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_disk_is_gone_is_replaced_while_writers_write() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &PATIENT).await;
    let writers = Writers::start(&store, 3);
    writers.go_on(100).await;
    let dead = store.leader().await;
    let asked = (dead + 1) % 3;
    let name = store.members[dead].process.name.clone();
    store.members[dead].process.kill();
    fs::remove_dir_all(&store.members[dead].data_dir).expect("it was there");
    writers.go_on(100).await;

    // It is not let in as if nothing had happened, and says what to do.
    store.members[dead].process.start_again();
    let status = store.members[dead].process.ended().await;
    assert_eq!(status.code(), Some(1));
    let log = store.members[dead].process.log();
    let advice = log.lines().last().unwrap_or_default();
    let commands: Vec<&str> = advice.split('`').skip(1).step_by(2).collect();
    let [remove, add] = commands[..] else { panic!("two commands in: {advice}") };
    let words =
        |command: &str| -> Vec<String> { command.split(' ').skip(1).map(str::to_owned).collect() };
    let run = async |command: &str| {
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        done(&store.members[asked].client_url, &words).await
    };
    run(remove).await;
    writers.go_on(50).await;
    let printed = run(add).await;
    let _ = fs::remove_dir_all(&store.members[dead].data_dir);
    let peer_url = store.members[dead].peer_url.clone();
    let new = store.join(&scratch, &name, &peer_url, &printed_cluster(&printed));
    serves(&new).await;
    store.members[dead] = new;
    is_voter(&store, dead).await;
    writers.go_on(100).await;
    // It counts: with one of the old ones down, it makes the quorum.
    store.members[asked].process.kill();
    writers.go_on(50).await;
    store.members[asked].process.start_again();
    let history = writers.stop().await;
    history.check(&store.agree().await);

    // And it starts again from what it has, with the same command.
    store.members[dead].process.kill();
    store.members[dead].process.start_again();
    serves(&store.members[dead]).await;

    // It remembers the others, although the flags of the first start give it another id.
    let third = 3 - dead - asked;
    store.members[third].process.kill();
    store.members[asked].process.kill();
    fs::remove_dir_all(&store.members[asked].data_dir).expect("it was there");
    store.members[asked].process.start_again();
    assert_eq!(store.members[asked].process.ended().await.code(), Some(1));
}

/// Waits until a member can be made the leader, which only one with a vote can.
async fn is_voter(store: &Store, number: usize) {
    let id = id_of(&store.members[number]).await;
    wait_for("the member has a vote", async || {
        let leader = store.leader().await;
        if leader == number {
            return Ok(());
        }
        move_leader(&store.members[leader], id).await.map_err(|error| error.to_string())
    })
    .await;
}

async fn move_leader(leader: &Member, target_id: u64) -> Result<(), Status> {
    within_deadline(
        MaintenanceClient::new(leader.channel()).move_leader(MoveLeaderRequest { target_id }),
    )
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_newcomer_costs_no_quorum() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 1, &[]).await;
    let peer_url = free_url();
    let flag = format!("--peer-urls={peer_url}");
    let printed = done(&store.urls(), &["member", "add", "n2", &flag]).await;
    store.members[0].put("/alone", "1").await.expect("one of one is a quorum still");
    let listed = done(&store.urls(), &["member", "list"]).await;
    assert!(listed.contains(&format!(", unstarted, , {peer_url}, , false")), "{listed}");

    // With other members in its flags than there are it does not start.
    let mut wrong =
        store.join(&scratch, "wrong", &peer_url, &format!("wrong={peer_url},a=http://a:1"));
    assert!(!wrong.process.ended().await.success());
    let cluster = format!("n3={peer_url},n1={}", store.members[0].peer_url);
    let mut wrong = store.join(&scratch, "n2", &peer_url, &cluster);
    assert_eq!(wrong.process.ended().await.code(), Some(2), "--name is not in --initial-cluster");
    drop(wrong);

    let cluster = printed_cluster(&printed);
    let new = store.join(&scratch, "n2", &peer_url, &cluster);
    serves(&new).await;
    store.members.push(new);
    is_voter(&store, 1).await;
    store.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_promoted_and_leaders_are_moved_and_removed_under_load() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &PATIENT).await;
    let writers = Writers::start(&store, 3);
    writers.go_on(50).await;

    let learner = add(&scratch, &store, 0, "n4", &["--learner"]).await;
    let local = RangeRequest { serializable: true, ..any() };
    wait_for("the learner answers", async || learner.range(local.clone()).await).await;
    let status = learner.status().await.expect("a learner tells its status");
    assert!(status.is_learner);
    let refused = [
        learner.range(any()).await.map(drop),
        learner.put("/x", "1").await.map(drop),
        within_deadline(
            ClusterClient::new(learner.channel())
                .member_list(MemberListRequest { linearizable: false }),
        )
        .await
        .map(drop),
        watch(&learner, false).await.map(drop),
    ];
    for refused in refused {
        let error = refused.expect_err("a learner does not take that");
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(error.message(), "etcdserver: rpc not supported for learner");
    }
    let id = format!("{:x}", member_id(&status));
    done(&store.urls(), &["member", "promote", &id]).await;
    serves(&learner).await;
    store.members.push(learner);
    writers.go_on(50).await;

    // Leadership goes round.
    let mut moves = Vec::new();
    for _ in 0..4 {
        let leader = store.leader().await;
        let next = (leader + 1) % 4;
        let target = id_of(&store.members[next]).await;
        let other = &store.members[(leader + 2) % 4];
        let refused = move_leader(other, target).await.expect_err("it does not lead");
        assert_eq!(refused.message(), "etcdserver: not leader");
        let from = Instant::now();
        match move_leader(&store.members[leader], target).await {
            Ok(()) => {
                let status = store.members[leader].status().await.expect("it runs");
                assert_eq!(status.leader, target, "it was answered when the new one led");
                moves.push((from, Instant::now()));
            }
            // On a machine that is too slow for its election timeout, another one may come first.
            Err(error) => assert_eq!(error.message(), "etcdserver: leader changed"),
        }
        writers.go_on(50).await;
    }
    assert!(!moves.is_empty(), "it was moved");
    // So it does when the leader is stopped in good order.
    let leader = store.leader().await;
    let from = Instant::now();
    assert!(store.members[leader].process.terminate().await.success());
    let stopped = Instant::now();
    writers.go_on(50).await;
    store.members[leader].process.start_again();
    store.serves(leader).await;

    // The leader is removed, and ends by itself; started again, it learns why and disturbs nobody.
    let leader = store.leader().await;
    let id = format!("{:x}", id_of(&store.members[leader]).await);
    done(&store.members[(leader + 1) % 4].client_url, &["member", "remove", &id]).await;
    let mut removed = store.members.remove(leader);
    assert_eq!(removed.process.ended().await.code(), Some(REMOVED));
    writers.go_on(50).await;
    let term = store.members[0].status().await.expect("it runs").raft_term;
    removed.process.start_again();
    assert_eq!(removed.process.ended().await.code(), Some(REMOVED));
    let log = removed.process.log();
    let why = "the member has been permanently removed from the cluster";
    assert!(log.lines().last().unwrap_or_default().contains(why), "{log}");
    writers.go_on(50).await;
    let status = store.members[0].status().await.expect("it runs");
    assert_eq!(status.raft_term, term, "nobody had to be elected");

    let history = writers.stop().await;
    history.check(&store.agree().await);
    let gaps: Vec<_> = moves.iter().map(|(from, to)| history.longest_gap(*from, *to)).collect();
    println!(
        "gaps without an acknowledged write: moved {gaps:.0?}, stopped {:.0?}",
        history.longest_gap(from, stopped)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_moves_is_found_at_its_new_address() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &[]).await;
    let moved = (store.leader().await + 1) % 3;
    let id = format!("{:x}", id_of(&store.members[moved]).await);
    let name = store.members[moved].process.name.clone();
    store.members[moved].process.kill();
    let peer_url = free_url();
    let urls = format!("--peer-urls={peer_url}");
    done(&store.members[(moved + 1) % 3].client_url, &["member", "update", &id, &urls]).await;
    store.members[(moved + 1) % 3].put("/meanwhile", "1").await.expect("two of three run");
    let cluster: Vec<String> = (store.members.iter().enumerate())
        .map(|(number, member)| {
            let url = if number == moved { &peer_url } else { &member.peer_url };
            format!("{}={url}", member.process.name)
        })
        .collect();
    store.members[moved] = store.join(&scratch, &name, &peer_url, &cluster.join(","));
    store.serves(moved).await;
    store.agree().await;
}

/// A watch that has been accepted, and what becomes of it.
async fn watch(
    member: &Member,
    needs_leader: bool,
) -> Result<tonic::Streaming<store_proto::etcdserverpb::WatchResponse>, Status> {
    let create = WatchCreateRequest { key: "any".into(), ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The client's side stays open.
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
    let mut request = Request::new(requests);
    if needs_leader {
        request.metadata_mut().insert("hasleader", "true".parse().expect("a word"));
    }
    let mut watch = within_deadline(member.watch().watch(request)).await?.into_inner();
    within_deadline(watch.message()).await?;
    Ok(watch)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_says_so() {
    if Kind::under_test() == Kind::Etcd && !have(&[Need::Etcd]) {
        return;
    }
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 3).await;
    for left_is_leader in [true, false] {
        let leader = store.leader().await;
        let left = if left_is_leader { leader } else { (leader + 1) % 3 };
        let others = || (0..3).filter(|number| *number != left);
        let left = &store.members[left];
        // On a loaded machine a leader may lose its followers for a moment.
        let mut watching = wait_for("it has a leader", async || watch(left, true).await).await;
        for other in others() {
            store.members[other].process.signal(Signal::STOP);
        }
        wait_for("it knows no leader", async || {
            let status = left.status().await.map_err(|error| error.to_string())?;
            let errors = &status.errors;
            holds(status.leader == 0 && errors == &["etcdserver: no leader"], format!("{errors:?}"))
        })
        .await;
        let mut read = Request::new(RangeRequest { serializable: true, ..any() });
        read.metadata_mut().insert("hasleader", "true".parse().expect("a word"));
        let refused = within_deadline(left.kv().range(read)).await.expect_err("no leader");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unavailable, "etcdserver: no leader")
        );
        let refused = watch(left, true).await.expect_err("no leader");
        assert_eq!(refused.message(), "etcdserver: no leader");
        let ended = within_deadline(watching.message()).await.expect_err("it is ended");
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
        watch(left, false).await.expect("one that does not insist is taken");
        for other in others() {
            store.members[other].process.signal(Signal::CONT);
        }
        for number in 0..3 {
            store.serves(number).await;
        }
        wait_for("all know a leader again", async || {
            for member in &store.members {
                let status = member.status().await.map_err(|error| error.to_string())?;
                holds(status.leader != 0 && status.errors.is_empty(), format!("{status:?}"))?;
            }
            Ok::<_, String>(())
        })
        .await;
    }
}
