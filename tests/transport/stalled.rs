//! A reader that stops reading its connection: what the service and the system hold for it, and what it gets
//! afterwards.

use crate::common::{add, remove, set, stack};
use crate::stalling::{Reading, StallingSocket, call, handshake};
use crate::support::{WAIT, create, get, start};
use bytes::{Buf, BytesMut};
use prost::Message;
use slotcast::client::{Client, new_mutation_context};
use slotcast::server::RunningServer;
use slotcast::transport::TransportSettings;
use slotcast::wire::v1;
use std::sync::Arc;
use tokio::net::TcpSocket;

/// Receive buffer of the reader in its kernel, in bytes: the minimum that can be set. The reader itself owns what it holds.
const RECEIVE_BYTES: u32 = 4_096;

/// A stream that is read message by message, with the bytes of each as sent.
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
        let (socket, reading) = StallingSocket::new(socket);
        let mut send = handshake(socket).await.ready().await.unwrap();
        let inventories = vec![v1::Watch { inventory_id: id.into(), ..v1::Watch::default() }];
        let message = v1::SubscribeInventoryRequest { inventories, ..Default::default() };
        let reply = call(&mut send, server, "SubscribeInventory", &message);
        let body = reply.await.unwrap().into_body();
        Self { reading, body, bytes: BytesMut::new(), revision: 0 }
    }

    /// The next message, and how many bytes it was.
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
            let data = tokio::time::timeout(WAIT, self.body.data()).await.expect("more in time");
            self.bytes.extend_from_slice(&data.expect("the stream goes on").unwrap());
        }
    }

    /// Reads what has gathered, up to a revision: messages, their bytes, and the most revisions that one message took
    /// it on.
    async fn catch_up(&mut self, revision: u64) -> Buffered {
        let mut gathered = Buffered::default();
        self.reading.go_on();
        while self.revision < revision {
            let before = self.revision;
            let (_, bytes) = self.next().await;
            gathered.messages += 1;
            gathered.bytes += bytes;
            gathered.longest = gathered.longest.max(self.revision - before);
        }
        gathered
    }
}

#[derive(Debug, Default)]
struct Buffered {
    messages: usize,
    bytes: usize,
    longest: u64,
}

/// Changes one slot at a time, `commits` times in all; each a frame of its own to whoever reads.
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
        writer.mutate(new_mutation_context(), operation).await.unwrap();
    }
}

/// What gathers for a reader that stalls while so much happens.
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
    let gathered = reader.catch_up(1 + commits).await;
    let held = get(writer, "a").await.unwrap();
    assert_eq!(held.version.unwrap().revision, reader.revision);
    gathered
}

/// HTTP/2 puts 9 bytes before each message.
const HEAD_BYTES: usize = 9;
/// 16 KiB in HTTP/2, as much in the system and one segment, two messages, and what the reader's system holds after all.
const BYTES_MAX: usize = 64 * 1_024;

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_buffered_for_a_stalled_reader_are_bounded_and_later_changes_arrive_as_one_frame() {
    for (commits, attributes) in [(6_000, 0), (3_000, 1_024)] {
        let server = start(TransportSettings::default()).await;
        let writer = crate::support::client(&server);
        let gathered = buffered_for_stalled_reader(&server, &writer, commits, attributes).await;
        println!("{commits} changes of {attributes} bytes: {gathered:?}");
        let bytes = gathered.bytes + HEAD_BYTES * gathered.messages;
        assert!(bytes < BYTES_MAX, "{bytes} bytes: {gathered:?}");
        assert!(gathered.longest > commits / 2, "{gathered:?}");
    }
}
