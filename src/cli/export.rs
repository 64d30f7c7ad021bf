//! `slotcast export`: writes all inventories as JSON lines.

use super::CommandResult;
use super::data::{CatalogFile, DataDirectory, Progress, unix_ms};
use super::output::OutputError;
use crate::domain::Catalog;
use crate::inventory_file::{self, FORMAT_VERSION, Header};
use crate::store::embedded::tools::{self, Inventories, ProgressUpdate, Snapshot, ToolError};
use crate::{catalog_file, store::StoreError};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Write all inventories as JSON, one per line. Can run while the server is running.
///
/// The first line has the format, the catalog version, the time, and the number of lines that follow. Items are named
/// by id, or by code if the catalog does not have them; attributes are in base64. `slotcast import` reads the file.
#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    data: DataDirectory,
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

/// Why an export failed.
enum ExportError {
    Store(StoreError),
    Output(std::io::Error),
    Interrupted,
}

impl From<StoreError> for ExportError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Export {
    pub fn run(self) -> CommandResult {
        let catalog = self.catalog.read()?;
        let (snapshot, damage) = Snapshot::open_damaged(&self.data.store_path())?;
        match damage {
            Some(damage) if self.skip_damaged => eprintln!("skipped commits: {damage}"),
            Some(damage) => return Err(damage.into()),
            None => {}
        }
        snapshot.check_catalog(&catalog)?;
        let inventories = snapshot.inventories()?;
        if self.file == Path::new("-") {
            // Standard output needs no cleanup, so an interrupt ends the process as usual.
            let (progress, stdout) = (Progress::new(), std::io::stdout().lock());
            return self.write(&inventories, &catalog, stdout, &progress).map_err(|error| match error {
                ExportError::Output(error) => OutputError::from(error).into(),
                ExportError::Store(error) => unreadable(&error),
                ExportError::Interrupted => ToolError::Interrupted.into(),
            });
        }
        tools::check_output(&snapshot, &self.file)?;
        self.write_file(&inventories, &catalog)
    }

    /// Writes to a temporary name until the file is complete and synced to disk.
    fn write_file(&self, inventories: &Inventories<'_>, catalog: &Catalog) -> CommandResult {
        let path = self.file.display();
        if !self.force && self.file.exists() {
            return Err(format!("{path} already exists (choose another name, or overwrite it with --force)").into());
        }
        let unwritable = |error: std::io::Error| format!("cannot write {path}: {error}");
        let directory = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let mut partial =
            tempfile::NamedTempFile::with_prefix_in(".slotcast-export-", directory).map_err(unwritable)?;
        let progress = Progress::interruptible()?;
        self.write(inventories, catalog, partial.as_file_mut(), &progress).map_err(|error| match error {
            ExportError::Output(error) => unwritable(error).into(),
            ExportError::Store(error) => unreadable(&error),
            ExportError::Interrupted => ToolError::Interrupted.into(),
        })?;
        partial.as_file().sync_all().map_err(unwritable)?;
        let persisted = if self.force { partial.persist(&self.file) } else { partial.persist_noclobber(&self.file) };
        persisted.map_err(|failed| unwritable(failed.error))?;
        Ok(File::open(directory).and_then(|directory| directory.sync_all()).map_err(unwritable)?)
    }

    fn write(
        &self,
        inventories: &Inventories<'_>,
        catalog: &Catalog,
        out: impl Write,
        progress: &Progress,
    ) -> Result<(), ExportError> {
        let total = inventories.count()?;
        let header = Header {
            slotcast_export: FORMAT_VERSION,
            catalog: catalog_file::version(catalog),
            exported_unix_ms: unix_ms(),
            // The number of damaged inventories is not known yet.
            inventories: (!self.skip_damaged).then_some(total),
        };
        let mut out = BufWriter::new(out);
        writeln!(out, "{}", header.write()).map_err(ExportError::Output)?;
        let mut done = 0;
        inventories.each(|inventory| {
            done += 1;
            if done % 1_000 == 0 && progress.show(ProgressUpdate { phase: "exporting", done, total }).is_break() {
                return Err(ExportError::Interrupted);
            }
            let inventory = match inventory {
                Ok(inventory) => inventory,
                Err((id, error)) if self.skip_damaged => {
                    eprintln!("skipped inventory {id:?}: {error}");
                    return Ok(());
                }
                Err((id, error)) => {
                    return Err(StoreError::Corrupt { detail: format!("inventory {id:?}: {error}") }.into());
                }
            };
            writeln!(out, "{}", inventory_file::write(&inventory, catalog)).map_err(ExportError::Output)
        })?;
        out.flush().map_err(ExportError::Output)
    }
}

fn unreadable(error: &StoreError) -> Box<dyn Error> {
    format!("{error} (run `slotcast fsck` to list all problems)").into()
}
