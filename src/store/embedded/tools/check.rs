//! fsck: checks that the stored data is the data that was written. Changes nothing.
//!
//! It checks every page (with SQLite's own check, which also compares the index with the table), every checksum of the
//! store, every inventory's digest and stamps, and every journal row and key. Then it compares the inventories with the
//! remaining journal's edits and with the digests in the replies to callers. So a wrong row with a matching checksum
//! and digest is found as long as the journal keeps a record of it.
//!
//! The store keeps no totals of items over its whole life. The fold could add up what each row gains and loses when it
//! writes the row. But these totals would be computed from the same states as the rows, so they would agree with the
//! rows whatever bug had produced them. Beyond the checks here, they could only reveal a row that was lost or written
//! past the store long ago. They would cost reading and decoding the old version of each folded row, and a new format.
//! The domain decides how mutations may change the totals, and is tested for that (`tests/domain/laws.rs`). The items
//! counted here can be compared with an expected result: a backup with its source, an export with its import.

use super::expected::ExpectedInventories;
use super::snapshot::{Inventories, Snapshot};
use super::{ProgressCallback, ProgressUpdate};
use crate::domain::catalog::LAYOUT_SLOTS_MAX;
use crate::domain::{Inventory, ItemCode, Revision};
use crate::store::StoreError;
use crate::store::embedded::keys::KeyHasher;
use crate::store::embedded::{failure, journal, replay, table};
use crate::store::format::{self, BatchTime};
use std::collections::{BTreeMap, HashSet};

/// Maximum number of problems in the findings; further problems are only counted.
pub const PROBLEMS_MAX: usize = 100;
/// Number of rows between two progress steps.
const ROWS_PER_STEP: u64 = 1_000;

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// At most [`PROBLEMS_MAX`] problems, in the order in which they were found.
    pub problems: Vec<String>,
    /// Number of further problems.
    pub problems_omitted: u64,
    pub inventories: u64,
    pub stacks: u64,
    /// Number of items, by item code.
    pub items: BTreeMap<ItemCode, u64>,
    pub journal_rows: u64,
    /// Number of idempotency keys in the journal.
    pub keys: u64,
    /// Number of inventories whose newest state is in the journal alone.
    pub unfolded_inventories: u64,
}

impl Findings {
    fn add_problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.problems_omitted += 1;
        }
    }

    fn add_error(&mut self, error: &StoreError) {
        self.add_problem(match error {
            StoreError::Corrupt { detail } => detail.clone(),
            StoreError::Full { .. } | StoreError::Unavailable { .. } => error.to_string(),
        });
    }
}

/// Checks the whole snapshot; the callback cannot interrupt it.
pub fn check(snapshot: &Snapshot, on_progress: &mut ProgressCallback<'_>) -> Findings {
    let mut findings = Findings::default();
    let _ = on_progress(ProgressUpdate { phase: "checking pages", done: 0, total: 0 });
    if let Err(error) = check_pages(snapshot, &mut findings) {
        findings.add_error(&failure::store_error("checking pages", &error));
    }
    let mut expected = ExpectedInventories::default();
    if let Err(error) = check_journal(snapshot, &mut findings, &mut expected, on_progress) {
        findings.add_error(&error);
    }
    let mut is_replayable = true;
    let unfolded = replay::unfolded(snapshot.connection(), |error| {
        is_replayable = false;
        findings.add_error(&error);
        Ok(())
    });
    // Inventories that were not replayed would only be reported as missing again.
    let mut expected = if is_replayable { expected } else { ExpectedInventories::default() };
    let checked = unfolded.and_then(|unfolded| {
        findings.unfolded_inventories = unfolded.states.len() as u64;
        let connection = snapshot.connection();
        let inventories = Inventories { connection, unfolded: unfolded.states.into_iter().collect() };
        check_inventories(&inventories, &mut findings, &mut expected, on_progress)
    });
    match checked {
        Ok(()) => expected.missing().for_each(|missing| findings.add_problem(missing)),
        Err(error) => findings.add_error(&error),
    }
    findings
}

fn check_pages(snapshot: &Snapshot, findings: &mut Findings) -> rusqlite::Result<()> {
    let mut check = snapshot.connection().prepare(&format!("PRAGMA integrity_check({PROBLEMS_MAX})"))?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let message: String = row.get(0)?;
        if message != "ok" {
            findings.add_problem(format!("SQLite: {message}"));
        }
    }
    Ok(())
}

