//! The exact effect of mutations of several operations: revisions, guards, creations and deletions.

use crate::setup::{
    COAL, LOG, PLANKS, SWORD, add, by_item, drop, from_slot, move_stack, outcome_of, rejection_of, remove, run, slots,
    transfer, world,
};
use crate::support::{World, attributes, count, filled, id, item, layout_id, stack, stack_with};
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Contents, Digest, Guard, Mutation, Operation, OperationOutcome, RejectionCause, Revision, Slot, TouchedInventory,
    Transition, Version,
};

#[test]
fn delete_and_create_in_one_mutation_start_a_new_epoch() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let (old, owner) = (world.get("player").clone(), world.get("player").owner.clone());
    let create = Operation::Create { id: id("player"), owner, layout: layout_id("chest"), stacks: vec![] };
    let operations = vec![Operation::Delete { id: id("player") }, create, add(LOG, 2, b"")];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let new = world.get("player");
    assert_ne!(new.epoch, old.epoch);
    assert_eq!((new.contents.revision(), slots(&world, "player")), (Revision::CREATED, vec![(0, LOG, 2)]));
    assert_eq!(new.contents.slots().len(), 27);
    let recreated = Transition::Recreated { before: &old, after: &world.inventories[&id("player")] };
    assert_eq!(effect.touched[0].transition(), recreated);
}

#[test]
fn a_transient_inventory_is_reported_with_its_final_revision_and_changes_nothing() {
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
    let operations = vec![create(), transfer_to_new(from_slot(0, Some(2))), delete()];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let named: Vec<_> = effect.touched.iter().map(|touched| touched.version.id.as_str()).collect();
    assert_eq!(named, ["new", "player"], "in order of first mention");
    assert_eq!(slots(&world, "player"), [(0, COAL, 5)]);
}

#[test]
fn delete_create_and_delete_in_one_mutation_is_one_deletion_of_the_old_epoch() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let before = world.inventories[&id("player")].clone();
    let create = Operation::Create { id: id("player"), owner: None, layout: layout_id("chest"), stacks: vec![] };
    let delete = || Operation::Delete { id: id("player") };
    let operations = vec![delete(), create, delete()];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let version = Version { id: id("player"), epoch: before.epoch, revision: Revision(4), digest: Digest::EMPTY };
    let deleted = TouchedInventory { version, before: Some(before), state: None, edits: vec![] };
    assert_eq!(effect.touched, [deleted]);
}

#[test]
fn a_guard_refers_to_the_state_before_the_mutation_and_to_one_epoch() {
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

    // Earlier operations of the mutation and repeated guards make no difference.
    let mut operations = vec![add(LOG, 1, b""), add(LOG, 1, b"")];
    operations.extend(recreate());
    let expected = vec![first_life.clone(), first_life.clone(), guard(&world, "chest", 8)];
    world.mutate(&Mutation { operations, expected }).unwrap();
    let second_life = guard(&world, "player", 1);
    assert_ne!(second_life.epoch, first_life.epoch);

    // The sword was not in the slot at revision 1 of the first epoch.
    let take = || vec![transfer(from_slot(0, None), None, false)];
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

    // An inventory that the mutation creates does not exist before the mutation.
    let create = Operation::Create { id: id("nobody"), owner: None, layout: layout_id("chest"), stacks: vec![] };
    let rejection = world.mutate(&Mutation { operations: vec![create], expected: vec![nobody] }).unwrap_err();
    assert_eq!(rejection.cause, RejectionCause::InventoryNotFound { id: id("nobody") });
    world.mutate(&Mutation { operations: take(), expected: vec![second_life] }).unwrap();
    assert_eq!(slots(&world, "chest"), [(0, SWORD, 1)]);
}

#[test]
fn a_move_with_a_count_never_swaps_even_if_the_count_is_the_whole_stack() {
    let sand = 13;
    let mut world = world(&[filled(0, stack(COAL, 2)), filled(2, stack(sand, 7))], &[]);
    let before = world.inventories.clone();
    let operations = [1, 2, 3].map(|to| move_stack(0, to, Some(1))).to_vec();
    let rejection = world.mutate(&Mutation { operations, expected: vec![] }).unwrap_err();
    let cause = RejectionCause::SlotOccupied { id: id("player"), slot: Slot(2) };
    assert_eq!((rejection.operation, rejection.cause), (1, cause));
    assert_eq!(world.inventories, before);
    run(&mut world, move_stack(0, 2, None));
    assert_eq!(slots(&world, "player"), [(0, sand, 7), (2, COAL, 2)], "without a count the stacks change places");
}

