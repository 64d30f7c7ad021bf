//! Clients that send nothing, or stop sending.

use crate::common::{MemoryStore, add, set, stack};
use crate::stalling::{StallingSocket, call, handshake};
use crate::support::{Files, WAIT, client, closed_after, create, eventually, get, settings, start, start_at};
use slotcast::client::new_mutation_context;
use slotcast::transport::{ConnectionRefusal, TransportSettings};
use slotcast::wire::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

const SHORT: Duration = Duration::from_millis(300);
/// Long enough for a busy machine.
const SLACK: Duration = Duration::from_secs(3);
/// The HTTP/2 preface, an empty SETTINGS frame, and the acknowledgement of the server's SETTINGS.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

#[tokio::test]
async fn a_connection_without_a_complete_preface_is_closed_in_time() {
    let server = start(TransportSettings { preface_timeout: SHORT, ..TransportSettings::default() }).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let dawdling = async {
        let begin = Instant::now();
        for byte in GREETING.iter().cycle() {
            // One byte at a time, too slowly for the timeout.
            if slow.write_all(&[*byte]).await.is_err() {
                return begin.elapsed();
            }
            tokio::time::sleep(SHORT / 10).await;
        }
        unreachable!("the cycle has no end");
    };
    let (silent_for, slow_for) = tokio::join!(closed_after(&mut silent), dawdling);
    for lasted in [silent_for, slow_for] {
        assert!(lasted > SHORT / 2 && lasted < SHORT + SLACK, "{lasted:?}");
    }
    assert_eq!(server.transport.refused(ConnectionRefusal::Preface), 2);
    let client = client(&server);
    create(&client, "a").await;
    // Time under test: a connection with a complete preface may be silent for longer than the timeout of the preface.
    tokio::time::sleep(2 * SHORT).await;
    get(&client, "a").await.unwrap();
    assert_eq!((server.transport.refused(ConnectionRefusal::Preface), server.transport.connections()), (2, 1));
}

#[tokio::test]
async fn a_slow_http_1_1_client_is_disconnected() {
    let server = start(TransportSettings { preface_timeout: SHORT, ..TransportSettings::default() }).await;
    let long_head = format!("GET / HTTP/1.1\r\nhost: {}", "a".repeat(100));
    for (said, is_answered) in [
        ("G", false),
        ("GET / HTTP/1.1\r\n", false),
        (&*long_head, false),
        // The server waits only 2 s for the body of a request that it refuses.
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nx", true),
    ] {
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(said.as_bytes()).await.unwrap();
        let begin = Instant::now();
        let mut answer = Vec::new();
        // A reset also ends the connection.
        let _ = tokio::time::timeout(WAIT, slow.read_to_end(&mut answer)).await.expect("it is closed");
        assert!(begin.elapsed() < SHORT + SLACK, "{said:?}: {:?}", begin.elapsed());
        assert_eq!(answer.starts_with(b"HTTP/1.1 4"), is_answered, "{said:?}: {:?}", String::from_utf8_lossy(&answer));
    }
    eventually("nobody is left", || server.transport.connections() == 0).await;
    // An endless header is refused once it is too large.
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
        eventually("it is counted", || server.transport.refused(ConnectionRefusal::Preface) == count).await;
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
    let begin = Instant::now();
    let client = files.client(&server);
    create(&client, "a").await;
    let served_after = begin.elapsed();
    let closed: Vec<_> = slow.iter_mut().map(closed_after).collect();
    let lasted = futures_util::future::join_all(closed).await;
    // One after the other, the handshakes would take twice as long.
    assert!(served_after < SLACK, "{served_after:?}");
    assert!(lasted.iter().all(|lasted| *lasted < SLACK), "{lasted:?}");
    eventually("all of them are counted", || server.transport.refused(ConnectionRefusal::Handshake) == 20).await;
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
    // The client has sent its preface and does not answer PING.
    let mut half_open = TcpStream::connect(server.address).await.unwrap();
    half_open.write_all(GREETING).await.unwrap();
    let lasted = closed_after(&mut half_open).await;
    assert!(lasted > SHORT && lasted < 2 * SHORT + SLACK, "{lasted:?}");
    eventually("the other one is left", || server.transport.connections() == 1).await;
    answering.mutate(new_mutation_context(), add("a", "coal", 1)).await.unwrap();
    assert_eq!(follow.next().await.unwrap().changed, [0]);
    assert_eq!(follow.counts().reconnects, 0);
}

#[tokio::test]
async fn case_37_keepalive_also_closes_a_connection_with_unsent_data() {
    let server = start(keepalive()).await;
    let writer = client(&server);
    create(&writer, "a").await;
    for slot in 0..27 {
        let large = v1::Stack { attributes: vec![slot as u8; 1_024], ..stack("diamond_axe", 1) };
        writer.mutate(new_mutation_context(), set("a", slot, Some(large))).await.unwrap();
    }
    let (socket, reading) = StallingSocket::new(TcpStream::connect(server.address).await.unwrap());
    let mut send = handshake(socket).await;
    // Enough replies of 28 KB to fill what the system buffers for a connection.
    let message = v1::GetInventoryRequest { inventory_id: "a".into() };
    let mut replies = Vec::new();
    for number in 0..600 {
        send = send.ready().await.unwrap();
        let reply = call(&mut send, &server, "GetInventory", &message);
        replies.push(reply);
        if number == 10 {
            tokio::time::timeout(WAIT, replies.remove(0)).await.unwrap().expect("it is served");
            reading.stall();
        }
    }
    let begin = Instant::now();
    drop(writer);
    eventually("it is reaped", || server.transport.connections() == 0).await;
    let lasted = begin.elapsed();
    assert!(lasted > SHORT / 2 && lasted < 2 * SHORT + SLACK, "{lasted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_39_two_thousand_small_frames_do_not_break_the_connection_of_a_slow_reader() {
    const COMMITS: u64 = 2_000;
    let server = start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings(TransportSettings::default())).await;
    let writer = client(&server);
    create(&writer, "a").await;
    // With the default flow-control windows of a client.
    let channel = Endpoint::from_shared(server.uri()).unwrap().connect_lazy();
    let mut rpc = v1::inventory_service_client::InventoryServiceClient::new(channel);
    let inventories = vec![v1::Watch { inventory_id: "a".into(), ..v1::Watch::default() }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    let stream = rpc.subscribe_inventory(request).await.unwrap().into_inner();
    let mut reader = crate::common::Subscriber::new(stream, 1);
    reader.next().await;
    for _ in 0..COMMITS / 2 {
        writer.mutate(new_mutation_context(), add("a", "coal", 1)).await.unwrap();
        let remove = crate::common::remove("a", "coal", 1);
        writer.mutate(new_mutation_context(), remove).await.unwrap();
    }
    reader.read_until(0, 1 + COMMITS).await;
    reader.assert_is_at(0, &get(&writer, "a").await.unwrap());
    assert_eq!(server.transport.connections(), 2, "both are still those of the start");
}
