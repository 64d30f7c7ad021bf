//! The rollout over real connections: flags that change under open streams, percentages, shadow mode, and statistics
//! that equal what readers received.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use futures_util::future::join_all;
use process::ServerProcess;
use slotcast::catalog_file::default_catalog;
use slotcast::client::{CallMetadata, Client, Follow, FollowCounts, RetryChannel, new_mutation_context};
use slotcast::live_rollout::LiveRollout;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::sync::{Bucket, Percent, Rollout, RolloutField};
use slotcast::wire::v1;
use slotcast::wire::v1::admin_service_client::AdminServiceClient;
use slotcast::wire::v1::operation::Operation;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

/// Longer than anything here takes that does not wait for a window.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A window longer than any test.
const LONG_MS: u64 = 60_000;

struct Served {
    server: RunningServer,
    client: Client,
    admin: AdminServiceClient<InterceptedService<RetryChannel, CallMetadata>>,
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
        self.client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
    }

    /// Adds one item and returns the revision.
    async fn add(&self, name: &str) -> u64 {
        let stack = v1::Stack { item: "cobblestone".into(), count: 1, ..v1::Stack::default() };
        let add = v1::AddItem { inventory_id: name.into(), stack: Some(stack), allow_partial: false };
        let receipt = self.client.mutate(new_mutation_context(), Operation::Add(add)).await.unwrap();
        receipt.inventories[0].revision
    }

    async fn follow(&self, name: &str) -> Follow {
        let mut follow = self.client.follow(vec![name.into()]);
        let first = tokio::time::timeout(TIMEOUT, follow.next()).await.expect("a frame arrives in time").unwrap();
        assert!(first.caught_up);
        follow
    }

    async fn set(&mut self, values: &[(&str, u64)]) {
        let values: Vec<_> =
            values.iter().map(|(name, value)| (RolloutField::from_name(name).unwrap(), *value)).collect();
        let request = slotcast::wire::rollout::update("a test", &values);
        self.admin.update_rollout(request).await.unwrap();
    }

    async fn all_flags(&mut self, percent: u64) {
        self.set(&[("delta_percent", percent), ("debounce_percent", percent), ("prediction_percent", percent)]).await;
    }

    async fn statistics(&mut self) -> v1::StreamStatistics {
        let response = self.admin.get_statistics(v1::GetStatisticsRequest {}).await.unwrap().into_inner();
        assert_eq!(response.version, env!("CARGO_PKG_VERSION"));
        response.streams.unwrap()
    }

    /// Checks that the replica equals the state of the service.
    async fn assert_same(&self, follow: &Follow, name: &str) {
        let request = v1::GetInventoryRequest { inventory_id: name.into() };
        let inventory = self.client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap();
        let (version, replica) = (inventory.version.unwrap(), follow.replica(0).unwrap());
        let digest = version.digest.unwrap();
        let actual = replica.contents.digest();
        assert_eq!((replica.contents.revision().0, actual.a, actual.b), (version.revision, digest.a, digest.b));
    }
}

fn rollout(values: &[(RolloutField, u64)]) -> Rollout {
    Rollout::default().with_values(values.iter().copied()).unwrap()
}

