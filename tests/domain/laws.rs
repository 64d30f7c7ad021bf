//! Properties of the rules, for random inventories and mutations: valid and invalid ones, and lists of both.

use crate::support::random::{History, config, history, lowered, shuffled};
use crate::support::{Totals, World};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Contents, Digest, Effect, Guard, Inventory, ItemCode, Mutation, Operation, OperationKind,
    OperationOutcome, Rejection, RejectionCause, Revision, SlotState, Stack, Transition,
};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn items_are_neither_created_nor_lost(History { mut world, mutations } in history()) {
        for operation in mutations.into_iter().flat_map(|mutation| mutation.operations) {
            let before = world.clone();
            let result = world.run(operation.clone());
            let change = world.totals().minus(&before.totals());
            match result {
                Ok(effect) => check_balance(&operation, &effect.outcomes[0], &before, &change)?,
                Err(_) => prop_assert_eq!(&world.inventories, &before.inventories),
            }
        }
    }

    #[test]
    fn a_mutation_equals_its_operations_in_sequence(History { mut world, mutations } in history()) {
        for mutation in mutations {
            let (mut singly, before) = (world.clone(), world.clone());
            let result = world.mutate(&mutation);
            if let Err(rejection @ Rejection { cause: RejectionCause::StaleRevision { .. }, .. }) = &result {
                prop_assert_eq!(rejection.operation, 0);
                prop_assert!(mutation.expected.iter().any(|guard| !is_met(guard, &before.inventories[&guard.id])));
            } else if result.as_ref().is_err_and(|_| missing_expected(&mutation, &before)) {
                // A guard names an inventory that does not exist.
            } else {
                check_equals_sequence(&mutation, &mut singly, &world, &result)?;
            }
            if result.is_err() {
                prop_assert_eq!(&world.inventories, &before.inventories, "a rejection changes nothing");
            }
        }
    }

    #[test]
    fn revisions_stamps_and_digests_are_exact(History { mut world, mutations } in history()) {
        for mutation in mutations {
            let before = world.clone();
            let Ok(effect) = world.mutate(&mutation) else { continue };
            for touched in &effect.touched {
                let old = before.inventories.get(&touched.version.id);
                match (&touched.state, old) {
                    (Some(new), Some(old)) if new.epoch == old.epoch => check_advanced(&old.contents, &new.contents)?,
                    (Some(new), _) => check_created(&before, new)?,
                    (None, old) => {
                        let revision = old.map_or(Revision::CREATED, |old| old.contents.revision());
                        prop_assert_eq!(touched.version.revision, revision.next());
                        prop_assert_eq!(touched.version.digest, Digest::EMPTY);
                        prop_assert_eq!(touched.is_transient(), old.is_none());
                    }
                }
                if let Some(new) = &touched.state {
                    prop_assert_eq!(&new.version(), &touched.version);
                    let restored = Contents::restored(new.contents.revision(), new.contents.slots().to_vec());
                    prop_assert_eq!(&restored, &new.contents, "the digest from scratch is the one kept up to date");
                }
            }
        }
    }

    #[test]
    fn replaying_the_changes_on_the_old_state_yields_the_new_state(History { mut world, mutations } in history()) {
        for mutation in mutations {
            let mut replayed = world.inventories.clone();
            let Ok(effect) = world.mutate(&mutation) else { continue };
            check_touched(&mutation, &effect)?;
            for touched in &effect.touched {
                let id = &touched.version.id;
                let old = replayed.remove(id);
                let new = match touched.transition() {
                    Transition::Unchanged => old,
                    Transition::Created { after } => {
                        prop_assert!(old.is_none());
                        Some(after.clone())
                    }
                    Transition::Updated { before, .. } => {
                        prop_assert_eq!(old.as_deref(), Some(before));
                        prop_assert!(touched.edits.iter().all(|(slot, new)| before.contents.stack(*slot) != new.as_ref()));
                        Some(Arc::new(before.advanced(&touched.edits)))
                    }
                    Transition::Deleted { before } => {
                        prop_assert_eq!(old.as_deref(), Some(before));
                        None
                    }
                    Transition::Recreated { before, after } => {
                        prop_assert_eq!(old.as_deref(), Some(before));
                        Some(after.clone())
                    }
                };
                replayed.extend(new.map(|new| (id.clone(), new)));
            }
            prop_assert_eq!(&replayed, &world.inventories);
        }
    }

    #[test]
    fn the_flows_of_a_mutation_are_its_change_of_each_item(History { mut world, mutations } in history()) {
        for mutation in mutations {
            let before = world.totals();
            let Ok(effect) = world.mutate(&mutation) else { continue };
            let mut balance: BTreeMap<ItemCode, i64> = BTreeMap::new();
            for flow in &effect.flows {
                let kind = OperationKind::of(&mutation.operations[usize::from(flow.operation)]);
                let (may_add, may_remove) = match kind {
                    OperationKind::Create | OperationKind::Add | OperationKind::Import => (true, false),
                    OperationKind::Delete | OperationKind::Remove | OperationKind::Drop => (false, true),
                    OperationKind::Craft | OperationKind::Set => (true, true),
                    OperationKind::Move | OperationKind::Transfer | OperationKind::Rearrange => (false, false),
                };
                prop_assert!(may_add || flow.added == 0, "{kind:?} {flow:?}");
                prop_assert!(may_remove || flow.removed == 0, "{kind:?} {flow:?}");
                *balance.entry(flow.item).or_default() += flow.added as i64 - flow.removed as i64;
            }
            prop_assert!(effect.flows.is_sorted_by_key(|flow| flow.operation));
            for (item, _, count) in world.totals().minus(&before).kinds() {
                *balance.entry(item).or_default() -= count;
            }
            prop_assert!(balance.values().all(|difference| *difference == 0), "{balance:?}");
        }
    }

    #[test]
    fn after_limits_are_lowered_no_stack_above_its_limit_is_created_or_grows(
        History { mut world, mutations } in history(), max_stack in select(vec![1_u32, 5, 16]),
    ) {
        let (before_lowering, after_lowering) = mutations.split_at(mutations.len() / 3);
        before_lowering.iter().for_each(|mutation| drop(world.mutate(mutation)));
        world.catalog = lowered(&world.catalog, max_stack);
        for operation in after_lowering.iter().flat_map(|mutation| &mutation.operations) {
            let (before, held) = (counts_above_limits(&world), world.totals());
            if world.run(operation.clone()).is_err() {
                continue;
            }
            for (kind, counts) in counts_above_limits(&world) {
                // Both lists are in descending order. A moved stack is in both; a stack that shrank has a smaller
                // count.
                let allowed = before.get(&kind).map_or(&[][..], Vec::as_slice);
                let is_allowed = counts.len() <= allowed.len() && counts.iter().zip(allowed).all(|(is, was)| is <= was);
                prop_assert!(is_allowed, "{:?}: {:?} became {:?} by {:?}", kind, allowed, counts, operation);
            }
            if let Operation::Move { .. } | Operation::Transfer { .. } | Operation::Rearrange { .. } = operation {
                prop_assert_eq!(&world.totals(), &held, "{:?}", operation);
            }
        }
    }

    #[test]
    fn every_permutation_of_the_stacks_is_a_valid_rearrangement(
        History { mut world, .. } in history(), max_stack in select(vec![1_u32, 5, 16]), seed in 0_u64..1_000,
    ) {
        world.catalog = lowered(&world.catalog, max_stack);
        for id in world.inventories.keys().cloned().collect::<Vec<_>>() {
            let stacks = shuffled(&world, &id, seed);
            let rearranged = world.run(Operation::Rearrange { id, stacks });
            prop_assert!(rearranged.is_ok(), "{:?}", rearranged);
        }
    }
}

