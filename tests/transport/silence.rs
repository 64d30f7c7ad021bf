//! Clients that send nothing, or stop sending or reading.

use crate::common::{MemoryStore, add, set, stack};
use crate::support::{Files, WAIT, client, closed_after, create, eventually, get, settings, start, start_at};
use slotcast::client::fresh_context;
use slotcast::transport::{ConnectionRefusal, TransportSettings};
use slotcast::wire::v1;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

const SHORT: Duration = Duration::from_millis(300);
/// Tolerance for a busy machine.
const SLACK: Duration = Duration::from_secs(3);
/// The HTTP/2 preface, empty SETTINGS, and the acknowledgement of the peer's SETTINGS.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

#[tokio::test]
async fn a_connection_without_a_complete_preface_is_closed_in_time() {
    let server = start(TransportSettings { preface_timeout: SHORT, ..TransportSettings::default() }).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let slow_writer = async {
        let start_time = Instant::now();
        for byte in GREETING.iter().cycle() {
            // One byte at a time, so that the preface is far from complete at the timeout.
            if slow.write_all(&[*byte]).await.is_err() {
                return start_time.elapsed();
            }
            tokio::time::sleep(SHORT / 10).await;
        }
        unreachable!("the cycle is infinite");
    };
    let (silent_for, slow_for) = tokio::join!(closed_after(&mut silent), slow_writer);
    for lasted in [silent_for, slow_for] {
        assert!(lasted > SHORT / 2 && lasted < SHORT + SLACK, "{lasted:?}");
    }
    assert_eq!(server.transport.refused(ConnectionRefusal::Preface), 2);
    // A connection that has sent its preface may be silent for longer.
    let client = client(&server);
    create(&client, "a").await;
    tokio::time::sleep(2 * SHORT).await;
    get(&client, "a").await.unwrap();
    assert_eq!((server.transport.refused(ConnectionRefusal::Preface), server.transport.connections()), (2, 1));
}

#[tokio::test]
async fn a_slow_http_1_1_client_is_disconnected() {
    let server = start(TransportSettings { preface_timeout: SHORT, ..TransportSettings::default() }).await;
    let long_head = format!("GET / HTTP/1.1\r\nhost: {}", "a".repeat(100));
    for (request, gets_reply) in [
        ("G", false),
        ("GET / HTTP/1.1\r\n", false),
        (&*long_head, false),
        // The server does not wait for the body, which never arrives.
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nx", true),
        // The server does not wait for another request on the same connection.
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\n\r\n", true),
    ] {
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(request.as_bytes()).await.unwrap();
        let start_time = Instant::now();
        let mut reply = Vec::new();
        // A reset also closes the connection.
        let _ = tokio::time::timeout(WAIT, slow.read_to_end(&mut reply)).await.expect("the connection is closed");
        assert!(start_time.elapsed() < SHORT + SLACK, "{request:?}: {:?}", start_time.elapsed());
        assert_eq!(
            reply.starts_with(b"HTTP/1.1 505"),
            gets_reply,
            "{request:?}: {:?}",
            String::from_utf8_lossy(&reply)
        );
    }
    eventually("all connections are closed", || server.transport.connections() == 0).await;
    // An endless head is refused once it is too large.
    let mut endless = TcpStream::connect(server.address).await.unwrap();
    let _ = endless.write_all(format!("GET / HTTP/1.1\r\na: {}", "a".repeat(1 << 20)).as_bytes()).await;
    assert!(closed_after(&mut endless).await < SHORT + SLACK);
}

#[tokio::test]
async fn bytes_that_are_not_http_count_as_a_refused_connection() {
    let server = start(TransportSettings::default()).await;
    for (count, garbage) in (1..).zip(["\x01\x02\x03\x04 \r\n\r\n", "GET /\n\n", "SSH-2.0-OpenSSH_9.2\r\n\r\n"]) {
        let mut stranger = TcpStream::connect(server.address).await.unwrap();
        stranger.write_all(garbage.as_bytes()).await.unwrap();
        closed_after(&mut stranger).await;
        eventually("the refused connection is counted", || {
            server.transport.refused(ConnectionRefusal::Preface) == count
        })
        .await;
    }
}

#[tokio::test]
async fn a_slow_handshake_is_closed_in_time_and_delays_no_other_client() {
    let files = Files::new();
    let server = start(TransportSettings { handshake_timeout: SHORT, ..files.transport() }).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(TcpStream::connect(server.address).await.unwrap());
    }
    let start_time = Instant::now();
    let client = files.client(&server);
    create(&client, "a").await;
    let served_after = start_time.elapsed();
    let closed: Vec<_> = slow.iter_mut().map(closed_after).collect();
    let lasted = futures_util::future::join_all(closed).await;
    // One after the other, the timeouts would take twice as long.
    assert!(served_after < SLACK, "{served_after:?}");
    assert!(lasted.iter().all(|lasted| *lasted < SLACK), "{lasted:?}");
    eventually("all refused connections are counted", || server.transport.refused(ConnectionRefusal::Handshake) == 20)
        .await;
    get(&client, "a").await.unwrap();
}

