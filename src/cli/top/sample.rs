//! Samples of `GetStatistics`, and the rates between two samples.

use crate::statistics::{HistogramBucket, percentile};
use crate::wire::v1;
use serde::Serialize;

/// Totals since the server started; streams, hot inventories and the queue are current values.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StatisticsSample {
    pub version: String,
    pub uptime_ms: u64,
    pub streams: u64,
    pub full_syncs: u64,
    pub delta_syncs: u64,
    /// Size of all messages in bytes, including messages without changes.
    pub bytes: u64,
    pub immediate_full_syncs: u64,
    pub immediate_full_bytes: u64,
    pub desyncs: u64,
    pub shadow_sent_syncs: u64,
    pub shadow_sent_bytes: u64,
    pub shadow_syncs: u64,
    pub shadow_bytes: u64,
    pub shadow_mismatches: u64,
    pub shadow_unverified: u64,
    pub commits: u64,
    pub commits_failed: u64,
    pub transactions: u64,
    pub commit_p50_us: u64,
    pub commit_p99_us: u64,
    pub batch_p50: u64,
    pub batch_p99: u64,
    pub hot_inventories: u64,
    pub queue: u64,
    pub queue_max: u64,
    #[serde(skip)]
    latency_us: Vec<HistogramBucket>,
}

/// Rates and percentiles between two samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rates {
    pub syncs_per_s: f64,
    pub bytes_per_s: f64,
    pub transactions_per_s: f64,
    pub commits_per_s: f64,
    /// Percentage of bytes saved compared with immediate full frames; `None` if immediate full frames would have sent
    /// nothing.
    pub saved_percent: Option<f64>,
    /// `None` if nothing was committed.
    pub commit_p50_us: Option<u64>,
    pub commit_p99_us: Option<u64>,
}

impl StatisticsSample {
    pub fn new(reply: v1::GetStatisticsResponse) -> Self {
        let streams = reply.streams.unwrap_or_default();
        let commits = reply.commits.unwrap_or_default();
        let shadow = streams.shadow.unwrap_or_default();
        let count = |count: Option<v1::MessageCount>| count.map_or((0, 0), |count| (count.messages, count.bytes));
        let (mut full_syncs, mut delta_syncs, mut bytes) = (0, 0, count(streams.quiet).1);
        for sync in &streams.syncs {
            let (messages, sync_bytes) = count(sync.count);
            bytes += sync_bytes;
            match sync.kind() {
                v1::SyncKind::Full => full_syncs += messages,
                v1::SyncKind::Delta | v1::SyncKind::Unspecified => delta_syncs += messages,
            }
        }
        let (immediate_full_syncs, immediate_full_bytes) = count(streams.immediate_full);
        let (shadow_sent_syncs, shadow_sent_bytes) = count(shadow.sent);
        let (shadow_syncs, shadow_bytes) = count(shadow.computed);
        let bucket = |bucket: &v1::HistogramBucket| HistogramBucket { upper: bucket.upper, count: bucket.count };
        Self {
            version: reply.version,
            uptime_ms: reply.uptime_ms,
            streams: streams.open,
            full_syncs,
            delta_syncs,
            bytes,
            immediate_full_syncs,
            immediate_full_bytes,
            desyncs: streams.desyncs_reported,
            shadow_sent_syncs,
            shadow_sent_bytes,
            shadow_syncs,
            shadow_bytes,
            shadow_mismatches: shadow.mismatches,
            shadow_unverified: shadow.unverified,
            commits: commits.commits,
            commits_failed: commits.commits_failed,
            transactions: commits.transactions,
            commit_p50_us: commits.latency_p50_us,
            commit_p99_us: commits.latency_p99_us,
            batch_p50: commits.batch_p50,
            batch_p99: commits.batch_p99,
            hot_inventories: commits.hot_inventories,
            queue: commits.queue,
            queue_max: commits.queue_max,
            latency_us: commits.latency_us.iter().map(bucket).collect(),
        }
    }

    pub fn syncs(&self) -> u64 {
        self.full_syncs + self.delta_syncs
    }

    /// Returns the percentage of bytes saved since the start, compared with immediate full frames.
    pub fn saved_percent(&self) -> Option<f64> {
        saved_percent(self.immediate_full_bytes, self.bytes)
    }

