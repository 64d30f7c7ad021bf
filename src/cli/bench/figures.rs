//! The figures of the suites: medians of their rounds, and ratios between measurements of the same round.

use super::recorder::{CpuPerCall, Measurement, Percentiles};
use super::streams::FrameRound;
use super::unary::Load;
use super::workload::CallKind;
use serde::Serialize;

/// Returns the middle value, or the mean of the two middle values.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// Returns the median of a figure of all rounds that have it.
pub fn median_of<T>(rounds: &[T], figure: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    median(rounds.iter().filter_map(figure))
}

/// Returns the median of the ratios of a figure in rounds to the same figure in the paired rounds.
pub fn median_ratio<T>(rounds: &[T], paired: &[T], figure: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    let ratios = rounds.iter().zip(paired).filter_map(|(round, other)| Some(figure(round)? / figure(other)?));
    // A round without any call has no ratio.
    median(ratios.filter(|ratio| ratio.is_finite()))
}

pub fn median_latency<T>(rounds: &[T], latency: impl Fn(&T) -> Percentiles) -> Percentiles {
    let of = |figure: fn(&Percentiles) -> u64| {
        median_of(rounds, |round| Some(figure(&latency(round)) as f64)).unwrap_or_default() as u64
    };
    Percentiles { p50: of(|it| it.p50), p99: of(|it| it.p99), p999: of(|it| it.p999), max: of(|it| it.max) }
}

pub fn median_cpu(rounds: &[Measurement]) -> Option<CpuPerCall> {
    let of = |figure: fn(&CpuPerCall) -> f64| median_of(rounds, |round| round.cpu_us.as_ref().map(figure));
    Some(CpuPerCall {
        total: of(|cpu| cpu.total)?,
        runtime: of(|cpu| cpu.runtime)?,
        commit: of(|cpu| cpu.commit)?,
        fold: of(|cpu| cpu.fold)?,
        other: of(|cpu| cpu.other)?,
    })
}

pub fn total_cpu(round: &Measurement) -> Option<f64> {
    round.cpu_us.map(|cpu| cpu.total)
}

fn throughput(round: &Measurement) -> Option<f64> {
    Some(round.calls_per_s)
}

/// Idle streams.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct IdleFigure {
    pub streams: u32,
    pub connections: usize,
    /// Resident memory of the server for each stream, with its share of the connection.
    pub kib_per_stream: f64,
    /// CPU time of the server to open a stream, in microseconds.
    pub open_cpu_us: f64,
    /// The same of the bare streams of the yardstick.
    pub bare_kib_per_stream: Option<f64>,
    pub bare_open_cpu_us: Option<f64>,
}

impl IdleFigure {
    pub fn compared_with(self, bare: &Self) -> Self {
        let (bare_kib_per_stream, bare_open_cpu_us) = (Some(bare.kib_per_stream), Some(bare.open_cpu_us));
        Self { bare_kib_per_stream, bare_open_cpu_us, ..self }
    }
}

/// Mutations that each cause a frame, beside idle streams.
#[derive(Debug, Serialize)]
pub struct FrameFigure {
    pub streams: u32,
    pub mutations_per_s: u32,
    pub frames_per_s: f64,
    pub frame_bytes: f64,
    /// CPU time of the server per mutation with its frame, in microseconds.
    pub cpu_us: Option<CpuPerCall>,
    /// Median of the ratios to a bare echo with a message on a bare stream, of the same round.
    pub cpu_ratio: Option<f64>,
    pub bare_cpu_us: Option<f64>,
    pub latency_us: Percentiles,
    pub frame_us: Percentiles,
    pub generator_share: f64,
    pub is_valid: bool,
    pub rounds: Vec<FrameRound>,
}

