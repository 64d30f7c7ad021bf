//! Direct reads of the store's files, to distinguish an unreadable disk from damaged data.

use super::files::{StoreLock, with_suffix};
use parking_lot::Mutex;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const BUFFER_BYTES: usize = 1 << 20;
const SAMPLES: u64 = 16;
const SAMPLE_BYTES: usize = 4096;
/// How long the files are not read again after damage was found, so that repeated requests for damaged data do not read
/// the whole file each time.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Remembers when damage was last found, so that the files are not read again too soon.
#[derive(Debug, Default)]
pub struct RecentDamage {
    damaged_at: Mutex<Option<Duration>>,
}

impl RecentDamage {
    /// Same as [`find_read_error`], but returns `None` if damage was found recently.
    pub fn find_read_error(&self, store: &StoreLock, now: Duration) -> Option<String> {
        let damaged_at = *self.damaged_at.lock();
        if damaged_at.is_some_and(|at| now.saturating_sub(at) < RECHECK_INTERVAL) {
            return None;
        }
        find_read_error(store)
    }

    /// Records that both files are readable and their data is damaged.
    pub fn record_damage(&self, now: Duration) {
        let mut damaged_at = self.damaged_at.lock();
        if damaged_at.is_none_or(|at| now.saturating_sub(at) >= RECHECK_INTERVAL) {
            *damaged_at = Some(now);
        }
    }
}

/// Reads the database file and the write-ahead log completely. Returns where and why a read failed.
pub fn find_read_error(store: &StoreLock) -> Option<String> {
    let database = store.database().and_then(read_error_in).map(|failed| format!("the database file: {failed}"));
    database.or_else(|| {
        let wal = match open_wal(store.path()) {
            Ok(wal) => read_error_in(&wal),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(error.to_string()),
        };
        wal.map(|failed| format!("the write-ahead log: {failed}"))
    })
}

/// Returns whether most of the database file or of the write-ahead log is unreadable, judging by a few samples of each.
pub fn is_mostly_unreadable(store: &StoreLock) -> bool {
    let wal = open_wal(store.path()).ok();
    [store.database(), wal.as_ref()].into_iter().flatten().any(fails_in_most_samples)
}

/// Opens the write-ahead log. SQLite holds no locks on it, so closing it again is safe.
fn open_wal(path: &Path) -> std::io::Result<File> {
    File::open(with_suffix(path, "-wal"))
}

fn read_error_in(file: &File) -> Option<String> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return None,
            Ok(bytes) => offset += bytes as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Some(format!("cannot read at byte {offset}: {error}")),
        }
    }
}

fn fails_in_most_samples(file: &File) -> bool {
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let fails = |sample: &u64| file.read_at(&mut [0; SAMPLE_BYTES], bytes / SAMPLES * sample).is_err();
    (0..SAMPLES).filter(fails).count() as u64 > SAMPLES / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_file_that_can_be_read_is_readable_and_a_directory_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("slotcast.db");
        std::fs::write(&path, vec![7; 3 * BUFFER_BYTES + 5]).expect("it is written");
        let (store, recent) = (StoreLock::acquire(&path).expect("nobody else has it"), RecentDamage::default());
        assert_eq!((recent.find_read_error(&store, Duration::ZERO), is_mostly_unreadable(&store)), (None, false));
        recent.record_damage(Duration::ZERO);
        // Linux opens a directory for reading, but refuses to read it.
        std::fs::create_dir(with_suffix(&path, "-wal")).expect("a directory");
        assert_eq!(recent.find_read_error(&store, RECHECK_INTERVAL / 2), None, "damage was found a moment ago");
        let failed = recent.find_read_error(&store, RECHECK_INTERVAL).expect("the log cannot be read");
        assert!(failed.starts_with("the write-ahead log: cannot read at byte 0: "), "{failed}");
        assert!(is_mostly_unreadable(&store));
    }
}
