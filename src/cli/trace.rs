//! Traces: recorded operations of players, and the inventories that they start with.

use crate::catalog_file;
use crate::domain::{self, Catalog, Epoch, Inventory, InventoryId, InventoryLookup, Mutation};
use crate::wire::request;
use crate::wire::v1;
use crate::wire::v1::operation::Operation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Trace {
    pub name: String,
    pub steps: Vec<Step>,
}

/// One operation, and its time in milliseconds after the start.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    pub at_ms: u64,
    #[serde(flatten)]
    op: Op,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Op {
    Drop { inventory: String, slot: u32, count: u32 },
    Craft { inventory: String, recipe: String, times: u32 },
    Move { inventory: String, from: u32, to: u32 },
    Transfer { from_inventory: String, from: u32, to_inventory: String, to: u32, count: u32 },
}

/// The inventories that a trace starts with.
#[derive(Debug, Clone, Deserialize)]
pub struct World {
    starting: BTreeMap<String, Start>,
}

#[derive(Debug, Clone, Deserialize)]
struct Start {
    layout: String,
    slots: Vec<StartStack>,
}

#[derive(Debug, Clone, Deserialize)]
struct StartStack {
    slot: u32,
    item: String,
    count: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot read the trace {name}: {error} (built-in traces: {})", built_in_names())]
    Unreadable { name: String, error: std::io::Error },
    #[error("{name}, line {line}: {error}")]
    Malformed { name: String, line: usize, error: serde_json::Error },
    #[error("trace {name}: unknown inventory {inventory:?}")]
    UnknownInventory { name: String, inventory: String },
    #[error("cannot play the trace {name}: {problem}")]
    Unplayable { name: String, problem: String },
}

const BUILT_IN: [(&str, &str); 6] = [
    ("drop-8-in-2s", include_str!("traces/drop-8-in-2s.jsonl")),
    ("hold-q-20-in-3s", include_str!("traces/hold-q-20-in-3s.jsonl")),
    ("craft-10-in-2s", include_str!("traces/craft-10-in-2s.jsonl")),
    ("chest-10-in-3s", include_str!("traces/chest-10-in-3s.jsonl")),
    ("drag-drop-15-in-2s", include_str!("traces/drag-drop-15-in-2s.jsonl")),
    ("chest-craft-drop-20-in-2s", include_str!("traces/chest-craft-drop-20-in-2s.jsonl")),
];

fn built_in_names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

impl Trace {
    pub fn built_in() -> Result<Vec<Self>, TraceError> {
        BUILT_IN.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// Returns a built-in trace by its name, or reads a trace from a file.
    pub fn load(name: &str) -> Result<Self, TraceError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text);
        }
        let text =
            std::fs::read_to_string(name).map_err(|error| TraceError::Unreadable { name: name.to_owned(), error })?;
        let stem = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
        Self::parse(&stem, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, TraceError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let step = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| TraceError::Malformed {
                name: name.to_owned(),
                line: index + 1,
                error,
            })
        };
        Ok(Self { name: name.to_owned(), steps: lines.map(step).collect::<Result<_, _>>()? })
    }

    /// Returns the inventories of the trace, in alphabetical order.
    pub fn inventories(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.steps.iter().flat_map(|step| step.op.inventories()).collect();
        names.into_iter().collect()
    }
}

impl Op {
    fn inventories(&self) -> Vec<&str> {
        match self {
            Self::Drop { inventory, .. } | Self::Craft { inventory, .. } | Self::Move { inventory, .. } => {
                vec![inventory]
            }
            Self::Transfer { from_inventory, to_inventory, .. } => vec![from_inventory, to_inventory],
        }
    }
}

impl Step {
    /// Returns the operation to call; `id` maps the name of an inventory to its actual id.
    pub fn operation(&self, id: impl Fn(&str) -> String) -> Operation {
        match &self.op {
            Op::Drop { inventory, slot, count } => {
                Operation::Drop(v1::DropItem { inventory_id: id(inventory), from: Some(slot_quantity(*slot, *count)) })
            }
            Op::Craft { inventory, recipe, times } => {
                Operation::Craft(v1::CraftItem { inventory_id: id(inventory), recipe: recipe.clone(), times: *times })
            }
            Op::Move { inventory, from, to } => Operation::Move(v1::MoveItem {
                inventory_id: id(inventory),
                from: Some(v1::SlotQuantity { slot: *from, count: None }),
                to: Some(v1::SlotRef { slot: *to }),
            }),
            Op::Transfer { from_inventory, from, to_inventory, to, count } => Operation::Transfer(v1::TransferItem {
                from_inventory_id: id(from_inventory),
                to_inventory_id: id(to_inventory),
                what: Some(v1::transfer_item::What::From(slot_quantity(*from, *count))),
                to: Some(v1::SlotRef { slot: *to }),
                allow_partial: false,
            }),
        }
    }
}

