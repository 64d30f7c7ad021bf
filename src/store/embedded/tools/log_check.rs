//! Checks the log of a store: blocks, segments and journal rows, and what they add up to.

use super::chains::ChainCheck;
use super::check::Findings;
use super::snapshot::Snapshot;
use super::{ProgressCallback, ProgressUpdate};
use crate::store::ScopedKey;
use crate::store::StoreError;
use crate::store::embedded::keys::{KeyHash, KeyHasher};
use crate::store::embedded::log::totals::{self, TotalsTable};
use crate::store::embedded::log::{self, LogState, tables};
use crate::store::embedded::{failure, journal};
use crate::store::format::Batch;
use crate::store::format::segment::SegmentHead;
use crate::store::log::{LogRecord, Position};
use crate::store::supply::SupplyTotals;
use std::collections::HashSet;

/// Number of batches between two progress steps.
const BATCHES_PER_STEP: u64 = 64;

/// The result of reading the whole log.
pub struct LogCheck {
    pub chains: ChainCheck,
    pub state: LogState,
    /// The flows of all folded records, including deleted ones: what the table of supply should have.
    folded: SupplyTotals,
    /// Whether a part of the log could not be read, so that the inventories cannot be compared with it.
    pub is_incomplete: bool,
}

/// Reads the whole log of a snapshot.
pub fn check_log(
    snapshot: &Snapshot,
    findings: &mut Findings,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<LogCheck, StoreError> {
    let connection = snapshot.connection();
    let state = log::read_state(connection)?;
    let mut check = LogCheck {
        chains: ChainCheck::new(state.earliest, state.trimmed_ms),
        state,
        folded: totals::read(connection, TotalsTable::Trimmed)?,
        is_incomplete: false,
    };
    check.check_segments(snapshot, findings, on_progress)?;
    check.check_journal(snapshot, findings, on_progress)?;
    check.check_supply(snapshot, findings);
    let last = check.chains.last();
    if last.writer() > state.writer {
        findings.add_problem(format!("the store writes as writer {}, but the log ends at {last}", state.writer));
    }
    Ok(check)
}

impl LogCheck {
    fn check_segments(
        &mut self,
        snapshot: &Snapshot,
        findings: &mut Findings,
        on_progress: &mut ProgressCallback<'_>,
    ) -> Result<(), StoreError> {
        let connection = snapshot.connection();
        let mut heads = Vec::new();
        tables::scan_segments(connection, |first, head| {
            match head {
                Ok(head) if head.first == first => heads.push(head),
                Ok(_) => findings.add_problem(format!("the segment of the log at position {first} begins elsewhere")),
                Err(error) => findings.add_error(&error),
            }
            Ok(())
        })?;
        let (blocks, bytes) =
            heads.iter().fold((0, 0), |(blocks, bytes), head| (blocks + head.blocks, bytes + head.bytes));
        if (blocks, bytes) != (self.state.blocks, self.state.bytes) {
            findings.add_problem(format!(
                "the store counts {} blocks of {} bytes, its segments {blocks} of {bytes}",
                self.state.blocks, self.state.bytes
            ));
        }
        if heads.last().map_or(Position::NONE, |head| head.last) != self.state.sealed_through && !heads.is_empty() {
            findings.add_problem(format!("the last segment does not end at position {}", self.state.sealed_through));
        }
        let mut batches = 0;
        // Blocks before the first segment or between two of them belong to none.
        let mut end = Position::NONE;
        for head in heads {
            let stray = tables::block_positions(connection, end, Position::from_u64(head.first.get() - 1))?;
            stray.iter().for_each(|first| {
                findings.add_problem(format!("the block of the log at position {first} belongs to no segment"));
            });
            end = head.last.plus(1);
            let mut rebuilt: Option<SegmentHead> = None;
            tables::scan_blocks(connection, head.first, head.last, |first, bytes, batch| {
                batches += 1;
                if batches % BATCHES_PER_STEP == 1 {
                    let _ = on_progress(ProgressUpdate {
                        phase: "checking the log",
                        done: batches,
                        total: self.state.blocks,
                    });
                }
                let records = match batch.and_then(|batch| read_all(&batch, first)) {
                    Ok(records) => records,
                    Err(error) => {
                        findings.add_error(&error);
                        self.is_incomplete = true;
                        return Ok(());
                    }
                };
                for record in &records {
                    findings.records += 1;
                    self.add_record(record, findings);
                    rebuilt.get_or_insert_with(|| SegmentHead::new(record)).add_record(record);
                }
                rebuilt.iter_mut().for_each(|rebuilt| rebuilt.add_block(bytes));
                Ok(())
            })?;
            if !self.is_incomplete {
                compare_segment(&head, rebuilt.as_ref()).into_iter().for_each(|problem| findings.add_problem(problem));
            }
        }
        let stray = tables::block_positions(connection, end, self.state.sealed_through)?;
        stray.iter().for_each(|first| {
            findings.add_problem(format!("the block of the log at position {first} belongs to no segment"));
        });
        Ok(())
    }

    fn check_journal(
        &mut self,
        snapshot: &Snapshot,
        findings: &mut Findings,
        on_progress: &mut ProgressCallback<'_>,
    ) -> Result<(), StoreError> {
        let connection = snapshot.connection();
        let folded_through = journal::meta_value(connection, journal::FOLDED_THROUGH)
            .map_err(|error| failure::store_error("reading the fold position", &error))?
            .unwrap_or(0);
        let (mut last, mut last_uptime_ms) = (None, 0);
        let (mut keys, hasher): (HashSet<KeyHash>, _) = (HashSet::new(), KeyHasher::default());
        journal::scan(connection, i64::MIN, |seq, encoded| {
            findings.journal_rows += 1;
            if findings.journal_rows % BATCHES_PER_STEP == 1 {
                let done = findings.journal_rows;
                let _ = on_progress(ProgressUpdate { phase: "checking the journal", done, total: 0 });
            }
            let expected_seq = last.replace(seq).map_or(seq.min(folded_through + 1), |last: i64| last + 1);
            // After the last folded row, the replay reports errors.
            let is_folded = seq <= folded_through;
            if expected_seq != seq && expected_seq <= folded_through {
                findings.add_problem(format!("journal row {expected_seq} is missing"));
                self.is_incomplete = true;
            }
            let batch = Batch::parse_with_checksum(encoded);
            let read = batch.and_then(|batch| Ok((batch.time, batch.records().collect::<Result<Vec<_>, _>>()?)));
            let (time, records) = match read {
                Ok(read) => read,
                Err(error) => {
                    if is_folded {
                        findings.add_problem(format!("journal row {seq}: {error}"));
                    }
                    self.is_incomplete = true;
                    return Ok(());
                }
            };
            if time.uptime_ms < last_uptime_ms {
                findings.add_problem(format!("journal row {seq}: the store's clock goes back"));
            }
            last_uptime_ms = time.uptime_ms;
            for record in records {
                if let Some(key) = record.key.clone() {
                    findings.keys += 1;
                    let caller = record.caller.clone();
                    let scoped = ScopedKey { caller, key };
                    if !keys.insert(hasher.hash(&scoped)) {
                        findings.add_problem(format!("journal row {seq}: key {} was applied twice", scoped.key));
                    }
                }
                // The records of a sealed row are in a block, too.
                if seq > self.state.sealed_row {
                    findings.records += 1;
                    self.chains.push(&record).into_iter().for_each(|problem| findings.add_problem(problem));
                    if is_folded {
                        self.folded.add_record(&record);
                    }
                } else if record.position > self.state.sealed_through {
                    findings.add_problem(format!("journal row {seq} is marked as sealed, but its blocks are missing"));
                }
            }
            Ok(())
        })?;
        if last.is_some_and(|last| last < folded_through) {
            findings.add_problem(format!("the journal ends before row {folded_through}, which was folded"));
        }
        Ok(())
    }

    fn add_record(&mut self, record: &LogRecord, findings: &mut Findings) {
        self.chains.push(record).into_iter().for_each(|problem| findings.add_problem(problem));
        self.folded.add_record(record);
    }

    /// Compares the table of supply with the flows of all folded records.
    fn check_supply(&self, snapshot: &Snapshot, findings: &mut Findings) {
        let supply = match totals::read(snapshot.connection(), TotalsTable::Supply) {
            Ok(supply) => supply,
            Err(error) => return findings.add_error(&error),
        };
        if self.is_incomplete || supply == self.folded {
            return;
        }
        let (supply, folded) = (supply.sorted(), self.folded.sorted());
        let differs =
            supply.iter().find(|row| !folded.contains(row)).or(folded.iter().find(|row| !supply.contains(row)));
        if let Some((item, kind, _)) = differs {
            findings.add_problem(format!(
                "the supply of item code {} by {} differs from the flows in the log",
                item.get(),
                kind.name()
            ));
        }
    }
}

fn read_all(batch: &[u8], first: Position) -> Result<Vec<LogRecord>, StoreError> {
    let corrupt = |error| failure::corrupt(&format!("the block of the log at position {first}"), &error);
    let batch = Batch::parse(batch).map_err(corrupt)?;
    if batch.first != first {
        let detail = format!("the block of the log at position {first} begins at position {}", batch.first);
        return Err(StoreError::Corrupt { detail });
    }
    batch.records().collect::<Result<_, _>>().map_err(corrupt)
}

fn compare_segment(head: &SegmentHead, rebuilt: Option<&SegmentHead>) -> Option<String> {
    let problem = |what: &str| {
        Some(format!("the segment of the log at position {}: its {what} differ from its records", head.first))
    };
    let Some(rebuilt) = rebuilt else { return problem("blocks") };
    if (head.first, head.last) != (rebuilt.first, rebuilt.last) {
        return problem("positions");
    }
    if (head.first_ms, head.last_ms) != (rebuilt.first_ms, rebuilt.last_ms) {
        return problem("times");
    }
    if (head.records, head.blocks, head.bytes) != (rebuilt.records, rebuilt.blocks, rebuilt.bytes) {
        return problem("sizes");
    }
    if (&head.callers, &head.items, &head.kinds) != (&rebuilt.callers, &rebuilt.items, &rebuilt.kinds) {
        return problem("sets");
    }
    if head.sums != rebuilt.sums { problem("sums") } else { None }
}
