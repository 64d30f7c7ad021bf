//! Encodes the records of a batch straight into a buffer, byte for byte as `prost` encodes the messages of [`stored`].
//!
//! Building those messages first would copy each id and allocate each column. Fields are written in the order of their
//! numbers, and a field with its default value is left out.

use super::contents::stored_contents;
use super::stored::{self, StoredChangeKind};
use crate::domain::{Change, OperationOutcome, Slot, Stack, Version};
use crate::store::MutationRecord;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use uuid::Uuid;

/// Number of the field of a batch that has its records.
const BATCH_RECORDS: u32 = 3;

/// Appends one record of a batch. `caller` is the index of its caller in the batch.
pub fn put_record(buffer: &mut Vec<u8>, caller: u32, mutation: &MutationRecord) {
    let versions = &mutation.reply.versions;
    put_message(buffer, BATCH_RECORDS, |buffer| {
        put_varint(buffer, 1, u64::from(caller));
        match uuid_halves(mutation.key.key.as_str()) {
            Some((high, low)) => {
                put_fixed64(buffer, 2, high);
                put_fixed64(buffer, 3, low);
            }
            None => put_text(buffer, 4, mutation.key.key.as_str()),
        }
        put_fixed64(buffer, 5, mutation.payload.0);
        for outcome in &mutation.reply.outcomes {
            put_message(buffer, 6, |buffer| put_outcome(buffer, outcome));
        }
        for version in versions {
            put_message(buffer, 7, |buffer| put_version(buffer, version));
        }
        for change in mutation.touched.iter().flat_map(|touched| &touched.changes) {
            put_message(buffer, 8, |buffer| put_change(buffer, change, versions));
        }
    });
}

fn put_outcome(buffer: &mut Vec<u8>, outcome: &OperationOutcome) {
    put_varint(buffer, 1, u64::from(outcome.count));
    put_varint(buffer, 2, u64::from(outcome.remainder));
    if let Some(stack) = &outcome.stack {
        put_message(buffer, 3, |buffer| put_stacks(buffer, || std::iter::once((Slot(0), Some(stack)))));
    }
}

fn put_version(buffer: &mut Vec<u8>, version: &Version) {
    put_text(buffer, 1, version.id.as_str());
    put_fixed32(buffer, 2, version.epoch.get());
    put_varint(buffer, 3, version.revision.0);
    put_fixed32(buffer, 4, version.digest.a);
    put_fixed32(buffer, 5, version.digest.b);
}

fn put_change(buffer: &mut Vec<u8>, change: &Change, versions: &[Version]) {
    let (kind, id, epoch, revision) = match change {
        Change::Created(created) => {
            let created = stored::Inventory {
                id: created.id.as_str().to_owned(),
                owner: created.owner.as_ref().map(|owner| owner.as_str().to_owned()),
                layout: created.layout.as_str().to_owned(),
                epoch: created.epoch.get(),
                contents: Some(stored_contents(&created.contents)),
            };
            put_varint(buffer, 1, StoredChangeKind::Created as u64);
            put_message(buffer, 7, |buffer| created.encode_raw(buffer));
            return;
        }
        Change::Updated { id, epoch, revision, .. } => (StoredChangeKind::Updated, id, *epoch, *revision),
        Change::Deleted { id, epoch, revision } => (StoredChangeKind::Deleted, id, *epoch, *revision),
    };
    put_varint(buffer, 1, kind as u64);
    let is_same = |version: &Version| version.revision == revision && version.epoch == epoch && version.id == *id;
    match versions.iter().position(is_same) {
        Some(index) => put_varint(buffer, 2, index as u64 + 1),
        None => {
            put_text(buffer, 3, id.as_str());
            put_fixed32(buffer, 4, epoch.get());
            put_varint(buffer, 5, revision.0);
        }
    }
    if let Change::Updated { edits, .. } = change {
        let stacks = || edits.iter().map(|(slot, stack)| (*slot, stack.as_ref()));
        put_message(buffer, 6, |buffer| put_stacks(buffer, stacks));
    }
}

