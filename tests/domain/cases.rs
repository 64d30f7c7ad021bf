//! The numbered cases 1 to 17, 23 and 24, as far as they concern the rules. Input that only a request can contain
//! (negative numbers, invalid UTF-8, missing fields) is tested in `tests/service`.

use crate::setup::{GONE, slots};
use crate::support::{World, attributes, count, filled, id, item, layout_id, stack, stack_with};
use slotcast::domain::catalog::{CatalogSource, RecipeSource};
use slotcast::domain::ids::NameError;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Catalog, Count, Edit, Guard, IdempotencyKey, Item, ItemCode, LayoutId, Mutation, Operation,
    OperationOutcome, RejectionCause, Revision, Slot,
};

const PLANKS: u32 = 1;
const LOG: u32 = 2;
const SWORD: u32 = 3;
/// Its stack limit is the maximum number.
const DUST: u32 = 4;

/// "a" has 4 slots, "b" has 2.
fn world(a: &[Edit], b: &[Edit]) -> World {
    let named = |id: &str, code, max_stack| (id.to_owned(), code, max_stack);
    let side = |id: &str, count| vec![(id.to_owned(), count)];
    let layout = |id: &str, slots| (id.to_owned(), vec![("all".to_owned(), slots)]);
    let source = CatalogSource {
        items: vec![
            named("planks", PLANKS, 64),
            named("log", LOG, 64),
            named("sword", SWORD, 1),
            named("dust", DUST, u32::MAX),
        ],
        recipes: vec![
            RecipeSource { id: "planks".into(), inputs: side("log", 1), outputs: side("planks", 4) },
            RecipeSource { id: "flood".into(), inputs: vec![], outputs: side("dust", u32::MAX) },
        ],
        layouts: vec![layout("four", 4), layout("two", 2)],
    };
    let mut world = World::new(Catalog::new(source).unwrap());
    world.put("a", "four", 5, a);
    world.put("b", "two", 7, b);
    world
}

fn add(code: u32, number: u32, allow_partial: bool) -> Operation {
    Operation::Add { id: id("a"), item: item(code), attributes: Attributes::NONE, count: count(number), allow_partial }
}

fn remove(code: u32, number: u32) -> Operation {
    Operation::Remove { id: id("a"), item: item(code), attributes: None, count: count(number) }
}

fn move_stack(from: u16, to: u16, number: Option<u32>) -> Operation {
    Operation::Move { id: id("a"), from: Slot(from), to: Slot(to), count: number.map(count) }
}

fn craft(world: &World, recipe: &str, times: u32) -> Operation {
    Operation::Craft { id: id("a"), recipe: world.catalog.recipe(recipe).unwrap().clone(), times: count(times) }
}

fn transfer_slot(slot: u16, number: Option<u32>, to_slot: Option<u16>, allow_partial: bool) -> Operation {
    let what = TransferSource::Slot { slot: Slot(slot), count: number.map(count) };
    Operation::Transfer { from: id("a"), what, to: id("b"), to_slot: to_slot.map(Slot), allow_partial }
}

/// Asserts that an operation is accepted and creates one revision of "a", and returns its outcome.
fn assert_accepted(world: &mut World, operation: Operation) -> OperationOutcome {
    let before = world.get("a").contents.revision();
    let mut effect = world.run(operation).expect("the rules accept the operation");
    assert_eq!(world.get("a").contents.revision(), before.next());
    effect.outcomes.remove(0)
}

/// Asserts that an operation is accepted and changes nothing, and returns its outcome.
fn assert_no_change(world: &mut World, operation: Operation) -> OperationOutcome {
    let before = world.clone();
    let mut effect = world.run(operation).expect("the rules accept the operation");
    assert_eq!(world.inventories, before.inventories, "no new revision");
    assert!(effect.touched.iter().all(|touched| !touched.is_changed()));
    effect.outcomes.remove(0)
}

/// Asserts that an operation is rejected and changes nothing, and returns the cause.
fn assert_rejected(world: &mut World, operation: Operation) -> RejectionCause {
    let before = world.clone();
    let rejection = world.run(operation).expect_err("the rules reject the operation");
    assert_eq!(world.inventories, before.inventories, "a rejection changes nothing");
    rejection.cause
}

