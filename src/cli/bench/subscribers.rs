//! Streams that are open while calls are measured, and the time from a reply to the frame of the same change.

use super::http2::{CallStatus, Connection, ConnectionError, Event, RequestHeaders};
use super::recorder::latencies;
use super::world::World;
use super::yardstick::{EchoMessage, STREAM_PATH};
use crate::wire::v1;
use hdrhistogram::Histogram;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SUBSCRIBE_PATH: &str = "/slotcast.v1.InventoryService/SubscribeInventory";
/// Buffer for received bytes of each connection.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the first messages of the streams of one connection may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Replies of one stream that wait for a frame. A frame covers all earlier changes, so more are never needed.
const WAITING_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Failed(String),
    #[error("{streams} streams got no first message within {} s", OPEN_TIMEOUT.as_secs())]
    NoMessage { streams: usize },
    #[error("interrupted")]
    Interrupted,
}

/// The kind of the open streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamKind {
    /// SubscribeInventory, each stream with one inventory and, if `has_session`, its own session.
    Inventory { has_session: bool },
    /// Bare streams of the yardstick.
    Bare,
}

/// Returns the session of the stream of an inventory.
pub fn session(inventory: u32) -> String {
    format!("session-{inventory:07}")
}

/// The state of one stream.
#[derive(Debug, Default)]
struct Stream {
    /// Revision of the inventory in the last frame; for a bare stream, the number of messages after the first.
    revision: u64,
    is_open: bool,
    /// Revisions of replies that no frame has reached, with the time of each reply.
    waiting: VecDeque<(u64, Duration)>,
}

/// Open streams. The stream with number n watches the inventory with number n.
#[derive(Debug)]
pub struct Subscribers {
    kind: StreamKind,
    connections: Vec<Connection<u32>>,
    streams: Vec<Stream>,
    is_counting: bool,
    frames: u64,
    frame_bytes: u64,
    latencies: Histogram<u64>,
    failure: Option<String>,
}

impl Subscribers {
    /// Opens streams over connections, one connection after the other, and waits for the first message of each.
    pub fn open(
        kind: StreamKind,
        (address, headers): (SocketAddr, &RequestHeaders),
        (connections, streams): (usize, usize),
        world: &World,
        interrupted: &AtomicBool,
    ) -> Result<Self, SubscribeError> {
        let mut opened = Self {
            kind,
            connections: Vec::new(),
            streams: (0..streams).map(|_| Stream::default()).collect(),
            is_counting: false,
            frames: 0,
            frame_bytes: 0,
            latencies: latencies(),
            failure: None,
        };
        for index in 0..connections {
            let mut connection = Connection::open(address, headers.clone(), BUFFER_BYTES)?;
            for stream in (index..streams).step_by(connections) {
                let (path, request) = opened.request(stream as u32, world);
                connection.start(path, &request, stream as u32)?;
            }
            opened.connections.push(connection);
            opened.wait_for_first_messages(index, (index..streams).step_by(connections), interrupted)?;
        }
        Ok(opened)
    }

    fn request(&self, stream: u32, world: &World) -> (&'static str, Vec<u8>) {
        match &self.kind {
            StreamKind::Inventory { has_session } => {
                let watch = v1::Watch { inventory_id: world.id(stream), resume: None };
                let session = if *has_session { session(stream) } else { String::new() };
                let request = v1::SubscribeInventoryRequest { inventories: vec![watch], session, notices: false };
                (SUBSCRIBE_PATH, request.encode_to_vec())
            }
            StreamKind::Bare => {
                let request = EchoMessage { payload: bytes::Bytes::new(), stream: stream + 1 };
                (STREAM_PATH, request.encode_to_vec())
            }
        }
    }

    fn wait_for_first_messages(
        &mut self,
        connection: usize,
        streams: impl Iterator<Item = usize> + Clone,
        interrupted: &AtomicBool,
    ) -> Result<(), SubscribeError> {
        let began = Instant::now();
        loop {
            self.connections[connection].flush()?;
            let missing = streams.clone().filter(|stream| !self.streams[*stream].is_open).count();
            if let Some(failure) = self.failure.take() {
                return Err(SubscribeError::Failed(failure));
            }
            if missing == 0 {
                return Ok(());
            }
            if began.elapsed() > OPEN_TIMEOUT {
                return Err(SubscribeError::NoMessage { streams: missing });
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(SubscribeError::Interrupted);
            }
            let entry = &mut [PollFd::new(&self.connections[connection], PollFlags::IN)];
            // An error here is also an error of the next read.
            let _ = poll(entry, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
            self.receive_from(connection, Duration::ZERO)?;
        }
    }

    pub fn connections(&self) -> &[Connection<u32>] {
        &self.connections
    }

    /// Begins a measurement.
    pub fn begin(&mut self) {
        (self.is_counting, self.frames, self.frame_bytes) = (true, 0, 0);
        self.latencies.reset();
    }

    /// Ends the count of frames. Frames that are awaited still count for the latency.
    pub fn end(&mut self) {
        self.is_counting = false;
    }

    /// Number of frames of the measurement, and their bytes without framing.
    pub fn frames(&self) -> (u64, u64) {
        (self.frames, self.frame_bytes)
    }

    /// Times from a reply to the frame of the same change since [`begin`](Self::begin), in microseconds.
    pub fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }

