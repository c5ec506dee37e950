//! The steps of a plan, one engine call after the other.
//!
//! Each can be taken again: a step that was cut short, or whose answer was lost, is planned anew from
//! what is there then.

use std::time::Duration;

use api::Object;
use k8s_openapi::api::core::v1::{Container as PodContainer, Pod};

use super::events::Told;
use super::{Next, Pods, SOON, Unfinished};
use crate::plan::{Action, Hook, Life, Stopping};
use crate::probe;
use crate::record::Record;
use crate::runtime::{Container, ContainerSpec, ContainerState, RuntimeError, SANDBOX};
use crate::spec::{self, PullPolicy, Refusal};

/// The name, among a pod's containers, of the one that makes its volumes and is gone again at once.
const VOLUME_MAKER: &str = "VOLUMES";

impl Pods {
    /// Takes one step. `pod` is the one whose containers these are, if it is still there.
    pub(super) async fn carry_out(
        &self,
        action: Action,
        pod: Option<&Pod>,
        seen: &[Container],
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        match action {
            Action::CreateSandbox { attempt, crash_streak, replaced } => {
                let Some(pod) = pod else { return Ok(Next::Idle) };
                if let Some(replaced) = replaced {
                    tracing::info!(container = short(&replaced), "replacing the sandbox");
                    self.tell_of(pod, Told::sandbox_changed());
                    self.runtime.remove(&replaced).await?;
                }
                self.create_sandbox(pod, attempt, crash_streak, record).await
            }
            Action::Create { container, life, retired } => {
                let declared =
                    |pod| spec::all_containers(pod).find(|declared| declared.name == container);
                let Some((pod, declared)) = pod.and_then(|pod| Some((pod, declared(pod)?))) else {
                    return Ok(Next::Idle);
                };
                let retired = retired.and_then(|id| seen.iter().find(|one| one.id == id));
                self.create(pod, declared, &life, retired, record).await
            }
            Action::Start { id, container } => {
                let Some(pod) = pod else { return Ok(Next::Idle) };
                self.start(pod, &id, &container, record).await
            }
            Action::PreStop { id, container } => {
                let declared =
                    |pod| spec::all_containers(pod).find(|declared| declared.name == container);
                if let Some((pod, declared)) = pod.and_then(|pod| Some((pod, declared(pod)?)))
                    && let Some(hook) = spec::pre_stop(declared)
                {
                    tracing::info!(container = short(&id), "running its preStop hook");
                    let grace = Duration::from_secs(spec::grace_seconds(pod).into());
                    let (events, of) = (self.events.clone(), pod.clone());
                    let failed =
                        move |why: String| Told::hook_failed(&container, &why).record(&events, &of);
                    let ip = probe::address(pod, seen);
                    self.hooks.begin(&id, (pod, declared), ip, hook, grace, failed);
                }
                let since = self.clock.now();
                let hook = Some(Hook::Running);
                record.stopping.insert(id, Stopping { since, hook, signalled_at: None });
                Ok(Next::Again)
            }
            Action::Stop { id } => {
                tracing::info!(container = short(&id), "stopping");
                self.runtime.stop(&id).await?;
                let now = self.clock.now();
                let stopping = record.stopping.entry(id);
                stopping
                    .or_insert(Stopping { since: now, hook: None, signalled_at: None })
                    .signalled_at = Some(now);
                Ok(Next::Again)
            }
            Action::Kill { id } => {
                tracing::info!(container = short(&id), "killing, the grace period is over");
                self.runtime.kill(&id).await?;
                Ok(Next::Idle)
            }
            Action::Remove { id } => {
                self.runtime.remove(&id).await?;
                Ok(Next::Again)
            }
            Action::FinishDeletion => {
                let Some(pod) = pod else { return Ok(Next::Idle) };
                if !spec::volumes(pod).is_empty() {
                    self.remove_volumes(pod.uid()).await?;
                }
                self.pods.finish_delete(&pod.key(), pod.uid()).await?;
                tracing::info!("pod deleted");
                Ok(Next::Gone)
            }
        }
    }

    /// Removes what the engine keeps for a pod that has no containers any more.
    pub(super) async fn remove_volumes(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        for volume in self.runtime.list_volumes(&self.host.node, Some(pod_uid)).await? {
            self.runtime.remove_volume(&volume.name).await?;
        }
        Ok(())
    }

    async fn create_sandbox(
        &self,
        pod: &Pod,
        attempt: u32,
        crash_streak: u32,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        let made = async {
            let image = self.runtime.sandbox_image().await?;
            self.create_volumes(pod, record).await?;
            let spec = spec::sandbox_spec(pod, image, &self.host, attempt, crash_streak);
            match self.runtime.create(&spec).await {
                Err(RuntimeError::Conflict(message)) => Ok(Err((spec, message))),
                created => created.map(Ok),
            }
        };
        let created = made.await;
        match created {
            Ok(Ok(id)) => {
                tracing::info!(container = short(&id), "sandbox created");
                self.start(pod, &id, SANDBOX, record).await
            }
            Ok(Err((spec, message))) => self.name_taken(pod, &spec, message, record).await,
            Err(error) => self.not_created(pod, SANDBOX, error, record),
        }
    }

