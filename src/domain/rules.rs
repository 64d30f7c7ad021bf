//! The effect of each operation on the slots of a draft. A rejected operation may leave the draft partially edited; the
//! caller then discards the whole mutation.
//!
//! No operation creates a stack above its item's limit or grows a stack beyond it. A stack that exceeds the limit
//! because the catalog was changed may stay, shrink, or move as a whole to an empty slot. The limit of an item that was
//! removed from the catalog is 0, so all its stacks exceed it.

mod rearrange;

pub use rearrange::rearrange;

use super::catalog::{Catalog, Recipe};
use super::ids::{Count, InventoryId, ItemCode, Slot};
use super::inventory::{Draft, Edit};
use super::mutation::{OperationOutcome, TransferSource};
use super::rejection::RejectionCause;
use super::stack::{Attributes, Stack};

type OperationResult = Result<OperationOutcome, RejectionCause>;

/// A slot, the stack in it, and the number of items to take from the stack.
type Part = (Slot, Stack, u32);

/// Adds items: fills stacks of the same kind first, then empty slots, each in ascending order of slots.
pub fn add(
    draft: &mut Draft,
    catalog: &Catalog,
    item: ItemCode,
    attributes: &Attributes,
    count: Count,
    allow_partial: bool,
) -> OperationResult {
    if catalog.item_by_code(item).is_none() {
        return Err(RejectionCause::UnknownItemCode { item });
    }
    let needed = u64::from(count.get());
    let added = insert_items(draft, catalog, item, attributes, needed);
    if added < needed && !allow_partial {
        return Err(no_room(draft, item, needed, added));
    }
    Ok(partial_outcome(needed, added))
}

/// Removes items by type, in ascending order of slots (the hotbar first); all or nothing. Without `attributes`, removes
/// stacks with any attributes.
pub fn remove(draft: &mut Draft, item: ItemCode, attributes: Option<&Attributes>, count: Count) -> OperationResult {
    let needed = u64::from(count.get());
    let held = take_items(draft, item, attributes, needed);
    if held < needed {
        return Err(not_enough(draft, item, needed, held));
    }
    Ok(OperationOutcome { count: count.get(), ..OperationOutcome::default() })
}

/// Moves items from one slot to another. An empty slot or a stack of the same kind receives as many as fit, 0 if it is
/// full. If the target holds another kind, the two stacks are swapped, but never if `count` is set, even if it is the
/// whole stack. A move onto the same slot does nothing.
pub fn move_stack(draft: &mut Draft, catalog: &Catalog, from: Slot, to: Slot, count: Option<Count>) -> OperationResult {
    check_slot(draft, from)?;
    check_slot(draft, to)?;
    if from == to {
        return Ok(OperationOutcome::default());
    }
    let (stack, moving) = items_in_slot(draft, from, count)?;
    let other = draft.stack(to).filter(|target| !target.is_same_kind(stack.item, &stack.attributes)).cloned();
    if let Some(other) = other.filter(|_| count.is_none()) {
        draft.set(to, Some(stack));
        draft.set(from, Some(other));
        return Ok(OperationOutcome { count: moving, ..OperationOutcome::default() });
    }
    let moved = insert_into_slot(draft, catalog, to, &stack, moving)?;
    draft.set(from, stack.with_count(stack.count.get() - moved));
    Ok(OperationOutcome { count: moved, ..OperationOutcome::default() })
}

/// Drops items out of a slot; the outcome has the dropped stack. Without `count`, drops the whole stack.
pub fn drop(draft: &mut Draft, slot: Slot, count: Option<Count>) -> OperationResult {
    check_slot(draft, slot)?;
    let (stack, dropped) = items_in_slot(draft, slot, count)?;
    draft.set(slot, stack.with_count(stack.count.get() - dropped));
    Ok(OperationOutcome { count: dropped, stack: stack.with_count(dropped), ..OperationOutcome::default() })
}

