//! `docs/reference.md` is generated from the protos, the table of error reasons, the table of permissions, the limits in
//! the source and the examples below. These tests compare it with the sources and send the examples to a server;
//! `just reference` writes it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{TestServer, immediate};
use prost_reflect::{DescriptorPool, FileDescriptor, MethodDescriptor};
use slotcast::domain::catalog::{COUNT_MAX, LAYOUT_SLOTS_MAX};
use slotcast::domain::mutation::{GUARDS_MAX, OPERATIONS_MAX};
use slotcast::domain::{Attributes, Caller, IdempotencyKey, InventoryId, PlayerId, SessionId};
use slotcast::grpc::reads::PAGE_SIZE_MAX;
use slotcast::grpc::stream_limit::StreamSettings;
use slotcast::identity::TOKEN_BYTES_MAX;
use slotcast::identity::permissions::{MethodAccess, method_access};
use slotcast::sync::subscription::{SUBSCRIPTION_INVENTORIES_MAX, SUBSCRIPTION_SLOTS_MAX};
use slotcast::transport::TransportSettings;
use slotcast::wire::entries::ENTRIES_MAX;
use slotcast::wire::reason::{NUMBER_MAX, code_name};
use slotcast::wire::request::REASON_BYTES_MAX;
use slotcast::wire::{CALLER_METADATA, ErrorReason, PLAYER_METADATA};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/slotcast_with_comments.bin"));
const UPDATE: &str = "SLOTCAST_UPDATE_REFERENCE";

/// Field numbers in `google/protobuf/descriptor.proto`, which make up the paths of comments.
const SERVICE: i32 = 6;
const METHOD: i32 = 2;
const ENUM: i32 = 5;
const VALUE: i32 = 2;

