//! Drops items with client-side prediction while another caller changes the same inventory, and prints how many bytes
//! the stream received.
//!
//! Run with `cargo run --example optimistic`. The example starts its own server on a free loopback port.

use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, Session, SessionEvent, SessionOptions, new_mutation_context};
use slotcast::domain::Slot;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::wire::v1::operation::Operation;
use slotcast::wire::v1::{AddItem, CreateInventory, DropItem, SlotQuantity, SlotStack, Stack};
use std::sync::Arc;
use tokio::net::TcpListener;

const STEVE: usize = 0;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(EmbeddedStore::open(&folder.path().join("slotcast.db"), EmbeddedSettings::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = RunningServer::start(listener, store, Arc::new(default_catalog()), ServerSettings::default())?;
    let client = Client::new(&server.uri(), "lobby-server")?;
    create(&client).await?;

    let session = client.session(SessionOptions::new(vec!["steve".into()]), client.catalog().await?)?;
    session.caught_up().await?;
    println!("Steve has {} stones; the stream received {} bytes.", stones(&session), session.counts().bytes);

    for _ in 0..8 {
        let one = SlotQuantity { slot: 0, count: Some(1) };
        // The view shows the drop when `apply` returns; the session sends the call in the background.
        session.apply(Operation::Drop(DropItem { inventory_id: "steve".into(), from: Some(one) }))?;
    }
    println!(
        "Steve dropped 8 and immediately sees {} stones; {} drops are not confirmed yet.",
        stones(&session),
        session.pending()
    );
    let before = session.counts();
    session.settled().await?;
    let sent = session.counts().bytes - before.bytes;
    println!("All drops are confirmed and durable; the stream received {sent} more bytes for them.");

    // Another caller adds stones, which the session cannot predict.
    let stack = Some(Stack { item: "stone".into(), count: 3, ..Stack::default() });
    let add = AddItem { inventory_id: "steve".into(), stack, allow_partial: false };
    client.mutate(new_mutation_context(), Operation::Add(add)).await?;
    while stones(&session) != 27 {
        match session.next_event().await {
            Some(SessionEvent::Failed { status, .. }) => println!("failed: {}", status.message()),
            Some(_) => {}
            None => return Err("the session has ended".into()),
        }
    }
    println!(
        "Another caller added 3 and Steve sees {}; the stream received {} more bytes.",
        stones(&session),
        session.counts().bytes - before.bytes
    );
    drop(session);
    server.stop().await?;
    Ok(())
}

async fn create(client: &Client) -> Result<(), tonic::Status> {
    let stack = Some(Stack { item: "stone".into(), count: 32, ..Stack::default() });
    let create = CreateInventory {
        inventory_id: "steve".into(),
        layout: "player".into(),
        stacks: vec![SlotStack { slot: 0, stack }],
        ..CreateInventory::default()
    };
    client.mutate(new_mutation_context(), Operation::Create(create)).await.map(drop)
}

fn stones(session: &Session) -> u32 {
    let view = session.view(STEVE);
    view.and_then(|view| view.stack(Slot(0)).map(|stack| stack.count.get())).unwrap_or_default()
}
