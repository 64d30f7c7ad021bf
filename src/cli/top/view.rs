//! Renders samples for a terminal or as a line. Pure.

use super::sample::{Rates, StatisticsSample};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use std::collections::VecDeque;

/// Maximum length of the sparkline, in seconds.
const HISTORY_MAX: usize = 240;
/// Width of the name of a row, in columns.
const NAME_COLUMNS: usize = 18;

#[derive(Debug, Default)]
pub struct View {
    server: String,
    pub sample: StatisticsSample,
    pub rates: Option<Rates>,
    /// Bytes sent per second, the newest last.
    history: VecDeque<u64>,
    /// Why the newest sample is unavailable.
    pub problem: Option<String>,
}

impl View {
    pub fn new(server: &str) -> Self {
        Self { server: server.to_owned(), ..Self::default() }
    }

    pub fn handle_sample(&mut self, sample: StatisticsSample) {
        self.rates = Rates::between(&self.sample, &sample).filter(|_| self.sample.uptime_ms > 0);
        if let Some(rates) = &self.rates {
            if self.history.len() == HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(rates.bytes_per_s as u64);
        }
        (self.sample, self.problem) = (sample, None);
    }

    pub fn draw(&self, frame: &mut Frame) {
        let areas = [
            Constraint::Length(1),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Min(3),
            Constraint::Length(1),
        ];
        let [head, upper, lower, graph, foot] = Layout::vertical(areas).areas(frame.area());
        frame.render_widget(self.head(), head);
        let halves = [Constraint::Fill(1), Constraint::Fill(1)];
        let [streams, commits] = Layout::horizontal(halves).areas(upper);
        let [savings, shadow] = Layout::horizontal(halves).areas(lower);
        panel(frame, streams, "streams", self.streams());
        panel(frame, commits, "commits", self.commits());
        panel(frame, savings, "compared with immediate full frames", self.savings());
        panel(frame, shadow, "shadow mode (computed only)", self.shadow());
        let block = Block::bordered().title(" bytes sent per second ");
        let width = block.inner(graph).width as usize;
        let newest = self.history.iter().skip(self.history.len().saturating_sub(width));
        frame.render_widget(Sparkline::default().block(block).data(newest.copied()).style(Color::Cyan), graph);
        frame.render_widget(Line::from(" q quits").dim(), foot);
    }

    fn head(&self) -> Line<'_> {
        let title = Span::from(format!(" slotcast {} ", self.sample.version)).bold();
        let place = Span::from(format!("at {}, up {}", self.server, uptime(self.sample.uptime_ms)));
        match &self.problem {
            None => Line::from(vec![title, place]),
            Some(problem) => Line::from(vec![title, place, Span::from(format!("  {problem}")).red().bold()]),
        }
    }

    fn streams(&self) -> Vec<Line<'static>> {
        let sample = &self.sample;
        let rate = |rate: fn(&Rates) -> f64| self.rates.as_ref().map(rate);
        vec![
            row("open", number(sample.streams)),
            row("syncs", per_s(rate(|rates| rates.syncs_per_s))),
            row(
                "bytes",
                rate(|rates| rates.bytes_per_s).map_or("-".into(), |rate| format!("{}/s", bytes(rate as u64))),
            ),
            row("full / delta", format!("{} / {}", amount(sample.full_syncs), amount(sample.delta_syncs))),
            error_row("desyncs reported", sample.desyncs),
        ]
    }

    fn commits(&self) -> Vec<Line<'static>> {
        let sample = &self.sample;
        let rates = self.rates.as_ref();
        let now = |us: Option<Option<u64>>, total| us.flatten().unwrap_or(total);
        let p50 = now(rates.map(|rates| rates.commit_p50_us), sample.commit_p50_us);
        let p99 = now(rates.map(|rates| rates.commit_p99_us), sample.commit_p99_us);
        vec![
            row("mutations", per_s(rates.map(|rates| rates.transactions_per_s))),
            row("commits", per_s(rates.map(|rates| rates.commits_per_s))),
            row("latency p50 / p99", format!("{} / {}", microseconds(p50), microseconds(p99))),
            row("queue", format!("{} of {}", number(sample.queue), number(sample.queue_max))),
            row("hot inventories", number(sample.hot_inventories)),
        ]
    }

    fn savings(&self) -> Vec<Line<'static>> {
        let sample = &self.sample;
        let now = self.rates.as_ref().and_then(|rates| rates.saved_percent);
        vec![
            row("saved now", percent(now)),
            row("saved in total", percent(sample.saved_percent())),
            row("bytes sent", bytes(sample.bytes)),
            row("full frame bytes", bytes(sample.immediate_full_bytes)),
            row("syncs", format!("{} of {}", amount(sample.syncs()), amount(sample.immediate_full_syncs))),
        ]
    }

    fn shadow(&self) -> Vec<Line<'static>> {
        let sample = &self.sample;
        let both = |sent, computed| format!("{sent} -> {computed}");
        vec![
            row("bytes", both(bytes(sample.shadow_sent_bytes), bytes(sample.shadow_bytes))),
            row("syncs", both(amount(sample.shadow_sent_syncs), amount(sample.shadow_syncs))),
            row("bytes saved", percent(sample.shadow_saved_percent())),
            error_row("mismatches", sample.shadow_mismatches),
            row("not verifiable", number(sample.shadow_unverified)),
        ]
    }

    /// Renders the samples as one line, for output that is not a terminal.
    pub fn line(&self) -> String {
        let sample = &self.sample;
        let rates = self.rates.as_ref();
        let (syncs, sent) = match rates {
            Some(rates) => (per_s(Some(rates.syncs_per_s)), format!("{}/s", bytes(rates.bytes_per_s as u64))),
            None => (number(sample.syncs()), bytes(sample.bytes)),
        };
        let saved = rates.and_then(|rates| rates.saved_percent).or(sample.saved_percent());
        let latency = |now: fn(&Rates) -> Option<u64>, total| microseconds(rates.and_then(now).unwrap_or(total));
        let p50 = latency(|rates| rates.commit_p50_us, sample.commit_p50_us);
        let p99 = latency(|rates| rates.commit_p99_us, sample.commit_p99_us);
        format!(
            "streams {}  syncs {syncs}  bytes {sent}  saved {}  desyncs {}  commit p50 {p50} p99 {p99}  shadow {} -> {}, {} mismatches",
            number(sample.streams),
            percent(saved),
            number(sample.desyncs),
            bytes(sample.shadow_sent_bytes),
            bytes(sample.shadow_bytes),
            number(sample.shadow_mismatches),
        )
    }
}

