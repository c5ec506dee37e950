//! Label selectors, made ready for matching.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::Cause;

/// A label selector: `matchLabels` and `matchExpressions`, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Reads Kubernetes' form. A selector without requirements matches everything.
    ///
    /// # Errors
    /// The first requirement that makes no sense, with its field below the selector's own.
    pub fn new(selector: &LabelSelector) -> Result<Self, Cause> {
        let mut requirements: Vec<Requirement> =
            selector.match_labels.iter().flatten().map(equals).collect();
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let values = expression.values.clone().unwrap_or_default();
            let wrong = |field: &str, reason: &str| Cause {
                field: format!("matchExpressions[{i}].{field}"),
                reason: reason.to_owned(),
            };
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                ("In" | "NotIn", true) => {
                    return Err(wrong("values", "must not be empty for In and NotIn"));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(wrong("values", "must be empty for Exists and DoesNotExist"));
                }
                _ => {
                    return Err(wrong("operator", "must be In, NotIn, Exists or DoesNotExist"));
                }
            };
            requirements.push(Requirement { key: expression.key.clone(), operator });
        }
        Ok(Self(requirements))
    }

    /// A selector of labels that must all be there with these values.
    pub fn labels(labels: &BTreeMap<String, String>) -> Self {
        Self(labels.iter().map(equals).collect())
    }

    /// Whether the selector has no requirement and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A label, key and value, without which nothing matches, if there is one: something to find
    /// selectors by, for those who have many.
    pub fn needed_label(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) => match values.as_slice() {
                [value] => Some((requirement.key.as_str(), value.as_str())),
                _ => None,
            },
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        })
    }

    /// Whether labels satisfy every requirement. As in Kubernetes, NotIn holds for a label that is
    /// not there.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key));
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

fn equals((key, value): (&String, &String)) -> Requirement {
    Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        let values = values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "tier".into(),
                operator: operator.into(),
                values: (!values.is_empty()).then_some(values),
            }]),
            match_labels: None,
        }
    }

    #[test]
    fn every_operator() {
        let web = labels(&[("tier", "web")]);
        let db = labels(&[("tier", "db")]);
        let none = labels(&[]);
        let cases = [
            (expression("In", &["web", "api"]), [true, false, false]),
            (expression("NotIn", &["web", "api"]), [false, true, true]),
            (expression("Exists", &[]), [true, true, false]),
            (expression("DoesNotExist", &[]), [false, false, true]),
            (LabelSelector::default(), [true, true, true]),
            (
                LabelSelector { match_labels: Some(web.clone()), match_expressions: None },
                [true, false, false],
            ),
        ];
        for (selector, expected) in cases {
            let ready = Selector::new(&selector).unwrap();
            let found = [&web, &db, &none].map(|labels| ready.matches(Some(labels)));
            assert_eq!(found, expected, "{selector:?}");
        }
    }

    #[test]
    fn labels_and_expressions_must_both_hold() {
        let mut selector = expression("Exists", &[]);
        selector.match_labels = Some(labels(&[("app", "nginx")]));
        let selector = Selector::new(&selector).unwrap();
        assert!(selector.matches(Some(&labels(&[("app", "nginx"), ("tier", "web")]))));
        assert!(!selector.matches(Some(&labels(&[("app", "nginx")]))));
        assert!(!selector.matches(None));
    }

    #[test]
    fn a_label_that_is_needed() {
        for (selector, needed) in [
            (expression("In", &["web"]), Some(("tier", "web"))),
            (expression("In", &["web", "api"]), None),
            (expression("NotIn", &["web"]), None),
            (expression("Exists", &[]), None),
        ] {
            assert_eq!(Selector::new(&selector).unwrap().needed_label(), needed, "{selector:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_its_field() {
        for (selector, field) in [
            (expression("In", &[]), "matchExpressions[0].values"),
            (expression("Exists", &["x"]), "matchExpressions[0].values"),
            (expression("Like", &["x"]), "matchExpressions[0].operator"),
        ] {
            assert_eq!(Selector::new(&selector).unwrap_err().field, field);
        }
    }
}
