//! Ring 0: what an inventory is and how it changes. Standard library only, synchronous, no clock, no randomness:
//! everything that could differ between two runs is an argument.
//!
//! Read in this order: [`ids`], [`stack`], [`catalog`], [`inventory`] (the stamps), [`digest`], [`mutation`] (one
//! request), [`names`] (the items and recipes in it), [`rules`] (what each operation does to slots), [`rejection`].

pub mod catalog;
pub mod digest;
pub mod ids;
pub mod inventory;
pub mod mutation;
pub mod names;
pub mod rejection;
pub mod rules;
pub mod stack;

pub use catalog::{Catalog, Item, Layout, Recipe, Section};
pub use digest::{Digest, Fingerprint};
pub use ids::{
    Caller, Count, Epoch, IdempotencyKey, InventoryId, ItemCode, KeyTag, LayoutId, NameError, PlayerId, Revision,
    SessionId, Slot,
};
pub use inventory::{Change, Contents, Draft, Edit, Inventory, SlotState, Version};
pub use mutation::{Effect, Guard, InventoryLookup, Mutation, Operation, OperationOutcome, Touched, apply};
pub use names::{ItemName, NamedMutation, NamedOperation, UnknownEntry, UnknownName};
pub use rejection::{Rejection, RejectionCause};
pub use stack::{Attributes, Stack};
