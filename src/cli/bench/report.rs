//! The results: as tables, and as JSON.

use super::cores::Cores;
use super::figures::{CoresFigure, FrameFigure, IdleFigure, MixedFigure, ScaleFigure, SyncFigure};
use super::recorder::{CpuPerCall, Measurement, Percentiles};
use super::streams::StreamFigures;
use super::unary::UnaryFigure;
use crate::cli::demo;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt;

/// All results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    /// Whether this is a release build. The figures of other builds are not meaningful.
    pub is_release: bool,
    pub cores: String,
    pub seconds: f64,
    pub runs: u32,
    pub unary: Vec<UnaryFigure>,
    pub streams: StreamFigures,
    pub sync: Vec<SyncFigure>,
    pub mixed: Vec<MixedFigure>,
    pub scale: Vec<ScaleFigure>,
    pub all_cores: Vec<CoresFigure>,
    pub bytes: Option<demo::Report>,
}

impl Report {
    pub fn new(cores: Cores, seconds: f64, runs: u32) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            is_release: !cfg!(debug_assertions),
            cores: cores.to_string(),
            seconds,
            runs,
            unary: Vec::new(),
            streams: StreamFigures::default(),
            sync: Vec::new(),
            mixed: Vec::new(),
            scale: Vec::new(),
            all_cores: Vec::new(),
            bytes: None,
        }
    }

    /// Returns an error if calls failed, or if a subscriber of a trace ended at a wrong state.
    pub fn check(&self) -> Result<(), String> {
        self.bytes.as_ref().map_or(Ok(()), demo::Report::check)?;
        let failed: Vec<&Measurement> = self.rounds().into_iter().filter(|round| round.errors > 0).collect();
        let errors: u64 = failed.iter().map(|round| round.errors).sum();
        match failed.first().and_then(|round| round.first_error.as_ref()) {
            Some(first) => Err(format!("{errors} calls failed; the first: {first}")),
            None => Ok(()),
        }
    }

    fn rounds(&self) -> Vec<&Measurement> {
        let mut rounds: Vec<&Measurement> = Vec::new();
        rounds.extend(self.unary.iter().flat_map(|figure| &figure.rounds));
        rounds.extend(self.streams.frames.iter().flat_map(|figure| &figure.rounds).map(|round| &round.calls));
        rounds.extend(self.sync.iter().flat_map(|figure| &figure.alone));
        rounds.extend(self.sync.iter().flat_map(|figure| &figure.all).map(|round| &round.calls));
        rounds.extend(self.mixed.iter().flat_map(|figure| figure.rounds.iter()));
        rounds.extend(self.scale.iter().flat_map(|figure| &figure.rounds));
        rounds.extend(self.all_cores.iter().flat_map(|figure| [&figure.one_core, &figure.all_cores]).flatten());
        rounds
    }
}

const EXPLANATION: &str = "
us/call:           CPU time of the server per call; runtime, commit and fold are its threads.
x echo, us x echo: throughput and CPU time as multiples of those of bare tonic in the same round.
generator:         CPU time of the load generator as a share of one core.
A row with ! is not valid: calls failed or could not be sent, or the generator used more than 0.9 of a core.";

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, cores, seconds, runs, .. } = self;
        writeln!(formatter, "slotcast {version}; {cores}; medians of {runs} rounds of {seconds} s each")?;
        if !self.is_release {
            writeln!(
                formatter,
                "This is not a release build, so the figures are not meaningful (use cargo build --release)."
            )?;
        }
        let mut section = |title: &str, table: Option<Table>| match table {
            Some(table) => writeln!(formatter, "\n{title}\n{table}"),
            None => Ok(()),
        };
        section("Single calls", unary_table(&self.unary))?;
        section("Idle SubscribeInventory streams", idle_table(&self.streams.idle))?;
        section("Mutations that each cause a frame", frame_table(&self.streams.frames))?;
        section("Players that watch and change their own inventories", sync_table(&self.sync))?;
        section("AddItem beside reads of missing ids", mixed_table(&self.mixed))?;
        section("AddItem by size of the store", scale_table(&self.scale))?;
        section("A server on one core and on all cores", cores_table(&self.all_cores))?;
        section("Syncs and bytes for each trace (slotcast demo --help)", self.bytes.as_ref().map(demo::table))?;
        write!(formatter, "{EXPLANATION}")
    }
}

fn unary_table(figures: &[UnaryFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        let mut row = vec![
            figure.load.to_string(),
            figure.call.title().to_owned(),
            format!("{:.0}", figure.calls_per_s),
            format!("{:.2}", figure.throughput_ratio),
            cpu(&figure.cpu_us, |cpu| cpu.total),
            optional(figure.cpu_ratio, 2),
            cpu(&figure.cpu_us, |cpu| cpu.runtime),
            cpu(&figure.cpu_us, |cpu| cpu.commit),
            cpu(&figure.cpu_us, |cpu| cpu.fold),
        ];
        row.extend(latency(figure.latency_us));
        row.extend([optional(Some(figure.generator_share), 2), mark(figure.is_valid)]);
        row
    });
    let header = [
        "load",
        "call",
        "calls/s",
        "x echo",
        "us/call",
        "us x echo",
        "runtime",
        "commit",
        "fold",
        "p50 us",
        "p99",
        "p99.9",
        "max",
        "generator",
        "",
    ];
    table(&header, 2, rows)
}

