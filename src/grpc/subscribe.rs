//! Opens the streams of `SubscribeInventory`.

use super::frame_body::SubscriptionBody;
use super::read_authorization::{self, ReadAuthorization};
use super::service::{Service, identity, trace_context};
use super::stream::{FrameStream, StreamParameters};
use crate::status;
use crate::sync::subscription::check_size;
use crate::sync::{Bucket, SubscribeOptions};
use crate::transport::{Connection, DrainSignal};
use crate::wire::{frame, v1};
use tonic::{Request, Status};

impl Service {
    /// Opens a stream.
    pub(super) async fn subscribe(
        &self,
        request: &Request<v1::SubscribeInventoryRequest>,
    ) -> Result<SubscriptionBody, Status> {
        let identity = identity(request)?;
        let permit = self
            .stream_limiter
            .acquire(identity)
            .map_err(|error| status::too_many_streams(&error.opener, error.streams_max))?;
        let (ids, options) =
            frame::subscribe_options(request.get_ref()).map_err(|violation| status::invalid_field(&violation))?;
        let options = SubscribeOptions { access: read_authorization::read_access(identity)?, ..options };
        let session = options.session.clone();
        let watched = self.engine.watch(ids, session).await.map_err(|error| status::engine_error(&error))?;
        let visible = options.access.visible(watched.states());
        check_size(&visible).map_err(status::subscription_too_large)?;
        let owner = visible.iter().find_map(|state| state.inventory.as_deref()?.owner.as_ref());
        let player = identity.player.as_ref().or(owner);
        let parameters = StreamParameters {
            watched,
            bucket: Bucket::of_stream(player, options.session.as_ref(), &identity.caller),
            options,
            authorization: ReadAuthorization::new(identity),
            limited_player: identity.player.clone(),
            drain_signal: request.extensions().get().map_or_else(DrainSignal::never, Connection::drain_signal),
            trace: trace_context(request),
        };
        Ok(SubscriptionBody::new(FrameStream::open(self.streams.clone(), parameters), permit))
    }
}
