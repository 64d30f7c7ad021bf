//! The history of one inventory: its changes, and its states at earlier revisions and times.
//!
//! The entries of an inventory form a chain, from the newest back to the first one that is kept. A past state is found along
//! the checkpoints, from the newest to the oldest one at or after the target; then at most 255 changes (4,095 of an inventory
//! with a large state) are undone, and as many more for each restore since: a restore begins a life without a checkpoint. An
//! epoch that never existed is found out at the beginning of the chain.

use super::reader::LogReader;
use crate::domain::{Contents, Digest, Edit, Epoch, Inventory, InventoryId, LayoutId, PlayerId, Revision, Slot, Stack};
use crate::store::StoreError;
use crate::store::embedded::table::{StoredInventory, StoredState};
use crate::store::format::segment::SegmentHeader;
use crate::store::history::{ChangesPage, PastState, PastTarget, RecordFilter};
use crate::store::log::{LogEntry, LogRecord, LoggedChange, LoggedChangeKind, Position};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Reads the changes of an inventory that match a filter from `from` on, newest first, at most `limit`.
pub fn changes(
    log: &LogReader<'_>,
    id: &InventoryId,
    filter: &RecordFilter,
    from: Position,
    limit: usize,
) -> Result<ChangesPage, StoreError> {
    let mut page = ChangesPage::default();
    let mut next = from;
    while !next.is_none() {
        if page.records.len() == limit {
            page.next = Some(next);
            break;
        }
        let Some(record) = log.record_in_chain(next)? else {
            page.is_trimmed = true;
            break;
        };
        // Times do not decrease.
        if filter.from_ms.is_some_and(|from_ms| record.time_ms < from_ms) {
            break;
        }
        next = earlier(id, next, change_in(&record, id)?.1.previous)?;
        if filter.matches(&record) {
            page.records.push(record);
        }
    }
    Ok(page)
}

/// Reads the records that match a filter, newest first, at most `limit`: those before `before`, or all.
pub fn scan(
    log: &LogReader<'_>,
    filter: &RecordFilter,
    before: Option<Position>,
    limit: usize,
) -> Result<Vec<LogRecord>, StoreError> {
    let mut found = Vec::new();
    log.scan_newest_first(
        before,
        |segment| may_match(filter, segment),
        |records| {
            let is_too_old = |record: &LogRecord| filter.from_ms.is_some_and(|from_ms| record.time_ms < from_ms);
            // Times do not decrease.
            let is_last = records.last().is_some_and(is_too_old);
            found.extend(records.into_iter().filter(|record| filter.matches(record)));
            if found.len() >= limit || is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )?;
    found.truncate(limit);
    Ok(found)
}

/// Returns whether a record of the segment may match.
fn may_match(filter: &RecordFilter, segment: &SegmentHeader) -> bool {
    let has_caller = |caller| segment.callers.as_ref().is_none_or(|callers| callers.contains(caller));
    filter.caller.as_ref().is_none_or(has_caller)
        && filter.item.is_none_or(|item| segment.items.contains(&item))
        && filter.kind.is_none_or(|kind| segment.kinds.contains(&kind))
        && filter.from_ms.is_none_or(|from_ms| segment.last_ms >= from_ms)
        && filter.to_ms.is_none_or(|to_ms| segment.first_ms <= to_ms)
}

/// Reads a past state of an inventory, given its newest one.
pub fn state_at(
    log: &LogReader<'_>,
    id: &InventoryId,
    newest: &StoredInventory,
    target: PastTarget,
) -> Result<PastState, StoreError> {
    let (newest_epoch, newest_revision) = match &newest.state {
        StoredState::Present(inventory) => (inventory.epoch, inventory.contents.revision()),
        StoredState::Deleted { epoch, revision } => (*epoch, *revision),
    };
    let target = match target {
        PastTarget::Revision { epoch, revision } => {
            let epoch = epoch.unwrap_or(newest_epoch);
            if epoch == newest_epoch && revision > newest_revision {
                return Ok(PastState::Absent);
            }
            Target::Version(epoch, revision)
        }
        PastTarget::Time { unix_ms } => Target::Time(unix_ms),
    };
    let checkpoint = oldest_useful_checkpoint(log, id, newest.head.checkpoint, newest_epoch, target)?;
    let mut walk = match checkpoint {
        Some((record, state)) => Walk { id, state, next: record },
        None => Walk { id, state: PastInventory::of(newest), next: newest.head.last },
    };
    walk.undo_until(log, target)
}

/// What is looked for, with the epoch decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Version(Epoch, Revision),
    Time(u64),
}

