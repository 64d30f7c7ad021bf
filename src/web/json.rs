//! Messages as Protobuf JSON, converted using the Protobuf descriptors.

use crate::status;
use crate::wire::FILE_DESCRIPTOR_SET;
use crate::wire::entries::ENTRIES_MAX;
use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::sync::LazyLock;
use tonic::Status;

/// The descriptors of all services and of the details of errors.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::new();
    let services = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let reflection =
        [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
    for set in services.into_iter().chain(reflection).chain([tonic_types::pb::FILE_DESCRIPTOR_SET]) {
        // A set that cannot be added is a mistake of the build, which the tests of this module find.
        let _ = pool.decode_file_descriptor_set(set);
    }
    pool
});

/// Returns the method of a path, `/package.Service/Method`.
pub fn method(path: &str) -> Option<MethodDescriptor> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    POOL.get_service_by_name(service)?.methods().find(|known| known.name() == method)
}

/// Converts a message from JSON.
///
/// # Errors
///
/// MALFORMED, with the position of the error. Unknown fields and fields that occur twice are errors, because ignoring a
/// misspelled or repeated guard would be dangerous.
pub fn parse(descriptor: MessageDescriptor, json: &[u8]) -> Result<Vec<u8>, Status> {
    let name = descriptor.name().to_owned();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = check_shape(json)
        .and_then(|()| DynamicMessage::deserialize(descriptor, &mut deserializer))
        .and_then(|message| deserializer.end().map(|()| message));
    match parsed {
        Ok(message) => Ok(message.encode_to_vec()),
        Err(_) if json.is_empty() => {
            Err(status::malformed(&format!("not a valid {name}: the body is empty; send {{}} for an empty message")))
        }
        // The text contains names of the request.
        Err(error) => Err(status::malformed(&status::shortened(&format!("not a valid {name}: {error}")))),
    }
}

/// Checks that no object has a field twice, and that all lists together have at most [`ENTRIES_MAX`] entries. Anything
/// after the first value is not checked.
fn check_shape(json: &[u8]) -> Result<(), serde_json::Error> {
    let entries = Cell::new(0);
    Shape { entries: &entries }.deserialize(&mut serde_json::Deserializer::from_slice(json))
}

/// Any JSON value of that shape.
#[derive(Clone, Copy)]
struct Shape<'a> {
    /// The number of list entries so far.
    entries: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = HashSet::new();
        while let Some(field) = map.next_key::<Cow<'de, str>>()? {
            map.next_value_seed(self)?;
            // The two spellings of a field, such as `inventoryId` and `inventory_id`, count as one.
            if !fields.insert(field.replace('_', "").to_lowercase()) {
                return Err(A::Error::custom(format_args!("the field '{field}' occurs twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {
            self.entries.set(self.entries.get() + 1);
            if self.entries.get() > ENTRIES_MAX {
                return Err(A::Error::custom(format_args!(
                    "the lists of a request may have at most {ENTRIES_MAX} entries together"
                )));
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// Converts a message to JSON.
pub fn print(descriptor: MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let message = DynamicMessage::decode(descriptor, message).map_err(|error| Status::internal(error.to_string()))?;
    serde_json::to_vec(&message).map_err(|error| Status::internal(error.to_string()))
}

/// Converts a message of the named type to JSON, if the type is known.
pub fn print_any(type_name: &str, message: &[u8]) -> Option<serde_json::Value> {
    let message = DynamicMessage::decode(POOL.get_message_by_name(type_name)?, message).ok()?;
    serde_json::to_value(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;

    #[test]
    fn all_services_and_error_details_are_known() {
        for path in [
            "/slotcast.v1.InventoryService/AddItem",
            "/slotcast.v1.AdminService/Drain",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(method(path).is_some(), "{path}");
        }
        for path in [
            "",
            "/",
            "AddItem",
            "/slotcast.v1.InventoryService",
            "/slotcast.v1.InventoryService/AddItem/",
            "/x/AddItem",
        ] {
            assert!(method(path).is_none(), "{path}");
        }
        for detail in ["ErrorInfo", "BadRequest", "PreconditionFailure", "QuotaFailure", "ResourceInfo", "RetryInfo"] {
            assert!(print_any(&format!("google.rpc.{detail}"), &[]).is_some(), "{detail}");
        }
    }

    #[test]
    fn json_is_converted_both_ways() {
        let method = method("/slotcast.v1.InventoryService/GetInventory").expect("a method");
        let bytes = parse(method.input(), br#"{"inventoryId": "bag"}"#).expect("a message");
        let request = v1::GetInventoryRequest { inventory_id: "bag".into() };
        assert_eq!(bytes, request.encode_to_vec());
        assert_eq!(print(method.input(), bytes.into()).expect("JSON"), br#"{"inventoryId":"bag"}"#);
    }

    #[test]
    fn a_mistake_is_described() {
        let input = method("/slotcast.v1.InventoryService/GetInventory").expect("a method").input();
        for (json, problem) in [
            (r#"{"inventory": "bag"}"#, "inventory"),
            (r#"{"inventoryId": 1}"#, "line 1"),
            (r#"{"inventoryId": "a", "inventoryId": "b"}"#, "'inventoryId' occurs twice at line 1"),
            (r#"{"inventoryId": "a", "inventory_id": "b"}"#, "'inventory_id' occurs twice at line 1"),
            (r#"{"inventoryId": "a"} {}"#, "trailing"),
            ("[]", "line 1"),
            ("", "send {}"),
        ] {
            let status = parse(input.clone(), json.as_bytes()).expect_err(json);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains("GetInventoryRequest") && status.message().contains(problem), "{status}");
        }
        let deep = "[".repeat(1 << 20);
        assert!(parse(input, deep.as_bytes()).is_err());
    }

    #[test]
    fn the_number_of_entries_and_the_length_of_an_error_are_limited() {
        let input = method("/slotcast.v1.InventoryService/Transact").expect("a method").input();
        let operations = |count: usize| format!(r#"{{"operations":[{}]}}"#, vec!["{}"; count].join(","));
        assert!(parse(input.clone(), operations(ENTRIES_MAX).as_bytes()).is_ok());
        let status = parse(input.clone(), operations(ENTRIES_MAX + 1).as_bytes()).expect_err("too many");
        assert!(status.message().contains("16384 entries"), "{status}");
        let status = parse(input, format!(r#"{{"{}":1}}"#, "u".repeat(1 << 20)).as_bytes()).expect_err("unknown");
        assert!(status.message().len() < 1_024, "{} bytes", status.message().len());
    }
}
