//! The I/O layer between HTTP and the socket. It enforces that a connection sends its HTTP/2 preface, or the head of its
//! first HTTP/1.1 request, in time, and that the peer keeps accepting data.

use super::service::Connection;
use super::{ConnectionRefusal, TransportStatistics};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Size of the HTTP/2 preface and of the header of the first frame, in bytes.
const PREFACE_BYTES: usize = PREFACE.len() + 9;

/// A socket whose peer must send and accept data in time.
pub(super) struct TimeoutIo<T> {
    inner: T,
    connection: Connection,
    /// What has arrived of the preface, and its deadline; `None` once the preface is complete.
    preface: Option<(Preface, Pin<Box<Sleep>>)>,
    /// Maximum time for which the peer may accept no data.
    stall_limit: Duration,
    /// The deadline for the peer to accept data; `None` unless a write is pending.
    stall: Option<Pin<Box<Sleep>>>,
    statistics: Arc<TransportStatistics>,
}

impl<T> TimeoutIo<T> {
    pub fn new(
        inner: T,
        connection: Connection,
        preface_end: Instant,
        stall_limit: Duration,
        statistics: Arc<TransportStatistics>,
    ) -> Self {
        let preface = Some((Preface::default(), Box::pin(tokio::time::sleep_until(preface_end))));
        Self { inner, connection, preface, stall_limit, stall: None, statistics }
    }

    fn handle_read(&mut self, bytes: &[u8]) {
        if let Some((preface, _)) = &mut self.preface
            && preface.advance(bytes)
        {
            self.preface = None;
        }
    }

    fn poll_preface(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some((_, end)) = &mut self.preface else { return Poll::Pending };
        ready!(end.as_mut().poll(context));
        let problem = "no HTTP/2 preface or HTTP/1.1 request before the timeout";
        self.statistics.record_refusal(ConnectionRefusal::Preface, self.connection.peer().address, problem);
        Poll::Ready(io::Error::new(ErrorKind::TimedOut, problem))
    }

    /// Fails a write that is pending for longer than the stall limit. Keepalive alone does not detect this, because its
    /// pings wait behind the data that the peer does not accept.
    fn poll_stall<R>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if poll.is_ready() {
            self.stall = None;
            return poll;
        }
        let limit = self.stall_limit;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the peer does not accept data")))
    }
}

/// The beginning of a connection: an HTTP/2 preface, or the head of an HTTP/1.1 request, which ends with an empty line.
#[derive(Debug, Default)]
struct Preface {
    received: usize,
    is_http1: bool,
    /// Whether the current line has any character so far.
    has_characters: bool,
    /// Whether a line was complete; empty lines before it are ignored.
    has_line: bool,
    /// Whether an empty line came after that.
    has_ended: bool,
}

impl Preface {
    /// Handles further bytes. Returns whether the preface is complete.
    fn advance(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.is_http1 |= PREFACE.get(self.received).is_some_and(|expected| expected != byte);
            self.received += 1;
            match byte {
                b'\n' => {
                    self.has_ended |= self.has_line && !self.has_characters;
                    self.has_line |= self.has_characters;
                    self.has_characters = false;
                }
                b'\r' => {}
                _ => self.has_characters = true,
            }
            let is_complete = if self.is_http1 { self.has_ended } else { self.received == PREFACE_BYTES };
            if is_complete {
                return true;
            }
        }
        false
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TimeoutIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Ready(read) => {
                self.handle_read(&buffer.filled()[before..]);
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_preface(context).map(Err),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TimeoutIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.connection.activity().add_written(bytes);
        }
        self.poll_stall(context, written)
    }

    /// Returns `false`, so that h2 makes a separate write only for DATA above 1,024 bytes. With vectored writes, h2
    /// would make one above 256 bytes; copying the data costs less than another write.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.poll_stall(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context);
        self.poll_stall(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_resembles_a_preface_is_not_complete_before_its_end() {
        for incomplete in ["\r\n\r\n", "\n\n\nPOST / HTTP/1.1\r\n", &format!("PRI /{} HTTP/1.1\r\n", "l".repeat(40))] {
            assert!(!Preface::default().advance(incomplete.as_bytes()), "{incomplete:?}");
        }
        assert!(Preface::default().advance(b"PRI * HTTP/2.0\r\n\r\nGET"), "the head ended before the difference");
    }

    #[test]
    fn a_preface_is_complete_with_its_last_byte() {
        let http2 = [PREFACE, &[0; 9]].concat();
        for complete in [http2.as_slice(), b"POST / HTTP/1.1\r\nhost: a\r\n\r\n", b"\r\n\r\nP / HTTP/1.1\nhost: a\n\n"]
        {
            for piece in [1, 2, 5, complete.len()] {
                let mut preface = Preface::default();
                let completed: Vec<bool> = complete.chunks(piece).map(|bytes| preface.advance(bytes)).collect();
                assert_eq!(completed.iter().position(|completed| *completed), Some(completed.len() - 1));
            }
        }
    }
}
