//! Reads SQLite's write-ahead log before SQLite does, to decide whether the part after the first unreadable frame is a
//! torn write or damage.
//!
//! SQLite uses the log up to the first frame that does not verify, and silently ignores the rest. That is right after a
//! crash, when the last writes reached the disk in part or in any order. But a commit is synced before the next one is
//! written, so the frames of an acknowledged commit cannot be torn.
//!
//! Two things may be torn: the fold's transactions since the last commit, which are not synced, and one commit that was
//! not acknowledged. Every commit appends one row to the journal, and no other table of the store has rowids, so
//! the journal's leaf pages in the log show which commits happened. Row `n` was acknowledged if row `n + 1`, or
//! anything else, was written after it.
//!
//! Checksums are cumulative: each frame's checksum is computed from that of the frame before it. So a frame after the
//! damage verifies from the checksum that its predecessor stores, or from the one that it should store. Frames that do
//! not continue their predecessor remain from an earlier use of the file.

mod frames;

use super::header::u32_at;
use super::open::PAGE_BYTES;
use frames::{
    Checksum, FRAME_BYTES, Frames, HEADER_BYTES, MAGIC, PAGE_LEN, TABLE_INTERIOR, WalFrame, WalHeader, cells, fill,
    last_row,
};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Root page of the journal, the first table in the schema.
const JOURNAL_ROOT: u32 = 2;
/// Maximum depth of the journal's tree, in pages; a deeper one is damaged.
const DEPTH_MAX: usize = 20;

/// Damage in the write-ahead log: acknowledged commits that SQLite would ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalDamage {
    /// The first frame that does not verify, counted from 1; 0 is the log's header.
    pub frame: u64,
    /// Where this frame begins, in bytes from the start of the log.
    pub offset_bytes: u64,
    /// Minimum number of commits after the damage.
    pub commits_min: u64,
}

/// Why a write-ahead log cannot be used with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFault {
    Damaged(WalDamage),
    /// A journal row in the log differs from the same row in the database.
    Foreign {
        /// Sequence number of the row.
        seq: i64,
    },
}

/// Looks for faults in the write-ahead log of a database. A server may be writing to both files. Only a fault that is
/// found twice counts, so that a write in progress is not mistaken for damage.
///
/// Opens the database file itself: closing it releases the locks that SQLite holds on it for this process.
pub fn check(wal: &Path, database: &Path) -> io::Result<Option<WalFault>> {
    let first = scan(wal, database)?;
    if first.is_none() { Ok(None) } else { Ok(scan(wal, database)?.filter(|second| first == Some(*second))) }
}

/// Returns whether an open write-ahead log starts with the magic number. An empty log, or one that cannot be read,
/// counts as valid.
pub fn has_magic(wal: &File) -> bool {
    let mut magic = [0; 4];
    match wal.read_at(&mut magic, 0) {
        Ok(0) => true,
        Ok(4) => u32_at(&magic, 0) & !1 == MAGIC,
        Ok(_) => false,
        Err(_) => true,
    }
}

/// Returns the page size in the header of a write-ahead log, if SQLite would accept the header.
pub fn page_bytes(wal: &Path) -> io::Result<Option<u32>> {
    let mut bytes = [0; HEADER_BYTES];
    let Some(mut file) = open_if_exists(wal)? else { return Ok(None) };
    let header = fill(&mut file, &mut bytes)?.then(|| WalHeader::parse(&bytes));
    Ok(header.filter(|header| header.is_valid).map(|header| header.page_bytes))
}

