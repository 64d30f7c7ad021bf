//! `slotcast serve`: the service.

use super::CommandResult;
use crate::catalog_file;
use crate::config::{self, LiveRollout, Reload};
use crate::grpc::streams::StreamSettings;
use crate::middleware::AdmissionSettings;
use crate::server::{ServerSettings, serve};
use crate::store::embedded::{EmbeddedSettings, EmbeddedStore};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves inventories until SIGTERM or Ctrl-C.
///
/// Prints `listening on http://ADDRESS` to standard output once it does, and logs to standard error.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7400", env = "SLOTCAST_LISTEN")]
    listen: SocketAddr,
    /// The folder of the store; it is made if it is not there.
    #[arg(long, default_value = "slotcast-data", env = "SLOTCAST_DATA")]
    data: PathBuf,
    /// The catalog of items, recipes and layouts, as TOML; without, the built-in one.
    #[arg(long, env = "SLOTCAST_CATALOG")]
    catalog: Option<PathBuf>,
    /// How streams are served, as TOML; read again when it changes and on SIGHUP.
    #[arg(long, env = "SLOTCAST_CONFIG")]
    config: Option<PathBuf>,
    /// Print a documented settings file with what holds without one, and end.
    #[arg(long)]
    print_config: bool,
    /// How long calls may take to end after SIGTERM, in milliseconds.
    #[arg(long, default_value_t = 10_000, env = "SLOTCAST_DRAIN_LIMIT_MS")]
    drain_limit_ms: u64,
    /// Listen beyond loopback although callers are not verified: whoever reaches the port can do everything.
    #[arg(long, env = "SLOTCAST_WITHOUT_AUTHENTICATION")]
    without_authentication: bool,
    /// The most bytes that the store may take on disk; without, as many as there are.
    #[arg(long, env = "SLOTCAST_STORE_BYTES_MAX")]
    store_bytes_max: Option<u64>,
    /// How long idempotency keys are remembered, in seconds.
    #[arg(long, default_value_t = 900, env = "SLOTCAST_KEY_WINDOW_S")]
    key_window_s: u64,
    /// The most idempotency keys that are remembered; beyond, the oldest are forgotten earlier.
    #[arg(long, default_value_t = 1_000_000, env = "SLOTCAST_KEYS_MAX")]
    keys_max: usize,
    /// Streams that may be open for one player.
    #[arg(long, default_value_t = StreamSettings::default().per_player_max, env = "SLOTCAST_STREAMS_PER_PLAYER")]
    streams_per_player: u32,
    /// Streams that one caller may have open without naming a player.
    #[arg(long, default_value_t = StreamSettings::default().per_caller_max, env = "SLOTCAST_STREAMS_PER_CALLER")]
    streams_per_caller: u32,
    /// Requests that one caller may send in a second, in the long run; 0 is no limit.
    #[arg(long, default_value_t = AdmissionSettings::default().per_second, env = "SLOTCAST_REQUESTS_PER_SECOND")]
    requests_per_second: u32,
    /// Requests that one caller may send at once, after a rest.
    #[arg(long, default_value_t = AdmissionSettings::default().burst, env = "SLOTCAST_REQUESTS_BURST")]
    requests_burst: u32,
    /// Log lines as JSON.
    #[arg(long, env = "SLOTCAST_LOG_JSON")]
    log_json: bool,
}

impl Serve {
    pub async fn run(self) -> CommandResult {
        if self.print_config {
            print!("{}", config::DEFAULT);
            return Ok(());
        }
        self.log();
        if !self.listen.ip().is_loopback() && !self.without_authentication {
            return Err(format!(
                "{} can be reached from other machines, and callers are not verified; \
                 listen on 127.0.0.1, or say --without-authentication if the network keeps strangers out",
                self.listen
            )
            .into());
        }
        if !self.listen.ip().is_loopback() {
            tracing::warn!(listen = %self.listen, "callers are not verified: whoever reaches this port can do everything");
        }
        let catalog = match &self.catalog {
            Some(path) => catalog_file::read(path)?,
            None => catalog_file::default_catalog(),
        };
        let rollout = self.rollout()?;
        std::fs::create_dir_all(&self.data)
            .map_err(|error| format!("the folder {} cannot be made: {error}", self.data.display()))?;
        let settings = EmbeddedSettings {
            bytes_max: self.store_bytes_max,
            keys_max: self.keys_max,
            key_window: Duration::from_secs(self.key_window_s),
            ..EmbeddedSettings::default()
        };
        let store = EmbeddedStore::open(&self.data.join("slotcast.db"), settings)?;
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|error| format!("{} cannot be listened on: {error}; choose another with --listen", self.listen))?;
        println!("listening on http://{}", listener.local_addr()?);
        let settings = ServerSettings { rollout, ..self.server_settings() };
        serve(listener, Arc::new(store), Arc::new(catalog), settings, stop_signal()?).await?;
        tracing::info!("stopped");
        Ok(())
    }

    fn server_settings(&self) -> ServerSettings {
        ServerSettings {
            streams: StreamSettings {
                per_player_max: self.streams_per_player,
                per_caller_max: self.streams_per_caller,
            },
            admission: AdmissionSettings { per_second: self.requests_per_second, burst: self.requests_burst },
            drain_limit: Duration::from_millis(self.drain_limit_ms),
            ..ServerSettings::default()
        }
    }

    /// As the settings file says, now and whenever it changes.
    fn rollout(&self) -> Result<LiveRollout, Box<dyn std::error::Error>> {
        let Some(path) = &self.config else { return Ok(LiveRollout::default()) };
        let reload = Reload::open(path.clone())?;
        let rollout = reload.rollout().clone();
        tokio::spawn(config::follow(reload)?);
        Ok(rollout)
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

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
