//! What each operation does exactly, by example.

#![allow(clippy::unwrap_used)]

mod support;

use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Change, Contents, Digest, Edit, Guard, Mutation, Operation, OperationOutcome, RejectionCause, Revision,
    Slot, Stack, TouchedInventory, Version,
};
use support::{World, attributes, count, filled, id, item, layout_id, stack, stack_with};

const PLANKS: u32 = 1;
const LOG: u32 = 15;
const STICK: u32 = 21;
const TORCH: u32 = 23;
const COAL: u32 = 24;
const SWORD: u32 = 29;

/// A player's inventory of 36 slots and a chest of 27.
fn world(player: &[Edit], chest: &[Edit]) -> World {
    let mut world = World::new(default_catalog());
    world.put("player", "player", 3, player);
    world.put("chest", "chest", 8, chest);
    world
}

/// The filled slots as (slot, item code, count).
fn slots(world: &World, name: &str) -> Vec<(u16, u32, u32)> {
    world.get(name).contents.stacks().map(|(slot, stack)| (slot.0, stack.item.get(), stack.count.get())).collect()
}

fn run(world: &mut World, operation: Operation) -> OperationOutcome {
    world.run(operation).expect("it is within the rules").outcomes.remove(0)
}

fn refusal(world: &mut World, operation: Operation) -> RejectionCause {
    let before = world.inventories.clone();
    let cause = world.run(operation).expect_err("it is against the rules").cause;
    assert_eq!(world.inventories, before);
    cause
}

fn moved(number: u32) -> OperationOutcome {
    OperationOutcome { count: number, ..OperationOutcome::default() }
}

fn add(code: u32, number: u32, bytes: &[u8]) -> Operation {
    Operation::Add {
        id: id("player"),
        item: item(code),
        attributes: attributes(bytes),
        count: count(number),
        allow_partial: false,
    }
}

fn remove(code: u32, number: u32, attributes: Option<Attributes>) -> Operation {
    Operation::Remove { id: id("player"), item: item(code), attributes, count: count(number) }
}

fn shift(from: u16, to: u16, number: Option<u32>) -> Operation {
    Operation::Move { id: id("player"), from: Slot(from), to: Slot(to), count: number.map(count) }
}

fn drop(slot: u16, number: Option<u32>) -> Operation {
    Operation::Drop { id: id("player"), slot: Slot(slot), count: number.map(count) }
}

fn craft(recipe: &str, times: u32) -> Operation {
    let recipe = default_catalog().recipe(recipe).unwrap().clone();
    Operation::Craft { id: id("player"), recipe, times: count(times) }
}

fn transfer(what: TransferSource, to_slot: Option<u16>, allow_partial: bool) -> Operation {
    Operation::Transfer { from: id("player"), what, to: id("chest"), to_slot: to_slot.map(Slot), allow_partial }
}

fn of_slot(slot: u16, number: Option<u32>) -> TransferSource {
    TransferSource::Slot { slot: Slot(slot), count: number.map(count) }
}

fn of_item(code: u32, number: u32) -> TransferSource {
    TransferSource::Item { item: item(code), attributes: None, count: count(number) }
}

fn all_slots_but(free: &[u16], slots: u16, stack: &Stack) -> Vec<Edit> {
    (0..slots).filter(|slot| !free.contains(slot)).map(|slot| filled(slot, stack.clone())).collect()
}

#[test]
fn add_fills_stacks_of_the_same_kind_first_and_then_empty_slots_lowest_first() {
    let mut world =
        world(&[filled(1, stack(COAL, 9)), filled(4, stack(PLANKS, 60)), filled(6, stack(PLANKS, 63))], &[]);
    assert_eq!(run(&mut world, add(PLANKS, 4 + 1 + 64 + 7, b"")), moved(76));
    let expected = [(0, PLANKS, 64), (1, COAL, 9), (2, PLANKS, 7), (4, PLANKS, 64), (6, PLANKS, 64)];
    assert_eq!(slots(&world, "player"), expected);
    run(&mut world, add(SWORD, 2, b"sharp"));
    assert_eq!(slots(&world, "player")[3..5], [(3, SWORD, 1), (4, PLANKS, 64)], "a stack of 1 each");
    assert_eq!(world.get("player").contents.stack(Slot(5)), Some(&stack_with(SWORD, 1, b"sharp")));
}

