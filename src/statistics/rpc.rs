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
    is_stream: bool,
    begun: Counter,
    received: Counter,
    sent: Counter,
    active: AtomicU64,
}

/// A method that is known: its name as `package.Service/Method`, and whether it answers with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub is_stream: bool,
}

/// Of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodCounts {
    pub is_stream: bool,
    /// Calls that there were, those that have not ended included.
    pub begun: u64,
    /// Messages from callers, and to them.
    pub received: u64,
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

    pub fn is_stream(&self, method: usize) -> bool {
        self.counts[method].is_stream
    }

    pub fn begin(&self, method: usize) {
        self.counts[method].begun.add(1);
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
            let counts = MethodCounts {
                is_stream: counters.is_stream,
                begun: counters.begun.get(),
                received: counters.received.get(),
                sent: counters.sent.get(),
                active,
            };
            (*name, counts)
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
        let statistics = RpcStatistics::new([Method { name: "a.B/C", is_stream: false }], ["NO_ROOM"]);
        let paths = ["/a.B/C", "a.B/C", "/a.B/D", "/_OTHER", "/", ""];
        let names = paths.map(|path| statistics.name(statistics.method(path)));
        assert_eq!(names, ["a.B/C", "_OTHER", "_OTHER", "_OTHER", "_OTHER", "_OTHER"]);
        [Some("NO_ROOM"), Some("whatever"), None].into_iter().for_each(|reason| statistics.add_refusal(reason));
        assert_eq!(Vec::from_iter(statistics.refusals()), [("NO_ROOM", 1), ("OTHER", 2)]);
    }
}
