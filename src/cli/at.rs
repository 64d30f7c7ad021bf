//! `slotcast at`: prints a past state of an inventory.

use super::CommandResult;
use super::data::DataDirectory;
use super::history::{never_existed, parse_id};
use super::item_names::ItemNames;
use super::output::print;
use super::timestamp::{format_utc, parse_rfc3339};
use crate::domain::{Epoch, Inventory, InventoryId, Revision};
use crate::store::StoreError;
use crate::store::embedded::tools::{NewestState, Snapshot};
use crate::store::history::{PastState, PastTarget};
use crate::store::log::Position;
use serde_json::{Value, json};
use std::error::Error;
use std::fmt::Write;

/// Print the state of an inventory at an earlier revision or time. Can run while the server is running.
///
/// A revision is a number; it counts within the newest epoch unless --epoch names another one. A time selects the newest
/// state that was committed at that time or earlier. Prints the id, owner, layout, epoch, revision, time and filled slots,
/// or exits with status 1 if the state does not exist or its part of the log was deleted. A restore has no record of its
/// own: until the next change, a time after it selects the state with the epoch and revision from before the restore.
#[derive(Debug, clap::Args)]
pub struct At {
    #[command(flatten)]
    data: DataDirectory,
    /// Id of the inventory.
    #[arg(value_parser = parse_id)]
    id: InventoryId,
    /// Revision, or an RFC 3339 timestamp, such as 2026-07-01T12:00:00Z. A number is always a revision.
    #[arg(value_name = "REVISION|TIME", value_parser = parse_target)]
    target: Target,
    /// Epoch of the revision. Default: the newest epoch.
    #[arg(long, value_parser = parse_epoch)]
    epoch: Option<Epoch>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Revision(Revision),
    Time { unix_ms: u64 },
}

fn parse_target(text: &str) -> Result<Target, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return text.parse().map(|revision| Target::Revision(Revision(revision))).map_err(|error| error.to_string());
    }
    let error = |_| "must be a revision, or an RFC 3339 timestamp, such as 2026-07-01T12:00:00Z".to_owned();
    parse_rfc3339(text).map(|unix_ms| Target::Time { unix_ms }).map_err(error)
}

fn parse_epoch(text: &str) -> Result<Epoch, String> {
    text.parse().ok().and_then(Epoch::new).ok_or_else(|| "must be a number from 1 to 4294967295".to_owned())
}

impl At {
    pub fn run(self) -> CommandResult {
        let target = match (self.target, self.epoch) {
            (Target::Revision(revision), epoch) => PastTarget::Revision { epoch, revision },
            (Target::Time { unix_ms }, None) => PastTarget::Time { unix_ms },
            (Target::Time { .. }, Some(_)) => return Err("--epoch requires a revision instead of a time".into()),
        };
        let snapshot = Snapshot::open(&self.data.store_path())?;
        let (inventory, position) = match snapshot.state_at(&self.id, target)?.ok_or_else(|| never_existed(&self.id))? {
            PastState::Found { inventory, position } => (inventory, position),
            PastState::Absent => return Err(self.absent(&snapshot, target)?),
            PastState::Trimmed { earliest } => return Err(self.trimmed(target, earliest).into()),
        };
        let record = position.map(|position| snapshot.record(position)).transpose()?.flatten();
        let time_ms = record.map(|record| record.time_ms);
        let names = ItemNames::read(&snapshot)?;
        if self.json {
            return Ok(print(to_json(&inventory, position, time_ms, &names))?);
        }
        Ok(print(to_text(&inventory, position, time_ms, &names))?)
    }

