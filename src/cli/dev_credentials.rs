//! `slotcast dev-credentials`: creates certificates and tokens for local development.

mod content;
mod files;

use super::CommandResult;
use super::output::print;
use crate::domain::PlayerId;
use content::{ADMIN_TOKEN, CLIENT_ENV, Content, PLAYER_TOKEN, SETTINGS};
use serde_json::json;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio_rustls::rustls::pki_types::ServerName;

/// Maximum length of an issuer or audience, in bytes.
const CLAIM_BYTES_MAX: usize = 255;
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Create certificates and tokens for local development and tests. Do not use them in production.
///
/// Writes a certificate authority, a server certificate, a token signing key with its JWKS, and a token for each role
/// (player, service, admin), and prints the commands that use them: `slotcast.toml` has the settings of the server,
/// `client.env` the environment variables of its clients. The private keys and tokens are not encrypted; only their
/// owner can read them.
#[derive(Debug, clap::Args)]
pub struct DevCredentials {
    /// Directory to write to. It is created if it does not exist.
    directory: PathBuf,
    /// Player that the player token is for.
    #[arg(long, default_value = "steve", value_name = "NAME", value_parser = player)]
    player: PlayerId,
    /// Validity of the certificates and tokens in days, 1 to 365.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=365))]
    days: u32,
    /// Address that the server will listen on.
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDRESS", env = "SLOTCAST_LISTEN", value_parser = listen)]
    listen: SocketAddr,
    /// Host name or IP address of the server certificate, in addition to localhost, 127.0.0.1 and ::1. Repeatable.
    #[arg(long = "host", value_name = "HOST", value_parser = host)]
    hosts: Vec<String>,
    /// Issuer of the tokens (`iss`).
    #[arg(long, default_value = "slotcast-dev", value_parser = claim)]
    issuer: String,
    /// Audience of the tokens (`aud`).
    #[arg(long, default_value = "slotcast", value_parser = claim)]
    audience: String,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
}

impl DevCredentials {
    pub fn run(self) -> CommandResult {
        let directory = files::check(&self.directory, &content::NAMES, self.force)?;
        let content = Content {
            directory: &directory,
            player: &self.player,
            listen: self.listen,
            hosts: &self.hosts,
            issuer: &self.issuer,
            audience: &self.audience,
            now: SystemTime::now(),
            validity: self.days * DAY,
        };
        files::write(&self.directory, &content.generate()?, self.force)?;
        Ok(print(self.instructions())?)
    }

    fn instructions(&self) -> String {
        let path = |name: &str| quoted(self.directory.join(name).display());
        let (player, days) = (self.player.as_str(), self.days);
        format!(
            "Created development credentials in {directory}, valid for {days} days.
Do not use them in production: anyone who can read this directory can issue tokens and certificates.

  ca.pem, ca-key.pem          certificate authority
  server.pem, server-key.pem  server certificate for {hosts}
  jwks.json, signing-key.pem  keys that verify and sign tokens
  player.token                token of player {player:?}
  service.token               token of service {service:?}
  admin.token                 token of admin {admin:?}
  slotcast.toml               settings of the server
  client.env                  environment variables of clients: server, CA, and the token of the service

Start a server:
  slotcast serve --config {settings}

Call it from another terminal as the service:
  . {client_env}
  slotcast call ListInventories '{{}}'

Call it as the player or as the admin:
  slotcast call ListInventories {own} --token-file {player_token}
  slotcast rollout get --token-file {admin_token}",
            directory = self.directory.display(),
            hosts = content::hosts(&self.hosts, self.listen).join(", "),
            service = content::SERVICE_NAME,
            admin = content::ADMIN_NAME,
            settings = path(SETTINGS),
            client_env = sourced(&self.directory.join(CLIENT_ENV)),
            own = quoted(json!({ "owner": player })),
            player_token = path(PLAYER_TOKEN),
            admin_token = path(ADMIN_TOKEN),
        )
    }
}

fn player(name: &str) -> Result<PlayerId, String> {
    PlayerId::new(name).map_err(|error| error.to_string())
}

