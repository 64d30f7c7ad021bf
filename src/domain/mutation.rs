//! Mutations: atomic lists of operations on one or more inventories. A mutation creates one revision of each inventory
//! that it changes.

use super::catalog::{Catalog, Recipe};
use super::digest::Digest;
use super::flow::{Flow, Flows};
use super::ids::{Count, Epoch, InventoryId, ItemCode, LayoutId, PlayerId, Revision, Slot};
use super::inventory::{Contents, Draft, Edit, Inventory, Version};
use super::rejection::{Rejection, RejectionCause};
use super::rules;
use super::stack::{Attributes, Stack};
use std::sync::Arc;

/// Maximum number of operations in one mutation.
pub const OPERATIONS_MAX: usize = 128;
/// Maximum number of guards in one mutation.
pub const GUARDS_MAX: usize = 64;

/// One step of a mutation. `I` and `R` identify items and recipes: resolved in the catalog, or by the names in a
/// request ([`super::names`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation<I = ItemCode, R = Arc<Recipe>> {
    /// Creates an inventory with these stacks.
    Create { id: InventoryId, owner: Option<PlayerId>, layout: LayoutId, stacks: Vec<(Slot, Stack<I>)> },
    /// Deletes an inventory with everything in it.
    Delete { id: InventoryId },
    /// Adds items wherever they fit.
    Add { id: InventoryId, item: I, attributes: Attributes, count: Count, allow_partial: bool },
    /// Removes items by type; without `attributes`, from stacks with any attributes.
    Remove { id: InventoryId, item: I, attributes: Option<Attributes>, count: Count },
    /// Moves items from one slot to another; without a count, the whole stack, which may swap with another kind.
    Move { id: InventoryId, from: Slot, to: Slot, count: Option<Count> },
    /// Removes items from a slot; without a count, the whole stack.
    Drop { id: InventoryId, slot: Slot, count: Option<Count> },
    /// Consumes the inputs of a recipe and adds its outputs, `times` times.
    Craft { id: InventoryId, recipe: R, times: Count },
    /// Moves items from one inventory to another, wherever they fit or into `to_slot`.
    Transfer { from: InventoryId, what: TransferSource<I>, to: InventoryId, to_slot: Option<Slot>, allow_partial: bool },
    /// Replaces the content of a slot, for administrators; without a stack, empties it.
    Set { id: InventoryId, slot: Slot, stack: Option<Stack<I>> },
    /// Replaces the content of all slots without changing which items there are.
    Rearrange { id: InventoryId, stacks: Vec<(Slot, Stack<I>)> },
}

/// Selects the items that a transfer takes from its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferSource<I = ItemCode> {
    /// Takes from one slot; without a count, the whole stack.
    Slot { slot: Slot, count: Option<Count> },
    /// Takes by item, in ascending order of slots; without `attributes`, stacks with any attributes.
    Item { item: I, attributes: Option<Attributes>, count: Count },
}

/// An atomic list of operations with guards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation<I = ItemCode, R = Arc<Recipe>> {
    pub operations: Vec<Operation<I, R>>,
    /// The guards, checked in this order before the operations.
    pub expected: Vec<Guard>,
}

/// A condition on an inventory: the mutation is rejected unless the inventory is in exactly this state before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub id: InventoryId,
    /// Prevents a match with another life of the inventory that happens to be at the same revision.
    pub epoch: Epoch,
    pub revision: Revision,
}

impl<I, R> Mutation<I, R> {
    /// Returns every inventory that the mutation may read; ids may repeat.
    pub fn inventories(&self) -> impl Iterator<Item = &InventoryId> {
        let expected = self.expected.iter().map(|guard| &guard.id);
        self.operations.iter().flat_map(Operation::inventories).chain(expected)
    }
}

