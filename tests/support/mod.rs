//! Helpers of the tests of the inner rings: a small world to apply mutations to, and random histories in it.

// Each test file is a separate crate and uses only a part of this module.
#![allow(dead_code, clippy::unwrap_used)]

pub mod random;
pub mod service;

use slotcast::domain::{
    Attributes, Catalog, Contents, Count, Edit, Effect, Epoch, Inventory, InventoryId, InventoryLookup, ItemCode,
    LayoutId, Mutation, Operation, PlayerId, Rejection, Revision, Slot, Stack, apply,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All existing inventories, as a store holds them.
#[derive(Debug, Clone)]
pub struct World {
    pub catalog: Catalog,
    pub inventories: BTreeMap<InventoryId, Arc<Inventory>>,
    epochs: u32,
}

impl InventoryLookup for World {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        self.inventories.get(id).cloned()
    }
}

impl World {
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog, inventories: BTreeMap::new(), epochs: 1_000 }
    }

    /// Inserts an inventory as if it had been stored at `revision`, without validating its stacks against the catalog.
    pub fn put(&mut self, name: &str, layout: &str, revision: u64, edits: &[Edit]) {
        let slots = self.catalog.layout(&layout_id(layout)).unwrap().slots();
        let owner = (layout == "player").then(|| PlayerId::new(name).unwrap());
        let epoch = self.next_epoch();
        let contents = Contents::new(slots, Revision(revision), edits);
        let inventory = Inventory { id: id(name), owner, layout: layout_id(layout), epoch, contents };
        self.inventories.insert(id(name), Arc::new(inventory));
    }

    /// Applies a mutation and stores the resulting states. A rejected mutation changes nothing.
    pub fn mutate(&mut self, mutation: &Mutation) -> Result<Effect, Rejection> {
        let mut epochs = self.epochs;
        let effect = apply(mutation, &self.catalog, self, &mut || {
            epochs += 1;
            Epoch::new(epochs).unwrap()
        })?;
        self.epochs = epochs;
        for touched in &effect.touched {
            match &touched.state {
                Some(state) => self.inventories.insert(touched.version.id.clone(), state.clone()),
                None => self.inventories.remove(&touched.version.id),
            };
        }
        Ok(effect)
    }

    pub fn run(&mut self, operation: Operation) -> Result<Effect, Rejection> {
        self.mutate(&Mutation { operations: vec![operation], expected: vec![] })
    }

    pub fn get(&self, name: &str) -> &Inventory {
        &self.inventories[&id(name)]
    }

    /// Returns the number of items of each kind in all inventories.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for inventory in self.inventories.values() {
            totals.add_contents(&inventory.contents, 1);
        }
        totals
    }

    fn next_epoch(&mut self) -> Epoch {
        self.epochs += 1;
        Epoch::new(self.epochs).unwrap()
    }
}

/// Number of items by kind, without kinds whose number is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals(BTreeMap<(ItemCode, Attributes), i64>);

impl Totals {
    pub fn add(&mut self, item: ItemCode, attributes: &Attributes, count: i64) {
        let kind = (item, attributes.clone());
        let sum = self.0.remove(&kind).unwrap_or(0) + count;
        if sum != 0 {
            self.0.insert(kind, sum);
        }
    }

    pub fn add_stack(&mut self, stack: &Stack, sign: i64) {
        self.add(stack.item, &stack.attributes, sign * i64::from(stack.count.get()));
    }

    pub fn add_contents(&mut self, contents: &Contents, sign: i64) {
        contents.stacks().for_each(|(_, stack)| self.add_stack(stack, sign));
    }

    pub fn minus(&self, other: &Self) -> Self {
        let mut difference = self.clone();
        other.kinds().for_each(|(item, attributes, count)| difference.add(item, attributes, -count));
        difference
    }

    pub fn kinds(&self) -> impl Iterator<Item = (ItemCode, &Attributes, i64)> {
        self.0.iter().map(|((item, attributes), count)| (*item, attributes, *count))
    }
}

pub fn id(name: &str) -> InventoryId {
    InventoryId::new(name).unwrap()
}

pub fn layout_id(name: &str) -> LayoutId {
    LayoutId::new(name).unwrap()
}

pub fn item(code: u32) -> ItemCode {
    ItemCode::new(code).unwrap()
}

pub fn count(count: u32) -> Count {
    Count::new(count).unwrap()
}

pub fn attributes(bytes: &[u8]) -> Attributes {
    Attributes::new(bytes).unwrap()
}

pub fn stack(code: u32, number: u32) -> Stack {
    Stack { item: item(code), count: count(number), attributes: Attributes::NONE }
}

pub fn stack_with(code: u32, number: u32, bytes: &[u8]) -> Stack {
    Stack { attributes: attributes(bytes), ..stack(code, number) }
}

pub fn filled(slot: u16, stack: Stack) -> Edit {
    (Slot(slot), Some(stack))
}
