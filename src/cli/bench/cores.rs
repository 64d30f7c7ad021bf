//! Which cores the servers and the load generator use.

/// The cores of the servers and of the load generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    Pinned {
        server: usize,
        generator: usize,
    },
    /// The operating system decides, for this reason.
    Unpinned(&'static str),
}

impl std::fmt::Display for Cores {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pinned { server, generator } => {
                write!(formatter, "server on core {server}, load generator on core {generator}")
            }
            Self::Unpinned(reason) => write!(formatter, "not pinned to cores: {reason}"),
        }
    }
}

impl Cores {
    /// Selects two of the cores that this process may use.
    pub fn select(is_unpinned: bool) -> Self {
        if is_unpinned {
            return Self::Unpinned("--unpinned");
        }
        system::select()
    }

    /// Pins this thread, and the processes that it starts from now on, to the server's core.
    pub fn enter_server(self) -> std::io::Result<()> {
        match self {
            Self::Pinned { server, .. } => system::pin(server),
            Self::Unpinned(_) => system::unpin(),
        }
    }

    /// Pins this thread to the generator's core.
    pub fn enter_generator(self) -> std::io::Result<()> {
        match self {
            Self::Pinned { generator, .. } => system::pin(generator),
            Self::Unpinned(_) => system::unpin(),
        }
    }
}

/// Makes timeouts of this thread as exact as the system can, so that an open loop sends when it is due.
pub fn use_exact_timeouts() {
    system::use_exact_timeouts();
}

#[cfg(target_os = "linux")]
mod system {
    use super::Cores;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack};
    use std::num::NonZeroU64;

    pub fn select() -> Cores {
        let Ok(allowed) = sched_getaffinity(None) else {
            return Cores::Unpinned("the cores of this process are unknown");
        };
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (cores.next(), cores.next()) {
            (Some(server), Some(generator)) => Cores::Pinned { server, generator },
            _ => Cores::Unpinned("there is only one core, which the server and the load generator share"),
        }
    }

    pub fn pin(core: usize) -> std::io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Allows all cores again. The system ignores those that this process may not use.
    pub fn unpin() -> std::io::Result<()> {
        let mut set = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|core| set.set(core));
        Ok(sched_setaffinity(None, &set)?)
    }

    pub fn use_exact_timeouts() {
        // Without it, timeouts are up to 50 us late: the figures stay valid.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::Cores;

    pub fn select() -> Cores {
        Cores::Unpinned("only Linux is supported")
    }

    pub fn pin(_: usize) -> std::io::Result<()> {
        Ok(())
    }

    pub fn unpin() -> std::io::Result<()> {
        Ok(())
    }

    pub fn use_exact_timeouts() {}
}
