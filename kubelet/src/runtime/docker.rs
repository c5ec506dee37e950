//! Containers on a Docker Engine, the local one or where `DOCKER_HOST` says.
//!
//! The engine's own restart policy is never used: who starts a container again is the kubelet. The
//! API version is agreed once, on connecting, so that engines back to API 1.41 serve.

mod create;
mod pause;
mod streams;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use api::ObjectKey;
use async_trait::async_trait;
use bollard::errors::Error as DockerError;
use bollard::models::{
    ContainerInspectResponse, ContainerState as DockerState,
    ContainerStateStatusEnum as DockerStatus, ContainerSummaryStateEnum, NetworkSettings,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    EventsOptionsBuilder, ImportImageOptions, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, RenameContainerOptionsBuilder, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;

use super::{
    Container, ContainerSpec, ContainerState, EngineInfo, Event, ExecRequest, Execution, Exit,
    Identity, Listed, ListedVolume, LogRequest, Logs, Runtime, RuntimeError, Volume, labels,
};

/// For the first contact.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For calls that only read or signal.
const SHORT_DEADLINE: Duration = Duration::from_secs(15);
/// For making, starting and removing, which wait for disks and for each other.
const LONG_DEADLINE: Duration = Duration::from_secs(120);
/// A pull during which nothing arrives for so long has failed.
const PULL_STALL: Duration = Duration::from_secs(120);

/// A Docker Engine.
pub struct DockerRuntime {
    docker: Docker,
}

impl DockerRuntime {
    /// Connects to the engine that `DOCKER_HOST` names, or to the local one.
    ///
    /// # Errors
    /// When no engine answers there.
    pub async fn connect() -> Result<Self, RuntimeError> {
        Self::negotiate(Docker::connect_with_defaults().map_err(runtime_error)?).await
    }

    /// Connects to the engine that listens on that Unix socket.
    ///
    /// # Errors
    /// When no engine answers there.
    pub async fn connect_to(socket: &str) -> Result<Self, RuntimeError> {
        let timeout_s = LONG_DEADLINE.as_secs();
        let docker = Docker::connect_with_unix(socket, timeout_s, API_DEFAULT_VERSION);
        Self::negotiate(docker.map_err(runtime_error)?).await
    }

    async fn negotiate(docker: Docker) -> Result<Self, RuntimeError> {
        let docker = within("version", CONNECT_DEADLINE, docker.negotiate_version()).await?;
        Ok(Self { docker })
    }

    async fn find(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        let call = self.docker.inspect_container(id, None::<InspectContainerOptions>);
        match within("inspect", SHORT_DEADLINE, call).await {
            Ok(found) => Ok(Some(found)),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn load_pause_image(&self) -> Result<(), RuntimeError> {
        let architecture = self.info().await?.architecture;
        let archive = pause::archive(&architecture).ok_or_else(|| {
            RuntimeError::Refused(format!(
                "pods with more than one container are not supported on {architecture}"
            ))
        })?;
        tracing::info!(image = pause::IMAGE, "making the sandbox image");
        let body = bollard::body_full(archive.into());
        let mut progress = self.docker.import_image(ImportImageOptions::default(), body, None);
        let load = async {
            while let Some(step) = progress.next().await {
                step?;
            }
            Ok(())
        };
        within("load image", LONG_DEADLINE, load).await
    }

    async fn signal(&self, id: &str, signal: &str) -> Result<(), RuntimeError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let call = self.docker.kill_container(id, Some(options));
        match within("kill", SHORT_DEADLINE, call).await {
            // It is gone, or does not run: what the signal was for.
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => Ok(()),
            outcome => outcome,
        }
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn scheme(&self) -> &'static str {
        "docker"
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        within("ping", SHORT_DEADLINE, self.docker.ping()).await.map(|_| ())
    }

    async fn info(&self) -> Result<EngineInfo, RuntimeError> {
        let info = within("info", SHORT_DEADLINE, self.docker.info()).await?;
        let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            cpus: positive(info.ncpu).and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1),
            memory_bytes: positive(info.mem_total).unwrap_or(0),
            operating_system: info.os_type.unwrap_or_default(),
            os_image: info.operating_system.unwrap_or_default(),
            kernel_version: info.kernel_version.unwrap_or_default(),
            data_dir: info.docker_root_dir.map(Into::into),
            architecture: match info.architecture.as_deref() {
                Some("x86_64") => "amd64".to_owned(),
                Some("aarch64") => "arm64".to_owned(),
                other => other.unwrap_or_default().to_owned(),
            },
        })
    }

    async fn list(&self, node: &str, pod: Option<&ObjectKey>) -> Result<Vec<Listed>, RuntimeError> {
        let mut wanted = vec![format!("{}={node}", labels::NODE)];
        if let Some(pod) = pod {
            wanted.push(format!("{}={}", labels::POD_NAMESPACE, pod.namespace));
            wanted.push(format!("{}={}", labels::POD_NAME, pod.name));
        }
        let filters = HashMap::from([("label", wanted)]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let call = self.docker.list_containers(Some(options));
        let found = within("list", SHORT_DEADLINE, call).await?;
        let listed = found.into_iter().filter_map(|summary| {
            let labels = summary.labels?;
            Some(Listed {
                id: summary.id?,
                identity: labels::decode(|name| labels.get(name))?,
                running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
            })
        });
        Ok(listed.collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        Ok(self.find(id).await?.and_then(container))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let call = self.docker.create_container(Some(options), create::body(spec));
        Ok(within("create", LONG_DEADLINE, call).await?.id)
    }

    async fn sandbox_image(&self) -> Result<String, RuntimeError> {
        if !self.has_image(pause::IMAGE).await? {
            self.load_pause_image().await?;
        }
        Ok(pause::IMAGE.to_owned())
    }

    async fn rename(&self, id: &str, name: &str) -> Result<(), RuntimeError> {
        let options = RenameContainerOptionsBuilder::new().name(name).build();
        match within("rename", SHORT_DEADLINE, self.docker.rename_container(id, options)).await {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            outcome => outcome,
        }
    }

    async fn create_volumes(
        &self,
        owner: &Identity,
        volumes: &[Volume],
    ) -> Result<(), RuntimeError> {
        let there = self.list_volumes(&owner.node, Some(&owner.pod_uid)).await?;
        let is_there = |volume: &&Volume| there.iter().any(|one| one.name == volume.name);
        let missing: Vec<Volume> =
            volumes.iter().filter(|volume| !is_there(volume)).cloned().collect();
        for some in missing.chunks(pause::VOLUME_DIRS) {
            self.sandbox_image().await?;
            let body = create::volumes_body(owner, some);
            let call = self.docker.create_container(None::<CreateContainerOptions>, body);
            let maker = within("create volumes", LONG_DEADLINE, call).await?.id;
            // It has done its work, and nothing of what it made goes with it: volumes with a name
            // stay.
            self.remove(&maker).await?;
        }
        Ok(())
    }

    async fn list_volumes(
        &self,
        node: &str,
        pod_uid: Option<&str>,
    ) -> Result<Vec<ListedVolume>, RuntimeError> {
        let mut wanted = vec![format!("{}={node}", labels::NODE)];
        wanted.extend(pod_uid.map(|uid| format!("{}={uid}", labels::POD_UID)));
        let filters = HashMap::from([("label", wanted)]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let call = self.docker.list_volumes(Some(options));
        let found = within("list volumes", SHORT_DEADLINE, call).await?;
        let volumes = found.volumes.unwrap_or_default().into_iter();
        let listed = volumes.filter_map(|volume| {
            labels::decode_volume(&volume.name, |label| volume.labels.get(label))
        });
        Ok(listed.collect())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let call = self.docker.remove_volume(name, None::<RemoveVolumeOptions>);
        match within("remove volume", LONG_DEADLINE, call).await {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            outcome => outcome,
        }
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let call = self.docker.start_container(id, None::<StartContainerOptions>);
        within("start", LONG_DEADLINE, call).await
    }

    async fn stop(&self, id: &str) -> Result<(), RuntimeError> {
        let Some(found) = self.find(id).await? else { return Ok(()) };
        let signal = found.config.and_then(|config| config.stop_signal);
        self.signal(id, signal.as_deref().unwrap_or("SIGTERM")).await
    }

    async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        self.signal(id, "SIGKILL").await
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let call = self.docker.remove_container(id, Some(options));
        match within("remove", LONG_DEADLINE, call).await {
            // It is gone, or being removed already.
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => Ok(()),
            outcome => outcome,
        }
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        match within("inspect image", SHORT_DEADLINE, self.docker.inspect_image(image)).await {
            Ok(_) => Ok(true),
            Err(RuntimeError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn pull(&self, image: &str) -> Result<(), RuntimeError> {
        let options = CreateImageOptionsBuilder::new().from_image(&tagged(image)).build();
        let mut progress = self.docker.create_image(Some(options), None, None);
        loop {
            match tokio::time::timeout(PULL_STALL, progress.next()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(runtime_error(error)),
                Ok(None) => return Ok(()),
                Err(_) => return Err(deadline("pull", PULL_STALL)),
            }
        }
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Execution, RuntimeError> {
        streams::exec(&self.docker, id, request).await
    }

    async fn logs(&self, id: &str, request: &LogRequest) -> Result<Logs, RuntimeError> {
        Ok(streams::logs(&self.docker, id, request))
    }

    async fn events(
        &self,
        node: &str,
    ) -> Result<BoxStream<'static, Result<Event, RuntimeError>>, RuntimeError> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", ["die", "destroy"].map(str::to_owned).to_vec()),
            ("label", vec![format!("{}={node}", labels::NODE)]),
        ]);
        // The stream connects when it is first read; the engine then begins with what happened
        // since this moment.
        let since = Timestamp::now().as_second().to_string();
        let options = EventsOptionsBuilder::new().filters(&filters).since(&since).build();
        let events = self.docker.events(Some(options)).filter_map(|message| async move {
            let attributes = match message {
                Ok(message) => message.actor?.attributes?,
                Err(error) => return Some(Err(runtime_error(error))),
            };
            let namespace = attributes.get(labels::POD_NAMESPACE)?;
            let name = attributes.get(labels::POD_NAME)?;
            Some(Ok(Event { pod: ObjectKey::namespaced(namespace, name) }))
        });
        Ok(events.boxed())
    }
}

/// Holds an engine call to its deadline.
async fn within<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<T, DockerError>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(runtime_error),
        Err(_) => Err(deadline(call, limit)),
    }
}

