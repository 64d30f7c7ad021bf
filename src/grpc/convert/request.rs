//! From requests to mutations. Everything is parsed here, once; what cannot be said is refused with the field's name.

use super::Invalid;
use crate::domain::catalog::COUNT_MAX;
use crate::domain::mutation::{GUARDS_MAX, Guard, OPERATIONS_MAX, Taken};
use crate::domain::{
    Attributes, Catalog, Count, Digest, Epoch, IdempotencyKey, InventoryId, ItemCode, LayoutId, Mutation, Operation,
    PlayerId, Revision, SessionId, Slot, Stack,
};
use crate::grpc::v1;
use crate::grpc::v1::operation::Operation as Wire;
use crate::sync::subscription::SUBSCRIPTION_INVENTORIES_MAX;

/// The most a `reason` may have, in bytes.
const REASON_BYTES_MAX: usize = 256;

type Parsed<T> = Result<T, Invalid>;

pub fn idempotency_key(context: &v1::MutationContext) -> Parsed<IdempotencyKey> {
    if context.reason.len() > REASON_BYTES_MAX {
        let text = format!("must have at most {REASON_BYTES_MAX} bytes");
        return Err(Invalid::new("context.reason", "REASON_TOO_LONG", text));
    }
    IdempotencyKey::new(&context.idempotency_key)
        .map_err(|error| Invalid::new("context.idempotency_key", "INVALID_IDEMPOTENCY_KEY", error))
}

/// Empty: no session.
pub fn session(field: &str, text: &str) -> Parsed<Option<SessionId>> {
    if text.is_empty() {
        return Ok(None);
    }
    SessionId::new(text).map(Some).map_err(|error| Invalid::new(field, "INVALID_SESSION", error))
}

/// What the session expects; only a session can.
pub fn predicted(context: &v1::MutationContext) -> Parsed<Vec<(InventoryId, Digest)>> {
    let invalid = |text: &str| Invalid::new("context.predicted", "INVALID_PREDICTION", text);
    if context.predicted.len() > SUBSCRIPTION_INVENTORIES_MAX {
        return Err(invalid("names more inventories than a stream can follow"));
    }
    if context.session.is_empty() && !context.predicted.is_empty() {
        return Err(invalid("needs the session that predicts"));
    }
    let parse = |predicted: &v1::PredictedDigest| {
        let id = inventory_id("context.predicted.inventory_id", &predicted.inventory_id)?;
        let digest = predicted.digest.as_ref().ok_or_else(|| invalid("has no digest"))?;
        Ok((id, super::frame::read_digest(digest)))
    };
    context.predicted.iter().map(parse).collect()
}

/// The mutation of a list of operations. `single`: it comes from an RPC of its own, so that fields have no index.
pub fn mutation(
    catalog: &Catalog,
    context: &v1::MutationContext,
    operations: &[v1::Operation],
    single: bool,
) -> Parsed<Mutation> {
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        let text = format!("1 to {OPERATIONS_MAX} operations are possible, not {}", operations.len());
        return Err(Invalid::new("operations", "TOO_MANY_OPERATIONS", text));
    }
    if context.expected.len() > GUARDS_MAX {
        let text = format!("must contain at most {GUARDS_MAX} guards, got {}", context.expected.len());
        return Err(Invalid::new("context.expected", "TOO_MANY_EXPECTED", text));
    }
    let expected = context.expected.iter().enumerate().map(|(index, expected)| {
        guard(expected).map_err(|invalid| invalid.within(&format!("context.expected[{index}]")))
    });
    let parsed = operations.iter().enumerate().map(|(index, one)| {
        let parsed = operation(catalog, one);
        if single { parsed } else { parsed.map_err(|invalid| invalid.within(&format!("operations[{index}]"))) }
    });
    Ok(Mutation { expected: expected.collect::<Parsed<_>>()?, operations: parsed.collect::<Parsed<_>>()? })
}

/// All three fields are required: revisions compare only within one epoch.
fn guard(expected: &v1::ExpectedRevision) -> Parsed<Guard> {
    let missing =
        |field| Invalid::new(field, "MISSING", "required; send the one of the InventoryVersion that you know");
    let id = inventory_id("inventory_id", &expected.inventory_id)?;
    let epoch = Epoch::new(expected.epoch).ok_or_else(|| missing("epoch"))?;
    let revision = Some(expected.revision).filter(|revision| *revision != 0).ok_or_else(|| missing("revision"))?;
    Ok(Guard { id, epoch, revision: Revision(revision) })
}

