//! Redis: a hash for each inventory with a field for each slot. An update is HSET and PUBLISH; a transfer is a script.

use crate::load::{Client, INVENTORIES, SLOTS, STARTING_COUNT, Subscriber};
use crate::server::Server;
use std::fmt::Write;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Moves one item between two hashes if there is one.
const TRANSFER: &str = "if tonumber(redis.call('HGET', KEYS[1], ARGV[1])) < 1 then return redis.error_reply('not enough') end \
    redis.call('HINCRBY', KEYS[1], ARGV[1], -1) redis.call('HINCRBY', KEYS[2], ARGV[1], 1) return 1";

/// Starts Redis with the append-only file, as its documentation recommends for durable data.
pub async fn start(fsync: &str) -> io::Result<Server> {
    let server = Server::start("redis-server", |port, folder| {
        let port = port.to_string();
        let folder = folder.to_string_lossy().into_owned();
        ["--port", &port, "--bind", "127.0.0.1", "--dir", &folder, "--save", "", "--appendonly", "yes", "--appendfsync"]
            .into_iter()
            .chain([fsync])
            .map(str::to_owned)
            .collect()
    })
    .await?;
    fill(&server).await?;
    Ok(server)
}

async fn fill(server: &Server) -> io::Result<()> {
    let mut client = RedisClient::connect(server).await?;
    let (count, slots) = (STARTING_COUNT.to_string(), (0..SLOTS).map(|slot| slot.to_string()).collect::<Vec<_>>());
    let names: Vec<String> = (0..INVENTORIES).map(key).collect();
    // Many in one write, because each write is synced.
    for names in names.chunks(500) {
        let command =
            |name| ["HSET", name].into_iter().chain(slots.iter().flat_map(|slot| [slot.as_str(), &count])).collect();
        let commands: Vec<Vec<&str>> = names.iter().map(|name| command(name.as_str())).collect();
        let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
        client.send(&commands).await?;
    }
    Ok(())
}

fn key(inventory: usize) -> String {
    format!("inventory:{inventory}")
}

pub struct RedisClient {
    stream: BufReader<TcpStream>,
    script: String,
}

impl RedisClient {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let mut client = Self { stream: BufReader::new(server.connect().await?), script: String::new() };
        client.script = client.send(&[&["SCRIPT", "LOAD", TRANSFER]]).await?;
        Ok(client)
    }

    /// Sends commands in one write, and returns the last reply.
    async fn send(&mut self, commands: &[&[&str]]) -> io::Result<String> {
        let mut text = String::new();
        for command in commands {
            append(&mut text, command);
        }
        self.stream.write_all(text.as_bytes()).await?;
        let mut reply = String::new();
        for _ in commands {
            reply = self.reply().await?;
        }
        Ok(reply)
    }

    async fn reply(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", value)) => Ok(value.to_owned()),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(io::Error::other)?;
                let mut value = vec![0; length + 2];
                self.stream.read_exact(&mut value).await?;
                value.truncate(length);
                String::from_utf8(value).map_err(io::Error::other)
            }
            _ => Err(io::Error::other(format!("redis: {line}"))),
        }
    }
}

fn append(text: &mut String, command: &[&str]) {
    // Writing to a string cannot fail.
    let _ = write!(text, "*{}\r\n", command.len());
    for argument in command {
        let _ = write!(text, "${}\r\n{argument}\r\n", argument.len());
    }
}

impl Client for RedisClient {
    async fn update(&mut self, inventory: usize, slot: u32, count: u32) -> io::Result<()> {
        let (name, slot, count) = (key(inventory), slot.to_string(), count.to_string());
        let change = format!("{slot} {count}");
        self.send(&[&["HSET", &name, &slot, &count], &["PUBLISH", &name, &change]]).await?;
        Ok(())
    }

    async fn transfer(&mut self, from: usize, to: usize, slot: u32) -> io::Result<()> {
        let script = self.script.clone();
        self.send(&[&["EVALSHA", &script, "2", &key(from), &key(to), &slot.to_string()]]).await?;
        Ok(())
    }
}

/// Receives the messages of all inventories.
pub struct RedisSubscriber {
    stream: TcpStream,
    buffer: Vec<u8>,
    asterisks: u64,
}

impl RedisSubscriber {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let mut stream = server.connect().await?;
        let mut text = String::new();
        append(&mut text, &["PSUBSCRIBE", "inventory:*"]);
        stream.write_all(text.as_bytes()).await?;
        // The confirmation ends with the number of subscriptions.
        let mut confirmation = Vec::new();
        while !confirmation.ends_with(b":1\r\n") {
            confirmation.push(stream.read_u8().await?);
        }
        Ok(Self { stream, buffer: vec![0; 1 << 16], asterisks: 0 })
    }
}

impl Subscriber for RedisSubscriber {
    async fn changes(&mut self) -> io::Result<(u64, u64)> {
        let length = self.stream.read(&mut self.buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A message has two asterisks: that of its array, and that of the pattern. A read may end between them.
        let before = self.asterisks / 2;
        self.asterisks += self.buffer[..length].iter().filter(|byte| **byte == b'*').count() as u64;
        Ok((self.asterisks / 2 - before, length as u64))
    }
}
