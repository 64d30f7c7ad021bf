//! Retries after a lost reply get the stored reply, even if the catalog has changed.

use crate::common::{at_once, invalid, metadata, precondition, quantity, slot_stack, stack, told};
use slotcast::client::Client;
use slotcast::config::LiveRollout;
use slotcast::domain::Catalog;
use slotcast::domain::catalog::{CatalogSource, RecipeSource};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::sync::Rollout;
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::Status;

const RELIC: u32 = 7;

/// A catalog with relics, a recipe that turns them into dust, and shelves of nine slots.
fn catalog_with_relics() -> Catalog {
    let source = CatalogSource {
        items: vec![("relic".into(), RELIC, 64), ("dust".into(), 8, 64)],
        recipes: vec![RecipeSource {
            id: "grind".into(),
            inputs: vec![("relic".into(), 1)],
            outputs: vec![("dust".into(), 2)],
        }],
        layouts: vec![("shelf".into(), vec![("all".into(), 9)])],
    };
    Catalog::new(source).unwrap()
}

/// A catalog without these items, recipes and layouts.
fn catalog_without_relics() -> Catalog {
    let source = CatalogSource {
        items: vec![("stone".into(), 1, 64)],
        layouts: vec![("chest".into(), vec![("all".into(), 27)])],
        ..CatalogSource::default()
    };
    Catalog::new(source).unwrap()
}

