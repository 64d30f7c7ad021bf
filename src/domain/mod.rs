//! Ring 0 (see ARCHITECTURE.md): inventories and the rules that change them. Uses only the standard library.
//! Synchronous and deterministic: time and random values are arguments.
//!
//! Suggested reading order: [`ids`], [`stack`], [`catalog`], [`inventory`] (revision stamps), [`digest`], [`mutation`]
//! (one request), [`names`] (its items and recipes), [`rules`] (the effect of each operation on slots), [`flow`] (the items
//! that operations make and consume), [`rejection`].

pub mod catalog;
pub mod digest;
pub mod flow;
pub mod ids;
pub mod inventory;
pub mod mutation;
pub mod names;
pub mod rejection;
pub mod rules;
pub mod stack;

pub use catalog::{Catalog, Item, Layout, Recipe, Section};
pub use digest::{Digest, Fingerprint};
pub use flow::{Flow, OperationKind};
pub use ids::{
    Caller, Count, Epoch, IdempotencyKey, InventoryId, ItemCode, KeyTag, LayoutId, NameError, PlayerId, Revision,
    SessionId, Slot,
};
pub use inventory::{Contents, Draft, Edit, Inventory, SlotState, Version};
pub use mutation::{
    Effect, Guard, InventoryLookup, Mutation, Operation, OperationOutcome, PredictionOutcome, TouchedInventory,
    Transition, apply,
};
pub use names::{ItemRef, MissingEntry, UnresolvedMutation, UnresolvedOperation, UnresolvedReference};
pub use rejection::{Rejection, RejectionCause};
pub use stack::{Attributes, Stack};
