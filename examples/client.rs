//! A client without the server: creates an inventory, follows it, adds items, and prints what arrives.
//!
//! Run with `cargo run --no-default-features --features client --example client -- http://127.0.0.1:7400` while a
//! server listens at that address (`slotcast serve`).

use slotcast::client::{Client, new_mutation_context};
use slotcast::wire::v1::operation::Operation;
use slotcast::wire::v1::{AddItem, CreateInventory, Stack};

const ADDED: [u32; 3] = [5, 2, 1];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7400".into());
    let client = Client::new(&uri, "example")?;
    let context = new_mutation_context();
    let id = format!("example/{}", context.idempotency_key);
    let create = CreateInventory { inventory_id: id.clone(), layout: "chest".into(), ..CreateInventory::default() };
    client.mutate(context, Operation::Create(create)).await?;

    let mut follow = client.follow(vec![id.clone()]);
    for count in ADDED {
        let stack = Stack { item: "stone".into(), count, ..Stack::default() };
        let add = AddItem { inventory_id: id.clone(), stack: Some(stack), allow_partial: false };
        let receipt = client.mutate(new_mutation_context(), Operation::Add(add)).await?;
        println!("added {count}: revision {}", receipt.inventories[0].revision);
    }
    let sum: u32 = ADDED.iter().sum();
    loop {
        follow.next().await?;
        let stones = follow
            .replica(0)
            .map_or(0, |replica| replica.contents.stacks().map(|(_, stack)| stack.count.get()).sum::<u32>());
        println!("received: {stones} stones");
        if stones == sum {
            return Ok(());
        }
    }
}
