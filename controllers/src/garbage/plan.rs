//! What becomes of an object when its owners go.
//!
//! | owners | object |
//! | --- | --- |
//! | none named | stays |
//! | all there | stays |
//! | some there, some gone | stays, without the references to those that are gone |
//! | all gone | is deleted |
//!
//! An owner is gone when nothing is stored under its name, or something with another uid is. An
//! owner of a kind that is not known here counts as there: not knowing is no reason to delete.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// What to do about an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Delete it.
    Delete,
    /// Take out the references to the owners with these uids.
    Unlink(Vec<String>),
}

/// Decides for an object, given which of its owners are `gone`.
pub(crate) fn plan(object: &ObjectMeta, gone: impl Fn(&OwnerReference) -> bool) -> Verdict {
    let owners = object.owner_references.as_deref().unwrap_or_default();
    if owners.is_empty() || object.deletion_timestamp.is_some() {
        return Verdict::Keep;
    }
    let (gone, there): (Vec<_>, Vec<_>) = owners.iter().partition(|owner| gone(owner));
    match (gone.is_empty(), there.is_empty()) {
        (true, _) => Verdict::Keep,
        (false, true) => Verdict::Delete,
        (false, false) => {
            Verdict::Unlink(gone.into_iter().map(|owner| owner.uid.clone()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    #[test]
    fn an_object_lives_as_long_as_one_of_its_owners() {
        let owned =
            |owners: &[&str]| owners.iter().fold(pod("a"), |pod, owner| pod.owned_by(owner));
        let rows = [
            (owned(&[]), vec![], Verdict::Keep),
            (owned(&["x"]), vec![], Verdict::Keep),
            (owned(&["x"]), vec!["x"], Verdict::Delete),
            (owned(&["x"]).terminating(), vec!["x"], Verdict::Keep),
            (owned(&["x", "y"]), vec!["x"], Verdict::Unlink(vec!["x".into()])),
            (owned(&["x", "y"]), vec!["x", "y"], Verdict::Delete),
            (owned(&["x", "y"]), vec![], Verdict::Keep),
        ];
        for (pod, gone, expected) in rows {
            let pod = pod.build();
            let verdict = plan(&pod.metadata, |owner| gone.contains(&owner.uid.as_str()));
            assert_eq!(verdict, expected, "{:?}", pod.metadata.owner_references);
        }
    }
}
