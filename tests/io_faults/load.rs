//! Callers that record every mutation, and retry each until its outcome is known.

use slotcast::client::{Client, new_mutation_context};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

pub const INVENTORIES: usize = 1_500;
/// Number of items in the template, of another kind than the added ones.
pub const INITIAL_ITEMS: u64 = 4 * INVENTORIES as u64;
const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(1);
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// One of so many acknowledged mutations is sent again.
const REPEAT_INTERVAL: usize = 8;

pub fn name(inventory: usize) -> String {
    format!("chest-{inventory:05}")
}

/// What the callers have observed. Shared by all callers and the test.
pub struct Ledger {
    uri: Mutex<String>,
    stop: AtomicBool,
    /// Items that were acknowledged as added, by inventory.
    added: Mutex<BTreeMap<String, u64>>,
    pub acknowledged: AtomicU64,
    /// Mutations with an unknown outcome that turned out to be applied.
    pub found_applied: AtomicU64,
    pub refused_as_full: AtomicU64,
    /// The last answer that a healthy service may give: a success, or, on a full disk, RESOURCE_EXHAUSTED.
    last_answer: Mutex<Instant>,
    /// Statuses that a disk fault must not cause.
    pub violations: Mutex<Vec<String>>,
}

impl Ledger {
    pub fn new(uri: &str) -> Arc<Self> {
        Arc::new(Self {
            uri: Mutex::new(uri.to_owned()),
            stop: AtomicBool::new(false),
            added: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            found_applied: AtomicU64::new(0),
            refused_as_full: AtomicU64::new(0),
            last_answer: Mutex::new(Instant::now()),
            violations: Mutex::default(),
        })
    }

    pub fn set_uri(&self, uri: &str) {
        uri.clone_into(&mut self.uri.lock().unwrap());
    }