fn deadline(call: &'static str, limit: Duration) -> RuntimeError {
    RuntimeError::Deadline { call, deadline_s: limit.as_secs() }
}

fn runtime_error(error: DockerError) -> RuntimeError {
    match error {
        DockerError::DockerResponseServerError { status_code, message } => match status_code {
            404 => RuntimeError::NotFound(message),
            409 => RuntimeError::Conflict(message),
            _ => RuntimeError::Refused(message),
        },
        DockerError::DockerStreamError { error } => RuntimeError::Refused(error),
        // Its words only repeat those of what is in it.
        DockerError::HyperLegacyError { err } => RuntimeError::Unreachable(err.into()),
        other => RuntimeError::Unreachable(other.into()),
    }
}

/// The engine takes a name without tag or digest for all tags of it.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// The engine's view as ours; nothing if the labels are not a kubelet's.
fn container(found: ContainerInspectResponse) -> Option<Container> {
    let config = found.config?;
    let labels = config.labels.unwrap_or_default();
    let created_at = found.created.as_deref().and_then(moment)?;
    Some(Container {
        id: found.id?,
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        identity: labels::decode(|name| labels.get(name))?,
        image: config.image.unwrap_or_default(),
        image_id: found.image.map(|id| format!("docker://{id}")).unwrap_or_default(),
        created_at,
        state: state(&found.state?, created_at),
        ip: found.network_settings.and_then(address),
    })
}