#[test]
fn case_01_a_count_of_0_is_invalid() {
    assert_eq!(Count::new(0), None);
    assert_eq!(stack(PLANKS, 5).with_count(0), None, "no stack of nothing");
}

#[test]
fn case_02_the_maximum_count_is_rejected_without_overflow() {
    let mut world = world(&[filled(0, stack(PLANKS, 60))], &[]);
    let cause = assert_rejected(&mut world, add(PLANKS, u32::MAX, false));
    assert_eq!(
        cause,
        RejectionCause::NoRoom { id: id("a"), item: item(PLANKS), needed: u64::from(u32::MAX), room: 4 + 3 * 64 }
    );
    let cause = assert_rejected(&mut world, remove(PLANKS, u32::MAX));
    assert_eq!(
        cause,
        RejectionCause::NotEnough { id: id("a"), item: item(PLANKS), needed: u64::from(u32::MAX), held: 60 }
    );
    for operation in [
        move_stack(0, 1, Some(u32::MAX)),
        Operation::Drop { id: id("a"), slot: Slot(0), count: Some(count(u32::MAX)) },
        transfer_slot(0, Some(u32::MAX), None, true),
    ] {
        assert!(matches!(assert_rejected(&mut world, operation), RejectionCause::NotEnough { held: 60, .. }));
    }
    let set = Operation::Set { id: id("a"), slot: Slot(0), stack: Some(stack(PLANKS, u32::MAX)) };
    assert!(matches!(assert_rejected(&mut world, set), RejectionCause::StackTooLarge { max_stack: 64, .. }));
    assert_eq!(
        assert_accepted(&mut world, add(PLANKS, u32::MAX, true)).remainder,
        u32::MAX - 196,
        "or as much as fits"
    );
}

#[test]
fn case_03_adding_two_to_one_below_the_maximum_splits_without_overflow() {
    for (code, max) in [(PLANKS, 64), (DUST, u32::MAX)] {
        let mut world = world(&[filled(1, stack(code, max - 1))], &[]);
        let outcome = assert_accepted(&mut world, add(code, 2, false));
        assert_eq!(outcome, OperationOutcome { count: 2, ..OperationOutcome::default() });
        assert_eq!(slots(&world, "a"), [(0, code, 1), (1, code, max)]);
    }
}

#[test]
fn case_04_an_unknown_item_recipe_or_layout_is_rejected() {
    let mut world = world(&[], &[]);
    let unknown = RejectionCause::UnknownItemCode { item: item(GONE) };
    assert_eq!(ItemCode::new(0), None);
    assert_eq!(assert_rejected(&mut world, add(GONE, 1, true)), unknown);
    let set = Operation::Set { id: id("a"), slot: Slot(0), stack: Some(stack(GONE, 1)) };
    assert_eq!(assert_rejected(&mut world, set), unknown);
    assert!(world.catalog.item("mithril").is_none() && world.catalog.recipe("mithril").is_none());
    let layout = LayoutId::new("palace").unwrap();
    let create =
        |layout: &LayoutId, stacks| Operation::Create { id: id("c"), owner: None, layout: layout.clone(), stacks };
    assert_eq!(assert_rejected(&mut world, create(&layout, vec![])), RejectionCause::UnknownLayout { layout });
    assert_eq!(assert_rejected(&mut world, create(&layout_id("two"), vec![(Slot(0), stack(GONE, 1))])), unknown);
}

