//! The maximum total size of the inventories of one stream, for as long as it is open.

use crate::common::{TestServer, Told, at_once, delete, told};
use slotcast::domain::Catalog;
use slotcast::domain::catalog::CatalogSource;
use slotcast::sync::{SyncSettings, Windows};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::time::Duration;
use tonic::Code;

/// The default maximum size of a gRPC message, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
const VAULT_SLOTS: u32 = 1_024;
const IDS: [&str; 4] = ["a", "b", "c", "d"];
const ALL: [(&str, Option<v1::Cursor>); 4] = [("a", None), ("b", None), ("c", None), ("d", None)];

fn too_large() -> Told {
    (Code::ResourceExhausted, "SUBSCRIPTION_TOO_LARGE".into(), None)
}

/// Pouches of 1 slot and vaults of 1,024.
fn catalog() -> Catalog {
    let layout = |name: &str, slots: u32| (name.to_owned(), vec![("all".to_owned(), u64::from(slots))]);
    Catalog::new(CatalogSource {
        items: vec![("sword".into(), 1, 1)],
        layouts: vec![layout("pouch", 1), layout("vault", VAULT_SLOTS)],
        ..CatalogSource::default()
    })
    .unwrap()
}

fn create(id: &str, layout: &str, stacks: Vec<v1::SlotStack>) -> Operation {
    let (inventory_id, layout, owner) = (id.into(), layout.into(), String::new());
    Operation::Create(v1::CreateInventory { inventory_id, layout, stacks, owner })
}

/// The largest possible inventory: each slot has attributes of the maximum size.
fn vault(id: &str) -> Operation {
    let stack = |slot: u32| v1::Stack {
        item: "sword".into(),
        count: 1,
        attributes: vec![slot as u8; 1_024],
        ..v1::Stack::default()
    };
    create(id, "vault", (0..VAULT_SLOTS).map(|slot| v1::SlotStack { slot, stack: Some(stack(slot)) }).collect())
}

/// Four pouches. No frame is due until a desync is reported.
async fn pouches() -> TestServer {
    let for_ever = Duration::from_secs(600);
    let windows = Windows { news: for_ever, echo: for_ever, tick: Duration::ZERO };
    let server = TestServer::start_with(catalog(), SyncSettings { windows, ..at_once() }).await;
    for id in IDS {
        server.mutate(create(id, "pouch", vec![])).await.unwrap();
    }
    server
}

/// Reports a desync, so that the session gets its frame now.
async fn report(server: &TestServer, id: &str) {
    let request = v1::ReportDesyncRequest {
        session: "mine".into(),
        have: Some(v1::InventoryVersion { inventory_id: id.into(), ..v1::InventoryVersion::default() }),
    };
    server.client.rpc().report_desync(request).await.unwrap();
}

fn mine() -> v1::SubscribeInventoryRequest {
    v1::SubscribeInventoryRequest { session: "mine".into(), ..v1::SubscribeInventoryRequest::default() }
}

#[tokio::test]
async fn a_stream_ends_before_it_sends_a_message_above_the_maximum_size() {
    let server = pouches().await;
    let mut reader = server.subscribe_as(mine(), &ALL).await;
    reader.next().await;
    for id in IDS {
        server.transact(vec![delete(id), vault(id)]).await.unwrap();
    }
    report(&server, "a").await;
    let status = reader.end().await;
    assert_eq!(told(&status), too_large());
    assert!(
        status.message().contains("at most 3072 slots") && status.message().contains("got 4096"),
        "{}",
        status.message()
    );
    let watch = |id: &str| v1::Watch { inventory_id: id.into(), ..v1::Watch::default() };
    let request = v1::SubscribeInventoryRequest { inventories: IDS.map(watch).to_vec(), ..mine() };
    let status = server.client.rpc().subscribe_inventory(request).await.unwrap_err();
    assert_eq!(told(&status), too_large(), "opening it again fails in the same way");
}

#[tokio::test]
async fn the_largest_frame_fits_into_one_message_and_absent_inventories_do_not_count() {
    let server = pouches().await;
    let mut reader = server.subscribe_as(mine(), &ALL).await;
    reader.next().await;
    server.mutate(delete("d")).await.unwrap();
    for id in &IDS[..3] {
        server.transact(vec![delete(id), vault(id)]).await.unwrap();
    }
    report(&server, "a").await;
    let message = reader.next().await;
    let bytes = prost::Message::encoded_len(&message);
    assert_eq!(message.changes.len(), 4);
    assert!((3 * 1024 * 1024..MESSAGE_BYTES_MAX).contains(&bytes), "{bytes}");
    for (position, id) in IDS[..3].iter().enumerate() {
        reader.assert_is_at(position, &server.get(id).await);
    }
    // One slot more is one too many.
    server.mutate(create("d", "pouch", vec![])).await.unwrap();
    report(&server, "a").await;
    assert_eq!(told(&reader.end().await), too_large());
}

#[tokio::test]
async fn the_client_does_not_retry_a_subscription_that_is_too_large() {
    let server = pouches().await;
    let follow = || server.client.follow(IDS.map(str::to_owned).to_vec()).of_session("mine");
    let mut open = follow();
    open.next().await.unwrap();
    for id in IDS {
        server.transact(vec![delete(id), create(id, "vault", vec![])]).await.unwrap();
    }
    report(&server, "a").await;
    for (what, mut follow) in [("open before", open), ("opened now", follow())] {
        let ended = tokio::time::timeout(Duration::from_secs(10), follow.next()).await.expect(what);
        assert_eq!(told(&ended.expect_err(what)), too_large(), "{what}");
    }
}