fn address(network: NetworkSettings) -> Option<String> {
    let mut addresses = network.networks?.into_values().filter_map(|endpoint| endpoint.ip_address);
    addresses.find(|address| !address.is_empty())
}

fn state(state: &DockerState, created_at: Timestamp) -> ContainerState {
    let started_at = state.started_at.as_deref().and_then(moment);
    let message = state.error.clone().filter(|error| !error.is_empty());
    let code = i32::try_from(state.exit_code.unwrap_or(0)).unwrap_or(i32::MAX);
    match state.status {
        // A failed start leaves the container as it was made, with the error beside it.
        Some(DockerStatus::CREATED) if message.is_none() && code == 0 => ContainerState::Created,
        Some(
            DockerStatus::RUNNING
            | DockerStatus::PAUSED
            | DockerStatus::RESTARTING
            | DockerStatus::STOPPING,
        ) => ContainerState::Running { started_at: started_at.unwrap_or(created_at) },
        Some(DockerStatus::REMOVING) => ContainerState::Removing,
        _ => ContainerState::Exited(Exit {
            code,
            started_at,
            finished_at: state.finished_at.as_deref().and_then(moment).unwrap_or(created_at),
            reason: match code {
                _ if started_at.is_none() => "StartError",
                _ if state.oom_killed == Some(true) => "OOMKilled",
                0 => "Completed",
                _ => "Error",
            },
            message,
        }),
    }
}

