//! `slotcast fsck`: verifies a store.

use super::CommandResult;
use super::data::{DataDirectory, Progress};
use super::output::print;
use crate::store::embedded::tools::{self, Findings, Snapshot};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Verify a store or a backup, without changing it. Can run while the server is running.
///
/// Verifies every page, checksum, digest, slot revision, journal row and idempotency key, and the whole history that is
/// kept: each change continues the one before it, the newest one of each inventory has its state, and the inventories
/// hold exactly the items that were added and not removed. Prints every problem (at most 100) and exits with status 1, or prints
/// a summary and exits with status 0.
#[derive(Debug, clap::Args)]
pub struct Fsck {
    #[command(flatten)]
    data: DataDirectory,
    /// Print the result as JSON, with items by code.
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub fn run(self) -> CommandResult {
        let path = self.data.store_path();
        let progress = Progress::new();
        let findings = match Snapshot::open_damaged(&path) {
            Ok((snapshot, damage)) => {
                let mut findings = tools::check(&snapshot, &mut |step| progress.show(step));
                findings.problems.splice(0..0, damage.map(|damage| damage.to_string()));
                findings
            }
            Err(error) if self.json => Findings { problems: vec![error.to_string()], ..Findings::default() },
            Err(error) => return Err(error.into()),
        };
        drop(progress);
        if self.json {
            print(to_json(&path, &findings))?;
        } else if findings.problems.is_empty() {
            print(summary(&path, &findings))?;
        } else {
            findings.problems.iter().try_for_each(print)?;
        }
        match findings.problems.len() as u64 + findings.problems_omitted {
            0 => Ok(()),
            1 => Err(format!("{} has 1 problem (restore it from a backup)", path.display()).into()),
            problems => Err(format!("{} has {problems} problems (restore it from a backup)", path.display()).into()),
        }
    }
}

fn summary(path: &Path, findings: &Findings) -> String {
    let items: u64 = findings.items.values().sum();
    format!(
        "{} is clean: {} inventories, {} stacks, {items} items; {} records in the log, {} journal rows, \
         {} idempotency keys, {} unfolded inventories",
        path.display(),
        findings.inventories,
        findings.stacks,
        findings.records,
        findings.journal_rows,
        findings.keys,
        findings.unfolded_inventories,
    )
}

fn to_json(path: &Path, findings: &Findings) -> Value {
    let items: Map<String, Value> =
        findings.items.iter().map(|(code, count)| (code.get().to_string(), (*count).into())).collect();
    json!({
        "file": path.display().to_string(),
        "ok": findings.problems.is_empty(),
        "problems": findings.problems,
        "problems_omitted": findings.problems_omitted,
        "inventories": findings.inventories,
        "stacks": findings.stacks,
        "items": items,
        "records": findings.records,
        "journal_rows": findings.journal_rows,
        "keys": findings.keys,
        "unfolded_inventories": findings.unfolded_inventories,
    })
}
