//! Lets clients in that name their server in a way that HTTP/2 forbids.
//!
//! etcd's own clients up to 3.4 send the endpoint as the user wrote it, `http://127.0.0.1:2379`, as
//! the `:authority` of some requests, those of `etcdctl endpoint status` among them. That is no
//! authority, and the HTTP/2 library resets every such request. Nothing here asks under which name
//! it was called, so the authority of a connection's first request is replaced by a constant before
//! the library reads it:
//!
//! ```text
//! preface | SETTINGS | WINDOW_UPDATE | HEADERS :method POST, :authority http://127.0.0.1:2379, …
//!           passed on as they come                           ^ becomes "e"; from here on all
//!                                                              is passed on untouched
//! ```
//! The first request is enough: a client spells the header out once, which puts it into the
//! connection's table of headers (RFC 7541), and names its place there from then on, where the
//! constant now stands. The entry only gets smaller by that, so the table keeps all that the client
//! thinks it keeps, in the same places. What does not begin with the preface is HTTP/1 and is passed
//! on from its first byte.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// The largest frame that may come unless a larger one was agreed on (RFC 9113, 4.2).
const MAX_FRAME_BYTES: usize = 16_384;
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// The place of `:authority` in the table that every connection begins with.
const AUTHORITY_INDEX: usize = 1;
/// The string that stands in for it, as it is encoded: no longer than any.
const REPLACEMENT: [u8; 2] = [1, b'e'];
const READ_BYTES: usize = 4096;

/// A connection whose requests have an authority that can be read.
#[derive(Debug)]
pub(crate) struct AnyAuthority<S> {
    stream: S,
    seen: Seen,
    /// Read and not handed on yet.
    read: Vec<u8>,
    /// How many of those bytes may be handed on.
    ready: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Preface,
    /// The first request, or that there will be none to mend.
    Enough,
}

impl<S> AnyAuthority<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, seen: Seen::Nothing, read: Vec::new(), ready: 0 }
    }

    /// Looks at what has come as far as it is complete.
    fn look(&mut self) {
        if self.seen == Seen::Nothing {
            if self.read.starts_with(PREFACE) {
                self.seen = Seen::Preface;
                self.ready = PREFACE.len();
            } else if !PREFACE.starts_with(&self.read) {
                self.seen = Seen::Enough;
            }
        }
        while self.seen == Seen::Preface {
            let Some((&[a, b, c, kind, ..], _)) =
                self.read[self.ready..].split_first_chunk::<FRAME_HEADER_BYTES>()
            else {
                return;
            };
            let payload_bytes = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let end = self.ready + FRAME_HEADER_BYTES + payload_bytes;
            if payload_bytes > MAX_FRAME_BYTES {
                self.seen = Seen::Enough;
            } else if self.read.len() < end {
                return;
            } else if kind == HEADERS {
                mend(&mut self.read, self.ready..end);
                self.seen = Seen::Enough;
            } else {
                self.ready = end;
            }
        }
        if self.seen == Seen::Enough {
            self.ready = self.read.len();
        }
    }
}

/// Replaces the authority in the HEADERS frame that lies at `frame` in `bytes`, if it is there.
fn mend(bytes: &mut Vec<u8>, frame: Range<usize>) {
    let Some(value) = authority(&bytes[frame.clone()]) else { return };
    let value = frame.start + value.start..frame.start + value.end;
    let payload_bytes = frame.len() - FRAME_HEADER_BYTES - value.len() + REPLACEMENT.len();
    bytes.splice(value, REPLACEMENT);
    // At most MAX_FRAME_BYTES, so the highest of the three bytes stays 0.
    let length = u16::try_from(payload_bytes).unwrap_or(u16::MAX).to_be_bytes();
    bytes[frame.start + 1..frame.start + 3].copy_from_slice(&length);
}

