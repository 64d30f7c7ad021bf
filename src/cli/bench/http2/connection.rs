//! One connection with its calls in flight.

use super::ConnectionError;
use super::calls::{Calls, Event, MESSAGE_PREFIX_BYTES};
use super::frames::{self, PAYLOAD_BYTES_MAX, ReceiveBuffer};
use super::hpack::Encoder;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest flow-control window, in bytes.
const WINDOW_BYTES_MAX: u32 = 0x7fff_ffff;
/// The window of a connection before any update, in bytes.
const WINDOW_BYTES_INITIAL: u32 = 65_535;
/// The window of the connection is filled up after this many received bytes.
const WINDOW_UPDATE_BYTES: u32 = 1 << 30;
const SETTING_HEADER_TABLE_SIZE: u16 = 1;
const SETTING_ENABLE_PUSH: u16 = 2;
const SETTING_CONCURRENT_STREAMS_MAX: u16 = 3;
const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What all requests of a connection have in common.
#[derive(Debug, Clone, Default)]
pub struct RequestHeaders {
    pub authority: String,
    /// Names and values of further headers.
    pub metadata: Vec<(String, String)>,
}

/// A connection. `T` is what the caller stores with each call.
#[derive(Debug)]
pub struct Connection<T> {
    socket: TcpStream,
    received: ReceiveBuffer,
    outgoing: Vec<u8>,
    headers: RequestHeaders,
    encoder: Encoder,
    /// The header block of each path so far, and the number of entries in the table when it was encoded.
    blocks: Vec<(&'static str, usize, Vec<u8>)>,
    next_stream: u32,
    concurrent_max: u32,
    /// How many bytes of DATA the server accepts now.
    send_window: i64,
    /// DATA frames that wait for the server's window.
    blocked: VecDeque<Vec<u8>>,
    received_since_update: u32,
    calls: Calls<T>,
}

impl<T> Connection<T> {
    /// Connects and waits for the server's settings. Afterwards no function blocks.
    pub fn open(address: SocketAddr, headers: RequestHeaders, buffer_bytes: usize) -> Result<Self, ConnectionError> {
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let mut connection = Self {
            socket,
            received: ReceiveBuffer::new(buffer_bytes),
            outgoing: PREFACE.to_vec(),
            headers,
            encoder: Encoder::default(),
            blocks: Vec::new(),
            next_stream: 1,
            concurrent_max: u32::MAX,
            send_window: i64::from(WINDOW_BYTES_INITIAL),
            blocked: VecDeque::new(),
            received_since_update: 0,
            calls: Calls::default(),
        };
        let mut settings = Vec::new();
        for (setting, value) in
            [(SETTING_HEADER_TABLE_SIZE, 0), (SETTING_ENABLE_PUSH, 0), (SETTING_INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)]
        {
            settings.extend_from_slice(&u16::to_be_bytes(setting));
            settings.extend_from_slice(&u32::to_be_bytes(value));
        }
        frames::write(frames::SETTINGS, 0, 0, &settings, &mut connection.outgoing);
        connection.update_window(WINDOW_BYTES_MAX - WINDOW_BYTES_INITIAL);
        connection.flush()?;
        connection.wait_for_settings()?;
        connection.socket.set_nonblocking(true)?;
        connection.flush()?;
        Ok(connection)
    }

