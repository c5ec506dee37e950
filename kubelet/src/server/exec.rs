//! A command in a container over a WebSocket: the streams of [`api::streaming::channels`].
//!
//! Two sides run at once, so that a command which does not read its input does not keep its output
//! back: what the client sends goes to the command, what the command writes goes to the client. The
//! session ends when the command has, or when the client goes away; then the command is killed.

use std::time::Duration;

use api::ObjectKey;
use api::streaming::ExecOptions;
use api::streaming::channels::{
    Channel, Ending, Message as ChannelMessage, OLD_PROTOCOL, PROTOCOL, TerminalSize,
};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{BoxStream, SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Refusal, Shared, Streams};
use crate::error::Chain;
use crate::runtime::{
    self, ExecRequest, Execution, Input, Output, OutputStream, Process, RuntimeError,
};

/// The largest message that is taken from a client.
const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// How often the client is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A client that gives none for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A message that a client does not take for so long is its end.
const SEND_DEADLINE: Duration = Duration::from_secs(60);

/// `GET /exec/{namespace}/{pod}/{container}`, as a WebSocket.
pub(super) async fn attach(
    State(Shared { nodes, streams }): State<Shared>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let pairs = query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let options = ExecOptions::from_query(pairs)?;
    let target = nodes.find(&ObjectKey::namespaced(&namespace, &pod), &container)?;
    let id = target.running().await?;
    let speaks = format!("commands are run over a WebSocket that speaks {PROTOCOL}");
    let upgrade = upgrade.map_err(|why| Refusal::bad_request(format!("{speaks}: {why}")))?;
    let upgrade = upgrade.max_message_size(MESSAGE_MAX_BYTES).protocols([PROTOCOL, OLD_PROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        return Err(Refusal::bad_request(speaks));
    }
    let runtime = target.runtime().clone();
    Ok(upgrade.on_upgrade(move |socket| {
        let Streams { stop, sessions } = streams;
        sessions.track_future(async move {
            let session = run(socket, &*runtime, &id, &options);
            if stop.run_until_cancelled(session).await.is_none() {
                tracing::debug!("a command's client is left, the kubelet stops");
            }
        })
    }))
}

/// Why a session cannot go on: the client is gone, and nobody is left to be told.
struct Gone;

async fn run(
    socket: WebSocket,
    runtime: &dyn runtime::Runtime,
    container: &str,
    options: &ExecOptions,
) {
    let (sink, incoming) = socket.split();
    let mut client = Client { sink, options };
    let request =
        ExecRequest { command: options.command.clone(), stdin: options.stdin, tty: options.tty };
    let ending = match runtime.exec(container, &request).await {
        Ok(execution) => session(&mut client, incoming, execution).await,
        Err(error) => Ok(Ending::Failed(Chain(&error).to_string())),
    };
    if let Ok(ending) = ending {
        // Whether it arrives is the client's affair.
        let _ = client.end(&ending).await;
    }
}

/// Carries both sides to the command's end, which is told unless the client is gone.
async fn session(
    client: &mut Client<'_>,
    mut incoming: SplitStream<WebSocket>,
    execution: Execution,
) -> Result<Ending, Gone> {
    let Execution { mut output, input, process } = execution;
    let outcome = tokio::select! {
        outcome = client.feed(&mut output) => outcome,
        gone = drain(&mut incoming, input, &*process) => Err(gone),
    };
    match outcome {
        Ok(Ok(())) => Ok(match runtime::exit_code(&*process).await {
            Ok(code) => Ending::Exited(code),
            Err(error) => Ending::Failed(Chain(&error).to_string()),
        }),
        Ok(Err(error)) => Ok(Ending::Failed(Chain(&error).to_string())),
        Err(Gone) => {
            tracing::debug!("a command's client went away: ending the command");
            if let Err(error) = process.kill().await {
                tracing::warn!(error = %Chain(&error), "a command cannot be ended");
            }
            Err(Gone)
        }
    }
}

/// The way to the client.
struct Client<'a> {
    sink: SplitSink<WebSocket, Message>,
    options: &'a ExecOptions,
}

impl Client<'_> {
    /// Sends what the command writes until that ends, and asks for signs of life meanwhile.
    async fn feed(
        &mut self,
        output: &mut BoxStream<'static, Result<Output, RuntimeError>>,
    ) -> Result<Result<(), RuntimeError>, Gone> {
        // An empty message tells a client that the command is under way.
        let first = if self.options.stdout { Channel::Stdout } else { Channel::Stderr };
        self.send(Message::Binary(first.frame(b""))).await?;
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.tick().await;
        loop {
            let piece = tokio::select! {
                piece = output.next() => piece,
                _ = pings.tick() => {
                    self.send(Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            let Output { stream, bytes } = match piece {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Ok(Err(error)),
                None => return Ok(Ok(())),
            };
            let (channel, wanted) = match stream {
                OutputStream::Stdout => (Channel::Stdout, self.options.stdout),
                OutputStream::Stderr => (Channel::Stderr, self.options.stderr),
            };
            if wanted && !bytes.is_empty() {
                self.send(Message::Binary(channel.frame(&bytes))).await?;
            }
        }
    }

    async fn end(&mut self, ending: &Ending) -> Result<(), Gone> {
        self.send(Message::Binary(Channel::Error.frame(&ending.to_status()))).await?;
        self.send(Message::Close(None)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        match tokio::time::timeout(SEND_DEADLINE, self.sink.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

/// Carries out what the client sends, until it is gone.
async fn drain(
    incoming: &mut SplitStream<WebSocket>,
    mut input: Option<Input>,
    process: &dyn Process,
) -> Gone {
    loop {
        let deadline = Instant::now() + SILENCE_MAX;
        let message = match tokio::time::timeout_at(deadline, incoming.next()).await {
            Ok(Some(Ok(Message::Binary(message)))) => ChannelMessage::parse(message),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
            Ok(Some(Ok(Message::Text(_)))) => {
                tracing::debug!("a text message is of no meaning here");
                continue;
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return Gone,
        };
        match message {
            Ok(ChannelMessage::Data(Channel::Stdin, bytes)) => {
                // A command that does not read any more is no trouble.
                if let Some(open) = &mut input
                    && (open.write_all(&bytes).await.is_err() || open.flush().await.is_err())
                {
                    input = None;
                }
            }
            Ok(ChannelMessage::Close(Channel::Stdin)) => {
                if let Some(mut open) = input.take() {
                    let _ = open.shutdown().await;
                }
            }
            Ok(ChannelMessage::Data(Channel::Resize, size)) => resize(process, &size).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a message is left out"),
        }
    }
}

async fn resize(process: &dyn Process, size: &[u8]) {
    let Ok(TerminalSize { width, height }) = serde_json::from_slice(size) else {
        tracing::debug!("no terminal size");
        return;
    };
    if let Err(error) = process.resize(runtime::TerminalSize { width, height }).await {
        tracing::debug!(error = %Chain(&error), "the terminal keeps its size");
    }
}
