//! `/pods/{name}/exec`: commands in a pod's container.
//!
//! `POST` runs a command to its end and answers what it wrote:
//!
//! ```json
//! {"command":["ls","/"],"container":"main","stdin":"…","timeoutSeconds":30}
//! {"exitCode":0,"stdout":"bin\n…","stderr":""}
//! ```
//!
//! `GET` is a WebSocket that speaks `v5.channel.k8s.io`, for input and output as they come; its query
//! is `?command=sh&command=-c&command=…`, and `container`, `stdin`, `stdout`, `stderr`, `tty`.

use std::time::Duration;

use api::Cause;
use api::streaming::ExecOptions;
use api::streaming::channels::{
    Channel, Ending, Message as ChannelMessage, OLD_PROTOCOL, PROTOCOL,
};
use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_tungstenite::tungstenite;
use tungstenite::Message as KubeletMessage;

use super::{KubeletSocket, MESSAGE_MAX_BYTES, Target};
use crate::App;
use crate::flat::{self, Pods, cause};
use crate::objects::existing_key;
use crate::problem::Problem;
use crate::request::{PathName, WholeBody};

/// What is kept of each of a command's two outputs.
const OUTPUT_MAX_BYTES: usize = 1 << 20;
/// How long a command may take unless the request says otherwise, and at most.
const TIMEOUT_SECONDS: u32 = 30;
const TIMEOUT_MAX_SECONDS: u32 = 3600;
/// A command's input is sent in pieces.
const PIECE_BYTES: usize = 32 << 10;
/// WebSockets at a time.
const SESSIONS_MAX: usize = 1024;
/// How often a client is asked for a sign of life, and how long it may give none.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A message that one side does not take for so long is its end.
const SEND_DEADLINE: Duration = Duration::from_secs(60);

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "an object such as {\"command\":[\"ls\",\"/\"]}"
)]
struct Run {
    command: Option<Vec<String>>,
    container: Option<String>,
    stdin: Option<String>,
    timeout_seconds: Option<u32>,
}

/// What a POST answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// None: it was killed when its time was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    stdout: String,
    stderr: String,
    /// It wrote more than is kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    timed_out: bool,
}

/// `POST /pods/{name}/exec`.
pub(crate) async fn run(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> Result<Json<Outcome>, Problem> {
    same_origin(&headers)?;
    let run = Run::parse(&body)?;
    let key = existing_key::<Pods>(&name)?;
    let target = Target::find(&app, &key, run.container.as_deref()).await?;
    let options = ExecOptions {
        command: run.command.unwrap_or_default(),
        stdin: run.stdin.is_some(),
        stdout: true,
        stderr: true,
        tty: false,
    };
    let limit = run.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    let deadline = Instant::now() + Duration::from_secs(limit.into());
    // The kubelet kills a command whose client goes, which is what dropping the socket does.
    let socket = target.exec(&options).await?;
    let (mut sink, mut output) = socket.split();
    let stdin = run.stdin.unwrap_or_default();
    let mut written = Written::default();
    let ending = tokio::select! {
        ending = timeout_at(deadline, written.read(&mut output)) => ending.ok(),
        never = feed(&mut sink, stdin.as_bytes()) => match never {},
        () = app.stop.cancelled() => return Err(Problem::stopping()),
    };
    match ending {
        Some(Some(Ending::Exited(code))) => Ok(Json(written.outcome(Some(code)))),
        Some(Some(Ending::Failed(why))) => Err(Problem::not_run(&why)),
        Some(None) => {
            Err(Problem::node_unreachable(&target.node, "the connection to its kubelet broke"))
        }
        None => Ok(Json(Outcome { timed_out: true, ..written.outcome(None) })),
    }
}

impl Run {
    fn parse(body: &[u8]) -> Result<Self, Cause> {
        let run: Self = flat::parse(body)?;
        let command = run.command.as_deref().unwrap_or_default();
        if command.first().is_none_or(String::is_empty) {
            return Err(cause("command", "must name the program to run, as in [\"ls\",\"/\"]"));
        }
        if let Some(seconds) = run.timeout_seconds
            && !(1..=TIMEOUT_MAX_SECONDS).contains(&seconds)
        {
            let reason = format!("must be from 1 to {TIMEOUT_MAX_SECONDS}, not {seconds}");
            return Err(cause("timeoutSeconds", reason));
        }
        Ok(run)
    }
}

/// Sends a command its input, and then waits for ever: the end is told by the other side.
async fn feed(
    sink: &mut SplitSink<KubeletSocket, KubeletMessage>,
    input: &[u8],
) -> std::convert::Infallible {
    let send = async {
        for piece in input.chunks(PIECE_BYTES) {
            sink.send(KubeletMessage::Binary(Channel::Stdin.frame(piece))).await?;
        }
        sink.send(KubeletMessage::Binary(Channel::Stdin.close())).await
    };
    if let Err(error) = send.await {
        tracing::debug!(%error, "a command takes no more input");
    }
    std::future::pending().await
}

/// What a command has written so far.
#[derive(Default)]
struct Written {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Written {
    /// Takes in all that the command writes, and gives back how it ended; none when the connection
    /// ended before it.
    async fn read(&mut self, output: &mut SplitStream<KubeletSocket>) -> Option<Ending> {
        while let Some(message) = output.next().await {
            let frame = match message {
                Ok(KubeletMessage::Binary(frame)) => frame,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%error, "a connection to a kubelet broke");
                    return None;
                }
            };
            match ChannelMessage::parse(frame) {
                Ok(ChannelMessage::Data(Channel::Stdout, bytes)) => {
                    self.truncated |= keep(&mut self.stdout, &bytes);
                }
                Ok(ChannelMessage::Data(Channel::Stderr, bytes)) => {
                    self.truncated |= keep(&mut self.stderr, &bytes);
                }
                Ok(ChannelMessage::Data(Channel::Error, status)) => {
                    let ending = Ending::from_status(&status);
                    return Some(ending.unwrap_or_else(|error| Ending::Failed(error.to_string())));
                }
                _ => {}
            }
        }
        None
    }

    fn outcome(&self, exit_code: Option<i32>) -> Outcome {
        Outcome {
            exit_code,
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            truncated: self.truncated,
            timed_out: false,
        }
    }
}

