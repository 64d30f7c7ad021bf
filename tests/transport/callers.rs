//! Callers that authenticate with client certificates.

use crate::common::{MemoryStore, error_of};
use crate::support::{Authority, Files, create, get, settings, start_at};
use crate::tokens::{Login, SigningKey, claims};
use slotcast::client::{Client, ClientOptions, new_mutation_context};
use slotcast::identity::{Authentication, CertificateIdentity, IdentitySettings, Role, Verifier};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::transport::{TlsSettings, TransportSettings};
use slotcast::wire::v1;
use slotcast::wire::v1::admin_service_client::AdminServiceClient;
use slotcast::wire::v1::operation::Operation;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const LOBBY: &str = "spiffe://game.example/lobby";

/// Writes the certificates of the clients to `NAME.pem` and `NAME.key`.
fn issue(files: &Files) {
    let clients = Authority::new("clients");
    files.write("clients.pem", &clients.pem());
    files.put("lobby", &clients.issue_uri(LOBBY));
    files.put("stranger", &clients.issue_uri("spiffe://game.example/stranger"));
    for name in ["steve", "ops"] {
        files.put(name, &clients.issue(&format!("{name}.example")));
    }
}

const ORIGIN: &str = "https://game.example";

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
        authentication: Authentication::Enabled(Arc::new(verifier)),
        origins: [ORIGIN.parse().unwrap()].into_iter().collect(),
        ..settings(TransportSettings { tls, ..TransportSettings::default() })
    };
    start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings).await
}

fn client(files: &Files, server: &RunningServer, presented: Option<&str>, token_file: Option<PathBuf>) -> Client {
    let certificate = presented.map(|name| files.path(&format!("{name}.pem")));
    let key = presented.map(|name| files.path(&format!("{name}.key")));
    Client::open(&ClientOptions { certificate, key, token_file, ..files.options(server) }).unwrap()
}

async fn rollout(client: &Client) -> Result<(), Status> {
    AdminServiceClient::new(client.channel()).get_rollout(v1::GetRolloutRequest {}).await.map(drop)
}

fn code_and_reason<T: std::fmt::Debug>(reply: Result<T, Status>) -> (Code, String) {
    let status = reply.unwrap_err();
    let (code, reason, _) = error_of(&status);
    (code, reason)
}

#[tokio::test]
async fn a_client_certificate_authenticates_the_service_player_or_admin_of_its_name() {
    let files = Files::new();
    issue(&files);
    let login = Login::new(&[&SigningKey::ed25519("ed")]);
    let server = start(&files, &login, true).await;
    let [lobby, steve, ops, stranger] =
        ["lobby", "steve", "ops", "stranger"].map(|name| client(&files, &server, Some(name), None));
    create(&lobby, "chest").await;
    let (inventory_id, owner, layout) = ("steve".into(), "steve".into(), "player".into());
    let of_steve = v1::CreateInventory { inventory_id, owner, layout, ..v1::CreateInventory::default() };
    lobby.mutate(new_mutation_context(), Operation::Create(of_steve.clone())).await.unwrap();
    assert_eq!(code_and_reason(rollout(&lobby).await), (Code::PermissionDenied, "ROLE_TOO_LOW".into()));

    get(&steve, "steve").await.expect("a player reads its own inventory");
    assert_eq!(code_and_reason(get(&steve, "chest").await), (Code::PermissionDenied, "NO_ACCESS".into()));
    let create = v1::CreateInventoryRequest { context: Some(new_mutation_context()), create: Some(of_steve) };
    assert_eq!(code_and_reason(steve.rpc().create_inventory(create).await).1, "ROLE_TOO_LOW");

    rollout(&ops).await.expect("an admin may call AdminService");
    get(&ops, "chest").await.expect("an admin has the permissions of a service");

    assert_eq!(code_and_reason(get(&stranger, "chest").await), (Code::Unauthenticated, "TOKEN_MISSING".into()));
    let none = get(&client(&files, &server, None, None), "chest").await.unwrap_err();
    assert!(none.get_error_details().error_info().is_none(), "the handshake fails, not the call: {none:?}");
}

#[tokio::test]
async fn a_web_page_needs_a_token_because_a_browser_sends_the_certificate_of_its_user_for_any_page() {
    let files = Files::new();
    issue(&files);
    let key = SigningKey::ed25519("ed");
    let server = start(&files, &Login::new(&[&key]), true).await;
    let ops = client(&files, &server, Some("ops"), None);
    rollout(&ops).await.expect("without an origin, the certificate is sufficient");
    let token = format!("Bearer {}", key.sign(&claims("ops", "admin")));
    for (origin, token, expected) in [
        (ORIGIN, None, Some("TOKEN_MISSING")),
        ("https://evil.example", None, Some("ORIGIN_NOT_ALLOWED")),
        ("https://evil.example", Some(&token), Some("ORIGIN_NOT_ALLOWED")),
        (ORIGIN, Some(&token), None),
    ] {
        let mut request = tonic::Request::new(v1::GetRolloutRequest {});
        request.metadata_mut().insert("origin", origin.parse().unwrap());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        let reply = AdminServiceClient::new(ops.channel()).get_rollout(request).await;
        assert_eq!(reply.err().map(|status| error_of(&status).1).as_deref(), expected, "{origin}");
    }
}

#[tokio::test]
async fn a_token_takes_precedence_over_a_certificate_and_works_without_one() {
    let files = Files::new();
    issue(&files);
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let server = start(&files, &login, false).await;
    files.write("steve.jwt", &key.sign(&claims("steve", "player")));
    files.write("ops.jwt", &key.sign(&claims("ops", "admin")));
    files.write("wrong.jwt", &SigningKey::ed25519("ed").sign(&claims("ops", "admin")));
    let with = |presented, token: &str| client(&files, &server, presented, Some(files.path(token)));
    create(&client(&files, &server, Some("lobby"), None), "chest").await;

    assert_eq!(code_and_reason(get(&client(&files, &server, None, None), "chest").await).1, "TOKEN_MISSING");
    rollout(&with(None, "ops.jwt")).await.expect("a token is sufficient");
    rollout(&with(Some("steve"), "ops.jwt")).await.expect("the token has more permissions than the certificate");
    assert_eq!(code_and_reason(get(&with(Some("lobby"), "steve.jwt"), "chest").await).1, "NO_ACCESS");
    rollout(&with(Some("stranger"), "ops.jwt")).await.expect("the name of the certificate is ignored");
    assert_eq!(code_and_reason(get(&with(Some("ops"), "wrong.jwt"), "chest").await).1, "TOKEN_INVALID");
}
