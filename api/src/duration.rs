//! Durations as people write them on a command line.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads a duration above zero, such as `15s` or `1m30s`; what is wrong with another is said as the
/// rest of a sentence.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(api::positive_duration("1m30s"), Ok(Duration::from_secs(90)));
/// assert!(api::positive_duration("15").is_err(), "without a unit");
/// ```
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<SignedDuration>().map_err(|error| error.to_string())?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be above zero, as in 15s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_are_above_zero() {
        assert_eq!(positive_duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(positive_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(positive_duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "15", "0s", "-3s", "soon"] {
            assert!(positive_duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
