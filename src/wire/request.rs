//! Converts requests to mutations. Parses every field exactly once; an error names the malformed field.

use super::{ErrorReason, FieldViolation};
use crate::domain::catalog::{COUNT_MAX, LAYOUT_SLOTS_MAX};
use crate::domain::mutation::{GUARDS_MAX, Guard, OPERATIONS_MAX, TransferSource};
use crate::domain::{
    Attributes, Count, Digest, Epoch, IdempotencyKey, InventoryId, ItemCode, ItemRef, LayoutId, MissingEntry, Mutation,
    NameError, Operation, PlayerId, Revision, SessionId, Slot, Stack, UnresolvedMutation, UnresolvedOperation,
    UnresolvedReference,
};
use crate::sync::subscription::SUBSCRIPTION_INVENTORIES_MAX;
use crate::wire::v1;
use crate::wire::v1::operation::Operation as WireOperation;

/// Maximum length of a `reason`, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

type Parsed<T> = Result<T, FieldViolation>;

/// Checks the reason of a mutation, which may be empty.
pub fn mutation_reason(context: &v1::MutationContext) -> Parsed<()> {
    if context.reason.len() > REASON_BYTES_MAX {
        let text = format!("must have at most {REASON_BYTES_MAX} bytes, got {}", context.reason.len());
        return Err(FieldViolation::new("context.reason", text));
    }
    Ok(())
}

pub fn idempotency_key(context: &v1::MutationContext) -> Parsed<IdempotencyKey> {
    IdempotencyKey::new(&context.idempotency_key).map_err(|error| FieldViolation::new("context.idempotency_key", error))
}

/// Checks the reason of an administrative call, which is required because it is logged.
pub fn admin_reason(text: &str) -> Parsed<()> {
    match text.trim().len() {
        0 => Err(FieldViolation::new("reason", "required; it is logged")),
        _ if text.len() > REASON_BYTES_MAX => {
            let text = format!("must have at most {REASON_BYTES_MAX} bytes, got {}", text.len());
            Err(FieldViolation::new("reason", text))
        }
        _ => Ok(()),
    }
}

/// Parses a session id. Returns `None` if the text is empty.
pub fn session(field: &str, text: &str) -> Parsed<Option<SessionId>> {
    if text.is_empty() {
        return Ok(None);
    }
    SessionId::new(text).map(Some).map_err(|error| FieldViolation::new(field, error))
}

/// Parses the digests that the session expects. Predictions require a session.
pub fn predicted(context: &v1::MutationContext) -> Parsed<Vec<(InventoryId, Digest)>> {
    let invalid = |text: &str| FieldViolation::new("context.predicted", text);
    if context.predicted.len() > SUBSCRIPTION_INVENTORIES_MAX {
        return Err(invalid(&format!(
            "must contain at most {SUBSCRIPTION_INVENTORIES_MAX} digests, got {}",
            context.predicted.len()
        )));
    }
    if context.session.is_empty() && !context.predicted.is_empty() {
        return Err(FieldViolation::new("context.session", "required with context.predicted"));
    }
    let parse = |predicted: &v1::PredictedDigest| {
        let id = inventory_id("context.predicted.inventory_id", &predicted.inventory_id)?;
        let digest = predicted.digest.as_ref().ok_or_else(|| invalid("digest: required"))?;
        Ok((id, super::frame::decode_digest(digest)))
    };
    context.predicted.iter().map(parse).collect()
}

/// Parses the mutation of a list of operations. The catalog is not consulted; [`UnresolvedMutation::resolve`] does that
/// later. If `single`, the operation comes from its own RPC and the paths of its fields have no index.
pub fn mutation(
    context: &v1::MutationContext,
    operations: &[v1::Operation],
    single: bool,
) -> Parsed<UnresolvedMutation> {
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        let text = format!("must contain 1 to {OPERATIONS_MAX} operations, got {}", operations.len());
        return Err(FieldViolation::new("operations", text));
    }
    if context.expected.len() > GUARDS_MAX {
        let text = format!("must contain at most {GUARDS_MAX} guards, got {}", context.expected.len());
        return Err(FieldViolation::new("context.expected", text));
    }
    let expected = context.expected.iter().enumerate().map(|(index, expected)| {
        guard(expected).map_err(|violation| violation.within(&format!("context.expected[{index}]")))
    });
    let parsed = operations.iter().enumerate().map(|(index, wire)| {
        let parsed = operation(wire);
        if single { parsed } else { parsed.map_err(|violation| violation.within(&format!("operations[{index}]"))) }
    });
    Ok(Mutation { expected: expected.collect::<Parsed<_>>()?, operations: parsed.collect::<Parsed<_>>()? })
}

