//! `GET /pods/{name}/log`: what a pod's container has written.

use api::streaming::{LogOptions, Since};
use api::{Cause, positive_duration};
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::Target;
use crate::App;
use crate::flat::{Pods, cause};
use crate::objects::existing_key;
use crate::problem::Problem;
use crate::request::PathName;

/// What the query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct LogQuery {
    container: Option<String>,
    options: LogOptions,
}

pub(crate) async fn read(
    State(app): State<App>,
    PathName(name): PathName,
    uri: Uri,
) -> Result<Response, Problem> {
    let LogQuery { container, options } = LogQuery::of(&uri)?;
    let key = existing_key::<Pods>(&name)?;
    let target = Target::find(&app, &key, container.as_deref()).await?;
    let log = target.log(&options).await?;
    let log = log.take_until(app.stop.clone().cancelled_owned());
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(log)).into_response())
}

impl LogQuery {
    fn of(uri: &Uri) -> Result<Self, Cause> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|rejection| cause("", format!("the query: {}", rejection.body_text())))?;
        let mut query = Self::default();
        let options = &mut query.options;
        for (name, value) in pairs {
            let number = |least: u64| {
                value.parse().ok().filter(|number| *number >= least).ok_or_else(|| {
                    cause(&*name, format!("must be a whole number from {least}, not {value:?}"))
                })
            };
            let flag = || match value.as_str() {
                "true" | "1" | "" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(cause(&*name, format!("must be true or false, not {value:?}"))),
            };
            match name.as_str() {
                "container" => query.container = Some(value).filter(|name| !name.is_empty()),
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tail" => options.tail_lines = Some(number(0)?),
                "limitBytes" => options.limit_bytes = Some(number(1)?),
                "since" => options.since = Some(since(&value).map_err(|why| cause("since", why))?),
                _ => {
                    return Err(cause(
                        name,
                        "is not a query parameter here; there are container, follow, previous, \
                         timestamps, tail, since, limitBytes",
                    ));
                }
            }
        }
        Ok(query)
    }
}

/// A time, or how long ago.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(time) = text.parse() {
        return Ok(Since::Time(time));
    }
    let ago = positive_duration(text).map_err(|_| {
        format!("must be a duration such as 90s or 1h, or an RFC 3339 time, not {text:?}")
    })?;
    let seconds = ago.as_secs().saturating_add(u64::from(ago.subsec_nanos() > 0));
    Ok(Since::Seconds(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<LogQuery, String> {
        LogQuery::of(&format!("/pods/web-1/log?{text}").parse().unwrap())
            .map_err(|cause| cause.field)
    }

    #[test]
    fn the_query_says_which_part_of_which_log() {
        assert_eq!(query(""), Ok(LogQuery::default()));
        let options = LogOptions {
            follow: true,
            previous: true,
            timestamps: true,
            tail_lines: Some(10),
            since: Some(Since::Seconds(91)),
            limit_bytes: Some(5),
        };
        let all =
            "follow&previous=1&timestamps=true&tail=10&since=1m30s500ms&limitBytes=5&container=a";
        assert_eq!(query(all), Ok(LogQuery { container: Some("a".into()), options }));
        let time = query("since=2026-01-02T03:04:05Z").unwrap().options.since;
        assert_eq!(time, Some(Since::Time("2026-01-02T03:04:05Z".parse().unwrap())));
        for (text, field) in [
            ("follow=yes", "follow"),
            ("tail=all", "tail"),
            ("tail=-1", "tail"),
            ("limitBytes=0", "limitBytes"),
            ("since=yesterday", "since"),
            ("tailLines=3", "tailLines"),
        ] {
            assert_eq!(query(text), Err(field.to_owned()), "{text}");
        }
    }
}
