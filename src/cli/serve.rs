//! `slotcast serve`: the service.

use super::CommandResult;
use super::data::unix_ms;
use super::output::print;
use super::settings::{SettingFlags, Settings};
use crate::catalog_file;
use crate::config::{self, Changed, Config, LiveRollout};
use crate::engine::new_epoch;
use crate::identity::{Authentication, IdentityError, Verifier};
use crate::server::{ServerSettings, serve};
use crate::statistics::Reloads;
use crate::store::embedded::{EmbeddedStore, tools};
use crate::telemetry::logs::LogFilter;
use crate::telemetry::{Exporters, Telemetry, logs};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long the end waits for the last traces, meters and logs to be sent.
const EXPORT_LIMIT: Duration = Duration::from_secs(3);

/// Serves inventories until SIGTERM or Ctrl-C.
///
/// Prints `listening on http://ADDRESS` (or https) and `admin listening on http://ADDRESS` to standard output once it does,
/// and logs to standard error. What a settings file says holds below what the environment says, and that below flags;
/// `slotcast config` shows what comes of it.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    settings: SettingFlags,
    /// Start although the write-ahead log is damaged, without the acknowledged commits behind the damage.
    ///
    /// Every inventory gets a new epoch, and the damaged files are kept under another name. Needs as much room again as the
    /// store takes. Without damage the flag has no effect; remove it after the start.
    #[arg(long)]
    accept_loss: bool,
}

impl Serve {
    pub async fn run(self) -> CommandResult {
        let settings = self.settings.read()?;
        let config = settings.config().clone();
        let exporters = Exporters::start(&config.telemetry)?;
        let filter = logs::install(&config.telemetry.log, exporters.as_ref())?;
        let telemetry = Telemetry::new(&config.telemetry, exporters.as_ref());
        let ended = run(settings, &config, telemetry.clone(), filter, self.accept_loss).await;
        if let Err(error) = &ended {
            tracing::error!(%error, "the service has ended");
        }
        if let Some(exporters) = exporters {
            exporters.shutdown(telemetry.meter_provider(), EXPORT_LIMIT).await;
        }
        ended
    }
}

async fn run(
    settings: Settings,
    config: &Config,
    telemetry: Telemetry,
    filter: LogFilter,
    accepts_loss: bool,
) -> CommandResult {
    warn_of_exposure(config);
    let catalog = match &config.catalog {
        Some(path) => catalog_file::read(path)?,
        None => catalog_file::default_catalog(),
    };
    let authentication = authentication(config)?;
    std::fs::create_dir_all(&config.data)
        .map_err(|error| format!("the folder {} cannot be made: {error}", config.data.display()))?;
    let path = config.data.join("slotcast.db");
    if accepts_loss {
        accept_loss(&path)?;
    }
    let store = EmbeddedStore::open(&path, config.store.clone())?;
    let listener = bind(config.listen, "--listen").await?;
    let admin_listener = bind(config.admin_listen, "--admin-listen").await?;
    let scheme = if config.transport.tls.is_some() { "https" } else { "http" };
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);
    // Whoever started it may not care to read this; the service goes on.
    let _ = print(format_args!("listening on {scheme}://{}\nadmin listening on http://{}", addresses.0, addresses.1));
    let server = ServerSettings {
        rollout: LiveRollout::new(config.rollout.clone()),
        streams: config.streams,
        admission: config.admission,
        transport: config.transport.clone(),
        authentication,
        telemetry,
        admin_listener: Some(Arc::new(admin_listener)),
        drain_delay: config.drain_delay,
        drain_limit: config.drain_limit,
        ..ServerSettings::default()
    };
    follow(settings, server.rollout.clone(), filter, server.config_reloads.clone())?;
    serve(listener, Arc::new(store), Arc::new(catalog), server, stop_signal()?).await?;
    tracing::info!("stopped");
    Ok(())
}

fn accept_loss(path: &Path) -> CommandResult {
    let mut go_on = |_| ControlFlow::Continue(());
    let Some(accepted) = tools::accept_loss(path, unix_ms() / 1_000, &mut new_epoch, &mut go_on)? else {
        tracing::info!("the write-ahead log is not damaged: --accept-loss has no effect");
        return Ok(());
    };
    tracing::error!(
        commits_lost_min = accepted.damage.commits,
        last_commit = accepted.last_seq,
        damaged_frame = accepted.damage.frame,
        damaged_byte = accepted.damage.offset,
        inventories = accepted.inventories,
        kept = %accepted.kept.unwrap_or_default().display(),
        "acknowledged commits were given up as --accept-loss says: every inventory has a new epoch"
    );
    Ok(())
}

/// What was asked for in so many words is said in so many words.
fn warn_of_exposure(config: &Config) {
    let listen = config.listen;
    if listen.ip().is_loopback() {
        return;
    }
    if !config.verifies_callers() {
        tracing::warn!(%listen, "callers are not verified: whoever reaches this port can do everything");
    }
    if config.transport.tls.is_none() {
        tracing::warn!(%listen, "nothing is encrypted: whoever is on the way can read and change everything");
    }
}

fn authentication(config: &Config) -> Result<Authentication, IdentityError> {
    if !config.verifies_callers() {
        return Ok(Authentication::None);
    }
    Verifier::open(config.identity.clone()).map(|verifier| Authentication::Verified(Arc::new(verifier)))
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| format!("{address} cannot be listened on: {error}; choose another with {flag}"))
}

/// What a settings file says of what may change holds from then on.
fn follow(settings: Settings, rollout: LiveRollout, filter: LogFilter, reloads: Arc<Reloads>) -> std::io::Result<()> {
    let Settings::Followed(reload) = settings else { return Ok(()) };
    let followed = config::follow(*reload, move |read| {
        let taken = read.is_ok_and(|changed| apply(&changed, &rollout, &filter));
        reloads.add(taken);
    })?;
    tokio::spawn(followed);
    Ok(())
}

/// False: not all of it could be set.
fn apply(Changed { config, path, reason }: &Changed<'_>, rollout: &LiveRollout, filter: &LogFilter) -> bool {
    let filtered = filter.set(&config.telemetry.log.filter);
    if let Err(error) = &filtered {
        tracing::error!(%error, "the log goes on as before");
    }
    let who = format!("the file {}", path.display());
    let changed = rollout.change(&who, reason, |_| Ok(config.rollout.clone()));
    filtered.is_ok() && changed.is_ok()
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