    fn wait_for_settings(&mut self) -> Result<(), ConnectionError> {
        loop {
            let read = match self.socket.read(self.received.room()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ConnectionError::Protocol("the server sent no settings (is it a gRPC server?)"));
                }
                read => read?,
            };
            if read == 0 {
                return Err(ConnectionError::Closed);
            }
            self.received.add(read);
            let is_first_of_settings = self.parse(&mut |_| {})?;
            if is_first_of_settings {
                return Ok(());
            }
        }
    }

    /// Number of calls that have not ended.
    pub fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Starts a call with one request message. The request is sent by [`flush`](Self::flush).
    pub fn start(&mut self, path: &'static str, message: &[u8], call: T) -> Result<(), ConnectionError> {
        if self.calls.len() >= self.concurrent_max as usize {
            return Err(ConnectionError::TooManyCalls(self.concurrent_max));
        }
        let payload_bytes = MESSAGE_PREFIX_BYTES + message.len();
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(ConnectionError::Protocol("a request is larger than 16,379 bytes"));
        }
        let stream = self.next_stream;
        if stream > WINDOW_BYTES_MAX - 2 {
            return Err(ConnectionError::Protocol("the connection has used all of its stream ids"));
        }
        self.next_stream += 2;
        let block = self.block(path)?;
        let block = &self.blocks[block].2;
        frames::write(frames::HEADERS, frames::END_HEADERS, stream, block, &mut self.outgoing);
        let has_window = self.blocked.is_empty() && self.send_window >= payload_bytes as i64;
        let mut waiting = Vec::new();
        let data = if has_window { &mut self.outgoing } else { &mut waiting };
        frames::write_header(frames::DATA, frames::END_STREAM, stream, payload_bytes, data);
        data.push(0);
        data.extend_from_slice(&(message.len() as u32).to_be_bytes());
        data.extend_from_slice(message);
        if has_window {
            self.send_window -= payload_bytes as i64;
        } else {
            self.blocked.push_back(waiting);
        }
        self.calls.insert(stream, call);
        Ok(())
    }

    /// Returns the position of the path's header block, which it encodes if necessary.
    fn block(&mut self, path: &'static str) -> Result<usize, ConnectionError> {
        let found = self.blocks.iter().position(|(known, ..)| *known == path);
        if let Some(position) = found
            && self.blocks[position].1 == self.encoder.entries()
        {
            return Ok(position);
        }
        let mut headers = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", &*self.headers.authority),
            (":path", path),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        headers.extend(self.headers.metadata.iter().map(|(name, value)| (&**name, &**value)));
        let entries = self.encoder.entries();
        let mut block = Vec::new();
        if !self.encoder.encode(&headers, &mut block) {
            return Err(ConnectionError::Protocol("the headers of the requests are larger than 4,096 bytes"));
        }
        // A block that adds entries is sent once; the next request gets a block that only refers to them.
        let valid_for = if self.encoder.entries() == entries { entries } else { usize::MAX };
        let position = found.unwrap_or(self.blocks.len());
        if position == self.blocks.len() {
            self.blocks.push((path, valid_for, block));
        } else {
            self.blocks[position] = (path, valid_for, block);
        }
        Ok(position)
    }

    /// Whether bytes wait for the socket to accept them.
    pub fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what the socket accepts now.
    pub fn flush(&mut self) -> Result<(), ConnectionError> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match self.socket.write(&self.outgoing[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.drain(..sent);
        Ok(())
    }

    /// Receives what has arrived, and reports it.
    pub fn receive(&mut self, on_event: &mut impl FnMut(Event<'_, T>)) -> Result<(), ConnectionError> {
        loop {
            let room = self.received.room();
            let room_bytes = room.len();
            let read = match self.socket.read(room) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.received.add(read);
            self.parse(on_event)?;
            if read < room_bytes {
                return Ok(());
            }
        }
    }

    /// Handles all complete frames. Returns whether settings of the server were among them.
    fn parse(&mut self, on_event: &mut impl FnMut(Event<'_, T>)) -> Result<bool, ConnectionError> {
        let mut has_settings = false;
        while let Some(frame) = self.received.next()? {
            match frame.kind {
                frames::DATA => {
                    self.received_since_update += frame.payload.len() as u32;
                    self.calls.data(frame, on_event)?;
                }
                frames::HEADERS | frames::CONTINUATION => self.calls.header_block(frame, on_event)?,
                frames::RST_STREAM => self.calls.reset(frame, on_event)?,
                frames::SETTINGS if frame.flags & frames::ACK == 0 => {
                    has_settings = true;
                    for setting in frame.payload.chunks_exact(6) {
                        let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                        if u16::from_be_bytes([setting[0], setting[1]]) == SETTING_CONCURRENT_STREAMS_MAX {
                            self.concurrent_max = value;
                        }
                    }
                    frames::write(frames::SETTINGS, frames::ACK, 0, &[], &mut self.outgoing);
                }
                frames::PING if frame.flags & frames::ACK == 0 => {
                    frames::write(frames::PING, frames::ACK, 0, frame.payload, &mut self.outgoing);
                }
                frames::WINDOW_UPDATE if frame.stream == 0 => self.send_window += i64::from(frame.number()?),
                frames::GOAWAY => {
                    let code = frame.payload.get(4..).and_then(<[u8]>::first_chunk);
                    return Err(ConnectionError::GoAway(code.map_or(0, |code| u32::from_be_bytes(*code))));
                }
                _ => {}
            }
        }
        if self.received_since_update >= WINDOW_UPDATE_BYTES {
            self.update_window(self.received_since_update);
            self.received_since_update = 0;
        }
        self.send_blocked();
        Ok(has_settings)
    }

    fn update_window(&mut self, bytes: u32) {
        frames::write(frames::WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes(), &mut self.outgoing);
    }

    /// Sends the DATA frames that the server's window has room for now.
    fn send_blocked(&mut self) {
        while let Some(data) = self.blocked.front() {
            let payload_bytes = (data.len() - frames::HEADER_BYTES) as i64;
            if payload_bytes > self.send_window {
                return;
            }
            self.send_window -= payload_bytes;
            self.outgoing.extend_from_slice(data);
            self.blocked.pop_front();
        }
    }
}

impl<T> AsFd for Connection<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
