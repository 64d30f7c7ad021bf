//! A stack: item, count and optional attributes.

use super::ids::{Count, ItemCode};
use std::sync::Arc;

/// Opaque bytes that make one stack of an item different from another (enchantment, durability, name).
///
/// Empty attributes are no attributes: there is one way to say "plain".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Attributes(Option<Arc<[u8]>>);

impl Attributes {
    /// 1 KiB a stack.
    pub const BYTES_MAX: usize = 1024;

    pub const NONE: Self = Self(None);

    /// None when there are more than [`Self::BYTES_MAX`] bytes.
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

/// `I` is how the item is given: by its code, or as a request names it ([`super::names`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stack<I = ItemCode> {
    pub item: I,
    pub count: Count,
    pub attributes: Attributes,
}

impl Stack {
    /// Two stacks merge only if item and attributes are equal.
    pub fn is_same_kind(&self, item: ItemCode, attributes: &Attributes) -> bool {
        self.item == item && self.attributes == *attributes
    }

    /// The same kind with another count; none when nothing is left.
    pub fn with_count(&self, count: u32) -> Option<Self> {
        Some(Self { item: self.item, count: Count::new(count)?, attributes: self.attributes.clone() })
    }
}
