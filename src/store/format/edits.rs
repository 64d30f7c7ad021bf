//! The stored form of changed slots, with the stacks before and after the change.
//!
//! Each edit has the slot as a varint, a byte of flags, the stack before, and what differs of the stack after: most changes
//! of a slot only change a count.

use super::Malformed;
use super::bytes::{Reader, put_bytes, put_varint};
use super::stack::{put_stack, read_attributes, read_count, read_item, read_stack};
use crate::domain::{Slot, Stack};
use crate::store::log::LoggedEdit;

const HAS_BEFORE: u8 = 1;
const HAS_AFTER: u8 = 2;
/// The stack after has the item of the stack before.
const SAME_ITEM: u8 = 4;
/// The stack after has the attributes of the stack before.
const SAME_ATTRIBUTES: u8 = 8;
const FLAGS: u8 = 15;

pub fn put_edit(buffer: &mut Vec<u8>, slot: Slot, before: Option<&Stack>, after: Option<&Stack>) {
    put_varint(buffer, u64::from(slot.0));
    let (mut flags, flags_at) = (0, buffer.len());
    buffer.push(0);
    if let Some(before) = before {
        flags |= HAS_BEFORE;
        put_stack(buffer, before);
    }
    if let Some(after) = after {
        flags |= HAS_AFTER;
        if before.is_some_and(|before| before.item == after.item) {
            flags |= SAME_ITEM;
        } else {
            put_varint(buffer, u64::from(after.item.get()));
        }
        put_varint(buffer, u64::from(after.count.get()));
        if before.is_some_and(|before| before.attributes == after.attributes) {
            flags |= SAME_ATTRIBUTES;
        } else {
            put_bytes(buffer, after.attributes.as_bytes());
        }
    }
    buffer[flags_at] = flags;
}

pub fn read_edit(reader: &mut Reader<'_>) -> Result<LoggedEdit, Malformed> {
    let slot = u16::try_from(reader.varint()?).map_err(|_| Malformed::new("a slot number is too large"))?;
    let flags = reader.u8()?;
    if flags & !FLAGS != 0 {
        return Err(Malformed::new("an edit has unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let before = if has(HAS_BEFORE) { Some(read_stack(reader)?) } else { None };
    let not_before = || Malformed::new("an edit refers to a stack that it does not have");
    let after = if has(HAS_AFTER) {
        let item = match has(SAME_ITEM) {
            true => before.as_ref().ok_or_else(not_before)?.item,
            false => read_item(reader)?,
        };
        let count = read_count(reader)?;
        let attributes = match has(SAME_ATTRIBUTES) {
            true => before.as_ref().ok_or_else(not_before)?.attributes.clone(),
            false => read_attributes(reader)?,
        };
        Some(Stack { item, count, attributes })
    } else {
        None
    };
    Ok(LoggedEdit { slot: Slot(slot), before, after })
}

#[cfg(test)]
pub mod samples {
    use super::super::stack::samples::stack;
    use super::*;
    use proptest::prelude::*;

    pub fn edit() -> impl Strategy<Value = LoggedEdit> {
        let related = (stack(), stack(), any::<[bool; 2]>()).prop_map(|(before, mut after, [same_item, same])| {
            if same_item {
                after.item = before.item;
            }
            if same {
                after.attributes = before.attributes.clone();
            }
            (Some(before), Some(after))
        });
        let stacks = prop_oneof![related, (prop::option::of(stack()), prop::option::of(stack()))];
        (any::<u16>(), stacks).prop_map(|(slot, (before, after))| LoggedEdit { slot: Slot(slot), before, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_edit_is_read_as_written(edit in samples::edit()) {
            let mut buffer = Vec::new();
            put_edit(&mut buffer, edit.slot, edit.before.as_ref(), edit.after.as_ref());
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(read_edit(&mut reader), Ok(edit));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_change_of_a_count_takes_six_bytes() {
        let stack = |count| Stack {
            item: crate::domain::ItemCode::new(5).unwrap(),
            count: crate::domain::Count::new(count).unwrap(),
            attributes: crate::domain::Attributes::NONE,
        };
        let mut buffer = Vec::new();
        put_edit(&mut buffer, Slot(3), Some(&stack(7)), Some(&stack(8)));
        assert_eq!(buffer.len(), 6);
    }
}
