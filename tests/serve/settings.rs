//! `slotcast config` refuses what `slotcast serve` refuses, in the same words, and neither says that it listens before.

use crate::process::{Server, refused, slotcast, text};
use std::path::Path;
use std::process::Output;

/// A settings file, and files that it may name, in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        files.write("server.pem", &certificate.cert.pem());
        files.write("server.key", &certificate.signing_key.serialize_pem());
        files.write("broken", "this is neither PEM nor JSON nor TOML [");
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.0.path().join(name), content).unwrap();
    }

    /// `serve` and `config` with these settings.
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

fn assert_refused_alike(settings: &str, outputs: &[Output; 2], told: &str) {
    for output in outputs {
        let problem = refused(output);
        assert!(problem.contains(told), "{settings}: {told:?} is not in {problem}");
        assert_eq!(text(&output.stdout), "", "{settings}: it said that it listens, or printed settings");
    }
    // The log comes before what `serve` says in the end.
    let [served, checked] = outputs.each_ref().map(refused);
    assert!(served.ends_with(&checked), "{settings}: {served} and {checked}");
}

#[test]
fn config_refuses_what_serve_refuses_before_it_says_that_it_listens() {
    let files = Files::new();
    let tls = |certificate: &str, key: &str, more: &str| {
        let path = |name| files.path(name);
        format!("[tls]\ncertificate = '{}'\nkey = '{}'\n{more}", path(certificate), path(key))
    };
    let jwks = |name: &str| format!("[identity]\njwks = '{}'\nissuer = 'i'\n", files.path(name));
    let missing_ca = format!("client_ca = '{}'\n", files.path("nowhere"));
    let broken_ca = format!("client_ca = '{}'\n", files.path("broken"));
    for (settings, told) in [
        (tls("nowhere", "server.key", ""), "tls: cannot read"),
        (tls("broken", "server.key", ""), "no certificate found"),
        (tls("server.pem", "nowhere", ""), "tls: cannot read"),
        (tls("server.pem", "broken", ""), "no private key found"),
        (tls("server.pem", "server.key", &missing_ca), "tls: cannot read"),
        (tls("server.pem", "server.key", &broken_ca), "no certificate found"),
        (jwks("nowhere"), "identity: token keys: cannot read"),
        (jwks("broken"), "identity: "),
        (format!("catalog = '{}'\n", files.path("nowhere")), "catalog: cannot read"),
        (format!("catalog = '{}'\n", files.path("broken")), "catalog: "),
        ("[log]\nfilter = 'slotcast=loud'\n".to_owned(), "log.filter"),
        ("[log]\nfilter = 'inof'\n".to_owned(), "\"inof\" is not a level"),
        ("data = '/proc/slotcast'\n".to_owned(), "data: cannot write to the folder /proc"),
        (format!("data = '{}'\n", files.path("server.pem")), "data: cannot"),
        ("[otlp]\nendpoint = 'not an address'\n".to_owned(), "otlp: "),
        (format!("[otlp]\nendpoint = 'https://127.0.0.1:1'\nca = '{}'\n", files.path("nowhere")), "otlp: cannot read"),
        ("[tls]\nclient_certificates = 'required'\n".to_owned(), "tls.client_ca"),
    ] {
        assert_refused_alike(&settings, &files.both(&settings, &[]), told);
    }
    assert!(!Path::new(&files.path("slotcast-data")).exists(), "something was made of a server that did not start");
    let all = format!("catalog = '{}'\n{}", files.path("nowhere"), tls("broken", "server.key", ""));
    let [_, checked] = files.both(&all, &[]);
    let problems = refused(&checked);
    assert!(problems.contains("catalog: ") && problems.contains("tls: "), "every problem is told: {problems}");
}

#[test]
fn config_accepts_good_files_changes_nothing_and_may_be_told_to_leave_files_alone() {
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
fn a_misspelt_variable_is_refused_by_serve_and_config_and_those_of_kubernetes_are_not() {
    let files = Files::new();
    let misspelt = files.both("", &[("SLOTCAST_LIMIT_CONNECTIONS", "5")]);
    assert_refused_alike("", &misspelt, "did you mean SLOTCAST_LIMITS_CONNECTIONS?");
    let of_others = [
        ("SLOTCAST_SERVICE_HOST", "10.0.0.1"),
        ("SLOTCAST_SERVICE_PORT", "7400"),
        ("SLOTCAST_SERVICE_PORT_GRPC", "7400"),
        ("SLOTCAST_PORT", "tcp://10.0.0.1:7400"),
        ("SLOTCAST_PORT_7400_TCP_ADDR", "10.0.0.1"),
        // Of the commands that call a server.
        ("SLOTCAST_SERVER", "http://127.0.0.1:7400"),
        ("SLOTCAST_TOKEN_FILE", "/nowhere"),
        // Empty: it says nothing.
        ("SLOTCAST_LISTN", ""),
    ];
    let accepted = slotcast(&["config", "--settings-only"]).envs(of_others).output().unwrap();
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
}

#[test]
fn an_address_that_is_in_use_is_told_and_the_store_is_left_closed() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut server = Server::spawn(folder.path(), &["--admin-listen", &address]);
    assert_eq!(server.line(), "", "it must not say that it listens");
    assert!(!server.wait().success());
    assert!(server.log().contains(&format!("cannot listen on {address}")), "{}", server.log());
}

#[test]
fn config_accepts_a_store_that_serve_completes_first() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let accepted = |what: &str| {
        let checked = slotcast(&["config", "--data", data.to_str().unwrap()]).output().unwrap();
        assert!(checked.status.success(), "{what}: {}", text(&checked.stderr));
        let mut server = Server::start(folder.path(), &[]);
        server.signal("-TERM");
        assert!(server.wait().success(), "{what}: {}", server.log());
    };
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("slotcast.db"), "").unwrap();
    accepted("an interrupted first start");
    std::fs::copy(data.join("slotcast.db"), data.join("slotcast.db-next-replaced-1")).unwrap();
    accepted("an interrupted restore");
}
