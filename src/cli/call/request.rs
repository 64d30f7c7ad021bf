//! Reads requests from JSON, and prints request templates.

use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage, Value};
use uuid::Uuid;

const CONTEXT: &str = "context";
const KEY: &str = "idempotency_key";
/// The error text of an integer conversion that is out of range.
const OUT_OF_RANGE: &str = "out of range integral type conversion attempted";
/// Maximum depth of nested fields in the list of RPCs.
const LISTED_DEPTH_MAX: usize = 3;

/// Parses a request. The error shows the location of the mistake and a request template.
pub fn parse(descriptor: &MessageDescriptor, json: &str) -> Result<DynamicMessage, String> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let parsed = DynamicMessage::deserialize(descriptor.clone(), &mut deserializer)
        .and_then(|message| deserializer.end().map(|()| message));
    parsed.map_err(|error| {
        let line = error.line().checked_sub(1).and_then(|line| json.lines().nth(line));
        // The column counts bytes up to the position where parsing stopped.
        let excerpt = line.map(|line| {
            let before = line.get(..error.column().saturating_sub(1)).unwrap_or(line).chars().count();
            format!("\n\n  {line}\n  {:before$}^", "")
        });
        let error = error.to_string().replace(OUT_OF_RANGE, "the number is out of range for its field");
        let (name, excerpt, template) = (descriptor.name(), excerpt.unwrap_or_default(), template(descriptor));
        format!("not a valid {name}: {error}{excerpt}\n\nTemplate of a {name}:\n\n{template}")
    })
}

/// Sets the idempotency key of a mutation: the given key, the request's own key, or a new key. Returns the key, or
/// `None` for an RPC without idempotency keys.
pub fn set_key(message: &mut DynamicMessage, given: Option<&str>) -> Result<Option<String>, String> {
    let name = message.descriptor().name().to_owned();
    let context = message.descriptor().get_field_by_name(CONTEXT);
    let Some(context) = context.filter(has_key) else {
        return given.map_or(Ok(None), |_| Err(format!("--key: {name} has no idempotency key")));
    };
    let Value::Message(context) = message.get_field_mut(&context) else { return Ok(None) };
    let own = context.get_field_by_name(KEY).and_then(|key| key.as_str().map(str::to_owned)).unwrap_or_default();
    let key = match given {
        Some(given) => given.to_owned(),
        None if own.is_empty() => Uuid::now_v7().to_string(),
        None => own,
    };
    context.set_field_by_name(KEY, Value::String(key.clone()));
    Ok(Some(key))
}

fn has_key(field: &FieldDescriptor) -> bool {
    field.kind().as_message().is_some_and(|message| message.get_field_by_name(KEY).is_some())
}

/// Returns a request template with every field, and the first alternative of each oneof. The template omits the
/// context, because `call` adds it.
pub fn template(descriptor: &MessageDescriptor) -> String {
    let mut message = example(descriptor, &mut Vec::new());
    message.clear_field_by_name(CONTEXT);
    super::to_json(&message, true).unwrap_or_default()
}

/// Returns a message with an example value in each field. `enclosing` has the names of the enclosing messages: a field
/// of one of these types stays empty, which ends the recursion.
fn example(descriptor: &MessageDescriptor, enclosing: &mut Vec<String>) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    if enclosing.iter().any(|outer| outer == descriptor.full_name()) {
        return message;
    }
    enclosing.push(descriptor.full_name().to_owned());
    for field in descriptor.fields().filter(is_first_alternative) {
        let kind = field.kind();
        let value = match kind.as_message() {
            Some(inner) => Value::Message(example(inner, enclosing)),
            None => Value::default_value(&kind),
        };
        // Set explicitly, so that a default value is printed as well.
        message.set_field(&field, if field.is_list() { Value::List(vec![value]) } else { value });
    }
    enclosing.pop();
    message
}

fn is_first_alternative(field: &FieldDescriptor) -> bool {
    field.containing_oneof().and_then(|oneof| oneof.fields().next()).is_none_or(|first| first == *field)
}

/// Returns the names of a request's fields on one line, for example `add { inventoryId, stack { item, count } }`.
pub fn fields(message: &MessageDescriptor) -> String {
    let names = message.fields().filter(|field| field.name() != CONTEXT);
    names.map(|field| field_text(&field, 1)).collect::<Vec<_>>().join(", ")
}

