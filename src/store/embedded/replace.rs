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

use super::files::{parent_dir, sync_dir, with_suffix};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const NEXT: &str = "-next-";
/// Why a store is replaced: by a backup, or because its log is damaged.
const REASONS: [&str; 2] = ["replaced", "damaged"];

/// A database that is about to replace the store.
#[derive(Debug, PartialEq, Eq)]
pub struct PendingReplacement {
    store: PathBuf,
    next: PathBuf,
    /// The new name of the replaced store.
    old_store: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum ReplaceStep {
    /// Renames a file; does nothing if it does not exist.
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    SyncDirectory,
}

/// Replaces the store at `path`, whose lock the caller holds, by a complete and durable database. Returns the new name
/// of the replaced store; `None` if there was no store.
pub fn replace(new: tempfile::NamedTempFile, path: &Path, label: &str) -> io::Result<Option<PathBuf>> {
    let free = (0_u32..).map(|number| if number == 0 { label.to_owned() } else { format!("{label}-{number}") });
    let free = free.map(|label| PendingReplacement::new(path, &label)).find(|pending| !pending.is_name_taken());
    let pending = free.ok_or(ErrorKind::AlreadyExists)?;
    new.persist(&pending.next).map_err(|failed| failed.error)?;
    sync_dir(path)?;
    let existed = [path.to_owned(), with_suffix(path, "-wal")].iter().any(|file| file.exists());
    pending.complete()?;
    Ok(existed.then_some(pending.old_store))
}

/// Looks for a replacement that was interrupted.
pub fn find_pending(path: &Path) -> io::Result<Option<PendingReplacement>> {
    let next = with_suffix(path, NEXT);
    let Some(prefix) = next.file_name() else { return Ok(None) };
    for entry in std::fs::read_dir(parent_dir(path))? {
        let name = entry?.file_name();
        let label = name.as_bytes().strip_prefix(prefix.as_bytes()).and_then(|label| std::str::from_utf8(label).ok());
        if let Some(label) = label.filter(|label| is_label(label)) {
            return Ok(Some(PendingReplacement::new(path, label)));
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

impl PendingReplacement {
    fn new(path: &Path, label: &str) -> Self {
        let next = with_suffix(path, &format!("{NEXT}{label}"));
        Self { store: path.to_owned(), next, old_store: with_suffix(path, &format!(".{label}")) }
    }

    fn is_name_taken(&self) -> bool {
        let old_files = ["", "-wal", "-journal"].map(|suffix| with_suffix(&self.old_store, suffix));
        old_files.iter().chain([&self.next]).any(|file| file.exists())
    }

    pub fn old_store(&self) -> &Path {
        &self.old_store
    }

    /// Completes the replacement. The caller must hold the store's lock.
    pub fn complete(&self) -> io::Result<()> {
        self.steps().iter().try_for_each(|step| step.run(&self.store))
    }

    fn steps(&self) -> Vec<ReplaceStep> {
        let set_aside = |suffix| ReplaceStep::Rename {
            from: with_suffix(&self.store, suffix),
            to: with_suffix(&self.old_store, suffix),
        };
        vec![
            set_aside(""),
            set_aside("-wal"),
            set_aside("-journal"),
            ReplaceStep::Remove(with_suffix(&self.store, "-shm")),
            ReplaceStep::SyncDirectory,
            ReplaceStep::Rename { from: self.next.clone(), to: self.store.clone() },
            ReplaceStep::SyncDirectory,
        ]
    }
}

impl ReplaceStep {
    fn run(&self, store: &Path) -> io::Result<()> {
        let done = match self {
            Self::Rename { from, to } => std::fs::rename(from, to),
            Self::Remove(path) => std::fs::remove_file(path),
            Self::SyncDirectory => sync_dir(store),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::NotFound && *self != Self::SyncDirectory => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a directory, by name, with their contents.
    fn contents(directory: &Path) -> Vec<(String, String)> {
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let read =
            files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()));
        let mut read: Vec<_> = read.collect();
        read.sort();
        read
    }

    #[test]
    fn a_replacement_interrupted_after_any_step_is_completed_with_the_same_result() {
        for had_store in [true, false] {
            let steps = PendingReplacement::new(Path::new("x"), "replaced-7").steps().len();
            for stopped_after in 0..=steps {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("x");
                for suffix in ["", "-wal", "-journal", "-shm"].iter().filter(|_| had_store) {
                    std::fs::write(with_suffix(&path, suffix), format!("old{suffix}")).unwrap();
                }
                std::fs::write(with_suffix(&path, "-next-replaced-7"), "new").unwrap();
                let interrupted = find_pending(&path).unwrap().unwrap();
                for step in &interrupted.steps()[..stopped_after] {
                    step.run(&path).unwrap();
                    let (database, log) = (std::fs::read_to_string(&path), with_suffix(&path, "-wal"));
                    assert!(database.is_ok_and(|text| text == "old") || !path.exists() || !log.exists(), "a mix");
                }
                if let Some(pending) = find_pending(&path).unwrap() {
                    pending.complete().unwrap();
                }
                let mut expected = vec![("x", "new")];
                if had_store {
                    expected.extend([
                        ("x.replaced-7", "old"),
                        ("x.replaced-7-journal", "old-journal"),
                        ("x.replaced-7-wal", "old-wal"),
                    ]);
                }
                let expected: Vec<_> = expected.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
                assert_eq!(contents(folder.path()), expected, "stopped after {stopped_after} steps");
                assert_eq!(find_pending(&path).unwrap(), None);
            }
        }
    }

    #[test]
    fn only_a_file_with_a_replacement_label_is_a_pending_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for other in ["replaced-7-lock", "replaced-7-wal", "replaced-7-shm", "replaced", "replaced-", "gen-2", "7"] {
            std::fs::write(with_suffix(&path, &format!("-next-{other}")), other).unwrap();
        }
        assert_eq!(find_pending(&path).unwrap(), None);
        for label in ["replaced-7", "replaced-7-1", "damaged-7"] {
            let next = with_suffix(&path, &format!("-next-{label}"));
            std::fs::write(&next, "new").unwrap();
            assert_eq!(find_pending(&path).unwrap(), Some(PendingReplacement::new(&path, label)));
            std::fs::remove_file(next).unwrap();
        }
    }

    #[test]
    fn a_store_that_was_replaced_earlier_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(with_suffix(&path, ".replaced-7-wal"), "the log of an earlier one").unwrap();
        for (text, old_store) in
            [("first", None), ("second", Some("x.replaced-7-1")), ("third", Some("x.replaced-7-2"))]
        {
            let new = super::super::files::create_temporary(&path, ".new-").unwrap();
            std::fs::write(new.path(), text).unwrap();
            let kept_at = replace(new, &path, "replaced-7").unwrap();
            assert_eq!(kept_at, old_store.map(|name| folder.path().join(name)));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
