//! The kubelet's own server: logs, and commands, of containers that only exist in memory.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

#[allow(dead_code, reason = "the others use it all")]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use api::streaming::channels::{Channel, Ending, Message, PROTOCOL};
use api::streaming::{ExecOptions, LogOptions, exec_path, kubelet_address, logs_path};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Node;
use kubelet::runtime::OutputStream::{Stderr, Stdout};
use kubelet::runtime::fake::{ExecScript, FakeOptions, FakeRuntime};
use kubelet::{Config, Running, RuntimeKind};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use support::{Etcd, Pods, eventually, restarts, waiting};

struct World {
    pods: Pods,
    engine: Arc<FakeRuntime>,
    kubelet: Running,
    server: SocketAddr,
    _etcd: Etcd,
}

impl World {
    async fn new() -> Option<Self> {
        let etcd = Etcd::start().await?;
        let engine = FakeRuntime::new(4, 8 << 30);
        let config = Config {
            store: etcd.url.parse().unwrap(),
            node_name: "node-1".into(),
            runtime: RuntimeKind::Fake,
            allow_host_access: false,
            node_ip: Some("192.0.2.7".parse().unwrap()),
            listen: ([127, 0, 0, 1], 0).into(),
            allow_remote_requests: false,
            hollow: None,
            fake: FakeOptions::default(),
        };
        let kubelet = kubelet::start_with(config, engine.clone()).await.unwrap();
        let nodes = etcd.store().api::<Node>();
        let mut server = None;
        eventually("the node tells where its kubelet serves", async || {
            let node = nodes.find(&ObjectKey::cluster("node-1")).await.unwrap();
            server = node.and_then(|node| kubelet_address(&node));
            server.is_some()
        })
        .await;
        let pods = Pods(etcd.store().api());
        Some(Self { pods, engine, kubelet, server: server.unwrap(), _etcd: etcd })
    }

    async fn run(&self, name: &str) {
        self.pods.run(name, "node-1", json!({"image": "web"}), json!({})).await;
        self.pods.until_running(name).await;
    }

    async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::get(format!("http://{}{target}", self.server));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.request(request.body(Empty::new()).unwrap()).await.unwrap()
    }

    /// Status and text.
    async fn read(&self, target: &str) -> (u16, String) {
        let answer = self.get(target, &[]).await;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    async fn log(&self, pod: &str, options: &LogOptions) -> (u16, String) {
        let path = logs_path("default", pod, "main");
        self.read(&format!("{path}?{}", options.to_query())).await
    }

    async fn exec(
        &self,
        pod: &str,
        options: &ExecOptions,
    ) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let path = exec_path("default", pod, "main");
        let url = format!("ws://{}{path}?{}", self.server, options.to_query());
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", PROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(self.server).await.unwrap();
        Ok(tokio_tungstenite::client_async(request, stream).await?.0)
    }
}

macro_rules! world {
    () => {
        match World::new().await {
            Some(world) => world,
            None => return,
        }
    };
}

fn command(words: &[&str], stdin: bool) -> ExecOptions {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    ExecOptions { command, stdin, stdout: true, stderr: true, tty: false }
}

/// The next message that says something.
async fn next(socket: &mut WebSocketStream<TcpStream>) -> (Channel, Bytes) {
    loop {
        let frame = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.unwrap();
        let Frame::Binary(frame) = frame.unwrap().unwrap() else { continue };
        match Message::parse(frame).unwrap() {
            Message::Data(_, bytes) if bytes.is_empty() => {}
            Message::Data(channel, bytes) => return (channel, bytes),
            Message::Close(channel) => panic!("{channel:?} closed"),
        }
    }
}

