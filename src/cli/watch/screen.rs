//! Shows the grid in a terminal, reads keys, and restores the terminal at the end.

use super::grid::{self, View};
use super::state::WatchState;
use super::{Layouts, WatchError};
use crate::client::Follow;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Interval at which marks fade and the connection state is updated. Updates and keys are drawn immediately.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which the thread that reads keys checks whether it is still needed.
const KEYS_INTERVAL: Duration = Duration::from_millis(200);

/// Shows the state until the user quits.
pub async fn run(state: WatchState, layouts: Layouts, follow: Follow, server: &str) -> Result<(), WatchError> {
    // `try_init` also installs a panic hook that restores the terminal first.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, state, layouts, follow, server).await;
    ratatui::restore();
    result
}

async fn show(
    terminal: &mut DefaultTerminal,
    mut state: WatchState,
    layouts: Layouts,
    mut follow: Follow,
    server: &str,
) -> Result<(), WatchError> {
    let start = Instant::now();
    let mut view = View::new(server);
    let mut events = read_events();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = interval(REDRAW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = follow.connection();
    loop {
        let update = {
            // The future is kept across ticks: a dropped future would restart a connection attempt at every tick.
            let mut next = std::pin::pin!(follow.next());
            loop {
                state.connection = *connection.borrow_and_update();
                terminal.draw(|frame| grid::draw(frame, &state, &mut view, start.elapsed()))?;
                tokio::select! {
                    update = &mut next => break update?,
                    event = events.recv() => match event.as_ref().map(|event| handle_event(event, &mut view)) {
                        Some(Action::Continue) => {}
                        Some(Action::Quit) | None => return Ok(()),
                    },
                    _ = terminate.recv() => return Ok(()),
                    _ = ticks.tick() => {}
                }
            }
        };
        let (_, changes) =
            state.handle_update(start.elapsed(), &update, follow.counts(), |index| follow.replica(index));
        layouts.load_missing(&mut state, &changes).await;
    }
}

/// Reads the terminal's events on a separate thread, because reading blocks. The thread ends after the receiver is
/// dropped.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let event = match event::poll(KEYS_INTERVAL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            // Without keys the user cannot quit, so the command ends when events cannot be read.
            let Ok(event) = event else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Continue,
    Quit,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "all other keys have no effect")]
fn handle_event(event: &Event, view: &mut View) -> Action {
    let &Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) = event else {
        return Action::Continue;
    };
    let control = modifiers.contains(KeyModifiers::CONTROL);
    match code {
        KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
        KeyCode::Char('c') if control => return Action::Quit,
        KeyCode::Up => view.scroll_by(-1),
        KeyCode::Down => view.scroll_by(1),
        KeyCode::PageUp => view.scroll_by(-10),
        KeyCode::PageDown => view.scroll_by(10),
        _ => {}
    }
    Action::Continue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_q_escape_and_control_c_quit() {
        let action = |code, modifiers| {
            handle_event(&Event::Key(KeyEvent::new(code, modifiers)), &mut View::new("http://127.0.0.1:1"))
        };
        assert_eq!(action(KeyCode::Char('q'), KeyModifiers::NONE), Action::Quit);
        assert_eq!(action(KeyCode::Esc, KeyModifiers::NONE), Action::Quit);
        assert_eq!(action(KeyCode::Char('c'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(action(KeyCode::Char('c'), KeyModifiers::NONE), Action::Continue);
        assert_eq!(action(KeyCode::Down, KeyModifiers::NONE), Action::Continue);
    }
}
