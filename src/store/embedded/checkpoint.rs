//! WAL checkpoints: copy SQLite's write-ahead log (WAL) into the file, on the fold's thread and never in a commit.
//!
//! Under constant writes a WAL never ends: while it is copied, commits append more. So most of it is copied while
//! commits continue, repeatedly until little is left, and only the last pages are copied with the write lock held. Then
//! the WAL restarts at its beginning.

use super::open::PAGE_BYTES;
use parking_lot::FairMutex;
use rusqlite::Connection;
use std::time::Duration;

/// Maximum number of pages that are copied while commits wait.
const PAGES_LEFT_MAX: u64 = 128;
/// Maximum number of passes that copy while commits continue.
const PASSES_MAX: usize = 6;
/// How long to wait for a reader at a time, and how often.
const READER_WAIT: Duration = Duration::from_micros(100);
const READER_WAITS_MAX: usize = 20;

/// The progress of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    busy: bool,
    pages: u64,
    copied: u64,
}

/// Makes a WAL checkpoint and restarts the WAL if it is longer than `due_bytes`. Returns its length afterwards, in
/// bytes. A WAL that is more than four times as long as `wal_checkpoint_bytes`, as after a backup, is truncated. A shorter one keeps its space, because
/// overwriting is faster than extending.
pub fn checkpoint_if_due(
    connection: &Connection,
    write_lock: &FairMutex<()>,
    due_bytes: u64,
    wal_checkpoint_bytes: u64,
) -> rusqlite::Result<u64> {
    let wal_bytes = wal_checkpoint(connection, "NOOP")?.pages * PAGE_BYTES;
    if wal_bytes <= due_bytes {
        return Ok(wal_bytes);
    }
    let Progress { busy, pages, copied } =
        restart_wal(connection, write_lock, if wal_bytes > 4 * wal_checkpoint_bytes { "TRUNCATE" } else { "RESTART" })?;
    // SQLite reports the old length until the next write, which goes to the beginning of the WAL.
    if !busy && pages == copied { Ok(0) } else { Ok(pages * PAGE_BYTES) }
}

/// Returns the length of the WAL at which the next checkpoint is due, in bytes; `wal_bytes` is the current length.
/// While a long-running reader such as a backup prevents a restart, the WAL grows, and an immediate retry would only
/// delay commits. The next attempt is due after a quarter of `wal_checkpoint_bytes` more.
pub fn next_due_bytes(wal_bytes: u64, due_bytes: u64, wal_checkpoint_bytes: u64) -> u64 {
    if wal_bytes <= wal_checkpoint_bytes {
        wal_checkpoint_bytes
    } else if wal_bytes > due_bytes {
        wal_bytes + wal_checkpoint_bytes / 4
    } else {
        due_bytes
    }
}

/// Copies the whole WAL into the file and truncates the WAL, unless a reader such as a backup still needs it. The
/// caller must prevent writes meanwhile.
pub fn checkpoint_and_truncate(connection: &Connection) -> rusqlite::Result<()> {
    let Progress { busy, pages, copied } = wal_checkpoint(connection, "TRUNCATE")?;
    tracing::debug!(busy, pages, copied, "emptied the write-ahead log");
    Ok(())
}

fn restart_wal(connection: &Connection, write_lock: &FairMutex<()>, mode: &str) -> rusqlite::Result<Progress> {
    for _ in 0..PASSES_MAX {
        let Progress { pages, copied, .. } = wal_checkpoint(connection, "PASSIVE")?;
        if pages - copied.min(pages) <= PAGES_LEFT_MAX {
            break;
        }
    }
    let guard = write_lock.lock();
    // SQLite's own waiting is too coarse for this.
    connection.busy_timeout(Duration::ZERO)?;
    let end = restart(connection, mode);
    connection.busy_timeout(super::open::BUSY_MAX)?;
    drop(guard);
    let Progress { busy, pages, copied } = end?;
    tracing::trace!(busy, pages, copied, "checkpoint");
    Ok(Progress { busy, pages, copied })
}

/// Restarts the WAL. Readers that began before the last page was copied prevent this; newer readers do not, so the wait
/// is short. The next checkpoint tries again if a reader such as a backup or `sqlite3` stays longer: commits do not
/// wait for it.
fn restart(connection: &Connection, mode: &str) -> rusqlite::Result<Progress> {
    let mut progress = wal_checkpoint(connection, mode)?;
    for _ in 0..READER_WAITS_MAX {
        if !progress.busy {
            break;
        }
        std::thread::sleep(READER_WAIT);
        progress = wal_checkpoint(connection, mode)?;
    }
    Ok(progress)
}

fn wal_checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Progress> {
    let mut pragma = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    pragma.query_row([], |row| {
        let count = |column| row.get::<_, i64>(column).map(|count| count.max(0).unsigned_abs());
        Ok(Progress { busy: row.get::<_, i64>(0)? != 0, pages: count(1)?, copied: count(2)? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_reader_blocks_the_restart_the_next_attempt_is_due_a_quarter_later() {
        const SOFT: u64 = 64;
        assert_eq!(next_due_bytes(10, SOFT, SOFT), SOFT);
        let due = next_due_bytes(65, SOFT, SOFT);
        assert_eq!(due, 81, "it was tried in vain");
        assert_eq!(next_due_bytes(70, due, SOFT), due, "it was not tried");
        assert_eq!(next_due_bytes(82, due, SOFT), 98);
        assert_eq!(next_due_bytes(0, 98, SOFT), SOFT);
    }
}
