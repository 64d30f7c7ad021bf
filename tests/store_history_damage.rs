//! fsck finds damage in the log that no checksum shows: each test plants one wrong value with matching checksums, and with
//! matching heads of segments and counters, so that only the comparison of the parts of the store can find it.

mod store_support;

use slotcast::domain::{
    Attributes, Caller, Contents, Count, Inventory, ItemCode, LayoutId, OperationKind, Revision, Slot,
};
use slotcast::store::embedded::tools::{self, Snapshot};
use slotcast::store::format;
use slotcast::store::format::segment::SegmentHeader;
use slotcast::store::log::{LogRecord, LoggedChange, LoggedChangeKind, LoggedEdit, Position};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use store_support::*;

fn problems(path: &Path) -> Vec<String> {
    tools::check(&Snapshot::open(path).expect("it opens"), &mut |_| ControlFlow::Continue(())).problems
}

/// Plants damage in a copy of the store. `plant` returns a part of the sentence that names it.
fn assert_found(what: &str, plant: impl FnOnce(&Planted) -> String) {
    let place = Place::new();
    std::fs::write(place.path(), &*AGED_STORE).expect("it is written");
    let planted = Planted::open(&place.path());
    let expected = plant(&planted);
    drop(planted);
    let found = problems(&place.path());
    let is_found = found.iter().any(|problem| problem.contains(&expected));
    assert!(is_found, "{what}: {expected:?} is not among {} problems: {found:#?}", found.len());
}

fn change_in<'a>(record: &'a mut LogRecord, name: &str) -> &'a mut LoggedChange {
    let entry = record.entries.iter_mut().find(|entry| entry.version.id == id(name)).expect("an entry");
    entry.change.as_mut().expect("a change")
}

fn edits_in<'a>(record: &'a mut LogRecord, name: &str) -> &'a mut Vec<LoggedEdit> {
    let LoggedChangeKind::Edited { edits, .. } = &mut change_in(record, name).kind else { panic!("not an edit") };
    edits
}

fn checkpoint_in<'a>(record: &'a mut LogRecord, name: &str) -> &'a mut Inventory {
    let LoggedChangeKind::Edited { checkpoint: Some(state), .. } = &mut change_in(record, name).kind else {
        panic!("not a checkpoint")
    };
    Arc::make_mut(state)
}

#[test]
fn the_undamaged_store_has_every_part_of_a_log_and_is_clean() {
    let place = Place::new();
    std::fs::write(place.path(), &*AGED_STORE).expect("it is written");
    let planted = Planted::open(&place.path());
    let segments = planted.segments();
    assert!(segments.len() >= 4 && segments.iter().any(|segment| segment.blocks >= 2), "{segments:?}");
    assert!(planted.meta("earliest") > 1 && planted.number("SELECT count(*) FROM trimmed") > 0);
    let tombstones = planted.tombstones();
    assert!(tombstones.contains(&"gone-sealed".into()) && tombstones.contains(&"gone-folded".into()), "{tombstones:?}");
    assert!(!tombstones.contains(&"gone-trimmed".into()), "{tombstones:?}");
    LOG_PARTS.iter().for_each(|part| assert!(!planted.change_of(*part, "busy").is_none()));
    assert!(
        planted.record(planted.checkpoint()).change_of(&id("busy")).expect("it is there").0.version.revision.0 >= 512
    );
    // Reading and writing everything again changes nothing.
    planted.blocks().into_iter().for_each(|first| planted.change_block(first, |_| ()));
    planted.journal_rows().into_iter().for_each(|seq| planted.change_journal_row(seq, |_| ()));
    planted.change_row("quiet", |_| ());
    planted.change_tombstone("gone-sealed", |_| ());
    assert_eq!(planted.segments(), segments);
    drop(planted);
    assert_eq!(problems(&place.path()), Vec::<String>::new());
}

