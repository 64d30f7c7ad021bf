//! The load: 64 clients, each with one request in flight, and a subscriber that learns of every change.

use crate::server::{Server, own_cpu};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::LocalSet;

pub const CLIENTS: usize = 64;
pub const INVENTORIES: usize = 10_000;
pub const SLOTS: u32 = 36;
/// The count that every slot starts with: no transfer of a run can use it up.
pub const STARTING_COUNT: u32 = 1_000_000;
const WARM_UP: Duration = Duration::from_secs(1);
/// How long the subscriber may take to learn of the last change.
const SUBSCRIBER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that updates and transfers.
#[allow(async_fn_in_trait, reason = "the clients run on one thread")]
pub trait Client: 'static {
    /// Durably sets the count of one slot of an inventory and, where the peer separates the two, tells the subscribers.
    async fn update(&mut self, inventory: usize, slot: u32, count: u32) -> io::Result<()>;

    /// Atomically moves one item of a slot to the same slot of another inventory.
    ///
    /// # Errors
    ///
    /// An error if the peer has no transactions.
    async fn transfer(&mut self, _from: usize, _to: usize, _slot: u32) -> io::Result<()> {
        Err(io::Error::other("this peer has no transactions"))
    }
}

/// A connection that receives every change.
#[allow(async_fn_in_trait, reason = "the clients run on one thread")]
pub trait Subscriber: 'static {
    /// Waits for more changes and returns their number and how many bytes were received for them.
    async fn changes(&mut self) -> io::Result<(u64, u64)>;
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Update,
    TransferUniform,
    TransferZipf,
}

impl Job {
    pub fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::TransferUniform => "transfer, uniform",
            Self::TransferZipf => "transfer, Zipf 1.5",
        }
    }
}

/// The results of one job on one peer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Figures {
    pub peer: String,
    pub job: &'static str,
    pub operations_per_second: f64,
    /// CPU time of all the peer's processes.
    pub server_cpu_us_per_operation: f64,
    pub p50_us: u32,
    pub p99_us: u32,
    pub p999_us: u32,
    /// What the subscriber received for each change; `None` without a subscriber.
    pub subscriber_bytes_per_change: Option<f64>,
    /// The share of its core that the load generator used. Above 0.9, it and not the peer is the limit.
    pub load_cpu_share: f64,
}

/// The state that all clients of a run share.
struct Run {
    job: Job,
    zipf: Zipf,
    random: RefCell<fastrand::Rng>,
    measured_from: Instant,
    until: Instant,
    latencies_us: RefCell<Vec<u32>>,
    /// Number of operations since the start, with the warm-up.
    operations: RefCell<u64>,
}

/// Runs a job for `seconds` after a warm-up.
///
/// # Errors
///
/// An error if any operation fails, or if the subscriber does not learn of every change.
pub async fn run<C: Client, S: Subscriber>(
    peer: &str,
    job: Job,
    seconds: u64,
    server: &Server,
    clients: Vec<C>,
    subscriber: Option<S>,
) -> io::Result<Figures> {
    let measured_from = Instant::now() + WARM_UP;
    let until = measured_from + Duration::from_secs(seconds);
    let run = Rc::new(Run {
        job,
        zipf: Zipf::new(INVENTORIES, 1.5),
        random: RefCell::new(fastrand::Rng::with_seed(1)),
        measured_from,
        until,
        latencies_us: RefCell::default(),
        operations: RefCell::default(),
    });
    let local = LocalSet::new();
    local.run_until(measure(peer, server, run, clients, subscriber)).await
}

