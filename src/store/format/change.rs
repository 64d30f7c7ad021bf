//! The stored form of batches, records and changes.

use super::contents::{read_contents, read_stacks};
use super::stored::StoredChangeKind;
use super::{Malformed, encode, stored, verify_checksum, with_checksum_of};
use crate::domain::ids::NameError;
use crate::domain::{
    Caller, Change, Digest, Epoch, Fingerprint, IdempotencyKey, Inventory, InventoryId, LayoutId, OperationOutcome,
    PlayerId, Revision, Version,
};
use crate::store::{MutationRecord, Reply, ScopedKey};
use foldhash::fast::RandomState;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// A decoded record of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedRecord {
    pub key: ScopedKey,
    pub payload: Fingerprint,
    pub reply: Reply,
    pub changes: Vec<Change>,
}

/// When a batch was received, by two clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTime {
    /// The store's own clock: how long it has been open in total, in milliseconds.
    pub uptime_ms: u64,
    /// The wall clock, in milliseconds since the Unix epoch. It may have been wrong.
    pub unix_ms: u64,
}

/// Encodes the records of one batch.
#[derive(Debug, Default)]
pub struct BatchEncoder {
    time: BatchTime,
    /// Each caller once, in the order of their indexes.
    callers: Vec<Caller>,
    indexes: HashMap<Caller, u32, RandomState>,
    records: Vec<u8>,
}

impl BatchEncoder {
    pub fn new(time: BatchTime, mutations: usize) -> Self {
        Self { time, records: Vec::with_capacity(mutations * RECORD_BYTES_TYPICAL), ..Self::default() }
    }

    pub fn push(&mut self, mutation: &MutationRecord) {
        let caller = match self.indexes.get(&mutation.key.caller) {
            Some(index) => *index,
            None => {
                let next = self.callers.len() as u32;
                self.callers.push(mutation.key.caller.clone());
                self.indexes.insert(mutation.key.caller.clone(), next);
                next
            }
        };
        encode::put_record(&mut self.records, caller, mutation);
    }

    /// Encodes the batch with its checksum.
    pub fn finish(self) -> Vec<u8> {
        let Self { time: BatchTime { uptime_ms, unix_ms }, callers, records, .. } = self;
        with_checksum_of(records.len() + HEADER_BYTES_TYPICAL, |buffer| {
            encode::put_varint(buffer, 1, uptime_ms);
            callers.iter().for_each(|caller| encode::put_bytes(buffer, 2, caller.as_str().as_bytes()));
            buffer.extend_from_slice(&records);
            encode::put_varint(buffer, 4, unix_ms);
        })
    }
}

/// Typical size of the record of a change of one slot, in bytes.
const RECORD_BYTES_TYPICAL: usize = 128;
/// Typical size of a batch without its records, in bytes.
const HEADER_BYTES_TYPICAL: usize = 64;

/// Decodes the time and the records of an encoded batch.
pub fn decode_batch(encoded: &[u8]) -> Result<(BatchTime, Vec<DecodedRecord>), Malformed> {
    let batch = stored::Batch::decode(verify_checksum(encoded)?)?;
    let callers = read_callers(&batch.callers)?;
    let read = |record| read_record(record, &callers);
    let stored::Batch { uptime_ms, unix_ms, .. } = batch;
    Ok((BatchTime { uptime_ms, unix_ms }, batch.records.iter().map(read).collect::<Result<_, _>>()?))
}

/// Decodes only the time and the keys, which is several times faster than [`decode_batch`].
pub fn decode_keys(encoded: &[u8]) -> Result<(BatchTime, Vec<ScopedKey>), Malformed> {
    let batch = stored::BatchKeys::decode(verify_checksum(encoded)?)?;
    let callers = read_callers(&batch.callers)?;
    let read = |record: &stored::RecordKey| {
        read_key(record.caller, &callers, (record.uuid_high, record.uuid_low), &record.key)
    };
    let stored::BatchKeys { uptime_ms, unix_ms, .. } = batch;
    Ok((BatchTime { uptime_ms, unix_ms }, batch.records.iter().map(read).collect::<Result<_, _>>()?))
}