    /// Explains why the state does not exist.
    fn absent(&self, snapshot: &Snapshot, target: PastTarget) -> Result<Box<dyn Error>, StoreError> {
        let id = &self.id;
        let PastTarget::Revision { epoch, revision } = target else {
            let time = self.target_text();
            return Ok(format!("inventory {id:?} did not exist at {time}").into());
        };
        let Some(NewestState { epoch: newest_epoch, revision: newest, exists }) = snapshot.newest_state(id)? else {
            return Ok(never_existed(id).into());
        };
        let (revision, is_newest_epoch) = (revision.0, epoch.is_none_or(|epoch| epoch == newest_epoch));
        let epoch = epoch.unwrap_or(newest_epoch).get();
        Ok(match newest.0 {
            newest if is_newest_epoch && revision > newest => {
                format!(
                    "inventory {id:?}: revision {revision} is newer than the newest revision {newest} of epoch {epoch} (use \
                     --epoch for an earlier epoch; slotcast history lists them)"
                )
            }
            newest if is_newest_epoch && revision == newest && !exists => {
                format!("inventory {id:?} was deleted with revision {revision} of epoch {epoch}")
            }
            _ => format!("inventory {id:?} never had revision {revision} in epoch {epoch}, or was deleted with it"),
        }
        .into())
    }

    fn trimmed(&self, target: PastTarget, earliest: Option<(Epoch, Revision)>) -> String {
        let (id, text) = (&self.id, self.target_text());
        let text = match target {
            PastTarget::Revision { .. } => format!("revision {text}"),
            PastTarget::Time { .. } => format!("the state at {text}"),
        };
        match earliest {
            Some((epoch, revision)) => format!(
                "inventory {id:?}: {text} is not in the log any more; the earliest revision that can be read is {} of epoch {}",
                revision.0,
                epoch.get()
            ),
            None => {
                format!("inventory {id:?}: {text} is not in the log any more, and no revision before the deletion is")
            }
        }
    }

    fn target_text(&self) -> String {
        match self.target {
            Target::Revision(revision) => revision.0.to_string(),
            Target::Time { unix_ms } => format_utc(unix_ms),
        }
    }
}

fn to_text(inventory: &Inventory, position: Option<Position>, time_ms: Option<u64>, names: &ItemNames) -> String {
    let made = match (time_ms, position) {
        (Some(time_ms), Some(position)) => format!("{} (position {position})", format_utc(time_ms)),
        _ => "unknown: a restore made this state, or its change was deleted from the log".to_owned(),
    };
    let lines = [
        ("id", inventory.id.to_string()),
        ("owner", inventory.owner.as_ref().map_or("none".to_owned(), ToString::to_string)),
        ("layout", inventory.layout.to_string()),
        ("epoch", inventory.epoch.get().to_string()),
        ("revision", inventory.contents.revision().0.to_string()),
        ("time", made),
    ];
    let lines = lines.into_iter().map(|(name, value)| (name.to_owned(), value));
    let slots = inventory.contents.stacks().map(|(slot, stack)| (format!("slot {}", slot.0), names.stack_text(stack)));
    let mut text = String::new();
    for (name, value) in lines.chain(slots) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<9} {value}");
    }
    text.trim_end().to_owned()
}

fn to_json(inventory: &Inventory, position: Option<Position>, time_ms: Option<u64>, names: &ItemNames) -> Value {
    let stacks = inventory.contents.stacks().map(|(slot, stack)| {
        let mut value = names.stack_json(stack);
        value["slot"] = slot.0.into();
        value
    });
    json!({
        "id": inventory.id.as_str(),
        "owner": inventory.owner.as_ref().map(|owner| owner.as_str()),
        "layout": inventory.layout.as_str(),
        "epoch": inventory.epoch.get(),
        "revision": inventory.contents.revision().0,
        "position": position.map(|position| position.to_string()),
        "time": time_ms.map(format_utc),
        "unix_ms": time_ms,
        "stacks": stacks.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_revision_or_a_time() {
        assert_eq!(parse_target("12"), Ok(Target::Revision(Revision(12))));
        assert_eq!(parse_target("2026-07-01T12:00:00Z"), Ok(Target::Time { unix_ms: 1_782_907_200_000 }));
        for text in ["", "-1", "99999999999999999999", "2026-07-01", "latest"] {
            assert!(parse_target(text).is_err(), "{text}");
        }
        assert!(parse_epoch("0").is_err() && parse_epoch("4294967296").is_err());
    }
}
