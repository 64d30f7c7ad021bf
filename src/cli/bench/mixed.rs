//! Mutations beside other load, on stores of several sizes, and on all cores.

use super::cores::Cores;
use super::cpu::resident_bytes;
use super::figures::{CoresFigure, MixedFigure, MixedRounds, ScaleFigure};
use super::load::{Pace, Run, Source};
use super::process::{Launcher, ServerProcess};
use super::recorder::Measurement;
use super::streams::read_all;
use super::unary::Load;
use super::workload::{CallKind, Workload};
use super::world::World;
use super::{ClosedLoad, Failure, Session, connect};

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;
/// Enough calls in flight for a server on all cores.
const IN_FLIGHT_MANY: usize = 256;

/// How the mutations beside reads are made. One core can serve about 4,000 mutations a second beside 10,000 reads; the closed
/// loop uses the whole core.
const LOADS_BESIDE_READS: [Load; 3] = [
    Load::Open { per_second: 1_000 },
    Load::Open { per_second: 2_000 },
    Load::Closed(ClosedLoad { connections: CONNECTIONS, in_flight: IN_FLIGHT }),
];

/// Measures mutations with and without reads of missing ids beside them, in turns.
pub fn measure_missing_reads(session: &Session<'_>) -> Result<Vec<MixedFigure>, Failure> {
    session.progress.inc_length(2 * LOADS_BESIDE_READS.len() as u64 * u64::from(session.options.runs));
    let world = session.world(session.options.inventories)?;
    LOADS_BESIDE_READS.into_iter().map(|load| measure_beside_reads(session, &world, load)).collect()
}

fn measure_beside_reads(session: &Session<'_>, world: &World, load: Load) -> Result<MixedFigure, Failure> {
    let options = session.options;
    let server = session.launcher.start_server(world, 0, &[])?;
    read_all(session, &server, world)?;
    let mut mutations = Workload::new(CallKind::Add, world.clone());
    let mut reads = Workload::new(CallKind::GetMissing, world.clone());
    let mut rounds = MixedRounds::default();
    for _ in 0..options.runs {
        session.step(format!("AddItem alone, {load}"));
        rounds.without_reads.extend(round(session, &server, &mut mutations, None, load.pace())?);
        rounds.resident_bytes.push(resident_bytes(server.pid())?);
        session.step(format!("AddItem, {load}, beside {} reads/s of missing ids", options.reads));
        let both = round(session, &server, &mut mutations, Some(&mut reads), load.pace())?;
        rounds.resident_bytes.push(resident_bytes(server.pid())?);
        let mut both = both.into_iter();
        rounds.with_reads.extend(both.next());
        rounds.reads.extend(both.next());
    }
    Ok(MixedFigure::new(load, options.reads, rounds))
}

/// Measures mutations of the same inventories in a small and in a large store, in turns.
pub fn measure_scale(session: &Session<'_>) -> Result<Vec<ScaleFigure>, Failure> {
    let options = session.options;
    let sizes = [options.inventories, options.stored.max(options.inventories)];
    session.progress.inc_length(2 + 2 * u64::from(options.runs));
    let world = session.world(options.inventories)?;
    let mut servers = Vec::new();
    for stored in sizes {
        session.step(format!("importing {stored} inventories"));
        let server = session.launcher.start_server(&world, stored, &[])?;
        read_all(session, &server, &world)?;
        servers.push((server, Workload::new(CallKind::Add, world.clone()), Vec::new()));
    }
    for _ in 0..options.runs {
        for ((server, workload, rounds), stored) in servers.iter_mut().zip(sizes) {
            session.step(format!("AddItem, {stored} inventories stored"));
            rounds.extend(round(session, server, workload, None, Pace::Closed { in_flight: IN_FLIGHT })?);
        }
    }
    let rounds = servers.into_iter().map(|(.., rounds)| rounds);
    Ok(ScaleFigure::all(options.inventories, sizes.into_iter().zip(rounds).collect()))
}

/// Measures calls with the server on one core, and with the server and the load generator free on all cores, in turns.
pub fn measure_cores(session: &Session<'_>) -> Result<Vec<CoresFigure>, Failure> {
    let options = session.options;
    let calls = [CallKind::Get, CallKind::Add];
    session.progress.inc_length(2 * calls.len() as u64 * u64::from(options.runs));
    let world = session.world(options.inventories)?;
    let free = Launcher { cores: Cores::Unpinned("all cores"), ..session.launcher.clone() };
    let launchers = [&session.launcher, &free];
    let mut servers = Vec::new();
    for launcher in launchers {
        let server = launcher.start_server(&world, 0, &[])?;
        read_all(session, &server, &world)?;
        servers.push(server);
    }
    let mut figures = Vec::new();
    for kind in calls {
        let mut workloads = [kind; 2].map(|kind| Workload::new(kind, world.clone()));
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..options.runs {
            for (index, launcher) in launchers.into_iter().enumerate() {
                session.step(format!("{}, {}", kind.title(), launcher.cores));
                launcher.cores.enter_generator()?;
                let server = &servers[index];
                let pace = Pace::Closed { in_flight: IN_FLIGHT_MANY };
                rounds[index].extend(round(session, server, &mut workloads[index], None, pace)?);
            }
        }
        let [pinned, free] = rounds;
        figures.push(CoresFigure::new(kind, pinned, free));
    }
    session.launcher.cores.enter_generator()?;
    Ok(figures)
}

/// Measures calls at a pace and, if `reads` is given, reads in an open loop at the same time.
fn round(
    session: &Session<'_>,
    server: &ServerProcess,
    calls: &mut Workload,
    reads: Option<&mut Workload>,
    pace: Pace,
) -> Result<Vec<Measurement>, Failure> {
    let mut connections = connect(server, CONNECTIONS)?;
    let mut read_connections = connect(server, CONNECTIONS)?;
    let mut sources = vec![Source::new(&mut connections, calls, pace)];
    if let Some(reads) = reads {
        let pace = Pace::Open { per_second: session.options.reads.into() };
        sources.push(Source::new(&mut read_connections, reads, pace));
    }
    let run = Run { sources, subscribers: None, server: Some(server.pid()), interrupted: &session.interrupted };
    Ok(run.measure(session.phases())?)
}
