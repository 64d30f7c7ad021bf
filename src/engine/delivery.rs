//! Delivers the results of batches in the runtimes that wait for them: one message for each runtime and batch.

use super::waker::SubscriptionWaker;
use super::{EngineError, MutationReply, MutationRequest, WatchedInventories};
use crate::domain::Inventory;
use crate::store::ListPage;
use parking_lot::RwLock;
use std::cell::Cell;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Identifies a runtime of one engine; the default is the runtime in which the engine was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RuntimeIndex(usize);

/// Where to send a result.
pub(super) struct ReplyTo<T> {
    pub runtime: RuntimeIndex,
    pub sender: oneshot::Sender<Result<T, EngineError>>,
}

/// The results of one batch, by runtime.
#[derive(Default)]
pub(super) struct BatchResults(Vec<RuntimeResults>);

/// The results of one batch for one runtime.
#[derive(Default)]
struct RuntimeResults {
    wakes: Vec<Arc<SubscriptionWaker>>,
    mutations: Vec<MutationResult>,
    watches: Replies<WatchedInventories>,
    reads: Replies<Option<Arc<Inventory>>>,
    pages: Replies<ListPage>,
}

struct MutationResult {
    sender: oneshot::Sender<Result<MutationReply, EngineError>>,
    result: Result<MutationReply, EngineError>,
    /// Kept so that it is dropped in the caller's runtime, which usually allocated it: freeing memory on another thread is
    /// slower.
    request: Box<MutationRequest>,
}

type Replies<T> = Vec<(oneshot::Sender<Result<T, EngineError>>, Result<T, EngineError>)>;

/// Delivers results to the runtimes of one engine; each runtime has a task for it.
pub(super) struct ResultDelivery {
    /// Distinguishes the engines of one process.
    engine: u64,
    /// By [`RuntimeIndex`]. The channels are unbounded, but the waiting callers limit their size.
    results: RwLock<Vec<mpsc::UnboundedSender<RuntimeResults>>>,
    /// Each delivery task has a clone, so the channel closes when the last one has ended.
    running: mpsc::Sender<Infallible>,
}

thread_local! {
    /// The engine and its runtime that were last attached to this thread.
    static ATTACHED: Cell<Option<(u64, RuntimeIndex)>> = const { Cell::new(None) };
}

impl ResultDelivery {
    /// Starts delivering in the current runtime. Returns a receiver that closes once everything is delivered, after
    /// the returned value was dropped.
    pub fn start() -> (Arc<Self>, mpsc::Receiver<Infallible>) {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        let (running, ended) = mpsc::channel(1);
        let engine = ENGINES.fetch_add(1, Ordering::Relaxed);
        let runtimes = Self { engine, results: RwLock::default(), running };
        runtimes.spawn();
        (Arc::new(runtimes), ended)
    }

    /// Starts delivering in the current runtime the results of requests from the current thread.
    pub fn attach(&self) {
        ATTACHED.set(Some((self.engine, self.spawn())));
    }

    /// Returns the runtime that is attached to the current thread, or the one in which the engine was started.
    pub fn current(&self) -> RuntimeIndex {
        let attached = ATTACHED.get().filter(|(engine, _)| *engine == self.engine);
        attached.map(|(_, runtime)| runtime).unwrap_or_default()
    }

    /// Sends the results to their runtimes. The results for a runtime that has ended go to the first one.
    ///
    /// Returns whether the first runtime still exists.
    pub fn send(&self, results: BatchResults) -> bool {
        let queues = self.results.read();
        let first = &queues[0];
        for (queue, results) in queues.iter().zip(results.0).filter(|(_, results)| !results.is_empty()) {
            if let Err(mpsc::error::SendError(results)) = queue.send(results) {
                // It fails only if the first runtime has ended too.
                let _ = first.send(results);
            }
        }
        !first.is_closed()
    }

    /// Returns a value that delays the end of the engine until it is dropped.
    pub fn running(&self) -> mpsc::Sender<Infallible> {
        self.running.clone()
    }

    fn spawn(&self) -> RuntimeIndex {
        let (sender, results) = mpsc::unbounded_channel();
        tokio::spawn(deliver(results, self.running.clone()));
        let mut queues = self.results.write();
        queues.push(sender);
        RuntimeIndex(queues.len() - 1)
    }
}

/// Runs in a runtime: wakes subscriptions and sends replies, in commit order.
async fn deliver(mut results: mpsc::UnboundedReceiver<RuntimeResults>, running: mpsc::Sender<Infallible>) {
    while let Some(RuntimeResults { wakes, mutations, watches, reads, pages }) = results.recv().await {
        for waker in wakes {
            waker.wake();
        }
        for MutationResult { sender, result, request } in mutations {
            send(sender, result);
            drop(request);
        }
        send_all(watches);
        send_all(reads);
        send_all(pages);
    }
    drop(running);
}

fn send_all<T>(replies: Replies<T>) {
    for (sender, result) in replies {
        send(sender, result);
    }
}

fn send<T>(sender: oneshot::Sender<T>, result: T) {
    // It fails only if the caller no longer waits.
    let _ = sender.send(result);
}

impl BatchResults {
    /// Adds the subscriptions to wake.
    pub fn add_wakes(&mut self, wakes: impl IntoIterator<Item = Arc<SubscriptionWaker>>) {
        for waker in wakes {
            self.of(waker.runtime).wakes.push(waker);
        }
    }

    pub fn add_mutation_reply(
        &mut self,
        to: ReplyTo<MutationReply>,
        result: Result<MutationReply, EngineError>,
        request: Box<MutationRequest>,
    ) {
        self.of(to.runtime).mutations.push(MutationResult { sender: to.sender, result, request });
    }

    pub fn add_watch(&mut self, to: ReplyTo<WatchedInventories>, result: Result<WatchedInventories, EngineError>) {
        self.of(to.runtime).watches.push((to.sender, result));
    }

    pub fn add_read(
        &mut self,
        to: ReplyTo<Option<Arc<Inventory>>>,
        result: Result<Option<Arc<Inventory>>, EngineError>,
    ) {
        self.of(to.runtime).reads.push((to.sender, result));
    }

    pub fn add_page(&mut self, to: ReplyTo<ListPage>, result: Result<ListPage, EngineError>) {
        self.of(to.runtime).pages.push((to.sender, result));
    }

    fn of(&mut self, RuntimeIndex(index): RuntimeIndex) -> &mut RuntimeResults {
        if self.0.len() <= index {
            self.0.resize_with(index + 1, RuntimeResults::default);
        }
        &mut self.0[index]
    }
}

impl RuntimeResults {
    fn is_empty(&self) -> bool {
        self.wakes.is_empty()
            && self.mutations.is_empty()
            && self.watches.is_empty()
            && self.reads.is_empty()
            && self.pages.is_empty()
    }
}
