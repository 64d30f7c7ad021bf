//! The runtimes that serve connections: the one in which the transport runs, and any number of others, each on its own
//! thread. A connection stays in its runtime, with its calls and its streams, so that the replies of its calls leave in
//! one write.

use futures_util::future::BoxFuture;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::future::FutureExt;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The life of one connection.
pub(super) type ConnectionTask = BoxFuture<'static, ()>;

/// The runtimes beside the current one. Dropping this value cuts off their connections and ends their threads.
#[derive(Debug, Default)]
pub struct Runtimes {
    others: Vec<OtherRuntime>,
    /// Notified when a connection in one of the runtimes has ended.
    connection_ended: Arc<Notify>,
    _cut_off: Option<DropGuard>,
}

/// A single-threaded runtime on its own thread.
#[derive(Debug)]
struct OtherRuntime {
    /// The size of the channel is limited by the number of open connections.
    tasks: mpsc::UnboundedSender<ConnectionTask>,
    /// Number of connections that are open or not started yet.
    connections: Arc<AtomicUsize>,
    /// Resolves when the thread has ended.
    ended: oneshot::Receiver<()>,
}

/// Counts a connection in its runtime until this value is dropped.
struct CountedConnection(Arc<AtomicUsize>);

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runtimes {
    /// Starts `others` runtimes beside the current one. Each calls `on_start` once, in its own context, before it
    /// serves its first connection.
    ///
    /// # Errors
    ///
    /// The system does not allow another thread or event queue.
    pub fn start(others: usize, on_start: impl Fn() + Clone + Send + 'static) -> io::Result<Self> {
        let cut_off = CancellationToken::new();
        let connection_ended = Arc::<Notify>::default();
        let start = |index: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (tasks, received_tasks) = mpsc::unbounded_channel();
            let (end_sender, ended) = oneshot::channel();
            let (on_start, cut_off, connection_ended) = (on_start.clone(), cut_off.clone(), connection_ended.clone());
            let run = move || {
                serve_connections(runtime, on_start, received_tasks, &connection_ended, cut_off);
                // The receiver may no longer wait.
                let _ = end_sender.send(());
            };
            std::thread::Builder::new().name(format!("connections-{index}")).spawn(run)?;
            Ok(OtherRuntime { tasks, connections: Arc::default(), ended })
        };
        let others = (1..=others).map(start).collect::<io::Result<_>>()?;
        Ok(Self { others, connection_ended, _cut_off: Some(cut_off.drop_guard()) })
    }

    /// Selects the runtime with the fewest connections, of which the current one has `current`. Returns `None` for the
    /// current runtime, which is selected if several have the fewest.
    pub(super) fn select(&self, current: usize) -> Option<SelectedRuntime<'_>> {
        let others = self.others.iter().map(|runtime| (runtime.connections.load(Ordering::Relaxed), runtime));
        let (connections, runtime) = others.min_by_key(|(connections, _)| *connections)?;
        (connections < current).then_some(SelectedRuntime(runtime))
    }

    /// Waits until a connection in another runtime has ended. Cancel safe.
    pub(super) async fn connection_ended(&self) {
        self.connection_ended.notified().await;
    }

    /// Waits until the other runtimes have no connection left, and ends them.
    pub(super) async fn join(self) {
        for OtherRuntime { tasks, ended, .. } in self.others {
            drop(tasks);
            // An error also means that the thread has ended.
            let _ = ended.await;
        }
    }
}

/// Another runtime, which was selected for a connection.
pub(super) struct SelectedRuntime<'a>(&'a OtherRuntime);

impl SelectedRuntime<'_> {
    /// Serves a connection in this runtime. `task` is polled for the first time there.
    pub fn spawn(self, task: impl Future<Output = ()> + Send + 'static) {
        let OtherRuntime { tasks, connections, .. } = self.0;
        connections.fetch_add(1, Ordering::Relaxed);
        let counted = CountedConnection(connections.clone());
        // Boxed, because an async block that awaits a captured future has room for it twice.
        let task = Box::pin(task);
        let task = async move {
            let _counted = counted;
            task.await;
        };
        if tasks.send(Box::pin(task)).is_err() {
            // The failed send drops the task, which closes the connection.
            tracing::error!("a thread that serves connections has ended");
        }
    }
}