impl FrameFigure {
    pub fn new(streams: u32, mutations_per_s: u32, rounds: Vec<FrameRound>, bare: &[FrameRound]) -> Self {
        let calls: Vec<Measurement> = rounds.iter().map(|round| round.calls.clone()).collect();
        Self {
            streams,
            mutations_per_s,
            frames_per_s: median_of(&rounds, |round| Some(round.frames_per_s)).unwrap_or_default(),
            frame_bytes: median_of(&rounds, |round| Some(round.frame_bytes)).unwrap_or_default(),
            cpu_us: median_cpu(&calls),
            cpu_ratio: median_ratio(&rounds, bare, |round| total_cpu(&round.calls)),
            bare_cpu_us: median_of(bare, |round| total_cpu(&round.calls)),
            latency_us: median_latency(&calls, |round| round.latency_us),
            frame_us: median_latency(&rounds, |round| round.frame_us),
            generator_share: median_of(&calls, |round| Some(round.generator_share)).unwrap_or_default(),
            is_valid: calls.iter().chain(bare.iter().map(|round| &round.calls)).all(|round| round.is_valid),
            rounds,
        }
    }
}

/// How a server syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// All rollout flags are off: an immediate full state for every change.
    ImmediateFull,
    /// The default: debounced deltas.
    Deltas,
}

impl SyncMode {
    pub fn title(self) -> &'static str {
        match self {
            Self::ImmediateFull => "immediate full states",
            Self::Deltas => "debounced deltas",
        }
    }
}

/// What syncing costs beyond the mutations.
#[derive(Debug, Serialize)]
pub struct SyncFigure {
    pub mode: SyncMode,
    pub players: u32,
    pub frames_per_s: f64,
    /// CPU time per mutation with one subscriber, in microseconds.
    pub alone_cpu_us: Option<f64>,
    /// CPU time per mutation with a subscriber for each player, in microseconds.
    pub all_cpu_us: Option<f64>,
    /// Median of the differences of the same round.
    pub overhead_us: Option<f64>,
    /// By how much the overhead is below that of immediate full states.
    pub saved: Option<f64>,
    pub frame_us: Percentiles,
    pub generator_share: f64,
    pub is_valid: bool,
    pub alone: Vec<Measurement>,
    pub all: Vec<FrameRound>,
}

impl SyncFigure {
    /// Returns the figures of all modes; the first is what the others are compared with.
    pub fn all(players: u32, modes: Vec<(SyncMode, Vec<Measurement>, Vec<FrameRound>)>) -> Vec<Self> {
        let mut figures: Vec<Self> = modes
            .into_iter()
            .map(|(mode, alone, all)| {
                let differences = alone.iter().zip(&all);
                let overhead_us =
                    median(differences.filter_map(|(alone, all)| Some(total_cpu(&all.calls)? - total_cpu(alone)?)));
                Self {
                    mode,
                    players,
                    frames_per_s: median_of(&all, |round| Some(round.frames_per_s)).unwrap_or_default(),
                    alone_cpu_us: median_of(&alone, total_cpu),
                    all_cpu_us: median_of(&all, |round| total_cpu(&round.calls)),
                    overhead_us,
                    saved: None,
                    frame_us: median_latency(&all, |round| round.frame_us),
                    generator_share: median_of(&all, |round| Some(round.calls.generator_share)).unwrap_or_default(),
                    is_valid: alone.iter().chain(all.iter().map(|round| &round.calls)).all(|round| round.is_valid),
                    alone,
                    all,
                }
            })
            .collect();
        let baseline = figures.first().and_then(|figure| figure.overhead_us);
        for figure in figures.iter_mut().skip(1) {
            figure.saved = figure.overhead_us.zip(baseline).map(|(overhead, baseline)| 1.0 - overhead / baseline);
        }
        figures
    }
}

/// Mutations beside reads of missing ids.
#[derive(Debug, Serialize)]
pub struct MixedFigure {
    /// How the mutations are made.
    pub load: Load,
    pub reads_per_s: u32,
    /// Server CPU per mutation, with that of the reads, as a multiple of the same round without reads.
    pub cpu_ratio: Option<f64>,
    /// The same of the commit thread alone.
    pub commit_cpu_ratio: Option<f64>,
    pub p99_ratio: Option<f64>,
    pub throughput_ratio: Option<f64>,
    /// Resident memory after the first round, and after the last.
    pub resident_mib: [f64; 2],
    pub is_valid: bool,
    #[serde(flatten)]
    pub rounds: MixedRounds,
}

/// The rounds of a [`MixedFigure`].
#[derive(Debug, Default, Serialize)]
pub struct MixedRounds {
    pub without_reads: Vec<Measurement>,
    pub with_reads: Vec<Measurement>,
    pub reads: Vec<Measurement>,
    /// Resident memory after each round.
    pub resident_bytes: Vec<u64>,
}