fn field_text(field: &FieldDescriptor, depth: usize) -> String {
    let kind = field.kind();
    let inner = match kind.as_message() {
        Some(_) if depth >= LISTED_DEPTH_MAX => " { … }".to_owned(),
        // Alternatives are listed by name only: with their fields they would fill a screen.
        Some(message) if is_one_oneof(message) => {
            let names: Vec<String> = message.fields().map(|inner| inner.json_name().to_owned()).collect();
            format!(" {{ {} }}", names.join(" | "))
        }
        Some(message) => {
            let names: Vec<String> = message.fields().map(|inner| field_text(&inner, depth + 1)).collect();
            format!(" {{ {} }}", names.join(", "))
        }
        None => String::new(),
    };
    let name = field.json_name();
    match (field.is_list(), inner.strip_prefix(' ')) {
        (true, Some(inner)) => format!("{name} [{inner}]"),
        (true, None) => format!("{name} []"),
        (false, _) => format!("{name}{inner}"),
    }
}

/// Returns whether a message consists of one oneof.
fn is_one_oneof(message: &MessageDescriptor) -> bool {
    message.fields().len() > 1 && message.oneofs().any(|oneof| oneof.fields().len() == message.fields().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FILE_DESCRIPTOR_SET, v1};
    use prost::Message;
    use prost_reflect::DescriptorPool;

    fn message(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        pool.get_message_by_name(&format!("slotcast.v1.{name}")).unwrap()
    }

    #[test]
    fn json_becomes_the_message_that_a_generated_client_would_send() {
        let json = r#"{"move": {"inventoryId": "steve", "from": {"slot": 3, "count": 0}, "to": {"slot": 0}}}"#;
        let parsed = parse(&message("MoveItemRequest"), json).unwrap();
        let sent = v1::MoveItemRequest::decode(parsed.encode_to_vec().as_slice()).unwrap();
        let expected = v1::MoveItem {
            inventory_id: "steve".into(),
            from: Some(v1::SlotQuantity { slot: 3, count: Some(0) }),
            to: Some(v1::SlotRef { slot: 0 }),
        };
        assert_eq!(sent.r#move, Some(expected), "a count of 0 differs from an omitted count");
    }

    #[test]
    fn an_error_shows_the_location_of_the_mistake_and_a_template() {
        let error = parse(&message("DropItemRequest"), "{\n  \"drop\": {\"slots\": 1}\n}").unwrap_err();
        let expected = "not a valid DropItemRequest: unrecognized field name 'slots' at line 2 column 18\n\n  \
                        \x20 \"drop\": {\"slots\": 1}\n                   ^\n\n\
                        Template of a DropItemRequest:\n\n\
                        {\n  \"drop\": {\n    \"inventoryId\": \"\",\n    \"from\": {\n      \"slot\": 0,\n      \"count\": 0\n    }\n  }\n}";
        assert_eq!(error, expected);
        let error = parse(&message("DropItemRequest"), r#"{"drop": {"from": {"slot": -1}}}"#).unwrap_err();
        assert!(error.contains(": the number is out of range for its field at line 1 column"), "{error}");
        let error = parse(&message("GetCatalogRequest"), "{} x").unwrap_err();
        assert!(error.contains("trailing characters at line 1 column 4"), "{error}");
    }

    #[test]
    fn every_template_is_a_valid_request() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        for rpc in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let json = template(&rpc.input());
            parse(&rpc.input(), &json).unwrap_or_else(|error| panic!("{}: {error}", rpc.name()));
        }
    }

    #[test]
    fn a_mutation_without_a_key_gets_a_new_key() {
        let add = message("AddItemRequest");
        let with_key = |json: &str, given| set_key(&mut parse(&add, json).unwrap(), given).unwrap().unwrap();
        assert_eq!(Uuid::parse_str(&with_key("{}", None)).unwrap().get_version_num(), 7);
        let own = r#"{"context": {"idempotencyKey": "own", "reason": "loot"}}"#;
        assert_eq!(with_key(own, None), "own");
        assert_eq!(with_key(own, Some("given")), "given");
        let mut get = parse(&message("GetInventoryRequest"), "{}").unwrap();
        assert_eq!(set_key(&mut get, None), Ok(None));
        assert_eq!(
            set_key(&mut get, Some("given")),
            Err("--key: GetInventoryRequest has no idempotency key".to_owned())
        );
    }
}
