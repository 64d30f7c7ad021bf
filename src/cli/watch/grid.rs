//! Renders the watched inventories: a header, then the sections of each inventory in rows of nine slots.

use super::state::{InventoryPanel, PanelState, Section, WatchState};
use crate::client::ConnectionState;
use crate::domain::{Slot, Stack};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use std::time::Duration;

/// Number of slots in a row, as in the game.
const COLUMNS: u16 = 9;
/// Maximum width of a cell without its border, in columns; the longest item names fit.
const CELL_WIDTH_MAX: u16 = 15;
const CELL_WIDTH_MIN: u16 = 3;
/// Height of a cell in lines: name, count and the border below.
const CELL_HEIGHT: u16 = 3;
/// Height of the header in lines: three lines of text and an empty line.
const HEADER_HEIGHT: u16 = 4;

/// The visible part of a picture that may be higher than the terminal.
#[derive(Debug, Clone)]
pub struct View {
    server: String,
    /// The first visible line of the picture.
    scroll: u16,
}

impl View {
    pub fn new(server: &str) -> Self {
        Self { server: server.to_owned(), scroll: 0 }
    }

    pub fn scroll_by(&mut self, lines: i16) {
        self.scroll = self.scroll.saturating_add_signed(lines);
    }
}

pub fn draw(frame: &mut Frame<'_>, state: &WatchState, view: &mut View, now: Duration) {
    let area = frame.area();
    let buffer = frame.buffer_mut();
    let picture = picture(state, area.width, now);
    let visible = area.height.saturating_sub(HEADER_HEIGHT);
    let hidden = picture.area.height.saturating_sub(visible);
    view.scroll = view.scroll.min(hidden);
    header(state, view, hidden, area, buffer);
    for y in 0..visible.min(picture.area.height) {
        for x in 0..area.width.min(picture.area.width) {
            buffer[(x, y + HEADER_HEIGHT)] = picture[(x, y + view.scroll)].clone();
        }
    }
}

fn header(state: &WatchState, view: &View, hidden: u16, area: Rect, buffer: &mut Buffer) {
    let traffic = &state.traffic;
    let counts = &traffic.counts;
    let (state, style) = match state.connection {
        ConnectionState::Connecting => ("connecting", Style::new().fg(Color::Yellow)),
        ConnectionState::Open => ("connected", Style::new().fg(Color::Green)),
        ConnectionState::Lost => ("connection lost, reconnecting", Style::new().fg(Color::Red)),
    };
    let desyncs = if counts.desyncs > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    let per_sync = traffic.bytes_per_sync().map_or("-".to_owned(), |bytes| format!("{bytes:.1}"));
    let scrolled = if hidden > 0 { format!("  ↑ ↓ for {hidden} more lines") } else { String::new() };
    let lines = [
        Line::from(vec![
            Span::styled("slotcast", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!(" {}  ", view.server)),
            Span::styled(state, style),
            Span::raw(format!("  q quits{scrolled}")),
        ]),
        Line::raw(format!(
            "syncs {}  bytes {}  bytes/sync {per_sync}  initial bytes {}",
            traffic.syncs, counts.bytes, traffic.initial_bytes
        )),
        Line::from(vec![
            Span::raw(format!("heartbeats {}  reconnects {}  ", counts.heartbeats, counts.reconnects)),
            Span::styled(format!("desyncs {}", counts.desyncs), desyncs),
        ]),
    ];
    for (y, line) in lines.iter().enumerate().filter(|(y, _)| (*y as u16) < area.height) {
        buffer.set_line(0, y as u16, line, area.width);
    }
}

/// Renders all panels below each other at their full height.
fn picture(state: &WatchState, width: u16, now: Duration) -> Buffer {
    let blocks: Vec<(&InventoryPanel, Vec<Section>)> =
        state.panels.iter().map(|panel| (panel, panel.sections())).collect();
    let height = |(_, sections): &(&InventoryPanel, Vec<Section>)| 2 + sections.iter().map(section_height).sum::<u16>();
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, blocks.iter().map(height).sum()));
    let mut y = 0;
    for (panel, sections) in &blocks {
        buffer.set_line(0, y, &title(panel), width);
        y += 1;
        for section in sections {
            draw_section(&mut buffer, y, state, panel, section, now);
            y += section_height(section);
        }
        y += 1;
    }
    buffer
}

