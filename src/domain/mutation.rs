//! One mutation: a list of operations on one or more inventories, wholly or not at all, one revision for each inventory
//! that it changes.

use super::catalog::{Catalog, Recipe};
use super::digest::Digest;
use super::ids::{Count, Epoch, InventoryId, ItemCode, LayoutId, PlayerId, Revision, Slot};
use super::inventory::{Change, Contents, Draft, Inventory, Version};
use super::rejection::{Rejection, RejectionCause};
use super::rules;
use super::stack::{Attributes, Stack};
use std::sync::Arc;

/// The most operations one mutation may hold.
pub const OPERATIONS_MAX: usize = 128;
/// The most guards one mutation may have.
pub const GUARDS_MAX: usize = 64;

/// `I` and `R` are how items and recipes are given: as the catalog has them, or as a request names them
/// ([`super::names`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation<I = ItemCode, R = Arc<Recipe>> {
    Create { id: InventoryId, owner: Option<PlayerId>, layout: LayoutId, stacks: Vec<(Slot, Stack<I>)> },
    Delete { id: InventoryId },
    Add { id: InventoryId, item: I, attributes: Attributes, count: Count, allow_partial: bool },
    Remove { id: InventoryId, item: I, attributes: Option<Attributes>, count: Count },
    Move { id: InventoryId, from: Slot, to: Slot, count: Option<Count> },
    Drop { id: InventoryId, slot: Slot, count: Option<Count> },
    Craft { id: InventoryId, recipe: R, times: Count },
    Transfer { from: InventoryId, what: TransferSource<I>, to: InventoryId, to_slot: Option<Slot>, allow_partial: bool },
    Set { id: InventoryId, slot: Slot, stack: Option<Stack<I>> },
    Rearrange { id: InventoryId, stacks: Vec<(Slot, Stack<I>)> },
}

/// What a transfer takes from its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferSource<I = ItemCode> {
    /// From one slot; no count: the whole stack.
    Slot { slot: Slot, count: Option<Count> },
    /// By item, lowest slot first; no attributes: whatever they are.
    Item { item: I, attributes: Option<Attributes>, count: Count },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation<I = ItemCode, R = Arc<Recipe>> {
    pub operations: Vec<Operation<I, R>>,
    /// Checked in this order, before the operations.
    pub expected: Vec<Guard>,
}

/// A condition on an inventory: the mutation is rejected unless the inventory is in exactly this state before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub id: InventoryId,
    /// Without it a guard would also hold for another life of the inventory that happens to be at the same revision.
    pub epoch: Epoch,
    pub revision: Revision,
}

impl<I, R> Mutation<I, R> {
    /// Every inventory that applying it may read, each possibly more than once.
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

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationOutcome {
    /// How many items (of a craft: how many times).
    pub count: u32,
    /// How many of those asked for were left out; only where a part is allowed.
    pub remainder: u32,
    /// What left the inventory by a drop, or was replaced by a set.
    pub stack: Option<Stack>,
}

/// What a whole mutation did: an outcome an operation, and each inventory that it named, in order of first mention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub outcomes: Vec<OperationOutcome>,
    pub touched: Vec<Touched>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The version afterwards. A deletion has the next revision of the deleted inventory and the empty digest.
    pub version: Version,
    /// The state afterwards; none when deleted.
    pub state: Option<Arc<Inventory>>,
    /// Empty when the mutation left it as it was, or created and deleted it; two when it was deleted and created anew.
    pub changes: Vec<Change>,
}

impl Touched {
    /// The inventory existed neither before the mutation nor after it.
    pub fn is_transient(&self) -> bool {
        self.state.is_none() && self.changes.is_empty()
    }
}

/// Where the current states come from.
pub trait InventoryLookup {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>>;
}

