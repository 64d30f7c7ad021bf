//! An inventory as one value, for the peers that store values without knowing what is in them.

use crate::load::{SLOTS, STARTING_COUNT};

const SLOT_BYTES: usize = 8;

/// Returns an inventory in which every slot has an item and the starting count: 288 bytes.
pub fn full() -> Vec<u8> {
    (0..SLOTS).flat_map(|slot| [slot + 1, STARTING_COUNT]).flat_map(u32::to_le_bytes).collect()
}

/// Returns an inventory in which one slot has another count.
pub fn with_count(slot: u32, count: u32) -> Vec<u8> {
    let mut value = full();
    set_count(&mut value, slot, count);
    value
}

pub fn set_count(value: &mut [u8], slot: u32, count: u32) {
    let from = slot as usize * SLOT_BYTES + 4;
    value[from..from + 4].copy_from_slice(&count.to_le_bytes());
}

pub fn count(value: &[u8], slot: u32) -> Option<u32> {
    let from = slot as usize * SLOT_BYTES + 4;
    Some(u32::from_le_bytes(value.get(from..from + 4)?.try_into().ok()?))
}
