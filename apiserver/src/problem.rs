//! What a client gets when its request fails: a status and a JSON body that says why.
//!
//! ```json
//! {"error":{"code":"Invalid","field":"desiredCount","reason":"must be a whole number from 0 to 50000, not -1"}}
//! ```
//!
//! `code` is one word for programs, Kubernetes' word where it has one; `field` is the path of the
//! field that was wrong and is left out where no field was; `reason` says what was wrong and what
//! would be right.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use api::{Cause, Error, KINDS, StoreError};

/// What a client should know after a change of unknown outcome.
const UNCERTAIN: &str =
    "a change that was asked for may have been made or not: look before trying again";

/// A failed request's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) body: Body,
}

/// What the answer's body says under `error`, and the last line of a watch that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Body {
    pub(crate) code: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, reason: impl Into<String>) -> Self {
        Self { status, body: Body { code, field: String::new(), reason: reason.into() } }
    }

    /// 404: there is no object of that name.
    pub(crate) fn not_found(kind: &str, name: &str) -> Self {
        let reason = format!("there is no {kind} named {name:?}");
        Self::new(StatusCode::NOT_FOUND, "NotFound", reason)
    }

    /// 404: nothing lives at that path.
    pub(crate) fn unknown_path(path: &str) -> Self {
        let reason = format!(
            "there is nothing at {path:?}; there are /pods, /replicasets, /nodes, /healthz and /version"
        );
        Self::new(StatusCode::NOT_FOUND, "NotFound", reason)
    }

    /// 405: that cannot be done there.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let reason = format!("{method} is not possible on {path:?}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", reason)
    }

    /// 409: the name is taken.
    pub(crate) fn already_exists(kind: &str, name: &str) -> Self {
        let reason = format!("there is a {kind} named {name:?} already; PUT replaces it");
        Self::new(StatusCode::CONFLICT, "AlreadyExists", reason)
    }

    /// 409: others are changing the object, or deleting it.
    pub(crate) fn conflict(kind: &str, name: &str, why: &str) -> Self {
        let reason = format!("{kind} {name:?} cannot be changed now: {why}; try again later");
        Self::new(StatusCode::CONFLICT, "Conflict", reason)
    }

    /// 408: the body did not come in time.
    pub(crate) fn body_too_slow(waited: Duration) -> Self {
        let reason = format!("the request's body did not arrive within {waited:?}");
        Self::new(StatusCode::REQUEST_TIMEOUT, "Timeout", reason)
    }

    /// 400: the body broke off.
    pub(crate) fn body_unreadable(error: &dyn std::error::Error) -> Self {
        let reason = format!("the request's body could not be read: {error}");
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", reason)
    }

    /// 413: the body is above the limit.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        let reason = format!("the request's body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", reason)
    }

    /// 410: the store has forgotten what came after that revision.
    pub(crate) fn expired() -> Self {
        let reason = "the store no longer has what changed since that resourceVersion; list again and watch from the list's X-Resource-Version";
        Self::new(StatusCode::GONE, "Expired", reason)
    }

    /// 503: the store could not be asked, and nothing was changed.
    pub(crate) fn store_unavailable(why: &StoreError) -> Self {
        let reason = format!("the store cannot be reached: {why}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", reason)
    }

    /// 503: the store was asked and did not answer in time.
    pub(crate) fn store_timeout(waited: Duration) -> Self {
        let reason = format!("the store did not answer within {waited:?}; {UNCERTAIN}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Timeout", reason)
    }

    /// 503: the store took a change, and its answer was lost.
    pub(crate) fn store_lost_answer() -> Self {
        let reason = format!("the store's answer was lost; {UNCERTAIN}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Timeout", reason)
    }

    /// 400: a field of the request is wrong.
    pub(crate) fn invalid(field: &str, reason: String) -> Self {
        Cause { field: field.to_owned(), reason }.into()
    }

    /// 400: that cannot be asked.
    pub(crate) fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", reason)
    }

    /// 403: not for whoever asks.
    pub(crate) fn forbidden(reason: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", reason)
    }

    /// 409: not in the state that things are in.
    pub(crate) fn not_now(reason: String) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", reason)
    }

    /// 429: enough of that is under way.
    pub(crate) fn too_many(reason: String) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", reason)
    }

    /// 500: the engine could not run a command.
    pub(crate) fn not_run(why: &str) -> Self {
        let reason = format!("the command could not be run: {why}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", reason)
    }

    /// 503: a pod's node is away, or its kubelet.
    pub(crate) fn node_unreachable(node: &str, why: &str) -> Self {
        let reason = format!("node {node}, on which the pod is, cannot be asked: {why}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NodeUnreachable", reason)
    }

    /// 503: the server is asked to stop.
    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the API server stops")
    }

    /// What a kubelet answered, in its own words.
    pub(crate) fn of_kubelet(status: StatusCode, node: &str, reason: String) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::bad_request(reason),
            StatusCode::NOT_FOUND => Self::new(status, "NotFound", reason),
            StatusCode::CONFLICT => Self::not_now(reason),
            _ => Self::node_unreachable(node, &format!("its kubelet says {reason:?}")),
        }
    }

    /// 500: something that should not happen; the log has the details.
    pub(crate) fn internal() -> Self {
        let reason = "something is wrong here; the API server's log says what";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", reason)
    }
}

