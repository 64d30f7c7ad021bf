//! CPU time and memory of processes, read from the operating system.

use std::io;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

/// CPU time of a process by component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Network, calls, and reads of the store.
    pub runtime: Duration,
    pub commit: Duration,
    pub fold: Duration,
    pub other: Duration,
}

impl CpuTimes {
    pub fn total(self) -> Duration {
        self.runtime + self.commit + self.fold + self.other
    }

    /// Reads the CPU time that the threads of a process have used so far.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut times = Self::default();
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            let directory = thread.path();
            // The first thread serves connections. Its name is that of the executable.
            let is_first = thread.file_name().to_str() == Some(&pid.to_string());
            // A thread may end at any time.
            let Ok(name) = std::fs::read_to_string(directory.join("comm")) else { continue };
            let Ok(time) = thread_time(&directory) else { continue };
            let component = if is_first { &mut times.runtime } else { times.component(name.trim()) };
            *component += time;
        }
        Ok(times)
    }

    fn component(&mut self, thread: &str) -> &mut Duration {
        let is_runtime =
            ["tokio", "slotcast", "connections", "runtime"].iter().any(|prefix| thread.starts_with(prefix));
        match thread {
            _ if thread.contains("commit") => &mut self.commit,
            _ if thread.contains("fold") => &mut self.fold,
            "slotcast-files" => &mut self.other,
            _ if is_runtime => &mut self.runtime,
            _ => &mut self.other,
        }
    }
}

impl Sub for CpuTimes {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            runtime: self.runtime.saturating_sub(earlier.runtime),
            commit: self.commit.saturating_sub(earlier.commit),
            fold: self.fold.saturating_sub(earlier.fold),
            other: self.other.saturating_sub(earlier.other),
        }
    }
}

/// Returns the CPU time that this thread has used so far.
pub fn of_this_thread() -> io::Result<Duration> {
    thread_time(Path::new("/proc/thread-self"))
}

/// Reads the time on a CPU in nanoseconds, the first field of `schedstat`.
fn thread_time(directory: &Path) -> io::Result<Duration> {
    let times = std::fs::read_to_string(directory.join("schedstat"))?;
    let nanoseconds = times.split_whitespace().next().and_then(|first| first.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kibibytes.map(|kibibytes| kibibytes * 1_024).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_belong_to_components() {
        let mut times = CpuTimes::default();
        for (index, thread) in
            ["tokio-rt-worker", "slotcast", "connections-1", "commit", "slotcast-fold", "slotcast-files", "x"]
                .iter()
                .enumerate()
        {
            *times.component(thread) += Duration::from_secs(1 << index);
        }
        let seconds = [times.runtime, times.commit, times.fold, times.other].map(|time| time.as_secs());
        assert_eq!(seconds, [1 + 2 + 4, 8, 16, 32 + 64]);
        assert_eq!(times.total().as_secs(), 127);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_memory_and_time() {
        assert!(CpuTimes::of_process(std::process::id()).expect("readable").total() > Duration::ZERO);
        // The system accounts the time of a thread when it is interrupted or yields.
        while of_this_thread().expect("readable").is_zero() {
            std::thread::yield_now();
        }
        assert!(resident_bytes(std::process::id()).expect("readable") > 1 << 20);
    }
}