/// Runs on the thread of a runtime: serves its connections until `tasks` is closed and no connection is left, or until
/// `cut_off` is cancelled.
fn serve_connections(
    runtime: Runtime,
    on_start: impl FnOnce(),
    mut tasks: mpsc::UnboundedReceiver<ConnectionTask>,
    connection_ended: &Notify,
    cut_off: CancellationToken,
) {
    let serve = async {
        on_start();
        // Dropping the set aborts all connections.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    connection_ended.notify_one();
                }
                task = tasks.recv() => match task {
                    Some(task) => drop(connections.spawn(task)),
                    None => break,
                }
            }
        }
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
    };
    // The result tells whether the connections were cut off, which makes no difference here.
    let _ = runtime.block_on(serve.with_cancellation_token_owned(cut_off));
    // Drops all tasks. A blocking task of a dropped call may still run.
    runtime.shutdown_background();
}

pub(super) fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "connection task panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as blocking;
    use std::thread::ThreadId;

    /// A connection that reports its thread and ends with `end`.
    async fn connection(started: blocking::Sender<ThreadId>, end: oneshot::Receiver<()>) {
        started.send(std::thread::current().id()).expect("the test waits");
        // A dropped sender also ends the connection.
        let _ = end.await;
    }

    #[tokio::test]
    async fn each_connection_goes_to_the_runtime_with_the_fewest() {
        let (started, threads) = blocking::channel();
        let (on_start, starts) = blocking::channel();
        let on_start = move || on_start.send(std::thread::current().id()).expect("the test waits");
        let runtimes = Runtimes::start(2, on_start).expect("two threads");
        assert!(runtimes.select(0).is_none(), "the current runtime is the first of several without connections");
        let open = |current: usize| {
            let (end, ended) = oneshot::channel();
            runtimes.select(current).expect("another runtime").spawn(connection(started.clone(), ended));
            (end, threads.recv().expect("a thread"))
        };
        let (first_end, first) = open(1);
        let (_second_end, second) = open(1);
        assert!(runtimes.select(1).is_none(), "each runtime has one connection");
        let (_third_end, third) = open(2);
        let (_fourth_end, fourth) = open(2);
        assert_eq!((third, fourth), (first, second));
        drop(first_end);
        runtimes.connection_ended().await;
        assert_eq!(open(2).1, first, "this runtime has one connection fewer");
        let mut hooks: Vec<ThreadId> = starts.try_iter().collect();
        assert_eq!(hooks.len(), 2, "the hook runs once in each runtime");
        hooks.retain(|thread| ![first, second].contains(thread));
        assert!(hooks.is_empty() && first != second, "each runtime has its own thread");
    }

    #[tokio::test]
    async fn join_waits_for_open_connections() {
        let (started, threads) = blocking::channel();
        let runtimes = Runtimes::start(1, || {}).expect("a thread");
        let (end, ended) = oneshot::channel();
        runtimes.select(1).expect("another runtime").spawn(connection(started, ended));
        threads.recv().expect("the connection is served");
        let mut joined = std::pin::pin!(runtimes.join());
        assert!(futures_util::poll!(joined.as_mut()).is_pending());
        drop(end);
        joined.await;
    }

    #[tokio::test]
    async fn dropping_the_runtimes_cuts_off_their_connections() {
        let (started, threads) = blocking::channel();
        let runtimes = Runtimes::start(2, || {}).expect("two threads");
        let (dropped, cut_off) = oneshot::channel::<()>();
        let task = async move {
            let _dropped = dropped;
            started.send(std::thread::current().id()).expect("the test waits");
            std::future::pending().await
        };
        runtimes.select(1).expect("another runtime").spawn(task);
        threads.recv().expect("the connection is served");
        drop(runtimes);
        assert!(cut_off.await.is_err(), "the connection was dropped");
    }

    #[tokio::test]
    async fn a_connection_that_panics_ends_alone() {
        let (started, threads) = blocking::channel();
        let runtimes = Runtimes::start(1, || {}).expect("a thread");
        runtimes.select(1).expect("another runtime").spawn(async { panic!("planted") });
        runtimes.connection_ended().await;
        let (end, ended) = oneshot::channel();
        runtimes.select(1).expect("another runtime").spawn(connection(started, ended));
        threads.recv().expect("the next connection is served");
        drop(end);
        runtimes.join().await;
    }
}