    pub fn client(&self) -> Client {
        Client::new(&self.uri.lock().unwrap().clone(), "io-faults").unwrap()
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub fn since_last_answer(&self) -> Duration {
        self.last_answer.lock().unwrap().elapsed()
    }

    fn answered(&self) {
        *self.last_answer.lock().unwrap() = Instant::now();
    }

    fn acknowledge(&self, inventory: &str, is_retry: bool, receipt: &v1::MutationReceipt) {
        *self.added.lock().unwrap().entry(inventory.to_owned()).or_default() += 1;
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.found_applied.fetch_add(u64::from(is_retry && receipt.replayed), Ordering::Relaxed);
        if receipt.replayed && !is_retry {
            self.add_violation("a new key was answered as a retry".into());
        }
    }

    fn add_violation(&self, violation: String) {
        self.violations.lock().unwrap().push(violation);
    }

    fn check_status(&self, status: &Status) {
        // Statuses of a service that exits or must recover soon.
        const TRANSIENT: [Code; 5] =
            [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal, Code::DeadlineExceeded];
        if status.code() == Code::ResourceExhausted {
            self.refused_as_full.fetch_add(1, Ordering::Relaxed);
            self.answered();
        } else if !TRANSIENT.contains(&status.code()) {
            self.add_violation(format!("{status:?}"));
        }
    }

    /// Compares what is held with what was acknowledged, inventory by inventory.
    pub async fn check(&self) {
        let added = self.added.lock().unwrap().clone();
        let client = self.client();
        let mut held = BTreeMap::new();
        for inventory in added.keys() {
            let request = v1::GetInventoryRequest { inventory_id: inventory.clone() };
            let found = client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
            let stacks = found.stacks.iter().filter_map(|slot| slot.stack.as_ref());
            let stacks = stacks.filter(|stack| stack.item == "cobblestone");
            held.insert(inventory.clone(), stacks.map(|stack| u64::from(stack.count)).sum::<u64>());
        }
        assert_eq!(held, added, "held against acknowledged");
    }

    /// Number of items that were added.
    pub fn total(&self) -> u64 {
        self.added.lock().unwrap().values().sum()
    }
}

/// Adds items to random inventories, and retries each mutation until its outcome is known.
async fn write(ledger: Arc<Ledger>, mut random: fastrand::Rng) {
    while !ledger.stop.load(Ordering::Relaxed) {
        let inventory = name(random.usize(..INVENTORIES));
        let context = new_mutation_context();
        let mut is_retry = false;
        while !add(&ledger, &inventory, &context, is_retry).await {
            is_retry = true;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if random.usize(..REPEAT_INTERVAL) == 0 {
            repeat(&ledger, &inventory, &context).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn one_item(inventory: &str) -> Operation {
    let stack = v1::Stack { item: "cobblestone".into(), count: 1, ..v1::Stack::default() };
    Operation::Add(v1::AddItem { inventory_id: inventory.into(), stack: Some(stack), allow_partial: false })
}

async fn call(ledger: &Ledger, inventory: &str, context: &v1::MutationContext) -> Result<v1::MutationReceipt, Status> {
    let client = ledger.client();
    let called = tokio::time::timeout(CALL_LIMIT, client.mutate(context.clone(), one_item(inventory))).await;
    called.unwrap_or_else(|_| Err(Status::deadline_exceeded("the test's own limit")))
}

/// Sends the mutation. Returns whether its outcome is known.
async fn add(ledger: &Ledger, inventory: &str, context: &v1::MutationContext, is_retry: bool) -> bool {
    match call(ledger, inventory, context).await {
        Ok(receipt) => {
            ledger.acknowledge(inventory, is_retry, &receipt);
            ledger.answered();
            true
        }
        Err(status) => {
            ledger.check_status(&status);
            false
        }
    }
}

/// Sends the same key again: the stored reply comes from the journal.
async fn repeat(ledger: &Ledger, inventory: &str, context: &v1::MutationContext) {
    match call(ledger, inventory, context).await {
        Ok(receipt) if receipt.replayed => {}
        Ok(receipt) => ledger.add_violation(format!("a retry was applied again: {receipt:?}")),
        Err(status) => ledger.check_status(&status),
    }
}

/// Lists inventories repeatedly: these reads do not wait for commits.
async fn list(ledger: Arc<Ledger>) {
    let mut page_token = String::new();
    while !ledger.stop.load(Ordering::Relaxed) {
        let request =
            v1::ListInventoriesRequest { page_size: 200, page_token, ..v1::ListInventoriesRequest::default() };
        let client = ledger.client();
        let listed = tokio::time::timeout(CALL_LIMIT, async { client.rpc().list_inventories(request).await }).await;
        page_token = match listed {
            Ok(Ok(page)) => page.into_inner().next_page_token,
            Ok(Err(status)) => {
                ledger.check_status(&status);
                String::new()
            }
            Err(_) => String::new(),
        };
        tokio::time::sleep(20 * PAUSE).await;
    }
}

/// Callers in the background.
pub struct Load {
    ledger: Arc<Ledger>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub fn start(ledger: &Arc<Ledger>, seed: u64) -> Self {
        ledger.stop.store(false, Ordering::Relaxed);
        let random = |writer: usize| fastrand::Rng::with_seed(seed << 8 | writer as u64);
        let mut tasks: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(ledger.clone(), random(writer)))).collect();
        tasks.push(tokio::spawn(list(ledger.clone())));
        Self { ledger: ledger.clone(), tasks }
    }

    /// Returns when the outcome of every mutation is known.
    pub async fn finish(self) {
        self.ledger.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(60), task).await.expect("every retry is answered").unwrap();
        }
    }
}

/// Creates the inventories that the load adds to; large enough that the table has many pages.
pub async fn create_inventories(client: &Client) {
    const CREATED_PER_CALL: usize = 50;
    for first in (0..INVENTORIES).step_by(CREATED_PER_CALL) {
        let create = |inventory: usize| {
            let stack = v1::Stack { item: "apple".into(), count: 1, attributes: vec![7; 100], ..Default::default() };
            let stacks = (0..4).map(|slot| v1::SlotStack { slot, stack: Some(stack.clone()) }).collect();
            let create = v1::CreateInventory {
                inventory_id: name(inventory),
                layout: "player".into(),
                stacks,
                ..Default::default()
            };
            v1::Operation { operation: Some(Operation::Create(create)) }
        };
        let operations = (first..first + CREATED_PER_CALL).map(create).collect();
        let request = v1::TransactRequest { context: Some(new_mutation_context()), operations };
        client.rpc().transact(request).await.unwrap();
    }
}