/// Where in a HEADERS frame the authority's encoded string lies, if it is longer than what takes
/// its place.
fn authority(frame: &[u8]) -> Option<Range<usize>> {
    let flags = frame[4];
    let mut at = FRAME_HEADER_BYTES;
    if flags & FLAG_PADDED != 0 {
        at += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        at += PRIORITY_BYTES;
    }
    while at < frame.len() {
        // The kinds of header fields (RFC 7541, 6).
        let (name_bits, has_value) = match frame[at] {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let name = integer(frame, &mut at, name_bits)?;
        if !has_value {
            continue;
        }
        if name == 0 {
            skip_string(frame, &mut at)?;
        }
        let start = at;
        skip_string(frame, &mut at)?;
        if name == AUTHORITY_INDEX {
            return Some(start..at).filter(|value| value.len() > REPLACEMENT.len());
        }
    }
    None
}

/// An integer with a prefix of so many bits (RFC 7541, 5.1); none if it is cut off or absurd.
fn integer(bytes: &[u8], at: &mut usize, prefix_bits: u32) -> Option<usize> {
    let mask = (1_u8 << prefix_bits) - 1;
    let prefix = bytes.get(*at)? & mask;
    *at += 1;
    let mut value = usize::from(prefix);
    if prefix < mask {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = bytes.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip_string(bytes: &[u8], at: &mut usize) -> Option<()> {
    let length = integer(bytes, at, 7)?;
    *at += length;
    (*at <= bytes.len()).then_some(())
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready == 0 {
            if this.seen == Seen::Enough {
                return Pin::new(&mut this.stream).poll_read(context, buffer);
            }
            let mut chunk = [0; READ_BYTES];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            this.read.extend_from_slice(chunk.filled());
            if chunk.filled().is_empty() {
                this.seen = Seen::Enough;
            }
            this.look();
        }
        let now = this.ready.min(buffer.remaining());
        buffer.put_slice(&this.read[..now]);
        this.read.drain(..now);
        this.ready -= now;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// `:method POST`, `:scheme http`, and `:path /s` to be kept in the table.
    const BEFORE: &[u8] = &[0x83, 0x86, 0x44, 2, b'/', b's'];
    /// `te: trailers` by its name, not to be kept.
    const AFTER: &[u8] = b"\x00\x02te\x08trailers";

    fn headers(flags: u8, fields: &[&[u8]]) -> Vec<u8> {
        let fields = fields.concat();
        let length = u8::try_from(fields.len()).unwrap();
        [&[0, 0, length, HEADERS, flags, 0, 0, 0, 1], fields.as_slice()].concat()
    }

    /// What comes through, however it is cut into pieces.
    async fn through(sent: &[u8]) -> Vec<u8> {
        let mut results = Vec::new();
        for piece in [1, 7, sent.len().max(1)] {
            let (mut client, server) = tokio::io::duplex(64);
            let mut server = AnyAuthority::new(server);
            let mut received = Vec::new();
            let send = async {
                for piece in sent.chunks(piece) {
                    client.write_all(piece).await.unwrap();
                }
                drop(client);
            };
            let (_, read) = tokio::join!(send, server.read_to_end(&mut received));
            read.unwrap();
            results.push(received);
        }
        assert!(results.iter().all(|result| *result == results[0]));
        results.swap_remove(0)
    }

    #[tokio::test]
    async fn the_first_authority_is_replaced_whatever_it_is() {
        for authority in [
            &b"\x41\x09http://a:"[..],
            // Not to be kept, never to be kept, compressed (its bytes are not looked at).
            &b"\x01\x09http://a:"[..],
            &b"\x11\x09http://a:"[..],
            &b"\x41\x83\xff\xff\xff"[..],
        ] {
            let replaced = &[authority[0], 1, b'e'][..];
            let rest = b"anything \x41\x09http://a:";
            for (flags, start, end) in [
                (0x4, &b""[..], &b""[..]),
                (0x4 | FLAG_PADDED, &b"\x02"[..], &b"\0\0"[..]),
                (0x4 | FLAG_PRIORITY, &b"\0\0\0\0\x10"[..], &b""[..]),
            ] {
                let sent = headers(flags, &[start, BEFORE, authority, AFTER, end]);
                let expected = headers(flags, &[start, BEFORE, replaced, AFTER, end]);
                assert_eq!(
                    through(&[PREFACE, SETTINGS, &sent, rest].concat()).await,
                    [PREFACE, SETTINGS, &expected, rest].concat()
                );
            }
        }
    }

    #[tokio::test]
    async fn everything_else_is_untouched() {
        let cut_off = headers(0, &[BEFORE, b"\x41\x7f\xff\xff\xff"]);
        let without = headers(0x4, &[BEFORE, AFTER]);
        let too_long = [0xff, 0, 0, HEADERS, 0, 0, 0, 0, 1];
        for sent in [
            b"POST /v3/kv/put HTTP/1.1\r\n\r\n".to_vec(),
            b"".to_vec(),
            b"PRI * HTTP/1".to_vec(),
            PREFACE.to_vec(),
            [PREFACE, SETTINGS, &cut_off, b"more"].concat(),
            [PREFACE, SETTINGS, &without, b"more"].concat(),
            [PREFACE, &too_long, b"more"].concat(),
            [PREFACE, SETTINGS, &without[..12]].concat(),
        ] {
            assert_eq!(through(&sent).await, sent);
        }
    }

    /// A client may wait for the server's settings before it sends a request.
    #[tokio::test]
    async fn frames_before_the_request_are_not_held_back() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = AnyAuthority::new(server);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(SETTINGS).await.unwrap();
        let mut received = [0; PREFACE.len() + SETTINGS.len()];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(received.as_slice(), [PREFACE, SETTINGS].concat());
    }
}
