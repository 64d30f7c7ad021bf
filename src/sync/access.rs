//! Read access to inventories. An inventory that a reader may not read looks to it exactly like one that does not
//! exist.

use super::published::PublishedState;
use crate::domain::{Inventory, PlayerId};
use std::sync::Arc;

/// The inventories that a reader may read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ReadAccess {
    /// All inventories.
    #[default]
    All,
    /// Only inventories that this player owns.
    OwnedBy(PlayerId),
}

impl ReadAccess {
    /// Returns whether this reader may read the inventory.
    pub fn allows(&self, inventory: &Inventory) -> bool {
        match self {
            Self::All => true,
            Self::OwnedBy(player) => inventory.owner.as_ref() == Some(player),
        }
    }

    /// Returns the states as this reader may see them. Replaces the state of an inventory that it may not read by the
    /// state of one that never existed: without epoch, change records or trace.
    pub fn visible(&self, mut states: Vec<Arc<PublishedState>>) -> Vec<Arc<PublishedState>> {
        if self.is_restricted() {
            for state in &mut states {
                if !state.inventory.as_deref().is_some_and(|inventory| self.allows(inventory)) {
                    *state = Arc::default();
                }
            }
        }
        states
    }

    /// Returns whether inventories, or earlier epochs of them, may have to be hidden from this reader.
    pub fn is_restricted(&self) -> bool {
        match self {
            Self::All => false,
            Self::OwnedBy(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Caller, Contents, Epoch, InventoryId, LayoutId, Revision, SessionId};
    use crate::sync::subscription::{SUBSCRIPTION_SLOTS_MAX, check_size};
    use crate::sync::{
        ChangeRecord, PublishedState, SubscribeOptions, Subscription, SubscriptionTooLarge, SyncSettings,
    };
    use std::time::Duration;

    fn inventory(owner: Option<&str>, epoch: u32, slots: usize) -> Arc<Inventory> {
        Arc::new(Inventory {
            id: InventoryId::new("chest").unwrap(),
            owner: owner.map(|owner| PlayerId::new(owner).unwrap()),
            layout: LayoutId::new("chest").unwrap(),
            epoch: Epoch::new(epoch).unwrap(),
            contents: Contents::new(slots, Revision::CREATED, &[]),
        })
    }

    fn state(owner: Option<&str>, slots: usize) -> Arc<PublishedState> {
        Arc::new(PublishedState::new(Some(inventory(owner, 1, slots))))
    }

    fn of_steve() -> ReadAccess {
        ReadAccess::OwnedBy(PlayerId::new("steve").unwrap())
    }

    #[test]
    fn only_readable_inventories_count_towards_the_slot_limit() {
        let of_others = || vec![state(Some("alex"), SUBSCRIPTION_SLOTS_MAX), state(None, 1), Arc::default()];
        assert_eq!(check_size(&of_others()), Err(SubscriptionTooLarge { slots: SUBSCRIPTION_SLOTS_MAX + 1 }));
        let visible = of_steve().visible(of_others());
        assert_eq!((check_size(&visible), visible), (Ok(()), vec![Arc::default(); 3]));
        let own = vec![state(Some("steve"), SUBSCRIPTION_SLOTS_MAX), state(Some("steve"), 1)];
        assert_eq!(
            check_size(&of_steve().visible(own)),
            Err(SubscriptionTooLarge { slots: SUBSCRIPTION_SLOTS_MAX + 1 })
        );
    }

    #[test]
    fn a_player_learns_nothing_of_changes_made_while_another_player_owned_the_inventory() {
        let session = SessionId::new("mine").unwrap();
        // A record with this reader's session id, which another client may have copied.
        let record =
            |inventory: &Inventory| ChangeRecord::correction(session.clone(), Caller::new("lobby").unwrap(), inventory);
        let options =
            SubscribeOptions { resume: vec![None], session: Some(session.clone()), notices: true, access: of_steve() };
        let mut reader = Subscription::new(SyncSettings::immediate_full(), options);
        let mut poll = |at_ms: u64, state: &Arc<PublishedState>| {
            let states = of_steve().visible(vec![state.clone()]);
            reader.handle_states(&states);
            reader.poll_frame(Duration::from_millis(at_ms), || states.clone()).unwrap()
        };
        let mut now = state(Some("steve"), 27);
        assert!(poll(0, &now).unwrap().caught_up);
        let of_alex = inventory(Some("alex"), 2, 27);
        for _ in 0..200 {
            now = Arc::new(now.followed_by(Some(of_alex.clone()), [record(&of_alex)]));
        }
        let back = inventory(Some("steve"), 3, 27);
        now = Arc::new(now.followed_by(Some(back.clone()), [record(&back)]));
        let frame = poll(10, &now).expect("the inventory has a new epoch");
        assert_eq!((frame.changed.len(), frame.notices.len(), frame.notices_dropped), (1, 1, 0));
        assert_eq!((frame.included_keys.len(), frame.notices[0].1.epoch), (0, back.epoch));
    }
}