fn operation(catalog: &Catalog, operation: &v1::Operation) -> Parsed<Operation> {
    let wire = operation.operation.as_ref();
    let wire = wire.ok_or_else(|| Invalid::new("operation", "MISSING", "say what is to be done"))?;
    match wire {
        Wire::Create(create) => self::create(catalog, create).map_err(|invalid| invalid.within("create")),
        Wire::Delete(delete) => {
            Ok(Operation::Delete { id: inventory_id("delete.inventory_id", &delete.inventory_id)? })
        }
        Wire::Add(add) => self::add(catalog, add).map_err(|invalid| invalid.within("add")),
        Wire::Remove(remove) => self::remove(catalog, remove).map_err(|invalid| invalid.within("remove")),
        Wire::Move(shift) => self::shift(shift).map_err(|invalid| invalid.within("move")),
        Wire::Drop(drop) => self::drop(drop).map_err(|invalid| invalid.within("drop")),
        Wire::Craft(craft) => self::craft(catalog, craft).map_err(|invalid| invalid.within("craft")),
        Wire::Transfer(transfer) => self::transfer(catalog, transfer).map_err(|invalid| invalid.within("transfer")),
        Wire::Set(set) => self::set(catalog, set).map_err(|invalid| invalid.within("set")),
        Wire::Rearrange(wanted) => self::rearrange(catalog, wanted).map_err(|invalid| invalid.within("rearrange")),
    }
}

fn create(catalog: &Catalog, create: &v1::CreateInventory) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &create.inventory_id)?;
    let owner = owner("owner", &create.owner)?;
    let unknown = || Invalid::new("layout", "UNKNOWN_LAYOUT", format!("no layout {:?}", create.layout));
    let layout = LayoutId::new(&create.layout).map_err(|_| unknown())?;
    catalog.layout(&layout).ok_or_else(unknown)?;
    Ok(Operation::Create { id, owner, layout, stacks: slot_stacks(catalog, &create.stacks)? })
}

fn add(catalog: &Catalog, add: &v1::AddItem) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &add.inventory_id)?;
    let Stack { item, count, attributes } = stack(catalog, "stack", add.stack.as_ref())?;
    Ok(Operation::Add { id, item, attributes, count, allow_partial: add.allow_partial })
}

fn remove(catalog: &Catalog, remove: &v1::RemoveItem) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &remove.inventory_id)?;
    let (item, attributes, count) = quantity(catalog, "what", remove.what.as_ref())?;
    Ok(Operation::Remove { id, item, attributes, count })
}

fn shift(shift: &v1::MoveItem) -> Parsed<Operation> {
    Ok(Operation::Move {
        id: inventory_id("inventory_id", &shift.inventory_id)?,
        from: slot("from_slot", shift.from_slot)?,
        to: slot("to_slot", shift.to_slot)?,
        count: optional_count("count", shift.count)?,
    })
}

fn drop(drop: &v1::DropItem) -> Parsed<Operation> {
    Ok(Operation::Drop {
        id: inventory_id("inventory_id", &drop.inventory_id)?,
        slot: slot("slot", drop.slot)?,
        count: optional_count("count", drop.count)?,
    })
}

fn craft(catalog: &Catalog, craft: &v1::CraftItem) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &craft.inventory_id)?;
    let recipe = catalog.recipe(&craft.recipe).cloned();
    let unknown = || Invalid::new("recipe", "UNKNOWN_RECIPE", format!("no recipe {:?}", craft.recipe));
    Ok(Operation::Craft { id, recipe: recipe.ok_or_else(unknown)?, times: count("times", craft.times)? })
}

fn transfer(catalog: &Catalog, transfer: &v1::TransferItem) -> Parsed<Operation> {
    use v1::transfer_item::What;
    let from = inventory_id("from_inventory_id", &transfer.from_inventory_id)?;
    let to = inventory_id("to_inventory_id", &transfer.to_inventory_id)?;
    let what = match &transfer.what {
        None => return Err(Invalid::new("what", "MISSING", "give from_slot or item")),
        Some(What::FromSlot(from)) => Taken::Slot {
            slot: slot("from_slot.slot", from.slot)?,
            count: optional_count("from_slot.count", from.count)?,
        },
        Some(What::Item(item)) => {
            let (item, attributes, count) = quantity(catalog, "item", Some(item))?;
            Taken::Item { item, attributes, count }
        }
    };
    let to_slot = transfer.to_slot.map(|to| slot("to_slot", to)).transpose()?;
    Ok(Operation::Transfer { from, what, to, to_slot, allow_partial: transfer.allow_partial })
}

fn set(catalog: &Catalog, set: &v1::SetSlot) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &set.inventory_id)?;
    let stack = set.stack.as_ref().map(|wanted| stack(catalog, "stack", Some(wanted))).transpose()?;
    Ok(Operation::Set { id, slot: slot("slot", set.slot)?, stack })
}

