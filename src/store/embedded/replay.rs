//! Opening: rebuilds the key index from the journal's rows, and the overlay from the rows that are not folded.
//!
//! A fold may have been interrupted, so a row of the table may be ahead of the mark for folded rows. The tail is the
//! part of the journal that is not folded. An inventory that was created in the tail is built from the tail alone; for
//! any other inventory, changes that its table row already contains are skipped. A change that does not continue the
//! state before it is reported as damage.

use super::failure::store_error;
use super::journal;
use super::keys::{KeyHasher, KeyIndex};
use super::open;
use super::overlay::{CommittedState, Generation, Overlay};
use super::settings::EmbeddedSettings;
use super::state::{InitialState, MemoryState};
use super::table;
use crate::domain::{Change, Inventory, InventoryId};
use crate::store::StoreError;
use crate::store::format;
use crate::store::horizon::KeyHorizon;
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
    let initial = InitialState { last_seq, folded_through, uptime_ms: tail.uptime_ms, opened_at: now };
    let mut overlay = Overlay { active: Generation::with_capacity(tail.changes.len()), ..Overlay::default() };
    // In order of ids, which is the order of the table on disk.
    let mut changed: Vec<_> = std::mem::take(&mut tail.changes).into_iter().collect();
    changed.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for Replayed { id, state, created } in replay_all(path, &changed)? {
        overlay.active.put(id, state, created);
    }
    if records > 0 {
        overlay.active.records = records;
        overlay.active.first_change_at = Some(now);
    }
    Ok(MemoryState::new(overlay, tail.keys, initial))
}

struct Replayed<'a> {
    id: &'a InventoryId,
    state: CommittedState,
    created: bool,
}

/// Number of threads that replay in parallel, each with a part of the ids.
const THREADS: usize = 2;

fn replay_all<'a>(path: &Path, changed: &'a [(InventoryId, Vec<Change>)]) -> Result<Vec<Replayed<'a>>, StoreError> {
    let part = |changed: &'a [(InventoryId, Vec<Change>)]| {
        let connection = open::read_connection(path).map_err(|error| store_error("reading", &error))?;
        let replayed = changed.iter().map(|(id, changes)| {
            let created = changes.iter().any(|change| matches!(change, Change::Created(_)));
            let state = latest(id, changes, || Ok(table::read(&connection, id)?))?;
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
    pub states: BTreeMap<InventoryId, CommittedState>,
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
        match latest(&id, &changes, || Ok(table::read(connection, &id)?)) {
            Ok(state) => drop(states.insert(id, state)),
            Err(error) => on_error(error)?,
        }
    }
    Ok(Unfolded { states, last_seq: tail.last.unwrap_or(folded_through) })
}

struct Tail {
    keys: KeyIndex,
    changes: HashMap<InventoryId, Vec<Change>>,
    records: usize,
    last: Option<i64>,
    uptime_ms: u64,
}

impl Tail {
    fn new(horizon: KeyHorizon) -> Self {
        Self { keys: KeyIndex::new(horizon), changes: HashMap::new(), records: 0, last: None, uptime_ms: 0 }
    }

    fn visit(&mut self, seq: i64, encoded: &[u8], folded_through: i64, hasher: &KeyHasher) -> Result<(), StoreError> {
        let expected = self.last.map_or(seq.min(folded_through + 1), |last| last + 1);
        if seq != expected {
            return Err(StoreError::Corrupt { detail: format!("journal row {expected} is missing") });
        }
        let bad = |error| super::failure::corrupt(&format!("journal row {seq}"), &error);
        if seq <= folded_through {
            let (time, keys) = format::decode_keys(encoded).map_err(bad)?;
            self.uptime_ms = time.uptime_ms;
            self.keys.push(hasher.row(seq, time, keys.iter()), keys.iter());
        } else {
            let (time, records) = format::decode_batch(encoded).map_err(bad)?;
            self.uptime_ms = time.uptime_ms;
            let keys = records.iter().map(|record| &record.key);
            self.keys.push(hasher.row(seq, time, keys.clone()), keys);
            self.records += records.len();
            for change in records.into_iter().flat_map(|record| record.changes) {
                match self.changes.get_mut(change.id()) {
                    Some(changes) => changes.push(change),
                    None => {
                        self.changes.insert(change.id().clone(), vec![change]);
                    }
                }
            }
        }
        self.last = Some(seq);
        Ok(())
    }
}

/// Computes the state after an inventory's changes in the tail.
fn latest(
    id: &InventoryId,
    changes: &[Change],
    row: impl FnOnce() -> Result<CommittedState, StoreError>,
) -> Result<CommittedState, StoreError> {
    let gap = |what: &str| StoreError::Corrupt { detail: format!("inventory {id:?}: the journal {what}") };
    if matches!(changes.last(), Some(Change::Deleted { .. })) {
        return Ok(None);
    }
    let creation = changes.iter().rposition(|change| matches!(change, Change::Created(_)));
    let rest = &changes[creation.map_or(0, |creation| creation + 1)..];
    let mut state: Arc<Inventory> = match creation.and_then(|creation| changes.get(creation)) {
        Some(Change::Created(inventory)) => inventory.clone(),
        Some(Change::Updated { .. } | Change::Deleted { .. }) | None => {
            row()?.ok_or_else(|| gap("changes it, but it does not exist"))?
        }
    };
    for change in rest {
        let Change::Updated { epoch, revision, edits, .. } = change else {
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
    Ok(Some(state))
}