#[test]
fn a_wrong_value_in_a_record_is_found_in_every_part_of_the_log() {
    type Change = fn(&mut LogRecord);
    let cases: [(&str, Change, &str); 13] = [
        (
            "the amount of a flow",
            |record| record.flows[0].added += 1,
            "its flows of item code 7 differ from its edits by 1",
        ),
        (
            "the item of a flow",
            |record| record.flows[0].item = ItemCode::new(9).unwrap(),
            "its flows of item code 7 differ",
        ),
        ("the operation of a flow", |record| record.flows[0].operation = 1, "a move operation adds"),
        (
            "the kind of an operation",
            |record| record.operations[0].kind = OperationKind::Transfer,
            "a transfer operation adds",
        ),
        ("a flow", |record| record.flows.clear(), "its flows of item code 7 differ from its edits"),
        ("a digest", |record| record.entries[0].version.digest.a ^= 1, "its edits do not lead from the state before"),
        (
            "a revision",
            |record| record.entries[0].version.revision.0 += 1,
            "its edits do not lead from the state before",
        ),
        (
            "an epoch",
            |record| record.entries[0].version.epoch = epoch(77),
            "its edits do not lead from the state before",
        ),
        (
            "the stack before",
            |record| {
                let edit = &mut edits_in(record, "busy")[0];
                match &mut edit.before {
                    Some(before) => before.attributes = Attributes::new(b"other").unwrap(),
                    None => edit.before = stack(8, 1),
                }
            },
            "its edits do not lead from the state before",
        ),
        (
            "the stack after",
            |record| edits_in(record, "busy")[0].after.as_mut().unwrap().count = Count::new(61).unwrap(),
            "its edits do not lead from the state before",
        ),
        (
            "the slot",
            |record| edits_in(record, "busy")[0].slot = Slot(300),
            "its edits do not lead from the state before",
        ),
        (
            "the previous position",
            |record| change_in(record, "busy").previous = Position::new(1, 1),
            "its previous change is at ",
        ),
        ("the id", |record| record.entries[0].version.id = id("quiet"), "its previous change is at "),
    ];
    for (what, change, expected) in cases {
        for part in LOG_PARTS {
            assert_found(&format!("{what} in {part:?}"), |planted| {
                let position = planted.change_of(part, "busy");
                planted.change_record(position, change);
                let name = if what == "the id" { "quiet" } else { "busy" };
                let is_of_entry = !expected.contains("flows") && !expected.contains("operation");
                let place = if is_of_entry { format!("inventory {name:?}: ") } else { String::new() };
                format!("position {position} of the log: {place}{expected}")
            });
        }
    }
}

#[test]
fn a_wrong_kind_of_an_operation_is_found_by_the_supply() {
    assert_found("the kind", |planted| {
        let position = planted.change_of(LogPart::Sealed, "busy");
        planted.change_record(position, |record| record.operations[0].kind = OperationKind::Craft);
        "the supply of item code 7 by set differs from the flows in the log".into()
    });
}

#[test]
fn a_record_that_is_later_than_the_next_one_is_found() {
    for part in LOG_PARTS {
        assert_found(&format!("a time in {part:?}"), |planted| {
            let position = planted.change_of(part, "busy");
            planted.change_record(position, |record| record.time_ms += 10_000_000);
            format!("position {} of the log is earlier than the one before it", position.plus(1))
        });
    }
}

#[test]
fn a_wrong_checkpoint_is_found() {
    assert_found("its slots", |planted| {
        planted.change_record(planted.checkpoint(), |record| {
            let state = checkpoint_in(record, "busy");
            let mut slots = state.contents.slots().to_vec();
            slots[3].stack = stack(7, 99);
            state.contents = Contents::restored(state.contents.revision(), slots);
        });
        format!(
            "position {} of the log: inventory \"busy\": its checkpoint does not have its version",
            planted.checkpoint()
        )
    });
    assert_found("its revision", |planted| {
        planted.change_record(planted.checkpoint(), |record| {
            let state = checkpoint_in(record, "busy");
            state.contents = Contents::restored(Revision(511), state.contents.slots().to_vec());
        });
        "inventory \"busy\": its checkpoint does not have its version".into()
    });
    for (what, change) in [
        ("its owner", (|state| state.owner = Some(player("eve"))) as fn(&mut Inventory)),
        ("its layout", |state| state.layout = LayoutId::new("chest").unwrap()),
        ("its number of slots", |state| {
            let mut slots = state.contents.slots().to_vec();
            slots.push(slots[0].clone());
            slots.last_mut().unwrap().stack = None;
            state.contents = Contents::restored(state.contents.revision(), slots);
        }),
    ] {
        assert_found(what, |planted| {
            let position = planted.checkpoint();
            planted.change_record(position, |record| change(checkpoint_in(record, "busy")));
            format!(
                "position {position} of the log: inventory \"busy\": its owner, layout or number of slots differs from the \
                 last full state"
            )
        });
    }
    assert_found("the previous checkpoint", |planted| {
        let position = planted.checkpoint();
        planted.change_record(position, |record| change_in(record, "busy").previous_checkpoint = position.before());
        format!("position {position} of the log: inventory \"busy\": its previous checkpoint is at ")
    });
    assert_found("no checkpoint", |planted| {
        let position = planted.checkpoint();
        planted.change_record(position, |record| {
            let edits = std::mem::take(edits_in(record, "busy"));
            change_in(record, "busy").kind = LoggedChangeKind::Edited { edits, checkpoint: None };
        });
        "inventory \"busy\": its last change and checkpoint are at ".into()
    });
}

