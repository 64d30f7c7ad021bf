//! The body of a request: one message, converted to one message of gRPC.

use super::super::json;
use super::compression::{Compression, DecompressError, decompress};
use super::{COMPRESSED, with_prefix};
use crate::status;
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use pin_project_lite::pin_project;
use prost_reflect::MessageDescriptor;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;

pin_project! {
    /// Reads the whole body of a request and then returns its message, with gRPC's prefix. A request that cannot be
    /// converted is an error, which the service replies like any other.
    pub struct RequestBody<B> {
        #[pin]
        body: B,
        received: BytesMut,
        conversion: Option<Conversion>,
    }
}

/// How to convert a body.
struct Conversion {
    /// The type of the message if it is JSON.
    json: Option<MessageDescriptor>,
    /// Whether the message has the prefix of a stream's messages.
    has_prefix: bool,
    /// How the message is compressed, or why the headers of the request are not valid.
    compression: Result<Compression, Status>,
    bytes_max: usize,
}

impl<B> RequestBody<B> {
    pub fn new(
        body: B,
        json: Option<MessageDescriptor>,
        has_prefix: bool,
        compression: Result<Compression, Status>,
        bytes_max: usize,
    ) -> Self {
        let conversion = Some(Conversion { json, has_prefix, compression, bytes_max });
        Self { body, received: BytesMut::new(), conversion }
    }
}

impl<B> http_body::Body for RequestBody<B>
where
    B: http_body::Body<Data = Bytes, Error = Status>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let Some(conversion) = this.conversion.as_ref() else { return Poll::Ready(None) };
        let bytes_max = conversion.bytes_max + if conversion.has_prefix { MESSAGE_PREFIX_BYTES } else { 0 };
        let message = loop {
            let bytes_min = this.received.len() as u64 + this.body.size_hint().lower();
            if let Err(status) = &conversion.compression {
                break Err(status.clone());
            }
            if bytes_min > bytes_max as u64 {
                break Ok(oversized(bytes_min));
            }
            match ready!(this.body.as_mut().poll_frame(context)) {
                None => break conversion.convert(this.received),
                Some(Err(status)) => break Err(status),
                // Trailers have no meaning in a request.
                Some(Ok(frame)) => this.received.extend(frame.into_data()),
            }
        };
        *this.conversion = None;
        *this.received = BytesMut::new();
        Poll::Ready(Some(message.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.conversion.is_none()
    }
}

impl Conversion {
    /// Converts a whole body to a message with gRPC's prefix.
    fn convert(&self, received: &[u8]) -> Result<Bytes, Status> {
        let (is_compressed, message) = if self.has_prefix { split_prefix(received)? } else { (true, received) };
        let decompressed = match &self.compression {
            Ok(Compression::Gzip) if is_compressed => match decompress(message, self.bytes_max) {
                Ok(message) => Some(message),
                Err(DecompressError::TooLarge) => return Ok(oversized(self.bytes_max as u64 + 1)),
                Err(DecompressError::ExpandsTooMuch) => {
                    let text = "the message is much larger than its compressed form; send it without compression";
                    return Err(status::malformed(text));
                }
                Err(DecompressError::Malformed) => return Err(status::malformed("the body is not valid gzip")),
            },
            Ok(Compression::Identity) if is_compressed && self.has_prefix => {
                return Err(status::malformed("a compressed message needs the header connect-content-encoding"));
            }
            _ => None,
        };
        let message = decompressed.as_deref().unwrap_or(message);
        Ok(match &self.json {
            Some(descriptor) => with_prefix(0, &json::parse(descriptor.clone(), message)?),
            None => with_prefix(0, message),
        })
    }
}

/// Returns whether the only message of a stream's request is compressed, and the message.
fn split_prefix(received: &[u8]) -> Result<(bool, &[u8]), Status> {
    let (prefix, message) = received.split_first_chunk::<MESSAGE_PREFIX_BYTES>().ok_or_else(|| {
        status::malformed("the body must be one message: a flag, its length in 4 bytes, and the message")
    })?;
    let [flags, length @ ..] = *prefix;
    if flags == b'{' {
        return Err(status::malformed(
            "the body starts with '{' instead of a prefix of 5 bytes: 0, then the length of the message as a big-endian uint32",
        ));
    }
    if flags > COMPRESSED {
        return Err(status::malformed(&format!("unknown flags {flags:#04x} of a message")));
    }
    let length = u32::from_be_bytes(length) as usize;
    if length != message.len() {
        let text =
            format!("the prefix announces {length} bytes, but {} follow; the body must be one message", message.len());
        return Err(status::malformed(&text));
    }
    Ok((flags == COMPRESSED, message))
}

