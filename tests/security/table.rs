//! The status of each method for each role and each kind of credentials; a failed call changes nothing.

use crate::common::error_of;
use crate::messages::{self, Call, READS};
use crate::protocols::WebProtocol;
use crate::secured::{Credentials, SecuredServer, bearer};
use crate::tokens::{SigningKey, base64url, claims, claims_but, jwks, now_s};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use prost_reflect::DescriptorPool;
use serde_json::json;
use slotcast::wire::FILE_DESCRIPTOR_SET;
use std::collections::BTreeSet;
use tonic::Code;

type Expected = Result<(), (Code, &'static str)>;

const OK: Expected = Ok(());
const MISSING: Expected = Err((Code::Unauthenticated, "TOKEN_MISSING"));
const INVALID: Expected = Err((Code::Unauthenticated, "TOKEN_INVALID"));
const EXPIRED: Expected = Err((Code::Unauthenticated, "TOKEN_EXPIRED"));
const ROLE_TOO_LOW: Expected = Err((Code::PermissionDenied, "ROLE_TOO_LOW"));
const NO_ACCESS: Expected = Err((Code::PermissionDenied, "NO_ACCESS"));
const NO_METHOD: Expected = Err((Code::Unimplemented, "UNKNOWN_METHOD"));

struct Row {
    caller: &'static str,
    credentials: Credentials,
    call: Call,
    on: &'static str,
    expected: Expected,
}

fn row(caller: &'static str, credentials: &Credentials, call: Call, on: &'static str, expected: Expected) -> Row {
    Row { caller, credentials: credentials.clone(), call, on, expected }
}

/// Invalid tokens, each on a call that is permitted with a valid one.
fn bad_tokens(server: &SecuredServer) -> Vec<Row> {
    let key = &server.key;
    let signed = |changed| bearer(&key.sign(&claims_but("steve", "player", changed)));
    let payload = base64url(claims("steve", "player").to_string().as_bytes());
    let header = |alg| base64url(json!({ "alg": alg, "kid": key.id, "typ": "JWT" }).to_string().as_bytes());
    let hmac = |secret: &[u8]| {
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::HS256) };
        bearer(&encode(&header, &claims("steve", "player"), &EncodingKey::from_secret(secret)).unwrap())
    };
    let (good, admin) = (key.sign(&claims("steve", "player")), key.sign(&claims("steve", "admin")));
    let parts: Vec<&str> = good.split('.').collect();
    let tampered = format!("{}.{}.{}", parts[0], admin.split('.').nth(1).unwrap(), parts[2]);
    let [other_key, other_id] =
        ["ed", "other"].map(|id| bearer(&SigningKey::ed25519(id).sign(&claims("steve", "player"))));
    let rsa = bearer(&SigningKey::rs256("ed").sign(&claims("steve", "player")));
    let twice = [bearer(&good), bearer(&good)].concat();
    let rows: Vec<(&'static str, Credentials, Expected)> = vec![
        ("no token", vec![], MISSING),
        (
            "a caller that names itself",
            vec![("slotcast-caller", "steve".into()), ("slotcast-player", "steve".into())],
            MISSING,
        ),
        ("expired", signed(json!({ "exp": now_s() - 10 })), EXPIRED),
        ("not valid yet", signed(json!({ "nbf": now_s() + 60 })), INVALID),
        ("another audience", signed(json!({ "aud": "another game" })), INVALID),
        ("another issuer", signed(json!({ "iss": "https://elsewhere" })), INVALID),
        ("no expiry", signed(json!({ "exp": null })), INVALID),
        ("no audience", signed(json!({ "aud": null })), INVALID),
        ("no issuer", signed(json!({ "iss": null })), INVALID),
        ("no name", signed(json!({ "sub": null })), INVALID),
        ("no role", signed(json!({ "role": null })), INVALID),
        ("a role that is not known", signed(json!({ "role": "root" })), INVALID),
        ("alg none, unsigned", bearer(&format!("{}.{payload}.", header("none"))), INVALID),
        ("alg none, signed", bearer(&format!("{}.{payload}.{}", header("none"), parts[2])), INVALID),
        ("HS256 by the public key", hmac(key.public.try_get_as_bytes().unwrap()), INVALID),
        ("HS256 by the JWKS file", hmac(jwks(&[key]).as_bytes()), INVALID),
        ("another key of that id", other_key, INVALID),
        ("a key that is not known", other_id, INVALID),
        ("a key of another kind", rsa, INVALID),
        ("a payload put in", bearer(&tampered), INVALID),
        ("without its signature", bearer(&format!("{}.{}.", parts[0], parts[1])), INVALID),
        ("larger than 8 KiB", signed(json!({ "padding": "x".repeat(8_192) })), INVALID),
        ("no token at all", bearer("steve"), INVALID),
        ("an empty token", bearer(""), INVALID),
        ("two authorizations", twice, INVALID),
        ("basic authorization", vec![("authorization", format!("Basic {}", base64url(b"steve:secret")))], INVALID),
        ("a bare token", vec![("authorization", good.clone())], INVALID),
    ];
    let mut rows: Vec<Row> = rows
        .into_iter()
        .map(|(name, credentials, expected)| row(name, &credentials, messages::get("steve"), "its own", expected))
        .collect();
    rows.push(row("no token", &vec![], messages::reflection(), "", MISSING));
    rows.push(row("no token", &vec![], ("/slotcast.v1.Nowhere/Get".into(), vec![]), "", MISSING));
    rows.extend(messages::admin().into_iter().map(|call| row("no token", &vec![], call, "", MISSING)));
    rows.extend(
        messages::mutations("steve", "chest").into_iter().map(|call| row("no token", &vec![], call, "", MISSING)),
    );
    rows
}

