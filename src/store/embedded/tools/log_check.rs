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
use crate::store::format::segment::SegmentHeader;
use crate::store::log::{LogRecord, Position};
use crate::store::supply::SupplyTotals;
use rusqlite::Connection;
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
        let mut read = SegmentsRead::default();
        let total = self.state.blocks;
        tables::scan_segments(connection, |first, header| {
            let header = match header {
                Ok(header) if header.first == first => header,
                Ok(_) => {
                    let detail = format!("the segment of the log at position {first} begins elsewhere");
                    findings.add_problem(detail);
                    return Ok(());
                }
                Err(error) => {
                    findings.add_error(&error);
                    self.is_incomplete = true;
                    return Ok(());
                }
            };
            self.report_stray_blocks(connection, read.end, header.first, findings)?;
            self.check_segment(connection, &header, findings, &mut |blocks| {
                let done = read.blocks + blocks;
                let _ = on_progress(ProgressUpdate { phase: "checking the log", done, total });
            })?;
            read.add(&header);
            Ok(())
        })?;
        self.report_stray_blocks(connection, read.end, self.state.sealed_through.plus(1), findings)?;
        if !self.is_incomplete {
            self.compare_totals(&read, findings);
        }
        Ok(())
    }

    /// Reports the blocks from `from` to before `to`, which belong to no segment.
    fn report_stray_blocks(
        &self,
        connection: &Connection,
        from: Position,
        to: Position,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        // The header of their segment may be damaged.
        if !self.is_incomplete {
            let last = Position::from_u64(to.get().saturating_sub(1));
            for first in tables::block_positions(connection, from, last)? {
                findings.add_problem(format!("the block of the log at position {first} belongs to no segment"));
            }
        }
        Ok(())
    }

    fn check_segment(
        &mut self,
        connection: &Connection,
        header: &SegmentHeader,
        findings: &mut Findings,
        on_blocks: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let (mut rebuilt, mut blocks, mut is_complete): (Option<SegmentHeader>, _, _) = (None, 0, true);
        tables::scan_blocks(connection, header.first, header.last, |first, bytes, batch| {
            if blocks % BATCHES_PER_STEP == 0 {
                on_blocks(blocks);
            }
            blocks += 1;
            match batch.and_then(|batch| read_all(&batch, first)) {
                Ok(records) => {
                    for record in &records {
                        findings.records += 1;
                        self.add_record(record, findings);
                        rebuilt.get_or_insert_with(|| SegmentHeader::new(record)).add_record(record);
                    }
                    rebuilt.iter_mut().for_each(|rebuilt| rebuilt.add_block(bytes));
                }
                Err(error) => {
                    findings.add_error(&error);
                    is_complete = false;
                }
            }
            Ok(())
        })?;
        if is_complete {
            compare_segment(header, rebuilt.as_ref()).into_iter().for_each(|problem| findings.add_problem(problem));
        }
        self.is_incomplete |= !is_complete;
        Ok(())
    }

    /// Compares the numbers that the store keeps about its segments with the segments.
    fn compare_totals(&self, read: &SegmentsRead, findings: &mut Findings) {
        let state = &self.state;
        if (read.blocks, read.bytes) != (state.blocks, state.bytes) {
            findings.add_problem(format!(
                "the store counts {} blocks of {} bytes, its segments {} of {}",
                state.blocks, state.bytes, read.blocks, read.bytes
            ));
        }
        if read.oldest_times.unzip() != (state.earliest_ms, state.oldest_ms) {
            findings.add_problem("the store has other times of its oldest segment than the segment".into());
        }
        if read.last.is_some_and(|last| last != state.sealed_through) {
            findings.add_problem(format!("the last segment does not end at position {}", state.sealed_through));
        }
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

/// What the headers of the segments so far add up to.
#[derive(Debug, Default)]
struct SegmentsRead {
    blocks: u64,
    bytes: u64,
    /// The position after the last one.
    end: Position,
    last: Option<Position>,
    /// The times of the first and of the last record of the oldest segment.
    oldest_times: Option<(u64, u64)>,
}

impl SegmentsRead {
    fn add(&mut self, header: &SegmentHeader) {
        self.blocks += header.blocks;
        self.bytes += header.bytes;
        (self.end, self.last) = (header.last.plus(1), Some(header.last));
        self.oldest_times.get_or_insert((header.first_ms, header.last_ms));
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

fn compare_segment(head: &SegmentHeader, rebuilt: Option<&SegmentHeader>) -> Option<String> {
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