fn rearrange(catalog: &Catalog, wanted: &v1::RearrangeInventory) -> Parsed<Operation> {
    let id = inventory_id("inventory_id", &wanted.inventory_id)?;
    Ok(Operation::Rearrange { id, stacks: slot_stacks(catalog, &wanted.stacks)? })
}

pub fn inventory_id(field: &str, text: &str) -> Parsed<InventoryId> {
    InventoryId::new(text).map_err(|error| Invalid::new(field, "INVALID_INVENTORY_ID", error))
}

/// Empty: no owner.
pub fn owner(field: &str, text: &str) -> Parsed<Option<PlayerId>> {
    if text.is_empty() {
        return Ok(None);
    }
    PlayerId::new(text).map(Some).map_err(|error| Invalid::new(field, "INVALID_OWNER", error))
}

fn slot(field: &str, slot: u32) -> Parsed<Slot> {
    let out_of_range = |_| Invalid::new(field, "SLOT_OUT_OF_RANGE", format!("there is no slot {slot}"));
    u16::try_from(slot).map(Slot).map_err(out_of_range)
}

fn count(field: &str, count: u32) -> Parsed<Count> {
    if count > COUNT_MAX {
        let text = format!("must be at most {COUNT_MAX}; {count} may have been a negative number");
        return Err(Invalid::new(field, "INVALID_COUNT", text));
    }
    Count::new(count).ok_or_else(|| Invalid::new(field, "INVALID_COUNT", "must be at least 1"))
}

fn optional_count(field: &str, wanted: Option<u32>) -> Parsed<Option<Count>> {
    wanted.map(|wanted| count(field, wanted)).transpose()
}

fn attributes(field: &str, bytes: &[u8]) -> Parsed<Attributes> {
    let too_large = || {
        let text = format!("must have at most {} bytes, not {}", Attributes::BYTES_MAX, bytes.len());
        Invalid::new(field, "ATTRIBUTES_TOO_LARGE", text)
    };
    Attributes::new(bytes).ok_or_else(too_large)
}

/// By id, by code, or by both if they agree. A code alone may be of an item that has left the catalog, if it is only to
/// be taken or rearranged; the domain refuses to make more of it.
fn item(catalog: &Catalog, field: &str, id: &str, code: u32) -> Parsed<ItemCode> {
    let invalid = |text: String| Invalid::new(field, "UNKNOWN_ITEM", text);
    if id.is_empty() {
        return ItemCode::new(code).ok_or_else(|| invalid("name the item by its id or its code".into()));
    }
    let known = catalog.item(id).ok_or_else(|| invalid(format!("no item {id:?}")))?.code;
    if code != 0 && code != known.get() {
        return Err(invalid(format!("item {id:?} has code {}, not {code}", known.get())));
    }
    Ok(known)
}

fn stack(catalog: &Catalog, field: &str, stack: Option<&v1::Stack>) -> Parsed<Stack> {
    let stack = stack.ok_or_else(|| Invalid::new(field, "MISSING", "say which items"))?;
    let parse = || {
        Ok(Stack {
            item: item(catalog, "item", &stack.item, stack.item_code)?,
            count: count("count", stack.count)?,
            attributes: attributes("attributes", &stack.attributes)?,
        })
    };
    parse().map_err(|invalid: Invalid| invalid.within(field))
}

fn quantity(
    catalog: &Catalog,
    field: &str,
    quantity: Option<&v1::ItemQuantity>,
) -> Parsed<(ItemCode, Option<Attributes>, Count)> {
    let quantity = quantity.ok_or_else(|| Invalid::new(field, "MISSING", "say which items"))?;
    let parse = || {
        let item = item(catalog, "item", &quantity.item, quantity.item_code)?;
        let of_kind = quantity.attributes.as_deref().map(|bytes| attributes("attributes", bytes)).transpose()?;
        Ok((item, of_kind, count("count", quantity.count)?))
    };
    parse().map_err(|invalid: Invalid| invalid.within(field))
}

fn slot_stacks(catalog: &Catalog, stacks: &[v1::SlotStack]) -> Parsed<Vec<(Slot, Stack)>> {
    let parse = |(index, one): (usize, &v1::SlotStack)| {
        let parsed = slot("slot", one.slot).and_then(|slot| Ok((slot, stack(catalog, "stack", one.stack.as_ref())?)));
        parsed.map_err(|invalid| invalid.within(&format!("stacks[{index}]")))
    };
    stacks.iter().enumerate().map(parse).collect()
}
