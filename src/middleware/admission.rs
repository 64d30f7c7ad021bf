//! Limits the requests of each caller to a rate per second and a burst. A request beyond that fails with
//! RESOURCE_EXHAUSTED and a retry delay.

use crate::domain::Caller;
use crate::identity::{AuthError, Identity, Role};
use crate::status;
use crate::transport::Connection;
use governor::clock::QuantaInstant;
use governor::middleware::NoOpMiddleware;
use http::Request;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tonic::body::Body;
use tower_governor::GovernorLayer;
use tower_governor::errors::GovernorError;
use tower_governor::governor::{GovernorConfig, GovernorConfigBuilder};
use tower_governor::key_extractor::KeyExtractor;

const HEALTH: &str = "/grpc.health.v1.Health/";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionSettings {
    /// Maximum sustained rate of requests of one caller, per second; 0 disables the limit.
    pub per_second: u32,
    /// Maximum number of requests that an idle caller may send at once.
    pub burst: u32,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self { per_second: 20_000, burst: 4_000 }
    }
}

type NoMiddleware = NoOpMiddleware<QuantaInstant>;
pub type AdmissionLayer = GovernorLayer<CallerKeyExtractor, NoMiddleware, Body>;

/// Limits requests by caller.
pub struct Admission {
    config: Arc<GovernorConfig<CallerKeyExtractor, NoMiddleware>>,
    period: Duration,
}

impl Admission {
    /// Returns `None` if there is no limit.
    pub fn new(settings: AdmissionSettings) -> Option<Self> {
        // The interval after which one more request is allowed. `per_second` of the builder would be this interval in
        // seconds.
        let period = Duration::from_secs(1).checked_div(settings.per_second)?;
        let mut builder = GovernorConfigBuilder::default().key_extractor(CallerKeyExtractor);
        let config = builder.period(period).burst_size(settings.burst.max(1)).finish()?;
        Some(Self { config: Arc::new(config), period })
    }

    pub fn layer(&self) -> AdmissionLayer {
        // The error has the wait only in whole seconds. A rejected caller has to wait at most one interval until one
        // more request is allowed.
        let retry_after = Duration::from_millis(self.period.as_micros().div_ceil(1_000).max(1) as u64);
        GovernorLayer::new(self.config.clone()).error_handler(move |error| {
            let status = match error {
                GovernorError::TooManyRequests { .. } => status::rate_limited(retry_after),
                GovernorError::UnableToExtractKey | GovernorError::Other { .. } => {
                    status::unauthenticated(AuthError::CredentialsMissing)
                }
            };
            status.into_http()
        })
    }

    /// Removes callers whose burst is fully available again; the limiter does not do this automatically.
    pub fn remove_idle(&self) {
        let limiter = self.config.limiter();
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }

    /// Returns the number of callers in memory.
    pub fn callers(&self) -> usize {
        self.config.limiter().len()
    }
}

/// A caller with its own limit. A player and a service of the same name are different callers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RateLimitKey {
    Caller(Role, Caller),
    /// A health probe, limited by address, because probes have no caller name and must not fail because others send
    /// requests.
    Probe(Option<IpAddr>),
}

/// Extracts the caller from the request's extensions, to which the identity layer added it.
#[derive(Debug, Clone, Copy)]
pub struct CallerKeyExtractor;

impl KeyExtractor for CallerKeyExtractor {
    type Key = RateLimitKey;

    fn extract<T>(&self, request: &Request<T>) -> Result<Self::Key, GovernorError> {
        if request.uri().path().starts_with(HEALTH) {
            return Ok(RateLimitKey::Probe(
                request.extensions().get().map(|connection: &Connection| connection.peer().network()),
            ));
        }
        let identity = request.extensions().get::<Identity>().ok_or(GovernorError::UnableToExtractKey)?;
        Ok(RateLimitKey::Caller(identity.role, identity.caller.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Peer;
    use http::Response;
    use std::convert::Infallible;
    use tower::{Layer, ServiceExt, service_fn};

    #[tokio::test]
    async fn an_idle_caller_is_removed() {
        let admission = Admission::new(AdmissionSettings { per_second: 1_000, burst: 1 }).expect("a limit");
        let handler =
            service_fn(|_: Request<()>| std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
        let mut request = Request::new(());
        let caller = Caller::new("lobby").expect("a name");
        request.extensions_mut().insert(Identity {
            caller,
            player: None,
            role: Role::Service,
            credential_status: None,
        });
        admission.layer().layer(handler).oneshot(request).await.expect("infallible");
        assert_eq!(admission.callers(), 1);
        // The limiter uses its own clock, which cannot be paused.
        std::thread::sleep(Duration::from_millis(5));
        admission.remove_idle();
        assert_eq!(admission.callers(), 0);
    }

    #[tokio::test]
    async fn a_health_probe_is_not_limited_by_the_requests_of_others() {
        let admission = Admission::new(AdmissionSettings { per_second: 1, burst: 1 }).expect("a limit");
        let handler =
            service_fn(|_: Request<()>| std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
        let layered = admission.layer().layer(handler);
        let is_accepted = async |path: &str, last: u8| {
            let mut request = Request::builder().uri(path).body(()).expect("a request");
            let caller = Caller::new("anonymous").expect("a name");
            let address = ([10, 0, 0, last], 1).into();
            request.extensions_mut().insert(Identity {
                caller,
                player: None,
                role: Role::Player,
                credential_status: None,
            });
            request.extensions_mut().insert(Connection::detached(Peer { address, certificate: None }));
            let response = layered.clone().oneshot(request).await.expect("infallible");
            !response.headers().contains_key("grpc-status")
        };
        let (check, read) = ("/grpc.health.v1.Health/Check", "/slotcast.v1.InventoryService/GetCatalog");
        assert!(is_accepted(read, 1).await && !is_accepted(read, 2).await, "requests of one caller share a limit");
        assert!(is_accepted(check, 1).await && !is_accepted(check, 1).await, "a flood of health calls is limited");
        assert!(is_accepted(check, 2).await, "other addresses are not limited");
    }

    #[test]
    fn zero_requests_per_second_disables_the_limit() {
        assert!(Admission::new(AdmissionSettings { per_second: 0, burst: 1 }).is_none());
    }
}
