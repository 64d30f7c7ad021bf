//! A record of the log as text and as JSON.

use crate::cli::item_names::ItemNames;
use crate::cli::timestamp::format_utc;
use crate::domain::{Inventory, InventoryId, ItemCode, OperationKind, PredictionOutcome, Slot, Stack};
use crate::store::log::{LogEntry, LogRecord, LoggedChange, LoggedChangeKind};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What the reader of a record is interested in.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// The slots of one inventory. Other changed inventories are only named.
    Inventory(&'a InventoryId),
    /// The slots of all changed inventories.
    All,
}

impl Subject<'_> {
    fn has(self, id: &InventoryId) -> bool {
        match self {
            Self::Inventory(subject) => subject == id,
            Self::All => true,
        }
    }
}

/// Describes a record in several lines; the last one has no line break.
pub fn to_text(record: &LogRecord, subject: Subject<'_>, names: &ItemNames) -> String {
    let mut text = format!("{}  {}  {}", record.position, format_utc(record.time_ms), operations_text(record));
    let mut context = format!("caller {}", record.caller);
    let parts = [
        record.key.as_ref().map(|key| format!("key {key}")),
        record.session.as_ref().map(|session| format!("session {session}")),
        prediction_name(record.prediction).map(|outcome| format!("prediction {outcome}")),
    ];
    parts.iter().flatten().for_each(|part| context.extend([", ", part]));
    let mut line = |indentation: usize, line: &str| {
        // Writing to a string does not fail.
        let _ = write!(text, "\n{:indentation$}{line}", "");
    };
    line(2, &context);
    if !record.reason.is_empty() {
        // Quoted and escaped: a reason may contain any characters.
        line(2, &format!("reason {:?}", record.reason));
    }
    if let Some(flows) = flows_text(record, names) {
        line(2, &flows);
    }
    // That of the inventory comes first, because an import names many.
    let (of_subject, others): (Vec<_>, Vec<_>) =
        record.entries.iter().partition(|entry| subject.has(&entry.version.id));
    let omitted = record.entries.len().saturating_sub(ENTRIES_MAX);
    for entry in of_subject.into_iter().chain(others).take(ENTRIES_MAX) {
        line(2, &entry_text(entry));
        if subject.has(&entry.version.id) {
            for (slot, (before, after)) in changed_slots(entry) {
                let stack = |stack: Option<&Stack>| stack.map_or("empty".to_owned(), |stack| names.stack_text(stack));
                line(4, &format!("slot {}: {} -> {}", slot.0, stack(before), stack(after)));
            }
        }
    }
    if omitted > 0 {
        line(2, &format!("and {omitted} more inventories (--json lists all)"));
    }
    text
}

/// Maximum number of inventories of one record that are printed as text.
const ENTRIES_MAX: usize = 8;

/// Lists what the operations added and removed, such as `added 4 oak_planks, removed 1 oak_log`; `None` if nothing.
fn flows_text(record: &LogRecord, names: &ItemNames) -> Option<String> {
    let mut totals: BTreeMap<ItemCode, (u128, u128)> = BTreeMap::new();
    for flow in &record.flows {
        let (added, removed) = totals.entry(flow.item).or_default();
        *added += u128::from(flow.added);
        *removed += u128::from(flow.removed);
    }
    let part = |word: &str, counts: Vec<(ItemCode, u128)>| {
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let counts: Vec<String> = counts.map(|(item, count)| format!("{count} {}", names.text(item))).collect();
        (!counts.is_empty()).then(|| format!("{word} {}", counts.join(" and ")))
    };
    let added = part("added", totals.iter().map(|(item, (added, _))| (*item, *added)).collect());
    let removed = part("removed", totals.iter().map(|(item, (_, removed))| (*item, *removed)).collect());
    let parts: Vec<String> = [added, removed].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Lists the kinds of the operations in their order, such as `craft, move x2, add`.
fn operations_text(record: &LogRecord) -> String {
    let mut kinds: Vec<(OperationKind, usize)> = Vec::new();
    for operation in &record.operations {
        match kinds.last_mut() {
            Some((kind, count)) if *kind == operation.kind => *count += 1,
            Some(_) | None => kinds.push((operation.kind, 1)),
        }
    }
    let text = |(kind, count): (OperationKind, usize)| match count {
        1 => kind.name().to_owned(),
        count => format!("{} x{count}", kind.name()),
    };
    kinds.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

fn prediction_name(outcome: PredictionOutcome) -> Option<&'static str> {
    match outcome {
        PredictionOutcome::Unpredicted => None,
        PredictionOutcome::Confirmed => Some("confirmed"),
        PredictionOutcome::Mispredicted => Some("mispredicted"),
        PredictionOutcome::Correction => Some("rejected"),
    }
}

fn change_name(entry: &LogEntry) -> &'static str {
    match entry.change.as_ref().map(|change| &change.kind) {
        None => "unchanged",
        Some(LoggedChangeKind::Edited { .. }) => "edited",
        Some(LoggedChangeKind::Created { .. }) => "created",
        Some(LoggedChangeKind::Deleted { .. }) => "deleted",
        Some(LoggedChangeKind::Recreated { .. }) => "recreated",
    }
}

