//! Predictions over real gRPC: the frames for a correct prediction (none), a wrong one and a rejected one.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, Session, SessionError, SessionEvent, SessionOptions, new_mutation_context};
use slotcast::domain::Slot;
use slotcast::live_rollout::LiveRollout;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::sync::{Rollout, SyncSettings, Windows};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

const PLAYER: usize = 0;
const CHEST: usize = 1;
const SOON: Duration = Duration::from_secs(10);

struct World {
    server: RunningServer,
    client: Client,
    folder: TempDir,
}

/// Windows that no test outlasts, so that only immediate frames arrive.
fn long_windows() -> SyncSettings {
    let hour = Duration::from_secs(3_600);
    SyncSettings { windows: Windows { news: hour, echo: hour, ..Windows::default() }, ..SyncSettings::default() }
}

async fn start(folder: &Path, address: SocketAddr, sync: SyncSettings) -> RunningServer {
    let store = Arc::new(EmbeddedStore::open(&folder.join("slotcast.db"), EmbeddedSettings::default()).unwrap());
    let listener = TcpListener::bind(address).await.unwrap();
    let settings = ServerSettings { rollout: LiveRollout::new(Rollout::for_all(sync)), ..ServerSettings::default() };
    RunningServer::start(listener, store, Arc::new(default_catalog()), settings).unwrap()
}

/// Starts a server with a player who has 60 stones, and an empty chest.
async fn world(sync: SyncSettings) -> World {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), ([127, 0, 0, 1], 0).into(), sync).await;
    let client = Client::new(&server.uri(), "lobby").unwrap();
    let stones = v1::Stack { item: "stone".into(), count: 60, ..v1::Stack::default() };
    for (id, layout, stack) in [("anna", "player", Some(stones)), ("chest", "chest", None)] {
        let create = v1::CreateInventory {
            inventory_id: id.into(),
            layout: layout.into(),
            stacks: stack.map(|stack| v1::SlotStack { slot: 0, stack: Some(stack) }).into_iter().collect(),
            ..v1::CreateInventory::default()
        };
        client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
    }
    World { server, client, folder }
}

impl World {
    async fn session(&self, in_flight_max: usize) -> Session {
        let options = SessionOptions { in_flight_max, ..SessionOptions::new(vec!["anna".into(), "chest".into()]) };
        let session = self.client.session(options, self.client.catalog().await.unwrap()).unwrap();
        timeout(SOON, session.caught_up()).await.unwrap().unwrap();
        session
    }

    /// Sends a mutation by another caller without a session.
    async fn mutate_as_another(&self, operation: Operation) {
        Client::new(&self.server.uri(), "another").unwrap().mutate(new_mutation_context(), operation).await.unwrap();
    }