#[test]
fn remove_takes_from_the_hotbar_first() {
    let held = [filled(8, stack(PLANKS, 5)), filled(9, stack(PLANKS, 64)), filled(20, stack(PLANKS, 64))];
    let mut world = world(&held, &[]);
    assert_eq!(run(&mut world, remove(PLANKS, 70, None)), moved(70));
    assert_eq!(slots(&world, "player"), [(20, PLANKS, 63)]);
}

#[test]
fn remove_takes_only_the_attributes_asked_for_or_any() {
    let held = [filled(0, stack_with(SWORD, 1, b"sharp")), filled(1, stack(SWORD, 1)), filled(2, stack(SWORD, 1))];
    let mut world = world(&held, &[]);
    run(&mut world, remove(SWORD, 1, Some(Attributes::NONE)));
    assert_eq!(slots(&world, "player"), [(0, SWORD, 1), (2, SWORD, 1)]);
    let cause = refusal(&mut world, remove(SWORD, 2, Some(Attributes::NONE)));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(SWORD), needed: 2, held: 1 });
    run(&mut world, remove(SWORD, 2, None));
    assert_eq!(slots(&world, "player"), []);
}

#[test]
fn a_move_splits_merges_and_swaps() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(COAL, 5))], &[]);
    assert_eq!(run(&mut world, shift(0, 9, Some(30))), moved(30));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 10), (1, COAL, 5), (9, PLANKS, 30)], "split");
    assert_eq!(run(&mut world, shift(9, 0, Some(5))), moved(5));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 15), (1, COAL, 5), (9, PLANKS, 25)], "merged in part");
    assert_eq!(run(&mut world, shift(9, 0, None)), moved(25));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 40), (1, COAL, 5)], "merged");
    assert_eq!(run(&mut world, shift(0, 1, None)), moved(40));
    assert_eq!(slots(&world, "player"), [(0, COAL, 5), (1, PLANKS, 40)], "swapped");
    assert_eq!(run(&mut world, shift(1, 35, None)), moved(40));
    assert_eq!(slots(&world, "player"), [(0, COAL, 5), (35, PLANKS, 40)], "moved");
    assert_eq!(refusal(&mut world, shift(7, 8, None)), RejectionCause::SlotEmpty { id: id("player"), slot: Slot(7) });
}

#[test]
fn a_move_onto_a_stack_with_less_room_moves_what_fits() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(PLANKS, 50))], &[]);
    assert_eq!(run(&mut world, shift(0, 1, None)), moved(14));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 26), (1, PLANKS, 64)]);
}

#[test]
fn a_drop_hands_out_the_stack_with_its_attributes() {
    let mut world = world(&[filled(6, stack_with(PLANKS, 10, b"oiled"))], &[]);
    let outcome = run(&mut world, drop(6, Some(1)));
    assert_eq!(outcome, OperationOutcome { count: 1, remainder: 0, stack: Some(stack_with(PLANKS, 1, b"oiled")) });
    let outcome = run(&mut world, drop(6, None));
    assert_eq!(outcome.stack, Some(stack_with(PLANKS, 9, b"oiled")));
    assert_eq!(slots(&world, "player"), []);
    assert_eq!(refusal(&mut world, drop(6, None)), RejectionCause::SlotEmpty { id: id("player"), slot: Slot(6) });
}

#[test]
fn a_craft_takes_inputs_hotbar_first_and_adds_outputs() {
    let held = [filled(0, stack(COAL, 2)), filled(3, stack(STICK, 1)), filled(30, stack(STICK, 5))];
    let mut world = world(&held, &[]);
    assert_eq!(run(&mut world, craft("torch", 2)), moved(2));
    assert_eq!(slots(&world, "player"), [(0, TORCH, 8), (30, STICK, 4)]);
}

