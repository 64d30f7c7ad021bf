//! Stacks: an item, a count and optional attributes.

use super::ids::{Count, ItemCode};
use std::sync::Arc;

/// Opaque bytes that distinguish stacks of the same item (enchantment, durability, name).
///
/// Empty bytes mean no attributes, so a plain stack has only one representation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Attributes(Option<Arc<[u8]>>);

impl Attributes {
    /// Maximum size of the attributes of one stack, in bytes (1 KiB).
    pub const BYTES_MAX: usize = 1024;

    /// No attributes.
    pub const NONE: Self = Self(None);

    /// Returns `None` if `bytes` is longer than [`Self::BYTES_MAX`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            0 => Some(Self::NONE),
            1..=Self::BYTES_MAX => Some(Self(Some(bytes.into()))),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

/// Items of one type in one slot. `I` identifies the item: by its code, or by the name in a request ([`super::names`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stack<I = ItemCode> {
    pub item: I,
    pub count: Count,
    pub attributes: Attributes,
}

impl Stack {
    /// Returns whether the stack has this item and these attributes. Only stacks of the same kind merge.
    pub fn is_same_kind(&self, item: ItemCode, attributes: &Attributes) -> bool {
        self.item == item && self.attributes == *attributes
    }

    /// Returns the same kind of stack with another count, or `None` if `count` is 0.
    pub fn with_count(&self, count: u32) -> Option<Self> {
        Some(Self { item: self.item, count: Count::new(count)?, attributes: self.attributes.clone() })
    }
}
