//! `slotcast import`: creates inventories from JSON lines.

use super::CommandResult;
use super::data::{CatalogFile, DataDirectory, Progress, STORE_FILE};
use super::output::print;
use crate::catalog_file;
use crate::domain::{Catalog, InventoryId};
use crate::engine::new_epoch;
use crate::inventory_file::{self, Header, ImportOptions, LINE_BYTES_MAX};
use crate::store::embedded::tools::import::{ExclusiveStore, Staging};
use crate::store::embedded::tools::{Inventories, PROBLEMS_MAX, ProgressUpdate, Snapshot, ToolError};
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Create inventories from the output of `slotcast export`, all or none. Stop the server first.
///
/// Validates everything before it writes anything: against the catalog, for duplicates, and against the store. Reports
/// every problem with its line (at most 100). Inventories get new epochs and start at revision 1.
#[derive(Debug, clap::Args)]
pub struct Import {
    #[command(flatten)]
    data: DataDirectory,
    #[command(flatten)]
    catalog: CatalogFile,
    /// File to read; `-` is standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Add to a store that already has inventories. The file must not contain any of them.
    #[arg(long)]
    merge: bool,
    /// Accept stacks larger than their item's max_stack, left over after the catalog lowered it.
    #[arg(long)]
    oversized: bool,
    /// Validate everything and write nothing. Can run while the server is running.
    #[arg(long)]
    dry_run: bool,
}

impl Import {
    pub fn run(self) -> CommandResult {
        let catalog = self.catalog.read()?;
        let input: Box<dyn Read> = if self.file == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            let unreadable = |error| format!("cannot read {}: {error}", self.file.display());
            Box::new(File::open(&self.file).map_err(unreadable)?)
        };
        let path = if self.dry_run { self.data.store_path() } else { self.data.create()? };
        let claim = if self.dry_run { None } else { Some(ExclusiveStore::open(&path)?) };
        let staging_path = if self.dry_run { std::env::temp_dir().join(STORE_FILE) } else { path.clone() };
        let progress = Progress::interruptible()?;
        let snapshot = Snapshot::open_if_any(&path)?;
        let staging = self.stage(input, &catalog, snapshot.as_ref(), Staging::new(&staging_path)?, &progress)?;
        drop(snapshot);
        let Some(claim) = claim else {
            drop(progress);
            return Ok(print(format_args!(
                "{} inventories are valid; nothing was written (--dry-run)",
                staging.inventories()
            ))?);
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let imported = staging.commit(claim, &catalog, now, &mut |step| progress.show(step))?;
        drop(progress);
        Ok(print(format_args!("{}: {imported} inventories imported", path.display()))?)
    }

    /// Reads the file into the staging file. The error lists every invalid line.
    fn stage(
        &self,
        input: Box<dyn Read>,
        catalog: &Catalog,
        snapshot: Option<&Snapshot>,
        staging: Staging,
        progress: &Progress,
    ) -> Result<Staging, Box<dyn Error>> {
        snapshot.iter().try_for_each(|snapshot| snapshot.check_catalog(catalog))?;
        let existing = snapshot.map(Snapshot::inventories).transpose()?;
        if !self.merge
            && let (Some(snapshot), Some(existing)) = (snapshot, &existing)
            && existing.count()? > 0
        {
            let path = snapshot.path().display();
            return Err(format!("{path} already has inventories (add to them with --merge)").into());
        }
        let options = ImportOptions { allow_oversized: self.oversized };
        let existing = existing.as_ref();
        let mut reader = Reader { catalog, options, existing, staging, problems: Problems::default(), lines: 0 };
        reader.run(BufReader::new(input), progress)?;
        reader.problems.into_result()?;
        Ok(reader.staging)
    }
}

/// The problems found so far; at most `PROBLEMS_MAX` are kept.
#[derive(Default)]
struct Problems {
    messages: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, line: u64, problem: &str) {
        self.count += 1;
        if self.messages.len() < PROBLEMS_MAX {
            self.messages.push(format!("  line {line}: {problem}"));
        }
    }

    fn into_result(self) -> Result<(), String> {
        let more = match self.count - self.messages.len() {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        match self.count {
            0 => Ok(()),
            count => Err(format!(
                "nothing was imported: {count} problem{}\n{}{more}",
                if count == 1 { "" } else { "s" },
                self.messages.join("\n")
            )),
        }
    }
}

