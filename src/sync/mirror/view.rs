//! The view: what the client shows, which is the confirmed state of each inventory with all pending mutations applied.

use crate::domain::{
    self, Catalog, Contents, Digest, Epoch, Inventory, InventoryId, InventoryLookup, Mutation, Rejection,
};
use std::sync::Arc;

/// The states that the client shows, in the order of the subscription. A state is `None` before the first frame and
/// while the inventory is absent.
#[derive(Debug)]
pub(super) struct View {
    states: Vec<Option<Arc<Inventory>>>,
}

/// The predicted state of one inventory, with its position in the subscription.
pub(super) type PositionedState = (usize, Arc<Inventory>);

impl View {
    pub fn new(states: Vec<Option<Arc<Inventory>>>) -> Self {
        Self { states }
    }

    pub fn contents(&self, position: usize) -> Option<&Contents> {
        self.states.get(position)?.as_ref().map(|state| &state.contents)
    }

    pub fn contains(&self, id: &InventoryId) -> bool {
        self.position(id).is_some()
    }

    /// Computes the states after a mutation that creates no inventory, of all inventories that it names.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] if the rules reject the mutation in this view.
    pub fn predict(&self, mutation: &Mutation, catalog: &Catalog) -> Result<Vec<PositionedState>, Rejection> {
        // Predictions never create an inventory, so the epoch is not used.
        let effect = domain::apply(mutation, catalog, self, &mut || Epoch::new(1).expect("1 is not 0"))?;
        let positioned =
            |touched: domain::TouchedInventory| Some((self.position(&touched.version.id)?, touched.state?));
        Ok(effect.touched.into_iter().filter_map(positioned).collect())
    }

    pub fn replace(&mut self, states: impl IntoIterator<Item = PositionedState>) {
        for (position, state) in states {
            self.states[position] = Some(state);
        }
    }

    /// Returns the positions of the inventories whose contents differ between this view and an earlier one.
    pub fn changed_since(&self, before: &[Option<Digest>]) -> Vec<usize> {
        let now = self.digests();
        (0..now.len()).filter(|position| now[*position] != before[*position]).collect()
    }

    pub fn digests(&self) -> Vec<Option<Digest>> {
        self.states.iter().map(|state| Some(state.as_ref()?.contents.digest())).collect()
    }

    fn position(&self, id: &InventoryId) -> Option<usize> {
        self.states.iter().position(|state| state.as_ref().is_some_and(|state| state.id == *id))
    }
}

impl InventoryLookup for View {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        self.states[self.position(id)?].clone()
    }
}
