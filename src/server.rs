//! Assembles the server: store, engine, layers and services, and their shutdown.

use crate::config::LiveRollout;
use crate::domain::Catalog;
use crate::engine::{CommitLoop, Engine, EngineCountsReader, EngineSettings};
use crate::grpc::admin::Admin;
use crate::grpc::service::Service;
use crate::grpc::stream_limit::{StreamLimiter, StreamSettings};
use crate::grpc::{AdminServiceServer, InventoryServiceServer};
use crate::identity::Authentication;
use crate::middleware::{
    Admission, AdmissionLayer, AdmissionSettings, ClosingService, ContentTypeLayer, DeadlineLayer, IdentityLayer,
    SyncLimitLayer, SyncRate, TelemetryLayer,
};
use crate::statistics::{Reloads, StreamStatistics};
use crate::store::{Store, StoreError};
use crate::sync::Rollout;
use crate::telemetry::listener::{self, Phase, Readiness};
use crate::telemetry::{Sources, Telemetry};
use crate::transport::{TlsError, Transport, TransportSettings, TransportStatistics};
use crate::wire::FILE_DESCRIPTOR_SET;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};
use tower::util::Either;
use tower::{Layer, ServiceBuilder};

/// Interval at which the layers remove inactive callers and players.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub engine: EngineSettings,
    /// The rollout, which any clone can change at runtime.
    pub rollout: LiveRollout,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub transport: TransportSettings,
    /// With `Authentication::None`, callers name themselves and may do everything.
    pub authentication: Authentication,
    /// The telemetry; must not be shared with another server.
    pub telemetry: Telemetry,
    /// The plaintext listener for `/metrics`, `/livez`, `/readyz` and gRPC health; `None` disables it.
    pub admin_listener: Option<Arc<TcpListener>>,
    /// Counts reloads of the settings, for the metrics.
    pub config_reloads: Arc<Reloads>,
    /// How long the server continues to serve after the stop signal while health checks already report NOT_SERVING, so
    /// that load balancers can stop sending calls to it first.
    pub drain_delay: Duration,
    /// Maximum time for calls to end after the delay; then they are cut off.
    pub drain_limit: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            engine: EngineSettings::default(),
            rollout: LiveRollout::default(),
            streams: StreamSettings::default(),
            admission: AdmissionSettings::default(),
            transport: TransportSettings::default(),
            authentication: Authentication::None,
            telemetry: Telemetry::default(),
            admin_listener: None,
            config_reloads: Arc::default(),
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the address of the listener cannot be read: {0}")]
    Listener(std::io::Error),
    #[error(
        "the store failed and nothing more may be written ({0}); \
         check the disk and the kernel log, then start the service again"
    )]
    StoreFailed(StoreError),
    #[error("reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that runs in the background.
pub struct RunningServer {
    pub address: SocketAddr,
    pub transport: Arc<TransportStatistics>,
    scheme: &'static str,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl RunningServer {
    /// Starts to serve on `listener`, in the current runtime.
    pub fn start(
        listener: TcpListener,
        store: Arc<dyn Store>,
        catalog: Arc<Catalog>,
        settings: ServerSettings,
    ) -> Result<Self, ServerError> {
        let address = listener.local_addr().map_err(ServerError::Listener)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let signal = async {
            // A dropped sender stops the server as well.
            let _ = stopped.await;
        };
        let opened = Transport::open(settings.transport.clone(), settings.telemetry.transport().clone())?;
        let (transport, scheme) = (opened.statistics(), opened.scheme());
        let ended = tokio::spawn(serve(opened, listener, store, catalog, settings, signal));
        Ok(Self { address, transport, scheme, stop: Some(stop), ended })
    }

