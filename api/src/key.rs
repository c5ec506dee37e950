//! Names of objects, and the keys and prefixes they have in the store.
//!
//! `/registry/pods/default/web-1` holds a pod, `/registry/nodes/node-1` a node, which belongs to no
//! namespace. A pod that is bound to a node is held a second time, under
//! `/registry/miniku/node-pods/node-1/default/web-1`: see [`Scope::Node`].

use std::fmt;
use std::sync::Arc;

use crate::Kind;

/// What all objects are kept under.
const REGISTRY: &str = "/registry";
/// What the second copies of bound pods are kept under.
pub(crate) const NODE_PODS: &str = "/registry/miniku/node-pods";

/// The name of an object among those of its kind. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object in a namespace.
    pub fn namespaced(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object of a kind that has no namespaces, such as a node.
    pub fn cluster(name: &str) -> Self {
        Self::namespaced("", name)
    }

    /// Where the object is in the store.
    pub fn store_key(&self, kind: &Kind) -> String {
        format!("{REGISTRY}/{}/{self}", kind.plural)
    }

    /// Where the second copy of a pod is that is bound to a node.
    pub(crate) fn node_pod_key(&self, node: &str) -> String {
        format!("{NODE_PODS}/{node}/{self}")
    }
}

/// `namespace/name`, or the name alone.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Which objects of a kind are listed or watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All of them.
    All,
    /// Those of one namespace.
    Namespace(String),
    /// The pods that are bound to one node.
    ///
    /// Every write of a bound pod writes the same bytes under a prefix of its node too, in the
    /// same transaction. So the pods of a node are one range, one watch on it sees all that
    /// happens to them and nothing else, and as both copies have one mod revision, either is good
    /// for a compare-and-swap. Other kinds have nothing here.
    Node(String),
}

impl Scope {
    /// What the keys of the scope begin with.
    pub fn prefix(&self, kind: &Kind) -> String {
        match self {
            Self::All => format!("{REGISTRY}/{}/", kind.plural),
            Self::Namespace(namespace) => format!("{REGISTRY}/{}/{namespace}/", kind.plural),
            Self::Node(node) => format!("{NODE_PODS}/{node}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NODE, POD};

    #[test]
    fn keys_and_prefixes() {
        let pod = ObjectKey::namespaced("default", "web-1");
        assert_eq!(pod.to_string(), "default/web-1");
        assert_eq!(pod.store_key(&POD), "/registry/pods/default/web-1");
        assert_eq!(pod.node_pod_key("node-1"), "/registry/miniku/node-pods/node-1/default/web-1");
        assert_eq!(ObjectKey::cluster("node-1").store_key(&NODE), "/registry/nodes/node-1");
        assert_eq!(Scope::All.prefix(&POD), "/registry/pods/");
        assert_eq!(Scope::Namespace("default".into()).prefix(&POD), "/registry/pods/default/");
        assert_eq!(Scope::Node("node-1".into()).prefix(&POD), "/registry/miniku/node-pods/node-1/");
    }
}