impl From<Cause> for Problem {
    fn from(Cause { field, reason }: Cause) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: Body { code: "Invalid", field, reason } }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { kind, key } => Self::not_found(singular(kind), &key.name),
            Error::AlreadyExists { kind, key } => Self::already_exists(singular(kind), &key.name),
            Error::Conflict { kind, key, reason } => {
                Self::conflict(singular(kind), &key.name, &reason)
            }
            Error::Invalid(invalid) => match invalid.causes.into_iter().next() {
                Some(cause) => cause.into(),
                None => Self::new(StatusCode::BAD_REQUEST, "Invalid", "the object is invalid"),
            },
            Error::Expired => Self::expired(),
            Error::Store(error @ StoreError::Unavailable { .. }) => Self::store_unavailable(&error),
            Error::Store(StoreError::Ambiguous { .. }) => Self::store_lost_answer(),
            error => {
                // The chain is for whoever runs the server; clients can do nothing about it.
                tracing::error!(error = chain(&error), "a request failed");
                Self::internal()
            }
        }
    }
}

/// As in `pod`, from `pods`.
fn singular(plural: &'static str) -> &'static str {
    KINDS.iter().find(|kind| kind.plural == plural).map_or(plural, |kind| kind.singular)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A body with the problem under `error`.
#[derive(Serialize)]
struct Envelope {
    error: Body,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Envelope { error: self.body })).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Invalid, ObjectKey};

    #[test]
    fn errors_of_the_objects_become_answers() {
        let key = ObjectKey::namespaced("default", "a");
        let kind = "pods";
        let cause = Cause { field: "f".into(), reason: "must be".into() };
        let invalid = Invalid { kind: "Pod", name: "a".into(), causes: vec![cause] };
        let compacted = StoreError::Compacted { revision: None };
        let lost = StoreError::Ambiguous { source: None };
        let away = StoreError::Unavailable { endpoints: "http://a:1".into(), source: None };
        for (error, status, code, says) in [
            (Error::NotFound { kind, key: key.clone() }, 404, "NotFound", "no pod named \"a\""),
            (Error::AlreadyExists { kind, key: key.clone() }, 409, "AlreadyExists", "a pod named"),
            (Error::Conflict { kind, key, reason: "why".into() }, 409, "Conflict", "why"),
            (Error::Invalid(invalid), 400, "Invalid", "must be"),
            (Error::Expired, 410, "Expired", "list again"),
            (compacted.into(), 410, "Expired", "list again"),
            (away.into(), 503, "ServiceUnavailable", "http://a:1"),
            (lost.into(), 503, "Timeout", "look before"),
            (Error::BadContinue, 500, "InternalError", "log"),
        ] {
            let problem = Problem::from(error);
            assert_eq!((problem.status.as_u16(), problem.body.code), (status, code));
            assert!(problem.body.reason.contains(says), "{:?}", problem.body);
        }
    }

    #[test]
    fn a_body_has_a_field_only_where_one_is_wrong() {
        let text = |problem: Problem| serde_json::to_string(&problem.body).unwrap();
        assert_eq!(
            text(Cause { field: "image".into(), reason: "is required".into() }.into()),
            r#"{"code":"Invalid","field":"image","reason":"is required"}"#
        );
        assert_eq!(
            text(Problem::not_found("pod", "a")),
            r#"{"code":"NotFound","reason":"there is no pod named \"a\""}"#
        );
    }
}