async fn start(folder: &Path, catalog: Catalog) -> (RunningServer, Client) {
    let store = EmbeddedStore::open(&folder.join("slotcast.db"), EmbeddedSettings::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rollout = LiveRollout::new(Rollout::for_all(at_once()));
    let settings = ServerSettings { rollout, ..ServerSettings::default() };
    let running = RunningServer::start(listener, Arc::new(store), Arc::new(catalog), settings).unwrap();
    let client = Client::new(&running.uri(), "test").unwrap();
    (running, client)
}

fn create(id: &str, relics: u32) -> Operation {
    let stacks = vec![slot_stack(0, "relic", relics)];
    Operation::Create(v1::CreateInventory {
        inventory_id: id.into(),
        layout: "shelf".into(),
        stacks,
        owner: String::new(),
    })
}

/// One operation of each kind that refers to the catalog, in an order in which all succeed, with the reason and the
/// field of the error once the catalog does not contain the entry any more.
fn operations() -> Vec<(Operation, &'static str, &'static str)> {
    let (inventory_id, id) = (|| "a".to_owned(), "a");
    let rearranged = vec![slot_stack(4, "relic", 7), slot_stack(5, "relic", 1), slot_stack(6, "dust", 2)];
    vec![
        (create(id, 9), "UNKNOWN_LAYOUT", "create.layout"),
        (create("b", 1), "UNKNOWN_LAYOUT", "create.layout"),
        (crate::common::add(id, "relic", 2), "UNKNOWN_ITEM", "add.stack.item"),
        (crate::common::remove(id, "relic", 1), "UNKNOWN_ITEM", "remove.item.item"),
        (crate::common::craft(id, "grind", 1), "UNKNOWN_RECIPE", "craft.recipe"),
        (crate::common::transfer(id, "b", "relic", 1), "UNKNOWN_ITEM", "transfer.item.item"),
        (crate::common::set(id, 0, Some(stack("relic", 8))), "UNKNOWN_ITEM", "set.stack.item"),
        (
            Operation::Rearrange(v1::RearrangeInventory { inventory_id: inventory_id(), stacks: rearranged }),
            "UNKNOWN_ITEM",
            "rearrange.stacks[0].stack.item",
        ),
    ]
}

fn context(key: &str) -> v1::MutationContext {
    v1::MutationContext { idempotency_key: key.into(), ..v1::MutationContext::default() }
}

/// A reply of any RPC: its receipt, counts and stacks.
#[derive(Debug, PartialEq)]
struct Replied {
    receipt: v1::MutationReceipt,
    counts: Vec<u32>,
    stacks: Vec<Option<v1::Stack>>,
}

fn replied(receipt: Option<v1::MutationReceipt>, counts: Vec<u32>, stacks: Vec<Option<v1::Stack>>) -> Replied {
    Replied { receipt: receipt.unwrap(), counts, stacks }
}

/// Calls the RPC of this operation.
async fn call(client: &Client, key: &str, operation: Operation) -> Result<Replied, Status> {
    let (mut rpc, context) = (client.rpc(), Some(context(key)));
    Ok(match operation {
        Operation::Create(create) => {
            let request = v1::CreateInventoryRequest { context, create: Some(create) };
            replied(rpc.create_inventory(request).await?.into_inner().receipt, vec![], vec![])
        }
        Operation::Add(add) => {
            let reply = rpc.add_item(v1::AddItemRequest { context, add: Some(add) }).await?.into_inner();
            replied(reply.receipt, vec![reply.added, reply.remainder], vec![])
        }
        Operation::Remove(remove) => {
            let request = v1::RemoveItemRequest { context, remove: Some(remove) };
            replied(rpc.remove_item(request).await?.into_inner().receipt, vec![], vec![])
        }
        Operation::Craft(craft) => {
            let request = v1::CraftItemRequest { context, craft: Some(craft) };
            replied(rpc.craft_item(request).await?.into_inner().receipt, vec![], vec![])
        }
        Operation::Transfer(transfer) => {
            let request = v1::TransferItemRequest { context, transfer: Some(transfer) };
            let reply = rpc.transfer_item(request).await?.into_inner();
            replied(reply.receipt, vec![reply.moved, reply.remainder], vec![])
        }
        Operation::Set(set) => {
            let reply = rpc.set_slot(v1::SetSlotRequest { context, set: Some(set) }).await?.into_inner();
            replied(reply.receipt, vec![], vec![reply.replaced])
        }
        Operation::Rearrange(rearrange) => {
            let request = v1::RearrangeInventoryRequest { context, rearrange: Some(rearrange) };
            replied(rpc.rearrange_inventory(request).await?.into_inner().receipt, vec![], vec![])
        }
        Operation::Delete(_) | Operation::Move(_) | Operation::Drop(_) => unreachable!("it names nothing"),
    })
}

async fn transact(client: &Client, key: &str, operations: Vec<Operation>) -> Result<Replied, Status> {
    let operations = operations.into_iter().map(|operation| v1::Operation { operation: Some(operation) }).collect();
    let request = v1::TransactRequest { context: Some(context(key)), operations };
    let reply = client.rpc().transact(request).await?.into_inner();
    let counts = reply.outcomes.iter().flat_map(|outcome| [outcome.count, outcome.remainder]).collect();
    let stacks = reply.outcomes.into_iter().map(|outcome| outcome.stack).collect();
    Ok(replied(reply.receipt, counts, stacks))
}

/// Returns the same reply as a server replays it whose catalog does not contain the item.
fn replayed_without_names(mut reply: Replied) -> Replied {
    reply.receipt.replayed = true;
    reply.stacks.iter_mut().flatten().for_each(|stack| stack.item.clear());
    reply
}

#[tokio::test]
async fn every_kind_of_call_is_replayed_after_its_item_recipe_or_layout_was_removed_from_the_catalog() {
    let folder = tempfile::tempdir().unwrap();
    let (running, client) = start(folder.path(), catalog_with_relics()).await;
    let (singles, mut first_replies) = (operations(), Vec::new());
    for (number, (operation, ..)) in singles.iter().enumerate() {
        first_replies.push(call(&client, &format!("key-{number}"), operation.clone()).await.unwrap());
    }
    let replaced = first_replies[6].stacks[0].clone().unwrap();
    assert_eq!((replaced.item.as_str(), replaced.item_code), ("relic", RELIC));
    // All of them at once, upon two other shelves.
    let elsewhere = |operation: Operation| with_ids(operation, "c", "d");
    let all: Vec<Operation> = operations().into_iter().map(|(operation, ..)| elsewhere(operation)).collect();
    let first_of_all = transact(&client, "key-all", all.clone()).await.unwrap();
    drop(client);
    running.stop().await.unwrap();

    let (running, client) = start(folder.path(), catalog_without_relics()).await;
    for (number, (operation, reason, field)) in singles.iter().enumerate() {
        let key = format!("key-{number}");
        let again = call(&client, &key, operation.clone()).await.unwrap();
        assert_eq!(again, replayed_without_names(first_replies.remove(0)), "{operation:?}");

        let status = call(&client, &format!("new-{number}"), operation.clone()).await.unwrap_err();
        assert_eq!(told(&status), invalid(reason, field), "{operation:?}");
        assert_eq!(metadata(&status, "operation").as_deref(), Some("0"));
        let other_payload = with_ids(operation.clone(), "e", "f");
        let status = call(&client, &key, other_payload).await.unwrap_err();
        assert_eq!(told(&status), precondition("IDEMPOTENCY_KEY_REUSED"), "{operation:?}");
    }
    let again = transact(&client, "key-all", all.clone()).await.unwrap();
    assert_eq!(again, replayed_without_names(first_of_all));
    let last = vec![crate::common::drop("a", 4, Some(1)), all[7].clone()];
    let status = transact(&client, "new-all", last).await.unwrap_err();
    assert_eq!(told(&status), invalid("UNKNOWN_ITEM", "operations[1].rearrange.stacks[0].stack.item"));
    assert_eq!(metadata(&status, "operation").as_deref(), Some("1"));
    running.stop().await.unwrap();
}

/// Returns the same operation on other inventories.
fn with_ids(operation: Operation, a: &str, b: &str) -> Operation {
    let renamed = |id: &str| if id == "a" { a.to_owned() } else { b.to_owned() };
    let mut operation = operation;
    match &mut operation {
        Operation::Create(create) => create.inventory_id = renamed(&create.inventory_id),
        Operation::Add(add) => add.inventory_id = renamed(&add.inventory_id),
        Operation::Remove(remove) => remove.inventory_id = renamed(&remove.inventory_id),
        Operation::Craft(craft) => craft.inventory_id = renamed(&craft.inventory_id),
        Operation::Transfer(transfer) => {
            transfer.from_inventory_id = renamed(&transfer.from_inventory_id);
            transfer.to_inventory_id = renamed(&transfer.to_inventory_id);
        }
        Operation::Set(set) => set.inventory_id = renamed(&set.inventory_id),
        Operation::Rearrange(rearrange) => rearrange.inventory_id = renamed(&rearrange.inventory_id),
        Operation::Delete(_) | Operation::Move(_) | Operation::Drop(_) => unreachable!("it names nothing"),
    }
    operation
}

#[tokio::test]
async fn a_retry_may_differ_in_reason_session_and_prediction_but_not_in_its_guards() {
    let folder = tempfile::tempdir().unwrap();
    let (running, client) = start(folder.path(), catalog_with_relics()).await;
    let created = call(&client, "create", create("a", 5)).await.unwrap();
    let version = created.receipt.inventories[0].clone();
    let add = |context: v1::MutationContext| {
        let add = v1::AddItem { inventory_id: "a".into(), stack: Some(stack("relic", 1)), allow_partial: false };
        v1::AddItemRequest { context: Some(context), add: Some(add) }
    };
    let first = client.rpc().add_item(add(context("key"))).await.unwrap().into_inner();
    assert!(!first.receipt.unwrap().replayed);
    let predicted = v1::PredictedDigest { inventory_id: "a".into(), digest: version.digest };
    for retry in [
        v1::MutationContext { reason: "a retry".into(), ..context("key") },
        v1::MutationContext { session: "new session".into(), ..context("key") },
        v1::MutationContext { session: "new session".into(), predicted: vec![predicted], ..context("key") },
    ] {
        let reply = client.rpc().add_item(add(retry.clone())).await.unwrap().into_inner();
        assert!(reply.receipt.unwrap().replayed, "{retry:?}");
    }
    let expected = vec![v1::ExpectedRevision { inventory_id: "a".into(), revision: 2, epoch: version.epoch }];
    let guarded = v1::MutationContext { expected, ..context("key") };
    let status = client.rpc().add_item(add(guarded)).await.unwrap_err();
    assert_eq!(told(&status), precondition("IDEMPOTENCY_KEY_REUSED"));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_malformed_call_fails_before_its_key_is_looked_up_and_an_unknown_name_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let (running, client) = start(folder.path(), catalog_with_relics()).await;
    call(&client, "create", create("a", 5)).await.unwrap();
    let malformed = crate::common::add("a", "zinc", 0);
    let status = call(&client, "create", malformed).await.unwrap_err();
    assert_eq!(told(&status), invalid("INVALID_ARGUMENT", "add.stack.count"));
    let status = call(&client, "create", crate::common::add("a", "zinc", 1)).await.unwrap_err();
    assert_eq!(told(&status), precondition("IDEMPOTENCY_KEY_REUSED"));
    // Names come before guards and rules.
    let unknown = v1::TransferItem {
        from_inventory_id: "nowhere".into(),
        to_inventory_id: "a".into(),
        what: Some(v1::transfer_item::What::Item(quantity("zinc", 1))),
        ..v1::TransferItem::default()
    };
    let status = call(&client, "new", Operation::Transfer(unknown)).await.unwrap_err();
    assert_eq!(told(&status), invalid("UNKNOWN_ITEM", "transfer.item.item"));
    running.stop().await.unwrap();
}
