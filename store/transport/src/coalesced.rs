//! Gathers what a connection's streams write into few system calls.
//!
//! The HTTP/2 library flushes after every frame of more than a few bytes, so a request or a response
//! takes two or three system calls, and those of all watchers on a connection as many each. Here a
//! flush is put off until the connection's task has been scheduled once more: behind the tasks that are
//! ready to run, so that what they ask or answer leaves together with it.
//!
//! ```text
//! write a, flush | write b, flush | (scheduled again) flush   ->  one write of a and b
//! ```
//! Whoever has nothing else to do is scheduled again at once, so a lone response waits for nobody.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much as this is held back at most; more is written at once.
const HELD_BYTES: usize = 64 << 10;

/// Flushes that are put off in a row, should nobody read in between.
const MAX_PUT_OFF: u32 = 64;

/// A stream whose flushes are put off. It has to be polled again when its task is woken, as a
/// connection of the HTTP/2 library does, which ends every poll with a flush.
#[derive(Debug)]
pub struct Coalesced<S> {
    stream: S,
    held: Vec<u8>,
    /// Where in `held` begins what is not written yet.
    written: usize,
    /// How many flushes were put off since the last write.
    put_off: u32,
    /// Whether the task was polled again since: every poll of a connection begins with a read.
    due: bool,
}

impl<S> Coalesced<S> {
    /// Holds back what is written to `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, held: Vec::new(), written: 0, put_off: 0, due: false }
    }
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    /// Writes what is held.
    fn poll_write_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            let now = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if now == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += now;
        }
        self.held.clear();
        self.written = 0;
        self.put_off = 0;
        self.due = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.due = this.put_off > 0;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.len() >= HELD_BYTES {
            ready!(this.poll_write_held(context))?;
        }
        let before = this.held.len();
        for slice in slices {
            let room = HELD_BYTES - this.held.len();
            this.held.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        Poll::Ready(Ok(this.held.len() - before))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            return Pin::new(&mut this.stream).poll_flush(context);
        }
        if !this.due && this.put_off < MAX_PUT_OFF {
            this.put_off += 1;
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        this.poll_write_held(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_held(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn pair() -> (Coalesced<DuplexStream>, DuplexStream) {
        let (ours, client) = duplex(1 << 20);
        (Coalesced::new(ours), client)
    }

    /// What has come, without waiting for more.
    fn arrived(client: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        let poll = Pin::new(client).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        if poll.is_ready() { buffer.filled().to_vec() } else { Vec::new() }
    }

    /// As the HTTP/2 library does whenever its task is polled: it reads, then writes and flushes.
    async fn poll(stream: &mut Coalesced<DuplexStream>, written: &[&[u8]]) {
        poll_fn(|context| {
            let _ = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut [0; 8]));
            for bytes in written {
                assert!(Pin::new(&mut *stream).poll_write(context, bytes).is_ready());
                assert!(Pin::new(&mut *stream).poll_flush(context).is_ready());
            }
            if written.is_empty() {
                assert!(Pin::new(&mut *stream).poll_flush(context).is_ready());
            }
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_leaves_with_the_next() {
        let (mut stream, mut client) = pair();
        poll(&mut stream, &[b"a", b"b"]).await;
        assert_eq!(arrived(&mut client), b"");
        poll(&mut stream, &[]).await;
        assert_eq!(arrived(&mut client), b"ab");
        poll(&mut stream, &[b"c"]).await;
        assert_eq!(arrived(&mut client), b"");
        poll(&mut stream, &[b"d"]).await;
        assert_eq!(arrived(&mut client), b"cd");
    }

    #[tokio::test]
    async fn a_flush_that_is_put_off_asks_for_another_turn() {
        let (mut stream, mut client) = pair();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut stream).poll_write(&mut context, b"a").is_ready());
        assert!(Pin::new(&mut stream).poll_flush(&mut context).is_ready());
        assert!(woken.0.load(Ordering::Relaxed));
        // Nobody reads: it goes out after some flushes all the same.
        for _ in 0..MAX_PUT_OFF {
            assert_eq!(arrived(&mut client), b"");
            stream.flush().await.unwrap();
        }
        assert_eq!(arrived(&mut client), b"a");
    }

    #[tokio::test]
    async fn much_is_not_held_back_and_nothing_is_lost() {
        let (mut stream, mut client) = pair();
        let bytes: Vec<u8> = (0..10 * HELD_BYTES).map(|n| n as u8).collect();
        let expected = bytes.clone();
        let write = async {
            for chunk in bytes.chunks(1000) {
                stream.write_all(chunk).await.unwrap();
                assert!(stream.held.len() <= HELD_BYTES);
            }
            stream.shutdown().await.unwrap();
        };
        let mut received = vec![0; expected.len()];
        let (read, ()) = tokio::join!(client.read_exact(&mut received), write);
        read.unwrap();
        assert!(received == expected);
    }
}
