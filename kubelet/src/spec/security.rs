//! Who a container runs as, and what it may do: its own `securityContext` over the pod's.

use k8s_openapi::api::core::v1::{Container as PodContainer, Pod};

use super::pod_spec;
use super::refusal::Refusal;
use crate::runtime::Security;

/// Which field of a container's securityContext gives it access to the node, if any does.
pub(super) fn access_to_host(container: &PodContainer) -> Option<&'static str> {
    let context = container.security_context.as_ref()?;
    if context.privileged == Some(true) {
        return Some("privileged");
    }
    let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
    added.is_some_and(|added| !added.is_empty()).then_some("capabilities.add")
}

/// What the pod and the container ask for.
pub(super) fn of(pod: &Pod, container: &PodContainer) -> Result<Security, Refusal> {
    let spec = pod_spec(pod);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let uid = own.run_as_user.or(of_pod.run_as_user);
    let gid = own.run_as_group.or(of_pod.run_as_group);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true);
    let refuse = |message: &str| Err(Refusal::config(format!("securityContext.{message}")));
    if non_root && uid.is_none() {
        // Whether the image's own user is root is not known before it is there.
        return refuse("runAsNonRoot: this kubelet holds a container to it with runAsUser only");
    }
    if non_root && uid == Some(0) {
        return refuse("runAsUser: 0 is root, and runAsNonRoot is set");
    }
    if gid.is_some() && uid.is_none() {
        return refuse("runAsGroup: needs runAsUser beside it");
    }
    for profile in [&own.seccomp_profile, &of_pod.seccomp_profile].into_iter().flatten() {
        if profile.type_ == "Localhost" {
            return refuse("seccompProfile: the type Localhost is not supported by this kubelet");
        }
    }
    let groups = of_pod.supplemental_groups.iter().flatten().chain(&of_pod.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(Security {
        user: uid.map(|uid| match gid {
            Some(gid) => format!("{uid}:{gid}"),
            None => uid.to_string(),
        }),
        groups: groups.map(ToString::to_string).collect(),
        read_only_root: own.read_only_root_filesystem == Some(true),
        privileged: own.privileged == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
    })
}
