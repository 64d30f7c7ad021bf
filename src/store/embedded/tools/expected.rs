//! The state of each inventory according to the remaining journal, to be compared with the store.

use crate::domain::{Change, Digest, Epoch, Inventory, InventoryId, Revision, Slot, Stack, Version};
use crate::store::format::Entry;
use std::collections::{BTreeMap, HashMap};

/// The inventories in the journal. Their number is bounded by the journal, which covers the key window.
#[derive(Debug, Default)]
pub struct Expected(HashMap<InventoryId, Told>);

/// The state of one inventory according to the journal.
#[derive(Debug)]
struct Told {
    epoch: Epoch,
    revision: Revision,
    /// The digest in the reply to the mutation's caller.
    digest: Option<Digest>,
    is_deleted: bool,
    /// The changed slots, each with the revision that changed it; all slots if the journal still contains the creation.
    slots: BTreeMap<Slot, (Revision, Option<Stack>)>,
}

impl Expected {
    /// Applies a record's changes. Returns the changes that do not continue the state before them.
    pub fn push(&mut self, entry: &Entry) -> Vec<String> {
        let problems = entry.changes.iter().filter_map(|change| self.follow(change)).collect();
        for Version { id, epoch, revision, digest } in &entry.reply.versions {
            if let Some(told) = self.0.get_mut(id)
                && (told.epoch, told.revision, told.is_deleted) == (*epoch, *revision, false)
            {
                told.digest = Some(*digest);
            }
        }
        problems
    }

    fn follow(&mut self, change: &Change) -> Option<String> {
        let (id, epoch, revision) = match change {
            Change::Created(created) => {
                let before = self.0.insert(created.id.clone(), Told::new(created));
                return before
                    .is_some_and(|before| !before.is_deleted)
                    .then(|| format!("inventory {:?}: the journal creates it although it is there", created.id));
            }
            Change::Updated { id, epoch, revision, .. } | Change::Deleted { id, epoch, revision } => {
                (id, *epoch, *revision)
            }
        };
        let told = self.0.entry(id.clone()).or_insert_with(|| Told::before(epoch, revision));
        let follows = told.epoch == epoch && told.revision.next() == revision && !told.is_deleted;
        (told.epoch, told.revision, told.digest) = (epoch, revision, None);
        match change {
            Change::Updated { edits, .. } => {
                told.slots.extend(edits.iter().map(|(slot, stack)| (*slot, (revision, stack.clone()))));
            }
            Change::Deleted { .. } | Change::Created(_) => told.is_deleted = true,
        }
        (!follows).then(|| {
            format!("inventory {id:?}: the journal's revision {} does not follow on the one before", revision.0)
        })
    }

    /// Compares an inventory with the expected state, and removes the expected state.
    pub fn check(&mut self, found: &Inventory) -> Option<String> {
        let told = self.0.remove(&found.id)?;
        let contents = &found.contents;
        let blame = |what: String| Some(format!("inventory {:?}: {what}", found.id));
        if told.is_deleted {
            return blame("it is there, but the journal has deleted it".into());
        }
        let (has, wanted) = ((found.epoch, contents.revision()), (told.epoch, told.revision));
        if has != wanted {
            let as_text = |(epoch, revision): (Epoch, Revision)| format!("{} of epoch {}", revision.0, epoch.get());
            return blame(format!("it is at revision {}, the journal at {}", as_text(has), as_text(wanted)));
        }
        if told.digest.is_some_and(|digest| digest != contents.digest()) {
            return blame("its digest is not the one that was answered for its revision".into());
        }
        let differs = |(slot, (revision, stack)): (&Slot, &(Revision, Option<Stack>))| {
            let state = contents.slots().get(slot.index());
            let is_same = state.is_some_and(|state| state.changed_at == *revision && state.stack == *stack);
            (!is_same).then_some(slot.0)
        };
        told.slots
            .iter()
            .find_map(differs)
            .and_then(|slot| blame(format!("its slot {slot} is not what the journal says")))
    }

    /// Excludes an inventory that cannot be compared.
    pub fn leave_out(&mut self, id: &str) {
        if let Ok(id) = InventoryId::new(id) {
            self.0.remove(&id);
        }
    }

    /// Reports the expected inventories that were not found.
    pub fn missing(self) -> impl Iterator<Item = String> {
        let mut missing: Vec<_> = self.0.into_iter().filter(|(_, told)| !told.is_deleted).map(|(id, _)| id).collect();
        missing.sort_unstable();
        missing.into_iter().map(|id| format!("inventory {id:?}: the journal has it, but it is not there"))
    }
}

impl Told {
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
