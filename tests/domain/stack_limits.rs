//! Stacks that an older catalog left above their limit: they stay, shrink, or move as a whole, and no new one is created.

use crate::setup::{
    COAL, GONE, PLANKS, SWORD, by_item, fill_all_except, from_slot, lowered_world, move_stack, outcome_of,
    rejection_of, run, slots, transfer,
};
use crate::support::{filled, id, item, stack};
use slotcast::domain::{Operation, OperationOutcome, RejectionCause, Slot};

fn rearrange(stacks: &[(u16, u32)]) -> Operation {
    let stacks = stacks.iter().map(|(slot, count)| (Slot(*slot), stack(PLANKS, *count))).collect();
    Operation::Rearrange { id: id("player"), stacks }
}

#[test]
fn a_rearrangement_keeps_or_moves_whole_stacks_above_the_limit_and_never_creates_more() {
    let mut held = vec![filled(0, stack(PLANKS, 64)), filled(1, stack(PLANKS, 50))];
    held.extend((2..6).map(|slot| filled(slot, stack(PLANKS, 16))));
    let world = lowered_world(&held, &[]);
    let accepted = [
        ("as it is", vec![(0, 64), (1, 50), (2, 16), (3, 16), (4, 16), (5, 16)]),
        ("the two changed places", vec![(0, 50), (1, 64), (2, 16), (3, 16), (4, 16), (5, 16)]),
        ("both moved", vec![(9, 50), (8, 64), (0, 16), (1, 16), (4, 16), (5, 16)]),
        ("one moved to where the other was, which shrank", vec![(0, 50), (7, 64), (2, 16), (3, 16), (4, 16), (5, 16)]),
        ("both shrank", vec![(0, 63), (1, 49), (2, 16), (3, 16), (4, 16), (5, 16), (6, 2)]),
        (
            "one shrank below its limit",
            vec![(0, 14), (1, 50), (2, 16), (3, 16), (4, 16), (5, 16), (6, 16), (7, 16), (8, 16), (9, 2)],
        ),
    ];
    for (why, stacks) in accepted {
        assert!(world.clone().run(rearrange(&stacks)).is_ok(), "{why}");
    }
    let refused = [
        ("two of 64", vec![(0, 64), (1, 64), (2, 16), (3, 16), (4, 16), (5, 2)]),
        ("one stays and is moved", vec![(0, 64), (7, 64), (2, 16), (3, 16), (4, 16), (5, 2)]),
        ("one shrinks and is moved", vec![(0, 63), (7, 64), (2, 16), (3, 16), (4, 16), (5, 3)]),
        ("one grows", vec![(0, 65), (1, 50), (2, 16), (3, 16), (4, 16), (5, 15)]),
        ("one grows to below another", vec![(0, 64), (1, 60), (2, 16), (3, 16), (4, 16), (5, 6)]),
        ("a part moves", vec![(0, 14), (7, 50), (1, 50), (2, 16), (3, 16), (4, 16), (5, 16)]),
        ("a new one of less", vec![(0, 64), (1, 50), (2, 17), (3, 16), (4, 16), (5, 15)]),
    ];
    for (why, stacks) in refused {
        let cause = world.clone().run(rearrange(&stacks)).expect_err(why).cause;
        assert!(matches!(cause, RejectionCause::StackTooLarge { max_stack: 16, .. }), "{why}: {cause:?}");
    }
}

#[test]
fn a_rearrangement_that_multiplies_a_stack_above_the_limit_is_rejected() {
    let mut held = vec![filled(0, stack(PLANKS, 64))];
    held.extend((1..9).map(|slot| filled(slot, stack(PLANKS, 16))));
    let mut world = lowered_world(&held, &[]);
    let cause = rejection_of(&mut world, rearrange(&[(0, 64), (1, 64), (2, 64)]));
    assert_eq!(cause, RejectionCause::StackTooLarge { item: item(PLANKS), count: 64, max_stack: 16 });
}

