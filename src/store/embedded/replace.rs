//! Replaces a store by a complete database, in steps that may be interrupted at any point.
//!
//! 1. The new database is complete and durable under the name `X-next-LABEL`. From then on it is the store, regardless
//!    of interruptions.
//! 2. `X`, `X-wal` and `X-journal` are renamed to `X.LABEL` and so on. `X-shm` is removed, because every reader can
//!    rebuild it from the log.
//! 3. The new database gets the name `X`. This is the last step, because the new database must never be beside another
//!    database's log.
//!
//! The next process that opens the store for writing completes an interrupted replacement. Each step is durable before
//! the next one begins, and each may be repeated.

use super::files::{beside, folder_of, sync_folder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const NEXT: &str = "-next-";
/// Why a store is replaced: by a backup, or because its log is damaged.
const REASONS: [&str; 2] = ["replaced", "damaged"];

/// A database that is about to replace the store.
#[derive(Debug, PartialEq, Eq)]
pub struct Pending {
    store: PathBuf,
    next: PathBuf,
    /// The new name of the replaced store.
    kept: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Renames a file; does nothing if it does not exist.
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    SyncFolder,
}

/// Replaces the store at `path`, whose lock the caller holds, by a complete and durable database. Returns the new name
/// of the replaced store; `None` if there was no store.
pub fn replace(new: tempfile::NamedTempFile, path: &Path, label: &str) -> io::Result<Option<PathBuf>> {
    let free = (0_u32..).map(|number| if number == 0 { label.to_owned() } else { format!("{label}-{number}") });
    let free = free.map(|label| Pending::new(path, &label)).find(|pending| !pending.is_name_taken());
    let pending = free.ok_or(ErrorKind::AlreadyExists)?;
    new.persist(&pending.next).map_err(|failed| failed.error)?;
    sync_folder(path)?;
    let was_there = [path.to_owned(), beside(path, "-wal")].iter().any(|file| file.exists());
    pending.complete()?;
    Ok(was_there.then_some(pending.kept))
}

/// Looks for a replacement that was interrupted.
pub fn pending(path: &Path) -> io::Result<Option<Pending>> {
    let next = beside(path, NEXT);
    let Some(prefix) = next.file_name() else { return Ok(None) };
    for entry in std::fs::read_dir(folder_of(path))? {
        let name = entry?.file_name();
        let label = name.as_bytes().strip_prefix(prefix.as_bytes()).and_then(|label| std::str::from_utf8(label).ok());
        if let Some(label) = label.filter(|label| is_label(label)) {
            return Ok(Some(Pending::new(path, label)));
        }
    }
    Ok(None)
}

/// Returns whether the label is one that [`replace`] gives, such as `replaced-7` or `replaced-7-1`. A file with another
/// label belongs to another program, or is beside the new database because a program opened it by its name.
fn is_label(label: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = label.split('-');
    REASONS.contains(&parts.next().unwrap_or_default()) && parts.clone().count() > 0 && parts.all(is_number)
}

impl Pending {
    fn new(path: &Path, label: &str) -> Self {
        let next = beside(path, &format!("{NEXT}{label}"));
        Self { store: path.to_owned(), next, kept: beside(path, &format!(".{label}")) }
    }

    fn is_name_taken(&self) -> bool {
        let of_kept = ["", "-wal", "-journal"].map(|suffix| beside(&self.kept, suffix));
        of_kept.iter().chain([&self.next]).any(|file| file.exists())
    }

    pub fn kept(&self) -> &Path {
        &self.kept
    }

    /// Completes the replacement. The caller must hold the store's lock.
    pub fn complete(&self) -> io::Result<()> {
        self.steps().iter().try_for_each(|step| step.run(&self.store))
    }

    fn steps(&self) -> Vec<Step> {
        let set_aside = |suffix| Step::Rename { from: beside(&self.store, suffix), to: beside(&self.kept, suffix) };
        vec![
            set_aside(""),
            set_aside("-wal"),
            set_aside("-journal"),
            Step::Remove(beside(&self.store, "-shm")),
            Step::SyncFolder,
            Step::Rename { from: self.next.clone(), to: self.store.clone() },
            Step::SyncFolder,
        ]
    }
}

impl Step {
    fn run(&self, store: &Path) -> io::Result<()> {
        let done = match self {
            Self::Rename { from, to } => std::fs::rename(from, to),
            Self::Remove(path) => std::fs::remove_file(path),
            Self::SyncFolder => sync_folder(store),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::NotFound && *self != Self::SyncFolder => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a folder, by name, with their contents.
    fn contents(folder: &Path) -> Vec<(String, String)> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let read =
            files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()));
        let mut read: Vec<_> = read.collect();
        read.sort();
        read
    }

    #[test]
    fn interrupted_after_any_step_it_is_completed_to_the_same_files() {
        for had_store in [true, false] {
            let steps = Pending::new(Path::new("x"), "replaced-7").steps().len();
            for stopped_after in 0..=steps {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("x");
                for suffix in ["", "-wal", "-journal", "-shm"].iter().filter(|_| had_store) {
                    std::fs::write(beside(&path, suffix), format!("old{suffix}")).unwrap();
                }
                std::fs::write(beside(&path, "-next-replaced-7"), "new").unwrap();
                let interrupted = pending(&path).unwrap().unwrap();
                for step in &interrupted.steps()[..stopped_after] {
                    step.run(&path).unwrap();
                    let (database, log) = (std::fs::read_to_string(&path), beside(&path, "-wal"));
                    assert!(database.is_ok_and(|text| text == "old") || !path.exists() || !log.exists(), "a mix");
                }
                if let Some(pending) = pending(&path).unwrap() {
                    pending.complete().unwrap();
                }
                let mut wanted = vec![("x", "new")];
                if had_store {
                    wanted.extend([
                        ("x.replaced-7", "old"),
                        ("x.replaced-7-journal", "old-journal"),
                        ("x.replaced-7-wal", "old-wal"),
                    ]);
                }
                let wanted: Vec<_> = wanted.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
                assert_eq!(contents(folder.path()), wanted, "stopped after {stopped_after} steps");
                assert_eq!(pending(&path).unwrap(), None);
            }
        }
    }

    #[test]
    fn only_a_complete_database_takes_the_place_of_a_store_and_no_other_file_with_a_similar_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for other in ["replaced-7-lock", "replaced-7-wal", "replaced-7-shm", "replaced", "replaced-", "gen-2", "7"] {
            std::fs::write(beside(&path, &format!("-next-{other}")), other).unwrap();
        }
        assert_eq!(pending(&path).unwrap(), None);
        for label in ["replaced-7", "replaced-7-1", "damaged-7"] {
            let next = beside(&path, &format!("-next-{label}"));
            std::fs::write(&next, "new").unwrap();
            assert_eq!(pending(&path).unwrap(), Some(Pending::new(&path, label)));
            std::fs::remove_file(next).unwrap();
        }
    }

    #[test]
    fn a_store_that_was_set_aside_earlier_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(beside(&path, ".replaced-7-wal"), "the log of an earlier one").unwrap();
        for (text, kept) in [("first", None), ("second", Some("x.replaced-7-1")), ("third", Some("x.replaced-7-2"))] {
            let new = super::super::files::temporary(&path, ".new-").unwrap();
            std::fs::write(new.path(), text).unwrap();
            let kept_at = replace(new, &path, "replaced-7").unwrap();
            assert_eq!(kept_at, kept.map(|name| folder.path().join(name)));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