    /// Returns the percentage of bytes that the shadow settings would save, compared with the bytes sent on streams in
    /// shadow mode.
    pub fn shadow_saved_percent(&self) -> Option<f64> {
        saved_percent(self.shadow_sent_bytes, self.shadow_bytes)
    }
}

impl Rates {
    /// Returns `None` if no time passed between the samples or the server was restarted.
    pub fn between(before: &StatisticsSample, after: &StatisticsSample) -> Option<Self> {
        let seconds = after.uptime_ms.checked_sub(before.uptime_ms).filter(|ms| *ms > 0)? as f64 / 1_000.0;
        let increase = |count: fn(&StatisticsSample) -> u64| count(after).saturating_sub(count(before));
        let per_s = |count: fn(&StatisticsSample) -> u64| increase(count) as f64 / seconds;
        let latency_us = buckets_since(&before.latency_us, &after.latency_us);
        let latency = |percent| (!latency_us.is_empty()).then(|| percentile(&latency_us, percent));
        Some(Self {
            syncs_per_s: per_s(StatisticsSample::syncs),
            bytes_per_s: per_s(|sample| sample.bytes),
            transactions_per_s: per_s(|sample| sample.transactions),
            commits_per_s: per_s(|sample| sample.commits),
            saved_percent: saved_percent(
                increase(|sample| sample.immediate_full_bytes),
                increase(|sample| sample.bytes),
            ),
            commit_p50_us: latency(50),
            commit_p99_us: latency(99),
        })
    }
}

/// Returns the saved percentage; negative if more was sent than `baseline`.
fn saved_percent(baseline: u64, sent: u64) -> Option<f64> {
    (baseline > 0).then(|| 100.0 * (1.0 - sent as f64 / baseline as f64))
}

fn buckets_since(before: &[HistogramBucket], after: &[HistogramBucket]) -> Vec<HistogramBucket> {
    let count_before = |upper| before.iter().find(|bucket| bucket.upper == upper).map_or(0, |bucket| bucket.count);
    let since = after
        .iter()
        .map(|bucket| HistogramBucket { count: bucket.count.saturating_sub(count_before(bucket.upper)), ..*bucket });
    since.filter(|bucket| bucket.count > 0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sample after some seconds of constant load.
    pub fn sample(seconds: u64) -> StatisticsSample {
        let latency_us = vec![
            HistogramBucket { upper: 319, count: 90 * seconds },
            HistogramBucket { upper: 1_023, count: 10 * seconds },
        ];
        StatisticsSample {
            version: "1.2.3".into(),
            uptime_ms: 1_000 * seconds,
            streams: 200,
            full_syncs: 20 * seconds,
            delta_syncs: 480 * seconds,
            bytes: 16_000 * seconds,
            immediate_full_syncs: 2_000 * seconds,
            immediate_full_bytes: 640_000 * seconds,
            shadow_sent_syncs: 100 * seconds,
            shadow_sent_bytes: 32_000 * seconds,
            shadow_syncs: 25 * seconds,
            shadow_bytes: 800 * seconds,
            shadow_unverified: 3,
            commits: 100 * seconds,
            transactions: 2_000 * seconds,
            commit_p50_us: 319,
            commit_p99_us: 1_023,
            batch_p50: 20,
            batch_p99: 47,
            hot_inventories: 4_321,
            queue: 12,
            queue_max: 8_192,
            latency_us,
            ..StatisticsSample::default()
        }
    }

    #[test]
    fn rates_are_differences_divided_by_the_time_between_two_readings() {
        let rates = Rates::between(&sample(10), &sample(12)).expect("two seconds passed");
        assert_eq!((rates.syncs_per_s, rates.bytes_per_s), (500.0, 16_000.0));
        assert_eq!((rates.transactions_per_s, rates.commits_per_s), (2_000.0, 100.0));
        assert_eq!((rates.saved_percent, rates.commit_p50_us), (Some(97.5), Some(319)));
    }

    #[test]
    fn a_restarted_server_has_no_rates() {
        assert_eq!(Rates::between(&sample(10), &sample(1)), None);
        assert_eq!(Rates::between(&sample(10), &sample(10)), None);
    }

    #[test]
    fn without_traffic_there_is_no_saved_percentage_and_no_latency() {
        let before = sample(10);
        let rates = Rates::between(&before, &StatisticsSample { uptime_ms: 11_000, ..before.clone() })
            .expect("one second passed");
        assert_eq!(rates, Rates::default());
    }
}
