//! Watches: the store's changes of a kind as lines of JSON.
//!
//! The `resourceVersion` of a line is the one to go on from after it: up to there, everything has
//! been sent. That is the revision of the line's change, but where one transaction changed several
//! objects, it is one less for all of its lines except the last, so that a watch that broke between
//! them brings the whole transaction again rather than half of it never.

use std::convert::Infallible;

use api::{Api, Error, ListOptions, Object, WatchEvent, WatchStream};
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::App;
use crate::flat::Flat;
use crate::objects::scope;
use crate::problem::{self, Problem};
use crate::request::ListQuery;

/// The response header with the revision that a list was read at, or a watch begins after.
pub(crate) const RESOURCE_VERSION: &str = "x-resource-version";

/// One line.
#[derive(Serialize)]
struct Line<F> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: F,
    /// A string, as everywhere in Kubernetes: it is for handing back, not for reckoning.
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

/// The last line of a watch that cannot go on.
#[derive(Serialize)]
struct ErrorLine {
    #[serde(rename = "type")]
    kind: &'static str,
    error: problem::Body,
}

/// Begins a watch after a revision, or now. When this returns, nothing that happens is missed.
pub(crate) async fn stream<F: Flat>(
    app: &App,
    api: &Api<F::Object>,
    query: ListQuery,
) -> Result<Response, Problem> {
    let (watch, revision) = app
        .within(async {
            Ok(match query.resource_version {
                Some(revision) => (begin_after::<F>(api, revision).await?, revision),
                None => begin_now::<F>(api).await?,
            })
        })
        .await?;
    let lines = Lines::<F> { watch: Some(watch), query, stop: app.stop.clone() };
    let body = stream::unfold(lines, |mut lines| async move {
        let chunk = lines.next().await?;
        Some((Ok::<_, Infallible>(chunk), lines))
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "application/x-ndjson".to_owned()),
        (CACHE_CONTROL.as_str(), "no-store".to_owned()),
        (RESOURCE_VERSION, revision.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// A watch from now on says first which revision it begins after.
async fn begin_now<F: Flat>(api: &Api<F::Object>) -> Result<(WatchStream<F::Object>, i64), Error> {
    let mut watch = api.watch(&scope::<F>(), None);
    let first = watch.next().await?;
    Ok((watch, first.revision))
}

/// Reading one object at the revision tells whether the store still has what came after it, while
/// the answer can still be a 410.
async fn begin_after<F: Flat>(
    api: &Api<F::Object>,
    revision: i64,
) -> Result<WatchStream<F::Object>, Error> {
    let probe = ListOptions { limit: 1, revision: Some(revision), ..ListOptions::default() };
    match api.list_page(&scope::<F>(), probe).await {
        Ok(_) => Ok(api.watch(&scope::<F>(), Some(revision))),
        // A revision that is not written yet is waited for.
        Err(Error::Store(api::StoreError::FutureRevision)) => {
            Ok(api.watch(&scope::<F>(), Some(revision)))
        }
        Err(error) => Err(error),
    }
}

struct Lines<F: Flat> {
    /// None once the watch has ended.
    watch: Option<WatchStream<F::Object>>,
    query: ListQuery,
    stop: CancellationToken,
}

impl<F: Flat> Lines<F> {
    /// The lines of the next changes; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let watch = self.watch.as_mut()?;
            let batch = tokio::select! {
                batch = watch.next() => batch,
                () = self.stop.cancelled() => return None,
            };
            match batch {
                Ok(mut batch) => {
                    batch.events.retain(|event| self.query.wants::<F>(event.object()));
                    if !batch.events.is_empty() {
                        return Some(lines::<F>(&batch.events));
                    }
                }
                Err(error) => {
                    self.watch = None;
                    return Some(error_line(error));
                }
            }
        }
    }
}

/// The lines of changes that are in the order of their revisions, the last of which is complete.
fn lines<F: Flat>(events: &[WatchEvent<F::Object>]) -> Bytes {
    let mut text = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let revision = event.object().revision();
        let more_of_it =
            events.get(at + 1).is_some_and(|next| next.object().revision() == revision);
        let resume_after = if more_of_it { revision - 1 } else { revision };
        let line = Line {
            kind: event.type_name(),
            object: F::form(event.object()),
            resource_version: resume_after.to_string(),
        };
        append(&mut text, &line);
    }
    text.into()
}

fn error_line(error: Error) -> Bytes {
    let mut text = Vec::new();
    append(&mut text, &ErrorLine { kind: "ERROR", error: Problem::from(error).body });
    text.into()
}

fn append(text: &mut Vec<u8>, line: &impl Serialize) {
    let before = text.len();
    match serde_json::to_writer(&mut *text, line) {
        Ok(()) => text.push(b'\n'),
        Err(error) => {
            text.truncate(before);
            warn!(%error, "a change cannot be written as JSON and is left out of a watch");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flat::Nodes;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    fn node(name: &str, revision: i64) -> Node {
        let metadata = json!({"name": name, "resourceVersion": revision.to_string()});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))
            .unwrap()
    }

    #[test]
    fn a_line_says_where_to_go_on_so_that_no_transaction_is_halved() {
        let events = [
            WatchEvent::Added(node("a", 5)),
            WatchEvent::Modified(node("a", 7)),
            WatchEvent::Added(node("b", 7)),
            WatchEvent::Deleted(node("c", 7)),
            WatchEvent::Deleted(node("a", 8)),
        ];
        let text = lines::<Nodes>(&events);
        let lines: Vec<Value> = text
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let brief: Vec<_> = lines
            .iter()
            .map(|line| [&line["type"], &line["object"]["name"], &line["resourceVersion"]])
            .map(|values| values.map(|value| value.as_str().unwrap()))
            .collect();
        assert_eq!(
            brief,
            [
                ["ADDED", "a", "5"],
                ["MODIFIED", "a", "6"],
                ["ADDED", "b", "6"],
                ["DELETED", "c", "7"],
                ["DELETED", "a", "8"],
            ]
        );
    }

    #[test]
    fn lines_are_as_documented() {
        let added = lines::<Nodes>(&[WatchEvent::Added(node("a", 5))]);
        assert_eq!(
            added,
            "{\"type\":\"ADDED\",\"object\":{\"name\":\"a\",\"status\":\"NotReady\",\"time\":\"0001-01-01T00:00:00Z\"},\"resourceVersion\":\"5\"}\n"
        );
        let error = error_line(Error::Expired);
        let start = "{\"type\":\"ERROR\",\"error\":{\"code\":\"Expired\",\"reason\":\"";
        assert!(error.starts_with(start.as_bytes()) && error.ends_with(b"\"}}\n"), "{error:?}");
    }
}