    /// Number of streams that have not got the last change.
    pub fn late(&self) -> usize {
        self.streams.iter().filter(|stream| !stream.waiting.is_empty()).count()
    }

    /// Forgets the changes that did not arrive, and returns what failed.
    pub fn take_failure(&mut self) -> Option<String> {
        let late = self.late();
        self.streams.iter_mut().for_each(|stream| stream.waiting.clear());
        let is_late = (late > 0).then(|| format!("{late} streams did not get the last change"));
        self.failure.take().or(is_late)
    }

    /// Notes that the reply to a mutation has arrived.
    pub fn replied(&mut self, inventory: u32, revision: u64, now: Duration) {
        let Some(stream) = self.streams.get_mut(inventory as usize) else { return };
        if stream.revision >= revision {
            // The frame was faster than the reply.
            self.latencies.saturating_record(0);
        } else if stream.waiting.len() < WAITING_MAX {
            stream.waiting.push_back((revision, now));
        }
    }

    /// Handles what has arrived while other measurements ran, for example keepalive pings.
    pub fn serve(&mut self) -> Result<(), ConnectionError> {
        let mut all = std::iter::repeat_n(true, self.connections.len());
        self.receive(&mut all, Duration::ZERO)
    }

    /// Receives from the connections that are ready.
    pub fn receive(&mut self, ready: &mut impl Iterator<Item = bool>, now: Duration) -> Result<(), ConnectionError> {
        for connection in 0..self.connections.len() {
            if ready.next().unwrap_or_default() {
                self.receive_from(connection, now)?;
                self.connections[connection].flush()?;
            }
        }
        Ok(())
    }

    fn receive_from(&mut self, connection: usize, now: Duration) -> Result<(), ConnectionError> {
        let Self { kind, connections, streams, is_counting, frames, frame_bytes, latencies, failure } = self;
        connections[connection].receive(&mut |event| match event {
            Event::Message { call, message } => {
                let stream = &mut streams[*call as usize];
                match advance(kind, stream, message) {
                    Ok(true) => {
                        *frames += u64::from(*is_counting);
                        *frame_bytes += if *is_counting { message.len() as u64 } else { 0 };
                        while let Some((revision, replied)) = stream.waiting.front().copied()
                            && revision <= stream.revision
                        {
                            stream.waiting.pop_front();
                            latencies.saturating_record(now.saturating_sub(replied).as_micros() as u64);
                        }
                    }
                    Ok(false) => {}
                    Err(error) => *failure = Some(format!("a frame is not valid: {error}")),
                }
            }
            Event::Ended { call, status, .. } => {
                let CallStatus { code, message } = status;
                *failure = Some(format!("stream {call} ended with status {code}: {message}"));
            }
        })
    }
}

/// Applies a message to what is known of a stream. Returns whether it has a change.
fn advance(kind: &StreamKind, stream: &mut Stream, message: &[u8]) -> Result<bool, prost::DecodeError> {
    let is_first = !std::mem::replace(&mut stream.is_open, true);
    if *kind == StreamKind::Bare {
        stream.revision += u64::from(!is_first);
        return Ok(!is_first);
    }
    let message = v1::SubscribeInventoryResponse::decode(message)?;
    for change in &message.changes {
        stream.revision = match &change.full {
            Some(full) => full.revision,
            None => stream.revision + change.skipped + change.advance,
        };
    }
    Ok(!is_first && !message.changes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(change: v1::InventoryChange) -> Vec<u8> {
        v1::SubscribeInventoryResponse { changes: vec![change], ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn frames_advance_the_revision_and_heartbeats_do_not() {
        let mut stream = Stream::default();
        let kind = StreamKind::Inventory { has_session: false };
        let full = v1::FullState { revision: 5, ..Default::default() };
        let first = frame(v1::InventoryChange { full: Some(full), ..Default::default() });
        assert_eq!((advance(&kind, &mut stream, &first), stream.revision), (Ok(false), 5));
        let delta = frame(v1::InventoryChange { advance: 2, skipped: 1, ..Default::default() });
        assert_eq!((advance(&kind, &mut stream, &delta), stream.revision), (Ok(true), 8));
        let heartbeat = v1::SubscribeInventoryResponse { marks: vec![v1::Mark::default()], ..Default::default() };
        assert_eq!((advance(&kind, &mut stream, &heartbeat.encode_to_vec()), stream.revision), (Ok(false), 8));
        assert!(advance(&kind, &mut stream, b"\xff").is_err());
    }
}
