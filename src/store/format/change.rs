//! The stored form of batches, records and changes.

use super::contents::{read_contents, read_stacks, stored_contents, write_stacks};
use super::stored::StoredChangeKind;
use super::{Malformed, stored, verify_checksum, with_checksum};
use crate::domain::ids::NameError;
use crate::domain::{
    Caller, Change, Digest, Epoch, Fingerprint, IdempotencyKey, Inventory, InventoryId, LayoutId, OperationOutcome,
    PlayerId, Revision, Slot, Version,
};
use crate::store::{MutationRecord, Reply, ScopedKey};
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
    batch: stored::Batch,
    callers: HashMap<Caller, u32>,
}

impl BatchEncoder {
    pub fn new(BatchTime { uptime_ms, unix_ms }: BatchTime) -> Self {
        Self { batch: stored::Batch { uptime_ms, unix_ms, ..Default::default() }, callers: HashMap::new() }
    }

    pub fn push(&mut self, mutation: &MutationRecord) {
        let caller = match self.callers.get(&mutation.key.caller) {
            Some(index) => *index,
            None => {
                let next = self.batch.callers.len() as u32;
                self.batch.callers.push(mutation.key.caller.as_str().to_owned());
                self.callers.insert(mutation.key.caller.clone(), next);
                next
            }
        };
        let (uuid_high, uuid_low, key) = match uuid_halves(mutation.key.key.as_str()) {
            Some((high, low)) => (high, low, String::new()),
            None => (0, 0, mutation.key.key.as_str().to_owned()),
        };
        let versions = &mutation.reply.versions;
        let changes = mutation.touched.iter().flat_map(|touched| &touched.changes);
        self.batch.records.push(stored::Record {
            caller,
            uuid_high,
            uuid_low,
            key,
            payload: mutation.payload.0,
            outcomes: mutation.reply.outcomes.iter().map(write_outcome).collect(),
            versions: versions.iter().map(write_version).collect(),
            changes: changes.map(|change| write_change(change, versions)).collect(),
        });
    }

    /// Encodes the batch with its checksum.
    pub fn finish(self) -> Vec<u8> {
        with_checksum(&self.batch)
    }
}

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

fn write_outcome(outcome: &OperationOutcome) -> stored::Outcome {
    let stack = outcome.stack.as_ref().map(|stack| write_stacks(std::iter::once((Slot(0), Some(stack)))));
    stored::Outcome { count: outcome.count, remainder: outcome.remainder, stack }
}

fn write_version(version: &Version) -> stored::Version {
    stored::Version {
        id: version.id.as_str().to_owned(),
        epoch: version.epoch.get(),
        revision: version.revision.0,
        digest_a: version.digest.a,
        digest_b: version.digest.b,
    }
}

fn write_change(change: &Change, versions: &[Version]) -> stored::Change {
    let (kind, id, epoch, revision) = match change {
        Change::Created(created) => {
            let created = stored::Inventory {
                id: created.id.as_str().to_owned(),
                owner: created.owner.as_ref().map(|owner| owner.as_str().to_owned()),
                layout: created.layout.as_str().to_owned(),
                epoch: created.epoch.get(),
                contents: Some(stored_contents(&created.contents)),
            };
            return stored::Change {
                kind: StoredChangeKind::Created as i32,
                created: Some(created),
                ..stored::Change::default()
            };
        }
        Change::Updated { id, epoch, revision, .. } => (StoredChangeKind::Updated, id, *epoch, *revision),
        Change::Deleted { id, epoch, revision } => (StoredChangeKind::Deleted, id, *epoch, *revision),
    };
    let mut stored = stored::Change { kind: kind as i32, ..stored::Change::default() };
    let is_same = |version: &Version| version.id == *id && version.epoch == epoch && version.revision == revision;
    match versions.iter().position(is_same) {
        Some(index) => stored.version = index as u32 + 1,
        None => {
            (stored.id, stored.epoch, stored.revision) = (id.as_str().to_owned(), epoch.get(), revision.0);
        }
    }
    if let Change::Updated { edits, .. } = change {
        stored.edits = Some(write_stacks(edits.iter().map(|(slot, stack)| (*slot, stack.as_ref()))));
    }
    stored
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

/// Returns the two halves of a UUID in its canonical form, with hyphens and in lower case; `None` for any other text,
/// which would not be restored as it was.
fn uuid_halves(text: &str) -> Option<(u64, u64)> {
    let uuid = Uuid::try_parse(text).ok()?;
    let is_canonical = uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text;
    is_canonical.then(|| uuid.as_u64_pair())
}
