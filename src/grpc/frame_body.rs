//! The body of a `SubscribeInventory` response: one DATA frame for each message, of exactly its size, and trailers with
//! the status. Nothing is buffered between frames.

use super::stream::FrameStream;
use super::stream_limit::StreamPermit;
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::v1;
use bytes::{Buf, Bytes};
use futures_util::Stream;
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;

/// A stream and its permit. It counts as open until it is dropped or has ended.
pub struct SubscriptionBody(Option<OpenStream>);

struct OpenStream {
    stream: FrameStream,
    _permit: StreamPermit,
}

impl SubscriptionBody {
    pub fn new(stream: FrameStream, permit: StreamPermit) -> Self {
        Self(Some(OpenStream { stream, _permit: permit }))
    }

    /// Returns the next message with its prefix, the status with which the stream ends, and then `None`.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some(open) = &mut self.0 else { return Poll::Ready(None) };
        let message = ready!(open.stream.poll_message(context));
        Poll::Ready(Some(message.map_err(|end| {
            self.0 = None;
            end.into()
        })))
    }
}

impl http_body::Body for SubscriptionBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = ready!(self.poll_message(context));
        Poll::Ready(message.map(|message| match message {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(status) => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Ok(Frame::trailers(trailers))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// The messages of the stream, for tonic's generated server, which serves requests that do not take the short path.
impl Stream for SubscriptionBody {
    type Item = Result<v1::SubscribeInventoryResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = ready!(self.poll_message(context));
        Poll::Ready(message.map(|message| {
            let mut bytes = message?;
            bytes.advance(MESSAGE_PREFIX_BYTES);
            v1::SubscribeInventoryResponse::decode(bytes).map_err(|error| Status::internal(error.to_string()))
        }))
    }
}
