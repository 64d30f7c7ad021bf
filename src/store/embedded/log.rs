//! Reads SQLite's write-ahead log before SQLite does, to decide whether the part behind the first unreadable frame is a
//! torn write or damage.
//!
//! SQLite uses the log up to the first frame that does not verify, and silently ignores the rest. That is right after a
//! crash, when the last writes reached the disk in part or in any order. But a commit is synced before the next one is
//! written, so the frames of an acknowledged commit cannot be torn.
//!
//! Two things may be torn: the fold's transactions since the last commit, which are not synced, and one commit that was
//! not acknowledged. Every commit appends one row to the journal, and no other table of the store has row numbers, so
//! the journal's leaf pages in the log show which commits happened. Row `n` was acknowledged if row `n + 1`, or
//! anything else, was written after it.
//!
//! Checksums are cumulative: each frame's checksum is computed from that of the frame before it. So a frame behind the
//! damage verifies from the checksum that its predecessor stores, or from the one that it should store. Frames that do
//! not continue their predecessor remain from an earlier use of the file. Format:
//! <https://www.sqlite.org/fileformat2.html#walformat>.

use super::header::number;
use super::open::PAGE_BYTES;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const PAGE: usize = PAGE_BYTES as usize;
const FRAME_BYTES: u64 = FRAME_HEADER_BYTES as u64 + PAGE_BYTES;
/// The first bytes of a log. The last bit gives the byte order of the checksums.
const MAGIC: u32 = 0x377F_0682;
/// The type bytes of a leaf page and an interior page of a table with row numbers.
const TABLE_LEAF: u8 = 0x0D;
const TABLE_INNER: u8 = 0x05;
/// Root page of the journal, the first table in the schema.
const JOURNAL_ROOT: u32 = 2;
const DEPTH_MAX: usize = 20;

/// Damage in the log: acknowledged commits that SQLite would ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The first frame that does not verify, counted from 1; 0 is the log's header.
    pub frame: u64,
    /// Where this frame begins, in bytes from the start of the log.
    pub offset: u64,
    /// Minimum number of commits behind the damage.
    pub commits: u64,
}

/// Why a log cannot be used with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Damaged(Damage),
    /// A journal row in the log differs from the same row in the database.
    Foreign {
        row: i64,
    },
}

/// Looks for faults in the log of a database. A server may be writing to both files. Only a fault that is found twice
/// counts, so that a write in progress is not mistaken for damage.
///
/// Opens the database file itself: closing it releases the locks that SQLite holds on it for this process.
pub fn check(log: &Path, database: &Path) -> io::Result<Option<Fault>> {
    let first = walk(log, database)?;
    if first.is_none() { Ok(None) } else { Ok(walk(log, database)?.filter(|second| first == Some(*second))) }
}

/// Returns whether an open log starts with a valid mark. An empty log, or one that cannot be read, counts as valid.
pub fn has_head(log: &File) -> bool {
    let mut magic = [0; 4];
    match log.read_at(&mut magic, 0) {
        Ok(0) => true,
        Ok(4) => number(&magic, 0) & !1 == MAGIC,
        Ok(_) => false,
        Err(_) => true,
    }
}

/// Returns the page size in the log's header, if SQLite would accept the header.
pub fn page_bytes(log: &Path) -> io::Result<Option<u32>> {
    let mut bytes = [0; HEADER_BYTES];
    let Some(mut log) = opened(log)? else { return Ok(None) };
    let header = read_whole(&mut log, &mut bytes)?.then(|| Header::parse(&bytes));
    Ok(header.filter(|header| header.is_valid).map(|header| header.page_bytes))
}

fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn walk(log: &Path, database: &Path) -> io::Result<Option<Fault>> {
    let mut bytes = [0; HEADER_BYTES];
    let Some(file) = opened(log)? else { return Ok(None) };
    let mut reader = BufReader::with_capacity(1 << 18, file);
    if !read_whole(&mut reader, &mut bytes)? {
        return Ok(None);
    }
    let header = Header::parse(&bytes);
    let mut frames = Frames { reader, big_endian: header.big_endian, bytes: vec![0; FRAME_BYTES as usize] };
    let mut walk = Walk::new(Database { path: database, file: OnceCell::new() }, &header);
    for at in 1.. {
        let Some(frame) = frames.next()? else { break };
        walk.visit(&frame, at);
    }
    // If a server has restarted the log meanwhile, the frames are of two generations.
    let mut again = [0; HEADER_BYTES];
    let is_same = frames.reader.get_ref().read_exact_at(&mut again, 0).is_ok() && again == bytes;
    Ok(walk.fault().filter(|_| is_same))
}

