//! What a pod asks to be run, as [`ContainerSpec`]s; and what of it this kubelet cannot do.
//!
//! A field that would change what runs and is not supported is refused by name rather than
//! ignored: the pod stays Pending, its containers wait with the reason `CreateContainerConfigError`,
//! and their message says which field it was. What needs access to the node (`hostPath`,
//! `hostNetwork`, `hostPID`, `hostIPC`, `privileged`, added capabilities) is refused with the reason
//! `Blocked` unless the kubelet was started with `--allow-host-access`. The pod is not failed for it:
//! its ReplicaSet would make another at once, over and over.
//!
//! # Names on the engine
//! | container | name |
//! | --- | --- |
//! | the only one of its pod | `<pod>` |
//! | a sandbox | `<pod>` |
//! | one of several | `<pod>__<container>` |
//! | the life before the present one | `<pod>__<container>__<restart count>` |
//! | a volume | `<pod>__<volume>__<pod uid>` |
//!
//! `<pod>` is the pod's name, with `_<namespace>` behind it outside the namespace `default`. So
//! `docker ps` shows each pod under its own name. Names in Kubernetes hold no underscores, so none of
//! these meet.
//!
//! # Which pods have a sandbox
//! One container without init containers needs none. It gets one all the same if its environment
//! asks for the pod's address, which has to be known before the container is made, or if it has a
//! volume in memory, which would be lost when the container is started again.

mod env;
mod refusal;
mod resources;
mod security;
mod volumes;

use api::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{Container as PodContainer, LifecycleHandler, Pod, PodSpec};

use crate::plan::Life;
use crate::runtime::{ContainerSpec, Identity, Network, Port, Resources, SANDBOX, Security};

pub(crate) use refusal::{Refusal, check};
pub(crate) use volumes::volumes;

/// Kubernetes' default for `terminationGracePeriodSeconds`.
pub(crate) const DEFAULT_GRACE_SECONDS: u32 = 30;

/// The node that containers are made for.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) ip: String,
    /// Whether pods may be given access to the node itself.
    pub(crate) allow_host_access: bool,
}

/// When an image is fetched: the pod's `imagePullPolicy`. `IfNotPresent` unless the pod says
/// otherwise, `:latest` included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// When a container is started again: the pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with this code is started again.
    pub(crate) fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

fn pod_spec(pod: &Pod) -> &PodSpec {
    static NONE: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&NONE)
}

/// The containers that make up the pod.
pub(crate) fn containers(pod: &Pod) -> &[PodContainer] {
    &pod_spec(pod).containers
}

/// The containers that come first.
pub(crate) fn init_containers(pod: &Pod) -> &[PodContainer] {
    pod_spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// The init containers, then the others.
pub(crate) fn all_containers(pod: &Pod) -> impl Iterator<Item = &PodContainer> {
    init_containers(pod).iter().chain(containers(pod))
}

/// Whether an init container is one that runs beside the others.
pub(crate) fn is_sidecar(container: &PodContainer) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The image, as the pod names it.
pub(crate) fn image(container: &PodContainer) -> &str {
    container.image.as_deref().unwrap_or_default()
}

/// What is to be done in a container before it is asked to end.
pub(crate) fn pre_stop(container: &PodContainer) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}

pub(crate) fn pull_policy(container: &PodContainer) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// Whether the pod's containers are in the node's network.
pub(crate) fn uses_host_network(pod: &Pod) -> bool {
    pod_spec(pod).host_network == Some(true)
}

fn is_lone(pod: &Pod) -> bool {
    containers(pod).len() == 1 && init_containers(pod).is_empty()
}

/// Whether the pod's network is held by a container of its own.
pub(crate) fn needs_sandbox(pod: &Pod) -> bool {
    !uses_host_network(pod)
        && (!is_lone(pod) || env::asks_for_pod_ip(pod) || volumes::any_in_memory(pod))
}

