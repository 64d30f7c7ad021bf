//! The stored form of a batch: consecutive records of one writer. A journal row is a batch as it was committed; a sealed
//! block is a batch of about 8 KiB.
//!
//! A batch begins with the version of the format, the position of its first record, the number of records, and their times.
//! Then come the tables of the callers, reasons and sessions, each text once, and the records, each preceded by its length.

use super::bytes::{Reader, put_bytes, put_length_delimited, put_varint};
use super::heads::ChainHeads;
use super::record::{TableIndexes, Tables, put_mutation, put_record, read_key, read_record};
use super::{Malformed, verify_checksum, with_checksum_of};
use crate::domain::{Caller, SessionId};
use crate::store::log::{LogRecord, Position};
use crate::store::{MutationRecord, ScopedKey};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Version of the stored form of batches.
const VERSION: u8 = 1;
/// Typical size of the record of a change of one slot, in bytes.
const RECORD_BYTES_TYPICAL: usize = 112;
/// Typical size of a batch without its records, in bytes.
const HEADER_BYTES_TYPICAL: usize = 64;

/// When a batch was received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTime {
    /// The store's own clock: how long it has been open in total, in milliseconds. 0 in a block.
    pub uptime_ms: u64,
    /// The wall clock, in milliseconds since the Unix epoch. It may have been wrong.
    pub unix_ms: u64,
    /// The time of the records, in milliseconds since the Unix epoch: the wall clock, but not earlier than the time of the
    /// batch before.
    pub time_ms: u64,
}

/// Encodes the records of one batch.
#[derive(Debug, Default)]
pub struct BatchEncoder {
    first: Position,
    time: BatchTime,
    callers: TextTable<Caller>,
    reasons: TextTable<Arc<str>>,
    sessions: TextTable<SessionId>,
    count: u64,
    records: Vec<u8>,
}

impl BatchEncoder {
    /// Begins a batch whose first record is at `first`, with room for `records` records.
    pub fn new(first: Position, time: BatchTime, records: usize) -> Self {
        Self { first, time, records: Vec::with_capacity(records * RECORD_BYTES_TYPICAL), ..Self::default() }
    }

    /// Appends a mutation that is about to be committed, and adds the new heads of its changed inventories to `heads`.
    pub fn push<'a>(&mut self, mutation: &'a MutationRecord, heads: &mut ChainHeads<'a>) {
        let indexes = self.indexes(&mutation.key.caller, &mutation.reason, mutation.session.as_ref());
        let position = self.first.plus(self.count);
        put_length_delimited(&mut self.records, |buffer| put_mutation(buffer, indexes, position, mutation, heads));
        self.count += 1;
    }

    /// Appends a record that was read before; its position must follow that of the record before it.
    pub fn push_record(&mut self, record: &LogRecord) {
        let indexes = self.indexes(&record.caller, &record.reason, record.session.as_ref());
        let base_ms = self.time.time_ms;
        put_length_delimited(&mut self.records, |buffer| put_record(buffer, indexes, base_ms, record));
        self.count += 1;
    }

    /// The position of the first record.
    pub fn first(&self) -> Position {
        self.first
    }

    /// Size of the records so far, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Encodes the batch with its checksum.
    pub fn finish(self) -> Vec<u8> {
        with_checksum_of(self.records.len() + HEADER_BYTES_TYPICAL, |buffer| self.put(buffer))
    }

    /// Appends the batch without a checksum.
    pub fn put(&self, buffer: &mut Vec<u8>) {
        let BatchTime { uptime_ms, unix_ms, time_ms } = self.time;
        buffer.push(VERSION);
        buffer.extend_from_slice(&self.first.get().to_le_bytes());
        for number in [self.count, uptime_ms, unix_ms, time_ms.saturating_sub(unix_ms)] {
            put_varint(buffer, number);
        }
        put_table(buffer, self.callers.texts.iter().map(Caller::as_str));
        put_table(buffer, self.reasons.texts.iter().map(|reason| &**reason));
        put_table(buffer, self.sessions.texts.iter().map(SessionId::as_str));
        buffer.extend_from_slice(&self.records);
    }

    fn indexes(&mut self, caller: &Caller, reason: &Arc<str>, session: Option<&SessionId>) -> TableIndexes {
        TableIndexes {
            caller: self.callers.index(caller),
            reason: (!reason.is_empty()).then(|| self.reasons.index(reason)),
            session: session.map(|session| self.sessions.index(session)),
        }
    }
}

