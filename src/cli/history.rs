//! `slotcast history`: lists changes from the log.

mod record;

use super::CommandResult;
use super::data::DataDirectory;
use super::item_names::ItemNames;
use super::output::print;
use super::timestamp::{format_utc, parse_time};
use crate::domain::{Caller, InventoryId, OperationKind};
use crate::store::embedded::tools::Snapshot;
use crate::store::history::{ChangesPage, RecordFilter};
use crate::store::log::Position;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use record::{Subject, to_json, to_text};
use serde_json::{Value, json};
use std::error::Error;

/// Maximum number of changes that one call lists.
const LIMIT_MAX: i64 = 10_000;

/// List changes from the log, newest first. Can run while the server is running.
///
/// With the id of an inventory, lists the changes of that inventory, otherwise the mutations of all inventories: those that
/// match every given filter. Without an id, reads all parts of the log that may have a match. Times are in UTC; a position
/// names one mutation in the log. The log keeps changes for [history] age_days, unless it exceeds [history] bytes_max.
#[derive(Debug, clap::Args)]
pub struct History {
    #[command(flatten)]
    data: DataDirectory,
    /// Id of the inventory.
    #[arg(value_parser = parse_id)]
    id: Option<InventoryId>,
    /// Maximum number of changes to list.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    /// Continue at this position, which the previous page ends with.
    #[arg(long, value_name = "POSITION")]
    from: Option<Position>,
    #[command(flatten)]
    filters: Filters,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Filters {
    /// List only mutations of this caller.
    #[arg(long, value_parser = parse_caller)]
    caller: Option<Caller>,
    /// List only mutations that changed a slot with this item, or added or removed it: the item's id, or its code.
    #[arg(long)]
    item: Option<String>,
    /// List only mutations with an operation of this kind.
    #[arg(long, value_parser = kinds())]
    kind: Option<OperationKind>,
    /// List only mutations with exactly this reason.
    #[arg(long)]
    reason: Option<String>,
    /// List only mutations at this time or later: an RFC 3339 timestamp, or milliseconds since the Unix epoch.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<u64>,
    /// List only mutations at this time or earlier: an RFC 3339 timestamp, or milliseconds since the Unix epoch.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
}

impl Filters {
    fn to_filter(&self, names: &ItemNames) -> Result<RecordFilter, Box<dyn Error>> {
        let Self { caller, item, kind, reason, since, until } = self;
        Ok(RecordFilter {
            caller: caller.clone(),
            item: item.as_deref().map(|item| names.find(item)).transpose()?,
            kind: *kind,
            reason: reason.clone(),
            from_ms: *since,
            to_ms: *until,
        })
    }
}

pub fn parse_id(text: &str) -> Result<InventoryId, String> {
    InventoryId::new(text).map_err(|error| error.to_string())
}

fn parse_caller(text: &str) -> Result<Caller, String> {
    Caller::new(text).map_err(|error| error.to_string())
}

fn kinds() -> impl TypedValueParser<Value = OperationKind> {
    let unknown = "the parser accepts only the names of kinds";
    PossibleValuesParser::new(OperationKind::ALL.map(OperationKind::name))
        .map(move |name| OperationKind::ALL.into_iter().find(|kind| kind.name() == name).expect(unknown))
}

impl History {
    pub fn run(self) -> CommandResult {
        let snapshot = Snapshot::open(&self.data.store_path())?;
        let names = ItemNames::read(&snapshot)?;
        match self.id.clone() {
            Some(id) => self.list_changes(&snapshot, &names, &id),
            None => self.scan(&snapshot, &names),
        }
    }

    fn list_changes(&self, snapshot: &Snapshot, names: &ItemNames, id: &InventoryId) -> CommandResult {
        if let Some(from) = self.from {
            check_from(snapshot, id, from)?;
        }
        let filter = self.filters.to_filter(names)?;
        let page = snapshot.changes_matching(id, &filter, self.from, self.limit as usize)?;
        let page = page.ok_or_else(|| never_existed(id))?;
        let subject = Subject::Inventory(id);
        if self.json {
            let changes: Vec<Value> = page.records.iter().map(|record| to_json(record, subject, names)).collect();
            let next = page.next.map(|next| next.to_string());
            return Ok(print(json!({"changes": changes, "next": next, "is_trimmed": page.is_trimmed}))?);
        }
        for record in &page.records {
            print(to_text(record, subject, names))?;
        }
        Ok(print(end_of_page(&page))?)
    }

    fn scan(&self, snapshot: &Snapshot, names: &ItemNames) -> CommandResult {
        let (filter, since) = (self.filters.to_filter(names)?, self.filters.since);
        let limit = self.limit as usize;
        // One more, with which the next page begins.
        let before = self.from.map(|from| from.plus(1));
        let mut records = snapshot.scan(&filter, before, limit + 1)?;
        let next = records.get(limit).map(|next| next.position);
        records.truncate(limit);
        let trimmed_ms = snapshot.trimmed_ms()?;
        let is_trimmed = trimmed_ms > 0 && since.is_none_or(|since| since <= trimmed_ms);
        if self.json {
            let changes: Vec<Value> = records.iter().map(|record| to_json(record, Subject::All, names)).collect();
            let next = next.map(|next| next.to_string());
            return Ok(print(json!({"changes": changes, "next": next, "is_trimmed": is_trimmed}))?);
        }
        for record in &records {
            print(to_text(record, Subject::All, names))?;
        }
        Ok(print(match next {
            Some(next) => format!("more mutations match; continue with --from {next}"),
            None if is_trimmed => format!("no more matches; mutations up to {} were deleted", format_utc(trimmed_ms)),
            None => "no more matches".to_owned(),
        })?)
    }
}

/// Checks that a page can begin at a position. A position that was deleted since is not an error.
fn check_from(snapshot: &Snapshot, id: &InventoryId, from: Position) -> CommandResult {
    let problem = match snapshot.record(from)? {
        Some(record) if record.change_of(id).is_some() => return Ok(()),
        Some(_) => format!("the mutation at this position did not change inventory {id:?}"),
        None if snapshot.is_trimmed(from)? => return Ok(()),
        None => "the log has no mutation at this position".to_owned(),
    };
    Err(format!("--from {from}: {problem} (use the position that the previous page ended with)").into())
}

pub fn never_existed(id: &InventoryId) -> String {
    format!("inventory {id:?} never existed, or it was deleted so long ago that its history was deleted as well")
}

fn end_of_page(page: &ChangesPage) -> String {
    match (page.next, page.is_trimmed) {
        (Some(next), _) => format!("older changes follow; continue with --from {next}"),
        (None, true) => "older changes were deleted".to_owned(),
        (None, false) => "no older changes".to_owned(),
    }
}