/// Parses a guard. All three fields are required, because revisions are only comparable within one epoch.
fn guard(expected: &v1::ExpectedRevision) -> Parsed<Guard> {
    let missing =
        |field| FieldViolation::new(field, "required; use the value of the InventoryVersion that the guard refers to");
    let id = inventory_id("inventory_id", &expected.inventory_id)?;
    let epoch = Epoch::new(expected.epoch).ok_or_else(|| missing("epoch"))?;
    let revision = Some(expected.revision).filter(|revision| *revision != 0).ok_or_else(|| missing("revision"))?;
    Ok(Guard { id, epoch, revision: Revision(revision) })
}

/// Returns, for each operation, the path of the field that contains its names, for [`unknown_name`].
pub fn name_paths(operations: &[v1::Operation]) -> Vec<&'static str> {
    let path = |operation: &v1::Operation| match &operation.operation {
        Some(WireOperation::Create(_)) => "create",
        Some(WireOperation::Add(_)) => "add.stack",
        Some(WireOperation::Remove(_)) => "remove.item",
        Some(WireOperation::Craft(_)) => "craft",
        Some(WireOperation::Transfer(_)) => "transfer.item",
        Some(WireOperation::Set(_)) => "set.stack",
        Some(WireOperation::Rearrange(_)) => "rearrange",
        Some(WireOperation::Delete(_) | WireOperation::Move(_) | WireOperation::Drop(_)) | None => "operation",
    };
    operations.iter().map(path).collect()
}

/// Returns the error for a name that is not in the catalog, with the path of its field. `paths` comes from
/// [`name_paths`] of the same request; `single` is as for [`mutation`].
pub fn unknown_name(paths: &[&str], single: bool, unknown: &UnresolvedReference) -> FieldViolation {
    let (name, reason) = match &unknown.entry {
        MissingEntry::Item { .. } | MissingEntry::ItemCode { .. } => ("item", ErrorReason::UnknownItem),
        MissingEntry::Recipe { .. } => ("recipe", ErrorReason::UnknownRecipe),
        MissingEntry::Layout { .. } => ("layout", ErrorReason::UnknownLayout),
    };
    let violation = FieldViolation::with_reason(name, reason, &unknown.entry);
    let violation = match unknown.stack {
        Some(index) => violation.within("stack").within(&format!("stacks[{index}]")),
        None => violation,
    };
    let Some(path) = paths.get(unknown.operation) else { return violation };
    let violation = violation.within(path);
    if single { violation } else { violation.within(&format!("operations[{}]", unknown.operation)) }
}

fn operation(operation: &v1::Operation) -> Parsed<UnresolvedOperation> {
    let wire = operation.operation.as_ref();
    let wire = wire.ok_or_else(|| FieldViolation::new("operation", "required"))?;
    match wire {
        WireOperation::Create(create) => self::create(create).map_err(|violation| violation.within("create")),
        WireOperation::Delete(delete) => {
            Ok(Operation::Delete { id: inventory_id("delete.inventory_id", &delete.inventory_id)? })
        }
        WireOperation::Add(add) => self::add(add).map_err(|violation| violation.within("add")),
        WireOperation::Remove(remove) => self::remove(remove).map_err(|violation| violation.within("remove")),
        WireOperation::Move(wire) => move_item(wire).map_err(|violation| violation.within("move")),
        WireOperation::Drop(wire) => drop_item(wire).map_err(|violation| violation.within("drop")),
        WireOperation::Craft(craft) => self::craft(craft).map_err(|violation| violation.within("craft")),
        WireOperation::Transfer(transfer) => self::transfer(transfer).map_err(|violation| violation.within("transfer")),
        WireOperation::Set(set) => self::set(set).map_err(|violation| violation.within("set")),
        WireOperation::Rearrange(rearrange) => {
            self::rearrange(rearrange).map_err(|violation| violation.within("rearrange"))
        }
    }
}

