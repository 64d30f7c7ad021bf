//! Compression of messages with gzip.

use crate::status;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::HeaderValue;
use std::io::{Read, Write};
use tonic::Status;

pub const GZIP: HeaderValue = HeaderValue::from_static("gzip");
/// A message is compressed from this size on, in bytes. A frame of a few slots would become larger.
const BYTES_MIN: usize = 1_024;
/// Maximum size of a decompressed message as a multiple of the compressed one, if it is larger than [`EXPANDED_BYTES_MIN`].
/// Gzip reaches 1,000, so a tiny request could cost as much as the largest one.
const EXPANSION_MAX: usize = 64;
const EXPANDED_BYTES_MIN: usize = 256 * 1_024;

/// How the message of a request is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Identity,
    Gzip,
}

/// Why a message could not be decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecompressError {
    TooLarge,
    ExpandsTooMuch,
    Malformed,
}

/// Returns the compression that a request declares.
pub fn of_request(encoding: Option<&HeaderValue>) -> Result<Compression, Status> {
    let name = encoding.map_or("", |value| value.to_str().unwrap_or("?"));
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        Ok(Compression::Identity)
    } else if name.eq_ignore_ascii_case("gzip") {
        Ok(Compression::Gzip)
    } else {
        Err(status::unsupported_encoding(name))
    }
}

/// Returns whether a list of accepted encodings contains gzip with a weight other than 0.
pub fn accepts_gzip(accepted: Option<&HeaderValue>) -> bool {
    let text = accepted.and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(',').any(|entry| {
        let (name, weight) = entry.split_once(';').unwrap_or((entry, ""));
        let is_refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Compresses a message if the client accepts that and it is large enough. Returns `None` otherwise.
pub fn compress(message: &[u8], accepts_gzip: bool) -> Option<Bytes> {
    if !accepts_gzip || message.len() < BYTES_MIN {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(message).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Decompresses a message of at most `bytes_max` bytes, of one or several gzip members. Reads no further than that.
pub fn decompress(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecompressError> {
    let expanded_max = compressed.len().saturating_mul(EXPANSION_MAX).max(EXPANDED_BYTES_MIN);
    let mut message = Vec::new();
    let mut decoder = MultiGzDecoder::new(compressed).take(bytes_max.min(expanded_max) as u64 + 1);
    decoder.read_to_end(&mut message).map_err(|_| DecompressError::Malformed)?;
    match message.len() {
        bytes if bytes > bytes_max => Err(DecompressError::TooLarge),
        bytes if bytes > expanded_max => Err(DecompressError::ExpandsTooMuch),
        _ => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_message_is_bounded_when_it_is_read() {
        let message = vec![b'x'; EXPANDED_BYTES_MIN];
        let compressed = compress(&message, true).expect("large enough");
        assert!(compressed.len() < 4_096);
        assert_eq!(decompress(&compressed, message.len()), Ok(message.clone()));
        assert_eq!(decompress(&compressed, message.len() - 1), Err(DecompressError::TooLarge));
        let twice = [&*compressed, &*compressed].concat();
        assert_eq!(decompress(&twice, 1 << 30), Err(DecompressError::ExpandsTooMuch));
        let small = compress(&message[..1_024], true).expect("large enough");
        assert_eq!(decompress(&[&*small, &*small].concat(), 4_096), Ok(message[..2_048].to_vec()), "two members");
        assert_eq!(decompress(&[&*small, b"x"].concat(), 4_096), Err(DecompressError::Malformed));
        assert_eq!(decompress(&compressed[..100], message.len()), Err(DecompressError::Malformed));
        assert_eq!(decompress(b"no gzip", 1_024), Err(DecompressError::Malformed));
        assert_eq!(compress(&message, false), None);
        assert_eq!(compress(&message[..100], true), None);
    }

    #[test]
    fn headers_name_the_compression() {
        let value = |text: &'static str| HeaderValue::from_static(text);
        assert_eq!(of_request(None).ok(), Some(Compression::Identity));
        assert_eq!(of_request(Some(&value("gzip"))).ok(), Some(Compression::Gzip));
        assert_eq!(of_request(Some(&value("GZIP"))).ok(), Some(Compression::Gzip));
        assert_eq!(of_request(Some(&value("br"))).map_err(|status| status.code()), Err(tonic::Code::Unimplemented));
        for (accepted, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("deflate,gzip", true),
            ("gzip;q=0", false),
            ("br", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(Some(&value(accepted))), expected, "{accepted}");
        }
        assert!(!accepts_gzip(None));
    }
}