    pub fn uri(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Drains and stops the server. Afterwards, the server has no reference to the store.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.stop.take();
        match self.ended.await {
            Ok(ended) => ended,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// Serves over a transport that was opened with `settings.transport`, until `stop` resolves, then drains: calls in
/// progress are answered, streams end with UNAVAILABLE, and calls that are still open after the drain limit are cut
/// off.
pub async fn serve(
    transport: Transport,
    listener: TcpListener,
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: ServerSettings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let usage = Arc::downgrade(&store);
    let engine_settings = EngineSettings { telemetry: settings.telemetry.commits(), ..settings.engine.clone() };
    let (engine, mut commit_loop) = Engine::start(store, catalog, engine_settings);
    let (reading, readiness) = (engine.counts_reader(), Readiness::default());
    let (draining, is_draining) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    tell_health(&health, ServingStatus::Serving).await;
    let admission = Admission::new(settings.admission);
    let sync_rate = SyncRate::new(settings.rollout.current().syncs_per_second);
    let sync_limit = SyncLimitLayer::with_meters(sync_rate.clone(), settings.telemetry.sync_limit());
    let telemetry_layer = TelemetryLayer::new(settings.telemetry.clone());
    let statistics = Arc::new(StreamStatistics::default());
    observe(&settings, &telemetry_layer, &statistics, reading, usage, &readiness);
    let layers = build_layers(telemetry_layer, &settings.authentication, admission.as_ref(), &sync_limit);
    let drain = Arc::new(Notify::new());
    // Dropping the set aborts its tasks; it is dropped together with this future.
    let mut background = JoinSet::new();
    if let Some(listener) = settings.admin_listener.clone() {
        let health = Routes::new(ContentTypeLayer.layer(health_service.clone())).prepare().into_axum_router();
        let pages = listener::router(settings.telemetry.clone(), readiness.clone(), health);
        background.spawn(listener::serve(listener, pages));
    }
    let routes = build_routes(engine, &settings, statistics, drain.clone(), health_service)?;
    background.spawn(forget(admission, sync_limit));
    if let Authentication::Verified(verifier) = settings.authentication.clone() {
        background.spawn(async move { match verifier.follow().await {} });
    }
    background.spawn(follow_rate(settings.rollout.subscribe(), sync_rate));

    let mut server = Box::pin(transport.serve(listener, layers.layer(routes), is_draining));
    let stopped = async {
        tokio::select! {
            () = stop => {}
            () = drain.notified() => {}
        }
        tracing::info!(delay_ms = settings.drain_delay.as_millis() as u64, "about to drain");
        readiness.set(Phase::Draining);
        tell_health(&health, ServingStatus::NotServing).await;
        tokio::time::sleep(settings.drain_delay).await;
    };
    readiness.set(Phase::Serving);
    let failed = tokio::select! {
        () = &mut server => return Ok(()),
        () = stopped => None,
        failure = commit_loop.failed() => {
            readiness.set(Phase::StoreFailed);
            tell_health(&health, ServingStatus::NotServing).await;
            Some(failure)
        }
    };
    if failed.is_none() {
        readiness.set(Phase::Draining);
    }
    tracing::info!(limit_ms = settings.drain_limit.as_millis() as u64, "draining");
    draining.send_replace(true);
    if tokio::time::timeout(settings.drain_limit, &mut server).await.is_err() {
        tracing::warn!("the drain limit is over; what is still open is cut off");
    }
    drop(server);
    // The store may have failed while the service was already draining.
    let failed = failed.or_else(|| commit_loop.failure());
    finish(commit_loop, settings.drain_limit).await;
    failed.map_or(Ok(()), |failure| Err(ServerError::StoreFailed(failure)))
}

/// Sets the health status of each service, and of the whole server, whose name is empty.
async fn tell_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", InventoryServiceServer::<Service>::NAME, AdminServiceServer::<Admin>::NAME] {
        health.set_service_status(service, status).await;
    }
}

/// Applies changes of the rollout's sync limit to the layer.
async fn follow_rate(mut rollout: watch::Receiver<Arc<Rollout>>, rate: SyncRate) {
    loop {
        rate.set(rollout.borrow_and_update().syncs_per_second);
        if rollout.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until all queued requests are committed and answered, before the store is closed.
async fn finish(commit_loop: CommitLoop, limit: Duration) {
    if tokio::time::timeout(limit, commit_loop.ended()).await.is_err() {
        tracing::warn!("calls are still open; what they have queued is committed, but not answered");
    }
}

/// Periodically removes inactive callers and players from the layers.
async fn forget(admission: Option<Admission>, sync_limit: SyncLimitLayer) {
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    loop {
        interval.tick().await;
        if let Some(admission) = &admission {
            admission.remove_idle();
        }
        sync_limit.remove_idle();
    }
}

/// Registers the sources of the metrics. They keep neither the store open nor the commit loop running.
fn observe(
    settings: &ServerSettings,
    telemetry_layer: &TelemetryLayer,
    streams: &Arc<StreamStatistics>,
    engine: EngineCountsReader,
    store: Weak<dyn Store>,
    readiness: &Readiness,
) {
    let (telemetry, readiness) = (&settings.telemetry, readiness.clone());
    let of_keys = match &settings.authentication {
        Authentication::None => Arc::default(),
        Authentication::Verified(verifier) => verifier.reloads().clone(),
    };
    let of_certificates = telemetry.transport().certificate_reloads().clone();
    telemetry.observe(Sources {
        rpc: telemetry_layer.statistics().clone(),
        streams: streams.clone(),
        transport: telemetry.transport().clone(),
        reloads: [("certificate", of_certificates), ("jwks", of_keys), ("config", settings.config_reloads.clone())],
        engine: Arc::new(move || engine.counts()),
        store: Arc::new(move || store.upgrade()?.usage()),
        is_draining: Arc::new(move || readiness.is_ending()),
    });
}

type Layers = Stack<
    SyncLimitLayer,
    Stack<
        Either<AdmissionLayer, Identity>,
        Stack<IdentityLayer, Stack<DeadlineLayer, Stack<ContentTypeLayer, Stack<TelemetryLayer, Identity>>>>,
    >,
>;

/// Returns the layers around all services, from the outermost to the innermost.
fn build_layers(
    telemetry_layer: TelemetryLayer,
    authentication: &Authentication,
    admission: Option<&Admission>,
    sync_limit: &SyncLimitLayer,
) -> Layers {
    ServiceBuilder::new()
        // 1. Measures and traces every call, whichever layer replies.
        .layer(telemetry_layer)
        // 2. Rejects requests that are not gRPC.
        .layer(ContentTypeLayer)
        // 3. Enforces the deadline of the call; drops the inner layers' work when it expires.
        .layer(DeadlineLayer)
        // 4. Authenticates the caller, determines the player, and authorizes the call.
        .layer(IdentityLayer::new(authentication.clone()))
        // 5. Limits the request rate of the caller.
        .option_layer(admission.map(Admission::layer))
        // 6. Limits the syncs of a stream's player.
        .layer(sync_limit.clone())
        .into_inner()
}

fn build_routes<H>(
    engine: Engine,
    settings: &ServerSettings,
    statistics: Arc<StreamStatistics>,
    drain: Arc<Notify>,
    health: H,
) -> Result<Routes, ServerError>
where
    H: tonic::codegen::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let catalog_version = crate::catalog_file::version(engine.catalog());
    let (rollout, start) = (settings.rollout.clone(), Instant::now());
    let admin = Admin {
        engine: engine.clone(),
        rollout: rollout.clone(),
        statistics: statistics.clone(),
        drain,
        drain_limit: settings.drain_limit,
        start,
    };
    let streams = StreamLimiter::new(settings.streams);
    let telemetry = settings.telemetry.clone();
    let service = Service { engine, catalog_version, rollout, statistics, telemetry, streams, start };
    let message_bytes_max = settings.transport.message_bytes_max;
    // Include the descriptors of error details, so that clients can show them.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(InventoryServiceServer::new(service).max_decoding_message_size(message_bytes_max))
        .add_service(AdminServiceServer::new(admin).max_decoding_message_size(message_bytes_max))
        .add_service(ClosingService::new(health))
        .add_service(ClosingService::new(reflection().build_v1()?))
        .add_service(ClosingService::new(reflection().build_v1alpha()?))
        .prepare())
}
