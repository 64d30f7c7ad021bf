//! The frames of HTTP/2 (RFC 9113).

use super::ConnectionError;

pub const HEADER_BYTES: usize = 9;
/// The largest payload that an endpoint must accept without a setting, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 16_384;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The payload of DATA or HEADERS without padding and priority.
    pub fn content(&self) -> Result<&'a [u8], ConnectionError> {
        let mut content = self.payload;
        if self.flags & PADDED != 0 {
            let (length, rest) = content.split_first().ok_or(ConnectionError::Protocol("a padded frame is empty"))?;
            let end = rest.len().checked_sub(usize::from(*length));
            content = &rest[..end.ok_or(ConnectionError::Protocol("the padding is longer than the frame"))?];
        }
        if self.kind == HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..).ok_or(ConnectionError::Protocol("a HEADERS frame is too short"))?;
        }
        Ok(content)
    }

    /// The payload as one 32-bit number without the reserved bit.
    pub fn number(&self) -> Result<u32, ConnectionError> {
        let bytes = self.payload.first_chunk().ok_or(ConnectionError::Protocol("a frame is too short"))?;
        Ok(u32::from_be_bytes(*bytes) & 0x7fff_ffff)
    }
}

/// Appends a frame.
pub fn write(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    write_header(kind, flags, stream, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends the header of a frame, which the payload must follow.
pub fn write_header(kind: u8, flags: u8, stream: u32, payload_bytes: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(payload_bytes as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Received bytes that are not parsed yet, in one buffer.
#[derive(Debug)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl ReceiveBuffer {
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes.max(2 * (HEADER_BYTES + PAYLOAD_BYTES_MAX))], begin: 0, end: 0 }
    }

    /// Room for more bytes; never empty after all complete frames were taken.
    pub fn room(&mut self) -> &mut [u8] {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Adds the bytes that were written into [`room`](Self::room).
    pub fn add(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Takes the next complete frame.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, ConnectionError> {
        let unparsed = &self.bytes[self.begin..self.end];
        let Some((header, rest)) = unparsed.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(ConnectionError::Protocol("a frame is larger than 16,384 bytes"));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        self.begin += HEADER_BYTES + length;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & 0x7fff_ffff;
        Ok(Some(Frame { kind: header[3], flags: header[4], stream, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_arrive_in_pieces_of_any_size_are_the_same() {
        let mut sent = Vec::new();
        write(HEADERS, END_HEADERS, 1, b"head", &mut sent);
        write(DATA, 0, 1, &[7; 300], &mut sent);
        write(PING, 0, 0, &[1; 8], &mut sent);
        write(DATA, END_STREAM, 3, b"", &mut sent);
        for size in 1..sent.len() + 1 {
            let mut buffer = ReceiveBuffer::new(0);
            let mut received = Vec::new();
            for piece in sent.chunks(size) {
                buffer.room()[..piece.len()].copy_from_slice(piece);
                buffer.add(piece.len());
                while let Some(frame) = buffer.next().expect("valid frames") {
                    received.push((frame.kind, frame.flags, frame.stream, frame.payload.len()));
                }
            }
            let expected = [(HEADERS, END_HEADERS, 1, 4), (DATA, 0, 1, 300), (PING, 0, 0, 8), (DATA, END_STREAM, 3, 0)];
            assert_eq!(received, expected, "pieces of {size} bytes");
        }
    }

    #[test]
    fn padding_and_priority_are_not_content() {
        let padded = Frame { kind: HEADERS, flags: PADDED | PRIORITY, stream: 1, payload: b"\x02\0\0\0\0\0abcPP" };
        assert_eq!(padded.content().expect("valid"), b"abc");
        assert!(Frame { payload: b"\x09ab", ..padded }.content().is_err());
        assert!(Frame { payload: b"", ..padded }.content().is_err());
    }

    #[test]
    fn an_oversized_frame_is_an_error() {
        let mut buffer = ReceiveBuffer::new(0);
        buffer.room()[..HEADER_BYTES].copy_from_slice(&[0x01, 0, 0, 0, 0, 0, 0, 0, 1]);
        buffer.add(HEADER_BYTES);
        assert!(buffer.next().is_err());
    }
}
