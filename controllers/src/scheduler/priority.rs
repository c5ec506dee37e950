//! How important pods are: their priority, and whether others have to make room for them.
//!
//! A pod has a number (`spec.priority`), or the name of a PriorityClass that says it, or the value
//! of the class that is the default, or 0. Two classes are built in, Kubernetes' own.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::scheduling::v1::PriorityClass;

/// The built-in classes.
const BUILT_IN: [(&str, i32); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The preemption policy of pods that wait rather than have others make room.
const NEVER: &str = "Never";

/// How important a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priority {
    pub(crate) value: i32,
    /// Whether less important pods may be deleted to make room for it.
    pub(crate) preempts: bool,
}

impl Default for Priority {
    fn default() -> Self {
        Self { value: 0, preempts: true }
    }
}

/// The priority classes there are.
#[derive(Debug)]
pub(crate) struct PriorityClasses {
    by_name: BTreeMap<String, Priority>,
    default: Option<Priority>,
}

impl PriorityClasses {
    pub(crate) fn new(classes: &[Arc<PriorityClass>]) -> Self {
        let priority = |class: &PriorityClass| Priority {
            value: class.value,
            preempts: class.preemption_policy.as_deref() != Some(NEVER),
        };
        let built_in =
            BUILT_IN.map(|(name, value)| (name.to_owned(), Priority { value, preempts: true }));
        let mut by_name: BTreeMap<String, Priority> =
            classes.iter().map(|class| (class.name().to_owned(), priority(class))).collect();
        by_name.extend(built_in);
        // Of several defaults the lowest counts.
        let defaults = classes.iter().filter(|class| class.global_default == Some(true));
        let default = defaults.map(|class| priority(class)).min_by_key(|priority| priority.value);
        Self { by_name, default }
    }

    /// How important a pod is.
    ///
    /// # Errors
    /// There is no class of the name that the pod gives.
    pub(crate) fn of(&self, spec: Option<&PodSpec>) -> Result<Priority, String> {
        let Some(spec) = spec else { return Ok(Priority::default()) };
        let name = spec.priority_class_name.as_deref().filter(|name| !name.is_empty());
        let class = match name {
            Some(name) => self.by_name.get(name).copied(),
            None => self.default,
        };
        let value = match (spec.priority, class, name) {
            (Some(value), ..) => value,
            (None, Some(class), _) => class.value,
            (None, None, Some(name)) => {
                return Err(format!("no PriorityClass with name {name} was found"));
            }
            (None, None, None) => Priority::default().value,
        };
        let preempts = match spec.preemption_policy.as_deref() {
            Some(policy) => policy != NEVER,
            None => class.is_none_or(|class| class.preempts),
        };
        Ok(Priority { value, preempts })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn class(name: &str, value: i32, policy: &str, default: bool) -> Arc<PriorityClass> {
        Arc::new(PriorityClass {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            value,
            preemption_policy: Some(policy.into()),
            global_default: Some(default),
            description: None,
        })
    }

    fn spec(priority: Option<i32>, class: &str, policy: Option<&str>) -> PodSpec {
        PodSpec {
            priority,
            priority_class_name: Some(class.into()),
            preemption_policy: policy.map(str::to_owned),
            ..PodSpec::default()
        }
    }

    #[test]
    fn where_priorities_come_from() {
        let none = PriorityClasses::new(&[]);
        let some = PriorityClasses::new(&[
            class("high", 1000, "PreemptLowerPriority", false),
            class("patient", 500, NEVER, false),
            class("usual", 10, NEVER, true),
            class("more-usual", 20, "PreemptLowerPriority", true),
        ]);
        let rows = [
            (&none, spec(None, "", None), Ok((0, true))),
            (&none, spec(Some(7), "", None), Ok((7, true))),
            (&none, spec(Some(7), "", Some(NEVER)), Ok((7, false))),
            (&none, spec(Some(7), "gone", None), Ok((7, true))),
            (&none, spec(None, "high", None), Err("no PriorityClass with name high was found")),
            (&none, spec(None, "system-node-critical", None), Ok((2_000_001_000, true))),
            (&some, spec(None, "high", None), Ok((1000, true))),
            (&some, spec(None, "patient", None), Ok((500, false))),
            (&some, spec(None, "patient", Some("PreemptLowerPriority")), Ok((500, true))),
            (&some, spec(Some(3), "patient", None), Ok((3, false))),
            (&some, spec(None, "", None), Ok((10, false))),
        ];
        for (classes, spec, expected) in rows {
            let expected = expected
                .map(|(value, preempts)| Priority { value, preempts })
                .map_err(str::to_owned);
            assert_eq!(classes.of(Some(&spec)), expected, "{spec:?}");
        }
        assert_eq!(none.of(None), Ok(Priority::default()));
    }
}
