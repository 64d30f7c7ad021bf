//! The rollout over real connections: flags flipped under open streams, percentages, the shadow, and statistics that add up
//! against what readers have received.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use futures_util::future::join_all;
use process::ServerProcess;
use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, Follow, FollowCounts, NameCaller, Resending, fresh_context};
use slotcast::config::LiveRollout;
use slotcast::grpc::v1;
use slotcast::grpc::v1::admin_service_client::AdminServiceClient;
use slotcast::grpc::v1::operation::Operation;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::sync::{Bucket, Percent, Rollout, RolloutField};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

/// Far longer than anything takes here that does not wait for a window.
const SOON: Duration = Duration::from_secs(20);
/// A window that no test waits for.
const NEVER_MS: u64 = 60_000;

struct Served {
    server: RunningServer,
    client: Client,
    admin: AdminServiceClient<InterceptedService<Resending, NameCaller>>,
}

impl Served {
    async fn start(folder: &Path, rollout: Rollout) -> Self {
        let store = EmbeddedStore::open(&folder.join("slotcast.db"), EmbeddedSettings::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = ServerSettings { rollout: LiveRollout::new(rollout), ..ServerSettings::default() };
        let server = RunningServer::start(listener, Arc::new(store), Arc::new(default_catalog()), settings).unwrap();
        let client = Client::new(&server.uri(), "lobby").unwrap();
        let admin = AdminServiceClient::new(client.channel());
        Self { server, client, admin }
    }

    async fn create(&self, name: &str) {
        let create = v1::CreateInventory {
            inventory_id: name.into(),
            owner: name.into(),
            layout: "player".into(),
            ..v1::CreateInventory::default()
        };
        self.client.mutate(fresh_context(), Operation::Create(create)).await.unwrap();
    }

    /// One item more; gives back the revision.
    async fn add(&self, name: &str) -> u64 {
        let stack = v1::Stack { item: "cobblestone".into(), count: 1, ..v1::Stack::default() };
        let add = v1::AddItem { inventory_id: name.into(), stack: Some(stack), allow_partial: false };
        let receipt = self.client.mutate(fresh_context(), Operation::Add(add)).await.unwrap();
        receipt.inventories[0].revision
    }

    async fn follow(&self, name: &str) -> Follow {
        let mut follow = self.client.follow(vec![name.into()]);
        let first = tokio::time::timeout(SOON, follow.next()).await.expect("it comes soon").unwrap();
        assert!(first.caught_up);
        follow
    }

    async fn set(&mut self, values: &[(&str, u64)]) {
        let values: Vec<_> =
            values.iter().map(|(name, value)| (RolloutField::from_name(name).unwrap(), *value)).collect();
        let request = slotcast::grpc::convert::admin::update("a test", &values);
        self.admin.update_rollout(request).await.unwrap();
    }

    async fn all_flags(&mut self, percent: u64) {
        self.set(&[("delta_percent", percent), ("debounce_percent", percent), ("prediction_percent", percent)]).await;
    }

    async fn statistics(&mut self) -> v1::StreamStatistics {
        let told = self.admin.get_statistics(v1::GetStatisticsRequest {}).await.unwrap().into_inner();
        assert_eq!(told.version, env!("CARGO_PKG_VERSION"));
        told.streams.unwrap()
    }

    /// The replica is what the service has.
    async fn assert_same(&self, follow: &Follow, name: &str) {
        let request = v1::GetInventoryRequest { inventory_id: name.into() };
        let told = self.client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
        let (version, replica) = (told.version.unwrap(), follow.replica(0).unwrap());
        let digest = version.digest.unwrap();
        let has = replica.contents.digest();
        assert_eq!((replica.contents.revision().0, has.a, has.b), (version.revision, digest.a, digest.b));
    }
}

fn rollout(values: &[(RolloutField, u64)]) -> Rollout {
    Rollout::default().with(values.iter().copied()).unwrap()
}

/// Reads until the replica is at a revision.
async fn reach(follow: &mut Follow, revision: u64) {
    let reached = async {
        while follow.replica(0).unwrap().contents.revision().0 < revision {
            follow.next().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, reached).await.expect("it comes soon");
}

fn sent(statistics: &v1::StreamStatistics) -> (u64, u64) {
    let counts = statistics.syncs.iter().filter_map(|sync| sync.count);
    counts.fold((0, 0), |(syncs, bytes), count| (syncs + count.messages, bytes + count.bytes))
}

fn count(count: Option<v1::MessageCount>) -> (u64, u64) {
    let count = count.unwrap();
    (count.messages, count.bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_flags_off_in_mid_stream_is_a_full_frame_at_once_for_each_mutation_and_on_again_needs_no_reconnect() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), rollout(&[(RolloutField::NewsMs, NEVER_MS)])).await;
    served.create("steve").await;
    let mut follow = served.follow("steve").await;
    let waiting = served.add("steve").await;
    let early = tokio::time::timeout(Duration::from_millis(300), follow.next()).await;
    assert!(early.is_err(), "it waits in its window");

    served.all_flags(0).await;
    reach(&mut follow, waiting).await;
    assert_eq!((follow.counts().syncs, follow.counts().fulls), (2, 2), "what waited came at once, as all slots");
    for nth in 1..=8 {
        let revision = served.add("steve").await;
        reach(&mut follow, revision).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((follow.counts().syncs, follow.counts().fulls), (2 + nth, 2 + nth), "one for each mutation");
    }

    served.set(&[("news_ms", 50)]).await;
    served.all_flags(100).await;
    let mut last = 0;
    for _ in 0..20 {
        last = served.add("steve").await;
    }
    reach(&mut follow, last).await;
    let FollowCounts { syncs, fulls, deltas, desyncs, reconnects, .. } = follow.counts();
    assert_eq!((fulls, desyncs, reconnects), (10, 0, 0));
    assert_eq!(syncs, fulls + deltas);
    assert!((1..20).contains(&deltas), "{deltas} deltas for 20 mutations");
    served.assert_same(&follow, "steve").await;
    served.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_exactly_what_readers_received() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), rollout(&[(RolloutField::NewsMs, 30)])).await;
    let mut follows = Vec::new();
    for name in ["ann", "bob", "cid"] {
        served.create(name).await;
        follows.push((name, served.follow(name).await));
    }
    for round in 0..6 {
        if round == 3 {
            served.all_flags(0).await;
        }
        for (name, follow) in &mut follows {
            served.add(name).await;
            let last = served.add(name).await;
            reach(follow, last).await;
            if round == 4 {
                follow.disconnect();
                // It has everything: what comes is a caught-up mark without a change.
                assert!(follow.next().await.unwrap().changed.is_empty());
            }
        }
    }
    let received = follows.iter().map(|(_, follow)| follow.counts());
    let (syncs, bytes) = received.fold((0, 0), |sum, counts| (sum.0 + counts.syncs, sum.1 + counts.bytes));
    let statistics = served.statistics().await;
    let (sent_syncs, sent_bytes) = sent(&statistics);
    let (quiet, quiet_bytes) = count(statistics.quiet);
    assert_eq!((sent_syncs, sent_bytes + quiet_bytes, quiet), (syncs, bytes, 3));
    let (full_syncs, full_bytes) = count(statistics.immediate_full);
    assert_eq!(full_syncs, 3 + 3 * 12 + 3, "the first ones, one for each mutation, and one for each resumption");
    assert!(full_bytes > bytes, "{full_bytes} instead of {bytes}");
    let of = |trigger: v1::SyncTrigger| {
        let syncs = statistics.syncs.iter().filter(|sync| sync.trigger() == trigger);
        syncs.map(|sync| sync.count.unwrap().messages).sum::<u64>()
    };
    assert_eq!(of(v1::SyncTrigger::Initial), 3);
    assert_eq!(of(v1::SyncTrigger::News), syncs - 3);
    assert_eq!((of(v1::SyncTrigger::Echo), of(v1::SyncTrigger::Correction)), (0, 0));
    drop(follows);
    for _ in 0..500 {
        if served.statistics().await.open == 0 {
            return served.server.stop().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("streams that are gone are still counted as open");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_flags_off_what_was_sent_is_what_immediate_full_syncs_cost() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::immediate_full()).await;
    served.create("steve").await;
    let mut follow = served.follow("steve").await;
    for _ in 0..10 {
        let revision = served.add("steve").await;
        reach(&mut follow, revision).await;
    }
    let statistics = served.statistics().await;
    assert_eq!(count(statistics.immediate_full), sent(&statistics));
    assert_eq!(sent(&statistics), (11, follow.counts().bytes));
    served.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_players_have_deltas_and_the_same_half_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let names: Vec<String> = (0..200).map(|n| format!("player-{n}")).collect();
    let half = rollout(&[(RolloutField::DeltaPercent, 50), (RolloutField::NewsMs, 0)]);
    let served = Served::start(folder.path(), half.clone()).await;
    join_all(names.iter().map(|name| served.create(name))).await;
    let before = who_has_deltas(&served, &names).await;
    served.server.stop().await.unwrap();
    let served = Served::start(folder.path(), half).await;
    let after = who_has_deltas(&served, &names).await;
    served.server.stop().await.unwrap();

    assert_eq!(before, after);
    let have = before.iter().filter(|has| **has).count();
    assert!((80..=120).contains(&have), "{have} of 200");
    let expected: Vec<bool> = names.iter().map(|name| Percent::new(50).unwrap().includes(Bucket::of(name))).collect();
    assert_eq!(before, expected);
}

