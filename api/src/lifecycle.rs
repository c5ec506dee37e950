//! What creating, updating and deleting mean, the same for every kind, as pure functions.
//!
//! Deletion, as in Kubernetes: an object without finalizers that nobody has to wind up goes at
//! once. Otherwise it gets a `deletionTimestamp` and stays: a pod bound to a node until its
//! kubelet has stopped its containers and finishes the deletion, which is a deletion without grace;
//! an object with finalizers until an update removes the last of them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

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
pub(crate) fn create<K: Object>(mut object: K, uid: String, now: Timestamp) -> Result<K, Invalid> {
    let metadata = object.metadata_mut();
    metadata.uid = Some(uid);
    metadata.creation_timestamp = Some(stamp(now));
    metadata.generation = K::kind().has_generation.then_some(1);
    metadata.resource_version = None;
    metadata.deletion_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
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
    let has_finalizers = before.metadata().finalizers.iter().flatten().next().is_some();
    if grace == 0 && !has_finalizers {
        return Step::Remove;
    }
    // A second request may shorten the grace, and never lengthens it.
    let granted = before.metadata().deletion_grace_period_seconds;
    if before.is_deleting() && granted.is_none_or(|granted| granted <= grace) {
        return Step::Keep;
    }
    let mut after = before.clone();
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

fn validate<K: Object>(object: &K, before: Option<&K>) -> Result<(), Invalid> {
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
