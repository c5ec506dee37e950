//! What containers of the fake engine do.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;

/// Annotations of a pod that begin so say what its containers do on a fake engine.
const PREFIX: &str = "fake.miniku.dev/";

/// What a container does: by the flags of the kubelet ([`FakeOptions`](super::FakeOptions)), by its image
/// with [`script`](super::FakeRuntime::script), or by annotations of its pod, which win:
///
/// | annotation | value | meaning |
/// | --- | --- | --- |
/// | `fake.miniku.dev/start-delay` | `1s500ms` | how long a start takes |
/// | `fake.miniku.dev/start-error` | text | it cannot be started, with these words |
/// | `fake.miniku.dev/exit-after` | `2s` | it ends by itself after that long |
/// | `fake.miniku.dev/exit-code` | `3` | with that code (0) |
/// | `fake.miniku.dev/ignore-stop` | `true` | it takes no notice of being asked to stop |
///
/// With `.<container>` behind its name, as in `fake.miniku.dev/exit-code.setup`, an annotation is for
/// that container only. Sandboxes are not concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The image cannot be pulled, with these words.
    pub pull_error: Option<String>,
    /// How long a start takes.
    pub start_delay: Duration,
    /// The container cannot be started, with these words.
    pub start_error: Option<String>,
    /// It ends by itself after that long, with that code.
    pub exit_after: Option<(Duration, i32)>,
    /// It takes no notice of being asked to stop.
    pub ignores_stop: bool,
}

impl Script {
    /// This script as the pod's annotations change it for a container; otherwise which annotation is
    /// no such.
    pub(super) fn annotated(
        mut self,
        annotations: &BTreeMap<String, String>,
        container: &str,
    ) -> Result<Self, String> {
        let own = |what: &str| annotations.get(&format!("{PREFIX}{what}.{container}"));
        let get = |what: &str| own(what).or_else(|| annotations.get(&format!("{PREFIX}{what}")));
        if let Some(delay) = get("start-delay") {
            self.start_delay = duration("start-delay", delay)?;
        }
        if let Some(message) = get("start-error") {
            self.start_error = Some(message.clone());
        }
        let code = get("exit-code").map(|code| {
            code.parse().map_err(|_| format!("{PREFIX}exit-code: {code:?} is no exit code"))
        });
        let code = code.transpose()?;
        if let Some(after) = get("exit-after") {
            self.exit_after = Some((duration("exit-after", after)?, 0));
        }
        if let (Some((_, exit)), Some(code)) = (&mut self.exit_after, code) {
            *exit = code;
        }
        if let Some(ignores) = get("ignore-stop") {
            self.ignores_stop = ignores == "true";
        }
        Ok(self)
    }
}

fn duration(what: &str, text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    parsed.ok_or_else(|| format!("{PREFIX}{what}: {text:?} is no duration, such as 1s500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_win_and_the_containers_own_most_of_all() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let set: BTreeMap<String, String> = annotations(&[
            ("fake.miniku.dev/exit-after", "1s500ms"),
            ("fake.miniku.dev/exit-code.main", "3"),
            ("fake.miniku.dev/start-delay", "20ms"),
            ("fake.miniku.dev/ignore-stop", "true"),
            ("unrelated", "x"),
        ]);
        let base = Script { start_error: Some("no".into()), ..Script::default() };
        let main = base.clone().annotated(&set, "main").unwrap();
        assert_eq!(main.exit_after, Some((Duration::from_millis(1500), 3)));
        assert_eq!(main.start_delay, Duration::from_millis(20));
        assert_eq!(main.start_error.as_deref(), Some("no"));
        assert!(main.ignores_stop);
        let other = base.clone().annotated(&set, "other").unwrap();
        assert_eq!(other.exit_after, Some((Duration::from_millis(1500), 0)));

        for (key, value) in [("exit-after", "soon"), ("exit-code", "x"), ("start-delay", "-1s")] {
            let bad = annotations(&[(&format!("fake.miniku.dev/{key}"), value)]);
            assert!(base.clone().annotated(&bad, "main").unwrap_err().contains(key));
        }
    }
}
