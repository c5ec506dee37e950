//! Several copies of the controllers and of the apiserver: one dies, another goes on, and what was
//! wanted is there in the end, no pod more and no pod less.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::control_plane::{ControlPlane, start_apiserver, start_controllers};
use crate::support::flat::{pods, pods_run, replicaset};
use crate::support::history::{PODS, history};
use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::Process;
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::tail::Tail;
use crate::support::wait::{holds, wait_for};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const LEASE: &str = "/registry/leases/kube-system/miniku-controllers";
/// Pods that the set is scaled to, and how many of them are there when somebody is killed.
const WANTED: usize = 200;
const SOME: usize = 20;

/// A control plane of which more runs than is needed.
struct Copies {
    store: Store,
    plane: ControlPlane,
    controllers: Vec<Process>,
}

impl Copies {
    async fn start(scratch: &Scratch, members: usize, copies: usize) -> Self {
        let store = Store::start(scratch, members).await;
        let plane = ControlPlane::start(scratch, &store.urls(), "fake", &NODES).await;
        let controllers = (1..copies)
            .map(|number| {
                let name = format!("controllers-{number}");
                start_controllers(scratch, &name, &store.urls(), &[])
            })
            .collect();
        let copies = Self { store, plane, controllers };
        wait_for("the others stand by", async || {
            let standing_by =
                |process: &&Process| process.log().contains("controllers: standing by");
            let count = copies.all().filter(standing_by).count();
            holds(count + 1 == copies.all().count(), format!("{count} do"))
        })
        .await;
        copies
    }