/// Reads and validates the lines of the file.
struct Reader<'a> {
    catalog: &'a Catalog,
    options: ImportOptions,
    /// The inventories of the store, if it exists.
    existing: Option<&'a Inventories<'a>>,
    staging: Staging,
    problems: Problems,
    /// Number of lines with inventories, valid or not.
    lines: u64,
}

impl Reader<'_> {
    fn run(&mut self, mut input: impl BufRead, progress: &Progress) -> Result<(), Box<dyn Error>> {
        let mut bytes = Vec::new();
        let mut header = None;
        for number in 1.. {
            if !next_line(&mut input, &mut bytes)? {
                break;
            }
            let line = std::str::from_utf8(&bytes).map(str::trim);
            match (line, &header) {
                _ if bytes.len() > LINE_BYTES_MAX => {
                    self.lines += 1;
                    self.problems.add(number, &format!("longer than {LINE_BYTES_MAX} bytes"));
                }
                (Err(_), _) => {
                    self.lines += 1;
                    self.problems.add(number, "not valid UTF-8");
                }
                (Ok(""), _) => {}
                (Ok(line), None) => header = Some(self.read_header(line)?),
                (Ok(line), Some(_)) => self.read_inventory(line, number)?,
            }
            if number % 1_000 == 0 {
                let total = header.as_ref().and_then(|header: &Header| header.inventories).unwrap_or(0);
                // The loop checks for an interrupt at every line.
                let _ = progress.show(ProgressUpdate { phase: "reading", done: self.lines, total });
            }
            if progress.is_interrupted() {
                return Err(ToolError::Interrupted.into());
            }
        }
        match header {
            None => Err("the file is empty: it has no header".into()),
            Some(Header { inventories: Some(announced), .. }) if announced != self.lines => {
                let counts = match self.lines {
                    1 if announced > 1 => "only 1 follows: the file is truncated".to_owned(),
                    lines if lines < announced => format!("only {lines} follow: the file is truncated"),
                    lines => format!("{lines} follow: the file was modified"),
                };
                let problem = format!("the header announces {announced} inventories but {counts}");
                self.problems.add(1, &problem);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn read_header(&self, line: &str) -> Result<Header, String> {
        let header = Header::read(line).map_err(|error| format!("line 1: {error}"))?;
        let version = catalog_file::version(self.catalog);
        if header.catalog != version {
            eprintln!("warning: exported with catalog {}, importing with catalog {version}", header.catalog);
        }
        Ok(header)
    }

    fn read_inventory(&mut self, line: &str, number: u64) -> Result<(), Box<dyn Error>> {
        self.lines += 1;
        let inventory = match inventory_file::read(line, self.catalog, self.options, new_epoch()) {
            Ok(inventory) => Arc::new(inventory),
            Err(problems) => {
                problems.iter().for_each(|problem| self.problems.add(number, problem));
                return Ok(());
            }
        };
        if self.exists(&inventory.id)? {
            self.problems.add(number, &format!("inventory {:?} already exists in the store", inventory.id));
        }
        if let Some(earlier) = self.staging.put(&inventory, number)? {
            self.problems.add(number, &format!("inventory {:?} is a duplicate of line {earlier}", inventory.id));
        }
        Ok(())
    }

    fn exists(&self, id: &InventoryId) -> Result<bool, Box<dyn Error>> {
        Ok(match self.existing {
            Some(existing) => existing.find(id)?.is_some(),
            None => false,
        })
    }
}

/// Reads the next line without its line break. Of a line that is too long, keeps little more than the limit and skips
/// the rest. Returns false at the end of the file.
fn next_line(input: &mut impl BufRead, bytes: &mut Vec<u8>) -> Result<bool, Box<dyn Error>> {
    bytes.clear();
    let unreadable = |error| format!("cannot read the file: {error}");
    let read = input.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', bytes).map_err(unreadable)?;
    if bytes.len() > LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
        input.skip_until(b'\n').map_err(unreadable)?;
    }
    Ok(read > 0)
}