/// Keeps what there is room for, and tells whether there was more.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = OUTPUT_MAX_BYTES.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    bytes.len() > room
}

/// `GET /pods/{name}/exec`, as a WebSocket.
pub(crate) async fn attach(
    State(app): State<App>,
    PathName(name): PathName,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    same_origin(&headers)?;
    let (container, options) = exec_query(&uri)?;
    let key = existing_key::<Pods>(&name)?;
    let upgrade = upgrade.map_err(|rejection| {
        Problem::bad_request(format!(
            "GET is for a WebSocket that speaks {PROTOCOL} ({rejection}); POST runs a command and \
             answers with its output"
        ))
    })?;
    let upgrade = upgrade.max_message_size(MESSAGE_MAX_BYTES).protocols([PROTOCOL, OLD_PROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        let reason = format!("the WebSocket has to speak {PROTOCOL} (Sec-WebSocket-Protocol)");
        return Err(Problem::bad_request(reason));
    }
    if app.sessions.len() >= SESSIONS_MAX {
        return Err(Problem::too_many(format!("{SESSIONS_MAX} commands are under way")));
    }
    let target = Target::find(&app, &key, container.as_deref()).await?;
    let kubelet = target.exec(&options).await?;
    let App { stop, sessions, .. } = app;
    Ok(upgrade.on_upgrade(move |client| {
        sessions.track_future(async move {
            stop.run_until_cancelled(relay(client, kubelet)).await;
        })
    }))
}

/// The container, and what is asked for; outputs are wanted unless the query says otherwise.
fn exec_query(uri: &Uri) -> Result<(Option<String>, ExecOptions), Cause> {
    let Query(mut pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|rejection| cause("", format!("the query: {}", rejection.body_text())))?;
    let there_are = ["command", "container", "stdin", "stdout", "stderr", "tty"];
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !there_are.contains(&name.as_str())) {
        let there_are = there_are.join(", ");
        return Err(cause(name, format!("is not a query parameter here; there are {there_are}")));
    }
    for output in ["stdout", "stderr"] {
        if pairs.iter().all(|(name, _)| name != output) {
            pairs.push((output.to_owned(), "true".to_owned()));
        }
    }
    let mut containers = pairs.iter().filter(|(name, _)| name == "container");
    let container = containers.next().map(|(_, name)| name.clone());
    let options = ExecOptions::from_query(pairs.iter().map(|(name, value)| (&**name, &**value)))?;
    Ok((container.filter(|name| !name.is_empty()), options))
}

