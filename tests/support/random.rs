//! Random catalogs, worlds and mutations. Names and kinds of items are few, so that operations interact; numbers
//! include sensible and absurd values.

use super::{World, attributes, count, id, item, layout_id};
use proptest::prelude::*;
use proptest::sample::select;
use slotcast::catalog_file::default_catalog;
use slotcast::domain::catalog::{CatalogSource, RecipeSource};
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Catalog, Count, Epoch, Guard, Inventory, InventoryId, Item, ItemCode, Mutation, Operation, Recipe,
    Revision, Slot, Stack,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Each inventory starts with its own layout, except the last one, which does not exist at first. The pouch has 3
/// slots, so that mutations run out of room.
pub const NAMES: [&str; 4] = ["anna", "chest", "pouch", "new"];
const LAYOUTS: [&str; 3] = ["player", "chest", "pouch"];
const SLOTS_MAX: u16 = 36;
/// Planks, log, stick, torch, coal and sword, some of them more frequent, and a code that is in no catalog.
const CODES: [u32; 10] = [1, 1, 1, 15, 15, 21, 23, 24, 29, 99];

/// Every catalog has this item, so that at least one recipe is valid.
const COAL: u32 = 24;

/// Returns a configuration with `PROPTEST_CASES` cases. Default: `cases`, suited to a build without optimization.
pub fn config(cases: u32) -> ProptestConfig {
    let from_environment = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    // A failure prints its whole input, which then becomes a test; no regression file is needed.
    ProptestConfig { cases: from_environment.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

/// A world, and mutations to apply to it in order.
#[derive(Debug, Clone)]
pub struct History {
    pub world: World,
    pub mutations: Vec<Mutation>,
}

pub fn history() -> impl Strategy<Value = History> {
    catalog().prop_flat_map(|catalog| {
        let mutations = prop::collection::vec(steps(catalog.recipes().to_vec()), 1..16);
        (world(catalog), mutations).prop_map(|(world, list)| History { mutations: settled(&world, list), world })
    })
}

/// The built-in catalog without some items, with other stack limits, a small layout, and two recipes at the limits.
fn catalog() -> impl Strategy<Value = Catalog> {
    let limit = prop_oneof![5 => Just(None), 1 => select(vec![Some(1), Some(5), Some(u32::MAX)])];
    let kept = prop_oneof![9 => Just(true), 1 => Just(false)];
    prop::collection::vec((kept, limit), default_catalog().items().len()).prop_map(|choices| {
        let default = default_catalog();
        let mut source = source_without_items(&default);
        let one = |id: &str, count| vec![(id.to_owned(), count)];
        source.recipes.push(RecipeSource { id: "flood".into(), inputs: vec![], outputs: one("coal", u32::MAX) });
        source.recipes.push(RecipeSource { id: "burn".into(), inputs: one("stick", 3), outputs: vec![] });
        source.layouts.push(("pouch".to_owned(), vec![("all".to_owned(), 3)]));
        for (known, (_, limit)) in
            default.items().iter().zip(&choices).filter(|(known, (kept, _))| *kept || known.code.get() == COAL)
        {
            source.items.push((known.id.to_string(), known.code.get(), limit.unwrap_or(known.max_stack.get())));
        }
        let has = |name: &str| source.items.iter().any(|(id, _, _)| id == name);
        let met = |name: &str| default.item(name).is_some_and(|item| CODES.contains(&item.code.get()));
        source.recipes.retain(|recipe| {
            recipe.inputs.iter().all(|(id, _)| has(id) && met(id)) && recipe.outputs.iter().all(|(id, _)| has(id))
        });

        Catalog::new(source).expect("a valid catalog")
    })
}

fn source_without_items(catalog: &Catalog) -> CatalogSource {
    let name = |code: &ItemCode| catalog.item_by_code(*code).unwrap().id.to_string();
    let side = |parts: &[(ItemCode, Count)]| parts.iter().map(|(code, count)| (name(code), count.get())).collect();
    let recipes: Vec<RecipeSource> = catalog
        .recipes()
        .iter()
        .map(|recipe| RecipeSource {
            id: recipe.id.to_string(),
            inputs: side(&recipe.inputs),
            outputs: side(&recipe.outputs),
        })
        .collect();
    let layouts: Vec<_> = catalog
        .layouts()
        .map(|layout| (layout.id.to_string(), vec![("all".to_owned(), layout.slots() as u64)]))
        .collect();
    CatalogSource { items: vec![], recipes, layouts }
}

/// Returns the same catalog with stack limits of at most `max_stack`.
pub fn lowered(catalog: &Catalog, max_stack: u32) -> Catalog {
    let mut source = source_without_items(catalog);
    let item = |known: &Item| (known.id.to_string(), known.code.get(), known.max_stack.get().min(max_stack));
    source.items = catalog.items().iter().map(item).collect();
    Catalog::new(source).expect("a valid catalog")
}

/// Inventories as an older catalog may have left them: with stacks above the limits and with removed items.
fn world(catalog: Catalog) -> impl Strategy<Value = World> {
    let stored = prop::collection::vec((slot(), stack()), 2..14);
    let inventory = prop_oneof![6 => (1_u64..4, stored).prop_map(Some), 1 => Just(None)];
    prop::collection::vec(inventory, LAYOUTS.len()).prop_map(move |inventories| {
        let mut world = World::new(catalog.clone());
        for ((name, layout), stored) in NAMES.into_iter().zip(LAYOUTS).zip(inventories) {
            let Some((revision, stacks)) = stored else { continue };
            let edits: Vec<_> = stacks.into_iter().map(|(slot, stack)| (slot, Some(stack))).collect();
            world.put(name, layout, revision, &edits);
        }
        world
    })
}

/// An operation, or a step whose operation depends on the current state.
#[derive(Debug, Clone)]
enum Step {
    Plain(Operation),
    /// Rearranges the inventory's own stacks in another order.
    Shuffle {
        id: InventoryId,
        seed: u64,
    },
    /// Rearranges the inventory's items into stacks whose sizes are those of other stacks of the same kind.
    Repack {
        id: InventoryId,
        seed: u64,
    },
}

#[derive(Debug, Clone)]
struct Steps {
    steps: Vec<Step>,
    /// Guards: for each inventory, whether to expect its current epoch or another one, and the revision.
    expected: Vec<(InventoryId, bool, Revision)>,
    /// Omits operations that would be rejected; otherwise hardly any list of several operations would be accepted.
    only_accepted: bool,
}

fn steps(recipes: Vec<Arc<Recipe>>) -> impl Strategy<Value = Steps> {
    let one = prop::collection::vec(step(recipes.clone()), 1);
    let list = prop_oneof![2 => one, 1 => prop::collection::vec(step(recipes), 2..8)];
    let some = (inventory_id(), prop::bool::weighted(0.8), 1_u64..6)
        .prop_map(|(id, same_epoch, revision)| vec![(id, same_epoch, Revision(revision))]);
    let expected = prop_oneof![15 => Just(vec![]), 1 => some];
    (list, expected, any::<bool>()).prop_map(|(steps, expected, only_accepted)| Steps {
        steps,
        expected,
        only_accepted,
    })
}

/// Resolves steps into operations by applying them in order to a copy of the world.
fn settled(world: &World, list: Vec<Steps>) -> Vec<Mutation> {
    let mut world = world.clone();
    let mutation = |Steps { steps, expected, only_accepted }| {
        let mut during = world.clone();
        let mut operations = Vec::new();
        for step in steps {
            let operation = match step {
                Step::Plain(operation) => operation,
                Step::Shuffle { id, seed } => Operation::Rearrange { stacks: shuffled(&during, &id, seed), id },
                Step::Repack { id, seed } => Operation::Rearrange { stacks: repacked(&during, &id, seed), id },
            };
            let accepted = during.run(operation.clone()).is_ok();
            if accepted || !only_accepted {
                operations.push(operation);
            }
        }
        let guard = |(id, same_epoch, revision): (InventoryId, bool, Revision)| {
            let current = world.inventories.get(&id).filter(|_| same_epoch).map(|inventory| inventory.epoch);
            Guard { id, epoch: current.unwrap_or_else(|| Epoch::new(1).unwrap()), revision }
        };
        let expected = expected.into_iter().map(guard).collect();
        let mutation = Mutation { operations, expected };
        let _ = world.mutate(&mutation);
        mutation
    };
    list.into_iter().map(mutation).collect()
}

fn step(recipes: Vec<Arc<Recipe>>) -> impl Strategy<Value = Step> {
    let shuffle = (inventory_id(), 0_u64..99).prop_map(|(id, seed)| Step::Shuffle { id, seed });
    let repack = (inventory_id(), 0_u64..99).prop_map(|(id, seed)| Step::Repack { id, seed });
    prop_oneof![24 => operation(recipes).prop_map(Step::Plain), 1 => shuffle, 1 => repack]
}

fn operation(recipes: Vec<Arc<Recipe>>) -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => create(),
        1 => inventory_id().prop_map(|id| Operation::Delete { id }),
        6 => (inventory_id(), code(), bytes(), number(), any::<bool>()).prop_map(
            |(id, item, attributes, count, allow_partial)| Operation::Add { id, item, attributes, count, allow_partial }
        ),
        6 => (inventory_id(), code(), prop::option::of(bytes()), number())
            .prop_map(|(id, item, attributes, count)| Operation::Remove { id, item, attributes, count }),
        6 => (inventory_id(), slot(), slot(), prop::option::of(number()))
            .prop_map(|(id, from, to, count)| Operation::Move { id, from, to, count }),
        4 => (inventory_id(), slot(), prop::option::of(number()))
            .prop_map(|(id, slot, count)| Operation::Drop { id, slot, count }),
        6 => (inventory_id(), select(recipes), prop_oneof![Just(count(1)), number()])
            .prop_map(|(id, recipe, times)| Operation::Craft { id, recipe, times }),
        8 => transfer(),
        4 => (inventory_id(), slot(), prop::option::of(stack()))
            .prop_map(|(id, slot, stack)| Operation::Set { id, slot, stack }),
        1 => (inventory_id(), prop::collection::vec((slot(), stack()), 0..4))
            .prop_map(|(id, stacks)| Operation::Rearrange { id, stacks }),
    ]
}

