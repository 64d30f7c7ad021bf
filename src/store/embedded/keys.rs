//! The index of the remembered idempotency keys and the locations of their records. The journal rows are authoritative;
//! this index in memory has a 128-bit hash per key. The hash uses random secrets of each start, so that an attacker
//! cannot make keys collide.

use crate::store::format::BatchTime;
use crate::store::horizon::KeyHorizon;
use crate::store::log::Position;
use crate::store::{KeyStatus, ScopedKey};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

/// Number of hash tables. Each is so small that growing it does not delay a commit.
const SHARDS: usize = 256;

pub type KeyHash = u128;

/// The location of a key's record: the journal row, and the record's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLocation {
    pub seq: i64,
    pub position: Position,
}

/// The location and the size of a journal row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLocation {
    pub seq: i64,
    /// The position of its first record.
    pub first: Position,
    /// Number of its records.
    pub count: u64,
    /// Size of the encoded batch, in bytes.
    pub bytes: usize,
}

/// The facts about a journal row that are kept in memory.
#[derive(Debug)]
pub struct JournalRow {
    pub location: RowLocation,
    pub time: BatchTime,
    /// One for each record; none if the row has no keys, as after an import.
    pub hashes: Box<[KeyHash]>,
    /// The latest time inside a key of this row, in milliseconds since the Unix epoch.
    pub latest_key_ms: Option<u64>,
}

/// A hasher (SipHash-1-3, 128-bit output) with a random secret. Clones have the same secret, so hashing needs no lock.
#[derive(Clone)]
pub struct KeyHasher(SipHasher13);

impl fmt::Debug for KeyHasher {
    /// Does not show the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHasher").finish_non_exhaustive()
    }
}

impl Default for KeyHasher {
    /// Creates a hasher with a random secret.
    fn default() -> Self {
        // `RandomState` has random keys from the operating system; `fastrand` is predictable.
        let random = || RandomState::new().hash_one(0);
        Self(SipHasher13::new_with_keys(random(), random()))
    }
}

impl KeyHasher {
    pub fn hash(&self, key: &ScopedKey) -> KeyHash {
        let mut hasher = self.0;
        key.hash(&mut hasher);
        hasher.finish128().as_u128()
    }

    pub fn row<'a>(
        &self,
        location: RowLocation,
        time: BatchTime,
        keys: impl Iterator<Item = &'a ScopedKey> + Clone,
    ) -> JournalRow {
        let hashes = keys.clone().map(|key| self.hash(key)).collect();
        JournalRow { location, time, hashes, latest_key_ms: keys.filter_map(|key| key.key.unix_ms()).max() }
    }
}

#[derive(Debug)]
pub struct KeyIndex {
    shards: Vec<HashMap<KeyHash, RecordLocation, BuildHasherDefault<IdentityHasher>>>,
    /// All remaining journal rows, oldest first.
    rows: VecDeque<JournalRow>,
    remembered: usize,
    /// Size of all rows, in bytes.
    bytes: u64,
    /// The horizon that remains of the expired keys.
    pub horizon: KeyHorizon,
}

impl KeyIndex {
    pub fn new(horizon: KeyHorizon) -> Self {
        let shards = (0..SHARDS).map(|_| HashMap::default()).collect();
        Self { shards, rows: VecDeque::new(), remembered: 0, bytes: 0, horizon }
    }

    pub fn find(&self, hash: KeyHash) -> Option<RecordLocation> {
        self.shards[shard(hash)].get(&hash).copied()
    }