#[test]
fn a_missing_record_is_found() {
    assert_found("the last record of a block", |planted| {
        let blocks = planted.blocks();
        planted.change_block(blocks[2], |records| drop(records.pop()));
        let next = blocks[3];
        format!("position {next} of the log does not follow position {}", next.before().before())
    });
    assert_found("a record within a block", |planted| {
        let first = planted.blocks()[2];
        // The records after it get its position and those that follow.
        planted.change_block(first, |records| drop(records.remove(5)));
        format!("position {} of the log: inventory ", first.plus(5))
    });
    assert_found("an entry of a record", |planted| {
        let is_transfer = |record: &LogRecord| record.entries.len() == 2 && record.entries[1].change.is_some();
        let transfer = planted.records().into_iter().rfind(is_transfer).expect("a transfer");
        planted.change_record(transfer.position, |record| drop(record.entries.pop()));
        format!("position {} of the log: its flows of item code ", transfer.position)
    });
}

#[test]
fn a_missing_or_moved_block_is_found() {
    let second = |planted: &Planted| {
        let segment = planted.segments().into_iter().find(|segment| segment.blocks >= 2).expect("two blocks");
        let blocks = planted.blocks();
        let at = blocks.iter().position(|first| *first == segment.first).expect("a block");
        (segment, blocks[at + 1], blocks[at + 2])
    };
    assert_found("a removed block", |planted| {
        let (segment, block, next) = second(planted);
        planted.run(&format!("DELETE FROM blocks WHERE first = {}", block.get()));
        planted.rebuild_segment(&segment);
        format!("position {next} of the log does not follow position {}", block.before())
    });
    assert_found("a moved block", |planted| {
        let (segment, block, _) = second(planted);
        planted.run(&format!("UPDATE blocks SET first = first + 1 WHERE first = {}", block.get()));
        planted.rebuild_segment(&segment);
        format!("the block of the log at position {} begins at position {block}", block.plus(1))
    });
    assert_found("an additional block", |planted| {
        let earliest = Position::from_u64(planted.meta("earliest").cast_unsigned());
        let mut records = planted.block(planted.blocks()[0]);
        records.truncate(1);
        records[0].position = earliest.before();
        planted.put_block(earliest.before(), &records);
        format!("the block of the log at position {} belongs to no segment", earliest.before())
    });
    assert_found("the records of another block", |planted| {
        let (segment, block, next) = second(planted);
        let mut other = planted.block(next);
        other.iter_mut().zip(0..).for_each(|(record, index)| record.position = block.plus(index));
        planted.put_block(block, &other);
        planted.rebuild_segment(&segment);
        format!("position {block} of the log: inventory ")
    });
}

