//! A server as a process of its own, on a free port.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct ServerProcess {
    pub uri: String,
    child: Child,
}

impl ServerProcess {
    /// Starts `slotcast serve` over a folder and waits until it listens.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_slotcast"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .env("SLOTCAST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let uri = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        Self { uri, child }
    }

    #[allow(dead_code, reason = "not every test needs all of it")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    #[allow(dead_code, reason = "not every test needs all of it")]
    /// As `kill -9` does; waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
