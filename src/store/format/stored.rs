//! The stored messages. A field's number and meaning never change; new fields get new numbers.

/// The mutations that were committed together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    /// The store's own clock: how long it has been open in total, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub uptime_ms: u64,
    /// Each caller once; records refer to the index.
    #[prost(string, repeated, tag = "2")]
    pub callers: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub records: Vec<Record>,
    /// The wall clock when the batch was received, in milliseconds since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
}

/// One mutation: its key, its payload's fingerprint, its reply and its changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Index in the batch's callers.
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

/// A batch of which only the keys are needed: decoding skips the other fields.
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
    /// One stack, or none; its slot number has no meaning.
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

/// The kind of a change. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum StoredChangeKind {
    Updated = 0,
    Created = 1,
    Deleted = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(enumeration = "StoredChangeKind", tag = "1")]
    pub kind: i32,
    /// The version of the record (counted from 1) that has this change's id, epoch and revision; 0 if this message has
    /// them.
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
    /// Item code; 0 if the slot was emptied.
    #[prost(uint32, repeated, tag = "2")]
    pub items: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub counts: Vec<u32>,
    /// Indexes of the rows (counted from 0) that have attributes.
    #[prost(uint32, repeated, tag = "4")]
    pub attributed: Vec<u32>,
    /// The attributes of these rows, in the same order.
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
    /// For every slot: how many revisions before its last change its identity changed.
    #[prost(uint64, repeated, tag = "4")]
    pub identity_before: Vec<u64>,
    #[prost(fixed32, tag = "5")]
    pub digest_a: u32,
    #[prost(fixed32, tag = "6")]
    pub digest_b: u32,
}