fn create(create: &v1::CreateInventory) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &create.inventory_id)?;
    let owner = owner("owner", &create.owner)?;
    // No catalog can have a layout whose id is not a valid name.
    let unknown = |error| match error {
        NameError::Empty => FieldViolation::with_reason("layout", ErrorReason::UnknownLayout, "required"),
        NameError::TooLong { .. } | NameError::ControlCharacter => {
            FieldViolation::with_reason("layout", ErrorReason::UnknownLayout, error)
        }
    };
    let layout = LayoutId::new(&create.layout).map_err(unknown)?;
    Ok(Operation::Create { id, owner, layout, stacks: slot_stacks(&create.stacks)? })
}

fn add(add: &v1::AddItem) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &add.inventory_id)?;
    let Stack { item, count, attributes } = stack("stack", add.stack.as_ref())?;
    Ok(Operation::Add { id, item, attributes, count, allow_partial: add.allow_partial })
}

fn remove(remove: &v1::RemoveItem) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &remove.inventory_id)?;
    let (item, attributes, count) = quantity("item", remove.item.as_ref())?;
    Ok(Operation::Remove { id, item, attributes, count })
}

fn move_item(move_item: &v1::MoveItem) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &move_item.inventory_id)?;
    let (from, count) = slot_quantity("from", move_item.from.as_ref())?;
    Ok(Operation::Move { id, from, to: slot_ref("to", move_item.to.as_ref())?, count })
}

fn drop_item(drop: &v1::DropItem) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &drop.inventory_id)?;
    let (slot, count) = slot_quantity("from", drop.from.as_ref())?;
    Ok(Operation::Drop { id, slot, count })
}

fn craft(craft: &v1::CraftItem) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &craft.inventory_id)?;
    Ok(Operation::Craft { id, recipe: craft.recipe.as_str().into(), times: count("times", craft.times)? })
}

fn transfer(transfer: &v1::TransferItem) -> Parsed<UnresolvedOperation> {
    use v1::transfer_item::What;
    let from = inventory_id("from_inventory_id", &transfer.from_inventory_id)?;
    let to = inventory_id("to_inventory_id", &transfer.to_inventory_id)?;
    let what = match &transfer.what {
        None => return Err(FieldViolation::new("from", "required; set from or item")),
        Some(What::From(from)) => {
            let (slot, count) = slot_quantity("from", Some(from))?;
            TransferSource::Slot { slot, count }
        }
        Some(What::Item(item)) => {
            let (item, attributes, count) = quantity("item", Some(item))?;
            TransferSource::Item { item, attributes, count }
        }
    };
    let to_slot = transfer.to.as_ref().map(|to| slot_ref("to", Some(to))).transpose()?;
    Ok(Operation::Transfer { from, what, to, to_slot, allow_partial: transfer.allow_partial })
}

fn set(set: &v1::SetSlot) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &set.inventory_id)?;
    let stack = set.stack.as_ref().map(|replacement| stack("stack", Some(replacement))).transpose()?;
    Ok(Operation::Set { id, slot: slot_ref("at", set.at.as_ref())?, stack })
}

fn rearrange(rearrange: &v1::RearrangeInventory) -> Parsed<UnresolvedOperation> {
    let id = inventory_id("inventory_id", &rearrange.inventory_id)?;
    Ok(Operation::Rearrange { id, stacks: slot_stacks(&rearrange.stacks)? })
}

pub fn inventory_id(field: &str, text: &str) -> Parsed<InventoryId> {
    InventoryId::new(text).map_err(|error| FieldViolation::new(field, error))
}

/// Parses an owner. Returns `None` if the text is empty.
pub fn owner(field: &str, text: &str) -> Parsed<Option<PlayerId>> {
    if text.is_empty() {
        return Ok(None);
    }
    PlayerId::new(text).map(Some).map_err(|error| FieldViolation::new(field, error))
}