fn create() -> impl Strategy<Value = Operation> {
    let layout = select(vec!["player", "chest", "pouch", "pouch", "nowhere"]);
    let stacks = prop::collection::vec((slot(), stack()), 0..2);
    (prop_oneof![select(vec!["new"]).prop_map(id), inventory_id()], layout, stacks)
        .prop_map(|(id, layout, stacks)| Operation::Create { id, owner: None, layout: layout_id(layout), stacks })
}

fn transfer() -> impl Strategy<Value = Operation> {
    let what = prop_oneof![
        (slot(), prop::option::of(number())).prop_map(|(slot, count)| TransferSource::Slot { slot, count }),
        (code(), prop::option::of(bytes()), number()).prop_map(|(item, attributes, count)| TransferSource::Item {
            item,
            attributes,
            count
        }),
    ];
    (inventory_id(), what, inventory_id(), prop::option::of(slot()), any::<bool>()).prop_map(
        |(from, what, to, to_slot, allow_partial)| Operation::Transfer { from, what, to, to_slot, allow_partial },
    )
}

fn inventory_id() -> impl Strategy<Value = InventoryId> {
    prop_oneof![30 => select(NAMES.to_vec()), 1 => Just("nobody")].prop_map(id)
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![20 => 0_u16..3, 4 => 0..SLOTS_MAX, 1 => select(vec![SLOTS_MAX, u16::MAX])].prop_map(Slot)
}