/// Reads until the replica has reached a revision.
async fn reach(follow: &mut Follow, revision: u64) {
    let reached = async {
        while follow.replica(0).unwrap().contents.revision().0 < revision {
            follow.next().await.unwrap();
        }
    };
    tokio::time::timeout(TIMEOUT, reached).await.expect("a frame arrives in time");
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
async fn flags_change_on_an_open_stream_without_a_reconnect() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), rollout(&[(RolloutField::NewsMs, LONG_MS)])).await;
    served.create("steve").await;
    let mut follow = served.follow("steve").await;
    let waiting = served.add("steve").await;
    let early = tokio::time::timeout(Duration::from_millis(300), follow.next()).await;
    assert!(early.is_err(), "the change waits in its window");

    served.all_flags(0).await;
    reach(&mut follow, waiting).await;
    assert_eq!(
        (follow.counts().syncs, follow.counts().fulls),
        (2, 2),
        "the waiting change is sent immediately, as a full state"
    );
    for nth in 1..=8 {
        let revision = served.add("steve").await;
        reach(&mut follow, revision).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((follow.counts().syncs, follow.counts().fulls), (2 + nth, 2 + nth), "one full frame per mutation");
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
async fn statistics_equal_what_readers_received() {
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
                // The reader has everything, so the next frame only marks it as caught up.
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
    assert_eq!(full_syncs, 3 + 3 * 12 + 3, "initial syncs, one per mutation, and one per resumption");
    assert!(full_bytes > bytes, "{full_bytes} instead of {bytes}");
    let syncs_by = |trigger: v1::SyncTrigger| {
        let syncs = statistics.syncs.iter().filter(|sync| sync.trigger() == trigger);
        syncs.map(|sync| sync.count.unwrap().messages).sum::<u64>()
    };
    assert_eq!(syncs_by(v1::SyncTrigger::Initial), 3);
    assert_eq!(syncs_by(v1::SyncTrigger::News), syncs - 3);
    assert_eq!((syncs_by(v1::SyncTrigger::Echo), syncs_by(v1::SyncTrigger::Correction)), (0, 0));
    drop(follows);
    for _ in 0..500 {
        if served.statistics().await.open == 0 {
            return served.server.stop().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("closed streams are still counted as open");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_flags_off_the_bytes_sent_equal_the_cost_of_immediate_full_syncs() {
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
async fn half_of_the_players_get_deltas_and_the_same_half_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let names: Vec<String> = (0..200).map(|n| format!("player-{n}")).collect();
    let half = rollout(&[(RolloutField::DeltaPercent, 50), (RolloutField::NewsMs, 0)]);
    let served = Served::start(folder.path(), half.clone()).await;
    join_all(names.iter().map(|name| served.create(name))).await;
    let before = players_with_deltas(&served, &names).await;
    served.server.stop().await.unwrap();
    let served = Served::start(folder.path(), half).await;
    let after = players_with_deltas(&served, &names).await;
    served.server.stop().await.unwrap();

    assert_eq!(before, after);
    let count = before.iter().filter(|gets_deltas| **gets_deltas).count();
    assert!((80..=120).contains(&count), "{count} of 200");
    let expected: Vec<bool> = names.iter().map(|name| Percent::new(50).unwrap().includes(Bucket::of(name))).collect();
    assert_eq!(before, expected);
}

async fn players_with_deltas(served: &Served, names: &[String]) -> Vec<bool> {
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
async fn shadow_mode_sends_full_syncs_and_finds_deltas_smaller_and_correct() {
    let folder = TempDir::new().unwrap();
    let shadowed = [(RolloutField::ShadowPercent, 100), (RolloutField::NewsMs, 50)];
    let mut served = Served::start(folder.path(), rollout(&shadowed)).await;
    served.create("steve").await;
    let mut follow = served.follow("steve").await;
    burst(&served, &mut follow).await;
    let FollowCounts { syncs, bytes, fulls, deltas, .. } = follow.counts();
    assert_eq!((syncs, fulls, deltas), (31, 31, 0), "full syncs are sent");
    let first = computed(&mut served).await;
    assert_eq!(count(first.sent), (31, bytes));

    served.set(&[("shadow_percent", 0)]).await;
    burst(&served, &mut follow).await;
    assert!(follow.counts().deltas > 0, "deltas are sent");
    served.set(&[("shadow_percent", 100)]).await;
    burst(&served, &mut follow).await;
    let second = computed(&mut served).await;
    assert_eq!(count(second.sent).0, 61, "only syncs sent in shadow mode are counted");
    assert!(count(second.computed).0 > count(first.computed).0, "the shadow computes again");
    assert_eq!((follow.counts().desyncs, follow.counts().reconnects), (0, 0));
    served.assert_same(&follow, "steve").await;
    served.server.stop().await.unwrap();
}

/// Sends thirty mutations, and waits for each one while full syncs are sent.
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

/// Returns the shadow statistics, after the shadow has computed the changes in its windows.
async fn computed(served: &mut Served) -> v1::ShadowStatistics {
    // Time under test: several windows of the shadow, on a busy machine.
    tokio::time::sleep(Duration::from_millis(300)).await;
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
        let context = v1::MutationContext { session: "tablet".into(), predicted, ..new_mutation_context() };
        let shift = v1::MoveItem {
            inventory_id: "steve".into(),
            from: Some(v1::SlotQuantity { slot: from, count: None }),
            to: Some(v1::SlotRef { slot: to }),
        };
        self.client.mutate(context, Operation::Move(shift)).await.unwrap()
    }

    async fn change(&mut self) -> v1::InventoryChange {
        let message = tokio::time::timeout(TIMEOUT, self.stream.message()).await.expect("a frame arrives in time");
        message.unwrap().unwrap().changes.remove(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_prediction_flag_a_confirmed_prediction_is_sent() {
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
    assert_eq!(session.change().await.skipped, 1, "nothing was sent for the confirmed prediction");
    served.set(&[("prediction_percent", 0)]).await;
    assert!(session.shift(0, 1, digest(&there)).await.prediction_confirmed);
    let change = session.change().await;
    assert_eq!((change.advance, change.skipped), (1, 0));
    assert!(session.shift(1, 0, digest(&back)).await.prediction_confirmed);
    session.change().await;
    let statistics = served.statistics().await;
    assert_eq!(count(statistics.immediate_full).0, 7, "immediate full syncs include predicted mutations");
    served.server.stop().await.unwrap();
}

#[tokio::test]
async fn an_invalid_update_lists_every_field_and_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::default()).await;
    let before = served.admin.get_rollout(v1::GetRolloutRequest {}).await.unwrap().into_inner();
    let invalid = v1::UpdateRolloutRequest {
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
    let error = served.admin.update_rollout(invalid.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), fields(&error)),
        (Code::InvalidArgument, vec!["shadow_percent".into(), "heartbeat_ms".into()])
    );
    let without_reason = v1::UpdateRolloutRequest { reason: " ".into(), ..invalid };
    let error = served.admin.update_rollout(without_reason).await.unwrap_err();
    assert_eq!(fields(&error), ["reason", "shadow_percent", "heartbeat_ms"]);
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
        session: "tablet".into(),
        have: Some(v1::InventoryVersion { inventory_id: "steve".into(), ..v1::InventoryVersion::default() }),
    };
    served.client.rpc().report_desync(report).await.unwrap();
    let response = served.admin.get_statistics(v1::GetStatisticsRequest {}).await.unwrap().into_inner();
    let (streams, commits) = (response.streams.unwrap(), response.commits.unwrap());
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
async fn the_drain_call_ends_streams_and_the_server() {
    let folder = TempDir::new().unwrap();
    let mut served = Served::start(folder.path(), Rollout::default()).await;
    served.create("steve").await;
    let mut session = Session::open(&served, "steve").await;
    let without_reason = served.admin.drain(v1::DrainRequest::default()).await.unwrap_err();
    assert_eq!(without_reason.code(), Code::InvalidArgument);
    let response = served.admin.drain(v1::DrainRequest { reason: "a test".into() }).await.unwrap().into_inner();
    assert_eq!(response.limit_ms, 10_000);
    let ended = tokio::time::timeout(TIMEOUT, session.stream.message()).await.expect("the stream ends in time");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let Served { server, client, admin } = served;
    drop((session, client, admin));
    tokio::time::timeout(TIMEOUT, server.stop()).await.expect("the stream ends in time").unwrap();
}

#[test]
fn reflection_lists_the_methods_of_the_admin_service() {
    let pool = prost_reflect::DescriptorPool::decode(slotcast::wire::FILE_DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name("slotcast.v1.AdminService").unwrap();
    let methods: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
    assert_eq!(methods, ["GetRollout", "UpdateRollout", "GetStatistics", "Drain"]);
}

/// Runs a command and returns its output.
fn printed(arguments: &[&str], server: &str) -> String {
    let command =
        std::process::Command::new(env!("CARGO_BIN_EXE_slotcast")).args(arguments).args(["--server", server]).output();
    let output = command.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn news_ms(server: &str) -> u64 {
    let rollout: serde_json::Value = serde_json::from_str(&printed(&["rollout", "get", "--json"], server)).unwrap();
    rollout["news_ms"].as_u64().unwrap()
}

fn wait_for_news_ms(server: &str, expected: u64) {
    for _ in 0..200 {
        if news_ms(server) == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("news_ms is still {}, expected {expected}", news_ms(server));
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
fn the_settings_file_is_reloaded_and_commands_show_and_set_the_rollout() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("slotcast.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("[sync]\nnews_ms = 70\n");
    let log = folder.path().join("log");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_slotcast"));
    command.stderr(std::fs::File::create(&log).unwrap());
    let data = folder.path().join("data");
    let server = ServerProcess::start_with(command, &data, &["--config", path.to_str().unwrap()]);
    assert_eq!(news_ms(&server.uri), 70);
    write("[sync]\nnews_ms = 80\n");
    wait_for_news_ms(&server.uri, 80);

    let set = ["rollout", "set", "news_ms=90", "delta_percent=25", "--reason", "a test"];
    let table = printed(&set, &server.uri);
    assert!(table.lines().any(|line| line.split_whitespace().eq(["delta_percent", "25", "100"])), "{table}");
    write("[sync]\nnews_ms = 60001\n");
    wait_for_log(&log, "ERROR");
    assert_eq!(news_ms(&server.uri), 90, "an invalid file changes nothing");
    write("[sync]\nnews_ms = 80\n");
    let id = server.id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    wait_for_news_ms(&server.uri, 80);

    let line = printed(&["top", "--once"], &server.uri);
    assert!(line.starts_with("streams 0  syncs 0  "), "{line}");
    let top: serde_json::Value = serde_json::from_str(&printed(&["top", "--once", "--json"], &server.uri)).unwrap();
    assert_eq!((&top["since_start"]["streams"], &top["rates"]), (&0.into(), &serde_json::Value::Null));
}

#[test]
fn serve_and_config_report_every_problem_of_a_settings_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("slotcast.toml");
    std::fs::write(&path, "[sync]\nnews = 1\necho_ms = 60001\n").unwrap();
    let slotcast = || std::process::Command::new(env!("CARGO_BIN_EXE_slotcast"));
    let served = slotcast()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let error = String::from_utf8(served.stderr).unwrap();
    assert!(
        !served.status.success()
            && error.contains("  unknown setting sync.news (file)\n")
            && error.contains("  sync.echo_ms: must be 0 to 60000"),
        "{error}"
    );
    let checked = slotcast().args(["config", "--config"]).arg(&path).output().unwrap();
    assert_eq!(
        (checked.status.success(), String::from_utf8(checked.stderr).unwrap()),
        (false, error),
        "`config` prints the same error"
    );
}
