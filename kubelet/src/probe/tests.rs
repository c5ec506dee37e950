//! The probers, with an engine in memory and a clock that does not make one wait.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::runtime::fake::{ExecScript, FakeRuntime};

/// Counts what it hears.
#[derive(Default)]
struct Ear {
    changes: AtomicU32,
    reports: Mutex<Vec<Report>>,
}

impl Listener for Ear {
    fn changed(&self, _pod: &ObjectKey) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    fn reported(&self, _pod: &Pod, report: Report) {
        self.reports.lock().push(report);
    }
}

/// What the commands of the probes do, and how often they were run.
#[derive(Default)]
struct Command {
    exit_code: AtomicI32,
    hangs: std::sync::atomic::AtomicBool,
    runs: AtomicU32,
}

struct World {
    probes: Probes,
    ear: Arc<Ear>,
    pod: Arc<Pod>,
    container: Container,
    commands: HashMap<&'static str, Arc<Command>>,
}

impl World {
    /// A container with these probes, whose commands are `startup`, `liveness` and `readiness`.
    async fn new(probes: Value) -> Self {
        let runtime = FakeRuntime::new(1, 1);
        let (ear, commands) = (Arc::<Ear>::default(), commands());
        let scripts = commands.clone();
        runtime.script_exec("web", move |command| {
            let command = &scripts[command[0].as_str()];
            command.runs.fetch_add(1, Ordering::SeqCst);
            let hangs = command.hangs.load(Ordering::SeqCst);
            ExecScript {
                takes: Duration::from_secs(if hangs { 1_000_000 } else { 0 }),
                stdout: "so it is\n".into(),
                exit_code: command.exit_code.load(Ordering::SeqCst),
                ..ExecScript::default()
            }
        });
        runtime.pull("web").await.unwrap();
        let id = runtime.create(&crate::runtime::fake::tests::spec("web")).await.unwrap();
        runtime.start(&id).await.unwrap();
        let container = runtime.inspect(&id).await.unwrap().unwrap();
        let mut declared = probes;
        declared["name"] = json!("main");
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "default", "uid": "u"},
            "spec": {"containers": [declared]},
        }));
        let probes = Probes::new(runtime, Clock::system(), ear.clone());
        Self { probes, ear, pod: Arc::new(pod.unwrap()), container, commands }
    }

    fn results(&self) -> Option<ProbeResults> {
        let seen = std::slice::from_ref(&self.container);
        self.probes.follow(&self.pod, seen).remove(&self.container.id)
    }

    fn messages(&self) -> Vec<String> {
        self.ear.reports.lock().iter().map(|report| report.message.clone()).collect()
    }

    fn exit_with(&self, command: &str, code: i32) {
        self.commands[command].exit_code.store(code, Ordering::SeqCst);
    }

    fn runs(&self, command: &str) -> u32 {
        self.commands[command].runs.load(Ordering::SeqCst)
    }
}

fn commands() -> HashMap<&'static str, Arc<Command>> {
    ["startup", "liveness", "readiness"].into_iter().map(|name| (name, Arc::default())).collect()
}

