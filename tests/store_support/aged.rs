//! A store with every part of a log.

use super::*;
use slotcast::store::embedded::EmbeddedSettings;
use slotcast::store::log::{LogRecord, LoggedChangeKind, Position};
use std::sync::LazyLock;
use std::time::Duration;

/// The file of a store with every part of a log: a deleted part, sealed segments with several blocks, folded journal rows,
/// unfolded journal rows, tombstones in each of them, and checkpoints.
pub static AGED_STORE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = Place::new();
    let settings = EmbeddedSettings {
        key_window: Duration::from_secs(10),
        segment_bytes: 24 << 10,
        history_age: Duration::from_secs(1_800),
        ..place.clock.settings()
    };
    let store = place.open_with(settings);
    let mut world = AgedWorld::new();
    let commit = |batch: Vec<MutationRecord>| drop(store.commit(&batch).expect("it commits"));
    let after_the_window = || {
        place.clock.pass(Duration::from_secs(11));
        store.fold().expect("it folds and seals");
    };

    commit(world.creations(&["quiet", "gone-trimmed", "gone-sealed", "gone-folded", "gone-unfolded", "still"]));
    commit(vec![world.deletion("gone-trimmed")]);
    (0..40).for_each(|_| commit(world.batch()));
    after_the_window();
    place.clock.pass(Duration::from_secs(3_600));
    for round in 0..112 {
        commit(world.batch());
        if round % 30 == 20 {
            commit(vec![world.edit("quiet")]);
            place.clock.pass(Duration::from_millis(7));
        }
    }
    commit(vec![world.deletion("gone-sealed")]);
    after_the_window();
    commit(vec![world.deletion("gone-folded")]);
    (0..10).for_each(|_| commit(world.batch()));
    store.fold().expect("it folds");
    commit(vec![world.deletion("gone-unfolded")]);
    (0..5).for_each(|_| commit(world.batch()));
    assert!(store.statistics().unfolded_records > 0);
    drop(store);
    std::fs::read(place.path()).expect("it is there")
});

/// The states that the store should have.
struct AgedWorld {
    history: History,
    states: BTreeMap<String, Arc<Inventory>>,
    next: u32,
}

impl AgedWorld {
    fn new() -> Self {
        let busy = inventory("busy", Some("ann"), 1, 9, &[(Slot(0), stack(7, 1))]);
        let mut world = Self { history: History::new(2_026, 12), states: Default::default(), next: 0 };
        world.states.insert("busy".into(), busy);
        world
    }

    fn transaction(&mut self, touched: TouchedInventory) -> MutationRecord {
        self.next += 1;
        let caller = ["server-1", "server-2", "server-3"][self.next as usize % 3];
        transaction(uuid_key_of(caller, u64::from(self.next), self.next), vec![touched])
    }

    fn creations(&mut self, names: &[&str]) -> Vec<MutationRecord> {
        for name in names {
            let state = inventory(name, Some("bob"), 40 + self.next, 9, &[(Slot(1), stack(6, 3))]);
            self.states.insert((*name).to_owned(), state);
        }
        let states: Vec<_> = self.states.values().cloned().collect();
        states.iter().map(|state| self.transaction(created(state))).collect()
    }

    fn edit(&mut self, name: &str) -> MutationRecord {
        let number = self.next;
        let edit = (Slot((number % 9) as u16), stack_with(7, number % 60 + 1, &[number as u8; 12]));
        let touched = updated(&self.states[name], vec![edit]);
        self.states.insert(name.to_owned(), touched.state.clone().expect("it is there"));
        self.transaction(touched)
    }

    fn deletion(&mut self, name: &str) -> MutationRecord {
        let before = self.states.remove(name).expect("it is there");
        self.transaction(deleted(&before))
    }

    /// Random mutations, and four changes of one inventory.
    fn batch(&mut self) -> Vec<MutationRecord> {
        let mut batch = self.history.batch();
        batch.extend((0..4).map(|_| self.edit("busy")));
        batch
    }
}

/// The parts of the log that have records.
#[derive(Debug, Clone, Copy)]
pub enum LogPart {
    Sealed,
    Folded,
    Unfolded,
}

pub const LOG_PARTS: [LogPart; 3] = [LogPart::Sealed, LogPart::Folded, LogPart::Unfolded];

impl Planted {
    pub fn part(&self, record: &LogRecord) -> LogPart {
        if record.position.get() <= self.meta("sealed_through").cast_unsigned() {
            return LogPart::Sealed;
        }
        let folded_through = self.meta("folded_through");
        let rows: Vec<i64> = self.journal_rows().into_iter().filter(|seq| *seq <= folded_through).collect();
        let last = self.journal_row(*rows.last().expect("a folded row")).1;
        if record.position <= last.last().expect("a record").position { LogPart::Folded } else { LogPart::Unfolded }
    }

    /// Returns a change of an inventory in the middle of a part of the log.
    pub fn change_of(&self, part: LogPart, name: &str) -> Position {
        let is_change = |record: &LogRecord| {
            let change = record.change_of(&id(name));
            change.is_some_and(|(_, change)| matches!(change.kind, LoggedChangeKind::Edited { checkpoint: None, .. }))
        };
        let mut changes = self.records();
        changes.retain(|record| is_change(record) && self.part(record) as u8 == part as u8);
        changes[changes.len() / 2].position
    }

    pub fn record(&self, position: Position) -> LogRecord {
        self.records().into_iter().find(|record| record.position == position).expect("a record")
    }

    /// Returns the last record with a checkpoint of the busy inventory.
    pub fn checkpoint(&self) -> Position {
        let is_checkpoint = |record: &LogRecord| {
            let change = record.change_of(&id("busy"));
            change
                .is_some_and(|(_, change)| matches!(change.kind, LoggedChangeKind::Edited { checkpoint: Some(_), .. }))
        };
        self.records().into_iter().rfind(is_checkpoint).expect("a checkpoint").position
    }
}
