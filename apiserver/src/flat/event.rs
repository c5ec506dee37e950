//! The flat form of an event. Events come from the components, so clients read them only.

use api::{KINDS, Kind};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::pod::{NO_TIME, whole_seconds};
use super::{Filter, Flat};

/// Events under `/events`.
pub(crate) struct Events;

/// What a client reads; the order of the fields is part of it.
#[derive(Debug, Serialize)]
pub(crate) struct Form {
    /// When it happened last.
    time: String,
    #[serde(rename = "type")]
    type_: String,
    reason: String,
    /// What it happened to, as in `pod/web-1`.
    object: String,
    message: String,
    count: i32,
}

impl Flat for Events {
    type Object = Event;
    type Form = Form;

    const FILTERS: &'static [&'static str] = &["pod", "replicaset", "node"];

    fn form(object: &Event) -> Form {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let about = &object.involved_object;
        Form {
            time: last_seen(object).map_or_else(|| NO_TIME.to_owned(), whole_seconds),
            type_: text(&object.type_),
            reason: text(&object.reason),
            object: format!("{}/{}", text(&about.kind).to_lowercase(), text(&about.name)),
            message: text(&object.message),
            count: object.count.unwrap_or(1),
        }
    }

    fn is_wanted(object: &Event, filter: &Filter) -> bool {
        let about = &object.involved_object;
        let of_kind = |kind: &&Kind| about.kind.as_deref() == Some(kind.kind);
        let singular = KINDS.into_iter().find(of_kind).map(|kind| kind.singular);
        singular == Some(filter.by) && about.name.as_ref() == Some(&filter.value)
    }

    /// The latest last, as a person reads a log.
    fn arrange(forms: &mut [Form]) {
        forms.sort_by(|one, other| one.time.cmp(&other.time));
    }
}

/// Events of `events.k8s.io` have an `eventTime`, and a series once they are repeated.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
    last.map(|time| time.0)
        .max(series.map(|time| time.0))
        .max(event.event_time.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(fields: &Value) -> Event {
        let mut event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "web-1.17", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "web-1", "namespace": "default"},
            "type": "Warning",
            "reason": "BackOff",
            "message": "Back-off restarting failed container main",
        });
        let fields = fields.as_object().unwrap().clone();
        event.as_object_mut().unwrap().extend(fields);
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn an_event_in_short() {
        let seen = event(&json!({
            "firstTimestamp": "2026-01-02T03:04:05Z",
            "lastTimestamp": "2026-01-02T03:05:05Z",
            "count": 3,
        }));
        assert_eq!(
            serde_json::to_string(&Events::form(&seen)).unwrap(),
            r#"{"time":"2026-01-02T03:05:05Z","type":"Warning","reason":"BackOff","object":"pod/web-1","message":"Back-off restarting failed container main","count":3}"#
        );
        for (fields, time) in [
            (json!({}), NO_TIME),
            (json!({"eventTime": "2026-01-02T03:04:05.123456Z"}), "2026-01-02T03:04:05Z"),
            (json!({"firstTimestamp": "2026-01-02T03:04:05Z"}), "2026-01-02T03:04:05Z"),
        ] {
            assert_eq!(Events::form(&event(&fields)).time, time, "{fields}");
        }
    }

    #[test]
    fn filters_name_the_object() {
        let event = event(&json!({}));
        for (by, value, wanted) in [
            ("pod", "web-1", true),
            ("pod", "web-2", false),
            ("node", "web-1", false),
            ("replicaset", "web-1", false),
        ] {
            let filter = Filter { by, value: value.to_owned() };
            assert_eq!(Events::is_wanted(&event, &filter), wanted, "{filter:?}");
        }
    }

    #[test]
    fn the_latest_comes_last() {
        let times = ["2026-01-02T03:04:07Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"];
        let mut forms: Vec<Form> = times
            .iter()
            .map(|time| Events::form(&event(&json!({"lastTimestamp": time}))))
            .collect();
        Events::arrange(&mut forms);
        let order: Vec<&str> = forms.iter().map(|form| form.time.as_str()).collect();
        assert_eq!(order, ["2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z", "2026-01-02T03:04:07Z"]);
    }
}
