//! The index of the remembered idempotency keys and the locations of their records. The journal rows are authoritative;
//! this index in memory has a 128-bit hash per key. The hash uses random secrets of each start, so that an attacker
//! cannot make keys collide.

use crate::store::format::BatchTime;
use crate::store::horizon::KeyHorizon;
use crate::store::{KeyStatus, ScopedKey};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

/// Number of hash tables. Each is so small that growing it does not delay a commit.
const SHARDS: usize = 256;

pub type KeyHash = u128;

/// The location of a key's record: the journal row, and the index of the record in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLocation {
    pub seq: i64,
    pub index: u32,
}

/// The facts about a journal row that are kept in memory.
#[derive(Debug)]
pub struct JournalRow {
    pub seq: i64,
    pub time: BatchTime,
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

    pub fn row<'a>(&self, seq: i64, time: BatchTime, keys: impl Iterator<Item = &'a ScopedKey> + Clone) -> JournalRow {
        let hashes = keys.clone().map(|key| self.hash(key)).collect();
        JournalRow { seq, time, hashes, latest_key_ms: keys.filter_map(|key| key.key.unix_ms()).max() }
    }
}

#[derive(Debug)]
pub struct KeyIndex {
    shards: Vec<HashMap<KeyHash, RecordLocation, BuildHasherDefault<IdentityHasher>>>,
    /// All remaining journal rows, oldest first.
    rows: VecDeque<JournalRow>,
    remembered: usize,
    /// The horizon that remains of the expired keys.
    pub horizon: KeyHorizon,
}

impl KeyIndex {
    pub fn new(horizon: KeyHorizon) -> Self {
        let shards = (0..SHARDS).map(|_| HashMap::default()).collect();
        Self { shards, rows: VecDeque::new(), remembered: 0, horizon }
    }

    pub fn find(&self, hash: KeyHash) -> Option<RecordLocation> {
        self.shards[shard(hash)].get(&hash).copied()
    }

    /// Remembers a journal row; `keys` are its keys.
    pub fn push<'a>(&mut self, row: JournalRow, keys: impl Iterator<Item = &'a ScopedKey>) {
        if row.latest_key_ms > Some(row.time.unix_ms) {
            self.horizon.remember(row.time.unix_ms, keys);
        }
        for (index, hash) in row.hashes.iter().enumerate() {
            self.shards[shard(*hash)].insert(*hash, RecordLocation { seq: row.seq, index: index as u32 });
        }
        self.remembered += row.hashes.len();
        self.rows.push_back(row);
    }

    pub fn remembered(&self) -> usize {
        self.remembered
    }

    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Decides about a key that was not found.
    pub fn status_of_unknown(&self, key: &ScopedKey, now: BatchTime) -> KeyStatus {
        self.horizon.status_of(key, now.unix_ms)
    }

    /// Returns the oldest rows that may be trimmed, at most `rows_max`: rows that are folded, and that are older than
    /// the key window or exceed the maximum number of keys.
    pub fn trimmable(&self, limits: &TrimLimits, rows_max: usize) -> Vec<TrimmableRow> {
        let mut remembered = self.remembered;
        let is_due = |row: &&JournalRow| {
            let is_expired = limits.now.uptime_ms.saturating_sub(row.time.uptime_ms) > limits.window_ms;
            let is_due = row.seq <= limits.folded_through && (is_expired || remembered > limits.keys_max);
            remembered = remembered.saturating_sub(row.hashes.len());
            is_due
        };
        let due = |row: &JournalRow| TrimmableRow {
            seq: row.seq,
            received_ms: row.received_ms(limits.now),
            latest_key_ms: row.latest_key_ms,
        };
        self.rows.iter().take(rows_max).take_while(is_due).map(due).collect()
    }

    /// Forgets the oldest row.
    pub fn remove_oldest(&mut self) {
        let Some(row) = self.rows.pop_front() else { return };
        self.remembered -= row.hashes.len();
        for hash in &row.hashes {
            let shard = &mut self.shards[shard(*hash)];
            if shard.get(hash).is_some_and(|location| location.seq == row.seq) {
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
pub struct TrimLimits {
    pub now: BatchTime,
    pub folded_through: i64,
    pub window_ms: u64,
    pub keys_max: usize,
}

/// A journal row that may be trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimmableRow {
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
