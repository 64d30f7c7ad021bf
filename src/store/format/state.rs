//! The stored form of a whole inventory, and of its slots with their stamps.
//!
//! Stamps are relative to the revision, because most slots changed long ago or with the creation: small numbers that
//! repeat.

use super::Malformed;
use super::bytes::{Reader, put_bytes, put_varint};
use super::stack::{put_stack, read_stack};
use crate::domain::catalog::LAYOUT_SLOTS_MAX;
use crate::domain::{Contents, Digest, Epoch, Inventory, InventoryId, LayoutId, PlayerId, Revision, SlotState};
use std::sync::Arc;

/// Appends an inventory without its id.
pub fn put_state(buffer: &mut Vec<u8>, inventory: &Inventory) {
    match &inventory.owner {
        // Owners are not empty.
        Some(owner) => put_bytes(buffer, owner.as_str().as_bytes()),
        None => put_bytes(buffer, &[]),
    }
    put_bytes(buffer, inventory.layout.as_str().as_bytes());
    buffer.extend_from_slice(&inventory.epoch.get().to_le_bytes());
    put_contents(buffer, &inventory.contents);
}

/// Reads the inventory with this id.
pub fn read_state(reader: &mut Reader<'_>, id: &InventoryId) -> Result<Arc<Inventory>, Malformed> {
    let mut owner_reader = *reader;
    let owner = match reader.bytes()? {
        [] => None,
        _ => Some(owner_reader.name(PlayerId::new)?),
    };
    let layout = reader.name(LayoutId::new)?;
    let epoch = read_epoch(reader)?;
    Ok(Arc::new(Inventory { id: id.clone(), owner, layout, epoch, contents: read_contents(reader)? }))
}

pub fn put_digest(buffer: &mut Vec<u8>, digest: Digest) {
    buffer.extend_from_slice(&digest.a.to_le_bytes());
    buffer.extend_from_slice(&digest.b.to_le_bytes());
}

pub fn read_digest(reader: &mut Reader<'_>) -> Result<Digest, Malformed> {
    Ok(Digest { a: reader.u32()?, b: reader.u32()? })
}

pub fn read_epoch(reader: &mut Reader<'_>) -> Result<Epoch, Malformed> {
    Epoch::new(reader.u32()?).ok_or_else(|| Malformed::new("an epoch of 0"))
}

/// Appends the revision, the digest and the slots with their stamps.
pub fn put_contents(buffer: &mut Vec<u8>, contents: &Contents) {
    let (revision, slots) = (contents.revision().0, contents.slots());
    put_varint(buffer, revision);
    put_digest(buffer, contents.digest());
    put_varint(buffer, slots.len() as u64);
    put_varint(buffer, contents.stacks().count() as u64);
    for (slot, stack) in contents.stacks() {
        put_varint(buffer, u64::from(slot.0));
        put_stack(buffer, stack);
    }
    for slot in slots {
        put_varint(buffer, revision.wrapping_sub(slot.changed_at.0));
    }
    for slot in slots {
        put_varint(buffer, slot.changed_at.0.wrapping_sub(slot.identity_changed_at.0));
    }
}

/// Reads contents. Computes the digest and compares it with the stored one.
pub fn read_contents(reader: &mut Reader<'_>) -> Result<Contents, Malformed> {
    let revision = reader.varint()?;
    let digest = read_digest(reader)?;
    let slots = reader.count()?;
    if slots > LAYOUT_SLOTS_MAX {
        return Err(Malformed(format!("it has {slots} slots, more than {LAYOUT_SLOTS_MAX}")));
    }
    let never = Revision(revision);
    let mut states = vec![SlotState { stack: None, changed_at: never, identity_changed_at: never }; slots];
    for _ in 0..reader.count()? {
        let slot = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        let stack = read_stack(reader)?;
        let state = states.get_mut(slot).ok_or_else(|| Malformed::new("a stack is in a slot that does not exist"))?;
        state.stack = Some(stack);
    }
    for state in &mut states {
        state.changed_at = Revision(revision.wrapping_sub(reader.varint()?));
    }
    for state in &mut states {
        state.identity_changed_at = Revision(state.changed_at.0.wrapping_sub(reader.varint()?));
    }
    let contents = Contents::restored(Revision(revision), states);
    if contents.digest() == digest { Ok(contents) } else { Err(Malformed::new("its digest does not match its slots")) }
}

/// Encodes contents alone, for the table of inventories.
pub fn encode_contents(contents: &Contents) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(CONTENTS_BYTES_TYPICAL);
    put_contents(&mut buffer, contents);
    buffer
}

pub fn decode_contents(bytes: &[u8]) -> Result<Contents, Malformed> {
    let mut reader = Reader::new(bytes);
    let contents = read_contents(&mut reader)?;
    reader.end()?;
    Ok(contents)
}

/// Typical size of the contents of an inventory of 36 slots, in bytes.
const CONTENTS_BYTES_TYPICAL: usize = 256;

#[cfg(test)]
pub mod samples {
    use super::super::stack::samples::stack;
    use super::*;
    use crate::domain::Slot;
    use proptest::prelude::*;

    pub fn inventory(id: InventoryId) -> impl Strategy<Value = Arc<Inventory>> {
        let edits = || prop::collection::vec((0..40_u16, prop::option::of(stack())), 0..12);
        let names = (prop::option::of("[a-z]{1,9}"), "[a-z]{1,9}", 1..=u32::MAX);
        (names, 0..40_usize, 1..=u64::MAX / 2, edits(), edits()).prop_map(
            move |((owner, layout, epoch), slots, revision, first, second)| {
                let edits = |edits: Vec<(u16, _)>| -> Vec<_> {
                    edits.into_iter().map(|(slot, stack)| (Slot(slot), stack)).collect()
                };
                let contents = Contents::new(slots, Revision(revision), &edits(first));
                let contents = contents.advanced(Revision(revision).next(), &edits(second));
                Arc::new(Inventory {
                    id: id.clone(),
                    owner: owner.map(|owner| PlayerId::new(&owner).unwrap()),
                    layout: LayoutId::new(&layout).unwrap(),
                    epoch: Epoch::new(epoch).unwrap(),
                    contents,
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> InventoryId {
        InventoryId::new("chest").unwrap()
    }

    proptest! {
        #[test]
        fn a_state_is_read_as_written(state in samples::inventory(id())) {
            let mut buffer = Vec::new();
            put_state(&mut buffer, &state);
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(read_state(&mut reader, &id()), Ok(state.clone()));
            prop_assert_eq!(reader.end(), Ok(()));
            prop_assert_eq!(decode_contents(&encode_contents(&state.contents)), Ok(state.contents.clone()));
        }

        #[test]
        fn contents_with_another_digest_are_malformed(state in samples::inventory(id()), bit in 0..64_usize) {
            let mut bytes = encode_contents(&state.contents);
            let mut revision = Vec::new();
            put_varint(&mut revision, state.contents.revision().0);
            bytes[revision.len() + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_contents(&bytes).is_err());
        }
    }
}
