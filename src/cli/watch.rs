//! `slotcast watch`: inventories as they change, as a live grid or as lines.

mod board;
mod grid;
mod lines;
mod screen;

use super::call::failure::Failure;
use super::output::OutputError;
use super::{CommandResult, Target};
use crate::client::Client;
use crate::domain::ItemCode;
use crate::grpc::v1;
use board::{Board, Panel, Section};
use std::collections::HashMap;
use std::io::IsTerminal;
use tonic::Status;

const AFTER_HELP: &str = "\
Examples:
  slotcast watch steve
  slotcast watch steve chest-1 --server http://10.0.0.5:7400
  slotcast watch steve | grep -v heartbeat

Keys: q, Esc or Ctrl-C quits; arrows and Page Up/Down scroll.";

/// Follows inventories: in a terminal as a live grid, otherwise as a line for each update.
///
/// The grid shows what each slot holds and marks for a moment what has just changed; above it stand what has come over the
/// stream and whether it is connected. It reconnects by itself and resumes. A line has the time since the start, the kind
/// of update, its bytes with gRPC's 5-byte prefix, and the slots that changed.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Watch {
    /// The inventories to follow, all on one stream.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Watch {
    pub async fn run(self) -> CommandResult {
        let client = self.target.client()?;
        let failed = |status| Failure::new(status, &self.target.server);
        let board = read_board(&client, &self.ids).await.map_err(failed)?;
        let follow = client.follow(self.ids.clone());
        let ended = if std::io::stdout().is_terminal() {
            screen::run(board, follow, &self.target.server).await
        } else {
            lines::run(board, follow).await
        };
        ended.map_err(|ended| match ended {
            Ended::Stream(status) => failed(*status).into(),
            Ended::Output(error) => error.into(),
        })
    }
}

/// Why following came to an end that nobody asked for.
enum Ended {
    Stream(Box<Status>),
    Output(OutputError),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error.into())
    }
}

impl From<OutputError> for Ended {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

/// What the stream leaves out because it never changes: names and sections.
async fn read_board(client: &Client, ids: &[String]) -> Result<Board, Status> {
    let mut rpc = client.rpc();
    let catalog = rpc.get_catalog(v1::GetCatalogRequest {}).await?.into_inner();
    let mut panels = Vec::new();
    for id in ids {
        let request = v1::GetInventoryRequest { inventory_id: id.clone() };
        let inventory = rpc.get_inventory(request).await?.into_inner().inventory.unwrap_or_default();
        let layout = catalog.layouts.iter().find(|layout| layout.id == inventory.layout);
        let sections = layout.map(sections).unwrap_or_default();
        panels.push(Panel::new(id, sections));
    }
    let names: HashMap<ItemCode, String> =
        catalog.items.into_iter().filter_map(|item| Some((ItemCode::new(item.code)?, item.id))).collect();
    Ok(Board::new(names, panels))
}

fn sections(layout: &v1::Layout) -> Vec<Section> {
    layout
        .sections
        .iter()
        .scan(0, |first, section| {
            let slots = u16::try_from(section.slots).unwrap_or(u16::MAX);
            let read = Section { name: section.name.clone(), first: *first, slots };
            *first = first.saturating_add(slots);
            Some(read)
        })
        .collect()
}