fn keepalive() -> TransportSettings {
    TransportSettings { keepalive_interval: SHORT, keepalive_timeout: SHORT, ..TransportSettings::default() }
}

#[tokio::test]
async fn case_37_keepalive_closes_a_half_open_connection_and_keeps_one_that_replies() {
    let server = start(keepalive()).await;
    let answering = client(&server);
    create(&answering, "a").await;
    let mut follow = answering.follow(vec!["a".into()]);
    follow.next().await.unwrap();
    // This connection sends the preface, but does not reply to PING.
    let mut half_open = TcpStream::connect(server.address).await.unwrap();
    half_open.write_all(GREETING).await.unwrap();
    let lasted = closed_after(&mut half_open).await;
    assert!(lasted > SHORT && lasted < 2 * SHORT + SLACK, "{lasted:?}");
    eventually("the other connection stays open", || server.transport.connections() == 1).await;
    answering.mutate(fresh_context(), add("a", "coal", 1)).await.unwrap();
    assert_eq!(follow.next().await.unwrap().changed, [0]);
    assert_eq!(follow.counts().reconnects, 0);
}

/// A socket that stops reading when `is_deaf` is set.
struct Deaf {
    socket: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.is_deaf.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Deaf {
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

#[tokio::test]
async fn case_37_keepalive_also_closes_a_connection_with_unsent_data() {
    let server = start(keepalive()).await;
    let writer = client(&server);
    create(&writer, "a").await;
    for slot in 0..27 {
        let large = v1::Stack { attributes: vec![slot as u8; 1_024], ..stack("diamond_axe", 1) };
        writer.mutate(fresh_context(), set("a", slot, Some(large))).await.unwrap();
    }
    let address = server.address;
    let socket = TcpStream::connect(address).await.unwrap();
    let is_deaf = Arc::new(AtomicBool::new(false));
    let deaf = Deaf { socket, is_deaf: is_deaf.clone() };
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size((1 << 31) - 1)
        .initial_connection_window_size((1 << 31) - 1)
        .handshake::<_, bytes::Bytes>(deaf)
        .await
        .unwrap();
    let driven = tokio::spawn(connection);
    // Enough replies of 28 KB to fill what the system buffers for a connection.
    let message = prost::Message::encode_to_vec(&v1::GetInventoryRequest { inventory_id: "a".into() });
    let mut framed = vec![0, 0, 0, 0, message.len() as u8];
    framed.extend(message);
    let mut replies = Vec::new();
    for number in 0..600 {
        send = send.ready().await.unwrap();
        let uri = format!("http://{address}/slotcast.v1.InventoryService/GetInventory");
        let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let (reply, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(framed.clone().into(), true).unwrap();
        replies.push(reply);
        if number == 10 {
            tokio::time::timeout(WAIT, replies.remove(0)).await.unwrap().expect("the first call is served");
            is_deaf.store(true, Ordering::Relaxed);
        }
    }
    let start_time = Instant::now();
    drop(writer);
    eventually("the connection is closed", || server.transport.connections() == 0).await;
    let lasted = start_time.elapsed();
    assert!(lasted > SHORT / 2 && lasted < 2 * SHORT + SLACK, "{lasted:?}");
    driven.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_39_two_thousand_small_frames_do_not_break_the_connection_of_a_slow_reader() {
    const COMMITS: u64 = 2_000;
    let server = start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings(TransportSettings::default())).await;
    let writer = client(&server);
    create(&writer, "a").await;
    // With the default flow-control windows.
    let channel = Endpoint::from_shared(server.uri()).unwrap().connect_lazy();
    let mut rpc = v1::inventory_service_client::InventoryServiceClient::new(channel);
    let inventories = vec![v1::Watch { inventory_id: "a".into(), ..v1::Watch::default() }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    let stream = rpc.subscribe_inventory(request).await.unwrap().into_inner();
    let mut reader = crate::common::Subscriber::new(stream, 1);
    reader.next().await;
    for _ in 0..COMMITS / 2 {
        writer.mutate(fresh_context(), add("a", "coal", 1)).await.unwrap();
        let remove = crate::common::remove("a", "coal", 1);
        writer.mutate(fresh_context(), remove).await.unwrap();
    }
    reader.read_until(0, 1 + COMMITS).await;
    reader.assert_is_at(0, &get(&writer, "a").await.unwrap());
    assert_eq!(server.transport.connections(), 2, "no client has reconnected");
}
