//! The building blocks of the format: numbers, texts and a cursor that reads them.

use super::Malformed;
use crate::domain::ids::NameError;

/// Appends an unsigned number in 7-bit groups, least significant first (LEB128): 1 byte below 128, at most 10.
#[inline]
pub fn put_varint(buffer: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        buffer.push(value as u8);
    } else {
        put_long_varint(buffer, value);
    }
}

fn put_long_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// Appends bytes, preceded by their number.
pub fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

/// Appends what `write` appends, preceded by its length. Most lengths take one byte; for a longer one, the bytes after it
/// are moved.
pub fn put_length_delimited(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.push(0);
    write(buffer);
    let length = buffer.len() - start - 1;
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => buffer[start] = short,
        Ok(_) | Err(_) => {
            let end = buffer.len();
            put_varint(buffer, length as u64);
            let varint_len = buffer.len() - end;
            // Bring the length in front of what was written, over the byte that was kept free.
            buffer[start..].rotate_right(varint_len);
            buffer.remove(start + varint_len);
        }
    }
}

/// Reads bytes from the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Fails if bytes are left.
    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::new("it has bytes after its end")) }
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or_else(too_short)?;
        self.rest = rest;
        Ok(*array)
    }

    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let group = u64::from(byte & 0x7F);
            if group << shift >> shift != group {
                break;
            }
            value |= group << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::new("a number is too large"))
    }

    /// Reads a varint that fits in 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed::new("a number is too large"))
    }

    /// Reads the number of elements that follow, each of which takes at least one byte.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if count <= self.rest.len() { Ok(count) } else { Err(too_short()) }
    }

    /// Reads bytes that are preceded by their number.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.count()?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::new("a text is not valid UTF-8"))
    }

    /// Reads a name and validates it.
    pub fn name<T>(&mut self, parse: impl FnOnce(&str) -> Result<T, NameError>) -> Result<T, Malformed> {
        parse(self.text()?).map_err(invalid_name)
    }
}

pub fn invalid_name(error: NameError) -> Malformed {
    Malformed(format!("a name {error}"))
}

fn too_short() -> Malformed {
    Malformed::new("it ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_are_read_as_written(value: u64, bytes: Vec<u8>, last: u64) {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, value);
            put_length_delimited(&mut buffer, |buffer| put_bytes(buffer, &bytes));
            put_varint(&mut buffer, last);
            let mut reader = Reader::new(&buffer);
            prop_assert_eq!(reader.varint(), Ok(value));
            let inner = reader.bytes().unwrap();
            prop_assert_eq!(Reader::new(inner).bytes(), Ok(&*bytes));
            prop_assert_eq!(reader.varint(), Ok(last));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_malformed() {
        let mut largest = Vec::new();
        put_varint(&mut largest, u64::MAX);
        assert_eq!(Reader::new(&largest).varint(), Ok(u64::MAX));
        *largest.last_mut().unwrap() = 2;
        assert!(Reader::new(&largest).varint().is_err());
        assert!(Reader::new(&[0x80]).varint().is_err());
    }
}
