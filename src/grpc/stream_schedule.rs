//! Wakes streams at their due times, and all streams when the rollout or the signing keys change: one task with one
//! timer for all streams of a runtime.
//!
//! Due times are rounded up to [`RESOLUTION`], so streams that are due together are woken together, and the frames of
//! one connection leave in one write. A stream that becomes due later does not touch the queue: its entry stays at the
//! earlier time and is moved when that time has come.

use crate::identity::KeyChanges;
use crate::live_rollout::LiveRollout;
use crate::sync::Rollout;
use slab::Slab;
use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;
use tokio::runtime;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// The resolution of due times; it is also that of tokio's timer.
const RESOLUTION: Duration = Duration::from_millis(1);

/// A due time, as a number of [`RESOLUTION`]s since the start.
type Tick = u64;

/// The schedules of all runtimes; clones share them.
#[derive(Debug, Clone)]
pub struct StreamSchedule(Arc<ScheduleSources>);

#[derive(Debug)]
struct ScheduleSources {
    rollout: LiveRollout,
    keys: Option<KeyChanges>,
    /// The origin of the ticks.
    start: Instant,
    runtimes: Mutex<HashMap<runtime::Id, Weak<RuntimeSchedule>>>,
}

/// The schedule of the streams of one runtime. Its task ends with the last stream.
#[derive(Debug)]
struct RuntimeSchedule {
    shared: Arc<RuntimeState>,
    task: AbortHandle,
}

#[derive(Debug)]
struct RuntimeState {
    start: Instant,
    streams: Mutex<ScheduledStreams>,
    /// Notified when a stream is due before the time for which the task waits.
    is_due_earlier: Notify,
}

#[derive(Debug, Default)]
struct ScheduledStreams {
    entries: Slab<Entry>,
    /// The entries by the time at which to examine them. Each entry is in the queue at most once.
    queue: BTreeSet<(Tick, usize)>,
    /// The time for which the task waits.
    next: Option<Tick>,
}

#[derive(Debug)]
struct Entry {
    waker: Option<Waker>,
    due: Tick,
    /// The entry's time in the queue, not later than `due`; [`Tick::MAX`] if it is not queued.
    queued: Tick,
    /// Whether the rollout or the signing keys have changed since the stream last waited. It may have read them before.
    is_stale: bool,
}

/// A stream in the schedule of its runtime. Dropping it removes the stream.
#[derive(Debug)]
pub struct ScheduledStream {
    runtime: Arc<RuntimeSchedule>,
    index: usize,
}

impl StreamSchedule {
    /// Creates the schedules of a server. `keys` tells when credentials may have been revoked, if callers are
    /// authenticated.
    pub fn new(rollout: LiveRollout, keys: Option<KeyChanges>, start: Instant) -> Self {
        Self(Arc::new(ScheduleSources { rollout, keys, start, runtimes: Mutex::default() }))
    }

    /// Adds a stream of the current runtime.
    pub fn add(&self) -> ScheduledStream {
        let runtime = self.runtime();
        let index = runtime.shared.lock().entries.insert(Entry {
            waker: None,
            due: Tick::MAX,
            queued: Tick::MAX,
            is_stale: false,
        });
        ScheduledStream { runtime, index }
    }

    fn runtime(&self) -> Arc<RuntimeSchedule> {
        let mut runtimes = self.0.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        let id = runtime::Handle::current().id();
        if let Some(runtime) = runtimes.get(&id).and_then(Weak::upgrade) {
            return runtime;
        }
        runtimes.retain(|_, runtime| runtime.strong_count() > 0);
        let shared =
            Arc::new(RuntimeState { start: self.0.start, streams: Mutex::default(), is_due_earlier: Notify::new() });
        // Subscribed here and not in the task: a stream may read the rollout before the task runs for the first time.
        let rollout_changes = self.0.rollout.subscribe();
        let task = tokio::spawn(wake_streams(shared.clone(), rollout_changes, self.0.keys.clone()));
        let runtime = Arc::new(RuntimeSchedule { shared, task: task.abort_handle() });
        runtimes.insert(id, Arc::downgrade(&runtime));
        runtime
    }
}