/// Fills `bytes`; returns false if the file ends before that.
fn read_whole(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

type Checksum = (u32, u32);

struct Header {
    is_valid: bool,
    big_endian: bool,
    page_bytes: u32,
    salts: (u32, u32),
    stored: Checksum,
    computed: Checksum,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let (magic, version, page_bytes) = (number(bytes, 0), number(bytes, 4), number(bytes, 8));
        let is_magic = magic & !1 == MAGIC;
        // The mark gives the byte order of the machine that wrote it; a damaged mark gives no information.
        let big_endian = if is_magic { magic & 1 == 1 } else { cfg!(target_endian = "big") };
        let (stored, computed) = ((number(bytes, 24), number(bytes, 28)), checksum((0, 0), &bytes[..24], big_endian));
        let is_valid = is_magic && version == 3_007_000 && stored == computed;
        Self { is_valid, big_endian, page_bytes, salts: (number(bytes, 16), number(bytes, 20)), stored, computed }
    }
}

struct Frame<'a> {
    page: u32,
    /// Whether this is the last frame of a transaction.
    is_commit: bool,
    salts: (u32, u32),
    stored: Checksum,
    contents: &'a [u8],
    /// The header bytes that the checksum covers, in addition to the contents and the preceding checksum.
    head: &'a [u8],
    big_endian: bool,
}

impl Frame<'_> {
    fn checksum(&self, before: Checksum) -> Checksum {
        checksum(checksum(before, self.head, self.big_endian), self.contents, self.big_endian)
    }
}

struct Frames<R> {
    reader: R,
    big_endian: bool,
    bytes: Vec<u8>,
}

impl<R: Read> Frames<R> {
    /// Reads the next frame. Returns `None` at the end of the file; an incomplete frame counts as the end.
    fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        if !read_whole(&mut self.reader, &mut self.bytes)? {
            return Ok(None);
        }
        let bytes = &self.bytes;
        Ok(Some(Frame {
            page: number(bytes, 0),
            is_commit: number(bytes, 4) != 0,
            salts: (number(bytes, 8), number(bytes, 12)),
            stored: (number(bytes, 16), number(bytes, 20)),
            contents: &bytes[FRAME_HEADER_BYTES..],
            head: &bytes[..8],
            big_endian: self.big_endian,
        }))
    }
}

/// The database file without its log. It is opened at the first use.
struct Database<'a> {
    path: &'a Path,
    file: OnceCell<Option<File>>,
}

impl Database<'_> {
    /// Reads a page; `None` if the page does not exist.
    fn page(&self, page: u32) -> Option<Vec<u8>> {
        let file = self.file.get_or_init(|| File::open(self.path).ok()).as_ref()?;
        let mut bytes = vec![0; PAGE];
        file.read_exact_at(&mut bytes, u64::from(page.checked_sub(1)?) * PAGE_BYTES).ok()?;
        Some(bytes)
    }

    fn has(&self, frame: &Frame<'_>) -> bool {
        self.page(frame.page).is_some_and(|page| page == frame.contents)
    }

    /// The last row of the journal; `None` if the journal is empty or cannot be read.
    fn last_row(&self) -> Option<i64> {
        let mut page = self.page(JOURNAL_ROOT)?;
        for _ in 0..DEPTH_MAX {
            if page[0] != TABLE_INNER {
                return last_row(&page);
            }
            page = self.page(number(&page, 8))?;
        }
        None
    }
}

