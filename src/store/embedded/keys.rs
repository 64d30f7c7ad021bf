//! Which idempotency keys are remembered, and where. The journal rows are the record; this is the index in memory:
//! 128 bits of hash for each key, under secrets drawn anew at each start, so that nobody can make keys collide.

use crate::store::format::BatchTime;
use crate::store::horizon::KeyHorizon;
use crate::store::{Key, Recall};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// Many small tables, so that none is ever so large that growing it delays a commit.
const SHARDS: usize = 256;

pub type KeyHash = u128;

/// Where a key's record is: which journal row, and which record of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub seq: i64,
    pub index: u32,
}

/// What is known of a journal row without reading it.
#[derive(Debug)]
pub struct Row {
    pub seq: i64,
    pub time: BatchTime,
    pub hashes: Box<[KeyHash]>,
    /// The latest time inside a key of this row.
    pub latest_key_ms: Option<u64>,
}

/// The two secrets; shared, so that hashing needs no lock.
#[derive(Debug, Clone, Default)]
pub struct KeyHasher(RandomState, RandomState);

impl KeyHasher {
    pub fn hash(&self, key: &Key) -> KeyHash {
        u128::from(self.0.hash_one(key)) << 64 | u128::from(self.1.hash_one(key))
    }

    pub fn row<'a>(&self, seq: i64, time: BatchTime, keys: impl Iterator<Item = &'a Key> + Clone) -> Row {
        let hashes = keys.clone().map(|key| self.hash(key)).collect();
        Row { seq, time, hashes, latest_key_ms: keys.filter_map(|key| key.key.unix_ms()).max() }
    }
}

#[derive(Debug)]
pub struct KeyIndex {
    shards: Vec<HashMap<KeyHash, Place, BuildHasherDefault<AlreadyHashed>>>,
    /// All journal rows that are kept, oldest first.
    rows: VecDeque<Row>,
    remembered: usize,
    /// What is left of the keys that were forgotten.
    pub horizon: KeyHorizon,
}

impl KeyIndex {
    pub fn new(horizon: KeyHorizon) -> Self {
        let shards = (0..SHARDS).map(|_| HashMap::default()).collect();
        Self { shards, rows: VecDeque::new(), remembered: 0, horizon }
    }

    pub fn find(&self, hash: KeyHash) -> Option<Place> {
        self.shards[shard(hash)].get(&hash).copied()
    }

    /// Remembers a journal row; `keys` are its keys.
    pub fn push<'a>(&mut self, row: Row, keys: impl Iterator<Item = &'a Key>) {
        if row.latest_key_ms > Some(row.time.unix_ms) {
            self.horizon.remember(row.time.unix_ms, keys);
        }
        for (index, hash) in row.hashes.iter().enumerate() {
            self.shards[shard(*hash)].insert(*hash, Place { seq: row.seq, index: index as u32 });
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

    /// Judges a key that was not found.
    pub fn judge_unknown(&self, key: &Key, now: BatchTime) -> Recall {
        self.horizon.judge(key, now.unix_ms)
    }

    /// The oldest rows that may go: folded, and older than the window or too many. At most `rows_max`.
    pub fn due(&self, limits: &Limits, rows_max: usize) -> Vec<DueRow> {
        let mut remembered = self.remembered;
        let is_due = |row: &&Row| {
            let is_expired = limits.now.uptime_ms.saturating_sub(row.time.uptime_ms) > limits.window_ms;
            let is_due = row.seq <= limits.folded_through && (is_expired || remembered > limits.keys_max);
            remembered = remembered.saturating_sub(row.hashes.len());
            is_due
        };
        let due = |row: &Row| DueRow {
            seq: row.seq,
            received_ms: row.received_ms(limits.now),
            latest_key_ms: row.latest_key_ms,
        };
        self.rows.iter().take(rows_max).take_while(is_due).map(due).collect()
    }

    /// Forgets the oldest row.
    pub fn forget_oldest(&mut self) {
        let Some(row) = self.rows.pop_front() else { return };
        self.remembered -= row.hashes.len();
        for hash in &row.hashes {
            let places = &mut self.shards[shard(*hash)];
            if places.get(hash).is_some_and(|place| place.seq == row.seq) {
                places.remove(hash);
            }
        }
    }
}

impl Row {
    /// The wall clock when it was received, as far as two readings of it agree: the one of then, and the one of now less
    /// the time that has passed on the store's own clock. If this machine's clock was ahead once, it harms nobody who did
    /// not follow it.
    fn received_ms(&self, now: BatchTime) -> u64 {
        let age_ms = now.uptime_ms.saturating_sub(self.time.uptime_ms);
        self.time.unix_ms.min(now.unix_ms.saturating_sub(age_ms))
    }
}

/// What decides how long keys are remembered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub now: BatchTime,
    pub folded_through: i64,
    pub window_ms: u64,
    pub keys_max: usize,
}

/// A journal row that may be trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueRow {
    pub seq: i64,
    /// The wall clock when its keys were received, in milliseconds since 1970.
    pub received_ms: u64,
    /// The latest time inside one of its keys.
    pub latest_key_ms: Option<u64>,
}

fn shard(hash: KeyHash) -> usize {
    (hash >> 120) as usize % SHARDS
}

/// The lower half of a key's hash is its hash.
#[derive(Debug, Default)]
pub struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
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
