//! Requests and limits, in the engine's units.

use api::Amount;
use k8s_openapi::api::core::v1::Container as PodContainer;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::refusal::Refusal;
use crate::runtime::Resources;

/// The shares of a container that requests a whole processor, and the fewest there are.
const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: i64 = 2;
const NANOS_PER_MILLI: i64 = 1_000_000;

/// What the container may use. One that sets a limit requests as much unless it says otherwise.
pub(super) fn of(container: &PodContainer) -> Result<Resources, Refusal> {
    let cpu_limit = amount(container, "limits", "cpu")?.map(Amount::millis);
    let cpu_request = amount(container, "requests", "cpu")?.map(Amount::millis).or(cpu_limit);
    amount(container, "requests", "memory")?;
    let memory_limit = amount(container, "limits", "memory")?.map(Amount::units);
    Ok(Resources {
        nano_cpus: cpu_limit
            .filter(|millis| *millis > 0)
            .map(|m| m.saturating_mul(NANOS_PER_MILLI)),
        cpu_shares: cpu_request
            .map(|millis| (millis.saturating_mul(SHARES_PER_CPU) / 1000).max(SHARES_MIN)),
        memory_bytes: memory_limit.filter(|bytes| *bytes > 0),
    })
}

/// The value of a variable that asks for a resource, such as `limits.cpu`, in units of `divisor`.
/// As in Kubernetes it is rounded up.
pub(super) fn field(
    container: &PodContainer,
    resource: &str,
    divisor: Option<&Quantity>,
) -> Result<String, String> {
    let (list, name) = resource.split_once('.').unwrap_or(("", resource));
    if !matches!(list, "limits" | "requests") {
        return Err(format!("resourceFieldRef: there is no resource {resource:?}"));
    }
    let millis = |quantity: &Quantity| {
        Amount::try_from(quantity).map(Amount::millis).map_err(|error| error.to_string())
    };
    let found = quantity(container, list, name).map(millis).transpose()?.unwrap_or(0);
    let divisor = divisor.map(millis).transpose()?.filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok((found.saturating_add(divisor - 1) / divisor).to_string())
}

fn quantity<'a>(container: &'a PodContainer, list: &str, name: &str) -> Option<&'a Quantity> {
    let resources = container.resources.as_ref()?;
    let list = if list == "limits" { &resources.limits } else { &resources.requests };
    list.as_ref()?.get(name)
}

fn amount(container: &PodContainer, list: &str, name: &str) -> Result<Option<Amount>, Refusal> {
    let Some(quantity) = quantity(container, list, name) else { return Ok(None) };
    let field = format!("resources.{list}.{name}");
    match Amount::try_from(quantity) {
        Ok(amount) if amount < Amount::default() => {
            Err(Refusal::config(format!("{field}: {:?} is negative", quantity.0)))
        }
        Ok(amount) => Ok(Some(amount)),
        Err(error) => Err(Refusal::config(format!("{field}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(resources: &serde_json::Value) -> PodContainer {
        serde_json::from_value(json!({"name": "main", "resources": resources})).unwrap()
    }

    #[test]
    fn quantities_become_what_engines_count_in() {
        let table = [
            (json!({}), (None, None, None)),
            (
                json!({"limits": {"cpu": "500m", "memory": "64Mi"}}),
                (Some(500_000_000), Some(512), Some(64 << 20)),
            ),
            (
                json!({"limits": {"cpu": "2"}, "requests": {"cpu": "250m"}}),
                (Some(2_000_000_000), Some(256), None),
            ),
            (json!({"requests": {"cpu": "1m"}}), (None, Some(2), None)),
            (json!({"limits": {"memory": "1e8"}}), (None, None, Some(100_000_000))),
            (
                json!({"limits": {"memory": "1G", "cpu": "0.1"}}),
                (Some(100_000_000), Some(102), Some(1_000_000_000)),
            ),
        ];
        for (resources, (nano_cpus, cpu_shares, memory_bytes)) in table {
            let expected = Resources { nano_cpus, cpu_shares, memory_bytes };
            assert_eq!(of(&container(&resources)).unwrap(), expected, "{resources}");
        }
        for bad in [json!({"limits": {"cpu": "many"}}), json!({"requests": {"memory": "-1"}})] {
            assert!(of(&container(&bad)).unwrap_err().message.contains("resources."), "{bad}");
        }
    }

    #[test]
    fn a_variable_counts_in_units_of_its_divisor() {
        let resources = json!({"limits": {"cpu": "1500m", "memory": "64Mi"}});
        let value = |resource, divisor: Option<&str>| {
            let divisor = divisor.map(|text| Quantity(text.into()));
            field(&container(&resources), resource, divisor.as_ref())
        };
        assert_eq!(value("limits.cpu", None).unwrap(), "2");
        assert_eq!(value("limits.cpu", Some("1m")).unwrap(), "1500");
        assert_eq!(value("limits.memory", Some("1Mi")).unwrap(), "64");
        assert_eq!(value("requests.memory", None).unwrap(), "0");
        assert!(value("cpu", None).is_err());
    }
}
