//! Streams: memory and CPU time of idle ones, and what a mutation with its frame costs.

use super::cpu::{CpuTimes, resident_bytes};
use super::figures::{FrameFigure, IdleFigure};
use super::http2::Connection;
use super::load::{InFlight, Pace, Run, Source};
use super::process::ServerProcess;
use super::recorder::{Measurement, Percentiles};
use super::subscribers::{StreamKind, Subscribers};
use super::workload::{CallKind, Workload};
use super::world::{World, reply_bytes};
use super::{Failure, Session, connect, headers};
use serde::Serialize;

/// Maximum number of connections that the streams share.
const STREAM_CONNECTIONS_MAX: usize = 100;
/// Number of connections that the mutations share.
const CALL_CONNECTIONS: usize = 4;
/// Calls in flight while all inventories are read once.
const WARM_UP_IN_FLIGHT: usize = 64;

/// One measurement of mutations beside open streams.
#[derive(Debug, Clone, Serialize)]
pub struct FrameRound {
    #[serde(flatten)]
    pub calls: Measurement,
    pub frames_per_s: f64,
    /// Mean size of a frame without its framing, in bytes.
    pub frame_bytes: f64,
    /// Time from the reply to a mutation to the frame with its change, at the generator.
    pub frame_us: Percentiles,
}

/// The results of the suite.
#[derive(Debug, Default, Serialize)]
pub struct StreamFigures {
    pub idle: Vec<IdleFigure>,
    pub frames: Vec<FrameFigure>,
}

/// Measures each number of streams with servers of its own.
pub fn measure(session: &Session<'_>) -> Result<StreamFigures, Failure> {
    let options = session.options;
    let mutations = options.mutations.len() as u64 * 2 * u64::from(options.runs);
    session.progress.inc_length(options.streams.len() as u64 * (2 + mutations));
    let mut figures = StreamFigures::default();
    for streams in &options.streams {
        let world = session.world(*streams)?;
        session.step(format!("opening {streams} bare streams"));
        let yardstick = session.launcher.start_yardstick(reply_bytes(&world))?;
        let mut bare = Side::open(session, yardstick, StreamKind::Bare, &world)?;
        session.step(format!("opening {streams} SubscribeInventory streams"));
        let server = session.launcher.start_server(&world, 0, &[])?;
        read_all(session, &server, &world)?;
        let mut subscribed = Side::open(session, server, StreamKind::Inventory { has_session: false }, &world)?;
        figures.idle.push(IdleFigure { streams: *streams, ..subscribed.idle.compared_with(&bare.idle) });
        for per_second in &options.mutations {
            let (mut bare_rounds, mut rounds) = (Vec::new(), Vec::new());
            for _ in 0..options.runs {
                session.step(format!("{streams} bare streams, {per_second} messages/s"));
                bare_rounds.push(bare.round(session, *per_second)?);
                subscribed.subscribers.serve()?;
                session.step(format!("{streams} streams, {per_second} mutations/s"));
                rounds.push(subscribed.round(session, *per_second)?);
                bare.subscribers.serve()?;
            }
            figures.frames.push(FrameFigure::new(*streams, *per_second, rounds, &bare_rounds));
        }
    }
    Ok(figures)
}

/// Reads all inventories once, so that their memory does not count as the streams'.
pub fn read_all(session: &Session<'_>, server: &ServerProcess, world: &World) -> Result<(), Failure> {
    let mut workload = Workload::new(CallKind::Get, world.clone()).in_turns();
    let mut connections = connect(server, CALL_CONNECTIONS)?;
    let pace = Pace::Closed { in_flight: WARM_UP_IN_FLIGHT };
    let sources = vec![Source::new(&mut connections, &mut workload, pace)];
    let run = Run { sources, subscribers: None, server: None, interrupted: &session.interrupted };
    Ok(run.complete(world.active.into())?)
}

/// A server with its open streams, and the calls that cause frames.
struct Side {
    server: ServerProcess,
    subscribers: Subscribers,
    connections: Vec<Connection<InFlight>>,
    workload: Workload,
    idle: IdleFigure,
}

impl Side {
    /// Opens the streams, and measures what that costs.
    fn open(session: &Session<'_>, server: ServerProcess, kind: StreamKind, world: &World) -> Result<Self, Failure> {
        let workload = match kind {
            StreamKind::Bare => Workload::new(CallKind::Echo, world.clone()).with_streams(),
            StreamKind::Inventory { .. } => Workload::new(CallKind::Add, world.clone()),
        };
        let streams = world.active as usize;
        let connections = streams.min(STREAM_CONNECTIONS_MAX);
        let before = (resident_bytes(server.pid())?, CpuTimes::of_process(server.pid())?);
        let target = (server.address, &headers(server.address));
        let subscribers = Subscribers::open(kind, target, (connections, streams), world, &session.interrupted)?;
        let after = (resident_bytes(server.pid())?, CpuTimes::of_process(server.pid())?);
        let idle = IdleFigure {
            streams: world.active,
            connections,
            kib_per_stream: after.0.saturating_sub(before.0) as f64 / 1_024.0 / streams as f64,
            open_cpu_us: (after.1 - before.1).total().as_secs_f64() * 1e6 / streams as f64,
            bare_kib_per_stream: None,
            bare_open_cpu_us: None,
        };
        let connections = connect(&server, CALL_CONNECTIONS)?;
        Ok(Self { server, subscribers, connections, workload, idle })
    }

    fn round(&mut self, session: &Session<'_>, per_second: u32) -> Result<FrameRound, Failure> {
        let pace = Pace::Open { per_second: per_second.into() };
        let target = (&self.server, &mut self.subscribers);
        frame_round(session, target, (&mut self.connections, &mut self.workload), pace)
    }
}

/// Measures mutations at some pace beside open streams.
pub fn frame_round(
    session: &Session<'_>,
    (server, subscribers): (&ServerProcess, &mut Subscribers),
    (connections, workload): (&mut [Connection<InFlight>], &mut Workload),
    pace: Pace,
) -> Result<FrameRound, Failure> {
    let phases = session.phases();
    let sources = vec![Source::new(connections, workload, pace)];
    let run = Run {
        sources,
        subscribers: Some(&mut *subscribers),
        server: Some(server.pid()),
        interrupted: &session.interrupted,
    };
    let calls = run.measure(phases)?.remove(0);
    if let Some(failure) = subscribers.take_failure() {
        return Err(failure.into());
    }
    let (frames, bytes) = subscribers.frames();
    Ok(FrameRound {
        calls,
        frames_per_s: frames as f64 / phases.measured.as_secs_f64(),
        frame_bytes: bytes as f64 / frames.max(1) as f64,
        frame_us: Percentiles::of(subscribers.latencies()),
    })
}
