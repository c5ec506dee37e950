//! The flat forms: the short JSON of a pod, a ReplicaSet, a node and an event, for people with curl.
//!
//! What is stored are Kubernetes objects; a flat form is a view of one, and says less. The rules:
//!
//! - **Reading** is a projection: it never fails, whatever the stored object looks like.
//! - **Writing** is strict: an unknown field, a missing one or a bad value is a [`Cause`] that
//!   names the field by its path (`template.env.PATH`), and nothing is stored.
//! - **What GET gives, PUT takes.** Fields that only the system sets (`currentCount`, `status`, …)
//!   are accepted in a body and ignored.
//! - **Replacing keeps what the flat form cannot say**: a PUT changes the fields a flat form has and
//!   leaves the others of the stored object (probes, resources, `status`, …) alone.
//!
//! ```text
//! {"name":"nginx","desiredCount":4,"selector":{"app":"nginx"},"template":{"image":"nginx:latest"}}
//!   <-> ReplicaSet  metadata.name                       nginx
//!                   spec.replicas                       4
//!                   spec.selector.matchLabels           app=nginx
//!                   spec.template.metadata.labels       app=nginx   (the selector's, where not given)
//!                   spec.template.spec.containers[0]    image nginx:latest
//! ```

mod body;
mod container;
mod event;
mod node;
mod pod;
mod replicaset;
mod rules;

pub(crate) use body::parse;
pub(crate) use event::Events;
pub(crate) use node::Nodes;
pub(crate) use pod::Pods;
pub(crate) use replicaset::ReplicaSets;
pub(crate) use rules::cause;

use std::future::Future;

use api::{Cause, Error, Store};
use serde::Serialize;

/// What a list or a watch is narrowed down to: `?pod=web-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The parameter.
    pub(crate) by: &'static str,
    /// Its value.
    pub(crate) value: String,
}

/// A kind of object as the flat API shows it.
pub(crate) trait Flat: Send + Sync + 'static {
    /// The stored Kubernetes object.
    type Object: api::Object;
    /// What a client reads.
    type Form: Serialize + Send;

    /// The query parameters by which lists and watches can be narrowed down.
    const FILTERS: &'static [&'static str] = &[];

    /// The flat form of `object`.
    fn form(object: &Self::Object) -> Self::Form;

    /// Whether an object is among those that a filter, one of [`Self::FILTERS`], asks for.
    fn is_wanted(_object: &Self::Object, _filter: &Filter) -> bool {
        true
    }

    /// Orders the forms of a list, which come by their names.
    fn arrange(_forms: &mut [Self::Form]) {}

    /// Adds to forms that are about to be shown what other objects know about them.
    fn complete(
        _store: &Store,
        _forms: &mut [Self::Form],
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }
}

/// A kind of object that clients may write in its flat form.
pub(crate) trait FlatWrite: Flat {
    /// Reads and checks a request's body. `path_name` is the name in the request's path, if it has
    /// one: the body may leave its name out then, but must not contradict it.
    fn parse(body: &[u8], path_name: Option<&str>) -> Result<Self::Object, Cause>;

    /// Makes `stored` what `wanted`, a result of [`FlatWrite::parse`], says, as far as the flat form
    /// can say it.
    fn replace(stored: &mut Self::Object, wanted: Self::Object) -> Result<(), Cause>;
}
