//! Drops items without waiting for the service, next to another caller, and prints what the stream cost.
//!
//! Run it with `cargo run --example optimistic`. It starts a service of its own on a free loopback port.

use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, Event, Session, SessionOptions, fresh_context};
use slotcast::domain::Slot;
use slotcast::grpc::v1::operation::Operation;
use slotcast::grpc::v1::{AddItem, CreateInventory, DropItem, SlotStack, Stack};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
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
    println!("Steve has {} stones; that was {} bytes.", stones(&session), session.counts().bytes);

    for _ in 0..8 {
        // Shown when this returns; the call goes out behind it.
        session.apply(Operation::Drop(DropItem { inventory_id: "steve".into(), slot: 0, count: Some(1) }))?;
    }
    println!("He dropped 8 and sees {} at once, {} of them not yet confirmed.", stones(&session), session.pending());
    let before = session.counts();
    session.settled().await?;
    let sent = session.counts().bytes - before.bytes;
    println!("Now all are confirmed and durable; the stream sent {sent} bytes for it.");

    // Somebody else gives him some: he could not know that.
    let stack = Some(Stack { item: "stone".into(), count: 3, ..Stack::default() });
    let add = AddItem { inventory_id: "steve".into(), stack, allow_partial: false };
    client.mutate(fresh_context(), Operation::Add(add)).await?;
    while stones(&session) != 27 {
        match session.next_event().await {
            Some(Event::Refused { status, .. }) => println!("refused: {}", status.message()),
            Some(_) => {}
            None => return Err("the session has ended".into()),
        }
    }
    println!(
        "He was given 3 and sees {}; the stream sent {} bytes.",
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
    client.mutate(fresh_context(), Operation::Create(create)).await.map(drop)
}

fn stones(session: &Session) -> u32 {
    let view = session.view(STEVE);
    view.and_then(|view| view.stack(Slot(0)).map(|stack| stack.count.get())).unwrap_or_default()
}
