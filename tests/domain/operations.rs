//! The exact effect of each operation, by example.

use crate::setup::{
    COAL, LOG, PLANKS, STICK, SWORD, TORCH, add, by_item, craft, drop, fill_all_except, from_slot, move_stack,
    outcome_of, rejection_of, remove, run, slots, transfer, world,
};
use crate::support::{World, filled, id, item, layout_id, stack, stack_with};
use slotcast::domain::{Attributes, Operation, OperationOutcome, RejectionCause, Revision, Slot, Stack};

#[test]
fn add_fills_stacks_of_the_same_kind_first_and_then_empty_slots_lowest_first() {
    let mut world =
        world(&[filled(1, stack(COAL, 9)), filled(4, stack(PLANKS, 60)), filled(6, stack(PLANKS, 63))], &[]);
    assert_eq!(run(&mut world, add(PLANKS, 4 + 1 + 64 + 7, b"")), outcome_of(76));
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
    assert_eq!(run(&mut world, remove(PLANKS, 70, None)), outcome_of(70));
    assert_eq!(slots(&world, "player"), [(20, PLANKS, 63)]);
}

#[test]
fn remove_takes_only_the_requested_attributes_or_any() {
    let held = [filled(0, stack_with(SWORD, 1, b"sharp")), filled(1, stack(SWORD, 1)), filled(2, stack(SWORD, 1))];
    let mut world = world(&held, &[]);
    run(&mut world, remove(SWORD, 1, Some(Attributes::NONE)));
    assert_eq!(slots(&world, "player"), [(0, SWORD, 1), (2, SWORD, 1)]);
    let cause = rejection_of(&mut world, remove(SWORD, 2, Some(Attributes::NONE)));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(SWORD), needed: 2, held: 1 });
    run(&mut world, remove(SWORD, 2, None));
    assert_eq!(slots(&world, "player"), []);
}

#[test]
fn a_move_splits_merges_and_swaps() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(COAL, 5))], &[]);
    assert_eq!(run(&mut world, move_stack(0, 9, Some(30))), outcome_of(30));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 10), (1, COAL, 5), (9, PLANKS, 30)], "split");
    assert_eq!(run(&mut world, move_stack(9, 0, Some(5))), outcome_of(5));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 15), (1, COAL, 5), (9, PLANKS, 25)], "merged in part");
    assert_eq!(run(&mut world, move_stack(9, 0, None)), outcome_of(25));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 40), (1, COAL, 5)], "merged");
    assert_eq!(run(&mut world, move_stack(0, 1, None)), outcome_of(40));
    assert_eq!(slots(&world, "player"), [(0, COAL, 5), (1, PLANKS, 40)], "swapped");
    assert_eq!(run(&mut world, move_stack(1, 35, None)), outcome_of(40));
    assert_eq!(slots(&world, "player"), [(0, COAL, 5), (35, PLANKS, 40)], "moved");
    assert_eq!(
        rejection_of(&mut world, move_stack(7, 8, None)),
        RejectionCause::SlotEmpty { id: id("player"), slot: Slot(7) }
    );
}

#[test]
fn a_move_onto_a_stack_with_less_room_moves_as_many_as_fit() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(PLANKS, 50))], &[]);
    assert_eq!(run(&mut world, move_stack(0, 1, None)), outcome_of(14));
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 26), (1, PLANKS, 64)]);
}

#[test]
fn a_drop_returns_the_stack_with_its_attributes() {
    let mut world = world(&[filled(6, stack_with(PLANKS, 10, b"oiled"))], &[]);
    let outcome = run(&mut world, drop(6, Some(1)));
    assert_eq!(outcome, OperationOutcome { count: 1, remainder: 0, stack: Some(stack_with(PLANKS, 1, b"oiled")) });
    let outcome = run(&mut world, drop(6, None));
    assert_eq!(outcome.stack, Some(stack_with(PLANKS, 9, b"oiled")));
    assert_eq!(slots(&world, "player"), []);
    assert_eq!(rejection_of(&mut world, drop(6, None)), RejectionCause::SlotEmpty { id: id("player"), slot: Slot(6) });
}

