//! Laws of the log over random histories with restarts, restores, imports and retention.
//!
//! `SLOTCAST_HISTORIES` is the number of histories (3 by default).

mod store_support;

use slotcast::catalog_file::default_catalog;
use slotcast::domain::{
    Caller, Digest, Edit, Epoch, Inventory, InventoryId, ItemCode, OperationKind, PredictionOutcome, Revision,
    SessionId, Slot, Stack, TouchedInventory, Version,
};
use slotcast::store::embedded::tools::import::{ExclusiveStore, Staging};
use slotcast::store::embedded::tools::{self, ProgressUpdate, Snapshot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::history::{PastState, PastTarget, RecordFilter};
use slotcast::store::log::{LogRecord, LoggedChangeKind, Position};
use slotcast::store::{MutationRecord, Store};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store_support::*;

const SLOTS: u16 = 12;
const STEPS: usize = 32;

fn quiet(_: ProgressUpdate) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A store, its model, and the random choices.
struct World {
    random: fastrand::Rng,
    place: Place,
    path: PathBuf,
    settings: EmbeddedSettings,
    model: LogModel,
    backup: Option<(PathBuf, LogModel)>,
    next: u32,
    /// The seed and the step, for messages.
    label: String,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let place = Place::new();
        let settings = EmbeddedSettings {
            key_window: Duration::from_secs(5),
            segment_bytes: [2 << 10, 20 << 10, 40 << 10][random.usize(..3)],
            history_age: Duration::from_secs([60, 1_000_000][random.usize(..2)]),
            history_bytes_max: [None, Some(8 << 10), Some(30 << 10)][random.usize(..3)],
            ..place.clock.settings()
        };
        let path = place.path();
        Self { random, place, path, settings, model: LogModel::default(), backup: None, next: 0, label: String::new() }
    }

    fn open(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.path, self.settings.clone()).expect("it opens")
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn unix_ms(&self) -> u64 {
        (self.settings.wall_clock)().as_millis() as u64
    }

    fn stack(&mut self) -> Option<Stack> {
        let attributes = vec![self.random.u8(..); self.random.usize(..3)];
        stack_with(self.random.u32(1..6), self.random.u32(..4), &attributes)
    }

    fn fresh(&mut self, name: &str) -> Arc<Inventory> {
        let epoch = self.number();
        let edits: Vec<Edit> = vec![(Slot(self.random.u16(..SLOTS)), self.stack())];
        inventory(name, self.random.bool().then_some("ann"), epoch, usize::from(SLOTS), &edits)
    }

    fn edit(&mut self, before: &Inventory) -> TouchedInventory {
        let slots: BTreeSet<u16> = (0..=self.random.usize(..3)).map(|_| self.random.u16(..SLOTS)).collect();
        let edits = slots.into_iter().map(|slot| (Slot(slot), self.stack())).collect();
        updated(before, edits)
    }

    /// Changes an inventory, or names it without a change.
    fn touch(&mut self, id: &InventoryId) -> TouchedInventory {
        let Some(before) = self.model.newest(id).cloned() else {
            if self.random.u32(..6) == 0 {
                // Created and deleted by the same mutation.
                let epoch = Epoch::new(self.number()).expect("not 0");
                let version = Version { id: id.clone(), epoch, revision: Revision(2), digest: Digest::EMPTY };
                return TouchedInventory { version, before: None, state: None, edits: Vec::new() };
            }
            return created(&self.fresh(id.as_str()));
        };
        match self.random.u32(..16) {
            0 => deleted(&before),
            1 => recreated(&before, &self.fresh(id.as_str())),
            2 => updated_by_nothing(&before),
            _ => self.edit(&before),
        }
    }

    fn mutation(&mut self, touched: Vec<TouchedInventory>) -> MutationRecord {
        let number = self.number();
        let caller = ["server-1", "server-2", "server-3"][self.random.usize(..3)];
        let name = uuid_key_of(caller, self.unix_ms(), number);
        let mut mutation = transaction(name, touched);
        mutation.reason = ["", "trade", "quest"][self.random.usize(..3)].into();
        mutation.session = self.random.bool().then(|| SessionId::new("phone").expect("a name"));
        let predictions =
            [PredictionOutcome::Unpredicted, PredictionOutcome::Confirmed, PredictionOutcome::Mispredicted];
        mutation.prediction = predictions[self.random.usize(..3)];
        let second = [OperationKind::Move, OperationKind::Transfer, OperationKind::Rearrange][self.random.usize(..3)];
        mutation.operations = vec![[OperationKind::Set, OperationKind::Craft][self.random.usize(..2)], second];
        mutation
    }

    /// Commits some mutations of one to three inventories each.
    fn commit(&mut self, store: &EmbeddedStore) {
        let mut batch = Vec::new();
        // The mutations build on each other, so the model has them first.
        let (now, size) = (self.unix_ms(), 1 + self.random.usize(..6));
        for _ in 0..size {
            let names: BTreeSet<usize> = (0..=self.random.usize(..3)).map(|_| self.random.usize(1..9)).collect();
            let touched = names.into_iter().map(|name| self.touch(&id(&format!("inv-{name}")))).collect();
            let mutation = self.mutation(touched);
            self.model.apply(std::slice::from_ref(&mutation), now);
            batch.push(mutation);
        }
        store.commit(&batch).expect("it commits");
    }

    /// Changes one inventory so often that it gets checkpoints.
    fn burst(&mut self, store: &EmbeddedStore) {
        let (name, now) = (id("inv-0"), self.unix_ms());
        let mut batch = Vec::new();
        for _ in 0..100 {
            let touched = match self.model.newest(&name).cloned() {
                Some(before) if self.random.u32(..900) == 0 => deleted(&before),
                Some(before) => self.edit(&before),
                None => created(&self.fresh("inv-0")),
            };
            let mutation = self.mutation(vec![touched]);
            self.model.apply(std::slice::from_ref(&mutation), now);
            batch.push(mutation);
        }
        store.commit(&batch).expect("it commits");
    }

    fn back_up(&mut self) {
        let number = self.number();
        let target = self.place.folder.path().join(format!("backup-{number}.db"));
        tools::backup(&Snapshot::open(&self.path).expect("it opens"), &target, false, &mut quiet)
            .expect("it is copied");
        self.backup = Some((target, self.model.clone()));
    }

    /// Restores the backup over the store, or into a new file.
    fn restore(&mut self) {
        let Some((source, mut model)) = self.backup.clone() else { return };
        let mut writer = model.writer;
        let is_replaced = self.random.bool();
        if is_replaced {
            writer = writer.max(self.model.writer);
        } else {
            let number = self.number();
            self.path = self.place.folder.path().join(format!("restored-{number}.db"));
        }
        let mut next = 1_000_000 + self.next * 1_000;
        let mut new_epoch = || {
            next += 1;
            epoch(next)
        };
        let label = u64::from(self.number());
        tools::restore(&source, &self.path, is_replaced, label, &mut new_epoch, &mut quiet).expect("it is restored");
        let snapshot = Snapshot::open(&self.path).expect("it opens");
        let inventories = snapshot.inventories().expect("it is read");
        model.restored(writer + 1, |id| inventories.find(id).expect("it is read").expect("it is there").epoch);
        self.model = model;
    }

    fn import(&mut self) {
        let claim = ExclusiveStore::open(&self.path).expect("no process has it open");
        let mut staging = Staging::new(&self.path).expect("there is room");
        let mut imported = Vec::new();
        // In order of ids.
        for name in ["imported-1", "imported-2", "inv-1", "inv-2"] {
            if self.model.newest(&id(name)).is_none() && self.random.bool() {
                let state = self.fresh(name);
                assert_eq!(staging.put(&state, 1).expect("it is staged"), None);
                imported.push(state);
            }
        }
        let now = (self.settings.wall_clock)();
        staging.commit(claim, &default_catalog(), now, &mut quiet).expect("it is imported");
        if !imported.is_empty() {
            self.model.import(&imported, now.as_millis() as u64);
        }
    }

    /// Lets time pass, so that the keys expire, and all rows so far are sealed.
    fn expire(&mut self, store: &EmbeddedStore) {
        self.place.clock.pass(Duration::from_secs(self.random.u64(6..50)));
        store.fold().expect("it folds and seals");
    }

    fn step(&mut self, mut store: EmbeddedStore) -> EmbeddedStore {
        match self.random.u32(..24) {
            0..=9 => self.commit(&store),
            10..=12 => self.burst(&store),
            13 => store.fold().expect("it folds"),
            14..=17 => self.expire(&store),
            18 | 19 => {
                drop(store);
                store = self.open();
            }
            20 => self.back_up(),
            21 => {
                drop(store);
                self.restore();
                store = self.open();
                // The settings may delete more than those of the backup's time.
                store.fold().expect("it folds");
            }
            22 => {
                drop(store);
                self.import();
                store = self.open();
            }
            _ => {
                let steps = [0, 0, -30_000, 20_000];
                self.place.clock.step_wall_clock(steps[self.random.usize(..4)]);
                store.fold().expect("it folds");
            }
        }
        store
    }

    fn check(&mut self, store: &EmbeddedStore, is_thorough: bool) {
        let found = tools::check(&Snapshot::open(&self.path).expect("it opens"), &mut quiet);
        assert_eq!(found.problems, Vec::<String>::new(), "{}", self.label);
        let planted = Planted::open(&self.path);
        let earliest = Position::from_u64(planted.meta("earliest").cast_unsigned());
        assert!(earliest >= self.model.earliest, "{}: the log gets records back", self.label);
        self.model.trim(earliest);
        let tombstones = planted
            .number("SELECT count(*) FROM tombstones WHERE last < (SELECT value FROM meta WHERE name = 'earliest')");
        assert_eq!(tombstones, 0, "{}", self.label);
        drop(planted);
        let snapshot = Snapshot::open(&self.path).expect("it opens");
        let views = Views { store, snapshot: &snapshot };
        self.check_supply(&views);
        if !is_thorough {
            return;
        }
        self.check_records(&snapshot);
        for (id, chain) in self.model.chains.clone() {
            self.check_changes(&views, &id, &chain);
            // A walk may undo 255 changes.
            let share = chain.versions.len().div_ceil(5).max(1);
            let first = self.random.usize(..share);
            for index in (first..chain.versions.len()).step_by(share) {
                self.check_version(&views, &id, &chain, index);
            }
        }
        for name in ["never", "inv-0", "inv-1", "inv-2", "inv-3", "inv-4", "inv-5", "inv-6", "inv-7", "inv-8"] {
            if !self.model.chains.contains_key(&id(name)) {
                assert_eq!(views.changes(&id(name), None, 9), None, "{}: {name}", self.label);
                let target = PastTarget::Revision { epoch: None, revision: Revision::CREATED };
                assert_eq!(views.state_at(&id(name), target), None, "{}: {name}", self.label);
            }
        }
    }

    fn check_supply(&self, views: &Views<'_>) {
        let supply = views.supply();
        let expected: Vec<_> =
            self.model.supply.iter().map(|((item, kind), amounts)| (*item, *kind, *amounts)).collect();
        assert_eq!(supply.totals.sorted(), expected, "{}", self.label);
        let last = self.model.records.last().map_or(Position::NONE, |record| record.position);
        assert_eq!(supply.position, last, "{}", self.label);
        assert_eq!(supply.totals.existing(), Ok(self.model.items()), "{}", self.label);
    }

    fn check_records(&mut self, snapshot: &Snapshot) {
        let all = snapshot.scan(&RecordFilter::default(), None, usize::MAX).expect("it is read");
        let kept: Vec<LogRecord> = self.model.kept().cloned().collect();
        assert!(all == kept, "{}: {} records, expected {}", self.label, all.len(), kept.len());
        for _ in 0..4 {
            let filter = self.filter();
            let limit = [1, 7, 1_000][self.random.usize(..3)];
            let (mut found, mut before) = (Vec::new(), None);
            loop {
                let page = snapshot.scan(&filter, before, limit).expect("it is read");
                assert!(page.len() <= limit);
                before = page.last().map(|record| record.position);
                if page.is_empty() || found.len() > 40 {
                    break;
                }
                found.extend(page);
            }
            let expected = kept.iter().filter(|record| is_match(&filter, record)).take(found.len().max(40));
            assert!(found.iter().take(expected.clone().count()).eq(expected), "{}: {filter:?}", self.label);
        }
    }

    fn filter(&mut self) -> RecordFilter {
        let times: Vec<u64> = self.model.records.iter().map(|record| record.time_ms).collect();
        let mut time = || {
            let is_set = self.random.u32(..3) == 0 && !times.is_empty();
            is_set.then(|| times[self.random.usize(..times.len())] + self.random.u64(..2))
        };
        let (from_ms, to_ms) = (time(), time());
        let is_set: [bool; 4] = std::array::from_fn(|_| self.random.u32(..3) == 0);
        let caller = ["server-1", "server-2", "slotcast import", "nobody"][self.random.usize(..4)];
        let kinds = [OperationKind::Set, OperationKind::Craft, OperationKind::Transfer, OperationKind::Import];
        RecordFilter {
            caller: is_set[0].then(|| Caller::new(caller).expect("a name")),
            item: ItemCode::new(self.random.u32(1..7)).filter(|_| is_set[1]),
            kind: is_set[2].then(|| kinds[self.random.usize(..4)]),
            reason: is_set[3].then(|| ["", "trade", "quest", "que"][self.random.usize(..4)].to_owned()),
            from_ms,
            to_ms,
        }
    }

    /// Walks the changes back: they are the model's, undoing them gives each earlier state, and repeating them from a
    /// full state gives the present one.
    fn check_changes(&mut self, views: &Views<'_>, id: &InventoryId, chain: &Chain) {
        let (mut from, mut records) = (None, Vec::new());
        let is_trimmed = loop {
            let page = views.changes(id, from, 1 + self.random.usize(..60)).expect("it has a history");
            records.extend(page.records);
            from = page.next;
            if from.is_none() {
                break page.is_trimmed;
            }
        };
        let positions = chain.versions.iter().filter_map(|version| version.position);
        let (trimmed, kept): (Vec<_>, Vec<_>) = positions.partition(|position| *position < self.model.earliest);
        assert_eq!(is_trimmed, !trimmed.is_empty(), "{}: {id:?}", self.label);
        assert!(records.iter().rev().map(|record| record.position).eq(kept), "{}: {id:?}", self.label);
        let mut slots = chain.versions.last().and_then(|newest| newest.state.as_deref()).map(slots_of);
        let mut versions = chain.versions.iter().rev();
        for record in &records {
            let (_, change) = record.change_of(id).expect("it changes the inventory");
            let after = versions.by_ref().find(|version| version.position == Some(record.position)).expect("a version");
            assert_eq!(slots, after.state.as_deref().map(slots_of), "{}: {id:?} {}", self.label, record.position);
            undo(&mut slots, &change.kind);
        }
        let mut replayed = None;
        for record in records.iter().rev() {
            let (_, change) = record.change_of(id).expect("it changes the inventory");
            replayed = repeat(replayed, &change.kind);
        }
        if let Some(replayed) = replayed {
            let newest = chain.versions.last().and_then(|newest| newest.state.as_deref()).map(slots_of);
            assert_eq!(replayed, newest, "{}: {id:?}", self.label);
        }
    }

    fn check_version(&self, views: &Views<'_>, id: &InventoryId, chain: &Chain, index: usize) {
        let version = &chain.versions[index];
        let newest = chain.versions.last().expect("a version");
        let expected = chain.at_version(index, self.model.earliest);
        let revision = version.revision;
        let of_epoch = PastTarget::Revision { epoch: Some(version.epoch), revision };
        assert_eq!(views.state_at(id, of_epoch), Some(expected.clone()), "{}: {id:?} {of_epoch:?}", self.label);
        if version.epoch == newest.epoch {
            let of_newest = PastTarget::Revision { epoch: None, revision };
            assert_eq!(views.state_at(id, of_newest), Some(expected), "{}: {id:?} {of_newest:?}", self.label);
        }
        if index + 1 == chain.versions.len() {
            let later = PastTarget::Revision { epoch: None, revision: revision.next() };
            assert_eq!(views.state_at(id, later), Some(PastState::Absent), "{}: {id:?}", self.label);
        }
        let time_ms = version.time_ms;
        for unix_ms in [time_ms, [time_ms.saturating_sub(1), time_ms + 3_000][index % 2]] {
            let expected = chain.at_time(unix_ms, self.model.earliest, self.model.trimmed_ms);
            let found = views.state_at(id, PastTarget::Time { unix_ms });
            assert_eq!(found, Some(expected), "{}: {id:?} at {unix_ms}", self.label);
        }
    }
}

