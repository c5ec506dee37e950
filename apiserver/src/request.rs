//! What a request says, read with limits: its body, the name in its path, its query.

use std::marker::PhantomData;

use api::{Cause, Propagation};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::flat::{Filter, Flat, cause};
use crate::problem::Problem;
use crate::{App, Limits};

/// How much of a body that is refused for its size is read and thrown away. Most clients send all
/// of a body before they look for the answer, and would see a broken connection instead of the 413.
const DISCARDED_BYTES: u64 = 256 * 1024 * 1024;

/// A request's whole body, whatever its Content-Type.
pub(crate) struct WholeBody(pub(crate) Bytes);

impl FromRequest<App> for WholeBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let Limits { max_body_bytes, request_timeout } = app.limits;
        let announced = request.headers().get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let asks_first = request.headers().contains_key(EXPECT);
        if asks_first && announced.is_some_and(|length| length > max_body_bytes as u64) {
            return Err(Problem::body_too_large(max_body_bytes));
        }
        match timeout(request_timeout, read(request.into_body(), max_body_bytes)).await {
            Ok(body) => body.map(Self),
            Err(_) => Err(Problem::body_too_slow(request_timeout)),
        }
    }
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    let mut length: u64 = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::body_unreadable(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        length += data.len() as u64;
        if length <= limit as u64 {
            whole.extend_from_slice(data);
        } else if length > DISCARDED_BYTES {
            break;
        }
    }
    if length > limit as u64 { Err(Problem::body_too_large(limit)) } else { Ok(whole.freeze()) }
}

/// The name in a request's path.
pub(crate) struct PathName(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(rejection) => Err(cause("name", rejection.body_text()).into()),
        }
    }
}

/// What the query of a list asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ListQuery {
    /// Stream what changes instead of listing what is there.
    pub(crate) watch: bool,
    /// Watch what changed after this revision; none: from now on.
    pub(crate) resource_version: Option<i64>,
    /// Only the objects that all of these ask for.
    filters: Vec<Filter>,
}

/// What the query of a list of a kind asks for.
pub(crate) struct ListQueryFor<F>(pub(crate) ListQuery, pub(crate) PhantomData<F>);

impl<S: Sync, F: Flat> FromRequestParts<S> for ListQueryFor<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|rejection| cause("", format!("the query: {}", rejection.body_text())))?;
        Ok(Self(ListQuery::from_pairs(&pairs, F::FILTERS)?, PhantomData))
    }
}

impl ListQuery {
    /// Whether an object is among those asked for.
    pub(crate) fn wants<F: Flat>(&self, object: &F::Object) -> bool {
        self.filters.iter().all(|filter| F::is_wanted(object, filter))
    }

    fn from_pairs(pairs: &[(String, String)], filters: &[&'static str]) -> Result<Self, Cause> {
        let mut query = Self::default();
        for (key, value) in pairs {
            match (key.as_str(), value.as_str()) {
                ("watch", "true" | "1" | "") => query.watch = true,
                ("watch", "false" | "0") => query.watch = false,
                ("watch", _) => {
                    return Err(cause("watch", format!("must be true or false, not {value:?}")));
                }
                // As in Kubernetes, 0 means "any".
                ("resourceVersion", "" | "0") => query.resource_version = None,
                ("resourceVersion", _) => {
                    let revision =
                        value.parse().ok().filter(|revision| (1..i64::MAX).contains(revision));
                    query.resource_version = Some(revision.ok_or_else(|| {
                        cause(
                            "resourceVersion",
                            format!("must be a number that a list or a watch gave, not {value:?}"),
                        )
                    })?);
                }
                (key, _) => {
                    let Some(by) = filters.iter().find(|filter| **filter == key) else {
                        let there_are = [&["watch", "resourceVersion"], filters].concat();
                        let there_are = there_are.join(", ");
                        return Err(cause(
                            key,
                            format!("is not a query parameter here; there are {there_are}"),
                        ));
                    };
                    query.filters.push(Filter { by, value: value.clone() });
                }
            }
        }
        if query.resource_version.is_some() && !query.watch {
            return Err(cause("resourceVersion", "goes with watch=true; a list is always of now"));
        }
        Ok(query)
    }
}

/// What the query of a deletion asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteQuery {
    /// What becomes of the object's dependents.
    pub(crate) propagation: Option<Propagation>,
}

