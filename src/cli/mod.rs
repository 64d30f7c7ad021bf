//! The commands, one per file.

// `println!` panics when the reader has closed the pipe; `output::print` does not.
#![deny(clippy::print_stdout)]

mod at;
mod backup;
mod bench;
mod call;
mod config;
mod data;
mod demo;
mod dev_credentials;
mod export;
mod fsck;
mod history;
mod import;
mod item_names;
mod output;
mod play;
mod prepare;
mod replay;
mod restore;
mod rollout;
mod serve;
mod settings;
mod signals;
mod supply;
mod timestamp;
mod top;
pub mod trace;
mod watch;

use crate::client::{Client, ClientError, ClientOptions};
use clap::{Args, Parser, Subcommand};
use output::OutputError;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Builder;

type CommandResult = Result<(), Box<dyn std::error::Error>>;

/// The error of a command that has already logged why it failed.
#[derive(Debug, thiserror::Error)]
#[error("see the log")]
struct Reported;

/// An authoritative inventory service for game backends.
#[derive(Debug, Parser)]
#[command(name = "slotcast", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Config(config::Config),
    DevCredentials(dev_credentials::DevCredentials),
    Demo(demo::Demo),
    Replay(replay::Replay),
    Watch(watch::Watch),
    Call(call::Call),
    Rollout(rollout::Rollout),
    Top(top::Top),
    History(history::History),
    At(at::At),
    Supply(supply::Supply),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Export(export::Export),
    Import(import::Import),
    Fsck(fsck::Fsck),
    Bench(bench::Bench),
    #[command(hide = true)]
    BenchYardstick(bench::yardstick::Yardstick),
}

/// The server to call, and the credentials to use.
#[derive(Debug, Args)]
struct ClientArgs {
    /// Address of the server.
    #[arg(long, default_value = "http://127.0.0.1:7400", env = "SLOTCAST_SERVER")]
    server: String,
    /// Name of this caller. Idempotency keys are scoped to it.
    #[arg(long, default_value = "slotcast-cli", env = "SLOTCAST_CALLER")]
    caller: String,
    /// PEM file with the root certificates that verify the server. Default: the system's root certificates.
    #[arg(long, env = "SLOTCAST_CA")]
    ca: Option<PathBuf>,
    /// PEM file with the client certificate. Requires --certificate-key.
    #[arg(long, env = "SLOTCAST_CERTIFICATE")]
    certificate: Option<PathBuf>,
    /// PEM file with the private key of the client certificate.
    #[arg(long, env = "SLOTCAST_CERTIFICATE_KEY")]
    certificate_key: Option<PathBuf>,
    /// File with a bearer token to send with each call. The command rereads the file while it runs.
    #[arg(long, env = "SLOTCAST_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl ClientArgs {
    fn client(&self) -> Result<Client, ClientError> {
        Client::open(&ClientOptions {
            add_metadata: None,
            uri: self.server.clone(),
            caller: self.caller.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.certificate_key.clone(),
            token_file: self.token_file.clone(),
        })
    }
}

/// Parses the arguments of this process, runs the command, and prints an error if it fails.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    // Connections are fastest on single-threaded runtimes; the server starts one for each further thread.
    let is_server = matches!(cli.command, Command::Serve(_));
    let mut runtime = if is_server { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("slotcast: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(command) => command.run().await,
            Command::Config(command) => command.run(),
            Command::DevCredentials(command) => command.run(),
            Command::Demo(command) => command.run().await,
            Command::Replay(command) => command.run().await,
            Command::Watch(command) => command.run().await,
            Command::Call(command) => command.run().await,
            Command::Rollout(command) => command.run().await,
            Command::Top(command) => command.run().await,
            Command::History(command) => command.run(),
            Command::At(command) => command.run(),
            Command::Supply(command) => command.run(),
            Command::Backup(command) => command.run(),
            Command::Restore(command) => command.run(),
            Command::Export(command) => command.run(),
            Command::Import(command) => command.run(),
            Command::Fsck(command) => command.run(),
            Command::Bench(command) => command.run().await,
            Command::BenchYardstick(command) => command.run().await,
        }
    });
    // Do not wait for tasks that exceeded the drain limit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => ExitCode::SUCCESS,
        Err(error) if error.is::<Reported>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("slotcast: {error}");
            ExitCode::FAILURE
        }
    }
}
