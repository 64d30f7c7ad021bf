//! Reports whether the server serves: to gRPC health checks and to the admin listener.

use crate::grpc::admin::Admin;
use crate::grpc::service::Service;
use crate::grpc::{AdminServiceServer, InventoryServiceServer};
use crate::telemetry::listener::{Readiness, ServingState};
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The health of the server, as gRPC health and the admin listener report it.
pub(super) struct Health {
    reporter: HealthReporter,
    readiness: Readiness,
}

impl Health {
    pub fn new(reporter: HealthReporter) -> Self {
        Self { reporter, readiness: Readiness::default() }
    }

    /// Returns the state that the admin listener reports.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub async fn set(&self, state: ServingState) {
        self.readiness.set(state);
        let status = match state {
            ServingState::Serving => ServingStatus::Serving,
            ServingState::Starting | ServingState::Draining | ServingState::StoreFailed => ServingStatus::NotServing,
        };
        // The empty name stands for the whole server.
        for service in ["", InventoryServiceServer::<Service>::NAME, AdminServiceServer::<Admin>::NAME] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