/// The state of reading a log.
struct Walk<'a> {
    database: Database<'a>,
    header_is_valid: bool,
    /// The salts, which identify one use of the file. Without a valid header, the first frame that continues its
    /// predecessor gives them.
    salts: Option<(u32, u32)>,
    salts_before: Option<(u32, u32)>,
    /// The checksum that the preceding frame or the header stores, and the one that it should store.
    before: [Checksum; 2],
    readable: Readable,
    /// Whether the first readable page of the journal was compared with the database's.
    is_compared: bool,
    foreign_row: Option<i64>,
    /// The first frame that does not verify, once it is found; 0 is the header.
    gap: Option<u64>,
    /// The last row that is known without the frames behind the gap.
    known_row: Option<i64>,
    behind: Behind,
}

/// The part of the log that SQLite would use.
#[derive(Default)]
struct Readable {
    commits: u64,
    last_row: Option<i64>,
    /// The last row of the transaction that has not ended.
    open_row: Option<i64>,
}

impl Readable {
    fn visit(&mut self, frame: &Frame<'_>) {
        self.open_row = self.open_row.max(frame.row());
        if frame.is_commit {
            self.commits += 1;
            self.last_row = self.last_row.max(self.open_row.take());
        }
    }
}

/// The frames behind the gap that continue their predecessors.
#[derive(Default)]
struct Behind {
    commits: u64,
    /// The last row of the frame at the gap, which cannot be trusted.
    gap_row: Option<i64>,
    /// The first and the last journal row in these frames.
    rows: Option<(i64, i64)>,
    acknowledged_row: Option<i64>,
    /// The transaction that has not ended: its last row, and its pages, each with whether the database file contains it
    /// as well.
    open_row: Option<i64>,
    open_pages: Vec<(u32, bool)>,
    /// Whether the database file contains a row of this transaction that is newer than the rows that SQLite would use.
    open_is_copied: bool,
    /// The last row of the transaction that ended with the preceding frame.
    ended_row: Option<i64>,
    /// The newest committed version of each page: whether the database file contains it.
    pages: HashMap<u32, bool>,
    is_copied: bool,
}

impl Behind {
    fn visit(&mut self, frame: &Frame<'_>, is_in_database: bool, readable_row: Option<i64>) {
        self.acknowledged_row = self.acknowledged_row.max(self.ended_row.take());
        if let Some(row) = frame.row() {
            let (first, last) = self.rows.unwrap_or((row, row));
            self.rows = Some((first, last.max(row)));
            self.open_row = self.open_row.max(Some(row));
            self.open_is_copied |= is_in_database && Some(row) > readable_row;
        }
        self.open_pages.push((frame.page, is_in_database));
        if frame.is_commit {
            self.commits += 1;
            self.ended_row = self.open_row.take();
            self.pages.extend(self.open_pages.drain(..));
            self.is_copied |= std::mem::take(&mut self.open_is_copied);
        }
    }

    /// Handles a frame that does not verify: the next frame does not belong to an earlier transaction.
    fn break_off(&mut self) {
        (self.open_row, self.ended_row, self.open_is_copied) = (None, None, false);
        self.open_pages.clear();
    }

    /// Handles the frame at the gap. The frame cannot be trusted, but its row is plausible if it is the next row. The
    /// row counts only if more was written behind its transaction.
    fn begin(&mut self, frame: &Frame<'_>, open_row: Option<i64>, known_row: Option<i64>) {
        self.gap_row = frame.row();
        let is_next = |row: &i64| known_row.is_some_and(|known| known.checked_add(1) == Some(*row));
        let row = frame.row().filter(is_next).max(open_row);
        *if frame.is_commit { &mut self.ended_row } else { &mut self.open_row } = row;
    }

    /// The first row behind the gap, or at the gap.
    fn first_row(&self) -> Option<i64> {
        let (first, _) = self.rows?;
        Some(if self.gap_row == Some(first - 1) { first - 1 } else { first })
    }
}

impl<'a> Walk<'a> {
    fn new(database: Database<'a>, header: &Header) -> Self {
        let is_valid = header.is_valid;
        let known_row = if is_valid { None } else { database.last_row() };
        Self {
            database,
            header_is_valid: is_valid,
            salts: is_valid.then_some(header.salts),
            salts_before: None,
            before: [header.stored, header.computed],
            readable: Readable::default(),
            is_compared: false,
            foreign_row: None,
            gap: (!is_valid).then_some(0),
            known_row,
            behind: Behind::default(),
        }
    }

