//! Which event tells of an occurrence, as a pure function of what was told before.
//!
//! Kubernetes' rules (client-go's `EventCorrelator`), in this order:
//!
//! 1. From the [`SIMILAR_MAX`]th occurrence within [`SIMILAR_SECONDS`] that differs from others in
//!    its message alone, they are one event whose message is that of the latest one.
//! 2. An occurrence that is like an earlier one counts up that one's event.
//! 3. A source may tell [`BURST`] times of one object, and once every [`REFILL_SECONDS`] after
//!    that; what is more is counted and not told.
//!
//! ```text
//! told: Pulled "a"   Pulled "a"   Pulled "b"
//!       web.17 x1    web.17 x2    web.18 x1
//! ```

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{Occurrence, Subject};
use crate::validation::MAX_NAME_CHARS;

/// How many similar occurrences are told one by one, less one, and how far apart they may lie.
const SIMILAR_MAX: usize = 10;
const SIMILAR_SECONDS: i64 = 600;
/// What the message of an event begins with that stands for several similar ones.
const COMBINED: &str = "(combined from similar events): ";
/// How often one source may tell of one object at once, and the seconds until once more.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// How much is remembered of each sort.
const REMEMBERED_MAX: usize = 8192;
/// Where events about objects without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";

/// Remembers what was told.
#[derive(Default)]
pub(super) struct Correlator {
    similar: Remembered<Similar>,
    told: Remembered<Told>,
    budgets: Remembered<Budget>,
    /// The last number that became part of a name.
    last_number: i128,
}

/// Occurrences that differ in their messages alone.
struct Similar {
    last: Timestamp,
    /// Hashes of their messages.
    messages: HashSet<u64>,
}

/// An event that was told.
struct Told {
    name: String,
    uid: String,
    first: Timestamp,
    count: i32,
}

/// How often a source may still tell of an object.
struct Budget {
    tokens: f64,
    at: Timestamp,
}

impl Correlator {
    /// The event to write, new or as it has become; none when its source tells too much of its
    /// object. A new one gets the name of its object with the time behind it, and a uid.
    pub(super) fn observe(
        &mut self,
        occurrence: Occurrence,
        new_uid: impl FnOnce() -> String,
    ) -> Option<Event> {
        let at = occurrence.at;
        let (object, similar) = keys(&occurrence);
        let (key, message) = if self.is_one_of_many(&similar, &occurrence.message, at) {
            (similar, format!("{COMBINED}{}", occurrence.message))
        } else {
            (format!("{similar}\0{}", occurrence.message), occurrence.message)
        };
        let Subject(mut subject) = occurrence.subject;
        // Two events of one moment must not have one name.
        let number = at.as_nanosecond().max(self.last_number + 1);
        let told = self.told.entry(key, || Told {
            name: event_name(subject.name.as_deref().unwrap_or_default(), number),
            uid: new_uid(),
            first: at,
            count: 0,
        });
        if told.count == 0 {
            self.last_number = number;
        }
        told.count = told.count.saturating_add(1);
        let budget = self.budgets.entry(object, || Budget { tokens: BURST, at });
        if !budget.spend(at) {
            return None;
        }
        let namespace = subject.namespace.clone().filter(|namespace| !namespace.is_empty());
        subject.namespace.clone_from(&namespace);
        Some(Event {
            metadata: ObjectMeta {
                name: Some(told.name.clone()),
                namespace: Some(namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
                uid: Some(told.uid.clone()),
                creation_timestamp: Some(whole_seconds(told.first)),
                ..ObjectMeta::default()
            },
            involved_object: subject,
            type_: Some(occurrence.type_.to_owned()),
            reason: Some(occurrence.reason.to_owned()),
            message: Some(message),
            count: Some(told.count),
            first_timestamp: Some(whole_seconds(told.first)),
            last_timestamp: Some(whole_seconds(at)),
            reporting_component: occurrence.source.component.clone(),
            reporting_instance: occurrence.source.host.clone(),
            source: Some(occurrence.source.as_ref().clone()),
            ..Event::default()
        })
    }

    fn is_one_of_many(&mut self, key: &str, message: &str, at: Timestamp) -> bool {
        let new = || Similar { last: at, messages: HashSet::new() };
        let similar = self.similar.entry(key.to_owned(), new);
        if at.duration_since(similar.last).as_secs() > SIMILAR_SECONDS {
            *similar = new();
        }
        similar.last = at;
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        if similar.messages.contains(&hash) {
            return false;
        }
        if similar.messages.len() + 1 >= SIMILAR_MAX {
            return true;
        }
        similar.messages.insert(hash);
        false
    }
}

impl Budget {
    fn spend(&mut self, at: Timestamp) -> bool {
        let elapsed = at.duration_since(self.at).as_secs_f64().max(0.0);
        self.tokens = (self.tokens + elapsed / REFILL_SECONDS).min(BURST);
        self.at = self.at.max(at);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// What a source's budget for an object is kept under, and what similar occurrences have in common.
fn keys(occurrence: &Occurrence) -> (String, String) {
    let Subject(subject) = &occurrence.subject;
    let source = &occurrence.source;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let object = [
        &source.component,
        &source.host,
        &subject.kind,
        &subject.namespace,
        &subject.name,
        &subject.uid,
    ]
    .map(text)
    .join("\0");
    let field = text(&subject.field_path);
    let similar = format!("{object}\0{field}\0{}\0{}", occurrence.type_, occurrence.reason);
    (object, similar)
}

/// `web-1.17a3f…`: the object's name, as much of it as fits, and a number that no other has.
fn event_name(object: &str, number: i128) -> String {
    let suffix = format!("{number:x}");
    let room = object.floor_char_boundary(MAX_NAME_CHARS - suffix.len() - 1);
    format!("{}.{suffix}", object[..room].trim_end_matches(['-', '.']))
}

fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A map of bounded size that forgets what was not used for longest.
struct Remembered<V> {
    entries: HashMap<String, (u64, V)>,
    uses: u64,
}

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), uses: 0 }
    }
}