    /// Remembers a journal row; `keys` are its keys.
    pub fn push<'a>(&mut self, row: JournalRow, keys: impl Iterator<Item = &'a ScopedKey>) {
        if row.latest_key_ms > Some(row.time.unix_ms) {
            self.horizon.remember(row.time.unix_ms, keys);
        }
        let RowLocation { seq, first, .. } = row.location;
        for (index, hash) in (0..).zip(&row.hashes) {
            self.shards[shard(*hash)].insert(*hash, RecordLocation { seq, position: first.plus(index) });
        }
        self.remembered += row.hashes.len();
        self.bytes += row.location.bytes as u64;
        self.rows.push_back(row);
    }

    pub fn remembered(&self) -> usize {
        self.remembered
    }

    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Size of the rows, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the time of the oldest row after `sealed_row`, in milliseconds since the Unix epoch.
    pub fn unsealed_since_ms(&self, sealed_row: i64) -> Option<u64> {
        let sealed = self.rows.partition_point(|row| row.location.seq <= sealed_row);
        self.rows.get(sealed).map(|row| row.time.time_ms)
    }

    /// Decides about a key that was not found.
    pub fn status_of_unknown(&self, key: &ScopedKey, now: BatchTime) -> KeyStatus {
        self.horizon.status_of(key, now.unix_ms)
    }

    /// Returns the journal row that has the record at a position; `None` if it has been trimmed.
    pub fn row_of(&self, position: Position) -> Option<RowLocation> {
        let end = self.rows.partition_point(|row| row.location.first <= position);
        let location = self.rows.get(end.checked_sub(1)?)?.location;
        (position < location.first.plus(location.count)).then_some(location)
    }

    /// Returns the oldest rows after `sealed_row` that may be sealed: rows that are folded, and that are older than the key
    /// window, exceed the maximum number of keys, or have no keys.
    pub fn sealable<'a>(&'a self, sealed_row: i64, limits: &'a SealLimits) -> impl Iterator<Item = SealableRow> + 'a {
        let mut remembered = self.remembered;
        let age_ms = |row: &JournalRow| limits.now.uptime_ms.saturating_sub(row.time.uptime_ms);
        let is_due = move |row: &&JournalRow| {
            let is_expired = age_ms(row) > limits.window_ms || row.hashes.is_empty();
            let is_due = row.location.seq <= limits.folded_through && (is_expired || remembered > limits.keys_max);
            remembered = remembered.saturating_sub(row.hashes.len());
            is_due
        };
        let due = self.rows.iter().take_while(is_due).skip_while(move |row| row.location.seq <= sealed_row);
        due.map(move |row| SealableRow { location: row.location, age_ms: age_ms(row) })
    }

    /// Returns the oldest rows up to `sealed_row`, at most `rows_max`, which may be trimmed.
    pub fn prunable(&self, sealed_row: i64, now: BatchTime, rows_max: usize) -> Vec<PrunableRow> {
        let due = |row: &JournalRow| PrunableRow {
            seq: row.location.seq,
            received_ms: row.received_ms(now),
            latest_key_ms: row.latest_key_ms,
        };
        self.rows.iter().take(rows_max).take_while(|row| row.location.seq <= sealed_row).map(due).collect()
    }

    /// Forgets the oldest row.
    pub fn remove_oldest(&mut self) {
        let Some(row) = self.rows.pop_front() else { return };
        self.remembered -= row.hashes.len();
        self.bytes -= row.location.bytes as u64;
        for hash in &row.hashes {
            let shard = &mut self.shards[shard(*hash)];
            if shard.get(hash).is_some_and(|location| location.seq == row.location.seq) {
                shard.remove(hash);
            }
        }
    }
}

impl JournalRow {
    /// The wall clock when the row was received, in milliseconds since the Unix epoch: the earlier of the clock's
    /// reading at that time, and its reading now minus the age of the row by the store's own clock. So if this
    /// machine's clock was ahead once, only callers that followed it are affected.
    fn received_ms(&self, now: BatchTime) -> u64 {
        let age_ms = now.uptime_ms.saturating_sub(self.time.uptime_ms);
        self.time.unix_ms.min(now.unix_ms.saturating_sub(age_ms))
    }
}

/// The limits that decide how long keys are remembered.
#[derive(Debug, Clone, Copy)]
pub struct SealLimits {
    pub now: BatchTime,
    pub folded_through: i64,
    pub window_ms: u64,
    pub keys_max: usize,
}

/// A journal row that may be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealableRow {
    pub location: RowLocation,
    /// Age by the store's own clock, in milliseconds.
    pub age_ms: u64,
}

/// A journal row that may be trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunableRow {
    pub seq: i64,
    /// The wall clock when its keys were received, in milliseconds since the Unix epoch.
    pub received_ms: u64,
    /// The latest time inside one of its keys, in milliseconds since the Unix epoch.
    pub latest_key_ms: Option<u64>,
}

fn shard(hash: KeyHash) -> usize {
    (hash >> 120) as usize % SHARDS
}

/// A hasher for the index: it uses the lower half of the key's hash unchanged.
#[derive(Debug, Default)]
pub struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}
