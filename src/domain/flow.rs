//! Flows: how many items the operations of a mutation bring into the world and take out of it.
//!
//! The flows of an operation follow from the operation and its outcome. The edits of a mutation show only its net effect: a
//! craft whose output is dropped by the next operation of the same mutation leaves no trace of the output in them.

use super::ids::ItemCode;
use super::mutation::{Operation, OperationOutcome};
use super::stack::Stack;

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationKind {
    Create,
    Delete,
    Add,
    Remove,
    Move,
    Drop,
    Craft,
    Transfer,
    Set,
    Rearrange,
    /// An inventory from a file that an operator imported.
    Import,
}

impl OperationKind {
    /// All kinds, in order.
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::Delete,
        Self::Add,
        Self::Remove,
        Self::Move,
        Self::Drop,
        Self::Craft,
        Self::Transfer,
        Self::Set,
        Self::Rearrange,
        Self::Import,
    ];

    /// The name of the kind in lower case, such as "add".
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Move => "move",
            Self::Drop => "drop",
            Self::Craft => "craft",
            Self::Transfer => "transfer",
            Self::Set => "set",
            Self::Rearrange => "rearrange",
            Self::Import => "import",
        }
    }

    pub fn of<I, R>(operation: &Operation<I, R>) -> Self {
        match operation {
            Operation::Create { .. } => Self::Create,
            Operation::Delete { .. } => Self::Delete,
            Operation::Add { .. } => Self::Add,
            Operation::Remove { .. } => Self::Remove,
            Operation::Move { .. } => Self::Move,
            Operation::Drop { .. } => Self::Drop,
            Operation::Craft { .. } => Self::Craft,
            Operation::Transfer { .. } => Self::Transfer,
            Operation::Set { .. } => Self::Set,
            Operation::Rearrange { .. } => Self::Rearrange,
        }
    }
}

/// How many of one item one operation added and removed. A transfer, a move or a rearrangement has no flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Index of the operation in its mutation.
    pub operation: u8,
    pub item: ItemCode,
    pub added: u64,
    pub removed: u64,
}

/// Collects the flows of one mutation, at most one for each operation and item.
#[derive(Debug, Default)]
pub struct Flows {
    flows: Vec<Flow>,
    /// Index of the current operation.
    operation: u8,
}

impl Flows {
    /// Begins the operation with this index, which is below [`super::mutation::OPERATIONS_MAX`].
    pub fn begin(&mut self, operation: usize) {
        self.operation = operation as u8;
    }

    pub fn add(&mut self, item: ItemCode, count: u64) {
        self.flow(item).added += count;
    }

    pub fn remove(&mut self, item: ItemCode, count: u64) {
        self.flow(item).removed += count;
    }

    pub fn add_stacks<'a>(&mut self, stacks: impl Iterator<Item = &'a Stack>) {
        stacks.for_each(|stack| self.add(stack.item, u64::from(stack.count.get())));
    }

    pub fn remove_stacks<'a>(&mut self, stacks: impl Iterator<Item = &'a Stack>) {
        stacks.for_each(|stack| self.remove(stack.item, u64::from(stack.count.get())));
    }

    /// Adds the flows of an operation that follow from its outcome: all but those of a deletion.
    pub fn add_outcome(&mut self, operation: &Operation, outcome: &OperationOutcome) {
        match operation {
            Operation::Create { stacks, .. } => self.add_stacks(stacks.iter().map(|(_, stack)| stack)),
            Operation::Add { item, .. } if outcome.count > 0 => self.add(*item, u64::from(outcome.count)),
            Operation::Remove { item, .. } => self.remove(*item, u64::from(outcome.count)),
            Operation::Drop { .. } => self.remove_stacks(outcome.stack.iter()),
            Operation::Craft { recipe, times, .. } => {
                let total = |count: u32| u64::from(count) * u64::from(times.get());
                recipe.inputs.iter().for_each(|(item, count)| self.remove(*item, total(count.get())));
                recipe.outputs.iter().for_each(|(item, count)| self.add(*item, total(count.get())));
            }
            Operation::Set { stack, .. } => {
                self.remove_stacks(outcome.stack.iter());
                self.add_stacks(stack.iter());
            }
            Operation::Add { .. }
            | Operation::Delete { .. }
            | Operation::Move { .. }
            | Operation::Transfer { .. }
            | Operation::Rearrange { .. } => {}
        }
    }

    pub fn into_vec(self) -> Vec<Flow> {
        self.flows
    }

    fn flow(&mut self, item: ItemCode) -> &mut Flow {
        let operation = self.operation;
        let found = self.flows.iter().rposition(|flow| flow.operation == operation && flow.item == item);
        let index = found.unwrap_or_else(|| {
            self.flows.push(Flow { operation, item, added: 0, removed: 0 });
            self.flows.len() - 1
        });
        &mut self.flows[index]
    }
}
