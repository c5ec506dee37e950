//! Which pods a pod wants to be near, far from, or spread among: the rules as they stand in its
//! spec, made ready for matching.
//!
//! Terms compare by what they say, so a thousand pods of one template share one entry wherever
//! terms are counted (see [`super::counts`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::Selector;
use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub(crate) type Labels = BTreeMap<String, String>;

/// The label that Kubernetes gives every namespace: its name. Namespaces are no objects here yet,
/// so it is the only one they have.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Pods of some namespaces that some labels single out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodSelector {
    namespaces: BTreeSet<String>,
    /// Further namespaces, by their labels.
    by_label: Option<Selector>,
    /// None matches no pod.
    pods: Option<Selector>,
}

impl PodSelector {
    pub(crate) fn matches(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let in_namespace = self.namespaces.contains(namespace)
            || self.by_label.as_ref().is_some_and(|selector| {
                selector.is_empty()
                    || selector
                        .matches(Some(&[(NAMESPACE_LABEL.into(), namespace.to_owned())].into()))
            });
        in_namespace && self.pods.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// A label, key and value, that every pod has which matches, if there is one.
    pub(crate) fn needed_label(&self) -> Option<(&str, &str)> {
        self.pods.as_ref()?.needed_label()
    }
}

/// Pods in the same part of the topology: on nodes with the same value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) pods: PodSelector,
    pub(crate) topology_key: Arc<str>,
}

/// Where a pod wants to be in relation to others.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodAffinity {
    /// All of them must hold.
    pub(crate) required: Vec<Arc<Term>>,
    /// None of them may hold.
    pub(crate) forbidden: Vec<Arc<Term>>,
    /// What each is worth; those to be avoided are worth less than nothing.
    pub(crate) preferred: Vec<(i32, Arc<Term>)>,
}

impl PodAffinity {
    /// Reads the terms of a pod in that namespace with these labels.
    ///
    /// # Errors
    /// What is wrong, beginning with the field.
    pub(crate) fn read(
        affinity: &Affinity,
        namespace: &str,
        labels: Option<&Labels>,
    ) -> Result<Self, String> {
        let term = |term: &PodAffinityTerm, field: &str| {
            read_term(term, namespace, labels)
                .map_err(|error| format!("spec.affinity.{field}.{error}"))
        };
        let mut read = Self::default();
        if let Some(near) = &affinity.pod_affinity {
            for each in near.required_during_scheduling_ignored_during_execution.iter().flatten() {
                read.required.push(term(each, "podAffinity")?);
            }
            for each in near.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                read.preferred.push((each.weight, term(&each.pod_affinity_term, "podAffinity")?));
            }
        }
        if let Some(far) = &affinity.pod_anti_affinity {
            for each in far.required_during_scheduling_ignored_during_execution.iter().flatten() {
                read.forbidden.push(term(each, "podAntiAffinity")?);
            }
            for each in far.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let term = term(&each.pod_affinity_term, "podAntiAffinity")?;
                read.preferred.push((each.weight.saturating_neg(), term));
            }
        }
        Ok(read)
    }
}

fn read_term(
    term: &PodAffinityTerm,
    namespace: &str,
    labels: Option<&Labels>,
) -> Result<Arc<Term>, String> {
    let mut selector = term.label_selector.clone();
    if let Some(selector) = &mut selector {
        also_like(selector, term.match_label_keys.as_deref(), labels, "In");
        also_like(selector, term.mismatch_label_keys.as_deref(), labels, "NotIn");
    }
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace.to_owned());
    }
    let pods = PodSelector {
        namespaces,
        by_label: read_selector(term.namespace_selector.as_ref(), "namespaceSelector")?,
        pods: read_selector(selector.as_ref(), "labelSelector")?,
    };
    if term.topology_key.is_empty() {
        return Err("topologyKey: must not be empty".to_owned());
    }
    Ok(Arc::new(Term { pods, topology_key: term.topology_key.as_str().into() }))
}

fn read_selector(
    selector: Option<&LabelSelector>,
    field: &str,
) -> Result<Option<Selector>, String> {
    let wrong = |cause: api::Cause| format!("{field}.{} {}", cause.field, cause.reason);
    selector.map(|selector| Selector::new(selector).map_err(wrong)).transpose()
}

/// Adds to a selector that the pod's own value of each of the labels is wanted, or is not.
fn also_like(
    selector: &mut LabelSelector,
    keys: Option<&[String]>,
    labels: Option<&Labels>,
    operator: &str,
) {
    for key in keys.unwrap_or_default() {
        let Some(value) = labels.and_then(|labels| labels.get(key)) else { continue };
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
    }
}

/// How evenly pods are to be spread over the values of a node label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpreadRule {
    /// The pods that are counted.
    pub(crate) pods: Arc<PodSelector>,
    /// Whether the pod itself is one of those.
    pub(crate) counts_itself: bool,
    pub(crate) topology_key: Arc<str>,
    /// By how many pods a part of the topology may be ahead of the one with the fewest.
    pub(crate) max_skew: i64,
    /// With fewer parts than this the fewest count as none.
    pub(crate) min_domains: usize,
    /// Whether only nodes count that the pod's node selector and affinity allow.
    pub(crate) honors_node_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates.
    pub(crate) honors_taints: bool,
    /// Whether the pod would rather wait than break the rule.
    pub(crate) required: bool,
}

