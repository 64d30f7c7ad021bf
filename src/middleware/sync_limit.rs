//! Enforces the sync limit of each player by wrapping response bodies: a stream is not polled for its next frame before
//! its player has a permit. The limit therefore only delays frames, and a delayed frame contains the newest state.
//!
//! The handler names the player in the response's extensions ([`LimitedPlayer`]); a response without a player is not
//! limited. A permit is used only when a body frame is sent, and each message is one body frame (`wire::codec`).

use crate::domain::PlayerId;
use crate::sync::limit::PERMIT_LIFETIME;
use crate::sync::{FrameAge, LimitedPlayer, Moment, SyncLimit, Ticket, Turn};
use crate::telemetry::SyncLimitTelemetry;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// The sync limit of each player, in syncs per second; 0 disables the limit. Clones share the value. A change applies
/// to frames that are polled afterwards; a waiting stream notices it within about a second.
#[derive(Debug, Clone)]
pub struct SyncRate(Arc<AtomicU32>);

impl SyncRate {
    pub fn new(per_second_max: u32) -> Self {
        Self(Arc::new(AtomicU32::new(per_second_max)))
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, per_second_max: u32) {
        self.0.store(per_second_max, Ordering::Relaxed);
    }
}

impl Default for SyncRate {
    fn default() -> Self {
        Self::new(10)
    }
}

/// The layer that enforces the sync limit. It keeps the players that have open streams or had one within about the last
/// second; clones share them.
#[derive(Debug, Clone)]
pub struct SyncLimitLayer(Arc<LimiterState>);

#[derive(Debug)]
struct LimiterState {
    rate: SyncRate,
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

impl SyncLimitLayer {
    pub fn new(rate: SyncRate) -> Self {
        Self::with_telemetry(rate, SyncLimitTelemetry::default())
    }

    /// Creates a layer that records in `telemetry` how long frames waited for a permit.
    pub fn with_telemetry(rate: SyncRate, telemetry: SyncLimitTelemetry) -> Self {
        Self(Arc::new(LimiterState { rate, telemetry, start: Instant::now(), players: Mutex::default() }))
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

impl<S> Layer<S> for SyncLimitLayer {
    type Service = SyncLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SyncLimitService { inner, shared: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct SyncLimitService<S> {
    inner: S,
    shared: Arc<LimiterState>,
}

impl<S, B> Service<Request<B>> for SyncLimitService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = SyncLimitFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        SyncLimitFuture { inner: self.inner.call(request), shared: self.shared.clone() }
    }
}

pin_project! {
    pub struct SyncLimitFuture<F> {
        #[pin]
        inner: F,
        shared: Arc<LimiterState>,
    }
}

impl<F, E> Future for SyncLimitFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(context))?;
        let Some(LimitedPlayer(player)) = response.extensions_mut().remove() else { return Poll::Ready(Ok(response)) };
        let stream = this.shared.open(player);
        let age = response.extensions_mut().remove::<FrameAge>().unwrap_or_default();
        let wait_timer = WaitTimer { age, since: None };
        Poll::Ready(Ok(response.map(|inner| Body::new(SyncLimitBody { inner, stream, sleep: None, wait_timer }))))
    }
}

