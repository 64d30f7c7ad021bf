//! The stored form of a block: a batch of about 8 KiB, compressed with Zstandard.
//!
//! A block begins with its checksum and the size of the batch. Its records keep their positions, so a block is found by the
//! position of its first record.

use super::bytes::Reader;
use super::{Malformed, verify_checksum, with_checksum_of};

/// Typical size of the records of a block, in bytes.
pub const BLOCK_BYTES: usize = 8 * 1_024;
/// Maximum size of a batch in a block, in bytes. SQLite stores no journal row above this size.
const BATCH_BYTES_MAX: usize = 1_000_000_000;
/// Level of compression. Higher levels gain less than 1 % on records, most of whose bytes are random.
const LEVEL: i32 = 3;

/// Compresses batches; keeps its memory for the next one.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    pub fn new() -> Result<Self, Malformed> {
        zstd::bulk::Compressor::new(LEVEL).map(Self).map_err(failed)
    }

    /// Compresses an encoded batch without a checksum.
    pub fn compress(&mut self, batch: &[u8]) -> Result<Vec<u8>, Malformed> {
        let length = u32::try_from(batch.len()).map_err(|_| Malformed::new("a batch is too large"))?;
        let body = self.0.compress(batch).map_err(failed)?;
        Ok(with_checksum_of(body.len() + 4, |buffer| {
            buffer.extend_from_slice(&length.to_le_bytes());
            buffer.extend_from_slice(&body);
        }))
    }
}

/// Decompresses blocks; keeps its memory for the next one.
pub struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    pub fn new() -> Result<Self, Malformed> {
        zstd::bulk::Decompressor::new().map(Self).map_err(failed)
    }

    /// Verifies the checksum and returns the batch.
    pub fn decompress(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let bytes = verify_checksum(block)?;
        let length = Reader::new(bytes).u32()? as usize;
        if length > BATCH_BYTES_MAX {
            return Err(Malformed::new("it is too large"));
        }
        let batch = self.0.decompress(&bytes[4..], length).map_err(failed)?;
        if batch.len() == length { Ok(batch) } else { Err(Malformed::new("its size differs from its header")) }
    }
}

fn failed(error: std::io::Error) -> Malformed {
    Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_block_is_read_as_written(batch: Vec<u8>, at: usize) {
            let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::new().unwrap());
            let mut block = compressor.compress(&batch).unwrap();
            prop_assert_eq!(decompressor.decompress(&block), Ok(batch));
            let at = at % block.len();
            block[at] ^= 1;
            prop_assert!(decompressor.decompress(&block).is_err());
        }
    }
}
