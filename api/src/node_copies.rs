//! The copies of bound pods under their nodes, when somebody wrote past this crate.
//!
//! Every write here keeps a pod and its copy alike, in one transaction. Whoever uses `etcdctl` on
//! a pod's key does not: then a kubelet would run what nobody lists any more.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use store_client::etcdserverpb::response_op::Response;
use store_client::etcdserverpb::{RangeRequest, TxnRequest, TxnResponse};
use store_client::request;

use crate::key::NODE_PODS;
use crate::swap::Swap;
use crate::{Api, Error, Object, ObjectKey, POD, Scope};

impl Api<Pod> {
    /// Makes the copies under the nodes what the pods are, and says how many were not. Reads the
    /// keys of all pods, so it is for now and then.
    pub async fn repair_node_copies(&self) -> Result<usize, Error> {
        let pods_prefix = Scope::All.prefix(&POD);
        let keys = |prefix: String| {
            request::range_op(RangeRequest { keys_only: true, ..request::prefix(prefix) })
        };
        let both = TxnRequest {
            success: vec![keys(pods_prefix.clone()), keys(format!("{NODE_PODS}/"))],
            ..TxnRequest::default()
        };
        let response = self.client().txn_guarded(both).await?.0;
        let [pods, copies] = revisions(response)?;
        let mut without_copy: BTreeMap<&str, i64> = pods
            .iter()
            .filter_map(|(key, revision)| Some((key.strip_prefix(&pods_prefix)?, *revision)))
            .collect();

        let mut repaired = 0;
        for (copy, revision) in &copies {
            let Some((node, name)) = parse_copy(copy) else { continue };
            if without_copy.remove(name) == Some(*revision) {
                continue;
            }
            tracing::warn!(pod = name, node, "the copy of a pod under its node is not the pod");
            repaired += usize::from(self.repair(name, Some((copy, node))).await?);
        }
        for name in without_copy.into_keys() {
            repaired += usize::from(self.repair(name, None).await?);
        }
        Ok(repaired)
    }

    /// Writes a pod and its copy again, or takes away a copy that is nobody's.
    async fn repair(&self, name: &str, copy: Option<(&str, &str)>) -> Result<bool, Error> {
        let Some((namespace, name)) = name.split_once('/') else { return Ok(false) };
        let key = ObjectKey::namespaced(namespace, name);
        let pod = self.find(&key).await?;
        let node = pod.as_ref().and_then(Pod::node_name);
        match (&pod, copy) {
            (Some(pod), _) if node.is_some() && copy.is_none_or(|(_, of)| node == Some(of)) => {
                let swap = self.swap(&key, Some(pod), Some(&mut pod.clone())).await?;
                Ok(matches!(swap, Swap::Done(_)))
            }
            (_, Some((copy, _))) => {
                let revision = pod.as_ref().map_or(0, Object::revision);
                let remove = TxnRequest {
                    compare: vec![request::mod_revision_is(key.store_key(&POD), revision)],
                    success: vec![request::delete_op(copy.to_owned())],
                    failure: Vec::new(),
                };
                Ok(self.client().txn_guarded(remove).await?.0.succeeded)
            }
            (_, None) => Ok(false),
        }
    }
}

/// The node and the `namespace/name` in the key of a copy.
fn parse_copy(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(NODE_PODS)?.strip_prefix('/')?.split_once('/')
}

/// The keys that two ranges of one transaction found, with their mod revisions.
fn revisions(response: TxnResponse) -> Result<[Vec<(String, i64)>; 2], Error> {
    let ranges: Vec<Vec<(String, i64)>> = response
        .responses
        .into_iter()
        .filter_map(|response| match response.response? {
            Response::ResponseRange(range) => Some(range.kvs),
            Response::ResponsePut(_)
            | Response::ResponseDeleteRange(_)
            | Response::ResponseTxn(_) => None,
        })
        .map(|kvs| {
            let name = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            kvs.iter().map(|kv| (name(&kv.key), kv.mod_revision)).collect()
        })
        .collect();
    ranges
        .try_into()
        .map_err(|_| store_client::Error::Protocol("two ranges have two answers").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_copy_says_whose_it_is() {
        let key = ObjectKey::namespaced("default", "web-1").node_pod_key("node-1");
        assert_eq!(parse_copy(&key), Some(("node-1", "default/web-1")));
        assert_eq!(parse_copy("/registry/pods/default/web-1"), None);
    }
}