/// Appends the columns of stacks; `stacks` is called once for each column.
fn put_stacks<'a, I: Iterator<Item = (Slot, Option<&'a Stack>)>>(buffer: &mut Vec<u8>, stacks: impl Fn() -> I) {
    let attributed = || stacks().enumerate().filter_map(|(row, (_, stack))| Some((row, &stack?.attributes)));
    let attributed = || attributed().filter(|(_, attributes)| !attributes.is_none());
    put_packed(buffer, 1, stacks().map(|(slot, _)| u64::from(slot.0)));
    put_packed(buffer, 2, stacks().map(|(_, stack)| stack.map_or(0, |stack| u64::from(stack.item.get()))));
    put_packed(buffer, 3, stacks().map(|(_, stack)| stack.map_or(0, |stack| u64::from(stack.count.get()))));
    put_packed(buffer, 4, attributed().map(|(row, _)| row as u64));
    for (_, attributes) in attributed() {
        put_bytes(buffer, 5, attributes.as_bytes());
    }
}

/// Appends a message, whose fields `write` appends.
pub fn put_message(buffer: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>)) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    put_length_delimited(buffer, write);
}

/// Appends an unsigned number or an enumeration, if it is not 0.
pub fn put_varint(buffer: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, buffer);
        encode_varint(value, buffer);
    }
}

/// Appends bytes, even if there are none, as an element of a repeated field.
pub fn put_bytes(buffer: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.extend_from_slice(bytes);
}

fn put_text(buffer: &mut Vec<u8>, tag: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(buffer, tag, text.as_bytes());
    }
}

