//! Limits the number of messages inside a request before it is decoded. A message of two bytes takes a hundred times as
//! much memory once it is decoded, so the size of a request alone does not limit its memory.

use super::{FILE_DESCRIPTOR_SET, reason};
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use std::sync::LazyLock;
use tonic::Status;

/// Maximum number of messages, and of entries in lists of texts, inside one request.
pub const ENTRIES_MAX: usize = 16_384;
/// A request of at most this many bytes is not checked: its memory is small in any case.
pub const UNCHECKED_BYTES_MAX: usize = 64 * 1_024;
/// The decoder refuses messages that are nested more deeply.
const DEPTH_MAX: usize = 100;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default());

/// Why a message is not examined further.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    TooMany,
    /// The decoder will report it.
    Malformed,
}

/// Checks a request of the Rust type `type_name`, such as `slotcast::wire::v1::TransactRequest`.
///
/// # Errors
///
/// MALFORMED if the request contains more than [`ENTRIES_MAX`] messages. Bytes that are not a message pass: the decoder
/// reports them.
pub fn check(type_name: &str, bytes: &[u8]) -> Result<(), Status> {
    let name = type_name.rsplit("::").next().unwrap_or_default();
    let Some(descriptor) = POOL.get_message_by_name(&format!("slotcast.v1.{name}")) else { return Ok(()) };
    match count(&descriptor, bytes, 0, &mut 0) {
        Ok(()) | Err(Stop::Malformed) => Ok(()),
        Err(Stop::TooMany) => Err(reason::malformed(&format!(
            "a request may contain at most {ENTRIES_MAX} messages; send several requests"
        ))),
    }
}

fn count(descriptor: &MessageDescriptor, mut bytes: &[u8], depth: usize, entries: &mut usize) -> Result<(), Stop> {
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).map_err(|_| Stop::Malformed)?;
        match wire_type {
            WireType::Varint => drop(decode_varint(&mut bytes).map_err(|_| Stop::Malformed)?),
            WireType::SixtyFourBit => skip(&mut bytes, 8)?,
            WireType::ThirtyTwoBit => skip(&mut bytes, 4)?,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(|_| Stop::Malformed)?;
                let length = usize::try_from(length).map_err(|_| Stop::Malformed)?;
                let content = bytes.get(..length).ok_or(Stop::Malformed)?;
                bytes.advance(length);
                let Some(field) = descriptor.get_field(number) else { continue };
                let kind = field.kind();
                let message = kind.as_message();
                if message.is_some() || field.is_list() && !field.is_packed() {
                    *entries += 1;
                }
                if *entries > ENTRIES_MAX {
                    return Err(Stop::TooMany);
                }
                if let Some(message) = message.filter(|_| depth < DEPTH_MAX) {
                    count(message, content, depth + 1, entries)?;
                }
            }
            WireType::StartGroup | WireType::EndGroup => return Err(Stop::Malformed),
        }
    }
    Ok(())
}

fn skip(bytes: &mut &[u8], length: usize) -> Result<(), Stop> {
    bytes.get(..length).ok_or(Stop::Malformed)?;
    bytes.advance(length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;
    use prost::Message;

    fn is_refused<T: Message>(message: &T) -> bool {
        check(std::any::type_name::<T>(), &message.encode_to_vec()).is_err()
    }

    #[test]
    fn messages_are_counted_at_every_depth() {
        let operations =
            |count| v1::TransactRequest { context: None, operations: vec![v1::Operation::default(); count] };
        assert!(!is_refused(&operations(ENTRIES_MAX)));
        assert!(is_refused(&operations(ENTRIES_MAX + 1)));
        let guards = |count| v1::MutationContext { expected: vec![Default::default(); count], ..Default::default() };
        let add = |count| v1::AddItemRequest { context: Some(guards(count)), add: None };
        assert!(!is_refused(&add(ENTRIES_MAX - 1)));
        assert!(is_refused(&add(ENTRIES_MAX)));
    }

    #[test]
    fn other_bytes_are_left_to_the_decoder() {
        for bytes in [&b"\xff"[..], b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05a", b"\x0b", b"\x09abc", b""] {
            assert!(check(std::any::type_name::<v1::AddItemRequest>(), bytes).is_ok(), "{bytes:?}");
        }
        assert!(check("grpc::HealthCheckRequest", b"\x0a\x00").is_ok());
    }
}
