//! `slotcast replay`: plays a trace on a running server.

use super::call::failure::Failure;
use super::output::print;
use super::play::{PlayError, TraceRun, progress_bar};
use super::trace::{Trace, World, baseline_bytes};
use super::{ClientArgs, CommandResult};
use crate::client::new_mutation_context;
use crate::wire::v1;
use crate::wire::v1::operation::Operation;
use serde_json::json;
use uuid::Uuid;

/// Play a trace on a running server in real time, and report the traffic of its stream.
///
/// The trace is a file with one operation per line, or the name of a built-in trace (drop-8-in-2s, hold-q-20-in-3s,
/// craft-10-in-2s, chest-10-in-3s, drag-drop-15-in-2s, chest-craft-drop-20-in-2s). The command creates inventories for
/// the trace and deletes them afterwards. Like a player's client, it names a session on the stream and on the
/// operations, so that the server may delay echoes of its own changes: the figures are those of `deltas` in the README
/// and in `slotcast demo`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Trace file, or name of a built-in trace.
    trace: String,
    #[command(flatten)]
    client: ClientArgs,
    /// Keep the inventories afterwards.
    #[arg(long)]
    keep: bool,
    /// Play the trace as changes by others: without a session on the stream and on the operations, so that every change
    /// is news to the stream and is sent within 100 ms instead of within a second.
    #[arg(long)]
    without_session: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub async fn run(self) -> CommandResult {
        let trace = Trace::load(&self.trace)?;
        let world = World::built_in();
        let baseline_bytes = baseline_bytes(&trace, &world)?;
        let client = self.client.client()?;
        let progress = progress_bar(trace.steps.len(), &trace.name);
        let prefix = format!("replay/{}/", Uuid::now_v7());
        let session = if self.without_session { "" } else { prefix.as_str() };
        let play =
            TraceRun { client: &client, trace: &trace, world: &world, prefix: &prefix, session, progress: &progress };
        let played = play.run().await.map_err(|error| with_details(error, &self.client.server))?;
        progress.finish_and_clear();
        if !self.keep {
            for (id, _) in &played.replicas {
                let delete = v1::DeleteInventory { inventory_id: id.clone() };
                client
                    .mutate(new_mutation_context(), Operation::Delete(delete))
                    .await
                    .map_err(|status| Failure::new(status, &self.client.server))?;
            }
        }
        let (ops, syncs, bytes, desyncs) = (trace.steps.len(), played.syncs, played.bytes, played.desyncs);
        if self.json {
            let name = &trace.name;
            print(
                json!({"name": name, "ops": ops, "baseline_bytes": baseline_bytes, "syncs": syncs, "bytes": bytes, "desyncs": desyncs}),
            )?;
        } else {
            print(format_args!("{}: {ops} operations, {syncs} syncs, {bytes} bytes, {desyncs} desyncs", trace.name))?;
            print(format_args!(
                "The baseline (every slot as JSON after each operation) would have sent {baseline_bytes} bytes."
            ))?;
            if self.keep {
                played.replicas.iter().try_for_each(|(id, _)| print(format_args!("Kept: {id}")))?;
            }
        }
        if desyncs > 0 { Err(format!("{desyncs} desyncs").into()) } else { Ok(()) }
    }
}

/// Adds the address of the server and all details of the status.
fn with_details(error: PlayError, server: &str) -> Box<dyn std::error::Error> {
    match error {
        PlayError::Call(status) => Failure::new(status, server).into(),
        PlayError::Trace(_) | PlayError::Session(_) | PlayError::Timeout { .. } => error.into(),
    }
}
