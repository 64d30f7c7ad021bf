//! `slotcast config` and `slotcast serve` refuse the same settings with the same errors, before anything listens.

use crate::process::{Server, refused, slotcast, text};
use std::path::Path;
use std::process::Output;

/// A folder with a settings file and files that it may name.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        files.write("server.pem", &certificate.cert.pem());
        files.write("server.key", &certificate.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        files.write("other.key", &other.signing_key.serialize_pem());
        files.write("broken", "this is neither PEM nor JSON nor TOML [");
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.0.path().join(name), content).unwrap();
    }

    /// Runs `serve` and `config` with these settings.
    fn both(&self, settings: &str, environment: &[(&str, &str)]) -> [Output; 2] {
        self.write("slotcast.toml", settings);
        let free = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
        ["serve", "config"].map(|command| {
            let file = self.path("slotcast.toml");
            let mut command = slotcast(&[&[command, "--config", &file], &free[..]].concat());
            command.current_dir(self.0.path()).envs(environment.iter().copied()).output().unwrap()
        })
    }
}

fn assert_both_refuse(settings: &str, outputs: &[Output; 2], expected: &str) {
    for output in outputs {
        let problem = refused(output);
        assert!(problem.contains(expected), "{settings}: {expected:?} is not in {problem}");
        assert_eq!(text(&output.stdout), "", "{settings}: the command printed an address or settings");
    }
    // `serve` prints its log before the error.
    let [served, checked] = outputs.each_ref().map(refused);
    assert!(served.ends_with(&checked), "{settings}: {served} and {checked}");
}

#[test]
fn serve_and_config_refuse_the_same_settings_before_listening() {
    let files = Files::new();
    let tls = |certificate: &str, key: &str, more: &str| {
        let path = |name| files.path(name);
        format!("[tls]\ncertificate = '{}'\nkey = '{}'\n{more}", path(certificate), path(key))
    };
    let jwks = |name: &str| format!("[identity]\njwks = '{}'\nissuer = 'i'\n", files.path(name));
    let missing_ca = format!("client_ca = '{}'\n", files.path("nowhere"));
    let broken_ca = format!("client_ca = '{}'\n", files.path("broken"));
    for (settings, expected) in [
        (tls("nowhere", "server.key", ""), "tls: cannot read"),
        ("[otlp]\nendpoint = 'ftp://127.0.0.1:1'\n".to_owned(), "otlp.endpoint: must be an http or https URL"),
        (tls("broken", "server.key", ""), "contains no certificate"),
        (tls("server.pem", "other.key", ""), "check that the key belongs to the certificate"),
        (tls("server.pem", "nowhere", ""), "tls: cannot read"),
        (tls("server.pem", "broken", ""), "contains no private key"),
        (tls("server.pem", "server.key", &missing_ca), "tls: cannot read"),
        (tls("server.pem", "server.key", &broken_ca), "contains no certificate"),
        (jwks("nowhere"), "identity: token keys: cannot read"),
        (jwks("broken"), "identity: "),
        (format!("catalog = '{}'\n", files.path("nowhere")), "catalog: cannot read"),
        (format!("catalog = '{}'\n", files.path("broken")), "catalog: "),
        ("[log]\nfilter = 'slotcast=loud'\n".to_owned(), "log.filter"),
        ("[log]\nfilter = 'inof'\n".to_owned(), "\"inof\" is not a level"),
        ("data = '/proc/slotcast'\n".to_owned(), "data: cannot write to the directory /proc"),
        (format!("data = '{}'\n", files.path("server.pem")), "data: cannot"),
        ("[otlp]\nendpoint = 'not an address'\n".to_owned(), "otlp.endpoint: must be an http or https URL"),
        (format!("[otlp]\nendpoint = 'https://127.0.0.1:1'\nca = '{}'\n", files.path("nowhere")), "otlp: cannot read"),
        ("[tls]\nclient_certificates = 'required'\n".to_owned(), "tls.client_ca"),
    ] {
        assert_both_refuse(&settings, &files.both(&settings, &[]), expected);
    }
    assert!(!Path::new(&files.path("slotcast-data")).exists(), "a server that did not start created its directory");
    let all = format!("catalog = '{}'\n{}", files.path("nowhere"), tls("broken", "server.key", ""));
    let [_, checked] = files.both(&all, &[]);
    let problems = refused(&checked);
    assert!(problems.contains("catalog: ") && problems.contains("tls: "), "not every problem is reported: {problems}");
}