fn put_fixed32(buffer: &mut Vec<u8>, tag: u32, value: u32) {
    if value != 0 {
        encode_key(tag, WireType::ThirtyTwoBit, buffer);
        buffer.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_fixed64(buffer: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::SixtyFourBit, buffer);
        buffer.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_packed(buffer: &mut Vec<u8>, tag: u32, values: impl Iterator<Item = u64>) {
    let mut values = values.peekable();
    if values.peek().is_some() {
        encode_key(tag, WireType::LengthDelimited, buffer);
        put_length_delimited(buffer, |buffer| values.for_each(|value| encode_varint(value, buffer)));
    }
}

/// Appends what `write` appends, preceded by its length. Most lengths take one byte; for a longer one, the bytes after
/// it are moved.
fn put_length_delimited(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.push(0);
    write(buffer);
    let length = buffer.len() - start - 1;
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => buffer[start] = short,
        Ok(_) | Err(_) => {
            let end = buffer.len();
            encode_varint(length as u64, buffer);
            let varint_len = buffer.len() - end;
            // Bring the length in front of what was written, over the byte that was kept free.
            buffer[start..].rotate_right(varint_len);
            buffer.remove(start + varint_len);
        }
    }
}

/// Returns the two halves of a UUID in its canonical form, with hyphens and in lower case; `None` for any other text,
/// which would not be restored as it was.
fn uuid_halves(text: &str) -> Option<(u64, u64)> {
    let uuid = Uuid::try_parse(text).ok()?;
    let is_canonical = uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text;
    is_canonical.then(|| uuid.as_u64_pair())
}

#[cfg(test)]
mod tests {
    use super::super::{BatchEncoder, BatchTime, decode_batch, verify_checksum};
    use super::*;
    use crate::domain::{
        Attributes, Caller, Contents, Count, Digest, Edit, Epoch, Fingerprint, IdempotencyKey, Inventory, InventoryId,
        ItemCode, LayoutId, PlayerId, Revision, TouchedInventory,
    };
    use crate::store::{Reply, ScopedKey};
    use fastrand::Rng;
    use std::sync::Arc;

    /// Returns a number of a random length in bits.
    fn number(random: &mut Rng) -> u64 {
        random.u64(..) >> random.u32(..64)
    }

    fn stack(random: &mut Rng) -> Stack {
        let length = if random.bool() { 0 } else { random.usize(..200) };
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let (item, count) = ((number(random) as u32).max(1), (number(random) as u32).max(1));
        let attributes = Attributes::new(&bytes).unwrap();
        Stack { item: ItemCode::new(item).unwrap(), count: Count::new(count).unwrap(), attributes }
    }

    fn edits(random: &mut Rng) -> Vec<Edit> {
        (0..random.u16(..40)).map(|slot| (Slot(slot * 20), random.bool().then(|| stack(random)))).collect()
    }

    fn version(random: &mut Rng) -> Version {
        let id = InventoryId::new(&"i".repeat(random.usize(1..=128))).unwrap();
        let epoch = Epoch::new((number(random) as u32).max(1)).unwrap();
        let digest = Digest { a: number(random) as u32, b: number(random) as u32 };
        Version { id, epoch, revision: Revision(number(random)), digest }
    }

    fn change(random: &mut Rng, Version { id, epoch, revision, .. }: Version) -> Change {
        match random.u8(..3) {
            0 => Change::Updated { id, epoch, revision, edits: edits(random) },
            1 => Change::Deleted { id, epoch, revision },
            _ => {
                let owner = random.bool().then(|| PlayerId::new("ann").unwrap());
                let layout = LayoutId::new("chest").unwrap();
                let contents = Contents::new(800, revision, &edits(random));
                Change::Created(Arc::new(Inventory { id, owner, layout, epoch, contents }))
            }
        }
    }

    fn record(random: &mut Rng) -> MutationRecord {
        let key = match random.u8(..3) {
            0 => "k".repeat(random.usize(1..=255)),
            1 => Uuid::from_u64_pair(number(random), number(random)).to_string(),
            _ => Uuid::from_u64_pair(number(random), number(random)).to_string().to_uppercase(),
        };
        let caller = Caller::new(["server-1", "server-2", "c"][random.usize(..3)]).unwrap();
        let versions: Vec<Version> = (0..random.usize(..4)).map(|_| version(random)).collect();
        let outcome = |random: &mut Rng| OperationOutcome {
            count: number(random) as u32,
            remainder: if random.bool() { 0 } else { number(random) as u32 },
            stack: random.bool().then(|| stack(random)),
        };
        let mut touched = Vec::new();
        for known in &versions {
            // A change of another version is stored with its id.
            let changed = if random.u8(..4) == 0 { version(random) } else { known.clone() };
            let changes = (0..random.usize(..3)).map(|_| change(random, changed.clone())).collect();
            touched.push(TouchedInventory { version: known.clone(), state: None, changes });
        }
        let outcomes = (0..random.usize(..4)).map(|_| outcome(random)).collect();
        MutationRecord {
            key: ScopedKey { caller, key: IdempotencyKey::new(&key).unwrap() },
            payload: Fingerprint(number(random)),
            reply: Reply { outcomes, versions },
            touched,
        }
    }

    #[test]
    fn records_are_encoded_as_prost_encodes_their_messages() {
        for seed in 0..300 {
            let mut random = Rng::with_seed(seed);
            let records: Vec<MutationRecord> = (0..random.usize(..6)).map(|_| record(&mut random)).collect();
            let time = BatchTime { uptime_ms: number(&mut random), unix_ms: number(&mut random) };
            let mut encoder = BatchEncoder::new(time, records.len());
            records.iter().for_each(|record| encoder.push(record));
            let encoded = encoder.finish();

            let message = verify_checksum(&encoded).unwrap();
            let batch = stored::Batch::decode(message).unwrap();
            assert_eq!(batch.encode_to_vec(), message);
            let (decoded_time, decoded) = decode_batch(&encoded).unwrap();
            assert_eq!((decoded_time, decoded.len()), (time, records.len()));
            for (decoded, record) in decoded.iter().zip(&records) {
                assert_eq!((&decoded.key, decoded.payload), (&record.key, record.payload));
                assert_eq!(decoded.reply, record.reply);
                let changes: Vec<Change> =
                    record.touched.iter().flat_map(|touched| touched.changes.iter().cloned()).collect();
                assert_eq!(decoded.changes, changes);
            }
        }
    }
}
