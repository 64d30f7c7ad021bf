//! Signals of a server process. The process handles them from its start, so that no signal kills a server that is still
//! starting.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The handled signals of this process, before they have any effect.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// Resolves when a signal requests that the server stops.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Signals {
    /// Installs handlers for SIGTERM, SIGINT and SIGHUP. Needs a tokio runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns the stop request, triggered by SIGTERM or SIGINT, and the reload signal. With a settings file, SIGHUP is
    /// the reload signal; without one, SIGHUP means that the terminal was closed and also stops the server.
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

/// Returns a future that resolves when SIGTERM or SIGINT arrives. From this call on, they no longer end the process.
pub fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
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
            // The runtime is shutting down and has dropped the task that sends the request.
            std::future::pending::<()>().await;
        }
    }
}
