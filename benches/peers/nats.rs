//! NATS JetStream: a key-value bucket with a key for each inventory. An update is a put, which the server acknowledges.

use crate::load::{Client, INVENTORIES, Subscriber};
use crate::server::Server;
use crate::value;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The bucket, as the client libraries create it: a stream that keeps one message of each subject.
const BUCKET: &str = r#"{"name":"KV_inventories","subjects":["$KV.inventories.>"],"retention":"limits","storage":"file","max_msgs_per_subject":1,"discard":"new","allow_rollup_hdrs":true,"deny_delete":true,"allow_direct":true,"num_replicas":1}"#;
/// A watch of all keys, as the client libraries create it: an ordered consumer of new messages.
const WATCH: &str = r#"{"stream_name":"KV_inventories","config":{"deliver_subject":"watch","deliver_policy":"new","ack_policy":"none","max_deliver":1,"mem_storage":true,"num_replicas":1,"replay_policy":"instant"}}"#;
const REPLY_SUBJECT: &str = "reply";

/// Starts one server. `sync_interval`: how often it syncs its files, or `always` before each acknowledgment.
pub async fn start(program: &str, sync_interval: &str) -> io::Result<Server> {
    let server = Server::start(program, |port, folder| {
        let config = folder.join("nats.conf");
        let text = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?}, sync_interval: {sync_interval} }}\n",
            folder.join("data")
        );
        // The server reports a file that it cannot read.
        let _ = std::fs::write(&config, text);
        ["-c", &config.to_string_lossy()].map(str::to_owned).to_vec()
    })
    .await?;
    let mut first = NatsClient::connect(&server).await?;
    first.request("$JS.API.STREAM.CREATE.KV_inventories", BUCKET.as_bytes()).await?;
    let clients = futures_util::future::try_join_all((0..16).map(|_| NatsClient::connect(&server))).await?;
    let share = INVENTORIES / clients.len();
    let fills = clients.into_iter().enumerate().map(async |(number, mut client)| {
        for inventory in number * share..(number + 1) * share {
            client.put(inventory, &value::full()).await?;
        }
        Ok::<_, io::Error>(())
    });
    futures_util::future::try_join_all(fills).await?;
    Ok(server)
}

/// A connection with one subscription.
struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
    payload: Vec<u8>,
}

impl Connection {
    async fn open(server: &Server, subject: &str) -> io::Result<Self> {
        let stream = BufReader::new(server.connect().await?);
        let mut connection = Self { stream, line: String::new(), payload: Vec::new() };
        // A PONG shows that the server has handled everything before it.
        let start = format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {subject} 1\r\nPING\r\n");
        connection.stream.write_all(start.as_bytes()).await?;
        while !connection.line.starts_with("PONG") {
            connection.read_line().await?;
        }
        Ok(connection)
    }

    async fn read_line(&mut self) -> io::Result<()> {
        self.line.clear();
        self.stream.read_line(&mut self.line).await?;
        match self.line.split_whitespace().next() {
            Some("-ERR") | None => Err(io::Error::other(format!("nats: {}", self.line))),
            Some("PING") => self.stream.write_all(b"PONG\r\n").await,
            Some(_) => Ok(()),
        }
    }

    /// Reads the next message and returns how many bytes it had.
    async fn message(&mut self) -> io::Result<usize> {
        loop {
            self.read_line().await?;
            if !self.line.starts_with("MSG") && !self.line.starts_with("HMSG") {
                continue;
            }
            let length = self.line.split_whitespace().next_back().and_then(|length| length.parse::<usize>().ok());
            let length = length.ok_or_else(|| io::Error::other(format!("nats: {}", self.line)))?;
            self.payload.resize(length + 2, 0);
            self.stream.read_exact(&mut self.payload).await?;
            return Ok(self.line.len() + length + 2);
        }
    }
}

pub struct NatsClient {
    connection: Connection,
    reply_subject: String,
}

impl NatsClient {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let reply_subject = format!("{REPLY_SUBJECT}.{:x}", fastrand::u64(..));
        let connection = Connection::open(server, &reply_subject).await?;
        Ok(Self { connection, reply_subject })
    }

    async fn request(&mut self, subject: &str, payload: &[u8]) -> io::Result<()> {
        let mut bytes = format!("PUB {subject} {} {}\r\n", self.reply_subject, payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.connection.stream.write_all(&bytes).await?;
        self.connection.message().await?;
        let reply = String::from_utf8_lossy(&self.connection.payload);
        if reply.contains("\"error\"") || !reply.starts_with('{') {
            return Err(io::Error::other(format!("nats: {reply}")));
        }
        Ok(())
    }

    async fn put(&mut self, inventory: usize, value: &[u8]) -> io::Result<()> {
        self.request(&format!("$KV.inventories.{inventory}"), value).await
    }
}

impl Client for NatsClient {
    async fn update(&mut self, inventory: usize, slot: u32, count: u32) -> io::Result<()> {
        self.put(inventory, &value::with_count(slot, count)).await
    }
}

/// Watches all keys. The bucket keeps the last value of a key: a change that is overwritten before it was sent is not sent.
pub struct NatsSubscriber {
    connection: Connection,
    /// The number of the last received message in the stream.
    sequence: u64,
}

impl NatsSubscriber {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let connection = Connection::open(server, "watch").await?;
        NatsClient::connect(server).await?.request("$JS.API.CONSUMER.CREATE.KV_inventories", WATCH.as_bytes()).await?;
        // Each inventory was put once.
        Ok(Self { connection, sequence: INVENTORIES as u64 })
    }
}

impl Subscriber for NatsSubscriber {
    /// The changes up to the received one: later values contain the ones that were not sent.
    async fn changes(&mut self) -> io::Result<(u64, u64)> {
        let bytes = self.connection.message().await?;
        let line = &self.connection.line;
        // $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence in the stream>. ...
        let reply = line.split_whitespace().find(|word| word.starts_with("$JS.ACK."));
        let sequence = reply.and_then(|reply| reply.split('.').nth(5)?.parse::<u64>().ok());
        let sequence = sequence.ok_or_else(|| io::Error::other(format!("nats: {line}")))?;
        let changes = sequence.saturating_sub(self.sequence);
        self.sequence = sequence;
        Ok((changes, bytes as u64))
    }
}
