//! A full disk, and a check that the shim intercepts the server's calls.

use crate::case::{LONG_LOG_BYTES, Place, SHORT_LOG_BYTES};
use crate::load::{Ledger, Load, name};
use crate::process::ServerProcess;
use crate::shim::{Caller, Errno, Kind, Rule, Syscall};
use slotcast::wire::v1;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(120);

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < WAIT, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_sees_every_kind_of_call_that_the_store_makes() {
    let place = Place::new().await;
    let server = ServerProcess::start_with(place.command(SHORT_LOG_BYTES), &place.data(), &[]);
    let ledger = Ledger::new(&server.uri);
    let load = Load::start(&ledger, 1);
    for (kind, syscall) in [
        (Kind::Log, Syscall::Write),
        (Kind::Log, Syscall::Sync),
        (Kind::Log, Syscall::Read),
        (Kind::Log, Syscall::Open),
        (Kind::Database, Syscall::Write),
        (Kind::Database, Syscall::Sync),
        (Kind::Database, Syscall::Read),
        (Kind::Database, Syscall::Open),
        (Kind::Index, Syscall::Write),
    ] {
        wait_until(&format!("{syscall:?} of {kind:?}"), || place.control.count(kind, syscall) > 0).await;
    }
    load.finish().await;
}

/// Creates a store whose database file does not grow under load for a while: it has free pages, as after old history was
/// deleted.
async fn store_with_free_pages() -> (Place, Arc<Ledger>) {
    let place = Place::new().await;
    let mut server = ServerProcess::start_with(place.command(SHORT_LOG_BYTES), &place.data(), &[]);
    let ledger = Ledger::new(&server.uri);
    let load = Load::start(&ledger, 2);
    wait_until("there are mutations", || ledger.acknowledged() > 500).await;
    load.finish().await;
    assert!(server.terminate().success());
    let database = rusqlite::Connection::open(place.data().join("slotcast.db")).unwrap();
    let room = "CREATE TABLE room (x BLOB); INSERT INTO room VALUES (zeroblob(16777216)); DROP TABLE room;";
    database.execute_batch(room).unwrap();
    database.close().unwrap();
    (place, ledger)
}

const FULL: Rule = Rule {
    kind: Kind::Any,
    syscall: Syscall::Write,
    caller: Caller::Any,
    errno: Errno::Enospc,
    first: 1,
    calls: i64::MAX,
    only_growth: false,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_44_a_full_disk_refuses_mutations_serves_reads_and_recovers_when_there_is_room() {
    let (place, ledger) = store_with_free_pages().await;
    let mut server = ServerProcess::start_with(place.command(SHORT_LOG_BYTES), &place.data(), &[]);
    ledger.set_uri(&server.uri);
    let load = Load::start(&ledger, 3);
    place.control.arm(&FULL);
    wait_until("mutations are refused", || ledger.refused_as_full.load(Ordering::Relaxed) > 20).await;
    let request = v1::GetInventoryRequest { inventory_id: name(7) };
    ledger.client().rpc().get_inventory(request).await.unwrap();
    place.control.disarm();
    let acknowledged = ledger.acknowledged();
    wait_until("mutations go on", || ledger.acknowledged() > acknowledged + 50).await;
    load.finish().await;
    ledger.check().await;
    assert!(server.terminate().success());
    place.fsck();
    assert_eq!(*ledger.violations.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_44_a_log_that_cannot_grow_is_checkpointed_and_reused_without_more_room() {
    let (place, ledger) = store_with_free_pages().await;
    let mut server = ServerProcess::start_with(place.command(LONG_LOG_BYTES), &place.data(), &[]);
    ledger.set_uri(&server.uri);
    let load = Load::start(&ledger, 4);
    let acknowledged = ledger.acknowledged();
    wait_until("there is a log", || ledger.acknowledged() > acknowledged + 50).await;
    place.control.arm(&Rule { only_growth: true, ..FULL });
    let refused = || ledger.refused_as_full.load(Ordering::Relaxed);
    wait_until("the log cannot grow", || refused() > 0).await;
    let acknowledged = ledger.acknowledged();
    wait_until("mutations go on", || ledger.acknowledged() > acknowledged + 200).await;
    place.control.disarm();
    load.finish().await;
    ledger.check().await;
    assert!(server.terminate().success());
    place.fsck();
}
