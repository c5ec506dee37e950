//! What a node offers and what a pod asks for, in exact numbers.
//!
//! A pod asks for the sum of its containers' requests, but no less than any of its init containers
//! needs, which run one after another beside the sidecars started before them; its overhead comes
//! on top. A container that has a limit and no request asks for its limit. All as in Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Amount;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container without a request for CPU or memory counts as when nodes are compared, so that
/// such pods spread too: Kubernetes' numbers.
const SCORED_CPU_MILLIS: i64 = 100;
const SCORED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources; of pods there is one more on each node, which is counted apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpu_millis: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) ephemeral_bytes: i64,
    /// All others, such as `example.com/gpu` and `hugepages-2Mi`; none is zero.
    pub(crate) extended: BTreeMap<Arc<str>, i64>,
}

/// What nodes are compared by: CPU and memory, where nothing asked for counts as a little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) cpu_millis: i64,
    pub(crate) memory_bytes: i64,
}

impl Load {
    pub(crate) fn add(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
    }

    pub(crate) fn subtract(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
    }

    fn at_least(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.max(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
    }
}

type Quantities = BTreeMap<String, Quantity>;

impl Resources {
    /// Reads a list of resources at `field`. `pods` is left out: see [`pods_allowed`].
    ///
    /// # Errors
    /// What is wrong, beginning with the field.
    pub(crate) fn read(quantities: &Quantities, field: &str) -> Result<Self, String> {
        let mut resources = Self::default();
        for (name, quantity) in quantities {
            resources.set(name, quantity, field)?;
        }
        Ok(resources)
    }

    fn set(&mut self, name: &str, quantity: &Quantity, field: &str) -> Result<(), String> {
        let amount =
            Amount::try_from(quantity).map_err(|error| format!("{field}[{name}]: {error}"))?;
        if amount < Amount::default() {
            return Err(format!("{field}[{name}]: must not be negative"));
        }
        match name {
            "cpu" => self.cpu_millis = amount.millis(),
            "memory" => self.memory_bytes = amount.units(),
            "ephemeral-storage" => self.ephemeral_bytes = amount.units(),
            "pods" => {}
            _ if amount == Amount::default() => {
                self.extended.remove(name);
            }
            _ => {
                self.extended.insert(name.into(), amount.units());
            }
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_add(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            if let Some(rest) = self.extended.get_mut(name) {
                *rest = rest.saturating_sub(*amount);
                if *rest == 0 {
                    self.extended.remove(name);
                }
            }
        }
    }

    /// Takes the larger of each.
    fn at_least(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.max(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            let most = self.extended.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }

    pub(crate) fn extended(&self, name: &str) -> i64 {
        self.extended.get(name).copied().unwrap_or(0)
    }
}

/// How many pods a node takes; a node that does not say takes none.
pub(crate) fn pods_allowed(allocatable: &Quantities) -> usize {
    let amount = allocatable.get("pods").and_then(|quantity| Amount::try_from(quantity).ok());
    amount.and_then(|amount| usize::try_from(amount.units()).ok()).unwrap_or(0)
}

/// What a pod asks for, and what it counts as when nodes are compared.
///
/// # Errors
/// What is wrong, beginning with the field.
pub(crate) fn requested(spec: &PodSpec) -> Result<(Resources, Load), String> {
    let mut total = Resources::default();
    let mut load = Load::default();
    for (i, container) in spec.containers.iter().enumerate() {
        let asked = asked(container, || format!("spec.containers[{i}]"))?;
        load.add(loads(&asked));
        total.add(&asked.resources);
    }
    let (mut sidecars, mut sidecars_load) = (Resources::default(), Load::default());
    let (mut most, mut most_load) = (Resources::default(), Load::default());
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        let asked = asked(container, || format!("spec.initContainers[{i}]"))?;
        let (mut needed, mut needed_load) = (asked.resources.clone(), loads(&asked));
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&asked.resources);
            load.add(needed_load);
            sidecars.add(&asked.resources);
            sidecars_load.add(needed_load);
            (needed, needed_load) = (sidecars.clone(), sidecars_load);
        } else {
            needed.add(&sidecars);
            needed_load.add(sidecars_load);
        }
        most.at_least(&needed);
        most_load.at_least(needed_load);
    }
    total.at_least(&most);
    load.at_least(most_load);
    if let Some(pod) = &spec.resources {
        of_the_pod(pod, &mut total, &mut load)?;
    }
    if let Some(overhead) = &spec.overhead {
        let overhead = Resources::read(overhead, "spec.overhead")?;
        load.add(Load { cpu_millis: overhead.cpu_millis, memory_bytes: overhead.memory_bytes });
        total.add(&overhead);
    }
    Ok((total, load))
}

/// Requests that a pod makes as a whole stand in place of those of its containers.
fn of_the_pod(
    pod: &ResourceRequirements,
    total: &mut Resources,
    load: &mut Load,
) -> Result<(), String> {
    let asked = effective(pod);
    for (name, quantity) in &asked {
        total.set(name, quantity, "spec.resources.requests")?;
    }
    if asked.contains_key("cpu") {
        load.cpu_millis = total.cpu_millis;
    }
    if asked.contains_key("memory") {
        load.memory_bytes = total.memory_bytes;
    }
    Ok(())
}

struct Asked {
    resources: Resources,
    cpu: bool,
    memory: bool,
}

