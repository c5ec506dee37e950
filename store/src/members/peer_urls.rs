//! The peer URLs of a member, as etcd takes and compares them.

use crate::error::RequestError;

/// Checked and in order, as they are stored and listed.
///
/// etcd's rules: at least one, `scheme://host:port` without a path. Of its schemes only `http` is
/// spoken between members.
pub(crate) fn checked(urls: &[String]) -> Result<Vec<String>, RequestError> {
    if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url)) {
        return Err(RequestError::BadMemberUrls);
    }
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls.dedup();
    Ok(urls)
}

fn is_peer_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let has_path = uri.path() != "/" || url.ends_with('/') || uri.query().is_some();
    let host_and_port = uri.authority().is_some_and(|authority| {
        !authority.host().is_empty()
            && authority.port_u16().is_some()
            && !authority.as_str().contains('@')
    });
    uri.scheme_str() == Some("http") && host_and_port && !has_path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_members_can_be_reached_by_is_taken() {
        for good in ["http://127.0.0.1:2380", "http://a.b:1", "http://[::1]:2380"] {
            assert_eq!(checked(&[good.to_owned()]).unwrap(), [good]);
        }
        for bad in [
            "",
            "127.0.0.1:2380",
            "a:2380",
            "ftp://a:1",
            "https://a:1",
            "http://a",
            "http://:2380",
            "http://a:2380/",
            "http://a:2380/path",
            "http://a:2380?x=1",
            "http://user@a:2380",
            "http://a:port",
        ] {
            assert!(checked(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(checked(&[]).is_err());
    }

    #[test]
    fn they_are_kept_in_order_and_once() {
        let urls = ["http://b:1", "http://a:1", "http://b:1"].map(str::to_owned);
        assert_eq!(checked(&urls).unwrap(), ["http://a:1", "http://b:1"]);
    }
}
