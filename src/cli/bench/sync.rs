//! What syncing costs: players that change their own inventories while they watch them.

use super::figures::{SyncFigure, SyncMode};
use super::load::Pace;
use super::process::ServerProcess;
use super::recorder::Measurement;
use super::streams::{FrameRound, frame_round, read_all};
use super::subscribers::{StreamKind, Subscribers};
use super::workload::{CallKind, Workload};
use super::world::World;
use super::{Failure, Session, connect, headers};

/// Changes of each player, per second.
const CHANGES_PER_SECOND: u32 = 4;
const CALL_CONNECTIONS: usize = 4;
const STREAM_CONNECTIONS_MAX: usize = 100;
/// Arguments that disable all sync features: every change is immediately sent as a full state.
const IMMEDIATE_FULL_ARGUMENTS: [&str; 3] =
    ["--sync-delta-percent=0", "--sync-debounce-percent=0", "--sync-prediction-percent=0"];

/// Measures both modes in turns: each with one subscriber, and with a subscriber for each player.
pub fn measure(session: &Session<'_>) -> Result<Vec<SyncFigure>, Failure> {
    let options = session.options;
    session.progress.inc_length(4 * u64::from(options.runs));
    let world = session.world(options.players)?;
    let mut mode_runs = Vec::new();
    for (mode, arguments) in [(SyncMode::ImmediateFull, &IMMEDIATE_FULL_ARGUMENTS[..]), (SyncMode::Deltas, &[])] {
        let server = session.launcher.start_server(&world, 0, arguments)?;
        read_all(session, &server, &world)?;
        let workload = Workload::new(CallKind::Add, world.clone()).in_turns().with_sessions();
        mode_runs.push(ModeRun { mode, server, workload, alone: Vec::new(), all: Vec::new() });
    }
    for _ in 0..options.runs {
        for mode_run in &mut mode_runs {
            for streams in [1, options.players] {
                session.step(format!("{}, {streams} subscribers", mode_run.mode.title()));
                let round = mode_run.round(session, &world, streams as usize)?;
                if streams == 1 { mode_run.alone.push(round.calls) } else { mode_run.all.push(round) }
            }
        }
    }
    Ok(SyncFigure::all(
        options.players,
        mode_runs.into_iter().map(|mode_run| (mode_run.mode, mode_run.alone, mode_run.all)).collect(),
    ))
}

/// One sync mode, with its server and its rounds.
struct ModeRun {
    mode: SyncMode,
    server: ServerProcess,
    workload: Workload,
    alone: Vec<Measurement>,
    all: Vec<FrameRound>,
}

impl ModeRun {
    fn round(&mut self, session: &Session<'_>, world: &World, streams: usize) -> Result<FrameRound, Failure> {
        let target = (self.server.address, &headers(self.server.address));
        let size = (streams.min(STREAM_CONNECTIONS_MAX), streams);
        let kind = StreamKind::Inventory { has_session: true };
        let mut subscribers = Subscribers::open(kind, target, size, world, &session.interrupted)?;
        let mut connections = connect(&self.server, CALL_CONNECTIONS)?;
        let pace = Pace::Open { per_second: f64::from(world.active * CHANGES_PER_SECOND) };
        frame_round(session, (&self.server, &mut subscribers), (&mut connections, &mut self.workload), pace)
    }
}