#[test]
fn case_05_an_item_removed_from_the_catalog_can_be_moved_but_not_created() {
    let mut world = world(&[filled(0, stack(GONE, 80)), filled(1, stack(GONE, 5)), filled(2, stack(PLANKS, 1))], &[]);
    assert_eq!(slots(&world, "a"), [(0, GONE, 80), (1, GONE, 5), (2, PLANKS, 1)]);
    assert_rejected(&mut world, add(GONE, 1, true));
    assert_eq!(
        assert_no_change(&mut world, move_stack(1, 0, None)).count,
        0,
        "nothing merges onto it: its limit is not known"
    );
    assert_accepted(&mut world, move_stack(0, 3, None));
    assert_accepted(&mut world, move_stack(3, 2, None));
    assert_eq!(slots(&world, "a"), [(1, GONE, 5), (2, GONE, 80), (3, PLANKS, 1)], "moved, then swapped");
    assert_accepted(&mut world, remove(GONE, 2));
    assert_eq!(assert_accepted(&mut world, transfer_slot(2, None, None, false)).count, 80);
    assert_eq!(slots(&world, "b"), [(0, GONE, 80)]);
    let drop = Operation::Drop { id: id("a"), slot: Slot(1), count: None };
    assert_eq!(assert_accepted(&mut world, drop).stack, Some(stack(GONE, 3)));
}

#[test]
fn case_06_a_slot_out_of_range_is_rejected() {
    for slot in [4, u16::MAX] {
        let mut world = world(&[filled(0, stack(PLANKS, 9))], &[filled(0, stack(LOG, 1))]);
        let out_of_range = RejectionCause::SlotOutOfRange { id: id("a"), slot: Slot(slot), slots: 4 };
        for operation in [
            move_stack(0, slot, None),
            move_stack(slot, 0, None),
            move_stack(slot, slot, None),
            Operation::Drop { id: id("a"), slot: Slot(slot), count: None },
            Operation::Set { id: id("a"), slot: Slot(slot), stack: None },
            Operation::Rearrange { id: id("a"), stacks: vec![(Slot(slot), stack(PLANKS, 9))] },
            transfer_slot(slot, None, None, false),
        ] {
            assert_eq!(assert_rejected(&mut world, operation), out_of_range);
        }
        let cause = assert_rejected(&mut world, transfer_slot(0, None, Some(slot), true));
        assert_eq!(cause, RejectionCause::SlotOutOfRange { id: id("b"), slot: Slot(slot), slots: 2 });
    }
}

#[test]
fn case_07_a_move_onto_the_same_slot_succeeds_without_a_new_revision() {
    let mut world = world(&[filled(0, stack(PLANKS, 9)), filled(1, stack(PLANKS, 64))], &[]);
    for number in [None, Some(1), Some(u32::MAX)] {
        assert_eq!(assert_no_change(&mut world, move_stack(0, 0, number)), OperationOutcome::default());
    }
    assert_eq!(
        assert_no_change(&mut world, move_stack(0, 1, None)),
        OperationOutcome::default(),
        "and so is one onto a full stack of the same"
    );
}

#[test]
fn case_08_a_partial_move_onto_another_item_is_rejected_and_a_whole_move_swaps() {
    let mut world = world(&[filled(0, stack(PLANKS, 9)), filled(1, stack(LOG, 5))], &[]);
    for number in [8, 9] {
        let cause = assert_rejected(&mut world, move_stack(0, 1, Some(number)));
        assert_eq!(cause, RejectionCause::SlotOccupied { id: id("a"), slot: Slot(1) }, "even if {number} is all of it");
    }
    assert_eq!(assert_accepted(&mut world, move_stack(0, 1, None)).count, 9);
    assert_eq!(slots(&world, "a"), [(0, LOG, 5), (1, PLANKS, 9)]);
}

#[test]
fn case_09_stacks_with_different_attributes_never_merge() {
    let named = stack_with(PLANKS, 3, b"oiled");
    let mut world = world(&[filled(0, named.clone()), filled(1, stack(PLANKS, 5))], &[filled(0, named.clone())]);
    assert_accepted(&mut world, add(PLANKS, 1, false));
    assert_eq!(slots(&world, "a"), [(0, PLANKS, 3), (1, PLANKS, 6)], "passes by the stack with attributes");
    assert!(matches!(assert_rejected(&mut world, move_stack(0, 1, Some(1))), RejectionCause::SlotOccupied { .. }));
    assert_accepted(&mut world, move_stack(0, 1, None));
    assert_eq!(slots(&world, "a"), [(0, PLANKS, 6), (1, PLANKS, 3)], "swapped as two things");
    let cause = assert_rejected(&mut world, transfer_slot(0, None, Some(0), false));
    assert_eq!(cause, RejectionCause::SlotOccupied { id: id("b"), slot: Slot(0) });
    assert_accepted(&mut world, transfer_slot(0, None, None, false));
    assert_eq!(slots(&world, "b"), [(0, PLANKS, 3), (1, PLANKS, 6)]);
    assert_accepted(&mut world, transfer_slot(1, None, None, false));
    assert_eq!(slots(&world, "b"), [(0, PLANKS, 6), (1, PLANKS, 6)], "only onto the same attributes");
}

