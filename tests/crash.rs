//! Kills the server under load, repeatedly: no acknowledged mutation is lost, no item is created or lost, retries apply
//! once, and after each start `slotcast fsck` finds that log, table and supply agree. The key window is short, so that
//! sealing and trimming run meanwhile (`tests/store_seal.rs` crashes at each of their steps).
//!
//! `SLOTCAST_CRASHES` sets how many times (5 by default; `just crash 100` for a campaign).

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use process::ServerProcess;
use slotcast::client::{Client, new_mutation_context};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::{Code, Status};

const WRITERS: usize = 8;
const ARGUMENTS: [&str; 2] = ["--store-key-window-s", "5"];
const INVENTORIES: usize = 6;
const ITEMS: [&str; 3] = ["cobblestone", "apple", "diamond_sword"];

fn crashes() -> usize {
    std::env::var("SLOTCAST_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn name(inventory: usize) -> String {
    format!("vault-{inventory}")
}

/// The expected result of the acknowledged mutations.
#[derive(Default)]
struct Ledger {
    balance: Mutex<HashMap<&'static str, i64>>,
    /// The newest acknowledged revision of each inventory.
    revisions: Mutex<HashMap<String, u64>>,
    acknowledged: AtomicU64,
    replayed: AtomicU64,
}

impl Ledger {
    fn acknowledge(&self, receipt: &v1::MutationReceipt, item: &'static str, gained: i64) {
        *self.balance.lock().unwrap().entry(item).or_default() += gained;
        let mut revisions = self.revisions.lock().unwrap();
        for version in &receipt.inventories {
            let newest = revisions.entry(version.inventory_id.clone()).or_default();
            *newest = version.revision.max(*newest);
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.replayed.fetch_add(u64::from(receipt.replayed), Ordering::Relaxed);
    }
}

/// Returns an operation, its item, and how many of the item it adds.
fn random_operation() -> (Operation, &'static str, i64) {
    let item = ITEMS[fastrand::usize(..ITEMS.len())];
    let count = fastrand::u32(1..=5);
    let (one, other) = (fastrand::usize(..INVENTORIES), fastrand::usize(..INVENTORIES - 1));
    let other = if other >= one { other + 1 } else { other };
    let what = v1::ItemQuantity { item: item.into(), count, ..v1::ItemQuantity::default() };
    match fastrand::u32(..3) {
        0 => {
            let stack = Some(v1::Stack { item: item.into(), count, ..v1::Stack::default() });
            let add = v1::AddItem { inventory_id: name(one), stack, allow_partial: false };
            (Operation::Add(add), item, i64::from(count))
        }
        1 => {
            let remove = v1::RemoveItem { inventory_id: name(one), item: Some(what) };
            (Operation::Remove(remove), item, -i64::from(count))
        }
        _ => {
            let transfer = v1::TransferItem {
                from_inventory_id: name(one),
                to_inventory_id: name(other),
                what: Some(v1::transfer_item::What::Item(what)),
                to: None,
                allow_partial: false,
            };
            (Operation::Transfer(transfer), item, 0)
        }
    }
}

/// Mutates until `stop` is set. Retries each call with its key until its outcome is known.
async fn write(uri: Arc<Mutex<String>>, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let (operation, item, gained) = random_operation();
        let context = new_mutation_context();
        loop {
            let client = Client::new(&uri.lock().unwrap().clone(), "crash-test").unwrap();
            match client.mutate(context.clone(), operation.clone()).await {
                Ok(receipt) => {
                    ledger.acknowledge(&receipt, item, gained);
                    break;
                }
                Err(status) if status.code() == Code::FailedPrecondition => break,
                Err(status) => {
                    assert!(is_transient(&status), "{status:?}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
}

fn is_transient(status: &Status) -> bool {
    [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal].contains(&status.code())
}

/// Verifies the store while the server runs.
fn check_store(data: &Path) {
    let mut fsck = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    process::remove_settings(&mut fsck);
    let output = fsck.args(["fsck", "--data"]).arg(data).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

async fn check_revisions(client: &Client, ledger: &Ledger, acknowledged: &HashMap<String, u64>) {
    for (id, revision) in acknowledged {
        let request = v1::GetInventoryRequest { inventory_id: id.clone() };
        let found = client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
        let have = found.version.unwrap().revision;
        assert!(have >= *revision, "{id}: revision {revision} was acknowledged, {have} is there");
    }
    assert!(ledger.acknowledged.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_32_kill_under_load_loses_no_acknowledged_mutation_and_creates_or_loses_no_item() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &ARGUMENTS);
    let client = Client::new(&server.uri, "crash-test").unwrap();
    for inventory in 0..INVENTORIES {
        let create = v1::CreateInventory {
            inventory_id: name(inventory),
            layout: "player".into(),
            ..v1::CreateInventory::default()
        };
        client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
    }
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let uri = Arc::new(Mutex::new(server.uri.clone()));
    let writers: Vec<_> =
        (0..WRITERS).map(|_| tokio::spawn(write(uri.clone(), ledger.clone(), stop.clone()))).collect();
    for crash in 1..=crashes() {
        // Time under test: the random moment of the kill, with few to many commits before it.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..250))).await;
        let acknowledged = ledger.revisions.lock().unwrap().clone();
        server.kill();
        server = ServerProcess::start(folder.path(), &ARGUMENTS);
        *uri.lock().unwrap() = server.uri.clone();
        check_store(folder.path());
        let client = Client::new(&server.uri, "crash-test").unwrap();
        check_revisions(&client, &ledger, &acknowledged).await;
        if crash % 10 == 0 {
            println!("{crash} crashes, {} acknowledged", ledger.acknowledged.load(Ordering::Relaxed));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let client = Client::new(&server.uri, "crash-test").unwrap();
    let mut held: HashMap<&str, i64> = HashMap::new();
    for inventory in 0..INVENTORIES {
        let request = v1::GetInventoryRequest { inventory_id: name(inventory) };
        let found = client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
        for stack in found.stacks.into_iter().filter_map(|slot| slot.stack) {
            let item = ITEMS.into_iter().find(|item| *item == stack.item).expect("nothing else was added");
            *held.entry(item).or_default() += i64::from(stack.count);
        }
    }
    let balance = ledger.balance.lock().unwrap();
    for item in ITEMS {
        let (held, added) = (held.get(item).copied().unwrap_or(0), balance.get(item).copied().unwrap_or(0));
        assert_eq!(held, added, "{item}: held against added minus removed");
    }
    server.kill();
    check_store(folder.path());
    println!(
        "{} crashes, {} acknowledged, {} of them answered by a retry after a crash; held {held:?}",
        crashes(),
        ledger.acknowledged.load(Ordering::Relaxed),
        ledger.replayed.load(Ordering::Relaxed),
    );
}
