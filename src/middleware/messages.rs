//! Counts gRPC messages in the bytes of a body.

/// Size of the prefix of each message, in bytes: a flag of one byte and the length in four bytes.
const PREFIX_BYTES: usize = 5;

/// Finds the ends of messages in the bytes of a body, regardless of the boundaries of body frames.
#[derive(Debug, Default)]
pub struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// Number of bytes of the prefix that have arrived.
    filled: usize,
    /// Number of missing bytes of the message, once its prefix is complete.
    missing: usize,
}

impl Messages {
    /// Returns how many messages these bytes complete.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> u64 {
        let mut whole = 0;
        while !bytes.is_empty() {
            if self.filled < PREFIX_BYTES {
                let taken = bytes.len().min(PREFIX_BYTES - self.filled);
                self.prefix[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken;
                bytes = &bytes[taken..];
                if self.filled < PREFIX_BYTES {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.missing = u32::from_be_bytes(length) as usize;
            }
            let taken = bytes.len().min(self.missing);
            self.missing -= taken;
            bytes = &bytes[taken..];
            if self.missing == 0 {
                whole += 1;
                self.filled = 0;
            }
        }
        whole
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
    fn messages_are_counted_however_they_are_cut() {
        let bytes = framed(&[0, 1, 300, 0, 0, 70_000, 5]);
        for piece in [1, 2, 3, 4, 5, 6, 7, 100, 16_384, bytes.len()] {
            let mut messages = Messages::default();
            let counted: u64 = bytes.chunks(piece).map(|piece| messages.handle_bytes(piece)).sum();
            assert_eq!(counted, 7, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_counts_when_it_is_whole() {
        let bytes = framed(&[10]);
        let mut messages = Messages::default();
        assert_eq!(messages.handle_bytes(&bytes[..bytes.len() - 1]), 0);
        assert_eq!(messages.handle_bytes(&bytes[bytes.len() - 1..]), 1);
    }
}