/// Takes the inputs of a recipe, then adds its outputs; all or nothing. Inputs match only stacks without attributes, so
/// that a recipe for scrap never consumes an enchanted sword.
pub fn craft(draft: &mut Draft, catalog: &Catalog, recipe: &Recipe, times: Count) -> OperationResult {
    // The product of two 32-bit numbers fits in 64 bits.
    let total = |count: Count| u64::from(count.get()) * u64::from(times.get());
    for (item, count) in &recipe.inputs {
        let held = take_items(draft, *item, Some(&Attributes::NONE), total(*count));
        if held < total(*count) {
            return Err(not_enough(draft, *item, total(*count), held));
        }
    }
    for (item, count) in &recipe.outputs {
        let added = insert_items(draft, catalog, *item, &Attributes::NONE, total(*count));
        if added < total(*count) {
            return Err(no_room(draft, *item, total(*count), added));
        }
    }
    Ok(OperationOutcome { count: times.get(), ..OperationOutcome::default() })
}

/// Moves items from one inventory to another. `allow_partial` applies only to lack of room, not to lack of items.
pub fn transfer(
    source: &mut Draft,
    target: &mut Draft,
    catalog: &Catalog,
    what: &TransferSource,
    to_slot: Option<Slot>,
    allow_partial: bool,
) -> OperationResult {
    if let Some(slot) = to_slot {
        check_slot(target, slot)?;
    }
    let (item, mut parts, needed) = parts_to_transfer(source, what)?;
    if let (Some(to), TransferSource::Item { attributes: None, .. }) = (to_slot, what) {
        parts = parts_of_one_kind(source, item, parts, needed, target, to)?;
        let held = sum(&parts);
        if held < needed && !allow_partial {
            return Err(not_enough(source, item, needed, held));
        }
    }
    let mut moved = 0;
    for (slot, stack, count) in parts {
        let fits = match to_slot {
            Some(to) => insert_into_slot(target, catalog, to, &stack, count)?,
            None => insert_stack(target, catalog, &stack, count),
        };
        if fits < count && !allow_partial {
            return Err(no_room(target, item, needed, moved + u64::from(fits)));
        }
        source.set(slot, stack.with_count(stack.count.get() - fits));
        moved += u64::from(fits);
    }
    Ok(partial_outcome(needed, moved))
}

/// Replaces the content of a slot, for administrators; the outcome has the previous stack.
pub fn set(draft: &mut Draft, catalog: &Catalog, slot: Slot, stack: Option<&Stack>) -> OperationResult {
    check_slot(draft, slot)?;
    if let Some(stack) = stack {
        check_stack(catalog, stack)?;
    }
    let replaced = draft.stack(slot).cloned();
    draft.set(slot, stack.cloned());
    Ok(OperationOutcome { stack: replaced, ..OperationOutcome::default() })
}

/// Validates the initial stacks of a new inventory.
pub fn initial_edits(
    id: &InventoryId,
    slots: usize,
    catalog: &Catalog,
    stacks: &[(Slot, Stack)],
) -> Result<Vec<Edit>, RejectionCause> {
    check_slots(id, slots, stacks)?;
    for (_, stack) in stacks {
        check_stack(catalog, stack)?;
    }
    Ok(stacks.iter().map(|(slot, stack)| (*slot, Some(stack.clone()))).collect())
}

/// Returns the item of a transfer, the parts to take from the source, and the requested total.
fn parts_to_transfer(source: &Draft, what: &TransferSource) -> Result<(ItemCode, Vec<Part>, u64), RejectionCause> {
    match what {
        TransferSource::Slot { slot, count } => {
            check_slot(source, *slot)?;
            let (stack, count) = items_in_slot(source, *slot, *count)?;
            Ok((stack.item, vec![(*slot, stack, count)], u64::from(count)))
        }
        TransferSource::Item { item, attributes, count } => {
            let needed = u64::from(count.get());
            let parts: Vec<_> = parts_with_item(source, *item, attributes.as_ref(), needed).collect();
            let held = sum(&parts);
            if held < needed {
                return Err(not_enough(source, *item, needed, held));
            }
            Ok((*item, parts, needed))
        }
    }
}