impl<V> Remembered<V> {
    fn entry(&mut self, key: String, new: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() >= REMEMBERED_MAX && !self.entries.contains_key(&key) {
            self.forget_half();
        }
        self.uses += 1;
        let (used, value) = self.entries.entry(key).or_insert_with(|| (0, new()));
        *used = self.uses;
        value
    }

    /// Half at a time, so that looking for the oldest costs little for each of them.
    fn forget_half(&mut self) {
        let mut uses: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.entries.retain(|_, (used, _)| *used >= median);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::EventSource;

    use super::*;

    fn told(second: i64, pod: &str, reason: &'static str, message: &str) -> Occurrence {
        let mut subject = Subject::node(pod);
        subject.0.kind = Some("Pod".into());
        subject.0.namespace = Some("web".into());
        let source = EventSource { component: Some("kubelet".into()), host: Some("n".into()) };
        Occurrence {
            at: Timestamp::from_second(second).unwrap(),
            subject,
            source: Arc::new(source),
            type_: "Normal",
            reason,
            message: message.to_owned(),
        }
    }

    fn observe(correlator: &mut Correlator, occurrence: Occurrence) -> Option<Event> {
        correlator.observe(occurrence, || "uid".to_owned())
    }

    #[test]
    fn what_happens_again_is_counted() {
        let mut correlator = Correlator::default();
        // (second, pod, reason, message), the event's number, its count
        let rows = [
            ((10, "a", "Pulled", "x"), 1, 1),
            ((20, "a", "Pulled", "x"), 1, 2),
            ((20, "a", "Pulled", "y"), 2, 1),
            ((30, "b", "Pulled", "x"), 3, 1),
            ((30, "b", "Failed", "x"), 4, 1),
            ((5000, "a", "Pulled", "x"), 1, 3),
        ];
        let mut names: Vec<String> = Vec::new();
        for ((second, pod, reason, message), number, count) in rows {
            let event = observe(&mut correlator, told(second, pod, reason, message)).unwrap();
            let name = event.metadata.name.unwrap();
            if !names.contains(&name) {
                names.push(name.clone());
            }
            assert_eq!(names.iter().position(|known| *known == name), Some(number - 1));
            assert_eq!(event.count, Some(count));
            assert_eq!(event.last_timestamp.unwrap().0.as_second(), second);
            assert_eq!(event.message.as_deref(), Some(message));
        }
    }

    #[test]
    fn an_event_says_what_users_look_at() {
        let mut correlator = Correlator::default();
        observe(&mut correlator, told(100, "a", "Pulled", "x")).unwrap();
        let event = observe(&mut correlator, told(160, "a", "Pulled", "x")).unwrap();
        assert!(event.metadata.name.as_deref().unwrap().starts_with("a."));
        assert_eq!(event.metadata.namespace.as_deref(), Some("web"));
        assert_eq!(event.involved_object.name.as_deref(), Some("a"));
        assert_eq!(event.first_timestamp.unwrap().0.as_second(), 100);
        assert_eq!(event.last_timestamp.unwrap().0.as_second(), 160);
        assert_eq!(event.source.unwrap().component.as_deref(), Some("kubelet"));
        assert_eq!(event.reporting_instance.as_deref(), Some("n"));
        assert_eq!(event.type_.as_deref(), Some("Normal"));

        let mut about_node = told(1, "node-1", "Starting", "x");
        about_node.subject = Subject::node("node-1");
        let event = observe(&mut correlator, about_node).unwrap();
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.involved_object.namespace, None);
    }

