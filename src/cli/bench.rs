//! `slotcast bench`: measures throughput, latency and CPU time per operation.

mod cores;
mod cpu;
mod figures;
mod http2;
mod load;
mod mixed;
mod plot;
mod process;
mod recorder;
mod report;
mod streams;
mod subscribers;
mod sync;
mod unary;
mod workload;
mod world;
pub mod yardstick;
mod zipf;

use super::output::print;
use super::signals;
use super::{CommandResult, demo};
use crate::catalog_file;
use clap::ValueEnum;
use cores::Cores;
use http2::{Connection, RequestHeaders};
use indicatif::{ProgressBar, ProgressStyle};
use load::{InFlight, Phases};
use process::{Launcher, ServerProcess};
use report::Report;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use workload::CallKind;
use world::World;

type Failure = Box<dyn Error + Send + Sync>;

/// Buffer for received bytes of each connection that makes calls.
const BUFFER_BYTES: usize = 256 << 10;
/// Share of a measurement that precedes it without being measured.
const WARM_UP_SHARE: f64 = 0.2;

/// Measure throughput, latency and the server's CPU time per operation.
///
/// Starts servers of this executable with temporary stores, pinned to one core, and loads them from another core. Each
/// figure is printed with its ratio to a yardstick from the same run: bare tonic with messages of the same size. Rounds of all
/// measurements alternate, and the medians are printed. Build with --release, and leave the machine otherwise idle.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// What to measure.
    #[arg(value_enum, default_value = "unary")]
    suites: Vec<Suite>,
    /// Write all figures as JSON to a file; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots as SVG files into a directory.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Duration of each measurement, in seconds, after a warm-up of a fifth of it.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Number of rounds. The medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// Number of inventories that calls name.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    inventories: u32,
    /// Calls that `unary` measures.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["echo", "get", "add", "transfer", "transfer-zipf"])]
    calls: Vec<CallKind>,
    /// Closed loops that `unary` measures: connections x calls in flight over all of them.
    #[arg(long, value_delimiter = ',', default_values = ["1x1", "4x64", "16x256"], value_parser = closed_loop)]
    loads: Vec<ClosedLoad>,
    /// Open loops that `unary` measures, over 16 connections: calls per second. 0 measures none.
    #[arg(long, value_delimiter = ',', default_values = ["1000", "5000", "20000"])]
    rates: Vec<u32>,
    /// Numbers of open streams that `streams` measures, over 100 connections.
    #[arg(long, value_delimiter = ',', default_values = ["10000", "50000"], value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    streams: Vec<u32>,
    /// Mutations per second that `streams` measures, spread over the watched inventories.
    #[arg(long, value_delimiter = ',', default_values = ["1000", "5000", "20000"], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    mutations: Vec<u32>,
    /// Number of players that `sync` measures.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    players: u32,
    /// Reads of missing ids per second that `mixed` measures beside mutations.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    reads: u32,
    /// Number of inventories in the large store of `scale`.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(2..=9_999_999))]
    stored: u32,
    /// Let the operating system place the servers and the load generator.
    #[arg(long)]
    unpinned: bool,
    /// Measure the server of another executable, for example of another version.
    #[arg(long, value_name = "FILE")]
    executable: Option<PathBuf>,
    /// Directory of the temporary stores. Its disk is part of what is measured. Default: the system's.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Further arguments of `slotcast serve`, after `--`.
    #[arg(last = true)]
    serve_arguments: Vec<String>,
}

/// A group of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Single calls in closed and open loops.
    Unary,
    /// Idle streams, and mutations that each cause a frame.
    Streams,
    /// Players that watch and change their own inventories: what syncing costs.
    Sync,
    /// Mutations with and without reads of missing ids beside them.
    Mixed,
    /// Mutations of the same inventories in a small and a large store.
    Scale,
    /// A server on one core and on all cores.
    Cores,
    /// Bytes for each trace, as in `slotcast demo`; always those of this executable.
    Bytes,
    /// All of these.
    All,
}

/// A closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ClosedLoad {
    pub connections: usize,
    /// Calls in flight over all connections.
    pub in_flight: usize,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number")?;
    if (0.05..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0.05 to 3600".into()) }
}

fn closed_loop(text: &str) -> Result<ClosedLoad, String> {
    let parsed = text.split_once('x').and_then(|(connections, in_flight)| {
        Some(ClosedLoad { connections: connections.parse().ok()?, in_flight: in_flight.parse().ok()? })
    });
    match parsed {
        Some(load)
            if (1..=1_000).contains(&load.connections) && (load.connections..=100_000).contains(&load.in_flight) =>
        {
            Ok(load)
        }
        _ => Err("must be CONNECTIONSxCALLS, such as 4x64, with at least one call for each connection".into()),
    }
}

