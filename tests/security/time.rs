//! Streams without a network, in virtual time.

use crate::common::{MemoryStore, error_of};
use crate::tokens::{Login, SetClock, SigningKey, claims_but, now_s};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use prost::Message;
use serde_json::json;
use slotcast::catalog_file::default_catalog;
use slotcast::domain::{
    Attributes, Caller, Count, Epoch, Fingerprint, IdempotencyKey, InventoryId, ItemCode, ItemRef, LayoutId, Mutation,
    Operation, PlayerId, Revision, SessionId, Slot, Stack, UnresolvedOperation,
};
use slotcast::engine::{Engine, EngineSettings, MutationRequest};
use slotcast::grpc::frame_body::SubscriptionBody;
use slotcast::grpc::read_authorization::{self, ReadAuthorization};
use slotcast::grpc::stream::{FrameStream, StreamContext, StreamParameters};
use slotcast::grpc::stream_limit::{StreamLimiter, StreamSettings};
use slotcast::grpc::stream_schedule::StreamSchedule;
use slotcast::grpc::sync_limiter::SyncLimiter;
use slotcast::identity::{Identity, KeyChanges, Role, Verifier};
use slotcast::live_rollout::LiveRollout;
use slotcast::statistics::StreamStatistics;
use slotcast::store::ScopedKey;
use slotcast::sync::{Bucket, Cursor, Rollout, RolloutField, SubscribeOptions};
use slotcast::telemetry::Telemetry;
use slotcast::transport::DrainSignal;
use slotcast::wire::v1;
use std::slice::from_ref;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

type Messages = BoxStream<'static, Result<v1::SubscribeInventoryResponse, Status>>;

/// What streams share that a test chooses.
#[derive(Default)]
struct Opening {
    rollout: Rollout,
    statistics: Arc<StreamStatistics>,
    keys: Option<KeyChanges>,
}

struct World {
    engine: Engine,
    keys: u32,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let (engine, _) = Engine::start(store, Arc::new(default_catalog()), EngineSettings::default());
        Self { engine, keys: 0 }
    }

    async fn run(&mut self, reason: &str, operation: UnresolvedOperation) {
        self.run_as(None, reason, operation).await;
    }

    /// Runs a mutation while virtual time is stopped, although another thread commits.
    async fn run_as(&mut self, session: Option<&str>, reason: &str, operation: UnresolvedOperation) {
        let (committed, is_committed) = std::sync::mpsc::channel::<()>();
        let standing_still = tokio::task::spawn_blocking(move || is_committed.recv());
        self.keys += 1;
        let key = IdempotencyKey::new(&format!("k{}", self.keys)).unwrap();
        let key = ScopedKey { caller: Caller::new("lobby").unwrap(), key };
        let mutation = Mutation { operations: vec![operation], expected: vec![] };
        let payload = Fingerprint::of(&[]);
        let session = session.map(|session| SessionId::new(session).unwrap());
        let call =
            MutationRequest { key, payload, mutation, session, predicted: vec![], reason: reason.into(), trace: None };
        self.engine.mutate(call).await.unwrap();
        drop(committed);
        standing_still.await.unwrap().unwrap_err();
    }

    async fn create(&mut self, owner: &str, reason: &str) {
        self.create_named("steve", Some(owner), reason).await;
    }

    async fn create_named(&mut self, name: &str, owner: Option<&str>, reason: &str) {
        self.run(reason, creation(name, owner)).await;
    }

    async fn delete(&mut self, reason: &str) {
        self.run(reason, Operation::Delete { id: id("steve") }).await;
    }

    async fn subscribe(&self, verifier: &Verifier, token: &str) -> Messages {
        let verified = verifier.verify_token(token).unwrap();
        let (caller, player, role) = (verified.caller, verified.player, verified.role);
        assert_eq!(role, Role::Player);
        let identity = Identity { caller, player, role, credential_status: Some(verified.credential_status) };
        let options = SubscribeOptions { resume: vec![None], notices: true, ..SubscribeOptions::default() };
        let opened = Opening { keys: Some(verifier.key_changes()), ..Opening::default() };
        self.open(&identity, &["steve"], options, opened).await
    }

    async fn open(
        &self,
        identity: &Identity,
        names: &[&str],
        options: SubscribeOptions,
        Opening { rollout, statistics, keys }: Opening,
    ) -> Messages {
        let opening = StreamParameters {
            watched: self
                .engine
                .watch(names.iter().map(|name| id(name)).collect(), options.session.clone())
                .await
                .unwrap(),
            options: SubscribeOptions { access: read_authorization::read_access(identity).unwrap(), ..options },
            authorization: ReadAuthorization::new(identity),
            bucket: Bucket::of_stream(identity.player.as_ref(), None, &identity.caller),
            limited_player: None,
            drain_signal: DrainSignal::never(),
            trace: None,
        };
        let (rollout, start) = (LiveRollout::new(rollout), Instant::now());
        let context = StreamContext {
            schedule: StreamSchedule::new(rollout.clone(), keys, start),
            rollout,
            statistics,
            telemetry: Telemetry::default().frames(),
            limiter: SyncLimiter::default(),
            start,
        };
        let permit = StreamLimiter::new(StreamSettings::default()).acquire(identity).unwrap();
        SubscriptionBody::new(FrameStream::open(Arc::new(context), opening), permit).boxed()
    }
}

