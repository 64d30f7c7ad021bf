//! Implements `AdminService`: the rollout, the statistics and the drain.

use super::convert::{Invalid, admin};
use super::service::caller;
use super::{status, v1};
use crate::engine::Engine;
use crate::live_rollout::LiveRollout;
use crate::statistics::StreamStatistics;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub struct Admin {
    pub engine: Engine,
    pub rollout: LiveRollout,
    pub statistics: Arc<StreamStatistics>,
    /// Notified when the service must drain.
    pub drain: Arc<Notify>,
    pub drain_limit: Duration,
    /// When the service started.
    pub start: Instant,
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn get_rollout(&self, _: Request<v1::GetRolloutRequest>) -> Result<Response<v1::GetRolloutResponse>, Status> {
        let rollout = Some(admin::rollout(&self.rollout.current()));
        Ok(Response::new(v1::GetRolloutResponse { rollout }))
    }

    async fn update_rollout(
        &self,
        request: Request<v1::UpdateRolloutRequest>,
    ) -> Result<Response<v1::UpdateRolloutResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let values = admin::values(&request);
        let mut invalid = Vec::from_iter(admin::reason(&request.reason).err());
        if values.is_empty() {
            invalid.push(Invalid::new("rollout", "MISSING", "say what is to be set"));
        }
        if !invalid.is_empty() {
            // Check the values too, so that the error lists all problems at once.
            let problems = self.rollout.current().with(values).err().unwrap_or_default();
            invalid.extend(problems.iter().map(admin::out_of_bounds));
            return Err(status::all_invalid(&invalid));
        }
        let changed = self.rollout.change(caller.as_str(), &request.reason, |current| current.with(values));
        let changed = changed
            .map_err(|problems| status::all_invalid(&problems.iter().map(admin::out_of_bounds).collect::<Vec<_>>()))?;
        Ok(Response::new(v1::UpdateRolloutResponse { rollout: Some(admin::rollout(&changed)) }))
    }

    async fn get_statistics(
        &self,
        _: Request<v1::GetStatisticsRequest>,
    ) -> Result<Response<v1::GetStatisticsResponse>, Status> {
        Ok(Response::new(v1::GetStatisticsResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.start.elapsed().as_millis() as u64,
            streams: Some(admin::streams(&self.statistics.counts())),
            commits: Some(admin::commits(&self.engine.statistics())),
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let caller = caller(&request)?;
        let reason = &request.get_ref().reason;
        admin::reason(reason).map_err(|invalid| status::invalid(&invalid))?;
        tracing::info!(%caller, reason, "asked to drain");
        self.drain.notify_one();
        Ok(Response::new(v1::DrainResponse { limit_ms: self.drain_limit.as_millis() as u64 }))
    }
}
