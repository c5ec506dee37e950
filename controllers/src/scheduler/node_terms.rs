//! Which nodes a pod wants: its node selector and node affinity, made ready for matching.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

use super::terms::Labels;

/// The only field that nodes can be selected by.
const NAME_FIELD: &str = "metadata.name";

/// A pod's wishes about the nodes themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeAffinity {
    selector: BTreeMap<String, String>,
    /// One of them must match; none says nothing.
    required: Option<Vec<NodeTerm>>,
    /// What each is worth.
    pub(crate) preferred: Vec<(i32, NodeTerm)>,
}

/// Requirements that must all hold. One without any matches no node, and neither does one that
/// makes no sense; both as in Kubernetes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeTerm(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    /// None is the node's name.
    label: Option<String>,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Above(i64),
    Below(i64),
}

impl NodeAffinity {
    pub(crate) fn read(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity
            .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|selector| {
                selector.node_selector_terms.iter().filter_map(NodeTerm::read).collect()
            });
        let preferred = affinity
            .and_then(|node| node.preferred_during_scheduling_ignored_during_execution.as_ref());
        let preferred = preferred.into_iter().flatten().filter(|each| each.weight != 0);
        Self {
            selector: spec.node_selector.clone().unwrap_or_default(),
            required,
            preferred: preferred
                .filter_map(|each| Some((each.weight, NodeTerm::read(&each.preference)?)))
                .collect(),
        }
    }

    /// Whether every node will do.
    pub(crate) fn is_empty(&self) -> bool {
        self.selector.is_empty() && self.required.is_none()
    }

    /// Whether the pod may go to a node with that name and these labels.
    pub(crate) fn allows(&self, name: &str, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self
                .required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }
}

impl NodeTerm {
    fn read(term: &NodeSelectorTerm) -> Option<Self> {
        let labels = term.match_expressions.iter().flatten();
        let labels = labels.map(|each| Requirement::read(each, Some(each.key.clone())));
        let fields = term.match_fields.iter().flatten().map(|each| {
            let name = each.key == NAME_FIELD && matches!(each.operator.as_str(), "In" | "NotIn");
            name.then(|| Requirement::read(each, None)).flatten()
        });
        let requirements = labels.chain(fields).collect::<Option<Vec<_>>>()?;
        (!requirements.is_empty()).then_some(Self(requirements))
    }

    pub(crate) fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = match &requirement.label {
                Some(key) => labels.get(key).map(String::as_str),
                None => Some(name),
            };
            requirement.operator.holds(value)
        })
    }
}

impl Requirement {
    fn read(requirement: &NodeSelectorRequirement, label: Option<String>) -> Option<Self> {
        let values = requirement.values.clone().unwrap_or_default();
        let number = || match values.as_slice() {
            [value] => value.parse().ok(),
            _ => None,
        };
        let operator = match (requirement.operator.as_str(), values.is_empty()) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            ("Gt", _) => Operator::Above(number()?),
            ("Lt", _) => Operator::Below(number()?),
            _ => return None,
        };
        Some(Self { label, operator })
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_one_of =
            |values: &[String]| value.is_some_and(|value| values.iter().any(|v| v == value));
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => is_one_of(values),
            Self::NotIn(values) => !is_one_of(values),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn affinity(spec: &Value) -> NodeAffinity {
        let mut spec = spec.clone();
        spec["containers"] = json!([]);
        NodeAffinity::read(&serde_json::from_value(spec).unwrap())
    }

    fn required(terms: &Value) -> Value {
        json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms }
        } } })
    }

    #[test]
    fn which_nodes_are_allowed() {
        let expression = |key: &str, operator: &str, values: &[&str]| {
            required(
                &json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]),
            )
        };
        let field = |operator: &str, key: &str| {
            required(
                &json!([{ "matchFields": [{ "key": key, "operator": operator, "values": ["a"] }] }]),
            )
        };
        let both = |disk: &str, cores: &str| {
            json!({ "matchExpressions": [
                { "key": "disk", "operator": "In", "values": [disk] },
                { "key": "cores", "operator": "In", "values": [cores] },
            ] })
        };
        // Whether node a (disk=ssd, cores=8) and node b (disk=hdd) are allowed.
        let rows = [
            (json!({}), [true, true]),
            (json!({ "nodeSelector": { "disk": "ssd" } }), [true, false]),
            (json!({ "nodeSelector": { "disk": "ssd", "cores": "4" } }), [false, false]),
            (expression("disk", "In", &["ssd", "nvme"]), [true, false]),
            (expression("disk", "NotIn", &["ssd"]), [false, true]),
            (expression("cores", "NotIn", &["4"]), [true, true]),
            (expression("cores", "Exists", &[]), [true, false]),
            (expression("cores", "DoesNotExist", &[]), [false, true]),
            (expression("cores", "Gt", &["7"]), [true, false]),
            (expression("cores", "Gt", &["8"]), [false, false]),
            (expression("cores", "Lt", &["9"]), [true, false]),
            (expression("disk", "Lt", &["9"]), [false, false]),
            (expression("cores", "Gt", &["many"]), [false, false]),
            (expression("cores", "Like", &["8"]), [false, false]),
            (expression("cores", "In", &[]), [false, false]),
            (field("In", "metadata.name"), [true, false]),
            (field("NotIn", "metadata.name"), [false, true]),
            (field("In", "spec.nodeName"), [false, false]),
            (required(&json!([both("ssd", "8")])), [true, false]),
            (required(&json!([both("ssd", "4")])), [false, false]),
            (
                required(&json!([both("ssd", "8"), { "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": ["b"] }] }])),
                [true, true],
            ),
            (required(&json!([{}])), [false, false]),
            (required(&json!([])), [false, false]),
        ];
        let a = [("disk", "ssd"), ("cores", "8")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let b = [("disk".to_owned(), "hdd".to_owned())].into();
        for (spec, expected) in rows {
            let affinity = affinity(&spec);
            assert_eq!([affinity.allows("a", &a), affinity.allows("b", &b)], expected, "{spec}");
        }
    }

    #[test]
    fn the_selector_and_the_affinity_must_both_hold() {
        let mut spec =
            required(&json!([{ "matchExpressions": [{ "key": "cores", "operator": "Exists" }] }]));
        spec["nodeSelector"] = json!({ "disk": "ssd" });
        let affinity = affinity(&spec);
        let labels =
            |pairs: &[&str]| pairs.iter().map(|key| ((*key).into(), "ssd".into())).collect();
        assert!(affinity.allows("a", &labels(&["disk", "cores"])));
        assert!(!affinity.allows("a", &labels(&["disk"])));
        assert!(!affinity.allows("a", &labels(&["cores"])));
        assert!(!affinity.is_empty());
    }

    #[test]
    fn preferences_without_sense_are_left_out() {
        let term = |operator: &str| json!({ "matchExpressions": [{ "key": "disk", "operator": operator }] });
        let spec = json!({ "affinity": { "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                { "weight": 5, "preference": term("Exists") },
                { "weight": 0, "preference": term("Exists") },
                { "weight": 3, "preference": term("Like") },
                { "weight": 3, "preference": {} },
            ]
        } } });
        let affinity = affinity(&spec);
        assert!(affinity.is_empty());
        assert_eq!(affinity.preferred.len(), 1);
        assert_eq!(affinity.preferred[0].0, 5);
    }
}
