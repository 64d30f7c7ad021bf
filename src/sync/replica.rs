//! A reader's copy of one inventory. Applies frames and verifies the digest after each frame.

use super::frame::{Cursor, FrameBody, InventoryFrame, SlotChange};
use crate::domain::{Contents, Edit, Epoch, Revision};
use std::fmt;

/// A reader's copy of one inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub epoch: Epoch,
    pub contents: Contents,
}

/// A difference between a replica and the server. A full frame repairs the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desync {
    /// A delta arrived, but there is no replica to apply it to.
    NoBase,
    /// The delta starts after the replica's revision.
    WrongBase { base: Revision, actual: Revision },
    /// The delta sets the count of a slot that is empty, or names a slot that does not exist.
    NoSuchStack,
    /// The digest differs from the server's digest.
    WrongDigest { expected: u32, actual: u32 },
}

impl fmt::Display for Desync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBase => write!(f, "received a delta before any full frame"),
            Self::WrongBase { base, actual } => {
                write!(f, "the delta starts at revision {}, but the replica is at revision {}", base.0, actual.0)
            }
            Self::NoSuchStack => write!(f, "the delta changes a slot that is empty or does not exist"),
            Self::WrongDigest { expected, actual } => {
                write!(f, "digest mismatch: expected {expected:08x}, got {actual:08x}")
            }
        }
    }
}

impl std::error::Error for Desync {}

impl Replica {
    /// Returns the replica after a frame. A delta applies to a replica at any revision from the delta's base to its
    /// revision; a replica that is already past it is returned unchanged.
    ///
    /// # Errors
    ///
    /// A [`Desync`] if the frame does not apply to the replica or the digest does not match.
    pub fn apply(before: Option<&Self>, frame: &InventoryFrame) -> Result<Self, Desync> {
        let after = match frame.body {
            FrameBody::Full { epoch, revision, slots, .. } => {
                let empty = Contents::new(slots, revision, &[]);
                let edits = edits(&empty, &frame.changes)?;
                Self { epoch, contents: Contents::new(slots, revision, &edits) }
            }
            FrameBody::Delta { base, revision, .. } => {
                let before = before.ok_or(Desync::NoBase)?;
                let actual = before.contents.revision();
                if actual < base {
                    return Err(Desync::WrongBase { base, actual });
                }
                if actual > revision {
                    return Ok(before.clone());
                }
                let edits = edits(&before.contents, &frame.changes)?;
                Self { epoch: before.epoch, contents: before.contents.advanced(revision, &edits) }
            }
        };
        let actual = after.contents.digest().to_u32();
        if actual != frame.check {
            return Err(Desync::WrongDigest { expected: frame.check, actual });
        }
        Ok(after)
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, revision: self.contents.revision() }
    }
}

/// Converts the changes of a frame to edits of these contents.
fn edits(contents: &Contents, changes: &[SlotChange]) -> Result<Vec<Edit>, Desync> {
    let edit = |change: &SlotChange| {
        let (slot, stack) = match change {
            SlotChange::Emptied { slot } => (*slot, None),
            SlotChange::Filled { slot, stack } => (*slot, Some(stack.clone())),
            SlotChange::Count { slot, count } => {
                let held = contents.stack(*slot).ok_or(Desync::NoSuchStack)?;
                (*slot, Some(held.with_count(*count).ok_or(Desync::NoSuchStack)?))
            }
        };
        if slot.index() < contents.slots().len() { Ok((slot, stack)) } else { Err(Desync::NoSuchStack) }
    };
    changes.iter().map(edit).collect()
}
