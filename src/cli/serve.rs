//! `slotcast serve`: the service.

use super::CommandResult;
use super::settings::{SettingFlags, Settings};
use crate::catalog_file;
use crate::config::{self, Changed, Config, LiveRollout};
use crate::server::{ServerSettings, serve};
use crate::store::embedded::EmbeddedStore;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves inventories until SIGTERM or Ctrl-C.
///
/// Prints `listening on http://ADDRESS` to standard output once it does, and logs to standard error. What a settings file
/// says holds below what the environment says, and that below flags; `slotcast config` shows what comes of it.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    settings: SettingFlags,
    /// Log lines as JSON.
    #[arg(long, env = "SLOTCAST_LOG_JSON")]
    log_json: bool,
}

impl Serve {
    pub async fn run(self) -> CommandResult {
        self.log();
        let settings = self.settings.read()?;
        let config = settings.config().clone();
        if !config.listen.ip().is_loopback() {
            tracing::warn!(listen = %config.listen, "callers are not verified: whoever reaches this port can do everything");
        }
        let catalog = match &config.catalog {
            Some(path) => catalog_file::read(path)?,
            None => catalog_file::default_catalog(),
        };
        std::fs::create_dir_all(&config.data)
            .map_err(|error| format!("the folder {} cannot be made: {error}", config.data.display()))?;
        let store = EmbeddedStore::open(&config.data.join("slotcast.db"), config.store.clone())?;
        let listener = TcpListener::bind(config.listen).await.map_err(|error| {
            format!("{} cannot be listened on: {error}; choose another with --listen", config.listen)
        })?;
        println!("listening on http://{}", listener.local_addr()?);
        let server = server_settings(&config);
        follow(settings, server.rollout.clone())?;
        serve(listener, Arc::new(store), Arc::new(catalog), server, stop_signal()?).await?;
        tracing::info!("stopped");
        Ok(())
    }

    fn log(&self) {
        let filter = EnvFilter::try_from_env("SLOTCAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if self.log_json {
            log.json().init();
        } else {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
        }
    }
}

fn server_settings(config: &Config) -> ServerSettings {
    ServerSettings {
        rollout: LiveRollout::new(config.rollout.clone()),
        streams: config.streams,
        admission: config.admission,
        drain_limit: config.drain_limit,
        ..ServerSettings::default()
    }
}

/// What a settings file says of what may change holds from then on.
fn follow(settings: Settings, rollout: LiveRollout) -> std::io::Result<()> {
    let Settings::Followed(reload) = settings else { return Ok(()) };
    let followed = config::follow(*reload, move |read| {
        let Ok(Changed { config, path, reason }) = read else { return };
        let who = format!("the file {}", path.display());
        // It was checked when it was read.
        let _ = rollout.change(&who, reason, |_| Ok(config.rollout.clone()));
    })?;
    tokio::spawn(followed);
    Ok(())
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