#[test]
fn a_craft_takes_inputs_hotbar_first_and_adds_outputs() {
    let held = [filled(0, stack(COAL, 2)), filled(3, stack(STICK, 1)), filled(30, stack(STICK, 5))];
    let mut world = world(&held, &[]);
    assert_eq!(run(&mut world, craft("torch", 2)), outcome_of(2));
    assert_eq!(slots(&world, "player"), [(0, TORCH, 8), (30, STICK, 4)]);
}

#[test]
fn a_craft_can_use_the_slots_that_its_inputs_free() {
    let mut held = fill_all_except(&[5], 36, &stack(SWORD, 1));
    held.push(filled(5, stack(LOG, 2)));
    let mut world = world(&held, &[]);
    assert!(matches!(
        rejection_of(&mut world, craft("oak_planks", 1)),
        RejectionCause::NoRoom { needed: 4, room: 0, .. }
    ));
    run(&mut world, craft("oak_planks", 2));
    assert_eq!(slots(&world, "player")[5], (5, PLANKS, 8));
}

#[test]
fn a_craft_does_not_consume_stacks_with_attributes() {
    let held =
        [filled(0, stack_with(LOG, 9, b"signed")), filled(1, stack(LOG, 1)), filled(2, stack_with(PLANKS, 1, b"x"))];
    let mut world = world(&held, &[]);
    let cause = rejection_of(&mut world, craft("oak_planks", 2));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(LOG), needed: 2, held: 1 });
    run(&mut world, craft("oak_planks", 1));
    assert_eq!(slots(&world, "player"), [(0, LOG, 9), (1, PLANKS, 4), (2, PLANKS, 1)]);
}

#[test]
fn a_transfer_to_a_slot_fills_it_or_is_rejected_with_the_conflict() {
    let mut world = world(&[filled(0, stack(PLANKS, 40)), filled(1, stack(COAL, 3))], &[filled(0, stack(PLANKS, 60))]);
    assert_eq!(run(&mut world, transfer(from_slot(0, Some(10)), Some(5), false)), outcome_of(10));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 60), (5, PLANKS, 10)]);
    let cause = rejection_of(&mut world, transfer(from_slot(0, None), Some(0), false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 30, room: 4 });
    let cause = rejection_of(&mut world, transfer(from_slot(1, None), Some(0), true));
    assert_eq!(cause, RejectionCause::SlotOccupied { id: id("chest"), slot: Slot(0) });
    let outcome = run(&mut world, transfer(from_slot(0, None), Some(0), true));
    assert_eq!(outcome, OperationOutcome { count: 4, remainder: 26, stack: None });
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 26), (1, COAL, 3)], "the rest stays");
}

#[test]
fn a_transfer_without_a_slot_fills_like_an_add_and_keeps_attributes() {
    let held = [filled(0, stack(PLANKS, 40)), filled(1, stack_with(PLANKS, 3, b"oiled"))];
    let mut world = world(&held, &[filled(7, stack(PLANKS, 60))]);
    assert_eq!(run(&mut world, transfer(from_slot(0, None), None, false)), outcome_of(40));
    assert_eq!(run(&mut world, transfer(from_slot(1, None), None, false)), outcome_of(3));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 36), (1, PLANKS, 3), (7, PLANKS, 64)]);
    assert_eq!(world.get("chest").contents.stack(Slot(1)), Some(&stack_with(PLANKS, 3, b"oiled")));
    assert_eq!(slots(&world, "player"), []);
}

#[test]
fn a_transfer_by_item_takes_the_lowest_slots_first_and_never_fewer_than_requested() {
    let mut world = world(&[filled(2, stack(PLANKS, 40)), filled(9, stack(PLANKS, 40))], &[]);
    let cause = rejection_of(&mut world, transfer(by_item(PLANKS, 81), None, true));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(PLANKS), needed: 81, held: 80 });
    assert_eq!(run(&mut world, transfer(by_item(PLANKS, 70), None, false)), outcome_of(70));
    assert_eq!(
        (slots(&world, "player"), slots(&world, "chest")),
        (vec![(9, PLANKS, 10)], vec![(0, PLANKS, 64), (1, PLANKS, 6)])
    );
}

