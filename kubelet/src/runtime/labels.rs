//! An [`Identity`] as container labels, and back.
//!
//! These labels are what a kubelet finds its containers by after a restart, so their names are
//! fixed for ever.

use api::ObjectKey;

use super::{Identity, Labels, ListedVolume};

pub(crate) const CLUSTER: &str = "miniku.cluster";
pub(crate) const NODE: &str = "miniku.node";
pub(crate) const POD_NAMESPACE: &str = "miniku.pod.namespace";
pub(crate) const POD_NAME: &str = "miniku.pod.name";
pub(crate) const POD_UID: &str = "miniku.pod.uid";
const GRACE_SECONDS: &str = "miniku.pod.grace-seconds";
const CONTAINER: &str = "miniku.container.name";
const SANDBOX: &str = "miniku.container.sandbox";
const RESTART_COUNT: &str = "miniku.container.restart-count";
const CRASH_STREAK: &str = "miniku.container.crash-streak";

/// The labels that carry `identity`.
pub(crate) fn encode(identity: &Identity) -> Labels {
    [
        (CLUSTER, identity.cluster.clone()),
        (NODE, identity.node.clone()),
        (POD_NAMESPACE, identity.pod.namespace.to_string()),
        (POD_NAME, identity.pod.name.to_string()),
        (POD_UID, identity.pod_uid.clone()),
        (GRACE_SECONDS, identity.grace_seconds.to_string()),
        (CONTAINER, identity.container.clone()),
        (RESTART_COUNT, identity.restart_count.to_string()),
        (CRASH_STREAK, identity.crash_streak.to_string()),
    ]
    .into_iter()
    .chain(identity.sandbox.clone().map(|sandbox| (SANDBOX, sandbox)))
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The labels that carry whose volume it is.
pub(crate) fn encode_volume(owner: &Identity) -> Labels {
    [
        (CLUSTER, owner.cluster.clone()),
        (NODE, owner.node.clone()),
        (POD_NAMESPACE, owner.pod.namespace.to_string()),
        (POD_NAME, owner.pod.name.to_string()),
        (POD_UID, owner.pod_uid.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Reads whose volume it is; nothing if no kubelet made it.
pub(crate) fn decode_volume<'a>(
    name: &str,
    get: impl Fn(&str) -> Option<&'a String>,
) -> Option<ListedVolume> {
    Some(ListedVolume {
        name: name.to_owned(),
        cluster: get(CLUSTER)?.clone(),
        pod: ObjectKey::namespaced(get(POD_NAMESPACE)?, get(POD_NAME)?),
        pod_uid: get(POD_UID)?.clone(),
    })
}

/// Reads an identity back; nothing if a label is missing or is no number where one belongs, as in
/// a container that somebody else made.
pub(crate) fn decode<'a>(get: impl Fn(&str) -> Option<&'a String>) -> Option<Identity> {
    let text = |name: &str| get(name).cloned();
    let number = |name: &str| get(name)?.parse().ok();
    Some(Identity {
        cluster: text(CLUSTER)?,
        node: text(NODE)?,
        pod: ObjectKey::namespaced(get(POD_NAMESPACE)?, get(POD_NAME)?),
        pod_uid: text(POD_UID)?,
        container: text(CONTAINER)?,
        sandbox: text(SANDBOX),
        restart_count: number(RESTART_COUNT)?,
        crash_streak: number(CRASH_STREAK)?,
        grace_seconds: number(GRACE_SECONDS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_from_its_labels() {
        let identity = Identity {
            cluster: "c".into(),
            node: "node-1".into(),
            pod: ObjectKey::namespaced("default", "web"),
            pod_uid: "u".into(),
            container: "main".into(),
            sandbox: None,
            restart_count: 7,
            crash_streak: 3,
            grace_seconds: 30,
        };
        let mut labels = encode(&identity);
        assert_eq!(decode(|name| labels.get(name)), Some(identity.clone()));
        let joined = Identity { sandbox: Some("s".into()), ..identity };
        let with_sandbox = encode(&joined);
        assert_eq!(decode(|name| with_sandbox.get(name)), Some(joined));
        labels.insert(RESTART_COUNT.into(), "many".into());
        assert_eq!(decode(|name| labels.get(name)), None);
        labels.remove(RESTART_COUNT);
        assert_eq!(decode(|name| labels.get(name)), None);
    }
}
