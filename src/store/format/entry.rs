//! The stored form of an entry: what a mutation did to one inventory.
//!
//! An entry has a byte with its kind and flags, the version of the inventory after the mutation, and, if the inventory
//! changed, the position of its previous change and the change itself.

use super::Malformed;
use super::bytes::{Reader, put_bytes, put_varint};
use super::edits::{put_edit, read_edit};
use super::state::{put_digest, put_state, read_digest, read_epoch, read_state};
use crate::domain::{Inventory, InventoryId, Revision, Slot, Stack, Version};
use crate::store::log::{
    CHECKPOINT_BYTES_MAX, CHECKPOINT_REVISIONS, ChainHead, LARGE_CHECKPOINT_REVISIONS, LogEntry, LoggedChange,
    LoggedChangeKind, Position,
};

const UNCHANGED: u8 = 0;
const EDITED: u8 = 1;
const CREATED: u8 = 2;
const DELETED: u8 = 3;
const RECREATED: u8 = 4;
const KINDS: u8 = 15;
/// The previous position is stored as its distance, because it is of the same writer.
const PREVIOUS_IS_NEAR: u8 = 16;
const HAS_PREVIOUS: u8 = 32;
/// The state after the edits follows.
const HAS_CHECKPOINT: u8 = 64;

/// A changed slot to write, with the stacks before and after.
pub type EditRef<'a> = (Slot, Option<&'a Stack>, Option<&'a Stack>);