#[test]
fn a_wrong_head_of_a_segment_is_found() {
    type Change = fn(&mut SegmentHeader);
    let cases: [(&str, Change, &str); 14] = [
        ("no callers", |head| head.callers = None, "sets"),
        ("a missing caller", |head| drop(head.callers.as_mut().unwrap().pop_first()), "sets"),
        (
            "an additional caller",
            |head| head.callers.as_mut().unwrap().extend([Caller::new("nobody").unwrap()]),
            "sets",
        ),
        ("a missing item", |head| head.items = head.items.iter().skip(1).copied().collect(), "sets"),
        ("an additional item", |head| head.items.extend(ItemCode::new(999)), "sets"),
        ("a missing kind", |head| head.kinds = head.kinds.iter().skip(1).copied().collect(), "sets"),
        ("an additional kind", |head| head.kinds.extend([OperationKind::Craft]), "sets"),
        (
            "a sum",
            |head| {
                let one = slotcast::store::supply::Amounts { added: 1, removed: 0 };
                head.sums.add(ItemCode::new(7).unwrap(), OperationKind::Set, one);
            },
            "sums",
        ),
        ("the number of records", |head| head.records += 1, "sizes"),
        ("the number of blocks", |head| head.blocks += 1, "sizes"),
        ("the bytes", |head| head.bytes -= 1, "sizes"),
        ("the first time", |head| head.first_ms -= 1, "times"),
        ("the last time", |head| head.last_ms += 1, "times"),
        ("the last position", |head| head.last = head.last.before(), "positions"),
    ];
    for (what, change, expected) in cases {
        assert_found(what, |planted| {
            let mut head = planted.segments().swap_remove(1);
            change(&mut head);
            planted.put_segment(&head);
            planted.recount();
            format!("the segment of the log at position {}: its {expected} differ from its records", head.first)
        });
    }
}

#[test]
fn a_missing_segment_is_found() {
    for index in 0..3 {
        assert_found(&format!("segment {index}"), |planted| {
            let segment = planted.segments().swap_remove(index);
            planted.run(&format!("DELETE FROM segments WHERE first = {}", segment.first.get()));
            planted.recount();
            format!("the block of the log at position {} belongs to no segment", segment.first)
        });
        assert_found(&format!("segment {index} with its blocks"), |planted| {
            let segment = planted.segments().swap_remove(index);
            let (first, last) = (segment.first, segment.last);
            planted.run(&format!("DELETE FROM segments WHERE first = {}", first.get()));
            planted.run(&format!("DELETE FROM blocks WHERE first BETWEEN {} AND {}", first.get(), last.get()));
            planted.recount();
            match index {
                0 => format!("the log begins at position {}, not at {first}", last.plus(1)),
                _ => format!("position {} of the log does not follow position {}", last.plus(1), first.before()),
            }
        });
    }
    assert_found("the last segment", |planted| {
        let segment = planted.segments().pop().expect("a segment");
        planted.run(&format!("DELETE FROM segments WHERE first = {}", segment.first.get()));
        planted.recount();
        format!("the last segment does not end at position {}", segment.last)
    });
    assert_found("the position of a segment", |planted| {
        let segment = planted.segments().swap_remove(1);
        planted.run(&format!("UPDATE segments SET first = first + 1 WHERE first = {}", segment.first.get()));
        format!("the segment of the log at position {} begins elsewhere", segment.first.plus(1))
    });
}

#[test]
fn a_wrong_tombstone_is_found() {
    for name in ["gone-sealed", "gone-folded"] {
        assert_found("a removed one", |planted| {
            planted.run(&format!("DELETE FROM tombstones WHERE id = '{name}'"));
            format!("inventory {name:?}: the log deletes it, but its tombstone is missing")
        });
        assert_found("its last change", |planted| {
            planted.change_tombstone(name, |row| row.last = row.last.before());
            format!("inventory {name:?}: its last change and checkpoint are at ")
        });
        assert_found("its checkpoint", |planted| {
            planted.change_tombstone(name, |row| row.checkpoint = row.checkpoint.before());
            format!("inventory {name:?}: its last change and checkpoint are at ")
        });
        assert_found("its revision", |planted| {
            planted.change_tombstone(name, |row| row.revision += 1);
            format!("inventory {name:?}: the store has revision 3 of epoch ")
        });
        assert_found("its epoch", |planted| {
            planted.change_tombstone(name, |row| row.epoch += 1);
            format!("inventory {name:?}: the store has revision 2 of epoch ")
        });
    }
    assert_found("one without a history", |planted| {
        planted.run("INSERT INTO tombstones SELECT 'older', epoch, revision, 5, 5, checksum FROM tombstones LIMIT 1");
        planted.change_tombstone("older", |_| ());
        "inventory \"older\": it has a tombstone, but its history was deleted".into()
    });
    assert_found("one beside its inventory", |planted| {
        planted
            .run("INSERT INTO tombstones SELECT 'quiet', epoch, revision, last, checkpoint, 0 FROM tombstones LIMIT 1");
        planted.change_tombstone("quiet", |_| ());
        "inventory \"quiet\": ".into()
    });
}

