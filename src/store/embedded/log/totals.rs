//! The tables of supply: the flows of all folded records (`supply`), and of those that retention has deleted (`trimmed`).

use crate::domain::ItemCode;
use crate::store::StoreError;
use crate::store::embedded::failure::{corrupt, store_error};
use crate::store::format::{Malformed, kind_from_number, kind_number};
use crate::store::supply::{Amounts, SupplyTotals};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A table of flows by item and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotalsTable {
    Supply,
    Trimmed,
}

impl TotalsTable {
    pub fn name(self) -> &'static str {
        match self {
            Self::Supply => "supply",
            Self::Trimmed => "trimmed",
        }
    }
}

/// Adds flows to a table, inside the caller's transaction.
pub fn add(connection: &Connection, table: TotalsTable, totals: &SupplyTotals) -> rusqlite::Result<()> {
    let name = table.name();
    let select = format!("SELECT item, kind, added, removed FROM {name} WHERE item = ?1 AND kind = ?2");
    let replace = format!("INSERT OR REPLACE INTO {name} (item, kind, added, removed) VALUES (?1, ?2, ?3, ?4)");
    let (mut select, mut replace) = (connection.prepare_cached(&select)?, connection.prepare_cached(&replace)?);
    for (item, kind, amounts) in totals.sorted() {
        let number = kind_number(kind);
        let before = select.query_row(params![item.get(), number], |row| Ok(read_row(row))).optional()?;
        let before = match before.transpose() {
            Ok(before) => before.map_or(Amounts::default(), |(_, _, amounts)| amounts),
            // fsck reports the row; adding to it would hide that, and failing would stop the fold.
            Err(error) => {
                tracing::error!(table = name, item = item.get(), %error, "a row of the item totals is malformed");
                continue;
            }
        };
        let added = (before.added + amounts.added).to_le_bytes();
        let removed = (before.removed + amounts.removed).to_le_bytes();
        replace.execute(params![item.get(), number, added, removed])?;
    }
    Ok(())
}

/// Replaces all rows of a table, inside the caller's transaction.
pub fn replace(connection: &Connection, table: TotalsTable, totals: &SupplyTotals) -> rusqlite::Result<()> {
    connection.execute(&format!("DELETE FROM {}", table.name()), [])?;
    add(connection, table, totals)
}

/// Reads a table.
pub fn read(connection: &Connection, table: TotalsTable) -> Result<SupplyTotals, StoreError> {
    let name = table.name();
    let failed = |error| store_error("reading the supply", &error);
    let mut select = connection.prepare(&format!("SELECT item, kind, added, removed FROM {name}")).map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    let mut totals = SupplyTotals::default();
    while let Some(row) = rows.next().map_err(failed)? {
        let (item, kind, amounts) = read_row(row).map_err(|error| corrupt(&format!("a row of {name}"), &error))?;
        totals.add(item, kind, amounts);
    }
    Ok(totals)
}

fn read_row(row: &Row<'_>) -> Result<(ItemCode, crate::domain::OperationKind, Amounts), Malformed> {
    let malformed_row = |error: rusqlite::Error| Malformed(error.to_string());
    let item = ItemCode::new(row.get(0).map_err(malformed_row)?).ok_or_else(|| Malformed::new("an item code of 0"))?;
    let kind = kind_from_number(row.get(1).map_err(malformed_row)?)?;
    let amount = |column: usize| {
        let bytes: [u8; 16] = row.get(column).map_err(malformed_row)?;
        Ok::<_, Malformed>(u128::from_le_bytes(bytes))
    };
    Ok((item, kind, Amounts { added: amount(2)?, removed: amount(3)? }))
}
