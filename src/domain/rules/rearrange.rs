//! Rearranging all slots of an inventory without changing its items.

use super::{OperationResult, check_slots, stack_limit};
use crate::domain::catalog::Catalog;
use crate::domain::ids::{ItemCode, Slot};
use crate::domain::inventory::Draft;
use crate::domain::mutation::OperationOutcome;
use crate::domain::rejection::RejectionCause;
use crate::domain::stack::{Attributes, Stack};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Replaces the content of all slots; slots that are not named become empty. Rejected unless the items stay exactly the
/// same and no stack exceeds its limit except stacks that already did.
pub fn rearrange(draft: &mut Draft, catalog: &Catalog, stacks: &[(Slot, Stack)]) -> OperationResult {
    let id = draft.base().id.clone();
    check_slots(&id, draft.slots().len(), stacks)?;
    let held: BTreeMap<Slot, Stack> =
        draft.slots().filter_map(|slot| Some((slot, draft.stack(slot)?.clone()))).collect();
    let mut balance: HashMap<(ItemCode, &Attributes), i64> = HashMap::new();
    for stack in held.values() {
        *balance.entry((stack.item, &stack.attributes)).or_default() += i64::from(stack.count.get());
    }
    for (_, stack) in stacks {
        *balance.entry((stack.item, &stack.attributes)).or_default() -= i64::from(stack.count.get());
    }
    if balance.values().any(|sum| *sum != 0) {
        return Err(RejectionCause::NotARearrangement { id });
    }
    check_limits(catalog, &held, stacks)?;
    for slot in held.keys() {
        draft.set(*slot, None);
    }
    for (slot, stack) in stacks {
        draft.set(*slot, Some(stack.clone()));
    }
    Ok(OperationOutcome::default())
}

/// Checks that each new stack above its limit corresponds to a distinct held stack above the limit: the stack in the
/// same slot, if it has the same kind and is not smaller, or another stack of the same kind and count that moved as a
/// whole.
///
/// New stacks that can only have moved choose first, so that every permutation of the held stacks is accepted.
fn check_limits(
    catalog: &Catalog,
    held: &BTreeMap<Slot, Stack>,
    stacks: &[(Slot, Stack)],
) -> Result<(), RejectionCause> {
    let is_above = |stack: &Stack| stack.count.get() > stack_limit(catalog, stack.item);
    let shrinks = |(slot, stack): &(Slot, Stack)| {
        let same_kind = |before: &&Stack| before.is_same_kind(stack.item, &stack.attributes);
        held.get(slot).filter(same_kind).is_some_and(|before| before.count > stack.count)
    };
    let mut above: Vec<_> = stacks.iter().filter(|(_, stack)| is_above(stack)).collect();
    let (mut sources, mut by_stack) = (held.clone(), HashMap::<&Stack, Vec<Slot>>::new());
    sources.retain(|_, stack| is_above(stack));
    above.retain(|(slot, stack)| sources.get(slot) != Some(stack) || sources.remove(slot).is_none());
    // `pop` takes the last slot of a list first. Slots in which a stack shrinks come first, so that they are used last.
    let shrinking: Vec<Slot> = above.iter().filter(|stack| shrinks(stack)).map(|(slot, _)| *slot).collect();
    let others = sources.keys().copied().filter(|slot| !shrinking.contains(slot));
    for slot in shrinking.iter().copied().chain(others) {
        if let Some(stack) = held.get(&slot) {
            by_stack.entry(stack).or_default().push(slot);
        }
    }
    above.sort_by_key(|new| (shrinks(new), Reverse(new.1.count)));
    for new @ (slot, stack) in above {
        let stays = shrinks(new) && sources.remove(slot).is_some();
        let mut equal = by_stack.get_mut(stack).into_iter().flat_map(|slots| std::iter::from_fn(|| slots.pop()));
        if !stays && !equal.any(|slot| sources.remove(&slot).is_some()) {
            let (item, count) = (stack.item, stack.count.get());
            return Err(RejectionCause::StackTooLarge { item, count, max_stack: stack_limit(catalog, item) });
        }
    }
    Ok(())
}
