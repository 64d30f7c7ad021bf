//! A reader's copy of one inventory. Applies frames and notices at once when it does not have what it should.

use super::frame::{Cursor, FrameBody, InventoryFrame, SlotChange};
use crate::domain::{Contents, Edit, Epoch, Revision};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub epoch: Epoch,
    pub contents: Contents,
}

/// A reader and its server do not agree; a full frame heals it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desync {
    /// A delta came before any full frame.
    NoBase,
    /// A delta for a reader at another revision.
    WrongBase { base: Revision, have: Revision },
    /// A count for a slot that is empty here, or a slot that is not there.
    NoSuchStack,
    /// The content differs from what the server has.
    WrongDigest { expected: u32, have: u32 },
}

impl fmt::Display for Desync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBase => write!(f, "a delta came before any full frame"),
            Self::WrongBase { base, have } => {
                write!(f, "a delta for revision {} came to a replica at revision {}", base.0, have.0)
            }
            Self::NoSuchStack => write!(f, "a delta names a slot that holds nothing here"),
            Self::WrongDigest { expected, have } => {
                write!(f, "the digest should be {expected:08x} and is {have:08x}")
            }
        }
    }
}

impl std::error::Error for Desync {}

impl Replica {
    /// The replica after a frame; `before` stays as it is when the frame does not fit. A delta fits a replica anywhere from
    /// its base to its end; one that is past its end has no use for it.
    pub fn apply(before: Option<&Self>, frame: &InventoryFrame) -> Result<Self, Desync> {
        let after = match frame.body {
            FrameBody::Full { epoch, revision, slots, .. } => {
                let empty = Contents::new(slots, revision, &[]);
                let edits = edits(&empty, &frame.changes)?;
                Self { epoch, contents: Contents::new(slots, revision, &edits) }
            }
            FrameBody::Delta { base, revision, .. } => {
                let before = before.ok_or(Desync::NoBase)?;
                let have = before.contents.revision();
                if have < base {
                    return Err(Desync::WrongBase { base, have });
                }
                if have > revision {
                    return Ok(before.clone());
                }
                let edits = edits(&before.contents, &frame.changes)?;
                Self { epoch: before.epoch, contents: before.contents.advanced(revision, &edits) }
            }
        };
        let have = after.contents.digest().folded();
        if have != frame.check {
            return Err(Desync::WrongDigest { expected: frame.check, have });
        }
        Ok(after)
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, revision: self.contents.revision() }
    }
}

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
