//! Why an object could not be read or written; every face turns these into its own answers.

use std::fmt;

use crate::ObjectKey;

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("{kind} {key} not found")]
    NotFound {
        /// The plural of its kind.
        kind: &'static str,
        /// Its name.
        key: ObjectKey,
    },
    /// There is an object of that name already.
    #[error("{kind} {key} already exists")]
    AlreadyExists {
        /// The plural of its kind.
        kind: &'static str,
        /// Its name.
        key: ObjectKey,
    },
    /// The object is not what the request says it is any more: read it again and decide anew.
    #[error("{kind} {key} was changed in the meantime: {reason}")]
    Conflict {
        /// The plural of its kind.
        kind: &'static str,
        /// Its name.
        key: ObjectKey,
        /// What did not match.
        reason: String,
    },
    /// The object breaks rules of its kind.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store is one of a [`Term`](crate::Term) that is over: nothing was written.
    #[error("another leader has been elected")]
    Deposed,
    /// The revision asked for is compacted, or the continue token is too old: list again.
    #[error("the resource version is too old: list again")]
    Expired,
    /// A continue token that no list gave out.
    #[error("the continue token is not one that a list gave out")]
    BadContinue,
    /// What is stored under the key is not an object of the kind.
    #[error("what is stored under {store_key} is not a {kind}")]
    Corrupt {
        /// The key in the store.
        store_key: String,
        /// The kind it should be of.
        kind: &'static str,
        /// What is wrong with the JSON.
        #[source]
        source: serde_json::Error,
    },
    /// An object that cannot be written as JSON, such as a time before year 0.
    #[error("the {kind} cannot be written as JSON")]
    Encode {
        /// Its kind.
        kind: &'static str,
        /// What stands in the way.
        #[source]
        source: serde_json::Error,
    },
    /// The store did not do what it was asked.
    #[error(transparent)]
    Store(store_client::Error),
}

impl From<store_client::Error> for Error {
    fn from(error: store_client::Error) -> Self {
        match error {
            store_client::Error::Compacted { .. } => Self::Expired,
            other => Self::Store(other),
        }
    }
}

/// The rules that an object breaks, all that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The kind of the object, as in `Pod`.
    pub kind: &'static str,
    /// The object's name, as far as it has one.
    pub name: String,
    /// What is wrong; never empty.
    pub causes: Vec<Cause>,
}

/// One rule that an object breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The path of the field, as in `spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it, as the rest of a sentence: "must not be negative".
    pub reason: String,
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} is invalid: ", self.kind, self.name)?;
        for (i, cause) in self.causes.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{} {}", cause.field, cause.reason)?;
        }
        Ok(())
    }
}
