//! What a value in a flat form must look like: Kubernetes' rules for names and labels, and the
//! limits of this API. Every rule answers with the field it was broken in and why.

use std::collections::BTreeMap;

use api::{Cause, validation};

/// The most pods one ReplicaSet may ask for. It stands against typing errors: the count is acted
/// upon at once.
pub(crate) const MAX_DESIRED_COUNT: i32 = 50_000;
/// What a ReplicaSet's pods have behind its name: a dash and eight hexadecimal digits.
const POD_SUFFIX_CHARS: usize = 9;
/// The longest image reference.
const MAX_IMAGE_CHARS: usize = 512;

/// What is wrong with a field, and what would be right.
pub(crate) fn cause(field: impl Into<String>, reason: impl Into<String>) -> Cause {
    Cause { field: field.into(), reason: reason.into() }
}

fn missing(field: impl Into<String>) -> Cause {
    cause(field, "is required")
}

/// A field that must be there (`null` counts as absent).
pub(super) fn required<T>(value: Option<T>, field: &str) -> Result<T, Cause> {
    value.ok_or_else(|| missing(field))
}

/// The name an object gets, from its body and from the request's path.
pub(super) fn name(
    in_body: Option<String>,
    field: &str,
    in_path: Option<&str>,
) -> Result<String, Cause> {
    let in_body = in_body.filter(|name| in_path.is_none() || !name.is_empty());
    let name = match (in_body, in_path) {
        (Some(body), Some(path)) if body != path => {
            return Err(cause(field, format!("is {body:?}, but the request's path says {path:?}")));
        }
        (Some(name), _) => name,
        (None, Some(path)) => path.to_owned(),
        (None, None) => return Err(missing(field)),
    };
    dns_name(&name, field)?;
    Ok(name)
}

/// A name as objects have it: a DNS-1123 subdomain.
pub(super) fn dns_name(name: &str, field: &str) -> Result<(), Cause> {
    validation::dns_subdomain(name).map_err(|rule| cause(field, format!("{name:?} {rule}")))
}

/// A ReplicaSet's name leaves room for what its pods have behind it.
pub(super) fn name_leaves_room_for_pods(name: &str) -> Result<(), Cause> {
    let most = validation::MAX_NAME_CHARS - POD_SUFFIX_CHARS;
    if name.len() > most {
        return Err(cause(
            "name",
            format!(
                "must be at most {most} characters long, so that its pods can be named after it, not {}",
                name.len()
            ),
        ));
    }
    Ok(())
}

/// A number of pods, from 0 to [`MAX_DESIRED_COUNT`].
pub(super) fn desired_count(count: Option<&serde_json::Number>) -> Result<i32, Cause> {
    let field = "desiredCount";
    let count = required(count, field)?;
    count
        .as_i64()
        .and_then(|count| i32::try_from(count).ok())
        .filter(|count| (0..=MAX_DESIRED_COUNT).contains(count))
        .ok_or_else(|| {
            cause(
                field,
                format!("must be a whole number from 0 to {MAX_DESIRED_COUNT}, not {count}"),
            )
        })
}

/// Labels as Kubernetes allows them.
pub(super) fn labels(labels: &BTreeMap<String, String>, field: &str) -> Result<(), Cause> {
    for (key, value) in labels {
        let bad = |reason: String| cause(format!("{field}.{key}"), reason);
        validation::label_key(key).map_err(|rule| bad(format!("{key:?} {rule}")))?;
        validation::label_value(value).map_err(|rule| bad(format!("{value:?} {rule}")))?;
    }
    Ok(())
}

/// An image reference such as `nginx:latest` or `registry.example:5000/team/app@sha256:…`. Whether
/// it exists is for the kubelet to find out.
pub(super) fn image(image: Option<String>, field: &str) -> Result<String, Cause> {
    let image = required(image.filter(|image| !image.is_empty()), field)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
    if image.len() > MAX_IMAGE_CHARS {
        return Err(cause(
            field,
            format!("must be at most {MAX_IMAGE_CHARS} characters long, not {}", image.len()),
        ));
    }
    if !image.bytes().all(allowed) || !image.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(cause(
            field,
            format!("{image:?} is not an image reference such as \"nginx:latest\""),
        ));
    }
    Ok(image)
}