impl Drop for RuntimeSchedule {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ScheduledStream {
    /// Wakes the stream at `due`, rounded up to the resolution, and whenever the rollout or the signing keys change.
    pub fn wake_at(&self, due: Instant, waker: &Waker) {
        let state = &self.runtime.shared;
        let due = state.tick_at(due);
        let mut streams = state.lock();
        let Some(entry) = streams.entries.get_mut(self.index) else { return };
        entry.due = due;
        let is_stale = std::mem::take(&mut entry.is_stale);
        // A waker may end the last use of its task, so it is dropped without the lock.
        let _previous = match &mut entry.waker {
            Some(current) if current.will_wake(waker) => None,
            current => current.replace(waker.clone()),
        };
        if due < entry.queued {
            let queued = std::mem::replace(&mut entry.queued, due);
            streams.queue.remove(&(queued, self.index));
            streams.queue.insert((due, self.index));
        }
        let is_due_earlier = streams.next.is_none_or(|next| due < next);
        if is_due_earlier {
            streams.next = Some(due);
        }
        drop(streams);
        if is_due_earlier {
            state.is_due_earlier.notify_one();
        }
        if is_stale {
            waker.wake_by_ref();
        }
    }
}

impl Drop for ScheduledStream {
    fn drop(&mut self) {
        let mut streams = self.runtime.shared.lock();
        let entry = streams.entries.try_remove(self.index);
        if let Some(entry) = &entry {
            streams.queue.remove(&(entry.queued, self.index));
        }
        drop(streams);
        drop(entry);
    }
}

/// Wakes the streams of one runtime. Never returns.
async fn wake_streams(state: Arc<RuntimeState>, mut rollout: watch::Receiver<Arc<Rollout>>, keys: Option<KeyChanges>) {
    let mut keys_changed = keys;
    let mut wakers = Vec::new();
    let mut sleep = pin!(sleep_until(state.start));
    loop {
        let next = state.lock().take_due(state.now(), &mut wakers);
        wakers.drain(..).for_each(Waker::wake);
        if let Some(next) = next {
            sleep.as_mut().reset(state.time_of(next));
        }
        tokio::select! {
            () = sleep.as_mut(), if next.is_some() => {}
            () = state.is_due_earlier.notified() => {}
            Ok(()) = rollout.changed() => state.lock().take_all(&mut wakers),
            () = changed(&mut keys_changed) => state.lock().take_all(&mut wakers),
        }
    }
}

async fn changed(keys: &mut Option<KeyChanges>) {
    match keys {
        Some(keys) => keys.changed().await,
        None => pending().await,
    }
}

impl RuntimeState {
    fn lock(&self) -> MutexGuard<'_, ScheduledStreams> {
        // Only allocation can panic under the lock, and it leaves the entries usable.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last tick that has come.
    fn now(&self) -> Tick {
        (self.start.elapsed().as_nanos() / RESOLUTION.as_nanos()) as Tick
    }

    /// Returns the first tick that is not before `due`.
    fn tick_at(&self, due: Instant) -> Tick {
        due.saturating_duration_since(self.start).as_nanos().div_ceil(RESOLUTION.as_nanos()) as Tick
    }

    fn time_of(&self, tick: Tick) -> Instant {
        self.start + Duration::from_millis(tick)
    }
}

impl ScheduledStreams {
    /// Appends the wakers of the streams that are due, and returns when the next stream is due.
    fn take_due(&mut self, now: Tick, wakers: &mut Vec<Waker>) -> Option<Tick> {
        while let Some((tick, index)) = self.queue.first().copied().filter(|(tick, _)| *tick <= now) {
            self.queue.remove(&(tick, index));
            let Some(entry) = self.entries.get_mut(index) else { continue };
            if entry.due <= now {
                entry.queued = Tick::MAX;
                wakers.extend(entry.waker.clone());
            } else {
                entry.queued = entry.due;
                self.queue.insert((entry.due, index));
            }
        }
        self.next = self.queue.first().map(|(tick, _)| *tick);
        self.next
    }

    /// Appends the wakers of all streams, because the rollout or the signing keys have changed.
    fn take_all(&mut self, wakers: &mut Vec<Waker>) {
        for (_, entry) in &mut self.entries {
            entry.is_stale = true;
            wakers.extend(entry.waker.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::RolloutField;
    use std::task::Wake;
    use tokio::time::timeout;

    const MS: Duration = Duration::from_millis(1);

    fn schedule(rollout: &LiveRollout) -> StreamSchedule {
        StreamSchedule::new(rollout.clone(), None, Instant::now())
    }

    #[derive(Default)]
    struct Woken(Notify);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    /// Waits until the stream is woken, at `due` or earlier.
    async fn woken(stream: &ScheduledStream, due: Instant) {
        let woken = Arc::new(Woken::default());
        stream.wake_at(due, &Waker::from(woken.clone()));
        woken.0.notified().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_woken_at_its_due_time_even_if_it_moves() {
        let schedule = schedule(&LiveRollout::default());
        let (start, stream, other) = (Instant::now(), schedule.add(), schedule.add());
        assert!(timeout(50 * MS, woken(&stream, start + 1_000 * MS)).await.is_err());
        woken(&stream, start + 60 * MS).await;
        assert_eq!(start.elapsed(), 60 * MS, "earlier than at first");
        assert!(timeout(10 * MS, woken(&stream, start + 100 * MS)).await.is_err());
        woken(&stream, start + 500 * MS).await;
        assert_eq!(start.elapsed(), 500 * MS, "later than at first");
        woken(&other, start + Duration::from_micros(600_200)).await;
        assert_eq!(start.elapsed(), 601 * MS, "rounded up");
        drop(stream);
        assert!(other.runtime.shared.lock().queue.is_empty(), "each stream is queued at most once");
        assert_eq!(other.runtime.shared.lock().entries.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_streams_are_woken_when_the_rollout_changes() {
        let rollout = LiveRollout::default();
        let (schedule, start) = (schedule(&rollout), Instant::now());
        let (one, other, due) = (schedule.add(), schedule.add(), start + 10_000 * MS);
        let change = async {
            tokio::time::sleep(5 * MS).await;
            let next = |current: &Rollout| current.with_values([(RolloutField::NewsMs, 7)]);
            rollout.change("me", "a test", next).expect("within bounds");
        };
        tokio::join!(woken(&one, due), woken(&other, due), change);
        assert_eq!(start.elapsed(), 5 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_of_a_runtime_ends_with_its_last_stream() {
        let schedule = schedule(&LiveRollout::default());
        let stream = schedule.add();
        let task = stream.runtime.task.clone();
        drop(stream);
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        drop(schedule.add());
        assert_eq!(schedule.0.runtimes.lock().expect("no panic").len(), 1);
    }
}