fn creation(name: &str, owner: Option<&str>) -> UnresolvedOperation {
    let owner = owner.map(|owner| PlayerId::new(owner).unwrap());
    let item = ItemRef::Code(ItemCode::new(1).unwrap());
    let stack = Stack { item, count: Count::new(1).unwrap(), attributes: Default::default() };
    let layout = LayoutId::new("player").unwrap();
    Operation::Create { id: id(name), owner, layout, stacks: vec![(Slot(0), stack)] }
}

fn addition(name: &str) -> UnresolvedOperation {
    let (item, count) = (ItemRef::Code(ItemCode::new(1).unwrap()), Count::new(1).unwrap());
    Operation::Add { id: id(name), item, attributes: Attributes::NONE, count, allow_partial: false }
}

fn id(name: &str) -> InventoryId {
    InventoryId::new(name).unwrap()
}

/// Returns the number of messages until the end of the stream, its time, and the final status.
async fn end(stream: &mut Messages) -> (usize, Duration, Status) {
    let begin = Instant::now();
    let mut messages = 0;
    loop {
        match stream.next().await.expect("a stream ends with a status only") {
            Ok(_) => messages += 1,
            Err(status) => {
                assert!(stream.next().await.is_none());
                return (messages, begin.elapsed(), status);
            }
        }
    }
}

/// Returns a verifier, and a player's token that is valid for a number of seconds.
fn login(clock: &SetClock, seconds: u64) -> (Login, Arc<Verifier>, String) {
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let verifier = login.verifier_at(clock);
    let token = key.sign(&claims_but("steve", "player", json!({ "exp": now_s() + seconds })));
    (login, verifier, token)
}

#[tokio::test(start_paused = true)]
async fn case_41_a_stream_sends_heartbeats_until_its_token_expires() {
    let (_login, verifier, token) = login(&SetClock::new(), 60);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    let (messages, took, status) = end(&mut stream).await;
    assert_eq!(error_of(&status), (Code::Unauthenticated, "TOKEN_EXPIRED".into(), None));
    assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&took), "{took:?}");
    assert_eq!(messages, 1 + 3, "its state, and a heartbeat every 15 s");
}