fn entry_text(entry: &LogEntry) -> String {
    let version = &entry.version;
    let (id, revision, epoch) = (&version.id, version.revision.0, version.epoch.get());
    let mut text = format!("inventory {id:?} {}, revision {revision} of epoch {epoch}", change_name(entry));
    if let Some(after) = created(entry) {
        let owner = after.owner.as_ref().map_or(String::new(), |owner| format!(", owner {owner:?}"));
        let _ = write!(text, ", layout {}{owner}", after.layout);
    }
    text
}

/// Returns the state with which an entry begins a life of the inventory.
fn created(entry: &LogEntry) -> Option<&Inventory> {
    entry.change.as_ref()?.kind.created().map(|created| &**created)
}

type BeforeAndAfter<'a> = (Option<&'a Stack>, Option<&'a Stack>);

/// Returns the stacks before and after in all slots that an entry changed.
fn changed_slots(entry: &LogEntry) -> BTreeMap<Slot, BeforeAndAfter<'_>> {
    let Some(LoggedChange { kind, .. }) = &entry.change else { return BTreeMap::new() };
    let edits = kind.edits().iter().map(|edit| (edit.slot, (edit.before.as_ref(), edit.after.as_ref())));
    let mut slots: BTreeMap<Slot, BeforeAndAfter<'_>> = edits.collect();
    let (before, after) = (kind.before(), kind.created());
    for (slot, stack) in before.iter().flat_map(|before| before.contents.stacks()) {
        slots.entry(slot).or_default().0 = Some(stack);
    }
    for (slot, stack) in after.iter().flat_map(|after| after.contents.stacks()) {
        slots.entry(slot).or_default().1 = Some(stack);
    }
    slots.retain(|_, (before, after)| before != after);
    slots
}

pub fn to_json(record: &LogRecord, subject: Subject<'_>, names: &ItemNames) -> Value {
    let operations = (0_u8..).zip(&record.operations).map(|(index, operation)| {
        let flows = record
            .flows
            .iter()
            .filter(|flow| flow.operation == index)
            .map(|flow| json!({"item": names.json(flow.item), "added": flow.added, "removed": flow.removed}));
        json!({"kind": operation.kind.name(), "flows": flows.collect::<Vec<_>>()})
    });
    let mut value = json!({
        "position": record.position.to_string(),
        "time": format_utc(record.time_ms),
        "unix_ms": record.time_ms,
        "caller": record.caller.as_str(),
        "key": record.key.as_ref().map(|key| key.as_str()),
        "reason": &*record.reason,
        "session": record.session.as_ref().map(|session| session.as_str()),
        "prediction": prediction_name(record.prediction),
        "operations": operations.collect::<Vec<_>>(),
    });
    value["inventories"] = record.entries.iter().map(|entry| entry_json(entry, subject, names)).collect();
    value
}