#[test]
fn a_partial_transfer_requires_allow_partial_and_a_lack_of_room() {
    let chest = fill_all_except(&[4], 27, &stack(SWORD, 1));
    let mut world = world(&[filled(2, stack(PLANKS, 40)), filled(9, stack(PLANKS, 40))], &chest);
    let cause = rejection_of(&mut world, transfer(by_item(PLANKS, 70), None, false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 70, room: 64 });
    let outcome = run(&mut world, transfer(by_item(PLANKS, 70), None, true));
    assert_eq!(outcome, OperationOutcome { count: 64, remainder: 6, stack: None });
    assert_eq!(slots(&world, "player"), [(9, PLANKS, 16)]);
    let revisions = |world: &World| ["player", "chest"].map(|name| world.get(name).contents.revision());
    assert_eq!(revisions(&world), [Revision(4), Revision(9)], "one commit on both sides");
}

#[test]
fn set_returns_the_replaced_stack() {
    let mut world = world(&[filled(0, stack(PLANKS, 40))], &[]);
    let set = |stack| Operation::Set { id: id("player"), slot: Slot(0), stack };
    let outcome = run(&mut world, set(Some(stack_with(SWORD, 1, b"sharp"))));
    assert_eq!(outcome.stack, Some(stack(PLANKS, 40)));
    assert_eq!(run(&mut world, set(None)).stack, Some(stack_with(SWORD, 1, b"sharp")));
    assert_eq!(run(&mut world, set(None)).stack, None);
    assert_eq!(world.get("player").contents.revision(), Revision(5), "the last one changed nothing");
}

#[test]
fn rearrange_accepts_a_permutation_and_rejects_any_other_total() {
    let held = [filled(0, stack(PLANKS, 40)), filled(3, stack(COAL, 5)), filled(9, stack(PLANKS, 34))];
    let mut world = world(&held, &[]);
    let rearranged = |stacks: &[(u16, Stack)]| Operation::Rearrange {
        id: id("player"),
        stacks: stacks.iter().map(|(slot, stack)| (Slot(*slot), stack.clone())).collect(),
    };
    let sorted = rearranged(&[(0, stack(COAL, 5)), (1, stack(PLANKS, 64)), (2, stack(PLANKS, 10))]);
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
        assert_eq!(rejection_of(&mut world, rearranged(&stacks)), cause);
    }
}

#[test]
fn create_starts_at_revision_1_and_delete_takes_the_next_revision() {
    let mut world = world(&[], &[]);
    let create = |stacks: Vec<(Slot, Stack)>| Operation::Create {
        id: id("new"),
        owner: None,
        layout: layout_id("chest"),
        stacks,
    };
    let cause = rejection_of(&mut world, create(vec![(Slot(0), stack(COAL, 1)), (Slot(0), stack(COAL, 1))]));
    assert_eq!(cause, RejectionCause::DuplicateSlot { slot: Slot(0) });
    let effect = world.run(create(vec![(Slot(26), stack(COAL, 1))])).unwrap();
    assert_eq!(effect.touched[0].version.revision, Revision::CREATED);
    assert_eq!(slots(&world, "new"), [(26, COAL, 1)]);
    assert_eq!(rejection_of(&mut world, create(vec![])), RejectionCause::InventoryExists { id: id("new") });
    let effect = world.run(Operation::Delete { id: id("new") }).unwrap();
    assert_eq!((effect.touched[0].version.revision, &effect.touched[0].state), (Revision(2), &None));
    let cause = rejection_of(&mut world, Operation::Delete { id: id("new") });
    assert_eq!(cause, RejectionCause::InventoryNotFound { id: id("new") });
}
