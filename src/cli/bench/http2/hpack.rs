//! HPACK (RFC 7541), as far as the load generator needs it.
//!
//! Requests put each header into the dynamic table once and refer to it afterwards, so that a further request is a few
//! bytes. Replies have no dynamic table, because the generator announces a table of size 0.

use super::huffman::Decoder;

/// The size of the server's dynamic table that every HTTP/2 endpoint accepts by default, in bytes.
const TABLE_BYTES_MAX: usize = 4_096;
/// Overhead of an entry in the size of the table (RFC 7541, section 4.1), in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 32;
/// Number of entries in the static table.
const STATIC_ENTRIES: usize = 61;
const STATIC_GRPC: [(&str, &str, u8); 2] = [(":method", "POST", 3), (":scheme", "http", 6)];

/// Encodes the headers of requests.
#[derive(Debug, Default)]
pub struct Encoder {
    /// The entries of the dynamic table, oldest first.
    entries: Vec<(String, String)>,
    bytes: usize,
}

impl Encoder {
    /// Number of entries so far. An encoded block stays valid until this number changes.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Appends the encoding of the headers. Returns false if the table has no room for them.
    pub fn encode(&mut self, headers: &[(&str, &str)], block: &mut Vec<u8>) -> bool {
        for (name, value) in headers {
            let fixed = STATIC_GRPC.iter().find(|(known, content, _)| known == name && content == value);
            let known = self.entries.iter().position(|(known, content)| known == name && content == value);
            match (fixed, known) {
                (Some((.., index)), _) => block.push(0x80 | index),
                (None, Some(position)) => {
                    let index = STATIC_ENTRIES + self.entries.len() - position;
                    write_integer(index, 7, 0x80, block);
                }
                (None, None) => {
                    self.bytes += name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
                    if self.bytes > TABLE_BYTES_MAX {
                        return false;
                    }
                    // A literal with incremental indexing and a new name.
                    block.push(0x40);
                    write_string(name, block);
                    write_string(value, block);
                    self.entries.push(((*name).to_owned(), (*value).to_owned()));
                }
            }
        }
        true
    }
}

fn write_string(text: &str, block: &mut Vec<u8>) {
    write_integer(text.len(), 7, 0, block);
    block.extend_from_slice(text.as_bytes());
}

/// Writes an integer with a prefix of some bits, below the pattern of the first byte.
fn write_integer(value: usize, prefix_bits: u32, pattern: u8, block: &mut Vec<u8>) {
    let prefix_max = (1 << prefix_bits) - 1;
    if value < prefix_max {
        block.push(pattern | value as u8);
        return;
    }
    block.push(pattern | prefix_max as u8);
    let mut rest = value - prefix_max;
    while rest >= 0x80 {
        block.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// The status of a call, from its trailers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallStatus {
    pub code: u32,
    /// As sent: percent-encoded.
    pub message: String,
}

/// Reads `grpc-status` and `grpc-message` of a header block. Returns `None` if the block has no status.
pub fn read_status(block: &[u8], decoder: &Decoder) -> Result<Option<CallStatus>, &'static str> {
    let mut reader = Reader { rest: block, decoder };
    let (mut code, mut message) = (None, String::new());
    while let Some(first) = reader.rest.first().copied() {
        if first & 0x80 != 0 {
            if reader.integer(7)? > STATIC_ENTRIES {
                return Err("a header refers to a dynamic table of size 0");
            }
            continue;
        }
        if first & 0xe0 == 0x20 {
            reader.integer(5)?;
            continue;
        }
        let name_index = reader.integer(if first & 0xc0 == 0x40 { 6 } else { 4 })?;
        let name = if name_index == 0 { Some(reader.string()?) } else { None };
        let value = reader.string()?;
        let Some(name) = name else { continue };
        match reader.text(name)?.as_slice() {
            b"grpc-status" => {
                let digits = reader.text(value)?;
                let digits = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
                code = Some(digits.ok_or("grpc-status is not a number")?);
            }
            b"grpc-message" => message = String::from_utf8_lossy(&reader.text(value)?).into_owned(),
            _ => {}
        }
    }
    Ok(code.map(|code| CallStatus { code, message }))
}

