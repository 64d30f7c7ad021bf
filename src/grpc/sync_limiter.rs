//! Enforces the sync limit of each player: a stream computes its next frame only when its player has a permit. The limit
//! therefore only delays frames, and a delayed frame contains the newest state.
//!
//! A stream asks for a permit only when it has something to send, and a permit is used only if a frame is sent. A stream
//! without a player belongs to a service and is not limited.

use crate::domain::PlayerId;
use crate::sync::limit::PERMIT_LIFETIME;
use crate::sync::{Moment, SyncLimit, Ticket, Turn};
use crate::telemetry::SyncLimitTelemetry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::time::Instant;

/// The sync limits of all players. It keeps the players that have open streams or had one within about the last second;
/// clones share them.
#[derive(Debug, Clone)]
pub struct SyncLimiter(Arc<LimiterState>);

#[derive(Debug)]
struct LimiterState {
    telemetry: SyncLimitTelemetry,
    /// The origin of the times of the limits.
    start: Instant,
    players: Mutex<Players>,
}

#[derive(Debug, Default)]
struct Players {
    entries: HashMap<PlayerId, PlayerEntry>,
    /// Players whose last stream has ended, and when they may be removed; the earliest first. A player is not removed
    /// before its last permit expires, because otherwise reconnecting would reset the limit.
    closed: VecDeque<(Moment, PlayerId)>,
}

#[derive(Debug, Default)]
struct PlayerEntry {
    queue: Arc<Mutex<PlayerQueue>>,
    streams: usize,
}

#[derive(Debug, Default)]
struct PlayerQueue {
    limit: SyncLimit,
    /// The wakers of the waiting streams.
    wakers: Vec<(Ticket, Waker)>,
}

impl Default for SyncLimiter {
    fn default() -> Self {
        Self::new(SyncLimitTelemetry::default())
    }
}

impl SyncLimiter {
    /// Creates a limiter that records in `telemetry` how long frames waited for a permit.
    pub fn new(telemetry: SyncLimitTelemetry) -> Self {
        Self(Arc::new(LimiterState { telemetry, start: Instant::now(), players: Mutex::default() }))
    }

    /// Adds a stream of a player.
    pub fn open(&self, id: PlayerId) -> PlayerStream {
        let mut players = lock(&self.0.players);
        players.remove_idle(self.0.now());
        let entry = players.entries.entry(id.clone()).or_default();
        entry.streams += 1;
        PlayerStream { limiter: self.0.clone(), id, queue: entry.queue.clone(), ticket: None, waiting_since: None }
    }

    /// Removes players whose last stream ended more than [`PERMIT_LIFETIME`] ago. This also happens whenever a stream
    /// opens or ends; call this method in case none does.
    pub fn remove_idle(&self) {
        let now = self.0.now();
        lock(&self.0.players).remove_idle(now);
    }

    /// Returns the number of players in memory.
    pub fn players(&self) -> usize {
        lock(&self.0.players).entries.len()
    }
}

impl LimiterState {
    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn close(&self, id: &PlayerId) {
        let mut players = lock(&self.players);
        let now = self.now();
        if let Some(entry) = players.entries.get_mut(id) {
            entry.streams -= 1;
            if entry.streams == 0 {
                players.closed.push_back((now + PERMIT_LIFETIME, id.clone()));
            }
        }
        players.remove_idle(now);
    }
}

impl Players {
    fn remove_idle(&mut self, now: Moment) {
        while let Some((_, id)) = self.closed.pop_front_if(|(due, _)| *due <= now) {
            let is_idle = |entry: &PlayerEntry| entry.streams == 0 && lock(&entry.queue).limit.is_idle(now);
            if self.entries.get(&id).is_some_and(is_idle) {
                self.entries.remove(&id);
            }
        }
    }
}

/// A stream in the queue of its player. Dropping this value removes the stream from the queue.
#[derive(Debug)]
pub struct PlayerStream {
    limiter: Arc<LimiterState>,
    id: PlayerId,
    queue: Arc<Mutex<PlayerQueue>>,
    /// The ticket in the player's queue, if the stream waits.
    ticket: Option<Ticket>,
    waiting_since: Option<Instant>,
}

