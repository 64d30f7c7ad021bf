//! Which idempotency keys are remembered, and where. The journal rows are the record; this is the index in memory:
//! 128 bits of hash for each key, under secrets drawn anew at each start, so that nobody can make keys collide.

use crate::store::Key;
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
    pub uptime_ms: u64,
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

    pub fn row<'a>(&self, seq: i64, uptime_ms: u64, keys: impl Iterator<Item = &'a Key> + Clone) -> Row {
        let hashes = keys.clone().map(|key| self.hash(key)).collect();
        Row { seq, uptime_ms, hashes, latest_key_ms: keys.filter_map(|key| key.key.unix_ms()).max() }
    }
}

#[derive(Debug)]
pub struct KeyIndex {
    shards: Vec<HashMap<KeyHash, Place, BuildHasherDefault<AlreadyHashed>>>,
    /// All journal rows that are kept, oldest first.
    rows: VecDeque<Row>,
    remembered: usize,
    /// No key of this time or earlier is new, unless it is found.
    forgotten_before_ms: Option<u64>,
}

impl KeyIndex {
    pub fn new(forgotten_before_ms: Option<u64>) -> Self {
        let shards = (0..SHARDS).map(|_| HashMap::default()).collect();
        Self { shards, rows: VecDeque::new(), remembered: 0, forgotten_before_ms }
    }

    pub fn find(&self, hash: KeyHash) -> Option<Place> {
        self.shards[shard(hash)].get(&hash).copied()
    }

    pub fn push(&mut self, row: Row) {
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

    pub fn forgotten_before_ms(&self) -> Option<u64> {
        self.forgotten_before_ms
    }

    /// How many of the oldest rows may go: folded, and out of the window or too many. At most `rows_max`. With the
    /// horizon that forgetting them means.
    pub fn due(&self, folded_through: i64, expired_ms: Option<u64>, keys_max: usize, rows_max: usize) -> Due {
        let mut due = Due { rows: 0, through: 0, horizon_ms: self.forgotten_before_ms };
        let mut remembered = self.remembered;
        for row in self.rows.iter().take(rows_max) {
            let is_expired = expired_ms.is_some_and(|expired_ms| row.uptime_ms < expired_ms);
            if row.seq > folded_through || !(is_expired || remembered > keys_max) {
                break;
            }
            remembered -= row.hashes.len();
            due = Due { rows: due.rows + 1, through: row.seq, horizon_ms: due.horizon_ms.max(row.latest_key_ms) };
        }
        due
    }

    /// From now on an unknown key of this time or earlier counts as forgotten.
    pub fn raise_horizon(&mut self, horizon_ms: Option<u64>) {
        self.forgotten_before_ms = self.forgotten_before_ms.max(horizon_ms);
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

/// Journal rows that may be trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub rows: usize,
    pub through: i64,
    pub horizon_ms: Option<u64>,
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