/// A change to write.
#[derive(Debug)]
pub enum ChangeRef<'a, E> {
    Edited { edits: E, checkpoint: Checkpoint<'a> },
    Created { after: &'a Inventory },
    Deleted { before: &'a Inventory },
    Recreated { before: &'a Inventory, after: &'a Inventory },
}

/// The state after edits, of which the entry may have a checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Checkpoint<'a> {
    /// If one is due at this revision.
    IfDue(&'a Inventory),
    /// Always: the entry had one when it was read.
    Given(&'a Inventory),
    None,
}

/// Appends the entry of an inventory that the mutation named but did not change.
pub fn put_named(buffer: &mut Vec<u8>, version: &Version) {
    buffer.push(UNCHANGED);
    put_version(buffer, version);
}

/// Appends the entry of a changed inventory in the record at `position`, and returns the new head of the inventory's chain.
/// `head` is its head before.
pub fn put_changed<'a, E: ExactSizeIterator<Item = EditRef<'a>>>(
    buffer: &mut Vec<u8>,
    position: Position,
    head: ChainHead,
    version: &Version,
    change: ChangeRef<'a, E>,
) -> ChainHead {
    let kind = match &change {
        ChangeRef::Edited { .. } => EDITED,
        ChangeRef::Created { .. } => CREATED,
        ChangeRef::Deleted { .. } => DELETED,
        ChangeRef::Recreated { .. } => RECREATED,
    };
    let flags_at = buffer.len();
    buffer.push(kind | previous_flags(position, head.last));
    put_version(buffer, version);
    put_previous(buffer, position, head.last);
    let has_state = match change {
        ChangeRef::Edited { edits, checkpoint } => {
            put_varint(buffer, edits.len() as u64);
            edits.for_each(|(slot, before, after)| put_edit(buffer, slot, before, after));
            let has_checkpoint = put_checkpoint(buffer, version.revision, checkpoint);
            if has_checkpoint {
                buffer[flags_at] |= HAS_CHECKPOINT;
            }
            has_checkpoint
        }
        ChangeRef::Created { after } => {
            put_state(buffer, after);
            true
        }
        ChangeRef::Deleted { before } => {
            put_state(buffer, before);
            true
        }
        ChangeRef::Recreated { before, after } => {
            put_state(buffer, before);
            put_state(buffer, after);
            true
        }
    };
    if has_state {
        put_varint(buffer, head.checkpoint.get());
    }
    ChainHead { last: position, checkpoint: if has_state { position } else { head.checkpoint } }
}

/// Appends the state of a checkpoint; returns whether there is one.
fn put_checkpoint(buffer: &mut Vec<u8>, revision: Revision, checkpoint: Checkpoint<'_>) -> bool {
    let after = match checkpoint {
        Checkpoint::None => return false,
        Checkpoint::Given(after) => {
            put_state(buffer, after);
            return true;
        }
        Checkpoint::IfDue(after) => after,
    };
    if !revision.0.is_multiple_of(CHECKPOINT_REVISIONS) {
        return false;
    }
    let start = buffer.len();
    put_state(buffer, after);
    let is_large = buffer.len() - start > CHECKPOINT_BYTES_MAX;
    if is_large && !revision.0.is_multiple_of(LARGE_CHECKPOINT_REVISIONS) {
        buffer.truncate(start);
        return false;
    }
    true
}

/// Appends an entry of a record that was read before.
pub fn put_entry(buffer: &mut Vec<u8>, position: Position, entry: &LogEntry) {
    let LogEntry { version, change } = entry;
    let Some(LoggedChange { previous, kind, previous_checkpoint }) = change else {
        return put_named(buffer, version);
    };
    let head = ChainHead { last: *previous, checkpoint: *previous_checkpoint };
    let edits = kind.edits().iter().map(|edit| (edit.slot, edit.before.as_ref(), edit.after.as_ref()));
    let change = match kind {
        LoggedChangeKind::Edited { checkpoint, .. } => {
            let checkpoint = checkpoint.as_deref().map_or(Checkpoint::None, Checkpoint::Given);
            ChangeRef::Edited { edits, checkpoint }
        }
        LoggedChangeKind::Created { after } => ChangeRef::Created { after },
        LoggedChangeKind::Deleted { before } => ChangeRef::Deleted { before },
        LoggedChangeKind::Recreated { before, after } => ChangeRef::Recreated { before, after },
    };
    put_changed(buffer, position, head, version, change);
}

pub fn read_entry(reader: &mut Reader<'_>, position: Position) -> Result<LogEntry, Malformed> {
    let flags = reader.u8()?;
    let kind = flags & KINDS;
    let is_edited = kind == EDITED;
    let known = KINDS | PREVIOUS_IS_NEAR | HAS_PREVIOUS | if is_edited { HAS_CHECKPOINT } else { 0 };
    if flags & !known != 0 {
        return Err(Malformed::new("an entry has unknown flags"));
    }
    let version = read_version(reader)?;
    if kind == UNCHANGED {
        return Ok(LogEntry { version, change: None });
    }
    let previous = read_previous(reader, position, flags)?;
    let id = &version.id;
    let kind = match kind {
        EDITED => {
            let edits = (0..reader.count()?).map(|_| read_edit(reader)).collect::<Result<_, _>>()?;
            let checkpoint = if flags & HAS_CHECKPOINT != 0 { Some(read_state(reader, id)?) } else { None };
            LoggedChangeKind::Edited { edits, checkpoint }
        }
        CREATED => LoggedChangeKind::Created { after: read_state(reader, id)? },
        DELETED => LoggedChangeKind::Deleted { before: read_state(reader, id)? },
        RECREATED => LoggedChangeKind::Recreated { before: read_state(reader, id)?, after: read_state(reader, id)? },
        _ => return Err(Malformed::new("an entry of an unknown kind")),
    };
    let mut change = LoggedChange { previous, kind, previous_checkpoint: Position::NONE };
    if change.has_state() {
        change.previous_checkpoint = Position::from_u64(reader.varint()?);
    }
    Ok(LogEntry { version, change: Some(change) })
}

fn previous_flags(position: Position, previous: Position) -> u8 {
    match previous {
        Position::NONE => 0,
        previous if is_near(position, previous) => HAS_PREVIOUS | PREVIOUS_IS_NEAR,
        _ => HAS_PREVIOUS,
    }
}

fn put_previous(buffer: &mut Vec<u8>, position: Position, previous: Position) {
    match previous {
        Position::NONE => {}
        previous if is_near(position, previous) => put_varint(buffer, position.get() - previous.get()),
        previous => put_varint(buffer, previous.get()),
    }
}

fn read_previous(reader: &mut Reader<'_>, position: Position, flags: u8) -> Result<Position, Malformed> {
    let has = |flag| flags & flag != 0;
    match (has(HAS_PREVIOUS), has(PREVIOUS_IS_NEAR)) {
        (false, false) => Ok(Position::NONE),
        (false, true) => Err(Malformed::new("an entry has a distance but no previous position")),
        (true, false) => Ok(Position::from_u64(reader.varint()?)),
        (true, true) => {
            let previous = position.get().checked_sub(reader.varint()?);
            previous.map(Position::from_u64).ok_or_else(|| Malformed::new("a previous position is before the log"))
        }
    }
}

fn is_near(position: Position, previous: Position) -> bool {
    previous.writer() == position.writer() && previous <= position
}

fn put_version(buffer: &mut Vec<u8>, version: &Version) {
    put_bytes(buffer, version.id.as_str().as_bytes());
    buffer.extend_from_slice(&version.epoch.get().to_le_bytes());
    put_varint(buffer, version.revision.0);
    put_digest(buffer, version.digest);
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, Malformed> {
    Ok(Version {
        id: reader.name(InventoryId::new)?,
        epoch: read_epoch(reader)?,
        revision: Revision(reader.varint()?),
        digest: read_digest(reader)?,
    })
}

#[cfg(test)]
pub mod samples {
    use super::super::edits::samples::edit;
    use super::super::state::samples::inventory;
    use super::*;
    use crate::domain::{Digest, Epoch};
    use proptest::prelude::*;

    pub fn position() -> impl Strategy<Value = Position> {
        (1..4_u16, 1..1_u64 << 48).prop_map(|(writer, sequence)| Position::new(writer, sequence))
    }

    pub fn entry() -> impl Strategy<Value = LogEntry> {
        let version = ("[a-z/-]{1,40}", 1..=u32::MAX, any::<u64>(), any::<[u32; 2]>());
        version.prop_flat_map(|(id, epoch, revision, [a, b])| {
            let id = InventoryId::new(&id).unwrap();
            let (epoch, digest) = (Epoch::new(epoch).unwrap(), Digest { a, b });
            let state = || inventory(id.clone());
            let kind = prop_oneof![
                3 => prop::collection::vec(edit(), 0..6)
                    .prop_map(|edits| LoggedChangeKind::Edited { edits, checkpoint: None }),
                1 => (prop::collection::vec(edit(), 0..6), state()).prop_map(|(edits, state)| {
                    LoggedChangeKind::Edited { edits, checkpoint: Some(state) }
                }),
                1 => state().prop_map(|after| LoggedChangeKind::Created { after }),
                1 => state().prop_map(|before| LoggedChangeKind::Deleted { before }),
                1 => (state(), state()).prop_map(|(before, after)| LoggedChangeKind::Recreated { before, after }),
            ];
            let previous = || prop_oneof![1 => Just(Position::NONE), 3 => position()];
            (prop::option::of((kind, previous(), previous()))).prop_map(move |change| {
                let revision = Revision(revision);
                let change = change.map(|(kind, previous, checkpoint)| {
                    let mut change = LoggedChange { previous, kind, previous_checkpoint: Position::NONE };
                    change.previous_checkpoint = if change.has_state() { checkpoint } else { Position::NONE };
                    change
                });
                LogEntry { version: Version { id: id.clone(), epoch, revision, digest }, change }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_is_read_as_written(entry in samples::entry(), position in samples::position()) {
            let mut buffer = Vec::new();
            put_entry(&mut buffer, position, &entry);
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(read_entry(&mut reader, position), Ok(entry));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