/// Returns the prefix of a message that is too large, which tonic refuses as it refuses such a message of gRPC.
fn oversized(bytes: u64) -> Bytes {
    let mut prefix = BytesMut::with_capacity(MESSAGE_PREFIX_BYTES);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    prefix.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::compression::compress;
    use super::*;
    use http_body::Body as _;
    use http_body_util::{BodyExt, Full};
    use tonic::Code;

    const BYTES_MAX: usize = 4_096;

    async fn read(body: &[u8], has_prefix: bool, compression: Compression) -> Result<Bytes, Status> {
        let body = Full::new(Bytes::copy_from_slice(body)).map_err(|never| match never {});
        let mut message = RequestBody::new(body, None, has_prefix, Ok(compression), BYTES_MAX);
        let frame = message.frame().await.expect("one frame")?.into_data().expect("data");
        assert!(message.is_end_stream() && message.frame().await.is_none());
        Ok(frame)
    }

    fn prefixed(flags: u8, message: &[u8]) -> Vec<u8> {
        with_prefix(flags, message).to_vec()
    }

    #[tokio::test]
    async fn a_message_gets_the_prefix_of_grpc() {
        let message = vec![7; 2_000];
        let gzip = compress(&message, true).expect("large enough");
        for (body, has_prefix, compression) in [
            (message.clone(), false, Compression::Identity),
            (gzip.to_vec(), false, Compression::Gzip),
            (prefixed(0, &message), true, Compression::Identity),
            (prefixed(0, &message), true, Compression::Gzip),
            (prefixed(COMPRESSED, &gzip), true, Compression::Gzip),
        ] {
            assert_eq!(read(&body, has_prefix, compression).await.expect("a message"), with_prefix(0, &message));
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_not_passed_on() {
        let bomb = compress(&vec![0; 1 << 17], true).expect("large enough");
        let large = vec![7; BYTES_MAX + 1];
        for (body, has_prefix, compression) in [
            (large.clone(), false, Compression::Identity),
            (prefixed(0, &large), true, Compression::Identity),
            (bomb.to_vec(), false, Compression::Gzip),
            (prefixed(COMPRESSED, &bomb), true, Compression::Gzip),
        ] {
            let prefix = read(&body, has_prefix, compression).await.expect("a prefix");
            let [0, length @ ..] = <[u8; 5]>::try_from(&*prefix).expect("only a prefix") else { panic!("compressed") };
            assert!(u32::from_be_bytes(length) as usize > BYTES_MAX);
        }
    }

    #[tokio::test]
    async fn a_malformed_body_is_refused() {
        for (body, has_prefix, compression) in [
            (b"no gzip".to_vec(), false, Compression::Gzip),
            (Vec::new(), true, Compression::Identity),
            (vec![0, 0, 0], true, Compression::Identity),
            (prefixed(2, b"x"), true, Compression::Identity),
            (prefixed(COMPRESSED, b"x"), true, Compression::Identity),
            (prefixed(COMPRESSED, b"no gzip"), true, Compression::Gzip),
            ([prefixed(0, b"x"), prefixed(0, b"y")].concat(), true, Compression::Identity),
        ] {
            let status = read(&body, has_prefix, compression).await.expect_err("malformed");
            assert_eq!(status.code(), Code::InvalidArgument, "{body:?}: {status}");
        }
    }

    #[tokio::test]
    async fn a_body_is_not_read_if_a_header_is_not_valid() {
        let body = Full::new(Bytes::from_static(b"x")).map_err(|_| panic!("not read"));
        let mut message = RequestBody::new(body, None, false, Err(status::unsupported_encoding("br")), BYTES_MAX);
        let status = message.frame().await.expect("one frame").expect_err("refused");
        assert_eq!(status.code(), Code::Unimplemented);
    }
}
