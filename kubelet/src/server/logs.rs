//! A container's log as text.

use std::io;

use api::ObjectKey;
use api::streaming::{LogOptions, Since};
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Refusal, Shared};
use crate::error::Chain;
use crate::runtime::{LogEntry, LogRequest, Logs, OutputStream};

/// `GET /containerLogs/{namespace}/{pod}/{container}`.
pub(super) async fn read(
    State(Shared { nodes, streams }): State<Shared>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let pairs = query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let options = LogOptions::from_query(pairs)?;
    let target = nodes.find(&ObjectKey::namespaced(&namespace, &pod), &container)?;
    let id = target.with_log(options.previous).await?;
    let request = LogRequest {
        follow: options.follow,
        tail: options.tail_lines,
        since: options.since.map(|since| moment(since, nodes.clock.now())),
    };
    let entries = target.runtime().logs(&id, &request).await?;
    let reader = Reader {
        entries: Some(entries),
        text: Text::new(options.timestamps, options.limit_bytes),
        stop: streams.stop,
    };
    let body = stream::unfold(reader, |mut reader| async move {
        let piece = reader.next().await?;
        Some((piece, reader))
    });
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn moment(since: Since, now: Timestamp) -> Timestamp {
    match since {
        Since::Time(time) => time,
        Since::Seconds(seconds) => {
            let ago = SignedDuration::from_secs(seconds.into());
            now.saturating_sub(ago).unwrap_or(Timestamp::MIN)
        }
    }
}

/// A log on its way to a client; dropped when the client goes, and with it what the engine sends.
struct Reader {
    /// None once nothing more is to come.
    entries: Option<Logs>,
    text: Text,
    stop: CancellationToken,
}

impl Reader {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let entries = self.entries.as_mut()?;
        let entry = tokio::select! {
            entry = entries.next() => entry?,
            () = self.stop.cancelled() => return None,
        };
        match entry {
            Ok(entry) => {
                let (piece, is_last) = self.text.of(&entry);
                if is_last {
                    self.entries = None;
                }
                Some(Ok(piece))
            }
            Err(error) => {
                // Too late for a status: the answer breaks off, so that nobody takes it for whole.
                let why = Chain(&error).to_string();
                tracing::debug!(error = why, "a log breaks off");
                self.entries = None;
                Some(Err(io::Error::other(why)))
            }
        }
    }
}

/// Entries as text: with times where lines begin, and up to a limit.
struct Text {
    timestamps: bool,
    bytes_left: Option<u64>,
    /// Whether what was written last to each stream ended within a line.
    within_line: [bool; 2],
}

impl Text {
    fn new(timestamps: bool, limit_bytes: Option<u64>) -> Self {
        Self { timestamps, bytes_left: limit_bytes, within_line: [false; 2] }
    }

    /// The text of the next entry, and whether the limit is reached with it.
    fn of(&mut self, entry: &LogEntry) -> (Bytes, bool) {
        let within_line = &mut self.within_line[match entry.stream {
            OutputStream::Stdout => 0,
            OutputStream::Stderr => 1,
        }];
        let begins_line = !std::mem::replace(within_line, !entry.bytes.ends_with(b"\n"));
        let mut text = if self.timestamps && begins_line {
            let mut stamped = BytesMut::from(format!("{:.9} ", entry.at).as_bytes());
            stamped.put_slice(&entry.bytes);
            stamped.freeze()
        } else {
            entry.bytes.clone()
        };
        let Some(left) = &mut self.bytes_left else { return (text, false) };
        text.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= text.len() as u64;
        (text, *left == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: OutputStream, bytes: &'static str) -> LogEntry {
        let at = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        LogEntry { at, stream, bytes: bytes.into() }
    }

    #[test]
    fn times_stand_where_lines_begin() {
        use OutputStream::{Stderr, Stdout};
        let mut text = Text::new(true, None);
        let mut whole = String::new();
        for (stream, bytes) in
            [(Stdout, "a "), (Stderr, "error\n"), (Stdout, "long line\n"), (Stdout, "\n")]
        {
            whole.push_str(std::str::from_utf8(&text.of(&entry(stream, bytes)).0).unwrap());
        }
        let t = "2026-01-02T03:04:05.000000006Z";
        assert_eq!(whole, format!("{t} a {t} error\nlong line\n{t} \n"));
    }

    #[test]
    fn the_limit_cuts_in_the_middle_and_ends_it() {
        let mut text = Text::new(false, Some(5));
        let mut next = |bytes| {
            let (text, is_last) = text.of(&entry(OutputStream::Stdout, bytes));
            (String::from_utf8(text.to_vec()).unwrap(), is_last)
        };
        assert_eq!(next("abc\n"), ("abc\n".to_owned(), false));
        assert_eq!(next("def\n"), ("d".to_owned(), true));
    }

    #[test]
    fn seconds_count_back_from_now() {
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(moment(Since::Seconds(30), now).as_second(), 70);
        assert_eq!(moment(Since::Seconds(u32::MAX), now).as_second(), 100 - i64::from(u32::MAX));
        assert_eq!(moment(Since::Time(now), Timestamp::MAX), now);
    }
}