impl Bench {
    pub async fn run(self) -> CommandResult {
        let interrupted = interrupt_flag()?;
        let measured = tokio::task::spawn_blocking(move || {
            let report = self.measure(interrupted)?;
            self.write(&report)?;
            Ok::<_, Failure>(report)
        });
        let report = measured.await?.map_err(|error| error as Box<dyn Error>)?;
        report.check().map_err(Into::into)
    }

    /// Runs on one thread, which is the load generator.
    fn measure(&self, interrupted: Arc<AtomicBool>) -> Result<Report, Failure> {
        let cores = Cores::select(self.unpinned);
        cores::use_exact_timeouts();
        let launcher = Launcher {
            executable: self.executable.clone().map_or_else(std::env::current_exe, Ok)?,
            cores,
            serve_arguments: self.serve_arguments.clone(),
            directory: self.directory.clone().unwrap_or_else(std::env::temp_dir),
        };
        let bench = Session { options: self, launcher, interrupted, progress: progress() };
        let mut report = Report::new(cores, self.seconds, self.runs);
        let is_selected = |suite| self.suites.iter().any(|selected| [suite, Suite::All].contains(selected));
        if is_selected(Suite::Unary) {
            report.unary = unary::measure(&bench)?;
        }
        if is_selected(Suite::Streams) {
            report.streams = streams::measure(&bench)?;
        }
        if is_selected(Suite::Sync) {
            report.sync = sync::measure(&bench)?;
        }
        if is_selected(Suite::Mixed) {
            report.mixed = mixed::measure_missing_reads(&bench)?;
        }
        if is_selected(Suite::Scale) {
            report.scale = mixed::measure_scale(&bench)?;
        }
        if is_selected(Suite::Cores) {
            report.all_cores = mixed::measure_cores(&bench)?;
        }
        bench.progress.finish_and_clear();
        if is_selected(Suite::Bytes) {
            let played = Handle::current().block_on(demo::play_traces());
            report.bytes = Some(played.map_err(|error| error.to_string())?);
        }
        Ok(report)
    }

    fn write(&self, report: &Report) -> Result<(), Failure> {
        if let Some(directory) = &self.plots {
            plot::write(report, directory)?;
        }
        match &self.json {
            Some(path) if path.as_os_str() == "-" => print(serde_json::to_string_pretty(report)?)?,
            Some(path) => {
                std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                print(report)?;
            }
            None => print(report)?,
        }
        Ok(())
    }
}

/// What all measurements use.
struct Session<'a> {
    options: &'a Bench,
    launcher: Launcher,
    interrupted: Arc<AtomicBool>,
    progress: ProgressBar,
}

impl Session<'_> {
    fn phases(&self) -> Phases {
        let measured = Duration::from_secs_f64(self.options.seconds);
        Phases { warm_up: measured.mul_f64(WARM_UP_SHARE), measured }
    }

    fn world(&self, active: u32) -> Result<World, String> {
        World::new("bench-", active, &catalog_file::default_catalog())
    }

    /// Shows what is measured now.
    fn step(&self, text: String) {
        self.progress.set_message(text);
        self.progress.inc(1);
    }
}

/// The requests' headers for a server.
fn headers(address: SocketAddr) -> RequestHeaders {
    let metadata = [("user-agent", "slotcast-bench"), (crate::wire::CALLER_METADATA, "bench")];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    RequestHeaders { authority: address.to_string(), metadata }
}

/// Opens connections to a server.
fn connect(server: &ServerProcess, connections: usize) -> Result<Vec<Connection<InFlight>>, String> {
    let open = || Connection::open(server.address, headers(server.address), BUFFER_BYTES);
    let opened = (0..connections).map(|_| open()).collect::<Result<_, _>>();
    opened.map_err(|error| format!("cannot connect to {}: {error}", server.address))
}

/// Returns a flag that is set on Ctrl-C and SIGTERM, so that the servers are stopped and the stores removed.
fn interrupt_flag() -> std::io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::<AtomicBool>::default();
    let flag = interrupted.clone();
    let arrived = signals::interrupted()?;
    tokio::spawn(async move {
        arrived.await;
        flag.store(true, Ordering::Relaxed);
    });
    Ok(interrupted)
}

/// A progress bar that is only drawn between measurements, so that it takes no CPU time from them.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_load_names_connections_and_calls() {
        assert_eq!(closed_loop("4x64"), Ok(ClosedLoad { connections: 4, in_flight: 64 }));
        for invalid in ["", "4", "x", "4x", "0x1", "4x3", "4x-1"] {
            assert!(closed_loop(invalid).is_err(), "{invalid}");
        }
    }
}
