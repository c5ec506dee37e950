//! Keeps a creation whose answer was lost from taking place once more.
//!
//! An update compares the revision of what it replaces, which never comes back, so sending it to
//! a second member when the first does not answer is safe. A creation compares that nothing is
//! there, and that may be true again: a member hangs with the request unread in its socket,
//! another one carries it out, the object is deleted, the first member wakes up and creates it
//! again. So each creation also compares that its own fence is not there, a key named by the uid
//! it gives. When its outcome is known but not that of every attempt, the fence is put up, and
//! what is still under way comes to nothing. It is bound to a lease and goes by itself.

use store_client::etcdserverpb::{Compare, LeaseGrantRequest, TxnRequest};
use store_client::{Client, Error, request};

/// What fences are kept under.
const FENCES: &str = "/registry/miniku/fences";
/// Longer than a request can be under way and still be read by somebody.
const FENCE_SECONDS: i64 = 3600;

/// Holds as long as no fence is put up against the creation of an object with this uid.
pub(crate) fn is_open(uid: &str) -> Compare {
    request::mod_revision_is(format!("{FENCES}/{uid}"), 0)
}

/// Keeps what is still under way of a creation from being carried out.
///
/// # Errors
/// Always [`Error::Ambiguous`], as it is said of the creation: that may have been carried out, or
/// may be yet, even where the fence was certainly not put up.
pub(crate) async fn put_up(client: &Client, uid: &str) -> Result<(), Error> {
    try_put_up(client, uid).await.map_err(of_the_creation)
}

async fn try_put_up(client: &Client, uid: &str) -> Result<(), Error> {
    let lease = client.lease_grant(LeaseGrantRequest { ttl: FENCE_SECONDS, id: 0 }).await?.id;
    let put = request::put_with_lease_op(format!("{FENCES}/{uid}"), "", lease);
    client.txn_guarded(TxnRequest { success: vec![put], ..TxnRequest::default() }).await?;
    Ok(())
}

/// What a fence that could not be put up means for the creation.
fn of_the_creation(error: Error) -> Error {
    tracing::debug!(%error, "no fence against a late attempt at a creation");
    match error {
        Error::Unavailable { source, .. } | Error::Ambiguous { source } => {
            Error::Ambiguous { source }
        }
        _ => Error::Ambiguous { source: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_without_its_fence_may_have_been_carried_out() {
        let unavailable = Error::Unavailable { endpoints: "http://a:1".into(), source: None };
        for error in [unavailable, Error::Protocol("no lease"), Error::Ambiguous { source: None }] {
            let error = of_the_creation(error);
            assert!(matches!(error, Error::Ambiguous { source: None }), "{error:?}");
        }
    }
}