impl MixedFigure {
    pub fn new(load: Load, reads_per_s: u32, rounds: MixedRounds) -> Self {
        let mebibytes = |bytes: Option<&u64>| bytes.map_or(0.0, |bytes| *bytes as f64 / f64::from(1 << 20));
        let MixedRounds { without_reads, with_reads, resident_bytes, .. } = &rounds;
        let is_valid = rounds.iter().all(|round| round.is_valid);
        Self {
            load,
            reads_per_s,
            cpu_ratio: median_ratio(with_reads, without_reads, total_cpu),
            commit_cpu_ratio: median_ratio(with_reads, without_reads, |round| round.cpu_us.map(|cpu| cpu.commit)),
            p99_ratio: median_ratio(with_reads, without_reads, |round| Some(round.latency_us.p99 as f64)),
            throughput_ratio: median_ratio(with_reads, without_reads, throughput),
            resident_mib: [mebibytes(resident_bytes.first()), mebibytes(resident_bytes.last())],
            is_valid,
            rounds,
        }
    }
}

impl MixedRounds {
    pub fn iter(&self) -> impl Iterator<Item = &Measurement> {
        self.without_reads.iter().chain(&self.with_reads).chain(&self.reads)
    }
}

/// Mutations of the same inventories in a store of some size.
#[derive(Debug, Serialize)]
pub struct ScaleFigure {
    pub stored: u32,
    pub active: u32,
    pub calls_per_s: f64,
    pub cpu_us: Option<CpuPerCall>,
    /// CPU time as a multiple of that with the smallest store in the same round.
    pub cpu_ratio: Option<f64>,
    pub latency_us: Percentiles,
    pub is_valid: bool,
    pub rounds: Vec<Measurement>,
}

impl ScaleFigure {
    /// Returns the figures of all sizes; the first is what the others are compared with.
    pub fn all(active: u32, sizes: Vec<(u32, Vec<Measurement>)>) -> Vec<Self> {
        let baseline = sizes.first().map(|(_, rounds)| rounds.clone()).unwrap_or_default();
        let figure = |(stored, rounds): (u32, Vec<Measurement>)| Self {
            stored,
            active,
            calls_per_s: median_of(&rounds, throughput).unwrap_or_default(),
            cpu_us: median_cpu(&rounds),
            cpu_ratio: median_ratio(&rounds, &baseline, total_cpu),
            latency_us: median_latency(&rounds, |round| round.latency_us),
            is_valid: rounds.iter().all(|round| round.is_valid),
            rounds,
        };
        sizes.into_iter().map(figure).collect()
    }
}

/// Calls to a server on one core and on all cores.
#[derive(Debug, Serialize)]
pub struct CoresFigure {
    pub call: CallKind,
    pub one_core_calls_per_s: f64,
    pub all_cores_calls_per_s: f64,
    /// Median of the ratios of the same round.
    pub throughput_ratio: Option<f64>,
    /// CPU time of the server as a share of one core, while it is free on all cores.
    pub server_share: Option<f64>,
    /// CPU time of the load generator as a share of one core, meanwhile.
    pub generator_share: f64,
    pub is_valid: bool,
    pub one_core: Vec<Measurement>,
    pub all_cores: Vec<Measurement>,
}

impl CoresFigure {
    pub fn new(call: CallKind, one_core: Vec<Measurement>, all_cores: Vec<Measurement>) -> Self {
        Self {
            call,
            one_core_calls_per_s: median_of(&one_core, throughput).unwrap_or_default(),
            all_cores_calls_per_s: median_of(&all_cores, throughput).unwrap_or_default(),
            throughput_ratio: median_ratio(&all_cores, &one_core, throughput),
            server_share: median_of(&all_cores, |round| round.server_share),
            generator_share: median_of(&all_cores, |round| Some(round.generator_share)).unwrap_or_default(),
            is_valid: one_core.iter().chain(&all_cores).all(|round| round.is_valid),
            one_core,
            all_cores,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let ratio = median_ratio(&[2.0, 30.0, 5.0], &[1.0, 10.0, 5.0], |value| Some(*value));
        assert_eq!(ratio, Some(2.0), "of 2, 3 and 1");
    }
}
