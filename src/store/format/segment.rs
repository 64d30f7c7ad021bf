//! The stored form of a segment's head: what its blocks contain, so that scans can pass over them, and their sums.

use super::bytes::{Reader, put_bytes, put_varint};
use super::operation::{kind_from_number, kind_number};
use super::stack::read_item;
use super::{Malformed, verify_checksum, with_checksum_of};
use crate::domain::{Caller, ItemCode, OperationKind};
use crate::store::log::{LogRecord, Position};
use crate::store::supply::{Amounts, SupplyTotals};
use std::collections::BTreeSet;

/// Version of the stored form of segment heads.
const VERSION: u8 = 1;
/// Maximum number of callers that a segment lists. A segment with more callers lists none, and each scan by caller reads it.
pub const CALLERS_MAX: usize = 1_024;

/// The head of a segment: a range of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The position of the first record, and of the last one.
    pub first: Position,
    pub last: Position,
    /// The times of the first and of the last record, in milliseconds since the Unix epoch.
    pub first_ms: u64,
    pub last_ms: u64,
    pub records: u64,
    pub blocks: u64,
    /// Size of the blocks, in bytes.
    pub bytes: u64,
    /// The callers of the records; `None` if they are more than [`CALLERS_MAX`].
    pub callers: Option<BTreeSet<Caller>>,
    /// The items in slots that the records changed.
    pub items: BTreeSet<ItemCode>,
    /// The kinds of the operations.
    pub kinds: BTreeSet<OperationKind>,
    /// The flows of the records.
    pub sums: SupplyTotals,
}

impl SegmentHeader {
    /// Begins a segment with its first record.
    pub fn new(first: &LogRecord) -> Self {
        Self {
            first: first.position,
            last: first.position,
            first_ms: first.time_ms,
            last_ms: first.time_ms,
            records: 0,
            blocks: 0,
            bytes: 0,
            callers: Some(BTreeSet::new()),
            items: BTreeSet::new(),
            kinds: BTreeSet::new(),
            sums: SupplyTotals::default(),
        }
    }

    /// Adds a record, which follows those before it.
    pub fn add_record(&mut self, record: &LogRecord) {
        (self.last, self.last_ms) = (record.position, record.time_ms);
        self.records += 1;
        self.sums.add_record(record);
        self.kinds.extend(record.operations.iter().map(|operation| operation.kind));
        self.items.extend(record.items());
        if let Some(callers) = self.callers.as_mut().filter(|callers| !callers.contains(&record.caller)) {
            callers.insert(record.caller.clone());
            if callers.len() > CALLERS_MAX {
                self.callers = None;
            }
        }
    }

    pub fn add_block(&mut self, bytes: usize) {
        self.blocks += 1;
        self.bytes += bytes as u64;
    }

    pub fn encode(&self) -> Vec<u8> {
        with_checksum_of(256, |buffer| {
            buffer.push(VERSION);
            let numbers = [self.first.get(), self.last.get(), self.first_ms, self.last_ms];
            numbers
                .into_iter()
                .chain([self.records, self.blocks, self.bytes])
                .for_each(|number| put_varint(buffer, number));
            buffer.push(u8::from(self.callers.is_some()));
            if let Some(callers) = &self.callers {
                put_varint(buffer, callers.len() as u64);
                callers.iter().for_each(|caller| put_bytes(buffer, caller.as_str().as_bytes()));
            }
            put_varint(buffer, self.items.len() as u64);
            self.items.iter().for_each(|item| put_varint(buffer, u64::from(item.get())));
            put_varint(buffer, self.kinds.len() as u64);
            buffer.extend(self.kinds.iter().map(|kind| kind_number(*kind)));
            put_totals(buffer, &self.sums);
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(verify_checksum(bytes)?);
        match reader.u8()? {
            VERSION => {}
            version => {
                return Err(Malformed(format!(
                    "segment version {version} is not supported (supported: {VERSION}); use a newer version of Slotcast"
                )));
            }
        }
        let (first, last) = (Position::from_u64(reader.varint()?), Position::from_u64(reader.varint()?));
        let (first_ms, last_ms) = (reader.varint()?, reader.varint()?);
        let (records, blocks, bytes) = (reader.varint()?, reader.varint()?, reader.varint()?);
        let callers = match reader.u8()? {
            0 => None,
            _ => Some((0..reader.count()?).map(|_| reader.name(Caller::new)).collect::<Result<_, _>>()?),
        };
        let items = (0..reader.count()?).map(|_| read_item(&mut reader)).collect::<Result<_, _>>()?;
        let kinds = (0..reader.count()?).map(|_| kind_from_number(reader.u8()?)).collect::<Result<_, _>>()?;
        let sums = read_totals(&mut reader)?;
        reader.end()?;
        Ok(Self { first, last, first_ms, last_ms, records, blocks, bytes, callers, items, kinds, sums })
    }
}

fn put_totals(buffer: &mut Vec<u8>, totals: &SupplyTotals) {
    let sorted = totals.sorted();
    put_varint(buffer, sorted.len() as u64);
    for (item, kind, Amounts { added, removed }) in sorted {
        put_varint(buffer, u64::from(item.get()));
        buffer.push(kind_number(kind));
        for amount in [added, removed] {
            // Small amounts take few bytes: the upper half is nearly always 0.
            put_varint(buffer, amount as u64);
            put_varint(buffer, (amount >> 64) as u64);
        }
    }
}

fn read_totals(reader: &mut Reader<'_>) -> Result<SupplyTotals, Malformed> {
    let mut totals = SupplyTotals::default();
    for _ in 0..reader.count()? {
        let item = read_item(reader)?;
        let kind = kind_from_number(reader.u8()?)?;
        let mut amount = || Ok::<_, Malformed>(u128::from(reader.varint()?) | u128::from(reader.varint()?) << 64);
        totals.add(item, kind, Amounts { added: amount()?, removed: amount()? });
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> impl Strategy<Value = SegmentHeader> {
        let numbers = any::<[u64; 7]>();
        let callers = prop::option::of(prop::collection::btree_set("[a-z]{1,9}", 0..4));
        let item = || (1..=u32::MAX).prop_map(|code| ItemCode::new(code).unwrap());
        let kind = || (0..OperationKind::ALL.len()).prop_map(|index| OperationKind::ALL[index]);
        let sums = prop::collection::vec((item(), kind(), any::<u128>(), any::<u64>()), 0..5);
        let sets = (prop::collection::btree_set(item(), 0..5), prop::collection::btree_set(kind(), 0..5));
        (numbers, callers, sets, sums).prop_map(|(numbers, callers, (items, kinds), sums)| {
            let [first, last, first_ms, last_ms, records, blocks, bytes] = numbers;
            let mut totals = SupplyTotals::default();
            for (item, kind, added, removed) in sums {
                // Half as large, so that equal items do not overflow.
                totals.add(item, kind, Amounts { added: added / 8, removed: u128::from(removed) });
            }
            SegmentHeader {
                first: Position::from_u64(first),
                last: Position::from_u64(last),
                first_ms,
                last_ms,
                records,
                blocks,
                bytes,
                callers: callers.map(|callers| callers.iter().map(|name| Caller::new(name).unwrap()).collect()),
                items,
                kinds,
                sums: totals,
            }
        })
    }

    proptest! {
        #[test]
        fn a_segment_head_is_read_as_written(head in head()) {
            prop_assert_eq!(SegmentHeader::decode(&head.encode()), Ok(head));
        }
    }
}
