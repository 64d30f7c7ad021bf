//! Signals to a server, also during startup.

use crate::common::{add, create_named};
use crate::process::Server;
use slotcast::client::new_mutation_context;
use slotcast::wire::v1;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CALLERS: usize = 8;

/// Sends mutations until the server ends, and counts the acknowledged ones. Returns after `at_least` of them.
async fn load(server: &Server, at_least: u64) -> (Arc<AtomicU64>, Vec<tokio::task::JoinHandle<()>>) {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (client, acknowledged) = (server.client(), acknowledged.clone());
        let id = format!("inventory-{number}");
        client.mutate(new_mutation_context(), create_named(&id)).await.unwrap();
        callers.push(tokio::spawn(async move {
            while client.mutate(new_mutation_context(), add(&id, "coal", 1)).await.is_ok() {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let enough = async {
        while acknowledged.load(Ordering::Relaxed) < at_least {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(crate::process::WAIT, enough).await.expect("mutations are acknowledged in time");
    (acknowledged, callers)
}

fn assert_closed(server: &Server, folder: &Path) {
    assert!(server.log().contains("closed the store"), "{}", server.log());
    let files: Vec<_> =
        std::fs::read_dir(folder.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let is_log = |name: &std::ffi::OsString| name.to_string_lossy().ends_with("-wal");
    assert!(!files.iter().any(is_log), "the write-ahead log is left: {files:?}");
}

/// Restarts the server, and returns the number of items in all inventories.
async fn reopened(folder: &Path) -> u64 {
    let server = Server::start(folder, &[]);
    assert!(server.log().contains("replayed_records=0"), "{}", server.log());
    let mut held = 0;
    for number in 0..CALLERS {
        let request = v1::GetInventoryRequest { inventory_id: format!("inventory-{number}") };
        let Ok(reply) = server.client().rpc().get_inventory(request).await else { continue };
        let stacks = reply.into_inner().inventory.unwrap().stacks;
        held += stacks.iter().map(|entry| u64::from(entry.stack.as_ref().unwrap().count)).sum::<u64>();
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_closes_the_store_so_that_the_next_start_replays_nothing() {
    for signal in ["-TERM", "-INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::start(folder.path(), &[]);
        let (acknowledged, callers) = load(&server, 1_000).await;
        // An open stream, an inventory read from the file, and a silent connection.
        let _silent = std::net::TcpStream::connect(server.uri.strip_prefix("http://").unwrap()).unwrap();
        let mut follow = server.client().follow(vec!["inventory-0".into()]);
        follow.next().await.unwrap();
        let nowhere = v1::GetInventoryRequest { inventory_id: "nowhere".into() };
        server.client().rpc().get_inventory(nowhere).await.unwrap_err();
        server.signal(signal);
        // A second signal changes nothing.
        server.signal(signal);
        assert_eq!(tokio::task::block_in_place(|| server.wait()).code(), Some(0), "{}", server.log());
        for caller in callers {
            caller.await.unwrap();
        }
        assert_closed(&server, folder.path());
        let held = reopened(folder.path()).await;
        assert!(held >= acknowledged.load(Ordering::Relaxed), "{held} of {acknowledged:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_by_the_admin_service_closes_the_store_as_sigterm_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), &[]);
    let (_, callers) = load(&server, 100).await;
    let channel = tonic::transport::Endpoint::from_shared(server.uri.clone()).unwrap().connect_lazy();
    let mut admin = v1::admin_service_client::AdminServiceClient::new(channel);
    admin.drain(v1::DrainRequest { reason: "test".into() }).await.unwrap();
    assert_eq!(tokio::task::block_in_place(|| server.wait()).code(), Some(0), "{}", server.log());
    for caller in callers {
        caller.await.unwrap();
    }
    assert_closed(&server, folder.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_at_any_moment_of_startup_stops_the_server_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), &[]);
    let (acknowledged, callers) = load(&server, 5_000).await;
    // The next start has much to replay.
    server.signal("-KILL");
    tokio::task::block_in_place(|| server.wait());
    for caller in callers {
        caller.await.unwrap();
    }
    tokio::task::block_in_place(|| {
        for signal in ["-TERM", "-INT", "-HUP"] {
            for after_ms in [0, 2, 10, 50] {
                let mut server = Server::spawn(folder.path(), &[]);
                server.wait_for_log("starting");
                // Time under test: the moment of the signal within the start.
                std::thread::sleep(Duration::from_millis(after_ms));
                server.signal(signal);
                assert_eq!(server.wait().code(), Some(0), "{signal} after {after_ms} ms: {}", server.log());
                assert_closed(&server, folder.path());
            }
        }
        let mut server = Server::start(folder.path(), &[]);
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0), "right after it has printed that it listens: {}", server.log());
    });
    let held = reopened(folder.path()).await;
    assert!(held >= acknowledged.load(Ordering::Relaxed), "{held} of {acknowledged:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reloads_the_settings_file_even_during_startup() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("slotcast.toml");
    std::fs::write(&file, "").unwrap();
    tokio::task::block_in_place(|| {
        let mut server = Server::spawn(folder.path(), &["--config", file.to_str().unwrap()]);
        server.wait_for_log("starting");
        server.signal("-HUP");
        server.wait_for_log("SIGHUP");
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    });
}
