//! The limits over real connections: syncs and streams per player, requests per caller.
//!
//! `SLOTCAST_STREAMS` sets the number of streams that case 40 tries to open (500 by default).

use futures_util::future::join_all;
use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, Follow, new_mutation_context};
use slotcast::grpc::stream_limit::StreamSettings;
use slotcast::middleware::AdmissionSettings;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::sync::{Rollout, RolloutField};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// Maximum delay of a frame from the service to this test. The time between two arrivals can be shorter than the time
/// between their permits by this delay; `limiter.rs` checks the permits to the millisecond.
const DELIVERY_MAX: Duration = Duration::from_millis(100);

struct Served {
    server: RunningServer,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start(settings: ServerSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("slotcast.db"), EmbeddedSettings::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = RunningServer::start(listener, Arc::new(store), Arc::new(default_catalog()), settings).unwrap();
        Self { server, _folder: folder }
    }

    fn client(&self, caller: &str) -> Client {
        Client::new(&self.server.uri(), caller).unwrap()
    }
}

async fn create(client: &Client, id: &str) {
    let create =
        v1::CreateInventory { inventory_id: id.into(), layout: "player".into(), ..v1::CreateInventory::default() };
    client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
}

/// Sets a slot to a new stack: a mutation without a change would send no frame.
async fn change(client: &Client, id: &str, slot: u32) -> Result<v1::MutationReceipt, Status> {
    static CHANGES: AtomicU32 = AtomicU32::new(0);
    let attributes = CHANGES.fetch_add(1, Ordering::Relaxed).to_le_bytes().to_vec();
    let stack = Some(v1::Stack { item: "cobblestone".into(), count: 1, attributes, ..v1::Stack::default() });
    let set = v1::SetSlot { inventory_id: id.into(), at: Some(v1::SlotRef { slot }), stack };
    client.mutate(new_mutation_context(), Operation::Set(set)).await
}

async fn version(client: &Client, id: &str) -> v1::InventoryVersion {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap().version.unwrap()
}

#[allow(clippy::needless_update, reason = "whatever else a request may carry is left out")]
async fn subscribe(client: &Client, id: &str) -> Result<Streaming<v1::SubscribeInventoryResponse>, Status> {
    let inventories = vec![v1::Watch { inventory_id: id.into(), ..v1::Watch::default() }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    client.rpc().subscribe_inventory(request).await.map(tonic::Response::into_inner)
}

/// Follows until the replica is at the revision that `last` returns; returns the arrival time of each frame.
async fn follow_to(mut follow: Follow, last: impl Future<Output = u64>) -> (Follow, Vec<Instant>) {
    let (mut last, mut last_revision, mut frames) = (Box::pin(last), None, Vec::new());
    let revision = |follow: &Follow| follow.replica(0).map(|replica| replica.contents.revision().0);
    while last_revision.is_none() || revision(&follow) != last_revision {
        tokio::select! {
            update = follow.next() => {
                update.unwrap();
                frames.push(Instant::now());
            }
            revision = &mut last, if last_revision.is_none() => last_revision = Some(revision),
        }
    }
    (follow, frames)
}

/// Returns the shortest period that contains `many` frames.
fn closest(many: usize, frames: &mut [Instant]) -> Duration {
    frames.sort();
    frames.windows(many).map(|frames| frames[many - 1] - frames[0]).min().unwrap()
}

fn refused(status: &Status) -> (Code, String, Option<Duration>) {
    let details = status.get_error_details();
    let reason = details.error_info().unwrap().reason.clone();
    (status.code(), reason, details.retry_info().and_then(|retry| retry.retry_delay))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_of_one_player_under_fifty_writers_stay_within_the_limit_and_converge() {
    let served = Served::start(ServerSettings::default()).await;
    let service = served.client("lobby");
    create(&service, "chest").await;
    let (ended, last) = tokio::sync::watch::channel(None);
    let streams = (0..8).map(|_| {
        // Each stream has its own connection.
        let follow = served.client("game").for_player("steve").unwrap().follow(vec!["chest".into()]);
        let mut last = last.clone();
        tokio::spawn(follow_to(follow, async move { last.wait_for(Option::is_some).await.unwrap().unwrap() }))
    });
    let streams: Vec<_> = streams.collect();
    let other = served.client("game").for_player("alex").unwrap().follow(vec!["chest".into()]);
    let mut other_last = last.clone();
    let other =
        tokio::spawn(follow_to(other, async move { other_last.wait_for(Option::is_some).await.unwrap().unwrap() }));

    let end = Instant::now() + Duration::from_secs(4);
    let writers = (0..50).map(async |writer| {
        while Instant::now() < end {
            change(&service, "chest", writer % 36).await.unwrap();
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..30))).await;
        }
    });
    join_all(writers).await;
    let truth = version(&service, "chest").await;
    ended.send_replace(Some(truth.revision));

    let mut frames = Vec::new();
    for stream in join_all(streams).await {
        let (follow, times) = stream.unwrap();
        let digest = follow.replica(0).unwrap().contents.digest();
        assert_eq!((digest.a, digest.b), truth.digest.map(|digest| (digest.a, digest.b)).unwrap());
        assert_eq!(follow.counts().desyncs, 0);
        frames.extend(times);
    }
    let other_frames = other.await.unwrap().1;
    let closest = closest(11, &mut frames);
    println!(
        "{} revisions; {} frames arrived at one player's 8 streams, the closest 11 of them within {closest:?}; {} at the \
         other player",
        truth.revision,
        frames.len(),
        other_frames.len()
    );
    assert!(closest > Duration::from_secs(1) - DELIVERY_MAX, "{closest:?}");
    assert!(other_frames.len() >= 30, "the other player's frames come each 100 ms: {}", other_frames.len());
    served.server.stop().await.unwrap();
}