async fn measure<C: Client, S: Subscriber>(
    peer: &str,
    server: &Server,
    run: Rc<Run>,
    clients: Vec<C>,
    subscriber: Option<S>,
) -> io::Result<Figures> {
    let workers: Vec<_> =
        clients.into_iter().map(|client| tokio::task::spawn_local(work(client, run.clone()))).collect();
    let (received, progress) = tokio::sync::watch::channel((0, 0));
    let subscribed = subscriber.map(|subscriber| tokio::task::spawn_local(receive(subscriber, received)));
    // Time under test: the load runs for this long before it is measured.
    tokio::time::sleep_until(run.measured_from.into()).await;
    let (server_before, load_before, start) = (server.cpu()?, own_cpu()?, Instant::now());
    // Time under test: the load is measured for this long.
    tokio::time::sleep_until(run.until.into()).await;
    let (server_after, load_after, took) = (server.cpu()?, own_cpu()?, start.elapsed());
    let measured = run.latencies_us.borrow().len().max(1);
    for worker in workers {
        worker.await??;
    }
    let mut bytes_per_change = None;
    if let Some(subscribed) = subscribed {
        let operations = *run.operations.borrow();
        bytes_per_change = Some(wait_for_changes(peer, progress, operations).await?);
        subscribed.abort();
    }
    let mut latencies = std::mem::take(&mut *run.latencies_us.borrow_mut());
    latencies.sort_unstable();
    let quantile = |share: f64| latencies.get((latencies.len().saturating_sub(1) as f64 * share) as usize);
    let quantile = |share| quantile(share).copied().unwrap_or_default();
    Ok(Figures {
        peer: peer.to_owned(),
        job: run.job.name(),
        operations_per_second: measured as f64 / took.as_secs_f64(),
        server_cpu_us_per_operation: (server_after - server_before).as_secs_f64() * 1e6 / measured as f64,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        subscriber_bytes_per_change: bytes_per_change,
        load_cpu_share: (load_after - load_before).as_secs_f64() / took.as_secs_f64(),
    })
}

async fn work<C: Client>(mut client: C, run: Rc<Run>) -> io::Result<()> {
    loop {
        let start = Instant::now();
        if start >= run.until {
            return Ok(());
        }
        let (from, to, slot, count) = run.next();
        match run.job {
            Job::Update => client.update(from, slot, count).await?,
            Job::TransferUniform | Job::TransferZipf => client.transfer(from, to, slot).await?,
        }
        *run.operations.borrow_mut() += 1;
        let end = Instant::now();
        if end >= run.measured_from && end < run.until {
            run.latencies_us.borrow_mut().push((end - start).as_micros() as u32);
        }
    }
}

impl Run {
    /// Draws two different inventories, a slot and a count.
    fn next(&self) -> (usize, usize, u32, u32) {
        let mut random = self.random.borrow_mut();
        let mut inventory = || match self.job {
            Job::Update | Job::TransferUniform => random.usize(..INVENTORIES),
            Job::TransferZipf => self.zipf.sample(random.f64()),
        };
        let from = inventory();
        let to = loop {
            let to = inventory();
            if to != from {
                break to;
            }
        };
        (from, to, random.u32(..SLOTS), random.u32(1..STARTING_COUNT))
    }
}

/// Receives changes until it is aborted, and publishes the sums of changes and bytes.
async fn receive<S: Subscriber>(mut subscriber: S, received: watch::Sender<(u64, u64)>) -> io::Result<()> {
    loop {
        let (changes, bytes) = subscriber.changes().await?;
        received.send_modify(|sum| *sum = (sum.0 + changes, sum.1 + bytes));
    }
}

/// Waits until the subscriber has learned of all changes, and returns the bytes for each.
async fn wait_for_changes(peer: &str, mut progress: watch::Receiver<(u64, u64)>, operations: u64) -> io::Result<f64> {
    let all = async { progress.wait_for(|(changes, _)| *changes >= operations).await.map(|received| received.1) };
    let received = tokio::time::timeout(SUBSCRIBER_TIMEOUT, all).await;
    match received {
        Ok(Ok(bytes)) => Ok(bytes as f64 / operations.max(1) as f64),
        Ok(Err(_)) => Err(io::Error::other(format!("{peer}: the subscriber's connection failed"))),
        Err(_) => {
            let changes = progress.borrow().0;
            Err(io::Error::other(format!("{peer}: the subscriber learned of {changes} of {operations} changes")))
        }
    }
}

/// Zipf's distribution: number `n`, from 0, has a weight of 1 / (n + 1)^exponent.
pub struct Zipf {
    /// The share of all numbers up to each one.
    cumulative: Vec<f64>,
}

impl Zipf {
    pub fn new(numbers: usize, exponent: f64) -> Self {
        let weights = (1..=numbers).map(|number| (number as f64).powf(-exponent));
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|share| *share /= sum);
        Self { cumulative }
    }

    /// Returns the number for a uniform random value from 0 to 1.
    pub fn sample(&self, uniform: f64) -> usize {
        self.cumulative.partition_point(|share| *share < uniform).min(self.cumulative.len() - 1)
    }
}
