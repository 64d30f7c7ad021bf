//! PostgreSQL: a row for each inventory with the items and counts of 36 slots. An update is an UPDATE, optionally with a
//! NOTIFY in the same transaction; a transfer is a transaction of two UPDATEs.

use crate::load::{Client, INVENTORIES, SLOTS, STARTING_COUNT, Subscriber};
use crate::server::Server;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const PROTOCOL: i32 = 3 << 16;
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 100;
/// The account of the server, which refuses to run as root.
const ACCOUNT: &str = "postgres";
const UPDATE: &str = "UPDATE inventories SET counts[$2::int] = $3::int WHERE id = $1::int";
const NOTIFY: &str = "SELECT pg_notify('inventory', $1)";
const MOVE: &str = "UPDATE inventories SET counts[$2::int] = counts[$2::int] + $3::int \
    WHERE id = $1::int AND counts[$2::int] + $3::int >= 0";

/// Starts a new cluster with the default settings, but a quarter of the memory as shared buffers, as its documentation
/// recommends for a machine of its own.
pub async fn start() -> io::Result<Server> {
    let folder = TempDir::with_prefix("slotcast-peer-")?;
    let data = folder.path().join("data");
    let programs = programs()?;
    if is_root() {
        run(Command::new("chown").arg(ACCOUNT).arg(folder.path()))?;
    }
    let initdb = programs.join("initdb").to_string_lossy().into_owned();
    let data_argument = data.to_string_lossy().into_owned();
    let create =
        as_account(&[&initdb, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--pgdata", &data_argument]);
    run(Command::new(&create[0]).args(&create[1..]).current_dir(folder.path()))?;
    let postgres = programs.join("postgres").to_string_lossy().into_owned();
    let sockets = format!("unix_socket_directories={}", folder.path().display());
    let command = as_account(&[&postgres, "-D", &data_argument, "-c", &sockets, "-c", "listen_addresses=127.0.0.1"]);
    let server = Server::start_in(folder, &command[0], |port, _| {
        let options = [format!("port={port}"), format!("max_connections={CONNECTIONS_MAX}"), shared_buffers()];
        let options = options.into_iter().flat_map(|option| ["-c".to_owned(), option]);
        command[1..].iter().cloned().chain(options).collect()
    })
    .await?;
    fill(&server).await?;
    Ok(server)
}

/// Connects to a server that listens, but may refuse connections until it has recovered.
async fn first_connection(server: &Server) -> io::Result<Connection> {
    let start = Instant::now();
    loop {
        match Connection::open(server).await {
            Err(_) if start.elapsed() < READY_TIMEOUT => tokio::time::sleep(Duration::from_millis(50)).await,
            result => return result,
        }
    }
}

async fn fill(server: &Server) -> io::Result<()> {
    let mut client = first_connection(server).await?;
    client.query("CREATE TABLE inventories (id int PRIMARY KEY, items int[] NOT NULL, counts int[] NOT NULL)").await?;
    let (last, items) = (INVENTORIES - 1, format!("ARRAY(SELECT generate_series(1, {SLOTS}))"));
    let counts = format!("array_fill({STARTING_COUNT}, ARRAY[{SLOTS}])");
    client
        .query(&format!("INSERT INTO inventories SELECT id, {items}, {counts} FROM generate_series(0, {last}) id"))
        .await?;
    client.query("VACUUM ANALYZE inventories").await
}

/// Returns the folder of the newest installed version.
fn programs() -> io::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")?;
    let version = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(version).max().ok_or_else(|| io::Error::other("PostgreSQL is not installed"))?;
    Ok(format!("/usr/lib/postgresql/{newest}/bin").into())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// Returns a command that runs under the server's account.
fn as_account(command: &[&str]) -> Vec<String> {
    let account = ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups"];
    let prefix = if is_root() { &account[..] } else { &[] };
    prefix.iter().chain(command).map(|word| (*word).to_owned()).collect()
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr))))
}

fn shared_buffers() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib = text.split_whitespace().nth(1).and_then(|total| total.parse::<u64>().ok()).unwrap_or(1 << 20);
    format!("shared_buffers={}MB", (total_kib / 4) >> 10)
}

/// A connection that speaks version 3 of the protocol.
struct Connection {
    stream: BufReader<TcpStream>,
    /// The type and the body of the last message.
    kind: u8,
    body: Vec<u8>,
}

impl Connection {
    async fn open(server: &Server) -> io::Result<Self> {
        let mut connection = Self { stream: BufReader::new(server.connect().await?), kind: 0, body: Vec::new() };
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut start = (8 + parameters.len() as i32).to_be_bytes().to_vec();
        start.extend_from_slice(&PROTOCOL.to_be_bytes());
        start.extend_from_slice(parameters);
        connection.stream.write_all(&start).await?;
        connection.read_until_ready().await?;
        Ok(connection)
    }