    fn all(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.plane.controllers).chain(&self.controllers)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.plane.controllers).chain(&mut self.controllers)
    }

    /// The lease as any member of the store that answers has it.
    async fn lease(&self) -> Result<Value, String> {
        let range = json!({ "key": BASE64_STANDARD.encode(LEASE) }).to_string();
        let mut last = "no member".to_owned();
        for member in &self.store.members {
            let gateway = Http::new(&member.client_url);
            match gateway.try_send(hyper::Method::POST, "/v3/kv/range", &range).await {
                Ok(answer) if answer.status == 200 => {
                    let value = answer.json()["kvs"][0]["value"].clone();
                    let value = value.as_str().ok_or("there is no lease")?;
                    let value = BASE64_STANDARD.decode(value).expect("base64");
                    return serde_json::from_slice(&value).map_err(|error| error.to_string());
                }
                Ok(answer) => last = answer.body,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Who holds the lease; none when it was let go.
    async fn holder(&self) -> Option<String> {
        let lease = wait_for("the lease can be read", async || self.lease().await).await;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    /// The copy that leads.
    async fn leader(&mut self) -> &mut Process {
        let holder = self.holder().await.expect("somebody leads");
        let leads = |process: &&mut Process| says_that_it_leads(process, &holder);
        self.all_mut().find(leads).expect("one of them leads")
    }

    async fn until_another_leads(&self, before: &str) -> String {
        wait_for("another one leads", async || {
            let lease = self.lease().await?;
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            holds(!holder.is_empty() && holder != before, &lease)?;
            Ok::<_, String>(holder.to_owned())
        })
        .await
    }

    /// That never was there a pod of the set but the wanted ones.
    async fn assert_exactly(&self, api: &Http, set: &str, wanted: usize) {
        pods_run(api, &format!("{set}-"), wanted).await;
        wait_for("the replicaset counts its pods", async || {
            let answer = api.get(&format!("/replicasets/{set}")).await;
            holds(answer.body.contains(&format!(r#""currentCount":{wanted},"#)), answer.body)
        })
        .await;
        // Marks the end of the history.
        assert_eq!(api.post("/pods", r#"{"name":"the-end","image":"i"}"#).await.status, 201);
        let history = history(&self.store.members[0], &format!("{PODS}the-end")).await;
        let prefix = format!("{PODS}{set}-");
        let of_set: Vec<_> =
            history.iter().filter(|change| change.key.starts_with(&prefix)).collect();
        let count = |kind| of_set.iter().filter(|change| change.kind == kind).count();
        assert_eq!((count("ADDED"), count("DELETED")), (wanted, 0), "created and deleted, ever");
    }
}

fn says_that_it_leads(process: &Process, holder: &str) -> bool {
    let log = process.log();
    let mut lines = log.lines().filter(|line| line.contains("this copy is the leader"));
    lines.any(|line| line.contains(holder))
}

/// Scales a set and waits until that is under way.
async fn begin_to_scale(api: &Http, set: &str) {
    assert_eq!(api.post("/replicasets", &replicaset(set, 0, "i")).await.status, 201);
    let path = format!("/replicasets/{set}");
    assert_eq!(api.put(&path, &replicaset(set, WANTED, "i")).await.status, 200);
    wait_for("scaling is under way", async || {
        let there = pods(api, set).await?.len();
        holds(there >= SOME, format!("{there} pods"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leading_controllers_are_killed_while_a_set_is_scaled() {
    let scratch = Scratch::new();
    let mut copies = Copies::start(&scratch, 1, 2).await;
    let api = copies.plane.api.clone();
    let before = copies.holder().await.expect("somebody leads");
    begin_to_scale(&api, "web").await;
    copies.leader().await.kill();
    let killed = Instant::now();
    copies.until_another_leads(&before).await;
    println!("handed over after {:.1?}", killed.elapsed());
    copies.assert_exactly(&api, "web", WANTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_the_apiserver_and_the_leading_member_are_killed_while_a_set_is_scaled() {
    let scratch = Scratch::new();
    let mut copies = Copies::start(&scratch, 3, 2).await;
    let (_second, url) = start_apiserver(&scratch, "apiserver-2", &copies.store.urls());
    let api = Http::new(&url);
    wait_for("the second apiserver answers", async || pods(&api, "").await).await;
    let before = copies.holder().await.expect("somebody leads");
    let first = copies.plane.api.clone();
    begin_to_scale(&first, "web").await;
    copies.leader().await.kill();
    copies.plane.apiserver.kill();
    let leader = copies.store.leader().await;
    copies.store.members[leader].process.kill();

    copies.until_another_leads(&before).await;
    pods_run(&api, "web-", WANTED).await;
    copies.store.members[leader].process.start_again();
    copies.store.serves(leader).await;
    copies.assert_exactly(&api, "web", WANTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_writes_nothing_when_it_wakes() {
    let scratch = Scratch::new();
    let mut copies = Copies::start(&scratch, 1, 2).await;
    let api = copies.plane.api.clone();
    let before = copies.holder().await.expect("somebody leads");
    begin_to_scale(&api, "web").await;
    copies.leader().await.signal(Signal::STOP);
    copies.until_another_leads(&before).await;
    pods_run(&api, "web-", WANTED).await;
    let paused = copies.all().find(|process| says_that_it_leads(process, &before));
    let paused = paused.expect("it led");
    paused.signal(Signal::CONT);
    wait_for("it sees that it leads no more", async || {
        holds(paused.log().contains("leadership lost"), "it did not say so")
    })
    .await;
    copies.assert_exactly(&api, "web", WANTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_hands_over_at_once_and_stands_by_when_it_is_back() {
    let scratch = Scratch::new();
    let mut copies = Copies::start(&scratch, 1, 2).await;
    let api = copies.plane.api.clone();
    let mut before = copies.holder().await.expect("somebody leads");
    for round in 1..=2 {
        let leader = copies.leader().await;
        assert!(leader.terminate().await.success());
        assert!(
            leader.log().contains("leadership given up"),
            "it does not keep the others waiting"
        );
        leader.start_again();
        before = copies.until_another_leads(&before).await;
        let count = 5 * round;
        let body = replicaset("web", count, "i");
        assert!(matches!(api.put("/replicasets/web", &body).await.status, 200 | 201));
        pods_run(&api, "web-", count).await;
    }
    let lease = copies.lease().await.expect("it is there");
    assert!(lease["spec"]["leaseTransitions"].as_i64() >= Some(2), "{lease}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_apiserver_does_and_one_may_die() {
    if !have(&[Need::Curl]) {
        return;
    }
    let scratch = Scratch::new();
    let mut copies = Copies::start(&scratch, 1, 1).await;
    let (_second, url) = start_apiserver(&scratch, "apiserver-2", &copies.store.urls());
    let (one, other) = (copies.plane.api.clone(), Http::new(&url));
    wait_for("the second apiserver answers", async || pods(&other, "").await).await;

    // What is written through one is seen through the other, by a list and by a watch.
    let mut urls = [copies.plane.api_url.clone(), url].into_iter().cycle();
    let urls = std::sync::Mutex::new(std::iter::from_fn(move || urls.next()));
    let line = |line: &str| -> Option<i64> {
        serde_json::from_str::<Value>(line).ok()?["resourceVersion"].as_str()?.parse().ok()
    };
    let mut tail = Tail::start(&scratch, "pods-watch", "curl", line, move |after| {
        let url = urls.lock().expect("nobody panics").next().expect("they go on for ever");
        let from = after.map_or(String::new(), |after| format!("&resourceVersion={after}"));
        ["-sN".to_owned(), format!("{url}/pods?watch=true{from}")].into()
    });
    let seen = async |tail: &mut Tail, name: &str| {
        wait_for(&format!("the watch tells of {name}"), async || {
            tail.keep_going(&scratch);
            let found = tail.lines().iter().any(|line| line.contains(&format!(r#""{name}""#)));
            holds(found, format!("{:?}", tail.lines()))
        })
        .await;
    };
    let mut probes = 0;
    wait_for("the watch has begun", async || {
        probes += 1;
        other.post("/pods", &format!(r#"{{"name":"probe-{probes}","image":"i"}}"#)).await;
        holds(tail.reached().is_some(), "it has seen nothing")
    })
    .await;
    assert_eq!(one.post("/pods", r#"{"name":"a","image":"i"}"#).await.status, 201);
    assert_eq!(other.post("/pods", r#"{"name":"a","image":"i"}"#).await.status, 409);
    assert_eq!(other.get("/pods/a").await.status, 200);
    seen(&mut tail, "a").await;

    copies.plane.apiserver.kill();
    assert_eq!(other.post("/pods", r#"{"name":"b","image":"i"}"#).await.status, 201);
    seen(&mut tail, "b").await;
    copies.plane.apiserver.start_again();
    wait_for("it is back", async || pods(&one, "").await).await;
    assert_eq!(one.delete("/pods/b").await.status, 204);
    pods_run(&other, "a", 1).await;
    wait_for("the other one knows", async || {
        let answer = other.get("/pods/b").await;
        holds(answer.status == 404, answer.body)
    })
    .await;

    // Two that write one object at the same time meet in the store.
    let body = |count| replicaset("web", count, "i");
    assert_eq!(one.post("/replicasets", &body(0)).await.status, 201);
    let puts = (1..=20).map(|count| {
        let (api, body) = (if count % 2 == 0 { &one } else { &other }, body(count % 5 + 1));
        async move { api.put("/replicasets/web", &body).await.status }
    });
    for status in join_all(puts).await {
        assert_eq!(status, 200);
    }
    let seen = [&one, &other].map(|api| api.get("/replicasets/web"));
    let [first, second] = seen;
    let desired = |answer: Value| answer["desiredCount"].as_u64();
    let (first, second) = (desired(first.await.json()), desired(second.await.json()));
    assert_eq!(first, second);
    pods_run(&one, "web-", usize::try_from(first.expect("a count")).expect("small")).await;
}
