//! The stored counts, and how far new counts may lie above them.

use crate::counts::Counts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// By how many percent a count may grow. `benches/instructions.sh spread N` shows how far equal builds lie apart.
const MARGIN_PERCENT: f64 = 3.0;
/// The margin if the baseline was counted with another compiler, which changes counts by itself.
const MARGIN_OTHER_COMPILER_PERCENT: f64 = 15.0;
/// Number of instructions that a count may always grow by: the marks and loops of a short case.
const MARGIN_INSTRUCTIONS: u64 = 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// The compiler that built the counted program, as `rustc --version` prints it.
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

impl Baseline {
    pub fn of(counts: &Counts) -> Self {
        Self { rustc: rustc_version(), instructions: counts.by_case.iter().cloned().collect() }
    }

    pub fn read() -> Result<Self, String> {
        let path = path();
        let text =
            std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    pub fn write(&self) -> Result<(), String> {
        let path = path();
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())? + "\n";
        std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        println!("wrote {}", path.display());
        Ok(())
    }

    /// Returns all counts beside those of the baseline.
    pub fn table(&self, counts: &Counts) -> String {
        let mut table = format!("{:<44} {:>10} {:>10} {:>8}\n", "instructions of", "baseline", "now", "change");
        for (name, count) in &counts.by_case {
            let (stored, change) = match self.instructions.get(name) {
                Some(stored) => (stored.to_string(), format!("{:+.1} %", growth_percent(*stored, *count))),
                None => ("-".to_owned(), "new".to_owned()),
            };
            table += &format!("{name:<44} {stored:>10} {count:>10} {change:>8}\n");
        }
        table
    }

    /// Fails if a count has grown beyond the margin, or if the cases differ.
    pub fn compare(&self, counts: &Counts) -> Result<(), String> {
        let rustc = rustc_version();
        let margin = if rustc == self.rustc { MARGIN_PERCENT } else { MARGIN_OTHER_COMPILER_PERCENT };
        if rustc != self.rustc {
            println!("the baseline was counted with {}, this build with {rustc}: the margin is {margin} %", self.rustc);
        }
        let mut problems: Vec<String> = counts
            .by_case
            .iter()
            .filter_map(|(name, count)| self.problem(name, *count, margin))
            .chain(
                self.instructions
                    .keys()
                    .filter(|name| counts.get(name).is_none())
                    .map(|name| format!("{name}: the baseline has this case, but it no longer exists")),
            )
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        problems.push(
            "If the change is worth it, accept the new counts with `just instructions` and say why in the commit."
                .to_owned(),
        );
        Err(problems.join("\n"))
    }

    fn problem(&self, name: &str, count: u64, margin_percent: f64) -> Option<String> {
        let Some(stored) = self.instructions.get(name).copied() else {
            return Some(format!("{name}: the baseline does not have this case"));
        };
        let growth = growth_percent(stored, count);
        (growth > margin_percent && count > stored + MARGIN_INSTRUCTIONS).then(|| {
            format!(
                "{name} takes {count} instructions, {growth:.1} % more than the baseline ({stored}); \
                 at most {margin_percent} % are allowed"
            )
        })
    }
}

fn growth_percent(stored: u64, count: u64) -> f64 {
    100.0 * (count as f64 / stored.max(1) as f64 - 1.0)
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.json")
}

fn rustc_version() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    output.map_or_else(
        |_| "an unknown compiler".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
