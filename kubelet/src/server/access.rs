//! Who may ask a kubelet for logs and commands: the one place that decides it.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

/// Who is heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// Others than this machine, too.
    pub(crate) remote: bool,
}

impl Access {
    /// Whether a request from there is carried out; otherwise why not.
    ///
    /// A browser says on behalf of which page it asks. No page is to run commands in pods, whatever
    /// machine the browser is on; API servers never name one.
    pub(crate) fn check(self, peer: IpAddr, headers: &HeaderMap) -> Result<(), String> {
        if headers.contains_key(header::ORIGIN) {
            return Err("requests from web pages are refused".to_owned());
        }
        if self.remote || peer.to_canonical().is_loopback() {
            return Ok(());
        }
        Err(format!(
            "requests from {peer} are refused: this kubelet hears its own machine only (it would \
             hear others with --allow-remote-requests)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_heard_unless_told_otherwise_and_never_a_web_page() {
        let none = HeaderMap::new();
        let page = HeaderMap::from_iter([(header::ORIGIN, "http://example.org".parse().unwrap())]);
        for (remote, peer, headers, heard) in [
            (false, "127.0.0.1", &none, true),
            (false, "::1", &none, true),
            (false, "::ffff:127.0.0.1", &none, true),
            (false, "10.0.0.7", &none, false),
            (true, "10.0.0.7", &none, true),
            (false, "127.0.0.1", &page, false),
            (true, "10.0.0.7", &page, false),
        ] {
            let access = Access { remote };
            let peer = peer.parse().unwrap();
            assert_eq!(access.check(peer, headers).is_ok(), heard, "{remote} {peer}");
        }
    }
}
