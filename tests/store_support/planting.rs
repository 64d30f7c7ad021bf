//! Plants damage in a store's file. All checksums match afterwards, so that only the logic of fsck can find it.

use rusqlite::{Connection, OptionalExtension, params};
use slotcast::domain::{Contents, InventoryId};
use slotcast::store::format::segment::SegmentHeader;
use slotcast::store::format::{self, Batch, BatchEncoder, BatchTime, block};
use slotcast::store::log::{LogRecord, Position};
use std::path::Path;

/// A store's file that no process has open.
pub struct Planted {
    pub connection: Connection,
}

/// A row of the table of inventories, or a tombstone, which has no owner, no layout and no contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    pub id: String,
    pub owner: Option<String>,
    pub layout: String,
    pub epoch: u32,
    pub revision: i64,
    pub last: Position,
    pub checkpoint: Position,
    pub contents: Vec<u8>,
}

impl StoredRow {
    pub fn contents(&self) -> Contents {
        format::decode_contents(&self.contents).expect("valid contents")
    }

    /// Computes the checksum over all columns.
    fn checksum(&self) -> u32 {
        let mut bytes = Vec::new();
        for text in [Some(&self.id), self.owner.as_ref(), Some(&self.layout)] {
            bytes.extend_from_slice(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.map_or(&[], |text| text.as_bytes()));
        }
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        for number in [self.revision, sql(self.last), sql(self.checkpoint)] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.contents);
        crc32fast::hash(&bytes)
    }
}

fn sql(position: Position) -> i64 {
    position.get().cast_signed()
}

fn position(stored: i64) -> Position {
    Position::from_u64(stored.cast_unsigned())
}

impl Planted {
    pub fn open(path: &Path) -> Self {
        Self { connection: Connection::open(path).expect("it opens") }
    }

    /// Runs a statement that must change at least one row.
    pub fn run(&self, statement: &str) {
        let changed = self.connection.execute(statement, []).expect("it is changed");
        assert!(changed > 0, "{statement}: nothing is changed");
    }

    pub fn number(&self, query: &str) -> i64 {
        self.connection.query_row(query, [], |row| row.get(0)).expect("a number")
    }

    pub fn positions(&self, query: &str) -> Vec<Position> {
        let mut select = self.connection.prepare(query).expect("a query");
        let rows = select.query_map([], |row| row.get::<_, i64>(0)).expect("rows");
        rows.map(|found| position(found.expect("a position"))).collect()
    }