/// How long the pod's containers may take to end: of the deletion if there is one, which may have
/// shortened it, otherwise of the spec.
pub(crate) fn grace_seconds(pod: &Pod) -> u32 {
    let of_spec = || pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(of_spec)
        .map_or(DEFAULT_GRACE_SECONDS, |seconds| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

/// The name that the pod's sandbox or its only container has on the engine.
pub(crate) fn engine_name(key: &ObjectKey) -> String {
    // Engines refuse names of one letter.
    if &*key.namespace == "default" && key.name.len() > 1 {
        key.name.to_string()
    } else {
        format!("{}_{}", key.name, key.namespace)
    }
}

/// The name of the present life of a container on the engine.
fn container_name(pod: &Pod, container: &str) -> String {
    let of_pod = engine_name(&pod.key());
    if is_lone(pod) && !needs_sandbox(pod) { of_pod } else { format!("{of_pod}__{container}") }
}

/// The name of the life before.
pub(crate) fn retired_name(identity: &Identity) -> String {
    format!("{}__{}__{}", engine_name(&identity.pod), identity.container, identity.restart_count)
}

/// The sandbox of a pod.
pub(crate) fn sandbox_spec(
    pod: &Pod,
    image: String,
    host: &Host,
    attempt: u32,
    crash_streak: u32,
) -> ContainerSpec {
    let life = Life { restart_count: attempt, crash_streak, ..Life::default() };
    ContainerSpec {
        name: engine_name(&pod.key()),
        image,
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        network: own_network(pod),
        resources: Resources::default(),
        security: Security::default(),
        mounts: volumes::held_by_sandbox(pod),
        stdin: false,
        tty: false,
        init: false,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        identity: identity(pod, SANDBOX, host, &life),
    }
}

/// That life of a container of `pod`.
pub(crate) fn container_spec(
    pod: &Pod,
    container: &PodContainer,
    host: &Host,
    life: &Life,
) -> Result<ContainerSpec, Refusal> {
    let env = env::Env::of(pod, container, host, life)?;
    let strings = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| env.expand(text)).collect::<Vec<_>>()
    };
    Ok(ContainerSpec {
        name: container_name(pod, &container.name),
        image: image(container).to_owned(),
        command: strings(&container.command),
        args: strings(&container.args),
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        network: match &life.sandbox {
            Some(sandbox) => Network::Of(sandbox.clone()),
            None if uses_host_network(pod) => Network::Host,
            None => own_network(pod),
        },
        resources: resources::of(container)?,
        security: security::of(pod, container)?,
        mounts: volumes::mounts(pod, container)?,
        stdin: container.stdin == Some(true),
        tty: container.tty == Some(true),
        init: !containers(pod).iter().any(|main| main.name == container.name)
            && !is_sidecar(container),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        identity: identity(pod, &container.name, host, life),
        env: env.into_pairs(),
    })
}

/// Whose container it is.
pub(crate) fn identity(pod: &Pod, container: &str, host: &Host, life: &Life) -> Identity {
    Identity {
        cluster: host.cluster.clone(),
        node: host.node.clone(),
        pod_uid: pod.uid().to_owned(),
        container: container.to_owned(),
        sandbox: life.sandbox.clone(),
        restart_count: life.restart_count,
        crash_streak: life.crash_streak,
        grace_seconds: grace_seconds(pod),
        pod: pod.key(),
    }
}

/// The network of a pod, as whoever holds it has it.
fn own_network(pod: &Pod) -> Network {
    let spec = pod_spec(pod);
    let declared = all_containers(pod).flat_map(|container| container.ports.iter().flatten());
    let ports = declared.filter_map(|port| {
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
        Some(Port {
            container: number(port.container_port)?,
            protocol: match port.protocol.as_deref() {
                Some("UDP") => "udp",
                Some("SCTP") => "sctp",
                _ => "tcp",
            },
            host: port.host_port.and_then(number),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
    });
    let aliases = spec.host_aliases.iter().flatten();
    let hosts = aliases.flat_map(|alias| {
        let names = alias.hostnames.iter().flatten();
        names.map(|name| (name.clone(), alias.ip.clone()))
    });
    Network::Own {
        hostname: hostname(spec, &pod.key().name),
        ports: ports.collect(),
        hosts: hosts.collect(),
    }
}

/// Host names hold 63 characters at most; Kubernetes cuts a longer pod name likewise.
fn hostname(spec: &PodSpec, pod_name: &str) -> String {
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(pod_name);
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests;
