//! What creating, updating and deleting mean, the same for every kind, as pure functions.
//!
//! Deletion, as in Kubernetes: an object without finalizers that nobody has to wind up goes at
//! once. Otherwise it gets a `deletionTimestamp` and stays: a pod bound to a node until its
//! kubelet has stopped its containers and finishes the deletion, which is a deletion without grace;
//! an object with finalizers until an update removes the last of them. What becomes of its
//! dependents is a matter of finalizers, too: see [`Propagation`](crate::Propagation).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::taints::DefaultTolerations;
use crate::validation::{self, check};
use crate::{DeleteOptions, Error, Invalid, Object};

/// What becomes of an object that is in the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step<K> {
    /// It stays as it is.
    Keep,
    /// It is replaced.
    Write(K),
    /// It goes.
    Remove,
}

/// Objects carry times in whole seconds.
fn stamp(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// An object as it is created, out of what a client sent.
pub(crate) fn create<K: Object>(
    mut object: K,
    uid: String,
    now: Timestamp,
    tolerations: DefaultTolerations,
) -> Result<K, Invalid> {
    let metadata = object.metadata_mut();
    metadata.uid = Some(uid);
    metadata.creation_timestamp = Some(stamp(now));
    metadata.generation = K::kind().has_generation.then_some(1);
    metadata.resource_version = None;
    metadata.deletion_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
    object.make_new(tolerations);
    object.set_defaults();
    validate(&object, None)?;
    Ok(object)
}

/// What an update makes of an object: everything but the status and what only the store sets.
pub(crate) fn update<K: Object>(before: &K, mut desired: K) -> Result<Step<K>, Invalid> {
    let fixed = before.metadata().clone();
    let metadata = desired.metadata_mut();
    metadata.name = fixed.name;
    metadata.generate_name = fixed.generate_name;
    metadata.namespace = fixed.namespace;
    metadata.uid = fixed.uid;
    metadata.creation_timestamp = fixed.creation_timestamp;
    metadata.deletion_timestamp = fixed.deletion_timestamp;
    metadata.deletion_grace_period_seconds = fixed.deletion_grace_period_seconds;
    metadata.generation = fixed.generation;
    metadata.resource_version = fixed.resource_version;
    metadata.finalizers.take_if(|finalizers| finalizers.is_empty());
    desired.take_status(before);
    desired.set_defaults();
    if K::kind().has_generation && !desired.same_spec(before) {
        bump_generation(&mut desired);
    }
    if desired == *before {
        return Ok(Step::Keep);
    }
    validate(&desired, Some(before))?;
    Ok(if may_go(&desired) { Step::Remove } else { Step::Write(desired) })
}

/// What a status update makes of an object: the status alone.
pub(crate) fn update_status<K: Object>(before: &K, desired: &K) -> Step<K> {
    let mut after = before.clone();
    after.take_status(desired);
    if after == *before { Step::Keep } else { Step::Write(after) }
}

/// What a report of whoever does the work makes of an object: its status, and with it the
/// annotations, which tell what the status has no field for.
pub(crate) fn report<K: Object>(before: &K, desired: &K) -> Step<K> {
    let mut after = before.clone();
    after.take_status(desired);
    after.metadata_mut().annotations.clone_from(&desired.metadata().annotations);
    if after == *before { Step::Keep } else { Step::Write(after) }
}

/// What a request for deletion makes of an object whose preconditions hold.
pub(crate) fn delete<K: Object>(before: &K, options: &DeleteOptions, now: Timestamp) -> Step<K> {
    let grace = match (before.grace_seconds(), options.grace_seconds) {
        (None, _) => 0,
        (Some(default), asked) => asked.unwrap_or(default).max(0),
    };
    let finalizers = before.metadata().finalizers.as_deref().unwrap_or_default();
    let finalizers = match options.propagation {
        Some(propagation) => propagation.finalizers(finalizers),
        None => finalizers.to_vec(),
    };
    if grace == 0 && finalizers.is_empty() {
        return Step::Remove;
    }
    let mut after = before.clone();
    after.metadata_mut().finalizers = (!finalizers.is_empty()).then_some(finalizers);
    // A second request may shorten the grace, and never lengthens it.
    let granted = before.metadata().deletion_grace_period_seconds;
    if before.is_deleting() && granted.is_none_or(|granted| granted <= grace) {
        return if after == *before {
            Step::Keep
        } else if may_go(&after) {
            Step::Remove
        } else {
            Step::Write(after)
        };
    }
    let until = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    let metadata = after.metadata_mut();
    metadata.deletion_timestamp = Some(stamp(until));
    metadata.deletion_grace_period_seconds = Some(grace);
    if K::kind().has_generation {
        bump_generation(&mut after);
    }
    Step::Write(after)
}

/// Whether an object that is being deleted has nothing left that holds it.
fn may_go<K: Object>(object: &K) -> bool {
    let metadata = object.metadata();
    object.is_deleting()
        && metadata.finalizers.is_none()
        && metadata.deletion_grace_period_seconds.unwrap_or(0) == 0
}

fn bump_generation<K: Object>(object: &mut K) {
    let generation = &mut object.metadata_mut().generation;
    *generation = Some(generation.unwrap_or(0) + 1);
}

pub(crate) fn validate<K: Object>(object: &K, before: Option<&K>) -> Result<(), Invalid> {
    let mut causes = Vec::new();
    validation::metadata(object.metadata(), K::kind().namespaced, &mut causes);
    object.validate(&mut causes);
    if let Some(before) = before {
        object.validate_change(before, &mut causes);
        let old = before.metadata().finalizers.as_deref().unwrap_or_default();
        let mut new = object.metadata().finalizers.iter().flatten();
        if before.is_deleting() && new.any(|finalizer| !old.contains(finalizer)) {
            let rule = "must not be added to once the object is being deleted";
            check(&mut causes, || "metadata.finalizers".into(), Err(rule));
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Invalid { kind: K::kind().kind, name: object.name().to_owned(), causes })
}

/// Whether an object is still the one that a request speaks of.
pub(crate) fn check_preconditions<K: Object>(
    object: &K,
    uid: Option<&str>,
    revision: Option<i64>,
) -> Result<(), Error> {
    let conflict =
        |reason: String| Err(Error::Conflict { kind: K::kind().plural, key: object.key(), reason });
    if let Some(uid) = uid.filter(|uid| *uid != object.uid()) {
        return conflict(format!("its uid is {}, not {uid}", object.uid()));
    }
    if let Some(revision) = revision.filter(|revision| *revision != object.revision()) {
        let now = object.revision();
        return conflict(format!("its resourceVersion is {now}, not {revision}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, Event, Pod, PodSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::Propagation;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    fn pod() -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some("web".into()),
                namespace: Some("default".into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "main".into(),
                    image: Some("nginx".into()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    /// A pod as it is in the store.
    fn stored(change: impl FnOnce(&mut Pod)) -> Pod {
        let mut pod = create(pod(), "uid-1".into(), now(), DefaultTolerations::default()).unwrap();
        pod.metadata.resource_version = Some("7".into());
        change(&mut pod);
        pod
    }

    fn bound(pod: &mut Pod) {
        pod.spec.as_mut().unwrap().node_name = Some("node-1".into());
    }

    fn phase(pod: &mut Pod, phase: &str) {
        pod.status.as_mut().unwrap().phase = Some(phase.into());
    }

    fn written(step: Step<Pod>) -> Pod {
        match step {
            Step::Write(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_object_gets_what_only_the_store_gives() {
        let mut sent = pod();
        sent.metadata.resource_version = Some("3".into());
        sent.metadata.uid = Some("mine".into());
        sent.metadata.generation = Some(9);
        sent.metadata.deletion_timestamp = Some(Time(now()));
        let created = create(sent, "uid-1".into(), now(), DefaultTolerations::default()).unwrap();
        assert_eq!(created.uid(), "uid-1");
        assert_eq!(created.metadata.generation, Some(1));
        assert_eq!(created.metadata.resource_version, None);
        assert_eq!(created.metadata.deletion_timestamp, None);
        let created_at = created.metadata.creation_timestamp.unwrap().0;
        assert_eq!(created_at.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(created.spec.unwrap().restart_policy.as_deref(), Some("Always"));
        assert_eq!(created.status.unwrap().phase.as_deref(), Some("Pending"));

        let event = Event { metadata: pod().metadata, ..Event::default() };
        let created = create(event, "uid-2".into(), now(), DefaultTolerations::default());
        assert_eq!(created.unwrap().metadata.generation, None);
    }

    #[test]
    fn an_update_counts_changes_of_the_spec_alone() {
        let before = stored(|_| ());
        assert_eq!(update(&before, before.clone()).unwrap(), Step::Keep);

        let mut labelled = before.clone();
        labelled.metadata.labels = Some([("app".into(), "web".into())].into());
        let after = written(update(&before, labelled).unwrap());
        assert_eq!(after.metadata.generation, Some(1));

        let mut changed = before.clone();
        changed.spec.as_mut().unwrap().containers[0].image = Some("nginx:2".into());
        let after = written(update(&before, changed).unwrap());
        assert_eq!(after.metadata.generation, Some(2));
    }

    #[test]
    fn an_update_leaves_the_status_and_what_the_store_gave() {
        let before = stored(|_| ());
        let mut desired = before.clone();
        phase(&mut desired, "Running");
        desired.metadata = pod().metadata;
        desired.metadata.uid = Some("other".into());
        assert_eq!(update(&before, desired).unwrap(), Step::Keep);
    }

    #[test]
    fn a_status_update_takes_the_status_alone() {
        let before = stored(|_| ());
        let mut desired = before.clone();
        bound(&mut desired);
        assert_eq!(update_status(&before, &desired), Step::Keep);
        phase(&mut desired, "Running");
        let after = written(update_status(&before, &desired));
        let expected = stored(|pod| phase(pod, "Running"));
        assert_eq!(after, expected);
    }

    #[test]
    fn a_bound_pod_stays_bound() {
        let before = stored(bound);
        let elsewhere = stored(|pod| pod.spec.as_mut().unwrap().node_name = Some("node-2".into()));
        let error = update(&before, elsewhere).unwrap_err();
        assert_eq!(error.causes[0].field, "spec.nodeName");
    }

    #[test]
    fn what_deletion_does() {
        fn grace(seconds: Option<i64>) -> DeleteOptions {
            DeleteOptions { grace_seconds: seconds, ..DeleteOptions::default() }
        }
        // The pod, the grace asked for, and the grace granted: none when it goes at once.
        type Case = (&'static str, fn(&mut Pod), Option<i64>, Option<i64>);
        let cases: [Case; 9] = [
            ("unbound", |_| (), None, None),
            ("unbound, with grace", |_| (), Some(60), None),
            ("bound", bound, None, Some(30)),
            ("bound, with grace", bound, Some(5), Some(5)),
            ("bound, negative grace", bound, Some(-1), None),
            ("bound, by force", bound, Some(0), None),
            (
                "bound, with a grace of its own",
                |pod| {
                    bound(pod);
                    pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(3);
                },
                None,
                Some(3),
            ),
            (
                "bound, ended",
                |pod| {
                    bound(pod);
                    phase(pod, "Succeeded");
                },
                None,
                None,
            ),
            (
                "held by a finalizer",
                |pod| pod.metadata.finalizers = Some(vec!["example.com/hold".into()]),
                None,
                Some(0),
            ),
        ];
        for (name, change, asked, granted) in cases {
            let before = stored(change);
            let step = delete(&before, &grace(asked), now());
            let Some(granted) = granted else {
                assert_eq!(step, Step::Remove, "{name}");
                continue;
            };
            let after = written(step);
            assert_eq!(after.metadata.deletion_grace_period_seconds, Some(granted), "{name}");
            let until = after.metadata.deletion_timestamp.as_ref().unwrap().0;
            let expected = now().as_second() + granted;
            assert_eq!(until.as_second(), expected, "{name}");
            assert_eq!(after.metadata.generation, Some(2), "{name}");
        }
    }

    #[test]
    fn what_is_to_become_of_dependents_is_kept_in_the_finalizers() {
        let ask = |propagation| DeleteOptions { propagation, ..DeleteOptions::default() };
        let finalizers = |pod: &Pod| pod.metadata.finalizers.clone().unwrap_or_default();
        let free = stored(|_| ());
        assert_eq!(delete(&free, &ask(Some(Propagation::Background)), now()), Step::Remove);
        let orphaned = written(delete(&free, &ask(Some(Propagation::Orphan)), now()));
        assert!(orphaned.is_deleting());
        assert_eq!(finalizers(&orphaned), ["orphan"]);
        assert_eq!(delete(&orphaned, &ask(None), now()), Step::Keep);

        // Whoever asks again may change their mind.
        let foreground = ask(Some(Propagation::Foreground));
        let waiting = written(delete(&orphaned, &foreground, now()));
        assert_eq!(finalizers(&waiting), ["foregroundDeletion"]);
        assert_eq!(delete(&waiting, &foreground, now()), Step::Keep);
        assert_eq!(delete(&waiting, &ask(Some(Propagation::Background)), now()), Step::Remove);

        // The containers still have to stop.
        let stopping = written(delete(&stored(bound), &foreground, now()));
        let background = ask(Some(Propagation::Background));
        let stopping = written(delete(&stopping, &background, now()));
        assert_eq!(finalizers(&stopping), [""; 0]);
        assert_eq!(stopping.metadata.deletion_grace_period_seconds, Some(30));
    }

    #[test]
    fn a_second_deletion_shortens_the_grace_and_never_lengthens_it() {
        let options =
            |seconds| DeleteOptions { grace_seconds: Some(seconds), ..DeleteOptions::default() };
        let deleting = written(delete(&stored(bound), &options(30), now()));
        for (asked, granted) in [(60, None), (30, None), (5, Some(5))] {
            match (delete(&deleting, &options(asked), now()), granted) {
                (Step::Keep, None) => {}
                (Step::Write(after), Some(granted)) => {
                    assert_eq!(after.metadata.deletion_grace_period_seconds, Some(granted));
                }
                (step, _) => panic!("{asked}: {step:?}"),
            }
        }
        assert_eq!(delete(&deleting, &options(0), now()), Step::Remove);
    }

    #[test]
    fn the_last_finalizer_lets_go_once_the_kubelet_has() {
        let hold = "example.com/hold".to_owned();
        let finish = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        let before = stored(|pod| {
            bound(pod);
            pod.metadata.finalizers = Some(vec![hold.clone()]);
        });
        let deleting = written(delete(&before, &DeleteOptions::default(), now()));

        // Without the finalizer the kubelet still has to stop the containers.
        let mut released = deleting.clone();
        released.metadata.finalizers = Some(Vec::new());
        let released = written(update(&deleting, released).unwrap());
        assert_eq!(delete(&released, &finish, now()), Step::Remove);

        // The other way round.
        let stopped = written(delete(&deleting, &finish, now()));
        assert_eq!(delete(&stopped, &finish, now()), Step::Keep);
        let mut released = stopped.clone();
        released.metadata.finalizers = None;
        assert_eq!(update(&stopped, released).unwrap(), Step::Remove);

        let mut held_more = stopped.clone();
        held_more.metadata.finalizers = Some(vec![hold, "example.com/more".into()]);
        let error = update(&stopped, held_more).unwrap_err();
        assert_eq!(error.causes[0].field, "metadata.finalizers");
    }

    #[test]
    fn preconditions() {
        let pod = stored(|_| ());
        assert!(check_preconditions(&pod, None, None).is_ok());
        assert!(check_preconditions(&pod, Some("uid-1"), Some(7)).is_ok());
        for (uid, revision) in [(Some("uid-2"), None), (None, Some(6))] {
            let error = check_preconditions(&pod, uid, revision).unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
        }
    }
}