#[test]
fn config_accepts_valid_files_without_changes_and_can_skip_files() {
    let files = Files::new();
    let tls = format!("[tls]\ncertificate = '{}'\nkey = '{}'\n", files.path("server.pem"), files.path("server.key"));
    files.write("slotcast.toml", &format!("data = '{}'\n{tls}", files.path("data")));
    let file = files.path("slotcast.toml");
    let good = slotcast(&["config", "--config", &file]).output().unwrap();
    assert!(good.status.success() && text(&good.stdout).contains("server.pem"), "{}", text(&good.stderr));
    assert!(!Path::new(&files.path("data")).exists());

    files.write("slotcast.toml", "[tls]\ncertificate = '/etc/nowhere/tls.crt'\nkey = '/etc/nowhere/tls.key'\n");
    let elsewhere = slotcast(&["config", "--settings-only", "--config", &file]).output().unwrap();
    assert!(elsewhere.status.success(), "{}", text(&elsewhere.stderr));
    let twice = slotcast(&["config", "--settings-only", "--listen=127.0.0.1:7400", "--admin-listen=127.0.0.1:7400"]);
    assert!(refused(&{ twice }.output().unwrap()).contains("both 127.0.0.1:7400"));
}

#[test]
fn serve_and_config_refuse_misspelled_variables_and_ignore_those_of_kubernetes() {
    let files = Files::new();
    let misspelled = files.both("", &[("SLOTCAST_LIMIT_CONNECTIONS", "5")]);
    assert_both_refuse("", &misspelled, "did you mean SLOTCAST_LIMITS_CONNECTIONS?");
    let others = [
        ("SLOTCAST_SERVICE_HOST", "10.0.0.1"),
        ("SLOTCAST_SERVICE_PORT", "7400"),
        ("SLOTCAST_SERVICE_PORT_GRPC", "7400"),
        ("SLOTCAST_PORT", "tcp://10.0.0.1:7400"),
        ("SLOTCAST_PORT_7400_TCP_ADDR", "10.0.0.1"),
        // These belong to the commands that call a server.
        ("SLOTCAST_SERVER", "http://127.0.0.1:7400"),
        ("SLOTCAST_TOKEN_FILE", "/nowhere"),
        // An empty variable counts as unset.
        ("SLOTCAST_LISTN", ""),
    ];
    let accepted = slotcast(&["config", "--settings-only"]).envs(others).output().unwrap();
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
}

#[test]
fn serve_reports_an_address_in_use_and_closes_the_store() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    let mut server = Server::spawn(folder.path(), &["--admin-listen", &address]);
    assert_eq!(server.line(), "", "the server printed an address");
    assert!(!server.wait().success());
    assert!(server.log().contains(&format!("cannot listen on {address}")), "{}", server.log());
}

#[test]
fn config_accepts_a_store_that_serve_will_complete() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let accepted = |state: &str| {
        let checked = slotcast(&["config", "--data", data.to_str().unwrap()]).output().unwrap();
        assert!(checked.status.success(), "{state}: {}", text(&checked.stderr));
        let mut server = Server::start(folder.path(), &[]);
        server.signal("-TERM");
        assert!(server.wait().success(), "{state}: {}", server.log());
    };
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("slotcast.db"), "").unwrap();
    accepted("an interrupted first start");
    std::fs::copy(data.join("slotcast.db"), data.join("slotcast.db-next-replaced-1")).unwrap();
    accepted("an interrupted restore");
}
