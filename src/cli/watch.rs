//! `slotcast watch`.
use super::{CommandResult, Target};

/// Follows an inventory as a live grid.
#[derive(Debug, clap::Args)]
pub struct Watch {
    #[command(flatten)]
    target: Target,
}

impl Watch {
    pub async fn run(self) -> CommandResult {
        drop(self.target.client()?);
        Ok(())
    }
}
