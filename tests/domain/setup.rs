//! A player's inventory and a chest, and operations on them.

use crate::support::random::lowered;
use crate::support::{World, attributes, count, filled, id, item};
use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{Attributes, Catalog, Edit, Operation, OperationOutcome, RejectionCause, Slot, Stack};

pub const PLANKS: u32 = 1;
pub const LOG: u32 = 15;
pub const STICK: u32 = 21;
pub const TORCH: u32 = 23;
pub const COAL: u32 = 24;
pub const SWORD: u32 = 29;
/// Not in the catalog.
pub const GONE: u32 = 99;

/// A player's inventory of 36 slots and a chest of 27, with the default catalog.
pub fn world(player: &[Edit], chest: &[Edit]) -> World {
    world_with(default_catalog(), player, chest)
}

/// The same with a catalog in which the limit of every item is 16 at most.
pub fn lowered_world(player: &[Edit], chest: &[Edit]) -> World {
    world_with(lowered(&default_catalog(), 16), player, chest)
}

fn world_with(catalog: Catalog, player: &[Edit], chest: &[Edit]) -> World {
    let mut world = World::new(catalog);
    world.put("player", "player", 3, player);
    world.put("chest", "chest", 8, chest);
    world
}

/// Returns the filled slots as (slot, item code, count).
pub fn slots(world: &World, name: &str) -> Vec<(u16, u32, u32)> {
    world.get(name).contents.stacks().map(|(slot, stack)| (slot.0, stack.item.get(), stack.count.get())).collect()
}

pub fn run(world: &mut World, operation: Operation) -> OperationOutcome {
    world.run(operation).expect("the rules accept the operation").outcomes.remove(0)
}

pub fn rejection_of(world: &mut World, operation: Operation) -> RejectionCause {
    let before = world.inventories.clone();
    let cause = world.run(operation).expect_err("the rules reject the operation").cause;
    assert_eq!(world.inventories, before);
    cause
}

pub fn outcome_of(number: u32) -> OperationOutcome {
    OperationOutcome { count: number, ..OperationOutcome::default() }
}

pub fn add(code: u32, number: u32, bytes: &[u8]) -> Operation {
    Operation::Add {
        id: id("player"),
        item: item(code),
        attributes: attributes(bytes),
        count: count(number),
        allow_partial: false,
    }
}

pub fn remove(code: u32, number: u32, attributes: Option<Attributes>) -> Operation {
    Operation::Remove { id: id("player"), item: item(code), attributes, count: count(number) }
}

pub fn move_stack(from: u16, to: u16, number: Option<u32>) -> Operation {
    Operation::Move { id: id("player"), from: Slot(from), to: Slot(to), count: number.map(count) }
}

pub fn drop(slot: u16, number: Option<u32>) -> Operation {
    Operation::Drop { id: id("player"), slot: Slot(slot), count: number.map(count) }
}

pub fn craft(recipe: &str, times: u32) -> Operation {
    let recipe = default_catalog().recipe(recipe).unwrap().clone();
    Operation::Craft { id: id("player"), recipe, times: count(times) }
}

pub fn transfer(what: TransferSource, to_slot: Option<u16>, allow_partial: bool) -> Operation {
    Operation::Transfer { from: id("player"), what, to: id("chest"), to_slot: to_slot.map(Slot), allow_partial }
}

pub fn from_slot(slot: u16, number: Option<u32>) -> TransferSource {
    TransferSource::Slot { slot: Slot(slot), count: number.map(count) }
}

pub fn by_item(code: u32, number: u32) -> TransferSource {
    TransferSource::Item { item: item(code), attributes: None, count: count(number) }
}

pub fn fill_all_except(free: &[u16], slots: u16, stack: &Stack) -> Vec<Edit> {
    (0..slots).filter(|slot| !free.contains(slot)).map(|slot| filled(slot, stack.clone())).collect()
}
