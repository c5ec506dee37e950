//! Requests to the apiserver, as curl makes them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// For an answer; much more than one takes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one apiserver.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Http {
    /// `base` is a URL without a path.
    pub(crate) fn new(base: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), base }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<String> {
        self.send(Method::GET, path, String::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: String) -> anyhow::Result<String> {
        self.send(Method::POST, path, body).await
    }

    async fn send(&self, method: Method, path: &str, body: String) -> anyhow::Result<String> {
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            if !status.is_success() {
                bail!("{status}: {body}");
            }
            Ok(body)
        };
        let answer = timeout(REQUEST_TIMEOUT, exchange).await.context("no answer in time");
        answer.and_then(|answer| answer).with_context(|| format!("{what} failed"))
    }
}