/// Address of a server with default settings.
const SERVER: &str = "http://127.0.0.1:7400";
/// Timeout that only a failure reaches.
const WAIT: Duration = Duration::from_secs(10);
/// Maximum size of a request and its URL in one line, in bytes.
const EXAMPLE_BYTES_MAX: usize = 110;
/// A request of each RPC. In this order, all of them succeed on a new store.
const EXAMPLES: [(&str, &str); 20] = [
    (
        "CreateInventory",
        r#"{"context": {"idempotencyKey": "create-1"}, "create": {"inventoryId": "alex", "owner": "alex", "layout": "player", "stacks": [{"slot": 0, "stack": {"item": "oak_log", "count": 10}}]}}"#,
    ),
    ("GetInventory", r#"{"inventoryId": "alex"}"#),
    ("ListInventories", r#"{"owner": "alex", "pageSize": 10}"#),
    (
        "AddItem",
        r#"{"context": {"idempotencyKey": "add-1", "reason": "mined"}, "add": {"inventoryId": "alex", "stack": {"item": "cobblestone", "count": 100}}}"#,
    ),
    (
        "RemoveItem",
        r#"{"context": {"idempotencyKey": "remove-1"}, "remove": {"inventoryId": "alex", "item": {"item": "cobblestone", "count": 36}}}"#,
    ),
    (
        "MoveItem",
        r#"{"context": {"idempotencyKey": "move-1"}, "move": {"inventoryId": "alex", "from": {"slot": 0}, "to": {"slot": 8}}}"#,
    ),
    (
        "DropItem",
        r#"{"context": {"idempotencyKey": "drop-1"}, "drop": {"inventoryId": "alex", "from": {"slot": 2, "count": 16}}}"#,
    ),
    (
        "CraftItem",
        r#"{"context": {"idempotencyKey": "craft-1"}, "craft": {"inventoryId": "alex", "recipe": "oak_planks", "times": 2}}"#,
    ),
    (
        "Transact",
        r#"{"context": {"idempotencyKey": "transact-1"}, "operations": [{"create": {"inventoryId": "chest-1", "layout": "chest"}}, {"transfer": {"fromInventoryId": "alex", "toInventoryId": "chest-1", "from": {"slot": 2}}}]}"#,
    ),
    (
        "TransferItem",
        r#"{"context": {"idempotencyKey": "transfer-1"}, "transfer": {"fromInventoryId": "chest-1", "toInventoryId": "alex", "item": {"item": "cobblestone", "count": 5}}}"#,
    ),
    (
        "RearrangeInventory",
        r#"{"context": {"idempotencyKey": "rearrange-1"}, "rearrange": {"inventoryId": "chest-1", "stacks": [{"slot": 13, "stack": {"item": "cobblestone", "count": 15}}]}}"#,
    ),
    (
        "SetSlot",
        r#"{"context": {"idempotencyKey": "set-1"}, "set": {"inventoryId": "alex", "at": {"slot": 4}, "stack": {"item": "apple", "count": 3}}}"#,
    ),
    ("SubscribeInventory", r#"{"inventories": [{"inventoryId": "alex"}, {"inventoryId": "chest-1"}]}"#),
    (
        "ReportDesync",
        r#"{"session": "alex-1", "have": {"inventoryId": "alex", "epoch": 2271560481, "revision": 9, "digest": {"a": 162814181, "b": 3490430581}}}"#,
    ),
    ("GetCatalog", "{}"),
    ("DeleteInventory", r#"{"context": {"idempotencyKey": "delete-1"}, "delete": {"inventoryId": "chest-1"}}"#),
    ("GetRollout", "{}"),
    ("UpdateRollout", r#"{"reason": "first 10 percent", "deltaPercent": 10}"#),
    ("GetStatistics", "{}"),
    ("Drain", r#"{"reason": "maintenance"}"#),
];
/// A mutation that requires the first version of an inventory. The epoch stands for that of the reader's inventory.
const GUARDED: (&str, &str) = (
    "AddItem",
    r#"{"context": {"idempotencyKey": "add-2", "expected": [{"inventoryId": "alex", "epoch": 536377096, "revision": "1"}]}, "add": {"inventoryId": "alex", "stack": {"item": "apple", "count": 5}}}"#,
);
const GUARDED_EPOCH: &str = "536377096";

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let expected = reference();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(current == expected, "docs/reference.md is not current; write it with `just reference`");
}

#[test]
fn every_rpc_has_an_example() {
    let methods = methods(&pool());
    let names: BTreeSet<&str> = methods.iter().map(MethodDescriptor::name).collect();
    assert_eq!(names.len(), methods.len(), "the name of an RPC identifies it");
    assert_eq!(EXAMPLES.map(|(name, _)| name).into_iter().collect::<BTreeSet<_>>(), names);
}

#[tokio::test]
async fn every_example_succeeds_in_the_order_of_the_page() {
    let server = TestServer::start(immediate()).await;
    let methods = methods(&pool());
    for (name, json) in EXAMPLES {
        let method = methods.iter().find(|method| method.name() == name).unwrap();
        let reply = tokio::time::timeout(WAIT, send(server.running.address, method, json)).await.expect(name);
        assert!(reply.starts_with("HTTP/1.1 200 ") && !reply.contains("\"error\""), "{name}: {reply}");
    }
}

#[tokio::test]
async fn the_guarded_example_succeeds_only_with_the_epoch_of_the_inventory() {
    let server = TestServer::start(immediate()).await;
    let methods = methods(&pool());
    let call = async |(name, json): (&str, &str)| {
        let method = methods.iter().find(|method| method.name() == name).unwrap();
        tokio::time::timeout(WAIT, send(server.running.address, method, json)).await.expect(name)
    };
    let created = call(EXAMPLES[0]).await;
    let epoch = created.split_once("\"epoch\":").and_then(|(_, rest)| rest.split_once(',')).expect(&created).0;
    let (name, json) = GUARDED;
    let refused = call((name, json)).await;
    assert!(refused.starts_with("HTTP/1.1 409 ") && refused.contains("STALE_REVISION"), "{refused}");
    let applied = call((name, &json.replace(GUARDED_EPOCH, epoch))).await;
    assert!(applied.starts_with("HTTP/1.1 200 "), "{applied}");
}

/// Sends a request over HTTP/1.1 as JSON. Returns the whole reply, or that of a stream until its first message.
async fn send(address: SocketAddr, method: &MethodDescriptor, json: &str) -> String {
    let (content_type, prefix) = if method.is_server_streaming() {
        ("application/connect+json", [&[0_u8][..], &(json.len() as u32).to_be_bytes()[..]].concat())
    } else {
        ("application/json", Vec::new())
    };
    let (path, length) = (path(method), prefix.len() + json.len());
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
         content-length: {length}\r\n\r\n"
    );
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&[head.as_bytes(), &prefix, json.as_bytes()].concat()).await.unwrap();
    let mut reply = Vec::new();
    while socket.read_buf(&mut reply).await.unwrap() > 0 {
        if String::from_utf8_lossy(&reply).contains("\"caughtUp\":true") {
            break;
        }
    }
    String::from_utf8_lossy(&reply).into_owned()
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).unwrap()
}

fn methods(pool: &DescriptorPool) -> Vec<MethodDescriptor> {
    let services = pool.services().filter(|service| service.package_name() == "slotcast.v1");
    services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

fn reference() -> String {
    let pool = pool();
    let mut page = String::from(
        "<!-- Generated by tests/reference.rs; write it with `just reference`. -->\n\n# Reference\n\n\
         The messages are documented in [proto/slotcast/v1](../proto/slotcast/v1). How to use metadata and errors is on the page\n\
         [Requests and errors](errors.md).\n",
    );
    for service in pool.services().filter(|service| service.package_name() == "slotcast.v1") {
        let file = service.parent_file();
        let index = file.services().position(|candidate| candidate == service).unwrap() as i32;
        write!(page, "\n## {}\n\n{}\n\n", service.name(), comment(&file, &[SERVICE, index])).unwrap();
        page.push_str("| RPC | role | description |\n|---|---|---|\n");
        for (method_index, method) in service.methods().enumerate() {
            let stream = if method.is_server_streaming() { " (stream)" } else { "" };
            let path_of_comment = [SERVICE, index, METHOD, method_index as i32];
            let (name, role) = (method.name(), role(&path(&method)));
            writeln!(page, "| `{name}`{stream} | {role} | {} |", comment(&file, &path_of_comment)).unwrap();
        }
    }
    page.push_str(&examples(&pool));
    page.push_str(&reasons(&pool));
    page.push_str(&metadata());
    page.push_str(&limits());
    page
}

fn role(path: &str) -> String {
    match method_access(path).unwrap_or_else(|| panic!("{path} is not in src/identity/permissions.rs")) {
        MethodAccess::Public => "none".into(),
        MethodAccess::MinRole(role) => role.to_string(),
    }
}

fn examples(pool: &DescriptorPool) -> String {
    let methods = methods(pool);
    let mut text = String::from(
        "\n## Examples\n\n\
         Each RPC as a call with curl, to a server on this machine without authentication. With TLS and authentication, use `https`\n\
         and add `--cacert dev/ca.pem --header \"authorization: Bearer $(cat dev/service.token)\"`, with a token of the role in the\n\
         tables above. In this order, all calls succeed on a new store; give each further mutation a new idempotency key. The epoch\n\
         and the digest of `ReportDesync` are invented. The last call stops the server.\n\n\
         The request of a stream has a prefix of 5 bytes: 0, and the length of the JSON in 4 bytes ([Streams](errors.md#streams));\n\
         `printf` writes the last of them in octal. The stream runs until Ctrl-C, or for as many seconds as `--max-time` says.\n\n\
         ```sh\n",
    );
    for (name, json) in EXAMPLES {
        let method = methods.iter().find(|method| method.name() == name).unwrap();
        let url = format!("{SERVER}{}", path(method));
        if method.is_server_streaming() {
            let length = u8::try_from(json.len()).unwrap();
            write!(text, "printf '\\0\\0\\0\\0\\{length:03o}%s' '{json}' |\n  ").unwrap();
            text.push_str(
                "curl --no-buffer --output - --data-binary @- --header 'content-type: application/connect+json' \\\n  ",
            );
        } else {
            write!(text, "curl --json '{json}' ").unwrap();
            if json.len() + url.len() > EXAMPLE_BYTES_MAX {
                text.push_str("\\\n  ");
            }
        }
        writeln!(text, "{url}").unwrap();
    }
    text.push_str("```\n");
    let (name, json) = GUARDED;
    let method = methods.iter().find(|method| method.name() == name).unwrap();
    write!(
        text,
        "\nA guarded mutation names the version that each inventory must have, from `GetInventory`, a receipt or the stream. If an\n\
         inventory has another one, the mutation fails with `STALE_REVISION` and changes nothing:\n\n\
         ```sh\ncurl --json '{json}' \\\n  {SERVER}{}\n```\n",
        path(method),
    )
    .unwrap();
    text
}

fn reasons(pool: &DescriptorPool) -> String {
    let mut text = String::from(
        "\n## Error reasons\n\n\
         Reasons of `google.rpc.ErrorInfo` (domain `slotcast`), and the other `google.rpc` details of their errors.\n\n\
         | reason | status | details | meaning |\n|---|---|---|---|\n",
    );
    let reasons = pool.get_enum_by_name("slotcast.v1.ErrorReason").unwrap();
    let file = reasons.parent_file();
    let index = file.enums().position(|candidate| candidate == reasons).unwrap() as i32;
    assert!(reasons.values().all(|value| value.number() <= NUMBER_MAX), "increase NUMBER_MAX");
    for reason in ErrorReason::all() {
        let value = reasons.values().position(|value| value.number() == reason as i32).unwrap() as i32;
        let details: Vec<String> = reason.details().iter().map(|detail| format!("{detail:?}")).collect();
        let meaning = comment(&file, &[ENUM, index, VALUE, value]);
        let (name, code) = (reason.name(), code_name(reason.code()));
        writeln!(text, "| `{name}` | {code} | {} | {meaning} |", details.join(", ")).unwrap();
    }
    text
}

fn metadata() -> String {
    let rows = [
        ("authorization", "`Bearer TOKEN`. Ignored if authentication is disabled".to_owned()),
        (
            CALLER_METADATA,
            format!("Name of the caller, 1 to {} bytes. Ignored if authentication is enabled", Caller::BYTES_MAX),
        ),
        (PLAYER_METADATA, format!("Player on whose behalf the call is made, 1 to {} bytes", PlayerId::BYTES_MAX)),
        ("grpc-timeout", "Deadline of a gRPC or gRPC-Web call".to_owned()),
        ("connect-timeout-ms", "Deadline of a Connect call in milliseconds, at most 10 digits".to_owned()),
        ("traceparent", "W3C trace context".to_owned()),
    ];
    let mut text = String::from("\n## Request metadata\n\n| name | value |\n|---|---|\n");
    for (name, value) in rows {
        writeln!(text, "| `{name}` | {value} |").unwrap();
    }
    text
}

/// The limits of requests. Limits that are settings have their defaults here.
fn limits() -> String {
    let streams = StreamSettings::default();
    let message_bytes_max = TransportSettings::default().message_bytes_max;
    let rows = [
        ("request message, also as JSON and decompressed", bytes(message_bytes_max), "`limits.message_bytes`"),
        ("token", bytes(TOKEN_BYTES_MAX), ""),
        ("inventory id", bytes(InventoryId::BYTES_MAX), ""),
        ("player, caller", bytes(PlayerId::BYTES_MAX), ""),
        ("session", bytes(SessionId::BYTES_MAX), ""),
        ("idempotency key", bytes(IdempotencyKey::BYTES_MAX), ""),
        ("reason", bytes(REASON_BYTES_MAX), ""),
        ("attributes of a stack", bytes(Attributes::BYTES_MAX), ""),
        ("count", number(COUNT_MAX as usize), ""),
        ("slots of a layout", number(LAYOUT_SLOTS_MAX), ""),
        ("messages inside a request of more than 64 KiB, and list entries of JSON", number(ENTRIES_MAX), ""),
        ("operations of a mutation", number(OPERATIONS_MAX), ""),
        ("guards of a mutation", number(GUARDS_MAX), ""),
        ("inventories of a page", number(PAGE_SIZE_MAX as usize), ""),
        ("inventories of a subscription", number(SUBSCRIPTION_INVENTORIES_MAX), ""),
        ("slots of a subscription", number(SUBSCRIPTION_SLOTS_MAX), ""),
        ("streams of a player", number(streams.per_player_max as usize), "`limits.streams_per_player`"),
        ("streams of a caller", number(streams.per_caller_max as usize), "`limits.streams_per_caller`"),
    ];
    let mut text = String::from("\n## Limits\n\n| item | maximum | setting |\n|---|---|---|\n");
    for (of, maximum, setting) in rows {
        writeln!(text, "| {of} | {maximum} | {setting} |").unwrap();
    }
    text
}

fn bytes(bytes: usize) -> String {
    format!("{} bytes", number(bytes))
}

/// Returns a number with a comma after each group of three digits.
fn number(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

/// Returns the comment at a path as one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref().unwrap();
    let location = info.location.iter().find(|location| location.path == path);
    let text = location.and_then(|location| location.leading_comments.clone()).unwrap_or_default();
    assert!(!text.trim().is_empty(), "{}: {path:?} has no comment", file.name());
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
