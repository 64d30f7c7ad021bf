//! Limits of connections: per server, per address, and of file descriptors.

use crate::process::ServerProcess;
use crate::support::{WAIT, client, closed_after, create, eventually, get, start_with_threads};
use slotcast::client::Client;
use slotcast::transport::{ConnectionRefusal, TransportSettings};
use std::time::Duration;
use tokio::net::TcpStream;

async fn connect(server: &slotcast::server::RunningServer, connections: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    held
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_immediately_until_others_close() {
    for (transport, reason) in [
        (TransportSettings { connections_max: 3, ..TransportSettings::default() }, ConnectionRefusal::Limit),
        (
            TransportSettings { connections_per_address_max: 3, ..TransportSettings::default() },
            ConnectionRefusal::AddressLimit,
        ),
    ] {
        for threads in [1, 2] {
            let server = start_with_threads(threads, transport.clone()).await;
            let first = client(&server);
            create(&first, "a").await;
            let mut held = connect(&server, 2).await;
            eventually("three connections are open", || server.transport.connections() == 3).await;
            for mut refused in connect(&server, 5).await {
                closed_after(&mut refused).await;
            }
            assert_eq!((server.transport.refused(reason), server.transport.connections()), (5, 3));
            get(&first, "a").await.expect("open connections are served");
            held.pop();
            eventually("one connection was closed", || server.transport.connections() == 2).await;
            get(&client(&server), "a").await.expect("a new connection is accepted");
        }
    }
}

/// Returns the CPU time of a process, in ticks of 10 ms.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // After the name, which may contain any character: state is the first field, utime and stime the 12th and 13th.
    let after: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    after[11].parse::<u64>().unwrap() + after[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn case_61_without_file_descriptors_open_connections_are_served_and_the_server_recovers_without_spinning() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start_with_descriptor_limit(64, folder.path());
    let address = server.uri.strip_prefix("http://").unwrap().to_owned();
    let early = Client::new(&server.uri, "test").unwrap();
    create(&early, "a").await;
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(TcpStream::connect(&address).await.unwrap());
    }
    // The system has queued the connections, but the server cannot accept them: this call waits.
    let late = Client::new(&server.uri, "test").unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(500), get(&late, "a")).await;
    assert!(waiting.is_err(), "file descriptors are left: {waiting:?}");
    let before = ticks(server.id());
    // Time under test: CPU time used in 2 s.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = ticks(server.id()) - before;
    assert!(used < 40, "the server used {used} of 200 ticks in 2 s while it could not accept");
    get(&early, "a").await.expect("open connections are served");

    drop(held);
    tokio::time::timeout(WAIT, async { while get(&late, "a").await.is_err() {} }).await.expect("the server recovers");
    get(&early, "a").await.expect("the first connection is still served");
}