#[test]
fn a_transfer_by_item_to_a_slot_takes_the_kind_in_the_slot_or_the_first_kind_found() {
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
    let take = |to, allow_partial| transfer(by_item(PLANKS, 30), Some(to), allow_partial);

    // A slot with planks without attributes takes only such planks, and only as many as fit.
    let mut world = fresh();
    assert_eq!(rejection_of(&mut world, take(0, false)), not_enough(25));
    assert_eq!(run(&mut world, take(0, true)), OperationOutcome { count: 4, remainder: 26, stack: None });
    assert_eq!(slots(&world, "player"), [(0, PLANKS, 9), (1, PLANKS, 1), (2, PLANKS, 3), (3, PLANKS, 20)]);

    // An empty slot takes the kind of the lowest stack, from all stacks of this kind.
    let mut world = fresh();
    assert_eq!(rejection_of(&mut world, take(5, false)), not_enough(12));
    assert_eq!(run(&mut world, take(5, true)), OperationOutcome { count: 12, remainder: 18, stack: None });
    assert_eq!(world.get("chest").contents.stack(Slot(5)), Some(&stack_with(PLANKS, 12, b"oiled")));
    assert_eq!(slots(&world, "player"), [(1, PLANKS, 5), (3, PLANKS, 20)]);
    assert_eq!(run(&mut world, transfer(by_item(PLANKS, 25), Some(6), false)), outcome_of(25), "one kind is left");

    // The source has nothing of the kind in the slot, or has too few of all kinds.
    let mut world = fresh();
    for slot in [1, 2] {
        for allow_partial in [false, true] {
            assert_eq!(rejection_of(&mut world, take(slot, allow_partial)), occupied(slot));
        }
    }
    let cause = rejection_of(&mut world, transfer(by_item(PLANKS, 38), Some(0), true));
    assert_eq!(cause, RejectionCause::NotEnough { id: id("player"), item: item(PLANKS), needed: 38, held: 37 });
    let what = TransferSource::Item { item: item(PLANKS), attributes: Some(attributes(b"oiled")), count: count(2) };
    assert_eq!(
        rejection_of(&mut world, transfer(what, Some(0), true)),
        occupied(0),
        "the requested attributes are another kind"
    );
}

#[test]
fn changes_that_cancel_out_within_one_mutation_create_no_revision() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let operations = vec![move_stack(0, 5, None), add(LOG, 1, b""), remove(LOG, 1, None), move_stack(5, 0, None)];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    assert_eq!((effect.touched[0].version.revision, effect.touched[0].is_changed()), (Revision(3), false));
}

#[test]
fn a_mutation_is_one_revision_regardless_of_its_number_of_operations() {
    let mut world = world(&[filled(0, stack(COAL, 7))], &[]);
    let operations =
        vec![add(LOG, 1, b""), move_stack(0, 5, None), add(LOG, 1, b""), transfer(from_slot(5, None), None, false)];
    let effect = world.mutate(&Mutation { operations, expected: vec![] }).unwrap();
    let touched: Vec<_> = effect.touched.iter().map(|t| (t.version.id.as_str(), t.version.revision.0)).collect();
    assert_eq!(touched, [("player", 4), ("chest", 9)], "in order of first mention");
    let edits = &effect.touched[0].edits;
    assert_eq!(edits, &[(Slot(0), None), (Slot(1), Some(stack(LOG, 2)))], "only what differs in the end");
}

#[test]
fn stamps_distinguish_a_new_count_from_a_new_kind() {
    let mut world = world(&[filled(0, stack(COAL, 7)), filled(1, stack(LOG, 7))], &[]);
    let stamps = |contents: &Contents, slot: u16| {
        let state = &contents.slots()[usize::from(slot)];
        (state.changed_at.0, state.identity_changed_at.0)
    };
    run(&mut world, drop(0, Some(1)));
    assert_eq!(stamps(&world.get("player").contents, 0), (4, 3));
    run(&mut world, move_stack(0, 1, None));
    assert_eq!(stamps(&world.get("player").contents, 0), (5, 5));
    run(&mut world, drop(0, None));
    assert_eq!(stamps(&world.get("player").contents, 0), (6, 6));
    run(&mut world, add(LOG, 7, b""));
    assert_eq!(stamps(&world.get("player").contents, 0), (7, 7), "the same as before, but it was empty in between");
    assert_eq!(stamps(&world.get("player").contents, 2), (3, 3));
}
