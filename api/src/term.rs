//! Terms of leadership: what keeps a leader that has been deposed from writing.
//!
//! Leaders are elected with a [`Lease`] object, by clocks, as in Kubernetes. Clocks do not help
//! against a leader that is paused in the middle of a write, or whose write lies in the socket of a
//! member that hangs: it may come to the store when somebody else has been elected. So beside the
//! lease there is a key of the *term*. Whoever takes the lease writes it, in the same transaction,
//! and each write of a leader compares that nobody has written it since:
//!
//! ```text
//! a takes the lease           term key written at revision 7
//! a creates a pod             if the term key is still that of revision 7: it is
//! a is paused, its lease runs out
//! b takes the lease           term key written at revision 9
//! a goes on, creates a pod    if the term key is still that of revision 7: refused
//! ```
//!
//! So all that a did is before revision 9: a cache that has seen that revision shows the new leader
//! everything. It costs one more compare in a transaction that is made anyway.

use bytes::Bytes;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use store_client::etcdserverpb::{Compare, RangeRequest, RequestOp};
use store_client::mvccpb::KeyValue;
use store_client::request;
use uuid::Uuid;

use crate::swap::{Swap, set_revision};
use crate::taints::DefaultTolerations;
use crate::{Api, Error, Object, ObjectKey, lifecycle};

/// What the keys of terms are kept under.
const TERMS: &str = "/registry/miniku/terms";

/// The time from when somebody took a lease until somebody else does. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    key: Bytes,
    revision: i64,
}

impl Term {
    /// The revision at which it began: everything that an earlier leader wrote is older.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Holds as long as nobody has begun another term.
    pub(crate) fn goes_on(&self) -> Compare {
        request::mod_revision_is(self.key.clone(), self.revision)
    }

    /// Reads the key, for [`Self::is_over`].
    pub(crate) fn look(&self) -> RequestOp {
        request::range_op(RangeRequest { keys_only: true, ..request::key(self.key.clone()) })
    }

    /// Whether another term has begun, given what the key was found to be.
    pub(crate) fn is_over(&self, found: Option<&KeyValue>) -> bool {
        found.is_none_or(|kv| kv.mod_revision != self.revision)
    }
}

impl Api<Lease> {
    /// Takes a lease: writes it in place of the one that was seen before, or of none, and begins
    /// a term. [`Store::during`](crate::Store::during) makes a store of that term.
    ///
    /// When the answer is lost, the lease may be taken all the same. Nothing is written in a term
    /// that nobody knows of: look at the lease again, and take it once more.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the lease is not the one that was seen, [`Error::AlreadyExists`]
    /// when there is one.
    pub async fn take(
        &self,
        key: &ObjectKey,
        seen: Option<&Lease>,
        spec: LeaseSpec,
    ) -> Result<(Lease, Term), Error> {
        let kind = Lease::kind().plural;
        let mut lease = match seen {
            Some(seen) => Lease { metadata: seen.metadata.clone(), spec: Some(spec) },
            None => self.new_lease(key, spec)?,
        };
        lifecycle::validate(&lease, seen)?;
        let term_key = Bytes::from(format!("{TERMS}/{key}"));
        let begin = request::put_op(term_key.clone(), lease.uid().to_owned());
        match self.swap_and(key, seen, Some(&mut lease), vec![begin]).await? {
            Swap::Done(revision) => {
                set_revision(&mut lease, revision);
                Ok((lease, Term { key: term_key, revision }))
            }
            Swap::Changed(_) if seen.is_none() => {
                Err(Error::AlreadyExists { kind, key: key.clone() })
            }
            Swap::Changed(_) => {
                let reason = "somebody else has written it".to_owned();
                Err(Error::Conflict { kind, key: key.clone(), reason })
            }
        }
    }

    fn new_lease(&self, key: &ObjectKey, spec: LeaseSpec) -> Result<Lease, Error> {
        let metadata = ObjectMeta {
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        };
        let (lease, uid) = (Lease { metadata, spec: Some(spec) }, Uuid::new_v4().to_string());
        Ok(lifecycle::create(lease, uid, self.clock().now(), DefaultTolerations::default())?)
    }
}
