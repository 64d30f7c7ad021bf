//! Plots of the results, as SVG files that are readable in light and dark mode.

mod svg;

use super::report::Report;
use super::unary::{Load, UnaryFigure};
use crate::cli::demo;
use std::path::Path;
use svg::{Axis, Bar, Series, grouped_bars, line_chart, stacked_bars};

/// Maximum number of characters in a line under a group of bars.
const NAME_LINE_LEN: usize = 12;

/// Writes the plots of all results that the report has into a directory, which is created if it does not exist.
pub fn write(report: &Report, directory: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("cannot write {}: {error}", path.display());
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let plots = [
        ("throughput.svg", throughput(&report.unary)),
        ("latency.svg", latency(&report.unary)),
        ("cpu.svg", cpu(&report.unary)),
        ("bytes.svg", report.bytes.as_ref().and_then(bytes)),
    ];
    for (name, plot) in plots {
        let Some(plot) = plot else { continue };
        let path = directory.join(name);
        std::fs::write(&path, plot).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// One series for each call: the points of its figures.
fn series(figures: &[UnaryFigure], point: impl Fn(&UnaryFigure) -> Option<(f64, f64)>) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for figure in figures {
        let Some(point) = point(figure) else { continue };
        match series.iter_mut().find(|series| series.name == figure.call.title()) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: figure.call.title().to_owned(), points: vec![point] }),
        }
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    series
}

fn throughput(figures: &[UnaryFigure]) -> Option<String> {
    let series = series(figures, |figure| match figure.load {
        Load::Closed(load) => Some((load.in_flight as f64, figure.calls_per_s)),
        Load::Open { .. } => None,
    });
    let (x, y) = (Axis::logarithmic("calls in flight"), Axis::linear("calls per second"));
    line_chart("Throughput by load, one core", x, y, &series)
}

fn latency(figures: &[UnaryFigure]) -> Option<String> {
    let series = series(figures, |figure| match figure.load {
        Load::Closed(_) => None,
        Load::Open { per_second } => Some((per_second.into(), figure.latency_us.p99 as f64)),
    });
    let (x, y) = (Axis::logarithmic("calls per second (open loop)"), Axis::logarithmic("p99 latency (us)"));
    line_chart("Latency by load", x, y, &series)
}

/// CPU time at the closed loop with the most calls in flight.
fn cpu(figures: &[UnaryFigure]) -> Option<String> {
    let in_flight = |figure: &UnaryFigure| match figure.load {
        Load::Closed(load) => Some(load.in_flight),
        Load::Open { .. } => None,
    };
    let most = figures.iter().filter_map(in_flight).max()?;
    let bars = figures.iter().filter(|figure| in_flight(figure) == Some(most)).filter_map(|figure| {
        let cpu = figure.cpu_us?;
        Some(Bar { name: figure.call.title().to_owned(), parts: vec![cpu.runtime, cpu.commit, cpu.fold, cpu.other] })
    });
    let title = format!("CPU time per call by thread, {most} calls in flight");
    stacked_bars(&title, "CPU time per call (us)", &["runtime", "commit", "fold", "other"], &Vec::from_iter(bars))
}

/// Bytes of each trace by sync mode. A mode that sends nothing has no bar.
fn bytes(report: &demo::Report) -> Option<String> {
    let bars = report.traces.iter().map(|trace| {
        let modes = [trace.full_frames, trace.deltas, trace.predicted].map(|traffic| traffic.bytes);
        let parts = [trace.baseline_bytes].into_iter().chain(modes).map(|bytes| bytes as f64).collect();
        Bar { name: wrapped(&trace.name), parts }
    });
    let modes = ["every slot as JSON", "full frames", "deltas", "predicted"];
    grouped_bars("Bytes sent for each trace", Axis::logarithmic("bytes"), &modes, &Vec::from_iter(bars))
}

/// Separates the lines of a name, which may break after a hyphen, by commas.
fn wrapped(name: &str) -> String {
    let (mut text, mut line_len) = (String::new(), 0);
    for word in name.split_inclusive('-') {
        if line_len > 0 && line_len + word.len() > NAME_LINE_LEN {
            text.push_str(", ");
            line_len = 0;
        }
        text.push_str(word);
        line_len += word.len();
    }
    text
}