impl<I, R> Operation<I, R> {
    fn inventories(&self) -> impl Iterator<Item = &InventoryId> {
        let (one, other) = match self {
            Self::Transfer { from, to, .. } => (from, Some(to)),
            Self::Create { id, .. }
            | Self::Delete { id }
            | Self::Add { id, .. }
            | Self::Remove { id, .. }
            | Self::Move { id, .. }
            | Self::Drop { id, .. }
            | Self::Craft { id, .. }
            | Self::Set { id, .. }
            | Self::Rearrange { id, .. } => (id, None),
        };
        std::iter::once(one).chain(other)
    }
}

/// The result of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationOutcome {
    /// Number of items added, removed, moved or dropped; for a craft, the number of times.
    pub count: u32,
    /// Number of requested items that did not fit; 0 unless `allow_partial` is set.
    pub remainder: u32,
    /// The stack that a drop removed or that a set replaced.
    pub stack: Option<Stack>,
}

/// The result of a mutation: the outcome of each operation, and each inventory that the operations named, in order of
/// first mention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub outcomes: Vec<OperationOutcome>,
    /// The items that the operations added and removed, in order of operations.
    pub flows: Vec<Flow>,
    pub touched: Vec<TouchedInventory>,
}

/// An inventory that a mutation named, after the mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedInventory {
    /// The version after the mutation. A deleted inventory has its next revision and the empty digest.
    pub version: Version,
    /// The state before the mutation; `None` if the inventory did not exist.
    pub before: Option<Arc<Inventory>>,
    /// The state after the mutation; `None` if the inventory was deleted.
    pub state: Option<Arc<Inventory>>,
    /// The changed slots, if the inventory existed before and after the mutation; otherwise empty.
    pub edits: Vec<Edit>,
}

/// What a mutation did to one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition<'a> {
    /// Nothing that is recorded: the mutation did not change the inventory, or created and deleted it.
    Unchanged,
    Updated {
        before: &'a Inventory,
        after: &'a Arc<Inventory>,
    },
    Created {
        after: &'a Arc<Inventory>,
    },
    Deleted {
        before: &'a Inventory,
    },
    /// Deleted and created again, with a new epoch.
    Recreated {
        before: &'a Inventory,
        after: &'a Arc<Inventory>,
    },
}

impl TouchedInventory {
    pub fn transition(&self) -> Transition<'_> {
        match (&self.before, &self.state) {
            (None, None) => Transition::Unchanged,
            (None, Some(after)) => Transition::Created { after },
            (Some(before), None) => Transition::Deleted { before },
            (Some(before), Some(after)) if before.epoch != after.epoch => Transition::Recreated { before, after },
            (Some(_), Some(_)) if self.edits.is_empty() => Transition::Unchanged,
            (Some(before), Some(after)) => Transition::Updated { before, after },
        }
    }

    /// Returns whether the mutation changed the inventory, which creates a revision of it.
    pub fn is_changed(&self) -> bool {
        self.transition() != Transition::Unchanged
    }

    /// Returns whether the inventory existed neither before nor after the mutation.
    pub fn is_transient(&self) -> bool {
        self.before.is_none() && self.state.is_none()
    }
}

/// The outcome of a mutation for the session that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionOutcome {
    /// Committed; the session predicted nothing.
    Unpredicted,
    /// Committed; the prediction was correct, so the session already has the new state.
    Confirmed,
    /// Committed; the prediction was wrong.
    Mispredicted,
    /// Not committed although the session predicted it, or the session reported a desync: the session needs a full
    /// state.
    Correction,
}

/// Gives access to the current states of inventories.
pub trait InventoryLookup {
    /// Returns the current state, or `None` if the inventory does not exist.
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>>;
}

