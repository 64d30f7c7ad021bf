//! Encodes frames straight into bytes, without building messages, and computes the sizes of frames without encoding
//! them.
//!
//! The bytes are those of the message that [`frame::encode_frame`] returns, with gRPC's prefix. All fields of these
//! messages have tags of one byte.

use super::codec::MESSAGE_PREFIX_BYTES;
use super::frame;
use super::v1;
use crate::domain::{Inventory, Revision, Slot, Stack};
use crate::sync::{Frame, FrameBody, InventoryFrame, SlotChange};
use prost::bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// The size of a flag that is set, in bytes.
const FLAG_BYTES: usize = 2;
const FIXED32_BYTES: usize = 5;

/// Encodes a frame as one gRPC message with its prefix. The result has exactly the size of the message.
pub fn encode(frame: &Frame) -> Bytes {
    let rest = Rest::of(frame);
    let changed: usize = frame.changed.iter().map(|(position, part)| change_bytes(*position, body_bytes(part))).sum();
    let absent: usize = frame.absent.iter().map(|position| absent_bytes(*position)).sum();
    let message_bytes = changed + absent + rest.bytes(frame);
    let mut buffer = Vec::with_capacity(MESSAGE_PREFIX_BYTES + message_bytes);
    buffer.put_u8(0);
    buffer.put_u32(message_bytes as u32);
    for (position, part) in &frame.changed {
        write_change(&mut buffer, *position, part);
    }
    for position in &frame.absent {
        write_length(&mut buffer, 1, number_bytes(*position as u64) + FLAG_BYTES);
        write_number(&mut buffer, 1, *position as u64);
        write_number(&mut buffer, 10, 1);
    }
    rest.write(frame, &mut buffer);
    debug_assert_eq!(buffer.len(), MESSAGE_PREFIX_BYTES + message_bytes, "the size is exact");
    Bytes::from(buffer)
}

/// Returns the size of the message that reports these inventories as an immediate full sync to a new reader, with
/// gRPC's prefix: for each inventory the result of [`full_body_bytes`], or `None` if it is absent.
pub fn initial_bytes(full_body_bytes: impl Iterator<Item = Option<usize>>) -> usize {
    let parts = full_body_bytes.enumerate().map(|(position, body_bytes)| match body_bytes {
        Some(body_bytes) => change_bytes(position, body_bytes),
        None => absent_bytes(position),
    });
    MESSAGE_PREFIX_BYTES + parts.sum::<usize>() + FLAG_BYTES
}

/// Returns the size in a message of the change of the inventory at `position`; `body_bytes` is the size of the change
/// without the position.
pub fn change_bytes(position: usize, body_bytes: usize) -> usize {
    delimited_bytes(number_bytes(position as u64) + body_bytes)
}

/// Returns the size of an immediate full sync of an inventory without its position, in bytes.
pub fn full_body_bytes(inventory: &Inventory) -> usize {
    let contents = &inventory.contents;
    let mut columns = Columns::default();
    for (slot, stack) in contents.stacks() {
        columns.add_filled(slot, stack);
    }
    let full =
        full_state_bytes(inventory.epoch.get(), contents.revision(), contents.slots().len(), v1::FullReason::DeltaOff);
    fixed32_bytes(contents.digest().to_u32()) + columns.bytes() + delimited_bytes(full)
}

/// Returns the size of a change in an [`v1::InventoryChange`] without its position, in bytes.
fn body_bytes(part: &InventoryFrame) -> usize {
    let body = match part.body {
        FrameBody::Delta { last_sent, base, revision } => {
            number_bytes(revision.0 - base.0) + number_bytes(skipped(last_sent, base))
        }
        FrameBody::Full { epoch, revision, slots, reason } => {
            delimited_bytes(full_state_bytes(epoch.get(), revision, slots, frame::full_reason(reason)))
        }
    };
    fixed32_bytes(part.check) + Columns::of(part).bytes() + body
}

fn absent_bytes(position: usize) -> usize {
    change_bytes(position, FLAG_BYTES)
}

fn full_state_bytes(epoch: u32, revision: Revision, slots: usize, reason: v1::FullReason) -> usize {
    fixed32_bytes(epoch) + number_bytes(revision.0) + number_bytes(slots as u64) + number_bytes(reason as u64)
}

fn skipped(last_sent: Revision, base: Revision) -> u64 {
    base.0.saturating_sub(last_sent.0)
}

/// The sizes of the columns of a change, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Columns {
    slots: usize,
    counts: usize,
    items: usize,
    attribute_slots: usize,
    /// The size of all attributes with their tags and lengths.
    attributes: usize,
}

impl Columns {
    fn of(part: &InventoryFrame) -> Self {
        let mut columns = Self::default();
        for change in &part.changes {
            match change {
                SlotChange::Count { slot, count } => columns.add(*slot, *count),
                SlotChange::Emptied { slot } => columns.add(*slot, 0),
                SlotChange::Filled { slot, stack } => columns.add_filled(*slot, stack),
            }
        }
        columns
    }

    fn add(&mut self, slot: Slot, count: u32) {
        self.slots += encoded_len_varint(slot.0.into());
        self.counts += encoded_len_varint(count.into());
    }

    fn add_filled(&mut self, slot: Slot, stack: &Stack) {
        self.add(slot, stack.count.get());
        self.items += encoded_len_varint(stack.item.get().into());
        if !stack.attributes.is_none() {
            self.attribute_slots += encoded_len_varint(slot.0.into());
            self.attributes += delimited_bytes(stack.attributes.as_bytes().len());
        }
    }

