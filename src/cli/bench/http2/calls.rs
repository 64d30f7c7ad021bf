//! The calls in flight of a connection: their messages, and how they end.

use super::ConnectionError;
use super::frames::{self, Frame};
use super::hpack::{self, CallStatus};
use super::huffman::Decoder;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub use crate::wire::codec::MESSAGE_PREFIX_BYTES;

/// What happened to a call of type `T`.
#[derive(Debug)]
pub enum Event<'a, T> {
    Message { call: &'a mut T, message: &'a [u8] },
    Ended { call: T, messages: u32, status: CallStatus },
}

#[derive(Debug)]
struct OpenCall<T> {
    call: T,
    messages: u32,
    /// The beginning of a message that has not arrived completely.
    partial: Vec<u8>,
}

/// The calls in flight, by stream id.
#[derive(Debug)]
pub struct Calls<T> {
    open: HashMap<u32, OpenCall<T>, BuildHasherDefault<StreamIdHasher>>,
    decoder: Decoder,
    /// A header block that continues in the next frame: its flags, and its beginning.
    unfinished: Option<(u8, Vec<u8>)>,
    /// The last trailers with status 0. Nearly all trailers are equal to them, and need no decoding.
    ok_trailers: Vec<u8>,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        let (open, decoder) = (HashMap::default(), Decoder::default());
        Self { open, decoder, unfinished: None, ok_trailers: Vec::new() }
    }
}

impl<T> Calls<T> {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn insert(&mut self, stream: u32, call: T) {
        self.open.insert(stream, OpenCall { call, messages: 0, partial: Vec::new() });
    }

    /// Handles a DATA frame.
    pub fn data(&mut self, frame: Frame<'_>, on_event: &mut impl FnMut(Event<'_, T>)) -> Result<(), ConnectionError> {
        let content = frame.content()?;
        let Some(open) = self.open.get_mut(&frame.stream) else { return Ok(()) };
        if open.partial.is_empty() {
            let rest = messages(content, &mut open.call, &mut open.messages, on_event);
            open.partial.extend_from_slice(rest);
        } else {
            open.partial.extend_from_slice(content);
            let partial = std::mem::take(&mut open.partial);
            open.partial = messages(&partial, &mut open.call, &mut open.messages, on_event).to_vec();
        }
        if frame.flags & frames::END_STREAM != 0 {
            let status = CallStatus { code: CODE_UNKNOWN, message: "the reply has no trailers".into() };
            self.end(frame.stream, status, on_event);
        }
        Ok(())
    }

    /// Handles a HEADERS or CONTINUATION frame.
    pub fn header_block(
        &mut self,
        frame: Frame<'_>,
        on_event: &mut impl FnMut(Event<'_, T>),
    ) -> Result<(), ConnectionError> {
        let content = frame.content()?;
        if frame.kind == frames::HEADERS && frame.flags & frames::END_HEADERS != 0 {
            return self.complete_block(frame.stream, frame.flags, content, on_event);
        }
        let (flags, mut block) = match self.unfinished.take() {
            Some(unfinished) => unfinished,
            None => (frame.flags, Vec::new()),
        };
        block.extend_from_slice(content);
        if frame.flags & frames::END_HEADERS == 0 {
            self.unfinished = Some((flags, block));
            return Ok(());
        }
        self.complete_block(frame.stream, flags, &block, on_event)
    }

    fn complete_block(
        &mut self,
        stream: u32,
        flags: u8,
        block: &[u8],
        on_event: &mut impl FnMut(Event<'_, T>),
    ) -> Result<(), ConnectionError> {
        if flags & frames::END_STREAM == 0 {
            return Ok(());
        }
        if block == self.ok_trailers {
            self.end(stream, CallStatus { code: 0, message: String::new() }, on_event);
            return Ok(());
        }
        let status = hpack::read_status(block, &self.decoder).map_err(ConnectionError::Protocol)?;
        if status.as_ref().is_some_and(|status| status.code == 0) {
            self.ok_trailers = block.to_vec();
        }
        let without = || CallStatus { code: CODE_UNKNOWN, message: "the trailers have no grpc-status".into() };
        self.end(stream, status.unwrap_or_else(without), on_event);
        Ok(())
    }

    /// Handles a RST_STREAM frame.
    pub fn reset(&mut self, frame: Frame<'_>, on_event: &mut impl FnMut(Event<'_, T>)) -> Result<(), ConnectionError> {
        let message = format!("the server reset the call (RST_STREAM, error code {})", frame.number()?);
        self.end(frame.stream, CallStatus { code: CODE_UNKNOWN, message }, on_event);
        Ok(())
    }

    fn end(&mut self, stream: u32, status: CallStatus, on_event: &mut impl FnMut(Event<'_, T>)) {
        if let Some(OpenCall { call, messages, .. }) = self.open.remove(&stream) {
            on_event(Event::Ended { call, messages, status });
        }
    }
}

/// The status UNKNOWN of gRPC.
const CODE_UNKNOWN: u32 = 2;

/// Reports the complete messages, and returns the rest.
fn messages<'a, T>(
    mut content: &'a [u8],
    call: &mut T,
    count: &mut u32,
    on_event: &mut impl FnMut(Event<'_, T>),
) -> &'a [u8] {
    while let Some((prefix, rest)) = content.split_at_checked(MESSAGE_PREFIX_BYTES) {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let Some((message, rest)) = rest.split_at_checked(length) else { break };
        *count += 1;
        on_event(Event::Message { call: &mut *call, message });
        content = rest;
    }
    content
}

