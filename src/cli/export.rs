//! `slotcast export`: writes all inventories as JSON lines.

use super::CommandResult;
use super::data::{CatalogFile, DataFolder, Progress, unix_ms};
use super::output::OutputError;
use crate::domain::Catalog;
use crate::inventory_file::{self, FORMAT, Header};
use crate::store::embedded::tools::{self, Inventories, ProgressUpdate, Snapshot, ToolError};
use crate::{catalog_file, store::StoreError};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Write all inventories as JSON, one per line. The service may run meanwhile.
///
/// The first line has the format, the catalog version, the time, and the number of lines that follow. Items are named
/// by id, or by code if the catalog does not have them; attributes are in base64. `slotcast import` reads the file.
#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    data: DataFolder,
    #[command(flatten)]
    catalog: CatalogFile,
    /// File to create; `-` is standard output.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Overwrite the file if it exists.
    #[arg(long)]
    force: bool,
    /// Skip damaged inventories and commits after damage in the write-ahead log, and report them on standard error,
    /// instead of failing.
    #[arg(long)]
    skip_damaged: bool,
}

/// Why the export stopped early.
enum Stop {
    Store(StoreError),
    Output(std::io::Error),
    Interrupted,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Export {
    pub fn run(self) -> CommandResult {
        let catalog = self.catalog.read()?;
        let (snapshot, damage) = Snapshot::open_damaged(&self.data.store())?;
        match damage {
            Some(damage) if self.skip_damaged => eprintln!("commits were left out: {damage}"),
            Some(damage) => return Err(damage.into()),
            None => {}
        }
        snapshot.check_catalog(&catalog)?;
        let inventories = snapshot.inventories()?;
        if self.file == Path::new("-") {
            // Standard output needs no cleanup, so an interrupt ends the process as usual.
            let (progress, stdout) = (Progress::new(), std::io::stdout().lock());
            return self.write(&inventories, &catalog, stdout, &progress).map_err(|stop| match stop {
                Stop::Output(error) => OutputError::from(error).into(),
                Stop::Store(error) => unreadable(&error),
                Stop::Interrupted => ToolError::Interrupted.into(),
            });
        }
        tools::check_output(&snapshot, &self.file)?;
        self.write_file(&inventories, &catalog)
    }

    /// Writes to a temporary name until the file is complete and synced to disk.
    fn write_file(&self, inventories: &Inventories<'_>, catalog: &Catalog) -> CommandResult {
        let unwritable = |error: &dyn std::fmt::Display| format!("{} cannot be written: {error}", self.file.display());
        if !self.force && self.file.exists() {
            return Err(unwritable(&"it is there already; give another name, or replace it with --force").into());
        }
        let folder = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let mut partial =
            tempfile::NamedTempFile::with_prefix_in(".slotcast-export-", folder).map_err(|error| unwritable(&error))?;
        let progress = Progress::interruptible()?;
        self.write(inventories, catalog, partial.as_file_mut(), &progress).map_err(|stop| match stop {
            Stop::Output(error) => unwritable(&error).into(),
            Stop::Store(error) => unreadable(&error),
            Stop::Interrupted => ToolError::Interrupted.into(),
        })?;
        partial.as_file().sync_all().map_err(|error| unwritable(&error))?;
        let kept = if self.force { partial.persist(&self.file) } else { partial.persist_noclobber(&self.file) };
        kept.map_err(|failed| unwritable(&failed.error))?;
        Ok(File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| unwritable(&error))?)
    }

    fn write(
        &self,
        inventories: &Inventories<'_>,
        catalog: &Catalog,
        out: impl Write,
        progress: &Progress,
    ) -> Result<(), Stop> {
        let total = inventories.count()?;
        let header = Header {
            slotcast_export: FORMAT,
            catalog: catalog_file::version(catalog),
            exported_unix_ms: unix_ms(),
            // The number of damaged inventories is not known yet.
            inventories: (!self.skip_damaged).then_some(total),
        };
        let mut out = BufWriter::new(out);
        writeln!(out, "{}", header.write()).map_err(Stop::Output)?;
        let mut done = 0;
        inventories.each(|found| {
            done += 1;
            if done % 1_000 == 0 && progress.show(ProgressUpdate { phase: "exporting", done, total }).is_break() {
                return Err(Stop::Interrupted);
            }
            let inventory = match found {
                Ok(inventory) => inventory,
                Err((id, error)) if self.skip_damaged => {
                    eprintln!("inventory {id:?} was left out: {error}");
                    return Ok(());
                }
                Err((id, error)) => {
                    return Err(StoreError::Corrupt { detail: format!("inventory {id:?}: {error}") }.into());
                }
            };
            writeln!(out, "{}", inventory_file::write(&inventory, catalog)).map_err(Stop::Output)
        })?;
        out.flush().map_err(Stop::Output)
    }
}

fn unreadable(error: &StoreError) -> Box<dyn Error> {
    format!("{error}; `slotcast fsck` tells all that is wrong with it").into()
}