    fn bytes(&self) -> usize {
        let columns = [self.slots, self.counts, self.items, self.attribute_slots];
        columns.into_iter().map(column_bytes).sum::<usize>() + self.attributes
    }
}

fn write_change(buffer: &mut Vec<u8>, position: usize, part: &InventoryFrame) {
    let columns = Columns::of(part);
    write_length(buffer, 1, number_bytes(position as u64) + body_bytes(part));
    write_number(buffer, 1, position as u64);
    if let FrameBody::Delta { base, revision, .. } = part.body {
        write_number(buffer, 2, revision.0 - base.0);
    }
    write_fixed32(buffer, 3, part.check);
    write_columns(buffer, &columns, &part.changes);
    match part.body {
        FrameBody::Delta { last_sent, base, .. } => write_number(buffer, 11, skipped(last_sent, base)),
        FrameBody::Full { epoch, revision, slots, reason } => {
            let reason = frame::full_reason(reason);
            write_length(buffer, 9, full_state_bytes(epoch.get(), revision, slots, reason));
            write_fixed32(buffer, 1, epoch.get());
            write_number(buffer, 2, revision.0);
            write_number(buffer, 3, slots as u64);
            write_number(buffer, 4, reason as u64);
        }
    }
}

fn write_columns(buffer: &mut Vec<u8>, columns: &Columns, changes: &[SlotChange]) {
    // Filled slots come last, so that `items` does not need its own list of slots.
    let counted = || {
        changes.iter().filter_map(|change| match change {
            SlotChange::Count { slot, count } => Some((*slot, *count)),
            SlotChange::Emptied { slot } => Some((*slot, 0)),
            SlotChange::Filled { .. } => None,
        })
    };
    let filled = || {
        changes.iter().filter_map(|change| match change {
            SlotChange::Filled { slot, stack } => Some((*slot, stack)),
            SlotChange::Count { .. } | SlotChange::Emptied { .. } => None,
        })
    };
    let with_attributes = || filled().filter(|(_, stack)| !stack.attributes.is_none());
    let slots = counted().map(|(slot, _)| slot).chain(filled().map(|(slot, _)| slot));
    let counts = counted().map(|(_, count)| count).chain(filled().map(|(_, stack)| stack.count.get()));
    write_column(buffer, 4, columns.slots, slots.map(|slot| slot.0.into()));
    write_column(buffer, 5, columns.counts, counts);
    write_column(buffer, 6, columns.items, filled().map(|(_, stack)| stack.item.get()));
    write_column(buffer, 7, columns.attribute_slots, with_attributes().map(|(slot, _)| slot.0.into()));
    for (_, stack) in with_attributes() {
        let bytes = stack.attributes.as_bytes();
        write_length(buffer, 8, bytes.len());
        buffer.put_slice(bytes);
    }
}

/// The fields of a message beside its changes: few frames have them.
struct Rest {
    marks: Vec<v1::Mark>,
    notices: Vec<v1::Notice>,
}

impl Rest {
    fn of(frame: &Frame) -> Self {
        Self { marks: frame::marks(frame).collect(), notices: frame::notices(frame).collect() }
    }

    fn bytes(&self, frame: &Frame) -> usize {
        let caught_up = if frame.caught_up { FLAG_BYTES } else { 0 };
        let covered = column_bytes(4 * frame.included_keys.len());
        caught_up
            + prost::encoding::message::encoded_len_repeated(3, &self.marks)
            + covered
            + prost::encoding::message::encoded_len_repeated(5, &self.notices)
            + number_bytes(frame.notices_dropped)
    }

    fn write(&self, frame: &Frame, buffer: &mut Vec<u8>) {
        write_number(buffer, 2, frame.caught_up.into());
        prost::encoding::message::encode_repeated(3, &self.marks, buffer);
        if !frame.included_keys.is_empty() {
            write_length(buffer, 4, 4 * frame.included_keys.len());
            frame.included_keys.iter().for_each(|key| buffer.put_u32_le(key.0));
        }
        prost::encoding::message::encode_repeated(5, &self.notices, buffer);
        write_number(buffer, 6, frame.notices_dropped);
    }
}

/// Returns the size of a number, which is left out if it is 0.
fn number_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

fn write_number(buffer: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, buffer);
        encode_varint(value, buffer);
    }
}

fn fixed32_bytes(value: u32) -> usize {
    if value == 0 { 0 } else { FIXED32_BYTES }
}

fn write_fixed32(buffer: &mut Vec<u8>, tag: u32, value: u32) {
    if value != 0 {
        encode_key(tag, WireType::ThirtyTwoBit, buffer);
        buffer.put_u32_le(value);
    }
}

/// Returns the size of a packed column, which is left out if it is empty.
fn column_bytes(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { delimited_bytes(bytes) }
}

fn write_column(buffer: &mut Vec<u8>, tag: u32, bytes: usize, values: impl Iterator<Item = u32>) {
    if bytes > 0 {
        write_length(buffer, tag, bytes);
        values.for_each(|value| encode_varint(value.into(), buffer));
    }
}

fn delimited_bytes(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

fn write_length(buffer: &mut Vec<u8>, tag: u32, bytes: usize) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(bytes as u64, buffer);
}
