//! The pages for probes and for people: health, version, metrics.
//!
//! Their answers are etcd's: `/health` asks for no alarm, a leader, and a read that a quorum confirms
//! (`?serializable=true`: a local one, and no leader; `?exclude=NOSPACE`: despite that alarm).
//! `/livez` and `/readyz` run the checks below, one path each as well (`/readyz/non_learner`), say
//! which failed, and with `?verbose` which passed.
//!
//! | check               | `/livez` | `/readyz` | fails                               |
//! |---------------------|----------|-----------|-------------------------------------|
//! | `serializable_read` | yes      | yes       | when the state cannot be read       |
//! | `data_corruption`   |          | yes       | while the alarm CORRUPT is raised   |
//! | `linearizable_read` |          | yes       | when no quorum confirms a read      |
//! | `non_learner`       |          | yes       | on a learner                        |

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use store_proto::etcdserverpb::{AlarmType, RangeRequest};

use super::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::error::RequestError;
use crate::member::Member;
use crate::metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// The pages that `--listen-metrics-urls` serves too.
pub(super) fn router(member: &Arc<Member>) -> Router {
    let mut router = Router::new()
        .route("/health", any(health))
        .route("/version", any(version))
        .route("/metrics", any(metrics_page));
    for page in [Page::Livez, Page::Readyz] {
        let root = format!("/{}", page.name());
        router = router.route(
            &root,
            any(move |method, query, member| {
                let checks = page.checks().iter().copied();
                run(page, checks.collect(), method, query, member)
            }),
        );
        for check in page.checks() {
            router = router.route(
                &format!("{root}/{}", check.name()),
                any(move |method, query, member| run(page, vec![*check], method, query, member)),
            );
        }
    }
    router.with_state(Arc::clone(member))
}

/// The parameters of a URL; the same one may come several times.
type Parameters = Query<Vec<(String, String)>>;

fn excluded(parameters: &Parameters) -> BTreeSet<&str> {
    let excluded = parameters.iter().filter(|(name, value)| name == "exclude" && !value.is_empty());
    excluded.map(|(_, value)| value.as_str()).collect()
}

async fn health(
    method: Method,
    parameters: Parameters,
    State(member): State<Arc<Member>>,
) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let serializable = parameters.iter().find(|(name, _)| name == "serializable");
    let serializable = serializable.is_some_and(|(_, value)| value == "true");
    let reason = unhealthy(&member, &excluded(&parameters), serializable).await;
    let metrics = &member.metrics;
    match reason {
        None => {
            metrics.health_successes.inc();
            text(StatusCode::OK, r#"{"health":"true","reason":""}"#)
        }
        Some(reason) => {
            metrics.health_failures.inc();
            let body = serde_json::json!({"health": "false", "reason": reason});
            text(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
        }
    }
}

/// Why a member is not healthy, in etcd's words.
async fn unhealthy(
    member: &Member,
    excluded: &BTreeSet<&str>,
    serializable: bool,
) -> Option<String> {
    let alarms = raised_alarms(member);
    if let Some(alarm) = alarms.iter().find(|alarm| !excluded.contains(alarm.as_str_name())) {
        return Some(format!("ALARM {}", alarm.as_str_name()));
    }
    if !serializable && member.leader_in_contact().is_none() {
        return Some("RAFT NO LEADER".to_owned());
    }
    let read = read(member, serializable).await;
    read.err().map(|error| format!("RANGE ERROR:{error}"))
}

async fn read(member: &Member, serializable: bool) -> Result<(), RequestError> {
    let any = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        limit: 1,
        keys_only: true,
        serializable,
        ..RangeRequest::default()
    };
    member.range(&any).await.map(drop)
}

fn raised_alarms(member: &Member) -> BTreeSet<AlarmType> {
    member.mvcc.alarms(AlarmType::None).iter().map(|alarm| alarm.alarm()).collect()
}

#[derive(Clone, Copy)]
enum Page {
    Livez,
    Readyz,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Page {
    fn name(self) -> &'static str {
        match self {
            Self::Livez => "livez",
            Self::Readyz => "readyz",
        }
    }

    fn checks(self) -> &'static [Check] {
        match self {
            Self::Livez => &[Check::SerializableRead],
            Self::Readyz => &[
                Check::DataCorruption,
                Check::SerializableRead,
                Check::LinearizableRead,
                Check::NonLearner,
            ],
        }
    }
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, member: &Member) -> Result<(), String> {
        let failed = |error: RequestError| error.to_string();
        match self {
            Self::DataCorruption if raised_alarms(member).contains(&AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Self::NonLearner if member.membership().voter_ids().all(|id| id != member.id) => {
                Err("not supported for learner".to_owned())
            }
            Self::SerializableRead => read(member, true).await.map_err(failed),
            Self::LinearizableRead => read(member, false).await.map_err(failed),
            Self::DataCorruption | Self::NonLearner => Ok(()),
        }
    }
}

async fn run(
    page: Page,
    checks: Vec<Check>,
    method: Method,
    parameters: Parameters,
    State(member): State<Arc<Member>>,
) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let excluded = excluded(&parameters);
    let mut report = String::new();
    let mut all_passed = true;
    // A check that is asked for by its path is not left out.
    let is_alone = checks.len() == 1 && page.checks().len() > 1;
    for check in checks.into_iter().filter(|check| is_alone || !excluded.contains(check.name())) {
        let name = check.name();
        let result = check.run(&member).await;
        let passed = result.is_ok();
        // Writing to a string cannot fail.
        let _ = match result {
            Ok(()) => writeln!(report, "[+]{name} ok"),
            Err(reason) => writeln!(report, "[-]{name} failed: {reason}"),
        };
        all_passed &= passed;
        let status = if passed { "success" } else { "error" };
        let metrics = &member.metrics;
        metrics.health_checks.with_label_values(&[page.name(), name, status]).inc();
        metrics.health_check_results.with_label_values(&[page.name(), name]).set(passed.into());
    }
    if !all_passed {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("{report}\n"));
    }
    if !parameters.iter().any(|(name, _)| name == "verbose") {
        report.clear();
    }
    text(StatusCode::OK, format!("{report}ok\n"))
}

async fn version(method: Method) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let body = serde_json::json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_CLUSTER_VERSION,
    });
    with_type(StatusCode::OK, JSON, body.to_string())
}

async fn metrics_page(State(member): State<Arc<Member>>) -> Response {
    let rendered = tokio::task::spawn_blocking(move || metrics::render(&member)).await;
    match rendered
        .map_err(|error| error.to_string())
        .and_then(|text| text.map_err(|error| error.to_string()))
    {
        Ok(rendered) => with_type(StatusCode::OK, METRICS_TEXT, rendered),
        Err(reason) => {
            tracing::error!(reason, "the metrics cannot be told");
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
        }
    }
}

fn not_allowed() -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    response
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    with_type(status, TEXT, body.into())
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}