fn check_journal(
    snapshot: &Snapshot,
    findings: &mut Findings,
    expected: &mut ExpectedInventories,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<(), StoreError> {
    let connection = snapshot.connection();
    let meta_value = |name| {
        journal::meta_value(connection, name).map_err(|error| failure::store_error("reading the fold position", &error))
    };
    let folded_through = meta_value(journal::FOLDED_THROUGH)?.unwrap_or(0);
    let rewritten_through = meta_value(journal::REWRITTEN_THROUGH)?.unwrap_or(i64::MIN);
    let (mut last, mut last_uptime_ms) = (None, 0);
    let (mut keys, hasher) = (HashSet::new(), KeyHasher::default());
    journal::scan(connection, i64::MIN, |seq, encoded| {
        findings.journal_rows += 1;
        if findings.journal_rows % ROWS_PER_STEP == 1 {
            let _ =
                on_progress(ProgressUpdate { phase: "checking the journal", done: findings.journal_rows, total: 0 });
        }
        let expected_seq = last.replace(seq).map_or(seq.min(folded_through + 1), |last: i64| last + 1);
        // After the last folded row, the replay reports errors.
        let is_folded = seq <= folded_through;
        if expected_seq != seq && is_folded {
            findings.add_problem(format!("journal row {expected_seq} is missing"));
        }
        let (BatchTime { uptime_ms, .. }, records) = match format::decode_batch(encoded) {
            Ok(read) => read,
            Err(error) if is_folded => {
                findings.add_problem(format!("journal row {seq}: {error}"));
                *expected = ExpectedInventories::default();
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        if uptime_ms < last_uptime_ms {
            findings.add_problem(format!("journal row {seq}: the store's clock goes back"));
        }
        last_uptime_ms = uptime_ms;
        for record in records {
            findings.keys += 1;
            if !keys.insert(hasher.hash(&record.key)) {
                findings.add_problem(format!("journal row {seq}: key {} was applied twice", record.key.key));
            }
            if seq > rewritten_through {
                expected.push(&record).into_iter().for_each(|problem| findings.add_problem(problem));
            }
        }
        Ok(())
    })?;
    if last.is_some_and(|last| last < folded_through) {
        findings.add_problem(format!("the journal ends before row {folded_through}, which was folded"));
    }
    Ok(())
}

fn check_inventories(
    inventories: &Inventories<'_>,
    findings: &mut Findings,
    expected: &mut ExpectedInventories,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<(), StoreError> {
    let total = table::count(inventories.connection)?;
    let mut checked_rows = 0;
    inventories.each(|found| {
        checked_rows += 1;
        if checked_rows % ROWS_PER_STEP == 0 {
            let _ = on_progress(ProgressUpdate { phase: "checking inventories", done: checked_rows, total });
        }
        match found {
            Ok(inventory) => {
                findings.inventories += 1;
                for (_, stack) in inventory.contents.stacks() {
                    findings.stacks += 1;
                    *findings.items.entry(stack.item).or_default() += u64::from(stack.count.get());
                }
                let problem = check_stamps(&inventory).or_else(|| expected.check(&inventory));
                expected.exclude(inventory.id.as_str());
                problem.into_iter().for_each(|problem| findings.add_problem(problem));
            }
            Err((id, error)) => {
                expected.exclude(&id);
                findings.add_problem(format!("inventory {id:?}: {error}"));
            }
        }
        Ok(())
    })
}

/// Checks the stamps. Reading the inventory has already compared its digest with its slots.
fn check_stamps(inventory: &Inventory) -> Option<String> {
    let (contents, id) = (&inventory.contents, &inventory.id);
    let (revision, slots) = (contents.revision(), contents.slots());
    if slots.is_empty() || slots.len() > LAYOUT_SLOTS_MAX {
        return Some(format!("inventory {id:?}: it has {} slots, but must have 1 to {LAYOUT_SLOTS_MAX}", slots.len()));
    }
    let is_wrong = slots.iter().position(|slot| {
        let in_order = Revision::CREATED <= slot.identity_changed_at && slot.identity_changed_at <= slot.changed_at;
        !in_order || slot.changed_at > revision
    });
    is_wrong.map(|slot| format!("inventory {id:?}: the stamps of slot {slot} are not in order"))
}