#[test]
fn a_craft_may_use_the_slots_that_its_inputs_leave() {
    let mut held = all_slots_but(&[5], 36, &stack(SWORD, 1));
    held.push(filled(5, stack(LOG, 2)));
    let mut world = world(&held, &[]);
    assert!(matches!(refusal(&mut world, craft("oak_planks", 1)), RejectionCause::NoRoom { needed: 4, room: 0, .. }));
    run(&mut world, craft("oak_planks", 2));
    assert_eq!(slots(&world, "player")[5], (5, PLANKS, 8));
}

#[test]
fn a_craft_leaves_stacks_with_attributes_alone() {
    let held =
        [filled(0, stack_with(LOG, 9, b"signed")), filled(1, stack(LOG, 1)), filled(2, stack_with(PLANKS, 1, b"x"))];
    let mut world = world(&held, &[]);
    let cause = refusal(&mut world, craft("oak_planks", 2));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(LOG), needed: 2, held: 1 });
    run(&mut world, craft("oak_planks", 1));
    assert_eq!(slots(&world, "player"), [(0, LOG, 9), (1, PLANKS, 4), (2, PLANKS, 1)]);
}

#[test]
fn a_transfer_to_a_slot_puts_it_there_or_says_what_is_in_the_way() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(COAL, 3))], &[filled(0, stack(PLANKS, 60))]);
    assert_eq!(run(&mut world, transfer(of_slot(0, Some(10)), Some(5), false)), moved(10));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 60), (5, PLANKS, 10)]);
    let cause = refusal(&mut world, transfer(of_slot(0, None), Some(0), false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 30, room: 4 });
    let cause = refusal(&mut world, transfer(of_slot(1, None), Some(0), true));
    assert_eq!(cause, RejectionCause::SlotOccupied { id: id("chest"), slot: Slot(0) });
    let outcome = run(&mut world, transfer(of_slot(0, None), Some(0), true));
    assert_eq!(outcome, OperationOutcome { count: 4, remainder: 26, stack: None });
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 26), (1, COAL, 3)], "the rest stays");
}

#[test]
fn a_transfer_without_a_slot_fills_like_an_add_and_keeps_attributes() {
    let held = [filled(0, stack(PLANKS, 40)), filled(1, stack_with(PLANKS, 3, b"oiled"))];
    let mut world = world(&held, &[filled(7, stack(PLANKS, 60))]);
    assert_eq!(run(&mut world, transfer(of_slot(0, None), None, false)), moved(40));
    assert_eq!(run(&mut world, transfer(of_slot(1, None), None, false)), moved(3));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 36), (1, PLANKS, 3), (7, PLANKS, 64)]);
    assert_eq!(world.get("chest").contents.stack(Slot(1)), Some(&stack_with(PLANKS, 3, b"oiled")));
    assert_eq!(slots(&world, "player"), []);
}

#[test]
fn a_transfer_by_item_takes_the_lowest_slots_first_and_never_less_than_asked() {
    let mut world = world(&[filled(2, stack(PLANKS, 40)), filled(9, stack(PLANKS, 40))], &[]);
    let cause = refusal(&mut world, transfer(of_item(PLANKS, 81), None, true));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(PLANKS), needed: 81, held: 80 });
    assert_eq!(run(&mut world, transfer(of_item(PLANKS, 70), None, false)), moved(70));
    assert_eq!(
        (slots(&world, "player"), slots(&world, "chest")),
        (vec![(9, PLANKS, 10)], vec![(0, PLANKS, 64), (1, PLANKS, 6)])
    );
}

