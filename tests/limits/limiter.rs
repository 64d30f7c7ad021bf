//! The sync limiter, in virtual time: the test records the time of every frame of the streams behind it.

use slotcast::domain::PlayerId;
use slotcast::grpc::sync_limiter::{NoPermit, PlayerStream, SyncLimiter};
use slotcast::sync::limit::PERMIT_LIFETIME;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

const LIMIT: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// A service with one inventory, which every stream follows.
struct Served {
    limiter: SyncLimiter,
    rate: Arc<AtomicU32>,
    state: watch::Sender<u64>,
    /// Times of the frames of all streams.
    frames: Arc<Mutex<Vec<Instant>>>,
}

/// An open stream, which sends the newest state whenever it has changed.
struct Reader {
    state: watch::Receiver<u64>,
    player: Option<PlayerStream>,
    rate: Arc<AtomicU32>,
    frames: Arc<Mutex<Vec<Instant>>>,
}

impl Served {
    fn new() -> Self {
        let rate = Arc::new(AtomicU32::new(LIMIT));
        Self { limiter: SyncLimiter::default(), rate, state: watch::Sender::new(0), frames: Arc::default() }
    }

    fn open(&self, player: Option<&str>) -> Reader {
        let mut state = self.state.subscribe();
        // A new stream always has a first frame to send.
        state.mark_changed();
        let player = player.map(|player| self.limiter.open(PlayerId::new(player).unwrap()));
        Reader { state, player, rate: self.rate.clone(), frames: self.frames.clone() }
    }

    fn set_rate(&self, per_second_max: u32) {
        self.rate.store(per_second_max, Ordering::Relaxed);
    }

    fn change(&self) {
        self.state.send_modify(|state| *state += 1);
    }

    fn frames(&self) -> Vec<Instant> {
        let mut frames = self.frames.lock().unwrap().clone();
        frames.sort();
        frames
    }
}

impl Reader {
    /// Returns the state in the next frame, or `None` after the end of the stream.
    async fn next(&mut self) -> Option<u64> {
        if self.state.changed().await.is_err() {
            return None;
        }
        self.state.mark_changed();
        let mut sleep = pin!(sleep(Duration::from_millis(0)));
        poll_fn(|context| self.poll_send(sleep.as_mut(), context)).await
    }