fn code() -> impl Strategy<Value = ItemCode> {
    select(CODES.to_vec()).prop_map(item)
}

fn number() -> impl Strategy<Value = Count> {
    prop_oneof![12 => 1_u32..=3, 4 => 1_u32..=70, 2 => 63_u32..=65, 1 => u32::MAX - 1..=u32::MAX].prop_map(count)
}

fn bytes() -> impl Strategy<Value = Attributes> {
    prop_oneof![12 => Just(vec![]), 2 => Just(vec![7]), 1 => Just(vec![7; Attributes::BYTES_MAX])]
        .prop_map(|bytes| attributes(&bytes))
}

fn stack() -> impl Strategy<Value = Stack> {
    (code(), number(), bytes()).prop_map(|(item, count, attributes)| Stack { item, count, attributes })
}

/// Returns the inventory's own items in new stacks from slot 0 on. Each stack has the size of an existing stack of the
/// same kind, or is smaller if fewer items remain. Returns nothing if the inventory does not exist.
fn repacked(world: &World, id: &InventoryId, mut seed: u64) -> Vec<(Slot, Stack)> {
    let Some(inventory) = world.inventories.get(id) else { return vec![] };
    let mut kinds: BTreeMap<(ItemCode, &Attributes), Vec<u32>> = BTreeMap::new();
    for (_, stack) in inventory.contents.stacks() {
        kinds.entry((stack.item, &stack.attributes)).or_default().push(stack.count.get());
    }
    let mut stacks = Vec::new();
    for ((item, attributes), counts) in kinds {
        let mut left: u64 = counts.iter().copied().map(u64::from).sum();
        while left > 0 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wanted = counts[(seed >> 33) as usize % counts.len()];
            let given = left.min(u64::from(wanted)) as u32;
            left -= u64::from(given);
            let stack = Stack { item, count: count(given), attributes: attributes.clone() };
            stacks.push((Slot(stacks.len() as u16), stack));
        }
    }
    stacks
}

/// Returns the inventory's own stacks in slots shuffled by `seed`, or nothing if the inventory does not exist.
pub fn shuffled(world: &World, id: &InventoryId, seed: u64) -> Vec<(Slot, Stack)> {
    let Some(Inventory { contents, .. }) = world.inventories.get(id).map(|inventory| &**inventory) else {
        return vec![];
    };
    let slots = contents.slots().len() as u64;
    // The factor is -1 modulo `slots`, which is coprime to `slots`, so the slots are distinct.
    let place = |slot: Slot| Slot(((seed + (slots - 1) * u64::from(slot.0)) % slots) as u16);
    contents.stacks().map(|(slot, stack)| (place(slot), stack.clone())).collect()
}