fn slot(field: &str, slot: u32) -> Parsed<Slot> {
    let out_of_range = |_| {
        FieldViolation::with_reason(
            field,
            ErrorReason::SlotOutOfRange,
            format!("slot {slot} does not exist; an inventory has at most {LAYOUT_SLOTS_MAX} slots"),
        )
    };
    u16::try_from(slot).map(Slot).map_err(out_of_range)
}

/// Parses a slot that the field `field` refers to.
fn slot_ref(field: &str, reference: Option<&v1::SlotRef>) -> Parsed<Slot> {
    let reference = reference.ok_or_else(|| FieldViolation::new(field, "required"))?;
    slot("slot", reference.slot).map_err(|violation| violation.within(field))
}

/// Parses a slot and how many of its items are meant: `None` for the whole stack.
fn slot_quantity(field: &str, quantity: Option<&v1::SlotQuantity>) -> Parsed<(Slot, Option<Count>)> {
    let quantity = quantity.ok_or_else(|| FieldViolation::new(field, "required"))?;
    let parse = || Ok((slot("slot", quantity.slot)?, optional_count("count", quantity.count)?));
    parse().map_err(|violation: FieldViolation| violation.within(field))
}

fn count(field: &str, count: u32) -> Parsed<Count> {
    if count > COUNT_MAX {
        let text = format!("must be at most {COUNT_MAX}, got {count} (a negative number may have wrapped around)");
        return Err(FieldViolation::new(field, text));
    }
    Count::new(count).ok_or_else(|| FieldViolation::new(field, "must be at least 1, got 0"))
}

fn optional_count(field: &str, value: Option<u32>) -> Parsed<Option<Count>> {
    value.map(|value| count(field, value)).transpose()
}

fn attributes(field: &str, bytes: &[u8]) -> Parsed<Attributes> {
    let too_large = || {
        let text = format!("must have at most {} bytes, got {}", Attributes::BYTES_MAX, bytes.len());
        FieldViolation::new(field, text)
    };
    Attributes::new(bytes).ok_or_else(too_large)
}

/// Parses an item, named by its id, its code, or both.
fn item(field: &str, id: &str, code: u32) -> Parsed<ItemRef> {
    let unnamed =
        || FieldViolation::with_reason(field, ErrorReason::UnknownItem, "required; set the id or the code of an item");
    match (id, ItemCode::new(code)) {
        ("", None) => Err(unnamed()),
        ("", Some(code)) => Ok(ItemRef::Code(code)),
        (id, None) => Ok(ItemRef::Id(id.into())),
        (id, Some(code)) => Ok(ItemRef::Both { id: id.into(), code }),
    }
}

fn stack(field: &str, stack: Option<&v1::Stack>) -> Parsed<Stack<ItemRef>> {
    let stack = stack.ok_or_else(|| FieldViolation::new(field, "required"))?;
    let parse = || {
        Ok(Stack {
            item: item("item", &stack.item, stack.item_code)?,
            count: count("count", stack.count)?,
            attributes: attributes("attributes", &stack.attributes)?,
        })
    };
    parse().map_err(|violation: FieldViolation| violation.within(field))
}

fn quantity(field: &str, quantity: Option<&v1::ItemQuantity>) -> Parsed<(ItemRef, Option<Attributes>, Count)> {
    let quantity = quantity.ok_or_else(|| FieldViolation::new(field, "required"))?;
    let parse = || {
        let item = item("item", &quantity.item, quantity.item_code)?;
        let attributes = quantity.attributes.as_deref().map(|bytes| attributes("attributes", bytes)).transpose()?;
        Ok((item, attributes, count("count", quantity.count)?))
    };
    parse().map_err(|violation: FieldViolation| violation.within(field))
}

fn slot_stacks(stacks: &[v1::SlotStack]) -> Parsed<Vec<(Slot, Stack<ItemRef>)>> {
    let parse = |(index, wire): (usize, &v1::SlotStack)| {
        let parsed = slot("slot", wire.slot).and_then(|slot| Ok((slot, stack("stack", wire.stack.as_ref())?)));
        parsed.map_err(|violation| violation.within(&format!("stacks[{index}]")))
    };
    stacks.iter().enumerate().map(parse).collect()
}
