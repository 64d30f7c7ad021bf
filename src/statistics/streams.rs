//! Statistics of streams: what they sent, what immediate full syncs would have sent, and what shadow mode computed.

use super::Counter;
use crate::sync::SyncTrigger;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stream statistics of one server since its start.
#[derive(Debug, Default)]
pub struct StreamStatistics {
    open: AtomicU64,
    /// Indexed by kind, then by trigger.
    syncs: [[MessageCounters; TRIGGERS.len()]; 2],
    /// Messages without a change, see [`StreamCounts::quiet`].
    quiet: MessageCounters,
    immediate_full: MessageCounters,
    shadow_sent: MessageCounters,
    shadow_computed: MessageCounters,
    shadow_mismatches: Counter,
    shadow_unverified: Counter,
    desyncs_reported: Counter,
}

#[derive(Debug, Default)]
struct MessageCounters {
    messages: Counter,
    bytes: Counter,
}

/// The kind of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncKind {
    /// A full state of at least one inventory.
    Full,
    /// Only changed slots.
    Delta,
}

impl SyncKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
        }
    }
}

const KINDS: [SyncKind; 2] = [SyncKind::Full, SyncKind::Delta];
const TRIGGERS: [SyncTrigger; 4] =
    [SyncTrigger::Initial, SyncTrigger::News, SyncTrigger::Echo, SyncTrigger::Correction];

/// A number of messages and their bytes, including gRPC's 5-byte prefix of each message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageCount {
    pub messages: u64,
    pub bytes: u64,
}

/// The stream counts, read at about the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamCounts {
    pub open: u64,
    pub syncs: Vec<(SyncKind, SyncTrigger, MessageCount)>,
    /// Messages without a change: heartbeats, and the first message to a reader that resumes and misses nothing.
    pub quiet: MessageCount,
    /// Estimated cost of immediate full syncs: each revision that a reader has advanced past, times the size of the
    /// full state when it was counted. A transfer between two inventories of a stream is one sync with the bytes of
    /// both, so of several inventories, the one with the most revisions determines the number of syncs. The number is
    /// therefore a lower bound.
    pub immediate_full: MessageCount,
    pub shadow: ShadowCounts,
    pub desyncs_reported: u64,
}

/// Counts of streams while they were in shadow mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShadowCounts {
    /// Syncs sent on streams in shadow mode.
    pub sent: MessageCount,
    /// Syncs that would have been sent on them with all features enabled.
    pub computed: MessageCount,
    /// How often the shadow's replica differed from the true state.
    pub mismatches: u64,
    /// How often the replica could not be verified because the reader had resumed or predicted, so that only the reader
    /// knew its state.
    pub unverified: u64,
}

impl StreamStatistics {
    /// Counts a stream as open until [`Self::end_stream`] is called.
    pub fn start_stream(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end_stream(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn add_sync(&self, kind: SyncKind, trigger: SyncTrigger, bytes: u64) {
        self.syncs[kind as usize][trigger_index(trigger)].add(1, bytes);
    }

    pub fn add_quiet(&self, bytes: u64) {
        self.quiet.add(1, bytes);
    }

    pub fn add_immediate_full(&self, syncs: u64, bytes: u64) {
        self.immediate_full.add(syncs, bytes);
    }

    pub fn add_shadow_sent(&self, bytes: u64) {
        self.shadow_sent.add(1, bytes);
    }

    pub fn add_shadow_computed(&self, bytes: u64) {
        self.shadow_computed.add(1, bytes);
    }

    pub fn add_shadow_checks(&self, mismatches: u64, unverified: u64) {
        self.shadow_mismatches.add(mismatches);
        self.shadow_unverified.add(unverified);
    }

    pub fn add_desync_reported(&self) {
        self.desyncs_reported.add(1);
    }

    pub fn counts(&self) -> StreamCounts {
        let syncs = KINDS.into_iter().flat_map(|kind| {
            TRIGGERS.map(|trigger| (kind, trigger, self.syncs[kind as usize][trigger_index(trigger)].get()))
        });
        StreamCounts {
            open: self.open.load(Ordering::Relaxed),
            syncs: syncs.collect(),
            quiet: self.quiet.get(),
            immediate_full: self.immediate_full.get(),
            shadow: ShadowCounts {
                sent: self.shadow_sent.get(),
                computed: self.shadow_computed.get(),
                mismatches: self.shadow_mismatches.get(),
                unverified: self.shadow_unverified.get(),
            },
            desyncs_reported: self.desyncs_reported.get(),
        }
    }
}

impl StreamCounts {
    /// Returns the sum of all syncs.
    pub fn sent(&self) -> MessageCount {
        self.syncs.iter().fold(MessageCount::default(), |sum, (_, _, one)| MessageCount {
            messages: sum.messages + one.messages,
            bytes: sum.bytes + one.bytes,
        })
    }
}

impl MessageCounters {
    fn add(&self, messages: u64, bytes: u64) {
        self.messages.add(messages);
        self.bytes.add(bytes);
    }

    fn get(&self) -> MessageCount {
        MessageCount { messages: self.messages.get(), bytes: self.bytes.get() }
    }
}

/// Returns the index of a trigger in `TRIGGERS`.
fn trigger_index(trigger: SyncTrigger) -> usize {
    match trigger {
        SyncTrigger::Initial => 0,
        // A sync always has a trigger, so `None` does not occur.
        SyncTrigger::News | SyncTrigger::None => 1,
        SyncTrigger::Echo => 2,
        SyncTrigger::Correction => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sync_is_counted_once_under_its_kind_and_trigger() {
        let statistics = StreamStatistics::default();
        statistics.start_stream();
        statistics.start_stream();
        for (kind, trigger, bytes) in [
            (SyncKind::Full, SyncTrigger::Initial, 300),
            (SyncKind::Delta, SyncTrigger::Echo, 20),
            (SyncKind::Delta, SyncTrigger::Echo, 30),
        ] {
            statistics.add_sync(kind, trigger, bytes);
        }
        statistics.end_stream();
        let counts = statistics.counts();
        assert_eq!(counts.open, 1);
        assert_eq!(counts.sent(), MessageCount { messages: 3, bytes: 350 });
        let echoes =
            counts.syncs.iter().find(|(kind, trigger, _)| (*kind, *trigger) == (SyncKind::Delta, SyncTrigger::Echo));
        assert_eq!(echoes.map(|(_, _, count)| *count), Some(MessageCount { messages: 2, bytes: 50 }));
        let places = TRIGGERS.map(trigger_index);
        assert_eq!(places, [0, 1, 2, 3]);
    }
}
