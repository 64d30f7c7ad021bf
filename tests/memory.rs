//! The server's memory does not grow with mutations while subscriptions are idle and a reader is stalled.
//!
//! `SLOTCAST_MUTATIONS` and `SLOTCAST_SUBSCRIPTIONS` set the size (4,000 and 200 by default; `just memory` for 200,000 and
//! 2,000).

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use process::ServerProcess;
use slotcast::client::{Client, new_mutation_context};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::time::{Duration, Instant};
use tonic::Streaming;

/// Maximum growth above the settled memory.
const GROWTH_KIB_MAX: u64 = 8 * 1024;
/// Tenth of the run after which everything bounded has reached its bound: keys, and 5 s of records to fold.
const SETTLED: usize = 5;
/// Small enough to be reached quickly.
const KEYS_MAX: &str = "400";
const IN_FLIGHT: usize = 64;

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn create(client: &Client, id: &str) {
    let stack = Some(v1::Stack { item: "cobblestone".into(), count: 1, ..v1::Stack::default() });
    let create = v1::CreateInventory {
        inventory_id: id.into(),
        layout: "player".into(),
        stacks: vec![v1::SlotStack { slot: 0, stack }],
        ..v1::CreateInventory::default()
    };
    client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
}

async fn subscribe(client: &Client, id: &str) -> Streaming<v1::SubscribeInventoryResponse> {
    let inventories = vec![v1::Watch { inventory_id: id.into(), resume: None }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    client.rpc().subscribe_inventory(request).await.unwrap().into_inner()
}

/// Sets the first slot of `id` a number of times, with several calls in flight.
async fn mutate(client: &Client, id: &str, times: usize) {
    let workers = (0..IN_FLIGHT).map(async |_| {
        for _ in 0..times / IN_FLIGHT {
            let stack =
                Some(v1::Stack { item: "cobblestone".into(), count: fastrand::u32(1..=64), ..v1::Stack::default() });
            let set = v1::SetSlot { inventory_id: id.into(), at: Some(v1::SlotRef { slot: 0 }), stack };
            client.mutate(new_mutation_context(), Operation::Set(set)).await.unwrap();
        }
    });
    futures_util::future::join_all(workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_38_memory_for_idle_and_stalled_readers_does_not_grow_with_mutations() {
    let (mutations, subscriptions) = (size("SLOTCAST_MUTATIONS", 4_000), size("SLOTCAST_SUBSCRIPTIONS", 200));
    let folder = tempfile::tempdir().unwrap();
    let server =
        ServerProcess::start(folder.path(), &["--store-keys-max", KEYS_MAX, "--limits-requests-per-second", "0"]);
    let client = Client::new(&server.uri, "memory-test").unwrap();
    create(&client, "busy").await;
    let mut idle = Vec::new();
    for number in 0..subscriptions {
        let id = format!("idle-{number}");
        create(&client, &id).await;
        let mut stream = subscribe(&client, &id).await;
        stream.message().await.unwrap().expect("the initial frame");
        idle.push(stream);
    }
    // The test reads this stream only at the end.
    let mut stalled = subscribe(&client, "busy").await;

    let start = Instant::now();
    let mut after_each_tenth_kib = Vec::new();
    for _ in 0..10 {
        mutate(&client, "busy", mutations / 10).await;
        after_each_tenth_kib.push(resident_kib(server.id()));
    }
    let per_second = mutations as f64 / start.elapsed().as_secs_f64();
    let settled_kib = after_each_tenth_kib[SETTLED];
    let grown_kib = after_each_tenth_kib[9].saturating_sub(settled_kib);
    println!(
        "{mutations} mutations ({per_second:.0} a second), {subscriptions} idle subscriptions, a stalled reader: \
         {after_each_tenth_kib:?} KiB after each tenth"
    );
    assert!(grown_kib <= GROWTH_KIB_MAX, "{grown_kib} KiB more");

    let request = v1::GetInventoryRequest { inventory_id: "busy".into() };
    let last = client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap().version.unwrap();
    let (mut frames, mut revision) = (0_u64, 0);
    while revision < last.revision {
        let message = tokio::time::timeout(Duration::from_secs(10), stalled.message()).await.unwrap().unwrap().unwrap();
        let change = &message.changes[0];
        revision = change.full.as_ref().map_or(revision + change.advance, |full| full.revision);
        frames += 1;
    }
    println!("the stalled reader got {frames} frames for {} revisions", last.revision);
    assert_eq!(revision, last.revision, "it ends at the truth");
}
