//! Converts domain values to replies.

use crate::domain::{Catalog, Digest, Inventory, ItemCode, OperationOutcome, Slot, Stack, Version};
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::v1;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

pub fn version(version: &Version) -> v1::InventoryVersion {
    v1::InventoryVersion {
        inventory_id: version.id.to_string(),
        epoch: version.epoch.get(),
        revision: version.revision.0,
        digest: Some(digest(version.digest)),
    }
}

pub fn digest(digest: Digest) -> v1::Digest {
    v1::Digest { a: digest.a, b: digest.b }
}

pub fn stack(catalog: &Catalog, stack: &Stack) -> v1::Stack {
    v1::Stack {
        item: catalog.item_by_code(stack.item).map(|item| item.id.to_string()).unwrap_or_default(),
        item_code: stack.item.get(),
        count: stack.count.get(),
        attributes: stack.attributes.as_bytes().to_vec(),
    }
}

pub fn outcome(catalog: &Catalog, outcome: &OperationOutcome) -> v1::OperationOutcome {
    v1::OperationOutcome {
        count: outcome.count,
        remainder: outcome.remainder,
        stack: outcome.stack.as_ref().map(|left| stack(catalog, left)),
    }
}

pub fn inventory(catalog: &Catalog, inventory: &Inventory) -> v1::Inventory {
    let stacks = inventory
        .contents
        .stacks()
        .map(|(slot, held)| v1::SlotStack { slot: u32::from(slot.0), stack: Some(stack(catalog, held)) });
    v1::Inventory {
        version: Some(version(&inventory.version())),
        owner: owner(inventory),
        layout: inventory.layout.to_string(),
        slots: inventory.contents.slots().len() as u32,
        stacks: stacks.collect(),
    }
}

/// Maximum size of what precedes the inventory in a `GetInventoryResponse`: the prefix, a key and a length.
const INVENTORY_HEAD_BYTES_MAX: usize = MESSAGE_PREFIX_BYTES + 1 + 5;
/// Assumed average size of an encoded stack, in bytes. The buffer grows if the stacks are larger.
const STACK_BYTES: usize = 24;

/// Encodes a `GetInventoryResponse` with gRPC's prefix, directly from the slots: the same bytes as those of
/// [`inventory`], without a message for each stack.
pub fn inventory_message(catalog: &Catalog, inventory: &Inventory) -> Bytes {
    let slots = inventory.contents.slots().len();
    let mut buffer = BytesMut::with_capacity(INVENTORY_HEAD_BYTES_MAX + 128 + slots * STACK_BYTES);
    buffer.put_bytes(0, INVENTORY_HEAD_BYTES_MAX);
    prost::encoding::message::encode(1, &version(&inventory.version()), &mut buffer);
    put_bytes(2, inventory.owner.as_ref().map(|owner| owner.as_str().as_bytes()).unwrap_or_default(), &mut buffer);
    put_bytes(3, inventory.layout.as_str().as_bytes(), &mut buffer);
    put_number(4, slots as u32, &mut buffer);
    for (slot, held) in inventory.contents.stacks() {
        put_slot_stack(catalog, slot, held, &mut buffer);
    }
    // The length is known only now, so the head is written before the inventory, without a gap.
    let length = (buffer.len() - INVENTORY_HEAD_BYTES_MAX) as u64;
    let head_bytes = 1 + encoded_len_varint(length);
    let start = INVENTORY_HEAD_BYTES_MAX - MESSAGE_PREFIX_BYTES - head_bytes;
    let mut head = &mut buffer[start..INVENTORY_HEAD_BYTES_MAX];
    head.put_u8(0);
    head.put_u32(head_bytes as u32 + length as u32);
    encode_key(1, WireType::LengthDelimited, &mut head);
    encode_varint(length, &mut head);
    buffer.advance(start);
    buffer.freeze()
}

/// Encodes a `SlotStack` as an element of `Inventory.stacks`.
fn put_slot_stack(catalog: &Catalog, Slot(slot): Slot, stack: &Stack, buffer: &mut BytesMut) {
    let item = catalog.item_by_code(stack.item).map(|item| &*item.id).unwrap_or_default().as_bytes();
    let (code, count, attributes) = (stack.item.get(), stack.count.get(), stack.attributes.as_bytes());
    let stack_bytes = bytes_len(item) + number_len(code) + number_len(count) + bytes_len(attributes);
    let slot = u32::from(slot);
    encode_key(5, WireType::LengthDelimited, buffer);
    encode_varint((number_len(slot) + 1 + encoded_len_varint(stack_bytes as u64) + stack_bytes) as u64, buffer);
    put_number(1, slot, buffer);
    encode_key(2, WireType::LengthDelimited, buffer);
    encode_varint(stack_bytes as u64, buffer);
    put_bytes(1, item, buffer);
    put_number(2, code, buffer);
    put_number(3, count, buffer);
    put_bytes(4, attributes, buffer);
}

