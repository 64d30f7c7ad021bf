//! One case: a server under load, one rule of the shim, and what has to come of it.

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

/// The store gives failing reads and commits 15 s; a loaded machine gets as much again.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// For how long a fault that comes again lasts, unless it lasts for ever.
const A_WHILE: Duration = Duration::from_millis(700);
/// How long to wait for the call that is to fail; some do not happen in each run.
const REACH_MAX: Duration = Duration::from_secs(3);
/// The least that can be set: checkpoints all the time.
pub const SHORT_LOG_BYTES: u64 = 1 << 16;
/// So long that its index has to grow, which it does with every 4,096 pages.
pub const LONG_LOG_BYTES: u64 = 64 << 20;
/// A service that has recovered acknowledges as many mutations as this.
const RECOVERED: u64 = 40;
const PROGRESS_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    Once,
    AWhile,
    /// Until the process ends.
    Forever,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub rule: Rule,
    pub lasting: Lasting,
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

    /// With folds and trims all the time, and checkpoints whenever the log is as long as this.
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

/// Whether /readyz says so; an admin port that is gone is not ready.
fn is_ready(admin: &str) -> bool {
    let asked = TcpStream::connect(admin).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Ends with true when gRPC health says that the service does not serve, and with false when the stream ends without.
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

/// A server under load, and what is seen of it.
struct Watched {
    server: ServerProcess,
    ledger: Arc<Ledger>,
    was_unready: bool,
    what: String,
}

impl Watched {
    /// Looks at it until `is_done`, or until it has ended; then that is how.
    async fn until(&mut self, mut is_done: impl FnMut() -> bool) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.server.exit_status() {
                return Some(status);
            }
            let ready = is_ready(&self.server.admin);
            self.was_unready |= !ready;
            let silent_for = self.ledger.silent_for();
            assert!(!ready || silent_for < SILENCE_MAX, "{}: ready, but refusing for {silent_for:?}", self.what);
            if is_done() {
                return None;
            }
            tokio::time::sleep(PROGRESS_WAIT).await;
        }
    }
}

/// Runs a case to its end; panics where a promise is broken.
pub async fn run(case: Case, seed: u64) -> Outcome {
    let place = Place::new().await;
    let server = ServerProcess::start_with(place.command(case.log_bytes), &place.data(), &[]);
    let ledger = Ledger::new(&server.uri);
    let health = tokio::spawn(not_serving(server.uri.clone()));
    let mut watched = Watched { server, ledger: ledger.clone(), was_unready: false, what: format!("{case:?}") };
    place.control.arm(&case.rule);
    let load = Load::start(&ledger, seed);

    let ended = inject(&mut watched, &place, case).await;
    let is_reached = place.control.injected() > 0;
    let end = match (ended, is_reached) {
        (Some(status), _) => {
            check_end(status, &place.log(), &watched);
            assert!(health.await.unwrap() || watched.was_unready, "{case:?}: it never said that it does not serve");
            End::Ended
        }
        (None, true) => End::Recovered,
        (None, false) => End::NotReached,
    };
    place.control.disarm();
    if end != End::Ended {
        // Half of them end in good order, the others as in a crash.
        if seed.is_multiple_of(2) { watched.server.kill() } else { assert!(watched.server.terminate().success()) }
    }
    let log = place.log();
    drop(watched);
    place.fsck();
    let mut server = ServerProcess::start(&place.data(), &[]);
    ledger.point_to(&server.uri);
    load.finish().await;
    ledger.check().await;
    assert!(server.terminate().success());
    check_items(&place.fsck(), &ledger);
    assert_eq!(*ledger.wrong.lock().unwrap(), Vec::<String>::new(), "{case:?}: {log}");
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

/// Waits for the fault, holds it for as long as the case says, and waits for what comes of it.
async fn inject(watched: &mut Watched, place: &Place, case: Case) -> Option<ExitStatus> {
    let began = Instant::now();
    let control = &place.control;
    let reach_max = if case.log_bytes > SHORT_LOG_BYTES { 20 * REACH_MAX } else { REACH_MAX };
    let reached = || control.injected() > 0 || began.elapsed() > reach_max;
    if let Some(status) = watched.until(reached).await {
        return Some(status);
    }
    let holds_for = match case.lasting {
        Lasting::Once => Duration::ZERO,
        Lasting::AWhile => A_WHILE,
        Lasting::Forever => SILENCE_MAX + A_WHILE,
    };
    let held = Instant::now();
    let before = watched.ledger.acknowledged();
    let ledger = watched.ledger.clone();
    let goes_on = || ledger.acknowledged() >= before + RECOVERED;
    // What lasts for ever need not be waited for if the service does without what fails.
    let is_held = || held.elapsed() >= holds_for || (case.lasting == Lasting::Forever && goes_on());
    if let Some(status) = watched.until(is_held).await {
        return Some(status);
    }
    control.disarm();
    let before = watched.ledger.acknowledged();
    watched.until(|| ledger.acknowledged() >= before + RECOVERED).await
}

fn check_end(status: ExitStatus, log: &str, watched: &Watched) {
    let what = &watched.what;
    assert_eq!(status.code(), Some(1), "{what}: {log}");
    for line in ["the store has stopped: nothing more is written", "the server failed"] {
        assert_eq!(log.matches(line).count(), 1, "{what}: {line:?} in {log}");
    }
}

/// Nothing was made or lost, by the sums of the whole store.
fn check_items(found: &Value, ledger: &Ledger) {
    let items: u64 = found["items"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(items, ledger.total() + crate::load::ITEMS_AT_FIRST, "items in the store");
}

impl Case {
    pub fn new(rule: Rule, lasting: Lasting) -> Self {
        let calls = if lasting == Lasting::Once { 1 } else { i64::MAX };
        Self { rule: Rule { calls, ..rule }, lasting, log_bytes: SHORT_LOG_BYTES }
    }

    pub fn is_full(&self) -> bool {
        self.rule.errno == Errno::Enospc
    }
}