fn open_if_exists(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn scan(wal: &Path, database: &Path) -> io::Result<Option<WalFault>> {
    let mut bytes = [0; HEADER_BYTES];
    let Some(file) = open_if_exists(wal)? else { return Ok(None) };
    let mut reader = BufReader::with_capacity(1 << 18, file);
    if !fill(&mut reader, &mut bytes)? {
        return Ok(None);
    }
    let header = WalHeader::parse(&bytes);
    let mut frames = Frames { reader, big_endian: header.big_endian, bytes: vec![0; FRAME_BYTES as usize] };
    let mut scan = WalScan::new(Database { path: database, file: OnceCell::new() }, &header);
    for at in 1.. {
        let Some(frame) = frames.next()? else { break };
        scan.visit(&frame, at);
    }
    // If a server has restarted the log meanwhile, the frames are of two generations.
    let mut again = [0; HEADER_BYTES];
    let is_same = frames.reader.get_ref().read_exact_at(&mut again, 0).is_ok() && again == bytes;
    Ok(scan.fault().filter(|_| is_same))
}

/// The database file without its write-ahead log. It is opened at the first use.
struct Database<'a> {
    path: &'a Path,
    file: OnceCell<Option<File>>,
}

impl Database<'_> {
    /// Reads a page; `None` if the page does not exist.
    fn page(&self, page: u32) -> Option<Vec<u8>> {
        let file = self.file.get_or_init(|| File::open(self.path).ok()).as_ref()?;
        let mut bytes = vec![0; PAGE_LEN];
        file.read_exact_at(&mut bytes, u64::from(page.checked_sub(1)?) * PAGE_BYTES).ok()?;
        Some(bytes)
    }

    fn contains(&self, frame: &WalFrame<'_>) -> bool {
        self.page(frame.page).is_some_and(|page| page == frame.contents)
    }

    /// The last row of the journal; `None` if the journal is empty or cannot be read.
    fn last_row(&self) -> Option<i64> {
        let mut page = self.page(JOURNAL_ROOT)?;
        for _ in 0..DEPTH_MAX {
            if page[0] != TABLE_INTERIOR {
                return last_row(&page);
            }
            page = self.page(u32_at(&page, 8))?;
        }
        None
    }
}

/// The state of reading a write-ahead log.
struct WalScan<'a> {
    database: Database<'a>,
    header_is_valid: bool,
    /// The salts, which identify one use of the file. Without a valid header, the first frame that continues its
    /// predecessor gives them.
    salts: Option<(u32, u32)>,
    previous_salts: Option<(u32, u32)>,
    /// The checksum that the preceding frame or the header stores, and the one that it should store.
    previous_checksums: [Checksum; 2],
    readable: ReadablePart,
    /// Whether the first readable page of the journal was compared with the database's.
    is_compared: bool,
    foreign_row: Option<i64>,
    /// The first frame that does not verify, once it is found; 0 is the header.
    first_invalid: Option<u64>,
    /// The last row that is known without the frames after the first invalid frame.
    known_row: Option<i64>,
    after_damage: FramesAfterDamage,
}

/// The part of the write-ahead log that SQLite would use.
#[derive(Default)]
struct ReadablePart {
    commits: u64,
    last_row: Option<i64>,
    /// The last row of the transaction that has not ended.
    open_row: Option<i64>,
}

impl ReadablePart {
    fn visit(&mut self, frame: &WalFrame<'_>) {
        self.open_row = self.open_row.max(frame.row());
        if frame.is_commit {
            self.commits += 1;
            self.last_row = self.last_row.max(self.open_row.take());
        }
    }
}

/// The frames after the first invalid frame that continue their predecessors.
#[derive(Default)]
struct FramesAfterDamage {
    commits: u64,
    /// The last row of the first invalid frame, which cannot be trusted.
    first_invalid_row: Option<i64>,
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

impl FramesAfterDamage {
    fn visit(&mut self, frame: &WalFrame<'_>, is_in_database: bool, readable_row: Option<i64>) {
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
    fn handle_invalid_frame(&mut self) {
        (self.open_row, self.ended_row, self.open_is_copied) = (None, None, false);
        self.open_pages.clear();
    }

    /// Handles the first invalid frame. It cannot be trusted, but its row is plausible if it is the next row. The row
    /// counts only if more was written after its transaction.
    fn handle_first_invalid_frame(&mut self, frame: &WalFrame<'_>, open_row: Option<i64>, known_row: Option<i64>) {
        self.first_invalid_row = frame.row();
        let is_next = |row: &i64| known_row.is_some_and(|known| known.checked_add(1) == Some(*row));
        let row = frame.row().filter(is_next).max(open_row);
        *if frame.is_commit { &mut self.ended_row } else { &mut self.open_row } = row;
    }

    /// The first row after the first invalid frame, or the row of that frame.
    fn first_row(&self) -> Option<i64> {
        let (first, _) = self.rows?;
        Some(if self.first_invalid_row == Some(first - 1) { first - 1 } else { first })
    }
}

impl<'a> WalScan<'a> {
    fn new(database: Database<'a>, header: &WalHeader) -> Self {
        let is_valid = header.is_valid;
        let known_row = if is_valid { None } else { database.last_row() };
        Self {
            database,
            header_is_valid: is_valid,
            salts: is_valid.then_some(header.salts),
            previous_salts: None,
            previous_checksums: [header.stored, header.computed],
            readable: ReadablePart::default(),
            is_compared: false,
            foreign_row: None,
            first_invalid: (!is_valid).then_some(0),
            known_row,
            after_damage: FramesAfterDamage::default(),
        }
    }

