//! A server in this process with a store in memory, and helpers of the tests that use it.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part, and may fail where it stands")]

mod memory_store;

pub use memory_store::MemoryStore;

use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, new_mutation_context};
use slotcast::domain::{Catalog, Edit, Revision};
use slotcast::live_rollout::LiveRollout;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::sync::{Replica, Rollout, SyncSettings, Windows};
use slotcast::wire::frame::decode_inventory_frame;
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// Timeout that only a failure reaches.
pub const WAIT: Duration = Duration::from_secs(10);

pub struct TestServer {
    pub running: RunningServer,
    pub store: Arc<MemoryStore>,
    pub client: Client,
}

/// Sends every change immediately, as a delta if it is small, so that tests see each change.
pub fn immediate() -> SyncSettings {
    SyncSettings { windows: Windows::NONE, ..SyncSettings::default() }
}

impl TestServer {
    pub async fn start(sync: SyncSettings) -> Self {
        Self::start_with(default_catalog(), sync).await
    }

    pub async fn start_with(catalog: Catalog, sync: SyncSettings) -> Self {
        let store = Arc::new(MemoryStore::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings =
            ServerSettings { rollout: LiveRollout::new(Rollout::for_all(sync)), ..ServerSettings::default() };
        let running = RunningServer::start(listener, store.clone(), Arc::new(catalog), settings).unwrap();
        let client = Client::new(&running.uri(), "test").unwrap();
        Self { running, store, client }
    }

    pub fn client_named(&self, caller: &str) -> Client {
        Client::new(&self.running.uri(), caller).unwrap()
    }

    pub async fn create(&self, id: &str, layout: &str, stacks: &[(u32, &str, u32)]) -> v1::InventoryVersion {
        let stacks = stacks.iter().map(|(slot, item, count)| slot_stack(*slot, item, *count)).collect();
        let create =
            v1::CreateInventory { inventory_id: id.into(), layout: layout.into(), stacks, owner: String::new() };
        let receipt = self.mutate(Operation::Create(create)).await.unwrap();
        receipt.inventories.into_iter().next().unwrap()
    }

    /// Sends a mutation with a fresh key.
    pub async fn mutate(&self, operation: Operation) -> Result<v1::MutationReceipt, Status> {
        self.client.mutate(new_mutation_context(), operation).await
    }

    /// Sends several operations in one commit.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<v1::TransactResponse, Status> {
        let operations = operations.into_iter().map(|operation| v1::Operation { operation: Some(operation) }).collect();
        let request = v1::TransactRequest { context: Some(new_mutation_context()), operations };
        self.client.rpc().transact(request).await.map(tonic::Response::into_inner)
    }

    pub async fn get(&self, id: &str) -> v1::Inventory {
        let request = v1::GetInventoryRequest { inventory_id: id.into() };
        self.client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap()
    }

    pub async fn version(&self, id: &str) -> v1::InventoryVersion {
        self.get(id).await.version.unwrap()
    }

    /// Returns the number of items of all kinds in an inventory.
    pub async fn held(&self, id: &str) -> u32 {
        self.get(id).await.stacks.iter().filter_map(|entry| entry.stack.as_ref()).map(|stack| stack.count).sum()
    }

    pub async fn subscribe(&self, watches: &[(&str, Option<v1::Cursor>)]) -> Subscriber {
        self.subscribe_as(v1::SubscribeInventoryRequest::default(), watches).await
    }

    /// Subscribes with a session or other options.
    pub async fn subscribe_as(
        &self,
        options: v1::SubscribeInventoryRequest,
        watches: &[(&str, Option<v1::Cursor>)],
    ) -> Subscriber {
        let watch = |(id, resume): &(&str, _)| v1::Watch { inventory_id: (*id).to_owned(), resume: *resume };
        let request = v1::SubscribeInventoryRequest { inventories: watches.iter().map(watch).collect(), ..options };
        let stream = self.client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
        let mut subscriber = Subscriber::new(stream, watches.len());
        for (last_sent, (_, resume)) in subscriber.last_sent.iter_mut().zip(watches) {
            *last_sent = resume.map(|cursor| Revision(cursor.revision));
        }
        subscriber
    }
}

/// A stream and the replicas of its reader.
pub struct Subscriber {
    stream: Streaming<v1::SubscribeInventoryResponse>,
    pub replicas: Vec<Option<Replica>>,
    /// For each inventory, the revision that the stream last sent or the cursor had; predictions may be ahead of this
    /// revision.
    last_sent: Vec<Option<Revision>>,
}

impl Subscriber {
    pub fn new(stream: Streaming<v1::SubscribeInventoryResponse>, inventories: usize) -> Self {
        Self { stream, replicas: vec![None; inventories], last_sent: vec![None; inventories] }
    }

    /// Returns the next message after applying it. A frame that does not fit fails the test.
    pub async fn next(&mut self) -> v1::SubscribeInventoryResponse {
        self.end_or_next().await.expect("the stream goes on")
    }

    pub async fn end_or_next(&mut self) -> Result<v1::SubscribeInventoryResponse, Status> {
        let message = tokio::time::timeout(WAIT, self.stream.message()).await.expect("a message in time")?;
        let message = message.expect("a stream ends with a status only");
        for change in &message.changes {
            let position = change.watch as usize;
            let replica = &mut self.replicas[position];
            if change.absent {
                *replica = None;
                continue;
            }
            let frame = decode_inventory_frame(change, self.last_sent[position]).expect("a change that makes sense");
            *replica = Some(Replica::apply(replica.as_ref(), &frame).expect("a frame that fits"));
            self.last_sent[position] = replica.as_ref().map(|replica| replica.contents.revision());
        }
        Ok(message)
    }

