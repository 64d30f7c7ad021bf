//! HTTP/2 clients whose socket can stop reading.

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use slotcast::server::RunningServer;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Maximum window of HTTP/2, so that only the socket limits what the server sends.
const WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A socket that its owner can stop reading.
pub struct StallingSocket {
    socket: TcpStream,
    reading: Arc<Reading>,
}

#[derive(Default)]
pub struct Reading {
    is_stalled: AtomicBool,
    waker: AtomicWaker,
}

impl StallingSocket {
    pub fn new(socket: TcpStream) -> (Self, Arc<Reading>) {
        let reading = Arc::<Reading>::default();
        (Self { socket, reading: reading.clone() }, reading)
    }
}

impl Reading {
    pub fn stall(&self) {
        self.is_stalled.store(true, Ordering::SeqCst);
    }

    pub fn go_on(&self) {
        self.is_stalled.store(false, Ordering::SeqCst);
        self.waker.wake();
    }
}

impl AsyncRead for StallingSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.reading.waker.register(context.waker());
        if self.reading.is_stalled.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallingSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Opens an HTTP/2 connection, which a task then drives.
pub async fn handshake(socket: StallingSocket) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(socket)
        .await
        .unwrap();
    tokio::spawn(connection);
    send
}

/// Sends a request of the inventory service.
pub fn call(
    send: &mut SendRequest<Bytes>,
    server: &RunningServer,
    method: &str,
    message: &impl Message,
) -> ResponseFuture {
    let message = message.encode_to_vec();
    let mut framed = vec![0, 0, 0, 0, message.len() as u8];
    framed.extend(message);
    let uri = format!("http://{}/slotcast.v1.InventoryService/{method}", server.address);
    let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    let (reply, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(framed.into(), true).unwrap();
    reply
}