/// Returns the position and the state of the oldest checkpoint at or after the target; `None` if the newest state is nearer.
fn oldest_useful_checkpoint(
    log: &LogReader<'_>,
    id: &InventoryId,
    newest: Position,
    newest_epoch: Epoch,
    target: Target,
) -> Result<Option<(Position, PastInventory)>, StoreError> {
    let (mut useful, mut of_later_life, mut next) = (None, None, newest);
    while !next.is_none() {
        let Some(record) = log.record_in_chain(next)? else { break };
        let (entry, change) = change_in(&record, id)?;
        match target {
            Target::Time(unix_ms) if record.time_ms <= unix_ms => break,
            Target::Time(_) => useful = Some((next, PastInventory::after(entry, change))),
            Target::Version(epoch, revision) if entry.version.epoch == epoch => {
                if entry.version.revision < revision {
                    // All checkpoints so far are later, also those of other lives.
                    return Ok(useful.or(of_later_life));
                }
                useful = Some((next, PastInventory::after(entry, change)));
            }
            // An earlier life. A restore begins a life without a checkpoint.
            Target::Version(epoch, _) if useful.is_some() || epoch == newest_epoch => break,
            // A later life; or an earlier one, if that of the target has no checkpoint.
            Target::Version(..) => of_later_life = Some((next, PastInventory::after(entry, change))),
        }
        next = earlier(id, next, change.previous_checkpoint)?;
    }
    Ok(useful)
}

/// Returns the position to which a record refers, which must be before its own.
fn earlier(id: &InventoryId, position: Position, previous: Position) -> Result<Position, StoreError> {
    if previous < position {
        return Ok(previous);
    }
    let detail = format!("inventory {id:?}: position {position} of the log refers to the later position {previous}");
    Err(StoreError::Corrupt { detail })
}

/// A state on the way back.
#[derive(Debug, Clone)]
struct PastInventory {
    epoch: Epoch,
    revision: Revision,
    /// `None` while the inventory does not exist.
    contents: Option<PastContents>,
}

#[derive(Debug, Clone)]
struct PastContents {
    owner: Option<PlayerId>,
    layout: LayoutId,
    digest: Digest,
    slots: Vec<Option<Stack>>,
}

impl PastInventory {
    fn of(newest: &StoredInventory) -> Self {
        match &newest.state {
            StoredState::Present(inventory) => Self::present(inventory),
            StoredState::Deleted { epoch, revision } => Self { epoch: *epoch, revision: *revision, contents: None },
        }
    }

    fn present(inventory: &Inventory) -> Self {
        let contents = PastContents {
            owner: inventory.owner.clone(),
            layout: inventory.layout.clone(),
            digest: inventory.contents.digest(),
            slots: inventory.contents.slots().iter().map(|slot| slot.stack.clone()).collect(),
        };
        Self { epoch: inventory.epoch, revision: inventory.contents.revision(), contents: Some(contents) }
    }

    /// The state after a change that has a full state.
    fn after(entry: &LogEntry, change: &LoggedChange) -> Self {
        match change.kind.after() {
            Some(after) => Self::present(after),
            None => Self { epoch: entry.version.epoch, revision: entry.version.revision, contents: None },
        }
    }

    /// Returns the version; `None` while the inventory does not exist.
    fn existing_version(&self) -> Option<(Epoch, Revision)> {
        self.contents.as_ref().map(|_| (self.epoch, self.revision))
    }

    fn to_inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        let PastContents { owner, layout, slots, .. } = self.contents.clone()?;
        let count = slots.len();
        let stacks: Vec<Edit> = (0..).map(Slot).zip(slots).filter(|(_, stack)| stack.is_some()).collect();
        let contents = Contents::new(count, self.revision, &stacks);
        Some(Arc::new(Inventory { id: id.clone(), owner, layout, epoch: self.epoch, contents }))
    }
}