    /// Reads the stream to its end and returns the final status.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.end_or_next().await {
                return status;
            }
        }
    }

    pub fn revision(&self, position: usize) -> u64 {
        self.replicas[position].as_ref().map_or(0, |replica| replica.contents.revision().0)
    }

    pub async fn read_until(&mut self, position: usize, revision: u64) {
        while self.revision(position) < revision {
            self.next().await;
        }
    }

    /// Asserts that no message arrives during `wait`.
    pub async fn expect_silence(&mut self, wait: Duration) {
        let message = tokio::time::timeout(wait, self.stream.message()).await;
        assert!(message.is_err(), "nothing was due, but {message:?} came");
    }

    /// Applies a change to the replica as a predicting client does, and returns the expected digest.
    pub fn predict(&mut self, position: usize, edits: &[Edit]) -> v1::Digest {
        let replica = self.replicas[position].as_mut().unwrap();
        replica.contents = replica.contents.advanced(replica.contents.revision().next(), edits);
        let digest = replica.contents.digest();
        v1::Digest { a: digest.a, b: digest.b }
    }

    pub fn cursor(&self, position: usize) -> v1::Cursor {
        let cursor = self.replicas[position].as_ref().unwrap().cursor();
        v1::Cursor { epoch: cursor.epoch.get(), revision: cursor.revision.0 }
    }

    /// Asserts that the replica has the epoch, revision, digest and contents of `inventory`.
    pub fn assert_is_at(&self, position: usize, inventory: &v1::Inventory) {
        let replica = self.replicas[position].as_ref().unwrap();
        let version = inventory.version.as_ref().unwrap();
        let digest = replica.contents.digest();
        assert_eq!((replica.epoch.get(), self.revision(position)), (version.epoch, version.revision));
        assert_eq!(Some(v1::Digest { a: digest.a, b: digest.b }), version.digest);
        let held: Vec<_> =
            replica.contents.stacks().map(|(slot, stack)| (u32::from(slot.0), stack.count.get())).collect();
        let stacks = inventory.stacks.iter().map(|entry| (entry.slot, entry.stack.as_ref().unwrap().count));
        assert_eq!(held, stacks.collect::<Vec<_>>());
    }
}

pub fn stack(item: &str, count: u32) -> v1::Stack {
    v1::Stack { item: item.into(), count, ..v1::Stack::default() }
}

pub fn slot_stack(slot: u32, item: &str, count: u32) -> v1::SlotStack {
    v1::SlotStack { slot, stack: Some(stack(item, count)) }
}

pub fn add(id: &str, item: &str, count: u32) -> Operation {
    let stack = Some(stack(item, count));
    Operation::Add(v1::AddItem { inventory_id: id.into(), stack, allow_partial: false })
}

pub fn remove(id: &str, item: &str, count: u32) -> Operation {
    let what = Some(quantity(item, count));
    Operation::Remove(v1::RemoveItem { inventory_id: id.into(), item: what })
}

pub fn quantity(item: &str, count: u32) -> v1::ItemQuantity {
    v1::ItemQuantity { item: item.into(), count, ..v1::ItemQuantity::default() }
}

pub fn move_item(id: &str, from_slot: u32, to_slot: u32, count: Option<u32>) -> Operation {
    Operation::Move(v1::MoveItem {
        inventory_id: id.into(),
        from: Some(v1::SlotQuantity { slot: from_slot, count }),
        to: Some(v1::SlotRef { slot: to_slot }),
    })
}

pub fn drop(id: &str, slot: u32, count: Option<u32>) -> Operation {
    Operation::Drop(v1::DropItem { inventory_id: id.into(), from: Some(v1::SlotQuantity { slot, count }) })
}

pub fn craft(id: &str, recipe: &str, times: u32) -> Operation {
    Operation::Craft(v1::CraftItem { inventory_id: id.into(), recipe: recipe.into(), times })
}

pub fn set(id: &str, slot: u32, stack: Option<v1::Stack>) -> Operation {
    Operation::Set(v1::SetSlot { inventory_id: id.into(), at: Some(v1::SlotRef { slot }), stack })
}

pub fn delete(id: &str) -> Operation {
    Operation::Delete(v1::DeleteInventory { inventory_id: id.into() })
}

pub fn transfer(from: &str, to: &str, item: &str, count: u32) -> Operation {
    Operation::Transfer(v1::TransferItem {
        from_inventory_id: from.into(),
        to_inventory_id: to.into(),
        what: Some(v1::transfer_item::What::Item(quantity(item, count))),
        ..v1::TransferItem::default()
    })
}

pub fn with_key(key: &str) -> v1::MutationContext {
    v1::MutationContext { idempotency_key: key.into(), ..v1::MutationContext::default() }
}

/// Code, reason, and the invalid field.
pub type ErrorSummary = (Code, String, Option<String>);

pub fn error_of(status: &Status) -> ErrorSummary {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{status:?} gives no reason"));
    assert_eq!(info.domain, "slotcast");
    let field = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
    (status.code(), info.reason.clone(), field)
}

pub fn metadata(status: &Status, name: &str) -> Option<String> {
    status.get_error_details().error_info()?.metadata.get(name).cloned()
}

/// The expected status of a malformed request.
pub fn invalid(reason: &str, field: &str) -> ErrorSummary {
    (Code::InvalidArgument, reason.to_owned(), Some(field.to_owned()))
}

/// The expected status of a request that the rules reject.
pub fn precondition(reason: &str) -> ErrorSummary {
    (Code::FailedPrecondition, reason.to_owned(), None)
}

pub fn create_named(id: &str) -> Operation {
    let (inventory_id, layout) = (id.into(), "chest".into());
    Operation::Create(v1::CreateInventory { inventory_id, layout, ..v1::CreateInventory::default() })
}
