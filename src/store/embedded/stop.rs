//! Decides when the store stops. A store must not refuse all calls while the service reports that it is healthy.
//!
//! Errors that may be retried are retried ([`failure`]). The store stops if an action fails for
//! [`super::EmbeddedSettings::failing_max`] without one success, unless the disk is full. It also stops at an error
//! after which later writes could not be trusted. Stopping loses no acknowledged commit: every acknowledged commit is
//! in the write-ahead log or in the file.

use super::Shared;
use super::failure::{self, Failed, ReadError};
use super::probe;
use crate::store::StoreError;
use std::time::Duration;

/// A series of failures without one success; records when it began.
#[derive(Debug, Default)]
pub struct Streak {
    since: Option<Duration>,
}

impl Streak {
    pub fn end(&mut self) {
        self.since = None;
    }

    /// Counts a failure, and returns how long the series has lasted.
    pub fn failed(&mut self, now: Duration) -> Duration {
        now.saturating_sub(*self.since.get_or_insert(now))
    }
}

impl Shared {
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
                 check the disk and the kernel log, then restart the service"
            );
        }
        // The lock is held here: a thread that is about to wait has either seen the reason or is woken.
        let _memory = self.lock();
        self.progress.notify_all();
    }

    pub fn stop_reason(&self) -> Option<StoreError> {
        self.stopped.borrow().clone()
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    /// Attempts a read several times. If all attempts fail, distinguishes an I/O error from damage.
    pub fn reading<T>(&self, attempt: impl FnMut() -> Result<T, ReadError>) -> Result<T, StoreError> {
        self.retrying_reads(ReadError::is_failed_read, attempt).map_err(|Failed { error, unreadable }| {
            let is_closed = matches!(&error, ReadError::Sqlite { error, .. } if failure::cannot_open(error));
            let failed = match error {
                ReadError::Sqlite { doing, error } => self.diagnose(doing, &error, unreadable),
                ReadError::Malformed(error) => error,
            };
            if matches!(failed, StoreError::Unavailable { .. }) {
                let lasted = self.lock().reading.failed(self.now());
                // An unreadable part of the disk affects only the callers whose inventories are there; a file that
                // cannot be opened affects all.
                let affects_all = || is_closed || probe::is_mostly_unreadable(self.files.locked());
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
            memory.committing.end();
            // The log can be reused once it is copied, which may need no additional room.
            memory.log_due_bytes = 0;
            self.work.notify_all();
        } else if memory.committing.failed(self.now()) >= self.settings.failing_max {
            drop(memory);
            self.stop(failed);
        }
    }

    /// Converts an error of SQLite. SQLite reports some failed reads as damage; reading the files distinguishes the
    /// two.
    pub fn diagnose(&self, doing: &str, error: &rusqlite::Error, unreadable: Option<String>) -> StoreError {
        if let Some(why) = unreadable.filter(|_| failure::is_failed_read(error)) {
            return StoreError::Unavailable { detail: format!("{doing}: I/O error: {why}") };
        }
        let failed = failure::store_error(doing, error);
        if failure::is_failed_read(error) && matches!(failed, StoreError::Corrupt { .. }) {
            self.probe.found_damage(self.now());
        }
        failed
    }

    pub fn retrying_reads<T, E>(
        &self,
        is_failed_read: impl Fn(&E) -> bool,
        attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Failed<E>> {
        failure::retrying_reads(is_failed_read, || self.probe.first_failure(self.files.locked(), self.now()), attempt)
    }

    pub fn now(&self) -> Duration {
        (self.settings.clock)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streak_lasts_from_its_first_failure_until_a_success() {
        let (mut streak, second) = (Streak::default(), Duration::from_secs(1));
        assert_eq!(streak.failed(5 * second), Duration::ZERO);
        assert_eq!(streak.failed(9 * second), 4 * second);
        streak.end();
        assert_eq!(streak.failed(10 * second), Duration::ZERO);
    }
}
