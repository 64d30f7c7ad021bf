//! Checks the kept history: each entry against the one before it, and the newest one against the store.
//!
//! A digest is the sum of the hashes of all slots. So one digest for each inventory is enough to prove that an entry's edits
//! lead from the state before it to the state after it: the digest after it is the digest before it, minus the slots before,
//! plus the slots after. The stamps of all slots would take one number a slot, so only those of the last change are compared:
//! their hashes add up to one number as well.

use crate::domain::{
    Contents, Digest, Epoch, Flow, Inventory, InventoryId, ItemCode, OperationKind, Revision, Slot, Stack, Version,
};
use crate::store::embedded::table::{StoredInventory, StoredState};
use crate::store::log::{ChainHead, LogEntry, LogRecord, LoggedChange, LoggedChangeKind, Position};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The inventories in the records so far.
#[derive(Debug, Default)]
pub struct ChainCheck {
    inventories: HashMap<InventoryId, Tracked>,
    /// The first record that is kept.
    earliest: Position,
    /// The last record, and its time.
    last: Position,
    last_ms: u64,
}

/// What the records so far say about one inventory.
#[derive(Debug, Clone, Copy)]
struct Tracked {
    head: ChainHead,
    epoch: Epoch,
    revision: Revision,
    digest: Digest,
    /// The sum of [`stamp_hash`] over the slots that the last change changed.
    stamps: u64,
    /// The hash of what edits do not change, see [`fixed_part`]; `None` until the first full state.
    fixed: Option<u64>,
    exists: bool,
}

impl ChainCheck {
    /// Begins with the earliest record that is kept, none if none was ever deleted, and the time of the last one that was
    /// deleted.
    pub fn new(earliest: Position, trimmed_ms: u64) -> Self {
        Self { earliest, last_ms: trimmed_ms, ..Self::default() }
    }

    /// Checks the next record, and returns its problems.
    pub fn push(&mut self, record: &LogRecord) -> Vec<String> {
        let mut problems = Vec::new();
        let position = record.position;
        if self.last.is_none() {
            let expected = if self.earliest.is_none() { Position::new(1, 1) } else { self.earliest };
            // The writer of a store that was restored before its first commit is not 1.
            if !position.continues(expected) {
                problems.push(format!("the log begins at position {position}, not at {expected}"));
            }
        } else if !position.continues(self.last.plus(1)) {
            problems.push(format!("position {position} of the log does not follow position {}", self.last));
        }
        if record.time_ms < self.last_ms {
            problems.push(format!("position {position} of the log is earlier than the one before it"));
        }
        (self.last, self.last_ms) = (position, record.time_ms);
        if let Some(problem) = check_flows(record) {
            problems.push(format!("position {position} of the log: {problem}"));
        }
        for entry in &record.entries {
            if let Some(problem) = self.check_entry(position, entry) {
                problems.push(format!("position {position} of the log: inventory {:?}: {problem}", entry.version.id));
            }
        }
        problems
    }

    fn check_entry(&mut self, position: Position, entry: &LogEntry) -> Option<String> {
        let LogEntry { version, change } = entry;
        let before = self.inventories.get(&version.id).copied();
        let Some(change) = change else {
            let differs = before.is_some_and(|before| {
                before.exists
                    && before.epoch == version.epoch
                    && (before.revision, before.digest) != (version.revision, version.digest)
            });
            return differs.then(|| "it has another version than its last change".to_owned());
        };
        let problem = self.check_change(position, before, version, change).or_else(|| check_fixed_part(before, change));
        let exists = !matches!(change.kind, LoggedChangeKind::Deleted { .. });
        let checkpoint = match (change.has_state(), before) {
            (true, _) => position,
            (false, Some(before)) => before.head.checkpoint,
            // Its last checkpoint was deleted.
            (false, None) => Position::NONE,
        };
        let Version { id, epoch, revision, digest } = version.clone();
        let head = ChainHead { last: position, checkpoint };
        let stamps = stamps_of_change(&change.kind);
        let fixed = change.kind.after().map(|after| fixed_part(after)).or(before.and_then(|before| before.fixed));
        self.inventories.insert(id, Tracked { head, epoch, revision, digest, stamps, fixed, exists });
        problem
    }