#[test]
fn a_transfer_moves_a_part_only_for_want_of_room_and_if_asked() {
    let chest = all_slots_but(&[4], 27, &stack(SWORD, 1));
    let mut world = world(&[filled(2, stack(PLANKS, 40)), filled(9, stack(PLANKS, 40))], &chest);
    let cause = refusal(&mut world, transfer(of_item(PLANKS, 70), None, false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 70, room: 64 });
    let outcome = run(&mut world, transfer(of_item(PLANKS, 70), None, true));
    assert_eq!(outcome, OperationOutcome { count: 64, remainder: 6, stack: None });
    assert_eq!(slots(&world, "player"), [(9, PLANKS, 16)]);
    let revisions = |world: &World| ["player", "chest"].map(|name| world.get(name).contents.revision());
    assert_eq!(revisions(&world), [Revision(4), Revision(9)], "one commit on both sides");
}

#[test]
fn set_tells_what_it_replaced() {
    let mut world = world(&[filled(0, stack(PLANKS, 40))], &[]);
    let set = |stack| Operation::Set { id: id("player"), slot: Slot(0), stack };
    let outcome = run(&mut world, set(Some(stack_with(SWORD, 1, b"sharp"))));
    assert_eq!(outcome.stack, Some(stack(PLANKS, 40)));
    assert_eq!(run(&mut world, set(None)).stack, Some(stack_with(SWORD, 1, b"sharp")));
    assert_eq!(run(&mut world, set(None)).stack, None);
    assert_eq!(world.get("player").contents.revision(), Revision(5), "the last one changed nothing");
}

#[test]
fn rearrange_accepts_a_sort_and_refuses_one_item_more_or_less() {
    let held = [filled(0, stack(PLANKS, 40)), filled(3, stack(COAL, 5)), filled(9, stack(PLANKS, 34))];
    let mut world = world(&held, &[]);
    let wanted = |stacks: &[(u16, Stack)]| Operation::Rearrange {
        id: id("player"),
        stacks: stacks.iter().map(|(slot, stack)| (Slot(*slot), stack.clone())).collect(),
    };
    let sorted = wanted(&[(0, stack(COAL, 5)), (1, stack(PLANKS, 64)), (2, stack(PLANKS, 10))]);
    run(&mut world, sorted);
    assert_eq!(slots(&world, "player"), [(0, COAL, 5), (1, PLANKS, 64), (2, PLANKS, 10)]);
    let not_one = RejectionCause::NotARearrangement { id: id("player") };
    for (stacks, cause) in [
        (vec![(0, stack(COAL, 5)), (1, stack(PLANKS, 64)), (2, stack(PLANKS, 11))], not_one.clone()),
        (vec![(0, stack(COAL, 5)), (1, stack(PLANKS, 64)), (2, stack(PLANKS, 9))], not_one.clone()),
        (vec![(1, stack(PLANKS, 64)), (2, stack(PLANKS, 10))], not_one.clone()),
        (vec![(0, stack_with(COAL, 5, b"x")), (1, stack(PLANKS, 64)), (2, stack(PLANKS, 10))], not_one),
        (
            vec![(0, stack(COAL, 5)), (1, stack(PLANKS, 74))],
            RejectionCause::StackTooLarge { item: item(PLANKS), count: 74, max_stack: 64 },
        ),
        (vec![(0, stack(COAL, 4)), (0, stack(COAL, 1))], RejectionCause::DuplicateSlot { slot: Slot(0) }),
    ] {
        assert_eq!(refusal(&mut world, wanted(&stacks)), cause);
    }
}