fn updated_by_nothing(state: &Arc<Inventory>) -> TouchedInventory {
    let (version, state) = (state.version(), Some(state.clone()));
    TouchedInventory { version, before: state.clone(), state, edits: Vec::new() }
}

type Slots = Vec<Option<Stack>>;

fn slots_of(inventory: &Inventory) -> Slots {
    inventory.contents.slots().iter().map(|slot| slot.stack.clone()).collect()
}

fn undo(slots: &mut Option<Slots>, change: &LoggedChangeKind) {
    match change {
        LoggedChangeKind::Created { .. } => *slots = None,
        LoggedChangeKind::Deleted { before } | LoggedChangeKind::Recreated { before, .. } => {
            *slots = Some(slots_of(before));
        }
        LoggedChangeKind::Edited { edits, .. } => {
            let slots = slots.as_mut().expect("it exists");
            for edit in edits {
                assert_eq!(slots[edit.slot.index()], edit.after);
                slots[edit.slot.index()].clone_from(&edit.before);
            }
        }
    }
}

/// Repeats a change; begins at the first full state. A checkpoint must be the state that was replayed.
fn repeat(replayed: Option<Option<Slots>>, change: &LoggedChangeKind) -> Option<Option<Slots>> {
    match change {
        LoggedChangeKind::Created { after } | LoggedChangeKind::Recreated { after, .. } => Some(Some(slots_of(after))),
        LoggedChangeKind::Deleted { .. } => Some(None),
        LoggedChangeKind::Edited { edits, checkpoint } => {
            let replayed = replayed.map(|slots| {
                let mut slots = slots.expect("it exists");
                edits.iter().for_each(|edit| slots[edit.slot.index()].clone_from(&edit.after));
                Some(slots)
            });
            let checkpoint = checkpoint.as_deref().map(|state| Some(slots_of(state)));
            assert!(replayed.is_none() || checkpoint.is_none() || replayed == checkpoint);
            checkpoint.or(replayed)
        }
    }
}

