//! A protobuf codec with small buffers: an idle stream uses little memory, and each message is one body frame.

use super::reason;
use prost::Message;
#[cfg(feature = "server")]
use prost::bytes::Buf;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Size of gRPC's prefix of each message, in bytes: a flag and the length.
pub const MESSAGE_PREFIX_BYTES: usize = 5;
/// Initial size of a stream's buffers, in bytes. A buffer grows for a larger message; a delta frame is smaller.
const BUFFER_BYTES: usize = 256;
/// A body frame is sent as soon as it contains this many bytes: after each message, whatever its size.
const YIELD_BYTES: usize = 1;

#[derive(Debug, Clone)]
pub struct SmallBufferCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBufferCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBufferCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = SmallBufferDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        SmallBufferDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)))
    }
}

/// Decodes messages. A request that cannot be decoded is the caller's mistake (INVALID_ARGUMENT); a reply that cannot
/// be decoded is an internal error.
#[derive(Debug, Clone)]
pub struct SmallBufferDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for SmallBufferDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        #[cfg(feature = "server")]
        if is_request::<U>() && buffer.remaining() > super::entries::UNCHECKED_BYTES_MAX {
            super::entries::check(std::any::type_name::<U>(), buffer.chunk())?;
        }
        let decoded = self.0.decode(buffer);
        decoded.map_err(|error| if is_request::<U>() { reason::malformed(error.message()) } else { error })
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Returns whether a message type is a request. The generated code uses one codec for both directions. buf's lint
/// guarantees that the names of requests, and of no other messages, end in `Request`.
fn is_request<U>() -> bool {
    std::any::type_name::<U>().ends_with("Request")
}
