//! Checks the directory and writes the files.

use std::fs::Permissions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("{} (choose another directory, or overwrite with --force)", already_exist(.0))]
    Exist(Vec<PathBuf>),
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
    let paths = names.iter().map(|name| directory.join(name));
    let existing: Vec<PathBuf> = paths.filter(|path| path.symlink_metadata().is_ok()).collect();
    if !overwrite && !existing.is_empty() {
        return Err(FilesError::Exist(existing));
    }
    let absolute =
        std::path::absolute(directory).map_err(|error| FilesError::Read { path: directory.into(), error })?;
    absolute.into_os_string().into_string().map_err(|path| FilesError::NotUtf8(path.into()))
}

/// Writes all files under temporary names before any of them appears under its own name.
pub fn write(directory: &Path, files: &[File]) -> Result<(), FilesError> {
    std::fs::create_dir_all(directory)
        .map_err(|error| FilesError::CreateDirectory { path: directory.into(), error })?;
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

fn write_temporary(directory: &Path, file: &File) -> io::Result<NamedTempFile> {
    let mut temporary = NamedTempFile::with_prefix_in(".slotcast-", directory)?;
    temporary.write_all(file.content.as_bytes())?;
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
    Ok(temporary)
}
