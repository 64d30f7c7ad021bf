//! Signals of a server process. They are caught from the first moment on, so that none of them kills a server that is
//! still starting.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The signals of this process, caught but not yet acted upon.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// Resolves once a signal asks the server to stop.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Signals {
    /// Catches SIGTERM, SIGINT and SIGHUP. Needs a tokio runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// What stops the server: SIGTERM and SIGINT. SIGHUP asks for the settings file to be read again and is given back if
    /// there is one to read; without a settings file it means that the terminal has gone, and stops the server as well.
    pub fn split(self, has_settings_file: bool) -> (Stop, Option<Signal>) {
        let Self { mut terminate, mut interrupt, hangup } = self;
        let (mut stops, reloads) = if has_settings_file { (None, Some(hangup)) } else { (Some(hangup), None) };
        let (stop, is_stopped) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    _ = received(&mut stops) => "SIGHUP",
                };
                if stop.send_replace(true) {
                    tracing::info!(signal = name, "already stopping");
                } else {
                    tracing::info!(signal = name, "stopping");
                }
            }
        });
        (Stop(is_stopped), reloads)
    }
}

async fn received(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

impl Stop {
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn requested(mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // The runtime ends, and with it the task that would tell.
            std::future::pending::<()>().await;
        }
    }
}
