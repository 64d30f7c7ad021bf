//! `slotcast dev-credentials` creates credentials that a server and its clients accept.

use crate::process::{Server, refused, slotcast, text};
use std::path::Path;
use std::process::Output;

/// A server that uses the credentials in a folder.
struct SecuredServer {
    folder: tempfile::TempDir,
    server: Server,
}

impl SecuredServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        create_credentials(&folder.path().join("dev"));
        let server =
            Server::start(folder.path(), &["--config", folder.path().join("dev/slotcast.toml").to_str().unwrap()]);
        assert!(server.uri.starts_with("https://"), "{}", server.uri);
        Self { folder, server }
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join("dev").join(file).to_str().unwrap().to_owned()
    }

    /// Runs a client command with a token, or without one.
    fn call(&self, arguments: &[&str], token: Option<&str>) -> Output {
        let mut command = slotcast(arguments);
        command.args(["--server", &self.server.uri, "--ca", &self.path("ca.pem")]);
        if let Some(token) = token {
            command.args(["--token-file", &self.path(token)]);
        }
        command.output().unwrap()
    }

    fn accepted(&self, arguments: &[&str], token: &str) -> String {
        let output = self.call(arguments, Some(token));
        assert!(output.status.success(), "{arguments:?} with {token}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

fn create_credentials(folder: &Path) {
    let output = slotcast(&["dev-credentials", folder.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

const CREATE: &[&str] =
    &["call", "CreateInventory", r#"{"create": {"inventoryId": "bag", "owner": "steve", "layout": "chest"}}"#];
const ADD: &[&str] = &["call", "AddItem", r#"{"add": {"inventoryId": "bag", "stack": {"item": "coal", "count": 1}}}"#];
const GET: &[&str] = &["call", "GetInventory", r#"{"inventoryId": "bag"}"#];
const ROLLOUT: &[&str] = &["rollout", "get", "--json"];

#[test]
fn each_token_allows_what_its_role_allows() {
    let server = SecuredServer::start();
    assert!(server.accepted(CREATE, "service.token").contains("\"inventoryId\": \"bag\""));
    assert!(server.accepted(ADD, "service.token").contains("\"revision\": \"2\""));
    assert!(server.accepted(GET, "player.token").contains("\"item\": \"coal\""));
    assert!(server.accepted(ROLLOUT, "admin.token").contains("\"delta_percent\""));
    for (arguments, token) in [(ADD, "player.token"), (ROLLOUT, "player.token"), (ROLLOUT, "service.token")] {
        let problem = refused(&server.call(arguments, Some(token)));
        assert!(problem.starts_with("slotcast: PERMISSION_DENIED: "), "{arguments:?} with {token}: {problem}");
    }
    let problem = refused(&server.call(GET, None));
    assert!(problem.starts_with("slotcast: UNAUTHENTICATED: "), "{problem}");
}

#[test]
fn the_client_does_not_connect_to_a_server_with_an_unknown_ca_or_the_wrong_protocol() {
    let server = SecuredServer::start();
    let uri = &server.server.uri;
    let other = tempfile::tempdir().unwrap();
    create_credentials(other.path());
    let other_ca = other.path().join("ca.pem");
    let output = slotcast(GET).args(["--server", uri, "--ca", other_ca.to_str().unwrap()]).output().unwrap();
    let expected = format!(
        "slotcast: cannot connect to {uri}: TLS handshake failed: the server certificate was issued by a CA that this client does not trust \
         (pass the CA certificate with --ca or the option `ca`)\n"
    );
    assert_eq!(refused(&output), expected);

    let plaintext = uri.replace("https://", "http://");
    let problem = refused(&slotcast(GET).args(["--server", &plaintext]).output().unwrap());
    let expected = format!(
        "the connection to {plaintext} failed: the server does not speak HTTP/2 without TLS \
         (use an address that starts with https://)\n"
    );
    assert!(problem.ends_with(&expected), "{problem}");
}

#[test]
fn the_tokens_of_replaced_credentials_are_refused() {
    let server = SecuredServer::start();
    let old = std::fs::read_to_string(server.path("service.token")).unwrap();
    let folder = server.folder.path().join("dev");
    let again = slotcast(&["dev-credentials", folder.to_str().unwrap()]).output().unwrap();
    let problem = refused(&again);
    assert!(problem.contains("already exist (choose another directory, or overwrite with --force)"), "{problem}");
    let replaced = slotcast(&["dev-credentials", "--force", folder.to_str().unwrap()]).output().unwrap();
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    assert_ne!(std::fs::read_to_string(server.path("service.token")).unwrap(), old);

    let restarted = tempfile::tempdir().unwrap();
    let server = SecuredServer {
        server: Server::start(restarted.path(), &["--config", &server.path("slotcast.toml")]),
        folder: server.folder,
    };
    server.accepted(CREATE, "service.token");
    std::fs::write(server.path("old.token"), old).unwrap();
    let problem = refused(&server.call(GET, Some("old.token")));
    assert!(problem.starts_with("slotcast: UNAUTHENTICATED: "), "{problem}");
}