/// A walk from a state back in time.
struct Walk<'a> {
    id: &'a InventoryId,
    state: PastInventory,
    /// The record of the change that made the state.
    next: Position,
}

impl Walk<'_> {
    fn undo_until(&mut self, log: &LogReader<'_>, target: Target) -> Result<PastState, StoreError> {
        // The oldest version so far of the life in which the target would be.
        let mut earliest = None;
        loop {
            let has_version = |state: &PastInventory| target == Target::Version(state.epoch, state.revision);
            if has_version(&self.state) {
                // The record made the state, unless a restore did.
                let record = log.record_in_chain(self.next)?;
                let is_made_by = |record: &LogRecord| {
                    let (entry, _) = change_in(record, self.id)?;
                    Ok::<_, StoreError>(
                        (entry.version.epoch, entry.version.revision) == (self.state.epoch, self.state.revision),
                    )
                };
                let is_made = record.as_ref().map(is_made_by).transpose()?.unwrap_or(false);
                return Ok(self.found(is_made));
            }
            earliest = self.state.existing_version().or(earliest);
            if self.next.is_none() {
                return Ok(PastState::Absent);
            }
            let Some(record) = log.record_in_chain(self.next)? else {
                // The change that made this state was deleted, and with it all that were as old.
                let is_in_time = matches!(target, Target::Time(unix_ms) if unix_ms >= log.state.trimmed_ms);
                return Ok(if is_in_time { self.found(false) } else { PastState::Trimmed { earliest } });
            };
            let (entry, change) = change_in(&record, self.id)?;
            // The state is of a later life with the same contents after a restore.
            (self.state.epoch, self.state.revision) = (entry.version.epoch, entry.version.revision);
            earliest = self.state.existing_version().or(earliest);
            self.check_digest(&record, entry)?;
            let is_in_time = matches!(target, Target::Time(unix_ms) if record.time_ms <= unix_ms);
            if is_in_time || has_version(&self.state) {
                return Ok(self.found(true));
            }
            self.undo(entry, change)?;
            self.next = earlier(self.id, self.next, change.previous)?;
        }
    }

    fn found(&self, is_made: bool) -> PastState {
        let position = is_made.then_some(self.next);
        self.state.to_inventory(self.id).map_or(PastState::Absent, |inventory| PastState::Found { inventory, position })
    }

    fn check_digest(&self, record: &LogRecord, entry: &LogEntry) -> Result<(), StoreError> {
        let digest = self.state.contents.as_ref().map_or(Digest::EMPTY, |contents| contents.digest);
        if digest == entry.version.digest {
            return Ok(());
        }
        let (id, position) = (self.id, record.position);
        let detail = format!("inventory {id:?}: its entry at position {position} does not match the state after it");
        Err(StoreError::Corrupt { detail })
    }

    fn undo(&mut self, entry: &LogEntry, change: &LoggedChange) -> Result<(), StoreError> {
        match &change.kind {
            LoggedChangeKind::Created { .. } => self.state.contents = None,
            LoggedChangeKind::Deleted { before } | LoggedChangeKind::Recreated { before, .. } => {
                self.state = PastInventory::present(before);
            }
            LoggedChangeKind::Edited { edits, .. } => {
                let gap = || StoreError::Corrupt {
                    detail: format!("inventory {:?}: revision {} has no state", self.id, entry.version.revision.0),
                };
                let contents = self.state.contents.as_mut().ok_or_else(gap)?;
                for edit in edits {
                    let slot = contents.slots.get_mut(edit.slot.index()).ok_or_else(gap)?;
                    contents.digest =
                        contents.digest.minus(edit.slot, edit.after.as_ref()).plus(edit.slot, edit.before.as_ref());
                    slot.clone_from(&edit.before);
                }
                self.state.revision = Revision(self.state.revision.0.wrapping_sub(1));
            }
        }
        Ok(())
    }
}

/// Returns the change of an inventory in a record of its chain.
fn change_in<'a>(record: &'a LogRecord, id: &InventoryId) -> Result<(&'a LogEntry, &'a LoggedChange), StoreError> {
    record.change_of(id).ok_or_else(|| StoreError::Corrupt {
        detail: format!("inventory {id:?}: the record at position {} does not change it", record.position),
    })
}
