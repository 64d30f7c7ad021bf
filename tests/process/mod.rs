//! A server in a separate process on a free port.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct ServerProcess {
    pub uri: String,
    /// Address of the admin listener, without a scheme.
    #[allow(dead_code, reason = "not every test file uses it")]
    pub admin: String,
    child: Child,
}

/// Removes the variables of the tests from the environment: the server rejects unknown ones that begin with SLOTCAST_.
pub fn remove_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLOTCAST_")) {
        command.env_remove(name);
    }
}

impl ServerProcess {
    #[allow(dead_code, reason = "not every test needs all of it")]
    /// Starts `slotcast serve` with a data folder and waits until it listens.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::start_with(Command::new(env!("CARGO_BIN_EXE_slotcast")), data, arguments)
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    /// Starts a server at the address of a previous server, so that its clients find this one.
    pub fn restart_at(uri: &str, data: &Path) -> Self {
        let address = uri.trim_start_matches("http://");
        Self::start_at(Command::new(env!("CARGO_BIN_EXE_slotcast")), address, data, &[])
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    /// Starts a server with a limit on its number of file descriptors.
    pub fn start_with_descriptor_limit(descriptors_max: u32, data: &Path) -> Self {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -n {descriptors_max}; exec \"$0\" \"$@\"");
        shell.args(["-c", &limited, env!("CARGO_BIN_EXE_slotcast")]);
        Self::start_with(shell, data, &[])
    }

    /// Starts a server with a command that sets its own environment and files.
    pub fn start_with(command: Command, data: &Path, arguments: &[&str]) -> Self {
        Self::start_at(command, "127.0.0.1:0", data, arguments)
    }

    fn start_at(mut command: Command, listen: &str, data: &Path, arguments: &[&str]) -> Self {
        remove_settings(&mut command);
        let mut child = command
            .args(["serve", "--listen", listen, "--admin-listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .env("SLOTCAST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start the server");
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let mut address = |prefix: &str| {
            let mut line = String::new();
            lines.read_line(&mut line).expect("cannot read the address of the server");
            line.trim().strip_prefix(prefix).unwrap_or_else(|| panic!("expected {prefix:?}, got {line:?}")).to_owned()
        };
        let (uri, admin) = (address("listening on "), address("admin listening on http://"));
        Self { uri, admin, child }
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    /// Returns the exit status, or `None` while the process runs.
    pub fn exit_status(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("cannot query the process")
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    /// Sends SIGTERM, as an operator's `kill` does, and waits until the process has ended.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let kill = Command::new("kill").args(["-TERM", &self.id().to_string()]).status().expect("cannot run kill");
        assert!(kill.success());
        self.child.wait().expect("cannot wait for the process")
    }

    #[allow(dead_code, reason = "not every test file uses it")]
    /// Sends SIGKILL, as `kill -9` does, and waits until the process has ended.
    pub fn kill(&mut self) {
        self.child.kill().expect("cannot kill the process");
        self.child.wait().expect("cannot wait for the process");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
