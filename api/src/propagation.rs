//! What becomes of the dependents of an object that is deleted, said by its finalizers: Kubernetes'
//! names and rules.
//!
//! | asked for | finalizer added | the object goes | its dependents |
//! | --- | --- | --- | --- |
//! | Background | none | at once | are deleted afterwards |
//! | Foreground | `foregroundDeletion` | after those dependents that block its deletion | are deleted before |
//! | Orphan | `orphan` | once no dependent refers to it any more | stay, without an owner |
//!
//! Without a wish the finalizers stay as they are, which mostly means Background. The garbage
//! collector, one of the controllers, does what the finalizers say and removes them.

use std::str::FromStr;

/// The finalizer of an object that waits for its dependents to go.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// The finalizer of an object that waits for its dependents to be let go.
pub const ORPHAN_FINALIZER: &str = "orphan";

/// What becomes of the dependents of an object that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
    /// They stay.
    Orphan,
}

impl Propagation {
    /// The finalizers of an object that is to be deleted so, given those that it has.
    pub(crate) fn finalizers(self, before: &[String]) -> Vec<String> {
        let ours = [FOREGROUND_FINALIZER, ORPHAN_FINALIZER];
        let others = before.iter().filter(|finalizer| !ours.contains(&finalizer.as_str()));
        let added = match self {
            Self::Background => None,
            Self::Foreground => Some(FOREGROUND_FINALIZER.to_owned()),
            Self::Orphan => Some(ORPHAN_FINALIZER.to_owned()),
        };
        others.cloned().chain(added).collect()
    }
}

impl FromStr for Propagation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "Background" => Ok(Self::Background),
            "Foreground" => Ok(Self::Foreground),
            "Orphan" => Ok(Self::Orphan),
            _ => Err("must be Background, Foreground or Orphan"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_replaces_the_one_before_and_nothing_else() {
        for (asked, before, after) in [
            ("Background", vec![], vec![]),
            ("Foreground", vec![], vec!["foregroundDeletion"]),
            ("Orphan", vec![], vec!["orphan"]),
            ("Background", vec!["orphan", "example.com/hold"], vec!["example.com/hold"]),
            (
                "Orphan",
                vec!["foregroundDeletion", "example.com/hold"],
                vec!["example.com/hold", "orphan"],
            ),
            ("Foreground", vec!["foregroundDeletion"], vec!["foregroundDeletion"]),
        ] {
            let before: Vec<String> = before.into_iter().map(str::to_owned).collect();
            let asked: Propagation = asked.parse().unwrap();
            assert_eq!(asked.finalizers(&before), after, "{asked:?} {before:?}");
        }
        assert!("foreground".parse::<Propagation>().is_err());
    }
}
