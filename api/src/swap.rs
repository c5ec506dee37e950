//! The one transaction by which objects are written, and their form in the store.

use bytes::Bytes;
use store_client::etcdserverpb::response_op::Response;
use store_client::etcdserverpb::{RequestOp, TxnRequest, TxnResponse};
use store_client::mvccpb::KeyValue;
use store_client::request;

use crate::fence;
use crate::{Api, Cause, Error, Invalid, Object, ObjectKey};

/// A bound pod is written twice in one request, which may have 1.5 MiB in etcd.
const MAX_OBJECT_BYTES: usize = 700 << 10;

/// What a compare-and-swap found.
pub(crate) enum Swap {
    /// It was carried out, at this revision.
    Done(i64),
    /// The key was changed; this is what it holds now, if anything.
    Changed(Option<KeyValue>),
}

impl<K: Object> Api<K> {
    /// One transaction that takes an object from `before`, none when it must not exist, to
    /// `after`, none when it goes, and the copy under its node with it.
    ///
    /// A swap whose answer is lost is sent again: it compares the mod revision, so it takes place
    /// once. If the compare fails then, what is there tells whether that was our own doing: our
    /// very bytes, which hold a uid. A creation has a [`fence`] besides.
    ///
    /// # Errors
    /// [`Error::Deposed`] when the store is one of a [term](crate::Term) that is over.
    pub(crate) async fn swap(
        &self,
        key: &ObjectKey,
        before: Option<&K>,
        after: Option<&mut K>,
    ) -> Result<Swap, Error> {
        self.swap_and(key, before, after, Vec::new()).await
    }

    /// Like [`Self::swap`], with more to be done in the same transaction.
    pub(crate) async fn swap_and(
        &self,
        key: &ObjectKey,
        before: Option<&K>,
        mut after: Option<&mut K>,
        more: Vec<RequestOp>,
    ) -> Result<Swap, Error> {
        let store_key = Bytes::from(key.store_key(K::kind()));
        let value = after.as_deref_mut().map(encode).transpose()?;
        let after = after.as_deref();
        let copy_key = |object: &K| object.node_name().map(|node| key.node_pod_key(node));
        let (old_copy, new_copy) = (before.and_then(copy_key), after.and_then(copy_key));

        let mut success = more;
        match &value {
            Some(value) => success.push(request::put_op(store_key.clone(), value.clone())),
            None => success.push(request::delete_op(store_key.clone())),
        }
        if let Some(old) = old_copy.filter(|old| Some(old) != new_copy.as_ref()) {
            success.push(request::delete_op(old));
        }
        if let (Some(new), Some(value)) = (new_copy, &value) {
            success.push(request::put_op(new, value.clone()));
        }
        let revision = before.map_or(0, Object::revision);
        let created = after.filter(|_| before.is_none()).map(Object::uid);
        let mut compare = vec![request::mod_revision_is(store_key.clone(), revision)];
        compare.extend(created.map(fence::is_open));
        let mut failure = vec![request::range_op(request::key(store_key))];
        if let Some(term) = self.term() {
            compare.push(term.goes_on());
            failure.push(term.look());
        }
        let txn = TxnRequest { compare, success, failure };
        let (response, repeated) = self.client().txn_guarded(txn).await?;
        if let Some(uid) = created.filter(|_| repeated) {
            fence::put_up(self.client(), uid).await?;
        }
        if response.succeeded {
            return Ok(Swap::Done(response.header.unwrap_or_default().revision));
        }
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let mut found = found_keys(response);
        let (found, term_key) = (found.next().flatten(), found.next().flatten());
        match (&found, &value) {
            (Some(kv), Some(value)) if repeated && kv.value == *value => {
                Ok(Swap::Done(kv.mod_revision))
            }
            (None, None) if repeated => Ok(Swap::Done(revision)),
            _ if self.term().is_some_and(|term| term.is_over(term_key.as_ref())) => {
                Err(Error::Deposed)
            }
            _ => Ok(Swap::Changed(found)),
        }
    }
}

/// What the ranges in the failure branch of a swap found, each of one key.
fn found_keys(response: TxnResponse) -> impl Iterator<Item = Option<KeyValue>> {
    response.responses.into_iter().map(|response| match response.response? {
        Response::ResponseRange(range) => range.kvs.into_iter().next(),
        Response::ResponsePut(_) | Response::ResponseDeleteRange(_) | Response::ResponseTxn(_) => {
            None
        }
    })
}

pub(crate) fn set_revision<K: Object>(object: &mut K, revision: i64) {
    object.metadata_mut().resource_version = Some(revision.to_string());
}

/// The bytes of an object in the store: without its resourceVersion, which the key itself has.
pub(crate) fn encode<K: Object>(object: &mut K) -> Result<Bytes, Error> {
    let version = object.metadata_mut().resource_version.take();
    let json = serde_json::to_vec(object);
    object.metadata_mut().resource_version = version;
    let kind = K::kind().kind;
    let json = json.map_err(|source| Error::Encode { kind, source })?;
    if json.len() > MAX_OBJECT_BYTES {
        let reason =
            format!("must not have more than {MAX_OBJECT_BYTES} bytes, and has {}", json.len());
        let causes = vec![Cause { field: "the object as JSON".to_owned(), reason }];
        return Err(Invalid { kind, name: object.name().to_owned(), causes }.into());
    }
    Ok(json.into())
}

/// An object out of the store, with its mod revision as resourceVersion.
pub(crate) fn decode<K: Object>(kv: &KeyValue) -> Result<K, Error> {
    let mut object: K = serde_json::from_slice(&kv.value).map_err(|source| Error::Corrupt {
        store_key: String::from_utf8_lossy(&kv.key).into_owned(),
        kind: K::kind().kind,
        source,
    })?;
    set_revision(&mut object, kv.mod_revision);
    Ok(object)
}

/// An object out of the store; none, and a warning, when it is something else.
pub(crate) fn decode_or_warn<K: Object>(kv: &KeyValue) -> Option<K> {
    decode(kv)
        .inspect_err(|error| {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "left out");
        })
        .ok()
}
