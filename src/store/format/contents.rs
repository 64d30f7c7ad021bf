//! The stored form of slots, stamps and stacks.

use super::{Malformed, stored};
use crate::domain::{Attributes, Contents, Count, Digest, ItemCode, Revision, Slot, SlotState, Stack};
use prost::Message;

pub fn encode_contents(contents: &Contents) -> Vec<u8> {
    stored_contents(contents).encode_to_vec()
}

pub fn decode_contents(bytes: &[u8]) -> Result<Contents, Malformed> {
    read_contents(&stored::Contents::decode(bytes)?)
}

/// Builds the message of an inventory's contents, for embedding in another message.
pub fn stored_contents(contents: &Contents) -> stored::Contents {
    let (revision, slots) = (contents.revision().0, contents.slots());
    let digest = contents.digest();
    stored::Contents {
        revision,
        stacks: Some(write_stacks(contents.stacks().map(|(slot, stack)| (slot, Some(stack))))),
        changed_ago: slots.iter().map(|slot| revision.wrapping_sub(slot.changed_at.0)).collect(),
        identity_before: slots.iter().map(|slot| slot.changed_at.0.wrapping_sub(slot.identity_changed_at.0)).collect(),
        digest_a: digest.a,
        digest_b: digest.b,
    }
}

/// Decodes contents. Computes the digest and compares it with the stored one.
pub fn read_contents(stored: &stored::Contents) -> Result<Contents, Malformed> {
    if stored.changed_ago.len() != stored.identity_before.len() {
        return Err(Malformed::new("its slots and stamps differ in number"));
    }
    let mut slots = Vec::with_capacity(stored.changed_ago.len());
    for (ago, before) in stored.changed_ago.iter().zip(&stored.identity_before) {
        let changed_at = Revision(stored.revision.wrapping_sub(*ago));
        let identity_changed_at = Revision(changed_at.0.wrapping_sub(*before));
        slots.push(SlotState { stack: None, changed_at, identity_changed_at });
    }
    for stack in stored.stacks.iter().flat_map(read_stacks) {
        let (slot, stack) = stack?;
        let state =
            slots.get_mut(slot.index()).ok_or_else(|| Malformed::new("a stack is in a slot that does not exist"))?;
        state.stack = stack;
    }
    let contents = Contents::restored(Revision(stored.revision), slots);
    if contents.digest() == (Digest { a: stored.digest_a, b: stored.digest_b }) {
        Ok(contents)
    } else {
        Err(Malformed::new("its digest does not match its slots"))
    }
}

pub fn write_stacks<'a>(edits: impl Iterator<Item = (Slot, Option<&'a Stack>)>) -> stored::Stacks {
    let mut stored = stored::Stacks::default();
    for (row, (slot, stack)) in edits.enumerate() {
        stored.slots.push(u32::from(slot.0));
        stored.items.push(stack.map_or(0, |stack| stack.item.get()));
        stored.counts.push(stack.map_or(0, |stack| stack.count.get()));
        if let Some(stack) = stack.filter(|stack| !stack.attributes.is_none()) {
            stored.attributed.push(row as u32);
            stored.attributes.push(stack.attributes.as_bytes().to_vec());
        }
    }
    stored
}

/// Decodes each row of the columns; `None` for a slot that was emptied.
pub fn read_stacks(stored: &stored::Stacks) -> impl Iterator<Item = Result<(Slot, Option<Stack>), Malformed>> {
    let rows = stored.slots.len();
    let columns_fit = stored.items.len() == rows
        && stored.counts.len() == rows
        && stored.attributed.len() == stored.attributes.len()
        && stored.attributed.last().is_none_or(|last| (*last as usize) < rows)
        && stored.attributed.is_sorted();
    let mismatch = (!columns_fit).then(|| Err(Malformed::new("its columns differ in length")));
    let mut attributes = stored.attributed.iter().zip(&stored.attributes).peekable();
    let columns = stored.slots.iter().zip(&stored.items).zip(&stored.counts).enumerate();
    let stacks = columns.take(if columns_fit { rows } else { 0 }).map(move |(row, ((slot, item), count))| {
        let bytes = attributes.next_if(|(at, _)| **at as usize == row).map(|(_, bytes)| bytes.as_slice());
        let slot = Slot(u16::try_from(*slot).map_err(|_| Malformed::new("a slot number is too large"))?);
        Ok((slot, read_stack(*item, *count, bytes.unwrap_or_default())?))
    });
    mismatch.into_iter().chain(stacks)
}

fn read_stack(item: u32, count: u32, attributes: &[u8]) -> Result<Option<Stack>, Malformed> {
    match (ItemCode::new(item), Count::new(count)) {
        (None, None) if attributes.is_empty() => Ok(None),
        (Some(item), Some(count)) => {
            let attributes = Attributes::new(attributes).ok_or_else(|| Malformed::new("attributes are too long"))?;
            Ok(Some(Stack { item, count, attributes }))
        }
        (None, _) | (Some(_), None) => Err(Malformed::new("a stack without item or count")),
    }
}