/// Computes the effect of a mutation on the states of `view` without changing them. `new_epoch` must return a new
/// random epoch.
pub fn apply(
    mutation: &Mutation,
    catalog: &Catalog,
    view: &impl InventoryLookup,
    new_epoch: &mut dyn FnMut() -> Epoch,
) -> Result<Effect, Rejection> {
    let mut scratch = MutationScratch { catalog, view, new_epoch, inventories: Vec::new(), flows: Flows::default() };
    for guard in &mutation.expected {
        scratch.check_guard(guard).map_err(|cause| Rejection::new(0, cause, catalog))?;
    }
    let mut outcomes = Vec::with_capacity(mutation.operations.len());
    for (index, operation) in mutation.operations.iter().enumerate() {
        scratch.flows.begin(index);
        let outcome = scratch.run(operation).map_err(|cause| Rejection::new(index, cause, catalog))?;
        scratch.flows.add_outcome(operation, &outcome);
        outcomes.push(outcome);
    }
    let MutationScratch { inventories, flows, .. } = scratch;
    let touched = inventories.into_iter().filter_map(InventoryScratch::finish).collect();
    Ok(Effect { outcomes, flows: flows.into_vec(), touched })
}

/// The working copies of all inventories that one mutation has named so far.
struct MutationScratch<'a, V> {
    catalog: &'a Catalog,
    view: &'a V,
    new_epoch: &'a mut dyn FnMut() -> Epoch,
    inventories: Vec<InventoryScratch>,
    flows: Flows,
}

/// The working copy of one inventory.
struct InventoryScratch {
    id: InventoryId,
    /// The state before the mutation; `None` if the inventory did not exist.
    before: Option<Arc<Inventory>>,
    /// The state after the operations so far; `None` if the inventory does not exist now.
    now: Option<Draft>,
    /// Whether the mutation created `now`.
    created: bool,
    /// The last inventory with this id that the mutation deleted.
    deleted: Option<Arc<Inventory>>,
}

