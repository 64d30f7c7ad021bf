//! `slotcast watch`: shows inventories as they change, as a live grid or as lines.

mod grid;
mod lines;
mod screen;
mod state;

use super::call::failure::Failure;
use super::output::OutputError;
use super::{ClientArgs, CommandResult};
use crate::client::{Client, Rpc};
use crate::domain::ItemCode;
use crate::wire::v1;
use state::{InventoryPanel, PanelChange, Section, WatchState};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;
use tonic::{Code, Status};

/// How long to wait for the layout of a newly created inventory. Without the layout, its slots are shown as one block.
const LAYOUT_LIMIT: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Examples:
  slotcast watch steve
  slotcast watch steve chest-1 --server http://10.0.0.5:7400
  slotcast watch steve | grep -v heartbeat

Keys: q, Esc or Ctrl-C quits; arrows and Page Up/Down scroll.";

/// Watch inventories: as a live grid on a terminal, otherwise as one line per update.
///
/// The grid shows the contents of each slot and briefly marks slots that have changed. Its header shows the traffic of
/// the stream and the state of the connection. The command reconnects and resumes automatically. An inventory that does
/// not exist or may not be read is shown as absent until that changes. A line has the time since the start, the kind of
/// update, its size in bytes including gRPC's 5-byte prefix, and the changed slots.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Watch {
    /// Inventories to watch, all on one stream.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

impl Watch {
    pub async fn run(self) -> CommandResult {
        let client = self.client.client()?;
        let failed = |status| Failure::new(status, &self.client.server);
        let (state, layouts) = read_state(&client, &self.ids).await.map_err(failed)?;
        let follow = client.follow(self.ids.clone());
        let result = if std::io::stdout().is_terminal() {
            screen::run(state, layouts, follow, &self.client.server).await
        } else {
            lines::run(state, follow).await
        };
        result.map_err(|error| match error {
            WatchError::Stream(status) => failed(*status).into(),
            WatchError::Output(error) => error.into(),
        })
    }
}

/// Why the command ended before the user quit.
enum WatchError {
    Stream(Box<Status>),
    Output(OutputError),
}

impl From<Status> for WatchError {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

impl From<std::io::Error> for WatchError {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error.into())
    }
}

impl From<OutputError> for WatchError {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

/// The sections of the catalog's layouts, and a client that queries the layout of an inventory, which the stream does
/// not contain.
struct Layouts {
    rpc: Rpc,
    sections: HashMap<String, Vec<Section>>,
}

impl Layouts {
    /// Returns the sections of an inventory; empty if it is absent.
    async fn sections(&self, id: &str) -> Result<Vec<Section>, Status> {
        let request = v1::GetInventoryRequest { inventory_id: id.to_owned() };
        match self.rpc.clone().get_inventory(request).await {
            Ok(reply) => {
                let layout = reply.into_inner().inventory.unwrap_or_default().layout;
                Ok(self.sections.get(&layout).cloned().unwrap_or_default())
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::PermissionDenied) => Ok(Vec::new()),
            Err(status) => Err(status),
        }
    }

    /// Loads the sections of newly created inventories.
    async fn load_missing(&self, state: &mut WatchState, changes: &[PanelChange]) {
        for change in changes.iter().filter(|change| change.is_new_epoch) {
            let panel = &mut state.panels[change.panel];
            if !panel.has_current_sections()
                && let Ok(Ok(sections)) = tokio::time::timeout(LAYOUT_LIMIT, self.sections(&panel.id)).await
            {
                panel.set_sections(sections);
            }
        }
    }
}

async fn read_state(client: &Client, ids: &[String]) -> Result<(WatchState, Layouts), Status> {
    let mut rpc = client.rpc();
    let catalog = rpc.get_catalog(v1::GetCatalogRequest {}).await?.into_inner();
    let sections = catalog.layouts.iter().map(|layout| (layout.id.clone(), sections(layout))).collect();
    let layouts = Layouts { rpc, sections };
    let mut panels = Vec::new();
    for id in ids {
        panels.push(InventoryPanel::new(id, layouts.sections(id).await?));
    }
    let names: HashMap<ItemCode, String> =
        catalog.items.into_iter().filter_map(|item| Some((ItemCode::new(item.code)?, item.id))).collect();
    Ok((WatchState::new(names, panels), layouts))
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