/// The stream has no permit; ask again at this time, or when the waker is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPermit(pub Instant);

impl PlayerStream {
    /// Sends a frame if the player has a permit: `send` returns the frame, or `None` if there is nothing to send.
    ///
    /// Locks the player's queue while sending, so that no other stream of the player sends a frame between the check of
    /// the limit and the record of this frame. The recorded time is the time after sending.
    ///
    /// # Errors
    ///
    /// [`NoPermit`] if the stream has to wait; `send` was not called.
    pub fn poll_send<T>(
        &mut self,
        per_second_max: u32,
        waker: &Waker,
        send: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>, NoPermit> {
        let mut queue = lock(&self.queue);
        queue.limit.set_limit(per_second_max);
        if let Turn::Wait { ticket, until } = queue.limit.poll_turn(self.ticket, self.limiter.now()) {
            self.ticket = Some(ticket);
            let _previous = queue.set_waker(ticket, waker);
            drop(queue);
            self.waiting_since.get_or_insert_with(Instant::now);
            return Err(NoPermit(self.limiter.start + until));
        }
        let sent = send();
        let ticket = self.ticket.take();
        let waiting_since = self.waiting_since.take();
        if sent.is_some() {
            let _own = queue.handle_sent(ticket, self.limiter.now());
            drop(queue);
            self.limiter.telemetry.record(waiting_since.map(|since| since.elapsed()).unwrap_or_default());
        } else {
            let left = queue.handle_left(ticket);
            drop(queue);
            left.wake();
        }
        Ok(sent)
    }

    /// Leaves the queue, because there is nothing to send any more.
    pub fn leave(&mut self) {
        self.waiting_since = None;
        if let Some(ticket) = self.ticket.take() {
            let left = lock(&self.queue).handle_left(Some(ticket));
            left.wake();
        }
    }
}

impl Drop for PlayerStream {
    fn drop(&mut self) {
        self.leave();
        self.limiter.close(&self.id);
    }
}

/// The wakers to use and to drop after a stream has left the queue, without the lock.
struct LeftQueue {
    _own: Option<Waker>,
    behind: Vec<Waker>,
}

impl LeftQueue {
    fn wake(self) {
        self.behind.into_iter().for_each(Waker::wake);
    }
}

impl PlayerQueue {
    /// Returns the waker that it replaces, to be dropped without the lock.
    fn set_waker(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        match self.wakers.iter_mut().find(|(waiting, _)| *waiting == ticket) {
            Some((_, current)) if current.will_wake(waker) => None,
            Some((_, current)) => Some(std::mem::replace(current, waker.clone())),
            None => {
                self.wakers.push((ticket, waker.clone()));
                None
            }
        }
    }

    /// Returns the waker of the stream, to be dropped without the lock.
    fn handle_sent(&mut self, ticket: Option<Ticket>, now: Moment) -> Option<Waker> {
        self.limit.handle_sent(ticket, now);
        self.take_waker(ticket)
    }

    /// Removes a stream that has left the queue without sending. The streams that waited behind it should ask again.
    fn handle_left(&mut self, ticket: Option<Ticket>) -> LeftQueue {
        let was_waiting = self.limit.handle_left(ticket);
        let _own = self.take_waker(ticket);
        let behind = self.wakers.iter().filter(|(waiting, _)| was_waiting && Some(*waiting) > ticket);
        LeftQueue { behind: behind.map(|(_, waker)| waker.clone()).collect(), _own }
    }

    fn take_waker(&mut self, ticket: Option<Ticket>) -> Option<Waker> {
        let position = self.wakers.iter().position(|(waiting, _)| Some(*waiting) == ticket)?;
        Some(self.wakers.remove(position).1)
    }
}

/// Locks a mutex. A poisoned lock is safe to use: the data changes in steps that cannot panic, so a panic of a stream's
/// handler leaves it consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
