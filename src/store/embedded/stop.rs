//! Decides when the store stops. A store must not refuse all calls while the service reports that it is healthy.
//!
//! Errors that may be retried are retried ([`failure`]). The store stops if an action fails for
//! [`super::EmbeddedSettings::failing_max`] without one success, unless the disk is full. It also stops at an error
//! after which later writes could not be trusted. Stopping loses no acknowledged commit: every acknowledged commit is
//! in the write-ahead log or in the file.

use super::failure::{self, ReadError, RetryError};
use super::probe;
use super::state::StoreInner;
use crate::store::StoreError;
use std::time::Duration;

/// A series of failures without one success; records when it began.
#[derive(Debug, Default)]
pub struct FailureStreak {
    since: Option<Duration>,
}

impl FailureStreak {
    pub fn reset(&mut self) {
        self.since = None;
    }

    /// Counts a failure, and returns how long the series has lasted.
    pub fn record(&mut self, now: Duration) -> Duration {
        now.saturating_sub(*self.since.get_or_insert(now))
    }
}

impl StoreInner {
    /// Stops all writes and notifies the receivers of [`crate::store::Store::stopped`]. Only the first reason counts.
    pub fn stop(&self, failure: &StoreError) {
        let is_first = self.stopped.send_if_modified(|stopped| {
            let is_first = stopped.is_none();
            stopped.get_or_insert_with(|| failure.clone());
            is_first
        });
        if is_first {
            tracing::error!(
                %failure,
                path = %self.path.display(),
                "the store has stopped: nothing more is written; \
                 check the disk and the kernel log, then restart the server"
            );
        }
        // The lock is held here: a thread that is about to wait has either seen the reason or is woken.
        let _memory = self.lock();
        self.fold_progress.notify_all();
    }

    pub fn stop_reason(&self) -> Option<StoreError> {
        self.stopped.borrow().clone()
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    /// Attempts a read several times. If all attempts fail, distinguishes an I/O error from damage.
    pub fn read_with_retry<T>(&self, attempt: impl FnMut() -> Result<T, ReadError>) -> Result<T, StoreError> {
        self.retry_failed_reads(ReadError::is_failed_read, attempt).map_err(|RetryError { error, unreadable }| {
            let is_closed = matches!(&error, ReadError::Sqlite { error, .. } if failure::cannot_open(error));
            let failed = match error {
                ReadError::Sqlite { action, error } => self.diagnose(action, &error, unreadable),
                ReadError::Corrupt(error) => error,
            };
            if matches!(failed, StoreError::Unavailable { .. }) {
                let lasted = self.lock().read_failures.record(self.now());
                // An unreadable part of the disk affects only the callers whose inventories are there; a file that
                // cannot be opened affects all.
                let affects_all = || is_closed || probe::is_mostly_unreadable(self.files.lock());
                if lasted >= self.settings.failing_max && affects_all() {
                    self.stop(&failed);
                }
            }
            failed
        })
    }

    /// Counts a commit that failed without writing anything, or that was refused because the fold fails and there is no
    /// room for more unfolded records.
    pub fn commit_failed(&self, failed: &StoreError) {
        let is_full = matches!(failed, StoreError::Full { .. });
        let mut memory = self.lock();
        if is_full {
            memory.commit_failures.reset();
            // The write-ahead log can be reused once it is copied, which may need no additional room; and blocks take less room
            // than the rows that they replace.
            memory.wal_due_bytes = 0;
            memory.seal_all = true;
            self.fold_wakeup.notify_all();
        } else if memory.commit_failures.record(self.now()) >= self.settings.failing_max {
            drop(memory);
            self.stop(failed);
        }
    }

    /// Converts an error of SQLite. SQLite reports some failed reads as damage; reading the files distinguishes the
    /// two.
    pub fn diagnose(&self, action: &str, error: &rusqlite::Error, unreadable: Option<String>) -> StoreError {
        if let Some(why) = unreadable.filter(|_| failure::is_failed_read(error)) {
            return StoreError::Unavailable { detail: format!("{action} failed: I/O error: {why}") };
        }
        let failed = failure::store_error(action, error);
        if failure::is_failed_read(error) && matches!(failed, StoreError::Corrupt { .. }) {
            self.recent_damage.record_damage(self.now());
        }
        failed
    }

    pub fn retry_failed_reads<T, E>(
        &self,
        is_failed_read: impl Fn(&E) -> bool,
        attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T, RetryError<E>> {
        failure::retry_failed_reads(
            is_failed_read,
            || self.recent_damage.find_read_error(self.files.lock(), self.now()),
            attempt,
        )
    }

    pub fn now(&self) -> Duration {
        (self.settings.clock)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_streak_lasts_from_its_first_failure_until_a_success() {
        let (mut streak, second) = (FailureStreak::default(), Duration::from_secs(1));
        assert_eq!(streak.record(5 * second), Duration::ZERO);
        assert_eq!(streak.record(9 * second), 4 * second);
        streak.reset();
        assert_eq!(streak.record(10 * second), Duration::ZERO);
    }
}