#[tokio::test]
async fn the_limit_can_be_changed_at_run_time() {
    let settings = ServerSettings::default();
    let rollout = settings.rollout.clone();
    let limit = |syncs_per_second| {
        let next = |current: &Rollout| current.with_values([(RolloutField::SyncsPerSecond, syncs_per_second)]);
        rollout.change("test", "as the test says", next).unwrap();
    };
    limit(1);
    let served = Served::start(settings).await;
    let service = served.client("lobby");
    create(&service, "chest").await;
    let mut follow = served.client("game").for_player("steve").unwrap().follow(vec!["chest".into()]);
    follow.next().await.unwrap();
    change(&service, "chest", 0).await.unwrap();
    let begin = Instant::now();
    follow.next().await.unwrap();
    assert!(begin.elapsed() > Duration::from_secs(1) - DELIVERY_MAX, "{:?}", begin.elapsed());
    limit(0);
    // The stream already waits for its next permit, and sees the new limit when it polls again.
    change(&service, "chest", 1).await.unwrap();
    follow.next().await.unwrap();
    let begin = Instant::now();
    for slot in 0..4 {
        change(&service, "chest", slot).await.unwrap();
        follow.next().await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_caller_above_its_rate_receives_a_retry_delay_in_milliseconds() {
    let admission = AdmissionSettings { per_second: 8, burst: 5 };
    let served = Served::start(ServerSettings { admission, ..ServerSettings::default() }).await;
    let (greedy, modest) = (served.client("greedy"), served.client("modest"));
    create(&modest, "chest").await;
    let calls = join_all((0..20).map(|slot| change(&greedy, "chest", slot))).await;
    let statuses: Vec<_> = calls.iter().filter_map(|call| call.as_ref().err()).map(refused).collect();
    assert!((10..=15).contains(&statuses.len()), "{statuses:?}");
    let expected = (Code::ResourceExhausted, "RATE_LIMITED".to_owned(), Some(Duration::from_millis(125)));
    assert!(statuses.iter().all(|status| *status == expected), "{statuses:?}");
    change(&modest, "chest", 0).await.expect("another caller is not held up");
    // Time under test: the retry delay that the status gave.
    tokio::time::sleep(Duration::from_millis(125)).await;
    change(&greedy, "chest", 0).await.expect("after the requested delay one more is accepted");
}

#[tokio::test]
async fn streams_per_player_are_limited_and_a_closed_stream_frees_its_place() {
    let streams = StreamSettings { per_player_max: 3, per_caller_max: 2 };
    let served = Served::start(ServerSettings { streams, ..ServerSettings::default() }).await;
    let service = served.client("lobby");
    create(&service, "chest").await;
    let steve = service.for_player("steve").unwrap();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(subscribe(&steve, "chest").await.unwrap());
    }
    let expected = (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned(), Some(Duration::from_secs(1)));
    let status = subscribe(&steve, "chest").await.unwrap_err();
    assert_eq!(refused(&status), expected);
    assert_eq!(status.get_error_details().quota_failure().unwrap().violations[0].subject, "player:steve");
    let _own = (subscribe(&service, "chest").await.unwrap(), subscribe(&service, "chest").await.unwrap());
    assert_eq!(refused(&subscribe(&service, "chest").await.unwrap_err()), expected, "the caller's own");

    open.pop();
    // The service notices the end of the stream when the reset arrives.
    let begin = Instant::now();
    while subscribe(&steve, "chest").await.map(|stream| open.push(stream)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "a closed stream makes room");
        tokio::task::yield_now().await;
    }
    assert!(subscribe(&steve, "nowhere").await.is_err());
    open.pop();
    while subscribe(&steve, "chest").await.map(|stream| open.push(stream)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "a refused stream does not count");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_40_excess_streams_of_one_player_are_rejected_without_affecting_others() {
    let attempts = std::env::var("SLOTCAST_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(500_usize);
    let served = Served::start(ServerSettings::default()).await;
    let service = served.client("lobby");
    create(&service, "chest").await;
    let mut alex = served.client("game").for_player("alex").unwrap().follow(vec!["chest".into()]);
    alex.next().await.unwrap();

    let hoarder = served.client("hoarder").for_player("steve").unwrap();
    let hoarding = tokio::spawn(async move {
        let begin = Instant::now();
        let (mut open, mut refusals) = (Vec::new(), 0);
        // A script opens many streams concurrently, and repeats this.
        for _ in 0..attempts.div_ceil(250) {
            for opened in join_all((0..250.min(attempts)).map(|_| subscribe(&hoarder, "chest"))).await {
                match opened {
                    Ok(stream) => open.push(stream),
                    Err(status) => {
                        let (code, reason, retry) = refused(&status);
                        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "TOO_MANY_STREAMS"));
                        assert!(retry.is_some());
                        refusals += 1;
                    }
                }
            }
        }
        (open, refusals, begin.elapsed())
    });
    let mut slowest = Duration::ZERO;
    while !hoarding.is_finished() {
        let begin = Instant::now();
        change(&service, "chest", 0).await.unwrap();
        alex.next().await.unwrap();
        slowest = slowest.max(begin.elapsed());
    }
    let (open, refusals, took) = hoarding.await.unwrap();
    println!(
        "{} streams open, {refusals} refused in {took:?}; meanwhile a change took at most {slowest:?} to another player",
        open.len()
    );
    assert_eq!(open.len(), 16);
    assert_eq!(open.len() + refusals, attempts.div_ceil(250) * 250.min(attempts));
    assert!(slowest < Duration::from_secs(2), "another player's frames came: {slowest:?}");
}