    fn visit(&mut self, frame: &Frame<'_>, at: u64) {
        let is_of_use = self.salts.or(self.salts_before).is_none_or(|salts| frame.salts == salts);
        self.salts_before = Some(frame.salts);
        let [stored, computed] = self.before;
        let continues = |before| frame.checksum(before) == frame.stored;
        let follows = frame.page != 0 && is_of_use && (continues(stored) || continues(computed));
        if follows {
            self.salts = Some(frame.salts);
        }
        self.before = [frame.stored, if follows { frame.stored } else { frame.checksum(stored) }];
        match (self.gap, follows) {
            (None, true) => {
                self.compare(frame);
                self.readable.visit(frame);
            }
            (None, false) => {
                self.gap = Some(at);
                self.known_row = self.readable.last_row.max(self.database.last_row());
                self.behind.begin(frame, self.readable.open_row, self.known_row);
            }
            (Some(_), true) => {
                let is_in_database = self.database.has(frame);
                self.behind.visit(frame, is_in_database, self.readable.last_row);
            }
            (Some(_), false) => self.behind.break_off(),
        }
    }

    /// Compares a page with the database: a row never changes, so it is the same in the log and in the database.
    fn compare(&mut self, frame: &Frame<'_>) {
        if self.is_compared || frame.row().is_none() {
            return;
        }
        self.is_compared = true;
        let page = self.database.page(frame.page).unwrap_or_default();
        let rows: HashMap<i64, &[u8]> = cells(&page).collect();
        let mut in_log = cells(frame.contents);
        self.foreign_row = in_log.find_map(|(row, cell)| rows.get(&row).filter(|other| **other != cell).map(|_| row));
    }

    fn fault(self) -> Option<Fault> {
        let foreign = self.foreign_row.map(|row| Fault::Foreign { row });
        foreign.or_else(|| self.damage().map(Fault::Damaged))
    }

    fn damage(&self) -> Option<Damage> {
        let (frame, behind) = (self.gap?, &self.behind);
        let acknowledged = behind.acknowledged_row.max(behind.rows.map(|(_, last)| last - 1));
        // In an empty journal, the first row is the first one behind the gap.
        let known = self.known_row.or(behind.first_row().map(|first| first - 1));
        let lost = acknowledged.zip(known).map_or(0, |(acknowledged, known)| acknowledged.saturating_sub(known).max(0));
        let is_proven = lost > 0 || behind.is_copied || !self.header_is_valid && behind.commits > 0;
        // The database file contains everything, and SQLite would not use an older state instead.
        let is_harmless = self.readable.commits == 0 && behind.pages.values().all(|is_copied| *is_copied);
        let offset = frame.checked_sub(1).map_or(0, |before| HEADER_BYTES as u64 + before * FRAME_BYTES);
        let commits = lost.unsigned_abs().max(1);
        (is_proven && !is_harmless).then_some(Damage { frame, offset, commits })
    }
}

impl Frame<'_> {
    /// The last journal row on the page.
    fn row(&self) -> Option<i64> {
        // The first page is a leaf of the schema.
        if self.page == 1 { None } else { last_row(self.contents) }
    }
}

/// The last row on a leaf page of the journal.
fn last_row(page: &[u8]) -> Option<i64> {
    cells(page).last().map(|(row, _)| row)
}

/// How many bytes of a row are compared. A page contains at least this many bytes of each of its rows.
const COMPARED_BYTES: usize = 64;

/// The rows of a leaf page of the journal, each with its first bytes. The iteration ends at the first invalid row.
fn cells(page: &[u8]) -> impl Iterator<Item = (i64, &[u8])> {
    let is_leaf = page.len() == PAGE && page[0] == TABLE_LEAF;
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

fn checksum(before: Checksum, bytes: &[u8], big_endian: bool) -> Checksum {
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    bytes.chunks_exact(8).fold(before, |(one, other), words| {
        let one = one.wrapping_add(word(&words[..4])).wrapping_add(other);
        (one, other.wrapping_add(word(&words[4..])).wrapping_add(one))
    })
}
