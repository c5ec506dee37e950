//! A container engine that only exists in memory, for nodes without one, for tests, and for nodes by
//! the thousand.
//!
//! It keeps to the same rules as a real engine, exits and all: what a container does is said by its
//! [`Script`]; one without starts at once, runs until it is asked to stop, and then ends with 143, as
//! a process does that SIGTERM ended. An init container without one ends at once, with 0.
//!
//! It lives as long as its process. A kubelet that is started again in the same process finds its
//! containers; one in a new process finds none, as after a reboot of the machine.
//!
//! Many kubelets can share one. What a call costs does not grow with the containers of other nodes
//! or pods, and a container is an entry in a few maps, with no task of its own.

mod options;
mod script;
mod streams;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use api::{Clock, ObjectKey};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

pub use self::options::FakeOptions;
pub use self::script::Script;
pub use self::streams::ExecScript;
use self::streams::{ExecScripts, Log};
use super::{
    Container, ContainerSpec, ContainerState, EngineInfo, Event, ExecRequest, Execution, Exit,
    Identity, Listed, ListedVolume, LogRequest, Logs, Network, Runtime, RuntimeError, Volume,
};

/// Events that a slow listener may fall behind; one that falls further looks at everything again.
const EVENT_BACKLOG: usize = 64;
/// The image of sandboxes.
const SANDBOX_IMAGE: &str = "fake/sandbox";

/// The engine.
pub struct FakeRuntime {
    info: EngineInfo,
    clock: Clock,
    state: Mutex<State>,
    /// Counts what those who follow a log wait for: new entries, and containers that end.
    changed: watch::Sender<u64>,
    /// Commands under way.
    commands: Arc<AtomicUsize>,
    /// For the task that ends containers: something is due earlier than it knows.
    sooner: Arc<Notify>,
    /// That task, once there is something to end; aborted with the engine.
    ending: Mutex<JoinSet<()>>,
    /// For that task to reach the engine by, without keeping it alive.
    own: Weak<FakeRuntime>,
}

#[derive(Default)]
struct State {
    containers: HashMap<String, Made>,
    /// The ids of the containers of each node's pods.
    of_pods: HashMap<String, BTreeMap<ObjectKey, Vec<String>>>,
    /// The ids of containers by their names.
    of_names: HashMap<String, String>,
    volumes: BTreeMap<String, (String, ListedVolume)>,
    images: HashSet<String>,
    /// What containers do whose image has no script.
    script_of_all: Script,
    scripts: BTreeMap<String, Script>,
    execs: BTreeMap<String, ExecScripts>,
    logs: BTreeMap<String, Log>,
    listeners: HashMap<String, broadcast::Sender<Event>>,
    /// When which container ends, and with which code.
    exits: BinaryHeap<Reverse<(Instant, String, i32)>>,
    made: u64,
    down: bool,
}

/// A container, and what it was made from.
struct Made {
    container: Container,
    spec: ContainerSpec,
}

impl State {
    fn get(&self, id: &str) -> Option<&Container> {
        self.containers.get(id).map(|made| &made.container)
    }

    fn find(&self, id_or_name: &str) -> Option<&Made> {
        let by_name = || self.containers.get(self.of_names.get(id_or_name)?);
        self.containers.get(id_or_name).or_else(by_name)
    }

    fn script(&self, made: &Made) -> Result<Script, RuntimeError> {
        if made.spec.identity.is_sandbox() {
            return Ok(Script::default());
        }
        let of_image = self.scripts.get(&made.spec.image).unwrap_or(&self.script_of_all).clone();
        let container = &made.spec.identity.container;
        of_image.annotated(&made.spec.annotations, container).map_err(RuntimeError::Refused)
    }

    fn announce(&self, identity: &Identity) {
        if let Some(listeners) = self.listeners.get(&identity.node) {
            // Nobody listening is no error: whoever comes later lists first.
            let _ = listeners.send(Event { pod: identity.pod.clone() });
        }
    }

    fn forget(&mut self, id: &str) {
        self.logs.remove(id);
        let Some(Made { container, .. }) = self.containers.remove(id) else { return };
        self.of_names.remove(&container.name);
        let identity = &container.identity;
        if let Some(of_node) = self.of_pods.get_mut(&identity.node)
            && let Some(ids) = of_node.get_mut(&identity.pod)
        {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                of_node.remove(&identity.pod);
            }
        }
        self.announce(identity);
    }
}

impl FakeRuntime {
    /// An engine on a machine of that size.
    #[must_use]
    pub fn new(cpus: u32, memory_bytes: u64) -> Arc<Self> {
        Self::with_clock(cpus, memory_bytes, Clock::system())
    }

