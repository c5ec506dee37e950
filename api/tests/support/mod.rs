//! Objects and clients for the tests against a real etcd.
#![allow(unreachable_pub, dead_code, reason = "each test takes what it needs")]

use std::future::Future;
use std::time::Duration;

use api::{Api, Client, ClientConfig, Clock, Object, Store};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Access to objects through some endpoints.
pub fn api<K: Object>(urls: &[String]) -> Api<K> {
    let mut config = ClientConfig::new(&urls.join(",")).unwrap();
    config.request_timeout = PATIENCE;
    let clock = Clock::fixed("2026-01-02T03:04:05Z".parse().unwrap());
    Store::new(Client::new(config).unwrap(), clock).api()
}

/// A pod of the namespace `default`, as a client sends it.
pub fn pod(name: &str) -> Pod {
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "containers": [{ "name": "main", "image": "nginx" }] },
    }))
}

/// An object out of JSON.
pub fn object<K: Object>(json: Value) -> K {
    serde_json::from_value(json).unwrap()
}

/// Waits until a condition holds.
pub async fn until<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
