//! The stored form of a record: one mutation with its key, its context, its operations and its entries.
//!
//! A record begins with a byte of flags. Caller, reason and session are indexes in the tables of the batch ([`super::batch`]).

use super::Malformed;
use super::bytes::{Reader, invalid_name, put_bytes, put_varint};
use super::entry::{ChangeRef, Checkpoint, put_changed, put_entry, put_named, read_entry};
use super::heads::ChainHeads;
use super::operation::{put_operations, read_operations};
use crate::domain::{Caller, Fingerprint, IdempotencyKey, PredictionOutcome, SessionId, Transition};
use crate::store::log::{LogRecord, Position};
use crate::store::{HeadBefore, MutationRecord};
use std::sync::Arc;
use uuid::Uuid;

/// The key is a UUID in lower case: 16 bytes.
const KEY_IS_UUID: u8 = 1;
/// The key is another text.
const KEY_IS_TEXT: u8 = 2;
const HAS_REASON: u8 = 4;
const HAS_SESSION: u8 = 8;
const CONFIRMED: u8 = 16;
const MISPREDICTED: u8 = 32;
const CORRECTION: u8 = 48;
const PREDICTION: u8 = 48;
/// The record was committed later than the batch's time.
const HAS_TIME: u8 = 64;
const FLAGS: u8 = 127;

/// The indexes of a record's caller, reason and session in the tables of its batch.
#[derive(Debug, Clone, Copy)]
pub struct TableIndexes {
    pub caller: u32,
    pub reason: Option<u32>,
    pub session: Option<u32>,
}

/// The texts of a batch, which its records refer to.
#[derive(Debug, Clone, Default)]
pub struct Tables<'a> {
    pub callers: Vec<&'a str>,
    pub reasons: Vec<&'a str>,
    pub sessions: Vec<&'a str>,
}

/// The part of a record before its operations.
struct RecordHeader<'a> {
    indexes: TableIndexes,
    /// How much later than the batch's time the record was committed, in milliseconds.
    time_offset_ms: u64,
    key: Option<&'a IdempotencyKey>,
    payload: Fingerprint,
    prediction: PredictionOutcome,
}

/// Appends the record of a mutation that is about to be committed at `position`, and adds the new heads of its changed
/// inventories to `heads`.
pub fn put_mutation<'a>(
    buffer: &mut Vec<u8>,
    indexes: TableIndexes,
    position: Position,
    mutation: &'a MutationRecord,
    heads: &mut ChainHeads<'a>,
) {
    let MutationRecord { key, payload, prediction, operations, flows, reply, touched, .. } = mutation;
    let key = Some(&key.key);
    put_head(buffer, &RecordHeader { indexes, time_offset_ms: 0, key, payload: *payload, prediction: *prediction });
    put_operations(buffer, operations.iter().copied().zip(&reply.outcomes), flows);
    put_varint(buffer, touched.len() as u64);
    for (index, inventory) in touched.iter().enumerate() {
        let version = &inventory.version;
        let before = mutation.heads.get(index).copied().unwrap_or(HeadBefore::Unknown);
        let head = heads.before(&version.id, before);
        let change = match inventory.transition() {
            Transition::Unchanged => {
                put_named(buffer, version);
                continue;
            }
            Transition::Updated { before, after } => {
                let edits = inventory.edits.iter();
                let edits = edits.map(|(slot, after)| (*slot, before.contents.stack(*slot), after.as_ref()));
                let change = ChangeRef::Edited { edits, checkpoint: Checkpoint::IfDue(after) };
                heads.push(&version.id, put_changed(buffer, position, head, version, change));
                continue;
            }
            Transition::Created { after } => ChangeRef::Created { after },
            Transition::Deleted { before } => ChangeRef::Deleted { before },
            Transition::Recreated { before, after } => ChangeRef::Recreated { before, after },
        };
        heads.push(&version.id, put_changed::<std::iter::Empty<_>>(buffer, position, head, version, change));
    }
}

/// Appends a record that was read before. `base_ms` is the time of its batch.
pub fn put_record(buffer: &mut Vec<u8>, indexes: TableIndexes, base_ms: u64, record: &LogRecord) {
    let LogRecord { position, time_ms, key, payload, prediction, operations, flows, entries, .. } = record;
    let time_offset_ms = time_ms.saturating_sub(base_ms);
    let key = key.as_ref();
    put_head(buffer, &RecordHeader { indexes, time_offset_ms, key, payload: *payload, prediction: *prediction });
    put_operations(buffer, operations.iter().map(|operation| (operation.kind, &operation.outcome)), flows);
    put_varint(buffer, entries.len() as u64);
    entries.iter().for_each(|entry| put_entry(buffer, *position, entry));
}