fn asked(container: &Container, field: impl Fn() -> String) -> Result<Asked, String> {
    let Some(requirements) = &container.resources else {
        return Ok(Asked { resources: Resources::default(), cpu: false, memory: false });
    };
    let quantities = effective(requirements);
    let resources = Resources::read(&quantities, &format!("{}.resources.requests", field()))?;
    let has = |name| quantities.contains_key(name);
    Ok(Asked { resources, cpu: has("cpu"), memory: has("memory") })
}

/// The requests, and the limits for what has none.
fn effective(requirements: &ResourceRequirements) -> Quantities {
    let mut quantities = requirements.limits.clone().unwrap_or_default();
    quantities.extend(requirements.requests.clone().unwrap_or_default());
    quantities
}

fn loads(asked: &Asked) -> Load {
    Load {
        cpu_millis: if asked.cpu { asked.resources.cpu_millis } else { SCORED_CPU_MILLIS },
        memory_bytes: if asked.memory { asked.resources.memory_bytes } else { SCORED_MEMORY_BYTES },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Result<(Resources, Load), String> {
        requested(&serde_json::from_value(spec).unwrap())
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({ "name": "c", "resources": { "requests": requests, "limits": limits } })
    }

    const MIB: i64 = 1024 * 1024;

    #[test]
    fn what_pods_ask_for() {
        let plain =
            |cpu: &str, memory: &str| container(json!({ "cpu": cpu, "memory": memory }), json!({}));
        let mut sidecar = plain("50m", "5Mi");
        sidecar["restartPolicy"] = json!("Always");
        let rows = [
            ("nothing", json!({ "containers": [{ "name": "c" }] }), (0, 0)),
            (
                "a sum",
                json!({ "containers": [plain("100m", "10Mi"), plain("0.2", "20Mi")] }),
                (300, 30),
            ),
            (
                "limits stand in for requests",
                json!({ "containers": [container(json!({ "cpu": "1" }), json!({ "cpu": "2", "memory": "8Mi" }))] }),
                (1000, 8),
            ),
            (
                "init containers run one after another",
                json!({
                    "containers": [plain("100m", "10Mi")],
                    "initContainers": [plain("300m", "5Mi"), plain("200m", "6Mi")],
                }),
                (300, 10),
            ),
            (
                "beside the sidecars before them, which stay",
                json!({
                    "containers": [plain("100m", "10Mi")],
                    "initContainers": [plain("120m", "1Mi"), sidecar, plain("300m", "1Mi")],
                }),
                (350, 15),
            ),
            (
                "overhead on top",
                json!({
                    "containers": [plain("100m", "10Mi")],
                    "initContainers": [plain("300m", "1Mi")],
                    "overhead": { "cpu": "10m", "memory": "1Mi" },
                }),
                (310, 11),
            ),
            (
                "the pod as a whole",
                json!({
                    "containers": [plain("100m", "10Mi")],
                    "resources": { "requests": { "cpu": "2" } },
                }),
                (2000, 10),
            ),
        ];
        for (what, spec, (cpu, memory)) in rows {
            let (resources, _) = of(spec).unwrap();
            assert_eq!(
                (resources.cpu_millis, resources.memory_bytes),
                (cpu, memory * MIB),
                "{what}"
            );
        }
    }

    #[test]
    fn what_is_not_asked_for_counts_a_little_in_comparisons() {
        let (_, load) = of(json!({ "containers": [
            { "name": "c" }, container(json!({ "cpu": "1" }), json!({})), container(json!({ "cpu": "0" }), json!({})),
        ] }))
        .unwrap();
        assert_eq!(load, Load { cpu_millis: 1100, memory_bytes: 600 * MIB });
    }

    #[test]
    fn other_resources() {
        let spec = json!({ "containers": [container(
            json!({ "example.com/gpu": "2", "hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi", "example.com/none": "0" }),
            json!({}),
        )] });
        let (resources, _) = of(spec).unwrap();
        assert_eq!(resources.ephemeral_bytes, 1024 * MIB);
        assert_eq!(resources.extended("example.com/gpu"), 2);
        assert_eq!(resources.extended("hugepages-2Mi"), 4 * MIB);
        assert_eq!(resources.extended.len(), 2);

        let mut sum = resources.clone();
        sum.add(&resources);
        assert_eq!(sum.extended("example.com/gpu"), 4);
        sum.subtract(&resources);
        sum.subtract(&resources);
        assert_eq!(sum, Resources::default());
    }

    #[test]
    fn nonsense_names_its_field() {
        let error = of(json!({ "containers": [container(json!({ "cpu": "lots" }), json!({}))] }));
        assert_eq!(
            error.unwrap_err(),
            "spec.containers[0].resources.requests[cpu]: \"lots\" is not a quantity such as 500m, 2 or 1.5Gi"
        );
        let error = of(json!({ "containers": [], "overhead": { "memory": "-1" } }));
        assert_eq!(error.unwrap_err(), "spec.overhead[memory]: must not be negative");
    }

    #[test]
    fn a_node_takes_as_many_pods_as_it_says() {
        let of = |text: &str| pods_allowed(&[("pods".to_owned(), Quantity(text.into()))].into());
        assert_eq!((of("110"), of("x"), pods_allowed(&Quantities::new())), (110, 0, 0));
    }
}
