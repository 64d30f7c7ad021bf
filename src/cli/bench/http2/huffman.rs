//! The Huffman code of HPACK (RFC 7541, appendix B), for reading the header blocks of replies.

/// Length of each byte's code, in bits. The code is canonical: codes of equal length are consecutive in order of the
/// bytes, so the lengths define it.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6,
    12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15,
    5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20,
    22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22,
    23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26,
    27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Decodes strings.
#[derive(Debug)]
pub struct Decoder {
    /// The first bits of each code, left-aligned, in ascending order, with the code's length and its byte.
    codes: Vec<(u32, u8, u8)>,
}

impl Default for Decoder {
    fn default() -> Self {
        let mut order: Vec<u8> = (0..=255).collect();
        order.sort_by_key(|byte| LENGTHS[usize::from(*byte)]);
        let mut code: u64 = 0;
        let assign = |byte: u8| {
            let length = LENGTHS[usize::from(byte)];
            let assigned = (code as u32, length, byte);
            code += 1 << (32 - length);
            assigned
        };
        Self { codes: order.into_iter().map(assign).collect() }
    }
}

impl Decoder {
    /// Decodes a string, or returns `None` if it is not a valid encoding.
    pub fn decode(&self, encoded: &[u8]) -> Option<Vec<u8>> {
        let mut decoded = Vec::with_capacity(encoded.len() * 2);
        let (mut window, mut window_bits): (u64, u32) = (0, 0);
        let mut rest = encoded.iter();
        loop {
            while window_bits <= 32
                && let Some(byte) = rest.next()
            {
                window |= u64::from(*byte) << (56 - window_bits);
                window_bits += 8;
            }
            let next = (window >> 32) as u32;
            // What is left is padding: less than a byte, of ones only.
            if window_bits < 8 && u64::from(next) >> (32 - window_bits) == (1 << window_bits) - 1 {
                return Some(decoded);
            }
            let (code, length, byte) = self.codes[self.codes.partition_point(|(code, ..)| *code <= next) - 1];
            let length = u32::from(length);
            if length > window_bits || (next ^ code) >> (32 - length) != 0 {
                return None;
            }
            decoded.push(byte);
            window <<= length;
            window_bits -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specification_are_decoded() {
        let decoder = Decoder::default();
        let cases: [(&[u8], &str); 4] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ];
        for (encoded, decoded) in cases {
            assert_eq!(decoder.decode(encoded).as_deref(), Some(decoded.as_bytes()), "{decoded}");
        }
    }

    #[test]
    fn a_string_that_ends_within_a_code_is_invalid() {
        let decoder = Decoder::default();
        assert_eq!(decoder.decode(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4]), None);
        assert_eq!(decoder.decode(&[0xff, 0xff]), None, "a byte of padding");
    }
}