    fn check_change(
        &self,
        position: Position,
        before: Option<Tracked>,
        version: &Version,
        change: &LoggedChange,
    ) -> Option<String> {
        let text = |text: &str| Some(text.to_owned());
        match before {
            Some(before) if change.previous != before.head.last => {
                return Some(format!("its previous change is at {}, not at {}", before.head.last, change.previous));
            }
            None if !self.is_deleted(change.previous) => {
                return Some(format!("the log does not have its previous change at {}", change.previous));
            }
            Some(_) | None => {}
        }
        let known_checkpoint = before.filter(|before| !before.head.checkpoint.is_none());
        match known_checkpoint {
            Some(before) if change.has_state() && change.previous_checkpoint != before.head.checkpoint => {
                return Some(format!(
                    "its previous checkpoint is at {}, not at {}",
                    before.head.checkpoint, change.previous_checkpoint
                ));
            }
            None if change.has_state() && !self.is_deleted(change.previous_checkpoint) => {
                return Some(format!(
                    "the log does not have its previous checkpoint at {}",
                    change.previous_checkpoint
                ));
            }
            Some(_) | None => {}
        }
        // A restore gives an inventory a new epoch at revision 1, without an entry.
        let is_restored = before.is_some_and(|before| before.head.last.writer() < position.writer());
        let continues = |epoch: Epoch, revision: Revision, digest: Digest| {
            before.is_none_or(|before| {
                let is_same = (before.epoch, before.revision) == (epoch, revision);
                before.exists && before.digest == digest && (is_same || is_restored && revision == Revision::CREATED)
            })
        };
        match &change.kind {
            LoggedChangeKind::Created { after } => {
                if before.is_some_and(|before| before.exists) {
                    return text("it is created although it exists");
                }
                (after.version() != *version || version.revision != Revision::CREATED)
                    .then(|| "its state does not have its version".to_owned())
            }
            LoggedChangeKind::Deleted { before: state } => {
                if !continues(state.epoch, state.contents.revision(), state.contents.digest()) {
                    return text("the state before its deletion is not the one before");
                }
                let deletion = (state.epoch, state.contents.revision().next(), Digest::EMPTY);
                ((version.epoch, version.revision, version.digest) != deletion)
                    .then(|| "its deletion does not have the next version".to_owned())
            }
            LoggedChangeKind::Recreated { before: state, after } => {
                if !continues(state.epoch, state.contents.revision(), state.contents.digest()) {
                    return text("the state before it was created again is not the one before");
                }
                (after.version() != *version || version.revision != Revision::CREATED)
                    .then(|| "its state does not have its version".to_owned())
            }
            LoggedChangeKind::Edited { edits, checkpoint } => {
                let mut digest_before = version.digest;
                for edit in edits {
                    digest_before = digest_before.minus(edit.slot, edit.after.as_ref());
                    digest_before = digest_before.plus(edit.slot, edit.before.as_ref());
                }
                let revision_before = Revision(version.revision.0.wrapping_sub(1));
                if !continues(version.epoch, revision_before, digest_before) {
                    return text("its edits do not lead from the state before to the state after them");
                }
                let is_wrong = checkpoint.as_ref().is_some_and(|state| state.version() != *version);
                is_wrong.then(|| "its checkpoint does not have its version".to_owned())
            }
        }
    }

    /// The position of the last record.
    pub fn last(&self) -> Position {
        self.last
    }

    /// Returns whether a position may be referred to although no record so far has it.
    fn is_deleted(&self, position: Position) -> bool {
        position.is_none() || position < self.earliest
    }