    async fn query(&mut self, text: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        message(&mut bytes, b'Q', &[text.as_bytes(), b"\0"].concat());
        self.stream.write_all(&bytes).await?;
        self.read_until_ready().await.map(drop)
    }

    async fn prepare(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        // No types of parameters: the text has them.
        message(&mut bytes, b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat());
        message(&mut bytes, b'S', &[]);
        self.stream.write_all(&bytes).await?;
        self.read_until_ready().await.map(drop)
    }

    /// Executes prepared statements as one transaction, in one write. Returns how many of them changed or returned one
    /// row.
    async fn execute(&mut self, statements: &[(&str, &[String])]) -> io::Result<usize> {
        let mut bytes = Vec::new();
        for (name, parameters) in statements {
            let mut bind = [b"\0", name.as_bytes(), b"\0\0\0"].concat();
            bind.extend_from_slice(&(parameters.len() as i16).to_be_bytes());
            for parameter in *parameters {
                bind.extend_from_slice(&(parameter.len() as i32).to_be_bytes());
                bind.extend_from_slice(parameter.as_bytes());
            }
            bind.extend_from_slice(&[0, 0]);
            message(&mut bytes, b'B', &bind);
            message(&mut bytes, b'E', &[0; 5]);
        }
        message(&mut bytes, b'S', &[]);
        self.stream.write_all(&bytes).await?;
        self.read_until_ready().await
    }

    /// Reads to the end of the reply, and returns the number of statements that affected one row.
    async fn read_until_ready(&mut self) -> io::Result<usize> {
        let (mut error, mut affected) = (None, 0);
        loop {
            self.read_message().await?;
            match self.kind {
                b'Z' => return error.map_or(Ok(affected), Err),
                b'E' => error = Some(io::Error::other(format!("postgres: {}", String::from_utf8_lossy(&self.body)))),
                b'C' if self.body.ends_with(b" 1\0") => affected += 1,
                _ => {}
            }
        }
    }

    async fn read_message(&mut self) -> io::Result<()> {
        self.kind = self.stream.read_u8().await?;
        let length = self.stream.read_i32().await?;
        let length = usize::try_from(length - 4).map_err(io::Error::other)?;
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body).await?;
        Ok(())
    }
}

fn message(bytes: &mut Vec<u8>, kind: u8, body: &[u8]) {
    bytes.push(kind);
    bytes.extend_from_slice(&(4 + body.len() as i32).to_be_bytes());
    bytes.extend_from_slice(body);
}

pub struct PostgresClient {
    connection: Connection,
    notifies: bool,
}

impl PostgresClient {
    pub async fn connect(server: &Server, notifies: bool) -> io::Result<Self> {
        let mut connection = Connection::open(server).await?;
        for (name, text) in [("update", UPDATE), ("notify", NOTIFY), ("move", MOVE)] {
            connection.prepare(name, text).await?;
        }
        Ok(Self { connection, notifies })
    }
}

impl Client for PostgresClient {
    async fn update(&mut self, inventory: usize, slot: u32, count: u32) -> io::Result<()> {
        // Arrays begin at 1.
        let parameters = [inventory.to_string(), (slot + 1).to_string(), count.to_string()];
        let payload = [format!("{inventory} {slot} {count}")];
        let statements: [(&str, &[String]); 2] = [("update", &parameters), ("notify", &payload)];
        let statements = if self.notifies { &statements[..] } else { &statements[..1] };
        let affected = self.connection.execute(statements).await?;
        if affected == statements.len() { Ok(()) } else { Err(io::Error::other("postgres: no row was updated")) }
    }

    async fn transfer(&mut self, from: usize, to: usize, slot: u32) -> io::Result<()> {
        let mut moves = [(from, -1), (to, 1)];
        // Transactions that lock rows in the same order cannot deadlock.
        moves.sort_unstable();
        let parameters = moves.map(|(id, change)| [id.to_string(), (slot + 1).to_string(), change.to_string()]);
        let affected = self.connection.execute(&[("move", &parameters[0]), ("move", &parameters[1])]).await?;
        if affected == 2 { Ok(()) } else { Err(io::Error::other("postgres: no row was updated")) }
    }
}

/// Listens for the notifications of all inventories.
pub struct PostgresSubscriber {
    connection: Connection,
}

impl PostgresSubscriber {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let mut connection = Connection::open(server).await?;
        connection.query("LISTEN inventory").await?;
        Ok(Self { connection })
    }
}

impl Subscriber for PostgresSubscriber {
    async fn changes(&mut self) -> io::Result<(u64, u64)> {
        self.connection.read_message().await?;
        let is_notification = self.connection.kind == b'A';
        Ok((u64::from(is_notification), 5 + self.connection.body.len() as u64))
    }
}
