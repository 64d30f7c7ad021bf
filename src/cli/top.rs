//! `slotcast top`: shows live statistics of the server.

mod sample;
mod view;

use super::call::failure::Failure;
use super::output::{OutputError, print};
use super::{ClientArgs, CommandResult};
use crate::client::{CallMetadata, RetryChannel};
use crate::wire::v1;
use crate::wire::v1::admin_service_client::AdminServiceClient;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use sample::StatisticsSample;
use serde_json::json;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use view::View;

const INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of one sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which the thread that reads keys checks whether it is still needed.
const KEYS_INTERVAL: Duration = Duration::from_millis(100);

/// Show live statistics: bytes sent and saved, commits, and shadow mode.
///
/// On a terminal, press q, Esc or Ctrl-C to quit. Otherwise the command prints one line per second.
#[derive(Debug, clap::Args)]
pub struct Top {
    #[command(flatten)]
    client: ClientArgs,
    /// Print one sample with the totals since the server started, and exit.
    #[arg(long)]
    once: bool,
    /// Print samples as JSON, one per line.
    #[arg(long)]
    json: bool,
}

type Admin = AdminServiceClient<InterceptedService<RetryChannel, CallMetadata>>;

impl Top {
    pub async fn run(self) -> CommandResult {
        let mut admin = AdminServiceClient::new(self.client.client()?.channel());
        let mut view = View::new(&self.client.server);
        // The first sample must succeed, so that a wrong address is reported as an error.
        view.handle_sample(read(&mut admin).await.map_err(|status| Failure::new(status, &self.client.server))?);
        if self.once {
            self.print(&view)?;
        } else if self.json || !std::io::stdout().is_terminal() {
            self.print_lines(&mut admin, view).await?;
        } else {
            let terminal = Screen::open()?;
            show(terminal, &mut admin, view).await?;
        }
        Ok(())
    }

    async fn print_lines(&self, admin: &mut Admin, mut view: View) -> CommandResult {
        loop {
            tokio::time::sleep(INTERVAL).await;
            view.handle_sample(read(admin).await.map_err(|status| Failure::new(status, &self.client.server))?);
            self.print(&view)?;
        }
    }

    fn print(&self, view: &View) -> Result<(), OutputError> {
        if self.json {
            let line =
                json!({"since_start": view.sample, "rates": view.rates, "saved_percent": view.sample.saved_percent()});
            print(line)
        } else {
            print(view.line())
        }
    }
}

/// The terminal in raw mode. Dropping this, or a panic hook, restores the terminal.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> std::io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn show(mut screen: Screen, admin: &mut Admin, mut view: View) -> std::io::Result<()> {
    let mut events = events();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    loop {
        screen.0.draw(|frame| view.draw(frame))?;
        tokio::select! {
            event = events.recv() => match event {
                Some(event) if !quits(&event) => {}
                Some(_) | None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            sample = async { interval.tick().await; read(admin).await } => match sample {
                Ok(sample) => view.handle_sample(sample),
                Err(status) => view.problem = Some(format!("no statistics: {}", status.message())),
            },
        }
    }
}

async fn read(admin: &mut Admin) -> Result<StatisticsSample, Status> {
    let call = admin.get_statistics(v1::GetStatisticsRequest {});
    let timeout = |_| Status::deadline_exceeded(format!("no reply within {} s", SAMPLE_TIMEOUT.as_secs()));
    let reply = tokio::time::timeout(SAMPLE_TIMEOUT, call).await.map_err(timeout)??;
    Ok(StatisticsSample::new(reply.into_inner()))
}

/// Returns the terminal events that matter: a request to quit, or a new size. A separate thread reads them, because
/// reading blocks; the thread ends soon after the receiver is dropped.
fn events() -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEYS_INTERVAL).and_then(|is_ready| is_ready.then(event::read).transpose()) {
                Ok(Some(event)) if !quits(&event) && !matches!(event, Event::Resize(..)) => {}
                Ok(Some(event)) => drop(sender.blocking_send(event)),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    });
    events
}

fn quits(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Esc | KeyCode::Char('q')) || control && key.code == KeyCode::Char('c');
    quits && key.kind != KeyEventKind::Release
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn only_q_escape_and_control_c_quit() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        let (none, control) = (KeyModifiers::NONE, KeyModifiers::CONTROL);
        assert!(quits(&key(KeyCode::Char('q'), none)) && quits(&key(KeyCode::Esc, none)));
        assert!(quits(&key(KeyCode::Char('c'), control)));
        assert!(!quits(&key(KeyCode::Char('c'), none)) && !quits(&Event::Resize(1, 1)));
    }
}
