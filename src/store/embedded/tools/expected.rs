//! The state of each inventory according to the remaining journal, to be compared with the store.

use crate::domain::{Change, Digest, Epoch, Inventory, InventoryId, Revision, Slot, Stack, Version};
use crate::store::format::DecodedRecord;
use std::collections::{BTreeMap, HashMap};

/// The inventories in the journal. Their number is bounded by the journal, which covers the key window.
#[derive(Debug, Default)]
pub struct ExpectedInventories(HashMap<InventoryId, ExpectedInventory>);

/// The state of one inventory according to the journal.
#[derive(Debug)]
struct ExpectedInventory {
    epoch: Epoch,
    revision: Revision,
    /// The digest in the reply to the mutation's caller.
    digest: Option<Digest>,
    is_deleted: bool,
    /// The changed slots, each with the revision that changed it; all slots if the journal still contains the creation.
    slots: BTreeMap<Slot, (Revision, Option<Stack>)>,
}

impl ExpectedInventories {
    /// Applies a record's changes. Returns the changes that do not continue the state before them.
    pub fn push(&mut self, record: &DecodedRecord) -> Vec<String> {
        let problems = record.changes.iter().filter_map(|change| self.apply_change(change)).collect();
        for Version { id, epoch, revision, digest } in &record.reply.versions {
            if let Some(expected) = self.0.get_mut(id)
                && (expected.epoch, expected.revision, expected.is_deleted) == (*epoch, *revision, false)
            {
                expected.digest = Some(*digest);
            }
        }
        problems
    }

    fn apply_change(&mut self, change: &Change) -> Option<String> {
        let (id, epoch, revision) = match change {
            Change::Created(created) => {
                let before = self.0.insert(created.id.clone(), ExpectedInventory::new(created));
                return before
                    .is_some_and(|before| !before.is_deleted)
                    .then(|| format!("inventory {:?}: the journal creates it although it exists", created.id));
            }
            Change::Updated { id, epoch, revision, .. } | Change::Deleted { id, epoch, revision } => {
                (id, *epoch, *revision)
            }
        };
        let expected = self.0.entry(id.clone()).or_insert_with(|| ExpectedInventory::before(epoch, revision));
        let follows = expected.epoch == epoch && expected.revision.next() == revision && !expected.is_deleted;
        (expected.epoch, expected.revision, expected.digest) = (epoch, revision, None);
        match change {
            Change::Updated { edits, .. } => {
                expected.slots.extend(edits.iter().map(|(slot, stack)| (*slot, (revision, stack.clone()))));
            }
            Change::Deleted { .. } | Change::Created(_) => expected.is_deleted = true,
        }
        (!follows).then(|| {
            format!("inventory {id:?}: revision {} in the journal does not follow the previous one", revision.0)
        })
    }

    /// Compares an inventory with the expected state, and removes the expected state.
    pub fn check(&mut self, found: &Inventory) -> Option<String> {
        let expected = self.0.remove(&found.id)?;
        let contents = &found.contents;
        let problem = |text: String| Some(format!("inventory {:?}: {text}", found.id));
        if expected.is_deleted {
            return problem("it exists, but the journal deletes it".into());
        }
        let (found_version, expected_version) =
            ((found.epoch, contents.revision()), (expected.epoch, expected.revision));
        if found_version != expected_version {
            let as_text = |(epoch, revision): (Epoch, Revision)| format!("{} of epoch {}", revision.0, epoch.get());
            return problem(format!(
                "the store has revision {}, the journal has revision {}",
                as_text(found_version),
                as_text(expected_version)
            ));
        }
        if expected.digest.is_some_and(|digest| digest != contents.digest()) {
            return problem("its digest differs from the digest in the stored reply".into());
        }
        let differs = |(slot, (revision, stack)): (&Slot, &(Revision, Option<Stack>))| {
            let state = contents.slots().get(slot.index());
            let is_same = state.is_some_and(|state| state.changed_at == *revision && state.stack == *stack);
            (!is_same).then_some(slot.0)
        };
        expected
            .slots
            .iter()
            .find_map(differs)
            .and_then(|slot| problem(format!("slot {slot} differs from the journal")))
    }

    /// Excludes an inventory that cannot be compared.
    pub fn exclude(&mut self, id: &str) {
        if let Ok(id) = InventoryId::new(id) {
            self.0.remove(&id);
        }
    }

    /// Reports the expected inventories that were not found.
    pub fn missing(self) -> impl Iterator<Item = String> {
        let mut missing: Vec<_> =
            self.0.into_iter().filter(|(_, expected)| !expected.is_deleted).map(|(id, _)| id).collect();
        missing.sort_unstable();
        missing.into_iter().map(|id| format!("inventory {id:?}: the journal has it, but it is missing"))
    }
}

impl ExpectedInventory {
    fn new(created: &Inventory) -> Self {
        let contents = &created.contents;
        let slots = contents.slots().iter().enumerate();
        Self {
            epoch: created.epoch,
            revision: contents.revision(),
            digest: Some(contents.digest()),
            is_deleted: false,
            slots: slots.map(|(slot, state)| (Slot(slot as u16), (state.changed_at, state.stack.clone()))).collect(),
        }
    }

    /// The state of an inventory before its first change in the journal, which makes this revision.
    fn before(epoch: Epoch, revision: Revision) -> Self {
        let revision = Revision(revision.0.wrapping_sub(1));
        Self { epoch, revision, digest: None, is_deleted: false, slots: BTreeMap::new() }
    }
}
