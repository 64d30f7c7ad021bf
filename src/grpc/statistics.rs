//! Converts statistics to the messages of `AdminService`.

use crate::statistics::{EngineStatistics, HistogramBucket, MessageCount, StreamCounts, SyncKind, percentile};
use crate::sync::SyncTrigger;
use crate::wire::v1;

pub fn streams(counts: &StreamCounts) -> v1::StreamStatistics {
    let sync = |(kind, trigger, sent): &(SyncKind, SyncTrigger, MessageCount)| v1::SyncStatistics {
        kind: sync_kind(*kind).into(),
        trigger: sync_trigger(*trigger).into(),
        count: count(sent),
    };
    v1::StreamStatistics {
        open: counts.open,
        syncs: counts.syncs.iter().map(sync).collect(),
        quiet: count(&counts.quiet),
        immediate_full: count(&counts.immediate_full),
        shadow: Some(v1::ShadowStatistics {
            sent: count(&counts.shadow.sent),
            computed: count(&counts.shadow.computed),
            mismatches: counts.shadow.mismatches,
            unverified: counts.shadow.unverified,
        }),
        desyncs_reported: counts.desyncs_reported,
    }
}

pub fn commits(statistics: &EngineStatistics) -> v1::CommitStatistics {
    let bucket = |bucket: &HistogramBucket| v1::HistogramBucket { upper: bucket.upper, count: bucket.count };
    v1::CommitStatistics {
        commits: statistics.commits,
        transactions: statistics.transactions,
        commits_failed: statistics.commits_failed(),
        latency_p50_us: percentile(&statistics.latency_us, 50),
        latency_p99_us: percentile(&statistics.latency_us, 99),
        latency_us: statistics.latency_us.iter().map(bucket).collect(),
        batch_p50: percentile(&statistics.batch, 50),
        batch_p99: percentile(&statistics.batch, 99),
        hot_inventories: statistics.hot_inventories,
        queue: statistics.queue,
        queue_max: statistics.queue_max,
    }
}

fn count(count: &MessageCount) -> Option<v1::MessageCount> {
    Some(v1::MessageCount { messages: count.messages, bytes: count.bytes })
}

fn sync_kind(kind: SyncKind) -> v1::SyncKind {
    match kind {
        SyncKind::Full => v1::SyncKind::Full,
        SyncKind::Delta => v1::SyncKind::Delta,
    }
}

fn sync_trigger(trigger: SyncTrigger) -> v1::SyncTrigger {
    match trigger {
        SyncTrigger::None => v1::SyncTrigger::Unspecified,
        SyncTrigger::Initial => v1::SyncTrigger::Initial,
        SyncTrigger::News => v1::SyncTrigger::News,
        SyncTrigger::Echo => v1::SyncTrigger::Echo,
        SyncTrigger::Correction => v1::SyncTrigger::Correction,
    }
}
