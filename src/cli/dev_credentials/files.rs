//! Checks the directory and writes the files.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Prefix of the temporary files, which a run that was killed leaves behind.
const TEMPORARY_PREFIX: &str = ".slotcast-";

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("{} (choose another directory, or overwrite with --force)", already_exist(.0))]
    Exist(Vec<PathBuf>),
    #[error("{} is a directory, so no file can replace it (remove it, or choose another directory)", .0.display())]
    IsADirectory(PathBuf),
    #[error("cannot lock the directory {}: {error}", path.display())]
    Lock { path: PathBuf, error: io::Error },
    #[error("cannot create the directory {}: {error}", path.display())]
    CreateDirectory { path: PathBuf, error: io::Error },
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("cannot use the directory {}: settings files need a path in UTF-8", .0.display())]
    NotUtf8(PathBuf),
}

fn already_exist(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("{} already exist{}", names.join(", "), if paths.len() == 1 { "s" } else { "" })
}

pub struct File {
    pub name: &'static str,
    pub content: String,
    /// Only the owner may read the file.
    pub is_secret: bool,
}

/// Checks that the files can be created in the directory, without changing anything. Returns the absolute path of the
/// directory.
pub fn check(directory: &Path, names: &[&str], overwrite: bool) -> Result<String, FilesError> {
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(FilesError::NotADirectory(directory.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(FilesError::Read { path: directory.into(), error }),
    }
    check_names(directory, names, overwrite)?;
    let absolute =
        std::path::absolute(directory).map_err(|error| FilesError::Read { path: directory.into(), error })?;
    absolute.into_os_string().into_string().map_err(|path| FilesError::NotUtf8(path.into()))
}

fn check_names(directory: &Path, names: &[&str], overwrite: bool) -> Result<(), FilesError> {
    let paths = names.iter().map(|name| directory.join(name));
    let existing: Vec<PathBuf> = paths.filter(|path| path.symlink_metadata().is_ok()).collect();
    if let Some(path) = existing.iter().find(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir())) {
        return Err(FilesError::IsADirectory(path.clone()));
    }
    if overwrite || existing.is_empty() { Ok(()) } else { Err(FilesError::Exist(existing)) }
}

/// Writes all files under temporary names before any of them appears under its own name. A lock on the directory keeps
/// the files of two concurrent runs apart. A new directory is accessible to its owner only.
pub fn write(directory: &Path, files: &[File], overwrite: bool) -> Result<(), FilesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| FilesError::CreateDirectory { path: directory.into(), error })?;
    let lock = fs::File::open(directory).and_then(|directory| directory.lock().map(|()| directory));
    let _lock = lock.map_err(|error| FilesError::Lock { path: directory.into(), error })?;
    let names: Vec<&str> = files.iter().map(|file| file.name).collect();
    check_names(directory, &names, overwrite)?;
    remove_leftovers(directory);
    let mut written = Vec::new();
    for file in files {
        let path = directory.join(file.name);
        let temporary =
            write_temporary(directory, file).map_err(|error| FilesError::Write { path: path.clone(), error })?;
        written.push((temporary, path));
    }
    for (temporary, path) in written {
        temporary.persist(&path).map_err(|failed| FilesError::Write { path, error: failed.error })?;
    }
    Ok(())
}

/// Removes the temporary files of a run that was killed. They may contain keys.
fn remove_leftovers(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            // A file that cannot be removed does not prevent the others from being written.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_temporary(directory: &Path, file: &File) -> io::Result<NamedTempFile> {
    let mut temporary = NamedTempFile::with_prefix_in(TEMPORARY_PREFIX, directory)?;
    temporary.write_all(file.content.as_bytes())?;
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn file(content: &str) -> [File; 2] {
        ["one", "two"].map(|name| File { name, content: content.to_owned(), is_secret: true })
    }

    #[test]
    fn of_two_concurrent_runs_one_fails_and_the_files_are_those_of_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, start) = (folder.path().join("dev"), Barrier::new(2));
        let run = |content: &str| {
            start.wait();
            write(&directory, &file(content), false).is_ok()
        };
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| run("second"));
            (run("first"), other.join().unwrap())
        });
        assert_ne!(first, second, "exactly one succeeds");
        let expected = if first { "first" } else { "second" };
        for name in ["one", "two"] {
            assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), expected);
        }
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn leftovers_of_a_killed_run_are_removed_and_a_directory_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".slotcast-left"), "key").unwrap();
        write(folder.path(), &file("new"), false).unwrap();
        assert!(!folder.path().join(".slotcast-left").exists());
        fs::remove_file(folder.path().join("two")).unwrap();
        fs::create_dir(folder.path().join("two")).unwrap();
        let error = write(folder.path(), &file("newer"), true).unwrap_err();
        assert!(matches!(error, FilesError::IsADirectory(_)), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("one")).unwrap(), "new", "nothing was written");
    }
}
