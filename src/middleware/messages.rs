//! Counts gRPC messages in the bytes of a body.

use crate::wire::codec::MESSAGE_PREFIX_BYTES as PREFIX_BYTES;

/// Finds the ends of messages in the bytes of a body, regardless of the boundaries of body frames.
#[derive(Debug, Default)]
pub struct MessageCounter {
    prefix: [u8; PREFIX_BYTES],
    /// Number of bytes of the prefix that have arrived.
    filled: u8,
    /// Number of bytes of the message that have not arrived yet, once its prefix is complete.
    remaining: u32,
}

impl MessageCounter {
    /// Returns how many messages these bytes complete.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> u64 {
        let mut completed = 0;
        while !bytes.is_empty() {
            let filled = usize::from(self.filled);
            if filled < PREFIX_BYTES {
                let taken = bytes.len().min(PREFIX_BYTES - filled);
                self.prefix[filled..filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken as u8;
                bytes = &bytes[taken..];
                if filled + taken < PREFIX_BYTES {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.remaining = u32::from_be_bytes(length);
            }
            let taken = bytes.len().min(self.remaining as usize);
            self.remaining -= taken as u32;
            bytes = &bytes[taken..];
            if self.remaining == 0 {
                completed += 1;
                self.filled = 0;
            }
        }
        completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(lengths: &[usize]) -> Vec<u8> {
        let message = |length: &usize| {
            let mut bytes = vec![0];
            bytes.extend((*length as u32).to_be_bytes());
            bytes.resize(PREFIX_BYTES + length, 7);
            bytes
        };
        lengths.iter().flat_map(message).collect()
    }

    #[test]
    fn messages_are_counted_regardless_of_frame_boundaries() {
        let bytes = framed(&[0, 1, 300, 0, 0, 70_000, 5]);
        for piece in [1, 2, 3, 4, 5, 6, 7, 100, 16_384, bytes.len()] {
            let mut messages = MessageCounter::default();
            let counted: u64 = bytes.chunks(piece).map(|piece| messages.handle_bytes(piece)).sum();
            assert_eq!(counted, 7, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_counts_when_it_is_complete() {
        let bytes = framed(&[10]);
        let mut messages = MessageCounter::default();
        assert_eq!(messages.handle_bytes(&bytes[..bytes.len() - 1]), 0);
        assert_eq!(messages.handle_bytes(&bytes[bytes.len() - 1..]), 1);
    }
}