fn title(panel: &InventoryPanel) -> Line<'static> {
    let name = Span::styled(panel.id.clone(), Style::new().add_modifier(Modifier::BOLD));
    let state = match &panel.state {
        PanelState::Waiting => "  waiting for the first frame".to_owned(),
        PanelState::Absent => "  absent; shown as soon as it exists and may be read".to_owned(),
        PanelState::Known(replica) => {
            let (contents, epoch) = (&replica.contents, replica.epoch.get());
            let (revision, digest) = (contents.revision().0, contents.digest());
            format!("  epoch {epoch:08x}  revision {revision}  digest {:08x} {:08x}", digest.a, digest.b)
        }
    };
    Line::from(vec![name, Span::raw(state)])
}

/// Returns the height of a section: the border above, then the rows, each with a border below.
fn section_height(section: &Section) -> u16 {
    1 + section.slots.div_ceil(COLUMNS) * CELL_HEIGHT
}

fn draw_section(
    buffer: &mut Buffer,
    top: u16,
    state: &WatchState,
    panel: &InventoryPanel,
    section: &Section,
    now: Duration,
) {
    let width = (buffer.area.width.saturating_sub(1) / COLUMNS).saturating_sub(1);
    let width = width.clamp(CELL_WIDTH_MIN, CELL_WIDTH_MAX);
    let border = Style::new().fg(Color::DarkGray);
    let columns = section.slots.min(COLUMNS);
    let horizontal = |left: &str, middle: &str, right: &str| {
        let parts = vec!["─".repeat(usize::from(width)); usize::from(columns)];
        format!("{left}{}{right}", parts.join(middle))
    };
    write(buffer, 0, top, &horizontal("┌", "┬", "┐"), border);
    let last = section.first + section.slots.saturating_sub(1);
    write(buffer, 2, top, &format!(" {} {}-{last} ", section.name, section.first), Style::new().fg(Color::Cyan));
    let rows = section.slots.div_ceil(COLUMNS);
    for row in 0..rows {
        let y = top + 1 + row * CELL_HEIGHT;
        for column in 0..columns {
            let x = column * (width + 1);
            let index = row * COLUMNS + column;
            (0..2).for_each(|line| write(buffer, x, y + line, "│", border));
            // The last row may be shorter.
            let slot = (index < section.slots).then(|| Slot(section.first + index));
            draw_cell(buffer, Rect::new(x + 1, y, width, 2), state, panel, slot, now);
        }
        (0..2).for_each(|line| write(buffer, columns * (width + 1), y + line, "│", border));
        let is_last = row + 1 == rows;
        let below = if is_last { horizontal("└", "┴", "┘") } else { horizontal("├", "┼", "┤") };
        write(buffer, 0, y + 2, &below, border);
    }
}

fn draw_cell(
    buffer: &mut Buffer,
    area: Rect,
    state: &WatchState,
    panel: &InventoryPanel,
    slot: Option<Slot>,
    now: Duration,
) {
    let stack = slot.and_then(|slot| panel.stack(slot));
    let (name, count) = match stack {
        Some(stack) => (short_name(&state.name(stack), usize::from(area.width)), count_text(stack)),
        None => (String::new(), String::new()),
    };
    let is_marked = slot.is_some_and(|slot| panel.is_marked(slot, now));
    let style = if is_marked { Style::new().fg(Color::Black).bg(Color::Yellow) } else { Style::new() };
    let width = usize::from(area.width);
    write(buffer, area.x, area.y, &format!("{name:width$}"), style);
    write(buffer, area.x, area.y + 1, &format!("{count:>width$}"), style.add_modifier(Modifier::BOLD));
}

/// Marks a stack that has attributes with an asterisk: it does not merge with plain stacks.
fn count_text(stack: &Stack) -> String {
    let mark = if stack.attributes.is_none() { "" } else { "*" };
    format!("{mark}{}", stack.count.get())
}