    pub fn meta(&self, name: &str) -> i64 {
        let value = self.connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0));
        value.optional().expect("it is read").unwrap_or(0)
    }

    pub fn set_meta(&self, name: &str, value: i64) {
        let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
        self.connection.execute(sql, params![name, value]).expect("it is written");
    }

    pub fn row(&self, id: &str) -> StoredRow {
        let sql =
            "SELECT id, owner, layout, epoch, revision, last, checkpoint, contents FROM inventories WHERE id = ?1";
        let row = self.connection.query_row(sql, [id], |row| {
            Ok(StoredRow {
                id: row.get(0)?,
                owner: row.get(1)?,
                layout: row.get(2)?,
                epoch: row.get(3)?,
                revision: row.get(4)?,
                last: position(row.get(5)?),
                checkpoint: position(row.get(6)?),
                contents: row.get(7)?,
            })
        });
        row.expect("a row")
    }

    pub fn put_row(&self, row: &StoredRow) {
        let sql = "INSERT OR REPLACE INTO inventories
            (id, owner, layout, epoch, revision, last, checkpoint, checksum, contents)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let StoredRow { id, owner, layout, epoch, revision, contents, .. } = row;
        let (last, checkpoint) = (self::sql(row.last), self::sql(row.checkpoint));
        let values = params![id, owner, layout, epoch, revision, last, checkpoint, row.checksum(), contents];
        self.connection.execute(sql, values).expect("it is written");
    }

    pub fn change_row(&self, id: &str, change: impl FnOnce(&mut StoredRow)) {
        let mut row = self.row(id);
        change(&mut row);
        self.put_row(&row);
    }

    /// Writes contents into the row of an inventory.
    pub fn put_contents(&self, id: &InventoryId, contents: &Contents) {
        self.change_row(id.as_str(), |row| row.contents = format::encode_contents(contents));
    }

    pub fn tombstones(&self) -> Vec<String> {
        let mut select = self.connection.prepare("SELECT id FROM tombstones ORDER BY last").expect("a query");
        let rows = select.query_map([], |row| row.get(0)).expect("rows");
        rows.map(|id| id.expect("an id")).collect()
    }

    pub fn change_tombstone(&self, id: &str, change: impl FnOnce(&mut StoredRow)) {
        let sql = "SELECT epoch, revision, last, checkpoint FROM tombstones WHERE id = ?1";
        let row = self.connection.query_row(sql, [id], |row| {
            Ok(StoredRow {
                id: id.to_owned(),
                owner: None,
                layout: String::new(),
                epoch: row.get(0)?,
                revision: row.get(1)?,
                last: position(row.get(2)?),
                checkpoint: position(row.get(3)?),
                contents: Vec::new(),
            })
        });
        let mut row = row.expect("a tombstone");
        change(&mut row);
        let sql =
            "UPDATE tombstones SET epoch = ?2, revision = ?3, last = ?4, checkpoint = ?5, checksum = ?6 WHERE id = ?1";
        let (last, checkpoint) = (self::sql(row.last), self::sql(row.checkpoint));
        let values = params![id, row.epoch, row.revision, last, checkpoint, row.checksum()];
        self.connection.execute(sql, values).expect("it is written");
    }

    /// The positions at which the blocks begin.
    pub fn blocks(&self) -> Vec<Position> {
        self.positions("SELECT first FROM blocks ORDER BY first")
    }

    pub fn block(&self, first: Position) -> Vec<LogRecord> {
        let sql = "SELECT body FROM blocks WHERE first = ?1";
        let body: Vec<u8> = self.connection.query_row(sql, [self::sql(first)], |row| row.get(0)).expect("a block");
        let mut decompressor = block::Decompressor::new().expect("a decompressor");
        let batch = decompressor.decompress(&body).expect("a valid block");
        let batch = Batch::parse(&batch).expect("a valid batch");
        batch.records().collect::<Result<_, _>>().expect("valid records")
    }

    /// Writes a block at `at`, whatever the positions of its records are.
    pub fn put_block(&self, at: Position, records: &[LogRecord]) {
        let first = records.first().expect("a record");
        let time = BatchTime { uptime_ms: 0, unix_ms: first.time_ms, time_ms: first.time_ms };
        let mut encoder = BatchEncoder::new(first.position, time, records.len());
        records.iter().for_each(|record| encoder.push_record(record));
        let mut batch = Vec::new();
        encoder.put(&mut batch);
        let mut compressor = block::Compressor::new().expect("a compressor");
        let body = compressor.compress(&batch).expect("it is compressed");
        let sql = "INSERT OR REPLACE INTO blocks (first, body) VALUES (?1, ?2)";
        self.connection.execute(sql, params![self::sql(at), body]).expect("it is written");
    }

    /// Changes the records of a block, and then the head of its segment and the counters to match them.
    pub fn change_block(&self, first: Position, change: impl FnOnce(&mut Vec<LogRecord>)) {
        let segment = self.segments().into_iter().rfind(|segment| segment.first <= first).expect("a segment");
        let mut records = self.block(first);
        change(&mut records);
        self.put_block(first, &records);
        self.rebuild_segment(&segment);
    }

    /// Changes the record at a position of the log, in a block or in the journal.
    pub fn change_record(&self, at: Position, change: impl FnOnce(&mut LogRecord)) {
        let change = |records: &mut Vec<LogRecord>| {
            change(records.iter_mut().find(|record| record.position == at).expect("a record"));
        };
        if at.get() > self.meta("sealed_through").cast_unsigned() {
            let is_first = |seq: &i64| self.journal_row(*seq).1[0].position <= at;
            let seq = self.journal_rows().into_iter().rfind(is_first).expect("a journal row");
            self.change_journal_row(seq, change);
        } else {
            self.change_block(self.blocks().into_iter().rfind(|first| *first <= at).expect("a block"), change);
        }
    }

    pub fn segments(&self) -> Vec<SegmentHeader> {
        let mut select = self.connection.prepare("SELECT head FROM segments ORDER BY first").expect("a query");
        let rows = select.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("rows");
        rows.map(|head| SegmentHeader::decode(&head.expect("a head")).expect("a valid head")).collect()
    }

    pub fn put_segment(&self, head: &SegmentHeader) {
        let sql = "INSERT OR REPLACE INTO segments (first, head) VALUES (?1, ?2)";
        self.connection.execute(sql, params![self::sql(head.first), head.encode()]).expect("it is written");
    }

    /// Makes a segment's head that of its blocks, and the counters those of all segments.
    pub fn rebuild_segment(&self, segment: &SegmentHeader) {
        let mut rebuilt: Option<SegmentHeader> = None;
        for first in self.blocks().into_iter().filter(|first| (segment.first..=segment.last).contains(first)) {
            for record in self.block(first) {
                rebuilt.get_or_insert_with(|| SegmentHeader::new(&record)).add_record(&record);
            }
            let sql = format!("SELECT length(body) FROM blocks WHERE first = {}", self::sql(first));
            rebuilt.as_mut().expect("a record").add_block(self.number(&sql) as usize);
        }
        self.put_segment(&rebuilt.expect("a block"));
        self.recount();
    }

    /// Makes the counters those of all segments.
    pub fn recount(&self) {
        let segments = self.segments();
        self.set_meta("blocks", segments.iter().map(|segment| segment.blocks as i64).sum());
        self.set_meta("block_bytes", segments.iter().map(|segment| segment.bytes as i64).sum());
    }

    pub fn journal_rows(&self) -> Vec<i64> {
        let mut select = self.connection.prepare("SELECT seq FROM journal ORDER BY seq").expect("a query");
        let rows = select.query_map([], |row| row.get(0)).expect("rows");
        rows.map(|seq| seq.expect("a number")).collect()
    }

    pub fn journal_row(&self, seq: i64) -> (BatchTime, Vec<LogRecord>) {
        let sql = "SELECT batch FROM journal WHERE seq = ?1";
        let encoded: Vec<u8> = self.connection.query_row(sql, [seq], |row| row.get(0)).expect("a journal row");
        let batch = Batch::parse_with_checksum(&encoded).expect("a valid batch");
        (batch.time, batch.records().collect::<Result<_, _>>().expect("valid records"))
    }

    pub fn change_journal_row(&self, seq: i64, change: impl FnOnce(&mut Vec<LogRecord>)) {
        let (time, mut records) = self.journal_row(seq);
        change(&mut records);
        let mut encoder = BatchEncoder::new(records.first().expect("a record").position, time, records.len());
        records.iter().for_each(|record| encoder.push_record(record));
        let sql = "UPDATE journal SET batch = ?2 WHERE seq = ?1";
        self.connection.execute(sql, params![seq, encoder.finish()]).expect("it is written");
    }

    /// All records of the log, oldest first.
    pub fn records(&self) -> Vec<LogRecord> {
        let sealed_through = position(self.meta("sealed_through"));
        let mut records: Vec<LogRecord> = self.blocks().into_iter().flat_map(|first| self.block(first)).collect();
        let of_journal = self.journal_rows().into_iter().flat_map(|seq| self.journal_row(seq).1);
        records.extend(of_journal.filter(|record| record.position > sealed_through));
        records
    }
}
