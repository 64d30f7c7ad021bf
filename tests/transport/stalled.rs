//! A reader that stops reading its connection: how much the service and the system buffer for it, and what it gets
//! afterwards.

use crate::common::{add, remove, set, stack};
use crate::support::{WAIT, create, get, start};
use bytes::{Buf, BytesMut};
use futures_util::task::AtomicWaker;
use prost::Message;
use slotcast::client::{Client, fresh_context};
use slotcast::server::RunningServer;
use slotcast::transport::TransportSettings;
use slotcast::wire::v1;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// Receive buffer of the reader's own system, in bytes: the minimum, because the test measures the server's side.
const RECEIVE_BYTES: u32 = 4_096;
/// The largest flow-control window of HTTP/2, so that only the connection itself limits the server.
const WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A socket that its owner can stop reading.
struct Stalling {
    socket: TcpStream,
    reading: Arc<Reading>,
}

#[derive(Default)]
struct Reading {
    is_stalled: AtomicBool,
    waker: AtomicWaker,
}

impl Reading {
    fn stall(&self) {
        self.is_stalled.store(true, Ordering::SeqCst);
    }

    fn resume(&self) {
        self.is_stalled.store(false, Ordering::SeqCst);
        self.waker.wake();
    }
}

impl AsyncRead for Stalling {
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

impl AsyncWrite for Stalling {
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

/// A stream that is read message by message.
struct Reader {
    reading: Arc<Reading>,
    body: h2::RecvStream,
    bytes: BytesMut,
    revision: u64,
}

impl Reader {
    async fn open(server: &RunningServer, id: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BYTES).unwrap();
        let socket = socket.connect(server.address).await.unwrap();
        let reading = Arc::<Reading>::default();
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake::<_, bytes::Bytes>(Stalling { socket, reading: reading.clone() })
            .await
            .unwrap();
        tokio::spawn(connection);
        let inventories = vec![v1::Watch { inventory_id: id.into(), ..v1::Watch::default() }];
        let message = v1::SubscribeInventoryRequest { inventories, ..Default::default() }.encode_to_vec();
        let mut framed = vec![0, 0, 0, 0, message.len() as u8];
        framed.extend(message);
        let uri = format!("http://{}/slotcast.v1.InventoryService/SubscribeInventory", server.address);
        let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let mut send = send.ready().await.unwrap();
        let (reply, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(framed.into(), true).unwrap();
        let body = reply.await.unwrap().into_body();
        Self { reading, body, bytes: BytesMut::new(), revision: 0 }
    }

    /// Returns the next message and its size in bytes.
    async fn next(&mut self) -> (v1::SubscribeInventoryResponse, usize) {
        loop {
            if let Some(length) = self.bytes.get(1..5).map(|mut length| length.get_u32() as usize)
                && self.bytes.len() >= 5 + length
            {
                let message = self.bytes.split_to(5 + length);
                let message = v1::SubscribeInventoryResponse::decode(&message[5..]).unwrap();
                for change in &message.changes {
                    let full = change.full.as_ref().map(|full| full.revision);
                    self.revision = full.unwrap_or(self.revision + change.advance);
                }
                return (message, 5 + length);
            }
            let data = tokio::time::timeout(WAIT, self.body.data()).await.expect("data in time");
            self.bytes.extend_from_slice(&data.expect("the stream continues").unwrap());
        }
    }

    /// Resumes reading, up to a revision.
    async fn catch_up(&mut self, revision: u64) -> Buffered {
        let mut buffered = Buffered::default();
        self.reading.resume();
        while self.revision < revision {
            let before = self.revision;
            let (_, bytes) = self.next().await;
            buffered.messages += 1;
            buffered.bytes += bytes;
            buffered.advance_max = buffered.advance_max.max(self.revision - before);
        }
        buffered
    }
}

/// The messages that were buffered for a stalled reader.
#[derive(Debug, Default)]
struct Buffered {
    messages: usize,
    bytes: usize,
    /// Maximum number of revisions that one message advanced the reader.
    advance_max: u64,
}

/// Makes `commits` changes, one after the other; a reader that keeps up gets a frame for each.
async fn change(writer: &Client, commits: u64, attributes: usize) {
    for n in 0..commits {
        let operation = match (attributes, n % 2) {
            (0, 0) => add("a", "coal", 1),
            (0, _) => remove("a", "coal", 1),
            (bytes, _) => {
                let attributes = (0..bytes).map(|at| (n as usize + at) as u8).collect();
                set("a", (n % 8) as u32, Some(v1::Stack { attributes, ..stack("diamond_axe", 1) }))
            }
        };
        writer.mutate(fresh_context(), operation).await.unwrap();
    }
}

/// Stalls a reader during `commits` changes, and returns the messages that were buffered for it.
async fn buffered_for_stalled_reader(
    server: &RunningServer,
    writer: &Client,
    commits: u64,
    attributes: usize,
) -> Buffered {
    create(writer, "a").await;
    let mut reader = Reader::open(server, "a").await;
    reader.next().await;
    reader.reading.stall();
    change(writer, commits, attributes).await;
    let buffered = reader.catch_up(1 + commits).await;
    let inventory = get(writer, "a").await.unwrap();
    assert_eq!(inventory.version.unwrap().revision, reader.revision);
    buffered
}

/// Size of the HTTP/2 frame header of each message, in bytes.
const HEADER_BYTES: usize = 9;
/// 16 KiB in HTTP/2, 16 KiB and one segment in the system, two messages, and the receive buffer of the reader's system.
const BYTES_MAX: usize = 64 * 1_024;

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_buffered_for_a_stalled_reader_are_bounded_and_later_changes_arrive_as_one_frame() {
    for (commits, attributes) in [(6_000, 0), (3_000, 1_024)] {
        let server = start(TransportSettings::default()).await;
        let writer = crate::support::client(&server);
        let buffered = buffered_for_stalled_reader(&server, &writer, commits, attributes).await;
        println!("{commits} changes of {attributes} bytes: {buffered:?}");
        let bytes = buffered.bytes + HEADER_BYTES * buffered.messages;
        assert!(bytes < BYTES_MAX, "{bytes} bytes: {buffered:?}");
        assert!(buffered.advance_max > commits / 2, "{buffered:?}");
    }
}
