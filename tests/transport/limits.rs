//! How many connections there may be, and what happens beyond.

use crate::process::ServerProcess;
use crate::support::{WAIT, client, closed_after, create, eventually, get, start};
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
async fn more_connections_than_there_may_be_are_closed_at_once_until_there_is_room_again() {
    for (transport, reason) in [
        (TransportSettings { connections_max: 3, ..TransportSettings::default() }, ConnectionRefusal::Limit),
        (
            TransportSettings { connections_per_address_max: 3, ..TransportSettings::default() },
            ConnectionRefusal::AddressLimit,
        ),
    ] {
        let server = start(transport).await;
        let first = client(&server);
        create(&first, "a").await;
        let mut held = connect(&server, 2).await;
        eventually("all three are there", || server.transport.connections() == 3).await;
        for mut refused in connect(&server, 5).await {
            closed_after(&mut refused).await;
        }
        assert_eq!((server.transport.refused(reason), server.transport.connections()), (5, 3));
        get(&first, "a").await.expect("those who are in are served");
        held.pop();
        eventually("one has left", || server.transport.connections() == 2).await;
        get(&client(&server), "a").await.expect("there is room again");
    }
}

/// What a process has used of the processor, in ticks of 10 ms.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // After the name, which may hold anything: state is the first, utime and stime the 12th and 13th.
    let after: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    after[11].parse::<u64>().unwrap() + after[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn case_61_without_descriptors_it_serves_who_is_there_does_not_spin_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start_with_descriptors(64, folder.path());
    let address = server.uri.strip_prefix("http://").unwrap().to_owned();
    let early = Client::new(&server.uri, "test").unwrap();
    create(&early, "a").await;
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(TcpStream::connect(&address).await.unwrap());
    }
    // The system has taken them; the server cannot: this one waits for its turn.
    let late = Client::new(&server.uri, "test").unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(500), get(&late, "a")).await;
    assert!(waiting.is_err(), "there are descriptors left: {waiting:?}");
    let before = ticks(server.id());
    // Time under test: CPU time used in 2 s.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = ticks(server.id()) - before;
    assert!(used < 40, "{used} ticks of 200 in 2 s, for nothing");
    get(&early, "a").await.expect("who is there is served");

    drop(held);
    tokio::time::timeout(WAIT, async { while get(&late, "a").await.is_err() {} }).await.expect("it recovers");
    get(&early, "a").await.expect("on the connection of the start");
}