fn idle_table(figures: &[IdleFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        vec![
            figure.streams.to_string(),
            figure.connections.to_string(),
            format!("{:.2}", figure.kib_per_stream),
            optional(figure.bare_kib_per_stream, 2),
            format!("{:.1}", figure.open_cpu_us),
            optional(figure.bare_open_cpu_us, 1),
        ]
    });
    let header = ["streams", "connections", "KiB/stream", "bare stream", "us to open", "bare stream"];
    table(&header, 0, rows)
}

fn frame_table(figures: &[FrameFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        vec![
            figure.streams.to_string(),
            figure.mutations_per_s.to_string(),
            format!("{:.0}", figure.frames_per_s),
            format!("{:.0}", figure.frame_bytes),
            cpu(&figure.cpu_us, |cpu| cpu.total),
            optional(figure.bare_cpu_us, 1),
            optional(figure.cpu_ratio, 2),
            cpu(&figure.cpu_us, |cpu| cpu.runtime),
            cpu(&figure.cpu_us, |cpu| cpu.commit),
            figure.latency_us.p99.to_string(),
            figure.frame_us.p50.to_string(),
            figure.frame_us.p99.to_string(),
            figure.frame_us.p999.to_string(),
            optional(Some(figure.generator_share), 2),
            mark(figure.is_valid),
        ]
    });
    let header = [
        "streams",
        "mutations/s",
        "frames/s",
        "bytes/frame",
        "us/mutation",
        "bare",
        "x bare",
        "runtime",
        "commit",
        "reply p99 us",
        "reply to frame p50",
        "p99",
        "p99.9",
        "generator",
        "",
    ];
    table(&header, 0, rows)
}

fn sync_table(figures: &[SyncFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        vec![
            figure.mode.title().to_owned(),
            figure.players.to_string(),
            format!("{:.0}", figure.frames_per_s),
            optional(figure.alone_cpu_us, 1),
            optional(figure.all_cpu_us, 1),
            optional(figure.overhead_us, 1),
            figure.saved.map_or("-".into(), |saved| format!("{:.0} %", 100.0 * saved)),
            figure.frame_us.p50.to_string(),
            figure.frame_us.p99.to_string(),
            optional(Some(figure.generator_share), 2),
            mark(figure.is_valid),
        ]
    });
    let header = [
        "sync",
        "players",
        "frames/s",
        "us/mutation, 1 subscriber",
        "all subscribe",
        "overhead us",
        "saved",
        "reply to frame p50 us",
        "p99",
        "generator",
        "",
    ];
    table(&header, 1, rows)
}

fn mixed_table(figures: &[MixedFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        let [first, last] = figure.resident_mib;
        vec![
            figure.load.to_string(),
            figure.reads_per_s.to_string(),
            optional(figure.throughput_ratio, 2),
            optional(figure.cpu_ratio, 2),
            optional(figure.commit_cpu_ratio, 2),
            optional(figure.p99_ratio, 2),
            format!("{first:.1}"),
            format!("{last:.1}"),
            mark(figure.is_valid),
        ]
    });
    let header = [
        "mutations",
        "reads/s",
        "x throughput",
        "x CPU/mutation",
        "x commit CPU",
        "x p99",
        "MiB after 1 round",
        "after the last",
        "",
    ];
    table(&header, 1, rows)
}

fn scale_table(figures: &[ScaleFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        let mut row = vec![
            figure.stored.to_string(),
            figure.active.to_string(),
            format!("{:.0}", figure.calls_per_s),
            cpu(&figure.cpu_us, |cpu| cpu.total),
            optional(figure.cpu_ratio, 2),
            cpu(&figure.cpu_us, |cpu| cpu.runtime),
            cpu(&figure.cpu_us, |cpu| cpu.commit),
            cpu(&figure.cpu_us, |cpu| cpu.fold),
        ];
        row.extend(latency(figure.latency_us));
        row.push(mark(figure.is_valid));
        row
    });
    let header = [
        "stored",
        "active",
        "calls/s",
        "us/call",
        "x smallest",
        "runtime",
        "commit",
        "fold",
        "p50 us",
        "p99",
        "p99.9",
        "max",
        "",
    ];
    table(&header, 0, rows)
}

fn cores_table(figures: &[CoresFigure]) -> Option<Table> {
    let rows = figures.iter().map(|figure| {
        vec![
            figure.call.title().to_owned(),
            format!("{:.0}", figure.one_core_calls_per_s),
            format!("{:.0}", figure.all_cores_calls_per_s),
            optional(figure.throughput_ratio, 2),
            optional(figure.server_share, 2),
            optional(Some(figure.generator_share), 2),
            mark(figure.is_valid),
        ]
    });
    let header = ["call", "calls/s on one core", "on all cores", "ratio", "server", "generator", ""];
    table(&header, 1, rows)
}

fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

fn cpu(cpu: &Option<CpuPerCall>, part: fn(&CpuPerCall) -> f64) -> String {
    optional(cpu.as_ref().map(part), 1)
}

fn latency(latency: Percentiles) -> [String; 4] {
    [latency.p50, latency.p99, latency.p999, latency.max].map(|microseconds| microseconds.to_string())
}

fn mark(is_valid: bool) -> String {
    if is_valid { String::new() } else { "!".into() }
}

/// A table whose first columns are text and whose others are numbers; `None` without rows.
fn table(header: &[&str], text_columns: usize, rows: impl Iterator<Item = Vec<String>>) -> Option<Table> {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(Cell::new));
    rows.for_each(|row| {
        table.add_row(row.into_iter().map(Cell::new));
    });
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (!table.is_empty()).then_some(table)
}
