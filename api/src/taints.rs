//! Taints of nodes and the tolerations of pods, by Kubernetes' names and rules.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration};

/// The effect of a taint that keeps new pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The effect of a taint that keeps new pods away if there are other nodes.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// The effect of a taint that makes pods leave, too.
pub const NO_EXECUTE: &str = "NoExecute";

/// The taint of a node whose kubelet says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node that is not heard of.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that is to take no new pods: it goes with `spec.unschedulable`.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The taint of a node that is short of memory.
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// The taint of a node whose disk is nearly full.
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// The taint of a node that is short of process ids.
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
/// The taint by which a person says that a node is certainly down, its containers with it.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether a toleration tolerates a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let any_or = |wanted: &Option<String>, value: &str| {
        wanted.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == value)
    };
    if !any_or(&toleration.effect, &taint.effect) || !any_or(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The tolerations of a pod.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// How long new pods tolerate a node that is not ready or not heard of, unless they say something
/// about it themselves: as Kubernetes' admission plugin DefaultTolerationSeconds has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultTolerations {
    /// For [`NOT_READY`].
    pub not_ready_seconds: u32,
    /// For [`UNREACHABLE`].
    pub unreachable_seconds: u32,
}

impl DefaultTolerations {
    /// The default; Kubernetes waits ten times as long.
    pub const SECONDS: u32 = 30;

    /// Adds them to a new pod.
    pub(crate) fn add_to(self, spec: &mut PodSpec) {
        for (key, seconds) in
            [(NOT_READY, self.not_ready_seconds), (UNREACHABLE, self.unreachable_seconds)]
        {
            let is_or_any = |part: &Option<String>, value: &str| {
                part.as_deref().is_none_or(|part| part.is_empty() || part == value)
            };
            let own = spec.tolerations.iter().flatten().any(|toleration| {
                is_or_any(&toleration.key, key) && is_or_any(&toleration.effect, NO_EXECUTE)
            });
            if !own {
                spec.tolerations.get_or_insert_default().push(Toleration {
                    key: Some(key.to_owned()),
                    operator: Some("Exists".to_owned()),
                    effect: Some(NO_EXECUTE.to_owned()),
                    toleration_seconds: Some(i64::from(seconds)),
                    value: None,
                });
            }
        }
    }
}

impl Default for DefaultTolerations {
    fn default() -> Self {
        Self { not_ready_seconds: Self::SECONDS, unreachable_seconds: Self::SECONDS }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tolerations(value: &Value) -> Vec<Toleration> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn what_is_tolerated() {
        let taint = Taint {
            key: "gpu".into(),
            value: Some("a100".into()),
            effect: NO_SCHEDULE.into(),
            time_added: None,
        };
        for (value, expected) in [
            (json!([]), false),
            (json!([{"operator": "Exists"}]), true),
            (json!([{"key": "gpu", "operator": "Exists"}]), true),
            (json!([{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]), true),
            (json!([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]), false),
            (json!([{"key": "disk", "operator": "Exists"}]), false),
            (json!([{"key": "gpu", "value": "a100"}]), true),
            (json!([{"key": "gpu", "operator": "Equal", "value": "a100"}]), true),
            (json!([{"key": "gpu", "value": "h100"}]), false),
            (json!([{"key": "gpu"}]), false),
            (json!([{"key": "gpu", "operator": "Like", "value": "a100"}]), false),
        ] {
            let tolerated = tolerations(&value).iter().any(|own| tolerates(own, &taint));
            assert_eq!(tolerated, expected, "{value}");
        }
    }

    #[test]
    fn new_pods_tolerate_a_node_in_trouble_for_a_while() {
        let short = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30});
        let (not_ready, unreachable) = (short(NOT_READY), short(UNREACHABLE));
        let own = |key: &str, effect: &str| json!({"key": key, "operator": "Exists", "effect": effect, "tolerationSeconds": 5});
        let everything = json!({"operator": "Exists"});
        for (before, added) in [
            (json!([]), json!([not_ready, unreachable])),
            (json!([everything]), json!([])),
            (json!([own(NOT_READY, "NoExecute")]), json!([unreachable])),
            (json!([own(UNREACHABLE, "")]), json!([not_ready])),
            (json!([own(UNREACHABLE, "NoSchedule")]), json!([not_ready, unreachable])),
            (json!([own("gpu", "NoExecute")]), json!([not_ready, unreachable])),
        ] {
            let mut expected = tolerations(&before);
            let mut spec = PodSpec { tolerations: Some(expected.clone()), ..PodSpec::default() };
            DefaultTolerations::default().add_to(&mut spec);
            expected.extend(tolerations(&added));
            assert_eq!(spec.tolerations, Some(expected), "{before}");
        }
        let mut spec = PodSpec::default();
        DefaultTolerations { not_ready_seconds: 7, unreachable_seconds: 8 }.add_to(&mut spec);
        let seconds: Vec<_> =
            spec.tolerations.unwrap().iter().map(|own| own.toleration_seconds).collect();
        assert_eq!(seconds, [Some(7), Some(8)]);
    }
}
