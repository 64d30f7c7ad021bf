//! The processes of the peers, and the CPU time that they use.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The core of the peers, and that of the load.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer that runs on a free port, in a temporary folder, on its own core.
pub struct Server {
    process: Child,
    pub port: u16,
    pub folder: TempDir,
}

impl Server {
    /// Starts `program` with the arguments that `arguments` returns for a port and a folder, and waits until it listens.
    pub async fn start(program: &str, arguments: impl Fn(u16, &Path) -> Vec<String>) -> io::Result<Self> {
        let folder = TempDir::with_prefix("slotcast-peer-")?;
        Self::start_in(folder, program, arguments).await
    }

    pub async fn start_in(
        folder: TempDir,
        program: &str,
        arguments: impl Fn(u16, &Path) -> Vec<String>,
    ) -> io::Result<Self> {
        let port = free_port()?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let process = Command::new("taskset")
            .args(["--cpu-list", SERVER_CORE, program])
            .args(arguments(port, folder.path()))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self { process, port, folder };
        server.wait_until_it_listens(program).await?;
        Ok(server)
    }

    async fn wait_until_it_listens(&mut self, program: &str) -> io::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if start.elapsed() > START_TIMEOUT || self.process.try_wait()?.is_some() {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("{program} does not start:\n{log}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Returns the CPU time of all threads of the process and of its descendants so far.
    pub fn cpu(&self) -> io::Result<Duration> {
        let parents = parents()?;
        let mut tree = vec![self.process.id()];
        let mut next = 0;
        while let Some(parent) = tree.get(next).copied() {
            tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
            next += 1;
        }
        Ok(tree.into_iter().map(cpu_of).sum())
    }

    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // PostgreSQL ends its own children when its main process ends.
        let stopped = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        if !stopped.is_ok_and(|status| status.success()) {
            // The process has ended already, or this ends it.
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// Pins this process, which generates the load, to its core.
pub fn pin_load() -> io::Result<()> {
    let own = std::process::id().to_string();
    let output = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", LOAD_CORE, &own]).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("cannot pin to core {LOAD_CORE} (the comparison needs two cores): {text}")))
}

/// Returns the CPU time of this process so far.
pub fn own_cpu() -> io::Result<Duration> {
    Ok(cpu_of(std::process::id()))
}

/// All processes with their parents.
fn parents() -> io::Result<Vec<(u32, u32)>> {
    let processes = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = |process: u32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name, in parentheses, may contain spaces.
        let parent = status.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((process, parent))
    };
    Ok(processes.filter_map(parent).collect())
}

/// The time on a CPU of all threads of a process; 0 if it has ended.
fn cpu_of(process: u32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Duration::ZERO };
    let paths = threads.filter_map(|thread| Some(thread.ok()?.path().join("schedstat")));
    paths.filter_map(|path| nanoseconds(&path)).map(Duration::from_nanos).sum()
}

fn nanoseconds(schedstat: &PathBuf) -> Option<u64> {
    std::fs::read_to_string(schedstat).ok()?.split_whitespace().next()?.parse().ok()
}

fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
