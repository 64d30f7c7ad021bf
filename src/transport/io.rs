//! The I/O layer between HTTP/2 and the socket. It enforces that a connection sends its HTTP/2 preface in time, and
//! that the peer keeps accepting data.

use super::service::Connection;
use super::{ConnectionRefusal, TransportStatistics};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Size of the HTTP/2 preface and of the header of the first frame, in bytes.
const PREFACE_BYTES: usize = 24 + 9;

/// A socket whose peer must send and accept data in time.
pub(super) struct TimeoutIo<T> {
    inner: T,
    connection: Connection,
    /// The number of missing bytes of the preface, and its deadline; `None` once the preface is complete.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
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
        let preface = Some((PREFACE_BYTES, Box::pin(tokio::time::sleep_until(preface_end))));
        Self { inner, connection, preface, stall_limit, stall: None, statistics }
    }

    fn handle_read(&mut self, bytes: usize) {
        if let Some((missing, _)) = &mut self.preface {
            *missing = missing.saturating_sub(bytes);
            if *missing == 0 {
                self.preface = None;
            }
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

impl<T: AsyncRead + Unpin> AsyncRead for TimeoutIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Ready(read) => {
                self.handle_read(buffer.filled().len() - before);
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
