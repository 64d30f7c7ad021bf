//! Compares peers at Slotcast's job: durably update one slot of one inventory of 36 slots, and notify a subscriber. 64 clients,
//! each with one request in flight; the peer on core 0, the load on core 1.
//!
//! `just peers` installs the peers and runs it. Options: `--seconds N` for each job (5), `--only NAME` (a part of a peer's
//! name), `--json FILE`. These variables name programs: `SLOTCAST_NATS` (nats-server), `SLOTCAST_BIN` (slotcast): if it has
//! the command `bench`, its figures are measured in the same run.

mod etcd;
mod load;
mod nats;
mod postgres;
mod redis;
mod server;
mod value;

use etcd::{EtcdClient, EtcdSubscriber};
use futures_util::future::try_join_all;
use load::{CLIENTS, Client, Figures, Job, Subscriber};
use nats::{NatsClient, NatsSubscriber};
use postgres::{PostgresClient, PostgresSubscriber};
use redis::{RedisClient, RedisSubscriber};
use server::Server;
use std::io;
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo bench --bench peers -- [--seconds N] [--only NAME] [--json FILE]";
const TRANSFERS: [Job; 2] = [Job::TransferUniform, Job::TransferZipf];

struct Options {
    seconds: u64,
    only: String,
    json: Option<String>,
}

/// The comparison so far.
struct Comparison {
    options: Options,
    figures: Vec<Figures>,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(compare(options))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> io::Result<Options> {
    let mut options = Options { seconds: 5, only: String::new(), json: None };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| io::Error::other(USAGE))?;
        match name.as_str() {
            "--seconds" => options.seconds = value.parse().map_err(|_| io::Error::other(USAGE))?,
            "--only" => options.only = value,
            "--json" => options.json = Some(value),
            _ => return Err(io::Error::other(USAGE)),
        }
    }
    Ok(options)
}

async fn compare(options: Options) -> io::Result<()> {
    server::pin_load()?;
    let mut comparison = Comparison { options, figures: Vec::new() };
    for fsync in ["always", "everysec"] {
        comparison.redis(fsync).await?;
    }
    comparison.etcd().await?;
    comparison.postgres().await?;
    let nats = std::env::var("SLOTCAST_NATS").unwrap_or_else(|_| "nats-server".to_owned());
    for (sync_interval, name) in [("always", "NATS KV, sync always"), ("2m", "NATS KV, sync every 2 min (default)")] {
        comparison.nats(&nats, sync_interval, name).await?;
    }
    comparison.print();
    let slotcast = slotcast_figures(&comparison.options)?;
    if let Some(slotcast) = &slotcast {
        println!("\nslotcast bench unary, in the same run:\n{slotcast:#}");
    }
    if let Some(path) = &comparison.options.json {
        let report = serde_json::json!({ "peers": comparison.figures, "slotcast": slotcast });
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

impl Comparison {
    fn includes(&self, peer: &str) -> bool {
        peer.to_lowercase().contains(&self.options.only.to_lowercase())
    }

    async fn redis(&mut self, fsync: &str) -> io::Result<()> {
        let name = format!("Redis, appendfsync {fsync}");
        if !self.includes(&name) {
            return Ok(());
        }
        let server = redis::start(fsync).await?;
        let connect = || try_join_all((0..CLIENTS).map(|_| RedisClient::connect(&server)));
        let subscriber = RedisSubscriber::connect(&server).await?;
        self.run(&name, Job::Update, &server, connect().await?, Some(subscriber)).await?;
        for job in TRANSFERS {
            self.run::<_, RedisSubscriber>(&name, job, &server, connect().await?, None).await?;
        }
        Ok(())
    }

    async fn etcd(&mut self) -> io::Result<()> {
        let name = "etcd";
        if !self.includes(name) {
            return Ok(());
        }
        let server = etcd::start().await?;
        let connect = || try_join_all((0..CLIENTS).map(|_| EtcdClient::connect(&server)));
        let subscriber = EtcdSubscriber::connect(&server).await?;
        self.run(name, Job::Update, &server, connect().await?, Some(subscriber)).await?;
        for job in TRANSFERS {
            self.run::<_, EtcdSubscriber>(name, job, &server, connect().await?, None).await?;
        }
        Ok(())
    }

    async fn postgres(&mut self) -> io::Result<()> {
        let (name, with_notify) = ("PostgreSQL", "PostgreSQL with NOTIFY");
        if !self.includes(with_notify) {
            return Ok(());
        }
        let server = postgres::start().await?;
        let on = &server;
        let connect = |notifies| try_join_all((0..CLIENTS).map(move |_| PostgresClient::connect(on, notifies)));
        self.run::<_, PostgresSubscriber>(name, Job::Update, &server, connect(false).await?, None).await?;
        for job in TRANSFERS {
            self.run::<_, PostgresSubscriber>(name, job, &server, connect(false).await?, None).await?;
        }
        let subscriber = PostgresSubscriber::connect(&server).await?;
        self.run(with_notify, Job::Update, &server, connect(true).await?, Some(subscriber)).await
    }

    async fn nats(&mut self, program: &str, sync_interval: &str, name: &str) -> io::Result<()> {
        if !self.includes(name) {
            return Ok(());
        }
        let server = nats::start(program, sync_interval).await?;
        let clients = try_join_all((0..CLIENTS).map(|_| NatsClient::connect(&server))).await?;
        let subscriber = NatsSubscriber::connect(&server).await?;
        self.run(name, Job::Update, &server, clients, Some(subscriber)).await
    }

    async fn run<C: Client, S: Subscriber>(
        &mut self,
        name: &str,
        job: Job,
        server: &Server,
        clients: Vec<C>,
        subscriber: Option<S>,
    ) -> io::Result<()> {
        eprintln!("{name}: {}", job.name());
        let figures = load::run(name, job, self.options.seconds, server, clients, subscriber).await?;
        self.figures.push(figures);
        Ok(())
    }

    fn print(&self) {
        println!(
            "| peer | job | operations/s | server CPU per operation, us | p50, us | p99, us | p99.9, us | bytes to a subscriber per change | load's share of its core |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for figures in &self.figures {
            let bytes = figures.subscriber_bytes_per_change.map_or("-".to_owned(), |bytes| format!("{bytes:.0}"));
            println!(
                "| {} | {} | {:.0} | {:.1} | {} | {} | {} | {bytes} | {:.2} |",
                figures.peer,
                figures.job,
                figures.operations_per_second,
                figures.server_cpu_us_per_operation,
                figures.p50_us,
                figures.p99_us,
                figures.p999_us,
                figures.load_cpu_share,
            );
        }
    }
}

/// Runs `slotcast bench unary` if the program has that command.
fn slotcast_figures(options: &Options) -> io::Result<Option<serde_json::Value>> {
    let Some(program) = std::env::var_os("SLOTCAST_BIN").filter(|_| "slotcast".contains(&options.only.to_lowercase()))
    else {
        return Ok(None);
    };
    let has_bench = Command::new(&program).args(["bench", "--help"]).output()?.status.success();
    if !has_bench {
        eprintln!("{} has no command bench: without its figures", program.display());
        return Ok(None);
    }
    let seconds = options.seconds.to_string();
    let output = Command::new("taskset")
        .args(["--cpu-list", "0,1"])
        .arg(&program)
        .args(["bench", "unary", "--json", "-", "--seconds", &seconds])
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("slotcast bench failed: {text}")));
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}
