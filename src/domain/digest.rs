//! The digest: a 64-bit checksum of an inventory's contents.
//!
//! Definition, for implementations in any language (test vectors: `tests/vectors/digest.json`):
//!
//! - A filled slot is encoded as `slot`, `item code`, `count` (each an unsigned 32-bit integer, little-endian)
//!   followed by the bytes of its attributes, if any.
//! - Lane A is the sum, modulo 2^32, of MurmurHash3_x86_32 with seed 0x51070CA5 over the encoding of each filled slot;
//!   lane B the same with seed 0x0DDBA115. Empty slots add nothing; an empty inventory has (0, 0).
//! - Frames carry the two lanes combined by XOR, in 32 bits: A xor B.
//!
//! A sum does not depend on the order of the slots and can be updated incrementally: subtract the hash of the old slot,
//! add the hash of the new one. Two 32-bit lanes suit languages without 64-bit integers. The digest detects accidental
//! differences; it is not cryptographic.

use super::ids::{IdempotencyKey, KeyTag, Slot};
use super::stack::Stack;

const SEED_A: u32 = 0x5107_0CA5;
const SEED_B: u32 = 0x0DDB_A115;

/// A 64-bit checksum of an inventory's contents, in two 32-bit lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest {
    pub a: u32,
    pub b: u32,
}

impl Digest {
    /// The digest of an inventory without stacks.
    pub const EMPTY: Self = Self { a: 0, b: 0 };

    /// Adds a slot to the digest.
    #[must_use]
    pub fn plus(self, slot: Slot, stack: Option<&Stack>) -> Self {
        let added = Self::of_slot(slot, stack);
        Self { a: self.a.wrapping_add(added.a), b: self.b.wrapping_add(added.b) }
    }

    /// Subtracts a slot from the digest.
    #[must_use]
    pub fn minus(self, slot: Slot, stack: Option<&Stack>) -> Self {
        let subtracted = Self::of_slot(slot, stack);
        Self { a: self.a.wrapping_sub(subtracted.a), b: self.b.wrapping_sub(subtracted.b) }
    }

    /// Returns the two lanes combined by XOR, as frames carry the digest.
    pub fn to_u32(self) -> u32 {
        self.a ^ self.b
    }

    fn of_slot(slot: Slot, stack: Option<&Stack>) -> Self {
        let Some(stack) = stack else { return Self::EMPTY };
        let head = [u32::from(slot.0), stack.item.get(), stack.count.get()];
        let attributes = stack.attributes.as_bytes();
        Self { a: murmur3(SEED_A, head, attributes), b: murmur3(SEED_B, head, attributes) }
    }
}

/// 64-bit fingerprint of a payload, computed with the same hash as the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Computes the fingerprint of a payload.
    pub fn of(bytes: &[u8]) -> Self {
        let lane = |seed| u64::from(murmur3(seed, [], bytes));
        Self(lane(SEED_A) << 32 | lane(SEED_B))
    }
}

impl KeyTag {
    /// Computes the tag of an idempotency key.
    pub fn of(key: &IdempotencyKey) -> Self {
        Self(murmur3(SEED_A, [], key.as_str().as_bytes()))
    }
}

/// Computes MurmurHash3_x86_32 over `head` (as little-endian words) followed by `tail`.
fn murmur3<const N: usize>(seed: u32, head: [u32; N], tail: &[u8]) -> u32 {
    let mut hash = seed;
    for word in head {
        hash = mix(hash, word);
    }
    let (words, rest) = tail.as_chunks::<4>();
    for word in words {
        hash = mix(hash, u32::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash ^= scramble(u32::from_le_bytes(last));
    }
    // The algorithm takes the length modulo 2^32.
    hash ^= (N * 4 + tail.len()) as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85EB_CA6B);
    hash = (hash ^ hash >> 13).wrapping_mul(0xC2B2_AE35);
    hash ^ hash >> 16
}

fn scramble(word: u32) -> u32 {
    word.wrapping_mul(0xCC9E_2D51).rotate_left(15).wrapping_mul(0x1B87_3593)
}

fn mix(hash: u32, word: u32) -> u32 {
    (hash ^ scramble(word)).rotate_left(13).wrapping_mul(5).wrapping_add(0xE654_6B64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_matches_published_murmur3_test_values() {
        // Widely published test values of the reference implementation.
        assert_eq!(murmur3(0, [], b""), 0);
        assert_eq!(murmur3(1, [], b""), 0x514E_28B7);
        assert_eq!(murmur3(0, [], b"test"), 0xBA6B_D213);
        assert_eq!(murmur3(0x9747_B28C, [], b"Hello, world!"), 0x2488_4CBA);
        assert_eq!(murmur3(0, [u32::from_le_bytes(*b"test")], b""), 0xBA6B_D213);
    }

    #[test]
    fn different_payloads_have_different_fingerprints() {
        assert_eq!(Fingerprint::of(b"one"), Fingerprint::of(b"one"));
        assert_ne!(Fingerprint::of(b"one"), Fingerprint::of(b"two"));
    }
}
