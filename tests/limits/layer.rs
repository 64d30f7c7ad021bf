//! The layer that limits syncs, in virtual time: the test records the time of every frame of the bodies behind it.

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use slotcast::domain::PlayerId;
use slotcast::middleware::{SyncLimitLayer, SyncRate};
use slotcast::sync::LimitedPlayer;
use slotcast::sync::limit::PERMIT_LIFETIME;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// A body that yields the newest state whenever it has changed, as a stream of frames does.
struct Newest(WatchStream<u64>);

impl http_body::Body for Newest {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = Pin::new(&mut self.0).poll_next(context);
        next.map(|state| state.map(|state| Ok(Frame::data(Bytes::copy_from_slice(&state.to_be_bytes())))))
    }
}

/// A service with one inventory, which every stream follows.
struct Served {
    layer: SyncLimitLayer,
    rate: SyncRate,
    state: watch::Sender<u64>,
    /// Times of the frames of all streams.
    frames: Arc<Mutex<Vec<Instant>>>,
}

/// An open stream.
struct Reader {
    body: Body,
    frames: Arc<Mutex<Vec<Instant>>>,
}

impl Served {
    fn new() -> Self {
        let rate = SyncRate::new(LIMIT);
        let layer = SyncLimitLayer::new(rate.clone());
        Self { layer, rate, state: watch::Sender::new(0), frames: Arc::default() }
    }

    async fn open(&self, player: Option<&str>) -> Reader {
        let state = self.state.subscribe();
        let limited = player.map(|player| LimitedPlayer(PlayerId::new(player).unwrap()));
        let handler = service_fn(move |_: Request<()>| {
            let mut response = Response::new(Body::new(Newest(WatchStream::new(state.clone()))));
            limited.clone().map(|limited| response.extensions_mut().insert(limited));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let response = self.layer.layer(handler).oneshot(Request::new(())).await.unwrap();
        Reader { body: response.into_body(), frames: self.frames.clone() }
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
        let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await?.unwrap();
        self.frames.lock().unwrap().push(Instant::now());
        Some(u64::from_be_bytes(frame.into_data().unwrap().as_ref().try_into().unwrap()))
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
        readers.spawn(served.open(Some("steve")).await.read());
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
    // The bodies end when their sender is dropped.
    drop(served);
    let ended = readers.join_all().await;
    println!(
        "{} frames in all, at most {most} in a second; for each stream and its last state: {ended:?}",
        frames.len()
    );
    assert_eq!(most, LIMIT as usize, "never more, and as many as there may be");
    assert!(ended.iter().all(|(_, last)| *last == 50 * 200), "each ends at the last state: {ended:?}");
    let (least, most) = (ended.iter().map(|(frames, _)| frames).min(), ended.iter().map(|(frames, _)| frames).max());
    assert!(most.unwrap() - least.unwrap() <= 4, "they take turns: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn reconnecting_does_not_reset_the_limit_and_idle_players_are_removed() {
    let served = Served::new();
    let (begin, mut opened) = (Instant::now(), 0);
    while begin.elapsed() < 5 * SECOND {
        let mut reader = served.open(Some("steve")).await;
        opened += 1;
        // A new stream always has a first frame to send.
        let _ = timeout(Duration::from_millis(7), reader.next()).await;
    }
    let frames = served.frames();
    println!("{opened} streams one after the other got {} frames", frames.len());
    assert_eq!(most_in_a_second(&frames), LIMIT as usize);
    assert!(frames.len() > 40);
    assert_eq!(served.layer.players(), 1);
    sleep(SECOND + Duration::from_millis(1)).await;
    served.layer.remove_idle();
    assert_eq!(served.layer.players(), 0);
}

#[tokio::test(start_paused = true)]
async fn other_players_and_streams_without_a_player_are_not_delayed() {
    let served = Served::new();
    let mut greedy = JoinSet::new();
    for _ in 0..16 {
        greedy.spawn(served.open(Some("steve")).await.read());
    }
    let (mut alex, mut service) = (served.open(Some("alex")).await, served.open(None).await);
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
    let mut service = served.open(None).await;
    for _ in 0..1_000 {
        served.change();
        service.next().await.unwrap();
    }
    assert_eq!(most_in_a_second(&served.frames()), 1_000);
    assert_eq!(served.layer.players(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_applies_to_open_streams() {
    let served = Served::new();
    let mut reader = served.open(Some("steve")).await;
    for (limit, expected) in [(LIMIT, 10), (3, 3), (25, 25), (0, 200), (LIMIT, 10)] {
        served.rate.set(limit);
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
    served.rate.set(1);
    let mut first = served.open(Some("steve")).await;
    first.next().await.unwrap();
    let begin = Instant::now();
    let (mut second, mut third) = (served.open(Some("steve")).await, served.open(Some("steve")).await);
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
    served.rate.set(1);
    let mut reader = served.open(Some("steve")).await;
    reader.next().await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..15 {
        // Each stream is polled once, waits for its turn, and is never polled again.
        let mut next = served.open(Some("steve")).await;
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut next.body).poll_frame(context).is_pending())).await);
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
