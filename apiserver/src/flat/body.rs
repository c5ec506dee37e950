//! Reading a request's body: JSON in, and a failure says at which field.

use api::Cause;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use super::rules::cause;

/// Reads `body` as JSON of the form `T`, with nothing behind it.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Cause> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(cause("", "the request has no body; it must be a JSON object"));
    }
    // Broken JSON is called that, whatever else a reader would have stumbled over before the break.
    serde_json::from_slice::<IgnoredAny>(body).map_err(|error| invalid(String::new(), &error))?;
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        invalid(field, error.inner())
    })
}

fn invalid(field: String, error: &serde_json::Error) -> Cause {
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            cause("", format!("the body is not JSON: {error}"))
        }
        // The field tells where it is; the parser's line and column would only repeat it.
        Category::Data => {
            let text = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            cause(field, text.strip_suffix(&place).unwrap_or(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object")]
    struct Outer {
        #[allow(dead_code)]
        inner: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        words: Option<Vec<String>>,
        #[allow(dead_code)]
        map: Option<BTreeMap<String, String>>,
    }

    #[test]
    fn a_failure_names_its_field() {
        for (body, field, reason) in [
            ("", "", "the request has no body; it must be a JSON object"),
            (" \n", "", "the request has no body; it must be a JSON object"),
            ("{", "", "the body is not JSON: EOF while parsing an object at line 1 column 1"),
            ("{]", "", "the body is not JSON: key must be a string at line 1 column 2"),
            (
                "{\"outer\":1",
                "",
                "the body is not JSON: EOF while parsing an object at line 1 column 10",
            ),
            ("{} x", "", "the body is not JSON: trailing characters at line 1 column 4"),
            ("\"x\"", "", "invalid type: string \"x\", expected an object"),
            ("{\"outer\":1}", "outer", "unknown field `outer`, expected `inner`"),
            (
                "{\"inner\":{\"typo\":1}}",
                "inner.typo",
                "unknown field `typo`, expected `words` or `map`",
            ),
            (
                "{\"inner\":{\"words\":[\"a\",2]}}",
                "inner.words[1]",
                "invalid type: integer `2`, expected a string",
            ),
            (
                "{\"inner\":{\"map\":{\"a\":null}}}",
                "inner.map.a",
                "invalid type: null, expected a string",
            ),
            ("{\"inner\":{},\"inner\":{}}", "", "duplicate field `inner`"),
        ] {
            let error = parse::<Outer>(body.as_bytes()).unwrap_err();
            assert_eq!((error.field.as_str(), error.reason.as_str()), (field, reason), "{body}");
        }
    }

    #[test]
    fn a_body_that_is_not_text_is_not_json() {
        let error = parse::<Outer>(b"{\"inner\":{\"words\":[\"\xff\"]}}").unwrap_err();
        assert!(error.reason.starts_with("the body is not JSON: "), "{error:?}");
    }
}
