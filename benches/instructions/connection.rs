//! An HTTP/2 connection that makes one call at a time. It does as little as possible, because its instructions are
//! counted together with the server's.

use prost::Message;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// END_STREAM of DATA and HEADERS; ACK of SETTINGS and PING.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// The request's headers, which follow `:method: POST` and `:scheme: http`. The value of `:path` is inserted.
const HEADER_FIELDS: [(&str, &str); 5] = [
    (":path", ""),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("grpc-timeout", "10S"),
];

pub struct Connection {
    socket: TcpStream,
    received: Vec<u8>,
    stream: u32,
    /// The header block of the calls: literal in the first one, which adds it to the server's table, then indexed.
    header_block: Vec<u8>,
}

/// The frames of a reply.
#[derive(Default)]
struct Reply {
    message: Option<Vec<u8>>,
    ended: bool,
}

impl Connection {
    /// Connects for calls of one method.
    pub fn open(address: SocketAddr, path: &str) -> Self {
        let mut socket = TcpStream::connect(address).expect("the server listens");
        socket.set_nodelay(true).expect("an option of TCP");
        let mut start = PREFACE.to_vec();
        // SETTINGS_INITIAL_WINDOW_SIZE and a window of the connection that no run of the cases uses up.
        frame(&mut start, SETTINGS, 0, 0, &[0, 4, 0x7F, 0xFF, 0xFF, 0xFF]);
        frame(&mut start, WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes());
        socket.write_all(&start).expect("the server reads");
        Self { socket, received: Vec::with_capacity(1 << 16), stream: 1, header_block: literal_headers(path) }
    }

    /// Makes a call and returns its reply's message, without the prefix.
    pub fn call(&mut self, request: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        frame(&mut bytes, HEADERS, END_HEADERS, self.stream, &self.header_block);
        frame(&mut bytes, DATA, END_STREAM, self.stream, request);
        self.socket.write_all(&bytes).expect("the server reads");
        let mut reply = Reply::default();
        while !reply.ended {
            self.read();
            self.handle_frames(&mut reply);
        }
        self.stream += 2;
        self.header_block = indexed_headers();
        reply.message.expect("a reply with a message")
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        let length = self.socket.read(&mut buffer).expect("the server writes");
        assert!(length > 0, "the server closed the connection");
        self.received.extend_from_slice(&buffer[..length]);
    }

    /// Handles all frames that have arrived completely.
    fn handle_frames(&mut self, reply: &mut Reply) {
        let mut from = 0;
        while let Some(header) = self.received.get(from..from + FRAME_HEADER_BYTES) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let (kind, flags) = (header[3], header[4]);
            let payload_from = from + FRAME_HEADER_BYTES;
            let Some(payload) = self.received.get(payload_from..payload_from + length) else { break };
            let mut answer = Vec::new();
            match kind {
                DATA => reply.message = Some(payload[5..].to_vec()),
                HEADERS => reply.ended = flags & END_STREAM != 0,
                SETTINGS if flags & ACK == 0 => frame(&mut answer, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut answer, PING, ACK, 0, payload),
                _ => {}
            }
            if !answer.is_empty() {
                self.socket.write_all(&answer).expect("the server reads");
            }
            from = payload_from + length;
        }
        self.received.drain(..from);
    }
}

/// Returns a message with gRPC's prefix.
pub fn with_prefix(message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// HPACK: `:method: POST` and `:scheme: http` from the static table, then literal fields that are added to the table.
fn literal_headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in HEADER_FIELDS {
        let value = if value.is_empty() { path } else { value };
        block.push(0x40);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The same fields from the dynamic table, which begins at 62 with the newest.
fn indexed_headers() -> Vec<u8> {
    let fields = (0..HEADER_FIELDS.len() as u8).rev().map(|age| 0x80 | (62 + age));
    [0x83, 0x86].into_iter().chain(fields).collect()
}