/// Calls that authenticated callers are not permitted.
fn denied(server: &SecuredServer) -> Vec<Row> {
    let (steve, lobby) = (server.credentials("steve", "player"), server.credentials("lobby", "service"));
    let as_player = |name: &str| [steve.clone(), vec![("slotcast-player", name.to_owned())]].concat();
    let mut rows = Vec::new();
    for (id, on) in [("alex", "another's"), ("chest", "nobody's"), ("nowhere", "what is not there")] {
        for call in [messages::get(id), messages::report(id)] {
            rows.push(row("player", &steve, call, on, NO_ACCESS));
        }
    }
    rows.push(row("player", &steve, messages::list("alex"), "another's", ROLE_TOO_LOW));
    rows.push(row("player", &steve, messages::list(""), "all", ROLE_TOO_LOW));
    for (from, to, on) in [("steve", "chest", "its own"), ("alex", "steve", "another's")] {
        rows.extend(
            messages::mutations(from, to).into_iter().map(|call| row("player", &steve, call, on, ROLE_TOO_LOW)),
        );
    }
    rows.push(row("player, as another", &as_player("alex"), messages::get("alex"), "another's", ROLE_TOO_LOW));
    rows.push(row("player, as another", &as_player("alex"), messages::get("steve"), "its own", ROLE_TOO_LOW));
    let two = [as_player("steve"), vec![("slotcast-player", "alex".to_owned())]].concat();
    let unknown_player = Err((Code::InvalidArgument, "INVALID_ARGUMENT"));
    rows.push(row("player, as two", &two, messages::get("steve"), "its own", unknown_player));
    for (caller, credentials) in [("player", &steve), ("service", &lobby)] {
        rows.extend(messages::admin().into_iter().map(|call| row(caller, credentials, call, "", ROLE_TOO_LOW)));
        for path in ["/slotcast.v1.InventoryService/Steal", "/slotcast.v2.AdminService/Drain", "/"] {
            rows.push(row(caller, credentials, (path.into(), vec![]), "", NO_METHOD));
        }
    }
    let not_found = Err((Code::NotFound, "INVENTORY_NOT_FOUND"));
    rows.push(row("service", &lobby, messages::get("nowhere"), "what is not there", not_found));
    rows
}

/// Calls that each role is permitted; reads come first, and the call that stops the server last.
fn allowed(server: &SecuredServer) -> Vec<Row> {
    let [steve, lobby, operator] = [("steve", "player"), ("lobby", "service"), ("olga", "admin")]
        .map(|(name, role)| server.credentials(name, role));
    let with = |credentials: &Credentials, more: &'static str, value: &str| {
        [credentials.clone(), vec![(more, value.to_owned())]].concat()
    };
    let reads = |id| {
        [messages::get(id), messages::subscribe(&[id]), messages::report(id), messages::list(id), messages::catalog()]
    };
    let mut rows = vec![
        row("no token", &vec![], messages::health(), "", OK),
        row("a bad token", &bearer("nonsense"), messages::health(), "", OK),
        row("player, as itself", &with(&steve, "slotcast-player", "steve"), messages::get("steve"), "its own", OK),
        row("player, other caller", &with(&steve, "slotcast-caller", "lobby"), messages::get("steve"), "its own", OK),
        row("service for a player", &with(&lobby, "slotcast-player", "alex"), messages::get("steve"), "any", OK),
        row("service", &lobby, messages::list(""), "all", OK),
    ];
    for (caller, credentials) in [("player", &steve), ("service", &lobby), ("admin", &operator)] {
        rows.extend(reads("steve").into_iter().map(|call| row(caller, credentials, call, "its own", OK)));
        rows.push(row(caller, credentials, messages::reflection(), "", OK));
    }
    // On a player's stream they are absent.
    for (id, on) in [("alex", "another's"), ("chest", "nobody's"), ("nowhere", "what is not there")] {
        rows.extend([&[id][..], &["steve", id]].map(|ids| row("player", &steve, messages::subscribe(ids), on, OK)));
    }
    for (caller, credentials) in [("service", &lobby), ("admin", &operator)] {
        rows.push(row(caller, credentials, messages::subscribe(&["alex", "chest"]), "any", OK));
    }
    rows.extend(messages::mutations("steve", "alex").into_iter().map(|call| row("service", &lobby, call, "any", OK)));
    rows.extend(messages::mutations("alex", "chest").into_iter().map(|call| row("admin", &operator, call, "any", OK)));
    rows.extend(messages::admin().into_iter().map(|call| row("admin", &operator, call, "", OK)));
    rows
}

