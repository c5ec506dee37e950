//! What the garbage collector does about an object: Kubernetes' rules.
//!
//! An object that is being deleted, by its finalizers:
//!
//! | finalizer | dependents | |
//! | --- | --- | --- |
//! | `orphan` | any | none of them is to refer to it any more; then the finalizer goes |
//! | `foregroundDeletion` | some block its deletion | they are deleted |
//! | `foregroundDeletion` | none does | the finalizer goes |
//! | neither | any | nothing: they are looked at once it is gone |
//!
//! Another one, by its owners, each of which is there, *waiting* for its dependents to go, or gone:
//!
//! | there | waiting | gone | |
//! | --- | --- | --- | --- |
//! | some or none | none | none | stays |
//! | some | some, here or there | | stays, without the references to those |
//! | none | some | some or none | is deleted in the foreground if it has dependents itself, else at once |
//! | none | none | some | is deleted: what becomes of its dependents its own finalizers say |
//!
//! An owner is gone when nothing is stored under its name, or something with another uid is. One of
//! a kind that is not known here counts as there: not knowing is no reason to delete.

use api::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER, Propagation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// How an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    There,
    /// It is being deleted in the foreground.
    Waiting,
    Gone,
}

/// What to do about an object that is not being deleted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Take out the references to the owners with these uids.
    Unlink(Vec<String>),
    /// Delete it, and its dependents like that.
    Delete(Option<Propagation>),
}

/// What an object that is being deleted waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Nothing that the collector does.
    Not,
    /// That no dependent refers to it.
    Orphaning,
    /// That no dependent blocks its deletion.
    Foreground,
}

/// What an object waits for.
pub(crate) fn waits(object: &ObjectMeta) -> Waits {
    let has = |finalizer: &str| object.finalizers.iter().flatten().any(|name| name == finalizer);
    if object.deletion_timestamp.is_none() {
        Waits::Not
    } else if has(ORPHAN_FINALIZER) {
        Waits::Orphaning
    } else if has(FOREGROUND_FINALIZER) {
        Waits::Foreground
    } else {
        Waits::Not
    }
}

/// Whether an object keeps an owner that waits for its dependents from going.
pub(crate) fn blocks(object: &ObjectMeta, owner: &str) -> bool {
    let mut owners = object.owner_references.iter().flatten();
    owners.any(|known| known.uid == owner && known.block_owner_deletion == Some(true))
}

/// Decides for an object, given how its owners are, and whether it has dependents.
pub(crate) fn plan(
    object: &ObjectMeta,
    standing: impl Fn(&OwnerReference) -> Standing,
    has_dependents: bool,
) -> Verdict {
    let owners = object.owner_references.as_deref().unwrap_or_default();
    if owners.is_empty() || object.deletion_timestamp.is_some() {
        return Verdict::Keep;
    }
    let count = |wanted: Standing| owners.iter().filter(|owner| standing(owner) == wanted).count();
    match (count(Standing::There), count(Standing::Waiting), count(Standing::Gone)) {
        (_, 0, 0) => Verdict::Keep,
        (0, 0, _) => Verdict::Delete(None),
        (0, _, _) => Verdict::Delete(has_dependents.then_some(Propagation::Foreground)),
        (_, _, _) => {
            let lost = owners.iter().filter(|owner| standing(owner) != Standing::There);
            Verdict::Unlink(lost.map(|owner| owner.uid.clone()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    #[test]
    fn an_object_lives_as_long_as_one_of_its_owners() {
        let foreground = Verdict::Delete(Some(Propagation::Foreground));
        let unlink = |uids: &[&str]| Verdict::Unlink(uids.iter().map(|&uid| uid.into()).collect());
        // The uids begin with how the owners are: t(here), w(aiting), g(one).
        for (owners, has_dependents, expected) in [
            (&[][..], false, Verdict::Keep),
            (&["t"], false, Verdict::Keep),
            (&["t1", "t2"], true, Verdict::Keep),
            (&["g"], false, Verdict::Delete(None)),
            (&["g1", "g2"], true, Verdict::Delete(None)),
            (&["t", "g"], false, unlink(&["g"])),
            (&["t", "w"], false, unlink(&["w"])),
            (&["g", "t", "w"], true, unlink(&["g", "w"])),
            (&["w"], false, Verdict::Delete(None)),
            (&["w"], true, foreground),
            (&["w", "g"], false, Verdict::Delete(None)),
        ] {
            let object = owners.iter().fold(pod("a"), |pod, owner| pod.owned_by(owner)).build();
            let standing = |owner: &OwnerReference| match &owner.uid[..1] {
                "t" => Standing::There,
                "w" => Standing::Waiting,
                _ => Standing::Gone,
            };
            let verdict = plan(&object.metadata, standing, has_dependents);
            assert_eq!(verdict, expected, "{owners:?} {has_dependents}");
        }
        let going = pod("a").owned_by("g").terminating().build();
        assert_eq!(plan(&going.metadata, |_| Standing::Gone, false), Verdict::Keep);
    }

    #[test]
    fn what_an_object_that_is_being_deleted_waits_for() {
        let with = |going: bool, finalizers: &[&str]| {
            let pod = pod("a");
            let pod = if going { pod.terminating() } else { pod };
            let mut metadata = pod.build().metadata.clone();
            metadata.finalizers = Some(finalizers.iter().map(|&name| name.into()).collect());
            metadata
        };
        for (going, finalizers, expected) in [
            (true, &[][..], Waits::Not),
            (true, &["example.com/hold"], Waits::Not),
            (true, &["orphan"], Waits::Orphaning),
            (true, &["foregroundDeletion"], Waits::Foreground),
            (false, &["orphan"], Waits::Not),
            (false, &["foregroundDeletion"], Waits::Not),
        ] {
            assert_eq!(waits(&with(going, finalizers)), expected, "{going} {finalizers:?}");
        }
    }

    #[test]
    fn only_a_dependent_that_says_so_blocks_its_owner() {
        let mut metadata = pod("a").owned_by("x").owned_by("y").build().metadata.clone();
        let owners = metadata.owner_references.as_mut().unwrap();
        owners[0].block_owner_deletion = Some(true);
        owners[1].block_owner_deletion = None;
        let found = ["x", "y", "z"].map(|owner| blocks(&metadata, owner));
        assert_eq!(found, [true, false, false]);
    }
}
