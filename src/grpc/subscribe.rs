//! Opens the streams of `SubscribeInventory`.

use super::read_authorization::{self, ReadAuthorization};
use super::service::{Service, identity, trace_context};
use super::stream::{FrameStream, StreamParameters};
use super::stream_limit::LimitedStream;
use crate::status;
use crate::sync::subscription::check_size;
use crate::sync::{Bucket, FrameAge, LimitedPlayer, SubscribeOptions};
use crate::transport::{Connection, DrainSignal};
use crate::wire::{frame, v1};
use tonic::{Request, Response, Status};

pub(super) type FrameResponse = Response<LimitedStream<Result<v1::SubscribeInventoryResponse, Status>>>;

impl Service {
    pub(super) async fn subscribe(
        &self,
        request: &Request<v1::SubscribeInventoryRequest>,
    ) -> Result<FrameResponse, Status> {
        let identity = identity(request)?;
        let permit = self
            .streams
            .acquire(identity)
            .map_err(|error| status::too_many_streams(&error.opener, error.streams_max))?;
        let (ids, options) =
            frame::subscribe_options(request.get_ref()).map_err(|violation| status::invalid_field(&violation))?;
        let options = SubscribeOptions { access: read_authorization::read_access(identity)?, ..options };
        let watched =
            self.engine.watch(ids, options.session.clone()).await.map_err(|error| status::engine_error(&error))?;
        let visible = options.access.visible(watched.states());
        check_size(&visible).map_err(status::subscription_too_large)?;
        let owner = visible.iter().find_map(|state| state.inventory.as_deref()?.owner.as_ref());
        let player = identity.player.as_ref().or(owner);
        let age = FrameAge::default();
        let parameters = StreamParameters {
            watched,
            bucket: Bucket::of_stream(player, options.session.as_ref(), &identity.caller),
            options,
            authorization: ReadAuthorization::new(identity),
            rollout: self.rollout.subscribe(),
            statistics: self.statistics.clone(),
            closing: request.extensions().get().map_or_else(DrainSignal::never, Connection::drain_signal),
            telemetry: self.telemetry.frames(trace_context(request)),
            age: age.clone(),
            start: self.start,
        };
        let stream = FrameStream::open(parameters).into_stream();
        let mut response = Response::new(permit.attach(Box::pin(stream)));
        if let Some(player) = &identity.player {
            response.extensions_mut().insert(LimitedPlayer(player.clone()));
            response.extensions_mut().insert(age);
        }
        Ok(response)
    }
}
