//! Builds the components of a server: the engine, the layers and services, the metrics and the background tasks.

use super::{ServerError, ServerSettings};
use crate::domain::Catalog;
use crate::engine::{CommitLoop, Engine, EngineSettings, EngineStatisticsReader};
use crate::grpc::admin::Admin;
use crate::grpc::service::Service;
use crate::grpc::short_path::ShortPath;
use crate::grpc::stream::StreamContext;
use crate::grpc::stream_limit::StreamLimiter;
use crate::grpc::stream_schedule::StreamSchedule;
use crate::grpc::sync_limiter::SyncLimiter;
use crate::grpc::{AdminServiceServer, InventoryServiceServer};
use crate::identity::Authentication;
use crate::middleware::{
    Admission, AdmissionLayer, ContentTypeLayer, DeadlineLayer, DrainService, IdentityLayer, OriginLayer,
    TelemetryLayer,
};
use crate::statistics::StreamStatistics;
use crate::store::Store;
use crate::telemetry::MetricSources;
use crate::telemetry::listener::{self, Readiness};
use crate::web::{Origins, WebLayer, WebService};
use crate::wire::FILE_DESCRIPTOR_SET;
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::layer::util::{Identity, Stack};
use tower::util::Either;
use tower::{Layer, ServiceBuilder};

/// Interval at which inactive callers and players are removed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(10);

/// The components of a server that is ready to serve.
pub(super) struct Components {
    /// Handles all calls: the layers around the services.
    pub service: WebService<<Layers as Layer<ShortPath<Routes>>>::Service>,
    pub engine: Engine,
    pub commit_loop: CommitLoop,
    /// Cancelled when AdminService.Drain is called.
    pub drain_requested: CancellationToken,
    pub background: JoinSet<()>,
}

/// A gRPC service of a third-party crate.
pub(super) trait ThirdPartyService:
    tonic::codegen::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> ThirdPartyService for S where
    S: tonic::codegen::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Builds all components and starts the engine and the background tasks.
pub(super) fn build(
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: &ServerSettings,
    readiness: &Readiness,
    health_service: impl ThirdPartyService,
) -> Result<Components, ServerError> {
    let weak_store = Arc::downgrade(&store);
    let engine_settings = EngineSettings { telemetry: settings.telemetry.commits(), ..settings.engine.clone() };
    let (engine, commit_loop) = Engine::start(store, catalog, engine_settings);
    let streams = Arc::new(StreamStatistics::default());
    let telemetry = TelemetryLayer::new(settings.telemetry.clone());
    register_metrics(settings, &telemetry, &streams, engine.statistics_reader(), weak_store, readiness);

    let admission = Admission::new(settings.admission);
    let sync_limiter = SyncLimiter::new(settings.telemetry.sync_limit());
    let layers = build_layers(telemetry, &settings.origins, &settings.authentication, admission.as_ref());
    // Outside of all layers, which see only gRPC.
    let web = WebLayer { origins: settings.origins.clone(), message_bytes_max: settings.transport.message_bytes_max };
    let drain_requested = CancellationToken::new();
    let health = health_service.clone();
    let drain = drain_requested.clone();
    let routes = build_routes(engine.clone(), settings, streams, sync_limiter.clone(), drain, health_service)?;

    let mut background = JoinSet::new();
    spawn_admin_listener(&mut background, settings, readiness, health);
    background.spawn(remove_inactive(admission, sync_limiter));
    if let Authentication::Enabled(verifier) = settings.authentication.clone() {
        background.spawn(async move { match verifier.watch_for_changes().await {} });
    }
    Ok(Components { service: web.layer(layers.layer(routes)), engine, commit_loop, drain_requested, background })
}

/// Registers the sources of the metrics. They keep neither the store open nor the commit loop running.
fn register_metrics(
    settings: &ServerSettings,
    layer: &TelemetryLayer,
    streams: &Arc<StreamStatistics>,
    engine: EngineStatisticsReader,
    store: Weak<dyn Store>,
    readiness: &Readiness,
) {
    let (telemetry, readiness) = (&settings.telemetry, readiness.clone());
    let key_reloads = match &settings.authentication {
        Authentication::Disabled => Arc::default(),
        Authentication::Enabled(verifier) => verifier.reloads().clone(),
    };
    let certificate_reloads = telemetry.transport().certificate_reloads().clone();
    telemetry.register(MetricSources {
        rpc: layer.statistics().clone(),
        streams: streams.clone(),
        transport: telemetry.transport().clone(),
        reloads: [
            ("certificate", certificate_reloads),
            ("jwks", key_reloads),
            ("config", settings.config_reloads.clone()),
        ],
        engine: Arc::new(move || engine.read()),
        store: Arc::new(move || store.upgrade()?.usage()),
        is_ending: Arc::new(move || readiness.is_draining_or_failed()),
    });
}

