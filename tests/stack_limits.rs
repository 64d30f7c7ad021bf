//! Stacks that an older catalog left above their limit: they stay, shrink, or move as a whole, and none comes to be.

#![allow(clippy::unwrap_used)]

mod support;

use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{Edit, Operation, OperationOutcome, RejectionCause, Slot, Stack};
use support::random::lowered;
use support::{World, count, filled, id, item, stack};

const PLANKS: u32 = 1;
const COAL: u32 = 24;
const SWORD: u32 = 29;
/// Not in the catalog.
const GONE: u32 = 99;

/// A player's inventory of 36 slots and a chest of 27; the limit of all items is 16 now.
fn lowered_world(player: &[Edit], chest: &[Edit]) -> World {
    let mut world = World::new(lowered(&default_catalog(), 16));
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

fn shift(from: u16, to: u16, number: Option<u32>) -> Operation {
    Operation::Move { id: id("player"), from: Slot(from), to: Slot(to), count: number.map(count) }
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

fn rearrange(stacks: &[(u16, u32)]) -> Operation {
    let stacks = stacks.iter().map(|(slot, count)| (Slot(*slot), stack(PLANKS, *count))).collect();
    Operation::Rearrange { id: id("player"), stacks }
}

#[test]
fn a_rearrangement_keeps_stacks_above_the_limit_or_moves_them_whole_and_never_makes_more_of_them() {
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
fn a_rearrangement_of_one_old_stack_into_several_of_its_size_is_refused() {
    let mut held = vec![filled(0, stack(PLANKS, 64))];
    held.extend((1..9).map(|slot| filled(slot, stack(PLANKS, 16))));
    let mut world = lowered_world(&held, &[]);
    let cause = refusal(&mut world, rearrange(&[(0, 64), (1, 64), (2, 64)]));
    assert_eq!(cause, RejectionCause::StackTooLarge { item: item(PLANKS), count: 64, max_stack: 16 });
}

#[test]
fn a_part_of_a_stack_above_the_limit_moves_up_to_the_limit_and_the_whole_moves_as_it_is() {
    let too_many = || RejectionCause::NoRoom { id: id("chest"), item: item(PLANKS), needed: 20, room: 16 };
    let held = [filled(0, stack(PLANKS, 64)), filled(1, stack(PLANKS, 10)), filled(2, stack(COAL, 1))];
    let world = || lowered_world(&held, &[filled(3, stack(PLANKS, 10))]);
    // A move takes what fits, as a transfer does that may be partial.
    let mut moving = world();
    assert_eq!(run(&mut moving, shift(0, 5, Some(20))), moved(16));
    assert_eq!(run(&mut moving, shift(0, 1, None)), moved(6), "onto the same kind");
    assert_eq!(run(&mut moving, shift(0, 2, None)), moved(42), "a swap takes the whole stack");
    assert_eq!(run(&mut moving, shift(2, 9, Some(42))), moved(42), "and so does a count of all of it");
    assert_eq!(slots(&moving, "player"), [(0, COAL, 1), (1, PLANKS, 16), (5, PLANKS, 16), (9, PLANKS, 42)]);
    let mut transferring = world();
    assert_eq!(refusal(&mut transferring, transfer(of_slot(0, Some(20)), Some(5), false)), too_many());
    let outcome = run(&mut transferring, transfer(of_slot(0, Some(20)), Some(5), true));
    assert_eq!(outcome, OperationOutcome { count: 16, remainder: 4, stack: None });
    assert_eq!(run(&mut transferring, transfer(of_slot(0, None), Some(6), false)), moved(48));
    assert_eq!(slots(&transferring, "chest"), [(3, PLANKS, 10), (5, PLANKS, 16), (6, PLANKS, 48)]);
}

#[test]
fn without_a_slot_a_whole_stack_above_the_limit_goes_to_the_first_empty_slot_and_a_part_is_spread() {
    let held = [filled(0, stack(PLANKS, 64)), filled(1, stack(PLANKS, 12))];
    let chest = [filled(0, stack(PLANKS, 10)), filled(1, stack(COAL, 1))];
    let mut world = lowered_world(&held, &chest);
    run(&mut world, transfer(of_slot(0, Some(20)), None, false));
    assert_eq!(slots(&world, "chest"), [(0, PLANKS, 16), (1, COAL, 1), (2, PLANKS, 14)]);
    run(&mut world, transfer(of_item(PLANKS, 44 + 12), None, false));
    assert_eq!(
        slots(&world, "chest"),
        [(0, PLANKS, 16), (1, COAL, 1), (2, PLANKS, 16), (3, PLANKS, 44), (4, PLANKS, 10)]
    );
    assert_eq!(slots(&world, "player"), []);

    // With no empty slot it fills up what is of its kind.
    let full = all_slots_but(&[4], 27, &stack(SWORD, 1)).into_iter().chain([filled(4, stack(PLANKS, 10))]);
    let mut world = lowered_world(&held, &full.collect::<Vec<_>>());
    let outcome = run(&mut world, transfer(of_slot(0, None), None, true));
    assert_eq!(outcome, OperationOutcome { count: 6, remainder: 58, stack: None });
}

#[test]
fn an_item_that_left_the_catalog_moves_in_whole_stacks_only_and_is_not_merged_by_a_rearrangement() {
    let held = [filled(0, stack(GONE, 5)), filled(1, stack(GONE, 7)), filled(2, stack(GONE, 7))];
    let mut world = lowered_world(&held, &[]);
    assert_eq!(run(&mut world, shift(0, 9, Some(2))), moved(0));
    let cause = refusal(&mut world, transfer(of_item(GONE, 6), None, false));
    assert_eq!(cause, RejectionCause::NoRoom { id: id("chest"), item: item(GONE), needed: 6, room: 5 });
    let wanted = |stacks: &[(u16, u32)]| Operation::Rearrange {
        id: id("player"),
        stacks: stacks.iter().map(|(slot, count)| (Slot(*slot), stack(GONE, *count))).collect(),
    };
    for stacks in [vec![(0, 12), (1, 7)], vec![(0, 7), (1, 6), (2, 6)], vec![(0, 5), (1, 7), (2, 6), (3, 1)]] {
        let cause = refusal(&mut world, wanted(&stacks));
        assert!(matches!(cause, RejectionCause::StackTooLarge { .. }), "{stacks:?}: {cause:?}");
    }
    run(&mut world, wanted(&[(0, 7), (1, 5), (2, 7)]));
    assert_eq!(slots(&world, "player"), [(0, GONE, 7), (1, GONE, 5), (2, GONE, 7)]);
}
