//! The servers of a measurement, as child processes of this executable.

use super::cores::Cores;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

use super::world::World;

/// Limits that no measurement reaches. Those of rates stay enabled, so that what they cost is measured.
const UNREACHED_LIMITS: [&str; 7] = [
    "requests-per-second=1000000",
    "requests-burst=1000000",
    "streams-per-caller=1000000",
    "streams-per-connection=1000000",
    "connections=0",
    "connections-per-address=0",
    "connection-age-s=0",
];

/// A server in a child process, which is killed on drop.
#[derive(Debug)]
pub struct ServerProcess {
    pub address: SocketAddr,
    child: Child,
    /// Removed after the process has ended.
    _data: Option<TempDir>,
}

/// How servers are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    pub executable: PathBuf,
    pub cores: Cores,
    /// Further arguments of `slotcast serve`.
    pub serve_arguments: Vec<String>,
    /// Directory in which the temporary stores are created.
    pub directory: PathBuf,
}

impl Launcher {
    /// Starts `slotcast serve` with a store of its own, which contains the world's inventories and, after those,
    /// inactive ones up to `stored`.
    pub fn start_server(&self, world: &World, stored: u32, arguments: &[&str]) -> Result<ServerProcess, String> {
        let created = TempDir::with_prefix_in("slotcast-bench-", &self.directory);
        let in_directory = self.directory.display();
        let data = created.map_err(|error| {
            format!("cannot create a directory in {in_directory}: {error} (choose another with --directory)")
        })?;
        self.import(world, stored, data.path())?;
        let mut command = self.command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"]).arg(data.path());
        let limits = UNREACHED_LIMITS.iter().map(|limit| format!("--limits-{limit}"));
        // A flag can be given only once, and the caller's counts.
        let is_given = |flag: &str| self.serve_arguments.iter().any(|given| given.split('=').next() == Some(flag));
        command.args(limits.filter(|limit| !is_given(limit.split('=').next().unwrap_or_default())));
        command.args(arguments).args(&self.serve_arguments);
        self.start(command, Some(data))
    }

    /// Starts the yardstick.
    pub fn start_yardstick(&self, reply_bytes: usize) -> Result<ServerProcess, String> {
        let own = std::env::current_exe().map_err(|error| format!("cannot find this executable: {error}"))?;
        let mut command = command(own.as_os_str());
        command.arg("bench-yardstick").arg(format!("--reply-bytes={reply_bytes}"));
        self.start(command, None)
    }

    fn command(&self) -> Command {
        command(self.executable.as_os_str())
    }

    /// Creates the inventories with `slotcast import`.
    fn import(&self, world: &World, stored: u32, data: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot run {} import: {error}", self.executable.display());
        let mut command = self.command();
        command.args(["import", "--data"]).arg(data).arg("-");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(failed)?;
        let written = child.stdin.take().map(|input| write_inventories(world, stored, input));
        let status = child.wait().map_err(failed)?;
        if !status.success() {
            return Err(format!("{} import failed (see above)", self.executable.display()));
        }
        written.transpose().map(drop).map_err(failed)
    }

    fn start(&self, mut command: Command, data: Option<TempDir>) -> Result<ServerProcess, String> {
        let failed = |error: std::io::Error| format!("cannot start the server: {error}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self.cores.enter_server().map_err(|error| format!("cannot pin to a core: {error} (use --unpinned)"))?;
        let spawned = command.spawn().map_err(failed);
        self.cores.enter_generator().map_err(|error| format!("cannot pin to a core: {error} (use --unpinned)"))?;
        let mut child = spawned?;
        let mut line = String::new();
        let read = child.stdout.take().map(|output| BufReader::new(output).read_line(&mut line));
        // From here on the process is killed if anything fails.
        let mut server = ServerProcess { address: ([127, 0, 0, 1], 0).into(), child, _data: data };
        read.transpose().map_err(failed)?;
        let address = line.trim().strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        server.address = address.ok_or("the server did not start (see above)")?;
        Ok(server)
    }
}

/// Returns a command without the variables that would change a server's settings.
fn command(executable: &OsStr) -> Command {
    let mut command = Command::new(executable);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SLOTCAST_") || text.starts_with("OTEL_") {
            command.env_remove(&name);
        }
    }
    // Only warnings and errors, on the standard error that this process shares.
    command.env("SLOTCAST_LOG", "warn");
    command
}

fn write_inventories(world: &World, stored: u32, input: impl std::io::Write) -> std::io::Result<()> {
    let mut input = std::io::BufWriter::new(input);
    let inventories = stored.max(world.active);
    writeln!(
        input,
        r#"{{"slotcast_export":1,"catalog":"{}","exported_unix_ms":0,"inventories":{inventories}}}"#,
        world.catalog
    )?;
    let mut stacks = String::new();
    for (slot, item, count) in world.stacks() {
        let comma = if slot == 0 { "" } else { "," };
        let _ = write!(stacks, r#"{comma}{{"slot":{slot},"item":"{item}","count":{count}}}"#);
    }
    for number in 0..inventories {
        writeln!(input, r#"{{"id":"{}","layout":"{}","stacks":[{stacks}]}}"#, world.id(number), world.layout)?;
    }
    input.flush()
}

impl ServerProcess {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