#[test]
fn a_wrong_supply_is_found() {
    for table in ["supply", "trimmed"] {
        for column in ["added", "removed"] {
            assert_found(&format!("{column} of {table}"), |planted| {
                let more = format!("x'01' || substr({column}, 2)");
                let one =
                    format!("SELECT item FROM {table} WHERE kind = 9 AND hex(substr({column}, 1, 1)) <> '01' LIMIT 1");
                let item = planted.number(&one);
                planted.run(&format!(
                    "UPDATE {table} SET {column} = CAST({more} AS BLOB) WHERE kind = 9 AND item = {item}"
                ));
                format!("the supply of item code {item} by set differs from the flows in the log")
            });
        }
        assert_found(&format!("a row of {table}"), |planted| {
            let item = planted.number(&format!("SELECT max(item) FROM {table}"));
            planted.run(&format!("DELETE FROM {table} WHERE item = {item}"));
            format!("the supply of item code {item} by set differs from the flows in the log")
        });
    }
    assert_found("both tables", |planted| {
        for table in ["supply", "trimmed"] {
            planted.run(&format!(
                "INSERT INTO {table} SELECT 500, kind, x'01000000000000000000000000000000',
                 x'00000000000000000000000000000000' FROM {table} LIMIT 1"
            ));
        }
        "the inventories hold 0 of item code 500, but 1 were added and not removed".into()
    });
    assert_found("both tables, removed", |planted| {
        for table in ["supply", "trimmed"] {
            planted.run(&format!(
                "INSERT INTO {table} SELECT 500, kind, x'00000000000000000000000000000000',
                 x'01000000000000000000000000000000' FROM {table} LIMIT 1"
            ));
        }
        "more of item code 500 were removed than added".into()
    });
}

#[test]
fn a_wrong_row_of_an_inventory_is_found() {
    assert_found("its last change", |planted| {
        planted.change_row("quiet", |row| row.last = row.last.before());
        "inventory \"quiet\": its last change and checkpoint are at ".into()
    });
    assert_found("its checkpoint", |planted| {
        planted.change_row("quiet", |row| row.checkpoint = row.last);
        "inventory \"quiet\": its last change and checkpoint are at ".into()
    });
    assert_found("its contents", |planted| {
        planted.change_row("quiet", |row| {
            let (contents, edit) = (row.contents(), (Slot(5), stack(6, 2)));
            let slots = contents.advanced(contents.revision(), &[edit]).slots().to_vec();
            row.contents = format::encode_contents(&Contents::restored(contents.revision(), slots));
        });
        "inventory \"quiet\": its digest differs from the one in the log".into()
    });
    assert_found("its epoch", |planted| {
        planted.change_row("quiet", |row| row.epoch += 1);
        "inventory \"quiet\": the store has revision ".into()
    });
    assert_found("a missing row", |planted| {
        planted.run("DELETE FROM inventories WHERE id = 'quiet'");
        "inventory \"quiet\": the log has it, but it is missing".into()
    });
    assert_found("an additional row", |planted| {
        planted.change_row("quiet", |row| row.id = "more".into());
        "inventory \"more\": the log does not have its changes".into()
    });
    assert_found("a change that was deleted", |planted| {
        let earliest = Position::from_u64(planted.meta("earliest").cast_unsigned());
        planted.change_row("still", |row| row.last = earliest.plus(3));
        "inventory \"still\": the log does not have its changes".into()
    });
}

