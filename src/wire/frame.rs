//! Converts the messages of streams, in both directions: the server writes them, the client library reads them.

use super::{FieldViolation, reply, request};
use crate::domain::{Attributes, Count, Digest, Epoch, InventoryId, ItemCode, KeyTag, Revision, Slot, Stack, Version};
use crate::sync::subscription::SUBSCRIPTION_INVENTORIES_MAX;
use crate::sync::{
    ChangeKind, ChangeRecord, Cursor, Frame, FrameBody, FullReason, InventoryFrame, SlotChange, SubscribeOptions,
};
use crate::wire::v1;
use std::collections::HashSet;

/// Parses a subscription: the inventories to watch, and the options. The request does not decide what the reader may
/// read; the caller sets that.
pub fn subscribe_options(
    request: &v1::SubscribeInventoryRequest,
) -> Result<(Vec<InventoryId>, SubscribeOptions), FieldViolation> {
    let count = request.inventories.len();
    if count == 0 || count > SUBSCRIPTION_INVENTORIES_MAX {
        let text = format!("must contain 1 to {SUBSCRIPTION_INVENTORIES_MAX} inventories, got {count}");
        return Err(FieldViolation::new("inventories", text));
    }
    let mut seen = HashSet::new();
    let parse = |(index, watch): (usize, &v1::Watch)| {
        let field = format!("inventories[{index}].inventory_id");
        let id = request::inventory_id(&field, &watch.inventory_id)?;
        if !seen.insert(id.clone()) {
            return Err(FieldViolation::new(&field, "duplicate inventory"));
        }
        // A cursor without an epoch matches no inventory: its reader has no state.
        let cursor = watch
            .resume
            .as_ref()
            .and_then(|cursor| Some(Cursor { epoch: Epoch::new(cursor.epoch)?, revision: Revision(cursor.revision) }));
        Ok((id, cursor))
    };
    let watches = request.inventories.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let (ids, resume) = watches.into_iter().unzip();
    let session = request::session("session", &request.session)?;
    Ok((ids, SubscribeOptions { resume, session, notices: request.notices, ..SubscribeOptions::default() }))
}

/// Converts a frame to a message.
pub fn encode_frame(frame: &Frame) -> v1::SubscribeInventoryResponse {
    let changed = frame.changed.iter().map(|(position, part)| change(*position, part));
    let absent = frame.absent.iter().map(|position| v1::InventoryChange {
        watch: *position as u32,
        absent: true,
        ..v1::InventoryChange::default()
    });
    v1::SubscribeInventoryResponse {
        changes: changed.chain(absent).collect(),
        caught_up: frame.caught_up,
        marks: marks(frame).collect(),
        covered: frame.included_keys.iter().map(|key| key.0).collect(),
        notices: notices(frame).collect(),
        notices_dropped: frame.notices_dropped,
    }
}

pub(super) fn marks(frame: &Frame) -> impl Iterator<Item = v1::Mark> {
    frame.versions.iter().map(|(position, version)| v1::Mark {
        watch: *position as u32,
        epoch: version.epoch.get(),
        revision: version.revision.0,
        digest: Some(reply::digest(version.digest)),
    })
}

pub(super) fn notices(frame: &Frame) -> impl Iterator<Item = v1::Notice> {
    frame.notices.iter().map(|(position, record)| notice(*position, record))
}

fn change(position: usize, frame: &InventoryFrame) -> v1::InventoryChange {
    let mut wire = v1::InventoryChange { watch: position as u32, check: frame.check, ..v1::InventoryChange::default() };
    match frame.body {
        FrameBody::Delta { last_sent, base, revision } => {
            (wire.skipped, wire.advance) = (base.0.saturating_sub(last_sent.0), revision.0 - base.0);
        }
        FrameBody::Full { epoch, revision, slots, reason } => {
            let (epoch, revision, slots) = (epoch.get(), revision.0, slots as u32);
            wire.full = Some(v1::FullState { epoch, revision, slots, reason: full_reason(reason).into() });
        }
    }
    // Filled slots come last, so that `items` does not need its own list of slots.
    for change in &frame.changes {
        let (slot, count) = match change {
            SlotChange::Count { slot, count } => (slot, *count),
            SlotChange::Emptied { slot } => (slot, 0),
            SlotChange::Filled { .. } => continue,
        };
        wire.slots.push(u32::from(slot.0));
        wire.counts.push(count);
    }
    for change in &frame.changes {
        let SlotChange::Filled { slot, stack } = change else { continue };
        wire.slots.push(u32::from(slot.0));
        wire.counts.push(stack.count.get());
        wire.items.push(stack.item.get());
        if !stack.attributes.is_none() {
            wire.attribute_slots.push(u32::from(slot.0));
            wire.attributes.push(stack.attributes.as_bytes().to_vec());
        }
    }
    wire
}

pub(super) fn full_reason(reason: FullReason) -> v1::FullReason {
    match reason {
        FullReason::Initial => v1::FullReason::Initial,
        FullReason::ManyChanges => v1::FullReason::ManyChanges,
        FullReason::EpochChanged => v1::FullReason::EpochChanged,
        FullReason::FromTheFuture => v1::FullReason::FromTheFuture,
        FullReason::DeltaOff => v1::FullReason::DeltaOff,
        FullReason::Correction => v1::FullReason::Correction,
    }
}

fn notice(position: usize, record: &ChangeRecord) -> v1::Notice {
    v1::Notice {
        watch: position as u32,
        epoch: record.epoch.get(),
        revision: record.revision.0,
        kind: change_kind(record.kind).into(),
        caller: record.caller.to_string(),
        reason: record.reason.to_string(),
    }
}