    async fn create(
        &self,
        pod: &Pod,
        declared: &PodContainer,
        life: &Life,
        retired: Option<&Container>,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        let name = &declared.name;
        let spec = match spec::container_spec(pod, declared, &self.host, life) {
            Ok(spec) => spec,
            Err(Refusal { reason, message }) => {
                self.failed(pod, name, reason, message, record);
                return Ok(Next::Again);
            }
        };
        if !self.has_image(pod, declared, record).await? {
            return Ok(Next::Again);
        }
        if let Some(retired) = retired {
            self.retire(retired).await?;
        }
        let made = async {
            self.create_volumes(pod, record).await?;
            self.runtime.create(&spec).await
        };
        match made.await {
            Ok(id) => {
                let restart_count = life.restart_count;
                let image = &spec.image;
                tracing::info!(container = short(&id), name, image, restart_count, "created");
                self.tell_of(pod, Told::created(name));
                self.start(pod, &id, name, record).await
            }
            Err(RuntimeError::Conflict(message)) => {
                self.name_taken(pod, &spec, message, record).await
            }
            Err(error) => {
                record.pulled.remove(name);
                self.not_created(pod, name, error, record)
            }
        }
    }

    /// An outage is everybody's trouble; anything else is remembered as this container's.
    fn not_created(
        &self,
        pod: &Pod,
        container: &str,
        error: RuntimeError,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        if error.is_outage() {
            return Err(error.into());
        }
        self.failed(pod, container, "CreateContainerError", error.to_string(), record);
        Ok(Next::Again)
    }

    /// Makes the pod's volumes, unless that was done.
    async fn create_volumes(&self, pod: &Pod, record: &mut Record) -> Result<(), RuntimeError> {
        let volumes = spec::volumes(pod);
        if !volumes.is_empty() && !record.has_volumes {
            let owner = spec::identity(pod, VOLUME_MAKER, &self.host, &Life::default());
            self.runtime.create_volumes(&owner, &volumes).await?;
            record.has_volumes = true;
        }
        Ok(())
    }

    /// Gives way to the next life: the container keeps its log under another name.
    async fn retire(&self, container: &Container) -> Result<(), RuntimeError> {
        let name = spec::retired_name(&container.identity);
        if container.name == name {
            return Ok(());
        }
        tracing::info!(container = short(&container.id), "replacing the container that ended");
        match self.runtime.rename(&container.id, &name).await {
            // Whoever has that name is nobody's predecessor.
            Err(RuntimeError::Conflict(_)) => self.runtime.remove(&container.id).await,
            outcome => outcome,
        }
    }

    /// The name is in use: by this pod's own container if an earlier attempt went through after
    /// all, by one that is about to go, or by a stranger's.
    async fn name_taken(
        &self,
        pod: &Pod,
        spec: &ContainerSpec,
        message: String,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        match self.runtime.inspect(&spec.name).await? {
            Some(other) if other.state == ContainerState::Removing => Ok(Next::After(SOON)),
            Some(own) if own.identity.pod_uid == pod.uid() => Ok(Next::Again),
            _ => {
                let message = format!(
                    "{message} (it does not belong to this pod: remove or rename it, as in \
                     `docker rm -f {}`)",
                    spec.name
                );
                let container = &spec.identity.container;
                self.failed(pod, container, "CreateContainerError", message, record);
                Ok(Next::Again)
            }
        }
    }

    async fn start(
        &self,
        pod: &Pod,
        id: &str,
        container: &str,
        record: &mut Record,
    ) -> Result<Next, Unfinished> {
        match self.runtime.start(id).await {
            Ok(()) => {
                tracing::info!(container = short(id), "started");
                if container != SANDBOX {
                    self.tell_of(pod, Told::started(container));
                }
            }
            Err(error) if error.is_outage() => return Err(error.into()),
            Err(error) => {
                // An engine keeps the reason with the container, which then counts as ended. If it
                // does not, the attempt is remembered here.
                let ended = self.runtime.inspect(id).await?.map(|container| container.state);
                if ended == Some(ContainerState::Created) {
                    let message = error.to_string();
                    self.failed(pod, container, "RunContainerError", message, record);
                } else {
                    tracing::warn!(container = short(id), %error, "the container cannot be started");
                    self.tell_of(pod, Told::start_failed(container, &error.to_string()));
                }
            }
        }
        Ok(Next::Again)
    }

    /// Whether the image is there. If not, it is on its way or the attempt has failed.
    async fn has_image(
        &self,
        pod: &Pod,
        declared: &PodContainer,
        record: &mut Record,
    ) -> Result<bool, Unfinished> {
        let (name, image) = (&declared.name, spec::image(declared));
        if record.pulled.contains(name) {
            return Ok(true);
        }
        let policy = spec::pull_policy(declared);
        if policy != PullPolicy::Always && self.runtime.has_image(image).await? {
            return Ok(true);
        }
        if policy == PullPolicy::Never {
            let message = format!("image {image:?} is not there and imagePullPolicy is Never");
            self.failed(pod, name, "ErrImageNeverPull", message, record);
        } else {
            record.awaited.insert(name.clone(), image.to_owned());
            self.tell_of(pod, Told::pulling(name, image));
            self.puller.begin(image, &pod.key());
        }
        Ok(false)
    }
}

/// A container id as `docker ps` shows it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