fn put_head(buffer: &mut Vec<u8>, head: &RecordHeader<'_>) {
    let RecordHeader { indexes: TableIndexes { caller, reason, session }, time_offset_ms, key, payload, prediction } =
        head;
    let (flags_at, mut flags) = (buffer.len(), prediction_flags(*prediction));
    buffer.push(0);
    put_varint(buffer, u64::from(*caller));
    for (index, flag) in [(reason, HAS_REASON), (session, HAS_SESSION)] {
        if let Some(index) = index {
            flags |= flag;
            put_varint(buffer, u64::from(*index));
        }
    }
    if *time_offset_ms != 0 {
        flags |= HAS_TIME;
        put_varint(buffer, *time_offset_ms);
    }
    match key.map(|key| (canonical_uuid(key.as_str()), key)) {
        Some((Some(uuid), _)) => {
            flags |= KEY_IS_UUID;
            buffer.extend_from_slice(uuid.as_bytes());
        }
        Some((None, key)) => {
            flags |= KEY_IS_TEXT;
            put_bytes(buffer, key.as_str().as_bytes());
        }
        None => {}
    }
    buffer.extend_from_slice(&payload.0.to_le_bytes());
    buffer[flags_at] = flags;
}

/// Reads a whole record.
pub fn read_record(
    bytes: &[u8],
    tables: &Tables<'_>,
    base_ms: u64,
    position: Position,
) -> Result<LogRecord, Malformed> {
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    let payload = Fingerprint(reader.u64()?);
    let (operations, flows) = read_operations(&mut reader)?;
    let entries = (0..reader.count()?).map(|_| read_entry(&mut reader, position)).collect::<Result<_, _>>()?;
    reader.end()?;
    let reason = head.indexes.reason.map_or(Ok(""), |index| text(&tables.reasons, index))?;
    let session = head.indexes.session.map(|index| text(&tables.sessions, index)).transpose()?;
    Ok(LogRecord {
        position,
        time_ms: base_ms.checked_add(head.time_offset_ms).ok_or_else(|| Malformed::new("a time is too late"))?,
        caller: Caller::new(text(&tables.callers, head.indexes.caller)?).map_err(invalid_name)?,
        key: head.key,
        payload,
        reason: Arc::from(reason),
        session: session.map(SessionId::new).transpose().map_err(invalid_name)?,
        prediction: prediction(head.flags),
        operations,
        flows,
        entries,
    })
}

/// Reads only the caller and the key of a record.
pub fn read_key(bytes: &[u8], tables: &Tables<'_>) -> Result<(Caller, Option<IdempotencyKey>), Malformed> {
    let head = read_head(&mut Reader::new(bytes))?;
    Ok((Caller::new(text(&tables.callers, head.indexes.caller)?).map_err(invalid_name)?, head.key))
}

struct ReadHead {
    flags: u8,
    indexes: TableIndexes,
    time_offset_ms: u64,
    key: Option<IdempotencyKey>,
}

fn read_head(reader: &mut Reader<'_>) -> Result<ReadHead, Malformed> {
    let flags = reader.u8()?;
    if flags & !FLAGS != 0 {
        return Err(Malformed::new("a record has unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let caller = reader.varint_u32()?;
    let reason = if has(HAS_REASON) { Some(reader.varint_u32()?) } else { None };
    let session = if has(HAS_SESSION) { Some(reader.varint_u32()?) } else { None };
    let time_offset_ms = if has(HAS_TIME) { reader.varint()? } else { 0 };
    let key = if has(KEY_IS_UUID) {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::from_bytes(reader.array()?).hyphenated().encode_lower(&mut text);
        Some(IdempotencyKey::new(text).map_err(invalid_name)?)
    } else if has(KEY_IS_TEXT) {
        Some(reader.name(IdempotencyKey::new)?)
    } else {
        None
    };
    Ok(ReadHead { flags, indexes: TableIndexes { caller, reason, session }, time_offset_ms, key })
}

fn text<'a>(table: &[&'a str], index: u32) -> Result<&'a str, Malformed> {
    table.get(index as usize).copied().ok_or_else(|| Malformed::new("a record refers to a text that its batch lacks"))
}

fn prediction_flags(outcome: PredictionOutcome) -> u8 {
    match outcome {
        PredictionOutcome::Unpredicted => 0,
        PredictionOutcome::Confirmed => CONFIRMED,
        PredictionOutcome::Mispredicted => MISPREDICTED,
        PredictionOutcome::Correction => CORRECTION,
    }
}

fn prediction(flags: u8) -> PredictionOutcome {
    match flags & PREDICTION {
        CONFIRMED => PredictionOutcome::Confirmed,
        MISPREDICTED => PredictionOutcome::Mispredicted,
        CORRECTION => PredictionOutcome::Correction,
        _ => PredictionOutcome::Unpredicted,
    }
}

/// Parses a UUID in its canonical form, with hyphens and in lower case; `None` for any other text, which would not be
/// restored as it was.
fn canonical_uuid(text: &str) -> Option<Uuid> {
    let is_canonical = text.len() == UUID_LEN && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if is_canonical { Uuid::try_parse(text).ok() } else { None }
}

/// Length of a UUID with hyphens; other forms have other lengths.
const UUID_LEN: usize = 36;