/// Applies a mutation to the states of `view`, changing nothing there. `new_epoch` must give a fresh random epoch.
pub fn apply(
    mutation: &Mutation,
    catalog: &Catalog,
    view: &impl InventoryLookup,
    new_epoch: &mut dyn FnMut() -> Epoch,
) -> Result<Effect, Rejection> {
    let mut scratch = MutationScratch { catalog, view, new_epoch, inventories: Vec::new() };
    for guard in &mutation.expected {
        scratch.check_guard(guard).map_err(|cause| Rejection { operation: 0, cause })?;
    }
    let mut outcomes = Vec::with_capacity(mutation.operations.len());
    for (operation, wanted) in mutation.operations.iter().enumerate() {
        outcomes.push(scratch.run(wanted).map_err(|cause| Rejection { operation, cause })?);
    }
    let touched = scratch.inventories.into_iter().filter_map(InventoryScratch::finish).collect();
    Ok(Effect { outcomes, touched })
}

/// The inventories that one mutation has on its desk.
struct MutationScratch<'a, V> {
    catalog: &'a Catalog,
    view: &'a V,
    new_epoch: &'a mut dyn FnMut() -> Epoch,
    inventories: Vec<InventoryScratch>,
}

struct InventoryScratch {
    id: InventoryId,
    before: Option<Arc<Inventory>>,
    now: Option<Draft>,
    created: bool,
    /// The last inventory of this id that the mutation deleted.
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
                let deleted = self.draft(id)?.base().clone();
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
        let edits = rules::starting(id, slots, self.catalog, stacks)?;
        let epoch = (self.new_epoch)();
        let scratch = self.scratch(id);
        if scratch.now.is_some() {
            return Err(RejectionCause::InventoryExists { id: id.clone() });
        }
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
            return Err(RejectionCause::TransferToItself { id: from.clone() });
        }
        let catalog = self.catalog;
        self.draft(from)?;
        let mut target = self.draft(to)?.clone();
        let source = self.draft(from)?;
        let outcome = rules::transfer(source, &mut target, catalog, what, to_slot, allow_partial)?;
        *self.draft(to)? = target;
        Ok(outcome)
    }

    fn scratch(&mut self, id: &InventoryId) -> &mut InventoryScratch {
        let at = self.inventories.iter().position(|scratch| scratch.id == *id).unwrap_or_else(|| {
            let before = self.view.inventory(id);
            let now = before.clone().map(Draft::new);
            self.inventories.push(InventoryScratch { id: id.clone(), before, now, created: false, deleted: None });
            self.inventories.len() - 1
        });
        &mut self.inventories[at]
    }

    fn draft(&mut self, id: &InventoryId) -> Result<&mut Draft, RejectionCause> {
        let id = id.clone();
        self.scratch(&id).now.as_mut().ok_or(RejectionCause::InventoryNotFound { id })
    }
}

impl InventoryScratch {
    /// None when no operation of an accepted mutation found or made it.
    fn finish(self) -> Option<Touched> {
        let ended = self.before.as_ref().filter(|_| self.created || self.now.is_none()).map(|before| after_end(before));
        let mut changes = Vec::with_capacity(1);
        if let Some(Version { id, epoch, revision, .. }) = ended.clone() {
            changes.push(Change::Deleted { id, epoch, revision });
        }
        let Some(draft) = self.now else {
            // One that was created by the same mutation was never committed, so there is no change to record.
            let version = ended.or_else(|| self.deleted.as_deref().map(after_end));
            return version.map(|version| Touched { version, state: None, changes });
        };
        let base = draft.base().clone();
        let edits = draft.into_edits();
        let state = if self.created {
            let contents = base.contents.advanced(Revision::CREATED, &edits);
            let state = Arc::new(Inventory { contents, ..(*base).clone() });
            changes.push(Change::Created(state.clone()));
            state
        } else if edits.is_empty() {
            base
        } else {
            let state = Arc::new(base.advanced(&edits));
            let revision = state.contents.revision();
            changes.push(Change::Updated { id: self.id, epoch: state.epoch, revision, edits });
            state
        };
        Some(Touched { version: state.version(), state: Some(state), changes })
    }
}

/// The version that a deletion gives an inventory.
fn after_end(deleted: &Inventory) -> Version {
    Version { revision: deleted.contents.revision().next(), digest: Digest::EMPTY, ..deleted.version() }
}