/// The type of the layers that [`build_layers`] lists.
type Layers = Stack<
    Either<AdmissionLayer, Identity>,
    Stack<
        IdentityLayer,
        Stack<DeadlineLayer, Stack<ContentTypeLayer, Stack<OriginLayer, Stack<TelemetryLayer, Identity>>>>,
    >,
>;

/// Returns the layers around all services, from the outermost to the innermost.
fn build_layers(
    telemetry: TelemetryLayer,
    origins: &Origins,
    authentication: &Authentication,
    admission: Option<&Admission>,
) -> Layers {
    ServiceBuilder::new()
        // Measures and traces every call, whichever layer replies.
        .layer(telemetry)
        // Rejects requests of web pages whose origin is not allowed.
        .layer(OriginLayer::new(origins.clone()))
        // Rejects requests that are not gRPC.
        .layer(ContentTypeLayer)
        // Enforces the deadline of the call; drops the inner layers' work when it expires.
        .layer(DeadlineLayer)
        // Authenticates the caller, determines the player, and authorizes the call.
        .layer(IdentityLayer::new(authentication.clone()))
        // Limits the request rate of the caller.
        .option_layer(admission.map(Admission::layer))
        .into_inner()
}

fn build_routes(
    engine: Engine,
    settings: &ServerSettings,
    statistics: Arc<StreamStatistics>,
    limiter: SyncLimiter,
    drain: CancellationToken,
    health: impl ThirdPartyService,
) -> Result<ShortPath<Routes>, ServerError> {
    let catalog_version = crate::catalog_file::version(engine.catalog());
    let (rollout, start) = (settings.rollout.clone(), Instant::now());
    let admin = Admin {
        engine: engine.clone(),
        rollout: rollout.clone(),
        statistics: statistics.clone(),
        drain,
        drain_timeout: settings.drain.timeout,
        start,
    };
    let streams = Arc::new(StreamContext {
        schedule: StreamSchedule::new(rollout.clone(), settings.authentication.key_changes(), start),
        rollout,
        statistics,
        telemetry: settings.telemetry.frames(),
        limiter,
        start,
    });
    let stream_limiter = StreamLimiter::new(settings.streams);
    let service = Arc::new(Service { engine, catalog_version, stream_limiter, streams });
    let message_bytes_max = settings.transport.message_bytes_max;
    // Include the descriptors of error details, so that clients can show them.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let inventories = InventoryServiceServer::from_arc(service.clone());
    let routes = Routes::new(inventories.max_decoding_message_size(message_bytes_max))
        .add_service(AdminServiceServer::new(admin).max_decoding_message_size(message_bytes_max))
        .add_service(DrainService::new(health))
        .add_service(DrainService::new(reflection().build_v1()?))
        .add_service(DrainService::new(reflection().build_v1alpha()?))
        .prepare();
    Ok(ShortPath::new(service, message_bytes_max, routes))
}

/// Serves the admin listener, if there is one.
fn spawn_admin_listener(
    background: &mut JoinSet<()>,
    settings: &ServerSettings,
    readiness: &Readiness,
    health: impl ThirdPartyService,
) {
    let Some(listener) = settings.admin_listener.clone() else { return };
    let health = Routes::new(ContentTypeLayer.layer(health)).prepare().into_axum_router();
    let router = listener::router(settings.telemetry.clone(), readiness.clone(), health);
    background.spawn(listener::serve(listener, router));
}

/// Periodically removes inactive callers and players from the limiters.
async fn remove_inactive(admission: Option<Admission>, sync_limiter: SyncLimiter) {
    let mut interval = tokio::time::interval(CLEANUP_INTERVAL);
    loop {
        interval.tick().await;
        if let Some(admission) = &admission {
            admission.remove_idle();
        }
        sync_limiter.remove_idle();
    }
}
