//! The streams of a command over one WebSocket: Kubernetes' `v5.channel.k8s.io`.
//!
//! A message is binary; its first byte is the channel, the rest is what was written:
//!
//! | channel | direction | what |
//! | --- | --- | --- |
//! | 0 | to the command | its input |
//! | 1, 2 | from the command | its standard output, its standard error |
//! | 3 | from the command | how it ended, once: an [`Ending`] |
//! | 4 | to the command | its terminal's new size, a [`TerminalSize`] |
//! | 255 | to the command | the channel that the second byte names is closed |
//!
//! ```
//! use api::streaming::channels::{Channel, Ending, Message};
//!
//! let frame = Channel::Stdout.frame(b"hello\n");
//! assert_eq!(&frame[..], b"\x01hello\n");
//! let Ok(Message::Data(Channel::Stdout, bytes)) = Message::parse(frame) else { panic!() };
//! assert_eq!(bytes, "hello\n");
//! assert_eq!(Ending::from_status(&Ending::Exited(3).to_status()).unwrap(), Ending::Exited(3));
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The WebSocket subprotocol.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// The same without closing of channels, which older clients speak.
pub const OLD_PROTOCOL: &str = "v4.channel.k8s.io";

/// The first byte of a message that closes a channel.
const CLOSE: u8 = 255;

/// One of the streams of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Its input.
    Stdin = 0,
    /// Its standard output.
    Stdout = 1,
    /// Its standard error.
    Stderr = 2,
    /// How it ended.
    Error = 3,
    /// Sizes of its terminal.
    Resize = 4,
}

/// A message taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Something was written.
    Data(Channel, Bytes),
    /// Nothing more will be written.
    Close(Channel),
}

/// A message that is none of the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a WebSocket message that names no channel of {PROTOCOL}")]
pub struct BadMessage;

impl Channel {
    fn from_byte(byte: u8) -> Result<Self, BadMessage> {
        let all = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];
        all.into_iter().find(|channel| *channel as u8 == byte).ok_or(BadMessage)
    }

    /// The message that carries these bytes.
    pub fn frame(self, bytes: &[u8]) -> Bytes {
        let mut frame = BytesMut::with_capacity(1 + bytes.len());
        frame.put_u8(self as u8);
        frame.put_slice(bytes);
        frame.freeze()
    }

    /// The message that closes this channel.
    pub fn close(self) -> Bytes {
        Bytes::copy_from_slice(&[CLOSE, self as u8])
    }
}

impl Message {
    /// Takes a message apart.
    ///
    /// # Errors
    /// It names no channel.
    pub fn parse(mut frame: Bytes) -> Result<Self, BadMessage> {
        match *frame.first().ok_or(BadMessage)? {
            CLOSE => Ok(Self::Close(Channel::from_byte(*frame.get(1).ok_or(BadMessage)?)?)),
            byte => Ok(Self::Data(Channel::from_byte(byte)?, frame.split_off(1))),
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a command ended, as channel 3 tells it: a Kubernetes `Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with that code.
    Exited(i32),
    /// It could not be started or watched to its end, and why.
    Failed(String),
}

impl Ending {
    /// The `Status`, in JSON.
    pub fn to_status(&self) -> Bytes {
        let status = match self {
            Self::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with exit code {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
        };
        status.to_string().into()
    }

    /// Reads a `Status`.
    ///
    /// # Errors
    /// It is none.
    pub fn from_status(status: &[u8]) -> Result<Self, serde_json::Error> {
        let status: Value = serde_json::from_slice(status)?;
        if status["status"] == "Success" {
            return Ok(Self::Exited(0));
        }
        let cause = &status["details"]["causes"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if cause["reason"] == "ExitCode"
            && let Some(code) = cause["message"].as_str().and_then(|code| code.parse().ok())
        {
            return Ok(Self::Exited(code));
        }
        let why = text(&cause["message"]).or_else(|| text(&status["message"]));
        Ok(Self::Failed(why.unwrap_or_else(|| "the command failed".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        for channel in [Channel::Stdin, Channel::Stderr, Channel::Resize] {
            let parsed = Message::parse(channel.frame(b"x"));
            assert_eq!(parsed, Ok(Message::Data(channel, Bytes::from_static(b"x"))));
            assert_eq!(Message::parse(channel.close()), Ok(Message::Close(channel)));
        }
        let empty = Message::parse(Channel::Stdin.frame(b""));
        assert_eq!(empty, Ok(Message::Data(Channel::Stdin, Bytes::new())));
        assert_eq!(&Channel::Stdin.close()[..], [0xff, 0], "as kubectl closes its input");
        for wrong in [&b""[..], b"\x05x", b"\xff", b"\xff\x09"] {
            assert_eq!(Message::parse(Bytes::from_static(wrong)), Err(BadMessage), "{wrong:?}");
        }
    }

    #[test]
    fn an_ending_comes_back_from_its_status() {
        for ending in [Ending::Exited(0), Ending::Exited(137), Ending::Failed("no shell".into())] {
            assert_eq!(Ending::from_status(&ending.to_status()).unwrap(), ending);
        }
        assert!(Ending::from_status(b"ok").is_err());
        let foreign = Ending::from_status(br#"{"status":"Failure","message":"m"}"#).unwrap();
        assert_eq!(foreign, Ending::Failed("m".into()));
    }

    #[test]
    fn a_terminals_size_has_kubernetes_names() {
        let size: TerminalSize = serde_json::from_str(r#"{"Width":80,"Height":24}"#).unwrap();
        assert_eq!(size, TerminalSize { width: 80, height: 24 });
    }
}