/// A string as sent: whether it is Huffman-encoded, and its bytes.
type EncodedString<'a> = (bool, &'a [u8]);

struct Reader<'a> {
    rest: &'a [u8],
    decoder: &'a Decoder,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.rest.split_first().ok_or("a header block ends within a header")?;
        self.rest = rest;
        Ok(*first)
    }

    fn integer(&mut self, prefix_bits: u32) -> Result<usize, &'static str> {
        let prefix_max = (1 << prefix_bits) - 1;
        let mut value = usize::from(self.byte()?) & prefix_max;
        if value < prefix_max {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer of a header block is too large")
    }

    fn string(&mut self) -> Result<EncodedString<'a>, &'static str> {
        let is_encoded = self.rest.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or("a header block ends within a string")?;
        self.rest = rest;
        Ok((is_encoded, text))
    }

    fn text(&self, (is_encoded, text): EncodedString<'_>) -> Result<Vec<u8>, &'static str> {
        if is_encoded { self.decoder.decode(text).ok_or("a header is not valid Huffman code") } else { Ok(text.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_refers_to_the_headers_of_the_first() {
        let mut encoder = Encoder::default();
        let headers = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("te", "trailers")];
        let mut first = Vec::new();
        assert!(encoder.encode(&headers, &mut first));
        assert_eq!(first, b"\x83\x86\x40\x05:path\x02/a\x40\x02te\x08trailers");
        let mut second = Vec::new();
        assert!(encoder.encode(&headers, &mut second));
        // The newest entry has the lowest index, 62.
        assert_eq!(second, [0x83, 0x86, 0xbf, 0xbe]);
        let mut third = Vec::new();
        assert!(encoder.encode(&[(":path", "/b"), (":path", "/a")], &mut third));
        assert_eq!(third, b"\x40\x05:path\x02/b\xc0");
    }

    #[test]
    fn headers_that_exceed_the_table_are_refused() {
        let long = "x".repeat(TABLE_BYTES_MAX);
        assert!(!Encoder::default().encode(&[("a", &long)], &mut Vec::new()));
    }

    #[test]
    fn integers_follow_the_examples_of_the_specification() {
        let mut bytes = Vec::new();
        write_integer(10, 5, 0, &mut bytes);
        write_integer(1_337, 5, 0, &mut bytes);
        assert_eq!(bytes, [0x0a, 0x1f, 0x9a, 0x0a]);
        let decoder = Decoder::default();
        let mut reader = Reader { rest: &bytes, decoder: &decoder };
        assert_eq!((reader.integer(5), reader.integer(5)), (Ok(10), Ok(1_337)));
        assert!(reader.integer(5).is_err());
    }

    #[test]
    fn the_status_is_read_from_plain_and_from_encoded_trailers() {
        let decoder = Decoder::default();
        let ok = Some(CallStatus { code: 0, message: String::new() });
        // A table size update, then a literal without indexing.
        assert_eq!(read_status(b"\x20\x00\x0bgrpc-status\x010", &decoder), Ok(ok.clone()));
        // As h2 sends it: name and value in Huffman code.
        let encoded = [0x40, 0x88, 0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f, 0x81, 0x07];
        assert_eq!(read_status(&encoded, &decoder), Ok(ok));
        let failed = read_status(b"\x00\x0bgrpc-status\x018\x00\x0cgrpc-message\x04late", &decoder);
        assert_eq!(failed, Ok(Some(CallStatus { code: 8, message: "late".into() })));
        assert_eq!(read_status(&[0x88], &decoder), Ok(None), "only :status 200");
        assert!(read_status(&[0xbe], &decoder).is_err(), "an entry of a dynamic table");
        assert!(read_status(b"\x00\x0bgrpc", &decoder).is_err());
    }
}
