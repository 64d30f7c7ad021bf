//! One case: a server under load, one rule of the shim, and the required outcome.

use crate::load::{Ledger, Load, create_inventories};
use crate::process::ServerProcess;
use crate::shim::{Control, Errno, Rule, shimmed_server};
use serde_json::Value;
use slotcast::client::Client;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Maximum time without a successful call while the server reports ready: the store stops after 15 s of failures, and a
/// loaded machine gets as much again.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(30);
/// How long a temporary fault lasts.
const TEMPORARY_FAULT: Duration = Duration::from_millis(700);
/// How long to wait for the call that must fail; some calls do not happen in each run.
const REACH_MAX: Duration = Duration::from_secs(3);
/// The minimum of the setting: checkpoints happen all the time.
pub const SHORT_LOG_BYTES: u64 = 1 << 16;
/// Long enough that the log's index must grow, which happens every 4,096 pages.
pub const LONG_LOG_BYTES: u64 = 64 << 20;
/// Number of acknowledged mutations after which a service counts as recovered.
const RECOVERED: u64 = 40;
const PROGRESS_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultDuration {
    Once,
    Temporary,
    /// Until the process ends.
    Permanent,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub rule: Rule,
    pub duration: FaultDuration,
    /// The size at which the log is checkpointed.
    pub log_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The call that was to fail was not made.
    NotReached,
    Recovered,
    Ended,
}

#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    pub acknowledged: u64,
    pub found_applied: u64,
    pub refused_as_full: u64,
    pub log: String,
}

/// A store with many inventories, made once and copied for each case.
pub async fn template() -> &'static Path {
    static TEMPLATE: OnceCell<tempfile::TempDir> = OnceCell::const_new();
    let made = TEMPLATE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        let mut server = ServerProcess::start(folder.path(), &[]);
        create_inventories(&Client::new(&server.uri, "io-faults").unwrap()).await;
        assert!(server.terminate().success());
        folder
    });
    made.await.path()
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The folder of one store, its control file, and its server's log.
pub struct Place {
    folder: tempfile::TempDir,
    pub control: Control,
}

impl Place {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(template().await, &folder.path().join("data"));
        let control = Control::create(&folder.path().join("control"));
        Self { folder, control }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns a server that folds and trims all the time, and checkpoints when the log has this length.
    pub fn command(&self, log_bytes: u64) -> Command {
        let mut command = shimmed_server(&self.data(), &self.folder.path().join("control"));
        command.env("SLOTCAST_STORE_FOLD_AFTER_MS", "10").env("SLOTCAST_STORE_WAL_BYTES", log_bytes.to_string());
        command.env("SLOTCAST_STORE_KEYS_MAX", "300").env("SLOTCAST_DRAIN_LIMIT_MS", "3000");
        command.stderr(File::create(self.log_path()).unwrap());
        command
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub fn fsck(&self) -> Value {
        fsck(&self.data())
    }
}

pub fn fsck(data: &Path) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    let found = command.args(["fsck", "--json", "--data"]).arg(data).output().unwrap();
    assert!(found.status.success(), "fsck: {}", String::from_utf8_lossy(&found.stdout));
    serde_json::from_slice(&found.stdout).unwrap()
}

/// Returns whether `/readyz` returns 200. A closed admin port is not ready.
fn is_ready(admin: &str) -> bool {
    let response = TcpStream::connect(admin).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    response.is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

/// Waits until gRPC health reports NOT_SERVING; returns false if the stream ends before.
async fn not_serving(uri: String) -> bool {
    let Ok(channel) = tonic::transport::Endpoint::new(uri).unwrap().connect().await else { return false };
    let Ok(stream) = HealthClient::new(channel).watch(HealthCheckRequest::default()).await else { return false };
    let mut stream = stream.into_inner();
    while let Ok(Some(update)) = stream.message().await {
        if update.status == ServingStatus::NotServing as i32 {
            return true;
        }
    }
    false
}

/// A server under load, and what the test observes.
struct ObservedServer {
    server: ServerProcess,
    ledger: Arc<Ledger>,
    was_unready: bool,
    case: String,
}

impl ObservedServer {
    /// Observes the server until `is_done`, or until it exits; then returns its exit status.
    async fn until(&mut self, mut is_done: impl FnMut() -> bool) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.server.exit_status() {
                return Some(status);
            }
            let ready = is_ready(&self.server.admin);
            self.was_unready |= !ready;
            let since_last_answer = self.ledger.since_last_answer();
            assert!(
                !ready || since_last_answer < UNAVAILABLE_MAX,
                "{}: ready, but refusing for {since_last_answer:?}",
                self.case
            );
            if is_done() {
                return None;
            }
            tokio::time::sleep(PROGRESS_WAIT).await;
        }
    }
}