fn probe(command: &str, more: Value) -> Value {
    let mut probe = more;
    probe["exec"] = json!({"command": [command]});
    probe
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_and_goes() {
    let readiness = probe("readiness", json!({"periodSeconds": 1, "failureThreshold": 2}));
    let world = World::new(json!({"readinessProbe": readiness})).await;
    world.exit_with("readiness", 1);
    assert_eq!(world.results(), Some(ProbeResults::default()));
    seconds(3).await;
    assert_eq!(world.results().unwrap().ready, Some(false));
    world.exit_with("readiness", 0);
    seconds(2).await;
    assert_eq!(world.results().unwrap().ready, Some(true));
    assert_eq!(world.ear.changes.load(Ordering::SeqCst), 2);
    let failures = world.messages();
    assert!(failures.len() >= 2);
    assert!(failures.iter().all(|why| why == "Readiness probe failed: so it is"), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_dead_is_told_of_once_and_left_alone() {
    let liveness = probe(
        "liveness",
        json!({"initialDelaySeconds": 5, "periodSeconds": 1, "terminationGracePeriodSeconds": 7}),
    );
    let world = World::new(json!({"livenessProbe": liveness})).await;
    world.exit_with("liveness", 1);
    world.results();
    seconds(4).await;
    assert_eq!(world.runs("liveness"), 0, "its initial delay is not over");
    seconds(10).await;
    let dead = ProbeResults { must_restart: true, grace_seconds: Some(7), ..Default::default() };
    assert_eq!(world.results(), Some(dead));
    assert_eq!((world.runs("liveness"), world.ear.changes.load(Ordering::SeqCst)), (3, 1));
    let reasons: Vec<_> = world.ear.reports.lock().iter().map(|report| report.reason).collect();
    let (unhealthy, killing) = (Reason::Unhealthy, Reason::Killing);
    assert_eq!(reasons, [unhealthy, unhealthy, unhealthy, killing]);
    let last = world.messages().pop().unwrap();
    assert_eq!(last, "Container main failed liveness probe, will be restarted");
}

#[tokio::test(start_paused = true)]
async fn startup_holds_back_the_others() {
    let one = json!({"periodSeconds": 1, "failureThreshold": 100});
    let world = World::new(json!({
        "startupProbe": probe("startup", one.clone()),
        "livenessProbe": probe("liveness", one.clone()),
        "readinessProbe": probe("readiness", one),
    }))
    .await;
    world.exit_with("startup", 1);
    world.results();
    seconds(10).await;
    assert!(world.runs("startup") >= 9);
    assert_eq!((world.runs("liveness"), world.runs("readiness")), (0, 0));
    assert_eq!(world.results().unwrap(), ProbeResults::default());
    world.exit_with("startup", 0);
    seconds(5).await;
    let startups = world.runs("startup");
    let up = ProbeResults { ready: Some(true), started: Some(true), ..ProbeResults::default() };
    assert_eq!(world.results().unwrap(), up);
    seconds(5).await;
    assert_eq!(world.runs("startup"), startups, "it is over once it has succeeded");
    assert!(world.runs("liveness") >= 9 && world.runs("readiness") >= 9);
}

#[tokio::test(start_paused = true)]
async fn a_startup_that_never_comes_ends_the_container() {
    let startup = probe("startup", json!({"periodSeconds": 1, "failureThreshold": 2}));
    let world = World::new(json!({"startupProbe": startup})).await;
    world.exit_with("startup", 1);
    world.results();
    seconds(3).await;
    let results = world.results().unwrap();
    assert_eq!((results.must_restart, results.started), (true, None));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_has_failed() {
    let liveness = probe("liveness", json!({"periodSeconds": 5, "timeoutSeconds": 2}));
    let readiness = probe("readiness", json!({"periodSeconds": 1}));
    let world = World::new(json!({"livenessProbe": liveness, "readinessProbe": readiness})).await;
    world.commands["liveness"].hangs.store(true, Ordering::SeqCst);
    world.results();
    seconds(1).await;
    assert_eq!(world.results().unwrap().ready, Some(true), "it does not wait for the other");
    seconds(20).await;
    assert!(world.results().unwrap().must_restart);
    let failures = world.messages();
    assert!(failures[0].starts_with("Liveness probe failed: command timed out"), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn probes_end_with_their_container_and_a_deleted_pod_is_asked_for_readiness_only() {
    let every = json!({"periodSeconds": 1});
    let mut world = World::new(json!({
        "livenessProbe": probe("liveness", every.clone()),
        "readinessProbe": probe("readiness", every),
    }))
    .await;
    world.results();
    seconds(3).await;
    let mut pod = Pod::clone(&world.pod);
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    world.pod = Arc::new(pod);
    world.results();
    let before = (world.runs("liveness"), world.runs("readiness"));
    seconds(3).await;
    assert_eq!(world.runs("liveness"), before.0);
    assert!(world.runs("readiness") > before.1);
    world.container.state = ContainerState::Removing;
    assert_eq!(world.results(), None);
    let before = world.runs("readiness");
    seconds(3).await;
    assert_eq!(world.runs("readiness"), before);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_taken_over_need_not_start_again() {
    let mut world = World::new(json!({
        "startupProbe": probe("startup", json!({"periodSeconds": 1})),
        "readinessProbe": probe("readiness", json!({"periodSeconds": 1})),
    }))
    .await;
    let mut pod = Pod::clone(&world.pod);
    pod.status = serde_json::from_value(json!({"containerStatuses": [{
        "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "started": true, "containerID": format!("fake://{}", world.container.id),
    }]}))
    .unwrap();
    world.pod = Arc::new(pod);
    assert_eq!(world.results().unwrap().started, Some(true));
    seconds(5).await;
    assert_eq!(world.runs("startup"), 0);
    assert_eq!(world.results().unwrap().ready, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_made_says_so() {
    let readiness = json!({"tcpSocket": {"port": "nope"}});
    let world = World::new(json!({"readinessProbe": readiness})).await;
    assert_eq!(world.results(), Some(ProbeResults::default()));
    let failures = world.messages();
    assert!(failures[0].contains("no port named \"nope\""), "{failures:?}");
}