#[test]
fn create_gives_revision_1_and_delete_the_next_one() {
    let mut world = world(&[], &[]);
    let create = |stacks: Vec<(Slot, Stack)>| Operation::Create {
        id: id("new"),
        owner: None,
        layout: layout_id("chest"),
        stacks,
    };
    let cause = refusal(&mut world, create(vec![(Slot(0), stack(COAL, 1)), (Slot(0), stack(COAL, 1))]));
    assert_eq!(cause, RejectionCause::DuplicateSlot { slot: Slot(0) });
    let effect = world.run(create(vec![(Slot(26), stack(COAL, 1))])).unwrap();
    assert_eq!(effect.touched[0].version.revision, Revision::CREATED);
    assert_eq!(slots(&world, "new"), [(26, COAL, 1)]);
    assert_eq!(refusal(&mut world, create(vec![])), RejectionCause::InventoryExists { id: id("new") });
    let effect = world.run(Operation::Delete { id: id("new") }).unwrap();
    assert_eq!((effect.touched[0].version.revision, &effect.touched[0].state), (Revision(2), &None));
    let cause = refusal(&mut world, Operation::Delete { id: id("new") });
    assert_eq!(cause, RejectionCause::InventoryNotFound { id: id("new") });
}

#[test]
fn delete_and_create_in_one_mutation_is_a_deletion_and_a_creation_in_a_new_epoch() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let (old, owner) = (world.get("player").clone(), world.get("player").owner.clone());
    let create = Operation::Create { id: id("player"), owner, layout: layout_id("chest"), stacks: vec![] };
    let operations = vec![Operation::Delete { id: id("player") }, create, add(LOG, 2, b"")];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let new = world.get("player");
    assert_ne!(new.epoch, old.epoch);
    assert_eq!((new.contents.revision(), slots(&world, "player")), (Revision::CREATED, vec![(0, LOG, 2)]));
    assert_eq!(new.contents.slots().len(), 27);
    let deleted = Change::Deleted { id: id("player"), epoch: old.epoch, revision: Revision(4) };
    assert_eq!(effect.touched[0].changes, [deleted, Change::Created(world.inventories[&id("player")].clone())]);
}

#[test]
fn an_inventory_created_and_deleted_in_one_mutation_is_named_with_the_revision_after_its_last_and_changes_nothing() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let create = || Operation::Create { id: id("new"), owner: None, layout: layout_id("chest"), stacks: vec![] };
    let delete = || Operation::Delete { id: id("new") };
    let transfer_to_new =
        |what| Operation::Transfer { from: id("player"), what, to: id("new"), to_slot: None, allow_partial: false };
    let before = world.inventories.clone();
    for operations in [vec![create(), delete()], vec![create(), delete(), create(), delete()]] {
        let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
        let [touched] = effect.touched.as_slice() else { panic!("one inventory: {effect:?}") };
        assert_eq!((&touched.version.id, touched.version.revision), (&id("new"), Revision(2)));
        assert_eq!((touched.version.digest, touched.is_transient()), (Digest::EMPTY, true));
        assert_eq!(world.inventories, before);
    }
    let operations = vec![create(), transfer_to_new(of_slot(0, Some(2))), delete()];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let named: Vec<_> = effect.touched.iter().map(|touched| touched.version.id.as_str()).collect();
    assert_eq!(named, ["new", "player"], "in order of first mention");
    assert_eq!(slots(&world, "player"), [(0, COAL, 5)]);
}

#[test]
fn an_inventory_deleted_created_and_deleted_again_in_one_mutation_is_one_deletion_of_its_old_epoch() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let epoch = world.get("player").epoch;
    let create = Operation::Create { id: id("player"), owner: None, layout: layout_id("chest"), stacks: vec![] };
    let delete = || Operation::Delete { id: id("player") };
    let operations = vec![delete(), create, delete()];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let version = Version { id: id("player"), epoch, revision: Revision(4), digest: Digest::EMPTY };
    let deleted = Change::Deleted { id: id("player"), epoch, revision: Revision(4) };
    assert_eq!(effect.touched, [TouchedInventory { version, state: None, changes: vec![deleted] }]);
}