/// Hands messages on, both ways, until one side has ended or is gone. Either end ends the other.
async fn relay(client: WebSocket, kubelet: KubeletSocket) {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_kubelet, mut from_kubelet) = kubelet.split();
    let down = async {
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.tick().await;
        loop {
            let message = tokio::select! {
                message = from_kubelet.next() => message,
                _ = pings.tick() => Some(Ok(KubeletMessage::Ping(Bytes::new()))),
            };
            let (message, is_last) = match message {
                Some(Ok(KubeletMessage::Binary(frame))) => (Message::Binary(frame), false),
                Some(Ok(KubeletMessage::Ping(_))) => (Message::Ping(Bytes::new()), false),
                Some(Ok(KubeletMessage::Close(_))) => (Message::Close(None), true),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => (broken_off(), true),
            };
            let sent = timeout(SEND_DEADLINE, to_client.send(message)).await;
            if is_last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    };
    let up = async {
        loop {
            let message = match timeout(SILENCE_MAX, from_client.next()).await {
                Ok(Some(Ok(Message::Binary(frame)))) => KubeletMessage::Binary(frame),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_)))) => continue,
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            };
            if !matches!(timeout(SEND_DEADLINE, to_kubelet.send(message)).await, Ok(Ok(()))) {
                // Why is told by the way back.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => tracing::debug!("a command's client went away"),
    }
}

fn broken_off() -> Message {
    let code = axum::extract::ws::close_code::ERROR;
    let reason = "the connection to the pod's node broke".into();
    Message::Close(Some(CloseFrame { code, reason }))
}

/// A web page of somewhere else is not to run commands through the browser of whoever reads it.
fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    if origin.is_some() && origin == text(header::HOST) {
        return Ok(());
    }
    Err(Problem::forbidden("commands are not run for web pages of other servers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_checked() {
        let run = Run::parse(br#"{"command":["ls"],"timeoutSeconds":5,"stdin":""}"#).unwrap();
        assert_eq!((run.timeout_seconds, run.stdin.as_deref()), (Some(5), Some("")));
        for (body, field) in [
            (r#"{}"#, "command"),
            (r#"{"command":[]}"#, "command"),
            (r#"{"command":[""]}"#, "command"),
            (r#"{"command":"ls"}"#, "command"),
            (r#"{"command":["ls"],"timeoutSeconds":0}"#, "timeoutSeconds"),
            (r#"{"command":["ls"],"tty":true}"#, "tty"),
        ] {
            assert_eq!(Run::parse(body.as_bytes()).unwrap_err().field, field, "{body}");
        }
    }

    #[test]
    fn a_query_wants_both_outputs_unless_it_says_otherwise() {
        let query = |text: &str| exec_query(&format!("/pods/p/exec?{text}").parse().unwrap());
        let (container, options) = query("command=sh&command=-c&container=a&stdin=1").unwrap();
        assert_eq!(container.as_deref(), Some("a"));
        assert_eq!(options.command, ["sh", "-c"]);
        assert!(options.stdin && options.stdout && options.stderr && !options.tty);
        assert!(!query("command=sh&stderr=false").unwrap().1.stderr);
        assert_eq!(query("command=sh&shell=1").unwrap_err().field, "shell");
        assert_eq!(query("tty=1").unwrap_err().field, "command");
    }

    #[test]
    fn output_is_kept_up_to_its_bound() {
        let mut kept = vec![0; OUTPUT_MAX_BYTES - 3];
        assert!(!keep(&mut kept, b"ab"));
        assert!(keep(&mut kept, b"cd"));
        assert!(keep(&mut kept, b"e"));
        assert_eq!((kept.len(), &kept[kept.len() - 3..]), (OUTPUT_MAX_BYTES, &b"abc"[..]));
    }

    #[test]
    fn web_pages_of_other_servers_are_refused() {
        let headers = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8080".parse().unwrap());
            origin.map(|origin| headers.insert(header::ORIGIN, origin.parse().unwrap()));
            headers
        };
        assert!(same_origin(&headers(None)).is_ok());
        assert!(same_origin(&headers(Some("http://127.0.0.1:8080"))).is_ok());
        for other in ["http://example.org", "http://127.0.0.1:8081", "null"] {
            assert_eq!(same_origin(&headers(Some(other))).unwrap_err().status.as_u16(), 403);
        }
    }

    #[test]
    fn an_outcome_says_only_what_is_so() {
        let json = |outcome: &Outcome| serde_json::to_string(outcome).unwrap();
        let written = Written { stdout: b"a".to_vec(), ..Written::default() };
        assert_eq!(json(&written.outcome(Some(3))), r#"{"exitCode":3,"stdout":"a","stderr":""}"#);
        let killed = Outcome { timed_out: true, ..written.outcome(None) };
        assert_eq!(json(&killed), r#"{"stdout":"a","stderr":"","timedOut":true}"#);
    }
}