#[test]
fn parts_of_a_stack_above_the_limit_move_up_to_the_limit_and_the_whole_stack_moves_unchanged() {
    let too_many = || RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 20, room: 16 };
    let held = [filled(0, stack(PLANKS, 64)), filled(1, stack(PLANKS, 10)), filled(2, stack(COAL, 1))];
    let world = || lowered_world(&held, &[filled(3, stack(PLANKS, 10))]);
    // A move takes as many as fit, like a transfer with `allow_partial`.
    let mut moving = world();
    assert_eq!(run(&mut moving, move_stack(0, 5, Some(20))), outcome_of(16));
    assert_eq!(run(&mut moving, move_stack(0, 1, None)), outcome_of(6), "onto the same kind");
    assert_eq!(run(&mut moving, move_stack(0, 2, None)), outcome_of(42), "a swap takes the whole stack");
    assert_eq!(run(&mut moving, move_stack(2, 9, Some(42))), outcome_of(42), "and so does a count of all of it");
    assert_eq!(slots(&moving, "player"), [(0, COAL, 1), (1, PLANKS, 16), (5, PLANKS, 16), (9, PLANKS, 42)]);
    let mut transferring = world();
    assert_eq!(rejection_of(&mut transferring, transfer(from_slot(0, Some(20)), Some(5), false)), too_many());
    let outcome = run(&mut transferring, transfer(from_slot(0, Some(20)), Some(5), true));
    assert_eq!(outcome, OperationOutcome { count: 16, remainder: 4, stack: None });
    assert_eq!(run(&mut transferring, transfer(from_slot(0, None), Some(6), false)), outcome_of(48));
    assert_eq!(slots(&transferring, "chest"), [(3, PLANKS, 10), (5, PLANKS, 16), (6, PLANKS, 48)]);
}

#[test]
fn without_a_target_slot_a_stack_above_the_limit_takes_an_empty_slot_and_a_part_is_distributed() {
    let held = [filled(0, stack(PLANKS, 64)), filled(1, stack(PLANKS, 12))];
    let chest = [filled(0, stack(PLANKS, 10)), filled(1, stack(COAL, 1))];
    let mut world = lowered_world(&held, &chest);
    run(&mut world, transfer(from_slot(0, Some(20)), None, false));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 16), (1, COAL, 1), (2, PLANKS, 14)]);
    run(&mut world, transfer(by_item(PLANKS, 44 + 12), None, false));
    assert_eq!(
        slots(&world, "chest"),
        [(0, PLANKS, 16), (1, COAL, 1), (2, PLANKS, 16), (3, PLANKS, 44), (4, PLANKS, 10)]
    );
    assert_eq!(slots(&world, "player"), []);

    // Without an empty slot it fills stacks of the same kind.
    let full = fill_all_except(&[4], 27, &stack(SWORD, 1)).into_iter().chain([filled(4, stack(PLANKS, 10))]);
    let mut world = lowered_world(&held, &full.collect::<Vec<_>>());
    let outcome = run(&mut world, transfer(from_slot(0, None), None, true));
    assert_eq!(outcome, OperationOutcome { count: 6, remainder: 58, stack: None });
}

#[test]
fn an_item_removed_from_the_catalog_moves_only_in_whole_stacks() {
    let held = [filled(0, stack(GONE, 5)), filled(1, stack(GONE, 7)), filled(2, stack(GONE, 7))];
    let mut world = lowered_world(&held, &[]);
    assert_eq!(run(&mut world, move_stack(0, 9, Some(2))), outcome_of(0));
    let cause = rejection_of(&mut world, transfer(by_item(GONE, 6), None, false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(GONE), needed: 6, room: 5 });
    let rearranged = |stacks: &[(u16, u32)]| Operation::Rearrange {
        id: id("player"),
        stacks: stacks.iter().map(|(slot, count)| (Slot(*slot), stack(GONE, *count))).collect(),
    };
    for stacks in [vec![(0, 12), (1, 7)], vec![(0, 7), (1, 6), (2, 6)], vec![(0, 5), (1, 7), (2, 6), (3, 1)]] {
        let cause = rejection_of(&mut world, rearranged(&stacks));
        assert!(matches!(cause, RejectionCause::StackTooLarge { .. }), "{stacks:?}: {cause:?}");
    }
    run(&mut world, rearranged(&[(0, 7), (1, 5), (2, 7)]));
    assert_eq!(slots(&world, "player"), [(0, GONE, 7), (1, GONE, 5), (2, GONE, 7)]);
}
