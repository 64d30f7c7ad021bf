//! Single calls: throughput, latency and CPU time per call, in closed and open loops.

use super::figures::{median_cpu, median_latency, median_of, median_ratio, total_cpu};
use super::load::{Pace, Run, Source};
use super::process::ServerProcess;
use super::recorder::{CpuPerCall, Measurement, Percentiles};
use super::workload::{CallKind, Workload};
use super::world::reply_bytes;
use super::{ClosedLoad, Failure, Session, connect};
use serde::Serialize;

/// Number of connections of an open loop.
const OPEN_LOOP_CONNECTIONS: usize = 16;

/// How calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    Closed(ClosedLoad),
    /// Calls per second.
    Open {
        per_second: u32,
    },
}

impl Load {
    fn connections(self) -> usize {
        match self {
            Self::Closed(load) => load.connections,
            Self::Open { .. } => OPEN_LOOP_CONNECTIONS,
        }
    }

    pub fn pace(self) -> Pace {
        match self {
            Self::Closed(load) => Pace::Closed { in_flight: load.in_flight },
            Self::Open { per_second } => Pace::Open { per_second: per_second.into() },
        }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(ClosedLoad { connections, in_flight }) => {
                write!(formatter, "{in_flight} in flight on {connections}")
            }
            Self::Open { per_second } => write!(formatter, "{per_second}/s"),
        }
    }
}

/// The medians of the rounds of one call at one load.
#[derive(Debug, Serialize)]
pub struct UnaryFigure {
    pub call: CallKind,
    pub load: Load,
    pub calls_per_s: f64,
    /// Median of the ratios to the yardstick of the same round: the share of its throughput.
    pub throughput_ratio: f64,
    pub latency_us: Percentiles,
    pub cpu_us: Option<CpuPerCall>,
    /// Median of the ratios to the yardstick of the same round: the multiple of its CPU time.
    pub cpu_ratio: Option<f64>,
    pub server_share: Option<f64>,
    pub generator_share: f64,
    pub is_valid: bool,
    pub errors: u64,
    pub rounds: Vec<Measurement>,
}

impl UnaryFigure {
    fn new(call: CallKind, load: Load, rounds: Vec<Measurement>, yardsticks: &[Measurement]) -> Self {
        let throughput = |round: &Measurement| Some(round.calls_per_s);
        Self {
            call,
            load,
            calls_per_s: median_of(&rounds, throughput).unwrap_or_default(),
            throughput_ratio: median_ratio(&rounds, yardsticks, throughput).unwrap_or_default(),
            latency_us: median_latency(&rounds, |round| round.latency_us),
            cpu_us: median_cpu(&rounds),
            cpu_ratio: median_ratio(&rounds, yardsticks, total_cpu),
            server_share: median_of(&rounds, |round| round.server_share),
            generator_share: median_of(&rounds, |round| Some(round.generator_share)).unwrap_or_default(),
            is_valid: rounds.iter().all(|round| round.is_valid),
            errors: rounds.iter().map(|round| round.errors).sum(),
            rounds,
        }
    }
}

/// The servers of the suite.
struct Servers {
    slotcast: ServerProcess,
    yardstick: ServerProcess,
}

/// Measures all calls at all loads. In each round, the calls take turns at one load, so that a figure and its yardstick
/// are measured within seconds.
pub fn measure(session: &Session<'_>) -> Result<Vec<UnaryFigure>, Failure> {
    let options = session.options;
    let world = session.world(options.inventories)?;
    let rates = options.rates.iter().filter(|rate| **rate > 0);
    let open = rates.map(|rate| Load::Open { per_second: *rate });
    let loads: Vec<Load> = options.loads.iter().map(|load| Load::Closed(*load)).chain(open).collect();
    let mut calls = options.calls.clone();
    if !calls.contains(&CallKind::Echo) {
        // Each figure has a ratio to it.
        calls.insert(0, CallKind::Echo);
    }
    session.progress.inc_length(loads.len() as u64 * calls.len() as u64 * u64::from(options.runs));
    let servers = Servers {
        slotcast: session.launcher.start_server(&world, 0, &[])?,
        yardstick: session.launcher.start_yardstick(reply_bytes(&world))?,
    };
    let mut workloads: Vec<Workload> = calls.iter().map(|kind| Workload::new(*kind, world.clone())).collect();
    let mut figures = Vec::new();
    for load in loads {
        let mut rounds: Vec<Vec<Measurement>> = vec![Vec::new(); calls.len()];
        for _ in 0..options.runs {
            for ((kind, workload), measured) in calls.iter().zip(&mut workloads).zip(&mut rounds) {
                session.step(format!("{}, {load}", kind.title()));
                measured.push(measure_once(session, &servers, load, *kind, workload)?);
            }
        }
        let echo = calls.iter().position(|kind| kind.is_of_the_yardstick()).unwrap_or_default();
        let yardsticks = rounds[echo].clone();
        figures
            .extend(calls.iter().zip(rounds).map(|(kind, rounds)| UnaryFigure::new(*kind, load, rounds, &yardsticks)));
    }
    Ok(figures)
}

fn measure_once(
    session: &Session<'_>,
    servers: &Servers,
    load: Load,
    kind: CallKind,
    workload: &mut Workload,
) -> Result<Measurement, Failure> {
    let server = if kind.is_of_the_yardstick() { &servers.yardstick } else { &servers.slotcast };
    let mut connections = connect(server, load.connections())?;
    let sources = vec![Source::new(&mut connections, workload, load.pace())];
    let run = Run { sources, subscribers: None, server: Some(server.pid()), interrupted: &session.interrupted };
    let measurements = run.measure(session.phases())?;
    measurements.into_iter().next().ok_or_else(|| "nothing was measured".into())
}