/// A time of the engine's, which writes the year 1 for never.
fn moment(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().filter(|at| at.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_means_latest() {
        let table = [
            ("nginx", "nginx:latest"),
            ("nginx:1.2", "nginx:1.2"),
            ("registry:5000/nginx", "registry:5000/nginx:latest"),
            ("registry:5000/nginx:1", "registry:5000/nginx:1"),
            ("nginx@sha256:00", "nginx@sha256:00"),
        ];
        for (image, expected) in table {
            assert_eq!(tagged(image), expected);
        }
    }

    #[test]
    fn the_engines_states_are_told_apart() {
        let made = Timestamp::from_second(1_000).unwrap();
        let never = "0001-01-01T00:00:00Z";
        let read = |json: serde_json::Value| state(&serde_json::from_value(json).unwrap(), made);

        let fresh = serde_json::json!({"Status": "created", "StartedAt": never, "ExitCode": 0});
        assert_eq!(read(fresh), ContainerState::Created);
        let running = serde_json::json!({"Status": "running", "StartedAt": "1970-01-01T01:00:00Z"});
        let at = Timestamp::from_second(3600).unwrap();
        assert_eq!(read(running), ContainerState::Running { started_at: at });

        let exit = |json: serde_json::Value| match read(json) {
            ContainerState::Exited(exit) => exit,
            other => panic!("{other:?}"),
        };
        let failed = exit(serde_json::json!({
            "Status": "created", "StartedAt": never, "FinishedAt": never,
            "ExitCode": 127, "Error": "no such file",
        }));
        assert_eq!((failed.reason, failed.code, failed.finished_at), ("StartError", 127, made));
        assert_eq!(failed.message.as_deref(), Some("no such file"));
        let ended = |code: i32, oom: bool| {
            exit(serde_json::json!({
                "Status": "exited", "ExitCode": code, "OOMKilled": oom, "Error": "",
                "StartedAt": "1970-01-01T01:00:00Z", "FinishedAt": "1970-01-01T01:00:09Z",
            }))
        };
        assert_eq!(ended(0, false).reason, "Completed");
        assert_eq!(ended(1, false).reason, "Error");
        assert_eq!(ended(137, true).reason, "OOMKilled");
        assert_eq!(ended(0, false).finished_at.as_second(), 3609);
    }
}