#[test]
fn case_10_an_add_without_enough_room_is_rejected_or_partial_on_request() {
    let mut world = world(&[0, 1, 2, 3].map(|slot| filled(slot, stack(PLANKS, 60))), &[]);
    let cause = assert_rejected(&mut world, add(PLANKS, 20, false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("a"), item: item(PLANKS), needed: 20, room: 16 });
    let outcome = assert_accepted(&mut world, add(PLANKS, 20, true));
    assert_eq!(outcome, OperationOutcome { count: 16, remainder: 4, stack: None });
    assert_eq!(
        assert_no_change(&mut world, add(PLANKS, 4, true)),
        OperationOutcome { count: 0, remainder: 4, stack: None }
    );
}

#[test]
fn case_11_removing_more_than_present_removes_nothing() {
    let mut world = world(&[filled(0, stack(PLANKS, 60)), filled(2, stack(PLANKS, 3))], &[]);
    let cause = assert_rejected(&mut world, remove(PLANKS, 64));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("a"), item: item(PLANKS), needed: 64, held: 63 });
    assert_eq!(assert_accepted(&mut world, remove(PLANKS, 63)).count, 63);
    assert_eq!(slots(&world, "a"), []);
}

#[test]
fn case_12_a_craft_without_room_for_its_output_keeps_the_inputs() {
    let full =
        [filled(0, stack(LOG, 5)), filled(1, stack(PLANKS, 62)), filled(2, stack(SWORD, 1)), filled(3, stack(DUST, 1))];
    let mut world = world(&full, &[]);
    let craft = craft(&world, "planks", 1);
    let cause = assert_rejected(&mut world, craft);
    assert_eq!(cause, RejectionCause::NoRoom { id: id("a"), item: item(PLANKS), needed: 4, room: 2 });
    assert_eq!(slots(&world, "a")[0], (0, LOG, 5));
}

#[test]
fn case_13_crafting_the_maximum_number_of_times_is_rejected_without_overflow() {
    let mut world = world(&[filled(0, stack(LOG, 64))], &[]);
    let most = u64::from(u32::MAX);
    let operation = craft(&world, "planks", u32::MAX);
    let cause = assert_rejected(&mut world, operation);
    assert_eq!(cause, RejectionCause::NotEnough { id: id("a"), item: item(LOG), needed: most, held: 64 });
    let operation = craft(&world, "flood", u32::MAX);
    let cause = assert_rejected(&mut world, operation);
    assert_eq!(
        cause,
        RejectionCause::NoRoom { id: id("a"), item: item(DUST), needed: most * most, room: 3 * most },
        "in 32 bits this product is 1"
    );
}

#[test]
fn case_14_a_transfer_within_one_inventory_is_rejected() {
    let mut world = world(&[filled(0, stack(PLANKS, 9))], &[]);
    let what = TransferSource::Slot { slot: Slot(0), count: None };
    let transfer =
        Operation::Transfer { from: id("a"), what, to: id("a"), to_slot: Some(Slot(1)), allow_partial: true };
    assert_eq!(assert_rejected(&mut world, transfer), RejectionCause::SameInventory { id: id("a") });
}

#[test]
fn case_15_attributes_above_the_size_limit_are_invalid() {
    assert_eq!(Attributes::BYTES_MAX, 1_024);
    assert!(Attributes::new(&[1; 1_024]).is_some());
    assert_eq!(Attributes::new(&[1; 1_025]), None);
    assert_eq!(Attributes::new(&[]), Some(Attributes::NONE), "empty attributes are none");
    assert_ne!(attributes(&[0]), Attributes::NONE);
}

