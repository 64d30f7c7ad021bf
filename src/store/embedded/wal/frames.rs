//! The structure of SQLite's write-ahead log: a header, and frames with one page each. Format:
//! <https://www.sqlite.org/fileformat2.html#walformat>.

use crate::store::embedded::header::u32_at;
use crate::store::embedded::open::PAGE_BYTES;
use std::io::{self, ErrorKind, Read};

pub const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
pub const FRAME_BYTES: u64 = FRAME_HEADER_BYTES as u64 + PAGE_BYTES;
pub const PAGE_LEN: usize = PAGE_BYTES as usize;
/// The first bytes of a write-ahead log. The last bit gives the byte order of the checksums.
pub const MAGIC: u32 = 0x377F_0682;
/// The file format version in the header.
const FORMAT_VERSION: u32 = 3_007_000;
/// The type bytes of a leaf page and an interior page of a table with rowids.
const TABLE_LEAF: u8 = 0x0D;
pub const TABLE_INTERIOR: u8 = 0x05;

/// Fills `bytes`; returns false if the file ends before that.
pub fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The two halves of a checksum.
pub type Checksum = (u32, u32);

/// The header of a log, as read: it may be invalid.
pub struct WalHeader {
    pub is_valid: bool,
    pub big_endian: bool,
    pub page_bytes: u32,
    pub salts: (u32, u32),
    pub stored: Checksum,
    pub computed: Checksum,
}

impl WalHeader {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let (magic, version, page_bytes) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8));
        let is_magic = magic & !1 == MAGIC;
        // The magic number gives the byte order of the machine that wrote the log; a damaged one gives no information.
        let big_endian = if is_magic { magic & 1 == 1 } else { cfg!(target_endian = "big") };
        let (stored, computed) = ((u32_at(bytes, 24), u32_at(bytes, 28)), checksum((0, 0), &bytes[..24], big_endian));
        let is_valid = is_magic && version == FORMAT_VERSION && stored == computed;
        Self { is_valid, big_endian, page_bytes, salts: (u32_at(bytes, 16), u32_at(bytes, 20)), stored, computed }
    }
}

/// One frame: a header, and the contents of a page.
pub struct WalFrame<'a> {
    pub page: u32,
    /// Whether this is the last frame of a transaction.
    pub is_commit: bool,
    pub salts: (u32, u32),
    pub stored: Checksum,
    pub contents: &'a [u8],
    /// The header bytes that the checksum covers, in addition to the contents and the preceding checksum.
    pub header: &'a [u8],
    pub big_endian: bool,
}

impl WalFrame<'_> {
    pub fn checksum(&self, previous: Checksum) -> Checksum {
        checksum(checksum(previous, self.header, self.big_endian), self.contents, self.big_endian)
    }

    /// The last journal row on the page.
    pub fn row(&self) -> Option<i64> {
        // The first page is a leaf of the schema.
        if self.page == 1 { None } else { last_row(self.contents) }
    }
}

/// Reads a log frame by frame.
pub struct Frames<R> {
    pub reader: R,
    pub big_endian: bool,
    pub bytes: Vec<u8>,
}

impl<R: Read> Frames<R> {
    /// Reads the next frame. Returns `None` at the end of the file; an incomplete frame counts as the end.
    pub fn next(&mut self) -> io::Result<Option<WalFrame<'_>>> {
        if !fill(&mut self.reader, &mut self.bytes)? {
            return Ok(None);
        }
        let bytes = &self.bytes;
        Ok(Some(WalFrame {
            page: u32_at(bytes, 0),
            is_commit: u32_at(bytes, 4) != 0,
            salts: (u32_at(bytes, 8), u32_at(bytes, 12)),
            stored: (u32_at(bytes, 16), u32_at(bytes, 20)),
            contents: &bytes[FRAME_HEADER_BYTES..],
            header: &bytes[..8],
            big_endian: self.big_endian,
        }))
    }
}

/// The last row on a leaf page of the journal.
pub fn last_row(page: &[u8]) -> Option<i64> {
    cells(page).last().map(|(row, _)| row)
}

/// How many bytes of a row are compared. A page contains at least this many bytes of each of its rows.
const COMPARED_BYTES: usize = 64;

/// The rows of a leaf page of the journal, each with its first bytes. The iteration ends at the first invalid row.
pub fn cells(page: &[u8]) -> impl Iterator<Item = (i64, &[u8])> {
    let is_leaf = page.len() == PAGE_LEN && page[0] == TABLE_LEAF;
    let count = if is_leaf { usize::from(u16::from_be_bytes([page[3], page[4]])) } else { 0 };
    (0..count).map_while(|cell| {
        let pointer = page.get(8 + 2 * cell..10 + 2 * cell)?;
        let cell = page.get(usize::from(u16::from_be_bytes([pointer[0], pointer[1]]))..)?;
        let (bytes, length_bytes) = varint(cell)?;
        let (row, row_bytes) = varint(&cell[length_bytes..])?;
        let compared = length_bytes + row_bytes + COMPARED_BYTES.min(usize::try_from(bytes).ok()?);
        Some((row.cast_signed(), cell.get(..compared)?))
    })
}

/// Decodes SQLite's variable-length integer: 7 bits per byte, big-endian; the ninth byte has 8 bits. Also returns its
/// length in bytes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(8).enumerate() {
        value = value << 7 | u64::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    Some((value << 8 | u64::from(*bytes.get(8)?), 9))
}

fn checksum(previous: Checksum, bytes: &[u8], big_endian: bool) -> Checksum {
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    bytes.chunks_exact(8).fold(previous, |(one, other), words| {
        let one = one.wrapping_add(word(&words[..4])).wrapping_add(other);
        (one, other.wrapping_add(word(&words[4..])).wrapping_add(one))
    })
}