/// As a backup of the table alone would be: each part is valid.
#[test]
fn a_row_of_an_earlier_revision_is_found() {
    let undo = |planted: &Planted, name: &str, position: Position, row: &mut StoredRow| {
        let mut record = planted.record(position);
        let before: Vec<_> = edits_in(&mut record, name).drain(..).map(|edit| (edit.slot, edit.before)).collect();
        let contents = row.contents();
        let stacks = contents.advanced(contents.revision(), &before);
        let earlier = Contents::restored(Revision(contents.revision().0 - 1), stacks.slots().to_vec());
        (row.contents, row.revision) = (format::encode_contents(&earlier), row.revision - 1);
    };
    assert_found("a row with its chain", |planted| {
        planted.change_row("quiet", |row| {
            undo(planted, "quiet", row.last, row);
            row.last = change_in(&mut planted.record(row.last), "quiet").previous;
        });
        "inventory \"quiet\": its last change and checkpoint are at ".into()
    });
    assert_found("a row with the head of the later chain", |planted| {
        planted.change_row("quiet", |row| undo(planted, "quiet", row.last, row));
        "inventory \"quiet\": the store has revision 4 of epoch ".into()
    });
    assert_found("a row to which unfolded changes are added", |planted| {
        let revision = planted.row("busy").revision;
        planted.change_row("busy", |row| undo(planted, "busy", row.last, row));
        format!("inventory \"busy\": the journal misses revision {revision}")
    });
}

#[test]
fn a_missing_journal_row_is_found() {
    let folded = |planted: &Planted| planted.meta("folded_through");
    assert_found("the oldest row", |planted| {
        let seq = planted.journal_rows()[0];
        planted.run(&format!("DELETE FROM journal WHERE seq = {seq}"));
        format!(" of the log does not follow position {}", Position::from_u64(planted.meta("sealed_through") as u64))
    });
    for (what, offset) in [("a folded row", -2), ("the last folded row", 0), ("an unfolded row", 2)] {
        assert_found(what, |planted| {
            let seq = folded(planted) + offset;
            planted.run(&format!("DELETE FROM journal WHERE seq = {seq}"));
            format!("journal row {seq} is missing")
        });
    }
    assert_found("all rows from the last folded one on", |planted| {
        let seq = folded(planted);
        planted.run(&format!("DELETE FROM journal WHERE seq >= {seq}"));
        format!("the journal ends before row {seq}, which was folded")
    });
    assert_found("a row of another place", |planted| {
        let seq = folded(planted) - 3;
        planted.run(&format!(
            "UPDATE journal SET batch = (SELECT batch FROM journal WHERE seq = {seq} - 1) WHERE seq = {seq}"
        ));
        format!("journal row {seq}: key ")
    });
}

#[test]
fn a_wrong_number_in_meta_is_found() {
    let sealed_through = |planted: &Planted| Position::from_u64(planted.meta("sealed_through").cast_unsigned());
    for name in ["blocks", "block_bytes"] {
        assert_found(name, |planted| {
            planted.set_meta(name, planted.meta(name) + 1);
            format!("the store counts {} blocks of ", planted.meta("blocks"))
        });
    }
    for step in [-1, 1] {
        assert_found("sealed_through", |planted| {
            planted.set_meta("sealed_through", planted.meta("sealed_through") + step);
            format!("the last segment does not end at position {}", sealed_through(planted))
        });
        assert_found("earliest", |planted| {
            let was = Position::from_u64(planted.meta("earliest").cast_unsigned());
            planted.set_meta("earliest", planted.meta("earliest") + step);
            let is = Position::from_u64(planted.meta("earliest").cast_unsigned());
            format!("the log begins at position {was}, not at {is}")
        });
        assert_found("folded_through", |planted| {
            planted.set_meta("folded_through", planted.meta("folded_through") + step);
            "the supply of item code ".into()
        });
    }
    assert_found("no earliest", |planted| {
        planted.set_meta("earliest", 0);
        "the log begins at position 1-".into()
    });
    assert_found("sealed_row", |planted| {
        let seq = planted.journal_rows()[0];
        planted.set_meta("sealed_row", seq);
        format!("journal row {seq} is marked as sealed, but its blocks are missing")
    });
    assert_found("trimmed_ms", |planted| {
        planted.set_meta("trimmed_ms", planted.meta("trimmed_ms") + 100_000_000);
        let earliest = Position::from_u64(planted.meta("earliest").cast_unsigned());
        format!("position {earliest} of the log is earlier than the one before it")
    });
    assert_found("writer", |planted| {
        planted.set_meta("writer", 0);
        "the store writes as writer 0, but the log ends at 1-".into()
    });
}