/// Returns only the parts of one kind, because a slot holds one kind: the kind that `to` holds or, if `to` is empty,
/// the kind of the first part.
fn parts_of_one_kind(
    source: &Draft,
    item: ItemCode,
    parts: Vec<Part>,
    needed: u64,
    target: &Draft,
    to: Slot,
) -> Result<Vec<Part>, RejectionCause> {
    let first = parts.first().map(|(_, stack, _)| stack);
    let Some(kind) = target.stack(to).or(first).filter(|kind| kind.item == item) else {
        return Err(slot_occupied(target, to));
    };
    let parts: Vec<_> = parts_with_item(source, item, Some(&kind.attributes), needed).collect();
    if parts.is_empty() { Err(slot_occupied(target, to)) } else { Ok(parts) }
}

/// Returns the stack in a slot and the number of items to take from it.
fn items_in_slot(draft: &Draft, slot: Slot, count: Option<Count>) -> Result<(Stack, u32), RejectionCause> {
    let id = || draft.base().id.clone();
    let stack = draft.stack(slot).cloned().ok_or_else(|| RejectionCause::SlotEmpty { id: id(), slot })?;
    let (held, count) = (stack.count.get(), count.unwrap_or(stack.count).get());
    if count > held {
        return Err(not_enough(draft, stack.item, u64::from(count), u64::from(held)));
    }
    Ok((stack, count))
}

/// Returns the slots that hold an item, in ascending order, each with its stack and the number of items to take from it:
/// at most `count` in total.
fn parts_with_item<'a>(
    draft: &'a Draft,
    item: ItemCode,
    attributes: Option<&'a Attributes>,
    count: u64,
) -> impl Iterator<Item = Part> + 'a {
    let mut missing = count;
    draft
        .slots()
        .map_while(move |slot| {
            if missing == 0 {
                return None;
            }
            let matches = |stack: &&Stack| stack.item == item && attributes.is_none_or(|a| *a == stack.attributes);
            let part = draft.stack(slot).filter(matches).map(|stack| {
                let taken = u64::from(stack.count.get()).min(missing) as u32;
                missing -= u64::from(taken);
                (slot, stack.clone(), taken)
            });
            Some(part)
        })
        .flatten()
}

/// Takes up to `count` of an item; returns how many were taken.
fn take_items(draft: &mut Draft, item: ItemCode, attributes: Option<&Attributes>, count: u64) -> u64 {
    let parts: Vec<_> = parts_with_item(draft, item, attributes, count).collect();
    for (slot, stack, taken) in &parts {
        draft.set(*slot, stack.with_count(stack.count.get() - taken));
    }
    sum(&parts)
}

/// Inserts up to `count` of a stack, like [`insert_items`]; returns how many fit. A whole stack above its limit moves
/// unchanged to the first empty slot, if there is one.
fn insert_stack(draft: &mut Draft, catalog: &Catalog, stack: &Stack, count: u32) -> u32 {
    if count == stack.count.get() && count > stack_limit(catalog, stack.item) {
        let empty = draft.slots().find(|slot| draft.stack(*slot).is_none());
        if let Some(slot) = empty {
            draft.set(slot, Some(stack.clone()));
            return count;
        }
    }
    insert_items(draft, catalog, stack.item, &stack.attributes, u64::from(count)) as u32
}

/// Inserts up to `count` items: onto stacks of the same kind first, then into empty slots. Returns how many fit.
fn insert_items(draft: &mut Draft, catalog: &Catalog, item: ItemCode, attributes: &Attributes, count: u64) -> u64 {
    let limit = u64::from(stack_limit(catalog, item));
    let mut missing = count;
    for slot in draft.slots() {
        if missing == 0 {
            return count;
        }
        let Some(held) = draft.stack(slot).filter(|held| held.is_same_kind(item, attributes)) else { continue };
        let room = limit.saturating_sub(u64::from(held.count.get()));
        let added = missing.min(room) as u32;
        if added > 0 {
            draft.set(slot, held.with_count(held.count.get() + added));
            missing -= u64::from(added);
        }
    }
    for slot in draft.slots() {
        let Some(added) = Count::new(missing.min(limit) as u32) else { break };
        if draft.stack(slot).is_none() {
            draft.set(slot, Some(Stack { item, count: added, attributes: attributes.clone() }));
            missing -= u64::from(added.get());
        }
    }
    count - missing
}