fn entry_json(entry: &LogEntry, subject: Subject<'_>, names: &ItemNames) -> Value {
    let version = &entry.version;
    let mut value = Map::new();
    value.insert("id".into(), version.id.as_str().into());
    value.insert("change".into(), change_name(entry).into());
    value.insert("epoch".into(), version.epoch.get().into());
    value.insert("revision".into(), version.revision.0.into());
    if let Some(after) = created(entry) {
        value.insert("layout".into(), after.layout.as_str().into());
        value.insert("owner".into(), after.owner.as_ref().map(|owner| owner.as_str()).into());
    }
    if subject.has(&version.id) {
        let slots = changed_slots(entry).into_iter().map(|(slot, (before, after))| {
            let stack = |stack: Option<&Stack>| stack.map(|stack| names.stack_json(stack));
            json!({"slot": slot.0, "before": stack(before), "after": stack(after)})
        });
        value.insert("slots".into(), slots.collect());
    }
    Value::Object(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::item_names::tests::{code, names, stack};
    use crate::domain::{
        Caller, Contents, Digest, Edit, Epoch, Fingerprint, Flow, IdempotencyKey, LayoutId, OperationOutcome, PlayerId,
        Revision, SessionId, Version,
    };
    use crate::store::log::{LoggedChange, LoggedEdit, LoggedOperation, Position};
    use std::sync::Arc;

    fn id(name: &str) -> InventoryId {
        InventoryId::new(name).expect("a name")
    }

    fn inventory(name: &str, stacks: &[Edit]) -> Arc<Inventory> {
        Arc::new(Inventory {
            id: id(name),
            owner: Some(PlayerId::new("ann").expect("a name")),
            layout: LayoutId::new("chest").expect("a name"),
            epoch: Epoch::new(7).expect("not 0"),
            contents: Contents::new(9, Revision::CREATED, stacks),
        })
    }

    fn entry(name: &str, revision: u64, kind: Option<LoggedChangeKind>) -> LogEntry {
        let epoch = Epoch::new(7).expect("not 0");
        let change =
            kind.map(|kind| LoggedChange { previous: Position::NONE, kind, previous_checkpoint: Position::NONE });
        let version = Version { id: id(name), epoch, revision: Revision(revision), digest: Digest::EMPTY };
        LogEntry { version, change }
    }

    fn record() -> LogRecord {
        let operation = |kind| LoggedOperation { kind, outcome: OperationOutcome::default() };
        let edit = |slot, before, after| LoggedEdit { slot: Slot(slot), before, after };
        let edits =
            vec![edit(3, Some(stack(1, 5, b"")), Some(stack(1, 8, b""))), edit(4, Some(stack(77, 1, b"sharp")), None)];
        LogRecord {
            position: Position::new(1, 4_711),
            time_ms: 1_782_907_200_123,
            caller: Caller::new("quests").expect("a name"),
            key: IdempotencyKey::new("quest-17").ok(),
            payload: Fingerprint(0),
            reason: "quest \"17\"\n".into(),
            session: SessionId::new("s-1").ok(),
            prediction: PredictionOutcome::Confirmed,
            operations: [OperationKind::Move, OperationKind::Add, OperationKind::Move].map(operation).into(),
            flows: vec![Flow { operation: 1, item: code(1), added: 3, removed: 0 }],
            entries: vec![
                entry("bag", 12, Some(LoggedChangeKind::Edited { edits, checkpoint: None })),
                entry(
                    "chest",
                    1,
                    Some(LoggedChangeKind::Recreated {
                        before: inventory(
                            "chest",
                            &[(Slot(0), Some(stack(1, 1, b""))), (Slot(1), Some(stack(1, 2, b"")))],
                        ),
                        after: inventory(
                            "chest",
                            &[(Slot(1), Some(stack(1, 2, b""))), (Slot(2), Some(stack(1, 3, b"")))],
                        ),
                    }),
                ),
                entry("shop", 5, None),
            ],
        }
    }

    #[test]
    fn a_record_tells_who_did_what_and_lists_the_slots_of_the_subject() {
        let bag = id("bag");
        let expected = "\
1-4711  2026-07-01T12:00:00.123Z  move, add, move
  caller quests, key quest-17, session s-1, prediction confirmed
  reason \"quest \\\"17\\\"\\n\"
  added 3 apple
  inventory \"bag\" edited, revision 12 of epoch 7
    slot 3: 5 apple -> 8 apple
    slot 4: 1 item code 77 (attributes c2hhcnA=) -> empty
  inventory \"chest\" recreated, revision 1 of epoch 7, layout chest, owner \"ann\"
  inventory \"shop\" unchanged, revision 5 of epoch 7";
        assert_eq!(to_text(&record(), Subject::Inventory(&bag), &names()), expected);
    }

    #[test]
    fn a_record_of_a_scan_lists_the_changed_slots_of_all_inventories() {
        let text = to_text(&record(), Subject::All, &names());
        assert!(text.contains("owner \"ann\"\n    slot 0: 1 apple -> empty\n    slot 2: empty -> 3 apple\n"), "{text}");
        let minimal = LogRecord {
            key: None,
            session: None,
            reason: "".into(),
            prediction: PredictionOutcome::Unpredicted,
            entries: Vec::new(),
            ..record()
        };
        let expected = "1-4711  2026-07-01T12:00:00.123Z  move, add, move\n  caller quests\n  added 3 apple";
        assert_eq!(to_text(&minimal, Subject::All, &names()), expected);
    }

    #[test]
    fn a_record_as_json_has_the_same_facts() {
        let bag = id("bag");
        let value = to_json(&record(), Subject::Inventory(&bag), &names());
        assert_eq!((&value["position"], &value["unix_ms"]), (&json!("1-4711"), &json!(1_782_907_200_123_u64)));
        assert_eq!(value["prediction"], "confirmed");
        assert_eq!(
            value["operations"][1],
            json!({"kind": "add", "flows": [{"item": "apple", "added": 3, "removed": 0}]})
        );
        assert_eq!(
            value["inventories"][0]["slots"][1],
            json!({"slot": 4, "before": {"item": 77, "count": 1, "attributes": "c2hhcnA="}, "after": null})
        );
        assert_eq!(
            value["inventories"][1],
            json!({"id": "chest", "change": "recreated", "epoch": 7, "revision": 1, "layout": "chest", "owner": "ann"})
        );
    }
}