/// Encodes a field of type `string` or `bytes`; an empty one is omitted.
fn put_bytes(tag: u32, bytes: &[u8], buffer: &mut BytesMut) {
    if !bytes.is_empty() {
        encode_key(tag, WireType::LengthDelimited, buffer);
        encode_varint(bytes.len() as u64, buffer);
        buffer.put_slice(bytes);
    }
}

/// Encodes a field of type `uint32`; 0 is omitted.
fn put_number(tag: u32, number: u32, buffer: &mut BytesMut) {
    if number > 0 {
        encode_key(tag, WireType::Varint, buffer);
        encode_varint(u64::from(number), buffer);
    }
}

/// Returns the encoded size of a field of [`put_bytes`] whose tag is below 16.
fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + encoded_len_varint(bytes.len() as u64) + bytes.len() }
}

/// Returns the encoded size of a field of [`put_number`] whose tag is below 16.
fn number_len(number: u32) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(u64::from(number)) }
}

pub fn summary(inventory: &Inventory) -> v1::InventorySummary {
    v1::InventorySummary {
        version: Some(version(&inventory.version())),
        owner: owner(inventory),
        layout: inventory.layout.to_string(),
    }
}

fn owner(inventory: &Inventory) -> String {
    inventory.owner.as_ref().map(ToString::to_string).unwrap_or_default()
}

pub fn catalog(catalog: &Catalog, version: &str) -> v1::GetCatalogResponse {
    let items = catalog.items().iter().map(|item| v1::Item {
        id: item.id.to_string(),
        code: item.code.get(),
        max_stack: item.max_stack.get(),
    });
    let recipes = catalog.recipes().iter().map(|recipe| v1::Recipe {
        id: recipe.id.to_string(),
        inputs: ingredients(&recipe.inputs),
        outputs: ingredients(&recipe.outputs),
    });
    let layouts = catalog.layouts().map(|layout| v1::Layout {
        id: layout.id.to_string(),
        sections: layout
            .sections
            .iter()
            .map(|section| v1::Section { name: section.name.to_string(), slots: u32::from(section.slots) })
            .collect(),
    });
    v1::GetCatalogResponse {
        version: version.to_owned(),
        items: items.collect(),
        recipes: recipes.collect(),
        layouts: layouts.collect(),
    }
}

fn ingredients(parts: &[(ItemCode, crate::domain::Count)]) -> Vec<v1::Ingredient> {
    parts.iter().map(|(item, count)| v1::Ingredient { item_code: item.get(), count: count.get() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catalog::CatalogSource;
    use crate::domain::{Attributes, Contents, Count, Edit, Epoch, InventoryId, LayoutId, PlayerId, Revision};
    use proptest::prelude::*;
    use prost::Message;

    fn any_stack() -> impl Strategy<Value = Stack> {
        let attributes = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 1..=Attributes::BYTES_MAX)];
        let code = prop_oneof![1..5u32, 1..=u32::MAX];
        (code, 1..=u32::MAX, attributes).prop_map(|(code, count, attributes)| Stack {
            item: ItemCode::new(code).expect("not 0"),
            count: Count::new(count).expect("not 0"),
            attributes: Attributes::new(&attributes).expect("not too long"),
        })
    }

    proptest! {
        #[test]
        fn an_inventory_encoded_from_its_slots_has_the_bytes_of_its_message(
            stacks in prop::collection::vec(prop::option::of(any_stack()), 0..200),
            owner in prop::option::of("[a-z]{1,128}"),
            id in "[a-z]{1,128}",
            revision in any::<u64>(),
        ) {
            let items = (1..4).map(|code| (format!("item-{code}"), code, 64)).collect();
            let catalog = Catalog::new(CatalogSource { items, ..CatalogSource::default() }).expect("a catalog");
            let edits: Vec<Edit> = stacks.iter().enumerate().map(|(slot, stack)| (Slot(slot as u16), stack.clone())).collect();
            let contents = Contents::new(stacks.len(), Revision(revision), &edits);
            let inventory = Inventory {
                id: InventoryId::new(&id).expect("a name"),
                owner: owner.map(|owner| PlayerId::new(&owner).expect("a name")),
                layout: LayoutId::new("player").expect("a name"),
                epoch: Epoch::new(7).expect("not 0"),
                contents,
            };
            let message = inventory_message(&catalog, &inventory);
            let expected = v1::GetInventoryResponse { inventory: Some(super::inventory(&catalog, &inventory)) };
            prop_assert_eq!(&message[..1], &[0][..]);
            prop_assert_eq!(&message[1..5], &(expected.encoded_len() as u32).to_be_bytes()[..]);
            prop_assert_eq!(&message[5..], &expected.encode_to_vec()[..]);
        }
    }
}
