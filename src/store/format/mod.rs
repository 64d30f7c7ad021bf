//! The format of stored bytes, which is the same for every store that keeps bytes: one file for each part, with its test
//! beside it. Records are encoded straight into their buffer, and a record of a one-slot change with its key takes about 90
//! bytes.
//!
//! Reading checks everything: invalid bytes are reported as [`Malformed`], and never read as a wrong item.

pub mod batch;
pub mod block;
mod bytes;
mod edits;
mod entry;
mod heads;
mod operation;
mod record;
pub mod segment;
mod stack;
mod state;

pub use batch::{Batch, BatchEncoder, BatchTime};
pub use heads::ChainHeads;
pub use operation::{kind_from_number, kind_number};
pub use state::{decode_contents, encode_contents};

/// Why stored bytes are invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// Returns what `write` appends, preceded by its checksum. `capacity` is the expected number of bytes.
pub fn with_checksum_of(capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHECKSUM_BYTES + capacity);
    bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
    write(&mut bytes);
    let checksum = crc32fast::hash(&bytes[CHECKSUM_BYTES..]);
    bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Verifies the checksum and returns the bytes after it.
pub fn verify_checksum(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let Some((checksum, message)) = bytes.split_first_chunk::<CHECKSUM_BYTES>() else {
        return Err(Malformed::new("too short for its checksum"));
    };
    if u32::from_le_bytes(*checksum) == crc32fast::hash(message) {
        Ok(message)
    } else {
        Err(Malformed::new("its checksum does not match"))
    }
}

const CHECKSUM_BYTES: usize = 4;
