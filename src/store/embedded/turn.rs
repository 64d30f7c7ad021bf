//! The turn to write. SQLite allows one writer at a time, and waits for it by polling. This lock serves writers in the
//! order of their requests, so a commit never waits for more than one slice of the fold, and commits never starve the
//! fold.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub struct Turn {
    tickets: Mutex<Tickets>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    serving: u64,
}

/// The turn to write, until it is dropped.
#[derive(Debug)]
pub struct MyTurn<'a>(&'a Turn);

impl Turn {
    pub fn wait(&self) -> MyTurn<'_> {
        let mut tickets = self.lock();
        let mine = tickets.next;
        tickets.next += 1;
        while tickets.serving != mine {
            tickets = self.changed.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        MyTurn(self)
    }

    /// A panic of another thread cannot leave the two numbers inconsistent.
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MyTurn<'_> {
    fn drop(&mut self) {
        let mut tickets = self.0.lock();
        tickets.serving += 1;
        let waited_for = tickets.serving != tickets.next;
        drop(tickets);
        if waited_for {
            self.0.changed.notify_all();
        }
    }
}