    /// Compares an inventory of the store, or a tombstone, with its newest entry, which is then removed.
    pub fn compare(&mut self, id: &InventoryId, stored: &StoredInventory, writer: u16) -> Option<String> {
        let problem = |text: String| Some(format!("inventory {id:?}: {text}"));
        let head = stored.head;
        let Some(tracked) = self.inventories.remove(id) else {
            let is_lost = !head.last.is_none() && head.last >= self.earliest || self.earliest.is_none();
            if !is_lost && stored.inventory().is_none() {
                return problem("it has a tombstone, but its history was deleted".into());
            }
            return if is_lost { problem("the log does not have its changes".into()) } else { None };
        };
        let is_same_checkpoint = head.checkpoint == tracked.head.checkpoint
            || tracked.head.checkpoint.is_none() && self.is_deleted(head.checkpoint);
        if head.last != tracked.head.last || !is_same_checkpoint {
            let (found, expected) = (head, tracked.head);
            return problem(format!(
                "its last change and checkpoint are at {} and {}, in the log at {} and {}",
                found.last, found.checkpoint, expected.last, expected.checkpoint
            ));
        }
        let (epoch, revision, digest, exists) = match &stored.state {
            StoredState::Present(inventory) => version_parts(inventory),
            StoredState::Deleted { epoch, revision } => (*epoch, *revision, Digest::EMPTY, false),
        };
        if exists != tracked.exists {
            let text =
                if exists { "it exists, but the log deletes it" } else { "it is deleted, but in the log it exists" };
            return problem(text.into());
        }
        let is_restored = head.last.writer() < writer && revision == Revision::CREATED;
        if (epoch, revision) != (tracked.epoch, tracked.revision) && !is_restored {
            return problem(format!(
                "the store has revision {} of epoch {}, the log has revision {} of epoch {}",
                revision.0,
                epoch.get(),
                tracked.revision.0,
                tracked.epoch.get()
            ));
        }
        if digest != tracked.digest {
            return problem("its digest differs from the one in the log".into());
        }
        let fixed = stored.inventory().map(|inventory| fixed_part(inventory));
        if fixed.is_some() && tracked.fixed.is_some() && fixed != tracked.fixed {
            return problem("its owner, layout or number of slots differs from the log".into());
        }
        // A restore sets all stamps.
        let inventory = stored.inventory().filter(|_| (epoch, revision) == (tracked.epoch, tracked.revision))?;
        let is_wrong = stamps_of_revision(&inventory.contents, revision) != tracked.stamps;
        if is_wrong { problem("the stamps of its slots differ from its last change in the log".into()) } else { None }
    }

    /// Excludes an inventory that cannot be compared.
    pub fn exclude(&mut self, id: &str) {
        if let Ok(id) = InventoryId::new(id) {
            self.inventories.remove(&id);
        }
    }

    /// Reports the inventories that were not compared.
    pub fn missing(self) -> impl Iterator<Item = String> {
        let mut missing: Vec<_> = self.inventories.into_iter().map(|(id, tracked)| (id, tracked.exists)).collect();
        missing.sort_unstable();
        missing.into_iter().map(|(id, exists)| match exists {
            true => format!("inventory {id:?}: the log has it, but it is missing"),
            false => format!("inventory {id:?}: the log deletes it, but its tombstone is missing"),
        })
    }
}

/// Compares what edits do not change with the full state before.
fn check_fixed_part(before: Option<Tracked>, change: &LoggedChange) -> Option<String> {
    let expected = before.filter(|before| before.exists)?.fixed?;
    // Edits have a full state only with a checkpoint, which is after them.
    let state = change.kind.before().or(change.kind.after().filter(|_| !change.kind.edits().is_empty()))?;
    (fixed_part(state) != expected)
        .then(|| "its owner, layout or number of slots differs from the last full state".to_owned())
}

/// Hashes what edits do not change: the owner, the layout and the number of slots.
fn fixed_part(inventory: &Inventory) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&inventory.owner, &inventory.layout, inventory.contents.slots().len()).hash(&mut hasher);
    hasher.finish()
}

