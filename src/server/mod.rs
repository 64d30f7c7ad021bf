//! The server: builds all components ([`wiring`]), and serves until it is stopped ([`lifecycle`]).

mod health;
mod lifecycle;
mod wiring;

pub use lifecycle::serve;

use crate::domain::Catalog;
use crate::engine::EngineSettings;
use crate::grpc::stream_limit::StreamSettings;
use crate::identity::Authentication;
use crate::live_rollout::LiveRollout;
use crate::middleware::AdmissionSettings;
use crate::statistics::Reloads;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;
use crate::transport::{DrainSettings, TlsError, Transport, TransportSettings, TransportStatistics};
use crate::web::Origins;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Number of threads that serve connections, including that of the current runtime.
    pub threads: usize,
    pub engine: EngineSettings,
    /// The rollout, which any clone can change at runtime.
    pub rollout: LiveRollout,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub transport: TransportSettings,
    /// The origins whose web pages may call the server.
    pub origins: Origins,
    /// With `Authentication::Disabled`, callers name themselves and may do everything.
    pub authentication: Authentication,
    /// The telemetry; must not be shared with another server.
    pub telemetry: Telemetry,
    /// The plaintext listener for `/metrics`, `/livez`, `/readyz` and gRPC health; `None` disables it.
    pub admin_listener: Option<Arc<TcpListener>>,
    /// Counts reloads of the settings, for the metrics.
    pub config_reloads: Arc<Reloads>,
    pub drain: DrainSettings,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            threads: 1,
            engine: EngineSettings::default(),
            rollout: LiveRollout::default(),
            streams: StreamSettings::default(),
            admission: AdmissionSettings::default(),
            transport: TransportSettings::default(),
            origins: Origins::default(),
            authentication: Authentication::Disabled,
            telemetry: Telemetry::default(),
            admin_listener: None,
            config_reloads: Arc::default(),
            drain: DrainSettings::default(),
        }
    }
}

/// Why a server cannot start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot start the threads that serve connections: {0} (lower --threads)")]
    Threads(std::io::Error),
    #[error("cannot read the address of the listener: {0}")]
    Listener(std::io::Error),
    #[error(
        "the store failed and accepts no more writes: {0} (check the disk and the kernel log, then restart the server)"
    )]
    StoreFailed(StoreError),
    #[error("cannot set up gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that runs in the background. Dropping it drains and stops the server as well.
pub struct RunningServer {
    pub address: SocketAddr,
    pub transport: Arc<TransportStatistics>,
    scheme: &'static str,
    stop_on_drop: DropGuard,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl RunningServer {
    /// Starts to serve on `listener`, in the current runtime.
    ///
    /// # Errors
    ///
    /// A [`ServerError`] if TLS cannot be set up.
    pub fn start(
        listener: TcpListener,
        store: Arc<dyn Store>,
        catalog: Arc<Catalog>,
        settings: ServerSettings,
    ) -> Result<Self, ServerError> {
        let address = listener.local_addr().map_err(ServerError::Listener)?;
        let opened = Transport::open(settings.transport.clone(), settings.telemetry.transport().clone())?;
        let (transport, scheme) = (opened.statistics(), opened.scheme());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let ended = tokio::spawn(serve(opened, listener, store, catalog, settings, stopped));
        Ok(Self { address, transport, scheme, stop_on_drop: stop.drop_guard(), ended })
    }

    pub fn uri(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Drains and stops the server. Afterwards, the server has no reference to the store.
    pub async fn stop(self) -> Result<(), ServerError> {
        drop(self.stop_on_drop);
        match self.ended.await {
            Ok(ended) => ended,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}
