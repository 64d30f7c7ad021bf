//! The stored form of a stack: item code and count as varints, and its attributes, preceded by their number of bytes.

use super::Malformed;
use super::bytes::{Reader, put_bytes, put_varint};
use crate::domain::{Attributes, Count, ItemCode, Stack};

pub fn put_stack(buffer: &mut Vec<u8>, stack: &Stack) {
    put_varint(buffer, u64::from(stack.item.get()));
    put_varint(buffer, u64::from(stack.count.get()));
    put_bytes(buffer, stack.attributes.as_bytes());
}

pub fn read_stack(reader: &mut Reader<'_>) -> Result<Stack, Malformed> {
    Ok(Stack { item: read_item(reader)?, count: read_count(reader)?, attributes: read_attributes(reader)? })
}

pub fn read_item(reader: &mut Reader<'_>) -> Result<ItemCode, Malformed> {
    ItemCode::new(reader.varint_u32()?).ok_or_else(|| Malformed::new("an item code of 0"))
}

pub fn read_count(reader: &mut Reader<'_>) -> Result<Count, Malformed> {
    Count::new(reader.varint_u32()?).ok_or_else(|| Malformed::new("a stack of 0 items"))
}

pub fn read_attributes(reader: &mut Reader<'_>) -> Result<Attributes, Malformed> {
    Attributes::new(reader.bytes()?).ok_or_else(|| Malformed::new("attributes are too large"))
}

#[cfg(test)]
pub mod samples {
    use super::*;
    use proptest::prelude::*;

    pub fn stack() -> impl Strategy<Value = Stack> {
        let attributes = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 1..40)];
        (1..=u32::MAX, prop_oneof![1..=64_u32, 1..=u32::MAX], attributes).prop_map(|(item, count, attributes)| Stack {
            item: ItemCode::new(item).unwrap(),
            count: Count::new(count).unwrap(),
            attributes: Attributes::new(&attributes).unwrap(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stack_is_read_as_written(stack in samples::stack()) {
            let mut buffer = Vec::new();
            put_stack(&mut buffer, &stack);
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(read_stack(&mut reader), Ok(stack));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
