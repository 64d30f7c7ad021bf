//! Watches files for changes at runtime: settings, certificates and keys.
//!
//! A watch compares the contents every second instead of using file system events. This works equally with a mounted
//! ConfigMap, an editor that renames files and a network share, and reading files of a few kilobytes costs little. A
//! change is reported once two consecutive reads return the same contents, so that a partly written file is not used.
//! Files that belong together (a certificate and its key) are reported together.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type Contents = Vec<Result<Vec<u8>, ErrorKind>>;

/// A file cannot be read, or it exceeds the maximum size ([`io::ErrorKind::FileTooLarge`]).
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {error} (check the path and its permissions)", path.display())]
pub struct Unreadable {
    pub path: PathBuf,
    pub error: io::Error,
}

/// A watch of one or more files, with their contents as last reported.
#[derive(Debug)]
pub struct FileWatch {
    paths: Vec<PathBuf>,
    /// Maximum size of each file, in bytes.
    bytes_max: u64,
    reported: Contents,
    /// The contents at the last read, if they differ from those last reported.
    changed: Option<Contents>,
}

impl FileWatch {
    /// Reads the files for the first time. Returns the contents in the order of `paths`; each file may have at most
    /// `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if a file cannot be read or is too large.
    pub fn open(paths: Vec<PathBuf>, bytes_max: u64) -> Result<(Self, Vec<Vec<u8>>), Unreadable> {
        let read = |path: &PathBuf| read(path, bytes_max).map_err(|error| Unreadable { path: path.clone(), error });
        let contents = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let reported = contents.iter().cloned().map(Ok).collect();
        Ok((Self { paths, bytes_max, reported, changed: None }, contents))
    }

    /// Returns the interval at which to call [`Self::check`].
    pub fn interval() -> Interval {
        let mut interval = tokio::time::interval(CHECK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    }

    /// Reads the files. Returns their contents if they have changed and two consecutive reads agree, or in any case if
    /// `force`. Reports each change, also that a file became unreadable, only once.
    pub async fn check(&mut self, force: bool) -> Option<Result<Vec<Vec<u8>>, Unreadable>> {
        let (mut now, mut contents) = (Contents::new(), Ok(Vec::new()));
        for path in &self.paths {
            let (file, bytes_max) = (path.clone(), self.bytes_max);
            // The task fails only if the runtime shuts down.
            let read = tokio::task::spawn_blocking(move || read(&file, bytes_max)).await.ok()?;
            now.push(read.as_ref().map(Clone::clone).map_err(io::Error::kind));
            match (read, &mut contents) {
                (Ok(content), Ok(contents)) => contents.push(content),
                (Err(error), Ok(_)) => contents = Err(Unreadable { path: path.clone(), error }),
                (_, Err(_)) => {}
            }
        }
        let is_stable = self.changed.take().is_some_and(|before| before == now);
        if !force && (now == self.reported || !is_stable) {
            self.changed = Some(now).filter(|now| *now != self.reported);
            return None;
        }
        self.reported = now;
        Some(contents)
    }
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("larger than {bytes_max} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_reported_once_stable_and_files_are_reported_together() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<_> = ["certificate", "key"].map(|name| directory.path().join(name)).into();
        let write = |at: usize, text: &str| std::fs::write(&paths[at], text).unwrap();
        write(0, "a");
        write(1, "b");
        let (mut watch, first) = FileWatch::open(paths.clone(), 8).unwrap();
        assert_eq!(first, [b"a", b"b"]);
        assert!(watch.check(false).await.is_none());
        write(0, "c");
        assert!(watch.check(false).await.is_none(), "the file may be partly written");
        write(1, "d");
        assert!(watch.check(false).await.is_none(), "a file was written since the last check");
        assert_eq!(watch.check(false).await.unwrap().unwrap(), [b"c", b"d"]);
        assert!(watch.check(false).await.is_none(), "a change is reported once");
        write(0, "e");
        assert!(watch.check(false).await.is_none());
        write(0, "c");
        assert!(watch.check(false).await.is_none(), "the contents are again those last reported");
        assert!(watch.check(false).await.is_none());
        assert!(watch.check(true).await.is_some(), "a forced check always returns the contents");
        std::fs::remove_file(&paths[1]).unwrap();
        assert!(watch.check(false).await.is_none());
        assert_eq!(watch.check(false).await.unwrap().unwrap_err().path, paths[1]);
        assert!(watch.check(false).await.is_none(), "a change is reported once");
        write(1, "123456789");
        assert!(watch.check(false).await.is_none());
        let too_large = watch.check(false).await.unwrap().unwrap_err();
        assert_eq!(too_large.error.kind(), ErrorKind::FileTooLarge);
        assert!(too_large.to_string().contains(": larger than 8 bytes"), "{too_large}");
        assert!(watch.check(false).await.is_none(), "a change is reported once");
    }

    #[test]
    fn the_error_for_a_missing_file_names_it() {
        let missing = FileWatch::open(vec!["/nonexistent/file".into()], 8).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read /nonexistent/file: "), "{missing}");
    }
}
