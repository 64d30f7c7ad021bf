//! `slotcast serve`: runs the server.

use super::data::{STORE_FILE, unix_ms};
use super::output::print;
use super::prepare::{Prepared, prepare};
use super::settings::{SettingFlags, Settings};
use super::signals::Signals;
use super::{CommandResult, Reported};
use crate::config::{self, Config, Reloaded};
use crate::domain::Catalog;
use crate::engine::{EngineSettings, new_epoch};
use crate::live_rollout::LiveRollout;
use crate::server::{ServerSettings, serve};
use crate::statistics::Reloads;
use crate::store::embedded::{EmbeddedStore, tools};
use crate::telemetry::logs::LogFilter;
use crate::telemetry::{Exporters, LogFormat, LogSettings, Telemetry, logs};
use serde_json::json;
use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;

/// How long to wait at shutdown for the export of the last traces, metrics and logs.
const EXPORT_LIMIT: Duration = Duration::from_secs(3);

/// Serve inventories until SIGTERM or Ctrl-C.
///
/// When the server listens, it prints `listening on http://ADDRESS` (or https) and `admin listening on http://ADDRESS`
/// to standard output, or with `--log-format json` one JSON object with `address` and `admin_address`. It logs to
/// standard error. Precedence: flags, environment, settings file. `slotcast config` prints the effective settings and
/// their sources.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    settings: SettingFlags,
    /// Start despite a damaged write-ahead log, and lose the acknowledged commits after the damage.
    ///
    /// Every inventory gets a new epoch, and the damaged files are kept under another name. Needs free disk space of
    /// the size of the store. The flag has no effect without damage; remove it after the start.
    #[arg(long)]
    accept_loss: bool,
}

impl Serve {
    pub async fn run(self) -> CommandResult {
        let signals = Signals::install()?;
        let settings = self.settings.read()?;
        let config = settings.config().clone();
        let exporters = Exporters::start(&config.telemetry);
        let filter = logs::install(&config.telemetry.log, exporters.as_ref().ok().and_then(Option::as_ref))?;
        logs::log_panics();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
        let ended = match exporters {
            Ok(exporters) => with_exporters(settings, &config, exporters, filter, signals, self.accept_loss).await,
            // This error is one of all problems that `prepare` reports.
            Err(error) => prepare(&config, Arc::default()).map_err(Into::into).and(Err(error.into())),
        };
        ended.map_err(|error| report(error, config.telemetry.log.format))
    }
}

/// Logs why the server failed. In JSON format nothing else is printed, because the reader expects only JSON.
fn report(error: Box<dyn Error>, format: LogFormat) -> Box<dyn Error> {
    tracing::error!(%error, "the server failed");
    match format {
        LogFormat::Json if tracing::enabled!(tracing::Level::ERROR) => Box::new(Reported),
        LogFormat::Json | LogFormat::Pretty => error,
    }
}

async fn with_exporters(
    settings: Settings,
    config: &Config,
    exporters: Option<Exporters>,
    filter: LogFilter,
    signals: Signals,
    accepts_loss: bool,
) -> CommandResult {
    let telemetry = Telemetry::new(&config.telemetry, exporters.as_ref());
    let ended = run(settings, config, telemetry.clone(), filter, signals, accepts_loss).await;
    if let Some(exporters) = exporters {
        exporters.shutdown(telemetry.meter_provider(), EXPORT_LIMIT).await;
    }
    ended
}

async fn run(
    settings: Settings,
    config: &Config,
    telemetry: Telemetry,
    filter: LogFilter,
    signals: Signals,
    accepts_loss: bool,
) -> CommandResult {
    let (stop, reload) = signals.split(matches!(settings, Settings::Watched(_)));
    warn_of_exposure(config);
    let Prepared { catalog, authentication, transport } = prepare(config, telemetry.transport().clone())?;
    std::fs::create_dir_all(&config.data)
        .map_err(|error| format!("cannot create the directory {}: {error}", config.data.display()))?;
    let (store, catalog) = open_store(config, catalog, accepts_loss).await?;
    if stop.is_requested() {
        tracing::info!("stopped before listening");
        return close(store).await;
    }
    let listener = bind(config.listen, "--listen").await?;
    let admin_listener = bind(config.admin_listen, "--admin-listen").await?;
    announce(&config.telemetry.log, transport.scheme(), listener.local_addr()?, admin_listener.local_addr()?);
    let server = ServerSettings {
        threads: threads(config.threads),
        rollout: LiveRollout::new(config.rollout.clone()),
        streams: config.streams,
        admission: config.admission,
        transport: config.transport.clone(),
        origins: config.origins.clone(),
        authentication,
        telemetry,
        admin_listener: Some(Arc::new(admin_listener)),
        drain: config.drain,
        engine: EngineSettings::default(),
        config_reloads: Arc::default(),
    };
    watch_for_changes(settings, reload, server.rollout.clone(), filter, server.config_reloads.clone());
    serve(transport, listener, store.clone(), catalog, server, stop.requested()).await?;
    close(store).await
}