impl LimiterState {
    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn open(self: &Arc<Self>, id: PlayerId) -> PlayerStream {
        let mut players = lock(&self.players);
        players.remove_idle(self.now());
        let entry = players.entries.entry(id.clone()).or_default();
        entry.streams += 1;
        PlayerStream { shared: self.clone(), id, queue: entry.queue.clone(), ticket: None }
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
struct PlayerStream {
    shared: Arc<LimiterState>,
    id: PlayerId,
    queue: Arc<Mutex<PlayerQueue>>,
    /// The ticket in the player's queue, if the stream waits.
    ticket: Option<Ticket>,
}

/// The stream has no permit; poll again at this time.
struct NoPermit(Moment);

impl PlayerStream {
    /// Polls the body for a frame if the player has a permit.
    ///
    /// Locks the player's queue while polling, so that no other stream of the player sends a frame between the check of
    /// the limit and the record of this frame. The recorded time is the time after polling.
    fn poll_inner(&mut self, inner: Pin<&mut Body>, context: &mut Context<'_>) -> Result<PolledFrame, NoPermit> {
        let mut queue = lock(&self.queue);
        queue.limit.set_limit(self.shared.rate.get());
        if let Turn::Wait { ticket, until } = queue.limit.poll_turn(self.ticket, self.shared.now()) {
            self.ticket = Some(ticket);
            queue.set_waker(ticket, context.waker());
            return Err(NoPermit(until));
        }
        let polled = http_body::Body::poll_frame(inner, context);
        let ticket = self.ticket.take();
        let is_sync = matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        let next_wakers = if is_sync {
            queue.handle_sent(ticket, self.shared.now());
            Vec::new()
        } else {
            queue.handle_left(ticket)
        };
        drop(queue);
        next_wakers.into_iter().for_each(Waker::wake);
        Ok(polled)
    }
}

impl Drop for PlayerStream {
    fn drop(&mut self) {
        let next_wakers = lock(&self.queue).handle_left(self.ticket);
        next_wakers.into_iter().for_each(Waker::wake);
        self.shared.close(&self.id);
    }
}

impl PlayerQueue {
    fn set_waker(&mut self, ticket: Ticket, waker: &Waker) {
        match self.wakers.iter_mut().find(|(waiting, _)| *waiting == ticket) {
            Some((_, current)) => current.clone_from(waker),
            None => self.wakers.push((ticket, waker.clone())),
        }
    }

    fn handle_sent(&mut self, ticket: Option<Ticket>, now: Moment) {
        self.limit.handle_sent(ticket, now);
        self.wakers.retain(|(waiting, _)| Some(*waiting) != ticket);
    }

    /// Removes a stream that has left the queue without sending. Returns the wakers of the streams that waited behind
    /// it; they should poll again.
    fn handle_left(&mut self, ticket: Option<Ticket>) -> Vec<Waker> {
        let was_waiting = self.limit.handle_left(ticket);
        self.wakers.retain(|(waiting, _)| Some(*waiting) != ticket);
        let behind = self.wakers.iter().filter(|(waiting, _)| was_waiting && Some(*waiting) > ticket);
        behind.map(|(_, waker)| waker.clone()).collect()
    }
}

type PolledFrame = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A response body that waits for permits of its player.
struct SyncLimitBody {
    inner: Body,
    stream: PlayerStream,
    /// Created when the stream waits for the first time; most streams never wait.
    sleep: Option<Pin<Box<Sleep>>>,
    wait_timer: WaitTimer,
}

/// Measures how long the frames of a stream wait for a permit.
struct WaitTimer {
    age: FrameAge,
    since: Option<Instant>,
}

impl WaitTimer {
    /// Records how long a frame has waited: the shorter of the stream's wait and the age of the frame's oldest change.
    fn handle_polled(&mut self, polled: &PolledFrame, telemetry: &SyncLimitTelemetry) {
        let waited = self.since.take().map(|since| since.elapsed());
        if let Poll::Ready(Some(Ok(frame))) = polled
            && frame.is_data()
        {
            telemetry.record(self.age.take().min(waited.unwrap_or_default()));
        }
    }
}

impl http_body::Body for SyncLimitBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> PolledFrame {
        let this = self.get_mut();
        loop {
            let until = match this.stream.poll_inner(Pin::new(&mut this.inner), context) {
                Ok(polled) => {
                    this.wait_timer.handle_polled(&polled, &this.stream.shared.telemetry);
                    return polled;
                }
                Err(NoPermit(until)) => this.stream.shared.start + until,
            };
            this.wait_timer.since.get_or_insert_with(Instant::now);
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if sleep.deadline() != until {
                sleep.as_mut().reset(until);
            }
            ready!(sleep.as_mut().poll(context));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Locks a mutex. A poisoned lock is safe to use: the data changes in steps that cannot panic, so a panic of a stream's
/// handler leaves it consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