fn change_kind(kind: ChangeKind) -> v1::ChangeKind {
    match kind {
        ChangeKind::Create => v1::ChangeKind::Create,
        ChangeKind::Delete => v1::ChangeKind::Delete,
        ChangeKind::Add => v1::ChangeKind::Add,
        ChangeKind::Remove => v1::ChangeKind::Remove,
        ChangeKind::Move => v1::ChangeKind::Move,
        ChangeKind::Drop => v1::ChangeKind::Drop,
        ChangeKind::Craft => v1::ChangeKind::Craft,
        ChangeKind::Transfer => v1::ChangeKind::Transfer,
        ChangeKind::Set => v1::ChangeKind::Set,
        ChangeKind::Rearrange => v1::ChangeKind::Rearrange,
        ChangeKind::Transact => v1::ChangeKind::Transact,
        ChangeKind::Correction => v1::ChangeKind::Correction,
    }
}

/// Converts a message to a frame, without its notices. `last_sent` returns the revision that the stream last sent of
/// the inventory at a position.
pub fn decode_frame(
    message: &v1::SubscribeInventoryResponse,
    ids: &[InventoryId],
    last_sent: impl Fn(usize) -> Option<Revision>,
) -> DecodedFrame {
    let (mut frame, mut malformed) = (Frame { caught_up: message.caught_up, ..Frame::default() }, Vec::new());
    for change in &message.changes {
        let position = change.watch as usize;
        if change.absent {
            frame.absent.push(position);
            continue;
        }
        match decode_inventory_frame(change, last_sent(position)) {
            Some(part) => frame.changed.push((position, part)),
            None => malformed.push(position),
        }
    }
    let version = |mark: &v1::Mark| {
        let id = ids.get(mark.watch as usize)?.clone();
        let (epoch, digest) = (Epoch::new(mark.epoch)?, decode_digest(mark.digest.as_ref()?));
        Some((mark.watch as usize, Version { id, epoch, revision: Revision(mark.revision), digest }))
    };
    frame.versions = message.marks.iter().filter_map(version).collect();
    frame.included_keys = message.covered.iter().map(|tag| KeyTag(*tag)).collect();
    frame.notices_dropped = message.notices_dropped;
    DecodedFrame { frame, malformed }
}

/// A message converted to a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecodedFrame {
    pub frame: Frame,
    /// Positions of inventories whose change is malformed.
    pub malformed: Vec<usize>,
}

/// Converts a change for a reader at `last_sent`: the revision that the stream last sent, or that of the reader's
/// cursor. Returns `None` if the change is malformed.
pub fn decode_inventory_frame(change: &v1::InventoryChange, last_sent: Option<Revision>) -> Option<InventoryFrame> {
    let body = match &change.full {
        Some(full) => FrameBody::Full {
            epoch: Epoch::new(full.epoch)?,
            revision: Revision(full.revision),
            slots: usize::from(u16::try_from(full.slots).ok()?),
            reason: decode_full_reason(full.reason()),
        },
        None => {
            let last_sent = last_sent?;
            let base = Revision(last_sent.0.checked_add(change.skipped)?);
            FrameBody::Delta { last_sent, base, revision: Revision(base.0.checked_add(change.advance)?) }
        }
    };
    if change.slots.len() != change.counts.len() || change.attributes.len() != change.attribute_slots.len() {
        return None;
    }
    let filled_from = change.slots.len().checked_sub(change.items.len())?;
    let mut changes = Vec::with_capacity(change.slots.len());
    for (index, (slot, count)) in change.slots.iter().zip(&change.counts).enumerate() {
        let number = *slot;
        let slot = Slot(u16::try_from(number).ok()?);
        changes.push(match (index.checked_sub(filled_from), *count) {
            (None, 0) => SlotChange::Emptied { slot },
            (None, count) => SlotChange::Count { slot, count },
            (Some(item_index), count) => {
                let (item, count) = (ItemCode::new(change.items[item_index])?, Count::new(count)?);
                SlotChange::Filled { slot, stack: Stack { item, count, attributes: attributes(change, number)? } }
            }
        });
    }
    Some(InventoryFrame { body, changes, check: change.check })
}

fn attributes(change: &v1::InventoryChange, slot: u32) -> Option<Attributes> {
    match change.attribute_slots.iter().position(|attribute_slot| *attribute_slot == slot) {
        None => Some(Attributes::NONE),
        Some(index) => Attributes::new(&change.attributes[index]),
    }
}

/// Converts a reason. A reason that this client does not know becomes [`FullReason::Initial`], because a client need
/// not know the reason.
fn decode_full_reason(reason: v1::FullReason) -> FullReason {
    match reason {
        v1::FullReason::Unspecified | v1::FullReason::Initial => FullReason::Initial,
        v1::FullReason::ManyChanges => FullReason::ManyChanges,
        v1::FullReason::EpochChanged => FullReason::EpochChanged,
        v1::FullReason::FromTheFuture => FullReason::FromTheFuture,
        v1::FullReason::DeltaOff => FullReason::DeltaOff,
        v1::FullReason::Correction => FullReason::Correction,
    }
}

pub fn decode_digest(digest: &v1::Digest) -> Digest {
    Digest { a: digest.a, b: digest.b }
}

/// Converts a version. Returns `None` if it is malformed.
pub fn decode_version(version: &v1::InventoryVersion) -> Option<Version> {
    let id = InventoryId::new(&version.inventory_id).ok()?;
    let (epoch, digest) = (Epoch::new(version.epoch)?, decode_digest(version.digest.as_ref()?));
    Some(Version { id, epoch, revision: Revision(version.revision), digest })
}