/// The rule of a filter, independent of the store.
fn is_match(filter: &RecordFilter, record: &LogRecord) -> bool {
    let mut items: BTreeSet<ItemCode> = record.flows.iter().map(|flow| flow.item).collect();
    for change in record.entries.iter().filter_map(|entry| entry.change.as_ref()) {
        let (edits, states) = match &change.kind {
            LoggedChangeKind::Edited { edits, .. } => (edits.as_slice(), vec![]),
            LoggedChangeKind::Created { after } => (&[][..], vec![after]),
            LoggedChangeKind::Deleted { before } => (&[][..], vec![before]),
            LoggedChangeKind::Recreated { before, after } => (&[][..], vec![before, after]),
        };
        items.extend(edits.iter().flat_map(|edit| [&edit.before, &edit.after]).flatten().map(|stack| stack.item));
        items.extend(states.iter().flat_map(|state| state.contents.stacks()).map(|(_, stack)| stack.item));
    }
    let RecordFilter { caller, item, kind, reason, from_ms, to_ms } = filter;
    caller.as_ref().is_none_or(|caller| record.caller == *caller)
        && item.is_none_or(|item| items.contains(&item))
        && kind.is_none_or(|kind| record.operations.iter().any(|operation| operation.kind == kind))
        && reason.as_ref().is_none_or(|reason| *reason == *record.reason)
        && (from_ms.unwrap_or(0)..=to_ms.unwrap_or(u64::MAX)).contains(&record.time_ms)
}

