//! Implements `AdminService`: the rollout, the statistics and the drain.

use super::service::caller;
use super::statistics;
use crate::engine::Engine;
use crate::live_rollout::LiveRollout;
use crate::statistics::StreamStatistics;
use crate::status;
use crate::wire::{FieldViolation, request, rollout, v1};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub struct Admin {
    pub engine: Engine,
    pub rollout: LiveRollout,
    pub statistics: Arc<StreamStatistics>,
    /// Cancelled when the server must drain.
    pub drain: CancellationToken,
    pub drain_timeout: Duration,
    /// When the server started.
    pub start: Instant,
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn get_rollout(&self, _: Request<v1::GetRolloutRequest>) -> Result<Response<v1::GetRolloutResponse>, Status> {
        let rollout = Some(rollout::message(&self.rollout.current()));
        Ok(Response::new(v1::GetRolloutResponse { rollout }))
    }

    async fn update_rollout(
        &self,
        request: Request<v1::UpdateRolloutRequest>,
    ) -> Result<Response<v1::UpdateRolloutResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let values = rollout::values(&request);
        let mut invalid = Vec::from_iter(request::admin_reason(&request.reason).err());
        if values.is_empty() {
            invalid.push(FieldViolation::new("rollout", "required; set at least one field"));
        }
        if !invalid.is_empty() {
            // Check the values too, so that the error lists all problems at once.
            let problems = self.rollout.current().with_values(values).err().unwrap_or_default();
            invalid.extend(problems.iter().map(rollout::out_of_bounds));
            return Err(status::invalid_fields(&invalid));
        }
        let changed = self.rollout.change(caller.as_str(), &request.reason, |current| current.with_values(values));
        let changed = changed.map_err(|problems| {
            status::invalid_fields(&problems.iter().map(rollout::out_of_bounds).collect::<Vec<_>>())
        })?;
        Ok(Response::new(v1::UpdateRolloutResponse { rollout: Some(rollout::message(&changed)) }))
    }

    async fn get_statistics(
        &self,
        _: Request<v1::GetStatisticsRequest>,
    ) -> Result<Response<v1::GetStatisticsResponse>, Status> {
        Ok(Response::new(v1::GetStatisticsResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.start.elapsed().as_millis() as u64,
            streams: Some(statistics::streams(&self.statistics.counts())),
            commits: Some(statistics::commits(&self.engine.statistics())),
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let caller = caller(&request)?;
        let reason = &request.get_ref().reason;
        request::admin_reason(reason).map_err(|invalid| status::invalid_field(&invalid))?;
        tracing::info!(%caller, reason, "drain requested");
        self.drain.cancel();
        Ok(Response::new(v1::DrainResponse { limit_ms: self.drain_timeout.as_millis() as u64 }))
    }
}
