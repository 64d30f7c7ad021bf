//! The grid in a terminal: keys in, frames out, and the terminal as it was in the end.

use super::board::Board;
use super::grid::{self, View};
use super::{Ended, Layouts};
use crate::client::Follow;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often marks fade and the connection is looked at; updates and keys are drawn at once.
const REDRAW: Duration = Duration::from_millis(100);
/// How long the thread that reads keys waits before it looks whether it is still wanted.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// Shows the board until it is told to quit.
pub async fn run(board: Board, layouts: Layouts, follow: Follow, server: &str) -> Result<(), Ended> {
    // It also sets a panic hook that restores the terminal first.
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, board, layouts, follow, server).await;
    ratatui::restore();
    ended
}

async fn show(
    terminal: &mut DefaultTerminal,
    mut board: Board,
    layouts: Layouts,
    mut follow: Follow,
    server: &str,
) -> Result<(), Ended> {
    let start = Instant::now();
    let mut view = View::new(server);
    let mut events = read_events();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = follow.connection();
    loop {
        let update = {
            // Kept while it is drawn: dropped at each tick it would begin to connect from the start each time.
            let mut next = std::pin::pin!(follow.next());
            loop {
                board.connection = *connection.borrow_and_update();
                terminal.draw(|frame| grid::draw(frame, &board, &mut view, start.elapsed()))?;
                tokio::select! {
                    update = &mut next => break update?,
                    event = events.recv() => match event.as_ref().map(|event| handle_event(event, &mut view)) {
                        Some(Wish::GoOn) => {}
                        Some(Wish::Quit) | None => return Ok(()),
                    },
                    _ = terminate.recv() => return Ok(()),
                    _ = ticks.tick() => {}
                }
            }
        };
        let (_, changes) =
            board.handle_update(start.elapsed(), &update, follow.counts(), |position| follow.replica(position));
        layouts.complete(&mut board, &changes).await;
    }
}

/// The terminal's events, read by a thread of its own since reading blocks; it ends when nobody listens any more.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let event = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            // Without keys nobody could quit: then it ends by itself.
            let Ok(event) = event else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    GoOn,
    Quit,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "all other keys mean nothing here")]
fn handle_event(event: &Event, view: &mut View) -> Wish {
    let &Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) = event else {
        return Wish::GoOn;
    };
    let control = modifiers.contains(KeyModifiers::CONTROL);
    match code {
        KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
        KeyCode::Char('c') if control => return Wish::Quit,
        KeyCode::Up => view.scroll_by(-1),
        KeyCode::Down => view.scroll_by(1),
        KeyCode::PageUp => view.scroll_by(-10),
        KeyCode::PageDown => view.scroll_by(10),
        _ => {}
    }
    Wish::GoOn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_quit_and_nothing_else_does() {
        let wish = |code, modifiers| {
            handle_event(&Event::Key(KeyEvent::new(code, modifiers)), &mut View::new("http://127.0.0.1:1"))
        };
        assert_eq!(wish(KeyCode::Char('q'), KeyModifiers::NONE), Wish::Quit);
        assert_eq!(wish(KeyCode::Esc, KeyModifiers::NONE), Wish::Quit);
        assert_eq!(wish(KeyCode::Char('c'), KeyModifiers::CONTROL), Wish::Quit);
        assert_eq!(wish(KeyCode::Char('c'), KeyModifiers::NONE), Wish::GoOn);
        assert_eq!(wish(KeyCode::Down, KeyModifiers::NONE), Wish::GoOn);
    }
}