fn read_record(record: &stored::Record, callers: &[Caller]) -> Result<DecodedRecord, Malformed> {
    let key = read_key(record.caller, callers, (record.uuid_high, record.uuid_low), &record.key)?;
    let outcomes = record.outcomes.iter().map(read_outcome).collect::<Result<_, _>>()?;
    let versions: Vec<Version> = record.versions.iter().map(decode_version).collect::<Result<_, _>>()?;
    let changes = record.changes.iter().map(|change| read_change(change, &versions)).collect::<Result<_, _>>()?;
    Ok(DecodedRecord { key, payload: Fingerprint(record.payload), reply: Reply { outcomes, versions }, changes })
}

fn read_outcome(outcome: &stored::Outcome) -> Result<OperationOutcome, Malformed> {
    let stack = match &outcome.stack {
        None => None,
        Some(stacks) => read_stacks(stacks).next().transpose()?.and_then(|(_, stack)| stack),
    };
    Ok(OperationOutcome { count: outcome.count, remainder: outcome.remainder, stack })
}

fn decode_version(version: &stored::Version) -> Result<Version, Malformed> {
    Ok(Version {
        id: InventoryId::new(&version.id).map_err(invalid_name)?,
        epoch: read_epoch(version.epoch)?,
        revision: Revision(version.revision),
        digest: Digest { a: version.digest_a, b: version.digest_b },
    })
}

fn read_change(change: &stored::Change, versions: &[Version]) -> Result<Change, Malformed> {
    let kind = StoredChangeKind::try_from(change.kind).map_err(|_| Malformed::new("a change of an unknown kind"))?;
    if let Some(created) = change.created.as_ref().filter(|_| kind == StoredChangeKind::Created) {
        return Ok(Change::Created(Arc::new(read_inventory(created)?)));
    }
    let (id, epoch, revision) = match (change.version as usize).checked_sub(1) {
        None => {
            (InventoryId::new(&change.id).map_err(invalid_name)?, read_epoch(change.epoch)?, Revision(change.revision))
        }
        Some(index) => {
            let version = versions.get(index).ok_or_else(|| Malformed::new("a change without its version"))?;
            (version.id.clone(), version.epoch, version.revision)
        }
    };
    match kind {
        StoredChangeKind::Updated => {
            let edits = change.edits.iter().flat_map(read_stacks).collect::<Result<_, _>>()?;
            Ok(Change::Updated { id, epoch, revision, edits })
        }
        StoredChangeKind::Deleted => Ok(Change::Deleted { id, epoch, revision }),
        StoredChangeKind::Created => Err(Malformed::new("a creation without an inventory")),
    }
}

fn read_inventory(stored: &stored::Inventory) -> Result<Inventory, Malformed> {
    let contents = stored.contents.as_ref().ok_or_else(|| Malformed::new("an inventory without contents"))?;
    Ok(Inventory {
        id: InventoryId::new(&stored.id).map_err(invalid_name)?,
        owner: stored.owner.as_deref().map(PlayerId::new).transpose().map_err(invalid_name)?,
        layout: LayoutId::new(&stored.layout).map_err(invalid_name)?,
        epoch: read_epoch(stored.epoch)?,
        contents: read_contents(contents)?,
    })
}

fn read_callers(callers: &[String]) -> Result<Vec<Caller>, Malformed> {
    callers.iter().map(|caller| Caller::new(caller).map_err(invalid_name)).collect()
}

fn read_key(caller: u32, callers: &[Caller], uuid: (u64, u64), key: &str) -> Result<ScopedKey, Malformed> {
    let caller = callers.get(caller as usize).ok_or_else(|| Malformed::new("a record without its caller"))?.clone();
    let key = if key.is_empty() {
        IdempotencyKey::new(&Uuid::from_u64_pair(uuid.0, uuid.1).to_string())
    } else {
        IdempotencyKey::new(key)
    };
    Ok(ScopedKey { caller, key: key.map_err(invalid_name)? })
}

fn read_epoch(epoch: u32) -> Result<Epoch, Malformed> {
    Epoch::new(epoch).ok_or_else(|| Malformed::new("an epoch of 0"))
}

fn invalid_name(error: NameError) -> Malformed {
    Malformed(format!("a name {error}"))
}