impl<V: InventoryLookup> MutationScratch<'_, V> {
    fn check_guard(&self, guard: &Guard) -> Result<(), RejectionCause> {
        let not_found = || RejectionCause::InventoryNotFound { id: guard.id.clone() };
        let Version { epoch, revision, .. } = self.view.inventory(&guard.id).ok_or_else(not_found)?.version();
        if (epoch, revision) == (guard.epoch, guard.revision) {
            return Ok(());
        }
        Err(RejectionCause::StaleRevision { expected: guard.clone(), epoch, revision })
    }

    fn run(&mut self, operation: &Operation) -> Result<OperationOutcome, RejectionCause> {
        let catalog = self.catalog;
        match operation {
            Operation::Create { id, owner, layout, stacks } => self.create(id, owner.as_ref(), layout, stacks),
            Operation::Delete { id } => {
                let draft = self.draft(id)?.clone();
                self.flows.remove_stacks(draft.slots().filter_map(|slot| draft.stack(slot)));
                let deleted = draft.base().clone();
                let scratch = self.scratch(id);
                (scratch.now, scratch.deleted) = (None, Some(deleted));
                Ok(OperationOutcome::default())
            }
            Operation::Add { id, item, attributes, count, allow_partial } => {
                rules::add(self.draft(id)?, catalog, *item, attributes, *count, *allow_partial)
            }
            Operation::Remove { id, item, attributes, count } => {
                rules::remove(self.draft(id)?, *item, attributes.as_ref(), *count)
            }
            Operation::Move { id, from, to, count } => rules::move_stack(self.draft(id)?, catalog, *from, *to, *count),
            Operation::Drop { id, slot, count } => rules::drop(self.draft(id)?, *slot, *count),
            Operation::Craft { id, recipe, times } => rules::craft(self.draft(id)?, catalog, recipe, *times),
            Operation::Transfer { from, what, to, to_slot, allow_partial } => {
                self.transfer(from, what, to, *to_slot, *allow_partial)
            }
            Operation::Set { id, slot, stack } => rules::set(self.draft(id)?, catalog, *slot, stack.as_ref()),
            Operation::Rearrange { id, stacks } => rules::rearrange(self.draft(id)?, catalog, stacks),
        }
    }

    fn create(
        &mut self,
        id: &InventoryId,
        owner: Option<&PlayerId>,
        layout: &LayoutId,
        stacks: &[(Slot, Stack)],
    ) -> Result<OperationOutcome, RejectionCause> {
        let found = self.catalog.layout(layout);
        let slots = found.ok_or_else(|| RejectionCause::UnknownLayout { layout: layout.clone() })?.slots();
        let edits = rules::initial_edits(id, slots, self.catalog, stacks)?;
        let epoch = (self.new_epoch)();
        let scratch = self.scratch(id);
        if scratch.now.is_some() {
            return Err(RejectionCause::InventoryExists { id: id.clone() });
        }
        // Epochs are random. One that differs from the last one tells a recreation from an update.
        let epoch =
            if scratch.before.as_ref().is_some_and(|before| before.epoch == epoch) { epoch.other() } else { epoch };
        let contents = Contents::new(slots, Revision::CREATED, &edits);
        let (id, layout) = (id.clone(), layout.clone());
        scratch.now = Some(Draft::new(Arc::new(Inventory { id, owner: owner.cloned(), layout, epoch, contents })));
        scratch.created = true;
        Ok(OperationOutcome::default())
    }

    fn transfer(
        &mut self,
        from: &InventoryId,
        what: &TransferSource,
        to: &InventoryId,
        to_slot: Option<Slot>,
        allow_partial: bool,
    ) -> Result<OperationOutcome, RejectionCause> {
        if from == to {
            return Err(RejectionCause::SameInventory { id: from.clone() });
        }
        let catalog = self.catalog;
        self.draft(from)?;
        let mut target = self.draft(to)?.clone();
        let source = self.draft(from)?;
        let outcome = rules::transfer(source, &mut target, catalog, what, to_slot, allow_partial)?;
        *self.draft(to)? = target;
        Ok(outcome)
    }

    /// Returns the working copy of an inventory; makes it on first use.
    fn scratch(&mut self, id: &InventoryId) -> &mut InventoryScratch {
        let index = self.inventories.iter().position(|scratch| scratch.id == *id).unwrap_or_else(|| {
            let before = self.view.inventory(id);
            let now = before.clone().map(Draft::new);
            self.inventories.push(InventoryScratch { id: id.clone(), before, now, created: false, deleted: None });
            self.inventories.len() - 1
        });
        &mut self.inventories[index]
    }

    /// Returns the draft of an inventory, which must exist now.
    fn draft(&mut self, id: &InventoryId) -> Result<&mut Draft, RejectionCause> {
        let id = id.clone();
        self.scratch(&id).now.as_mut().ok_or(RejectionCause::InventoryNotFound { id })
    }
}

impl InventoryScratch {
    /// Returns the inventory after the mutation, or `None` if it did not exist and no operation created it.
    fn finish(self) -> Option<TouchedInventory> {
        let deletion = self
            .before
            .as_ref()
            .filter(|_| self.created || self.now.is_none())
            .map(|before| version_after_deletion(before));
        let Some(draft) = self.now else {
            // An inventory that the same mutation created was never committed, so there is no change to record.
            let version = deletion.or_else(|| self.deleted.as_deref().map(version_after_deletion));
            return version.map(|version| TouchedInventory {
                version,
                before: self.before,
                state: None,
                edits: Vec::new(),
            });
        };
        let base = draft.base().clone();
        let edits = draft.into_edits();
        let (state, edits) = if self.created {
            let contents = base.contents.advanced(Revision::CREATED, &edits);
            (Arc::new(Inventory { contents, ..(*base).clone() }), Vec::new())
        } else if edits.is_empty() {
            (base, edits)
        } else {
            (Arc::new(base.advanced(&edits)), edits)
        };
        Some(TouchedInventory { version: state.version(), before: self.before, state: Some(state), edits })
    }
}

/// Returns the version of an inventory after its deletion.
fn version_after_deletion(deleted: &Inventory) -> Version {
    Version { revision: deleted.contents.revision().next(), digest: Digest::EMPTY, ..deleted.version() }
}