fn slot_quantity(slot: u32, count: u32) -> v1::SlotQuantity {
    v1::SlotQuantity { slot, count: Some(count) }
}

impl World {
    /// Returns the starter kit and the chest of the game in which the traces were recorded.
    pub fn built_in() -> Self {
        // The world is part of the program, and every demo uses it.
        serde_json::from_str(include_str!("traces/world.json")).expect("the built-in world is valid")
    }

    /// Returns the operation that creates one of the world's inventories under an id.
    pub fn create(&self, trace: &Trace, inventory: &str, id: &str) -> Result<Operation, TraceError> {
        let unknown = || TraceError::UnknownInventory { name: trace.name.clone(), inventory: inventory.to_owned() };
        let start = self.starting.get(inventory).ok_or_else(unknown)?;
        let stack = |start: &StartStack| v1::SlotStack {
            slot: start.slot,
            stack: Some(v1::Stack { item: start.item.clone(), count: start.count, ..v1::Stack::default() }),
        };
        Ok(Operation::Create(v1::CreateInventory {
            inventory_id: id.to_owned(),
            owner: String::new(),
            layout: start.layout.clone(),
            stacks: start.slots.iter().map(stack).collect(),
        }))
    }
}

/// A slot as the baseline sends it.
#[derive(Serialize)]
struct BaselineStack<'a> {
    item: &'a str,
    count: u32,
}

/// Returns the number of bytes that the baseline would have sent for a trace: after each operation, every slot of each
/// changed inventory as JSON. Applies the trace to the rules alone and serializes each state.
pub fn baseline_bytes(trace: &Trace, world: &World) -> Result<u64, TraceError> {
    let catalog = catalog_file::default_catalog();
    let mut states = States::default();
    for inventory in trace.inventories() {
        states.run(trace, &catalog, world.create(trace, inventory, inventory)?)?;
    }
    let mut bytes = 0;
    for step in &trace.steps {
        for changed in states.run(trace, &catalog, step.operation(str::to_owned))? {
            bytes += baseline_json(&catalog, &changed).len() as u64;
        }
    }
    Ok(bytes)
}

fn baseline_json(catalog: &Catalog, inventory: &Inventory) -> Vec<u8> {
    let convert = |stack: &domain::Stack| {
        let item = catalog.item_by_code(stack.item).map_or("", |item| item.id.as_ref());
        BaselineStack { item, count: stack.count.get() }
    };
    let slots = inventory.contents.slots().iter().map(|state| state.stack.as_ref().map(convert));
    // Serializing these values as JSON cannot fail.
    serde_json::to_vec(&slots.collect::<Vec<_>>()).unwrap_or_default()
}

#[derive(Default)]
struct States(HashMap<InventoryId, Arc<Inventory>>);

impl InventoryLookup for States {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        self.0.get(id).cloned()
    }
}

impl States {
    /// Applies one operation and returns the inventories that it changed.
    fn run(
        &mut self,
        trace: &Trace,
        catalog: &Catalog,
        operation: Operation,
    ) -> Result<Vec<Arc<Inventory>>, TraceError> {
        let unplayable = |problem: String| TraceError::Unplayable { name: trace.name.clone(), problem };
        let operations = [v1::Operation { operation: Some(operation) }];
        let unknown = |unknown| request::unknown_name(&request::name_paths(&operations), true, &unknown);
        let mutation: Mutation = request::mutation(&v1::MutationContext::default(), &operations, true)
            .and_then(|named| named.resolve(catalog).map_err(unknown))
            .map_err(|invalid| unplayable(invalid.to_string()))?;
        // The baseline does not send epochs, so any epoch will do.
        let mut new_epoch = || Epoch::new(1).unwrap_or_else(|| unreachable!("1 is not 0"));
        let effect = domain::apply(&mutation, catalog, self, &mut new_epoch)
            .map_err(|rejection| unplayable(rejection.to_string()))?;
        let changed = effect.touched.into_iter().filter(domain::TouchedInventory::is_changed);
        let states: Vec<_> = changed.filter_map(|touched| touched.state).collect();
        self.0.extend(states.iter().map(|state| (state.id.clone(), state.clone())));
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_sends_about_a_kilobyte_for_a_player_and_both_sides_of_a_transfer() {
        let world = World::built_in();
        let traces = Trace::built_in().expect("the traces are valid");
        let bytes: Vec<_> = traces
            .iter()
            .map(|trace| (trace.name.as_str(), trace.steps.len(), baseline_bytes(trace, &world).expect("it plays")))
            .collect();
        insta::assert_debug_snapshot!(bytes);
    }

    #[test]
    fn the_error_for_an_invalid_line_has_its_number() {
        let error = Trace::parse("mine", "{\"at_ms\": 0, \"op\": \"fly\"}").expect_err("the operation is unknown");
        assert!(error.to_string().starts_with("mine, line 1: unknown variant `fly`"), "{error}");
    }
}
