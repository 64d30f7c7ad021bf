//! Streams without a network, in time that the test moves.

use crate::common::{MemoryStore, told};
use crate::tokens::{Login, SetClock, SigningKey, claims_but, now_s};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::json;
use slotcast::catalog_file::default_catalog;
use slotcast::config::LiveRollout;
use slotcast::domain::{
    Caller, Count, Fingerprint, IdempotencyKey, InventoryId, ItemCode, ItemName, LayoutId, Mutation, NamedOperation,
    Operation, PlayerId, Slot, Stack,
};
use slotcast::engine::{Call, Engine, EngineSettings};
use slotcast::grpc::permit::Permit;
use slotcast::grpc::stream::{FrameStream, Opening};
use slotcast::grpc::v1;
use slotcast::identity::{Role, Verifier};
use slotcast::middleware::{FrameAge, Identity};
use slotcast::store::Key;
use slotcast::sync::{Bucket, Rollout, Wishes};
use slotcast::telemetry::Telemetry;
use slotcast::transport::Closing;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

type Messages = BoxStream<'static, Result<v1::SubscribeInventoryResponse, Status>>;

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

    async fn run(&mut self, reason: &str, operation: NamedOperation) {
        self.keys += 1;
        let key = IdempotencyKey::new(&format!("k{}", self.keys)).unwrap();
        let key = Key { caller: Caller::new("lobby").unwrap(), key };
        let mutation = Mutation { operations: vec![operation], expected: vec![] };
        let payload = Fingerprint::of(&[]);
        let call =
            Call { key, payload, mutation, session: None, predicted: vec![], reason: reason.into(), cause: None };
        self.engine.mutate(call).await.unwrap();
    }

    async fn create(&mut self, owner: &str, reason: &str) {
        let owner = Some(PlayerId::new(owner).unwrap());
        let stack = Stack {
            item: ItemName::Code(ItemCode::new(1).unwrap()),
            count: Count::new(1).unwrap(),
            attributes: Default::default(),
        };
        let layout = LayoutId::new("player").unwrap();
        self.run(reason, Operation::Create { id: id(), owner, layout, stacks: vec![(Slot(0), stack)] }).await;
    }

    async fn delete(&mut self, reason: &str) {
        self.run(reason, Operation::Delete { id: id() }).await;
    }

    async fn subscribe(&self, verifier: &Verifier, token: &str) -> Messages {
        let verified = verifier.token(token).unwrap();
        let (caller, player, role) = (verified.caller, verified.player, verified.role);
        assert_eq!(role, Role::Player);
        let identity = Identity { caller, player, role, expires: Some(verified.expires) };
        let watched = self.engine.watch(vec![id()]).await.unwrap();
        let mut permit = Permit::of(&identity);
        permit.see(&watched.states()).expect("it is the player's own");
        let opening = Opening {
            watched,
            wishes: Wishes { resume: vec![None], notices: true, ..Wishes::default() },
            permit,
            bucket: Bucket::of_stream(identity.player.as_ref(), None, &identity.caller),
            rollout: LiveRollout::new(Rollout::default()).subscribe(),
            statistics: Arc::default(),
            telemetry: Telemetry::default().frames(None),
            age: FrameAge::default(),
            closing: Closing::never(),
            start: Instant::now(),
        };
        FrameStream::open(opening).into_stream().boxed()
    }
}

fn id() -> InventoryId {
    InventoryId::new("steve").unwrap()
}

/// How many messages come until the end, and when and how it comes.
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

/// A verifier, and the token of a player for so many seconds.
fn login(clock: &SetClock, seconds: u64) -> (Login, Arc<Verifier>, String) {
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let verifier = login.verifier_at(clock);
    let token = key.sign(&claims_but("steve", "player", json!({ "exp": now_s() + seconds })));
    (login, verifier, token)
}

#[tokio::test(start_paused = true)]
async fn case_41_a_stream_tells_heartbeats_until_its_token_expires_and_then_ends() {
    let (_login, verifier, token) = login(&SetClock::new(), 60);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    let (messages, took, status) = end(&mut stream).await;
    assert_eq!(told(&status), (Code::Unauthenticated, "TOKEN_EXPIRED".into(), None));
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
    verifier.look().await;
    let (_, took, status) = end(&mut stream).await;
    assert_eq!(told(&status).1, "TOKEN_EXPIRED");
    assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn case_50_a_clock_set_ahead_a_year_ends_a_stream_at_the_next_look() {
    let clock = SetClock::new();
    let (_login, verifier, token) = login(&clock, 86_400);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    stream.next().await.unwrap().unwrap();
    tokio::spawn(async move { verifier.follow().await });
    clock.move_by(365 * 86_400_000);
    let (messages, took, status) = end(&mut stream).await;
    assert_eq!((messages, told(&status).1.as_str()), (0, "TOKEN_EXPIRED"));
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn case_42_who_changed_what_was_anothers_meanwhile_is_not_told() {
    let (_login, verifier, token) = login(&SetClock::new(), 3_600);
    let mut world = World::new();
    world.create("steve", "").await;
    let mut stream = world.subscribe(&verifier, &token).await;
    stream.next().await.unwrap().unwrap();
    world.delete("steve has left").await;
    world.create("alex", "a secret").await;
    world.delete("another secret").await;
    let message = stream.next().await.unwrap().unwrap();
    let reasons: Vec<_> = message.notices.iter().map(|notice| notice.reason.as_str()).collect();
    assert_eq!((reasons, message.notices_dropped), (vec!["steve has left"], 2));
    assert!(message.changes.iter().all(|change| change.deleted));
    world.create("alex", "a secret").await;
    let status = stream.next().await.unwrap().unwrap_err();
    assert_eq!(told(&status), (Code::PermissionDenied, "NOT_YOURS".into(), None));
}