#[test]
fn a_guard_speaks_of_the_state_before_the_mutation_and_of_one_life_of_an_inventory() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let guard = |world: &World, name, revision| Guard {
        id: id(name),
        epoch: world.get(name).epoch,
        revision: Revision(revision),
    };
    let recreate = || {
        let (owner, layout) = (None, layout_id("player"));
        let stacks = vec![(Slot(0), stack(SWORD, 1))];
        vec![Operation::Delete { id: id("player") }, Operation::Create { id: id("player"), owner, layout, stacks }]
    };
    let first_life = guard(&world, "player", 3);

    // The operations before the one that matters do not count, nor does how often it is said.
    let mut operations = vec![add(LOG, 1, b""), add(LOG, 1, b"")];
    operations.extend(recreate());
    let expected = vec![first_life.clone(), first_life.clone(), guard(&world, "chest", 8)];
    world.mutate(&Mutation { operations, expected }).unwrap();
    let second_life = guard(&world, "player", 1);
    assert_ne!(second_life.epoch, first_life.epoch);

    // The sword is not what was at revision 1 of the first life.
    let take = || vec![transfer(of_slot(0, None), None, false)];
    for stale in [Guard { revision: Revision(1), ..first_life.clone() }, first_life.clone()] {
        for expected in [vec![stale.clone()], vec![second_life.clone(), stale.clone()]] {
            let rejection = world.mutate(&Mutation { operations: take(), expected }).unwrap_err();
            let (epoch, revision) = (second_life.epoch, Revision(1));
            let cause = RejectionCause::StaleRevision { expected: stale.clone(), epoch, revision };
            assert_eq!((rejection.operation, rejection.cause), (0, cause));
        }
    }
    let nobody = Guard { id: id("nobody"), ..second_life.clone() };
    let rejection =
        world.mutate(&Mutation { operations: take(), expected: vec![nobody.clone(), first_life] }).unwrap_err();
    assert_eq!(rejection.cause, RejectionCause::InventoryNotFound { id: id("nobody") }, "in the order given");

    // One that the mutation itself makes does not exist before it.
    let create = Operation::Create { id: id("nobody"), owner: None, layout: layout_id("chest"), stacks: vec![] };
    let rejection = world.mutate(&Mutation { operations: vec![create], expected: vec![nobody] }).unwrap_err();
    assert_eq!(rejection.cause, RejectionCause::InventoryNotFound { id: id("nobody") });
    world.mutate(&Mutation { operations: take(), expected: vec![second_life] }).unwrap();
    assert_eq!(slots(&world, "chest"), [(0, SWORD, 1)]);
}

#[test]
fn a_count_never_swaps_even_if_earlier_operations_of_the_mutation_have_left_just_that_many() {
    let sand = 13;
    let mut world = world(&[filled(0, stack(COAL, 2)), filled(2, stack(sand, 7))], &[]);
    let before = world.inventories.clone();
    let operations = [1, 2, 3].map(|to| shift(0, to, Some(1))).to_vec();
    let rejection = world.mutate(&Mutation { operations, expected: vec![] }).unwrap_err();
    let cause = RejectionCause::SlotOccupied { id: id("player"), slot: Slot(2) };
    assert_eq!((rejection.operation, rejection.cause), (1, cause));
    assert_eq!(world.inventories, before);
    run(&mut world, shift(0, 2, None));
    assert_eq!(slots(&world, "player"), [(0, sand, 7), (2, COAL, 2)], "without a count the stacks change places");
}