fn put_table<'a>(buffer: &mut Vec<u8>, texts: impl ExactSizeIterator<Item = &'a str>) {
    put_varint(buffer, texts.len() as u64);
    texts.for_each(|text| put_bytes(buffer, text.as_bytes()));
}

/// Texts, each once, in the order of their indexes.
#[derive(Debug)]
struct TextTable<T> {
    texts: Vec<T>,
    indexes: HashMap<T, u32, RandomState>,
}

impl<T> Default for TextTable<T> {
    fn default() -> Self {
        Self { texts: Vec::new(), indexes: HashMap::default() }
    }
}

impl<T: Clone + Eq + Hash> TextTable<T> {
    fn index(&mut self, text: &T) -> u32 {
        // Often all records have the same text.
        if self.texts.last() == Some(text) {
            return self.texts.len() as u32 - 1;
        }
        if let Some(index) = self.indexes.get(text) {
            return *index;
        }
        let index = self.texts.len() as u32;
        self.texts.push(text.clone());
        self.indexes.insert(text.clone(), index);
        index
    }
}

/// Reads the position of the first record from the beginning of a batch with a checksum, without verifying it.
pub fn first_position(start: &[u8]) -> Result<Position, Malformed> {
    let mut reader = Reader::new(start);
    let (_checksum, _version) = (reader.u32()?, reader.u8()?);
    reader.u64().map(Position::from_u64)
}

/// A batch whose header has been read.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    pub first: Position,
    pub count: u64,
    pub time: BatchTime,
    tables: Tables<'a>,
    records: Reader<'a>,
}

impl<'a> Batch<'a> {
    /// Reads the header of a batch with a checksum.
    pub fn parse_with_checksum(encoded: &'a [u8]) -> Result<Self, Malformed> {
        Self::parse(verify_checksum(encoded)?)
    }

