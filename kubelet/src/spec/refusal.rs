//! What cannot be run here, found before anything is begun.

use k8s_openapi::api::core::v1::{Container as PodContainer, Pod};

use super::{Host, all_containers, init_containers, pod_spec, resources, security, volumes};

/// Why a pod cannot be run here; nothing but a change of the pod, or of the kubelet's flags, helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The waiting reason, one of Kubernetes'.
    pub(crate) reason: &'static str,
    /// Which field, and why.
    pub(crate) message: String,
}

impl Refusal {
    /// A field that says something which cannot be done.
    pub(super) fn config(message: String) -> Self {
        Self { reason: "CreateContainerConfigError", message }
    }

    fn unsupported(field: &str) -> Self {
        Self::config(format!("{field} is not supported by this kubelet"))
    }

    fn blocked(field: &str) -> Self {
        Self {
            reason: "Blocked",
            message: format!(
                "{field} gives access to the node, which its kubelet does not allow (it would with \
                 --allow-host-access)"
            ),
        }
    }
}

/// Whether the pod can be run here, as far as that can be told beforehand.
pub(crate) fn check(pod: &Pod, host: &Host) -> Result<(), Refusal> {
    let spec = pod_spec(pod);
    if spec.containers.is_empty() {
        return Err(Refusal::config("spec.containers: at least one is needed".into()));
    }
    if spec.share_process_namespace == Some(true) {
        return Err(Refusal::unsupported("spec.shareProcessNamespace"));
    }
    let to_host = [
        ("spec.hostNetwork", spec.host_network),
        ("spec.hostPID", spec.host_pid),
        ("spec.hostIPC", spec.host_ipc),
    ];
    for (field, asked) in to_host {
        if asked == Some(true) && !host.allow_host_access {
            return Err(Refusal::blocked(field));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if volume.host_path.is_some() && !host.allow_host_access {
            return Err(Refusal::blocked(&format!("spec.volumes[{index}].hostPath")));
        }
    }
    volumes::check(pod)?;
    let inits = init_containers(pod).len();
    for (index, container) in all_containers(pod).enumerate() {
        let field = match index.checked_sub(inits) {
            None => format!("spec.initContainers[{index}]"),
            Some(index) => format!("spec.containers[{index}]"),
        };
        check_container(pod, container, &field, host)?;
    }
    Ok(())
}

fn check_container(
    pod: &Pod,
    container: &PodContainer,
    field: &str,
    host: &Host,
) -> Result<(), Refusal> {
    check_image_name(super::image(container), field)?;
    let lifecycle = container.lifecycle.as_ref();
    let pre_stop = super::pre_stop(container);
    let unsupported = [
        ("envFrom", container.env_from.as_ref().is_some_and(|list| !list.is_empty())),
        ("volumeDevices", container.volume_devices.as_ref().is_some_and(|list| !list.is_empty())),
        ("lifecycle.postStart", lifecycle.is_some_and(|hooks| hooks.post_start.is_some())),
        ("lifecycle.preStop.tcpSocket", pre_stop.is_some_and(|hook| hook.tcp_socket.is_some())),
        ("lifecycle.stopSignal", lifecycle.is_some_and(|hooks| hooks.stop_signal.is_some())),
    ];
    if let Some((name, _)) = unsupported.iter().find(|(_, asked)| *asked) {
        return Err(Refusal::unsupported(&format!("{field}.{name}")));
    }
    if let Some(what) = security::access_to_host(container)
        && !host.allow_host_access
    {
        return Err(Refusal::blocked(&format!("{field}.securityContext.{what}")));
    }
    super::env::check(container).map_err(|what| Refusal::config(format!("{field}.{what}")))?;
    resources::of(container).map_err(|refusal| refusal.below(field))?;
    security::of(pod, container).map_err(|refusal| refusal.below(field))?;
    volumes::mounts(pod, container).map_err(|refusal| refusal.below(field))?;
    Ok(())
}

impl Refusal {
    /// The field named is below this one.
    fn below(self, field: &str) -> Self {
        Self { message: format!("{field}.{}", self.message), ..self }
    }
}

/// An image's name ends up in the path of an engine request, so it is held to the characters that
/// names are made of; whether such an image exists is the registry's to say.
fn check_image_name(image: &str, field: &str) -> Result<(), Refusal> {
    let well_formed = image.starts_with(|c: char| c.is_ascii_alphanumeric())
        && image.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c))
        && !image.contains("..")
        && !image.contains("//")
        && !image.ends_with(['/', ':', '@']);
    if well_formed {
        Ok(())
    } else {
        let message = format!("{field}.image: {image:?} is no image name");
        Err(Refusal { reason: "InvalidImageName", message })
    }
}
