//! What can become of a call, in the terms in which a caller decides what to do next.

use tonic::transport::Uri;
use tonic::{Code, Status};

/// Why a call did not give an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An endpoint that is not an `http://host:port`.
    #[error("store endpoint {endpoint:?} {reason}")]
    Endpoint {
        /// The text that was given.
        endpoint: String,
        /// What is wrong with it, as the rest of a sentence.
        reason: String,
    },
    /// No endpoint answered within the deadline. A read may be asked again; a write that ends like
    /// this was certainly not carried out.
    #[error("no store endpoint of {endpoints} answered in time")]
    Unavailable {
        /// The endpoints, comma-separated.
        endpoints: String,
        /// The last failure; none when the deadline passed without one.
        #[source]
        source: Option<Failure>,
    },
    /// A write whose answer was lost: it may or may not have been carried out, now or a little
    /// later. Reading tells.
    #[error("the store's answer to a write was lost, it may or may not have been carried out")]
    Ambiguous {
        /// How the answer was lost; none when none came in time.
        #[source]
        source: Option<Failure>,
    },
    /// The revision asked for is compacted: list again and go on from there.
    #[error("the revision is compacted{}", oldest(*.revision))]
    Compacted {
        /// The oldest revision that can still be read, when the store said so.
        revision: Option<i64>,
    },
    /// The revision asked for is not written yet.
    #[error("the revision is a future one")]
    FutureRevision,
    /// The store understood the request and refused it.
    #[error("the store refused the request: {message} ({code:?})")]
    Request {
        /// The gRPC code.
        code: Code,
        /// etcd's text.
        message: String,
    },
    /// The store answered with something that the protocol rules out.
    #[error("the store's answer makes no sense: {0}")]
    Protocol(&'static str),
}

fn oldest(revision: Option<i64>) -> String {
    revision.map_or(String::new(), |revision| format!(", the oldest to be had is {revision}"))
}

/// How one attempt at one endpoint failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}: {reason}")]
pub struct Failure {
    /// The endpoint.
    pub endpoint: String,
    /// The gRPC code that the failure has, or comes closest to.
    pub code: Code,
    /// What the endpoint said, or how the connection to it failed.
    pub reason: String,
}

impl Failure {
    /// A status repeats its causes in its own text, and they each other: here each is told once.
    pub(crate) fn new(endpoint: &Uri, status: &Status) -> Self {
        let mut reason = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            let text = error.to_string();
            if !reason.contains(&text) {
                reason = if reason.is_empty() { text } else { format!("{reason}: {text}") };
            }
            cause = error.source();
        }
        if reason.is_empty() {
            reason = status.code().to_string();
        }
        let endpoint = endpoint.to_string().trim_end_matches('/').to_owned();
        Self { endpoint, code: status.code(), reason }
    }
}

/// What one failed attempt says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Certainly not carried out, by this endpoint at this moment: try elsewhere or later.
    NotDone,
    /// Not known.
    Unknown,
    /// The request itself is at fault: another endpoint would say the same.
    Refused,
}

/// etcd's texts for refusals that come before anything is proposed, and that pass.
const REFUSED_FOR_NOW: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: not leader", "etcdserver: too many requests"];

/// Sorts the failure of one attempt.
pub(crate) fn classify(status: &Status) -> Outcome {
    if REFUSED_FOR_NOW.contains(&status.message()) || never_sent(status) {
        return Outcome::NotDone;
    }
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::ResourceExhausted
        | Code::DataLoss => Outcome::Refused,
        // Unavailable, a broken stream, a server that stops, a time-out on its side.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Outcome::Unknown,
    }
}

/// Whether the attempt failed before there was a connection to send it on.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The error for a request that the store refused.
pub(crate) fn refused(status: &Status) -> Error {
    match status.message() {
        text if text.ends_with("required revision has been compacted") => {
            Error::Compacted { revision: None }
        }
        text if text.ends_with("required revision is a future revision") => Error::FutureRevision,
        text => Error::Request { code: status.code(), message: text.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_whether_a_write_may_have_happened() {
        let cases = [
            (Status::unavailable("etcdserver: no leader"), Outcome::NotDone),
            (Status::resource_exhausted("etcdserver: too many requests"), Outcome::NotDone),
            (Status::unavailable("etcdserver: request timed out"), Outcome::Unknown),
            (Status::unavailable("etcdserver: leader changed"), Outcome::Unknown),
            (Status::unavailable("etcdserver: server stopped"), Outcome::Unknown),
            (Status::unknown("transport error"), Outcome::Unknown),
            (Status::cancelled("connection closed"), Outcome::Unknown),
            (Status::invalid_argument("etcdserver: key is not provided"), Outcome::Refused),
            (
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                Outcome::Refused,
            ),
            (Status::unimplemented(""), Outcome::Refused),
        ];
        for (status, outcome) in cases {
            assert_eq!(classify(&status), outcome, "{status:?}");
        }
    }

    #[test]
    fn a_connection_that_was_never_made_carried_nothing() {
        let refused = tonic::ConnectError("connection refused".into());
        let status = Status::from_error(Box::new(refused));
        assert_eq!(classify(&status), Outcome::NotDone);
    }

    #[test]
    fn revisions_have_errors_of_their_own() {
        let compacted =
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted");
        assert!(matches!(refused(&compacted), Error::Compacted { revision: None }));
        let future =
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision");
        assert!(matches!(refused(&future), Error::FutureRevision));
    }
}