fn panel(frame: &mut Frame, area: Rect, title: &str, lines: Vec<Line<'static>>) {
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(format!(" {title} "))), area);
}

fn row(name: &str, value: String) -> Line<'static> {
    Line::from(vec![Span::from(format!(" {name:<NAME_COLUMNS$}")).dim(), Span::from(value)])
}

/// Renders a count that should be 0.
fn error_row(name: &str, count: u64) -> Line<'static> {
    let style = if count == 0 {
        Style::new().fg(Color::Green)
    } else {
        Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
    };
    Line::from(vec![Span::from(format!(" {name:<NAME_COLUMNS$}")).dim(), Span::styled(number(count), style)])
}

fn per_s(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}/s"),
        Some(rate) => format!("{}/s", number(rate.round() as u64)),
    }
}

fn percent(percent: Option<f64>) -> String {
    percent.map_or("-".to_owned(), |percent| format!("{percent:.1} %"))
}

fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Renders a number that may be too large for a narrow column.
fn amount(number: u64) -> String {
    if number < 100_000 { self::number(number) } else { scaled(number, ["", "k", "M", "G", "T"]) }
}

fn bytes(bytes: u64) -> String {
    scaled(bytes, ["B", "kB", "MB", "GB", "TB"])
}

fn scaled(number: u64, units: [&str; 5]) -> String {
    let (mut amount, mut unit) = (number as f64, 0);
    while amount >= 1_000.0 && unit + 1 < units.len() {
        (amount, unit) = (amount / 1_000.0, unit + 1);
    }
    if unit == 0 { format!("{number} {}", units[0]) } else { format!("{amount:.1} {}", units[unit]) }
}

fn microseconds(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..10_000 => format!("{} us", number(us)),
        _ => format!("{:.1} ms", us as f64 / 1_000.0),
    }
}

fn uptime(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view() -> View {
        let mut view = View::new("http://127.0.0.1:7400");
        for seconds in [3_700, 3_701, 3_703] {
            view.handle_sample(sample(seconds));
        }
        view
    }

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_sample_fits_a_terminal_of_80_by_24() {
        insta::assert_snapshot!(drawn(&view(), 80, 24));
    }

    #[test]
    fn without_a_new_reading_the_last_one_is_shown_with_the_problem() {
        let view = View { problem: Some("no statistics: no reply".into()), ..view() };
        let drawn = drawn(&view, 100, 24);
        assert!(drawn.contains("no statistics: no reply") && drawn.contains("97.5 %"), "{drawn}");
    }

    #[test]
    fn any_terminal_size_can_be_drawn() {
        for (width, height) in [(1, 1), (10, 3), (20, 8), (300, 100)] {
            drawn(&view(), width, height);
            drawn(&View::default(), width, height);
        }
    }

    #[test]
    fn a_line_has_totals_after_one_sample_and_rates_after_two() {
        let mut view = View::default();
        view.handle_sample(sample(10));
        let once = view.line();
        view.handle_sample(sample(11));
        insta::assert_snapshot!(format!("{once}\n{}", view.line()));
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([99_999, 123_456].map(amount), ["99,999", "123.5 k"]);
        assert_eq!([0, 999, 1_500, 2_500_000].map(bytes), ["0 B", "999 B", "1.5 kB", "2.5 MB"]);
        assert_eq!([0, 999, 12_345].map(microseconds), ["-", "999 us", "12.3 ms"]);
        assert_eq!([59_000, 61_000, 3_700_000, 90_000_000].map(uptime), ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
