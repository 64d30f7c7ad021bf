//! The mutations of one batch: applied in order to copies, then committed as a whole or dropped.

use super::hot::{HotTable, StagedState};
use super::{EngineError, MutationReply, MutationRequest};
use crate::domain::{
    self, Catalog, Effect, Epoch, Inventory, InventoryId, InventoryLookup, KeyTag, OperationKind, PredictionOutcome,
    Stack, TouchedInventory, Transition,
};
use crate::store::log::ChainHead;
use crate::store::{HeadBefore, KeyStatus, MutationRecord, Reply, ScopedKey};
use crate::sync::{ChangeKind, ChangeRecord, MutationContext};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::Arc;

/// The mutations of one batch, applied to copies.
pub(super) struct Batch<'a> {
    hot: &'a HotTable,
    /// The new states and change records of the inventories that the uncommitted mutations have affected so far.
    staged: HashMap<InventoryId, StagedState, RandomState>,
    /// The mutations, in order; those before `committed` are committed.
    mutation_records: Vec<MutationRecord>,
    committed: usize,
    /// Number of changes of inventories in the uncommitted mutations.
    changes: usize,
    /// Approximate size of the records of the uncommitted mutations, in bytes.
    uncommitted_bytes: usize,
    /// The index in `mutation_records` of each key.
    by_key: HashMap<ScopedKey, usize, RandomState>,
}

impl InventoryLookup for Batch<'_> {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        match self.staged.get(id) {
            Some(staged) => staged.inventory.clone(),
            None => self.hot.inventory(id).flatten(),
        }
    }
}

impl<'a> Batch<'a> {
    /// Creates a batch with room for `mutations`.
    pub fn new(hot: &'a HotTable, mutations: usize) -> Self {
        Self {
            hot,
            staged: HashMap::with_capacity_and_hasher(mutations, RandomState::default()),
            mutation_records: Vec::with_capacity(mutations),
            committed: 0,
            changes: 0,
            uncommitted_bytes: 0,
            by_key: HashMap::with_capacity_and_hasher(mutations, RandomState::default()),
        }
    }

    /// Runs a mutation, or returns its stored reply. If it fails, the session's streams correct what it predicted.
    pub fn run(
        &mut self,
        request: &MutationRequest,
        lookup: &KeyStatus,
        catalog: &Catalog,
    ) -> Result<MutationReply, EngineError> {
        let result = self.known_reply(request, lookup).unwrap_or_else(|| self.apply(request, catalog));
        if result.is_err() {
            request.predicted.iter().for_each(|(id, _)| self.record_correction(request, id));
        }
        result
    }

    /// Returns the reply to a mutation whose key is already known, or `None` if the key is new.
    fn known_reply(&self, request: &MutationRequest, lookup: &KeyStatus) -> Option<Result<MutationReply, EngineError>> {
        let in_this_batch = self.by_key.get(&request.key).map(|index| &self.mutation_records[*index]);
        let (payload, reply) = match (in_this_batch, lookup) {
            (Some(earlier), _) => (earlier.payload, &earlier.reply),
            (None, KeyStatus::Applied { payload, reply }) => (*payload, reply),
            (None, KeyStatus::Expired) => return Some(Err(EngineError::KeyExpired)),
            (None, KeyStatus::TooFarAhead { ahead_ms }) => {
                return Some(Err(EngineError::KeyFromTheFuture { ahead_ms: *ahead_ms }));
            }
            (None, KeyStatus::New) => return None,
        };
        if payload != request.payload {
            return Some(Err(EngineError::KeyReused));
        }
        Some(Ok(MutationReply { reply: reply.clone(), replayed: true, prediction_confirmed: false }))
    }

    fn apply(&mut self, request: &MutationRequest, catalog: &Catalog) -> Result<MutationReply, EngineError> {
        let mutation = request.mutation.resolve(catalog).map_err(EngineError::UnresolvedReference)?;
        let effect = domain::apply(&mutation, catalog, &*self, &mut new_epoch).map_err(EngineError::Rejected)?;
        let context = context(request);
        let current = |id: &InventoryId| self.inventory(id).map(|inventory| inventory.contents.digest());
        let prediction_confirmed = context.is_confirmed(&effect, current);
        let Effect { outcomes, flows, touched } = effect;
        let mut heads = Vec::with_capacity(touched.len());
        for inventory in &touched {
            let (is_watched, head) = self.hot.watched_and_head(&inventory.version.id);
            heads.push(self.head_before(&inventory.version.id, head));
            let record = if is_watched && !inventory.is_transient() {
                context.record(inventory, prediction_confirmed)
            } else {
                None
            };
            self.uncommitted_bytes += record_bytes(inventory);
            if record.is_some() || inventory.is_changed() {
                self.stage(request, inventory, record);
            }
        }
        if !prediction_confirmed {
            context.untouched_predictions(&touched).for_each(|id| self.record_correction(request, id));
        }
        let versions = touched.iter().map(|touched| touched.version.clone()).collect();
        let reply = Reply { outcomes, versions };
        self.by_key.insert(request.key.clone(), self.mutation_records.len());
        let (key, payload) = (request.key.clone(), request.payload);
        self.mutation_records.push(MutationRecord {
            key,
            payload,
            reason: request.reason.clone(),
            session: request.session.clone(),
            prediction: match (request.predicted.is_empty(), prediction_confirmed) {
                (true, _) => PredictionOutcome::Unpredicted,
                (false, true) => PredictionOutcome::Confirmed,
                (false, false) => PredictionOutcome::Mispredicted,
            },
            operations: mutation.operations.iter().map(OperationKind::of).collect(),
            flows,
            reply: reply.clone(),
            touched,
            heads,
        });
        Ok(MutationReply { reply, replayed: false, prediction_confirmed })
    }

