//! The known state of the watched inventories, and counts of the stream's messages. Pure: `now` is the time since the
//! start.

use crate::client::{ConnectionState, FollowCounts, SubscriptionUpdate};
use crate::domain::{Epoch, ItemCode, Slot, Stack};
use crate::sync::Replica;
use std::collections::HashMap;
use std::time::Duration;

/// How long a changed slot stays marked.
pub const MARK_TIME: Duration = Duration::from_millis(1_500);
/// The section that players see as the bottom row of their screen, although its slots come first.
const BOTTOM_SECTION: &str = "hotbar";

/// The watched inventories, in the order of the command line.
#[derive(Debug, Clone)]
pub struct WatchState {
    names: HashMap<ItemCode, String>,
    pub panels: Vec<InventoryPanel>,
    pub traffic: Traffic,
    pub connection: ConnectionState,
}

/// One watched inventory.
#[derive(Debug, Clone)]
pub struct InventoryPanel {
    pub id: String,
    sections: Vec<Section>,
    pub state: PanelState,
    changed_at: HashMap<Slot, Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PanelState {
    /// No state has arrived yet.
    Waiting,
    Known(Replica),
    /// The inventory does not exist, was deleted, or may not be read.
    Absent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub first: u16,
    pub slots: u16,
}

/// Counts of the stream's messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub counts: FollowCounts,
    /// Bytes of the messages until the state was caught up.
    pub initial_bytes: u64,
    /// Number of later frames with changes; `sync_bytes` is their size.
    pub syncs: u64,
    pub sync_bytes: u64,
    initial_is_done: bool,
}

/// The effect of one update on one inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanelChange {
    pub panel: usize,
    /// The slots that differ from the previous state.
    pub slots: Vec<Slot>,
    /// The inventory was not present before, or was replaced by a new inventory with the same id.
    pub is_new_epoch: bool,
}

/// The kind of an update, printed as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateKind {
    Full,
    Delta,
    Mixed,
    Absent,
    Heartbeat,
    /// Nothing was missing after a resume.
    CaughtUp,
}

impl WatchState {
    pub fn new(names: HashMap<ItemCode, String>, panels: Vec<InventoryPanel>) -> Self {
        Self { names, panels, traffic: Traffic::default(), connection: ConnectionState::Connecting }
    }

    /// Applies one update and returns the changes. `replica` returns the state of an inventory after the update.
    pub fn handle_update<'a>(
        &mut self,
        now: Duration,
        update: &SubscriptionUpdate,
        counts: FollowCounts,
        replica: impl Fn(usize) -> Option<&'a Replica>,
    ) -> (UpdateKind, Vec<PanelChange>) {
        let kind = kind(update, self.traffic.counts, counts);
        self.traffic.handle_update(update, counts);
        for index in &update.absent {
            let Some(panel) = self.panels.get_mut(*index) else { continue };
            panel.state = PanelState::Absent;
            panel.changed_at.clear();
        }
        let mut changes = Vec::new();
        for index in &update.changed {
            let (Some(panel), Some(after)) = (self.panels.get_mut(*index), replica(*index)) else { continue };
            let is_new_epoch = panel.epoch() != Some(after.epoch);
            changes.push(PanelChange { panel: *index, slots: panel.handle_state(now, after), is_new_epoch });
        }
        (kind, changes)
    }

    /// Returns the item's id, or its code if the catalog does not have the item.
    pub fn name(&self, stack: &Stack) -> String {
        self.names.get(&stack.item).cloned().unwrap_or_else(|| format!("#{}", stack.item.get()))
    }
}

impl InventoryPanel {
    pub fn new(id: &str, sections: Vec<Section>) -> Self {
        Self { id: id.to_owned(), sections, state: PanelState::Waiting, changed_at: HashMap::new() }
    }

    fn epoch(&self) -> Option<Epoch> {
        match &self.state {
            PanelState::Known(replica) => Some(replica.epoch),
            PanelState::Waiting | PanelState::Absent => None,
        }
    }

    pub fn set_sections(&mut self, sections: Vec<Section>) {
        self.sections = sections;
    }

    /// Returns whether the sections have as many slots as the inventory.
    pub fn has_current_sections(&self) -> bool {
        let slots: usize = self.sections.iter().map(|section| usize::from(section.slots)).sum();
        self.slots().is_none_or(|actual| actual == slots)
    }