    /// Reads the header of a batch without a checksum.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            VERSION => {}
            version => {
                return Err(Malformed(format!(
                    "batch version {version} is not supported (supported: {VERSION}); use a newer version of Slotcast"
                )));
            }
        }
        let first = Position::from_u64(reader.u64()?);
        let (count, uptime_ms, unix_ms, ahead_ms) =
            (reader.varint()?, reader.varint()?, reader.varint()?, reader.varint()?);
        let time_ms = unix_ms.checked_add(ahead_ms).ok_or_else(|| Malformed::new("a time is too late"))?;
        // Each record takes at least one byte.
        let end = first.get().checked_add(count).filter(|end| *end < 1 << 63);
        if end.is_none() || count > bytes.len() as u64 {
            return Err(Malformed::new("a position is too large"));
        }
        let mut table = || (0..reader.count()?).map(|_| reader.text()).collect::<Result<Vec<_>, Malformed>>();
        let tables = Tables { callers: table()?, reasons: table()?, sessions: table()? };
        Ok(Self { first, count, time: BatchTime { uptime_ms, unix_ms, time_ms }, tables, records: reader })
    }

    /// The position after the last record.
    pub fn end(&self) -> Position {
        self.first.plus(self.count)
    }

    /// Reads all records in order; the last item is an error if bytes follow the last record.
    pub fn records(&self) -> impl Iterator<Item = Result<LogRecord, Malformed>> {
        let read = |(index, bytes): (u64, Result<&[u8], Malformed>)| self.read(index, bytes?);
        (0..).zip(self.encoded()).map(read)
    }

    /// Reads the record at this position; `None` if it is not in the batch.
    pub fn record(&self, position: Position) -> Result<Option<LogRecord>, Malformed> {
        if position < self.first || position >= self.end() {
            return Ok(None);
        }
        let index = position.get() - self.first.get();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let bytes = self.encoded().nth(at).ok_or_else(|| Malformed::new("it ends too early"))??;
        self.read(index, bytes).map(Some)
    }

    /// Reads only the keys of the records, which is several times faster; `None` for a record without a key.
    pub fn keys(&self) -> impl Iterator<Item = Result<Option<ScopedKey>, Malformed>> {
        self.encoded().map(|bytes| {
            let (caller, key) = read_key(bytes?, &self.tables)?;
            Ok(key.map(|key| ScopedKey { caller, key }))
        })
    }

    fn read(&self, index: u64, bytes: &[u8]) -> Result<LogRecord, Malformed> {
        read_record(bytes, &self.tables, self.time.time_ms, self.first.plus(index))
    }

    /// Returns the bytes of each record.
    fn encoded(&self) -> impl Iterator<Item = Result<&'a [u8], Malformed>> {
        let (mut reader, count) = (self.records, self.count);
        let mut read = 0;
        std::iter::from_fn(move || {
            read += 1;
            match read.cmp(&(count + 1)) {
                std::cmp::Ordering::Less => Some(reader.bytes()),
                std::cmp::Ordering::Equal => reader.end().err().map(Err),
                std::cmp::Ordering::Greater => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::samples::{entry, position};
    use super::super::operation::samples::operations;
    use super::*;
    use crate::domain::{Fingerprint, IdempotencyKey, PredictionOutcome};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn key() -> impl Strategy<Value = Option<IdempotencyKey>> {
        let text = prop_oneof![
            "[ -~]{1,40}",
            any::<u128>().prop_map(|uuid| Uuid::from_u128(uuid).to_string()),
            any::<u128>().prop_map(|uuid| Uuid::from_u128(uuid).to_string().to_uppercase()),
            any::<u128>().prop_map(|uuid| Uuid::from_u128(uuid).simple().to_string()),
        ];
        prop::option::of(text.prop_map(|text| IdempotencyKey::new(&text).unwrap()))
    }

    fn record() -> impl Strategy<Value = LogRecord> {
        let prediction = prop_oneof![
            Just(PredictionOutcome::Unpredicted),
            Just(PredictionOutcome::Confirmed),
            Just(PredictionOutcome::Mispredicted),
            Just(PredictionOutcome::Correction),
        ];
        let head = (0..2_000_u64, "[ab]", key(), any::<u64>(), "[a-c]{0,2}", prop::option::of("[ab]"), prediction);
        (head, operations(), prop::collection::vec(entry(), 0..4)).prop_map(|(head, (operations, flows), entries)| {
            let (time_ms, caller, key, payload, reason, session, prediction) = head;
            LogRecord {
                position: Position::NONE,
                time_ms,
                caller: Caller::new(&caller).unwrap(),
                key,
                payload: Fingerprint(payload),
                reason: Arc::from(reason),
                session: session.map(|session| SessionId::new(&session).unwrap()),
                prediction,
                operations,
                flows,
                entries,
            }
        })
    }

    proptest! {
        #[test]
        fn the_records_of_a_batch_are_read_as_written(
            mut records in prop::collection::vec(record(), 0..6),
            first in position(),
            uptime_ms: u64,
            unix_ms in 0..u64::MAX / 2,
            ahead_ms in 0..1_000_000_u64,
        ) {
            let time = BatchTime { uptime_ms, unix_ms, time_ms: unix_ms + ahead_ms };
            let mut encoder = BatchEncoder::new(first, time, records.len());
            for (index, record) in (0..).zip(&mut records) {
                record.position = first.plus(index);
                record.time_ms += time.time_ms;
                encoder.push_record(record);
            }
            let encoded = encoder.finish();
            let batch = Batch::parse_with_checksum(&encoded).unwrap();
            prop_assert_eq!((batch.first, batch.count, batch.time), (first, records.len() as u64, time));
            prop_assert_eq!(batch.records().collect::<Result<Vec<_>, _>>(), Ok(records.clone()));
            let keys: Vec<_> = batch.keys().map(|key| key.unwrap().map(|key| key.key)).collect();
            prop_assert_eq!(keys, records.iter().map(|record| record.key.clone()).collect::<Vec<_>>());
            for record in &records {
                prop_assert_eq!(batch.record(record.position), Ok(Some(record.clone())));
            }
            prop_assert_eq!(batch.record(batch.end()), Ok(None));
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>, mut valid in prop::collection::vec(record(), 1..3), at: usize) {
            let time = BatchTime { uptime_ms: 0, unix_ms: u64::MAX - 1_000, time_ms: u64::MAX - 1_000 };
            let mut encoder = BatchEncoder::new(Position::from_u64((1 << 63) - 4), time, 1);
            valid.iter_mut().for_each(|record| record.time_ms += time.time_ms / 2);
            valid.drain(..).for_each(|record| encoder.push_record(&record));
            let mut damaged = Vec::new();
            encoder.put(&mut damaged);
            let at = at % damaged.len();
            damaged[at] ^= bytes.first().copied().unwrap_or(1);
            for bytes in [&bytes, &damaged] {
                if let Ok(batch) = Batch::parse(bytes) {
                    let _ = batch.records().take(10).filter(Result::is_ok).count();
                    let _ = batch.keys().take(10).count();
                    let _ = (batch.record(batch.first), batch.record(batch.end()));
                }
            }
        }
    }
}