    fn visit(&mut self, frame: &WalFrame<'_>, at: u64) {
        let is_same_generation = self.salts.or(self.previous_salts).is_none_or(|salts| frame.salts == salts);
        self.previous_salts = Some(frame.salts);
        let [stored, computed] = self.previous_checksums;
        let continues = |previous| frame.checksum(previous) == frame.stored;
        let is_valid = frame.page != 0 && is_same_generation && (continues(stored) || continues(computed));
        if is_valid {
            self.salts = Some(frame.salts);
        }
        self.previous_checksums = [frame.stored, if is_valid { frame.stored } else { frame.checksum(stored) }];
        match (self.first_invalid, is_valid) {
            (None, true) => {
                self.compare(frame);
                self.readable.visit(frame);
            }
            (None, false) => {
                self.first_invalid = Some(at);
                self.known_row = self.readable.last_row.max(self.database.last_row());
                self.after_damage.handle_first_invalid_frame(frame, self.readable.open_row, self.known_row);
            }
            (Some(_), true) => {
                let is_in_database = self.database.contains(frame);
                self.after_damage.visit(frame, is_in_database, self.readable.last_row);
            }
            (Some(_), false) => self.after_damage.handle_invalid_frame(),
        }
    }

    /// Compares a page with the database: a row never changes, so it is the same in the log and in the database.
    fn compare(&mut self, frame: &WalFrame<'_>) {
        if self.is_compared || frame.row().is_none() {
            return;
        }
        self.is_compared = true;
        let page = self.database.page(frame.page).unwrap_or_default();
        let rows: HashMap<i64, &[u8]> = cells(&page).collect();
        let mut in_log = cells(frame.contents);
        self.foreign_row = in_log.find_map(|(row, cell)| rows.get(&row).filter(|other| **other != cell).map(|_| row));
    }

    fn fault(self) -> Option<WalFault> {
        let foreign = self.foreign_row.map(|seq| WalFault::Foreign { seq });
        foreign.or_else(|| self.damage().map(WalFault::Damaged))
    }

    fn damage(&self) -> Option<WalDamage> {
        let (frame, after_damage) = (self.first_invalid?, &self.after_damage);
        let acknowledged = after_damage.acknowledged_row.max(after_damage.rows.map(|(_, last)| last - 1));
        // In an empty journal, the first row is the first one after the first invalid frame.
        let known = self.known_row.or(after_damage.first_row().map(|first| first - 1));
        let lost = acknowledged.zip(known).map_or(0, |(acknowledged, known)| acknowledged.saturating_sub(known).max(0));
        let is_proven = lost > 0 || after_damage.is_copied || !self.header_is_valid && after_damage.commits > 0;
        // The database file contains everything, and SQLite would not use an older state instead.
        let is_harmless = self.readable.commits == 0 && after_damage.pages.values().all(|is_copied| *is_copied);
        let offset_bytes = frame.checked_sub(1).map_or(0, |index| HEADER_BYTES as u64 + index * FRAME_BYTES);
        let commits_min = lost.unsigned_abs().max(1);
        (is_proven && !is_harmless).then_some(WalDamage { frame, offset_bytes, commits_min })
    }
}