/// The words of a command; no word can hold a NUL byte.
pub(super) fn command(command: &[String], field: &str) -> Result<(), Cause> {
    match command.iter().position(|word| word.contains('\0')) {
        Some(at) => Err(cause(format!("{field}[{at}]"), "must not hold a NUL character")),
        None => Ok(()),
    }
}

/// Environment variables: a name is not empty and holds neither `=` nor a control character.
pub(super) fn env(env: &BTreeMap<String, String>, field: &str) -> Result<(), Cause> {
    for (name, value) in env {
        if name.is_empty() || name.contains('=') || name.chars().any(char::is_control) {
            return Err(cause(
                format!("{field}.{name}"),
                format!("{name:?} is not the name of an environment variable"),
            ));
        }
        if value.contains('\0') {
            return Err(cause(format!("{field}.{name}"), "must not hold a NUL character"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_comes_from_the_body_or_the_path() {
        let body = |name: &str| Some(name.to_owned());
        assert_eq!(name(body("a"), "name", None), Ok("a".into()));
        assert_eq!(name(None, "name", Some("a")), Ok("a".into()));
        assert_eq!(name(body(""), "name", Some("a")), Ok("a".into()));
        assert_eq!(name(body("a"), "name", Some("a")), Ok("a".into()));
        assert_eq!(name(None, "spec.name", None), Err(cause("spec.name", "is required")));
        assert_eq!(
            name(body("a"), "name", Some("b")),
            Err(cause("name", r#"is "a", but the request's path says "b""#))
        );
        assert_eq!(name(body(""), "name", None), Err(cause("name", r#""" must not be empty"#)));
        assert_eq!(name(body("A_b"), "name", None).unwrap_err().field, "name");
    }

    #[test]
    fn counts_have_bounds() {
        let parse = |text: &str| {
            desired_count(Some(&serde_json::from_str(text).unwrap())).map_err(|error| error.reason)
        };
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("50000"), Ok(50_000));
        for bad in ["-1", "50001", "2147483648", "1.5", "1e3", "99999999999999999999999"] {
            let reason = parse(bad).unwrap_err();
            assert!(reason.starts_with("must be a whole number from 0 to 50000, not "), "{reason}");
        }
        assert_eq!(desired_count(None), Err(missing("desiredCount")));
    }

    #[test]
    fn labels_name_the_bad_key() {
        let one = |key: &str, value: &str| {
            labels(&BTreeMap::from([(key.to_owned(), value.to_owned())]), "selector")
                .map_err(|cause| cause.field)
        };
        for (key, value) in [("app", "nginx"), ("app", ""), ("example.com/app", "A_b.c-1")] {
            assert_eq!(one(key, value), Ok(()), "{key}={value}");
        }
        for (key, value) in [("", "x"), ("a b", "x"), ("app", "a b")] {
            assert_eq!(one(key, value), Err(format!("selector.{key}")), "{key}={value}");
        }
    }

    #[test]
    fn images_look_like_references() {
        let check = |text: &str| image(Some(text.to_owned()), "image");
        for good in ["nginx", "nginx:latest", "registry.example:5000/team/app@sha256:0123abcd"] {
            assert_eq!(check(good), Ok(good.to_owned()));
        }
        for bad in [" nginx", "nginx latest", "-nginx", "nginx\n", "nginx;rm", &"n".repeat(513)] {
            assert_eq!(check(bad).unwrap_err().field, "image", "{bad}");
        }
        assert_eq!(check(""), Err(missing("image")));
        assert_eq!(image(None, "image"), Err(missing("image")));
    }

    #[test]
    fn environment_and_command_hold_no_nul() {
        let one = |name: &str, value: &str| {
            env(&BTreeMap::from([(name.to_owned(), value.to_owned())]), "env").is_ok()
        };
        assert!(one("PATH", "/bin"));
        assert!(one("PATH", ""));
        assert!(!one("", "x"));
        assert!(!one("A=B", "x"));
        assert!(!one("A\n", "x"));
        assert!(!one("A", "x\0"));
        assert_eq!(command(&["sh".into(), "-c".into()], "command"), Ok(()));
        assert_eq!(command(&["a".into(), "\0".into()], "command").unwrap_err().field, "command[1]");
    }
}
