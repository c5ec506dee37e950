//! A container engine that only exists in memory, for nodes without one and for tests.
//!
//! It keeps to the same rules as a real engine, exits and all: what a container of some image does
//! is scripted with [`FakeRuntime::script`]; an image without a script starts at once, runs until
//! it is asked to stop, and then ends with 143, as a process does that SIGTERM ended.
//!
//! It lives as long as its process. A kubelet that is started again in the same process finds its
//! containers; one in a new process finds none, as after a reboot of the machine.

mod streams;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use api::ObjectKey;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

pub use self::streams::ExecScript;
use self::streams::{ExecScripts, Log};
use super::{
    Container, ContainerSpec, ContainerState, EngineInfo, Event, ExecRequest, Execution, Exit,
    Listed, LogRequest, Logs, Runtime, RuntimeError,
};

/// Events that a slow listener may fall behind; one that falls further looks at everything again.
const EVENT_BACKLOG: usize = 1024;

/// What containers of an image do.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The image cannot be pulled, with these words.
    pub pull_error: Option<String>,
    /// How long a start takes.
    pub start_delay: Duration,
    /// The container cannot be started, with these words.
    pub start_error: Option<String>,
    /// It ends by itself after that long, with that code.
    pub exit_after: Option<(Duration, i32)>,
    /// It takes no notice of being asked to stop.
    pub ignores_stop: bool,
}

/// The engine.
pub struct FakeRuntime {
    info: EngineInfo,
    state: Mutex<State>,
    events: broadcast::Sender<(String, Event)>,
    /// Counts what those who follow a log wait for: new entries, and containers that end.
    changed: watch::Sender<u64>,
    /// The ends that containers are heading for; aborted with the engine.
    exits: Mutex<JoinSet<()>>,
    /// For the exits to reach the engine by, without keeping it alive.
    own: std::sync::Weak<FakeRuntime>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    images: HashSet<String>,
    scripts: BTreeMap<String, Script>,
    execs: BTreeMap<String, ExecScripts>,
    logs: BTreeMap<String, Log>,
    made: u64,
    down: bool,
}

impl State {
    fn remove(&mut self, id: &str) -> Option<Container> {
        self.logs.remove(id);
        self.containers.remove(id)
    }
}