#[test]
fn a_transfer_by_item_to_a_slot_takes_the_kind_that_the_slot_holds_or_the_first_found() {
    let held = [
        filled(0, stack_with(PLANKS, 9, b"oiled")),
        filled(1, stack(PLANKS, 5)),
        filled(2, stack_with(PLANKS, 3, b"oiled")),
        filled(3, stack(PLANKS, 20)),
    ];
    let chest = [filled(0, stack(PLANKS, 60)), filled(1, stack_with(PLANKS, 1, b"waxed")), filled(2, stack(COAL, 1))];
    let fresh = || world(&held, &chest);
    let not_enough = |held| RejectionCause::NotEnough { id: id("player"), item: item(PLANKS), needed: 30, held };
    let occupied = |slot| RejectionCause::SlotOccupied { id: id("chest"), slot: Slot(slot) };
    let take = |to, allow_partial| transfer(of_item(PLANKS, 30), Some(to), allow_partial);

    // A slot with plain planks takes plain ones, and only what fits.
    let mut world = fresh();
    assert_eq!(refusal(&mut world, take(0, false)), not_enough(25));
    assert_eq!(run(&mut world, take(0, true)), OperationOutcome { count: 4, remainder: 26, stack: None });
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 9), (1, PLANKS, 1), (2, PLANKS, 3), (3, PLANKS, 20)]);

    // An empty slot takes the kind of the lowest stack, from all stacks of it.
    let mut world = fresh();
    assert_eq!(refusal(&mut world, take(5, false)), not_enough(12));
    assert_eq!(run(&mut world, take(5, true)), OperationOutcome { count: 12, remainder: 18, stack: None });
    assert_eq!(world.get("chest").contents.stack(Slot(5)), Some(&stack_with(PLANKS, 12, b"oiled")));
    assert_eq!(slots(&world, "player"), [(1, PLANKS, 5), (3, PLANKS, 20)]);
    assert_eq!(run(&mut world, transfer(of_item(PLANKS, 25), Some(6), false)), moved(25), "one kind is left");

    // Of the kind that the slot holds there is nothing, or too little of any kind is held.
    let mut world = fresh();
    for slot in [1, 2] {
        for allow_partial in [false, true] {
            assert_eq!(refusal(&mut world, take(slot, allow_partial)), occupied(slot));
        }
    }
    let cause = refusal(&mut world, transfer(of_item(PLANKS, 38), Some(0), true));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(PLANKS), needed: 38, held: 37 });
    let what = TransferSource::Item { item: item(PLANKS), attributes: Some(attributes(b"oiled")), count: count(2) };
    assert_eq!(
        refusal(&mut world, transfer(what, Some(0), true)),
        occupied(0),
        "the attributes asked for are another kind"
    );
}

#[test]
fn changes_that_cancel_out_within_one_mutation_make_no_revision() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let operations = vec![shift(0, 5, None), add(LOG, 1, b""), remove(LOG, 1, None), shift(5, 0, None)];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    assert_eq!((effect.touched[0].version.revision, effect.touched[0].changes.len()), (Revision(3), 0));
}

#[test]
fn a_mutation_is_one_revision_whatever_its_number_of_operations() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let operations =
        vec![add(LOG, 1, b""), shift(0, 5, None), add(LOG, 1, b""), transfer(of_slot(5, None), None, false)];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let touched: Vec<_> = effect.touched.iter().map(|t| (t.version.id.as_str(), t.version.revision.0)).collect();
    assert_eq!(touched, [("player", 4), ("chest", 9)], "in order of first mention");
    let Change::Updated { edits, .. } = &effect.touched[0].changes[0] else { panic!("an update") };
    assert_eq!(edits, &[(Slot(0), None), (Slot(1), Some(stack(LOG, 2)))], "only what differs in the end");
}

#[test]
fn stamps_tell_a_new_count_from_a_new_kind() {
    let mut world = world(&[filled(0, stack(COAL, 7)), filled(1, stack(LOG, 7))], &[]);
    let stamps = |contents: &Contents, slot: u16| {
        let state = &contents.slots()[usize::from(slot)];
        (state.changed_at.0, state.identity_at.0)
    };
    run(&mut world, drop(0, Some(1)));
    assert_eq!(stamps(&world.get("player").contents, 0), (4, 3));
    run(&mut world, shift(0, 1, None));
    assert_eq!(stamps(&world.get("player").contents, 0), (5, 5));
    run(&mut world, drop(0, None));
    assert_eq!(stamps(&world.get("player").contents, 0), (6, 6));
    run(&mut world, add(LOG, 7, b""));
    assert_eq!(stamps(&world.get("player").contents, 0), (7, 7), "the same as before, but it was empty in between");
    assert_eq!(stamps(&world.get("player").contents, 2), (3, 3));
}
