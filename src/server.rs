//! The one place that wires everything: store, engine, layers, services, and how it all ends.

use crate::config::LiveRollout;
use crate::domain::Catalog;
use crate::engine::{CommitLoop, Engine, EngineCountsReader, EngineSettings};
use crate::grpc::admin::Admin;
use crate::grpc::service::Service;
use crate::grpc::streams::{OpenStreams, StreamSettings};
use crate::grpc::{AdminServiceServer, FILE_DESCRIPTOR_SET, InventoryServiceServer};
use crate::identity::Authentication;
use crate::middleware::{
    Admission, AdmissionLayer, AdmissionSettings, ContentTypeLayer, DeadlineLayer, EndsOnClosing, IdentityLayer,
    SyncLimitLayer, SyncRate, TelemetryLayer,
};
use crate::statistics::{Reloads, StreamStatistics};
use crate::store::{Store, StoreError};
use crate::sync::Rollout;
use crate::telemetry::listener::{self, Phase, Readiness};
use crate::telemetry::{Sources, Telemetry};
use crate::transport::{TlsError, Transport, TransportSettings, TransportStatistics};
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

/// How often the layers forget whom they need not remember any more.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub engine: EngineSettings,
    /// May be changed while the server runs, through any clone.
    pub rollout: LiveRollout,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub transport: TransportSettings,
    /// Without, callers name themselves and may do everything.
    pub authentication: Authentication,
    /// Of this server alone.
    pub telemetry: Telemetry,
    /// Where `/metrics`, `/livez`, `/readyz` and gRPC health are told in plaintext; nowhere without.
    pub admin_listener: Option<Arc<TcpListener>>,
    /// Counts how often settings were read again, for the meters.
    pub config_reloads: Arc<Reloads>,
    /// How long after the signal to stop everything is served as before, but for health, which says NOT_SERVING: so that
    /// whoever sends callers here can stop to do so first.
    pub drain_delay: Duration,
    /// How long calls may take to end after the delay; then they are cut off.
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
    /// Begins to listen and to serve, in this runtime.
    pub fn start(
        listener: TcpListener,
        store: Arc<dyn Store>,
        catalog: Arc<Catalog>,
        settings: ServerSettings,
    ) -> Result<Self, ServerError> {
        let address = listener.local_addr().map_err(ServerError::Listener)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let signal = async {
            // A sender that is gone stops the server as well.
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

    /// Drains and ends; afterwards nothing holds the store any more.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.stop.take();
        match self.ended.await {
            Ok(ended) => ended,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// Serves over a transport that was opened with `settings.transport`, until `stop` resolves; then drains: calls in flight
/// are answered, streams end with UNAVAILABLE, and what is left after the drain limit is cut off.
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
    let sync_limit = SyncLimitLayer::measured(sync_rate.clone(), settings.telemetry.sync_limit());
    let measured = TelemetryLayer::new(settings.telemetry.clone());
    let statistics = Arc::new(StreamStatistics::default());
    observe(&settings, &measured, &statistics, reading, usage, &readiness);
    let layers = build_layers(measured, &settings.authentication, admission.as_ref(), &sync_limit);
    let drain = Arc::new(Notify::new());
    // Ends when it is dropped, with this function.
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
    // It may have failed while the service was about to end anyway.
    let failed = failed.or_else(|| commit_loop.failure());
    finish(commit_loop, settings.drain_limit).await;
    failed.map_or(Ok(()), |failure| Err(ServerError::StoreFailed(failure)))
}

/// Of each service, and of all together, which has the empty name.
async fn tell_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", InventoryServiceServer::<Service>::NAME, AdminServiceServer::<Admin>::NAME] {
        health.set_service_status(service, status).await;
    }
}

/// The limit of syncs is a setting of the rollout.
async fn follow_rate(mut rollout: watch::Receiver<Arc<Rollout>>, rate: SyncRate) {
    loop {
        rate.set(rollout.borrow_and_update().syncs_per_second);
        if rollout.changed().await.is_err() {
            return;
        }
    }
}

/// All that was queued is committed and answered before the store is closed.
async fn finish(commit_loop: CommitLoop, limit: Duration) {
    if tokio::time::timeout(limit, commit_loop.ended()).await.is_err() {
        tracing::warn!("calls are still open; what they have queued is committed, but not answered");
    }
}

/// What the layers remember of players and callers that are gone is dropped from time to time.
async fn forget(admission: Option<Admission>, sync_limit: SyncLimitLayer) {
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    loop {
        interval.tick().await;
        if let Some(admission) = &admission {
            admission.forget_rested();
        }
        sync_limit.forget_gone();
    }
}

/// What the meters read. It keeps neither the store nor the commit loop.
fn observe(
    settings: &ServerSettings,
    measured: &TelemetryLayer,
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
        rpc: measured.statistics().clone(),
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

/// Around every service, from the outside in.
fn build_layers(
    measured: TelemetryLayer,
    authentication: &Authentication,
    admission: Option<&Admission>,
    sync_limit: &SyncLimitLayer,
) -> Layers {
    ServiceBuilder::new()
        // 1. Every call is measured and traced, whoever answers it.
        .layer(measured)
        // 2. What is no gRPC goes no further.
        .layer(ContentTypeLayer)
        // 3. How long the caller waits; then all that follows is dropped.
        .layer(DeadlineLayer)
        // 4. Who calls, for which player, and whether that caller may; nothing goes further without.
        .layer(IdentityLayer::new(authentication.clone()))
        // 5. How many requests that caller may send.
        .option_layer(admission.map(Admission::layer))
        // 6. How many syncs the player of a stream gets.
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
    let streams = OpenStreams::new(settings.streams);
    let telemetry = settings.telemetry.clone();
    let service = Service { engine, catalog_version, rollout, statistics, telemetry, streams, start };
    let message_bytes_max = settings.transport.message_bytes_max;
    // With those of the details of errors, so that clients can show them.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(InventoryServiceServer::new(service).max_decoding_message_size(message_bytes_max))
        .add_service(AdminServiceServer::new(admin).max_decoding_message_size(message_bytes_max))
        .add_service(EndsOnClosing::new(health))
        .add_service(EndsOnClosing::new(reflection().build_v1()?))
        .add_service(EndsOnClosing::new(reflection().build_v1alpha()?))
        .prepare())
}