    /// An engine on a machine of that size, whose containers start and end by that clock. How long
    /// something takes is tokio's to say.
    #[must_use]
    pub fn with_clock(cpus: u32, memory_bytes: u64, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            info: EngineInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cpus,
                memory_bytes,
                operating_system: "linux".to_owned(),
                os_image: "none (containers exist in memory only)".to_owned(),
                kernel_version: "none".to_owned(),
                architecture: "amd64".to_owned(),
                data_dir: None,
            },
            clock,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            commands: Arc::default(),
            sooner: Arc::default(),
            ending: Mutex::default(),
            own: own.clone(),
        })
    }

    /// Says what containers do from now on whose image has no script of its own.
    pub fn script_all(&self, script: Script) {
        self.state.lock().script_of_all = script;
    }

    /// Says what containers of `image` do from now on.
    pub fn script(&self, image: &str, script: Script) {
        self.state.lock().scripts.insert(image.to_owned(), script);
    }

    /// Ends the container of that name with `code`, as `docker kill` would.
    pub fn end(&self, name: &str, code: i32) {
        let mut state = self.state.lock();
        if let Some(id) = state.of_names.get(name).cloned() {
            self.finish(&mut state, &id, code);
        }
    }

    /// Removes the container of that name behind the kubelet's back.
    pub fn lose(&self, name: &str) {
        let mut state = self.state.lock();
        if let Some(id) = state.of_names.get(name).cloned() {
            state.forget(&id);
            self.wake_followers();
        }
    }

    /// Makes the engine unreachable, or reachable again. Containers run on meanwhile.
    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// Every container.
    #[must_use]
    pub fn containers(&self) -> Vec<Container> {
        self.state.lock().containers.values().map(|made| made.container.clone()).collect()
    }

    /// What a container of that name was made from.
    #[must_use]
    pub fn spec(&self, name: &str) -> Option<ContainerSpec> {
        self.state.lock().find(name).map(|made| made.spec.clone())
    }

    /// The names of all volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.state.lock().volumes.keys().cloned().collect()
    }

    fn finish(&self, state: &mut State, id: &str, code: i32) {
        let Some(Made { container, .. }) = state.containers.get_mut(id) else { return };
        let ContainerState::Running { started_at } = container.state else { return };
        container.state = ContainerState::Exited(Exit {
            code,
            started_at: Some(started_at),
            finished_at: self.clock.now(),
            reason: if code == 0 { "Completed" } else { "Error" },
            message: None,
        });
        container.ip = None;
        let identity = container.identity.clone();
        state.announce(&identity);
        self.wake_followers();
    }

    /// Ends what is due, and says when the next is.
    fn finish_due(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        loop {
            let Reverse((at, ..)) = state.exits.peek()?;
            if *at > Instant::now() {
                return Some(*at);
            }
            if let Some(Reverse((_, id, code))) = state.exits.pop() {
                self.finish(&mut state, &id, code);
            }
        }
    }

    /// Sees to it that what was just put down as due is ended in time.
    fn attend(&self) {
        let mut ending = self.ending.lock();
        if ending.is_empty() {
            ending.spawn(end_in_time(self.own.clone(), self.sooner.clone()));
        }
        self.sooner.notify_one();
    }

    /// Whoever follows a log has something to look at.
    fn wake_followers(&self) {
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn reachable(&self) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let state = self.state.lock();
        if state.down {
            return Err(RuntimeError::Unreachable("the fake engine is down".into()));
        }
        Ok(state)
    }
}