/// Returns the counts of all stacks above their limit, by kind, in descending order. A removed item has the limit 0.
fn counts_above_limits(world: &World) -> BTreeMap<(ItemCode, Attributes), Vec<u32>> {
    let mut above: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (_, stack) in world.inventories.values().flat_map(|inventory| inventory.contents.stacks()) {
        let limit = world.catalog.item_by_code(stack.item).map_or(0, |item| item.max_stack.get());
        if stack.count.get() > limit {
            above.entry((stack.item, stack.attributes.clone())).or_default().push(stack.count.get());
        }
    }
    above.values_mut().for_each(|counts| counts.sort_unstable_by_key(|count| Reverse(*count)));
    above
}

/// Checks that the outcome of an operation explains `change`, the difference of all inventories together.
fn check_balance(
    operation: &Operation,
    outcome: &OperationOutcome,
    before: &World,
    change: &Totals,
) -> Result<(), TestCaseError> {
    let mut expected = Totals::default();
    match operation {
        Operation::Create { stacks, .. } => stacks.iter().for_each(|(_, stack)| expected.add_stack(stack, 1)),
        Operation::Delete { id } => expected.add_contents(&before.inventories[id].contents, -1),
        Operation::Add { item, attributes, count, allow_partial, .. } => {
            prop_assert_eq!(u64::from(outcome.count) + u64::from(outcome.remainder), u64::from(count.get()));
            prop_assert!(outcome.remainder == 0 || *allow_partial);
            expected.add(*item, attributes, i64::from(outcome.count));
        }
        Operation::Remove { item, attributes, count, .. } => {
            prop_assert_eq!(outcome.count, count.get());
            let Some(attributes) = attributes else { return check_removed_of_any_kind(*item, outcome.count, change) };
            expected.add(*item, attributes, -i64::from(outcome.count));
        }
        Operation::Drop { count, .. } => {
            let dropped = outcome.stack.as_ref().expect("a drop hands the stack out");
            prop_assert!(count.is_none_or(|count| count == dropped.count));
            prop_assert_eq!(dropped.count.get(), outcome.count);
            expected.add_stack(dropped, -1);
        }
        Operation::Craft { recipe, times, .. } => {
            prop_assert_eq!(outcome.count, times.get());
            let sides = [(-1, &recipe.inputs), (1, &recipe.outputs)];
            for (sign, (item, count)) in sides.into_iter().flat_map(|(sign, side)| side.iter().map(move |p| (sign, p)))
            {
                expected.add(*item, &Attributes::NONE, sign * i64::from(count.get()) * i64::from(times.get()));
            }
        }
        Operation::Set { stack, .. } => {
            outcome.stack.iter().for_each(|replaced| expected.add_stack(replaced, -1));
            stack.iter().for_each(|stack| expected.add_stack(stack, 1));
        }
        Operation::Transfer { what, allow_partial, .. } => {
            let requested = match what {
                TransferSource::Item { count, .. } => Some(*count),
                TransferSource::Slot { count, .. } => *count,
            };
            let in_all = u64::from(outcome.count) + u64::from(outcome.remainder);
            prop_assert!(requested.is_none_or(|count| u64::from(count.get()) == in_all));
            prop_assert!(outcome.remainder == 0 || *allow_partial);
        }
        Operation::Move { .. } | Operation::Rearrange { .. } => {}
    }
    prop_assert_eq!(change, &expected, "{:?}", operation);
    Ok(())
}

