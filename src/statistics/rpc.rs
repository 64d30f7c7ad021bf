//! Statistics of calls by method. The set of methods and reasons is closed, regardless of what callers send.

use super::Counter;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name under which unknown methods are counted.
pub const OTHER_METHOD: &str = "_OTHER";
/// The name under which unknown error reasons are counted.
pub const OTHER_REASON: &str = "OTHER";

/// Call statistics of one server. A method is identified by its index in [`Self::methods`].
#[derive(Debug)]
pub struct RpcStatistics {
    /// `package.Service/Method`; the last one is [`OTHER_METHOD`].
    methods: Vec<&'static str>,
    by_name: HashMap<&'static str, usize>,
    counts: Vec<MethodCounters>,
    failures: Vec<(&'static str, Counter)>,
}

#[derive(Debug, Default)]
struct MethodCounters {
    is_stream: bool,
    started: Counter,
    received: Counter,
    sent: Counter,
    active: AtomicU64,
}

/// A known method: its name as `package.Service/Method`, and whether it is server streaming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub is_stream: bool,
}

/// The counts of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodCounts {
    pub is_stream: bool,
    /// Calls started, including active calls.
    pub started: u64,
    /// Messages received from callers.
    pub received: u64,
    /// Messages sent to callers.
    pub sent: u64,
    /// Calls that have not ended.
    pub active: u64,
}

impl RpcStatistics {
    pub fn new(known: impl IntoIterator<Item = Method>, reasons: impl IntoIterator<Item = &'static str>) -> Self {
        let mut known: Vec<_> = known.into_iter().collect();
        known.push(Method { name: OTHER_METHOD, is_stream: false });
        let methods: Vec<_> = known.iter().map(|method| method.name).collect();
        let by_name = methods.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        let counters = |method: &Method| MethodCounters { is_stream: method.is_stream, ..MethodCounters::default() };
        let counts = known.iter().map(counters).collect();
        let reasons = reasons.into_iter().chain([OTHER_REASON]);
        let failures = reasons.map(|reason| (reason, Counter::default())).collect();
        Self { methods, by_name, counts, failures }
    }

    /// Returns the index of the method in a request's path, `/package.Service/Method`.
    pub fn method(&self, path: &str) -> usize {
        let known = path.strip_prefix('/').and_then(|name| self.by_name.get(name));
        known.copied().unwrap_or(self.methods.len() - 1)
    }

    pub fn name(&self, method: usize) -> &'static str {
        self.methods.get(method).copied().unwrap_or(OTHER_METHOD)
    }

    /// Returns the names of all methods, in the order of their indices.
    pub fn names(&self) -> &[&'static str] {
        &self.methods
    }

    pub fn is_stream(&self, method: usize) -> bool {
        self.counts[method].is_stream
    }

    pub fn start_call(&self, method: usize) {
        self.counts[method].started.add(1);
        self.counts[method].active.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end_call(&self, method: usize) {
        self.counts[method].active.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn add_received(&self, method: usize, messages: u64) {
        self.counts[method].received.add(messages);
    }

    pub fn add_sent(&self, method: usize, messages: u64) {
        self.counts[method].sent.add(messages);
    }

    /// Counts a call that failed; `None` if the error has no reason.
    pub fn add_failure(&self, reason: Option<&str>) {
        let known = self.failures.iter().find(|(name, _)| Some(*name) == reason);
        if let Some((_, counter)) = known.or(self.failures.last()) {
            counter.add(1);
        }
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, MethodCounts)> {
        self.methods.iter().zip(&self.counts).map(|(name, counters)| {
            let active = counters.active.load(Ordering::Relaxed);
            let counts = MethodCounts {
                is_stream: counters.is_stream,
                started: counters.started.get(),
                received: counters.received.get(),
                sent: counters.sent.get(),
                active,
            };
            (*name, counts)
        })
    }

    /// Returns the number of failed calls by reason.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.failures.iter().map(|(reason, counter)| (*reason, counter.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_and_reasons_are_counted_as_other() {
        let statistics = RpcStatistics::new([Method { name: "a.B/C", is_stream: false }], ["NO_ROOM"]);
        let paths = ["/a.B/C", "a.B/C", "/a.B/D", "/_OTHER", "/", ""];
        let names = paths.map(|path| statistics.name(statistics.method(path)));
        assert_eq!(names, ["a.B/C", "_OTHER", "_OTHER", "_OTHER", "_OTHER", "_OTHER"]);
        [Some("NO_ROOM"), Some("whatever"), None].into_iter().for_each(|reason| statistics.add_failure(reason));
        assert_eq!(Vec::from_iter(statistics.failures()), [("NO_ROOM", 1), ("OTHER", 2)]);
    }
}