/// The store, and the same file over another connection: both must answer the same.
struct Views<'a> {
    store: &'a EmbeddedStore,
    snapshot: &'a Snapshot,
}

impl Views<'_> {
    fn changes(
        &self,
        id: &InventoryId,
        from: Option<Position>,
        limit: usize,
    ) -> Option<slotcast::store::history::ChangesPage> {
        let found = self.store.changes(id, from, limit).expect("it is read");
        assert_eq!(self.snapshot.changes(id, from, limit).expect("it is read"), found, "{id:?} from {from:?}");
        found
    }

    fn state_at(&self, id: &InventoryId, target: PastTarget) -> Option<PastState> {
        let found = self.store.state_at(id, target).expect("it is read");
        assert_eq!(self.snapshot.state_at(id, target).expect("it is read"), found, "{id:?} {target:?}");
        found
    }

    fn supply(&self) -> slotcast::store::history::SupplyAt {
        let found = self.store.supply().expect("it is read");
        assert_eq!(self.snapshot.supply().expect("it is read"), found);
        found
    }
}

#[test]
fn the_log_of_a_random_history_agrees_with_a_model() {
    let histories = std::env::var("SLOTCAST_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut seen = [0; 4];
    for seed in 0..histories {
        let mut world = World::new(seed);
        let mut store = world.open();
        for step in 0..STEPS {
            world.label = format!("seed {seed}, step {step}");
            store = world.step(store);
            world.check(&store, step % 6 == 5 || step == STEPS - 1);
            let model = &world.model;
            let has_checkpoint = |record: &LogRecord| {
                let changes = record.entries.iter().filter_map(|entry| entry.change.as_ref());
                changes
                    .into_iter()
                    .any(|change| matches!(change.kind, LoggedChangeKind::Edited { checkpoint: Some(_), .. }))
            };
            seen[0] += usize::from(store.statistics().log_blocks > 2);
            seen[1] += usize::from(!model.earliest.is_none());
            seen[2] += usize::from(model.writer > 1);
            seen[3] += usize::from(model.kept().any(has_checkpoint));
        }
    }
    assert!(seen.iter().all(|seen| *seen > 0), "no blocks, deleted records, restores or checkpoints: {seen:?}");
}