fn check_removed_of_any_kind(item: ItemCode, count: u32, change: &Totals) -> Result<(), TestCaseError> {
    let mut removed = 0;
    for (kind, _, change) in change.kinds() {
        prop_assert!(kind == item && change < 0);
        removed -= change;
    }
    prop_assert_eq!(removed, i64::from(count));
    Ok(())
}

fn missing_expected(mutation: &Mutation, before: &World) -> bool {
    mutation.expected.iter().any(|guard| !before.inventories.contains_key(&guard.id))
}

fn is_met(guard: &Guard, inventory: &Inventory) -> bool {
    (guard.epoch, guard.revision) == (inventory.epoch, inventory.contents.revision())
}

/// Checks that the operations, sent as separate mutations, yield the same stacks or the same rejection.
fn check_equals_sequence(
    mutation: &Mutation,
    singly: &mut World,
    world: &World,
    result: &Result<Effect, Rejection>,
) -> Result<(), TestCaseError> {
    for (position, operation) in mutation.operations.iter().enumerate() {
        match (singly.run(operation.clone()), result) {
            (Ok(one), Ok(all)) => prop_assert_eq!(&one.outcomes[0], &all.outcomes[position]),
            (Ok(_), Err(rejection)) => prop_assert!(rejection.operation > position),
            (Err(one), Err(all)) => {
                prop_assert_eq!((position, one.cause), (all.operation, all.cause.clone()));
                return Ok(());
            }
            (Err(one), Ok(_)) => prop_assert!(false, "only alone it is refused: {:?}", one),
        }
    }
    let stacks = |world: &World| -> Vec<_> {
        let of =
            |inventory: &Arc<Inventory>| (inventory.id.clone(), inventory.layout.clone(), stacks(&inventory.contents));
        world.inventories.values().map(of).collect()
    };
    prop_assert_eq!(stacks(singly), stacks(world));
    Ok(())
}

