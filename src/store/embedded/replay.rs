//! Opening: rebuilds the key index from the journal's rows, and the overlay from the rows that are not folded.
//!
//! A fold may have been interrupted, so a row of the table may be ahead of the mark for folded rows. The tail is the
//! part of the journal that is not folded. An inventory that was created in the tail is built from the tail alone; for
//! any other inventory, changes that its table row already contains are skipped. A change that does not continue the
//! state before it is reported as damage. Supply needs no such care: the last transaction of a fold writes it together with
//! the mark.

use super::failure::store_error;
use super::journal;
use super::keys::{KeyHasher, KeyIndex, RowLocation};
use super::log;
use super::open;
use super::overlay::{Generation, Overlay};
use super::settings::EmbeddedSettings;
use super::state::{InitialState, MemoryState};
use super::table::{self, StoredInventory, StoredState};
use crate::domain::{Edit, Epoch, Inventory, InventoryId, Revision, Version};
use crate::store::format::{Batch, BatchTime};
use crate::store::horizon::KeyHorizon;
use crate::store::log::{ChainHead, LogEntry, LogRecord, LoggedChange, LoggedChangeKind, Position};
use crate::store::supply::SupplyTotals;
use crate::store::{ScopedKey, StoreError};
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Rebuilds the store's memory from the file. Reads each remaining journal row once, and the table row of each
/// inventory that the tail changed.
pub fn replay(
    path: &Path,
    connection: &Connection,
    hasher: &KeyHasher,
    settings: &EmbeddedSettings,
) -> Result<MemoryState, StoreError> {
    let now = (settings.clock)();
    let meta_value =
        |name| journal::meta_value(connection, name).map_err(|error| store_error("reading the fold position", &error));
    let folded_through = meta_value(journal::FOLDED_THROUGH)?.unwrap_or(0);
    let mut tail = Tail::new(journal::horizon(connection, settings.keys_max)?);
    journal::scan(connection, i64::MIN, |seq, encoded| tail.visit(seq, encoded, folded_through, hasher))?;
    if tail.last.is_some_and(|last| last < folded_through) {
        let detail = format!("the journal ends before row {folded_through}, which was folded");
        return Err(StoreError::Corrupt { detail });
    }
    let (last_seq, records) = (tail.last.unwrap_or(folded_through), tail.records);
    let log = log::read_state(connection)?;
    let initial = InitialState {
        last_seq,
        next_position: log.next_position(tail.end),
        last_position: tail.end.map_or(Position::NONE, Position::before).max(log.sealed_through),
        last_time_ms: tail.time.time_ms.max(log.last_ms),
        log,
        folded_through,
        uptime_ms: tail.time.uptime_ms,
        opened_at: now,
    };
    let mut overlay = Overlay { active: Generation::with_capacity(tail.changes.len()), ..Overlay::default() };
    // In order of ids, which is the order of the table on disk.
    let mut changed: Vec<_> = std::mem::take(&mut tail.changes).into_iter().collect();
    changed.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for Replayed { id, state, created } in replay_all(path, &changed)? {
        overlay.active.put(id, state, created);
    }
    overlay.active.supply = std::mem::take(&mut tail.supply);
    if records > 0 {
        overlay.active.records = records;
        overlay.active.first_change_at = Some(now);
    }
    Ok(MemoryState::new(overlay, tail.keys, initial))
}

struct Replayed<'a> {
    id: &'a InventoryId,
    state: StoredInventory,
    created: bool,
}

/// Number of threads that replay in parallel, each with a part of the ids.
const THREADS: usize = 2;

