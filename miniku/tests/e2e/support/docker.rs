//! The Docker Engine, through its command line: the containers of one test.

use std::process::Command;

use tokio::sync::{Mutex, MutexGuard};

/// Pods that run until they are told to stop, and then stop at once.
pub(crate) const BUSYBOX: &str = "miniku-test/busybox:latest";
/// A real nginx.
pub(crate) const NGINX: &str = "miniku-test/nginx:latest";

static TURN: Mutex<()> = Mutex::const_new(());

/// Tests with containers take turns: the engine is slow enough for one.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A container as the engine lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) node: String,
    pub(crate) running: bool,
}

/// All containers whose names begin alike, which nobody else's do. Make it before the processes
/// that make the containers, so that it is dropped after them: what is left then is removed.
pub(crate) struct Containers {
    pub(crate) prefix: String,
}

impl Containers {
    pub(crate) fn of_test(name: &str) -> Self {
        Self { prefix: format!("e2e{}-{name}", std::process::id()) }
    }

    /// Those that exist, running or not, in the order of their names. Lives of a container that
    /// were succeeded by another are left out: they are kept for their logs.
    pub(crate) fn list(&self) -> Vec<Container> {
        let mut containers = self.list_all();
        containers.retain(|container| !container.name.contains("__"));
        containers
    }

    /// All of them, predecessors included.
    pub(crate) fn list_all(&self) -> Vec<Container> {
        let filter = format!("name=^{}", self.prefix);
        let format = "{{.Names}}\t{{.ID}}\t{{.Label \"miniku.node\"}}\t{{.State}}";
        let listed = docker(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", format]);
        let mut containers: Vec<Container> = listed
            .lines()
            .map(|line| {
                let [name, id, node, state] =
                    line.split('\t').collect::<Vec<_>>().try_into().expect("four columns");
                let [name, id, node] = [name, id, node].map(str::to_owned);
                Container { name, id, node, running: state == "running" }
            })
            .collect();
        containers.sort();
        containers
    }

    pub(crate) fn running(&self) -> Vec<Container> {
        let mut containers = self.list();
        containers.retain(|container| container.running);
        containers
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for container in self.list_all() {
            // One that is on its way out already is as good as gone.
            let _ = Command::new("docker").args(["rm", "-f", &container.id]).output();
        }
    }
}

/// Runs a docker command, which must succeed, and returns what it printed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("docker speaks UTF-8")
}

/// The address of a container on the engine's own network.
pub(crate) fn address(id: &str) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker(&["inspect", "-f", format, id]).trim().to_owned()
}
