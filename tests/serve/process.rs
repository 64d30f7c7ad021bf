//! `slotcast serve` and `slotcast config` as processes, with their own environment and log.

use serde_json::Value;
use slotcast::client::Client;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Timeout that only a failure reaches.
pub const WAIT: Duration = Duration::from_secs(30);

/// Returns a command without the `SLOTCAST_` variables of the test process.
pub fn slotcast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLOTCAST_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// A server process, which is killed on drop.
pub struct Server {
    pub uri: String,
    pub admin: String,
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    log: PathBuf,
}

impl Server {
    /// Starts a server with the data folder `data` in `folder` on free ports, and waits until it listens.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut server = Self::spawn(folder, arguments);
        let address_after = |line: String, what: &str| {
            line.trim().strip_prefix(what).unwrap_or_else(|| panic!("unexpected line {line:?}")).to_owned()
        };
        server.uri = address_after(server.line(), "listening on ");
        server.admin = address_after(server.line(), "admin listening on ");
        server
    }

    /// Starts a server with a log in JSON format, and waits until it listens.
    pub fn start_json(folder: &Path, arguments: &[&str]) -> Self {
        let mut server = Self::spawn(folder, &[&["--log-format", "json"], arguments].concat());
        let line = server.line();
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert_eq!(message["message"], "listening");
        server.uri = message["address"].as_str().unwrap().to_owned();
        server.admin = message["admin_address"].as_str().unwrap().to_owned();
        server
    }

    /// Starts a server without waiting.
    pub fn spawn(folder: &Path, arguments: &[&str]) -> Self {
        let data = folder.join("data");
        let mut command = slotcast(&["serve", "--data"]);
        // Flags override these.
        command.env("SLOTCAST_LISTEN", "127.0.0.1:0").env("SLOTCAST_ADMIN_LISTEN", "127.0.0.1:0");
        command.arg(data).args(arguments);
        Self::run(command, folder)
    }

    /// Runs a command that starts a server, and writes its log into the folder.
    pub fn run(mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("log-{}", fastrand::u64(..)));
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { uri: String::new(), admin: String::new(), child, stdout, log }
    }

    /// Returns the next line of standard output, or an empty string at its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    pub fn client(&self) -> Client {
        Client::new(&self.uri, "test").unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Returns the objects of a log in JSON format.
    pub fn json_log(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        self.log().lines().map(parse).collect()
    }

    pub fn wait_for_log(&self, part: &str) {
        let end = Instant::now() + WAIT;
        while !self.log().contains(part) {
            assert!(Instant::now() < end, "{part:?} is not in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill is there");
        assert!(sent.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + WAIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts that a command failed, and returns its standard error.
pub fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "it was accepted: {}", text(&output.stdout));
    text(&output.stderr)
}
