//! Items and recipes as named in a request, and their lookup in the catalog.
//!
//! A request is parsed without a catalog, so that a retry is recognized even if its items are no longer in the catalog.
//! Names are resolved only when a mutation is about to run, against the current catalog.

use super::catalog::{Catalog, Recipe};
use super::ids::{ItemCode, LayoutId, Slot};
use super::mutation::{Mutation, Operation, TransferSource};
use super::stack::Stack;
use std::fmt;
use std::sync::Arc;

/// Names an item by its code, its id, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemRef {
    Code(ItemCode),
    Id(Arc<str>),
    Both { id: Arc<str>, code: ItemCode },
}

/// A mutation whose items and recipes are unresolved names.
pub type UnresolvedMutation = Mutation<ItemRef, Arc<str>>;
/// An operation whose items and recipe are unresolved names.
pub type UnresolvedOperation = Operation<ItemRef, Arc<str>>;

/// A name that is not in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnresolvedReference {
    /// The index of the operation that uses the name, from 0.
    pub operation: usize,
    /// The index in the operation's list of stacks, if the name is in such a list.
    pub stack: Option<usize>,
    pub entry: MissingEntry,
}

/// The kind of entry that the catalog does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissingEntry {
    Item {
        id: Arc<str>,
    },
    /// The request names the item with `code`, but it has `catalog_code` in the catalog.
    ItemCode {
        id: Arc<str>,
        code: ItemCode,
        catalog_code: ItemCode,
    },
    Recipe {
        id: Arc<str>,
    },
    Layout {
        id: LayoutId,
    },
}

/// An unknown name in one operation, with its index in the operation's list of stacks if it is in such a list.
type Unknown = (Option<usize>, MissingEntry);

impl Mutation<ItemRef, Arc<str>> {
    /// Replaces the names by the items and recipes of the catalog. An item that is named only by its code may be
    /// missing from the catalog: its stacks can still be taken or rearranged, and the rules refuse to create more of
    /// it.
    ///
    /// # Errors
    ///
    /// The first name that is not in the catalog.
    pub fn resolve(&self, catalog: &Catalog) -> Result<Mutation, UnresolvedReference> {
        let resolve = |(operation, named): (usize, &UnresolvedOperation)| {
            named.resolve(catalog).map_err(|(stack, entry)| UnresolvedReference { operation, stack, entry })
        };
        let operations = self.operations.iter().enumerate().map(resolve).collect::<Result<_, _>>()?;
        Ok(Mutation { operations, expected: self.expected.clone() })
    }
}

impl Operation<ItemRef, Arc<str>> {
    fn resolve(&self, catalog: &Catalog) -> Result<Operation, Unknown> {
        Ok(match self.clone() {
            Self::Create { id, owner, layout, stacks } => {
                catalog.layout(&layout).ok_or_else(|| (None, MissingEntry::Layout { id: layout.clone() }))?;
                Operation::Create { id, owner, layout, stacks: resolve_stacks(catalog, stacks)? }
            }
            Self::Delete { id } => Operation::Delete { id },
            Self::Add { id, item, attributes, count, allow_partial } => {
                Operation::Add { id, item: resolve_single(catalog, item)?, attributes, count, allow_partial }
            }
            Self::Remove { id, item, attributes, count } => {
                Operation::Remove { id, item: resolve_single(catalog, item)?, attributes, count }
            }
            Self::Move { id, from, to, count } => Operation::Move { id, from, to, count },
            Self::Drop { id, slot, count } => Operation::Drop { id, slot, count },
            Self::Craft { id, recipe, times } => {
                Operation::Craft { id, recipe: resolve_recipe(catalog, recipe)?, times }
            }
            Self::Transfer { from, what, to, to_slot, allow_partial } => {
                let what = match what {
                    TransferSource::Slot { slot, count } => TransferSource::Slot { slot, count },
                    TransferSource::Item { item, attributes, count } => {
                        TransferSource::Item { item: resolve_single(catalog, item)?, attributes, count }
                    }
                };
                Operation::Transfer { from, what, to, to_slot, allow_partial }
            }
            Self::Set { id, slot, stack } => {
                let stack = stack.map(|stack| resolve_stack(catalog, stack)).transpose();
                Operation::Set { id, slot, stack: stack.map_err(|entry| (None, entry))? }
            }
            Self::Rearrange { id, stacks } => Operation::Rearrange { id, stacks: resolve_stacks(catalog, stacks)? },
        })
    }
}

/// Resolves an item that is not in a list of stacks.
fn resolve_single(catalog: &Catalog, item: ItemRef) -> Result<ItemCode, Unknown> {
    resolve_item(catalog, item).map_err(|entry| (None, entry))
}

fn resolve_stacks(catalog: &Catalog, stacks: Vec<(Slot, Stack<ItemRef>)>) -> Result<Vec<(Slot, Stack)>, Unknown> {
    let resolve = |(index, (slot, stack))| match resolve_stack(catalog, stack) {
        Ok(stack) => Ok((slot, stack)),
        Err(entry) => Err((Some(index), entry)),
    };
    stacks.into_iter().enumerate().map(resolve).collect()
}

fn resolve_stack(catalog: &Catalog, stack: Stack<ItemRef>) -> Result<Stack, MissingEntry> {
    let Stack { item, count, attributes } = stack;
    Ok(Stack { item: resolve_item(catalog, item)?, count, attributes })
}

fn resolve_item(catalog: &Catalog, item: ItemRef) -> Result<ItemCode, MissingEntry> {
    let (id, code) = match item {
        ItemRef::Code(code) => return Ok(code),
        ItemRef::Id(id) => (id, None),
        ItemRef::Both { id, code } => (id, Some(code)),
    };
    match (catalog.item(&id).map(|item| item.code), code) {
        (None, _) => Err(MissingEntry::Item { id }),
        (Some(catalog_code), Some(code)) if catalog_code != code => {
            Err(MissingEntry::ItemCode { id, code, catalog_code })
        }
        (Some(catalog_code), _) => Ok(catalog_code),
    }
}

fn resolve_recipe(catalog: &Catalog, id: Arc<str>) -> Result<Arc<Recipe>, Unknown> {
    catalog.recipe(&id).cloned().ok_or((None, MissingEntry::Recipe { id }))
}

impl fmt::Display for MissingEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Item { id } => write!(f, "item {id:?} is not in the catalog"),
            Self::ItemCode { id, code, catalog_code } => {
                write!(f, "item {id:?} has code {}, not {}", catalog_code.get(), code.get())
            }
            // An unset field of a request is an empty name.
            Self::Recipe { id } if id.is_empty() => write!(f, "required"),
            Self::Recipe { id } => write!(f, "recipe {id:?} is not in the catalog"),
            Self::Layout { id } => write!(f, "layout {id:?} is not in the catalog"),
        }
    }
}
