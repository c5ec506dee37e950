//! Where the store is and how long to wait for it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Uri};

use crate::Error;

/// How a connection to an endpoint is made: tests and simulations bring their own network.
pub type Dial = Arc<dyn Fn(Endpoint) -> Channel + Send + Sync>;

/// The addresses of the members of one store, in the order given; never empty.
///
/// Parsed from a comma-separated list: `http://127.0.0.1:2379,http://127.0.0.1:22379`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<Uri>);

impl Endpoints {
    /// The endpoints, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Uri> {
        self.0.iter()
    }
}

impl FromStr for Endpoints {
    type Err = Error;

    fn from_str(list: &str) -> Result<Self, Error> {
        let endpoints: Vec<Uri> = list.split(',').map(parse_endpoint).collect::<Result<_, _>>()?;
        Ok(Self(endpoints))
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, uri) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(uri.to_string().trim_end_matches('/'))?;
        }
        Ok(())
    }
}

fn parse_endpoint(text: &str) -> Result<Uri, Error> {
    let text = text.trim();
    let wrong =
        |reason: &str| Error::Endpoint { endpoint: text.to_owned(), reason: reason.to_owned() };
    if text.is_empty() {
        return Err(wrong("is empty: write http://HOST:PORT, several with commas between"));
    }
    let uri: Uri = text.parse().map_err(|_| wrong("is not a URL: write http://HOST:PORT"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(wrong("asks for TLS, which is not supported: write http://")),
        _ => return Err(wrong("has no scheme: write http://HOST:PORT")),
    }
    if uri.port_u16().is_none() {
        return Err(wrong("has no port: write http://HOST:PORT"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong("has a path: write http://HOST:PORT and nothing behind it"));
    }
    Ok(uri)
}

/// Where the store is and how long to wait for it.
#[derive(Clone)]
pub struct ClientConfig {
    /// The members of the store.
    pub endpoints: Endpoints,
    /// Index of the endpoint to begin with, taken modulo their number: clients that are given
    /// different ones spread over the members.
    pub first_endpoint: usize,
    /// The deadline of a call, all its attempts together.
    pub request_timeout: Duration,
    /// Calls that are under way at once; more wait for their turn, so that a crowd of them makes
    /// none too late. Watches and [urgent](crate::Client::urgent) calls do not count.
    pub calls_at_once: usize,
    /// How long a call may wait for its turn; its deadline begins after that.
    pub turn_timeout: Duration,
    /// How long a first attempt may take before another endpoint is asked; each further attempt of
    /// the same call gets twice the time of the one before, so that a store that is slow as a
    /// whole is not asked ever more.
    pub attempt_timeout: Duration,
    /// How long making a connection may take.
    pub dial_timeout: Duration,
    /// How long an endpoint that has watches on it may be silent before it is asked for a sign of
    /// life; without one within [`Self::attempt_timeout`] its watches go elsewhere.
    pub watch_probe_interval: Duration,
    /// How connections are made; none: TCP.
    pub dial: Option<Dial>,
}

impl ClientConfig {
    /// The defaults, for a comma-separated list of endpoints.
    pub fn new(endpoints: &str) -> Result<Self, Error> {
        Ok(Self::for_endpoints(endpoints.parse()?))
    }

    /// The defaults, for endpoints that are parsed already.
    pub fn for_endpoints(endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            first_endpoint: 0,
            request_timeout: Duration::from_secs(5),
            calls_at_once: 256,
            turn_timeout: Duration::from_secs(60),
            attempt_timeout: Duration::from_millis(500),
            dial_timeout: Duration::from_millis(500),
            watch_probe_interval: Duration::from_millis(500),
            dial: None,
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("endpoints", &self.endpoints)
            .field("first_endpoint", &self.first_endpoint)
            .field("request_timeout", &self.request_timeout)
            .field("calls_at_once", &self.calls_at_once)
            .field("turn_timeout", &self.turn_timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("dial_timeout", &self.dial_timeout)
            .field("watch_probe_interval", &self.watch_probe_interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_endpoints_is_read_in_order() {
        let endpoints: Endpoints = "http://a:1, http://b:2/".parse().unwrap();
        assert_eq!(endpoints.to_string(), "http://a:1,http://b:2");
    }

    #[test]
    fn a_wrong_endpoint_says_what_to_write() {
        let cases = [
            ("", "is empty"),
            ("http://a:1,,http://b:2", "is empty"),
            ("127.0.0.1:2379", "http://HOST:PORT"),
            ("localhost", "has no scheme"),
            ("http://a", "has no port"),
            ("https://a:1", "TLS"),
            ("ftp://a:1", "has no scheme"),
            ("http://a:1/v3", "has a path"),
            ("http://a b:1", "is not a URL"),
        ];
        for (list, expected) in cases {
            let text = list.parse::<Endpoints>().unwrap_err().to_string();
            assert!(text.contains(expected), "{list:?}: {text}");
        }
    }
}