impl<S: Sync> FromRequestParts<S> for DeleteQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|rejection| cause("", format!("the query: {}", rejection.body_text())))?;
        Ok(Self::from_pairs(&pairs)?)
    }
}

impl DeleteQuery {
    fn from_pairs(pairs: &[(String, String)]) -> Result<Self, Cause> {
        let mut query = Self::default();
        for (key, value) in pairs {
            if key != "propagationPolicy" {
                let rule = "is not a query parameter here; there is propagationPolicy";
                return Err(cause(key, rule));
            }
            let propagation = value.parse::<Propagation>();
            query.propagation =
                Some(propagation.map_err(|rule| cause(key, format!("{rule}, not {value:?}")))?);
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use futures::stream;
    use std::convert::Infallible;

    fn query(text: &str) -> Result<ListQuery, String> {
        let uri = format!("/pods?{text}").parse().unwrap();
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
        ListQuery::from_pairs(&pairs, &["pod"]).map_err(|invalid| invalid.field)
    }

    #[test]
    fn queries() {
        let watch =
            |resource_version| Ok(ListQuery { watch: true, resource_version, filters: Vec::new() });
        let of_pod = Filter { by: "pod", value: "web-1".to_owned() };
        let filtered = ListQuery { filters: vec![of_pod], ..ListQuery::default() };
        for (text, expected) in [
            ("", Ok(ListQuery::default())),
            ("watch=false", Ok(ListQuery::default())),
            ("watch=true", watch(None)),
            ("watch", watch(None)),
            ("watch=1&resourceVersion=7", watch(Some(7))),
            ("resourceVersion=7&watch=1", watch(Some(7))),
            ("watch=true&resourceVersion=0", watch(None)),
            ("watch=true&resourceVersion=", watch(None)),
            ("pod=web-1", Ok(filtered)),
            ("node=web-1", Err("node".to_owned())),
            ("watch=yes", Err("watch".to_owned())),
            ("wacth=true", Err("wacth".to_owned())),
            ("resourceVersion=7", Err("resourceVersion".to_owned())),
            ("watch=true&resourceVersion=-1", Err("resourceVersion".to_owned())),
            ("watch=true&resourceVersion=x", Err("resourceVersion".to_owned())),
            ("watch=true&resourceVersion=9223372036854775807", Err("resourceVersion".to_owned())),
        ] {
            assert_eq!(query(text), expected, "{text}");
        }
    }

    #[test]
    fn queries_of_deletions() {
        let query = |text: &str| {
            let uri = format!("/replicasets/web?{text}").parse().unwrap();
            let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
            let read = DeleteQuery::from_pairs(&pairs).map_err(|invalid| invalid.field);
            read.map(|query| query.propagation)
        };
        for (text, expected) in [
            ("", Ok(None)),
            ("propagationPolicy=Foreground", Ok(Some(Propagation::Foreground))),
            ("propagationPolicy=Orphan", Ok(Some(Propagation::Orphan))),
            ("propagationPolicy=orphan", Err("propagationPolicy".to_owned())),
            ("propagation=Orphan", Err("propagation".to_owned())),
        ] {
            assert_eq!(query(text), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_has_a_limit() {
        assert_eq!(read(Body::from("1234"), 4).await.unwrap(), "1234");
        let problem = read(Body::from("12345"), 4).await.unwrap_err();
        assert_eq!(problem.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn a_body_without_end_is_not_read_to_its_end() {
        let chunk = Bytes::from(vec![b'a'; 1024 * 1024]);
        let endless = stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
        let problem = read(Body::from_stream(endless), 4).await.unwrap_err();
        assert_eq!(problem.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