/// Runs a case. Panics if a guarantee is broken.
pub async fn run(case: Case, seed: u64) -> Outcome {
    let place = Place::new().await;
    let server = ServerProcess::start_with(place.command(case.log_bytes), &place.data(), &[]);
    let ledger = Ledger::new(&server.uri);
    let health = tokio::spawn(not_serving(server.uri.clone()));
    let mut observed = ObservedServer { server, ledger: ledger.clone(), was_unready: false, case: format!("{case:?}") };
    place.control.arm(&case.rule);
    let load = Load::start(&ledger, seed);

    let ended = inject(&mut observed, &place, case).await;
    let is_reached = place.control.injected() > 0;
    let end = match (ended, is_reached) {
        (Some(status), _) => {
            check_exit(status, &place.log(), &observed);
            assert!(health.await.unwrap() || observed.was_unready, "{case:?}: it never said that it does not serve");
            End::Ended
        }
        (None, true) => End::Recovered,
        (None, false) => End::NotReached,
    };
    place.control.disarm();
    if end != End::Ended {
        // Half of the servers shut down, the others are killed.
        if seed.is_multiple_of(2) { observed.server.kill() } else { assert!(observed.server.terminate().success()) }
    }
    let log = place.log();
    drop(observed);
    place.fsck();
    let mut server = ServerProcess::start(&place.data(), &[]);
    ledger.set_uri(&server.uri);
    load.finish().await;
    ledger.check().await;
    assert!(server.terminate().success());
    check_items(&place.fsck(), &ledger);
    assert_eq!(*ledger.violations.lock().unwrap(), Vec::<String>::new(), "{case:?}: {log}");
    assert!(!log.contains("corrupt") && !log.contains("damaged"), "{case:?}: {log}");
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Outcome {
        end,
        acknowledged: ledger.acknowledged(),
        found_applied: count(&ledger.found_applied),
        refused_as_full: count(&ledger.refused_as_full),
        log,
    }
}

/// Waits for the fault, keeps it for its duration, and waits for the outcome.
async fn inject(observed: &mut ObservedServer, place: &Place, case: Case) -> Option<ExitStatus> {
    let began = Instant::now();
    let control = &place.control;
    let reach_max = if case.log_bytes > SHORT_LOG_BYTES { 20 * REACH_MAX } else { REACH_MAX };
    let reached = || control.injected() > 0 || began.elapsed() > reach_max;
    if let Some(status) = observed.until(reached).await {
        return Some(status);
    }
    let holds_for = match case.duration {
        FaultDuration::Once => Duration::ZERO,
        FaultDuration::Temporary => TEMPORARY_FAULT,
        FaultDuration::Permanent => UNAVAILABLE_MAX + TEMPORARY_FAULT,
    };
    let held = Instant::now();
    let before = observed.ledger.acknowledged();
    let ledger = observed.ledger.clone();
    let has_recovered = || ledger.acknowledged() >= before + RECOVERED;
    // No need to wait for a permanent fault if the service works without the call.
    let is_held = || held.elapsed() >= holds_for || (case.duration == FaultDuration::Permanent && has_recovered());
    if let Some(status) = observed.until(is_held).await {
        return Some(status);
    }
    control.disarm();
    let before = observed.ledger.acknowledged();
    observed.until(|| ledger.acknowledged() >= before + RECOVERED).await
}

fn check_exit(status: ExitStatus, log: &str, observed: &ObservedServer) {
    let case = &observed.case;
    assert_eq!(status.code(), Some(1), "{case}: {log}");
    for line in ["the store has stopped: nothing more is written", "the server failed"] {
        assert_eq!(log.matches(line).count(), 1, "{case}: {line:?} in {log}");
    }
}

/// Checks that no item was created or lost, by the sums of the whole store.
fn check_items(found: &Value, ledger: &Ledger) {
    let items: u64 = found["items"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(items, ledger.total() + crate::load::INITIAL_ITEMS, "items in the store");
}

impl Case {
    pub fn new(rule: Rule, duration: FaultDuration) -> Self {
        let calls = if duration == FaultDuration::Once { 1 } else { i64::MAX };
        Self { rule: Rule { calls, ..rule }, duration, log_bytes: SHORT_LOG_BYTES }
    }

    pub fn is_full(&self) -> bool {
        self.rule.errno == Errno::Enospc
    }
}
