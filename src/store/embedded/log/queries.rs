//! Queries of the log: of an open store, and of a file that another process may have open.

use super::history;
use super::reader::{LogReader, search_row};
use super::totals::{self, TotalsTable};
use crate::domain::InventoryId;
use crate::store::StoreError;
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::failure::ReadError;
use crate::store::embedded::journal;
use crate::store::embedded::reading::Reader;
use crate::store::embedded::table::{self, StoredInventory};
use crate::store::embedded::tools::Snapshot;
use crate::store::history::{ChangesPage, PastState, PastTarget, RecordFilter, SupplyAt};
use crate::store::log::{LogRecord, Position};

impl EmbeddedStore {
    /// Reads the changes of an inventory, newest first, at most `limit`: from position `from` on, which a page before
    /// returned, or all. Returns `None` if the inventory never existed, or if all of its history was deleted.
    pub fn changes(
        &self,
        id: &InventoryId,
        from: Option<Position>,
        limit: usize,
    ) -> Result<Option<ChangesPage>, StoreError> {
        self.with_log(id, |log, newest| {
            let newest = newest.map(|newest| {
                history::changes(log, id, &RecordFilter::default(), from.unwrap_or(newest.head.last), limit)
            });
            newest.transpose()
        })
    }

    /// Reads the state of an inventory at an earlier revision or time. Returns `None` if the inventory never existed, or if all
    /// of its history was deleted.
    pub fn state_at(&self, id: &InventoryId, target: PastTarget) -> Result<Option<PastState>, StoreError> {
        self.with_log(id, |log, newest| newest.map(|newest| history::state_at(log, id, &newest, target)).transpose())
    }

    /// Reads how many of each item came and went, up to the last commit.
    pub fn supply(&self) -> Result<SupplyAt, StoreError> {
        self.inner.read_with_retry(|| {
            let memory = self.inner.lock();
            let mut unfolded = memory.overlay.active.supply.clone();
            let (frozen, folding_through) = (memory.overlay.frozen.clone(), memory.folding_through);
            let position = memory.last_position;
            let reader = self.inner.snapshot()?;
            drop(memory);
            // Between the last transaction of a fold and its end, the table already has the frozen generation.
            let folded_through = journal::meta_value(reader.connection(), journal::FOLDED_THROUGH)
                .map_err(ReadError::sqlite("reading the fold position"))?;
            if let Some(frozen) = frozen.filter(|_| folded_through.unwrap_or(0) < folding_through) {
                unfolded.add_all(&frozen.supply);
            }
            let mut all = totals::read(reader.connection(), TotalsTable::Supply).map_err(ReadError::Corrupt)?;
            all.add_all(&unfolded);
            Ok(SupplyAt { position, totals: all })
        })
    }

    /// Runs a query on the log, and on the newest state of an inventory, of one moment.
    fn with_log<T>(
        &self,
        id: &InventoryId,
        query: impl Fn(&LogReader<'_>, Option<StoredInventory>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.read_with_retry(|| {
            let memory = self.inner.lock();
            let unfolded = memory.overlay.find(id).cloned();
            let reader = self.inner.snapshot()?;
            drop(memory);
            let newest = match unfolded {
                Some(stored) => Some(stored),
                None => table::find(reader.connection(), id)?,
            };
            let log = self.log_reader(&reader).map_err(ReadError::Corrupt)?;
            query(&log, newest).map_err(ReadError::Corrupt)
        })
    }

    fn log_reader<'a>(&'a self, reader: &'a Reader<'_>) -> Result<LogReader<'a>, StoreError> {
        let connection = reader.connection();
        let find_row = move |position| match self.inner.lock().keys.row_of(position) {
            Some(row) => Ok(Some(row.seq)),
            // It was trimmed after the snapshot was taken.
            None => search_row(connection, position),
        };
        LogReader::new(connection, super::read_state(connection)?, Box::new(find_row))
    }
}

impl Snapshot {
    /// Same as [`EmbeddedStore::changes`].
    pub fn changes(
        &self,
        id: &InventoryId,
        from: Option<Position>,
        limit: usize,
    ) -> Result<Option<ChangesPage>, StoreError> {
        self.changes_matching(id, &RecordFilter::default(), from, limit)
    }

    /// Reads the changes of an inventory that match a filter, as [`Self::changes`] reads all of them. Reads each change until it
    /// has found enough.
    pub fn changes_matching(
        &self,
        id: &InventoryId,
        filter: &RecordFilter,
        from: Option<Position>,
        limit: usize,
    ) -> Result<Option<ChangesPage>, StoreError> {
        let newest = self.inventories()?.find_stored(id)?;
        let log = LogReader::of_file(self.connection())?;
        let changes =
            |newest: StoredInventory| history::changes(&log, id, filter, from.unwrap_or(newest.head.last), limit);
        newest.map(changes).transpose()
    }

    /// Same as [`EmbeddedStore::state_at`].
    pub fn state_at(&self, id: &InventoryId, target: PastTarget) -> Result<Option<PastState>, StoreError> {
        let newest = self.inventories()?.find_stored(id)?;
        let log = LogReader::of_file(self.connection())?;
        newest.map(|newest| history::state_at(&log, id, &newest, target)).transpose()
    }

    /// Reads the record at a position; `None` if there is none, or if it was deleted.
    pub fn record(&self, position: Position) -> Result<Option<LogRecord>, StoreError> {
        LogReader::of_file(self.connection())?.record(position)
    }

    /// Reads the records that match a filter, newest first, at most `limit`: those before `before`, or all. Reads each segment
    /// that may have a match.
    pub fn scan(
        &self,
        filter: &RecordFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<LogRecord>, StoreError> {
        history::scan(&LogReader::of_file(self.connection())?, filter, before, limit)
    }

    /// Same as [`EmbeddedStore::supply`].
    pub fn supply(&self) -> Result<SupplyAt, StoreError> {
        let unfolded = crate::store::embedded::replay::unfolded(self.connection(), Err)?;
        let mut all = totals::read(self.connection(), TotalsTable::Supply)?;
        all.add_all(&unfolded.supply);
        let state = super::read_state(self.connection())?;
        let last = journal::last_batch(self.connection())?;
        let end = last.map(|(_, end, _)| end.before()).unwrap_or_default();
        Ok(SupplyAt { position: end.max(state.sealed_through), totals: all })
    }

    /// Returns whether the record at a position was deleted.
    pub fn is_trimmed(&self, position: Position) -> Result<bool, StoreError> {
        Ok(position < super::read_state(self.connection())?.earliest)
    }

    /// The time of the earliest record that is kept, in milliseconds since the Unix epoch, is after this one; 0 if no record was
    /// deleted.
    pub fn trimmed_ms(&self) -> Result<u64, StoreError> {
        Ok(super::read_state(self.connection())?.trimmed_ms)
    }
}