/// Stream ids are consecutive odd numbers, so one multiplication spreads them.
#[derive(Debug, Default)]
struct StreamIdHasher(u64);

impl Hasher for StreamIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(calls: &mut Calls<u8>, frame: Frame<'_>) -> Vec<String> {
        let mut events = Vec::new();
        let on_event = &mut |event: Event<'_, u8>| events.push(format!("{event:?}"));
        match frame.kind {
            frames::DATA => calls.data(frame, on_event),
            frames::RST_STREAM => calls.reset(frame, on_event),
            _ => calls.header_block(frame, on_event),
        }
        .expect("valid frames");
        events
    }

    fn open() -> Calls<u8> {
        let mut calls = Calls::default();
        calls.insert(1, 7);
        calls
    }

    const OK: &[u8] = b"\x00\x0bgrpc-status\x010";

    #[test]
    fn a_message_may_come_in_several_frames_and_several_messages_in_one() {
        let mut calls = open();
        let data = |payload| Frame { kind: frames::DATA, flags: 0, stream: 1, payload };
        assert!(take(&mut calls, data(b"\0\0\0")).is_empty());
        assert!(take(&mut calls, data(b"\0\x02a")).is_empty());
        let events = take(&mut calls, data(b"b\0\0\0\0\x01c\0"));
        assert_eq!(events, ["Message { call: 7, message: [97, 98] }", "Message { call: 7, message: [99] }"]);
        let trailers =
            Frame { kind: frames::HEADERS, flags: frames::END_STREAM | frames::END_HEADERS, stream: 1, payload: OK };
        let events = take(&mut calls, trailers);
        assert_eq!(events, [r#"Ended { call: 7, messages: 2, status: CallStatus { code: 0, message: "" } }"#]);
        assert_eq!(calls.ok_trailers, OK);
        assert!(calls.open.is_empty());
    }

    #[test]
    fn trailers_may_continue_in_another_frame() {
        let mut calls = open();
        let (first, rest) = OK.split_at(5);
        let headers = Frame { kind: frames::HEADERS, flags: frames::END_STREAM, stream: 1, payload: first };
        assert!(take(&mut calls, headers).is_empty());
        let rest = Frame { kind: frames::CONTINUATION, flags: frames::END_HEADERS, stream: 1, payload: rest };
        assert!(take(&mut calls, rest)[0].contains("code: 0"));
    }

    #[test]
    fn a_call_without_trailers_and_a_reset_call_have_failed() {
        let data = Frame { kind: frames::DATA, flags: frames::END_STREAM, stream: 1, payload: b"" };
        assert!(take(&mut open(), data)[0].contains("no trailers"));
        let reset = Frame { kind: frames::RST_STREAM, flags: 0, stream: 1, payload: &[0, 0, 0, 8] };
        assert!(take(&mut open(), reset)[0].contains("error code 8"));
    }
}