fn replay_all<'a>(path: &Path, changed: &'a [(InventoryId, Vec<TailChange>)]) -> Result<Vec<Replayed<'a>>, StoreError> {
    let part = |changed: &'a [(InventoryId, Vec<TailChange>)]| {
        let connection = open::read_connection(path).map_err(|error| store_error("reading", &error))?;
        let replayed = changed.iter().map(|(id, changes)| {
            let created = changes.iter().any(|change| change.created().is_some());
            let state = latest(id, changes, || Ok(table::find(&connection, id)?))?;
            Ok(Replayed { id, state, created })
        });
        replayed.collect::<Result<Vec<_>, StoreError>>()
    };
    std::thread::scope(|scope| {
        let parts = changed.chunks(changed.len().div_ceil(THREADS).max(1));
        let threads: Vec<_> = parts.map(|changed| scope.spawn(move || part(changed))).collect();
        let mut all = Vec::with_capacity(changed.len());
        for thread in threads {
            let panicked = |_| StoreError::Unavailable { detail: "the replay panicked".into() };
            all.extend(thread.join().map_err(panicked)??);
        }
        Ok(all)
    })
}

/// Committed states that are not in the table, as seen by one connection.
#[derive(Debug)]
pub struct Unfolded {
    pub states: BTreeMap<InventoryId, StoredInventory>,
    /// The flows of the unfolded records.
    pub supply: SupplyTotals,
    /// The last journal row, or the last folded one if there is none after it.
    pub last_seq: i64,
}

/// Reads the unfolded states of a file that another process may have open. Passes errors to `on_error`, and leaves out
/// the damaged parts.
pub fn unfolded(
    connection: &Connection,
    mut on_error: impl FnMut(StoreError) -> Result<(), StoreError>,
) -> Result<Unfolded, StoreError> {
    let folded_through = journal::meta_value(connection, journal::FOLDED_THROUGH);
    let folded_through = folded_through.map_err(|error| store_error("reading the fold position", &error))?.unwrap_or(0);
    let (mut tail, hasher) = (Tail::new(KeyHorizon::new(None, usize::MAX)), KeyHasher::default());
    if let Err(error) =
        journal::scan(connection, folded_through + 1, |seq, encoded| tail.visit(seq, encoded, folded_through, &hasher))
    {
        on_error(error)?;
    }
    let mut states = BTreeMap::new();
    for (id, changes) in tail.changes {
        match latest(&id, &changes, || Ok(table::find(connection, &id)?)) {
            Ok(state) => drop(states.insert(id, state)),
            Err(error) => on_error(error)?,
        }
    }
    Ok(Unfolded { states, supply: tail.supply, last_seq: tail.last.unwrap_or(folded_through) })
}

/// A change of one inventory in the tail: what is needed to compute the state after it.
#[derive(Debug)]
struct TailChange {
    /// The position of its record.
    position: Position,
    epoch: Epoch,
    revision: Revision,
    kind: TailChangeKind,
    /// Whether its record has a full state.
    has_state: bool,
}

#[derive(Debug)]
enum TailChangeKind {
    Edited(Vec<Edit>),
    /// The state with which a life of the inventory begins.
    Created(Arc<Inventory>),
    Deleted,
}

impl TailChange {
    fn new(position: Position, version: &Version, change: LoggedChange) -> Self {
        let has_state = change.has_state();
        let kind = match change.kind {
            LoggedChangeKind::Edited { edits, .. } => {
                TailChangeKind::Edited(edits.into_iter().map(|edit| (edit.slot, edit.after)).collect())
            }
            LoggedChangeKind::Created { after } | LoggedChangeKind::Recreated { after, .. } => {
                TailChangeKind::Created(after)
            }
            LoggedChangeKind::Deleted { .. } => TailChangeKind::Deleted,
        };
        Self { position, epoch: version.epoch, revision: version.revision, kind, has_state }
    }

    fn created(&self) -> Option<&Arc<Inventory>> {
        match &self.kind {
            TailChangeKind::Created(after) => Some(after),
            TailChangeKind::Edited(_) | TailChangeKind::Deleted => None,
        }
    }
}

struct Tail {
    keys: KeyIndex,
    changes: HashMap<InventoryId, Vec<TailChange>>,
    supply: SupplyTotals,
    records: usize,
    last: Option<i64>,
    /// The position after the last record.
    end: Option<Position>,
    /// The time of the last row.
    time: BatchTime,
}

impl Tail {
    fn new(horizon: KeyHorizon) -> Self {
        Self {
            keys: KeyIndex::new(horizon),
            changes: HashMap::new(),
            supply: SupplyTotals::default(),
            records: 0,
            last: None,
            end: None,
            time: BatchTime::default(),
        }
    }