/// Ends containers when they are due, for as long as there is an engine.
async fn end_in_time(engine: Weak<FakeRuntime>, sooner: Arc<Notify>) {
    loop {
        let Some(next) = engine.upgrade().map(|engine| engine.finish_due()) else { return };
        match next {
            None => sooner.notified().await,
            Some(at) => {
                let _ = tokio::time::timeout_at(at, sooner.notified()).await;
            }
        }
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
        let Some(of_node) = state.of_pods.get(node) else { return Ok(Vec::new()) };
        let listed = |id: &String| {
            let container = &state.containers.get(id)?.container;
            Some(Listed {
                id: id.clone(),
                identity: container.identity.clone(),
                running: matches!(container.state, ContainerState::Running { .. }),
            })
        };
        Ok(match pod {
            Some(pod) => of_node.get(pod).into_iter().flatten().filter_map(listed).collect(),
            None => of_node.values().flatten().filter_map(listed).collect(),
        })
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        Ok(self.reachable()?.find(id).map(|made| made.container.clone()))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let mut state = self.reachable()?;
        if let Some(other) = state.of_names.get(&spec.name) {
            return Err(RuntimeError::Conflict(format!(
                "the name {:?} is in use by container {other}",
                spec.name
            )));
        }
        if !state.images.contains(&spec.image) {
            return Err(RuntimeError::NotFound(format!("no such image: {}", spec.image)));
        }
        if let Network::Of(sandbox) = &spec.network
            && !state.containers.contains_key(sandbox)
        {
            return Err(no_such_container(sandbox));
        }
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let container = Container {
            id: id.clone(),
            name: spec.name.clone(),
            identity: spec.identity.clone(),
            image: spec.image.clone(),
            image_id: format!("fake://{}", spec.image),
            created_at: self.clock.now(),
            state: ContainerState::Created,
            ip: None,
        };
        let made = Made { container, spec: spec.clone() };
        state.script(&made)?;
        state.made += 1;
        let identity = &spec.identity;
        let of_node = state.of_pods.entry(identity.node.clone()).or_default();
        of_node.entry(identity.pod.clone()).or_default().push(id.clone());
        state.of_names.insert(spec.name.clone(), id.clone());
        state.containers.insert(id.clone(), made);
        state.announce(identity);
        Ok(id)
    }

    async fn sandbox_image(&self) -> Result<String, RuntimeError> {
        self.reachable()?.images.insert(SANDBOX_IMAGE.to_owned());
        Ok(SANDBOX_IMAGE.to_owned())
    }

    async fn rename(&self, id: &str, name: &str) -> Result<(), RuntimeError> {
        let mut state = self.reachable()?;
        if let Some(other) = state.of_names.get(name) {
            return Err(RuntimeError::Conflict(format!("the name {name:?} is {other}'s")));
        }
        let Some(made) = state.containers.get_mut(id) else { return Ok(()) };
        let before = std::mem::replace(&mut made.container.name, name.to_owned());
        state.of_names.remove(&before);
        state.of_names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    async fn create_volumes(
        &self,
        owner: &Identity,
        volumes: &[Volume],
    ) -> Result<(), RuntimeError> {
        let mut state = self.reachable()?;
        for volume in volumes {
            let listed = ListedVolume {
                name: volume.name.clone(),
                cluster: owner.cluster.clone(),
                pod: owner.pod.clone(),
                pod_uid: owner.pod_uid.clone(),
            };
            state.volumes.insert(volume.name.clone(), (owner.node.clone(), listed));
        }
        Ok(())
    }

    async fn list_volumes(
        &self,
        node: &str,
        pod_uid: Option<&str>,
    ) -> Result<Vec<ListedVolume>, RuntimeError> {
        let state = self.reachable()?;
        let wanted = |(of, volume): &&(String, ListedVolume)| {
            of == node && pod_uid.is_none_or(|uid| volume.pod_uid == uid)
        };
        Ok(state.volumes.values().filter(wanted).map(|(_, volume)| volume.clone()).collect())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.reachable()?.volumes.remove(name);
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let script = {
            let state = self.reachable()?;
            let made = state.containers.get(id).ok_or_else(|| no_such_container(id))?;
            state.script(made)?
        };
        if !script.start_delay.is_zero() {
            tokio::time::sleep(script.start_delay).await;
        }
        let now = self.clock.now();
        let mut state = self.reachable()?;
        let address = state.made;
        let made = state.containers.get_mut(id).ok_or_else(|| no_such_container(id))?;
        let container = &mut made.container;
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
        if matches!(made.spec.network, Network::Own { .. }) {
            let [.., a, b, c] = address.to_be_bytes();
            container.ip = Some(format!("10.{a}.{b}.{c}"));
        }
        let identity = container.identity.clone();
        let by_itself = made.spec.init.then_some((std::time::Duration::ZERO, 0));
        if let Some((after, code)) = script.exit_after.or(by_itself) {
            state.exits.push(Reverse((Instant::now() + after, id.to_owned(), code)));
            self.attend();
        }
        state.announce(&identity);
        Ok(())
    }

    async fn stop(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.reachable()?;
        let Some(made) = state.containers.get(id) else { return Ok(()) };
        if !state.script(made)?.ignores_stop {
            self.finish(&mut state, id, 143);
        }
        Ok(())
    }

    async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.reachable()?;
        self.finish(&mut state, id, 137);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.reachable()?.forget(id);
        self.wake_followers();
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
        let mut state = self.reachable()?;
        let listeners = state.listeners.entry(node.to_owned());
        let events = listeners.or_insert_with(|| broadcast::channel(EVENT_BACKLOG).0).subscribe();
        drop(state);
        let stream = futures::stream::unfold(events, |mut events| async move {
            // Where events were missed, or no more will come: end, and be listed again.
            let event = events.recv().await.ok()?;
            Some((Ok(event), events))
        });
        Ok(stream.boxed())
    }
}

fn no_such_container(id: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("no such container: {id}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::runtime::{Resources, Security};

    /// A container of that image, for tests of this engine.
    pub(crate) fn spec(image: &str) -> ContainerSpec {
        ContainerSpec {
            name: format!("{image}-1"),
            identity: Identity {
                cluster: "c".into(),
                node: "node-1".into(),
                pod: ObjectKey::namespaced("default", "web-1"),
                pod_uid: "u".into(),
                container: "main".into(),
                sandbox: None,
                restart_count: 0,
                crash_streak: 0,
                grace_seconds: 30,
            },
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            network: Network::Own {
                hostname: "web-1".into(),
                ports: Vec::new(),
                hosts: Vec::new(),
            },
            resources: Resources::default(),
            security: Security::default(),
            mounts: Vec::new(),
            stdin: false,
            tty: false,
            init: false,
            annotations: BTreeMap::new(),
        }
    }
}
