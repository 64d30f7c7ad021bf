//! Converts the rollout settings of `AdminService`, in both directions: the server reads them, `slotcast rollout`
//! writes them.

use super::{FieldViolation, v1};
use crate::sync::{OutOfBounds, Rollout, RolloutField};

pub fn message(rollout: &Rollout) -> v1::Rollout {
    // All values are within their bounds, which fit in 32 bits.
    let read = |field: RolloutField| field.read(rollout) as u32;
    v1::Rollout {
        delta_percent: read(RolloutField::DeltaPercent),
        debounce_percent: read(RolloutField::DebouncePercent),
        prediction_percent: read(RolloutField::PredictionPercent),
        shadow_percent: read(RolloutField::ShadowPercent),
        news_ms: read(RolloutField::NewsMs),
        echo_ms: read(RolloutField::EchoMs),
        tick_ms: read(RolloutField::TickMs),
        delta_slots_max: read(RolloutField::DeltaSlotsMax),
        syncs_per_second: read(RolloutField::SyncsPerSecond),
        heartbeat_ms: read(RolloutField::HeartbeatMs),
    }
}

/// Returns all values of another service's rollout. They may be out of bounds here, because that service may have other
/// bounds.
pub fn read_rollout(rollout: &v1::Rollout) -> Vec<(RolloutField, u64)> {
    let value = |field: RolloutField| match field {
        RolloutField::DeltaPercent => rollout.delta_percent,
        RolloutField::DebouncePercent => rollout.debounce_percent,
        RolloutField::PredictionPercent => rollout.prediction_percent,
        RolloutField::ShadowPercent => rollout.shadow_percent,
        RolloutField::NewsMs => rollout.news_ms,
        RolloutField::EchoMs => rollout.echo_ms,
        RolloutField::TickMs => rollout.tick_ms,
        RolloutField::DeltaSlotsMax => rollout.delta_slots_max,
        RolloutField::SyncsPerSecond => rollout.syncs_per_second,
        RolloutField::HeartbeatMs => rollout.heartbeat_ms,
    };
    RolloutField::ALL.into_iter().map(|field| (field, u64::from(value(field)))).collect()
}

/// Returns the values that a request sets.
pub fn values(request: &v1::UpdateRolloutRequest) -> Vec<(RolloutField, u64)> {
    let value = |field: RolloutField| {
        let set = match field {
            RolloutField::DeltaPercent => request.delta_percent,
            RolloutField::DebouncePercent => request.debounce_percent,
            RolloutField::PredictionPercent => request.prediction_percent,
            RolloutField::ShadowPercent => request.shadow_percent,
            RolloutField::NewsMs => request.news_ms,
            RolloutField::EchoMs => request.echo_ms,
            RolloutField::TickMs => request.tick_ms,
            RolloutField::DeltaSlotsMax => request.delta_slots_max,
            RolloutField::SyncsPerSecond => request.syncs_per_second,
            RolloutField::HeartbeatMs => request.heartbeat_ms,
        };
        set.map(|set| (field, u64::from(set)))
    };
    RolloutField::ALL.into_iter().filter_map(value).collect()
}

/// Returns a request that sets these values. A value that does not fit in 32 bits exceeds every bound and is sent as
/// `u32::MAX`.
pub fn update(reason: &str, values: &[(RolloutField, u64)]) -> v1::UpdateRolloutRequest {
    let mut request = v1::UpdateRolloutRequest { reason: reason.to_owned(), ..v1::UpdateRolloutRequest::default() };
    for (field, value) in values {
        let target = match field {
            RolloutField::DeltaPercent => &mut request.delta_percent,
            RolloutField::DebouncePercent => &mut request.debounce_percent,
            RolloutField::PredictionPercent => &mut request.prediction_percent,
            RolloutField::ShadowPercent => &mut request.shadow_percent,
            RolloutField::NewsMs => &mut request.news_ms,
            RolloutField::EchoMs => &mut request.echo_ms,
            RolloutField::TickMs => &mut request.tick_ms,
            RolloutField::DeltaSlotsMax => &mut request.delta_slots_max,
            RolloutField::SyncsPerSecond => &mut request.syncs_per_second,
            RolloutField::HeartbeatMs => &mut request.heartbeat_ms,
        };
        *target = Some(u32::try_from(*value).unwrap_or(u32::MAX));
    }
    request
}

/// Returns the violation for a value that is out of the bounds of its setting.
pub fn out_of_bounds(problem: &OutOfBounds) -> FieldViolation {
    FieldViolation::new(problem.field.name(), problem.problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_written_and_read_consistently() {
        for field in RolloutField::ALL {
            let request = update("a test", &[(field, 100)]);
            assert_eq!(values(&request), [(field, 100)]);
        }
        let distinct = RolloutField::ALL.into_iter().zip(1..).map(|(field, n)| (field, *field.bounds().start() + n));
        let distinct: Vec<_> = distinct.collect();
        let set = Rollout::default().with_values(distinct.iter().copied()).expect("within bounds");
        assert_eq!(read_rollout(&message(&set)), distinct);
    }
}
