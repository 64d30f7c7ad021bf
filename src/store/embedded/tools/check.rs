//! fsck: checks that the stored data is the data that was written. Changes nothing.
//!
//! It checks every page (with SQLite's own check, which also compares the indexes with their tables), every checksum of the
//! store, every inventory's digest and stamps, every journal row and key, and the whole history that is kept:
//!
//! - each entry continues the one before it ([`super::chains`]), and the newest one of each inventory has its state;
//! - each record's flows, which the rules reported, are the differences of its slots;
//! - each segment's sets and sums are those of its records;
//! - the supply is what was deleted from the log, plus what the log has; and all inventories together hold it.
//!
//! Flows (reported by the rules), states (the table) and sums (added up when sealing) come from three sources, so no wrong row
//! agrees with all of them.

use super::chains::ChainCheck;
use super::log_check::{LogCheck, check_log};
use super::snapshot::{Inventories, Snapshot};
use super::{ProgressCallback, ProgressUpdate};
use crate::domain::catalog::LAYOUT_SLOTS_MAX;
use crate::domain::{Inventory, ItemCode, Revision};
use crate::store::StoreError;
use crate::store::embedded::log::totals::{self, TotalsTable};
use crate::store::embedded::{failure, replay, table};
use crate::store::supply::SupplyTotals;
use std::collections::BTreeMap;

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
    /// Number of records in the log.
    pub records: u64,
    /// Number of idempotency keys in the journal.
    pub keys: u64,
    /// Number of inventories whose newest state is in the journal alone.
    pub unfolded_inventories: u64,
}

impl Findings {
    pub(super) fn add_problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.problems_omitted += 1;
        }
    }

    pub(super) fn add_error(&mut self, error: &StoreError) {
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
    let log = check_log(snapshot, &mut findings, on_progress);
    let mut is_replayable = true;
    let unfolded = replay::unfolded(snapshot.connection(), |error| {
        is_replayable = false;
        findings.add_error(&error);
        Ok(())
    });
    let checked = log.and_then(|log| {
        let unfolded = unfolded?;
        findings.unfolded_inventories = unfolded.states.len() as u64;
        let connection = snapshot.connection();
        let inventories = Inventories { connection, unfolded: unfolded.states.into_iter().collect() };
        let LogCheck { mut chains, state, is_incomplete, .. } = log;
        // Inventories that were not replayed, or whose changes were not read, would only be reported again.
        let is_comparable = is_replayable && !is_incomplete;
        if !is_comparable {
            chains = ChainCheck::default();
        }
        let mut compared = Compared { chains, writer: state.writer, is_comparable, is_complete: true };
        check_inventories(&inventories, &mut findings, &mut compared, on_progress)?;
        if is_comparable {
            compared.chains.missing().for_each(|missing| findings.add_problem(missing));
        }
        // The items of an unreadable inventory would only be reported again.
        if is_comparable && compared.is_complete {
            check_balance(snapshot, &mut findings, &unfolded.supply)?;
        }
        Ok(())
    });
    if let Err(error) = checked {
        findings.add_error(&error);
    }
    findings
}

/// The inventories in the log, to be compared with the store.
struct Compared {
    chains: ChainCheck,
    writer: u16,
    /// Whether the log could be read as a whole.
    is_comparable: bool,
    /// Whether all inventories could be read.
    is_complete: bool,
}

/// Compares the items in all inventories with the supply: what was added minus what was removed.
fn check_balance(snapshot: &Snapshot, findings: &mut Findings, unfolded: &SupplyTotals) -> Result<(), StoreError> {
    let mut supply = totals::read(snapshot.connection(), TotalsTable::Supply)?;
    supply.add_all(unfolded);
    let existing = match supply.existing() {
        Ok(existing) => existing,
        Err(item) => {
            findings.add_problem(format!("more of item code {} were removed than added", item.get()));
            return Ok(());
        }
    };
    let items: Vec<ItemCode> = findings.items.keys().chain(existing.keys()).copied().collect();
    for item in std::collections::BTreeSet::from_iter(items) {
        let (held, expected) =
            (findings.items.get(&item).copied().unwrap_or(0), existing.get(&item).copied().unwrap_or(0));
        if u128::from(held) != expected {
            findings.add_problem(format!(
                "the inventories hold {held} of item code {}, but {expected} were added and not removed",
                item.get()
            ));
        }
    }
    Ok(())
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

fn check_inventories(
    inventories: &Inventories<'_>,
    findings: &mut Findings,
    compared: &mut Compared,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<(), StoreError> {
    let total = table::count(inventories.connection)?;
    let mut checked_rows = 0;
    inventories.each_with_tombstones(|id, found| {
        checked_rows += 1;
        if checked_rows % ROWS_PER_STEP == 0 {
            let _ = on_progress(ProgressUpdate { phase: "checking inventories", done: checked_rows, total });
        }
        match found {
            Ok(stored) => {
                if let Some(inventory) = stored.inventory() {
                    findings.inventories += 1;
                    for (_, stack) in inventory.contents.stacks() {
                        findings.stacks += 1;
                        *findings.items.entry(stack.item).or_default() += u64::from(stack.count.get());
                    }
                    check_stamps(inventory).into_iter().for_each(|problem| findings.add_problem(problem));
                }
                if compared.is_comparable {
                    let problem = compared.chains.compare(id, &stored, compared.writer);
                    problem.into_iter().for_each(|problem| findings.add_problem(problem));
                }
            }
            Err(error) => {
                compared.is_complete = false;
                compared.chains.exclude(id.as_str());
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
