//! Callers that are known by their certificates, over TLS.

use crate::common::{MemoryStore, error_of};
use crate::support::{Authority, Files, create, get, settings, start_at};
use crate::tokens::{Login, SigningKey, claims};
use slotcast::client::{Client, ClientOptions, fresh_context};
use slotcast::grpc::v1;
use slotcast::grpc::v1::admin_service_client::AdminServiceClient;
use slotcast::grpc::v1::operation::Operation;
use slotcast::identity::{Authentication, CertificateIdentity, IdentitySettings, Role, Verifier};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::transport::{TlsSettings, TransportSettings};
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const LOBBY: &str = "spiffe://game.example/lobby";

/// The clients' files are `NAME.pem` and `NAME.key`.
fn issue(files: &Files) {
    let clients = Authority::new("clients");
    files.write("clients.pem", &clients.pem());
    files.put("lobby", &clients.issue_uri(LOBBY));
    files.put("stranger", &clients.issue_uri("spiffe://game.example/stranger"));
    for name in ["steve", "ops"] {
        files.put(name, &clients.issue(&format!("{name}.example")));
    }
}

async fn start(files: &Files, login: &Login, client_certificate_required: bool) -> RunningServer {
    let known = [
        (LOBBY, Role::Service, "lobby"),
        ("steve.example", Role::Player, "steve"),
        ("ops.example", Role::Admin, "ops"),
    ];
    let certificates =
        known.map(|(san, role, name)| CertificateIdentity { san: san.into(), role, name: name.into() }).into();
    let verifier = Verifier::open(IdentitySettings { certificates, ..login.settings() }).unwrap();
    let client_ca = Some(files.path("clients.pem"));
    let tls = Some(TlsSettings { client_ca, client_certificate_required, ..files.tls() });
    let settings = ServerSettings {
        authentication: Authentication::Verified(Arc::new(verifier)),
        ..settings(TransportSettings { tls, ..TransportSettings::default() })
    };
    start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings).await
}

fn client(files: &Files, server: &RunningServer, shown: Option<&str>, token_file: Option<PathBuf>) -> Client {
    let certificate = shown.map(|name| files.path(&format!("{name}.pem")));
    let key = shown.map(|name| files.path(&format!("{name}.key")));
    Client::open(&ClientOptions { certificate, key, token_file, ..files.options(server) }).unwrap()
}

async fn rollout(client: &Client) -> Result<(), Status> {
    AdminServiceClient::new(client.channel()).get_rollout(v1::GetRolloutRequest {}).await.map(drop)
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let (code, reason, _) = error_of(&status);
    (code, reason)
}

#[tokio::test]
async fn a_certificate_acts_as_the_service_the_player_or_the_admin_that_its_name_stands_for() {
    let files = Files::new();
    issue(&files);
    let login = Login::new(&[&SigningKey::ed25519("ed")]);
    let server = start(&files, &login, true).await;
    let [lobby, steve, ops, stranger] =
        ["lobby", "steve", "ops", "stranger"].map(|name| client(&files, &server, Some(name), None));
    create(&lobby, "chest").await;
    let (inventory_id, owner, layout) = ("steve".into(), "steve".into(), "player".into());
    let of_steve = v1::CreateInventory { inventory_id, owner, layout, ..v1::CreateInventory::default() };
    lobby.mutate(fresh_context(), Operation::Create(of_steve.clone())).await.unwrap();
    assert_eq!(refusal(rollout(&lobby).await), (Code::PermissionDenied, "PERMISSION_DENIED".into()));

    get(&steve, "steve").await.expect("its own");
    assert_eq!(refusal(get(&steve, "chest").await), (Code::PermissionDenied, "NOT_YOURS".into()));
    let create = v1::CreateInventoryRequest { context: Some(fresh_context()), create: Some(of_steve) };
    assert_eq!(refusal(steve.rpc().create_inventory(create).await).1, "PERMISSION_DENIED");

    rollout(&ops).await.expect("an admin's");
    get(&ops, "chest").await.expect("an admin does what a service does");

    assert_eq!(refusal(get(&stranger, "chest").await), (Code::Unauthenticated, "TOKEN_MISSING".into()));
    let none = get(&client(&files, &server, None, None), "chest").await.unwrap_err();
    assert!(none.get_error_details().error_info().is_none(), "the handshake fails, not the call: {none:?}");
}

#[tokio::test]
async fn a_token_beside_a_certificate_decides_alone_and_does_without_where_none_is_required() {
    let files = Files::new();
    issue(&files);
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let server = start(&files, &login, false).await;
    files.write("steve.jwt", &key.sign(&claims("steve", "player")));
    files.write("ops.jwt", &key.sign(&claims("ops", "admin")));
    files.write("wrong.jwt", &SigningKey::ed25519("ed").sign(&claims("ops", "admin")));
    let with = |shown, token: &str| client(&files, &server, shown, Some(files.path(token)));
    create(&client(&files, &server, Some("lobby"), None), "chest").await;

    assert_eq!(refusal(get(&client(&files, &server, None, None), "chest").await).1, "TOKEN_MISSING");
    rollout(&with(None, "ops.jwt")).await.expect("a token suffices");
    rollout(&with(Some("steve"), "ops.jwt")).await.expect("the token may do more");
    assert_eq!(refusal(get(&with(Some("lobby"), "steve.jwt"), "chest").await).1, "NOT_YOURS");
    rollout(&with(Some("stranger"), "ops.jwt")).await.expect("the name is not looked at");
    assert_eq!(refusal(get(&with(Some("ops"), "wrong.jwt"), "chest").await).1, "TOKEN_INVALID");
}