    fn poll_send(&mut self, mut sleep: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<Option<u64>> {
        loop {
            let state = &mut self.state;
            let mut send = || Some(*state.borrow_and_update());
            let polled = match &mut self.player {
                Some(player) => player.poll_send(self.rate.load(Ordering::Relaxed), context.waker(), &mut send),
                None => Ok(send()),
            };
            match polled {
                Ok(sent) => {
                    self.frames.lock().unwrap().push(Instant::now());
                    return Poll::Ready(sent);
                }
                Err(NoPermit(until)) => sleep.as_mut().reset(until),
            }
            std::task::ready!(sleep.as_mut().poll(context));
        }
    }

    /// Reads to the end, and returns the number of frames and the last state.
    async fn read(mut self) -> (usize, u64) {
        let (mut frames, mut last) = (0, 0);
        while let Some(state) = self.next().await {
            frames += 1;
            last = state;
        }
        (frames, last)
    }
}

/// Returns the maximum number of frames within any second, both edges included.
fn most_in_a_second(frames: &[Instant]) -> usize {
    let within =
        |first: &Instant| frames.iter().filter(|frame| *first <= **frame && **frame <= *first + SECOND).count();
    frames.iter().map(within).max().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn eight_streams_of_one_player_receive_ten_frames_in_any_second_and_the_last_state() {
    let served = Arc::new(Served::new());
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        readers.spawn(served.open(Some("steve")).read());
    }
    let mut writers = JoinSet::new();
    for _ in 0..50 {
        let served = served.clone();
        writers.spawn(async move {
            for _ in 0..200 {
                sleep(Duration::from_micros(fastrand::u64(0..60_000))).await;
                served.change();
            }
        });
    }
    writers.join_all().await;
    sleep(2 * SECOND).await;
    let frames = served.frames();
    let most = most_in_a_second(&frames);
    // The streams end when their sender is dropped.
    drop(served);
    let ended = readers.join_all().await;
    println!(
        "{} frames in all, at most {most} in a second; for each stream and its last state: {ended:?}",
        frames.len()
    );
    assert_eq!(most, LIMIT as usize, "never more, and as many as there may be");
    assert!(ended.iter().all(|(_, last)| *last == 50 * 200), "each ends at the last state: {ended:?}");
    // In each second, each of the 8 streams gets at least one frame. Which streams get the other two depends on when the
    // changes happen.
    let seconds = frames.len() / LIMIT as usize;
    assert!(ended.iter().all(|(received, _)| *received >= seconds), "they take turns in {seconds} seconds: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn reconnecting_does_not_reset_the_limit_and_idle_players_are_removed() {
    let served = Served::new();
    let (begin, mut opened) = (Instant::now(), 0);
    while begin.elapsed() < 5 * SECOND {
        let mut reader = served.open(Some("steve"));
        opened += 1;
        // A new stream always has a first frame to send.
        let _ = timeout(Duration::from_millis(7), reader.next()).await;
    }
    let frames = served.frames();
    println!("{opened} streams one after the other got {} frames", frames.len());
    assert_eq!(most_in_a_second(&frames), LIMIT as usize);
    assert!(frames.len() > 40);
    assert_eq!(served.limiter.players(), 1);
    sleep(SECOND + Duration::from_millis(1)).await;
    served.limiter.remove_idle();
    assert_eq!(served.limiter.players(), 0);
}

#[tokio::test(start_paused = true)]
async fn other_players_and_streams_without_a_player_are_not_delayed() {
    let served = Served::new();
    let mut greedy = JoinSet::new();
    for _ in 0..16 {
        greedy.spawn(served.open(Some("steve")).read());
    }
    let (mut alex, mut service) = (served.open(Some("alex")), served.open(None));
    alex.next().await.unwrap();
    service.next().await.unwrap();
    for round in 0..50 {
        sleep(Duration::from_millis(110)).await;
        served.change();
        let changed = Instant::now();
        assert_eq!(alex.next().await, Some(round + 1));
        assert_eq!(service.next().await, Some(round + 1));
        assert_eq!(changed.elapsed(), Duration::ZERO);
    }
    let frames = served.frames();
    assert!(most_in_a_second(&frames) <= 3 * LIMIT as usize, "steve, alex and the service together");
}

#[tokio::test(start_paused = true)]
async fn streams_without_a_player_are_neither_limited_nor_tracked() {
    let served = Served::new();
    let mut service = served.open(None);
    for _ in 0..1_000 {
        served.change();
        service.next().await.unwrap();
    }
    assert_eq!(most_in_a_second(&served.frames()), 1_000);
    assert_eq!(served.limiter.players(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_applies_to_open_streams() {
    let served = Served::new();
    let mut reader = served.open(Some("steve"));
    for (limit, expected) in [(LIMIT, 10), (3, 3), (25, 25), (0, 200), (LIMIT, 10)] {
        served.set_rate(limit);
        // Frames sent under the previous limit count for another second.
        sleep(2 * SECOND).await;
        let (before, begin) = (served.frames().len(), Instant::now());
        for _ in 0..200 {
            served.change();
            let _ = timeout(Duration::from_millis(5), reader.next()).await;
            sleep((begin + Duration::from_millis(5)).saturating_duration_since(Instant::now())).await;
        }
        let frames = served.frames();
        let within = frames[before..].iter().filter(|frame| **frame <= begin + SECOND).count();
        assert_eq!(within, expected, "with a limit of {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_takes_the_place_of_a_stream_that_leaves() {
    let served = Served::new();
    served.set_rate(1);
    let mut first = served.open(Some("steve"));
    first.next().await.unwrap();
    let begin = Instant::now();
    let (mut second, mut third) = (served.open(Some("steve")), served.open(Some("steve")));
    let second = tokio::spawn(async move { second.next().await });
    tokio::task::yield_now().await;
    let third = tokio::spawn(async move {
        third.next().await;
        begin.elapsed()
    });
    sleep(SECOND / 2).await;
    second.abort();
    let waited = third.await.unwrap();
    assert!((PERMIT_LIFETIME..=PERMIT_LIFETIME + Duration::from_millis(3)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn stalled_readers_delay_other_streams_of_their_player_once_by_two_seconds_at_most() {
    let served = Served::new();
    served.set_rate(1);
    let mut reader = served.open(Some("steve"));
    reader.next().await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..15 {
        // Each stream is polled once, waits for its turn, and is never polled again.
        let mut next = served.open(Some("steve"));
        let is_waiting = poll_fn(|context| {
            let mut sleep = pin!(sleep_until(Instant::now() + SECOND));
            Poll::Ready(next.poll_send(sleep.as_mut(), context).is_pending())
        });
        assert!(is_waiting.await);
        stalled.push(next);
    }
    let mut waited = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        served.change();
        reader.next().await.unwrap();
        waited.push(begin.elapsed().as_millis());
    }
    println!("waited so many ms: {waited:?}");
    assert!(waited[0] <= 2_110 && waited[1..].iter().all(|ms| *ms <= 1_052), "{waited:?}");
}
