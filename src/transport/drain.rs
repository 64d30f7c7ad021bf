//! Signals to the streams of a connection when they must end.

use slab::Slab;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// The time over which the streams of a connection end once it has reached its maximum age.
#[derive(Debug, Clone, Copy)]
pub(super) struct GracePeriod {
    pub start: Instant,
    pub duration: Duration,
}

/// The drain state of one connection, which its streams observe.
#[derive(Debug, Default)]
pub(super) struct ConnectionDrain {
    /// When the streams end because of the age of the connection; `None` if connections have no maximum age.
    grace: Option<GracePeriod>,
    /// Whether all streams of the connection must end.
    is_draining: AtomicBool,
    /// Whether GOAWAY was sent because of the age of the connection. No stream ends in the grace period before, because
    /// its client would open it again on this connection.
    is_goaway_sent: AtomicBool,
    /// The wakers of the streams.
    wakers: Mutex<Slab<Waker>>,
}

impl ConnectionDrain {
    pub fn new(grace: Option<GracePeriod>) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Ends all streams.
    pub fn end_streams(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.wake();
    }

    /// Ends each stream at its own moment within the grace period.
    pub fn handle_goaway_sent(&self) {
        self.is_goaway_sent.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // The streams must not find the lock held when they are woken.
        let wakers: Vec<Waker> = self.lock().iter().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slab<Waker>> {
        // Only allocation can panic under the lock, and it leaves the wakers consistent.
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends all streams of a connection when it is dropped.
pub(super) struct EndStreamsOnDrop(pub Arc<ConnectionDrain>);

impl Drop for EndStreamsOnDrop {
    fn drop(&mut self) {
        self.0.end_streams();
    }
}

/// Signals to a stream when it must end, because the server drains or its connection has reached its maximum age. The
/// stream then ends with UNAVAILABLE, and its client opens it again on another connection.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    connection: Arc<ConnectionDrain>,
    /// When this stream ends in the grace period of its connection: 0 is its start, 1 its end.
    position: f32,
}

impl DrainSignal {
    /// Returns a signal that never fires, for requests that this transport does not serve.
    pub fn never() -> Self {
        Self { connection: Arc::default(), position: 0.0 }
    }

    /// Creates the signal of one stream. The stream ends at a random time in the grace period, so that the streams of
    /// one connection do not all reconnect at once.
    pub(super) fn new(connection: Arc<ConnectionDrain>) -> Self {
        Self { connection, position: fastrand::f32() }
    }

    /// Waits until the stream must end. Returns immediately if that time has passed. Cancel safe.
    pub async fn wait(&self) {
        let mut waiter = DrainWaiter::new(self.clone());
        let mut sleep = pin!(None);
        poll_fn(|context| {
            waiter.set_waker(context.waker());
            if waiter.must_end() {
                return Poll::Ready(());
            }
            let Some(deadline) = waiter.deadline() else { return Poll::Pending };
            if sleep.is_none() {
                sleep.set(Some(tokio::time::sleep_until(deadline)));
            }
            sleep.as_mut().as_pin_mut().map_or(Poll::Pending, |sleep| sleep.poll(context))
        })
        .await;
    }
}

/// A stream that waits for its [`DrainSignal`] together with other events. It needs no memory but that of its waker.
#[derive(Debug)]
pub struct DrainWaiter {
    signal: DrainSignal,
    /// The index of the stream's waker plus 1, once it has one.
    waker: Option<NonZeroU32>,
}

impl DrainWaiter {
    pub fn new(signal: DrainSignal) -> Self {
        Self { signal, waker: None }
    }

    /// Returns whether the stream must end now.
    pub fn must_end(&self) -> bool {
        self.signal.connection.is_draining.load(Ordering::Acquire)
            || self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Returns when the stream must end because of the age of its connection; `None` before GOAWAY was sent.
    pub fn deadline(&self) -> Option<Instant> {
        let grace = self.signal.connection.grace.as_ref()?;
        let is_goaway_sent = self.signal.connection.is_goaway_sent.load(Ordering::Acquire);
        is_goaway_sent.then(|| grace.start + grace.duration.mul_f32(self.signal.position))
    }

    /// Wakes this waker when [`Self::must_end`] or [`Self::deadline`] has changed. Check them after this call.
    pub fn set_waker(&mut self, waker: &Waker) {
        let mut wakers = self.signal.connection.lock();
        // A waker may end the last use of its task, so it is dropped without the lock.
        let _previous = match self.index() {
            None => {
                let index = wakers.insert(waker.clone());
                self.waker = NonZeroU32::new(index as u32 + 1);
                None
            }
            Some(index) if wakers[index].will_wake(waker) => None,
            Some(index) => Some(std::mem::replace(&mut wakers[index], waker.clone())),
        };
        drop(wakers);
    }

    fn index(&self) -> Option<usize> {
        self.waker.map(|waker| waker.get() as usize - 1)
    }
}

impl Drop for DrainWaiter {
    fn drop(&mut self) {
        let _waker = self.index().map(|index| self.signal.connection.lock().remove(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_end_spread_over_the_grace_period_and_at_once_when_the_server_drains() {
        let start = Instant::now();
        let grace = GracePeriod { start: start + Duration::from_secs(100), duration: Duration::from_secs(20) };
        let connection = Arc::new(ConnectionDrain::new(Some(grace)));
        let signals: Vec<_> = (0..200).map(|_| DrainSignal::new(connection.clone())).collect();
        let waits = signals.iter().map(|signal| async move {
            signal.wait().await;
            // A second call returns immediately.
            signal.wait().await;
            start.elapsed()
        });
        let drained = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            connection.handle_goaway_sent();
            tokio::time::sleep(Duration::from_secs(10)).await;
            connection.end_streams();
        };
        let (ends, ()) = tokio::join!(futures_util::future::join_all(waits), drained);
        let seconds: Vec<u64> = ends.iter().map(Duration::as_secs).collect();
        assert!(seconds.iter().all(|end| (100..=110).contains(end)), "{seconds:?}");
        for second in 100..110 {
            assert!(seconds.contains(&second), "no stream ended in second {second}: {seconds:?}");
        }
        assert!(seconds.iter().filter(|end| **end == 110).count() > 50, "the others end at once: {seconds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_stream_ends_before_goaway_was_sent() {
        let start = Instant::now();
        let connection = Arc::new(ConnectionDrain::new(Some(GracePeriod { start, duration: Duration::ZERO })));
        let signal = DrainSignal::new(connection.clone());
        assert!(tokio::time::timeout(Duration::from_secs(10), signal.wait()).await.is_err());
        connection.handle_goaway_sent();
        signal.wait().await;
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_a_maximum_age_never_has_to_end() {
        let never = DrainSignal::never();
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), never.wait()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_leaves_nothing_behind() {
        let connection = Arc::new(ConnectionDrain::default());
        let signal = DrainSignal::new(connection.clone());
        assert!(tokio::time::timeout(Duration::from_secs(1), signal.wait()).await.is_err());
        assert!(connection.lock().is_empty());
    }
}
