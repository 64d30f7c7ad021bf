//! `slotcast demo`: the main job, seen at work.

use super::CommandResult;
use super::play::{PlayError, Played, play};
use super::trace::{Trace, World, plain_bytes};
use crate::catalog_file;
use crate::client::Client;
use crate::domain::InventoryId;
use crate::server::{RunningServer, ServerSettings};
use crate::store::Store;
use crate::store::embedded::{EmbeddedSettings, EmbeddedStore};
use crate::sync::{Replica, SyncSettings};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// Plays recorded player behaviour on a real server, the old way and the new way, and compares what was sent.
///
/// Starts the server on a free loopback port over a temporary store, plays six traces through its RPCs in real time, each
/// on its own inventories with one subscription, once with a full frame for every change at once and once with debounced
/// deltas. In the end the stores are opened again and compared with what the subscribers have. Takes about 5 seconds.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Print the figures as JSON, for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    traces: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    ops: usize,
    /// What the old game would have sent: JSON of every slot, for each operation.
    plain_bytes: u64,
    before: Sent,
    after: Sent,
}

/// What came over one trace's stream, initial frames apart.
#[derive(Debug, Clone, Copy, Serialize)]
struct Sent {
    syncs: u64,
    /// gRPC messages as sent, each with its 5-byte prefix.
    bytes: u64,
    desyncs: u64,
}

impl Demo {
    pub async fn run(self) -> CommandResult {
        let traces = Trace::built_in()?;
        let world = World::built_in();
        let operations: usize = traces.iter().map(|trace| trace.steps.len()).sum();
        let progress = progress_bar(2 * operations as u64);
        let (before, after) = tokio::try_join!(
            run_way(SyncSettings::immediate_full(), &traces, &world, &progress),
            run_way(SyncSettings::default(), &traces, &world, &progress),
        )?;
        progress.finish_and_clear();
        let mut rows = Vec::new();
        for ((trace, before), after) in traces.iter().zip(before).zip(after) {
            let plain_bytes = plain_bytes(trace, &world)?;
            rows.push(Row { name: trace.name.clone(), ops: trace.steps.len(), plain_bytes, before, after });
        }
        let report = Report { traces: rows };
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print_table(&report);
        }
        let desyncs: u64 = report.traces.iter().map(|row| row.before.desyncs + row.after.desyncs).sum();
        if desyncs > 0 {
            return Err(format!("{desyncs} desyncs: this must not happen, please report it").into());
        }
        Ok(())
    }
}

/// Plays all traces side by side on a server of their own that syncs in one way.
async fn run_way(
    sync: SyncSettings,
    traces: &[Trace],
    world: &World,
    progress: &ProgressBar,
) -> Result<Vec<Sent>, Box<dyn std::error::Error>> {
    let folder = TempDir::with_prefix("slotcast-demo-")?;
    let path = folder.path().join("slotcast.db");
    let store = Arc::new(EmbeddedStore::open(&path, EmbeddedSettings::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let settings = ServerSettings { sync, ..ServerSettings::default() };
    let server = RunningServer::start(listener, store, Arc::new(catalog_file::default_catalog()), settings)?;
    let uri = server.uri();
    let plays = traces.iter().map(async |trace| {
        let client = Client::new(&uri, "demo")?;
        let prefix = format!("{}/", trace.name);
        let played: Result<Played, PlayError> = play(&client, trace, world, &prefix, progress).await;
        Ok::<_, Box<dyn std::error::Error>>(played?)
    });
    let played = try_join_all(plays).await?;
    server.stop().await?;
    played.into_iter().map(|played| compare(&path, played)).collect()
}

/// Opens the store again and counts every replica that differs from it as a desync.
fn compare(path: &Path, played: Played) -> Result<Sent, Box<dyn std::error::Error>> {
    let store = EmbeddedStore::open(path, EmbeddedSettings::default())?;
    let ids: Vec<InventoryId> = played
        .replicas
        .iter()
        .map(|(id, _)| InventoryId::new(id).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let stored = store.load(&ids, &[])?.inventories;
    let agrees = |replica: &Replica, stored: &crate::domain::Inventory| {
        replica.epoch == stored.epoch
            && replica.contents.revision() == stored.contents.revision()
            && replica.contents.stacks().eq(stored.contents.stacks())
    };
    let differing = played.replicas.iter().zip(&stored).filter(|((_, replica), stored)| {
        let stored = stored.as_deref();
        !stored.is_some_and(|stored| agrees(replica, stored))
    });
    let desyncs = played.desyncs + differing.count() as u64;
    Ok(Sent { syncs: played.syncs, bytes: played.bytes, desyncs })
}

fn progress_bar(steps: u64) -> ProgressBar {
    let template = "{spinner} playing six traces, the old way and the new way {wide_bar} {pos}/{len} operations";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style)
}

fn print_table(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "trace",
        "operations",
        "old game,\nJSON bytes",
        "full frames:\nsyncs",
        "\nbytes",
        "debounced deltas:\nsyncs",
        "\nbytes",
        "less than\nthe old game",
        "less than\nfull frames",
        "desyncs",
    ]);
    for row in &report.traces {
        let desyncs = row.before.desyncs + row.after.desyncs;
        table.add_row(
            [
                row.name.clone(),
                row.ops.to_string(),
                row.plain_bytes.to_string(),
                row.before.syncs.to_string(),
                row.before.bytes.to_string(),
                row.after.syncs.to_string(),
                row.after.bytes.to_string(),
                saved(row.plain_bytes, row.after.bytes),
                saved(row.before.bytes, row.after.bytes),
                desyncs.to_string(),
            ]
            .map(Cell::new),
        );
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!("Bytes are gRPC messages as sent, 5-byte prefix included, initial frames apart.");
    println!("Both stores were opened again: every inventory is what its subscriber has, but for the desyncs counted.");
}

fn saved(before: u64, after: u64) -> String {
    format!("{:.1} %", 100.0 * (1.0 - after as f64 / before as f64))
}
