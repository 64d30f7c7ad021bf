//! The inventories of the measurements.

use crate::catalog_file;
use crate::domain::Catalog;
use crate::wire::v1;
use prost::Message;

/// Number of slots of each inventory of the measurements.
pub const SLOTS: usize = 36;
/// Slots that each inventory of the measurements has filled.
pub const FILLED_SLOTS: usize = 20;
/// Items in each filled slot: half a stack.
pub const STACK_COUNT: u32 = 32;
/// How often each item is added to an inventory before as many are removed. So no stack overflows: 32 + 30 <= 64.
pub const ADDS_PER_ITEM: u32 = 30;

/// The inventories of a server, which all have the same contents at first.
#[derive(Debug, Clone)]
pub struct World {
    /// The ids are this prefix and a number of seven digits.
    pub prefix: String,
    /// Number of inventories that calls name.
    pub active: u32,
    /// The items in the filled slots.
    pub items: Vec<String>,
    pub layout: String,
    /// Version of the catalog.
    pub catalog: String,
}

impl World {
    /// Chooses items and a layout of a catalog.
    pub fn new(prefix: &str, active: u32, catalog: &Catalog) -> Result<Self, String> {
        let required = STACK_COUNT + ADDS_PER_ITEM;
        let fitting = catalog.items().iter().filter(|item| item.max_stack.get() >= required);
        let items: Vec<_> = fitting.take(FILLED_SLOTS).map(|item| item.id.to_string()).collect();
        let layout = catalog.layouts().find(|layout| layout.slots() == SLOTS);
        match layout {
            Some(layout) if items.len() == FILLED_SLOTS => Ok(Self {
                prefix: prefix.to_owned(),
                active,
                items,
                layout: layout.id.to_string(),
                catalog: catalog_file::version(catalog),
            }),
            _ => Err(format!(
                "the catalog must have a layout of {SLOTS} slots and {FILLED_SLOTS} items with a max_stack of at least \
                 {required}"
            )),
        }
    }

    pub fn id(&self, number: u32) -> String {
        format!("{}{number:07}", self.prefix)
    }

    /// Replaces the text by the id of an inventory.
    pub fn write_id(&self, number: u32, id: &mut String) {
        use std::fmt::Write;
        id.clear();
        id.push_str(&self.prefix);
        let _ = write!(id, "{number:07}");
    }

    /// The initial stacks of each inventory.
    pub fn stacks(&self) -> impl Iterator<Item = (usize, &str, u32)> {
        self.items.iter().enumerate().map(|(slot, item)| (slot, item.as_str(), STACK_COUNT))
    }
}

/// Size of an AddItem request, in bytes.
pub fn request_bytes(world: &World) -> usize {
    let stack = v1::Stack { item: world.items[0].clone(), count: 1, ..v1::Stack::default() };
    let add = v1::AddItem { inventory_id: world.id(0), stack: Some(stack), allow_partial: false };
    let context = v1::MutationContext { idempotency_key: "0".repeat(36), ..v1::MutationContext::default() };
    v1::AddItemRequest { context: Some(context), add: Some(add) }.encoded_len()
}

/// Size of an AddItem reply, in bytes.
pub fn reply_bytes(world: &World) -> usize {
    let digest = Some(v1::Digest { a: 1, b: 1 });
    let version = v1::InventoryVersion { inventory_id: world.id(0), epoch: 1, revision: 100, digest };
    let receipt = v1::MutationReceipt { inventories: vec![version], ..v1::MutationReceipt::default() };
    v1::AddItemResponse { receipt: Some(receipt), added: 1, remainder: 0 }.encoded_len()
}