/// Parses a claim of the tokens. A long one would exceed the maximum size of a token.
fn claim(text: &str) -> Result<String, String> {
    let is_valid = (1..=CLAIM_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(format!("must be 1 to {CLAIM_BYTES_MAX} bytes without control characters"))
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not an IP address and port, such as 127.0.0.1:7400")?;
    if address.port() == 0 {
        return Err("clients need a fixed port".to_owned());
    }
    Ok(address)
}

fn host(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    ServerName::try_from(text).map(|_| text.to_owned()).map_err(|_| "not a host name or IP address".to_owned())
}

/// Quotes an argument for a POSIX shell if necessary.
fn quoted(argument: impl Display) -> String {
    let argument = argument.to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(is_plain) {
        return argument;
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Quotes a path for the shell's `.` command, which searches PATH for a name without a slash.
fn sourced(path: &Path) -> String {
    let text = path.display().to_string();
    quoted(if text.contains('/') { text } else { format!("./{text}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{IdentitySettings, Role, Verifier};
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Parser)]
    struct TestCli {
        #[command(flatten)]
        command: DevCredentials,
    }

    fn parse(arguments: &[&str]) -> Result<DevCredentials, clap::Error> {
        TestCli::try_parse_from([&["test"], arguments].concat()).map(|cli| cli.command)
    }

    fn run(directory: &Path, arguments: &[&str]) -> Result<(), String> {
        let directory = directory.to_str().unwrap();
        parse(&[arguments, &[directory]].concat()).unwrap().run().map_err(|error| error.to_string())
    }

    fn read(directory: &Path, name: &str) -> String {
        std::fs::read_to_string(directory.join(name)).unwrap()
    }

    #[tokio::test]
    async fn the_tokens_name_callers_of_all_three_roles() {
        let directory = tempfile::tempdir().unwrap();
        run(directory.path(), &["--player", "alex"]).unwrap();
        let settings: toml::Table = read(directory.path(), SETTINGS).parse().unwrap();
        let identity = |key: &str| settings["identity"][key].as_str().unwrap().to_owned();
        let settings = IdentitySettings {
            jwks: Some(identity("jwks").into()),
            issuer: identity("issuer"),
            audience: identity("audience"),
            ..IdentitySettings::default()
        };
        let verifier = Verifier::open(settings).unwrap();
        for (file, name, role) in [
            (PLAYER_TOKEN, "alex", Role::Player),
            (content::SERVICE_TOKEN, content::SERVICE_NAME, Role::Service),
            (ADMIN_TOKEN, content::ADMIN_NAME, Role::Admin),
        ] {
            let verified = verifier.verify_token(read(directory.path(), file).trim()).unwrap();
            assert_eq!((verified.caller.as_str(), verified.role), (name, role));
            assert_eq!(verified.player.is_some(), role == Role::Player);
        }
    }

    #[test]
    fn only_the_owner_can_read_keys_and_tokens() {
        let directory = tempfile::tempdir().unwrap();
        run(directory.path(), &[]).unwrap();
        for name in content::NAMES {
            let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
            let is_secret = name.ends_with("-key.pem") || name.ends_with(".token");
            assert_eq!(mode, if is_secret { 0o600 } else { 0o644 }, "{name}");
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            content::NAMES.len(),
            "no temporary file is left"
        );
    }

    #[test]
    fn existing_files_are_overwritten_only_with_force() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(SETTINGS), "mine").unwrap();
        let error = run(directory.path(), &[]).unwrap_err();
        let path = directory.path().join(SETTINGS);
        let expected =
            format!("{} already exists (choose another directory, or overwrite with --force)", path.display());
        assert_eq!(error, expected);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was written");
        assert_eq!(read(directory.path(), SETTINGS), "mine");
        run(directory.path(), &["--force"]).unwrap();
        assert!(read(directory.path(), SETTINGS).contains("[tls]"));
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert_eq!(run(&path, &["--force"]).unwrap_err(), format!("{} is not a directory", path.display()));
    }

    #[test]
    fn invalid_options_are_errors() {
        for (arguments, part) in [
            (["--days", "0"], "0 is not in 1..=365"),
            (["--days", "366"], "366 is not in 1..=365"),
            (["--player", ""], "must not be empty"),
            (["--listen", "localhost:7400"], "not an IP address and port"),
            (["--listen", "127.0.0.1:0"], "clients need a fixed port"),
            (["--host", "not a host"], "not a host name or IP address"),
            (["--issuer", ""], "must be 1 to 255 bytes"),
        ] {
            let error = parse(&[&arguments[..], &["directory"]].concat()).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        assert_eq!(quoted("dev/ca.pem"), "dev/ca.pem");
        assert_eq!(quoted("my dev/it's"), r"'my dev/it'\''s'");
        assert_eq!(sourced(Path::new("client.env")), "./client.env");
        assert_eq!(sourced(Path::new("dev/client.env")), "dev/client.env");
    }
}