    #[test]
    fn many_that_differ_in_their_message_alone_become_one() {
        let mut correlator = Correlator::default();
        let mut names = HashSet::new();
        for number in 0..12 {
            let message = format!("message {number}");
            let event = observe(&mut correlator, told(number, "a", "Created", &message)).unwrap();
            let combined = number >= 9;
            let expected = if combined { format!("{COMBINED}{message}") } else { message };
            assert_eq!(event.message, Some(expected));
            assert_eq!(
                event.count,
                Some(if combined { i32::try_from(number).unwrap() - 8 } else { 1 })
            );
            names.insert(event.metadata.name);
        }
        assert_eq!(names.len(), 10);
        // One of the first is still itself, and after a quiet while all are.
        let event = observe(&mut correlator, told(12, "a", "Created", "message 3")).unwrap();
        assert_eq!((event.message.as_deref(), event.count), (Some("message 3"), Some(2)));
        let event = observe(&mut correlator, told(700, "a", "Created", "message 20")).unwrap();
        assert_eq!(event.message.as_deref(), Some("message 20"));
    }

    #[test]
    fn a_source_may_not_tell_of_one_object_without_end() {
        let mut correlator = Correlator::default();
        let tell = |correlator: &mut Correlator, second, pod| {
            observe(correlator, told(second, pod, "BackOff", "x")).and_then(|event| event.count)
        };
        for count in 1..=25 {
            assert_eq!(tell(&mut correlator, 0, "a"), Some(count));
        }
        assert_eq!(tell(&mut correlator, 0, "a"), None);
        assert_eq!(tell(&mut correlator, 299, "a"), None);
        assert_eq!(tell(&mut correlator, 299, "b"), Some(1), "another object");
        // What was not told is counted.
        assert_eq!(tell(&mut correlator, 301, "a"), Some(28));
        assert_eq!(tell(&mut correlator, 301, "a"), None);
        // A clock that was set back gives nothing away, and takes nothing for ever.
        assert_eq!(tell(&mut correlator, 0, "a"), None);
        assert_eq!(tell(&mut correlator, 700, "a"), Some(31));
    }

    #[test]
    fn names_are_short_enough_and_never_the_same() {
        let mut correlator = Correlator::default();
        let long = format!("{}-{}", "a".repeat(234), "b".repeat(20));
        let mut names = HashSet::new();
        for message in ["x", "y", "z"] {
            let event = observe(&mut correlator, told(5, &long, "Pulled", message)).unwrap();
            let name = event.metadata.name.unwrap();
            assert_eq!(crate::validation::dns_subdomain(&name), Ok(()), "{name}");
            names.insert(name);
        }
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let mut remembered = Remembered::default();
        for number in 0..=REMEMBERED_MAX {
            *remembered.entry("kept".into(), || 0) += 1;
            remembered.entry(number.to_string(), || 0);
            assert!(remembered.entries.len() <= REMEMBERED_MAX);
        }
        assert!(*remembered.entry("kept".into(), || 0) > 1);
        assert!(!remembered.entries.contains_key("0"));
        assert!(remembered.entries.contains_key(&REMEMBERED_MAX.to_string()));
    }
}