#[tokio::test(start_paused = true)]
async fn case_50_a_clock_set_back_a_day_extends_no_stream() {
    let clock = SetClock::new();
    let (_login, verifier, token) = login(&clock, 60);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    stream.next().await.unwrap().unwrap();
    clock.move_by(-86_400_000);
    verifier.refresh().await;
    let (_, took, status) = end(&mut stream).await;
    assert_eq!(error_of(&status).1, "TOKEN_EXPIRED");
    assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn case_50_a_clock_set_ahead_a_year_ends_a_stream_at_the_next_check() {
    let clock = SetClock::new();
    let (_login, verifier, token) = login(&clock, 86_400);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    stream.next().await.unwrap().unwrap();
    tokio::spawn(async move { verifier.watch_for_changes().await });
    clock.move_by(365 * 86_400_000);
    let (messages, took, status) = end(&mut stream).await;
    assert_eq!((messages, error_of(&status).1.as_str()), (0, "TOKEN_EXPIRED"));
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn case_42_changes_made_under_another_owner_are_not_reported() {
    let (_login, verifier, token) = login(&SetClock::new(), 3_600);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    stream.next().await.unwrap().unwrap();
    world.delete("steve has left").await;
    world.create("alex", "a secret").await;
    world.delete("another secret").await;
    let absent = v1::InventoryChange { absent: true, ..v1::InventoryChange::default() };
    let message = v1::SubscribeInventoryResponse { changes: vec![absent], ..Default::default() };
    assert_eq!(stream.next().await.unwrap().unwrap(), message, "nothing but that it is absent");
    world.create("alex", "a secret").await;
    world.delete("another secret").await;
    world.create("steve", "steve is back").await;
    let message = stream.next().await.unwrap().unwrap();
    let reasons: Vec<_> = message.notices.iter().map(|notice| notice.reason.as_str()).collect();
    assert_eq!((reasons, message.notices_dropped), (vec!["steve is back"], 0));
    assert_eq!(message.changes[0].full.as_ref().unwrap().reason(), v1::FullReason::Initial);
}

/// An operation on the second inventory of a player's stream, and its time in ms.
type Happening = (u64, UnresolvedOperation);

/// Returns the messages of a player's stream within a minute with their times in ms, and its statistics. Meanwhile the
/// player's own bag changes, and its session changes other inventories.
async fn messages_of(
    before: &[UnresolvedOperation],
    happenings: &[Happening],
    rollout: Rollout,
) -> (Vec<(u64, Vec<u8>)>, String) {
    let mut world = World::new();
    world.create_named("bag", Some("steve"), "").await;
    for operation in before {
        world.run("", operation.clone()).await;
    }
    let player = PlayerId::new("steve").unwrap();
    let identity = Identity {
        caller: Caller::new("steve").unwrap(),
        player: Some(player),
        role: Role::Player,
        credential_status: None,
    };
    let session = SessionId::new("mine").ok();
    let cursor = Cursor { epoch: Epoch::new(1).unwrap(), revision: Revision(7) };
    let options =
        SubscribeOptions { resume: vec![None, Some(cursor)], session, notices: true, ..SubscribeOptions::default() };
    let statistics = Arc::<StreamStatistics>::default();
    let opening = Opening { rollout, statistics: statistics.clone(), keys: None };
    let mut stream = world.open(&identity, &["bag", "chest"], options, opening).await;
    let (mut messages, mut happenings) = (Vec::new(), happenings.iter().peekable());
    for ms in (0..60_000).step_by(10) {
        while let Some((_, operation)) = happenings.next_if(|(at, _)| *at <= ms) {
            world.run_as(Some("mine"), "a secret", operation.clone()).await;
        }
        if [1_000, 1_020, 1_200, 30_000].contains(&ms) {
            world.run_as(Some("mine"), "", addition("bag")).await;
        }
        while let Poll::Ready(message) = futures_util::poll!(stream.next()) {
            let mut message = message.unwrap().expect("the stream continues");
            // An epoch is random.
            message.changes.iter_mut().filter_map(|change| change.full.as_mut()).for_each(|full| full.epoch = 1);
            message.marks.iter_mut().for_each(|mark| mark.epoch = 1);
            message.notices.iter_mut().for_each(|notice| notice.epoch = 1);
            // Every key is unique.
            message.covered.iter_mut().for_each(|key| *key = 0);
            messages.push((ms, message.encode_to_vec()));
        }
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    (messages, format!("{:?}", statistics.counts()))
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_inventory_is_indistinguishable_from_a_nonexistent_one_in_bytes_and_timing() {
    let delete = || Operation::Delete { id: id("chest") };
    let [of_alex, of_nobody, of_steve] = [Some("alex"), None, Some("steve")].map(|owner| creation("chest", owner));
    let busy = |first: u64| (first..55_000).step_by(130).map(|ms| (ms, addition("chest"))).take(200);
    let comes_and_goes = (500..50_000).step_by(700).enumerate();
    let comes_and_goes = comes_and_goes.map(|(n, ms)| (ms, if n % 2 == 0 { of_alex.clone() } else { delete() }));
    for rollout in [Rollout::default(), Rollout::immediate_full(), shadowed()] {
        let nowhere = messages_of(&[], &[], rollout.clone()).await;
        assert!(nowhere.0.len() >= 5, "frames and heartbeats: {nowhere:?}");
        let worlds: [(&str, &[UnresolvedOperation], Vec<Happening>); 4] = [
            ("another's", from_ref(&of_alex), busy(0).collect()),
            ("nobody's", from_ref(&of_nobody), busy(40).collect()),
            ("created for another, and deleted, over and over", &[], comes_and_goes.clone().collect()),
            ("the player's own once", &[of_steve.clone(), delete()], vec![]),
        ];
        for (what, before, happenings) in worlds {
            assert_eq!(messages_of(before, &happenings, rollout.clone()).await, nowhere, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_indistinguishable_from_a_change_of_owner() {
    let (steves, delete) = ([creation("chest", Some("steve"))], || (5_000, Operation::Delete { id: id("chest") }));
    for rollout in [Rollout::default(), Rollout::immediate_full(), shadowed()] {
        let deleted = messages_of(&steves, &[delete()], rollout.clone()).await;
        let given = (5_000, creation("chest", Some("alex")));
        let and_used = (5_050..20_000).step_by(170).map(|ms| (ms, addition("chest"))).take(60);
        let given: Vec<_> = [delete(), given].into_iter().chain(and_used).collect();
        assert_eq!(messages_of(&steves, &given, rollout).await, deleted);
    }
}

/// Returns a rollout in shadow mode: it sends immediate full states, and computes and compares deltas.
fn shadowed() -> Rollout {
    Rollout::default().with_values([(RolloutField::ShadowPercent, 100)]).unwrap()
}