/// Returns the sum of the hashes of the slots that a change stamps with its revision.
fn stamps_of_change(kind: &LoggedChangeKind) -> u64 {
    match kind {
        LoggedChangeKind::Created { after } | LoggedChangeKind::Recreated { after, .. } => {
            stamps_of_revision(&after.contents, after.contents.revision())
        }
        LoggedChangeKind::Deleted { .. } => 0,
        LoggedChangeKind::Edited { edits, .. } => edits.iter().fold(0, |sum: u64, edit| {
            let kind = |stack: &Option<Stack>| stack.as_ref().map(|stack| (stack.item, stack.attributes.clone()));
            sum.wrapping_add(stamp_hash(edit.slot, kind(&edit.before) != kind(&edit.after)))
        }),
    }
}

/// Returns the sum of the hashes of the slots that have this revision as their stamp.
fn stamps_of_revision(contents: &Contents, revision: Revision) -> u64 {
    let stamped = (0..).map(Slot).zip(contents.slots()).filter(|(_, state)| state.changed_at == revision);
    stamped.fold(0, |sum, (slot, state)| sum.wrapping_add(stamp_hash(slot, state.identity_changed_at == revision)))
}

/// Hashes a changed slot, and whether its identity changed (the finalizer of SplitMix64).
fn stamp_hash(slot: Slot, has_new_identity: bool) -> u64 {
    let mut hash = (u64::from(slot.0) << 1 | u64::from(has_new_identity)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ hash >> 31
}

fn version_parts(inventory: &Inventory) -> (Epoch, Revision, Digest, bool) {
    (inventory.epoch, inventory.contents.revision(), inventory.contents.digest(), true)
}

/// Returns whether operations of a kind may add items, and whether they may remove items.
fn directions(kind: OperationKind) -> (bool, bool) {
    match kind {
        OperationKind::Create | OperationKind::Add | OperationKind::Import => (true, false),
        OperationKind::Delete | OperationKind::Remove | OperationKind::Drop => (false, true),
        OperationKind::Craft | OperationKind::Set => (true, true),
        OperationKind::Move | OperationKind::Transfer | OperationKind::Rearrange => (false, false),
    }
}

/// Compares what the rules reported with the slots: for each item, added minus removed must be the difference of the counts in
/// all changed slots.
fn check_flows(record: &LogRecord) -> Option<String> {
    let mut balance: BTreeMap<ItemCode, i128> = BTreeMap::new();
    for flow in &record.flows {
        let Some(kind) = record.kind_of(flow.operation) else { return Some("a flow has no operation".into()) };
        let Flow { item, added, removed, .. } = *flow;
        let (may_add, may_remove) = directions(kind);
        if added > 0 && !may_add || removed > 0 && !may_remove {
            let (kind, item) = (kind.name(), item.get());
            return Some(format!("a {kind} operation adds {added} and removes {removed} of item code {item}"));
        }
        *balance.entry(flow.item).or_default() += i128::from(flow.added) - i128::from(flow.removed);
    }
    for change in record.entries.iter().filter_map(|entry| entry.change.as_ref()) {
        let mut subtract = |item: ItemCode, count: u32, sign: i128| {
            *balance.entry(item).or_default() -= sign * i128::from(count);
        };
        let mut subtract_state = |state: &Inventory, sign: i128| {
            state.contents.stacks().for_each(|(_, stack)| subtract(stack.item, stack.count.get(), sign));
        };
        match &change.kind {
            LoggedChangeKind::Created { after } => subtract_state(after, 1),
            LoggedChangeKind::Deleted { before } => subtract_state(before, -1),
            LoggedChangeKind::Recreated { before, after } => {
                subtract_state(before, -1);
                subtract_state(after, 1);
            }
            LoggedChangeKind::Edited { edits, .. } => {
                for (stack, sign) in edits.iter().flat_map(|edit| [(&edit.before, -1), (&edit.after, 1)]) {
                    stack.iter().for_each(|stack| subtract(stack.item, stack.count.get(), sign));
                }
            }
        }
    }
    let wrong = balance.into_iter().find(|(_, difference)| *difference != 0)?;
    Some(format!("its flows of item code {} differ from its edits by {}", wrong.0.get(), wrong.1))
}