    fn visit(&mut self, seq: i64, encoded: &[u8], folded_through: i64, hasher: &KeyHasher) -> Result<(), StoreError> {
        let expected = self.last.map_or(seq.min(folded_through + 1), |last| last + 1);
        if seq != expected {
            return Err(StoreError::Corrupt { detail: format!("journal row {expected} is missing") });
        }
        let bad = |error| super::failure::corrupt(&format!("journal row {seq}"), &error);
        let batch = Batch::parse_with_checksum(encoded).map_err(bad)?;
        if let Some(end) = self.end.filter(|end| !batch.first.continues(*end)) {
            let detail = format!("journal row {seq} begins at position {}, not at {end}", batch.first);
            return Err(StoreError::Corrupt { detail });
        }
        if seq > folded_through {
            for record in batch.records() {
                self.add_record(record.map_err(bad)?);
            }
        }
        let keys: Vec<ScopedKey> = batch.keys().flat_map(Result::transpose).collect::<Result<_, _>>().map_err(bad)?;
        let location = RowLocation { seq, first: batch.first, count: batch.count, bytes: encoded.len() };
        self.keys.push(hasher.row(location, batch.time, keys.iter()), keys.iter());
        (self.last, self.end, self.time) = (Some(seq), Some(batch.end()), batch.time);
        Ok(())
    }

    fn add_record(&mut self, record: LogRecord) {
        self.supply.add_record(&record);
        self.records += 1;
        for LogEntry { version, change } in record.entries {
            let Some(change) = change else { continue };
            let change = TailChange::new(record.position, &version, change);
            match self.changes.get_mut(&version.id) {
                Some(changes) => changes.push(change),
                None => drop(self.changes.insert(version.id, vec![change])),
            }
        }
    }
}

/// Computes the state after an inventory's changes in the tail.
fn latest(
    id: &InventoryId,
    changes: &[TailChange],
    row: impl FnOnce() -> Result<Option<StoredInventory>, StoreError>,
) -> Result<StoredInventory, StoreError> {
    let gap = |what: &str| StoreError::Corrupt { detail: format!("inventory {id:?}: the journal {what}") };
    let last = changes.last().ok_or_else(|| gap("does not change it"))?;
    let in_tail = changes.iter().rev().find(|change| change.has_state).map(|change| change.position);
    let head = |row: Option<&StoredInventory>| {
        // The row may be ahead of the tail's beginning, but not of the tail.
        let checkpoint = in_tail.or(row.map(|row| row.head.checkpoint)).unwrap_or_default();
        ChainHead { last: last.position, checkpoint }
    };
    if let TailChangeKind::Deleted = last.kind {
        let (epoch, revision) = (last.epoch, last.revision);
        return Ok(StoredInventory { state: StoredState::Deleted { epoch, revision }, head: head(None) });
    }
    let creation = changes.iter().rposition(|change| change.created().is_some());
    let rest = &changes[creation.map_or(0, |creation| creation + 1)..];
    let (mut state, row) = match creation.and_then(|creation| changes[creation].created()) {
        Some(created) => (created.clone(), None),
        None => {
            let row = row()?.ok_or_else(|| gap("changes it, but it does not exist"))?;
            let state = row.inventory().ok_or_else(|| gap("changes it, but it was deleted"))?.clone();
            (state, Some(row))
        }
    };
    for TailChange { epoch, revision, kind, .. } in rest {
        let TailChangeKind::Edited(edits) = kind else {
            return Err(gap("deletes it twice"));
        };
        if *epoch != state.epoch {
            return Err(gap("contains a change of another epoch"));
        }
        if *revision <= state.contents.revision() {
            continue;
        }
        if *revision != state.contents.revision().next() {
            return Err(gap(&format!("misses revision {}", state.contents.revision().next().0)));
        }
        Arc::make_mut(&mut state).advance(edits);
    }
    Ok(StoredInventory { state: StoredState::Present(state), head: head(row.as_ref()) })
}