async fn who_has_deltas(served: &Served, names: &[String]) -> Vec<bool> {
    join_all(names.iter().map(async |name| {
        let mut follow = served.follow(name).await;
        let revision = served.add(name).await;
        reach(&mut follow, revision).await;
        served.assert_same(&follow, name).await;
        follow.counts().deltas > 0
    }))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_the_old_way_is_sent_and_the_new_way_found_smaller_and_right() {
    let folder = TempDir::new().unwrap();
    let shadowed = [(RolloutField::ShadowPercent, 100), (RolloutField::NewsMs, 50)];
    let mut served = Served::start(folder.path(), rollout(&shadowed)).await;
    served.create("steve").await;
    let mut follow = served.follow("steve").await;
    burst(&served, &mut follow).await;
    let FollowCounts { syncs, bytes, fulls, deltas, .. } = follow.counts();
    assert_eq!((syncs, fulls, deltas), (31, 31, 0), "the old way is sent");
    let first = computed(&mut served).await;
    assert_eq!(count(first.sent), (31, bytes));

    served.set(&[("shadow_percent", 0)]).await;
    burst(&served, &mut follow).await;
    assert!(follow.counts().deltas > 0, "the new way is sent");
    served.set(&[("shadow_percent", 100)]).await;
    burst(&served, &mut follow).await;
    let second = computed(&mut served).await;
    assert_eq!(count(second.sent).0, 61, "only what was sent in shadow");
    assert!(count(second.computed).0 > count(first.computed).0, "it has joined again");
    assert_eq!((follow.counts().desyncs, follow.counts().reconnects), (0, 0));
    served.assert_same(&follow, "steve").await;
    served.server.stop().await.unwrap();
}

/// Thirty mutations, each waited for where the old way is sent.
async fn burst(served: &Served, follow: &mut Follow) {
    let mut last = 0;
    for _ in 0..30 {
        last = served.add("steve").await;
        if follow.counts().deltas == 0 {
            reach(follow, last).await;
        }
    }
    reach(follow, last).await;
}

/// What the shadow has found, once it has also computed what waited in its windows.
async fn computed(served: &mut Served) -> v1::ShadowStatistics {
    // Time under test: twice the window of the shadow.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let shadow = served.statistics().await.shadow.unwrap();
    assert_eq!((shadow.mismatches, shadow.unverified), (0, 0));
    let ((sent_syncs, sent_bytes), (syncs, bytes)) = (count(shadow.sent), count(shadow.computed));
    assert!(
        syncs > 0 && syncs < sent_syncs && bytes < sent_bytes,
        "{bytes} in {syncs} for {sent_bytes} in {sent_syncs}"
    );
    shadow
}

struct Session {
    stream: Streaming<v1::SubscribeInventoryResponse>,
    client: Client,
}

impl Session {
    async fn open(served: &Served, name: &str) -> Self {
        let watch = v1::Watch { inventory_id: name.into(), resume: None };
        let request =
            v1::SubscribeInventoryRequest { inventories: vec![watch], session: "tablet".into(), notices: false };
        let stream = served.client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
        let mut session = Self { stream, client: served.client.clone() };
        session.change().await;
        session
    }

    async fn shift(&self, from: u32, to: u32, predicted: Option<v1::Digest>) -> v1::MutationReceipt {
        let predicted = predicted
            .map(|digest| v1::PredictedDigest { inventory_id: "steve".into(), digest: Some(digest) })
            .into_iter()
            .collect();
        let context = v1::MutationContext { session: "tablet".into(), predicted, ..fresh_context() };
        let shift = v1::MoveItem { inventory_id: "steve".into(), from_slot: from, to_slot: to, count: None };
        self.client.mutate(context, Operation::Move(shift)).await.unwrap()
    }

    async fn change(&mut self) -> v1::InventoryChange {
        let message = tokio::time::timeout(SOON, self.stream.message()).await.expect("it comes soon");
        message.unwrap().unwrap().changes.remove(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_prediction_flag_a_confirmed_prediction_is_sent_all_the_same() {
    let folder = TempDir::new().unwrap();
    let mut served =
        Served::start(folder.path(), rollout(&[(RolloutField::NewsMs, 0), (RolloutField::EchoMs, 0)])).await;
    served.create("steve").await;
    served.add("steve").await;
    let mut session = Session::open(&served, "steve").await;
    let there = session.shift(0, 1, None).await;
    session.change().await;
    let back = session.shift(1, 0, None).await;
    session.change().await;
    let digest = |receipt: &v1::MutationReceipt| receipt.inventories[0].digest;

    assert!(session.shift(0, 1, digest(&there)).await.prediction_confirmed);
    session.shift(1, 0, None).await;
    assert_eq!(session.change().await.skipped, 1, "nothing was sent for the confirmed one");
    served.set(&[("prediction_percent", 0)]).await;
    assert!(session.shift(0, 1, digest(&there)).await.prediction_confirmed);
    let change = session.change().await;
    assert_eq!((change.advance, change.skipped), (1, 0));
    assert!(session.shift(1, 0, digest(&back)).await.prediction_confirmed);
    session.change().await;
    let statistics = served.statistics().await;
    assert_eq!(count(statistics.immediate_full).0, 7, "what was predicted would have been sent");
    served.server.stop().await.unwrap();
}

#[tokio::test]
async fn an_update_that_is_wrong_names_every_field_and_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::default()).await;
    let before = served.admin.get_rollout(v1::GetRolloutRequest {}).await.unwrap().into_inner();
    let wrong = v1::UpdateRolloutRequest {
        reason: "a test".into(),
        delta_percent: Some(0),
        shadow_percent: Some(101),
        heartbeat_ms: Some(1),
        ..v1::UpdateRolloutRequest::default()
    };
    let fields = |status: &tonic::Status| -> Vec<String> {
        let details = status.get_details_bad_request().unwrap();
        details.field_violations.into_iter().map(|violation| violation.field).collect()
    };
    let refused = served.admin.update_rollout(wrong.clone()).await.unwrap_err();
    assert_eq!(
        (refused.code(), fields(&refused)),
        (Code::InvalidArgument, vec!["shadow_percent".into(), "heartbeat_ms".into()])
    );
    let unexplained = v1::UpdateRolloutRequest { reason: " ".into(), ..wrong };
    let refused = served.admin.update_rollout(unexplained).await.unwrap_err();
    assert_eq!(fields(&refused), ["reason", "shadow_percent", "heartbeat_ms"]);
    let empty = v1::UpdateRolloutRequest { reason: "a test".into(), ..v1::UpdateRolloutRequest::default() };
    assert_eq!(served.admin.update_rollout(empty).await.unwrap_err().code(), Code::InvalidArgument);
    let after = served.admin.get_rollout(v1::GetRolloutRequest {}).await.unwrap().into_inner();
    assert_eq!(before, after);
    served.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_and_reported_desyncs_are_counted() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::default()).await;
    served.create("steve").await;
    join_all((0..50).map(|_| served.add("steve"))).await;
    let report = v1::ReportDesyncRequest {
        inventory_id: "steve".into(),
        session: "tablet".into(),
        ..v1::ReportDesyncRequest::default()
    };
    served.client.rpc().report_desync(report).await.unwrap();
    let told = served.admin.get_statistics(v1::GetStatisticsRequest {}).await.unwrap().into_inner();
    let (streams, commits) = (told.streams.unwrap(), told.commits.unwrap());
    assert_eq!((commits.transactions, commits.commits_failed, commits.hot_inventories), (51, 0, 1));
    assert!((2..=51).contains(&commits.commits) && commits.latency_p50_us > 0);
    assert_eq!(commits.latency_us.iter().map(|bucket| bucket.count).sum::<u64>(), commits.commits);
    assert!(commits.latency_p99_us >= commits.latency_p50_us && commits.batch_p99 >= commits.batch_p50);
    // The correction for the desync is answered before the commit loop has taken it.
    assert!(commits.queue <= 1 && commits.queue_max == 8_192);
    assert_eq!((streams.open, streams.desyncs_reported), (0, 1));
    served.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_streams_and_the_service_as_a_signal_does() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::default()).await;
    served.create("steve").await;
    let mut session = Session::open(&served, "steve").await;
    let unexplained = served.admin.drain(v1::DrainRequest::default()).await.unwrap_err();
    assert_eq!(unexplained.code(), Code::InvalidArgument);
    let told = served.admin.drain(v1::DrainRequest { reason: "a test".into() }).await.unwrap().into_inner();
    assert_eq!(told.limit_ms, 10_000);
    let ended = tokio::time::timeout(SOON, session.stream.message()).await.expect("it ends soon");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let Served { server, client, admin } = served;
    drop((session, client, admin));
    tokio::time::timeout(SOON, server.stop()).await.expect("it ends soon").unwrap();
}