    /// Returns where the chain of an inventory begins before the next mutation; `hot` is its head before the batch.
    fn head_before(&self, id: &InventoryId, hot: Option<ChainHead>) -> HeadBefore {
        match self.staged.get(id).and_then(|staged| staged.change) {
            Some(change) => HeadBefore::InBatch(change),
            None => hot.map_or(HeadBefore::Unknown, HeadBefore::Known),
        }
    }

    /// The mutations to commit.
    pub fn uncommitted_records(&self) -> &[MutationRecord] {
        &self.mutation_records[self.committed..]
    }

    /// Approximate size of the records of the mutations to commit, in bytes.
    pub fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Marks the mutations as committed, and returns the states to publish. `heads` tells where the chains of the changed
    /// inventories begin now.
    pub fn publish(&mut self, heads: &[ChainHead]) -> impl Iterator<Item = (InventoryId, StagedState)> {
        (self.committed, self.changes, self.uncommitted_bytes) = (self.mutation_records.len(), 0, 0);
        std::mem::take(&mut self.staged).into_iter().map(|(id, mut staged)| {
            staged.head = staged.change.and_then(|change| heads.get(change).copied());
            (id, staged)
        })
    }

    /// Stages the new state of an inventory, to be published once the batch is committed. `record` is `None` if nobody
    /// watches the inventory.
    fn stage(&mut self, request: &MutationRequest, touched: &TouchedInventory, record: Option<ChangeRecord>) {
        let staged = self.staged.entry(touched.version.id.clone()).or_insert_with(|| StagedState::new(None));
        staged.inventory.clone_from(&touched.state);
        if touched.is_changed() {
            staged.change = Some(self.changes);
            self.changes += 1;
        }
        staged.trace = request.trace.or(staged.trace);
        staged.records.extend(record);
    }

    /// Stages a record that makes the session's streams send a full state of an inventory that it predicted wrongly.
    fn record_correction(&mut self, request: &MutationRequest, id: &InventoryId) {
        let (Some(session), true) = (&request.session, self.hot.is_watched(id)) else { return };
        let Some(inventory) = self.inventory(id) else { return };
        let record = ChangeRecord::correction(session.clone(), request.key.caller.clone(), &inventory);
        let unchanged = || StagedState::new(Some(inventory));
        self.staged.entry(id.clone()).or_insert_with(unchanged).records.push(record);
    }
}

fn context(request: &MutationRequest) -> MutationContext<'_> {
    MutationContext {
        session: request.session.as_ref(),
        predicted: &request.predicted,
        key: KeyTag::of(&request.key.key),
        caller: &request.key.caller,
        kind: ChangeKind::of(&request.mutation),
        reason: &request.reason,
    }
}

/// Returns approximately how many bytes an inventory adds to the record of a mutation.
fn record_bytes(touched: &TouchedInventory) -> usize {
    let stack_bytes = |stack: &Stack| STACK_BYTES + stack.attributes.as_bytes().len();
    let state_bytes = |state: &Inventory| {
        let stacks: usize = state.contents.stacks().map(|(_, stack)| stack_bytes(stack)).sum();
        stacks + state.contents.slots().len() * STAMP_BYTES
    };
    match touched.transition() {
        Transition::Unchanged => 0,
        Transition::Updated { before, .. } => {
            let stacks = |(slot, after): &(_, Option<Stack>)| {
                before.contents.stack(*slot).map_or(0, stack_bytes) + after.as_ref().map_or(0, stack_bytes)
            };
            touched.edits.iter().map(stacks).sum()
        }
        Transition::Created { after: state } => state_bytes(state),
        Transition::Deleted { before: state } => state_bytes(state),
        Transition::Recreated { before, after } => state_bytes(before) + state_bytes(after),
    }
}

/// Typical size of a stack without attributes in a record, and of the stamps of a slot, in bytes.
const STACK_BYTES: usize = 8;
const STAMP_BYTES: usize = 2;

/// Returns a new random epoch.
pub fn new_epoch() -> Epoch {
    loop {
        if let Some(epoch) = Epoch::new(fastrand::u32(..)) {
            return epoch;
        }
    }
}