fn stacks(contents: &Contents) -> Vec<Option<Stack>> {
    contents.slots().iter().map(|state| state.stack.clone()).collect()
}

fn check_created(before: &World, new: &Inventory) -> Result<(), TestCaseError> {
    prop_assert_eq!(new.contents.revision(), Revision::CREATED);
    prop_assert!(before.inventories.values().all(|old| old.epoch != new.epoch));
    for state in new.contents.slots() {
        prop_assert_eq!((state.changed_at, state.identity_changed_at), (Revision::CREATED, Revision::CREATED));
    }
    Ok(())
}

/// Checks that the revision advanced by one and only changed slots have its stamps, or that nothing changed at all.
fn check_advanced(old: &Contents, new: &Contents) -> Result<(), TestCaseError> {
    if stacks(old) == stacks(new) {
        prop_assert_eq!(old, new);
        return Ok(());
    }
    prop_assert_eq!(new.revision(), old.revision().next());
    for (was, is) in old.slots().iter().zip(new.slots()) {
        let expected = SlotState {
            stack: is.stack.clone(),
            changed_at: if was.stack == is.stack { was.changed_at } else { new.revision() },
            identity_changed_at: if kind(was) == kind(is) { was.identity_changed_at } else { new.revision() },
        };
        prop_assert_eq!(is, &expected);
        prop_assert!(is.identity_changed_at <= is.changed_at && is.changed_at <= new.revision());
    }
    Ok(())
}

fn kind(state: &SlotState) -> Option<(ItemCode, &Attributes)> {
    state.stack.as_ref().map(|stack| (stack.item, &stack.attributes))
}

/// Checks that each inventory is reported once, in order of first mention.
fn check_touched(mutation: &Mutation, effect: &Effect) -> Result<(), TestCaseError> {
    prop_assert_eq!(effect.outcomes.len(), mutation.operations.len());
    let operations = Mutation { expected: vec![], ..mutation.clone() };
    let mut mentioned: Vec<_> = Vec::new();
    for id in operations.inventories() {
        if !mentioned.contains(id) {
            mentioned.push(id.clone());
        }
    }
    let touched: Vec<_> = effect.touched.iter().map(|touched| touched.version.id.clone()).collect();
    prop_assert_eq!(touched, mentioned);
    Ok(())
}

/// The properties above would be meaningless if hardly any operation were accepted.
#[test]
fn every_kind_of_operation_is_both_accepted_and_rejected() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for _ in 0..300 {
        let History { mut world, mutations } = history().new_tree(&mut runner).unwrap().current();
        for mutation in mutations {
            let mut singly = world.clone();
            for operation in &mutation.operations {
                let accepted = singly.run(operation.clone()).is_ok();
                seen.entry(kind_of_operation(operation)).or_default()[usize::from(accepted)] += 1;
            }
            let accepted = world.mutate(&mutation).is_ok();
            if mutation.operations.len() > 1 {
                seen.entry("a list of several".to_owned()).or_default()[usize::from(accepted)] += 1;
            }
        }
    }
    // The protos list all operations, so a new one that `random` does not generate is noticed.
    let pool = prost_reflect::DescriptorPool::decode(slotcast::wire::FILE_DESCRIPTOR_SET).unwrap();
    let operations = pool.get_message_by_name("slotcast.v1.Operation").unwrap().fields().count();
    assert_eq!(seen.len(), operations + 1, "generate every operation in tests/support/random.rs: {seen:?}");
    assert!(seen.values().all(|[refused, accepted]| *refused >= 10 && *accepted >= 10), "{seen:?}");
}

fn kind_of_operation(operation: &Operation) -> String {
    format!("{operation:?}").split(' ').next().unwrap_or_default().to_owned()
}
