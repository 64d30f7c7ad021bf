//! What calls there are and were, by method. Whatever callers send, the methods and the reasons counted are a closed set.

use super::Counter;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands for every method that is not known, and for every reason that is not.
pub const OTHER_METHOD: &str = "_OTHER";
pub const OTHER_REASON: &str = "OTHER";

/// Of one server. A method is known by its place in [`Self::methods`].
#[derive(Debug)]
pub struct RpcStatistics {
    /// `package.Service/Method`; the last one is [`OTHER_METHOD`].
    methods: Vec<&'static str>,
    by_name: HashMap<&'static str, usize>,
    counts: Vec<MethodCounters>,
    refusals: Vec<(&'static str, Counter)>,
}

#[derive(Debug, Default)]
struct MethodCounters {
    received: Counter,
    sent: Counter,
    active: AtomicU64,
}

/// Of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodCounts {
    /// Messages from callers, and to them.
    pub received: u64,
    pub sent: u64,
    /// Calls that have not ended.
    pub active: u64,
}

impl RpcStatistics {
    pub fn new(known: impl IntoIterator<Item = &'static str>, reasons: impl IntoIterator<Item = &'static str>) -> Self {
        let mut methods: Vec<_> = known.into_iter().collect();
        methods.push(OTHER_METHOD);
        let by_name = methods.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        let counts = methods.iter().map(|_| MethodCounters::default()).collect();
        let reasons = reasons.into_iter().chain([OTHER_REASON]);
        let refusals = reasons.map(|reason| (reason, Counter::default())).collect();
        Self { methods, by_name, counts, refusals }
    }

    /// The place of the method that a request's path asks for: `/package.Service/Method`.
    pub fn method(&self, path: &str) -> usize {
        let known = path.strip_prefix('/').and_then(|name| self.by_name.get(name));
        known.copied().unwrap_or(self.methods.len() - 1)
    }

    pub fn name(&self, method: usize) -> &'static str {
        self.methods.get(method).copied().unwrap_or(OTHER_METHOD)
    }

    pub fn begin(&self, method: usize) {
        self.counts[method].active.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self, method: usize) {
        self.counts[method].active.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn add_received(&self, method: usize, messages: u64) {
        self.counts[method].received.add(messages);
    }

    pub fn add_sent(&self, method: usize, messages: u64) {
        self.counts[method].sent.add(messages);
    }

    /// A call that was answered with an error; none: the error named no reason.
    pub fn add_refusal(&self, reason: Option<&str>) {
        let known = self.refusals.iter().find(|(name, _)| Some(*name) == reason);
        if let Some((_, counter)) = known.or(self.refusals.last()) {
            counter.add(1);
        }
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, MethodCounts)> {
        self.methods.iter().zip(&self.counts).map(|(name, counters)| {
            let active = counters.active.load(Ordering::Relaxed);
            (*name, MethodCounts { received: counters.received.get(), sent: counters.sent.get(), active })
        })
    }

    /// By reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.refusals.iter().map(|(reason, counter)| (*reason, counter.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_counted_as_other() {
        let statistics = RpcStatistics::new(["a.B/C"], ["NO_ROOM"]);
        let paths = ["/a.B/C", "a.B/C", "/a.B/D", "/_OTHER", "/", ""];
        let names = paths.map(|path| statistics.name(statistics.method(path)));
        assert_eq!(names, ["a.B/C", "_OTHER", "_OTHER", "_OTHER", "_OTHER", "_OTHER"]);
        [Some("NO_ROOM"), Some("whatever"), None].into_iter().for_each(|reason| statistics.add_refusal(reason));
        assert_eq!(Vec::from_iter(statistics.refusals()), [("NO_ROOM", 1), ("OTHER", 2)]);
    }
}
