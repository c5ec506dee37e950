//! Probes of real containers: who is ready, who is started again, and what is told of it.

use api::Scope;
use k8s_openapi::api::core::v1::Event;

use super::*;

/// What a shell in the pod's container prints.
fn shell(pod: &str, script: &str) -> String {
    docker(&["exec", pod, BUSYBOX, "sh", "-c", script]).unwrap_or_default()
}

fn command(script: &str) -> Value {
    json!({"exec": {"command": [BUSYBOX, "sh", "-c", script]}})
}

/// A probe every second, for which one failure is enough.
fn every_second(mut probe: Value) -> Value {
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(1);
    // A busy machine is no failure.
    probe["timeoutSeconds"] = json!(20);
    probe
}

/// The status of the pod's condition of that type.
fn condition(pod: &Pod, kind: &str) -> String {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut of_kind = conditions.filter(|condition| condition.type_ == kind);
    of_kind.next().map(|condition| condition.status.clone()).unwrap_or_default()
}

fn has_started(pod: &Pod) -> bool {
    entry(pod)
        .is_some_and(|entry| entry.state.as_ref().is_some_and(|state| state.running.is_some()))
}

impl World {
    async fn run_probed(&self, name: &str, script: &str, probes: &Value) -> String {
        let mut container = self.container("main", script);
        container.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
        self.run_pod(name, 1, &json!({"containers": [container]})).await
    }

    /// Waits until an event of the pod says so.
    pub(super) async fn until_told(&self, pod: &str, reason: &str, message: &str) {
        let events = self.etcd.store().api::<Event>();
        eventually(&format!("{reason} {message} of {pod}"), async || {
            let all = events.list(&Scope::Namespace("default".into())).await.unwrap().items;
            all.iter().any(|event| {
                event.involved_object.name.as_deref() == Some(pod)
                    && event.reason.as_deref() == Some(reason)
                    && event.message.as_ref().is_some_and(|text| text.starts_with(message))
            })
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_ready_while_its_probe_says_so() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let probe = every_second(command("echo not yet; test -e /ready"));
    let by_command = world.run_probed("command", SERVE, &json!({"readinessProbe": probe})).await;
    let serve = "mkdir /www; trap 'exit 0' TERM; /bin/busybox httpd -p 8080 -h /www;
                 /bin/busybox sleep 1000000 & wait";
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    let by_request = every_second(json!({"httpGet": {"port": "web", "path": "/ready.txt"}}));
    let by_request = world
        .run_probed("request", serve, &json!({"ports": ports, "readinessProbe": by_request}))
        .await;
    let by_connection = every_second(json!({"tcpSocket": {"port": 8080}}));
    let by_connection =
        world.run_probed("connection", SERVE, &json!({"readinessProbe": by_connection})).await;

    for (pod, why) in [
        (&by_command, "Readiness probe failed: not yet"),
        (&by_request, "Readiness probe failed: HTTP probe failed with statuscode: 404"),
        (&by_connection, "Readiness probe failed: dial tcp"),
    ] {
        world.until_told(pod, "Unhealthy", why).await;
        let found = world.pods.until(pod, "runs", has_started).await;
        assert!(!is_ready(&found), "{pod}");
        assert_eq!(condition(&found, "Ready"), "False");
        assert_eq!(condition(&found, "ContainersReady"), "False");
        assert_eq!(phase(&found), "Running");
    }
    shell(&by_command, "touch /ready");
    shell(&by_request, "echo yes > /www/ready.txt");
    shell(&by_connection, "/bin/busybox httpd -p 8080");
    for pod in [&by_command, &by_request, &by_connection] {
        let ready = |pod: &Pod| is_ready(pod) && condition(pod, "Ready") == "True";
        world.pods.until(pod, "is ready", ready).await;
    }
    shell(&by_command, "rm /ready");
    let unready = |pod: &Pod| !is_ready(pod) && condition(pod, "Ready") == "False";
    let pod = world.pods.until(&by_command, "is not ready again", unready).await;
    assert_eq!(restarts(&pod), 0);

    for pod in [&by_command, &by_request, &by_connection] {
        world.delete(pod).await;
    }
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_no_longer_alive_is_started_again() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let liveness = every_second(command("test ! -e /dead"));
    let script = "trap 'exit 7' TERM; /bin/busybox sleep 1000000 & wait";
    let name = world.run_probed("alive", script, &json!({"livenessProbe": liveness})).await;
    world.pods.until_running(&name).await;
    shell(&name, "touch /dead");
    let again = |pod: &Pod| restarts(pod) == 1 && is_ready(pod);
    let pod = world.pods.until(&name, "is started again", again).await;
    let last = entry(&pod).unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 7, "it was asked to end");
    world.until_told(&name, "Unhealthy", "Liveness probe failed: command").await;
    world.until_told(&name, "Killing", "Container main failed liveness probe").await;
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn startup_holds_back_liveness_until_it_has_succeeded() {
    let world = world!();
    let kubelet = world.kubelet(1).await;
    let mut startup = every_second(command("echo x >> /tries; test -e /started"));
    startup["failureThreshold"] = json!(1000);
    let liveness = every_second(command("test -e /alive"));
    let probes = json!({"startupProbe": startup, "livenessProbe": liveness});
    let name = world.run_probed("slow", SERVE, &probes).await;
    let pod = world.pods.until(&name, "runs", has_started).await;
    assert_eq!((entry(&pod).unwrap().started, is_ready(&pod)), (Some(false), false));
    // By then its liveness would have failed.
    eventually("it is asked often", async || shell(&name, "cat /tries").lines().count() >= 4).await;
    let pod = world.pods.get(&name).await.unwrap();
    assert_eq!((restarts(&pod), entry(&pod).unwrap().started), (0, Some(false)));
    shell(&name, "touch /started");
    world.pods.until(&name, "is started again", |pod| restarts(pod) >= 1).await;
    world.delete(&name).await;
    world.until_clean(1).await;
    kubelet.shutdown().await;
}
