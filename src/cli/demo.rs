//! `slotcast demo`: compares the traffic of the three sync modes.

use super::CommandResult;
use super::data::STORE_FILE;
use super::output::print;
use super::play::{PlayError, PlayResult, TraceRun, progress_bar};
use super::trace::{Trace, World, baseline_bytes};
use crate::catalog_file;
use crate::client::Client;
use crate::domain::{Contents, InventoryId};
use crate::live_rollout::LiveRollout;
use crate::server::{RunningServer, ServerSettings};
use crate::store::Store;
use crate::store::embedded::{EmbeddedSettings, EmbeddedStore};
use crate::sync::Rollout;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use serde::Serialize;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// Play recorded player behavior on a real server in three sync modes, and compare the traffic.
///
/// Starts a server on a free loopback port with a temporary store and plays six traces through its RPCs in real time.
/// Each trace has its own inventories and one subscription, and is played three times: with an immediate full frame for
/// every change, with debounced deltas for a client that names its session, and for a client that predicts. At the end,
/// the demo reopens the stores and compares them with the subscribers; any subscriber that differs counts as a desync.
/// Takes about 6 seconds.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// What each trace sends in each sync mode.
#[derive(Debug, Serialize)]
pub struct Report {
    pub traces: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    ops: usize,
    /// Bytes that the baseline would have sent: every slot as JSON after each operation.
    pub baseline_bytes: u64,
    pub full_frames: Traffic,
    pub deltas: Traffic,
    pub predicted: Traffic,
}

impl Row {
    fn desyncs(&self) -> u64 {
        self.full_frames.desyncs + self.deltas.desyncs + self.predicted.desyncs
    }
}

/// Traffic of the stream of one trace, without the initial frames.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Traffic {
    syncs: u64,
    /// Size of the gRPC messages in bytes, including the 5-byte prefix of each.
    pub bytes: u64,
    desyncs: u64,
}

const EXPLANATION: &str = "
syncs / bytes: gRPC messages and their size with the 5-byte prefix, without the initial frames.
baseline:      every slot as JSON, sent after each operation.
full frames:   all slots as protobuf, sent immediately for each operation.
deltas:        changed slots, debounced, for a client that names its session.
predicted:     deltas for a client that predicts its own changes and sends the expected digests.
saved:         bytes that deltas save compared with the baseline, and with full frames.
desyncs:       subscribers that differ from the store, which is reopened at the end.";

/// How the server syncs and how the client plays a trace.
#[derive(Debug, Clone, Copy)]
enum SyncMode {
    /// Sends an immediate full frame for every change.
    FullFrames,
    /// Sends debounced deltas to a client that names its session.
    Deltas,
    /// Sends debounced deltas to a client that predicts its own changes and sends the predicted digests.
    Predicted,
}

impl SyncMode {
    fn rollout(self) -> Rollout {
        match self {
            Self::FullFrames => Rollout::immediate_full(),
            Self::Deltas | Self::Predicted => Rollout::default(),
        }
    }

    async fn play(self, mut play: TraceRun<'_>) -> Result<PlayResult, PlayError> {
        match self {
            Self::FullFrames => play.run().await,
            Self::Deltas => {
                play.session = &play.trace.name;
                play.run().await
            }
            Self::Predicted => play.run_predicted().await,
        }
    }
}

impl Demo {
    pub async fn run(self) -> CommandResult {
        let report = play_traces().await?;
        if self.json {
            print(serde_json::to_string(&report)?)?;
        } else {
            print(format_args!("{}\n{EXPLANATION}", table(&report)))?;
        }
        report.check().map_err(Into::into)
    }
}

