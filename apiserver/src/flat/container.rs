//! The part that a pod's spec and a ReplicaSet's template share: what runs in the one container that
//! the flat API knows.

use std::collections::BTreeMap;

use api::Cause;
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::rules;

/// The name of a flat pod's only container.
const CONTAINER_NAME: &str = "main";
/// Images that are there are used, whatever their tag: a pod says otherwise through Kubernetes' own
/// field.
const PULL_POLICY: &str = "IfNotPresent";
/// Containers that end are started again, as in Kubernetes when nothing is said.
const RESTART_POLICY: &str = "Always";

/// What runs: image, command and environment, as a flat form says it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Runs {
    pub(super) image: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) env: Option<BTreeMap<String, String>>,
}

impl Runs {
    /// Checks the fields, which are below `prefix` (such as `template.`), and makes a pod's spec of
    /// them.
    pub(super) fn into_spec(self, prefix: &str) -> Result<PodSpec, Cause> {
        let image = rules::image(self.image, &format!("{prefix}image"))?;
        let command = self.command.unwrap_or_default();
        rules::command(&command, &format!("{prefix}command"))?;
        let env = self.env.unwrap_or_default();
        rules::env(&env, &format!("{prefix}env"))?;
        let variables = env
            .into_iter()
            .map(|(name, value)| EnvVar { name, value: Some(value), value_from: None })
            .collect::<Vec<_>>();
        Ok(PodSpec {
            containers: vec![Container {
                name: CONTAINER_NAME.to_owned(),
                image: Some(image),
                image_pull_policy: Some(PULL_POLICY.to_owned()),
                command: (!command.is_empty()).then_some(command),
                env: (!variables.is_empty()).then_some(variables),
                ..Container::default()
            }],
            restart_policy: Some(RESTART_POLICY.to_owned()),
            ..PodSpec::default()
        })
    }

    /// What the first container of `spec` runs.
    pub(super) fn of(spec: Option<&PodSpec>) -> Self {
        let Some(container) = spec.and_then(|spec| spec.containers.first()) else {
            return Self::default();
        };
        Self {
            image: container.image.clone(),
            command: container.command.clone(),
            env: container.env.as_ref().map(|variables| {
                variables
                    .iter()
                    .filter(|variable| variable.value_from.is_none())
                    .map(|variable| {
                        (variable.name.clone(), variable.value.clone().unwrap_or_default())
                    })
                    .collect()
            }),
        }
    }
}

/// Gives the first container of `stored` the image, command and environment of `wanted`, keeping all
/// that a flat form cannot say.
pub(super) fn replace(stored: &mut PodSpec, wanted: PodSpec) {
    let Some(new) = wanted.containers.into_iter().next() else { return };
    let Some(old) = stored.containers.first_mut() else {
        stored.containers.push(new);
        return;
    };
    old.image = new.image;
    old.command = new.command;
    let mut variables = new.env.unwrap_or_default();
    let taken_from_elsewhere = old.env.take().into_iter().flatten().filter(|variable| {
        variable.value_from.is_some() && variables.iter().all(|new| new.name != variable.name)
    });
    let kept: Vec<_> = taken_from_elsewhere.collect();
    variables.extend(kept);
    old.env = (!variables.is_empty()).then_some(variables);
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{EnvVarSource, Probe};

    fn runs(image: &str, command: &[&str], env: &[(&str, &str)]) -> Runs {
        Runs {
            image: Some(image.to_owned()),
            command: (!command.is_empty())
                .then(|| command.iter().map(ToString::to_string).collect()),
            env: (!env.is_empty())
                .then(|| env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (image, command, env) in [
            ("nginx:latest", &[][..], &[][..]),
            ("busybox", &["sleep", "1000"][..], &[("A", "1"), ("B", "")][..]),
        ] {
            let spec = runs(image, command, env).into_spec("").unwrap();
            assert_eq!(Runs::of(Some(&spec)), runs(image, command, env));
        }
        assert_eq!(Runs::of(None), Runs::default());
        assert_eq!(Runs::of(Some(&PodSpec::default())), Runs::default());
    }

    #[test]
    fn bad_fields_are_named_below_their_prefix() {
        let field = |runs: Runs| runs.into_spec("template.").unwrap_err().field;
        assert_eq!(field(Runs::default()), "template.image");
        assert_eq!(field(runs("a b", &[], &[])), "template.image");
        assert_eq!(field(runs("a", &["\0"], &[])), "template.command[0]");
        assert_eq!(field(runs("a", &[], &[("A=", "")])), "template.env.A=");
    }

    #[test]
    fn replacing_keeps_what_a_flat_form_cannot_say() {
        let mut stored = runs("old", &["x"], &[("A", "1")]).into_spec("").unwrap();
        let container = &mut stored.containers[0];
        container.liveness_probe = Some(Probe::default());
        container.env.as_mut().unwrap().push(EnvVar {
            name: "SECRET".into(),
            value: None,
            value_from: Some(EnvVarSource::default()),
        });
        stored.node_name = Some("node-1".into());

        replace(&mut stored, runs("new", &[], &[("B", "2")]).into_spec("").unwrap());

        assert_eq!(Runs::of(Some(&stored)), runs("new", &[], &[("B", "2")]));
        assert_eq!(stored.node_name.as_deref(), Some("node-1"));
        let container = &stored.containers[0];
        assert!(container.liveness_probe.is_some());
        assert!(container.env.as_ref().unwrap().iter().any(|v| v.name == "SECRET"));
    }
}