    async fn assert_converged(&self, session: &Session) {
        timeout(SOON, session.settled()).await.unwrap().unwrap();
        for (index, id) in ["anna", "chest"].into_iter().enumerate() {
            let request = v1::GetInventoryRequest { inventory_id: id.into() };
            let truth = self.client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
            let version = truth.version.unwrap();
            let reached = async {
                while session.confirmed(index).unwrap().revision().0 < version.revision {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(SOON, reached).await.unwrap();
            let digest = session.view(index).unwrap().digest();
            assert_eq!(Some(v1::Digest { a: digest.a, b: digest.b }), version.digest, "{id}");
        }
        assert_eq!(session.counts().desyncs, 0);
    }
}

fn drop_one(slot: u32) -> Operation {
    Operation::Drop(v1::DropItem { inventory_id: "anna".into(), from: Some(v1::SlotQuantity { slot, count: Some(1) }) })
}

fn drop_all(slot: u32) -> Operation {
    Operation::Drop(v1::DropItem { inventory_id: "anna".into(), from: Some(v1::SlotQuantity { slot, count: None }) })
}

fn add(to: &str, count: u32) -> Operation {
    let stack = Some(v1::Stack { item: "stone".into(), count, ..v1::Stack::default() });
    Operation::Add(v1::AddItem { inventory_id: to.into(), stack, allow_partial: false })
}

fn transfer(from: &str, to: &str, count: u32) -> Operation {
    let what = v1::ItemQuantity { item: "stone".into(), count, ..v1::ItemQuantity::default() };
    Operation::Transfer(v1::TransferItem {
        from_inventory_id: from.into(),
        to_inventory_id: to.into(),
        what: Some(v1::transfer_item::What::Item(what)),
        ..v1::TransferItem::default()
    })
}

fn held(session: &Session, index: usize, slot: u16) -> u32 {
    session.view(index).unwrap().stack(Slot(slot)).map_or(0, |stack| stack.count.get())
}

/// Returns the first event that matches.
async fn event<T>(session: &Session, mut select: impl FnMut(SessionEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = select(session.next_event().await.expect("more events")) {
                return found;
            }
        }
    };
    timeout(SOON, found).await.unwrap()
}

#[tokio::test]
async fn correct_predictions_send_no_frame_and_the_next_delta_skips_their_revisions() {
    let world = world(SyncSettings::default()).await;
    let session = world.session(1).await;
    let initial = session.counts();
    for left in (52..60).rev() {
        assert!(session.apply(drop_one(0)).unwrap().predicted);
        assert_eq!(held(&session, PLAYER, 0), left, "shown at once");
    }
    world.assert_converged(&session).await;
    // Time under test: the window of an echo passes without a frame.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(session.counts(), initial);
    world.mutate_as_another(add("anna", 3)).await;
    event(&session, |event| matches!(event, SessionEvent::Changed { index: PLAYER }).then_some(())).await;
    assert_eq!(held(&session, PLAYER, 0), 55);
    let counts = session.counts();
    assert_eq!((counts.syncs - initial.syncs, counts.deltas, counts.skipped), (1, 1, 8));
    world.assert_converged(&session).await;
}

#[tokio::test]
async fn both_sides_of_a_transfer_are_predicted() {
    let world = world(long_windows()).await;
    let session = world.session(1).await;
    let initial = session.counts();
    for _ in 0..3 {
        session.apply(transfer("anna", "chest", 10)).unwrap();
    }
    session.apply(transfer("chest", "anna", 5)).unwrap();
    assert_eq!((held(&session, PLAYER, 0), held(&session, CHEST, 0)), (35, 25));
    world.assert_converged(&session).await;
    assert_eq!(session.counts(), initial);
    let outcomes = event(&session, |event| {
        let SessionEvent::Confirmed { outcomes, as_predicted: true, .. } = event else { return None };
        Some(outcomes)
    });
    assert_eq!(outcomes.await[0].count, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_predictions_are_applied_once_in_any_order() {
    let world = world(SyncSettings::default()).await;
    let session = world.session(8).await;
    for _ in 0..50 {
        session.apply(drop_one(0)).unwrap();
    }
    assert_eq!(held(&session, PLAYER, 0), 10);
    world.assert_converged(&session).await;
    assert_eq!(held(&session, PLAYER, 0), 10);
    println!("{:?}", session.counts());
}

#[tokio::test]
async fn a_wrong_prediction_is_corrected_immediately_by_a_full_frame() {
    let world = world(long_windows()).await;
    let session = world.session(1).await;
    world.mutate_as_another(add("anna", 4)).await;
    session.apply(drop_one(0)).unwrap();
    assert_eq!(held(&session, PLAYER, 0), 59, "it does not know of the four yet");
    event(&session, |event| matches!(event, SessionEvent::Corrected { index: PLAYER }).then_some(())).await;
    assert_eq!(held(&session, PLAYER, 0), 63);
    world.assert_converged(&session).await;
    assert_eq!(session.counts().corrections, 1);
    let corrected = session.counts();
    session.apply(drop_one(0)).unwrap();
    world.assert_converged(&session).await;
    assert_eq!(session.counts(), corrected, "the next one is right again");
}

#[tokio::test]
async fn a_rejected_prediction_is_rolled_back_and_corrected_immediately() {
    let world = world(long_windows()).await;
    let session = world.session(1).await;
    world.mutate_as_another(drop_all(0)).await;
    let applied = session.apply(drop_one(0)).unwrap();
    let refused = event(&session, |event| {
        let SessionEvent::Failed { key, status } = event else { return None };
        Some((key, status))
    });
    let (key, status) = refused.await;
    assert_eq!((key, status.code()), (applied.key, Code::FailedPrecondition));
    world.assert_converged(&session).await;
    assert_eq!(held(&session, PLAYER, 0), 0);
    assert_eq!(session.counts().corrections, 1);
    let refused = session.apply(drop_one(0));
    assert!(matches!(refused, Err(SessionError::Rejected(_))), "now it knows by itself: {refused:?}");
}

#[tokio::test]
async fn an_unpredictable_mutation_is_sent_and_arrives_as_news() {
    let world = world(SyncSettings::default()).await;
    let options = SessionOptions::new(vec!["anna".into()]);
    let session = world.client.session(options, world.client.catalog().await.unwrap()).unwrap();
    session.caught_up().await.unwrap();
    let asked_at = Instant::now();
    assert!(!session.apply(transfer("anna", "chest", 7)).unwrap().predicted);
    assert_eq!(held(&session, PLAYER, 0), 60);
    while held(&session, PLAYER, 0) != 53 {
        event(&session, |event| matches!(event, SessionEvent::Changed { index: PLAYER }).then_some(())).await;
    }
    assert!(asked_at.elapsed() < Duration::from_millis(600), "{:?}", asked_at.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_of_one_player_and_another_caller_converge() {
    let world = world(SyncSettings::default()).await;
    let (one, other) = (world.session(4).await, world.session(4).await);
    for round in 0..15 {
        // The session rejects either one if it has already received the other session's changes.
        let _ = one.apply(transfer("anna", "chest", 1 + round % 3));
        let _ = other.apply(drop_one(0));
        let _ = other.apply(transfer("chest", "anna", 1));
        world.mutate_as_another(add("anna", 1)).await;
        // Time under test: pauses of 0 to 42 ms interleave frames and calls in different ways.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 3)).await;
    }
    for session in [&one, &other] {
        world.assert_converged(session).await;
    }
    // The last change of one session also reaches the other.
    world.assert_converged(&one).await;
    assert_eq!(one.view(PLAYER).unwrap().digest(), other.view(PLAYER).unwrap().digest());
    println!("{:?}\n{:?}", one.counts(), other.counts());
}

#[tokio::test]
async fn a_session_survives_a_restart_and_applies_pending_mutations_once() {
    let World { server, client, folder } = world(SyncSettings::default()).await;
    let (address, options) = (server.address, SessionOptions::new(vec!["anna".into(), "chest".into()]));
    let session = client.session(options, client.catalog().await.unwrap()).unwrap();
    session.caught_up().await.unwrap();
    session.apply(drop_one(0)).unwrap();
    server.stop().await.unwrap();
    event(&session, |event| matches!(event, SessionEvent::Disconnected).then_some(())).await;
    for _ in 0..3 {
        session.apply(drop_one(0)).unwrap();
    }
    assert_eq!(held(&session, PLAYER, 0), 56);
    // One attempt to reconnect fails.
    let listener = TcpListener::bind(address).await.unwrap();
    drop(timeout(SOON, listener.accept()).await.unwrap().unwrap());
    drop(listener);
    let server = start(folder.path(), address, SyncSettings::default()).await;
    event(&session, |event| matches!(event, SessionEvent::Connected).then_some(())).await;
    let world = World { server, client, folder };
    world.assert_converged(&session).await;
    assert_eq!(held(&session, PLAYER, 0), 56);
    assert!(session.counts().reconnects > 0);
}

#[tokio::test]
async fn a_reported_desync_is_counted_and_repaired_by_a_full_frame() {
    let world = world(long_windows()).await;
    let session = world.session(1).await;
    session.resync(PLAYER);
    event(&session, |event| matches!(event, SessionEvent::Desync { index: PLAYER }).then_some(())).await;
    event(&session, |event| matches!(event, SessionEvent::Corrected { index: PLAYER }).then_some(())).await;
    let counts = session.counts();
    assert_eq!((counts.desyncs, counts.corrections, counts.reconnects), (1, 1, 0));
    assert_eq!(held(&session, PLAYER, 0), 60);
    assert!(session.apply(drop_one(0)).unwrap().predicted);
}

#[tokio::test]
async fn a_rejected_session_ends_with_the_status() {
    let world = world(long_windows()).await;
    let options = SessionOptions::new(vec!["anna".into(), "anna".into()]);
    let session = world.client.session(options, world.client.catalog().await.unwrap()).unwrap();
    let Err(SessionError::Ended) = timeout(SOON, session.caught_up()).await.unwrap() else { panic!() };
    let Some(SessionEvent::Ended { status }) = session.next_event().await else { panic!() };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(session.next_event().await.is_none());
}

async fn raw(world: &World, session: &str, notices: bool) -> Streaming<v1::SubscribeInventoryResponse> {
    let inventories = vec![v1::Watch { inventory_id: "anna".into(), resume: None }];
    let request = v1::SubscribeInventoryRequest { inventories, session: session.into(), notices };
    let mut stream = world.client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().caught_up);
    stream
}

async fn message(stream: &mut Streaming<v1::SubscribeInventoryResponse>) -> v1::SubscribeInventoryResponse {
    timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap()
}

fn context(session: &str, reason: &str) -> v1::MutationContext {
    v1::MutationContext { session: session.into(), reason: reason.into(), ..new_mutation_context() }
}

#[tokio::test(flavor = "multi_thread")]
async fn news_does_not_wait_for_earlier_echoes() {
    let world = world(SyncSettings::default()).await;
    let mut stream = raw(&world, "me", true).await;
    // Time under test: the window of the first frame ends, so that the first echo is sent immediately.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..5 {
        world.client.mutate(context("me", ""), drop_one(0)).await.unwrap();
    }
    // The first echo is immediate; the others wait for the end of the window.
    let echo = message(&mut stream).await;
    let echoed_at = Instant::now();
    assert!(!echo.covered.is_empty());
    world.client.mutate(context("me", ""), drop_one(0)).await.unwrap();
    // Time under test: the window of the echo has begun and does not end here.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let asked_at = Instant::now();
    world.mutate_as_another(add("anna", 1)).await;
    let news = message(&mut stream).await;
    let took = asked_at.elapsed();
    assert!(took < Duration::from_millis(300), "{took:?} after the mutation");
    assert!(echoed_at.elapsed() < Duration::from_millis(700), "long before the echo's window is over");
    assert!(news.notices.iter().any(|notice| notice.caller == "another"), "{news:?}");
    println!("news after {took:?}");
}

#[tokio::test]
async fn notices_report_kind_caller_and_reason_of_a_change() {
    let world = world(SyncSettings::default()).await;
    let mut stream = raw(&world, "me", true).await;
    world.client.mutate(context("", "stone rain"), add("anna", 1)).await.unwrap();
    let notices = message(&mut stream).await.notices;
    let [notice] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!((notice.caller.as_str(), notice.reason.as_str()), ("lobby", "stone rain"));
    assert_eq!((notice.kind(), notice.revision), (v1::ChangeKind::Add, 2));
}

#[tokio::test]
async fn a_wrong_digest_of_an_untouched_inventory_is_corrected() {
    let world = world(long_windows()).await;
    let mut stream = raw(&world, "me", false).await;
    let wrong = v1::PredictedDigest { inventory_id: "anna".into(), digest: Some(v1::Digest { a: 1, b: 2 }) };
    let context = v1::MutationContext { predicted: vec![wrong], ..context("me", "") };
    world.client.mutate(context, add("chest", 1)).await.unwrap();
    let corrected = message(&mut stream).await;
    assert_eq!(corrected.changes[0].full.as_ref().unwrap().reason(), v1::FullReason::Correction);
}
