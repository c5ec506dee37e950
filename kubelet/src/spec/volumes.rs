//! A pod's volumes: directories that live as long as the pod (`emptyDir`), and the node's own
//! (`hostPath`).

use api::{Amount, Object};
use k8s_openapi::api::core::v1::Volume as PodVolume;
use k8s_openapi::api::core::v1::{Container as PodContainer, EmptyDirVolumeSource, Pod};

use super::refusal::Refusal;
use super::{engine_name, pod_spec};
use crate::runtime::{Mount, MountSource, Volume};

fn declared(pod: &Pod) -> impl Iterator<Item = &PodVolume> {
    pod_spec(pod).volumes.iter().flatten()
}

fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&PodVolume, &EmptyDirVolumeSource)> {
    declared(pod).filter_map(|volume| Some((volume, volume.empty_dir.as_ref()?)))
}

/// The volumes that the engine keeps for the pod.
pub(crate) fn volumes(pod: &Pod) -> Vec<Volume> {
    let volume = |(volume, dir): (&PodVolume, &EmptyDirVolumeSource)| Volume {
        name: engine_volume(pod, volume),
        memory: is_in_memory(dir).then(|| size_limit(dir).unwrap_or(0)),
    };
    empty_dirs(pod).map(volume).collect()
}

/// Whether a volume would be lost if no container used it for a moment.
pub(super) fn any_in_memory(pod: &Pod) -> bool {
    empty_dirs(pod).any(|(_, dir)| is_in_memory(dir))
}

fn is_in_memory(dir: &EmptyDirVolumeSource) -> bool {
    dir.medium.as_deref() == Some("Memory")
}

fn size_limit(dir: &EmptyDirVolumeSource) -> Option<u64> {
    Amount::try_from(dir.size_limit.as_ref()?).ok()?.units().try_into().ok()
}

fn engine_volume(pod: &Pod, volume: &PodVolume) -> String {
    format!("{}__{}__{}", engine_name(&pod.key()), volume.name, pod.uid())
}

/// The volumes that a sandbox keeps from being lost, somewhere in it.
pub(super) fn held_by_sandbox(pod: &Pod) -> Vec<Mount> {
    let in_memory = empty_dirs(pod).filter(|(_, dir)| is_in_memory(dir));
    let mount = |(volume, _): (&PodVolume, _)| Mount {
        target: format!("/volumes/{}", volume.name),
        source: MountSource::Volume(engine_volume(pod, volume)),
        read_only: false,
    };
    in_memory.map(mount).collect()
}

/// Whether all volumes can be had here.
pub(super) fn check(pod: &Pod) -> Result<(), Refusal> {
    for (index, volume) in declared(pod).enumerate() {
        let refuse = |what: &str| {
            Err(Refusal::config(format!("spec.volumes[{index}] ({}){what}", volume.name)))
        };
        if let Some(dir) = &volume.empty_dir {
            let medium = dir.medium.as_deref().unwrap_or_default();
            if !matches!(medium, "" | "Memory") {
                return refuse(&format!(".emptyDir.medium: there is no medium {medium:?} here"));
            }
            if dir.size_limit.is_some() && size_limit(dir).is_none() {
                return refuse(".emptyDir.sizeLimit: this is no quantity");
            }
        } else if let Some(path) = &volume.host_path {
            let kind = path.type_.as_deref().unwrap_or_default();
            if kind == "FileOrCreate" {
                return refuse(".hostPath.type: FileOrCreate is not supported by this kubelet");
            }
            if !path.path.starts_with('/') || path.path.contains(':') {
                return refuse(".hostPath.path: this is no absolute path without a colon");
            }
        } else {
            return refuse(": only emptyDir and hostPath are supported by this kubelet");
        }
    }
    Ok(())
}

/// What is mounted into the container.
pub(super) fn mounts(pod: &Pod, container: &PodContainer) -> Result<Vec<Mount>, Refusal> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let name = &mount.name;
        let refuse = |what: &str| Err(Refusal::config(format!("volumeMounts {name}: {what}")));
        let Some(volume) = declared(pod).find(|volume| volume.name == *name) else {
            return refuse("the pod has no such volume");
        };
        if mount.sub_path.as_ref().or(mount.sub_path_expr.as_ref()).is_some_and(|p| !p.is_empty()) {
            return refuse("subPath is not supported by this kubelet");
        }
        if mount.mount_propagation.as_deref().is_some_and(|kind| kind != "None") {
            return refuse("mountPropagation is not supported by this kubelet");
        }
        let source = match &volume.host_path {
            Some(path) => MountSource::HostPath {
                path: path.path.clone(),
                must_exist: !matches!(path.type_.as_deref(), None | Some("" | "DirectoryOrCreate")),
            },
            None => MountSource::Volume(engine_volume(pod, volume)),
        };
        let target = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        mounts.push(Mount { target, source, read_only: mount.read_only == Some(true) });
    }
    Ok(mounts)
}
