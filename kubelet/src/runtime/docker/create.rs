//! A [`ContainerSpec`] in the engine's words.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount as DockerMount,
    MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, PortBinding,
};

use super::pause;
use crate::runtime::{ContainerSpec, Identity, Mount, MountSource, Network, Port, Volume, labels};

/// A container's log is kept in so many files of that size: Kubernetes' defaults.
const LOG_FILE_MAX: &str = "10m";
const LOG_FILES_MAX: &str = "5";

/// What the engine is asked for, to make this container.
pub(super) fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let ports: &[Port] = match &spec.network {
        Network::Own { ports, .. } => ports,
        Network::Of(_) | Network::Host => &[],
    };
    let hostname = match &spec.network {
        Network::Own { hostname, .. } => Some(hostname.clone()),
        Network::Of(_) | Network::Host => None,
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        hostname,
        user: spec.security.user.clone(),
        entrypoint: unless_empty(&spec.command),
        cmd: unless_empty(&spec.args),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: spec.working_dir.clone(),
        exposed_ports: unless_empty(&ports.iter().map(port_name).collect::<Vec<_>>()),
        open_stdin: Some(spec.stdin),
        tty: Some(spec.tty),
        // Whether a container is well is for the pod's probes to say, not for its image.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        }),
        labels: Some(labels::encode(&spec.identity).into_iter().collect()),
        host_config: Some(host_config(spec, ports)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &ContainerSpec, ports: &[Port]) -> HostConfig {
    let security = &spec.security;
    let (hosts, network_mode, ipc_mode) = match &spec.network {
        Network::Own { hosts, .. } => {
            // Those who join a sandbox share its memory segments as well.
            let shareable = spec.identity.is_sandbox().then(|| "shareable".to_owned());
            (hosts.clone(), None, shareable)
        }
        Network::Of(id) => {
            let join = format!("container:{id}");
            (Vec::new(), Some(join.clone()), Some(join))
        }
        Network::Host => (Vec::new(), Some("host".to_owned()), None),
    };
    let host = |asked: bool| asked.then(|| "host".to_owned());
    let bindings = ports.iter().filter_map(|port| {
        let binding = PortBinding {
            host_ip: Some(port.host_ip.clone()).filter(|ip| !ip.is_empty()),
            host_port: Some(port.host?.to_string()),
        };
        Some((port_name(port), binding))
    });
    let mut port_bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for (port, binding) in bindings {
        port_bindings.entry(port).or_default().get_or_insert_default().push(binding);
    }
    let (binds, mounts): (Vec<&Mount>, Vec<&Mount>) = spec
        .mounts
        .iter()
        .partition(|mount| matches!(mount.source, MountSource::HostPath { must_exist: false, .. }));
    HostConfig {
        network_mode,
        ipc_mode: host(security.host_ipc).or(ipc_mode),
        pid_mode: host(security.host_pid),
        extra_hosts: unless_empty(
            &hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect::<Vec<_>>(),
        ),
        port_bindings: Some(port_bindings).filter(|bindings| !bindings.is_empty()),
        nano_cpus: spec.resources.nano_cpus,
        cpu_shares: spec.resources.cpu_shares,
        memory: spec.resources.memory_bytes,
        // As much again in swap would be the engine's default; a limit is a limit.
        memory_swap: spec.resources.memory_bytes,
        binds: unless_empty(&binds.into_iter().map(bind).collect::<Vec<_>>()),
        mounts: unless_empty(&mounts.into_iter().map(mount).collect::<Vec<_>>()),
        log_config: Some(log_config()),
        privileged: Some(security.privileged),
        readonly_rootfs: Some(security.read_only_root),
        group_add: unless_empty(&security.groups),
        cap_add: unless_empty(&security.add_capabilities),
        cap_drop: unless_empty(&security.drop_capabilities),
        security_opt: security.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
        ..HostConfig::default()
    }
}

/// Logs are kept in files that can be read again, and are not let grow for ever.
fn log_config() -> HostConfigLogConfig {
    let options = [("max-size", LOG_FILE_MAX), ("max-file", LOG_FILES_MAX)];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(HashMap::from(options)) }
}

/// A container that makes volumes by being made: they are mounted where the image has empty
/// directories that everybody may write, and take over their mode.
pub(super) fn volumes_body(owner: &Identity, volumes: &[Volume]) -> ContainerCreateBody {
    let mounts = volumes.iter().enumerate().map(|(number, volume)| {
        let options = volume.memory.map(|limit| {
            let size = if limit > 0 { format!(",size={limit}") } else { String::new() };
            HashMap::from([
                ("type".to_owned(), "tmpfs".to_owned()),
                ("device".to_owned(), "tmpfs".to_owned()),
                ("o".to_owned(), format!("mode=0777{size}")),
            ])
        });
        DockerMount {
            target: Some(format!("/volumes/{number}")),
            source: Some(volume.name.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions {
                labels: Some(labels::encode_volume(owner).into_iter().collect()),
                driver_config: Some(MountVolumeOptionsDriverConfig {
                    name: Some("local".to_owned()),
                    options,
                }),
                ..MountVolumeOptions::default()
            }),
            ..DockerMount::default()
        }
    });
    ContainerCreateBody {
        image: Some(pause::IMAGE.to_owned()),
        labels: Some(labels::encode(owner).into_iter().collect()),
        host_config: Some(HostConfig {
            mounts: Some(mounts.collect()),
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Makes the directory on the node if it is not there, which a [`mount`] does not.
fn bind(mount: &Mount) -> String {
    let MountSource::HostPath { path, .. } = &mount.source else { return String::new() };
    format!("{path}:{}:{}", mount.target, if mount.read_only { "ro" } else { "rw" })
}

fn mount(mount: &Mount) -> DockerMount {
    let (typ, source) = match &mount.source {
        MountSource::Volume(name) => (MountType::VOLUME, name),
        MountSource::HostPath { path, .. } => (MountType::BIND, path),
    };
    DockerMount {
        target: Some(mount.target.clone()),
        source: Some(source.clone()),
        typ: Some(typ),
        read_only: Some(mount.read_only),
        // A volume begins empty, whatever the image has at that place.
        volume_options: (typ == MountType::VOLUME)
            .then(|| MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
        ..DockerMount::default()
    }
}

fn port_name(port: &Port) -> String {
    format!("{}/{}", port.container, port.protocol)
}

fn unless_empty<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}