impl FakeRuntime {
    /// An engine on a machine of that size.
    #[must_use]
    pub fn new(cpus: u32, memory_bytes: u64) -> std::sync::Arc<Self> {
        std::sync::Arc::new_cyclic(|own| Self {
            info: EngineInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cpus,
                memory_bytes,
                operating_system: "linux".to_owned(),
                os_image: "none (containers exist in memory only)".to_owned(),
                kernel_version: "none".to_owned(),
                architecture: "amd64".to_owned(),
            },
            state: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            changed: watch::Sender::new(0),
            exits: Mutex::default(),
            own: own.clone(),
        })
    }

    /// Says what containers of `image` do from now on.
    pub fn script(&self, image: &str, script: Script) {
        self.state.lock().scripts.insert(image.to_owned(), script);
    }

    /// Ends the container of that name with `code`, as `docker kill` would.
    pub fn end(&self, name: &str, code: i32) {
        let id = self.id_of(name);
        if let Some(id) = id {
            self.finish(&id, code, Timestamp::now());
        }
    }

    /// Removes the container of that name behind the kubelet's back.
    pub fn lose(&self, name: &str) {
        let lost = self.id_of(name).and_then(|id| self.state.lock().remove(&id));
        if let Some(lost) = lost {
            self.announce(&lost);
        }
    }

    /// Makes the engine unreachable, or reachable again. Containers run on meanwhile.
    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// Every container.
    #[must_use]
    pub fn containers(&self) -> Vec<Container> {
        self.state.lock().containers.values().cloned().collect()
    }

    fn id_of(&self, name: &str) -> Option<String> {
        let state = self.state.lock();
        state.containers.values().find(|c| c.name == name).map(|c| c.id.clone())
    }

    fn announce(&self, container: &Container) {
        let identity = &container.identity;
        let event = (identity.node.clone(), Event { pod: identity.pod.clone() });
        // Nobody listening is no error: whoever comes later lists first.
        let _ = self.events.send(event);
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn finish(&self, id: &str, code: i32, now: Timestamp) {
        let mut state = self.state.lock();
        let Some(container) = state.containers.get_mut(id) else { return };
        let ContainerState::Running { started_at } = container.state else { return };
        container.state = ContainerState::Exited(Exit {
            code,
            started_at: Some(started_at),
            finished_at: now,
            reason: if code == 0 { "Completed" } else { "Error" },
            message: None,
        });
        container.ip = None;
        let container = container.clone();
        drop(state);
        self.announce(&container);
    }

    fn reachable(&self) -> Result<parking_lot::MutexGuard<'_, State>, RuntimeError> {
        let state = self.state.lock();
        if state.down {
            return Err(RuntimeError::Unreachable("the fake engine is down".into()));
        }
        Ok(state)
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn scheme(&self) -> &'static str {
        "fake"
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.reachable().map(|_| ())
    }

    async fn info(&self) -> Result<EngineInfo, RuntimeError> {
        self.reachable().map(|_| self.info.clone())
    }

    async fn list(&self, node: &str, pod: Option<&ObjectKey>) -> Result<Vec<Listed>, RuntimeError> {
        let state = self.reachable()?;
        let wanted = |container: &&Container| {
            container.identity.node == node && pod.is_none_or(|pod| container.identity.pod == *pod)
        };
        Ok(state
            .containers
            .values()
            .filter(wanted)
            .map(|container| Listed {
                id: container.id.clone(),
                identity: container.identity.clone(),
                running: matches!(container.state, ContainerState::Running { .. }),
            })
            .collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let state = self.reachable()?;
        let by_name = || state.containers.values().find(|container| container.name == id);
        Ok(state.containers.get(id).or_else(by_name).cloned())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let mut state = self.reachable()?;
        if let Some(other) = state.containers.values().find(|c| c.name == spec.name) {
            return Err(RuntimeError::Conflict(format!(
                "the name {:?} is in use by container {}",
                spec.name, other.id
            )));
        }
        if !state.images.contains(&spec.image) {
            return Err(RuntimeError::NotFound(format!("no such image: {}", spec.image)));
        }
        state.made += 1;
        let container = Container {
            id: format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
            name: spec.name.clone(),
            identity: spec.identity.clone(),
            image: spec.image.clone(),
            image_id: format!("fake://{}", spec.image),
            created_at: Timestamp::now(),
            state: ContainerState::Created,
            ip: None,
        };
        let id = container.id.clone();
        state.containers.insert(id.clone(), container.clone());
        drop(state);
        self.announce(&container);
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let script = {
            let state = self.reachable()?;
            let container = state.containers.get(id).ok_or_else(|| no_such_container(id))?;
            state.scripts.get(&container.image).cloned().unwrap_or_default()
        };
        tokio::time::sleep(script.start_delay).await;
        let now = Timestamp::now();
        let mut state = self.reachable()?;
        let made = state.made;
        let container = state.containers.get_mut(id).ok_or_else(|| no_such_container(id))?;
        if matches!(container.state, ContainerState::Running { .. }) {
            return Ok(());
        }
        if let Some(message) = script.start_error {
            container.state = ContainerState::Exited(Exit {
                code: 128,
                started_at: None,
                finished_at: now,
                reason: "StartError",
                message: Some(message.clone()),
            });
            return Err(RuntimeError::Refused(message));
        }
        container.state = ContainerState::Running { started_at: now };
        container.ip =
            Some(format!("10.{}.{}.{}", made >> 16 & 0xff, made >> 8 & 0xff, made & 0xff));
        let container = container.clone();
        drop(state);
        self.announce(&container);
        if let Some((after, code)) = script.exit_after {
            let (own, id) = (self.own.clone(), id.to_owned());
            let mut exits = self.exits.lock();
            while exits.try_join_next().is_some() {}
            exits.spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(own) = own.upgrade() {
                    own.finish(&id, code, Timestamp::now());
                }
            });
        }
        Ok(())
    }

    async fn stop(&self, id: &str) -> Result<(), RuntimeError> {
        let ignored = {
            let state = self.reachable()?;
            let image = state.containers.get(id).map(|container| &container.image);
            image.and_then(|image| state.scripts.get(image)).is_some_and(|s| s.ignores_stop)
        };
        if !ignored {
            self.finish(id, 143, Timestamp::now());
        }
        Ok(())
    }

    async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        drop(self.reachable()?);
        self.finish(id, 137, Timestamp::now());
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let removed = self.reachable()?.remove(id);
        if let Some(removed) = removed {
            self.announce(&removed);
        }
        Ok(())
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        Ok(self.reachable()?.images.contains(image))
    }

    async fn pull(&self, image: &str) -> Result<(), RuntimeError> {
        let mut state = self.reachable()?;
        match state.scripts.get(image).and_then(|script| script.pull_error.clone()) {
            Some(message) => Err(RuntimeError::Refused(message)),
            None => {
                state.images.insert(image.to_owned());
                Ok(())
            }
        }
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Execution, RuntimeError> {
        self.begin_exec(id, request)
    }

    async fn logs(&self, id: &str, request: &LogRequest) -> Result<Logs, RuntimeError> {
        self.begin_logs(id, request)
    }

    async fn events(
        &self,
        node: &str,
    ) -> Result<BoxStream<'static, Result<Event, RuntimeError>>, RuntimeError> {
        drop(self.reachable()?);
        let node = node.to_owned();
        let events = self.events.subscribe();
        let stream = futures::stream::unfold((events, node), |(mut events, node)| async move {
            loop {
                match events.recv().await {
                    Ok((of, event)) if of == node => return Some((Ok(event), (events, node))),
                    Ok(_) => {}
                    // Events were missed, or no more will come: end, and be listed again.
                    Err(_) => return None,
                }
            }
        });
        Ok(stream.boxed())
    }
}

fn no_such_container(id: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("no such container: {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Identity;

    /// A container of that image, for tests of this engine.
    pub(super) fn spec(image: &str) -> ContainerSpec {
        ContainerSpec {
            name: format!("{image}-1"),
            identity: Identity {
                cluster: "c".into(),
                node: "node-1".into(),
                pod: ObjectKey::namespaced("default", "web-1"),
                pod_uid: "u".into(),
                container: "main".into(),
                restart_count: 0,
                crash_streak: 0,
                grace_seconds: 30,
            },
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            hostname: "web-1".into(),
        }
    }
}