/// Inserts up to `count` of a stack into one slot; returns how many fit.
fn insert_into_slot(
    draft: &mut Draft,
    catalog: &Catalog,
    slot: Slot,
    stack: &Stack,
    count: u32,
) -> Result<u32, RejectionCause> {
    match draft.stack(slot) {
        None => {
            // A whole stack above its limit moves unchanged.
            let fits = if count == stack.count.get() { count } else { count.min(stack_limit(catalog, stack.item)) };
            draft.set(slot, stack.with_count(fits));
            Ok(fits)
        }
        Some(held) if held.is_same_kind(stack.item, &stack.attributes) => {
            let fits = count.min(room_on_stack(catalog, held));
            let merged = held.with_count(held.count.get() + fits);
            draft.set(slot, merged);
            Ok(fits)
        }
        Some(_) => Err(slot_occupied(draft, slot)),
    }
}

/// Returns how many items an operation may add to the stack.
fn room_on_stack(catalog: &Catalog, stack: &Stack) -> u32 {
    stack_limit(catalog, stack.item).saturating_sub(stack.count.get())
}

/// Maximum count of one stack of the item that an operation may create; 0 if the item is not in the catalog.
fn stack_limit(catalog: &Catalog, item: ItemCode) -> u32 {
    catalog.item_by_code(item).map_or(0, |item| item.max_stack.get())
}

fn check_slot(draft: &Draft, slot: Slot) -> Result<(), RejectionCause> {
    let slots = draft.slots().len();
    if slot.index() < slots {
        return Ok(());
    }
    Err(RejectionCause::SlotOutOfRange { id: draft.base().id.clone(), slot, slots })
}

/// Checks that each slot exists and is listed at most once.
fn check_slots(id: &InventoryId, slots: usize, stacks: &[(Slot, Stack)]) -> Result<(), RejectionCause> {
    let mut seen = vec![false; slots];
    for (slot, _) in stacks {
        let Some(seen) = seen.get_mut(slot.index()) else {
            return Err(RejectionCause::SlotOutOfRange { id: id.clone(), slot: *slot, slots });
        };
        if std::mem::replace(seen, true) {
            return Err(RejectionCause::DuplicateSlot { slot: *slot });
        }
    }
    Ok(())
}

fn check_stack(catalog: &Catalog, stack: &Stack) -> Result<(), RejectionCause> {
    let item = stack.item;
    let known = catalog.item_by_code(item).ok_or(RejectionCause::UnknownItemCode { item })?;
    let (count, max_stack) = (stack.count.get(), known.max_stack.get());
    if count > max_stack {
        return Err(RejectionCause::StackTooLarge { item, count, max_stack });
    }
    Ok(())
}

/// Returns the outcome of an operation that handled `count` of `needed` items. Both fit in 32 bits.
fn partial_outcome(needed: u64, count: u64) -> OperationOutcome {
    OperationOutcome { count: count as u32, remainder: (needed - count) as u32, stack: None }
}

fn sum(parts: &[Part]) -> u64 {
    parts.iter().map(|(_, _, count)| u64::from(*count)).sum()
}

fn slot_occupied(draft: &Draft, slot: Slot) -> RejectionCause {
    RejectionCause::SlotOccupied { id: draft.base().id.clone(), slot }
}

fn no_room(draft: &Draft, item: ItemCode, needed: u64, room: u64) -> RejectionCause {
    RejectionCause::NoRoom { id: draft.base().id.clone(), item, needed, room }
}

fn not_enough(draft: &Draft, item: ItemCode, needed: u64, held: u64) -> RejectionCause {
    RejectionCause::NotEnough { id: draft.base().id.clone(), item, needed, held }
}