    fn slots(&self) -> Option<usize> {
        match &self.state {
            PanelState::Known(replica) => Some(replica.contents.slots().len()),
            PanelState::Waiting | PanelState::Absent => None,
        }
    }

    fn handle_state(&mut self, now: Duration, after: &Replica) -> Vec<Slot> {
        let before = match &self.state {
            PanelState::Known(before) => Some(&before.contents),
            PanelState::Waiting | PanelState::Absent => None,
        };
        let slots = (0..after.contents.slots().len() as u16).map(Slot);
        let previous = |slot| before.and_then(|before| before.stack(slot));
        let changed: Vec<Slot> = slots.filter(|slot| previous(*slot) != after.contents.stack(*slot)).collect();
        self.changed_at.retain(|_, changed_at| *changed_at + MARK_TIME > now);
        // The first state is not marked as a change.
        if before.is_some() {
            self.changed_at.extend(changed.iter().map(|slot| (*slot, now)));
        }
        self.state = PanelState::Known(after.clone());
        changed
    }

    pub fn stack(&self, slot: Slot) -> Option<&Stack> {
        match &self.state {
            PanelState::Known(replica) => replica.contents.stack(slot),
            PanelState::Waiting | PanelState::Absent => None,
        }
    }

    pub fn is_marked(&self, slot: Slot, now: Duration) -> bool {
        self.changed_at.get(&slot).is_some_and(|changed_at| *changed_at + MARK_TIME > now)
    }

    /// Returns the sections from top to bottom as players see them; the hotbar is the bottom row.
    pub fn sections(&self) -> Vec<Section> {
        if let (false, Some(slots)) = (self.has_current_sections(), self.slots()) {
            // The sections of the inventory's layout are not known yet: show its slots as one block.
            return vec![Section { name: "slots".into(), first: 0, slots: slots as u16 }];
        }
        let (bottom, mut above): (Vec<_>, Vec<_>) =
            self.sections.iter().cloned().partition(|section| section.name == BOTTOM_SECTION);
        above.extend(bottom);
        above
    }
}

impl Traffic {
    fn handle_update(&mut self, update: &SubscriptionUpdate, counts: FollowCounts) {
        self.counts = counts;
        let bytes = update.bytes as u64;
        if !self.initial_is_done {
            self.initial_bytes += bytes;
            self.initial_is_done = update.caught_up;
        } else if !update.changed.is_empty() || !update.absent.is_empty() {
            self.syncs += 1;
            self.sync_bytes += bytes;
        }
    }

    /// Returns the average size of the frames after the initial messages, or `None` before the first of them.
    pub fn bytes_per_sync(&self) -> Option<f64> {
        (self.syncs > 0).then(|| self.sync_bytes as f64 / self.syncs as f64)
    }
}