/// Shortens an item's id to a width in columns: with spaces between its words if they fit, otherwise each word is
/// shortened, the longest first, so that `oak_planks` and `oak_log` remain distinct.
fn short_name(id: &str, width: usize) -> String {
    let mut words: Vec<Vec<char>> = id.split('_').map(|word| word.chars().collect()).collect();
    let spaced = words.iter().map(Vec::len).sum::<usize>() + words.len().saturating_sub(1);
    if spaced <= width {
        return id.replace('_', " ");
    }
    while words.iter().map(Vec::len).sum::<usize>() > width {
        let Some(longest) = words.iter_mut().rev().max_by_key(|word| word.len()) else { break };
        longest.pop();
    }
    let mut short = String::new();
    for word in words {
        let mut letters = word.into_iter();
        short.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        short.extend(letters);
    }
    short
}

/// Writes text and truncates it at the edge of the buffer.
fn write(buffer: &mut Buffer, x: u16, y: u16, text: &str, style: Style) {
    if buffer.area.contains(Position::new(x, y)) {
        buffer.set_stringn(x, y, text, usize::from(buffer.area.width - x), style);
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{replica, stack, state, update};
    use super::*;
    use crate::domain::Attributes;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(state: &WatchState, view: &mut View, width: u16, height: u16, ms: u64) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state, view, Duration::from_millis(ms))).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &Buffer) -> String {
        let line =
            |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..buffer.area.height).map(line).collect::<Vec<_>>().join("\n")
    }

    /// Returns a state on which steve has dropped one of his items, and the state of the chest is not known yet.
    fn state_with_one_drop() -> WatchState {
        let mut state = state();
        let pickaxe = crate::domain::Stack { attributes: Attributes::new(b"sharp").unwrap(), ..stack(26, 1) };
        let kit =
            |cobblestone| vec![(0, stack(1, 64)), (8, pickaxe.clone()), (9, stack(4, 64)), (35, stack(7, cobblestone))];
        update(&mut state, 0, 0, &replica(1, 36, &kit(64)), 61);
        update(&mut state, 1_000, 0, &replica(2, 36, &kit(63)), 16);
        state.connection = ConnectionState::Open;
        state
    }

    #[test]
    fn a_player_is_drawn_with_the_hotbar_at_the_bottom() {
        let buffer = drawn(&state_with_one_drop(), &mut View::new("http://127.0.0.1:7400"), 80, 24, 1_100);
        insta::assert_snapshot!(text(&buffer));
    }

    #[test]
    fn only_a_changed_cell_is_marked_and_only_briefly() {
        let mut view = View::new("http://127.0.0.1:7400");
        let marked = |buffer: Buffer| buffer.content.iter().filter(|cell| cell.bg == Color::Yellow).count();
        assert_eq!(
            marked(drawn(&state_with_one_drop(), &mut view, 80, 24, 1_100)),
            2 * 7,
            "name and count of one cell"
        );
        assert_eq!(marked(drawn(&state_with_one_drop(), &mut view, 80, 24, 2_500)), 0);
    }

    #[test]
    fn scrolling_shows_what_does_not_fit() {
        let mut view = View::new("http://127.0.0.1:7400");
        assert!(!text(&drawn(&state_with_one_drop(), &mut view, 80, 20, 0)).contains("chest-1"));
        view.scroll_by(i16::MAX);
        let bottom = text(&drawn(&state_with_one_drop(), &mut view, 80, 24, 0));
        assert!(bottom.contains("chest 0-26") && bottom.contains("waiting for the first frame"), "{bottom}");
        view.scroll_by(i16::MIN);
        assert!(text(&drawn(&state_with_one_drop(), &mut view, 80, 24, 0)).contains("main 9-35"));
    }

    #[test]
    fn any_terminal_size_can_be_drawn() {
        for (width, height) in [(1, 1), (10, 2), (20, 5), (300, 100)] {
            drawn(&state_with_one_drop(), &mut View::new("http://127.0.0.1:7400"), width, height, 0);
        }
    }

    #[test]
    fn shortened_names_remain_distinct() {
        let short = ["dirt", "oak_log", "oak_planks", "dark_oak_planks", "diamond_pickaxe", "cobblestone", ""];
        let expected = ["dirt", "oak log", "OakPlan", "DaOaPla", "DiaPick", "Cobbles", ""];
        assert_eq!(short.map(|id| short_name(id, 7)), expected);
    }
}
