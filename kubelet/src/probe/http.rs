//! The request of an `httpGet` probe.
//!
//! Kubernetes' rules (its `probe/http`): 200 to 399 is success; redirects within the same host are
//! followed, up to ten; one to another host counts as success, and is not followed; certificates are
//! not checked, because a pod is asked by its address; every probe has a connection of its own.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::error::Chain;

/// Kubernetes' number.
const REDIRECTS_MAX: usize = 10;
/// What is read of an answer, so that its server is not cut off in the middle of a short one.
const BODY_MAX_BYTES: usize = 10 << 10;
const USER_AGENT: &str = concat!("kube-probe/miniku-", env!("CARGO_PKG_VERSION"));

/// Asks for a URL. The caller has the deadline.
///
/// # Errors
/// Why the container is taken to be unhealthy.
pub(super) async fn get(url: &str, headers: &[(String, String)]) -> Result<(), String> {
    let failed = |why: String| format!("Get {url:?}: {why}");
    let mut at = Url::parse(url).map_err(|error| failed(error.to_string()))?;
    let headers = header_map(headers).map_err(failed)?;
    let origin = at.host().map(|host| host.to_owned());
    for _ in 0..=REDIRECTS_MAX {
        let response = request(&at, &headers).await.map_err(failed)?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION).filter(|_| status.is_redirection());
        let Some(location) = location else {
            return match status.as_u16() {
                200..400 => Ok(()),
                code => Err(format!("HTTP probe failed with statuscode: {code}")),
            };
        };
        let location = location.to_str().map_err(|error| failed(error.to_string()))?;
        at = at.join(location).map_err(|error| failed(format!("{location:?}: {error}")))?;
        if at.host().map(|host: Host<&str>| host.to_owned()) != origin {
            return Ok(());
        }
    }
    Err(failed(format!("stopped after {REDIRECTS_MAX} redirects")))
}

fn header_map(wanted: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in wanted {
        let read = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        let (header, value) = read.ok_or_else(|| format!("{name:?} cannot be sent as a header"))?;
        headers.append(header, value);
    }
    let defaults = [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")];
    for (name, value) in defaults {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

async fn request(url: &Url, headers: &HeaderMap) -> Result<Response<()>, String> {
    let host = url.host_str().ok_or("the URL has no host")?;
    let port = url.port_or_known_default().ok_or("the URL has no port")?;
    // Brackets are the URL's, not the address's.
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port))
        .await
        .map_err(|error| format!("dial tcp {host}:{port}: {error}"))?;
    if url.scheme() == "https" {
        let name = ServerName::try_from(address.to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(tls()?));
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, url, headers).await
    } else {
        exchange(stream, url, headers).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    headers: &HeaderMap,
) -> Result<Response<()>, String> {
    let broken = |error: hyper::Error| Chain(&error).to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The connection ends with this set.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = target.parse().map_err(|error| format!("{target:?}: {error}"))?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(header::HOST) {
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let authority = HeaderValue::try_from(authority).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, authority);
    }
    let response = sender.send_request(request).await.map_err(broken)?;
    let (head, body) = response.into_parts();
    read_some(body).await;
    Ok(Response::from_parts(head, ()))
}

/// An answer whose body breaks off is an answer all the same.
async fn read_some(mut body: Incoming) {
    let mut read = 0;
    while read < BODY_MAX_BYTES {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

fn tls() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let verifier = Arc::new(AnyCertificate(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes every certificate, but holds the server to having its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every request with what a function makes of its head, and ends with the set.
    async fn server(
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let answer = answer(std::str::from_utf8(&head).unwrap());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, tasks)
    }

    fn status(code: &str, more: &str) -> String {
        format!("HTTP/1.1 {code}\r\ncontent-length: 2\r\n{more}\r\nok")
    }

    #[tokio::test]
    async fn the_status_decides_and_redirects_are_followed_at_home() {
        let (address, _server) = server(|head| {
            let path = head.split(' ').nth(1).unwrap();
            match path {
                "/ok?full=1" => status("200 OK", ""),
                "/304" => status("304 Not Modified", ""),
                "/404" => status("404 Not Found", ""),
                "/500" => status("500 Oh", ""),
                "/home" => status("302 Found", "location: /500\r\n"),
                "/other/fine" => status("301 Moved", "location: ../ok?full=1\r\n"),
                "/away" => status("302 Found", "location: http://192.0.2.1/500\r\n"),
                "/circle" => status("307 Again", "location: /circle\r\n"),
                _ => "no http at all".into(),
            }
        })
        .await;
        let table = [
            ("/ok?full=1", Ok(())),
            ("/304", Ok(())),
            ("/404", Err("HTTP probe failed with statuscode: 404")),
            ("/home", Err("HTTP probe failed with statuscode: 500")),
            ("/other/fine", Ok(())),
            ("/away", Ok(())),
            ("/circle", Err("stopped after 10 redirects")),
            ("/nonsense", Err("invalid HTTP version")),
        ];
        for (path, expected) in table {
            let answer = get(&format!("http://{address}{path}"), &[]).await;
            match (&answer, expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(part)) if why.contains(part) => {}
                _ => panic!("{path}: {answer:?}"),
            }
        }
    }

    #[tokio::test]
    async fn headers_are_sent_and_may_name_another_host() {
        let (address, _server) = server(|head| {
            let head = head.to_ascii_lowercase();
            let all = ["host: web.example\r\n", "x-a: b\r\n", "user-agent: kube-probe/miniku-"];
            let there = all.iter().all(|line| head.contains(line));
            status(if there { "204 Fine" } else { "400 Bad" }, "")
        })
        .await;
        let headers = [("Host", "web.example"), ("X-A", "b")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(get(&format!("http://{address}/"), &headers).await, Ok(()));
        assert!(get(&format!("http://{address}/"), &headers[1..]).await.is_err());
        let bad = [("no name".to_owned(), String::new())];
        assert!(get(&format!("http://{address}/"), &bad).await.unwrap_err().contains("no name"));
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let why = get(&format!("http://{free}/"), &[]).await.unwrap_err();
        assert!(why.contains("dial tcp") && why.contains("refused"), "{why}");
    }
}