fn kind(update: &SubscriptionUpdate, before: FollowCounts, after: FollowCounts) -> UpdateKind {
    match (after.fulls > before.fulls, after.deltas > before.deltas) {
        (true, true) => UpdateKind::Mixed,
        (true, false) => UpdateKind::Full,
        (false, true) => UpdateKind::Delta,
        (false, false) if !update.absent.is_empty() => UpdateKind::Absent,
        (false, false) if update.heartbeat => UpdateKind::Heartbeat,
        (false, false) => UpdateKind::CaughtUp,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Attributes, Contents, Count, Edit, Revision};

    pub fn stack(item: u32, count: u32) -> Stack {
        let (item, count) = (ItemCode::new(item).unwrap(), Count::new(count).unwrap());
        Stack { item, count, attributes: Attributes::NONE }
    }

    pub fn replica(revision: u64, slots: usize, stacks: &[(u16, Stack)]) -> Replica {
        let edits: Vec<Edit> = stacks.iter().map(|(slot, stack)| (Slot(*slot), Some(stack.clone()))).collect();
        Replica { epoch: Epoch::new(0x00c0_ffee).unwrap(), contents: Contents::new(slots, Revision(revision), &edits) }
    }

    /// Returns the state of a watch with a player named steve and a chest, whose states are not known yet.
    pub fn state() -> WatchState {
        let section = |name: &str, first, slots| Section { name: name.into(), first, slots };
        let names = [(1, "oak_planks"), (4, "dark_oak_planks"), (7, "cobblestone"), (26, "diamond_pickaxe")];
        let names = names.into_iter().map(|(code, name)| (ItemCode::new(code).unwrap(), name.to_owned())).collect();
        let player = InventoryPanel::new("steve", vec![section("hotbar", 0, 9), section("main", 9, 27)]);
        WatchState::new(names, vec![player, InventoryPanel::new("chest-1", vec![section("chest", 0, 27)])])
    }

    /// Applies a full frame or a delta of some bytes to one inventory.
    pub fn update(
        state: &mut WatchState,
        ms: u64,
        index: usize,
        replica: &Replica,
        bytes: usize,
    ) -> (UpdateKind, Vec<PanelChange>) {
        let caught_up = state.traffic.counts.fulls == 0;
        let mut counts = state.traffic.counts;
        counts.bytes += bytes as u64;
        if caught_up {
            counts.fulls += 1
        } else {
            counts.deltas += 1
        }
        let update = SubscriptionUpdate { changed: vec![index], bytes, caught_up, ..SubscriptionUpdate::default() };
        state.handle_update(Duration::from_millis(ms), &update, counts, |_| Some(replica))
    }

    #[test]
    fn changed_slots_are_marked_briefly_except_in_the_first_state() {
        let mut state = state();
        let (kind, first) = update(&mut state, 0, 0, &replica(1, 36, &[(0, stack(1, 64))]), 40);
        assert_eq!(
            (kind, first),
            (UpdateKind::Full, vec![PanelChange { panel: 0, slots: vec![Slot(0)], is_new_epoch: true }])
        );
        let (kind, second) = update(&mut state, 500, 0, &replica(2, 36, &[(0, stack(1, 63))]), 17);
        assert_eq!(
            (kind, second),
            (UpdateKind::Delta, vec![PanelChange { panel: 0, slots: vec![Slot(0)], is_new_epoch: false }])
        );
        let is_marked = |ms| state.panels[0].is_marked(Slot(0), Duration::from_millis(ms));
        assert_eq!([500, 1_999, 2_000].map(is_marked), [true, true, false]);
        assert!(!state.panels[0].is_marked(Slot(1), Duration::from_millis(500)));
    }

    #[test]
    fn bytes_per_sync_excludes_initial_frames_and_heartbeats() {
        let mut state = state();
        assert_eq!(state.traffic.bytes_per_sync(), None);
        update(&mut state, 0, 0, &replica(1, 36, &[]), 140);
        for (revision, bytes) in [(2, 16), (3, 20)] {
            update(&mut state, 10, 0, &replica(revision, 36, &[]), bytes);
        }
        let heartbeat = SubscriptionUpdate { heartbeat: true, bytes: 30, ..SubscriptionUpdate::default() };
        let counts = FollowCounts { heartbeats: 1, ..state.traffic.counts };
        let (kind, changes) = state.handle_update(Duration::ZERO, &heartbeat, counts, |_| None);
        assert_eq!((kind, changes), (UpdateKind::Heartbeat, vec![]));
        assert_eq!((state.traffic.initial_bytes, state.traffic.bytes_per_sync()), (140, Some(18.0)));
    }

    #[test]
    fn the_hotbar_is_the_bottom_section_and_an_unknown_layout_is_one_section() {
        let mut state = state();
        let names =
            |panel: &InventoryPanel| panel.sections().into_iter().map(|section| section.name).collect::<Vec<_>>();
        assert_eq!(names(&state.panels[0]), ["main", "hotbar"]);
        update(&mut state, 0, 0, &replica(1, 54, &[]), 40);
        assert_eq!(state.panels[0].sections(), [Section { name: "slots".into(), first: 0, slots: 54 }]);
    }

    #[test]
    fn an_absent_inventory_has_an_empty_panel() {
        let mut state = state();
        update(&mut state, 0, 0, &replica(1, 36, &[(0, stack(1, 64))]), 40);
        let absent = SubscriptionUpdate { absent: vec![0], ..SubscriptionUpdate::default() };
        let counts = state.traffic.counts;
        assert_eq!(state.handle_update(Duration::ZERO, &absent, counts, |_| None).0, UpdateKind::Absent);
        assert_eq!((&state.panels[0].state, state.panels[0].stack(Slot(0))), (&PanelState::Absent, None));
    }
}