#[test]
fn reflection_knows_the_admin_service() {
    let pool = prost_reflect::DescriptorPool::decode(slotcast::grpc::FILE_DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name("slotcast.v1.AdminService").unwrap();
    let methods: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
    assert_eq!(methods, ["GetRollout", "UpdateRollout", "GetStatistics", "Drain"]);
}

/// What a command prints.
fn printed(arguments: &[&str], server: &str) -> String {
    let command =
        std::process::Command::new(env!("CARGO_BIN_EXE_slotcast")).args(arguments).args(["--server", server]).output();
    let output = command.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn news_ms(server: &str) -> u64 {
    let told: serde_json::Value = serde_json::from_str(&printed(&["rollout", "get", "--json"], server)).unwrap();
    told["news_ms"].as_u64().unwrap()
}

fn wait_for_news_ms(server: &str, wanted: u64) {
    for _ in 0..200 {
        if news_ms(server) == wanted {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it is still {}, not {wanted}", news_ms(server));
}

fn wait_for_log(log: &Path, part: &str) {
    for _ in 0..400 {
        if std::fs::read_to_string(log).unwrap().contains(part) {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("the log does not contain {part}");
}

#[test]
fn a_settings_file_is_followed_and_operators_need_no_json() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("slotcast.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("[sync]\nnews_ms = 70\n");
    let log = folder.path().join("log");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_slotcast"));
    command.stderr(std::fs::File::create(&log).unwrap());
    let data = folder.path().join("data");
    let server = ServerProcess::start_by(command, &data, &["--config", path.to_str().unwrap()]);
    assert_eq!(news_ms(&server.uri), 70);
    write("[sync]\nnews_ms = 80\n");
    wait_for_news_ms(&server.uri, 80);

    let set = ["rollout", "set", "news_ms=90", "delta_percent=25", "--reason", "a test"];
    let table = printed(&set, &server.uri);
    assert!(table.lines().any(|line| line.split_whitespace().eq(["delta_percent", "25", "100"])), "{table}");
    write("[sync]\nnews_ms = 60001\n");
    wait_for_log(&log, "ERROR");
    assert_eq!(news_ms(&server.uri), 90, "a bad file changes nothing");
    write("[sync]\nnews_ms = 80\n");
    let id = server.id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    wait_for_news_ms(&server.uri, 80);

    let line = printed(&["top", "--once"], &server.uri);
    assert!(line.starts_with("streams 0  syncs 0  "), "{line}");
    let told: serde_json::Value = serde_json::from_str(&printed(&["top", "--once", "--json"], &server.uri)).unwrap();
    assert_eq!((&told["since_start"]["streams"], &told["rates"]), (&0.into(), &serde_json::Value::Null));
}

#[test]
fn a_service_does_not_start_with_a_bad_settings_file_and_tells_all_that_is_wrong() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("slotcast.toml");
    std::fs::write(&path, "[sync]\nnews = 1\necho_ms = 60001\n").unwrap();
    let slotcast = || std::process::Command::new(env!("CARGO_BIN_EXE_slotcast"));
    let refused = slotcast()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && told.contains("no setting sync.news\n") && told.contains("echo_ms must be"),
        "{told}"
    );
    let same = slotcast().args(["config", "--config"]).arg(&path).output().unwrap();
    assert_eq!(
        (same.status.success(), String::from_utf8(same.stderr).unwrap()),
        (false, told),
        "`config` says the same"
    );
}
