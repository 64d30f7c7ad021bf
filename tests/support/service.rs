//! A model of the service for tests in virtual time, without a store, transport or threads. The production code decides
//! which change records of a mutation its streams receive.

use super::World;
use slotcast::domain::{
    Caller, Digest, Effect, Epoch, IdempotencyKey, InventoryId, InventoryLookup, KeyTag, Mutation, Revision, SessionId,
    Slot, Stack, Version,
};
use slotcast::sync::{ChangeKind, ChangeRecord, MutationContext, PublishedState};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Call {
    pub key: IdempotencyKey,
    pub mutation: Mutation,
    pub session: Option<SessionId>,
    pub predicted: Vec<(InventoryId, Digest)>,
}

/// The stacks of every past and present state, by inventory, epoch and revision.
pub type Ages = HashMap<(InventoryId, Epoch, Revision), Vec<(Slot, Stack)>>;

pub struct Service {
    pub world: World,
    pub ages: Ages,
    published: BTreeMap<InventoryId, Arc<PublishedState>>,
    replies: HashMap<IdempotencyKey, Vec<Version>>,
}

impl Service {
    pub fn new(world: World) -> Self {
        let published = |(id, inventory): (&InventoryId, &Arc<_>)| {
            (id.clone(), Arc::new(PublishedState::new(Some(Arc::clone(inventory)))))
        };
        let published = world.inventories.iter().map(published).collect();
        let mut service = Self { world, ages: Ages::new(), published, replies: HashMap::new() };
        service.remember();
        service
    }

    /// Returns a consistent snapshot of states.
    pub fn states(&self, ids: &[InventoryId]) -> Vec<Arc<PublishedState>> {
        ids.iter().map(|id| self.published.get(id).cloned().unwrap_or_default()).collect()
    }

    /// Applies a mutation and returns the versions of the reply; a repeated key returns the stored versions. Returns an
    /// error if the mutation is rejected.
    pub fn mutate(&mut self, call: &Call) -> Result<Vec<Version>, ()> {
        if let Some(versions) = self.replies.get(&call.key) {
            return Ok(versions.clone());
        }
        let Ok(effect) = self.world.mutate(&call.mutation) else {
            self.refuse(call);
            return Err(());
        };
        self.publish(call, &effect);
        self.remember();
        let versions: Vec<Version> = effect.touched.into_iter().map(|touched| touched.version).collect();
        self.replies.insert(call.key.clone(), versions.clone());
        Ok(versions)
    }

    fn publish(&mut self, call: &Call, effect: &Effect) {
        let (caller, reason) = (caller(), "".into());
        let (key, kind) = (KeyTag::of(&call.key), ChangeKind::of(&call.mutation));
        let context = MutationContext {
            session: call.session.as_ref(),
            predicted: &call.predicted,
            key,
            caller: &caller,
            kind,
            reason: &reason,
        };
        let current = |id: &InventoryId| self.world.inventory(id).map(|inventory| inventory.contents.digest());
        let confirmed = context.is_confirmed(effect, current);
        for touched in &effect.touched {
            if let Some(record) = context.record(touched, confirmed) {
                let state = self.published.entry(touched.version.id.clone()).or_default();
                *state = Arc::new(state.followed_by(touched.state.clone(), [record]));
            }
        }
        if let (Some(session), false) = (&call.session, confirmed) {
            context.untouched_predictions(&effect.touched).for_each(|id| self.correct(session, id));
        }
    }

    fn refuse(&mut self, call: &Call) {
        let Some(session) = &call.session else { return };
        for (id, _) in &call.predicted {
            self.correct(session, id);
        }
    }

    /// Publishes a correction, as after a desync report by a client.
    pub fn correct(&mut self, session: &SessionId, id: &InventoryId) {
        let Some(inventory) = self.world.inventory(id) else { return };
        let record = ChangeRecord::correction(session.clone(), caller(), &inventory);
        let state = self.published.entry(id.clone()).or_default();
        *state = Arc::new(state.followed_by(Some(inventory), [record]));
    }

    fn remember(&mut self) {
        for (id, inventory) in &self.world.inventories {
            let key = (id.clone(), inventory.epoch, inventory.contents.revision());
            let stacks = || inventory.contents.stacks().map(|(slot, stack)| (slot, stack.clone())).collect();
            self.ages.entry(key).or_insert_with(stacks);
        }
    }
}

pub fn caller() -> Caller {
    Caller::new("model").unwrap()
}