fn ending((channel, status): (Channel, Bytes)) -> Ending {
    assert_eq!(channel, Channel::Error, "{status:?}");
    Ending::from_status(&status).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_read_whole_in_part_and_of_the_life_before() {
    let world = world!();
    world.run("web").await;
    for (stream, line) in [(Stdout, "one"), (Stderr, "two"), (Stdout, "three")] {
        world.engine.log("web", stream, line);
    }
    let all = LogOptions::default();
    assert_eq!(world.log("web", &all).await, (200, "one\ntwo\nthree\n".into()));
    let tail = LogOptions { tail_lines: Some(2), limit_bytes: Some(6), ..all.clone() };
    assert_eq!(world.log("web", &tail).await, (200, "two\nth".into()));
    let (_, stamped) = world.log("web", &LogOptions { timestamps: true, ..all.clone() }).await;
    let first = stamped.lines().next().unwrap().strip_suffix(" one").unwrap();
    assert!(first.parse::<jiff::Timestamp>().is_ok(), "{first}");

    let previous = LogOptions { previous: true, ..all.clone() };
    let (status, why) = world.log("web", &previous).await;
    assert_eq!(status, 400, "{why}");
    world.engine.end("web", 1);
    world.pods.until("web", "is started again", |pod| restarts(pod) == 1).await;
    world.pods.until_running("web").await;
    assert_eq!(world.log("web", &all).await, (200, String::new()));
    assert_eq!(world.log("web", &previous).await, (200, "one\ntwo\nthree\n".into()));
    world.kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_followed_until_the_container_ends_or_the_client_goes() {
    let world = world!();
    world.run("web").await;
    let target = format!("{}?follow=true", logs_path("default", "web", "main"));
    let mut stays = world.get(&target, &[]).await.into_body();
    let goes = world.get(&target, &[]).await;
    eventually("both read", async || world.engine.log_readers() == 2).await;
    world.engine.log("web", Stdout, "hello");
    let piece = stays.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(piece, "hello\n");
    // Nothing is written meanwhile: that somebody went is noticed all the same.
    drop(goes);
    eventually("one reads", async || world.engine.log_readers() == 1).await;
    world.engine.end("web", 0);
    assert!(stays.frame().await.is_none());
    eventually("nobody reads", async || world.engine.log_readers() == 0).await;
    world.kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_gets_its_input_and_gives_its_outputs_and_its_exit_code() {
    let world = world!();
    world.run("web").await;
    let mut socket = world.exec("web", &command(&["cat"], true)).await.unwrap();
    for text in ["hel", "lo"] {
        socket.send(Frame::Binary(Channel::Stdin.frame(text.as_bytes()))).await.unwrap();
    }
    let mut echo = Vec::new();
    while echo.len() < 5 {
        let (channel, bytes) = next(&mut socket).await;
        assert_eq!(channel, Channel::Stdout);
        echo.extend_from_slice(&bytes);
    }
    assert_eq!(echo, b"hello");
    socket.send(Frame::Binary(Channel::Stdin.close())).await.unwrap();
    assert_eq!(ending(next(&mut socket).await), Ending::Exited(0));
    assert!(matches!(socket.next().await, Some(Ok(Frame::Close(_)))));

    world.engine.script_exec("web", |_| ExecScript {
        stdout: "out".into(),
        stderr: "err".into(),
        exit_code: 3,
        ..ExecScript::default()
    });
    let mut socket = world.exec("web", &command(&["fail"], false)).await.unwrap();
    assert_eq!(next(&mut socket).await, (Channel::Stdout, Bytes::from("out")));
    assert_eq!(next(&mut socket).await, (Channel::Stderr, Bytes::from("err")));
    assert_eq!(ending(next(&mut socket).await), Ending::Exited(3));
    let quiet = ExecOptions { stderr: false, ..command(&["fail"], false) };
    let mut socket = world.exec("web", &quiet).await.unwrap();
    assert_eq!(next(&mut socket).await.0, Channel::Stdout);
    assert_eq!(ending(next(&mut socket).await), Ending::Exited(3), "without its standard error");
    world.kubelet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_ends_with_its_client_and_with_the_kubelet() {
    let world = world!();
    world.run("web").await;
    world.engine.script_exec("web", |_| ExecScript {
        takes: Duration::from_secs(1_000_000),
        ..ExecScript::default()
    });
    let socket = world.exec("web", &command(&["wait"], true)).await.unwrap();
    eventually("it is under way", async || world.engine.commands() == 1).await;
    drop(socket);
    eventually("it was ended", async || world.engine.commands() == 0).await;

    let mut socket = world.exec("web", &command(&["wait"], true)).await.unwrap();
    eventually("it is under way", async || world.engine.commands() == 1).await;
    world.kubelet.shutdown().await;
    let rest = async {
        // How it ends is of no interest.
        while let Some(Ok(_)) = socket.next().await {}
    };
    tokio::time::timeout(Duration::from_secs(30), rest).await.expect("the connection has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said_why() {
    let world = world!();
    world.run("web").await;
    let script = kubelet::runtime::fake::Script {
        pull_error: Some("no such image".into()),
        ..Default::default()
    };
    world.engine.script("absent", script);
    world.pods.run("waits", "node-1", json!({"image": "absent"}), json!({})).await;
    let fails = |pod: &_| waiting(pod).is_some_and(|(why, _)| why == "ErrImagePull");
    world.pods.until("waits", "cannot be pulled", fails).await;
    for (target, status, says) in [
        ("/containerLogs/default/nobody/main", 404, "no pod default/nobody"),
        ("/containerLogs/default/web/other", 404, "it has main"),
        ("/containerLogs/default/web/main?tailLines=x", 400, "tailLines"),
        ("/containerLogs/default/waits/main", 400, "image can't be pulled"),
        ("/exec/default/waits/main?command=ls&output=1", 409, "does not run: ErrImagePull"),
        ("/exec/default/web/main?output=1", 400, "command"),
        ("/exec/default/web/main?command=ls&output=1", 400, "WebSocket"),
        ("/nothing", 404, ""),
    ] {
        let (got, text) = world.read(target).await;
        assert_eq!(got, status, "{target}: {text}");
        assert!(text.contains(says), "{target}: {text}");
    }
    assert_eq!(world.read("/healthz").await, (200, "ok".into()));
    let from_page = [("origin", "http://example.org")];
    let answer = world.get("/containerLogs/default/web/main", &from_page).await;
    assert_eq!(answer.status().as_u16(), 403);

    world.engine.set_down(true);
    let (status, text) = world.log("web", &LogOptions::default()).await;
    assert_eq!((status, text.contains("cannot be reached")), (503, true), "{text}");
    world.kubelet.shutdown().await;
}
