//! Which container on the engine a request means: names become ids here.

use std::sync::Arc;

use api::{Cache, Clock, Object, ObjectKey};
use axum::http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use parking_lot::RwLock;

use super::Refusal;
use crate::runtime::{Container, ContainerState, Runtime};
use crate::spec;

/// The nodes whose pods are served; a process may have many.
#[derive(Clone)]
pub(crate) struct Nodes {
    served: Arc<RwLock<Vec<Arc<Served>>>>,
    pub(super) clock: Clock,
}

/// A node whose pods are served.
pub(crate) struct Served {
    pub(crate) node: String,
    pub(crate) pods: Cache<Pod>,
    pub(crate) runtime: Arc<dyn Runtime>,
}

/// A container of a pod, as it was asked for.
pub(super) struct Target {
    served: Arc<Served>,
    pod: Arc<Pod>,
    container: String,
}

impl Nodes {
    /// None so far.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { served: Arc::default(), clock }
    }

    /// From now on this node's pods are served, too.
    pub(crate) fn add(&self, served: Served) {
        self.served.write().push(Arc::new(served));
    }

    /// The container of that name in the pod of that name.
    pub(super) fn find(&self, pod: &ObjectKey, container: &str) -> Result<Target, Refusal> {
        let served = self.served.read();
        let found = served.iter().find_map(|one| Some((one.clone(), one.pods.get(pod)?)));
        let Some((served, pod)) = found else {
            if served.is_empty() || served.iter().any(|one| one.pods.revision() == 0) {
                let reason = "this kubelet has not heard from the store yet; try again";
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
            let reason = format!("this kubelet has no pod {pod}");
            return Err(Refusal::new(StatusCode::NOT_FOUND, reason));
        };
        if spec::all_containers(&pod).all(|declared| declared.name != container) {
            let names: Vec<&str> = spec::all_containers(&pod).map(|one| &*one.name).collect();
            let reason = format!(
                "pod {} has no container {container:?}; it has {}",
                pod.key(),
                names.join(", ")
            );
            return Err(Refusal::new(StatusCode::NOT_FOUND, reason));
        }
        Ok(Target { served, pod, container: container.to_owned() })
    }
}

impl Target {
    pub(super) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.served.runtime
    }

    /// The container, for people.
    fn named(&self) -> String {
        format!("container {:?} of pod {}", self.container, self.pod.key())
    }

    /// The lives of the container that the engine has, the newest first.
    async fn lives(&self) -> Result<Vec<Container>, Refusal> {
        let mut lives = Vec::new();
        let runtime = self.runtime();
        for listed in runtime.list(&self.served.node, Some(&self.pod.key())).await? {
            let identity = &listed.identity;
            if identity.pod_uid == self.pod.uid() && identity.container == self.container {
                lives.extend(runtime.inspect(&listed.id).await?);
            }
        }
        lives.sort_by_key(|life| std::cmp::Reverse(life.identity.restart_count));
        Ok(lives)
    }

    /// What the pod's status says of the container.
    fn told(&self) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let entries = status.init_container_statuses.iter().chain(&status.container_statuses);
        entries.flatten().find(|entry| entry.name == self.container)
    }

    /// Why the container waits, as far as the status tells.
    fn waiting_for(&self) -> Option<&str> {
        self.told()?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
    }

    /// The id of the life whose log is meant.
    pub(super) async fn with_log(&self, previous: bool) -> Result<String, Refusal> {
        let lives = self.lives().await?;
        if let Some(life) = life_with_log(&lives, self.waiting_for().is_some(), previous) {
            return Ok(life.id.clone());
        }
        let named = self.named();
        Err(Refusal::bad_request(if previous {
            format!("{named} has no earlier life that ended")
        } else {
            match self.waiting_for() {
                Some("ErrImagePull") => {
                    format!("{named} is waiting to start: its image can't be pulled")
                }
                Some("ImagePullBackOff") => {
                    format!("{named} is waiting to start: trying and failing to pull its image")
                }
                Some(reason) => format!("{named} is waiting to start: {reason}"),
                None => format!("{named} has no log yet"),
            }
        }))
    }

    /// The id of the life that runs.
    pub(super) async fn running(&self) -> Result<String, Refusal> {
        let lives = self.lives().await?;
        match lives.first() {
            Some(life) if matches!(life.state, ContainerState::Running { .. }) => {
                Ok(life.id.clone())
            }
            _ => {
                let reason = match self.waiting_for() {
                    Some(reason) => format!("{} does not run: {reason}", self.named()),
                    None => format!("{} does not run", self.named()),
                };
                Err(Refusal::new(StatusCode::CONFLICT, reason))
            }
        }
    }
}

/// The life whose log is meant. Kubernetes' rule: the newest that ever ran; for the previous one that
/// before, but for a container that waits to be started again, whose newest is its previous one.
fn life_with_log(lives: &[Container], waits: bool, previous: bool) -> Option<&Container> {
    let is_up = |life: &&Container| matches!(life.state, ContainerState::Running { .. });
    let has_run =
        |life: &&Container| is_up(life) || matches!(life.state, ContainerState::Exited(_));
    let mut with_log = lives.iter().filter(has_run);
    let newest = with_log.next()?;
    if !previous || (waits && !is_up(&newest)) { Some(newest) } else { with_log.next() }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::runtime::{Exit, Identity};

    fn life(restart_count: u32, state: ContainerState) -> Container {
        let identity =
            Identity { restart_count, ..crate::runtime::fake::tests::spec("x").identity };
        Container {
            id: restart_count.to_string(),
            name: "x".into(),
            identity,
            image: "x".into(),
            image_id: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
            state,
            ip: None,
        }
    }

    #[test]
    fn the_log_is_that_of_the_life_which_is_meant() {
        let at = Timestamp::UNIX_EPOCH;
        let running = ContainerState::Running { started_at: at };
        let exited = ContainerState::Exited(Exit {
            code: 1,
            started_at: Some(at),
            finished_at: at,
            reason: "Error",
            message: None,
        });
        let [created, running] = [ContainerState::Created, running];
        // lives, the newest first; whether it waits; its log, and its previous log
        let table = [
            (vec![], true, None, None),
            (vec![&created], true, None, None),
            (vec![&running], false, Some("0"), None),
            (vec![&running, &exited], false, Some("1"), Some("0")),
            (vec![&exited, &exited], true, Some("1"), Some("1")),
            (vec![&exited, &exited], false, Some("1"), Some("0")),
            (vec![&exited], false, Some("0"), None),
            (vec![&created, &exited], true, Some("0"), Some("0")),
        ];
        for (states, waits, log, previous) in table {
            let newest_first = states.iter().enumerate().map(|(index, state)| {
                life((states.len() - 1 - index) as u32, ContainerState::clone(state))
            });
            let lives: Vec<Container> = newest_first.collect();
            let id = |previous| life_with_log(&lives, waits, previous).map(|life| &*life.id);
            assert_eq!((id(false), id(true)), (log, previous), "{states:?} {waits}");
        }
    }
}
