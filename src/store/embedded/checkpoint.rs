//! SQLite's write-ahead log is copied into the file here, on the fold's thread, never in a commit.
//!
//! Under constant writes a log never comes to its end by itself: while it is copied, more is appended. So most of it is
//! copied beside the commits, again until little is left, and only the last pages with the turn held; then the log
//! starts over at its beginning.

use super::open::PAGE_BYTES;
use super::turn::Turn;
use rusqlite::Connection;
use std::time::Duration;

/// So many pages at most are copied while commits wait.
const PAGES_LEFT_MAX: u64 = 128;
const ATTEMPTS_MAX: usize = 6;
const READER_WAIT: Duration = Duration::from_micros(100);
const READER_WAITS_MAX: usize = 20;

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    busy: bool,
    pages: u64,
    copied: u64,
}

/// Starts the log over if it is longer than `due_bytes`. Tells how long it is then. One that has grown far beyond
/// `wal_bytes_soft`, as under a backup, gives its room back to the disk; otherwise it is kept, since to write over it is
/// quicker than to write on.
pub fn if_due(connection: &Connection, turn: &Turn, due_bytes: u64, wal_bytes_soft: u64) -> rusqlite::Result<u64> {
    let log_bytes = run(connection, "NOOP")?.pages * PAGE_BYTES;
    if log_bytes <= due_bytes {
        return Ok(log_bytes);
    }
    let Progress { busy, pages, copied } =
        start_over(connection, turn, if log_bytes > 4 * wal_bytes_soft { "TRUNCATE" } else { "RESTART" })?;
    // SQLite tells the old length until the next write, which begins at the log's beginning.
    if !busy && pages == copied { Ok(0) } else { Ok(pages * PAGE_BYTES) }
}

/// At which length the log is to be looked at next, when it is `log_bytes` now. While a reader that stays is in the way
/// (a backup) it grows, and trying again at once would only hold commits up: the next try comes a quarter later.
pub fn next_due_bytes(log_bytes: u64, due_bytes: u64, wal_bytes_soft: u64) -> u64 {
    if log_bytes <= wal_bytes_soft {
        wal_bytes_soft
    } else if log_bytes > due_bytes {
        log_bytes + wal_bytes_soft / 4
    } else {
        due_bytes
    }
}

/// Copies the whole log into the file and cuts the log to nothing, unless a reader (a backup) still needs it. Nobody may
/// write meanwhile.
pub fn empty(connection: &Connection) -> rusqlite::Result<()> {
    let Progress { busy, pages, copied } = run(connection, "TRUNCATE")?;
    tracing::debug!(busy, pages, copied, "emptied the write-ahead log");
    Ok(())
}

fn start_over(connection: &Connection, turn: &Turn, mode: &str) -> rusqlite::Result<Progress> {
    for _ in 0..ATTEMPTS_MAX {
        let Progress { pages, copied, .. } = run(connection, "PASSIVE")?;
        if pages - copied.min(pages) <= PAGES_LEFT_MAX {
            break;
        }
    }
    let my_turn = turn.wait();
    // SQLite's own way of waiting is too coarse for this.
    connection.busy_timeout(Duration::ZERO)?;
    let end = restart(connection, mode);
    connection.busy_timeout(super::open::BUSY_MAX)?;
    drop(my_turn);
    let Progress { busy, pages, copied } = end?;
    tracing::trace!(busy, pages, copied, "checkpoint");
    Ok(Progress { busy, pages, copied })
}

/// Readers that began before the last page was copied are in the way; those that come now are not, so it is soon over.
/// A reader that stays longer (a backup, a curious `sqlite3`) is tried again at the next checkpoint: commits do not wait
/// for it.
fn restart(connection: &Connection, mode: &str) -> rusqlite::Result<Progress> {
    let mut progress = run(connection, mode)?;
    for _ in 0..READER_WAITS_MAX {
        if !progress.busy {
            break;
        }
        std::thread::sleep(READER_WAIT);
        progress = run(connection, mode)?;
    }
    Ok(progress)
}

fn run(connection: &Connection, mode: &str) -> rusqlite::Result<Progress> {
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
    fn while_a_reader_stays_the_next_try_comes_a_quarter_later_and_afterwards_as_usual() {
        const SOFT: u64 = 64;
        assert_eq!(next_due_bytes(10, SOFT, SOFT), SOFT);
        let due = next_due_bytes(65, SOFT, SOFT);
        assert_eq!(due, 81, "it was tried in vain");
        assert_eq!(next_due_bytes(70, due, SOFT), due, "it was not tried");
        assert_eq!(next_due_bytes(82, due, SOFT), 98);
        assert_eq!(next_due_bytes(0, 98, SOFT), SOFT);
    }
}
