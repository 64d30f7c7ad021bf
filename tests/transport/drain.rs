//! Draining and stopping a server, as its clients see it.

use crate::common::{MemoryStore, add, error_of};
use crate::process::ServerProcess;
use crate::support::{Files, WAIT, client, create, eventually, get, held, settings, start_at, start_with_threads};
use slotcast::client::{Client, new_mutation_context};
use slotcast::server::ServerSettings;
use slotcast::transport::{DrainSettings, TransportSettings};
use slotcast::wire::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

async fn watch_health(uri: &str) -> Streaming<HealthCheckResponse> {
    let channel: Channel = Endpoint::from_shared(uri.to_owned()).unwrap().connect_lazy();
    HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner()
}

async fn health(watch: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus, Status> {
    let response = tokio::time::timeout(WAIT, watch.message()).await.expect("a message in time")?;
    Ok(match response.expect("the stream ends with a status only").status() {
        tonic_health::pb::health_check_response::ServingStatus::Serving => ServingStatus::Serving,
        tonic_health::pb::health_check_response::ServingStatus::NotServing => ServingStatus::NotServing,
        tonic_health::pb::health_check_response::ServingStatus::Unknown
        | tonic_health::pb::health_check_response::ServingStatus::ServiceUnknown => ServingStatus::Unknown,
    })
}

async fn subscribe(client: &Client, id: &str) -> Streaming<v1::SubscribeInventoryResponse> {
    let inventories = vec![v1::Watch { inventory_id: id.into(), ..v1::Watch::default() }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    let mut stream = client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("the first state");
    stream
}

/// Adds one item, and retries with the same key until the call succeeds. Returns the number of retries.
async fn add_with_retries(client: &Client) -> u64 {
    let (context, mut retries) = (new_mutation_context(), 0);
    loop {
        match client.mutate(context.clone(), add("a", "coal", 1)).await {
            Ok(_) => return retries,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                retries += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_57_servers_that_stop_under_load_lose_no_call() {
    for threads in [1, 2] {
        stop_under_load(threads).await;
    }
}

/// Stops and restarts a server with this number of threads while clients call it.
async fn stop_under_load(threads: usize) {
    const CALLS: u64 = 150;
    let store = Arc::new(MemoryStore::default());
    let settings = || ServerSettings { threads, ..settings(TransportSettings::default()) };
    let mut server = start_at("127.0.0.1:0", store.clone(), settings()).await;
    let address = server.address.to_string();
    create(&client(&server), "a").await;
    let (done, retries) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, done, retries) = (client(&server), done.clone(), retries.clone());
            tokio::spawn(async move {
                for _ in 0..CALLS {
                    retries.fetch_add(add_with_retries(&client).await, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for part in 1..4 {
        eventually("calls continue", || done.load(Ordering::Relaxed) > part * 8 * CALLS / 4).await;
        let start = Instant::now();
        server.stop().await.unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "active clients do not delay the stop: {:?}",
            start.elapsed()
        );
        server = start_at(&address, store.clone(), settings()).await;
    }
    for caller in callers {
        tokio::time::timeout(WAIT, caller).await.expect("all calls end in time").unwrap();
    }
    assert!(retries.load(Ordering::Relaxed) > 0, "no call was retried, so the test tested nothing");
    let inventory = get(&client(&server), "a").await.unwrap();
    assert_eq!(u64::from(held(&inventory)), 8 * CALLS, "each call was applied exactly once");
}

#[tokio::test]
async fn case_57_silent_connections_and_endless_streams_do_not_delay_the_stop() {
    for threads in [1, 2] {
        stop_with_endless_streams(threads).await;
    }
}

async fn stop_with_endless_streams(threads: usize) {
    let server = start_with_threads(threads, TransportSettings::default()).await;
    let client = client(&server);
    create(&client, "a").await;
    let mut stream = subscribe(&client, "a").await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut watch = watch_health(&server.uri()).await;
    assert_eq!(health(&mut watch).await.unwrap(), ServingStatus::Serving);
    let (stop_start, stopping) = (Instant::now(), tokio::spawn(server.stop()));
    let ended = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap_err();
    assert_eq!(error_of(&ended), (Code::Unavailable, "DRAINING".into(), None));
    assert_eq!(health(&mut watch).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(health(&mut watch).await.unwrap_err().code(), Code::Unavailable);
    assert!(stop_start.elapsed() < Duration::from_secs(1), "both streams end at once: {:?}", stop_start.elapsed());
    stopping.await.unwrap().unwrap();
    assert!(stop_start.elapsed() < Duration::from_secs(5), "{:?} of at most 10 s", stop_start.elapsed());
}

#[tokio::test]
async fn a_tls_server_stops_even_during_a_handshake() {
    let files = Files::new();
    for threads in [1, 2] {
        let server = start_with_threads(threads, files.transport()).await;
        let client = files.client(&server);
        create(&client, "a").await;
        let mut stream = subscribe(&client, "a").await;
        // With two threads, the second one performs this handshake.
        let _silent = TcpStream::connect(server.address).await.unwrap();
        eventually("the silent connection is accepted", || server.transport.connections() == 2).await;
        let start = Instant::now();
        server.stop().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(error_of(&stream.message().await.unwrap_err()).1, "DRAINING");
    }
}

#[tokio::test]
async fn calls_that_exceed_the_drain_limit_are_cut_off_on_all_threads() {
    for threads in [1, 2] {
        // No mutation is answered while commits are paused.
        let store = Arc::new(MemoryStore::default());
        store.pause_commits();
        let drain = DrainSettings { timeout: Duration::from_millis(300), ..DrainSettings::default() };
        let settings = ServerSettings { threads, drain, ..settings(TransportSettings::default()) };
        let server = start_at("127.0.0.1:0", store.clone(), settings).await;
        let callers: Vec<_> = (0..4)
            .map(|number| {
                let client = client(&server);
                let create = crate::common::create_named(&format!("inventory-{number}"));
                tokio::spawn(async move { client.mutate(new_mutation_context(), create).await })
            })
            .collect();
        eventually("every connection is open", || server.transport.connections() == 4).await;
        let stopping = tokio::spawn(server.stop());
        for caller in callers {
            let ended = tokio::time::timeout(WAIT, caller).await.expect("the call was cut off").unwrap();
            ended.expect_err("no call is answered");
        }
        stopping.await.unwrap().unwrap();
        store.resume_commits();
    }
}

#[tokio::test]
async fn during_the_drain_delay_calls_are_served_and_health_reports_not_serving() {
    let delay = Duration::from_millis(700);
    let settings = ServerSettings {
        drain: DrainSettings { delay, ..DrainSettings::default() },
        ..settings(TransportSettings::default())
    };
    let server = start_at("127.0.0.1:0", Arc::default(), settings).await;
    let uri = server.uri();
    let client = client(&server);
    create(&client, "a").await;
    let mut stream = subscribe(&client, "a").await;
    let mut watch = watch_health(&uri).await;
    assert_eq!(health(&mut watch).await.unwrap(), ServingStatus::Serving);
    let (stop_start, stopping) = (Instant::now(), tokio::spawn(server.stop()));
    assert_eq!(health(&mut watch).await.unwrap(), ServingStatus::NotServing);
    // Both on an existing connection and on a new one.
    client.mutate(new_mutation_context(), add("a", "coal", 1)).await.unwrap();
    Client::new(&uri, "new").unwrap().mutate(new_mutation_context(), add("a", "coal", 1)).await.unwrap();
    assert!(stream.message().await.unwrap().is_some(), "streams continue");
    assert!(!stopping.is_finished() && stop_start.elapsed() < delay, "the test was slower than the drain delay");
    while stream.message().await.is_ok_and(|message| message.is_some()) {}
    assert!(stop_start.elapsed() >= delay, "the stream ended before the drain delay");
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn case_57_a_terminated_process_exits_with_success_within_the_drain_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &["--drain-limit-ms", "8000"]);
    let client = Client::new(&server.uri, "test").unwrap();
    create(&client, "a").await;
    let mut stream = subscribe(&client, "a").await;
    let mut watch = watch_health(&server.uri).await;
    assert_eq!(health(&mut watch).await.unwrap(), ServingStatus::Serving);
    let address = server.uri.strip_prefix("http://").unwrap().to_owned();
    let _silent = TcpStream::connect(&address).await.unwrap();
    let calling = tokio::spawn(async move {
        let mut added = 0;
        loop {
            match client.mutate(new_mutation_context(), add("a", "coal", 1)).await {
                Ok(_) => added += 1,
                Err(status) => return (added, status.code()),
            }
        }
    });
    let start = Instant::now();
    let ending = tokio::task::spawn_blocking(move || (server.terminate(), start.elapsed()));
    let ended = loop {
        if let Err(status) = stream.message().await {
            break status;
        }
    };
    assert_eq!(error_of(&ended).1, "DRAINING");
    let (status, stopped_after) = ending.await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(stopped_after < Duration::from_secs(8), "{stopped_after:?}");
    let (added, code) = calling.await.unwrap();
    assert_eq!(code, Code::Unavailable);
    // Acknowledged changes are durable.
    let server = ServerProcess::start(folder.path(), &[]);
    let inventory = get(&Client::new(&server.uri, "test").unwrap(), "a").await.unwrap();
    assert!(held(&inventory) >= added, "{added} were acknowledged");
}
