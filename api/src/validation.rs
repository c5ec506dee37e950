//! The rules for names and labels, Kubernetes' own, for every face to apply alike.
//!
//! Each function answers with what is wrong, as the rest of a sentence that begins with the field.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Cause;

/// The longest name of an object, in characters.
pub const MAX_NAME_CHARS: usize = 253;
/// The longest DNS label, and the longest label value, in characters.
pub const MAX_LABEL_CHARS: usize = 63;

/// A DNS-1123 subdomain: what objects are named with.
pub fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("must not be empty");
    }
    if name.len() > MAX_NAME_CHARS {
        return Err("must not have more than 253 characters");
    }
    if name.split('.').all(is_dns_label) {
        Ok(())
    } else {
        Err(
            "must consist of lower case letters, digits, '-' and '.', and begin and end (also beside a '.') with a letter or digit",
        )
    }
}

/// A DNS-1123 label: what namespaces and containers are named with.
pub fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("must not be empty");
    }
    if name.len() > MAX_LABEL_CHARS {
        return Err("must not have more than 63 characters");
    }
    if is_dns_label(name) {
        Ok(())
    } else {
        Err(
            "must consist of lower case letters, digits and '-', and begin and end with a letter or digit",
        )
    }
}

fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// The key of a label: `name` or `prefix/name`, the prefix a DNS-1123 subdomain.
pub fn label_key(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|_| "must have a DNS subdomain before the '/'")?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err("must not be empty");
    }
    if name.len() > MAX_LABEL_CHARS {
        return Err("must not have more than 63 characters after the '/'");
    }
    label_characters(name)
}

/// The value of a label, which may be empty.
pub fn label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Ok(());
    }
    if value.len() > MAX_LABEL_CHARS {
        return Err("must not have more than 63 characters");
    }
    label_characters(value)
}

fn label_characters(text: &str) -> Result<(), &'static str> {
    let outer = |byte: u8| byte.is_ascii_alphanumeric();
    let inner = |byte: u8| outer(byte) || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    let ends =
        bytes.first().copied().is_some_and(outer) && bytes.last().copied().is_some_and(outer);
    if ends && bytes.iter().copied().all(inner) {
        Ok(())
    } else {
        Err(
            "must consist of letters, digits, '-', '_' and '.', and begin and end with a letter or digit",
        )
    }
}

/// Adds what is wrong with a map of labels, which is at `field`.
pub fn labels(field: &str, labels: &BTreeMap<String, String>, causes: &mut Vec<Cause>) {
    for (key, value) in labels {
        check(causes, || format!("{field}[{key:?}] (the key)"), label_key(key));
        check(causes, || format!("{field}[{key:?}]"), label_value(value));
    }
}

/// Adds what is wrong with the metadata of an object: its name, namespace and labels.
pub(crate) fn metadata(metadata: &ObjectMeta, namespaced: bool, causes: &mut Vec<Cause>) {
    let name = metadata.name.as_deref().unwrap_or_default();
    check(causes, || "metadata.name".into(), dns_subdomain(name));
    match (metadata.namespace.as_deref().unwrap_or_default(), namespaced) {
        (namespace, true) => {
            check(causes, || "metadata.namespace".into(), dns_label(namespace));
        }
        ("", false) => {}
        (_, false) => {
            check(
                causes,
                || "metadata.namespace".into(),
                Err("must be empty for a kind without namespaces"),
            );
        }
    }
    if let Some(map) = &metadata.labels {
        labels("metadata.labels", map, causes);
    }
    for (i, finalizer) in metadata.finalizers.iter().flatten().enumerate() {
        check(causes, || format!("metadata.finalizers[{i}]"), label_key(finalizer));
    }
}

/// Adds a cause when a rule is broken.
pub(crate) fn check(
    causes: &mut Vec<Cause>,
    field: impl FnOnce() -> String,
    result: Result<(), &str>,
) {
    if let Err(reason) = result {
        causes.push(Cause { field: field(), reason: reason.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "a".repeat(253);
        for good in ["a", "web-1", "a.b-c.d9", "0", &longest] {
            assert_eq!(dns_subdomain(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(254);
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", ".a", "a.", "a/b", "ä", "a b", &too_long] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
        assert!(dns_label("a.b").is_err());
        assert!(dns_label(&"a".repeat(64)).is_err());
        assert_eq!(dns_label(&"a".repeat(63)), Ok(()));
    }

    #[test]
    fn label_keys_and_values() {
        for good in ["app", "app.kubernetes.io/name", "A_b.c-9", "x/y"] {
            assert_eq!(label_key(good), Ok(()), "{good}");
        }
        let too_long = format!("a/{}", "b".repeat(64));
        for bad in ["", "/a", "a/", "-a", "a-", "a b", "A/b", "a/b/c", &too_long] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        for good in ["", "nginx", "1.2_3-x"] {
            assert_eq!(label_value(good), Ok(()), "{good}");
        }
        for bad in ["-", "a/b", " ", &"a".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }
}
