//! `slotcast call`.
use super::{CommandResult, Target};

/// Calls an RPC with a request in JSON and prints the reply.
#[derive(Debug, clap::Args)]
pub struct Call {
    #[command(flatten)]
    target: Target,
}

impl Call {
    pub async fn run(self) -> CommandResult {
        drop(self.target.client()?);
        Ok(())
    }
}