impl SpreadRule {
    /// Reads the rules of a pod in that namespace with these labels.
    ///
    /// # Errors
    /// What is wrong, beginning with the field.
    pub(crate) fn read_all(
        spec: &PodSpec,
        namespace: &str,
        labels: Option<&Labels>,
    ) -> Result<Vec<Self>, String> {
        let rules = spec.topology_spread_constraints.iter().flatten().enumerate();
        rules
            .map(|(i, rule)| {
                read_rule(rule, namespace, labels)
                    .map_err(|error| format!("spec.topologySpreadConstraints[{i}].{error}"))
            })
            .collect()
    }
}

fn read_rule(
    rule: &TopologySpreadConstraint,
    namespace: &str,
    labels: Option<&Labels>,
) -> Result<SpreadRule, String> {
    let mut selector = rule.label_selector.clone();
    if let Some(selector) = &mut selector {
        also_like(selector, rule.match_label_keys.as_deref(), labels, "In");
    }
    let pods = PodSelector {
        namespaces: [namespace.to_owned()].into(),
        by_label: None,
        pods: read_selector(selector.as_ref(), "labelSelector")?,
    };
    if rule.topology_key.is_empty() {
        return Err("topologyKey: must not be empty".to_owned());
    }
    if rule.max_skew <= 0 {
        return Err("maxSkew: must be above 0".to_owned());
    }
    let required = match rule.when_unsatisfiable.as_str() {
        "DoNotSchedule" => true,
        "ScheduleAnyway" => false,
        _ => return Err("whenUnsatisfiable: must be DoNotSchedule or ScheduleAnyway".to_owned()),
    };
    Ok(SpreadRule {
        counts_itself: pods.matches(namespace, labels),
        pods: Arc::new(pods),
        topology_key: rule.topology_key.as_str().into(),
        max_skew: rule.max_skew.into(),
        min_domains: rule.min_domains.and_then(|min| usize::try_from(min).ok()).unwrap_or(1),
        honors_node_affinity: rule.node_affinity_policy.as_deref() != Some("Ignore"),
        honors_taints: rule.node_taints_policy.as_deref() == Some("Honor"),
        required,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::{Value, json};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn near(term: Value) -> Result<PodAffinity, String> {
        let affinity = json!({
            "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] }
        });
        let affinity: Affinity = serde_json::from_value(affinity).unwrap();
        PodAffinity::read(&affinity, "here", Some(&labels(&[("app", "web"), ("v", "2")])))
    }

    #[test]
    fn which_pods_a_term_speaks_of() {
        let web = json!({ "matchLabels": { "app": "web" } });
        let term = |extra: Value| {
            let mut term = json!({ "topologyKey": "zone", "labelSelector": web });
            term.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            term
        };
        // The term; whether it matches web/here, web/there, db/here, web v=2/here.
        let rows = [
            (term(json!({})), [true, false, false, true]),
            (term(json!({ "namespaces": ["there"] })), [false, true, false, false]),
            (term(json!({ "namespaceSelector": {} })), [true, true, false, true]),
            (
                term(
                    json!({ "namespaceSelector": { "matchLabels": { NAMESPACE_LABEL: "there" } } }),
                ),
                [false, true, false, false],
            ),
            (term(json!({ "labelSelector": {} })), [true, false, true, true]),
            (term(json!({ "labelSelector": null })), [false; 4]),
            (term(json!({ "matchLabelKeys": ["v", "none"] })), [false, false, false, true]),
            (term(json!({ "mismatchLabelKeys": ["v"] })), [true, false, false, false]),
        ];
        let web = labels(&[("app", "web")]);
        let (db, web2) = (labels(&[("app", "db")]), labels(&[("app", "web"), ("v", "2")]));
        for (term, expected) in rows {
            let read = near(term.clone()).unwrap();
            let pods = &read.required[0].pods;
            let found = [("here", &web), ("there", &web), ("here", &db), ("here", &web2)]
                .map(|(namespace, labels)| pods.matches(namespace, Some(labels)));
            assert_eq!(found, expected, "{term}");
        }
    }

    #[test]
    fn the_same_words_are_the_same_term() {
        let term =
            json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "a": "b" } } });
        assert_eq!(near(term.clone()).unwrap(), near(term).unwrap());
    }

    #[test]
    fn nonsense_names_its_field() {
        let wrong = json!({ "topologyKey": "", "labelSelector": {} });
        assert_eq!(
            near(wrong).unwrap_err(),
            "spec.affinity.podAffinity.topologyKey: must not be empty"
        );
        let wrong = json!({
            "topologyKey": "zone",
            "labelSelector": { "matchExpressions": [{ "key": "a", "operator": "Like" }] },
        });
        assert_eq!(
            near(wrong).unwrap_err(),
            "spec.affinity.podAffinity.labelSelector.matchExpressions[0].operator must be In, NotIn, Exists or DoesNotExist"
        );
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [],
            "topologySpreadConstraints": [{ "maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule" }],
        }))
        .unwrap();
        assert_eq!(
            SpreadRule::read_all(&spec, "here", None).unwrap_err(),
            "spec.topologySpreadConstraints[0].maxSkew: must be above 0"
        );
    }

    #[test]
    fn a_rule_for_spreading() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [],
            "topologySpreadConstraints": [{
                "maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": { "app": "web" } }, "minDomains": 3,
                "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor",
            }],
        }))
        .unwrap();
        let web = labels(&[("app", "web")]);
        let rule = SpreadRule::read_all(&spec, "here", Some(&web)).unwrap().remove(0);
        assert!(rule.counts_itself && !rule.required && rule.honors_taints);
        assert!(!rule.honors_node_affinity);
        assert_eq!((rule.max_skew, rule.min_domains, &*rule.topology_key), (2, 3, "zone"));
        assert!(!SpreadRule::read_all(&spec, "here", None).unwrap()[0].counts_itself);
    }
}