#[test]
fn case_16_invalid_names_are_reported_with_the_reason() {
    use slotcast::domain::InventoryId;
    assert_eq!(InventoryId::new(""), Err(NameError::Empty));
    assert_eq!(InventoryId::new("a\0b"), Err(NameError::ControlCharacter));
    assert_eq!(InventoryId::new("a\u{85}b"), Err(NameError::ControlCharacter));
    assert_eq!(InventoryId::new(&"ä".repeat(65)), Err(NameError::TooLong { bytes_max: 128 }));
    assert!(InventoryId::new(&"ä".repeat(64)).is_ok(), "the bound is in bytes");
}

#[test]
fn case_17_an_idempotency_key_has_1_to_255_bytes() {
    assert_eq!(IdempotencyKey::new(""), Err(NameError::Empty));
    assert!(IdempotencyKey::new(&"k".repeat(255)).is_ok());
    assert_eq!(IdempotencyKey::new(&"k".repeat(256)), Err(NameError::TooLong { bytes_max: 255 }));
}

#[test]
fn case_23_a_stale_guard_is_rejected_with_the_current_revision() {
    let mut world = world(&[filled(0, stack(PLANKS, 9))], &[]);
    let guard = |name, revision| Guard { id: id(name), epoch: world.get(name).epoch, revision: Revision(revision) };
    let (on_b, [on_a_at_4, on_a_at_5, on_a_at_6]) = (guard("b", 7), [4, 5, 6].map(|revision| guard("a", revision)));
    let epoch = on_b.epoch;
    let guarded = |guard: &Guard| Mutation {
        operations: vec![add(PLANKS, 1, false)],
        expected: vec![on_b.clone(), guard.clone()],
    };
    let of_another_epoch = Guard { epoch, ..on_a_at_5.clone() };
    for stale in [on_a_at_4, on_a_at_6, of_another_epoch] {
        let rejection = world.mutate(&guarded(&stale)).unwrap_err();
        let (epoch, revision) = (on_a_at_5.epoch, Revision(5));
        assert_eq!(rejection.cause, RejectionCause::StaleRevision { expected: stale, epoch, revision });
    }
    assert_eq!(world.mutate(&guarded(&on_a_at_5)).unwrap().touched[0].version.revision, Revision(6));
    world.mutate(&guarded(&on_a_at_5)).expect_err("the guard is stale");
}

#[test]
fn case_24_when_the_third_operation_fails_none_is_applied() {
    let mut world = world(&[filled(0, stack(PLANKS, 9))], &[]);
    let before = world.inventories.clone();
    let operations =
        vec![add(LOG, 3, false), transfer_slot(0, None, None, false), remove(PLANKS, 1), add(LOG, 1, false)];
    let rejection = world.mutate(&Mutation { operations, expected: vec![] }).unwrap_err();
    assert_eq!(rejection.operation, 2);
    assert_eq!(rejection.cause, RejectionCause::NotEnough { id: id("a"), item: item(PLANKS), needed: 1, held: 0 });
    assert_eq!(world.inventories, before);
}

#[test]
fn a_stack_above_its_limit_stays_whole_and_its_parts_respect_the_limit() {
    let mut world = world(&[filled(0, stack(PLANKS, 200))], &[]);
    let Some(Item { max_stack, .. }) = world.catalog.item_by_code(item(PLANKS)) else { panic!("it is there") };
    assert_eq!(max_stack.get(), 64);
    let outcome = assert_accepted(&mut world, transfer_slot(0, Some(100), Some(0), true));
    assert_eq!(outcome, OperationOutcome { count: 64, remainder: 36, stack: None });
    assert_eq!((slots(&world, "a"), slots(&world, "b")), (vec![(0, PLANKS, 136)], vec![(0, PLANKS, 64)]));
    assert_accepted(&mut world, transfer_slot(0, None, Some(1), false));
    assert_eq!(slots(&world, "b"), [(0, PLANKS, 64), (1, PLANKS, 136)], "whole as it is");
}
