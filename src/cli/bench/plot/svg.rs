//! Line charts and bars as SVG.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 60.0;
/// Number of colors of the style; further series use them again.
const COLORS: usize = 6;

/// Colors that differ in lightness too, on both backgrounds.
const STYLE: &str = "<style>
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 15px }
.grid { stroke: #d0d7de } .line { fill: none; stroke-width: 2 } .background { fill: #ffffff }
.c0 { --c: #0550ae } .c1 { --c: #bc4c00 } .c2 { --c: #1a7f37 } .c3 { --c: #8250df } .c4 { --c: #a40e26 } .c5 { --c: #6e7781 }
.line { stroke: var(--c) } .area { fill: var(--c) }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .grid { stroke: #30363d } .background { fill: #0d1117 }
.c0 { --c: #79c0ff } .c1 { --c: #ffa657 } .c2 { --c: #7ee787 } .c3 { --c: #d2a8ff } .c4 { --c: #ff7b72 } .c5 { --c: #8b949e } }
</style>";

/// A line of a chart.
#[derive(Debug)]
pub struct Series {
    pub name: String,
    /// In ascending order of x.
    pub points: Vec<(f64, f64)>,
}

/// A stacked bar, or a group of bars.
#[derive(Debug)]
pub struct Bar {
    /// The lines under the bar, separated by commas.
    pub name: String,
    /// From the bottom, or from the left.
    pub parts: Vec<f64>,
}

/// A direction of a chart, with the unit in its title.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    title: &'static str,
    is_logarithmic: bool,
}

impl Axis {
    pub fn linear(title: &'static str) -> Self {
        Self { title, is_logarithmic: false }
    }

    pub fn logarithmic(title: &'static str) -> Self {
        Self { title, is_logarithmic: true }
    }
}

/// An axis with its range.
struct Scale {
    min: f64,
    max: f64,
    is_logarithmic: bool,
    ticks: Vec<f64>,
}

impl Scale {
    fn new(axis: Axis, values: impl Iterator<Item = f64>) -> Self {
        let (mut min, mut max) = (f64::INFINITY, 0.0_f64);
        for value in values {
            (min, max) = (min.min(value), max.max(value));
        }
        if axis.is_logarithmic {
            let (first, last) = (min.max(1e-3).log10().floor() as i32, max.max(1e-3).log10().ceil() as i32);
            let ticks: Vec<f64> = (first..=last.max(first + 1)).map(|power| 10_f64.powi(power)).collect();
            let max = 10_f64.powi(last.max(first + 1));
            return Self { min: 10_f64.powi(first), max, is_logarithmic: true, ticks };
        }
        let step = step(max.max(1e-9));
        let steps = (max / step).ceil().max(1.0);
        let ticks = (0..=steps as u32).map(|tick| f64::from(tick) * step).collect();
        Self { min: 0.0, max: steps * step, is_logarithmic: false, ticks }
    }

    /// The position of a value, from 0 to 1.
    fn position(&self, value: f64) -> f64 {
        if self.is_logarithmic {
            (value.max(self.min) / self.min).log10() / (self.max / self.min).log10()
        } else {
            (value - self.min) / (self.max - self.min)
        }
    }
}

/// A round distance of about five ticks up to a maximum.
fn step(max: f64) -> f64 {
    let raw = max / 5.0;
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= raw * 0.999).unwrap_or(10.0);
    factor * power
}

fn x_at(position: f64) -> f64 {
    LEFT + position * (WIDTH - LEFT - RIGHT)
}

fn y_at(position: f64) -> f64 {
    HEIGHT - BOTTOM - position * (HEIGHT - TOP - BOTTOM)
}

/// Returns a line chart, or `None` if no series has a point.
pub fn line_chart(title: &str, x_axis: Axis, y_axis: Axis, series: &[Series]) -> Option<String> {
    let points = || series.iter().flat_map(|series| &series.points);
    points().next()?;
    let x = Scale::new(x_axis, points().map(|point| point.0));
    let y = Scale::new(y_axis, points().map(|point| point.1));
    let mut svg = begin(title, y_axis.title, &y);
    for tick in &x.ticks {
        let at = x_at(x.position(*tick));
        text(&mut svg, (at, HEIGHT - BOTTOM + 20.0), "middle", &number(*tick));
    }
    text(&mut svg, (x_at(0.5), HEIGHT - 16.0), "middle", x_axis.title);
    for (index, series) in series.iter().enumerate() {
        let color = index % COLORS;
        let at = |point: &(f64, f64)| (x_at(x.position(point.0)), y_at(y.position(point.1)));
        let line: Vec<String> = series.points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, r#"<polyline class="line c{color}" points="{}"/>"#, line.join(" "));
        for (x, y) in series.points.iter().map(at) {
            let _ = writeln!(svg, r#"<circle class="area c{color}" cx="{x:.1}" cy="{y:.1}" r="3.5"/>"#);
        }
    }
    legend(&mut svg, series.iter().map(|series| &*series.name));
    Some(svg + "</svg>\n")
}

/// A chart of stacked bars, or `None` if there are none.
pub fn stacked_bars(title: &str, y_title: &'static str, parts: &[&str], bars: &[Bar]) -> Option<String> {
    let heights = bars.iter().map(|bar| bar.parts.iter().sum());
    if bars.is_empty() {
        return None;
    }
    let y = Scale::new(Axis::linear(y_title), heights);
    let mut svg = begin(title, y_title, &y);
    let width = (WIDTH - LEFT - RIGHT) / bars.len() as f64;
    for (index, bar) in bars.iter().enumerate() {
        let left = LEFT + (index as f64 + 0.2) * width;
        let mut bottom = 0.0;
        for (part, value) in bar.parts.iter().enumerate() {
            let (color, top) = (part % COLORS, y_at(y.position(bottom + value)));
            let height = y_at(y.position(bottom)) - top;
            rectangle(&mut svg, color, (left, top), (0.6 * width, height));
            bottom += value;
        }
        let middle = left + 0.3 * width;
        text(&mut svg, (middle, y_at(y.position(bottom)) - 6.0), "middle", &format!("{bottom:.1}"));
        bar_name(&mut svg, middle, &bar.name);
    }
    legend(&mut svg, parts.iter().copied());
    Some(svg + "</svg>\n")
}

/// A chart of groups of bars, or `None` if there are none. Values of 0 have no bar.
pub fn grouped_bars(title: &str, y_axis: Axis, parts: &[&str], groups: &[Bar]) -> Option<String> {
    let values = || groups.iter().flat_map(|group| &group.parts).copied().filter(|value| *value > 0.0);
    values().next()?;
    let y = Scale::new(y_axis, values());
    let mut svg = begin(title, y_axis.title, &y);
    let group_width = (WIDTH - LEFT - RIGHT) / groups.len() as f64;
    let width = 0.8 * group_width / parts.len() as f64;
    for (index, group) in groups.iter().enumerate() {
        let left = LEFT + (index as f64 + 0.1) * group_width;
        for (part, value) in group.parts.iter().enumerate().filter(|(_, value)| **value > 0.0) {
            let (color, top, left) = (part % COLORS, y_at(y.position(*value)), left + part as f64 * width);
            rectangle(&mut svg, color, (left, top), (width, y_at(0.0) - top));
        }
        bar_name(&mut svg, left + 0.4 * group_width, &group.name);
    }
    legend(&mut svg, parts.iter().copied());
    Some(svg + "</svg>\n")
}

fn rectangle(svg: &mut String, color: usize, (left, top): (f64, f64), (width, height): (f64, f64)) {
    let _ = writeln!(
        svg,
        r#"<rect class="area c{color}" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"/>"#
    );
}

fn bar_name(svg: &mut String, middle: f64, name: &str) {
    for (line, words) in name.split(", ").enumerate() {
        text(svg, (middle, HEIGHT - BOTTOM + 20.0 + 16.0 * line as f64), "middle", words);
    }
}

/// The frame of a chart: background, titles, and the lines and labels of the y axis.
fn begin(title: &str, y_title: &str, y: &Scale) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{}</title>\n{STYLE}\n",
        escaped(title)
    );
    let _ = writeln!(svg, r#"<rect class="background" width="{WIDTH}" height="{HEIGHT}"/>"#);
    let _ = writeln!(svg, r#"<text class="title" x="{LEFT}" y="26">{}</text>"#, escaped(title));
    let middle = y_at(0.5);
    let _ = writeln!(
        svg,
        r#"<text text-anchor="middle" transform="translate(18 {middle:.1}) rotate(-90)">{}</text>"#,
        escaped(y_title)
    );
    for tick in &y.ticks {
        let (at, right) = (y_at(y.position(*tick)), WIDTH - RIGHT);
        let _ = writeln!(svg, r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#);
        text(&mut svg, (LEFT - 8.0, at + 4.0), "end", &number(*tick));
    }
    svg
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    for (index, name) in names.enumerate() {
        let (color, left, top) = (index % COLORS, WIDTH - RIGHT + 16.0, TOP + 22.0 * index as f64);
        let _ = writeln!(svg, r#"<rect class="area c{color}" x="{left}" y="{top:.1}" width="12" height="12"/>"#);
        text(svg, (left + 18.0, top + 11.0), "start", name);
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A number with a comma at each thousand.
fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{}", (value * 1e6).round() / 1e6);
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_include_all_values() {
        let linear = Scale::new(Axis::linear("x"), [3.0, 47_000.0].into_iter());
        assert_eq!(linear.ticks, [0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0, 50_000.0]);
        assert_eq!(linear.position(25_000.0), 0.5);
        let logarithmic = Scale::new(Axis::logarithmic("x"), [3.0, 256.0].into_iter());
        assert_eq!(logarithmic.ticks, [1.0, 10.0, 100.0, 1_000.0]);
        assert!((logarithmic.position(10.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn charts_have_titles_a_legend_and_colors_for_both_modes() {
        let series = [Series { name: "a < b".into(), points: vec![(1.0, 10.0), (64.0, 100.0)] }];
        let (x, y) = (Axis::logarithmic("calls in flight"), Axis::linear("calls per second"));
        let chart = line_chart("Throughput", x, y, &series).expect("points");
        for part in ["calls in flight", "calls per second", "a &lt; b", "prefers-color-scheme: dark", "</svg>"] {
            assert!(chart.contains(part), "{part} in {chart}");
        }
        assert!(line_chart("empty", x, y, &[]).is_none());
        let bars = [Bar { name: "AddItem, durable".into(), parts: vec![6.0, 4.5] }];
        let chart = stacked_bars("CPU", "CPU time (us)", &["runtime", "commit"], &bars).expect("bars");
        assert!(chart.contains(">10.5<") && chart.contains(">durable<") && chart.contains(">commit<"), "{chart}");
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0.5, 2.0, 10.0, 1_000.0, 1_234_567.0].map(number), ["0.5", "2", "10", "1,000", "1,234,567"]);
    }
}