/// Returns the server's list of all inventories with their digests, and its rollout.
async fn world(server: &SecuredServer) -> [Vec<u8>; 2] {
    let operator = server.credentials("olga", "admin");
    let mut world = [vec![], vec![]];
    for (reply, (path, message)) in world.iter_mut().zip([messages::list(""), messages::rollout()]) {
        *reply = server.call(&operator, &path, &message).await.unwrap();
    }
    world
}

/// Calls over gRPC, or over another protocol if one is given.
async fn check(server: &SecuredServer, protocol: Option<WebProtocol>, rows: &[Row], wrong: &mut Vec<String>) {
    for Row { caller, credentials, call: (path, message), on, expected } in rows {
        let answer = match protocol {
            None => server.call(credentials, path, message).await,
            Some(protocol) if !protocol.can_call(path) => continue,
            Some(protocol) => protocol.call(server.running.address, credentials, path, message).await,
        };
        let given = answer.as_ref().map(drop).map_err(|status| {
            let (code, reason, _) = error_of(status);
            (code, reason)
        });
        let method = path.rsplit('/').next().unwrap();
        let line = match &given {
            Ok(()) => format!("{caller:<28} {method:<22} {on:<18} OK"),
            Err((code, reason)) => format!("{caller:<28} {method:<22} {on:<18} {code:?} {reason}"),
        };
        println!("{line}");
        if given.as_ref().map(drop).map_err(|(code, reason)| (*code, reason.as_str())) != *expected {
            wrong.push(format!("{line}\n  instead of {expected:?}"));
        }
    }
}

async fn start() -> SecuredServer {
    let server = SecuredServer::start().await;
    let logs = [(0, "oak_log", 8), (1, "apple", 3)];
    for (id, owner) in [("steve", "steve"), ("alex", "alex"), ("chest", "")] {
        server.mutate(messages::mutation(messages::create(id, owner, &logs))).await;
    }
    server
}

#[tokio::test]
async fn every_caller_gets_the_expected_status_and_rejected_calls_change_nothing() {
    check_all(None).await;
}

#[tokio::test]
async fn over_every_other_protocol_every_caller_gets_the_same_status() {
    for protocol in WebProtocol::ALL {
        println!("\n{protocol:?}");
        check_all(Some(protocol)).await;
    }
}

async fn check_all(protocol: Option<WebProtocol>) {
    let server = start().await;
    let before = world(&server).await;
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    refused.extend(bad_tokens(&server));
    refused.extend(denied(&server));
    assert!(refused.iter().all(|row| row.expected.is_err()));
    check(&server, protocol, &refused, &mut wrong).await;
    assert!(world(&server).await == before, "a refused call has changed something");
    println!();
    check(&server, protocol, &allowed(&server), &mut wrong).await;
    assert!(wrong.is_empty(), "{protocol:?}\n{}", wrong.join("\n"));
    server.running.stop().await.unwrap();
}

#[tokio::test]
async fn the_table_covers_every_method_and_role() {
    let server = SecuredServer::start().await;
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let all: BTreeSet<String> = pool
        .services()
        .flat_map(|service| {
            service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name())).collect::<Vec<_>>()
        })
        .collect();
    let called = |rows: Vec<Row>, caller: &str| -> BTreeSet<String> {
        rows.into_iter()
            .filter(|row| row.caller == caller)
            .map(|row| row.call.0)
            .filter(|path| all.contains(path))
            .collect()
    };
    let both = |caller| &called(denied(&server), caller) | &called(allowed(&server), caller);
    for caller in ["player", "service", "admin"] {
        assert_eq!(both(caller), all, "{caller}");
    }
    let changes = all.iter().filter(|path| !READS.iter().any(|read| path.ends_with(&format!("/{read}"))));
    let unknown = called(bad_tokens(&server), "no token");
    assert!(changes.clone().count() > 10 && changes.clone().all(|path| unknown.contains(path)));
}

#[tokio::test]
async fn unreadable_and_nonexistent_inventories_have_identical_replies() {
    let server = start().await;
    let steve = server.credentials("steve", "player");
    for call in [messages::get, messages::report] {
        let mut answers = Vec::new();
        for id in ["alex", "chest", "nowhere"] {
            let (path, message) = call(id);
            let status = server.call(&steve, &path, &message).await.unwrap_err();
            answers.push((status.code(), status.message().to_owned(), status.details().to_vec()));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
}