/// Opens the store for the catalog. Signals are handled in the meantime.
async fn open_store(
    config: &Config,
    catalog: Catalog,
    accepts_loss: bool,
) -> Result<(Arc<EmbeddedStore>, Arc<Catalog>), Box<dyn Error>> {
    let (path, settings) = (config.data.join(STORE_FILE), config.store.clone());
    let open = move || -> Result<_, Box<dyn Error + Send + Sync>> {
        if accepts_loss {
            accept_loss(&path)?;
        }
        let store = EmbeddedStore::open(&path, settings)?;
        store.accept_catalog(&catalog)?;
        Ok((Arc::new(store), Arc::new(catalog)))
    };
    tokio::task::spawn_blocking(open).await?.map_err(|error| -> Box<dyn Error> { error })
}

/// Returns the number of threads that serve connections. `configured` is the setting.
fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        configured => configured,
    }
}

/// Announces the addresses of the server in the log and on standard output.
fn announce(log: &LogSettings, scheme: &str, address: SocketAddr, admin_address: SocketAddr) {
    let (address, admin_address) = (format!("{scheme}://{address}"), format!("http://{admin_address}"));
    tracing::info!(address, admin_address, "listening");
    // The server keeps running even if standard output is closed.
    let _ = match log.format {
        LogFormat::Pretty => print(format_args!("listening on {address}\nadmin listening on {admin_address}")),
        LogFormat::Json => print(json!({"message": "listening", "address": address, "admin_address": admin_address})),
    };
}

/// Updates the store's file, so that the next start has nothing to replay. The server no longer uses the store; a write
/// of an aborted handler that is still running is as safe as in a crash.
async fn close(store: Arc<EmbeddedStore>) -> CommandResult {
    let began = Instant::now();
    tokio::task::spawn_blocking(move || store.flush()).await??;
    tracing::info!(took_ms = began.elapsed().as_millis() as u64, "closed the store");
    tracing::info!("stopped");
    Ok(())
}

fn accept_loss(path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut progress = |_| ControlFlow::Continue(());
    let Some(accepted) = tools::accept_loss(path, unix_ms() / 1_000, &mut new_epoch, &mut progress)? else {
        tracing::info!("the write-ahead log is not damaged: --accept-loss has no effect");
        return Ok(());
    };
    tracing::error!(
        commits_lost_min = accepted.damage.commits_min,
        last_commit = accepted.last_seq,
        damaged_frame = accepted.damage.frame,
        damaged_byte = accepted.damage.offset_bytes,
        inventories = accepted.inventories,
        kept = %accepted.old_store.unwrap_or_default().display(),
        "discarded the acknowledged commits after the damage (--accept-loss); every inventory has a new epoch"
    );
    Ok(())
}

/// Logs a warning for each protection that the settings disable explicitly.
fn warn_of_exposure(config: &Config) {
    let listen = config.listen;
    if listen.ip().is_loopback() {
        return;
    }
    if !config.has_authentication() {
        tracing::warn!(%listen, "serving without authentication: everyone who can reach this port can do everything");
    }
    if config.transport.tls.is_none() {
        tracing::warn!(%listen, "serving without TLS: everyone on the network path can read and change everything");
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| format!("cannot listen on {address}: {error} (choose another with {flag})"))
}

/// Watches the settings file, if there is one, and applies changes of settings that need no restart.
fn watch_for_changes(
    settings: Settings,
    reload: Option<Signal>,
    rollout: LiveRollout,
    filter: LogFilter,
    reloads: Arc<Reloads>,
) {
    let (Settings::Watched(file), Some(reload)) = (settings, reload) else { return };
    tokio::spawn(config::watch_for_changes(*file, reload, move |reloaded| {
        let is_applied = reloaded.is_ok_and(|reloaded| apply(&reloaded, &rollout, &filter));
        reloads.add(is_applied);
    }));
}

/// Applies reloaded settings. Returns false if some of them could not be applied.
fn apply(Reloaded { config, path, reason }: &Reloaded<'_>, rollout: &LiveRollout, filter: &LogFilter) -> bool {
    let filter_set = filter.set(&config.telemetry.log.filter);
    if let Err(error) = &filter_set {
        tracing::error!(%error, "log filter not changed");
    }
    let changed_by = format!("settings file {}", path.display());
    let changed = rollout.change(&changed_by, reason, |_| Ok(config.rollout.clone()));
    filter_set.is_ok() && changed.is_ok()
}
