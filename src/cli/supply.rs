//! `slotcast supply`: prints how many of each item exist, and how many came and went.

use super::CommandResult;
use super::data::DataDirectory;
use super::item_names::ItemNames;
use super::output::print;
use crate::domain::{ItemCode, OperationKind};
use crate::store::embedded::tools::Snapshot;
use crate::store::history::SupplyAt;
use crate::store::supply::{Amounts, SupplyTotals};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Print how many of each item exist, and how many were added and removed by each kind of operation. Can run while the
/// server is running.
///
/// The numbers count from the creation of the store, no matter how much of the log was deleted since. A move or a transfer
/// adds and removes nothing. A restore returns to the numbers of the backup.
#[derive(Debug, clap::Args)]
pub struct Supply {
    #[command(flatten)]
    data: DataDirectory,
    /// Print only this item: its id, or its code.
    #[arg(long)]
    item: Option<String>,
    /// Print the result as JSON, with the amounts as strings, because they may exceed 64 bits.
    #[arg(long)]
    json: bool,
}

/// The totals of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ItemSupply {
    item: ItemCode,
    existing: u128,
    total: Amounts,
    kinds: Vec<(OperationKind, Amounts)>,
}

impl Supply {
    pub fn run(self) -> CommandResult {
        let snapshot = Snapshot::open(&self.data.store_path())?;
        let names = ItemNames::read(&snapshot)?;
        let only = self.item.as_deref().map(|item| names.find(item)).transpose()?;
        let SupplyAt { position, totals } = snapshot.supply()?;
        let position = (!position.is_none()).then(|| position.to_string());
        let items = by_item(&totals, only, &names)?;
        if self.json {
            let items: Vec<Value> = items.iter().map(|supply| to_json(supply, &names)).collect();
            return Ok(print(json!({"position": position, "items": items}))?);
        }
        print(table(&items, &names))?;
        Ok(print(position.map_or("the log is empty".to_owned(), |position| format!("up to position {position}")))?)
    }
}

/// Groups the totals by item, in order of codes. With `only`, returns that item alone, even if there never was any.
fn by_item(totals: &SupplyTotals, only: Option<ItemCode>, names: &ItemNames) -> Result<Vec<ItemSupply>, String> {
    let mut items: BTreeMap<ItemCode, Vec<(OperationKind, Amounts)>> =
        only.map(|item| (item, Vec::new())).into_iter().collect();
    for (item, kind, amounts) in totals.sorted() {
        if only.is_none_or(|only| only == item) {
            items.entry(item).or_default().push((kind, amounts));
        }
    }
    let supply = |(item, kinds): (ItemCode, Vec<(OperationKind, Amounts)>)| {
        let mut total = Amounts::default();
        for (_, amounts) in &kinds {
            total.added += amounts.added;
            total.removed += amounts.removed;
        }
        let negative = || {
            format!("more of {} were removed than added (run `slotcast fsck` to list all problems)", names.text(item))
        };
        let existing = total.added.checked_sub(total.removed).ok_or_else(negative)?;
        Ok(ItemSupply { item, existing, total, kinds })
    };
    items.into_iter().map(supply).collect()
}

fn table(items: &[ItemSupply], names: &ItemNames) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["item", "kind", "added", "removed", "existing"]);
    for ItemSupply { item, existing, total, kinds } in items {
        let amounts = |amounts: &Amounts| (amounts.added.to_string(), amounts.removed.to_string());
        let (added, removed) = amounts(total);
        table.add_row([names.text(*item), "all".to_owned(), added, removed, existing.to_string()].map(Cell::new));
        for (kind, kind_amounts) in kinds {
            let (added, removed) = amounts(kind_amounts);
            table.add_row([String::new(), kind.name().to_owned(), added, removed, String::new()].map(Cell::new));
        }
    }
    table.column_iter_mut().skip(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

fn to_json(supply: &ItemSupply, names: &ItemNames) -> Value {
    let ItemSupply { item, existing, total, kinds } = supply;
    let amounts =
        |amounts: &Amounts| json!({"added": amounts.added.to_string(), "removed": amounts.removed.to_string()});
    let kinds: Map<String, Value> =
        kinds.iter().map(|(kind, of_kind)| (kind.name().to_owned(), amounts(of_kind))).collect();
    let mut value = amounts(total);
    value["item"] = names.json(*item);
    value["code"] = item.get().into();
    value["existing"] = existing.to_string().into();
    value["kinds"] = kinds.into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::item_names::tests::{code, names};

    #[test]
    fn amounts_are_added_up_by_item_and_may_exceed_64_bits() {
        let mut totals = SupplyTotals::default();
        totals.add(code(1), OperationKind::Add, Amounts { added: u128::from(u64::MAX) * 3, removed: 0 });
        totals.add(code(1), OperationKind::Set, Amounts { added: 5, removed: 7 });
        totals.add(code(77), OperationKind::Craft, Amounts { added: 2, removed: 2 });
        let items = by_item(&totals, None, &names()).expect("nothing is negative");
        assert_eq!(items.iter().map(|supply| supply.existing).collect::<Vec<_>>(), [u128::from(u64::MAX) * 3 - 2, 0]);
        let value = to_json(&items[0], &names());
        assert_eq!(value["existing"], "55340232221128654843");
        assert_eq!(value["kinds"]["set"], json!({"added": "5", "removed": "7"}));
        assert_eq!(to_json(&items[1], &names())["item"], 77);
        let text = table(&items, &names()).to_string();
        assert!(text.contains("apple") && text.contains("item code 77") && text.contains("craft"), "{text}");
    }

    #[test]
    fn an_item_that_never_existed_has_a_supply_of_0() {
        let items = by_item(&SupplyTotals::default(), Some(code(9)), &names()).expect("nothing is negative");
        assert_eq!((items.len(), items[0].existing, items[0].kinds.len()), (1, 0, 0));
    }

    #[test]
    fn a_negative_supply_is_an_error_that_names_the_item() {
        let mut totals = SupplyTotals::default();
        totals.add(code(1), OperationKind::Remove, Amounts { added: 0, removed: 1 });
        let error = by_item(&totals, None, &names()).expect_err("it is negative");
        assert!(error.contains("more of apple were removed than added"), "{error}");
    }
}
