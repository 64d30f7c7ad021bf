//! The messages. A field's number and meaning never change; new ones get new numbers.

/// All that was committed at once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    /// The store's own clock: time during which it was open, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub uptime_ms: u64,
    /// Each caller once; records point here.
    #[prost(string, repeated, tag = "2")]
    pub callers: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub records: Vec<Record>,
    /// The wall clock when it was received, in milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
}

/// One mutation: its key, its payload's fingerprint, its reply and its changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Where in the batch's callers.
    #[prost(uint32, tag = "1")]
    pub caller: u32,
    /// The key if it is a UUID in lower case; then `key` is empty.
    #[prost(fixed64, tag = "2")]
    pub uuid_high: u64,
    #[prost(fixed64, tag = "3")]
    pub uuid_low: u64,
    #[prost(string, tag = "4")]
    pub key: String,
    #[prost(fixed64, tag = "5")]
    pub payload: u64,
    #[prost(message, repeated, tag = "6")]
    pub outcomes: Vec<Outcome>,
    #[prost(message, repeated, tag = "7")]
    pub versions: Vec<Version>,
    #[prost(message, repeated, tag = "8")]
    pub changes: Vec<Change>,
}

/// A batch of which only the keys are wanted: the other fields are skipped unread.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchKeys {
    #[prost(uint64, tag = "1")]
    pub uptime_ms: u64,
    #[prost(string, repeated, tag = "2")]
    pub callers: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub records: Vec<RecordKey>,
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RecordKey {
    #[prost(uint32, tag = "1")]
    pub caller: u32,
    #[prost(fixed64, tag = "2")]
    pub uuid_high: u64,
    #[prost(fixed64, tag = "3")]
    pub uuid_low: u64,
    #[prost(string, tag = "4")]
    pub key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcome {
    #[prost(uint32, tag = "1")]
    pub count: u32,
    #[prost(uint32, tag = "2")]
    pub remainder: u32,
    /// One stack, or none; its slot number means nothing.
    #[prost(message, optional, tag = "3")]
    pub stack: Option<Stacks>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Version {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(fixed32, tag = "2")]
    pub epoch: u32,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(fixed32, tag = "4")]
    pub digest_a: u32,
    #[prost(fixed32, tag = "5")]
    pub digest_b: u32,
}

/// What a change is. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ChangeKind {
    Updated = 0,
    Created = 1,
    Deleted = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(enumeration = "ChangeKind", tag = "1")]
    pub kind: i32,
    /// Which of the record's versions (counted from 1) has this change's id, epoch and revision; 0: they stand here.
    #[prost(uint32, tag = "2")]
    pub version: u32,
    #[prost(string, tag = "3")]
    pub id: String,
    #[prost(fixed32, tag = "4")]
    pub epoch: u32,
    #[prost(uint64, tag = "5")]
    pub revision: u64,
    #[prost(message, optional, tag = "6")]
    pub edits: Option<Stacks>,
    #[prost(message, optional, tag = "7")]
    pub created: Option<Inventory>,
}

/// Stacks and their slots, in columns of equal length.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stacks {
    #[prost(uint32, repeated, tag = "1")]
    pub slots: Vec<u32>,
    /// 0: the slot was emptied.
    #[prost(uint32, repeated, tag = "2")]
    pub items: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub counts: Vec<u32>,
    /// Which rows of the columns (counted from 0) have attributes.
    #[prost(uint32, repeated, tag = "4")]
    pub attributed: Vec<u32>,
    /// Theirs, in that order.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub attributes: Vec<Vec<u8>>,
}

/// A whole inventory, as created.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, optional, tag = "2")]
    pub owner: Option<String>,
    #[prost(string, tag = "3")]
    pub layout: String,
    #[prost(fixed32, tag = "4")]
    pub epoch: u32,
    #[prost(message, optional, tag = "5")]
    pub contents: Option<Contents>,
}

/// Slots with their stamps.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Contents {
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// The filled slots.
    #[prost(message, optional, tag = "2")]
    pub stacks: Option<Stacks>,
    /// For every slot, filled or not: how many revisions ago it changed.
    #[prost(uint64, repeated, tag = "3")]
    pub changed_ago: Vec<u64>,
    /// For every slot: how many revisions before that it became what it is.
    #[prost(uint64, repeated, tag = "4")]
    pub identity_before: Vec<u64>,
    #[prost(fixed32, tag = "5")]
    pub digest_a: u32,
    #[prost(fixed32, tag = "6")]
    pub digest_b: u32,
}