/// Plays all traces in all sync modes, in real time.
pub async fn play_traces() -> Result<Report, Box<dyn Error>> {
    let traces = Trace::built_in()?;
    let world = World::built_in();
    let operations: usize = traces.iter().map(|trace| trace.steps.len()).sum();
    let progress = progress_bar(3 * operations, "playing six traces in three sync modes");
    let (full_frames, deltas, predicted) = tokio::try_join!(
        run_mode(SyncMode::FullFrames, &traces, &world, &progress),
        run_mode(SyncMode::Deltas, &traces, &world, &progress),
        run_mode(SyncMode::Predicted, &traces, &world, &progress),
    )?;
    progress.finish_and_clear();
    let mut rows = Vec::new();
    for (((trace, full_frames), deltas), predicted) in traces.iter().zip(full_frames).zip(deltas).zip(predicted) {
        let baseline_bytes = baseline_bytes(trace, &world)?;
        let (name, ops) = (trace.name.clone(), trace.steps.len());
        rows.push(Row { name, ops, baseline_bytes, full_frames, deltas, predicted });
    }
    Ok(Report { traces: rows })
}

impl Report {
    /// Returns an error if a subscriber differed from the store.
    pub fn check(&self) -> Result<(), String> {
        match self.traces.iter().map(Row::desyncs).sum() {
            0 => Ok(()),
            desyncs => Err(format!("{desyncs} desyncs: this is a bug, please report it")),
        }
    }
}

/// Plays all traces concurrently on one server in one sync mode.
async fn run_mode(
    mode: SyncMode,
    traces: &[Trace],
    world: &World,
    progress: &ProgressBar,
) -> Result<Vec<Traffic>, Box<dyn Error>> {
    let directory = TempDir::with_prefix("slotcast-demo-")?;
    let path = directory.path().join(STORE_FILE);
    let store = Arc::new(EmbeddedStore::open(&path, EmbeddedSettings::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let settings = ServerSettings { rollout: LiveRollout::new(mode.rollout()), ..ServerSettings::default() };
    let server = RunningServer::start(listener, store, Arc::new(catalog_file::default_catalog()), settings)?;
    let uri = server.uri();
    let plays = traces.iter().map(async |trace| {
        let client = Client::new(&uri, "demo")?;
        let prefix = format!("{}/", trace.name);
        let play = TraceRun { client: &client, trace, world, prefix: &prefix, session: "", progress };
        Ok::<_, Box<dyn Error>>(mode.play(play).await?)
    });
    let played = try_join_all(plays).await?;
    server.stop().await?;
    played.into_iter().map(|played| compare(&path, played)).collect()
}

/// Reopens the store and counts every replica that differs from it as a desync.
fn compare(path: &Path, played: PlayResult) -> Result<Traffic, Box<dyn Error>> {
    let store = EmbeddedStore::open(path, EmbeddedSettings::default())?;
    let ids: Vec<InventoryId> = played
        .replicas
        .iter()
        .map(|(id, _)| InventoryId::new(id).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let stored = store.load(&ids, &[])?.inventories;
    let differing = played.replicas.iter().zip(&stored).filter(|((_, replica), stored)| {
        let stored = stored.as_deref();
        !stored.is_some_and(|stored| is_equal(replica, &stored.contents))
    });
    let desyncs = played.desyncs + differing.count() as u64;
    Ok(Traffic { syncs: played.syncs, bytes: played.bytes, desyncs })
}

fn is_equal(replica: &Contents, stored: &Contents) -> bool {
    replica.revision() == stored.revision() && replica.stacks().eq(stored.stacks())
}

pub fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(
        ["trace", "ops", "baseline", "full frames", "deltas", "saved", "predicted", "desyncs"].map(Cell::new),
    );
    for row in &report.traces {
        let cells = [
            row.name.clone(),
            row.ops.to_string(),
            row.baseline_bytes.to_string(),
            syncs_and_bytes(row.full_frames),
            syncs_and_bytes(row.deltas),
            format!(
                "{} {}",
                saved(row.baseline_bytes, row.deltas.bytes),
                saved(row.full_frames.bytes, row.deltas.bytes)
            ),
            syncs_and_bytes(row.predicted),
            row.desyncs().to_string(),
        ];
        table.add_row(cells.map(Cell::new));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn syncs_and_bytes(sent: Traffic) -> String {
    format!("{} / {:>5}", sent.syncs, sent.bytes)
}

fn saved(before: u64, after: u64) -> String {
    format!("{:.1} %", 100.0 * (1.0 - after as f64 / before as f64))
}
