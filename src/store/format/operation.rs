//! The stored form of a mutation's operations: their kinds, outcomes and flows.
//!
//! Each operation has a byte for its kind, a byte of flags, the count of its outcome, and then what the flags name: the
//! remainder, the stack, and its flows (their number; then item, items added, items removed).

use super::Malformed;
use super::bytes::{Reader, put_varint};
use super::stack::{put_stack, read_item, read_stack};
use crate::domain::mutation::OPERATIONS_MAX;
use crate::domain::{Flow, OperationKind, OperationOutcome};
use crate::store::log::LoggedOperation;

const HAS_REMAINDER: u8 = 1;
const HAS_STACK: u8 = 2;
/// The operation has one flow, in which items are only added, or only removed, as many as the count of the outcome.
const COUNT_IS_ADDED: u8 = 4;
const COUNT_IS_REMOVED: u8 = 8;
/// The operation has other flows.
const HAS_FLOWS: u8 = 16;
const FLAGS: u8 = 31;

/// The stored number of a kind, which never changes.
pub fn kind_number(kind: OperationKind) -> u8 {
    match kind {
        OperationKind::Create => 1,
        OperationKind::Delete => 2,
        OperationKind::Add => 3,
        OperationKind::Remove => 4,
        OperationKind::Move => 5,
        OperationKind::Drop => 6,
        OperationKind::Craft => 7,
        OperationKind::Transfer => 8,
        OperationKind::Set => 9,
        OperationKind::Rearrange => 10,
        OperationKind::Import => 11,
    }
}

pub fn kind_from_number(number: u8) -> Result<OperationKind, Malformed> {
    let kind = OperationKind::ALL.into_iter().find(|kind| kind_number(*kind) == number);
    kind.ok_or_else(|| Malformed::new("an operation of an unknown kind"))
}

/// Appends the operations; `flows` are in their order.
pub fn put_operations<'a>(
    buffer: &mut Vec<u8>,
    operations: impl ExactSizeIterator<Item = (OperationKind, &'a OperationOutcome)>,
    mut flows: &[Flow],
) {
    put_varint(buffer, operations.len() as u64);
    for (index, (kind, outcome)) in operations.enumerate() {
        let own = flows.iter().take_while(|flow| usize::from(flow.operation) == index).count();
        let (own, rest) = flows.split_at(own);
        flows = rest;
        put_operation(buffer, kind, outcome, own);
    }
}

fn put_operation(buffer: &mut Vec<u8>, kind: OperationKind, outcome: &OperationOutcome, flows: &[Flow]) {
    buffer.push(kind_number(kind));
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let count = u64::from(outcome.count);
    let flows_flag = match flows {
        [] => 0,
        [flow] if (flow.added, flow.removed) == (count, 0) => COUNT_IS_ADDED,
        [flow] if (flow.added, flow.removed) == (0, count) => COUNT_IS_REMOVED,
        _ => HAS_FLOWS,
    };
    buffer.push(flag(outcome.remainder != 0, HAS_REMAINDER) | flag(outcome.stack.is_some(), HAS_STACK) | flows_flag);
    put_varint(buffer, count);
    if outcome.remainder != 0 {
        put_varint(buffer, u64::from(outcome.remainder));
    }
    if let Some(stack) = &outcome.stack {
        put_stack(buffer, stack);
    }
    if flows_flag == HAS_FLOWS {
        put_varint(buffer, flows.len() as u64);
    }
    for flow in flows {
        put_varint(buffer, u64::from(flow.item.get()));
        if flows_flag == HAS_FLOWS {
            put_varint(buffer, flow.added);
            put_varint(buffer, flow.removed);
        }
    }
}

pub fn read_operations(reader: &mut Reader<'_>) -> Result<(Vec<LoggedOperation>, Vec<Flow>), Malformed> {
    let count = reader.count()?;
    if count > OPERATIONS_MAX {
        return Err(Malformed::new("a mutation has too many operations"));
    }
    let (mut operations, mut flows) = (Vec::with_capacity(count), Vec::new());
    for index in 0..count as u8 {
        operations.push(read_operation(reader, index, &mut flows)?);
    }
    Ok((operations, flows))
}

fn read_operation(reader: &mut Reader<'_>, index: u8, flows: &mut Vec<Flow>) -> Result<LoggedOperation, Malformed> {
    let kind = kind_from_number(reader.u8()?)?;
    let flags = reader.u8()?;
    if flags & !FLAGS != 0 {
        return Err(Malformed::new("an operation has unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let count = reader.varint_u32()?;
    let remainder = if has(HAS_REMAINDER) { reader.varint_u32()? } else { 0 };
    let stack = if has(HAS_STACK) { Some(read_stack(reader)?) } else { None };
    if has(COUNT_IS_ADDED) || has(COUNT_IS_REMOVED) {
        let part = |is_set: bool| if is_set { u64::from(count) } else { 0 };
        let (added, removed) = (part(has(COUNT_IS_ADDED)), part(has(COUNT_IS_REMOVED)));
        flows.push(Flow { operation: index, item: read_item(reader)?, added, removed });
    }
    if has(HAS_FLOWS) {
        for _ in 0..reader.count()? {
            let (item, added, removed) = (read_item(reader)?, reader.varint()?, reader.varint()?);
            flows.push(Flow { operation: index, item, added, removed });
        }
    }
    Ok(LoggedOperation { kind, outcome: OperationOutcome { count, remainder, stack } })
}

#[cfg(test)]
pub mod samples {
    use super::super::stack::samples::stack;
    use super::*;
    use crate::domain::ItemCode;
    use proptest::prelude::*;

    pub fn operations() -> impl Strategy<Value = (Vec<LoggedOperation>, Vec<Flow>)> {
        let amount = || prop_oneof![Just(0), 1..100_u64, any::<u64>()];
        let flow = || (1..=u32::MAX, amount(), amount());
        let outcome = (any::<u32>(), prop_oneof![Just(0), any::<u32>()], prop::option::of(stack()));
        let operation = (0..OperationKind::ALL.len(), outcome, prop::collection::vec(flow(), 0..3), any::<bool>());
        prop::collection::vec(operation, 0..5).prop_map(|operations| {
            let mut flows = Vec::new();
            let operations = operations.into_iter().enumerate().map(|(index, (kind, outcome, own, is_count))| {
                let (count, remainder, stack) = outcome;
                for (item, added, removed) in own {
                    // As many as the outcome's count, in many cases.
                    let added = if is_count { u64::from(count) } else { added };
                    let removed = if is_count && removed % 2 == 0 { 0 } else { removed };
                    flows.push(Flow { operation: index as u8, item: ItemCode::new(item).unwrap(), added, removed });
                }
                LoggedOperation {
                    kind: OperationKind::ALL[kind],
                    outcome: OperationOutcome { count, remainder, stack },
                }
            });
            let operations = operations.collect();
            (operations, flows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn operations_and_their_flows_are_read_as_written((operations, flows) in samples::operations()) {
            let mut buffer = Vec::new();
            put_operations(&mut buffer, operations.iter().map(|operation| (operation.kind, &operation.outcome)), &flows);
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(read_operations(&mut reader), Ok((operations, flows)));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn each_kind_has_a_number_of_its_own() {
        for kind in OperationKind::ALL {
            assert_eq!(kind_from_number(kind_number(kind)), Ok(kind));
        }
        assert!(kind_from_number(0).is_err());
    }
}
